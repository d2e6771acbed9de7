"""OBLR-PO: the baseline of least variance by enumeration, what is biased and what is not, and the share of signal."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.advantages import group_leave_one_out, group_length, group_weighted
from offrl.estimators.last_layer import energy
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.oblr_po import factor
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task

METHOD = load_method("oblr_po")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner(settings=None, **options):
    given = {"prompts": 4, "group": 4, "lr": 1e-2, "task": "t2", **options}
    o = LLMOptions(**given)
    task = load_task(o.task)
    return Learner(METHOD, METHOD.config(**(settings or {})), task, load_model(o.model, task, 0).double(), o)


# a softmax bandit of four arms

P = normal(4, seed=1).softmax(0)
R = 1.5 + normal(4, seed=2)
SCORES = torch.eye(4).double() - P
NORMS = SCORES.square().sum(1)
TRUTH = (P[:, None] * R[:, None] * SCORES).sum(0)


def variance(baseline):
    g = (R - baseline)[:, None] * SCORES
    return float((P[:, None] * g.square()).sum() - TRUTH.square().sum())


def test_its_baseline_has_the_least_variance():
    best = float((R - group_weighted(R, torch.zeros(4).long(), P * NORMS))[0])
    assert best == pytest.approx(float((P * NORMS * R).sum() / (P * NORMS).sum()))
    grid = torch.linspace(0, 3, 3001)
    assert best == pytest.approx(float(min(grid, key=lambda b: variance(float(b)))), abs=1e-3)
    assert variance(best) < variance(float((P * R).sum())) < variance(0.0)


def expected(size, **settings):
    """Over all groups of a size."""
    draws = torch.tensor(list(itertools.product(range(4), repeat=size)))
    flat, ids = draws.flatten(), torch.arange(len(draws)).repeat_interleave(size)
    a = group_weighted(R[flat], ids, NORMS[flat], **settings).view(len(draws), size)
    return (P[draws].prod(1)[:, None, None] * a[..., None] * SCORES[draws]).mean(1).sum(0)


@pytest.mark.parametrize("size", [2, 3])
def test_leaving_the_own_reward_out_is_unbiased(size):
    torch.testing.assert_close(expected(size, leave_one_out=True), TRUTH, atol=1e-12, rtol=1e-9)
    ratio = expected(size) / TRUTH
    assert ratio.max() < 0.9
    assert ratio.max() - ratio.min() > 0.05  # another direction, not only another length


@pytest.mark.parametrize("sure", [5.0, 10.0, 20.0])
def test_a_sure_policy_has_sane_baselines(sure):
    """In float32, where differences of energies near 1 hold nothing of the others' near 0."""
    actions = torch.arange(8) % 5
    logits = sure * torch.eye(5)[actions] + 0.1 * normal(8, 5).float()
    actions[0] = 2  # a rare, wrong token among likely, right ones
    found = energy(logits, actions)
    torch.testing.assert_close(found, energy(logits.double(), actions).float(), atol=0.0, rtol=1e-4)
    rewards, ids = torch.tensor([0.0] + [1.0] * 7), torch.zeros(8).long()
    a = group_weighted(rewards, ids, found, leave_one_out=True)
    assert float(a[0]) == pytest.approx(-1.0, abs=1e-6)
    assert float(a[1:].min()) >= 0.0
    assert float(a[1:].max()) <= 1.0
    assert group_weighted(rewards[1:], ids[1:], found[1:], leave_one_out=True).abs().max() < 1e-6


def test_groups_whose_scores_vanish_have_equal_weights():
    rewards, ids, none = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3).long(), torch.zeros(3)
    want = group_leave_one_out(rewards, ids)
    torch.testing.assert_close(group_weighted(rewards, ids, none, leave_one_out=True), want)
    torch.testing.assert_close(group_weighted(rewards, ids, none), rewards - rewards.mean())


def batch_of(made):
    batch = made.companion.measured(made._collect()[0])
    return batch.replace(rewards=normal(len(batch.rewards), seed=3))


