"""Noise levels and times of the schedules: published values, matching between schedules, grids."""

import itertools
import math

import pytest
import torch

from offrl.diffusion.schedules import VE, VP, Flow, cosine_betas

COSINE = VP.cosine(100)


def test_the_cosine_schedule_has_the_published_levels():
    """abar of squaredcos_cap_v2 with 100 steps (sheet 8.2), rho by rho = sqrt((1 - abar) / abar) (gpc sheet 3)."""
    assert COSINE.abar[0].item() == pytest.approx(0.999369, abs=5e-7)
    assert COSINE.abar[49].item() == pytest.approx(0.493844, abs=5e-7)
    assert COSINE.abar[99].item() == pytest.approx(2.43e-7, abs=5e-10)
    for t, rho in (
        (0, 0.02513),
        (10, 0.1856),
        (25, 0.4435),
        (49, 1.0124),
        (75, 2.548),
        (90, 7.08),
        (97, 32.1),
    ):
        assert COSINE.rho[t].item() == pytest.approx(rho, rel=1e-3)
    assert COSINE.rho[99].item() == pytest.approx(2029, rel=1e-3)
    assert cosine_betas(100).max() == 0.999


def test_a_hundred_linear_steps_stop_far_from_noise():
    """abar ends at 0.364, rho at 1.32: never use the linear betas with T = 100."""
    short = VP.linear(100)
    assert short.abar[-1].item() == pytest.approx(0.364, abs=5e-4)
    assert short.rho[-1].item() == pytest.approx(1.32, abs=5e-3)
    assert VP.linear(1000).rho[-1] > 100


def test_the_same_noise_level_is_not_the_same_share_of_the_steps():
    """t = 75 of 100 is s = 0.718, t = 50 is s = 0.511, t = 90 is s = 0.876, t = 49 is 0.5031 (sheet 3)."""
    for t, s in ((75, 0.718), (50, 0.511), (90, 0.876), (49, 0.5031)):
        assert Flow().time(COSINE.rho[t].item()) == pytest.approx(s, abs=6e-4)
    assert Flow(1000.0, reversed=True).time(1.0) == pytest.approx(500.0)


@pytest.mark.parametrize("schedule", [COSINE, Flow(), VE()])
def test_numbers_and_tensors_give_the_same(schedule):
    levels = torch.tensor([0.03, 0.5, 1.0, 20.0], dtype=torch.float64)
    for function in (schedule.alpha, schedule.time):
        many = function(levels)
        assert many.tolist() == pytest.approx([function(rho) for rho in levels.tolist()], rel=1e-6)


def test_alpha_and_sigma_are_those_of_their_path():
    """VP: squares add to 1. Flow: shares add to 1."""
    for rho in (0.1, 1.0, 30.0):
        assert COSINE.alpha(rho) ** 2 * (1 + rho**2) == pytest.approx(1.0)
        assert Flow().alpha(rho) * (1 + rho) == pytest.approx(1.0)
        assert VE().alpha(rho) == 1.0


def test_a_trained_level_is_told_as_its_index_and_others_between():
    for t in (0, 1, 50, 98, 99):
        assert COSINE.time(COSINE.rho[t].item()) == pytest.approx(t, abs=1e-6)
    between = math.sqrt(COSINE.rho[50].item() * COSINE.rho[51].item())
    assert COSINE.time(between) == pytest.approx(50.5)
    assert COSINE.time(1e9) == 99
    assert COSINE.time(1e-9) == 0
    assert COSINE.nearest(between * 1.001)[0] == 51
    assert COSINE.nearest(COSINE.rho[7].item() * math.e)[1] < 1.0


def test_few_steps_begin_at_pure_noise():
    """'trailing': 10 of 100 steps are t = 99, 89, ..., 9; 'leading' would begin at t = 90, rho 7.08."""
    assert COSINE.grid(10) == [*COSINE.rho[list(range(99, 0, -10))].tolist(), 0.0]
    assert COSINE.grid() == [*COSINE.rho.flip(0).tolist(), 0.0]
    with pytest.raises(ValueError, match=r"steps must be in 1 .. 100"):
        COSINE.grid(101)


def test_the_flow_grid_is_uniform_in_s():
    grid = Flow().grid(4)
    assert grid[0] == math.inf
    assert grid[1:] == pytest.approx([3.0, 1.0, 1 / 3, 0.0])
    assert Flow().grid(2, largest=0.8) == pytest.approx([4.0, 0.4 / 0.6, 0.0])


def test_the_edm_grid_has_the_published_levels():
    """N = 256, power 7 (pgd sheet 3): 80, 17.41, 7.02, 2.47, 0.724, 0.163, 0.0246, 0.002, then 0."""
    grid = VE().grid(256)
    wanted = {0: 80, 64: 17.41, 96: 7.02, 128: 2.47, 160: 0.724, 192: 0.163, 224: 0.0246, 255: 0.002}
    for i, rho in wanted.items():
        assert grid[i] == pytest.approx(rho, rel=3e-3)
    assert len(grid) == 257
    assert grid[256] == 0.0
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert sum(0 < rho < 1 for rho in grid) == 103


# Parity with diffusers


def test_the_cosine_levels_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(COSINE.abar.float(), theirs, rtol=1e-5, atol=1e-9)
    linear = diffusers.DDPMScheduler(1000, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(VP.linear(1000).abar.float(), linear, rtol=1e-4, atol=1e-9)


def test_the_trailing_grid_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    theirs.set_timesteps(10)
    assert COSINE.grid(10)[:-1] == COSINE.rho[theirs.timesteps].tolist()
