"""Episodes: log-probabilities are exact whatever the turns' lengths, the batch changes nothing, states are restored."""

import pytest
import torch

from offrl.llm.environment import Answer, Stateful
from offrl.llm.episodes import converse, demonstrate, respond
from offrl.llm.evaluate import evaluate
from offrl.llm.learner import Learner
from offrl.llm.methods import METHODS, load_method
from offrl.llm.models import Transformer, load_model
from offrl.llm.options import LLMOptions
from offrl.llm.rollouts import joined, rollouts
from offrl.llm.score import score
from offrl.llm.tasks import load_task
from offrl.llm.text import PAD
from offrl.llm.transcripts import Transcripts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spread(policy, by=2.0):
    """Far from uniform."""
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(by)
    return policy


class Ragged(Stateful):
    """Turns of one to three tokens, ended by token 4; answers of one to four; episodes of one to five turns."""

    longest_turn, longest_answer = 3, 4

    def __init__(self, size):
        self.turn_ends = torch.arange(size) == 4
        self.log = []

    def reset(self, prompts):
        self.now = {"sum": prompts.ids.clone(), "turn": torch.zeros_like(prompts.ids)}

    def step(self, rows, actions):
        self.log += [(int(r), a[a != PAD].tolist()) for r, a in zip(rows, actions, strict=True)]
        self.now["sum"][rows] += actions.sum(dim=1)
        self.now["turn"][rows] += 1
        total = self.now["sum"][rows]
        lengths = 1 + total % 4
        observations = (5 + (total[:, None] + torch.arange(4)) % 6).where(
            torch.arange(4) < lengths[:, None], PAD
        )
        ended = self.now["turn"][rows] >= 1 + total % 5
        return Answer(observations, lengths, total.float(), ended, ended & (total % 2 == 0))

    def expert(self, rows, generator):
        return torch.tensor([[5, 4, PAD]]).expand(len(rows), 3)


def ragged_task():
    task = load_task("t4a")
    task.max_response = 40
    env = Ragged(len(task.vocabulary))
    task.environment = lambda: env
    return task, env


def ragged(policy_seed=0, count=6, copies=4, temperature=1.0):
    task, env = ragged_task()
    policy = spread(load_model("tiny:dense", task, policy_seed))
    prompts = task.prompts(count, generator(1))
    return task, env, policy, prompts, respond(
        policy, task, prompts, copies=copies, temperature=temperature, generator=generator(2)
    )  # fmt: skip


@pytest.mark.parametrize("name", ["t4a", "t4b", "t4c"])
def test_log_probs_equal_those_of_one_pass_over_the_transcript(name):
    task = load_task(name)
    policy = spread(load_model("tiny:dense", task, 0))
    prompts = task.prompts(6, generator(1))
    found = respond(policy, task, prompts, copies=4, generator=generator(2))
    many = prompts.repeat(4)
    scores = score(policy, many.tokens, many.mask, found.tokens, found.mask)
    assert found.log_probs[found.mask].std() > 0.1
    assert (found.mask.sum(dim=1) < (found.tokens != PAD).sum(dim=1)).all()
    torch.testing.assert_close(scores.log_probs, found.log_probs, atol=1e-5, rtol=0)


def test_turns_and_answers_of_unequal_lengths_are_exact_too():
    _, _, policy, prompts, found = ragged(temperature=0.7)
    many = prompts.repeat(4)
    scores = score(policy, many.tokens, many.mask, found.tokens, found.mask, temperature=0.7)
    lengths = (found.tokens != PAD).sum(dim=1)
    assert len(lengths.unique()) > 4
    torch.testing.assert_close(scores.log_probs, found.log_probs, atol=1e-5, rtol=0)


def test_what_the_environment_heard_is_what_stands_in_the_transcript():
    _, env, _, _, found = ragged()
    for row in range(len(found.tokens)):
        heard = [action for r, action in env.log if r == row]
        turns = found.step_ids[row].unique().tolist()
        said = [found.tokens[row][found.step_ids[row] == turn].tolist() for turn in turns if turn >= 0]
        assert said == heard
        assert turns[0] == -1
        assert turns[1:] == list(range(len(heard)))


