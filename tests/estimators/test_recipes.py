"""Published losses, written here as naive loops in float64 from their public formulas, against the compositions."""

import math

import pytest
import torch

from offrl.estimators.recipes import RECIPES, recipe
from offrl.estimators.rollouts import Rollouts

B, T = 8, 7


def batch(seed=0, spread=0.4):
    """Ragged rows in mixed-up groups of unequal sizes; ratios far across every clip; NaN where nothing was chosen."""
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(B, T, generator=g, dtype=torch.float64) * 2 - 0.05
    old = log_probs + spread * torch.randn(B, T, generator=g, dtype=torch.float64)
    mask = torch.rand(B, T, generator=g) < 0.7
    mask[:, 0] = True
    rewards = torch.rand(B, generator=g, dtype=torch.float64)
    rollouts = Rollouts(
        mask=mask,
        old_log_probs=old.where(mask, torch.nan),
        rollout_log_probs=(old + 0.1 * torch.randn(B, T, generator=g, dtype=torch.float64)).where(
            mask, torch.nan
        ),
        rewards=rewards,
        baseline_rewards=torch.rand(B, generator=g, dtype=torch.float64),
        group_ids=torch.tensor([4, 1, 4, 4, 1, 1, 4, 4]),
    )
    return log_probs, rollouts


def rows_of(rollouts):
    """(row, its chosen steps) of every row."""
    return [(i, [t for t in range(T) if rollouts.mask[i, t]]) for i in range(B)]


def group_statistics(rollouts, i):
    members = rollouts.rewards[rollouts.group_ids == rollouts.group_ids[i]]
    return members.mean(), members.std(), len(members)


def advantage(rollouts, i, kind):
    mean, std, size = group_statistics(rollouts, i)
    own = rollouts.rewards[i]
    return {
        "std": (own - mean) / (std + 1e-6),
        "mean": own - mean,
        "loo": own - (mean * size - own) / (size - 1),
        "greedy": own - rollouts.baseline_rewards[i],
    }[kind]


def clipped(r, a, low, high):
    return torch.min(r * a, r.clamp(1 - low, 1 + high) * a)


def token_loss(x, rollouts, kind, low=0.2, high=0.2, dual=None):
    """(row, step) -> minus the clipped surrogate of that step."""
    out = {}
    for i, steps in rows_of(rollouts):
        a = advantage(rollouts, i, kind)
        for t in steps:
            value = clipped((x[i, t] - rollouts.old_log_probs[i, t]).exp(), a, low, high)
            if dual is not None and a < 0:
                value = torch.max(value, dual * a)
            out[i, t] = -value
    return out


def token_mean(losses):
    return sum(losses.values()) / len(losses)


def row_means(losses, rollouts):
    rows = [sum(losses[i, t] for t in steps) / len(steps) for i, steps in rows_of(rollouts)]
    return sum(rows) / B


def grpo(x, r):
    return row_means(token_loss(x, r, "std"), r)


def dapo(x, r):
    return token_mean(token_loss(x, r, "std", 0.2, 0.28))


def dr_grpo(x, r):
    return sum(token_loss(x, r, "mean").values()) / (B * 16)


def dual_clipped(x, r):
    return token_mean(token_loss(x, r, "mean", dual=1.5))


def remax(x, r):
    return token_mean(token_loss(x, r, "greedy"))


def sequence_log_ratio(x, r, i, steps):
    return sum(x[i, t] - r.old_log_probs[i, t] for t in steps)


def gspo(x, r):
    total = 0.0
    for i, steps in rows_of(r):
        s = (sequence_log_ratio(x, r, i, steps) / len(steps)).exp()
        total = total - clipped(s, advantage(r, i, "std"), 3e-4, 4e-4)
    return total / B


def luspo(x, r):
    total = 0.0
    for i, steps in rows_of(r):
        s = (sequence_log_ratio(x, r, i, steps) / len(steps)).exp()
        total = total - clipped(s, advantage(r, i, "std"), 3e-4, 4e-4) * len(steps)
    return total / B


def gmpo(x, r):
    """volcengine/verl's geo_mean."""
    total = 0.0
    for i, steps in rows_of(r):
        a = advantage(r, i, "std")
        logs = []
        for t in steps:
            d = x[i, t] - r.old_log_probs[i, t]
            logs.append(a.sign() * torch.min(a.sign() * d, a.sign() * d.clamp(-0.4, 0.4)))
        total = total - a * (sum(logs) / len(logs)).exp()
    return total / B


def rloo(x, r):
    return sum(-advantage(r, i, "loo") * x[i, t] for i, steps in rows_of(r) for t in steps) / B


def cispo(x, r):
    losses = {}
    for i, steps in rows_of(r):
        for t in steps:
            weight = (x[i, t] - r.old_log_probs[i, t]).exp().clamp(max=1.28).detach()
            losses[i, t] = -weight * advantage(r, i, "std") * x[i, t]
    return token_mean(losses)


