"""The stacked Gaussian actor: what it learns in, what it samples, and the policy that it leaves."""

import pytest
import torch

from offrl.nn.actor_critic import ActionBox
from offrl.nn.gaussian import GaussianActor
from offrl.training.check import batches, tiny_problem
from offrl.training.problem import Algorithm
from offrl.training.seeding import normal, streams

UNIT = (torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]))
WIDE = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
BATCH = next(batches(Algorithm(object, lambda problem, config: None), tiny_problem((0, 1))))


def actor_of(bounds, bounded, log_std=((-0.7, 0.4), (0.3, -0.2))):
    actor = GaussianActor(ActionBox(*bounds), -5.0, 2.0, bounded=bounded)
    params = actor.init((3, 8, 2), streams((0, 1), "init"))
    with torch.no_grad():
        params[-1].copy_(torch.tensor(log_std)[:, None])
    return actor, params


@pytest.mark.parametrize("bounds", [UNIT, WIDE], ids=["unit", "wide"])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_likelihood_of_training_is_that_of_the_policy(bounds, bounded):
    """Also for a box that is not (-1, 1), and with a normalizer."""
    actor, params = actor_of(bounds, bounded)
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.1, 1.0])
    normalized = torch.clone((BATCH.observations - mean) / std)
    batch = type(BATCH)(**{**vars(BATCH), "observations": normalized})
    got = actor.log_probs(params, batch)
    for seed in range(2):
        policy = actor.policy(params, seed, mean, std)
        want = policy.distribution(BATCH.observations[seed]).log_prob(BATCH.actions[seed])
        torch.testing.assert_close(got[seed], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bounded", [True, False])
def test_samples_are_the_policys_and_stay_in_the_box(bounded):
    """Noise 0 gives the policy's deterministic action; large noise ends on the bounds."""
    actor, params = actor_of(WIDE, bounded)
    zero, one = torch.zeros(3), torch.ones(3)
    with torch.no_grad():
        still = actor.sample(params, BATCH.observations, torch.zeros(2, 32, 2))
        wild = actor.sample(params, BATCH.observations, torch.full((2, 32, 2), 1e6))
        noise = normal((32, 2), streams((3, 4), "noise"))
        mean, log_std = actor.moments(params, BATCH.observations)
        inside = actor.sample(params, BATCH.observations, noise)
    for seed in range(2):
        policy = actor.policy(params, seed, zero, one)
        torch.testing.assert_close(still[seed], policy(BATCH.observations[seed]).detach())
    assert torch.equal(wild, WIDE[1].expand_as(wild))
    torch.testing.assert_close(inside, (mean + log_std.exp() * noise).clamp(*WIDE))


def test_the_mean_is_free_or_bounded():
    """With raw outputs of 30 a free mean lies 30 half-ranges from the center, a bounded one on the bound."""
    for bounded, want in ((False, [30.0, 62.0]), (True, [1.0, 4.0])):
        actor, params = actor_of(WIDE, bounded)
        with torch.no_grad():
            params[-3].zero_()
            params[-2].fill_(30.0)
        mean, _ = actor.moments(params, BATCH.observations)
        assert mean[0, 0].tolist() == want


@pytest.mark.parametrize(("raw", "acting"), [(7.0, 2.0), (-9.0, -5.0)])
@pytest.mark.parametrize("bounded", [True, False])
def test_log_std_is_held_in_its_range(raw, acting, bounded):
    actor, params = actor_of(UNIT, bounded, ((raw, raw), (raw, raw)))
    assert actor.moments(params, BATCH.observations)[1].unique().tolist() == [acting]
    assert actor.policy(params, 1, torch.zeros(3), torch.ones(3)).log_std.tolist() == [acting, acting]


def test_fresh_actors_have_unit_spread_and_each_seed_its_own_weights():
    actor = GaussianActor(ActionBox(*UNIT), -5.0, 2.0)
    both, single = (actor.init((3, 8, 2), streams(seeds, "init")) for seeds in ((0, 1), (1,)))
    assert both[-1].shape == (2, 1, 2)
    assert not both[-1].any()
    assert all(torch.equal(a[1:], b) for a, b in zip(both, single, strict=True))
    assert all(p.requires_grad for p in both)
