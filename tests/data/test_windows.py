"""Windows against index lists written out by hand."""

import numpy as np
import pytest

from offrl.data.windows import windows
from offrl.errors import ConfigError, DatasetError


def test_a_five_step_episode_with_horizon_four_two_seen_and_two_executed():
    """T=4, To=2, Ta=2: starts -1 .. 5 - 4 + 1 = 2; row To - 1 = 1 of each window is 'now' = 0, 1, 2, 3."""
    rows, valid = windows([0, 5], 4, pad_before=1, pad_after=1)
    assert rows.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4]]
    assert valid.tolist() == [[False, True, True, True], [True] * 4, [True] * 4, [True, True, True, False]]
    assert rows[:, 1].tolist() == [0, 1, 2, 3]


def test_no_padding_gives_the_inner_windows_only():
    rows, valid = windows([0, 5], 4)
    assert rows.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert valid.all()


def test_windows_never_cross_episodes():
    rows, _ = windows([0, 3, 5], 3, pad_before=2, pad_after=2)
    of = np.searchsorted([3, 5], rows, side="right")
    assert (of == of[:, :1]).all()
    assert rows.tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 2], [2, 2, 2],
        [3, 3, 3], [3, 3, 4], [3, 4, 4], [4, 4, 4],
    ]  # fmt: skip


def test_end_padding_by_all_but_one_row_is_one_window_a_step():
    """What a transformer over (return, state, action) samples: every step starts a window."""
    rows, valid = windows([0, 2, 6], 3, pad_after=2)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert valid.sum(axis=1).tolist() == [2, 1, 3, 3, 2, 1]


def test_lerobot_drops_the_same_windows():
    """LeRobot: a window a frame t, rows t - (To - 1) .., clamped, without the last T - Ta - To + 1 frames."""
    horizon, seen, executed, steps = 16, 2, 8, 30
    now = np.arange(steps - (horizon - executed - seen + 1))
    theirs = np.clip(now[:, None] - (seen - 1) + np.arange(horizon), 0, steps - 1)
    ours, _ = windows([0, steps], horizon, pad_before=seen - 1, pad_after=executed - 1)
    assert ours.tolist() == theirs.tolist()


def test_a_stride_counts_in_each_episode_or_through_all_of_them():
    """Episodes of 5 and 4 steps, L=2: starts 0..3 and 5..7."""
    each, _ = windows([0, 5, 9], 2, stride=3)
    assert each[:, 0].tolist() == [0, 3, 5]
    ends, _ = windows([0, 5, 9], 2, stride=3, rule="ends")  # 0, 3, 7 by the stride; 0, 3, 5, 7 begin or end
    assert ends[:, 0].tolist() == [0, 3, 5, 7]


def test_short_episodes_are_left_out():
    rows, _ = windows([0, 2, 6], 4)
    assert rows.tolist() == [[2, 3, 4, 5]]
    with pytest.raises(DatasetError, match="longest episode has 4 steps"):
        windows([0, 2, 6], 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length and stride"),
        ({"length": 3, "stride": 0}, "length and stride"),
        ({"length": 3, "pad_before": 3}, r"pad_before must be in 0 \.\. 2"),
        ({"length": 3, "pad_after": -1}, "pad_after"),
        ({"length": 3, "rule": "all"}, "'each' or 'ends'"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        windows([0, 5], **arguments)
