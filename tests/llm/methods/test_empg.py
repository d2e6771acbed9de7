"""EMPG: the modulated advantages against loops, their invariances, and that the bonus moves the optimum."""

import itertools
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.empg import modulated
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task

METHOD = load_method("empg")
STEPS = torch.tensor([[0, 0, -1, 1, -1, 2], [0, -1, 1, 1, 1, -1], [0, -1, -1, -1, -1, -1]])
MASK = STEPS >= 0
A = torch.tensor([1.5, -0.5, -1.0], dtype=torch.float64)
USUAL = {"k": 1.0, "bonus_k": 0.7, "zeta": 0.05}


def entropies(seed=0):
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turns(x):
    """(row, turn) -> mean over its tokens."""
    found = {}
    for b in range(3):
        for k in range(3):
            own = [float(x[b, t]) for t in range(6) if STEPS[b, t] == k]
            if own:
                found[b, k] = sum(own) / len(own)
    return found


def by_loops(h, a, k, bonus_k, zeta):
    mean = turns(h)
    low, high = min(mean.values()), max(mean.values())
    scaled = {key: (x - low) / (high - low + 1e-8) for key, x in mean.items()}
    g = {key: math.exp(-k * x) for key, x in scaled.items()}
    centre = sum(g.values()) / len(g)
    found = {}
    for b, t in mean:
        bonus = zeta * math.exp(-bonus_k * scaled[b, t + 1]) if (b, t + 1) in mean else 0.0
        found[b, t] = float(a[b]) * g[b, t] / centre + bonus
    m = sum(found.values()) / len(found)
    return {key: x - m for key, x in found.items()}


def at_tokens(values):
    want = torch.zeros(3, 6, dtype=torch.float64)
    for b in range(3):
        for t in range(6):
            if STEPS[b, t] >= 0:
                want[b, t] = values[b, int(STEPS[b, t])]
    return want


@pytest.mark.parametrize("seed", [0, 1])
def test_advantages_are_those_of_the_formula(seed):
    h = entropies(seed)
    found = modulated(A, h, STEPS, MASK, **USUAL)
    torch.testing.assert_close(found, at_tokens(by_loops(h, A, **USUAL)), atol=1e-10, rtol=0)
    assert (found[~MASK] == 0).all()


def test_their_mean_over_turns_is_zero():
    found = turns(modulated(A, entropies(), STEPS, MASK, **USUAL))
    assert abs(sum(found.values())) < 1e-12
    tokens = modulated(A, entropies(), STEPS, MASK, **USUAL)[MASK].mean()
    assert tokens.abs() > 1e-3  # which is not that over tokens


def test_without_weight_and_bonus_they_are_the_centred_advantages():
    found = turns(modulated(A, entropies(), STEPS, MASK, k=0.0, bonus_k=1.0, zeta=0.0))
    mean = sum(float(A[b]) for b, _ in found) / len(found)
    assert all(abs(x - (float(A[b]) - mean)) < 1e-12 for (b, _), x in found.items())


def test_weights_average_to_one_and_fall_with_entropy():
    """Of advantages of 1 the mean over turns is 1 before it is subtracted, so that what is left is g - 1."""
    h = entropies()
    found, mean = (
        turns(modulated(torch.ones(3, dtype=torch.float64), h, STEPS, MASK, k=1.0, bonus_k=1.0, zeta=0.0)),
        turns(h),
    )
    order = sorted(mean, key=lambda key: mean[key])
    values = [found[key] for key in order]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] > -1


def test_a_change_of_sign_leaves_the_bonus():
    h = entropies()
    both = modulated(A, h, STEPS, MASK, **USUAL) + modulated(-A, h, STEPS, MASK, **USUAL)
    bonus = modulated(torch.zeros_like(A), h, STEPS, MASK, **USUAL)
    torch.testing.assert_close(both, 2 * bonus, atol=1e-12, rtol=0)
    assert bonus.abs().max() > 1e-3


