"""The training loop, a generator: evaluation, logging and checkpoints are plain code in its caller."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from offrl.data.source import Source
from offrl.errors import ConfigError
from offrl.training.problem import Learner

NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class MetricMeans:
    """Running means of a learner's metrics, kept on the device: nothing is synchronized per step."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one update's metrics.

        Raises:
            ConfigError: a metric that the learner did not declare.
        """
        if not metrics:
            return
        for name in [name for name in metrics if name not in self.sums]:
            if name not in self.names:
                raise ConfigError(f"update() returned {name!r}, which its learner's 'metrics' does not list")
            exact = torch.promote_types(metrics[name].dtype, torch.float32)  # a sum in bfloat16 stands still
            self.sums[name], self.counts[name] = torch.zeros_like(metrics[name], dtype=exact), 0
        with torch.no_grad():  # a metric that still carries its gradient must not keep every graph alive
            torch._foreach_add_([self.sums[name] for name in metrics], list(metrics.values()))
        for name in metrics:
            self.counts[name] += 1

    def pop(self) -> dict[str, list[float]]:
        """Per metric, the mean of each seed since the last pop; forgets them."""
        means = {name: (self.sums[name] / self.counts[name]).flatten().tolist() for name in self.sums}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Partial sums."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore partial sums."""
        self.sums = {name: value.clone() for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


def train(
    learner: Learner,
    source: Source,
    generators: Sequence[torch.Generator],
    means: MetricMeans,
    *,
    steps: int,
    every: Sequence[int],
    start: int = 0,
    around: AbstractContextManager[Any] = NOTHING,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Run updates ``start + 1 .. steps``.

    Args:
        learner: what is trained.
        source: where batches come from.
        generators: the data streams, one a seed.
        means: collects the metrics.
        steps: gradient updates in all.
        every: periods; a multiple of any of them is yielded.
        start: updates already made.
        around: context of every update, e.g. its ``Precision``.
        stop: asked after every update; True yields that step and ends the loop.

    Yields:
        The number of updates made: at each multiple, at the last step, and where ``stop`` asked.
    """
    step, refresh = start, getattr(source, "refresh", None)
    while step < steps:
        if refresh is not None:
            means.add(refresh(learner.policy))
        with around:
            means.add(learner.update(source.sample(generators)))
        step += 1
        stopping = stop()
        if stopping or step == steps or any(step % period == 0 for period in every):
            yield step
        if stopping:
            return
