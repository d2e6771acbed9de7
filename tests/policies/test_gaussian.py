"""Gaussian actors composed before their tanh, against closed forms."""

import math

import pytest
import torch

from offrl.errors import PolicyError
from offrl.nn.policy import (
    DeterministicPolicy,
    DiagGaussianPolicy,
    SquashedGaussianPolicy,
    load_policy,
    save_policy,
)
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy
from offrl.policies.gaussian import GaussianPlan


def actor(seed, kind=SquashedGaussianPolicy):
    torch.manual_seed(seed)
    return kind(3, 2, (8,), [-2, -1], [2, 3]).eval()


SEEN = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def act(policy, rows=SEEN, deterministic=True, seed=1):
    with torch.no_grad():
        return policy.act(rows, deterministic=deterministic, generator=torch.Generator().manual_seed(seed))[0]


def test_all_the_weight_is_the_actor_and_an_actor_with_itself_is_itself():
    a, b = actor(0), actor(1)
    assert torch.equal(act(ComposedPolicy([a, b], weights=[1, 0])), act(a))
    assert torch.equal(act(ComposedPolicy([a, b], weights=[0, 1])), act(b))
    torch.testing.assert_close(act(ComposedPolicy([a, a])), act(a))
    assert (act(ComposedPolicy([a, b])) - act(a)).abs().max() > 1e-2


def test_the_denoiser_is_the_gaussians():
    """E[x | u] of x ~ N(m, s^2) seen with noise rho, by the precision-weighted mean."""
    plan = GaussianPlan(actor(0))
    mean, std = plan.actor.moments(SEEN)
    u = torch.full((5, 1, 2), 0.7)
    for rho in (0.1, 2.0):
        expected = (u[:, 0] / rho**2 + mean / std**2) / (1 / rho**2 + 1 / std**2)
        torch.testing.assert_close(plan.denoise(u, rho, plan.encode(SEEN[:, None]))[:, 0], expected)
    torch.testing.assert_close(plan.denoise(u, math.inf, plan.encode(SEEN[:, None]))[:, 0], mean)


def test_the_middle_is_before_the_tanh_not_the_mean_of_the_actions():
    """Equal spreads: the composed middle is the mean of the means, squashed once."""
    a, b = actor(0), actor(1)
    for p in (a, b):
        with torch.no_grad():
            p.head.weight[2:] = 0
            p.head.bias[2:] = -1.0
    middle = (a.moments(SEEN)[0] + b.moments(SEEN)[0]) / 2
    composed = ComposedPolicy([a, b], denoising_steps=50)
    torch.testing.assert_close(act(composed), a.to_box(torch.tanh(middle)), rtol=0, atol=1e-5)
    average = act(ComposedPolicy([a, b], operator="action_average"))
    torch.testing.assert_close(average, (act(a) + act(b)) / 2)
    assert (average - act(composed)).abs().max() > 1e-3


def test_draws_have_the_geometric_mean_of_the_spreads():
    a, b = actor(0, DiagGaussianPolicy), actor(0, DiagGaussianPolicy)
    for p, log_std in ((a, -3.0), (b, -2.0)):
        with torch.no_grad():
            p.log_std.fill_(log_std)
            p.head.weight.zero_()
            p.head.bias.zero_()
    rows = SEEN[:1].expand(4000, -1)
    drawn = act(ComposedPolicy([a, b], denoising_steps=100), rows, deterministic=False)
    assert drawn.std(0).log().tolist() == pytest.approx([-2.5, -2.5], abs=0.06)


def test_what_denoises_other_things_is_refused():
    chunk = ChunkPolicy(3, 2, [-2, -1], [2, 3], widths=(8,), step_embed=4)
    with pytest.raises(PolicyError, match="actions and actions before their tanh"):
        ComposedPolicy([actor(0), chunk])
    with pytest.raises(PolicyError, match="before their tanh"):
        ComposedPolicy([actor(0), actor(0, DiagGaussianPolicy)])
    with pytest.raises(PolicyError, match="deterministic policy has no denoiser"):
        ComposedPolicy([actor(0), DeterministicPolicy(3, 2, (8,))])
    with pytest.raises(PolicyError, match="no Gaussian actor"):
        GaussianPlan(DeterministicPolicy(3, 2, (8,)))


def test_it_is_saved_with_its_actors(tmp_path):
    policy = ComposedPolicy([actor(0), actor(1)], weights=[0.3, 0.7])
    save_policy(policy, tmp_path)
    assert torch.equal(act(load_policy(tmp_path)), act(policy))