def test_a_turn_ends_with_its_end_or_at_its_length():
    _, env, _, _, _ = ragged()
    lengths = {len(action) for _, action in env.log}
    assert lengths == {1, 2, 3}
    for _, action in env.log:
        assert len(action) == 3 or action[-1] == 4
        assert 4 not in action[:-1]


def test_rewards_stand_at_the_last_token_of_their_turn():
    _, env, _, prompts, found = ragged()
    totals = prompts.repeat(4).ids.tolist()
    for row, total in enumerate(totals):
        paid = []
        for r, action in env.log:
            if r == row:
                total += sum(action)
                paid.append(float(total))
        last = found.step_ids[row] != found.step_ids[row].roll(-1)
        at = found.mask[row] & last
        assert found.rewards[row][at].tolist() == paid
        assert found.rewards[row][~at].abs().sum() == 0
    assert found.paid.tolist() == found.rewards.sum(dim=1).tolist()


def test_mask_step_ids_and_padding_agree():
    _, _, _, _, found = ragged()
    assert torch.equal(found.mask, found.step_ids >= 0)
    shown = found.tokens != PAD
    lengths = shown.sum(dim=1, keepdim=True)
    assert torch.equal(shown, torch.arange(shown.shape[1]) < lengths)  # no gaps
    assert (found.log_probs[~found.mask] == 0).all()
    assert found.mask[:, 0].all()
    assert not found.mask.gather(1, lengths - 1).any()  # an answer comes last


def test_one_episode_alone_goes_as_in_a_batch():
    task = load_task("t4a")
    policy = spread(load_model("tiny:dense", task, 0).double())
    prompts = task.prompts(5, generator(1))
    together = respond(policy, task, prompts, temperature=0.0)
    for i in range(5):
        alone = respond(policy, task, prompts.rows(slice(i, i + 1)), temperature=0.0)
        width = alone.tokens.shape[1]
        assert torch.equal(together.tokens[i, :width], alone.tokens[0])
        assert (together.tokens[i, width:] == PAD).all()
        torch.testing.assert_close(together.log_probs[i, :width], alone.log_probs[0], atol=1e-5, rtol=0)


def test_a_limit_on_tokens_cuts_an_episode():
    task, _ = ragged_task()
    policy = spread(load_model("tiny:dense", task, 0))
    prompts = task.prompts(8, generator(1))
    prompts.limits.fill_(5)
    found = respond(policy, task, prompts, copies=4, generator=generator(2))
    chosen = found.mask.float().cumsum(dim=1).argmax(dim=1)  # the last chosen token
    assert (chosen < 5).all()
    assert found.cut.float().mean() > 0.5


@pytest.mark.parametrize("name", ["t4a", "t4c"])
def test_episodes_go_on_from_any_moment_as_they_went(name):
    """The state of every moment, restored under the transcript so far, leads to the same end greedily."""
    task = load_task(name)
    policy = spread(load_model("tiny:dense", task, 3))
    prompts = task.prompts(6, generator(1))
    moments = []
    env = task.environment()
    env.reset(prompts)
    whole = converse(policy, env, prompts, temperature=0.0, moments=moments)
    assert len(moments) == task.turns + 1 or whole.paid.all()
    moment = moments[3]
    rows = moment.ready.nonzero()[:, 0]
    length = int(moment.lengths[rows].min())
    rows = rows[moment.lengths[rows] == length]
    env.restore({key: x[rows] for key, x in moment.state.items()})
    told = prompts.rows(rows)
    longer = type(told)(
        torch.cat([told.tokens, whole.tokens[rows, :length]], 1), torch.ones(len(rows), told.tokens.shape[1] + length, dtype=torch.bool),
        told.limits - length, told.ids, told.levels,
    )  # fmt: skip
    rest = converse(policy, env, longer, temperature=0.0)
    width = rest.tokens.shape[1]
    assert torch.equal(rest.tokens, whole.tokens[rows, length : length + width])
    assert torch.equal(rest.paid, whole.paid[rows])


