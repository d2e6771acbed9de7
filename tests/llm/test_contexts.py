"""Windows: contexts stay within them, each token is scored once under what the model saw, and without a reset nothing
differs from whole episodes."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.contexts import Window, score_segments
from offrl.llm.environment import Answer, Stateful
from offrl.llm.episodes import demonstrate, respond
from offrl.llm.learner import Learner
from offrl.llm.methods import METHODS, load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.score import score
from offrl.llm.session import build
from offrl.llm.tasks import task_for
from offrl.llm.text import EOS, PAD


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def played(kind="supo", window=32, summaries=3, count=5, copies=4, double=False):
    more = {"summaries": summaries} if kind == "supo" else {}
    task = task_for(LLMOptions(task="t6", context=kind, context_window=window, **more))
    policy = load_model("tiny:dense", task, 0)
    policy = policy.double() if double else policy
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(2.0)
    prompts = task.prompts(count, generator(1))
    return task, policy, prompts, respond(policy, task, prompts, copies=copies, generator=generator(2))


def context_of(found, row, number, upto):
    """What the model saw before the token at ``upto``: what the context begins with, and what stands in it so far."""
    begun = found.contexts[row, number][found.context_mask[row, number]].tolist()
    own = found.segments[row, :upto] == number
    return begun + found.tokens[row, :upto][own].tolist()


@pytest.mark.parametrize("kind", ["supo", "truncate"])
def test_the_log_probs_are_those_step_by_step_under_the_managed_contexts(kind):
    """Every token counts once: the sum over an episode is that of its steps, dropped rounds left out."""
    _, policy, _, found = played(kind, count=2, copies=2)
    scores = score_segments(
        policy, (found.contexts, found.context_mask), found.segments, found.tokens, found.mask
    )
    torch.testing.assert_close(scores.log_probs, found.log_probs, atol=1e-5, rtol=0)
    for row in range(2):
        total = 0.0
        for t in found.mask[row].nonzero()[:, 0].tolist():
            seen = torch.tensor([context_of(found, row, int(found.segments[row, t]), t)])
            one = score(policy, seen, seen >= 0, found.tokens[row, t][None, None])
            total += float(one.log_probs.detach())
        assert abs(total - float(scores.log_probs[row].sum().detach())) < 1e-3
    assert (found.segments[found.mask] >= 0).all()


@pytest.mark.parametrize("count", [30, pytest.param(850, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["supo", "truncate"])
def test_contexts_stay_within_the_window(kind, count):
    for window, summaries in ((16, 2), (24, 6), (32, 3)):
        _, _, _, found = played(kind, window, summaries, count=count, copies=4)
        peak = found.context_mask.sum(dim=2)
        for number in range(peak.shape[1]):
            own = found.segments == number
            said = (own & found.mask).flip(1).cumsum(dim=1).flip(
                1
            ) > 0  # what follows the last chosen token is not read
            peak[:, number] = (peak[:, number] + own.logical_and(said).sum(dim=1)).where(said.any(dim=1), 0)
        assert int(peak.max()) <= window
        assert int(peak.max()) > window // 2


def test_a_context_is_full_at_95_per_cent_or_where_a_summary_would_not_fit_any_more():
    summary = task_for(LLMOptions(task="t6"))
    own = len(summary.request) + summary.longest
    assert Window("truncate", 200, 3, summary, 4, 6).full == 190
    assert Window("supo", 200, 3, summary, 4, 6).full == 190
    assert Window("supo", 40, 3, summary, 4, 6).full == 40 - own < 38


@pytest.mark.parametrize(("kind", "least"), [("supo", 16), ("truncate", 8)])
def test_the_least_window_is_named_and_holds_a_turn_after_a_summary(kind, least):
    """Below it, a turn and its answer (1 and 5) after prompt, "=" and summary (5) fill what a request leaves."""
    for size in range(1, least):
        with pytest.raises(ConfigError, match=f"of {size} tokens holds no turn .* pass {least} or more"):
            task_for(LLMOptions(task="t6", context=kind, context_window=size))
    _, _, _, found = played(kind, least, 6, count=10, copies=2)
    later = (found.segments > 0) & found.mask
    held = [len(found.step_ids[row][later[row] & (found.segments[row] == 1)].unique()) for row in range(20)]
    assert max(held) > 1 or kind == "truncate"
    assert later.any()


def test_a_context_begins_with_the_prompt_and_the_last_summary():
    task, _, _, found = played()
    resets = 0
    for row in range(len(found.tokens)):
        for number in range(1, int(found.segments[row].max()) + 1):
            begun = found.contexts[row, number][found.context_mask[row, number]].tolist()
            before = found.tokens[row][found.segments[row] == number - 1].tolist()
            summary = before[len(before) - before[::-1].index(task.request[0]) :]
            assert begun == [
                *found.contexts[row, 0][found.context_mask[row, 0]].tolist(),
                *task.header,
                *summary,
            ]
            assert 1 <= len(summary) <= task.longest
            assert EOS not in summary[:-1]
            resets += 1
    assert resets > 10


def test_requests_and_answers_are_masked_and_summaries_are_not():
    task, _, _, found = played()
    asked = found.tokens == task.request[0]
    assert asked.any()
    assert not found.mask[asked].any()
    following = asked.roll(1, dims=1)
    assert found.mask[following].all()
    assert not found.mask[found.tokens == task.question].any()


def test_the_last_round_is_dropped_before_a_summary():
    task, _, _, found = played()
    dropped = (found.segments == -1) & (found.tokens != PAD)
    asked = found.tokens == task.request[0]
    assert int(dropped.sum()) > 0
    assert not found.mask[dropped].any()
    assert (found.step_ids[dropped] == -1).all()
    row, column = asked.nonzero(as_tuple=True)
    assert dropped[row, column - 1].all()
    assert (
        dropped[row, column - 6] & ~dropped[row, column - 7]
    ).float().mean() > 0.9  # a word and five letters


def test_what_a_dropped_round_earned_stays_with_what_was_said_before():
    from offrl.llm.contexts import Progress, _drop
    from offrl.llm.transcripts import Transcripts

    t, none = Transcripts(torch.tensor([8]), 0, PAD), torch.zeros(1, dtype=torch.bool)
    t.mask[0, [0, 3, 5]], t.length[0], t.step_ids[0, :6] = True, 7, torch.tensor([0, -1, -1, 1, -1, 2])
    t.rewards[0, 3], t.rewards[0, 5] = 0.25, 1.0
    p = Progress(none, none, none, t.length.clone(), torch.zeros_like(t.tokens), [[[1]]])
    _drop(t, p, 0, 5)
    assert t.rewards[0].tolist() == [0.0, 0.0, 0.0, 1.25, 0.0, 0.0, 0.0, 0.0]
    assert t.mask[0].nonzero()[:, 0].tolist() == [0, 3]
    assert t.step_ids[0].tolist() == [0, -1, -1, 1, -1, -1, -1, -1]
    assert p.segments[0].tolist() == [0] * 5 + [-1] * 2 + [0]


def test_a_truncated_context_keeps_half_of_what_fits_beside_the_prompt():
    """A window of 32 is full at 30: one token of the prompt and 14 of the last 29."""
    _, _, _, found = played("truncate")
    held = found.context_mask.sum(dim=2)
    assert held.shape[1] > 2
    assert set(held[:, 0].tolist()) == {1}
    assert set(held[:, 1:].flatten().tolist()) <= {0, 15}
    for row in range(len(held)):
        if held[row, 1]:
            before = context_of(found, row, 0, found.tokens.shape[1])
            after = found.contexts[row, 1][found.context_mask[row, 1]].tolist()
            assert after == [before[0], *before[-14:]]


def test_a_long_window_is_as_none():
    """One context an episode: the gradient is that of whole episodes, bit for bit."""

    def gradient(**given):
        options = LLMOptions(task="t6", prompts=3, group=4, device="cpu", **given)
        task = task_for(options)
        made = Learner(
            METHODS_GRPO, METHODS_GRPO.config(entropy=0.1), task, load_model("tiny:dense", task, 0), options
        )
        made.update()
        return torch.cat([p.grad.flatten() for p in made.parameters])

    whole = gradient()
    assert whole.abs().sum() > 0
    assert torch.equal(gradient(context="supo", context_window=1000), whole)
    assert not torch.equal(gradient(context="supo", context_window=32, summaries=6), whole)


METHODS_GRPO = load_method("grpo")


def learner(name="grpo", **given):
    how = {
        "task": "t6",
        "prompts": 4,
        "group": 4,
        "device": "cpu",
        "context": "supo",
        "context_window": 32,
        "summaries": 2,
    }
    options = LLMOptions(**how | given)
    own = {"copg": {"kl": 0.1}, "fdpg": {"kl": 0.1}, "capo": {"tau_f": 0.1, "tau_h": 1e9}}
    return build(name, load_method(name).config(**own.get(name, {})), options)


def test_an_overlong_episode_has_no_gradient_but_counts_in_its_group():
    made = learner(summaries=1)
    batch, _ = made._collect()
    assert batch.cut.any()
    over = ~batch.mask.any(dim=1)
    assert over.any()
    rewards = torch.zeros(16)
    rewards[(~over).nonzero()[0, 0] if (~over).any() else 0] = 1.0
    batch = batch.replace(rewards=rewards)
    found = made._prepared(batch)
    log_probs = torch.randn(batch.mask.shape, requires_grad=True)
    made.estimator.loss(log_probs, found.replace(old_log_probs=log_probs.detach())).backward()
    assert (log_probs.grad[over] == 0).all()
    mean = rewards.view(4, 4).mean(dim=1)
    std = rewards.view(4, 4).std(dim=1)
    want = (rewards.view(4, 4) - mean[:, None]) / (std[:, None] + 1e-6)
    torch.testing.assert_close(found.advantages, want.flatten())


def test_advantages_do_not_depend_on_the_number_of_summaries():
    """Episodes are one row each, so that another boundary inside one changes no statistic."""
    made = learner(summaries=6)
    batch, _ = made._collect()
    batch = batch.replace(rewards=torch.arange(16.0) % 3)
    before = made._prepared(batch).advantages
    split = torch.where(batch.segments >= 1, batch.segments + 1, batch.segments)
    again = torch.cat([batch.contexts[:, :1], batch.contexts], dim=1)
    more = batch.replace(
        segments=split,
        contexts=again,
        context_mask=torch.cat([batch.context_mask[:, :1], batch.context_mask], 1),
    )
    assert torch.equal(made._prepared(more).advantages, before)
    equal = made._prepared(batch.replace(rewards=torch.ones(16)))
    assert (equal.advantages == 0).all()


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("polychromic",)])
def test_every_method_trains_with_summaries(name):
    small = {"group": 1} if load_method(name).data == "demonstrations" else {"group": 2}
    made = learner(name, prompts=2, **small, **({"minibatches": 2} if name == "kl_cov" else {}))
    metrics = made.update()
    assert all(torch.isfinite(value).all() for value in metrics.values())


class OneBit(Stateful):
    """Shows a bit, fills the context, asks: for exact enumeration. Words 4 and 5 are the bits."""

    longest_turn, longest_answer = 1, 7

    def __init__(self, size):
        self.turn_ends = torch.zeros(size, dtype=torch.bool)

    def reset(self, prompts):
        self.now = {"bit": prompts.ids % 2, "turn": torch.zeros_like(prompts.ids)}

    def step(self, rows, actions):
        self.now["turn"][rows] += 1
        turn, bit = self.now["turn"][rows], self.now["bit"][rows]
        right = (actions[:, 0] == 4 + bit).float() * (turn == 3)
        observations = torch.full((len(rows), 7), 6)
        observations[:, 0] = torch.where(turn == 1, 4 + bit, 6)
        lengths = torch.where(turn == 1, 1, 7)
        return Answer(observations, lengths, right, turn == 3, turn == 4)


def test_the_expected_gradient_is_that_of_the_enumerated_return():
    """A one-bit summary channel: of all episodes, probability times return, differentiated, against the engine's scores."""
    task = task_for(LLMOptions(task="t6", context="supo", context_window=16, summaries=2))
    task.longest = task.window.summary.longest = 1
    task.environment = lambda: OneBit(len(task.vocabulary))
    task.window.full = 8
    task.allowed = torch.zeros(len(task.vocabulary), dtype=torch.bool)
    task.allowed[[4, 5]] = True
    policy = load_model("tiny:dense", task, 0).double()
    prompts = task.prompts(1, generator(1))
    found = respond(policy, task, prompts, copies=400, generator=generator(2))
    said = torch.stack([row[kept] for row, kept in zip(found.tokens, found.mask, strict=True)]) - 4
    assert said.shape[1] == 3  # a word, the summary (the second word's round is dropped), the last word
    first = {tuple(row): i for i, row in enumerate(said.tolist())}
    assert len(first) == 8
    rows = torch.tensor([first[bits] for bits in itertools.product((0, 1), repeat=3)])
    picked = found.rows(rows)
    log_probs = score_segments(
        policy, (picked.contexts, picked.context_mask), picked.segments, picked.tokens, picked.mask
    ).log_probs.sum(dim=1)
    assert abs(float(log_probs.exp().sum().detach()) - 1.0) < 1e-6  # each of them once, nothing missing
    torch.testing.assert_close(log_probs, picked.log_probs.sum(dim=1), atol=1e-6, rtol=0)
    bit = int(prompts.ids[0]) % 2
    assert picked.paid.tolist() == [float(bits[2] == bit) for bits in itertools.product((0, 1), repeat=3)]
    weight = policy.head
    exact = torch.autograd.grad((log_probs.exp() * picked.paid).sum(), weight, retain_graph=True)[0]
    estimated = torch.autograd.grad((log_probs.exp().detach() * picked.paid * log_probs).sum(), weight)[0]
    torch.testing.assert_close(estimated, exact, atol=1e-12, rtol=1e-9)
    assert exact.abs().max() > 1e-4