def sapo(x, r):
    losses = {}
    for i, steps in rows_of(r):
        a = advantage(r, i, "std")
        tau = 1.0 if a > 0 else 1.05
        for t in steps:
            ratio = (x[i, t] - r.old_log_probs[i, t]).exp()
            losses[i, t] = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * a
    return row_means(losses, r)


def vespo(x, r):
    losses = {}
    for i, steps in rows_of(r):
        a = advantage(r, i, "std")
        k, c = (2, 3) if a >= 0 else (3, 2)
        w = sequence_log_ratio(x, r, i, steps).exp().detach()
        for t in steps:
            losses[i, t] = -(w**k) * math.exp(c * (1 - w)) * a * x[i, t]
    return token_mean(losses)


def minirl(x, r):
    total = 0.0
    for i, steps in rows_of(r):
        a = advantage(r, i, "mean")
        for t in steps:
            ratio = (x[i, t] - r.old_log_probs[i, t]).exp()
            if (a > 0 and ratio > 1.27) or (a < 0 and ratio < 0.8):
                continue
            total = total - (x[i, t] - r.rollout_log_probs[i, t]).exp().clamp(max=5).detach() * a * x[i, t]
    return total / B


def luffy(x, r):
    losses = {}
    for i, steps in rows_of(r):
        for t in steps:
            p = x[i, t].exp()
            losses[i, t] = -p / (p + 0.1) * advantage(r, i, "std")
    return token_mean(losses)


def sft(x, r):
    return sum(-x[i, t] for i, steps in rows_of(r) for t in steps) / int(r.mask.sum())


def reinforce_plus_plus(x, r):
    chosen = torch.stack([r.rewards[i] for i, steps in rows_of(r) for _ in steps])
    losses = {}
    for i, steps in rows_of(r):
        a = (r.rewards[i] - chosen.mean()) / (chosen.std() + 1e-8)
        for t in steps:
            losses[i, t] = -clipped((x[i, t] - r.old_log_probs[i, t]).exp(), a, 0.2, 0.2)
    return token_mean(losses)


def opo(x, r):
    losses = {}
    for i, steps in rows_of(r):
        same = r.group_ids == r.group_ids[i]
        n = r.mask.sum(dim=1)[same]
        a = r.rewards[i] - (n * r.rewards[same]).sum() / n.sum()
        for t in steps:
            losses[i, t] = -clipped((x[i, t] - r.old_log_probs[i, t]).exp(), a, 0.2, 0.2)
    return token_mean(losses)