def test_last_turns_and_single_turns_earn_no_bonus():
    found = turns(modulated(torch.zeros_like(A), entropies(), STEPS, MASK, **USUAL))
    last = {found[0, 2], found[1, 1], found[2, 0]}
    assert max(last) - min(last) < 1e-12
    assert min(found[0, 0], found[0, 1], found[1, 0]) > max(last)


def test_equal_entropies_change_nothing():
    """As with heads whose entropy does not depend on the state."""
    found = modulated(
        A, torch.full((3, 6), 0.3, dtype=torch.float64), STEPS, MASK, k=1.0, bonus_k=1.0, zeta=0.0
    )
    plain = modulated(A, entropies(), STEPS, MASK, k=0.0, bonus_k=1.0, zeta=0.0)
    torch.testing.assert_close(found, plain, atol=1e-7, rtol=0)


def test_order_of_episodes_does_not_matter_but_the_batch_does():
    order, h = torch.tensor([2, 0, 1]), entropies()
    whole = modulated(A, h, STEPS, MASK, **USUAL)
    torch.testing.assert_close(
        modulated(A[order], h[order], STEPS[order], MASK[order], **USUAL), whole[order]
    )
    part = modulated(A[:2], h[:2], STEPS[:2], MASK[:2], **USUAL)
    assert (part - whole[:2]).abs().max() > 1e-3


def test_expected_squared_scores_are_one_minus_the_sum_of_squares():
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    mean = sum(float(p[a]) * float((torch.eye(3, dtype=p.dtype)[a] - p).square().sum()) for a in range(3))
    assert abs(mean - (1 - float(p.square().sum()))) < 1e-12


def test_the_bonus_is_not_potential_based():
    """Two turns, no rewards: the first action chooses between an unsure and a sure second turn. The expected gradient of
    the detached bonus pushes towards the sure one; that of E[zeta f] differs, because f is not differentiated."""
    first = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[0.0, 0.0], [2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    zeta, p, q = 0.05, first.softmax(0), second.softmax(1)
    h = -(q * q.log()).sum(1)
    f = (-(h - h.min().detach()) / (h.max() - h.min()).detach()).exp()
    estimator = sum(p[a].detach() * zeta * f[a].detach() * first.log_softmax(0)[a] for a in range(2))
    used = torch.autograd.grad(estimator, [first, second], allow_unused=True, materialize_grads=True)
    true = torch.autograd.grad((p * zeta * f).sum(), [first, second])
    torch.testing.assert_close(used[0], true[0])
    assert used[0][1] > 0.005
    assert used[1].abs().sum() == 0
    assert abs(float(true[1].abs().sum()) - 0.0059) < 1e-4  # what the estimator leaves out


def learner(task="t4c", **settings):
    made = load_task(task)
    options = LLMOptions(task=task, prompts=4, group=4, device="cpu")
    return Learner(METHOD, METHOD.config(**settings), made, load_model("tiny:dense", made, 0), options)


def test_entropies_are_measured_before_advantages():
    made = learner("t4a", zeta=0.0)
    batch = made._prepared(made._collect()[0])
    assert (batch.entropies[batch.mask] > 0.5).all()
    assert (batch.entropies[~batch.mask] == 0).all()
    plain = load_method("grpo").estimator(load_method("grpo").config(), 24).advantages(batch)
    assert batch.advantages.shape == batch.mask.shape
    assert plain.abs().sum() > 0
    want = modulated(plain, batch.entropies, batch.step_ids, batch.mask, k=1.0, bonus_k=1.0, zeta=0.0)
    assert torch.equal(batch.advantages, want)


def test_base_dapo_samples_other_groups():
    made = learner("t4c", base="dapo")
    made.update()
    assert made.rollouts == 4 * 16  # hardly any group of t4c is mixed
    assert learner("t4c").estimator.aggregate is not made.estimator.aggregate


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="zeta must be 0 or more"):
        METHOD.config(zeta=-1.0)
