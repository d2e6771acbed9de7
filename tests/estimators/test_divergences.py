"""f-divergences: gradients, directions, what an excluded outcome earns, estimates, moments, modes that a student keeps."""

import itertools
import math

import pytest
import torch

from offrl.estimators.divergences import DIVERGENCES, fit_moments, kl_estimate, pseudo_rewards, tv_estimate

P = torch.tensor([0.35, 0.05, 0.2, 0.1, 0.02, 0.28], dtype=torch.float64)
LOGITS = torch.tensor([0.2, 1.0, -0.5, 0.3, 0.0, -1.0], dtype=torch.float64)


def explicit(name, pi, p):
    t, m = pi / p, (pi + p) / 2
    return {
        "kl": (p * (p / pi).log()).sum(),
        "reverse_kl": (pi * (pi / p).log()).sum(),
        "tv": 0.5 * (pi - p).abs().sum(),
        "js": (pi * (pi / m).log()).sum() + (p * (p / m).log()).sum(),
        "chi2": (pi * (p / pi - 1).square()).sum(),
        "reverse_chi2": (p * (t - 1).square()).sum(),
    }[name]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_that_of_the_divergence(name):
    logits = LOGITS.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    (want,) = torch.autograd.grad(explicit(name, log_pi.exp(), P), logits, retain_graph=True)
    rewards = pseudo_rewards(log_pi.detach(), P.log(), name)
    (found,) = torch.autograd.grad(-(log_pi.exp().detach() * rewards * log_pi).sum(), logits)
    assert want.abs().max() > 0.01
    torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_at_the_target_nothing_is_left_to_learn(name):
    rewards = pseudo_rewards(P.log(), P.log(), name)
    torch.testing.assert_close(rewards, rewards[:1].expand(6))
    want = {"kl": 1.0, "reverse_kl": -1.0, "tv": 0.0, "js": 0.0, "chi2": 0.0, "reverse_chi2": 0.0}
    assert float(rewards[0]) == pytest.approx(want[name], abs=1e-12)


def test_reverse_kl_is_the_reward_with_a_kl():
    """With p = a exp(r / beta) / Z: grad D = -1/beta grad (E_pi[r] - beta KL(pi || a))."""
    beta, r = 0.7, torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0, -0.3], dtype=torch.float64)
    log_a = P.log()
    log_p = (log_a + r / beta).log_softmax(0)
    logits = LOGITS.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    objective = (log_pi.exp() * (r - beta * (log_pi - log_a))).sum()
    (want,) = torch.autograd.grad(objective, logits, retain_graph=True)
    rewards = pseudo_rewards(log_pi.detach(), log_p, "reverse_kl")
    (found,) = torch.autograd.grad(-(log_pi.exp().detach() * rewards * log_pi).sum(), logits)
    torch.testing.assert_close(found, -want / beta, atol=1e-12, rtol=1e-10)


def test_what_an_excluded_outcome_earns():
    log_pi, log_p = torch.tensor([-1.0]).double(), torch.tensor([-torch.inf]).double()
    found = {name: float(pseudo_rewards(log_pi, log_p, name)) for name in DIVERGENCES}
    assert found["kl"] == pytest.approx(0.0, abs=1e-8)
    assert found["tv"] == -0.5
    assert found["js"] == pytest.approx(-math.log(2), abs=1e-8)
    assert found["reverse_kl"] == -21.0
    assert found["chi2"] == pytest.approx(-1.0)
    assert found["reverse_chi2"] == pytest.approx(-2 * (math.exp(20) - 1))


@pytest.mark.parametrize("far", [-15.0, 15.0])
def test_log_ratios_are_cut_at_20_and_no_sooner(far):
    log_pi, log_p = torch.tensor([far]).double(), torch.tensor([0.0]).double()
    t = math.exp(far)
    want = {
        "kl": 1 / t,
        "reverse_kl": -far - 1,
        "tv": -0.5 * math.copysign(1, far),
        "js": math.log1p(1 / t) - math.log(2),
    }
    want |= {"chi2": t**-2 - 1, "reverse_chi2": 2 * (1 - t)}
    for name in DIVERGENCES:
        assert float(pseudo_rewards(log_pi, log_p, name)) == pytest.approx(want[name], rel=1e-9, abs=1e-6), (
            name
        )