def test_a_saved_state_is_a_copy():
    task = load_task("t4c")
    env = task.environment()
    env.reset(task.prompts(3, generator()))
    before = env.state()
    kept = {key: x.clone() for key, x in before.items()}
    for _ in range(5):
        env.step(torch.arange(3), torch.full((3, 1), task.first_move + 1))
    assert all(torch.equal(before[key], kept[key]) for key in kept)
    assert not torch.equal(env.state()["cell"], kept["cell"])
    env.restore(before)
    env.step(torch.arange(3), torch.full((3, 1), task.first_move))
    assert all(torch.equal(before[key], kept[key]) for key in kept)


def test_demonstrations_are_episodes_of_the_expert():
    task = load_task("t4c")
    prompts = task.prompts(20, generator(1))
    found = demonstrate(task, prompts, generator(), 0.0)
    assert (found.paid == 1).all()
    assert not found.cut.any()
    assert task.allowed[found.tokens[found.mask]].all()
    noisy = demonstrate(task, prompts, generator(), 0.9)
    assert noisy.paid.mean() < 0.5
    ragged, env = ragged_task()
    said = demonstrate(ragged, ragged.prompts(3, generator()), generator(), 0.0)
    assert all(action == [5, 4] for _, action in env.log)
    assert said.mask.sum() == 2 * len(env.log)


def test_parts_of_unequal_widths_are_joined():
    _task, _, _, prompts, found = ragged()
    ids = torch.arange(6).repeat_interleave(4)
    whole = rollouts(prompts.repeat(4), found, found.paid, ids, found.paid[:, None])
    short = whole.rows(torch.arange(4))
    width = int(short.mask.any(dim=0).nonzero().max()) + 1
    cut = {
        name: getattr(short, name)[:, :width]
        for name in ("tokens", "mask", "step_ids", "step_rewards", "rollout_log_probs")
    }
    wide = {"prompt_tokens": torch.cat([torch.zeros(24, 2, dtype=torch.int64), whole.prompt_tokens], 1)}
    wide["prompt_mask"] = torch.cat([torch.zeros(24, 2, dtype=torch.bool), whole.prompt_mask], 1)
    both = joined([short.replace(**cut), whole.replace(**wide)])
    assert both.tokens.shape == (28, whole.tokens.shape[1])
    assert torch.equal(
        both.step_ids[:4], short.step_ids.where(torch.arange(whole.tokens.shape[1]) < width, -1)
    )
    assert (both.prompt_tokens[:4, :2] == PAD).all()
    assert torch.equal(both.prompt_tokens[:4, 2:], short.prompt_tokens)
    assert not both.prompt_mask[:4, :2].any()


def learner(name, task="t4a", **given):
    method = load_method(name)
    how = {"prompts": 4, "group": 4, "device": "cpu", "task": task, "steps": 2}
    how |= {"group": 1} if method.data == "demonstrations" else {}
    how |= {"minibatches": 2} if name == "kl_cov" else {}
    own = {"copg": {"kl": 0.1}, "fdpg": {"kl": 0.1}, "capo": {"tau_f": 0.1, "tau_h": 1e9}}
    config = method.config(**own.get(name, {}))
    made = load_task(task)
    options = LLMOptions(**how | given)
    return Learner(method, config, made, load_model("tiny:dense", made, 0), options)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_episodes(name):
    made = learner(name)
    before = [p.detach().clone() for p in made.policy.parameters()]
    metrics = [made.update() for _ in range(2)]
    assert all(torch.isfinite(value).all() for found in metrics for value in found.values())
    moved = any(not torch.equal(a, b) for a, b in zip(before, made.policy.parameters(), strict=True))
    assert moved or all(float(found["zero_variance"]) == 1.0 for found in metrics)


def test_environment_tokens_get_no_gradient():
    """The loss of a batch is that of the same batch with other log-probabilities outside the mask."""
    made = learner("grpo")
    batch, _ = made._collect()
    assert not torch.equal(batch.mask, batch.tokens != PAD)
    log_probs = torch.randn(batch.mask.shape, generator=generator()).requires_grad_()
    batch = made._prepared(batch).replace(old_log_probs=torch.zeros_like(log_probs))
    made.estimator.loss(log_probs, batch).backward()
    assert (log_probs.grad[~batch.mask] == 0).all()
    assert log_probs.grad[batch.mask].abs().sum() > 0