def test_demonstrated_summaries_carry_the_key():
    task = task_for(LLMOptions(task="t6", context="supo", context_window=32, summaries=6))
    found = demonstrate(task, task.prompts(20, generator(1)), generator(), 0.0)
    assert (found.paid == 1).all()
    assert not found.overlong.any()
    few = task_for(LLMOptions(task="t6", context="supo", context_window=32, summaries=1))
    short = demonstrate(few, few.prompts(20, generator(1)), generator(), 0.0)
    assert short.overlong.all()
    assert (short.paid == 0).all()


def test_more_summaries_make_longer_episodes_possible():
    paid = []
    for summaries in (2, 3, 4, 6):
        task = task_for(LLMOptions(task="t6", context="supo", context_window=32, summaries=summaries))
        paid.append(float(demonstrate(task, task.prompts(100, generator(1)), generator(), 0.0).paid.mean()))
    assert paid == sorted(paid)
    assert paid[0] < 0.3 < paid[1] < paid[3] == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"context": "supo"}, "go together"),
        ({"context_window": 24}, "go together"),
        ({"summaries": 4}, "summaries has no effect without --context supo"),
        ({"context": "truncate", "context_window": 24, "summaries": 4}, "summaries has no effect without"),
        ({"context": "supo", "context_window": 24, "task": "t4a"}, "t4a are not summarized"),
        ({"context": "supo", "context_window": 24, "task": "t1"}, "t1 are not summarized"),
        ({"context": "supo", "context_window": 15}, "holds no turn beside prompt and summary: pass 16 or more"),
        ({"context": "supo", "context_window": 24, "task": "arithmetic"}, "leave --context out"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        task_for(LLMOptions(**{"task": "t6"} | given))


@pytest.mark.parametrize(("name", "settings"), [("polychromic", {}), ("minirl", {"replay": "R2"})])
def test_methods_that_start_inside_episodes_or_replay_them_refuse_windows(name, settings):
    options = LLMOptions(task="t6", context="supo", context_window=32, device="cpu", minibatches=2)
    with pytest.raises(ConfigError, match="leave --context out"):
        build(name, load_method(name).config(**settings), options)
