"""Settings of the trajectory sampler, and that it draws what the steppers draw."""

import itertools

import pytest
import torch

from offrl.diffusion.sampler import Sampler, sample_rows, sample_steps
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import ConfigError


def model():
    made = TrajectoryModel(2, 1, hidden=32, blocks=2, length=4)
    torch.manual_seed(0)
    for p in made.weights:
        p.data = 0.1 * torch.randn(p.shape)
    return made.requires_grad_(False)


def test_the_collapsing_combination_is_refused_unless_insisted_on():
    with pytest.raises(ConfigError, match=r"collapses: samples of a standard normal have std 0\.06"):
        Sampler(legacy_euler_base=True, heun=False)
    Sampler(legacy_euler_base=True)
    Sampler(legacy_euler_base=True, heun=False, churn=0.0)
    Sampler(legacy_euler_base=True, heun=False, allow_collapse=True)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="steps must be 2 or more"):
        Sampler(steps=1)
    with pytest.raises(ConfigError, match="churn must be a finite number of 0 or more"):
        Sampler(churn=-1.0)


def test_standard_normal_data_come_out_standard_normal():
    """The network 0 is the optimal denoiser of N(0, 1): sd within 2 % (pgd sheet 12.3), any length."""
    made = TrajectoryModel(2, 1, hidden=32, blocks=1, length=4)
    rows = sample_rows(made, 250, 9, torch.Generator().manual_seed(0), Sampler())
    assert rows.shape == (250, 9, 5)
    assert rows.std().item() == pytest.approx(1.0, abs=0.02)
    assert rows.mean().item() == pytest.approx(0.0, abs=0.03)


def test_the_churn_is_as_strong_as_asked_for():
    drawn = [
        sample_rows(model(), 3, 8, torch.Generator().manual_seed(4), Sampler(steps=5, churn=churn))
        for churn in (0.0, 1.0, 80.0)
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_the_same_generator_gives_the_same_rows_and_every_step_is_shown():
    sampler = Sampler(steps=5)
    one, two = (sample_rows(model(), 3, 8, torch.Generator().manual_seed(4), sampler) for _ in range(2))
    assert torch.equal(one, two)
    steps = list(sample_steps(model(), 3, 8, torch.Generator().manual_seed(4), sampler))
    assert len(steps) == 5
    assert torch.equal(steps[-1], one)
    assert not one.requires_grad
    other = sample_rows(model(), 3, 8, torch.Generator().manual_seed(5), sampler)
    assert not torch.equal(one, other)
