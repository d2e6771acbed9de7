"""Masks that need more than the ratio of the denominator; the clips are tested with the recipes."""

import inspect

import pytest
import torch

from offrl.estimators import masks, ratios, shaping
from offrl.estimators.ratios import mismatch_ratio
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts

OLD = torch.zeros(3, 3)
MU = -torch.tensor([[0.0, 1.0, 3.0], [0.2, 0.2, 0.2], [9.0, -1.0, 0.0]])  # log(old / mu) = -MU
MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1]]).bool()


def test_ppo_clip_stops_what_has_moved_far_enough():
    a, r = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0]), torch.tensor([1.3, 0.5, 1.3, 0.5, 1.1, 0.9])
    assert masks.ppo_clip(r, a).tolist() == [False, True, True, False, True, True]
    assert masks.ppo_clip(r, a, low=0.6, high=0.4).tolist() == [True] * 6
    assert masks.dual_clip(torch.tensor([3.5, 3.5, 2.5]), torch.tensor([1.0, -1.0, -1.0])).tolist() == [
        True,
        False,
        True,
    ]


def test_steps_without_an_advantage_are_not_clipped():
    """They teach nothing at any ratio: counted as clipped they would hide how many were."""
    zero, r = torch.zeros(1, 3), torch.tensor([[0.1, 1.0, 9.0]])
    assert masks.ppo_clip(r, zero).all()
    assert masks.decoupled_clip(r.log(), zero, zero).all()
    assert masks.sequence_clip(r.log(), zero, zero).all()
    assert masks.log_clip(r.log(), zero, zero).all()
    log_probs, mask = r.log(), torch.ones(1, 3, dtype=torch.bool)
    given = Rollouts(mask=mask, old_log_probs=zero, advantages=torch.zeros(1))
    assert recipe("grpo").diagnostics(log_probs, given)["clip_fraction"] == 0.0
    given = given.replace(advantages=-torch.ones(1))
    assert float(recipe("grpo").diagnostics(log_probs, given)["clip_fraction"]) == pytest.approx(1 / 3)


def test_rejection_of_steps_and_rows():
    token = masks.icepop(OLD, MU, MASK)
    assert token.tolist() == [[True, True, False], [True] * 3, [False, False, True]]
    rows = masks.icepop(OLD, MU, MASK, low=0.9, high=2.0, level="sequence")
    assert rows.tolist() == [[False], [True], [False]]  # exp of 4, 0.6, -1
    mean = masks.icepop(OLD, MU, MASK, low=0.6, high=3.0, level="geometric")
    assert mean.tolist() == [[False], [True], [True]]  # exp of 4/3, 0.2, -1/2


def test_truncated_importance_weights():
    got = shaping.mismatch(OLD, MU, MASK, cap=2.0)
    torch.testing.assert_close(got, (-MU).exp().clamp(max=2.0))
    torch.testing.assert_close(
        shaping.mismatch(OLD, MU, MASK, cap=None, level="sequence"),
        torch.tensor([4.0, 0.6, -1.0]).exp()[:, None],
    )
    assert mismatch_ratio(OLD, MU - 1e4, MASK, "sequence").isfinite().all()


def test_decoupled_and_sequence_clips_do_not_look_at_the_sampling_policy():
    x = torch.tensor([[0.1, 0.5, -0.9]])
    a = torch.tensor([[1.0, 1.0, -1.0]])
    assert masks.decoupled_clip(x, torch.zeros(1, 3), a).tolist() == [[True, False, False]]
    mask = torch.tensor([[True, True, False]])
    assert masks.sequence_clip(x, torch.zeros(1, 3), a, mask).tolist() == [
        [False, False, True]
    ]  # ratio e^0.3
    assert masks.sequence_clip(x, torch.zeros(1, 3), a, mask, high=0.4).tolist() == [[True, True, True]]


def test_stale_rows_lose_their_negative_steps():
    x, mu = torch.tensor([[-2.0, -2.0], [-2.0, -2.0]]), torch.tensor([[-1.0, -1.2], [-1.8, -1.8]])
    got = masks.stale_rows(x, mu, torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert got.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("function", "published"),
    [
        (masks.ppo_clip, {"low": 0.2, "high": 0.2}),  # PPO
        (masks.dual_clip, {"limit": 3.0}),  # verl
        (masks.decoupled_clip, {"low": 0.2, "high": 0.27}),  # MiniRL
        (masks.sequence_clip, {"low": 3e-4, "high": 4e-4}),  # GSPO
        (masks.log_clip, {"low": 0.4, "high": 0.4}),  # GMPO
        (ratios.geometric, {"low": 0.4, "high": 0.4}),
        (ratios.truncated, {"low": None, "high": 0.28}),  # CISPO without a floor
        (ratios.rollout, {"cap": 5.0}),  # MiniRL
        (masks.icepop, {"low": 0.5, "high": 5.0, "level": "token"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_defaults_are_the_published_ones(function, published):
    parameters = inspect.signature(function).parameters
    keywords = {name: p.default for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == published


def test_a_ratio_on_the_bound_still_learns():
    """The clipped surrogate is flat beyond the bound, not at it."""
    r, a = torch.tensor([1.25, 0.75, 3.0]), torch.tensor([1.0, -1.0, -1.0])
    assert masks.ppo_clip(r[:2], a[:2], low=0.25, high=0.25).all()
    assert masks.dual_clip(r[2:], a[2:]).all()
    assert masks.icepop(r.log(), torch.zeros(3), low=0.75, high=3.0).all()
