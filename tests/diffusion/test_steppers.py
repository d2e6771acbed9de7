"""The steps against each other, against published updates written out here, and on Gaussians of known law."""

import math

import pytest
import torch

from offrl.diffusion.parameterization import from_x0
from offrl.diffusion.schedules import VE, VP, Flow
from offrl.diffusion.steppers import Churn, denoiser, ode_step, sample, sde_step, trajectory

COSINE = VP.cosine(100)


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise_from(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def gaussian(mean=0.0, std=1.0):
    """D of data N(mean, std^2)."""

    def denoise(u, rho):
        if math.isinf(rho):
            return torch.full_like(u, mean)
        return (std**2 * u + rho**2 * mean) / (std**2 + rho**2)

    return denoise


def test_ddim_flow_euler_and_the_ode_step_are_one():
    """On matched levels, to 1e-6 (sheet 8.4), each in its own coordinates and with its own published formula."""
    x0, u = draws(6), draws(6, seed=1)
    for t, t_next in ((90, 80), (50, 40), (10, 0)):
        rho, rho_next = COSINE.rho[t].item(), COSINE.rho[t_next].item()
        ours = ode_step(u, x0, rho, rho_next)
        a, a_next = COSINE.abar[t].item(), COSINE.abar[t_next].item()
        eps = (math.sqrt(a) * u - math.sqrt(a) * x0) / math.sqrt(1 - a)
        ddim = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps  # arXiv:2010.02502, (12), sigma = 0
        torch.testing.assert_close(ddim / math.sqrt(a_next), ours, rtol=1e-6, atol=1e-6)
        s, s_next = rho / (1 + rho), rho_next / (1 + rho_next)
        x = (1 - s) * u
        velocity = (u - x0) / rho - x0
        flow = x + (s_next - s) * velocity
        torch.testing.assert_close(flow / (1 - s_next), ours, rtol=1e-6, atol=1e-6)


def test_the_sde_step_is_ddpms_fixed_small_posterior():
    """Mean (sqrt(abar') beta x0 + sqrt(alpha) (1 - abar') x) / (1 - abar), variance beta (1 - abar') / (1 - abar)."""
    x0, u, z = draws(6), draws(6, seed=1), draws(6, seed=2)
    for t in (1, 30, 98, 99):
        a, a_next = COSINE.abar[t].item(), COSINE.abar[t - 1].item()
        rho, rho_next = COSINE.rho[t].item(), COSINE.rho[t - 1].item()
        beta, x = 1 - a / a_next, math.sqrt(a) * u
        mean = (math.sqrt(a_next) * beta * x0 + math.sqrt(1 - beta) * (1 - a_next) * x) / (1 - a)
        variance = beta * (1 - a_next) / (1 - a)
        ours = math.sqrt(a_next) * sde_step(u, x0, rho, rho_next, z)
        torch.testing.assert_close(ours, mean + math.sqrt(variance) * z, rtol=1e-6, atol=1e-9)
        assert variance == pytest.approx(a_next * rho_next**2 * (1 - rho_next**2 / rho**2))


def test_the_last_step_lands_on_the_clean_sample():
    x0, u = draws(6), draws(6, seed=1)
    assert torch.equal(ode_step(u, x0, 2.0, 0.0), x0)
    assert torch.equal(sde_step(u, x0, 2.0, 0.0, draws(6)), x0)


def test_the_step_from_pure_noise_is_the_limit_of_high_noise():
    x0, z = draws(6), draws(6, seed=1)
    far = 1e9
    torch.testing.assert_close(ode_step(z, x0, math.inf, 3.0), ode_step(far * z, x0, far, 3.0))


MEAN, STD = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


def level_of(schedule, time):
    """Rho of the time that a network is told."""
    if isinstance(schedule, VP):
        return schedule.rho[round(time)].item()
    if isinstance(schedule, VE):
        return math.exp(4 * time)
    s = 1 - time if schedule.reversed else time
    return s / (1 - s)


def law(schedule, output, grid, **options):
    """Mean and std (2,) of samples of the exact network of N(MEAN, diag STD^2), which reads rho off its time."""

    def network(x, time):
        rho = level_of(schedule, time)
        alpha = schedule.alpha(rho)
        u = x / alpha if output != "edm" else x * math.sqrt(rho**2 + 1)
        best = (STD**2 * u + rho**2 * MEAN) / (STD**2 + rho**2)
        return from_x0(output, best, alpha * u, alpha, alpha * rho)

    inner = denoiser(network, output, schedule)

    def denoise(u, rho):
        return MEAN.expand_as(u) if math.isinf(rho) else inner(u, rho)

    start = 1.0 if math.isinf(grid[0]) else grid[0]
    x = sample(denoise, start * draws(40_000, 2), grid, noise=noise_from(5), **options)
    return x.mean(0), x.std(0)


@pytest.mark.parametrize(
    ("schedule", "output", "grid", "options", "rtol"),
    [
        (COSINE, "eps", COSINE.grid(), {"kind": "sde"}, 0.06),
        (COSINE, "v", COSINE.grid(), {}, 0.03),
        (COSINE, "eps", COSINE.grid(10), {}, 0.25),
        (Flow(), "flow", Flow().grid(100), {}, 0.03),
        (Flow(reversed=True), "flow_reversed", Flow().grid(10), {}, 0.25),
        (VE(), "edm", VE().grid(40), {"heun": True}, 0.02),
        (VE(), "score", VE().grid(64), {"heun": True, "churn": Churn()}, 0.04),
    ],
)
def test_every_sampler_draws_from_its_gaussian(schedule, output, grid, options, rtol):
    """Exact networks; what is left is the step's own error and 0.5 % of chance (sheet 8.3)."""
    mean, std = law(schedule, output, grid, **options)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.06)
    torch.testing.assert_close(std, STD, rtol=rtol, atol=0)


