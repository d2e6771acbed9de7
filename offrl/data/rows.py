"""Which steps of a dataset become transitions, and where each one leads."""

from typing import TYPE_CHECKING

import numpy as np

from offrl.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from offrl.data.dataset import OfflineDataset


def select_rows(dataset: "OfflineDataset", rule: str, *, next_actions: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rows kept by ``rule`` and the row that follows each, both (N,) int64.

    Raises:
        ConfigError: unknown rule.
        DatasetError: nothing is left, or the time limit that ``qlearning`` needs is not known.
    """
    if rule == "exact":
        kept, successor = _exact(dataset, next_actions)
    elif rule == "qlearning":
        kept = np.flatnonzero(~_cuts(dataset)[:-1])
        successor = kept + 1
    elif rule == "steps" and not next_actions:
        last = _last_rows(dataset)
        kept = np.arange(dataset.num_steps)
        successor = kept + ~last
    else:
        raise ConfigError(f"rows must be 'exact' or 'qlearning', got {rule!r}")
    if len(kept) == 0:
        raise DatasetError(f"no transition is left under rows={rule!r}; record longer episodes")
    return kept, successor


def _exact(dataset: "OfflineDataset", next_actions: bool) -> tuple[np.ndarray, np.ndarray]:
    last = _last_rows(dataset)
    known = ~last | dataset.fields["terminated"]
    if dataset.has_next_observations and not next_actions:
        known[:] = True
    kept = np.flatnonzero(known)
    return kept, kept + ~last[kept]  # a last row stands in for its own successor


def _last_rows(dataset: "OfflineDataset") -> np.ndarray:
    """(N,) bool: the last step of each episode."""
    last = np.zeros(dataset.num_steps, dtype=bool)
    last[dataset.episode_starts[1:] - 1] = True
    return last


def _cuts(dataset: "OfflineDataset") -> np.ndarray:
    """(N,) bool: the steps that D4RL's rule takes for the end of a time limit."""
    if dataset.metadata.get("timeouts_recorded", True):
        return dataset.fields["truncated"]
    horizon = dataset.metadata.get("max_episode_steps")
    if horizon is None:
        raise DatasetError(
            "rows='qlearning' needs the time limit, because the file has no 'timeouts': "
            "set metadata['max_episode_steps'], or use rows='exact'"
        )
    return _counted_cuts(dataset.fields["terminated"], horizon)


def _counted_cuts(terminated: np.ndarray, horizon: int) -> np.ndarray:
    """D4RL's step counter, segment by segment between terminated steps.

    The counter is zeroed at a terminated step and then incremented for that same step, so the next segment
    starts at 1 (unless the terminated step was itself taken for a cut) and its first cut comes a step early.
    """
    ends = np.append(np.flatnonzero(terminated) + 1, len(terminated))
    lengths = np.diff(ends, prepend=0)
    first = np.empty(len(lengths), dtype=np.int64)  # the counter's value at the start of each segment
    count = 0
    for segment, length in enumerate(lengths.tolist()):
        first[segment] = count
        count = 0 if (count + length) % horizon == 0 else 1
    counter = np.arange(len(terminated)) - np.repeat(ends - lengths - first, lengths)
    cuts: np.ndarray = counter % horizon == horizon - 1
    return cuts
