"""Step sizes, averages of weights, exact resume."""

import copy

import pytest
import torch

from offrl.diffusion.training import AveragedTraining, ConstantAverage, GrowingAverage, WarmupCosine


def test_the_growing_average_has_the_published_decays():
    """n = 1: 0; n = 11: 1 - 11^-0.75 = 0.834; large n: the cap (sheet 8.9)."""
    decay = GrowingAverage()
    assert decay(1) == 0.0
    assert decay(11) == pytest.approx(1 - 11**-0.75)
    assert decay(11) == pytest.approx(0.834, abs=5e-4)
    assert decay(10**9) == 0.9999


def test_the_constant_average_moves_every_tenth_update_and_comes_to_its_decay():
    """The first one takes the weights as they are, the second 0.995 / 1.995 of the first; the initial ones never count."""
    decay = ConstantAverage()
    assert [decay(n) for n in (9, 11, 39)] == [1.0, 1.0, 1.0]
    assert decay(10) == 0.0
    assert decay(20) == pytest.approx(0.995 / 1.995)
    assert decay(100_000) == pytest.approx(0.995)


def test_the_constant_average_is_the_weighted_mean():
    """Averaged after updates 2, 4, 6 with decay 0.5: weights 1/4, 1/2, 1 over their sum."""
    one, seen = trained(ConstantAverage(0.5, 2), 0), []
    for n in range(1, 7):
        one = trained(None, 1, training=one)
        seen += [one.params[0].detach().clone()] if n % 2 == 0 else []
    wanted = (seen[0] / 4 + seen[1] / 2 + seen[2]) / 1.75
    torch.testing.assert_close(one.average[0], wanted)


def test_the_step_size_rises_from_a_tenth_and_falls_to_zero():
    """T = 100, 10 updates of warm-up from 0.1: 0.1, ..., 1 at the end of the rise, half in the middle of the fall."""
    lr = WarmupCosine(2.0, 100, 10, start=0.1)
    assert lr(0) == pytest.approx(0.2)
    assert lr(5) == pytest.approx(1.1)
    assert lr(10) == pytest.approx(2.0)
    assert lr(55) == pytest.approx(1.0)
    assert lr(100) == pytest.approx(0.0)
    assert lr(200) == pytest.approx(0.0)
    assert WarmupCosine(1.0, 100, 4)(1) == pytest.approx(0.25)


def trained(average, updates, steps=50, training=None):
    training = training or AveragedTraining(
        [torch.ones(1, 3, requires_grad=True)], WarmupCosine(0.1, steps, 5, 0.1), average
    )
    for _ in range(updates):
        training.apply([torch.ones(1, 3) * (1 + training.updates)])
    return training


def test_the_average_follows_its_formula():
    """Written out: the weights after each update, averaged by hand with the decay of that update."""
    for average in (ConstantAverage(0.5, 2), GrowingAverage()):
        wanted, one = torch.ones(1, 3), trained(average, 0)
        for n in range(1, 8):
            one = trained(average, 1, training=one)
            wanted = average(n) * wanted + (1 - average(n)) * one.params[0].detach()
            torch.testing.assert_close(one.average[0], wanted)


def test_the_step_size_of_the_first_update_is_the_schedules_first():
    """Adam's first step has the size of its step size whatever the gradient."""
    one = trained(ConstantAverage(), 1)
    torch.testing.assert_close(1 - one.params[0].detach(), torch.full((1, 3), 0.1 * 0.1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("average", [ConstantAverage(0.9, 3), GrowingAverage()])
def test_resume_is_exact(average):
    """2 N updates equal N, save, load into a fresh one, N more, bit for bit, averages included."""
    whole, half = trained(average, 14), trained(average, 7)
    saved = copy.deepcopy(half.state_dict())
    fresh = trained(average, 0)
    fresh.load_state_dict(saved)
    trained(average, 7, training=fresh)
    assert torch.equal(whole.params[0], fresh.params[0])
    assert torch.equal(whole.average[0], fresh.average[0])
    assert whole.updates == fresh.updates == 14


def test_only_the_chosen_parameters_decay():
    """Without a gradient Adam's step is 0: what is left is the decay, lr times weight_decay."""
    params = [torch.ones(1, 2, requires_grad=True), torch.ones(1, 3, requires_grad=True)]
    training = AveragedTraining(
        params, lambda _: 0.1, GrowingAverage(), weight_decay=0.5, decayed=[True, False]
    )
    training.apply([torch.zeros_like(p) for p in params])
    torch.testing.assert_close(params[0].detach(), torch.full((1, 2), 0.95))
    torch.testing.assert_close(params[1].detach(), torch.ones(1, 3))
