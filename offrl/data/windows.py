"""Windows of consecutive steps that never leave their episode: what chunk policies, transformers and diffusion see.

With episodes of n steps, length L and paddings b (before) and a (after), windows of an episode start at

    -b, -b + 1, ..., n - L + a

and a row before the first step or after the last one repeats that step (``valid`` is false there). A diffusion
policy with horizon T that sees the last To observations and executes Ta actions has L = T, b = To - 1, a = Ta - 1:
row To - 1 of a window is "now". LeRobot's sampling of the same policy (one window a frame, the last
T - Ta - To + 1 frames dropped) gives the same windows.

Source: Diffusion Policy, arXiv:2303.04137; real-stanford/diffusion_policy, common/sampler.py.
"""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from offrl.errors import ConfigError, DatasetError

Rule: TypeAlias = Literal["each", "ends"]


def windows(
    episodes: ArrayLike,
    length: int,
    stride: int = 1,
    pad_before: int = 0,
    pad_after: int = 0,
    rule: Rule = "each",
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of all windows, in order.

    Args:
        episodes: (E + 1,) first row of each episode, then the number of rows: ``OfflineDataset.episode_starts``.
        length: L, rows of a window.
        stride: take every so many-th start.
        pad_before: b, 0 .. L - 1: a window begins at most so many rows before its episode.
        pad_after: a, 0 .. L - 1: and ends at most so many after it.
        rule: where the stride counts from. ``each``: from every episode's first window. ``ends``: through all
            windows of all episodes, and the first and last window of each episode come on top of it.

    Returns:
        rows (W, L) int64 and valid (W, L) bool, false where a row stands in for one outside the episode. An episode
        shorter than L - b - a has no window.

    Raises:
        ConfigError: a number out of its range, or an unknown rule.
        DatasetError: no episode is long enough.
    """
    starts = np.asarray(episodes, dtype=np.int64)
    _check(length, stride, pad_before, pad_after, rule)
    counts = np.maximum(np.diff(starts) - length + pad_after + pad_before + 1, 0)  # windows of each episode
    total = int(counts.sum())
    if total == 0:
        raise DatasetError(
            f"no window of {length} rows fits: the longest episode has {int(np.diff(starts).max(initial=0))} steps, "
            f"the padding gives {pad_before + pad_after}; choose a shorter horizon"
        )
    episode = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... in its episode
    if rule == "each":
        kept = place % stride == 0
    else:
        kept = (np.arange(total) % stride == 0) | (place == 0) | (place == counts[episode] - 1)
    episode, place = episode[kept], place[kept]
    first, last = starts[episode, None], starts[episode + 1, None] - 1
    wanted = first + (place - pad_before)[:, None] + np.arange(length)
    rows = np.clip(wanted, first, last)
    return rows, rows == wanted


def _check(length: int, stride: int, pad_before: int, pad_after: int, rule: str) -> None:
    if length < 1 or stride < 1:
        raise ConfigError(f"length and stride must be 1 or more, got {length} and {stride}")
    for name, pad in (("pad_before", pad_before), ("pad_after", pad_after)):
        if not 0 <= pad < length:
            raise ConfigError(f"{name} must be in 0 .. {length - 1} (below the window's length), got {pad}")
    if rule not in ("each", "ends"):
        raise ConfigError(f"rule must be 'each' or 'ends', got {rule!r}")