def test_eulers_error_halves_with_the_step_and_heuns_quarters():
    """Standard deviation of N(0, 0.5^2) from N(0, 10^2 + 0.5^2) on the ODE, without chance: one linear map."""

    def error(steps, heun):
        grid = VE().grid(steps, largest=10.0)
        u = torch.tensor([1.0], dtype=torch.float64)
        got = sample(gaussian(0.0, 0.5), u * math.sqrt(100.25), grid, heun=heun)
        return abs(got.item() - 0.5)

    assert error(40, False) / error(80, False) == pytest.approx(2.0, abs=0.2)
    assert error(40, True) / error(80, True) == pytest.approx(4.0, abs=0.8)
    assert error(80, True) < error(80, False) / 20


def test_the_corrected_euler_step_keeps_the_spread_and_the_published_one_collapses():
    """Standard normal data, N = 256, churn 80 (pgd sheet 3.1): 0.92 against 0.06 in first order, Heun 1.005 and 1.03."""
    grid, start = VE().grid(256), 80.0 * draws(20_000)

    def spread(**options):
        return sample(gaussian(), start, grid, churn=Churn(), noise=noise_from(3), **options).std().item()

    assert spread() == pytest.approx(0.92, abs=0.015)
    assert spread(legacy_euler_base=True) == pytest.approx(0.06, abs=0.01)
    assert spread(heun=True) == pytest.approx(1.005, abs=0.02)
    assert spread(heun=True, legacy_euler_base=True) == pytest.approx(1.03, abs=0.02)


def test_the_published_step_is_the_corrected_one_without_churn():
    """Both begin at the same sample where no noise is added."""
    grid, start = VE().grid(16), 80.0 * draws(50)
    for heun in (False, True):
        one, other = (sample(gaussian(), start, grid, heun=heun, legacy_euler_base=x) for x in (False, True))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_churn_acts_between_its_bounds_only():
    """gamma is 80 / 256 at the 191 levels in [0.05, 50] and 0 elsewhere (pgd sheet 12.2)."""
    gammas = [Churn().gamma(rho, 256) for rho in VE().grid(256)[:-1]]
    assert sum(g > 0 for g in gammas) == 191
    assert max(gammas) == 0.3125
    assert Churn().gamma(1.0, 32) == pytest.approx(math.sqrt(2) - 1)