def test_step_rewards_reach_a_critic_where_they_were_paid():
    made = learner("ppo")
    batch, _ = made._collect()
    steps = torch.zeros_like(batch.rollout_log_probs)
    steps[:, 0] = 0.25  # half a reward at once, the rest at the end
    found = made._with_kl(batch.replace(step_rewards=steps, rewards=batch.rewards + 0.25), None, None)
    assert (found[:, 0] >= 0.25).all()
    torch.testing.assert_close(found.sum(dim=1), batch.rewards + 0.25)
    last = found.shape[1] - 1 - batch.mask.flip(1).long().argmax(dim=1)
    rest = found - steps
    torch.testing.assert_close(rest.gather(1, last[:, None])[:, 0], batch.rewards)


def test_evaluations_play_episodes():
    task = load_task("t4b")
    found = evaluate(load_model("tiny:dense", task, 0), task, prompts=3, samples=32, seed=0, name="x")
    assert found.success.shape == (3, 32)
    assert 0.1 < found.accuracy < 0.9


def test_a_row_without_an_answer_is_followed_by_nothing():
    t = Transcripts(torch.tensor([3, 3]), 2, PAD)
    t.choose(torch.tensor([1]), torch.tensor([7]), torch.tensor([-0.5]))
    assert t.length.tolist() == [0, 1]
    assert t.actions(torch.tensor([1]), 2).tolist() == [[7, PAD]]
    t.tell(torch.tensor([1]), torch.tensor([[8, 9]]), torch.tensor([2]))
    assert t.tokens[1, :3].tolist() == [7, 8, 9]
    assert t.said.tolist() == [0, 0]
    assert t.turn.tolist() == [0, 1]


def test_episodes_that_ended_are_read_no_further_and_nothing_else_changes(monkeypatch):
    read = []

    def counted(self, state, tokens, seen, advance=Transformer.advance):
        read.append(len(tokens))
        return advance(self, state, tokens, seen)

    monkeypatch.setattr(Transformer, "advance", counted)
    _, _, _, _, narrowed = ragged(count=8)
    narrow = read.copy()
    read.clear()
    monkeypatch.setattr("offrl.llm.transcripts.SHARE", 0.0)
    _, _, _, _, whole = ragged(count=8)
    assert set(read) == {32}
    assert narrow[0] == 32
    assert narrow == sorted(narrow, reverse=True)
    assert len(set(narrow)) > 3
    assert narrow[-1] <= 8
    assert torch.equal(narrowed.tokens, whole.tokens)
    assert torch.equal(narrowed.rewards, whole.rewards)
    torch.testing.assert_close(narrowed.log_probs, whole.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["t4a", "t4d-actor", "t6"])
def test_an_evaluation_asks_as_many_prompts_as_it_is_told(name):
    task = load_task(name)
    found = evaluate(load_model("tiny:dense", task, 0), task, prompts=12, samples=1, seed=0, name="x")
    assert found.success.shape == (12, 1)
    assert not hasattr(task, "size")  # that of a data set, all of which is a pool


def test_a_pass_reads_all_that_is_new_and_padding_is_not_seen(monkeypatch):
    """As many passes as the longest episode has tokens to choose, whatever the lengths of answers."""
    passes = []

    def counted(self, state, tokens, seen, advance=Transformer.advance):
        passes.append((tokens.clone(), seen.clone()))
        return advance(self, state, tokens, seen)

    monkeypatch.setattr(Transformer, "advance", counted)
    _, _, _, _, found = ragged()
    assert len(passes) == int(found.mask.sum(dim=1).max()) - 1
    assert not all(bool(seen.all()) for _, seen in passes)
    assert all(bool(seen[:, -1].all()) for _, seen in passes)
    assert all(bool((tokens[~seen] == PAD).all()) for tokens, seen in passes)