METHODS = {  # name -> (naive loss, changes of the recipe, which value of ours is the public one)
    "grpo": (grpo, {}, "surrogate"),
    "dapo": (dapo, {}, "surrogate"),
    "dr_grpo": (dr_grpo, {"length": 16}, "surrogate"),
    "remax": (remax, {}, "surrogate"),
    "reinforce++": (reinforce_plus_plus, {}, "surrogate"),
    "opo": (opo, {}, "surrogate"),
    "gspo": (gspo, {}, "surrogate"),
    "luspo": (luspo, {}, "surrogate"),
    "gmpo": (gmpo, {}, None),
    "sapo": (sapo, {}, None),
    "luffy": (luffy, {}, None),
    "rloo": (rloo, {}, "loss"),
    "cispo": (cispo, {}, "loss"),
    "vespo": (vespo, {}, "loss"),
    "minirl": (minirl, {}, "loss"),
    "sft": (sft, {}, "loss"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_and_gradients_are_those_of_the_public_formula(name, seed):
    naive, changes, which = METHODS[name]
    x, rollouts = batch(seed)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = naive(a, rollouts)
    (want_gradient,) = torch.autograd.grad(want, a)
    estimator = recipe(name, **changes)
    rollouts = estimator.prepare(rollouts)
    got = estimator.loss(b, rollouts)
    (gradient,) = torch.autograd.grad(got, b)
    torch.testing.assert_close(gradient, want_gradient, atol=1e-12, rtol=1e-9)
    assert gradient.abs().sum() > 0
    value = estimator.surrogate(x, rollouts) if which == "surrogate" else got
    if which is not None:
        torch.testing.assert_close(value, want, atol=1e-12, rtol=1e-9)


def test_dual_clip_is_the_public_formula():
    x, rollouts = batch(4, spread=0.8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = dual_clipped(a, rollouts)
    estimator = recipe("ppo", advantage="group_mean", mask=["ppo_clip", ("dual_clip", {"limit": 1.5})])
    rollouts = estimator.prepare(rollouts)
    (g,), (w,) = torch.autograd.grad(estimator.loss(b, rollouts), b), torch.autograd.grad(want, a)
    torch.testing.assert_close(g, w, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(estimator.surrogate(x, rollouts), want)
    clip = recipe("ppo", advantage="group_mean").prepare(rollouts)
    assert not torch.equal(
        recipe("ppo", advantage="group_mean").weights(x, clip), estimator.weights(x, rollouts)
    )


def test_every_clip_is_active_in_these_batches():
    """Both signs of the advantage, both bounds: otherwise the comparison above would prove less."""
    x, rollouts = batch(0)
    up = recipe("grpo").prepare(rollouts)
    r, a, m = (x - up.old_log_probs).exp(), up.advantages[:, None].expand(B, T), up.mask
    for case in [(a > 0) & (r > 1.28), (a > 0) & (r < 0.8), (a < 0) & (r > 1.28), (a < 0) & (r < 0.8)]:
        assert (case & m).any()


def reinforce_and_ppo_batch():
    g = torch.Generator().manual_seed(5)

    def f():
        return torch.randn(4, 6, generator=g, dtype=torch.float64)

    x = -f().abs()
    ends = torch.zeros(4, 6, dtype=torch.bool)
    ends[1, 2] = ends[3, 5] = True
    return x, Rollouts(
        old_log_probs=x + 0.3 * f(), rewards=f(), values=f(), next_values=f(), terminated=ends, returns=f()
    )


def test_reinforce_on_trajectories():
    x, rollouts = reinforce_and_ppo_batch()
    x.requires_grad_()
    total = 0.0
    for b in range(4):
        for t in range(6):
            reward_to_go = 0.0
            for k in range(t, 6):
                reward_to_go = reward_to_go + 0.9 ** (k - t) * rollouts.rewards[b, k]
                if rollouts.terminated[b, k]:
                    break
            total = total - reward_to_go * x[b, t]
    estimator = recipe("reinforce", advantage=("returns_to_go", {"discount": 0.9}))
    got = estimator.loss(x, estimator.prepare(rollouts.replace(next_values=None)))
    torch.testing.assert_close(got, total / 4)


@pytest.mark.parametrize("flat", [False, True])
def test_ppo_with_value_loss_and_entropy(flat):
    """The same composition on segments (B, T) and on a flat minibatch (B,), as on-policy libraries take it."""
    x, rollouts = reinforce_and_ppo_batch()
    estimator = recipe(
        "ppo",
        advantage=[("gae", {"discount": 0.9}), "whiten"],
        regularizers=[(("clipped_value_loss", {"clip": 0.1}), 0.5), ("negative_entropy", 0.01)],
    )
    rollouts = estimator.prepare(rollouts)
    a = rollouts.advantages
    torch.testing.assert_close(a.std(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(a.mean(), torch.tensor(0.0, dtype=torch.float64))
    g = torch.Generator().manual_seed(6)
    entropy, v = torch.rand(4, 6, generator=g).double(), torch.randn(4, 6, generator=g).double()
    leaves = [y.clone().requires_grad_() for y in (x, entropy, v)]
    r = (leaves[0] - rollouts.old_log_probs).exp()
    near = rollouts.values + (leaves[2] - rollouts.values).clamp(-0.1, 0.1)
    errors = torch.max((leaves[2] - rollouts.returns) ** 2, (near - rollouts.returns) ** 2)
    policy = -torch.min(r * a, r.clamp(0.8, 1.2) * a).mean()
    want = torch.autograd.grad(policy + 0.5 * errors.mean() - 0.01 * leaves[1].mean(), leaves)
    ours = [y.clone().requires_grad_() for y in (x, entropy, v)]
    inputs, given = ours, rollouts
    if flat:
        inputs = [y.flatten() for y in ours]
        fields = ("old_log_probs", "advantages", "values", "returns")
        given = Rollouts(**{name: getattr(rollouts, name).flatten() for name in fields})
    loss = estimator.loss(inputs[0], given, entropy=inputs[1], predicted_values=inputs[2])
    for got, expected in zip(torch.autograd.grad(loss, ours), want, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(estimator.surrogate(inputs[0].detach(), given), policy.detach())


def test_one_update_makes_the_methods_agree():
    """Property 2: at ratio 1, PPO, GRPO, CISPO, GSPO, GMPO and SAPO are the same step."""
    x, rollouts = batch(0)
    rollouts = rollouts.replace(old_log_probs=x, advantages=torch.randn(B, dtype=torch.float64))
    gradients = []
    for name in ("ppo", "grpo", "cispo", "gspo", "gmpo", "sapo", "minirl", "vespo", "rloo"):
        leaf = x.clone().requires_grad_()
        estimator = recipe(name, aggregation="token-mean")
        given = rollouts.replace(rollout_log_probs=x)
        gradients.append(torch.autograd.grad(estimator.loss(leaf, given), leaf)[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_every_recipe_composes():
    for name in RECIPES:
        estimator = recipe(name, **({"length": 4} if name == "dr_grpo" else {}))
        assert ("old_log_probs" in estimator.needs()) == (name not in ("sft", "reinforce", "rloo", "luffy"))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown recipe 'gropo'; known are .*grpo"):
        recipe("gropo")