def test_equal_norms_give_rloo_and_lengths_give_opo():
    made = learner({"proxy": "length", "adapt": False}, task="t1")
    batch = batch_of(made)
    assert torch.equal(batch.baseline_weights, batch.mask.sum(1).double())
    assert batch.baseline_weights.unique().numel() > 1
    equal = batch.replace(baseline_weights=torch.full_like(batch.rewards, 0.7))
    want = group_leave_one_out(batch.rewards, batch.group_ids)
    torch.testing.assert_close(made.estimator.advantages(equal), want, atol=1e-6, rtol=1e-6)
    with_own = METHOD.estimator(METHOD.config(leave_one_out=False), 4)
    opo = group_length(batch.rewards, batch.group_ids, batch.lengths)
    torch.testing.assert_close(with_own.advantages(batch), opo, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("proxy", ["energy", "last_layer"])
def test_proxies_token_by_token(proxy):
    made = learner({"proxy": proxy}, temperature=0.8, task="t1", micro_batch=2)
    made.policy.bias.add_(normal(len(made.policy.bias), seed=6))
    batch = batch_of(made)
    hidden = made._score(batch, made.policy).hidden.detach()
    for i in range(len(batch.rewards)):
        total = 0.0
        for t in range(int(batch.mask[i].sum())):
            pi = ((made.policy.head.detach() @ hidden[i, t] + made.policy.bias) / 0.8).softmax(0)
            e = torch.zeros_like(pi)
            e[batch.tokens[i, t]] = 1.0
            total += float((e - pi).square().sum()) * (
                float(hidden[i, t] @ hidden[i, t]) if proxy == "last_layer" else 1
            )
        assert float(batch.baseline_weights[i]) == pytest.approx(total, rel=1e-6)


def halves(made, batch):
    """Gradients of both halves, each as its own batch."""
    ids = batch.group_ids.unique()
    cut, found = (len(ids) + 1) // 2, []
    for part in (ids[:cut], ids[cut:]):
        rows = torch.isin(batch.group_ids, part)
        some = batch.rows(rows)
        log_probs = made._score(some, made.policy).log_probs
        loss = made.estimator.loss(log_probs, some.replace(old_log_probs=log_probs.detach()))
        grads = torch.autograd.grad(loss, made.parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    return found


@pytest.mark.parametrize("prompts", [4, 3])
def test_the_rate_follows_the_agreement_of_two_halves_of_the_prompts(prompts):
    made = learner({"decay": 0.8, "floor": 0.01}, prompts=prompts, micro_batch=2)
    products, start = torch.zeros(2).double(), torch.cat([p.detach().flatten() for p in made.parameters])
    for seed in range(3):
        batch = batch_of(made)
        batch = made.estimator.prepare(
            batch.replace(rewards=batch.rewards + normal(len(batch.rewards), seed=seed))
        )
        one, other = halves(made, batch)
        products = 0.8 * products + 0.2 * torch.stack(
            [one @ other, ((one + other) / 2) @ ((one + other) / 2)]
        )
        found = made._update(batch)
        want = min(max(float(products[0] / products[1]), 0.01), 1.0)
        assert float(found["lr_factor"]) == pytest.approx(want, rel=1e-6)
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * want, rel=1e-6)
    assert not torch.equal(start, torch.cat([p.detach().flatten() for p in made.parameters]))


def test_without_adaptation_the_rate_stays():
    made = learner({"adapt": False})
    assert float(made.update()["lr_factor"]) == 1.0
    assert made.optimizer.param_groups[0]["lr"] == 1e-2
    assert len(made.companion.pieces(batch_of(made))) == 1


def test_the_factor_is_clipped():
    one = torch.tensor(1.0)
    assert float(factor(-one, one, 0.1)) == pytest.approx(0.1)
    assert float(factor(2 * one, one, 0.1)) == 1.0
    assert float(factor(0.3 * one, one, 0.1)) == pytest.approx(0.3)
    assert float(factor(0 * one, 0 * one, 0.2)) == pytest.approx(0.2)


def test_products_of_halves_are_unbiased():
    g = normal(10, seed=4)
    one, other = (g + 2**0.5 * normal(40000, 10, seed=s) for s in (5, 6))
    dot = (one * other).sum(1)
    assert float(dot.mean()) == pytest.approx(float(g @ g), abs=4 * float(dot.std()) / 200)
    mean = ((one + other) / 2).square().sum(1)
    assert float(mean.mean()) == pytest.approx(float(g @ g) + 10, rel=0.02)


def quadratic(rate, noise=1.0):
    """Mean squared distance from the optimum after 300 steps from 3 in ten dimensions, 200 runs."""
    x, generator = torch.full((200, 10), 3.0), torch.Generator().manual_seed(0)
    state = {}
    for _ in range(300):
        one, other = (x + noise * 2**0.5 * torch.randn(x.shape, generator=generator) for _ in range(2))
        x = x - rate(x, one, other, state) * (one + other) / 2
    return float(0.5 * x.square().sum(1).mean())


def test_with_known_moments_its_rate_beats_all_constant_ones():
    def oracle(x, one, other, state):
        size = x.square().sum(1, keepdim=True)
        return factor(size, size + 10.0, 0.0)

    def estimated(x, one, other, state):
        new = torch.stack([(one * other).sum(1), ((one + other) / 2).square().sum(1)])
        state["m"] = new if "m" not in state else 0.9 * state["m"] + 0.1 * new
        return factor(state["m"][0], state["m"][1], 0.0)[:, None]

    best = min(quadratic(lambda *_, r=r: r) for r in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    assert quadratic(oracle) < 0.5 * best
    assert (
        quadratic(estimated) > best
    )  # what is estimated from two halves is not as good as the best constant
    assert float(factor(torch.tensor(5.0), torch.tensor(5.0 + 1e-9), 0.1)) == pytest.approx(1.0)


def test_one_prompt_has_no_halves():
    with pytest.raises(ConfigError, match="2 prompts or more"):
        learner(minibatches=4)
    assert learner({"adapt": False}, minibatches=4).companion.shares == [1.0]
    with pytest.raises(ConfigError, match="decay"):
        METHOD.config(decay=1.0)
    with pytest.raises(ConfigError, match="floor has no effect without adapt"):
        METHOD.config(adapt=False, floor=0.5)
