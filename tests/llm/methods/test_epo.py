"""EPO: the gradient of its entropy terms, the nested mean, the schedule, the history, and its weakness."""

import itertools
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.epo import beta, held
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.session import build
from offrl.llm.tasks import load_task

METHOD = load_method("epo")


def learner(name="epo", task="t4a", settings=None, **given):
    method, made = load_method(name), load_task(task)
    options = LLMOptions(**{"task": task, "prompts": 4, "group": 4, "steps": 10, "device": "cpu"} | given)
    policy = load_model("tiny:dense", made, 0).double()
    return Learner(method, method.config(**(settings or {})), made, policy, options)


def entropy(logits):
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize(("k", "factor"), [(0, 0.0), (1, 1.0)])
def test_a_tokens_coefficient_depends_on_the_corridor(k, factor):
    """lambda within, lambda (1 - beta alpha) above, lambda (1 + beta alpha) below."""
    logits = 2 * torch.randn(1, 60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    h = entropy(logits)
    low, high, b, alpha = 0.8, 1.1, 1.7, 0.3
    corridor = torch.tensor([[low, high, b] if k else [0.0, math.inf, 0.0]], dtype=torch.float64)
    loss = held(h, torch.ones_like(h), corridor, alpha=alpha, penalty="relu").sum()
    (found,) = torch.autograd.grad(loss, logits)
    logits2 = logits.detach().requires_grad_()
    sign = (h.detach() < low).double() - (h.detach() > high).double()
    assert (sign == 1).any()
    assert (sign == -1).any()
    assert (sign == 0).any()
    weight = 1 + factor * b * alpha * sign
    (want,) = torch.autograd.grad(-(weight * entropy(logits2)).sum(), logits2)
    torch.testing.assert_close(found, want, atol=1e-10, rtol=0)


def test_the_indicator_has_the_gradient_of_the_bonus_alone():
    logits = torch.randn(
        2, 9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True
    )
    corridor = torch.tensor([[1.0, 1.2, 1.5]], dtype=torch.float64).expand(2, 3)
    ones = torch.ones(2, 9, dtype=torch.float64)
    value = held(entropy(logits), ones, corridor, alpha=0.5, penalty="indicator")
    (found,) = torch.autograd.grad(value.sum(), logits)
    (want,) = torch.autograd.grad(-entropy(logits).sum(), logits)
    torch.testing.assert_close(found, want, atol=1e-12, rtol=0)
    outside = (entropy(logits) < 1.0) | (entropy(logits) > 1.2)
    torch.testing.assert_close(value + entropy(logits), 0.75 * outside.double())


def test_the_schedule_goes_from_two_to_one():
    assert beta(0, 100, 3.0) == 2.0
    assert abs(beta(50, 100, 3.0) - 1.0498) < 1e-4
    values = [beta(k, 100, 3.0) for k in range(100)]
    assert all(a > b > 1 for a, b in itertools.pairwise(values))
    assert abs(beta(25, 51, 3.0) - (1 + math.exp(-3.0))) < 1e-12  # the middle is rounded down


def loss_and_gradient(made, batch):
    """Of the first update, its entropy terms included."""
    made.optimizer.zero_grad()
    made.method, kept = made.method, made.optimizer.step
    made.optimizer.step = lambda: None
    made.options = LLMOptions(**{**made.options.__dict__, "max_grad_norm": 1e9})
    made._update(batch)
    made.optimizer.step = kept
    return torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None])


def nested_entropy_gradient(made, batch):
    """Of the mean over episodes, turns, tokens, by loops."""
    made.optimizer.zero_grad()
    h = made._score(batch, made.policy, entropy=True).entropy
    rows = []
    for b in range(len(h)):
        steps = batch.step_ids[b]
        means = [h[b][steps == k].mean() for k in range(int(steps.max()) + 1)]
        rows.append(torch.stack(means).mean())
    torch.stack(rows).mean().backward()
    return torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None])


@pytest.mark.parametrize("base", ["grpo", "ppo"])
def test_in_the_first_step_it_is_the_base_and_a_nested_entropy_bonus(base):
    """With turns of unequal sizes, so that the nested mean is not that over tokens."""
    made = learner(settings={"base": base, "entropy": 0.05})
    batch = made._collect()[0]
    steps = torch.where(batch.step_ids >= 3, 3, batch.step_ids)  # the later turns are one
    batch = made._prepared(batch.replace(step_ids=steps))
    found = loss_and_gradient(made, batch)
    plain = learner(base)
    alone = loss_and_gradient(plain, batch.replace(factors=None, corridor=None))
    bonus = nested_entropy_gradient(made, batch)
    width = len(bonus)
    torch.testing.assert_close(found[:width], alone[:width] - 0.05 * bonus, atol=1e-7, rtol=1e-5)
    assert bonus.abs().max() > 1e-3


def test_micro_batches_change_nothing():
    made = learner(settings={"entropy": 0.05, "low": 0.9, "high": 1.0, "alpha": 5.0})
    made.companion.past = [1.3]
    batch = made._prepared(made._collect()[0])
    whole = loss_and_gradient(made, batch)
    made.options = LLMOptions(**{**made.options.__dict__, "micro_batch": 4})
    torch.testing.assert_close(loss_and_gradient(made, batch), whole, atol=1e-10, rtol=1e-8)


