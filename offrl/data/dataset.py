"""The one form that every dataset takes in memory: flat arrays of steps, an episode index, metadata."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from offrl.data import validate
from offrl.data.environments import key_columns
from offrl.data.rows import select_rows
from offrl.errors import DatasetError

Rows: TypeAlias = Literal["exact", "qlearning", "steps"]
Observations: TypeAlias = ArrayLike | Mapping[str, Any]  # one array, or (nested) dicts of arrays


@dataclass(frozen=True, eq=False)
class Transitions:
    """What a learner samples from: N rows, copied from the dataset (safe to change)."""

    observations: np.ndarray  # (N, O) float32, dict observations flattened
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    next_observations: np.ndarray  # (N, O) float32
    terminated: np.ndarray  # (N,) float32, 0 or 1
    episode: np.ndarray  # (N,) int64, index of the episode
    step: np.ndarray  # (N,) int64, row in the dataset's flat order of steps
    rule: Rows
    next_actions: np.ndarray | None = None  # (N, A) float32

    def __len__(self) -> int:
        return len(self.step)


class OfflineDataset:
    """Recorded episodes, raw and never normalized.

    Attributes:
        fields: arrays with one row per step: ``observations`` (N, O) or, for dict observations,
            ``observations.KEY`` (nested keys joined with dots); ``actions`` (N, A); ``rewards`` (N,);
            ``terminated`` and ``truncated`` (N,) bool, which may both be set; optionally
            ``next_observations`` (same keys and shapes) and ``infos.NAME``. Floats are float32 (infos keep
            theirs), images keep uint8.
        episode_starts: (E + 1,) int64, the first row of each episode, then N.
        metadata: JSON values: name, env_id, env_kwargs, versions, collector, seed, reference_returns, source.

    Raises:
        DatasetError: the arrays break a rule; the message names array, row and remedy.
    """

    def __init__(
        self, fields: Mapping[str, Any], episode_starts: ArrayLike, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.fields = validate.fields(fields)
        self.episode_starts = validate.episode_starts(episode_starts, self.fields)
        self.metadata = validate.metadata(metadata, self.act_dim)
        self.observation_keys: tuple[str, ...] = self._flatten_order()  # parts of the flat view, in order
        self.flat_parts = [key_columns(key) for key in self.observation_keys]  # their fields and columns

    @classmethod
    def from_arrays(
        cls,
        observations: Observations,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike | None = None,
        *,
        next_observations: Observations | None = None,
        infos: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "OfflineDataset":
        """A dataset from arrays in memory; an episode ends where ``terminated`` or ``truncated`` is set.

        Args:
            observations: (N, O), or a dict of arrays with N rows.
            actions: (N, A) floats in environment units.
            rewards: (N,) or (N, 1).
            terminated: (N,) or (N, 1), bool or 0/1: the environment ended the episode, no bootstrap.
            truncated: (N,), the episode was cut after this step. None: time limits were not recorded; they
                are then placed every ``metadata["max_episode_steps"]`` steps, or nowhere if that is unknown.
            next_observations: true successors, as ``observations``, also on an episode's last step.
            infos: numeric arrays with N rows, may be nested.
            metadata: JSON values.

        Raises:
            DatasetError: a rule is broken.
        """
        fields = flatten_keys(
            {
                "observations": observations,
                "actions": actions,
                "rewards": rewards,
                "terminated": terminated,
                "infos": infos or {},
            }
        )
        if truncated is not None:
            fields["truncated"] = truncated
        if next_observations is not None:
            fields |= flatten_keys({"next_observations": next_observations})
        return cls.from_fields(fields, metadata)

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> "OfflineDataset":
        """As ``from_arrays``, from arrays under the names of ``fields``; ``truncated`` may be missing."""
        fields, metadata = dict(fields), dict(metadata or {})
        if "terminated" not in fields:
            raise DatasetError("missing arrays: terminated")
        fields["terminated"] = ended = validate.flags("terminated", fields["terminated"])
        if "truncated" in fields:
            cut = validate.flags("truncated", fields["truncated"])
        else:
            metadata.setdefault("timeouts_recorded", False)
            horizon = validate.metadata(metadata).get("max_episode_steps")
            cut = np.zeros(len(ended), dtype=bool) if horizon is None else _time_limits(ended, horizon)
        fields["truncated"] = cut
        if len(ended) != len(cut):
            raise DatasetError(
                f"'truncated' has {len(cut)} rows, 'terminated' has {len(ended)}; they must be equal"
            )
        ends = np.flatnonzero(ended | cut) + 1
        if len(ended) and (not len(ends) or ends[-1] != len(ended)):
            ends = np.append(ends, len(ended))
        return cls(fields, np.concatenate([[0], ends]).astype(np.int64), metadata)

    @property
    def num_steps(self) -> int:
        """Number of recorded steps N."""
        return int(self.episode_starts[-1])

    @property
    def num_episodes(self) -> int:
        """Number of episodes E; the last one may be unfinished."""
        return len(self.episode_starts) - 1

    @property
    def obs_dim(self) -> int:
        """Width O of the flat view of the observations."""
        return sum(len(self._columns(key, columns)) for key, columns in self.flat_parts)

    @property
    def act_dim(self) -> int:
        """Number of action dimensions A."""
        return int(self.fields["actions"].shape[1])

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) int64, steps."""
        return np.diff(self.episode_starts)

    @cached_property
    def episode_returns(self) -> np.ndarray:
        """(E,) float64, undiscounted sums of rewards."""
        return np.add.reduceat(self.fields["rewards"].astype(np.float64), self.episode_starts[:-1])

    @property
    def last_is_cut(self) -> bool:
        """Whether recording stopped inside the last episode, which is flagged as truncated or not at all.

        It did not terminate, and is shorter than ``metadata["max_episode_steps"]`` or, where that is unknown, than
        another episode that did not terminate.
        """
        terminated = self.fields["terminated"][self.episode_starts[1:] - 1]
        if terminated[-1]:
            return False
        longest = int(self.episode_lengths[~terminated].max())
        limit = self.metadata.get("max_episode_steps") or longest
        return bool(self.episode_lengths[-1] < limit or not self.fields["truncated"][-1])

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """Returns of a random and an expert policy for normalized scores, or None when they are not known."""
        pair = self.metadata.get("reference_returns")
        return None if pair is None else (float(pair[0]), float(pair[1]))

    @property
    def has_next_observations(self) -> bool:
        """Whether the true successor of every step was recorded."""
        return "next_" + self.flat_parts[0][0] in self.fields

    @property
    def flat_inputs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each part of the flat view, in order: (D,), or (H, W, C) of images in bytes.

        An array that is no dict is called 'observation'.
        """
        out: list[tuple[str, tuple[int, ...]]] = []
        for key, columns in self.flat_parts:
            name = "observation" if key == "observations" else key.removeprefix("observations.")
            array = self.fields[key]
            if columns != slice(None):
                out.append((f"{name}[{columns.start}:{columns.stop}]", (columns.stop - columns.start,)))
            elif self._is_image(key, columns):
                out.append((name, tuple(array.shape[1:])))
            else:
                out.append((name, (int(np.prod(array.shape[1:])),)))
        return tuple(out)

    def flat_observations(
        self, rows: np.ndarray | None = None, *, successors: bool = False, images: bool = True
    ) -> np.ndarray:
        """Observations as one new float32 array (n, O); dict keys side by side in the declared order.

        Args:
            rows: (n,) row numbers; None for all.
            successors: take the recorded next observations instead (only if ``has_next_observations``).
            images: also those parts that are images in bytes.
        """
        rows = np.arange(self.num_steps) if rows is None else rows
        parts = [part for part in self.flat_parts if images or not self._is_image(*part)]
        width = sum(len(self._columns(key, columns)) for key, columns in parts)
        out = np.empty((len(rows), width), dtype=np.float32)
        column = 0
        for key, columns in parts:
            part = self.fields[f"next_{key}" if successors else key][rows].reshape(len(rows), -1)[:, columns]
            out[:, column : column + part.shape[1]] = part
            column += part.shape[1]
        return out

    def flat_images(self, rows: np.ndarray) -> np.ndarray:
        """The parts that are images, (n, P) bytes side by side in the declared order; P is 0 where there are none."""
        found = [
            self.fields[key][rows].reshape(len(rows), -1)
            for key, columns in self.flat_parts
            if self._is_image(key, columns)
        ]
        return np.concatenate([np.empty((len(rows), 0), np.uint8), *found], axis=1)

    def transitions(
        self, rows: Rows = "exact", *, next_actions: bool = False, images: bool = True
    ) -> Transitions:
        """The transitions to learn from.

        ``exact``: the true next observation. A terminated step is kept (without a recorded successor it
        points at itself, which (1 - terminated) masks); a step cut by a time limit is kept if its successor
        was recorded.
        ``qlearning``: D4RL's own rule. Steps cut by a time limit and the last row of the file are dropped;
        the next observation is the next row's, so that after a terminated step it belongs to the next episode
        (masked). Where time limits were not recorded they are counted from ``max_episode_steps`` the way D4RL
        counts them, one step short in each episode that follows a terminated one.
        ``steps``: every recorded step, whole episodes, for methods that look at no next observation; that of an
        episode's last step stands for nothing.

        Args:
            rows: which rule.
            next_actions: also give the action taken at the next observation; under ``exact`` this drops the
                time-limit steps, whose next action was never taken.
            images: whether observations hold the parts that are images; see ``flat_images``.

        Raises:
            ConfigError: unknown rule.
            DatasetError: no transition is left, or the time limit needed by ``qlearning`` is not known.

        Source: D4RL ``qlearning_dataset`` (arXiv:2004.07219, d4rl/__init__.py).
        """
        kept, successor = select_rows(self, rows, next_actions=next_actions)
        recorded = rows == "exact" and self.has_next_observations
        fields = self.fields
        return Transitions(
            observations=self.flat_observations(kept, images=images),
            actions=fields["actions"][kept],
            rewards=fields["rewards"][kept],
            next_observations=self.flat_observations(
                kept if recorded else successor, successors=recorded, images=images
            ),
            terminated=fields["terminated"][kept].astype(np.float32),
            episode=np.searchsorted(self.episode_starts, kept, side="right") - 1,
            step=kept,
            rule=rows,
            next_actions=fields["actions"][successor] if next_actions else None,
        )

    def select(self, episodes: ArrayLike) -> "OfflineDataset":
        """The dataset of some episodes, in the order given; an unfinished one is marked truncated.

        Args:
            episodes: episode numbers, 0 .. E-1.
        """
        chosen = np.asarray(episodes)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) == 0:
            raise DatasetError("select needs a non-empty list of episode numbers")
        if chosen.min() < 0 or chosen.max() >= self.num_episodes:
            raise DatasetError(
                f"episodes are numbered 0 .. {self.num_episodes - 1}, got {chosen.min()} .. {chosen.max()}"
            )
        lengths = self.episode_lengths[chosen]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(starts[-1]) + np.repeat(self.episode_starts[chosen] - starts[:-1], lengths)
        fields = {name: array[rows] for name, array in self.fields.items()}
        ends = starts[1:] - 1
        unfinished = ~(fields["terminated"] | fields["truncated"])[ends]
        fields["truncated"][ends[unfinished]] = True
        # counted time limits (see ``transitions``) would run over an unfinished episode that is not the last
        stale = {"sha256", "timeouts_recorded"} if unfinished[:-1].any() else {"sha256"}
        metadata = {k: v for k, v in self.metadata.items() if k not in stale}
        return OfflineDataset(fields, starts, metadata)

    @cached_property
    def sha256(self) -> str:
        """Hash of the content (all fields but infos, and the episodes), the same for every file format."""
        digest = hashlib.sha256()
        for name, array in self.fields.items():
            if name.startswith("infos."):
                continue
            dtype = "?" if array.dtype.kind == "b" else "<f4"
            digest.update(f"{name}{array.shape}".encode())
            for start in range(0, len(array), validate.CHUNK_ROWS):
                part = array[start : start + validate.CHUNK_ROWS]
                digest.update(np.ascontiguousarray(part, dtype=dtype).data)
        digest.update(self.episode_starts.astype("<i8").data)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: ``1 000 transitions, 10 episodes, O=11, A=3, return 23 .. 3 223``."""
        low, high = self.episode_returns.min(), self.episode_returns.max()
        return (
            f"{_spaced(self.num_steps)} transitions, {_spaced(self.num_episodes)} episodes, "
            f"O={self.obs_dim}, A={self.act_dim}, return {_short(low)} .. {_short(high)}"
        )

    def _is_image(self, key: str, columns: slice) -> bool:
        array = self.fields[key]
        return bool(columns == slice(None) and array.ndim == 4 and array.dtype == np.uint8)

    def _columns(self, key: str, columns: slice) -> range:
        return range(int(np.prod(self.fields[key].shape[1:])))[columns]

    def _flatten_order(self) -> tuple[str, ...]:
        keys = [k for k in self.fields if k.startswith("observations.")]
        if not keys:
            return ("observations",)
        order = [f"observations.{key}" for key in self.metadata.get("flatten") or []] or sorted(keys)
        parts = [key_columns(key) for key in order]
        if unknown := [key for key, columns in parts if key not in keys or not self._columns(key, columns)]:
            have = ", ".join(k.removeprefix("observations.") for k in keys)
            raise DatasetError(
                f"metadata 'flatten' names {unknown[0].removeprefix('observations.')!r}, "
                f"but the observation keys are: {have}"
            )
        return tuple(order)


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _time_limits(terminated: np.ndarray, horizon: int) -> np.ndarray:
    """(N,) bool: the steps at which an episode that goes on reaches ``horizon`` steps."""
    starts = np.concatenate([[0], np.flatnonzero(terminated) + 1])
    lengths = np.diff(np.append(starts, len(terminated)))
    age = np.arange(len(terminated)) - np.repeat(starts, lengths) + 1
    cut: np.ndarray = (age % horizon == 0) & ~terminated
    return cut


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _short(value: float) -> str:
    return _spaced(round(value)) if abs(value) >= 100 else f"{value:.3g}"
