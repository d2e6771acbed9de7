"""The residual denoiser: it learns a known score, and is told the noise level or not."""

import math

import pytest
import torch

from offrl.diffusion.residual_mlp import ResidualMLP
from offrl.diffusion.training import AveragedTraining, GrowingAverage, WarmupCosine


def test_a_trained_residual_network_has_the_score_of_its_gaussian():
    """z ~ N(0, diag(1, 0.25)), one noise level 0.5: n = -sigma S has S = -(Sigma + sigma^2)^-1 z (cdsa sheet 4.1).

    Two seeds side by side; every point within 2 std is within 6 % of the largest score there.
    """
    generators = [torch.Generator().manual_seed(k) for k in (0, 1)]
    net, std, sigma = ResidualMLP(2, 2, hidden=32, blocks=1, levels=False), torch.tensor([1.0, 0.5]), 0.5
    training = AveragedTraining(net.init(generators), WarmupCosine(1e-2, 600, 30), GrowingAverage())
    g = torch.Generator().manual_seed(7)
    for _ in range(600):
        z, e = (torch.randn(2, 512, 2, generator=g) for _ in range(2))
        loss = (net(training.params, std * z + sigma * e) - e).square().mean(dim=(1, 2)).sum()
        training.apply(torch.autograd.grad(loss, training.params))
    points = torch.cartesian_prod(torch.linspace(-2, 2, 9), torch.linspace(-1, 1, 9)).expand(2, -1, -1)
    with torch.no_grad():
        score = -net(training.average, points) / sigma
    wanted = -points / (std.square() + sigma**2)
    assert (score - wanted).abs().max() < 0.06 * wanted.abs().max() * math.sqrt(2)


def test_a_network_that_is_told_the_level_uses_it_and_one_that_is_not_does_not_ask():
    g = [torch.Generator().manual_seed(0)]
    x, level = torch.randn(1, 4, 2), torch.tensor([[-1.0, 0.0, 0.5, 1.0]])
    told = ResidualMLP(2, 3, hidden=16, blocks=2)
    params = told.init(g)
    assert told(params, x, level).shape == (1, 4, 3)
    assert (told(params, x, level) != told(params, x, level + 1)).all(dim=2).all()
    untold = ResidualMLP(2, 3, hidden=16, blocks=2, levels=False)
    assert torch.equal(untold(p := untold.init(g), x), untold(p, x, level))
    with pytest.raises(ValueError, match="must be 1 or more"):
        ResidualMLP(2, 0)