def test_the_history_is_the_mean_of_all_steps_before():
    made = learner(settings={"low": 0.5, "high": 1.5})
    made.companion.past = [1.0, 3.0]
    batch = made._prepared(made._collect()[0])
    assert made.companion.corridor == [1.0, 3.0, beta(2, 10, 3.0)]
    assert len(made.companion.past) == 3
    rows = []
    for b in range(len(batch.mask)):
        rows.append(float(batch.entropies[b][batch.mask[b]].mean()))  # turns of one token
    assert abs(made.companion.past[2] - sum(rows) / len(rows)) < 1e-7
    masked, _ = made.companion.masked(batch)
    torch.testing.assert_close(masked.corridor[0], torch.tensor([1.0, 3.0, beta(2, 10, 3.0)]))


@pytest.mark.parametrize("base", ["grpo", "ppo"])
def test_overlong_episodes_are_no_part_of_the_mean(base):
    """Rows without a token left: neither in the history nor in what the bonus is divided by."""
    made = learner(settings={"base": base, "entropy": 0.05})
    batch = made._collect()[0]
    gone = torch.arange(16) < 5
    rest = made._prepared(batch.replace(mask=batch.mask & ~gone[:, None]))
    h = [float(rest.entropies[b][rest.mask[b]].mean()) for b in range(5, 16)]  # turns of one token
    assert made.companion.past == pytest.approx([sum(h) / 11])
    masked, _ = made.companion.masked(rest)
    weight = masked.factors.sum(dim=1) / (rest.mask.sum(dim=1).clamp(min=1) if base == "grpo" else 1.0)
    want = 1.0 if base == "grpo" else float(rest.mask.sum()) / 11
    torch.testing.assert_close(weight, torch.where(gone, 0.0, want).to(weight))


def test_the_defaults_are_the_papers():
    c = METHOD.config()
    assert (c.entropy, c.low, c.high, c.decay, c.alpha) == (1e-3, 0.0, 2.0, 3.0, 0.1)


def test_a_step_of_overlong_episodes_alone_is_no_part_of_the_history():
    """A window of 16 tokens and one summary reach the end of no corridor."""
    window = {"context": "supo", "context_window": 16, "summaries": 1}
    options = LLMOptions(task="t6", prompts=2, group=2, device="cpu", **window)
    made = build("epo", METHOD.config(), options)
    metrics = [made.update() for _ in range(2)]
    assert made.companion.past == []
    assert all(torch.isfinite(value).all() for found in metrics for value in found.values())


def test_the_state_is_the_history():
    made = learner()
    made.update()
    made.update()
    other = learner()
    other.load_state_dict(made.state_dict())
    assert other.companion.past == made.companion.past
    assert len(other.companion.past) == 2
    assert float(other.update()["turn_entropy"]) == float(made.update()["turn_entropy"])


def test_without_bounds_the_smoothing_is_off():
    def gradient(**settings):
        made = learner(settings={"entropy": 0.05, **settings})
        made.companion.past = [0.2]
        return loss_and_gradient(made, made._prepared(made._collect()[0]))

    off = gradient(low=0.0, high=math.inf)
    torch.testing.assert_close(off, gradient(alpha=0.0), atol=1e-12, rtol=0)
    assert (off - gradient()).abs().max() > 1e-4


@pytest.mark.parametrize(("alpha", "rises"), [(0.1, True), (5.0, False)])
def test_above_the_corridor_entropy_falls_only_if_alpha_beta_exceeds_one(alpha, rises):
    """No rewards: from 3 W (W the history) down to the corridor's edge, or still up."""
    logits = torch.tensor([[[1.6, 0.0, 0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    start = float(entropy(logits.detach()))
    corridor = torch.tensor([[0.0, 2 * start / 3, 1.05]], dtype=torch.float64)
    for _ in range(1500):
        value = held(entropy(logits), torch.ones(1, 1), corridor, alpha=alpha, penalty="relu").sum()
        (g,) = torch.autograd.grad(value, logits)
        logits = (logits - 0.05 * g).detach().requires_grad_()
    end = float(entropy(logits.detach()))
    if rises:
        assert end > start + 0.05
    else:
        assert abs(end - 2 * start / 3) < 0.1


def test_a_critic_needs_no_groups_and_the_mean_of_a_group_does():
    def made(base, **given):
        options = LLMOptions(**{"task": "t4a", "prompts": 4, "device": "cpu"} | given)
        return build("epo", METHOD.config(base=base), options)

    metrics = made("ppo", group=1).update()
    assert all(torch.isfinite(value).all() for value in metrics.values())
    with pytest.raises(ConfigError, match="base grpo compares the responses of a group: --group must be 2"):
        made("grpo", group=1)
    least = {"group": 4, "pool": 9, "allocator": "knapsack", "budget_low": 1}
    with pytest.raises(ConfigError, match="base grpo compares the responses of a group: .*budget-low"):
        made("grpo", **least)
    assert made("ppo", **least).options.budget_low == 1


def test_settings_of_the_other_base_are_refused():
    for given in ({"lam": 0.9}, {"value": 0.5}):
        with pytest.raises(ConfigError, match="has no effect with base grpo"):
            METHOD.config(**given)
        METHOD.config(base="ppo", **given)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="low <= high"):
        METHOD.config(low=3.0)
