"""Every parameterization means the same clean sample, at every noise level of every schedule."""

import itertools
import math

import pytest
import torch

from offrl.diffusion import edm
from offrl.diffusion.parameterization import KINDS, convert, from_x0, to_eps, to_x0
from offrl.diffusion.schedules import VE, VP, Flow

SCHEDULES = {"cosine": VP.cosine(100), "flow": Flow(), "ve": VE()}
LEVELS = (0.02513, 0.4435, 1.0124, 7.08, 64.2)


def pair(seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 5, dtype=torch.float64, generator=g) for _ in range(2))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_there_and_back_gives_the_same_output(name, source, target):
    """All ordered pairs, three schedules, float64, 1e-10 (sheet 8.1)."""
    schedule = SCHEDULES[name]
    for rho in LEVELS:
        alpha = schedule.alpha(rho)
        x0, eps = pair()
        x = alpha * x0 + alpha * rho * eps
        output = from_x0(source, x0, x, alpha, alpha * rho, 0.7)
        there = convert(output, x, alpha, alpha * rho, source=source, target=target, sigma_data=0.7)
        back = convert(there, x, alpha, alpha * rho, source=target, target=source, sigma_data=0.7)
        torch.testing.assert_close(back, output, rtol=1e-10, atol=1e-10)
        for kind, value in ((source, output), (target, there)):
            torch.testing.assert_close(
                to_x0(kind, value, x, alpha, alpha * rho, 0.7), x0, rtol=1e-10, atol=1e-10
            )
            torch.testing.assert_close(
                to_eps(kind, value, x, alpha, alpha * rho, 0.7), eps, rtol=1e-9, atol=1e-9
            )


def test_each_output_is_what_its_definition_says():
    """By hand from x0 = 2, eps = -1, alpha = 0.6, sigma = 0.8, so that x = 0.4."""
    x0, _eps, x = (torch.tensor(v, dtype=torch.float64) for v in (2.0, -1.0, 0.4))
    wanted = {"eps": -1.0, "x0": 2.0, "v": -2.2, "score": 1.25, "flow": -3.0, "flow_reversed": 3.0}
    for kind, value in wanted.items():
        assert from_x0(kind, x0, x, 0.6, 0.8).item() == pytest.approx(value)
        assert to_x0(kind, torch.tensor(value), x, 0.6, 0.8).item() == pytest.approx(2.0)
        assert to_eps(kind, torch.tensor(value), x, 0.6, 0.8).item() == pytest.approx(-1.0)


def test_the_flow_reads_clean_samples_from_pure_noise():
    """At s = 1 the sample is the noise and x0 = x - f, though nothing of x0 is in it."""
    x0, eps = pair()
    torch.testing.assert_close(to_x0("flow", eps - x0, eps, 0.0, 1.0), x0)
    torch.testing.assert_close(to_x0("flow_reversed", x0 - eps, eps, 0.0, 1.0), x0)


def test_the_edm_output_is_that_of_its_preconditioning():
    """to_x0("edm") and ``edm.denoise`` are the same D."""
    u, output = pair()
    rho = torch.full((4,), 1.7, dtype=torch.float64)
    d = edm.denoise(lambda x, c: output, u, rho, 0.7)
    torch.testing.assert_close(d, to_x0("edm", output, u, 1.0, 1.7, 0.7))


def test_errors_grow_by_rho_from_noise_to_clean_samples():
    """|dx0| = rho |deps|: at rho 64 an eps network's error is 64 times larger in x0."""
    x0, eps = pair()
    for rho in LEVELS:
        alpha = SCHEDULES["cosine"].alpha(rho)
        x = alpha * x0 + alpha * rho * eps
        off = to_x0("eps", eps + 1e-3, x, alpha, alpha * rho) - x0
        torch.testing.assert_close(off.abs(), torch.full_like(off, rho * 1e-3), rtol=1e-8, atol=0)


def test_an_unknown_kind_is_refused():
    x0, eps = pair()
    for function in (to_x0, from_x0, to_eps):
        with pytest.raises(ValueError, match="unknown parameterization 'noise'; known are eps, x0, v"):
            function("noise", eps, x0, 1.0, 1.0)


def test_one_gaussian_in_every_parameterization_is_one_denoiser():
    """Data N(m, s^2): D = (s^2 u + rho^2 m) / (s^2 + rho^2), whatever the network puts out (gpc sheet 9.3)."""
    m, s, u = 0.5, 0.3, torch.linspace(-3, 3, 7, dtype=torch.float64)
    for rho in LEVELS:
        best = (s**2 * u + rho**2 * m) / (s**2 + rho**2)
        for schedule in SCHEDULES.values():
            alpha = schedule.alpha(rho)
            for kind in KINDS:
                output = from_x0(kind, best, alpha * u, alpha, alpha * rho)
                d = to_x0(kind, output, alpha * u, alpha, alpha * rho)
                torch.testing.assert_close(d, best, rtol=1e-9, atol=1e-9)
        assert math.isfinite(best.sum())
