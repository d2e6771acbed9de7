"""Conjugates of f-divergences, Bellman residuals, and the classifier whose logit is a log density ratio."""

import math

import pytest
import torch

from offrl.estimators.dice import bellman_residual, conjugate, density_ratio_loss, ratio


def test_the_conjugate_of_chi_square_takes_known_values():
    y = torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    assert conjugate(y, "pearson").tolist() == [-1.0, -1.0, -0.75, 0.0, 1.25, 3.0, 8.0]
    assert ratio(y, "pearson").tolist() == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


@pytest.mark.parametrize(
    ("divergence", "f"),
    [("pearson", lambda w: (w - 1) ** 2), ("reverse_kl", lambda w: w * w.clamp(min=1e-300).log())],
)
def test_the_conjugate_is_the_maximum_of_its_definition(divergence, f):
    """f*(y) = max over w >= 0 of y w - f(w), found on a grid of step 1e-4."""
    w = torch.arange(0, 30, 1e-4, dtype=torch.float64)
    for y in (-5.0, -1.5, 0.0, 0.7, 3.0):
        best, at = (y * w - f(w)).max(0)
        residual = torch.tensor(y, dtype=torch.float64)
        assert conjugate(residual, divergence).item() == pytest.approx(best.item(), abs=1e-6)
        assert ratio(residual, divergence).item() == pytest.approx(w[at].item(), abs=1e-4)


@pytest.mark.parametrize("divergence", ["pearson", "reverse_kl"])
def test_the_derivative_of_the_conjugate_is_the_ratio(divergence):
    y = torch.tensor([-4.0, -1.9, -0.3, 0.0, 2.5], dtype=torch.float64, requires_grad=True)
    conjugate(y, divergence).sum().backward()
    torch.testing.assert_close(y.grad, ratio(y.detach(), divergence))


def test_the_residual_stops_at_terminations_and_keeps_members_apart():
    """One seed, two members, rows (not ended, ended): e = r + .5 (1 - d) V' - V."""
    rewards, terminated = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    values, next_values = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]]), torch.tensor([[[4.0, 8.0]]])
    e = bellman_residual(rewards, terminated, values, next_values, 0.5)
    assert e.tolist() == [[[-7.0, -18.0], [-27.0, -38.0]]]
    e = bellman_residual(rewards, terminated, next_values, values, 0.5)  # backward: one V(s), two V(s')
    assert e.tolist() == [[[2.0, -6.0], [12.0, -6.0]]]


def test_the_best_logit_is_the_log_density_ratio():
    """Three symbols; p = (.2, .3, .5), q = (.4, .4, .2): the gradient vanishes at log p / q and nowhere near it."""
    p, q = torch.tensor([2, 3, 5]), torch.tensor([4, 4, 2])  # of ten samples
    above, below = (torch.arange(3).repeat_interleave(n)[None] for n in (p, q))
    logits = (p / q).log().requires_grad_()
    density_ratio_loss(logits[above], logits[below]).sum().backward()
    assert logits.grad.abs().max() < 1e-6
    moved = ((p / q).log() + 0.1).requires_grad_()
    density_ratio_loss(moved[above], moved[below]).sum().backward()
    assert (moved.grad > 0.005).all()


def test_the_loss_of_no_knowledge_is_two_logs_of_two_for_each_seed():
    loss = density_ratio_loss(torch.zeros(2, 5), torch.zeros(2, 5))
    assert loss.tolist() == pytest.approx([2 * math.log(2)] * 2)