def test_the_guide_moves_the_sample_before_each_step():
    """A guide that sets u = 3 leaves D(3, last level): the last step lands on it."""
    seen = []

    def guide(u, rho, index):
        seen.append((rho, index))
        return torch.full_like(u, 3.0)

    grid = [2.0, 1.0, 0.0]
    got = sample(lambda u, rho: u / 2, torch.zeros(2), grid, guide=guide)
    assert got.tolist() == [1.5, 1.5]
    assert seen == [(2.0, 0), (1.0, 1)]
    assert len(list(trajectory(gaussian(), torch.ones(2), grid))) == 2


def test_naive_matching_of_steps_fails_where_equal_rho_does_not():
    """Data N(0.5, 0.3^2), ODE over k = 99 .. 0 (gpc sheet 9.3): an eps network and a flow network averaged.

    Asked at equal rho: mean 0.500, std 0.293. Asked with the same x and s = (k + 1) / 100: 0.442 and 0.194.
    """
    m, s = 0.5, 0.3

    def average(equal_rho):
        def denoise(u, rho):
            alpha = COSINE.alpha(rho)
            first = gaussian(m, s)(u, rho)
            if equal_rho:
                return 0.5 * first + 0.5 * gaussian(m, s)(u, rho)
            share = (COSINE.nearest(rho)[0] + 1) / 100
            x, other = alpha * u, share / max(1 - share, 1e-9)
            velocity = from_x0("flow", gaussian(m, s)(x / max(1 - share, 1e-9), other), x, 1 - share, share)
            eps_of_flow = x + (1 - share) * velocity
            eps = 0.5 * (u - first) / rho + 0.5 * eps_of_flow
            return u - rho * eps

        x = sample(denoise, COSINE.rho[-1].item() * draws(20_000), COSINE.grid())
        return x.mean().item(), x.std().item()

    mean, std = average(True)
    assert mean == pytest.approx(0.500, abs=0.006)
    assert std == pytest.approx(0.293, abs=0.006)
    mean, std = average(False)
    assert mean == pytest.approx(0.442, abs=0.01)
    assert std == pytest.approx(0.194, abs=0.01)


# Parity with diffusers


def test_ddim_of_diffusers_is_the_ode_step():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=False
    )
    theirs.set_timesteps(10)
    x = draws(5, dtype=torch.float32)
    for count, t in enumerate(theirs.timesteps[:-1], start=1):
        x = theirs.step(0.5 * x, t, x).prev_sample
        grid = COSINE.grid(10)[: count + 1]
        start = draws(5, dtype=torch.float32) / COSINE.alpha(grid[0])
        ours = sample(denoiser(lambda y, _: 0.5 * y, "eps", COSINE), start, grid)
        torch.testing.assert_close(COSINE.alpha(grid[-1]) * ours, x, rtol=1e-4, atol=1e-5)


def test_flow_euler_of_diffusers_is_the_ode_step():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    x = start = draws(5, dtype=torch.float32)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample

    def denoise(u, rho):
        y, s = (u, 1.0) if math.isinf(rho) else (u / (1 + rho), rho / (1 + rho))
        return y - s * torch.tanh(y)

    torch.testing.assert_close(sample(denoise, start, Flow().grid(10)), x, rtol=1e-4, atol=1e-5)


def test_edm_euler_of_diffusers_is_the_ode_step():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
    theirs.set_timesteps(12)
    start = 80.0 * draws(5, dtype=torch.float32)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(theirs.scale_model_input(x, t)), t, x).prev_sample
    ours = denoiser(lambda y, _: torch.tanh(y), "edm", VE())
    torch.testing.assert_close(sample(ours, start, VE().grid(12)), x, rtol=1e-4, atol=1e-4)
