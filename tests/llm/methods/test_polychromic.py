"""Polychromic: where sets' advantages go, where vines start, that answers decide, and what is refused."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.advantages import gae
from offrl.estimators.sets import all_sets, polychromic, projected
from offrl.llm.learner import FURTHER, Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.polychromic import kl_from_old, mixed
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.session import build
from offrl.llm.tasks import load_task

METHOD = load_method("polychromic")


def learner(task="t4b", settings=None, **given):
    made = load_task(task)
    options = LLMOptions(**{"task": task, "prompts": 2, "group": 4, "steps": 10, "device": "cpu"} | given)
    return Learner(
        METHOD, METHOD.config(**(settings or {})), made, load_model("tiny:dense", made, 0), options
    )


STEPS = torch.tensor([[0, -1, 1, -1, 2, 2], [0, -1, 1, -1, -1, -1]])


@pytest.mark.parametrize("window", [0, 1, 5])
def test_only_the_window_of_a_vine_gets_the_sets_advantage(window):
    gae = torch.arange(12.0).view(2, 6) + 1
    both = torch.tensor([[0.5, -0.25], [7.0, 7.0]])
    found = mixed(gae, both, torch.tensor([True, False]), STEPS, STEPS >= 0, window=window)
    assert found.shape == (2, 6, 2)
    for t in range(6):
        inside = 0 <= STEPS[0, t] <= window
        assert found[0, t].tolist() == ([0.5, -0.25] if inside else [float(gae[0, t]), 0.0])
        assert found[1, t].tolist() == [float(gae[1, t]), 0.0]
    one = mixed(gae, both[:, :1], torch.tensor([True, True]), STEPS, STEPS >= 0, window=window)
    assert one.shape == (2, 6)
    assert one[0, 0] == 0.5


def test_vines_are_groups_that_begin_inside_the_first_episode():
    made = learner(settings={"states": 2, "vines": 4})
    batch, _ = made._collect()
    assert len(batch.tokens) == 2 * 4 + 2 * 2 * 4
    assert batch.vines.tolist() == [False] * 8 + [True] * 16
    ids = batch.group_ids[8:]
    assert (ids >= FURTHER).all()
    assert torch.bincount(ids - FURTHER).tolist() == [4] * 4
    assert made.rollouts == 24
    for prompt in (0, 1):
        seed = 4 * prompt
        whole = torch.cat([batch.prompt_tokens[seed][batch.prompt_mask[seed]], batch.tokens[seed]])
        for state in (0, 1):
            rows = (ids == FURTHER + 2 * prompt + state).nonzero()[:, 0] + 8
            told = batch.prompt_tokens[rows[0]][batch.prompt_mask[rows[0]]]
            assert torch.equal(told, whole[: len(told)])
            assert (len(told) == 3) == (state == 0)  # the beginning is the first state
            assert len(told) % 2 == 1  # after an answer
            assert len({tuple(r.tolist()) for r in batch.tokens[rows]}) > 1


def test_a_vine_goes_on_from_the_state_it_was_told():
    """Its first answer is a cell beside the last cell of its prompt, and turns are counted on."""
    made = learner("t4b", settings={"states": 3, "vines": 4})
    task = made.task
    batch, _ = made._collect()
    vines = batch.rows(batch.vines)
    before = vines.prompt_tokens[:, -1] - task.first
    after = vines.tokens[:, 1] - task.first
    apart = (before // 5 - after // 5).abs() + (before % 5 - after % 5).abs()
    assert (apart <= 1).all()
    told = vines.prompt_mask.sum(dim=1) - 3
    assert ((vines.mask.sum(dim=1) * 2 + told) <= 24).all()
    assert torch.equal(vines.limits, 24 - told)


def test_log_probs_of_vines_are_exact():
    made = learner(settings={"states": 2, "vines": 4})
    batch, _ = made._collect()
    found = made._score(batch, made.policy).log_probs
    torch.testing.assert_close(found, batch.rollout_log_probs, atol=1e-5, rtol=0)


def test_set_advantages_are_those_of_the_groups_answers():
    made = learner(settings={"states": 2, "vines": 6, "n": 3})
    batch = made._prepared(made._collect()[0])
    sets = all_sets(6, 3)
    assert (batch.set_advantages[~batch.vines] == 0).all()
    nonzero = 0
    for group in batch.group_ids[batch.vines].unique():
        rows = (batch.group_ids == group).nonzero()[:, 0]
        scores = polychromic(batch.components[rows].sum(1), batch.answer_ids[rows], sets)
        torch.testing.assert_close(batch.set_advantages[rows, 0], projected(scores, sets, 6))
        nonzero += int(scores.std() > 0)
    assert nonzero > 0
    first = batch.vines[:, None] & (batch.step_ids == 0)
    torch.testing.assert_close(batch.advantages[first], batch.set_advantages[batch.vines, 0])
    late = batch.vines[:, None] & (batch.step_ids > 5)
    gae = made._prepared(batch.replace(rewards=batch.components.sum(1), vines=batch.group_ids == FURTHER))
    assert late.any()
    other = late & (batch.group_ids != FURTHER)[:, None]
    torch.testing.assert_close(gae.advantages[other], batch.advantages[other])


def test_states_are_evenly_spaced_over_the_turns():
    made = learner("t4b", settings={"states": 3, "vines": 4})
    batch, _ = made._collect()
    told = (batch.prompt_mask.sum(dim=1) - 3)[batch.vines].view(2, 3, 4)
    for prompt in (0, 1):
        turns = int(batch.mask[4 * prompt].sum())
        for state in range(3):
            assert told[prompt, state].tolist() == [2 * (state * turns // 3)] * 4


def test_outside_of_windows_there_is_plain_gae_and_a_kl_in_the_rewards_is_not_in_the_sets():
    made = learner(settings={"states": 2, "vines": 6, "n": 3})
    batch = made._prepared(made._collect()[0])
    how = {"mask": batch.mask, "discount": 1.0, "lam": 0.95}
    want = gae(batch.rewards, batch.values, batch.next_values, **how)
    assert want[~batch.vines].abs().max() > 0.1
    torch.testing.assert_close(batch.advantages[~batch.vines], want[~batch.vines])
    other = made.companion.measured(batch.replace(rewards=batch.rewards - 0.7))
    assert torch.equal(other.set_advantages, batch.set_advantages)


def test_the_kl_from_the_sampling_policy_is_in_the_loss():
    made = learner(settings={"states": 2, "vines": 4})
    batch = made._prepared(made._collect()[0])
    batch = batch.replace(old_log_probs=batch.rollout_log_probs)
    now = batch.old_log_probs + 0.3 * torch.randn(
        batch.mask.shape, generator=torch.Generator().manual_seed(0)
    )
    with_, without = (
        METHOD.estimator(METHOD.config(kl_old=c), 24).loss(now, batch, predicted_values=batch.values)
        for c in (0.5, 0.0)
    )
    kl = kl_from_old(now, batch.old_log_probs)[batch.mask].mean()
    torch.testing.assert_close(with_ - without, 0.5 * kl, atol=1e-5, rtol=1e-4)


def test_different_answers_are_different_goals():
    task = load_task("t4b")
    made = learner()
    batch, _ = made._collect()
    reached = batch.components.sum(dim=1) > 0
    assert reached.any()
    assert not reached.all()
    assert (batch.answer_ids[~reached] == -1).all()
    assert torch.isin(batch.answer_ids[reached], torch.tensor(task.corners)).all()


def test_responses_of_a_prompt_are_the_sets_without_states():
    made = learner("t1", settings={"states": 0, "share": "set", "sets": 3}, group=6)
    batch = made._prepared(made._collect()[0])
    assert batch.vines.all()
    assert len(batch.tokens) == 12
    assert batch.set_advantages.shape == (12, 3)
    assert batch.advantages.shape == (*batch.mask.shape, 3)
    assert all(torch.isfinite(x) for x in made.update().values())


def test_the_kl_from_the_sampling_policy_has_the_right_gradient():
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64, requires_grad=True)
    new = logits.log_softmax(0)
    value = (old * kl_from_old(new, old.log())).sum()
    exact = (old * (old.log() - new)).sum()
    torch.testing.assert_close(value, exact)
    (found,) = torch.autograd.grad(value, logits, retain_graph=True)
    (want,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(found, want)


def test_what_does_not_fit_is_refused(tmp_path):
    def make(task, group=8, allocator="uniform", **settings):
        options = LLMOptions(task=task, group=group, allocator=allocator, device="cpu")
        build("polychromic", METHOD.config(**settings), options)

    with pytest.raises(ConfigError, match="t1 has no states to start from: pass --states 0"):
        make("t1")
    with pytest.raises(ConfigError, match="as many responses to every prompt: leave --allocator out"):
        make("t1", allocator="knapsack", states=0)
    with pytest.raises(ConfigError, match="--group 6 or more"):
        make("t1", group=4, states=0, n=6)
    with pytest.raises(ConfigError, match="vines has no effect with states 0"):
        METHOD.config(states=0, vines=16)
    with pytest.raises(ConfigError, match="sets of 9 need as many vines"):
        METHOD.config(n=9)
    with pytest.raises(ConfigError, match=r"rewards must lie in \[0, 1\], got .* to "):
        learner("t3", settings={"states": 0}).update()
