"""What a learner is built from: the data as it will see them, and the facts about the run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.data.normalize import ObservationNormalizer
from offrl.errors import ConfigError
from offrl.nn.policy import Policy
from offrl.training.seeding import streams


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """How an offline run goes on online; only with --from."""

    warmup_steps: int = 5_000
    """Steps that the offline policy plays before the first update online."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class PulledOnlineSettings(OnlineSettings):
    """How a run whose deterministic policy is pulled towards the data goes on online; only with --from."""

    exploration_noise: float = 0.1
    """Std of the Gaussian noise on actions online, in half-ranges of the action box."""
    bc_end: float = 0.5
    """What is left of the pull towards the data at the last update online; 1 keeps it whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.exploration_noise < float("inf"):
            raise ConfigError(f"exploration_noise must be 0 or more, got {self.exploration_noise}")
        if not 0.0 < self.bc_end <= 1.0:
            raise ConfigError(f"bc_end must be in (0, 1], got {self.bc_end}")


class Alarm(NamedTuple):
    """Range in which a metric should be; a learner may have a dict of them by metric, ``alarms``."""

    low: float
    high: float
    meaning: str  # of being outside for several rows of metrics.csv


@dataclass(frozen=True)
class Problem:
    """The offline problem that a learner solves.

    Observations are normalized and rewards scaled as the algorithm's settings ask; everything is float32 on
    ``device``.
    """

    observations: Tensor  # (N, O)
    actions: Tensor  # (N, A)
    rewards: Tensor  # (N,)
    next_observations: Tensor  # (N, O)
    terminated: Tensor  # (N,)
    next_actions: Tensor | None  # (N, A), only if the algorithm asks for them
    action_low: Tensor  # (A,)
    action_high: Tensor  # (A,)
    normalizer: ObservationNormalizer
    returns_to_go: Tensor | None = None  # (N,) of the rewards above, only if the algorithm asks for them
    episode: Tensor | None = None  # (N,) int64, number of each row's episode, only if it asks for windows
    inputs: tuple[
        tuple[str, tuple[int, ...]], ...
    ] = ()  # name and shape of each part of an observation, in order
    images: Tensor | None = None  # (N, P) bytes, the inputs that are images, which the observations then lack
    seeds: tuple[int, ...] = (0,)
    steps: int = 1  # gradient updates of the whole run, for schedules
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile: bool = False
    threads: int = 1
    online: OnlineSettings | None = None  # of a run that goes on online; ``steps`` are then those online
    offline_updates: int = 0  # updates made before it went online

    @property
    def obs_dim(self) -> int:
        """O, with the images' numbers."""
        return self.observations.shape[1] + (0 if self.images is None else self.images.shape[1])

    @property
    def act_dim(self) -> int:
        """A."""
        return self.actions.shape[1]

    def q_alarm(self, discount: float) -> dict[str, "Alarm"]:
        """Alarm where the mean Q of the policy's actions is above every possible return, max(0, r) / (1 - discount)."""
        limit = max(float(self.rewards.max()), 0.0) / max(1.0 - discount, 1e-12)
        return {"q_policy": Alarm(-math.inf, limit, "more than any return: the critics overestimate")}

    def online_progress(self, updates: int) -> float:
        """Share of the updates online that ``updates`` in all have made, from 0 to 1."""
        return min((updates - self.offline_updates) / self.steps, 1.0)

    def streams(self, name: str) -> list[torch.Generator]:
        """One random stream called ``name`` for each seed, on the run's device."""
        return streams(self.seeds, name, self.device)


class Learner(Protocol):
    """What the loop trains. ``metrics`` names everything that ``update`` may return."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient update; metrics are detached tensors (S,) on the device, never synchronized here."""

    def policy(self, seed: int = 0) -> Policy:
        """The current policy of one of the stacked seeds, a copy that later updates do not change."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, besides the batch: tensors, numbers, lists and dicts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


@dataclass(frozen=True)
class Algorithm:
    """What a method's file declares as ``ALGORITHM``.

    The data layer honours these fields of ``config`` where it has them: ``batch_size``,
    ``normalize_observations``, ``reward_scale``, ``reward_shift`` and ``return_range_scaling``; for returns-to-go
    also ``discount`` (1 without it) and ``sparse_rewards``; for windows ``context``, their length.
    """

    config: type  # frozen dataclass of the settings: they become the command's options
    learner: Callable[[Problem, Any], Learner]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name or name prefix -> settings
    prepare: Callable[[OfflineDataset, Any], OfflineDataset] | None = None  # e.g. keep the best episodes
    next_actions: bool = False  # whether batches carry the next action of the data
    returns_to_go: bool = False  # whether batches carry discounted returns-to-go
    windows: bool = False  # whether batches are windows of whole episodes, all steps kept (rows="steps")
    starts: Callable[[Problem, Any], Tensor] | None = None  # rows at which windows may begin; None: at any
    images: bool = False  # whether it looks at images: windows hold them in bytes, beside the other parts
    own_rows: bool = (
        False  # whether it looks a batch's rows up in the run's own data: no others can be mixed in
    )
    acts: bool = True  # whether its policy acts; a model of data is trained without evaluation
    online: type[OnlineSettings] | str = (
        "its file declares no online settings"  # or why it cannot go on online
    )
    online_overrides: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings that change when it goes online