def test_a_rare_good_outcome_earns_most():
    """Where pi has too little, each reward is above what it gives where pi has too much."""
    for name in DIVERGENCES:
        few, many = pseudo_rewards(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -2.0]), name).tolist()
        assert few > many, name


def test_estimates_from_draws_of_another_policy():
    g = torch.Generator().manual_seed(0)
    q, pi = torch.full((6,), 1 / 6).double(), LOGITS.softmax(0)
    draws = torch.multinomial(q, 200_000, replacement=True, generator=g)
    z = torch.tensor(3.0).double()
    args = [x[draws] for x in (pi.log(), q.log(), (3.0 * P).log())]
    assert float(kl_estimate(*args, z.log())) == pytest.approx(float(explicit("kl", pi, P)), abs=0.02)
    assert float(tv_estimate(*args, z.log())) == pytest.approx(float(explicit("tv", pi, P)), abs=0.01)


def test_moments():
    """A feature of 2 % is wanted in half: lambda is the difference of logits."""
    features = (torch.arange(1000) < 20).double()[:, None]
    found = fit_moments(features, torch.tensor([0.5]).double())
    assert float(found[0]) == pytest.approx(math.log(0.98 / 0.02), abs=0.05)
    # the same from draws in which it is half, weighed back
    half = (torch.arange(1000) < 500).double()[:, None]
    log_w = torch.where(half[:, 0] > 0, math.log(0.02 / 0.5), math.log(0.98 / 0.5))
    assert float(fit_moments(half, torch.tensor([0.5]).double(), log_w)[0]) == pytest.approx(3.892, abs=0.05)
    two = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2))).double()
    wanted = torch.tensor([0.3, 0.8]).double()
    mean = (two @ fit_moments(two, wanted)).softmax(0) @ two
    torch.testing.assert_close(mean, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_moments_of_any_scale(scale, share):
    """Of lengths for instance; steps of one size for all went astray beyond some 10."""
    features = torch.stack(
        [(torch.arange(400) < 200).double(), torch.arange(400).double() / 399 - 0.3], dim=1
    )
    wanted = scale * torch.tensor([share, 0.2 * share + 0.8 * (1.0 - share) - 0.3]).double()
    mean = (scale * features @ fit_moments(scale * features, wanted)).softmax(0) @ (scale * features)
    torch.testing.assert_close(mean, wanted, atol=2e-5 * scale, rtol=0)


def test_means_that_cannot_be_had_together():
    one = torch.arange(10).double()[:, None] > 4
    with pytest.raises(ValueError, match="no coefficients give means of 0.3, 0.6"):
        fit_moments(torch.cat([one, one], dim=1).double(), torch.tensor([0.3, 0.6]).double(), steps=200)


def test_which_modes_a_restricted_student_keeps():
    """Four independent symbols for two peaks, 0000 and 5555: reverse KL and JS choose one, KL covers both."""
    strings = torch.tensor(list(itertools.product(range(6), repeat=4)))

    def peak(symbol):
        noisy = torch.full((6,), 0.02).double()
        noisy[symbol] = 0.9
        return noisy[strings].prod(dim=1)

    log_p = (0.55 * peak(0) + 0.45 * peak(5)).log()
    found = {}
    for name in ("kl", "reverse_kl", "tv", "js"):
        start = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = start.requires_grad_()
        adam = torch.optim.Adam([logits], lr=0.1)
        for _ in range(200):
            each = logits.log_softmax(-1)
            log_pi = torch.stack([each[:, i, strings[:, i]] for i in range(4)]).sum(dim=0)
            rewards = pseudo_rewards(log_pi.detach(), log_p, name)
            loss = -(log_pi.exp().detach() * rewards * log_pi).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        pi = log_pi.detach().exp()
        best = min(range(5), key=lambda s: float(explicit(name, pi[s], log_p.exp())))
        found[name] = float(-(pi[best] * pi[best].log()).sum())
    assert found["reverse_kl"] <= found["js"] + 0.1 < found["tv"] < found["kl"]
    assert found["kl"] == pytest.approx(4.09, abs=0.1)
