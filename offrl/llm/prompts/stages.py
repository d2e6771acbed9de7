"""CRAFT-GUI's curriculum: stages of rising difficulty, each trained until it is time for the next.

    steps        a stage has had its steps
    plateau      accuracy on the stage has not risen for some readings
    competence   a reading reaches a threshold

An accuracy is read over some steps, from the responses to prompts of the stage. Weights and optimizer go on.

Source: arXiv:2508.11360, a reconstruction: no code is public, thresholds and steps of the paper could not be read.
Departures: what a reading is, all three rules' numbers, and replay are ours. The paper's difficulty is the number of
operations of a trajectory; here it is any number a prompt (``levels``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError


def thirds(levels: Sequence[int]) -> tuple[int, ...]:
    """Highest difficulties of three stages, fewer where there are fewer of the (rising) difficulties that occur."""
    stages = min(3, len(levels))
    return tuple(levels[-(-len(levels) * (i + 1) // stages) - 1] for i in range(stages))


class Stages:
    """Says which prompts may be drawn.

    Args:
        difficulty: (N,) of the pool's prompts.
        bounds: highest difficulty of each stage.
        order: rising or falling.
        advance: steps, plateau or competence.
        steps: of a stage (rule steps).
        every: steps a reading.
        patience: readings without a rise (rule plateau).
        threshold: accuracy that is enough (rule competence).
        replay: share of a batch from earlier stages.
    """

    metrics = ("stage", "stage_success", "replayed")

    def __init__(
        self, difficulty: Tensor, bounds: tuple[int, ...], *, order: str = "rising", advance: str = "steps",
        steps: int = 1, every: int = 10, patience: int = 3, threshold: float = 0.8, replay: float = 0.0,
    ) -> None:  # fmt: skip
        self.buckets = torch.bucketize(difficulty, torch.tensor(bounds))
        if int(difficulty.max()) > bounds[-1]:
            raise ConfigError(
                f"stage_bounds end at {bounds[-1]}, but there are prompts of difficulty {int(difficulty.max())}"
            )
        self.last = len(bounds) - 1
        if order == "falling":
            self.buckets = self.last - self.buckets
        if missing := set(range(len(bounds))) - set(self.buckets.tolist()):
            raise ConfigError(
                f"stage {min(missing) + 1} of {len(bounds)} holds no prompt: pass other --stage-bounds, or of a task "
                "more prompts (--pool)"
            )
        self.advance, self.steps, self.every = advance, steps, every
        self.patience, self.threshold, self.replay = patience, threshold, replay
        self.stage, self.age, self.waited, self.best = 0, 0, 0, -1.0
        self.right, self.tried = 0.0, 0.0

    def parts(self, count: int) -> list[tuple[int, Tensor]]:
        """How many of a batch come from which rows: (number, (N,) bool), the current stage first."""
        old = int(count * self.replay) if self.stage else 0
        found = [(count - old, self.buckets == self.stage)]
        return found + ([(old, self.buckets < self.stage)] if old else [])

    def observe(self, rows: Tensor, right: Tensor, tried: Tensor) -> dict[str, Tensor]:
        """A step was made with these rows: ``right`` of ``tried`` responses each. May begin the next stage."""
        mine = self.buckets[rows] == self.stage
        right, tried = right[mine].double().sum(), tried[mine].double().sum()
        found = {
            "stage": torch.tensor(self.stage + 1.0), "stage_success": right / tried,
            "replayed": (~mine).double().mean(),
        }  # fmt: skip
        self.right, self.tried, self.age = self.right + float(right), self.tried + float(tried), self.age + 1
        if self.stage < self.last and self._over():
            self.stage, self.age, self.waited, self.best = self.stage + 1, 0, 0, -1.0
            self.right, self.tried = 0.0, 0.0
        return found

    def _over(self) -> bool:
        if self.advance == "steps":
            return self.age >= self.steps
        if self.age % self.every:
            return False
        reading, self.right, self.tried = self.right / self.tried, 0.0, 0.0
        if self.advance == "competence":
            return reading >= self.threshold
        self.waited = 0 if reading > self.best else self.waited + 1
        self.best = max(self.best, reading)
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        names = ("stage", "age", "waited", "best", "right", "tried")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        for name, value in state.items():
            setattr(self, name, value)
