"""Runs that differ in nothing but the seed, put together: their curves, their last, best and IQM."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data.reference import scored_by_success
from offrl.evaluation.aggregate import RunSummary, bootstrap_mean, iqm, stratified_bootstrap, summarize_run
from offrl.evaluation.runs import RunRecord

BOOTSTRAP_SEED = 0  # a report is a function of its runs
ENVIRONMENTS = (
    "num_envs",
    "normalize_observations",
    "normalize_rewards",
)  # options of methods that learn in one, on which their policies depend
RUN = re.compile(r"seed\d+-\d{8}T\d{6}(-\d+)?")  # names of run directories
ASIDE = {  # options of language models on which their policies do not depend, or that others say
    *(
        "seed",
        "out",
        "device",
        "threads",
        "precision",
        "steps",
        "task",
        "dataset",
        "micro_batch",
        "generation",
    ),
    *("log_every", "eval_every", "eval_prompts", "eval_samples", "checkpoint_every"),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Values at ascending steps; ``low`` and ``high`` bound the mean where it is over two or more seeds."""

    steps: np.ndarray  # (n,) int64
    values: np.ndarray  # (n,) float64
    low: np.ndarray | None = None  # (n,)
    high: np.ndarray | None = None  # (n,)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one algorithm with the same settings on the same data.

    If some of its runs are finished, only those count in means and intervals; else all that were evaluated.
    """

    label: str  # unique within its task
    runs: tuple[RunRecord, ...]
    scored: bool  # values are normalized scores, not returns

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self.runs[0].algorithm

    @cached_property
    def counted(self) -> tuple[RunRecord, ...]:
        """The runs that means and intervals are taken over."""
        evaluated = [run for run in self.runs if run.evaluations]
        return tuple([run for run in evaluated if run.finished] or evaluated)

    @property
    def unfinished(self) -> bool:
        """Whether its numbers are of runs under way, because none is finished."""
        return bool(self.counted) and not self.counted[0].finished

    @property
    def repeated_seeds(self) -> list[int]:
        """Seeds that occur more than once among the counted runs: those runs are not independent."""
        seeds = [run.seed for run in self.counted]
        return sorted({seed for seed in seeds if seeds.count(seed) > 1})

    def values(self, run: RunRecord, returns: np.ndarray, successes: np.ndarray | None = None) -> np.ndarray:
        """Episodes in the group's unit: scores or returns."""
        return run.score(returns, successes) if self.scored else returns

    def run_curve(self, run: RunRecord) -> Curve:
        """Mean over the episodes of each of the run's evaluations."""
        means = [float(self.values(run, e.returns, e.successes).mean()) for e in run.evaluations]
        return Curve(np.array([e.step for e in run.evaluations], dtype=np.int64), np.array(means))

    @cached_property
    def curve(self) -> Curve | None:
        """Mean over the counted runs at the steps at which all were evaluated; None if there is none."""
        return mean_curve([self.run_curve(run) for run in self.counted])

    def metric_curve(self, run: RunRecord, name: str) -> Curve | None:
        """A training metric of one run without its empty cells; None if it has none."""
        column = run.metrics.columns.get(name)
        if column is None or not (known := np.isfinite(column)).any():
            return None
        return Curve(run.metrics.steps[known], column[known])

    def summaries(self, k: int) -> list[RunSummary]:
        """Last, best and mean of the last ``k`` of each counted run."""
        curves = [self.run_curve(run) for run in self.counted]
        return [summarize_run(curve.steps, curve.values, k) for curve in curves]

    def last(self) -> np.ndarray:
        """(counted runs,) mean of each one's last evaluation."""
        return np.array([self.run_curve(run).values[-1] for run in self.counted])

    def success_rates(self) -> list[float]:
        """Successes of each counted run's last evaluation in percent, of those whose environment tells them."""
        last = [run.evaluations[-1].successes for run in self.counted]
        return [100.0 * float(successes.mean()) for successes in last if successes is not None]

    def iqm_of_last(self) -> tuple[float, tuple[float, float] | None]:
        """IQM over the seeds, and its 95 % interval where there are two or more."""
        last = self.last()
        middle = float(iqm(last))
        if len(last) < 2:
            return middle, None
        return middle, stratified_bootstrap(last[:, None], rng=np.random.default_rng(BOOTSTRAP_SEED))


@dataclass(frozen=True, eq=False)
class Task:
    """All groups that learned from the same data and were evaluated in the same environment."""

    name: str
    groups: tuple[Group, ...]
    scored: bool

    @property
    def online(self) -> bool:
        """Whether its methods learned in the environment: steps are then the environment's."""
        return self.runs[0].config.get("rows") == "online"

    @property
    def clock(self) -> str:
        """What steps count, for axes."""
        return "environment steps" if self.online else "gradient updates"

    @property
    def runs(self) -> list[RunRecord]:
        """Every run of every group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def unit(self) -> str:
        """What values are, for axes and columns."""
        if self.by_success:
            return "success rate, %"
        return "normalized score" if self.scored else "return"

    @property
    def by_success(self) -> bool:
        """Whether the values are success rates in percent (OGBench's single tasks)."""
        return self.scored and scored_by_success(str(self.runs[0].config.get("env_id")))

    @property
    def data_level(self) -> float | None:
        """Mean return of the data's episodes in the task's unit, or None (success rates have no such level)."""
        run = self.runs[0]
        if run.dataset_return is None or self.by_success:
            return None
        returns = np.array([run.dataset_return])
        return float(run.score(returns)[0] if self.scored else returns[0])


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """Mean of curves at their common steps; of two or more, with a bootstrap interval over the curves."""
    if not curves:
        return None
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    if not len(steps):
        return None
    values = np.stack([curve.values[np.isin(curve.steps, steps)] for curve in curves])
    if len(curves) == 1:
        return Curve(steps, values[0])
    low, high = bootstrap_mean(values, rng=np.random.default_rng(BOOTSTRAP_SEED))
    return Curve(steps, values.mean(axis=0), low, high)


def group_runs(records: Sequence[RunRecord]) -> list[Task]:
    """Tasks by name, their groups by algorithm, their runs by seed, whatever the order given."""
    records = sorted(records, key=lambda r: (r.dataset, r.algorithm, r.seed, str(r.directory)))
    tasks = []
    by_task = _partition(records, _task_key)
    names = [runs[0].dataset for runs in by_task]
    for runs in by_task:
        scored = runs[0].reference_returns is not None  # equal within a task
        parts = _partition(runs, lambda run: {**identity(run), "algorithm": run.algorithm})
        firsts = [part[0] for part in parts]
        labels = [
            _label(run, [other for other in firsts if other.algorithm == run.algorithm]) for run in firsts
        ]
        groups = [Group(label, tuple(part), scored) for label, part in zip(labels, parts, strict=True)]
        name = runs[0].dataset
        if names.count(name) > 1:
            config = runs[0].config
            name = f"{name} ({config.get('env_id')}, data {str(config.get('dataset_sha256'))[:8]})"
        tasks.append(Task(name, tuple(groups), scored))
    return tasks


def identity(run: RunRecord) -> dict[str, Any]:
    """What must be equal for runs of an algorithm to be seeds of one experiment."""
    facts = {key: run.config.get(key) for key in ("rows", "steps")} | {
        "holdout": run.config.get("holdout") or 0.0
    }
    facts |= {key: run.config[key] for key in ENVIRONMENTS if key in run.config}
    code = run.config.get("algorithm_sha256")
    if (precision := run.config.get("precision", "float32")) != "float32":
        facts["precision"] = precision
    if isinstance(mix := run.config.get("mix"), dict):  # other data in each batch
        drawn = ("refresh", "transitions", "guidance", "sampling_steps") if mix.get("sampling_steps") else ()
        facts |= {"mix": str(mix.get("sha256"))[:8], "share": mix.get("share")}
        facts |= {key: mix.get(key) for key in drawn}
    if "online" in run.config:
        facts |= run.config["online"] | {"offline_steps": run.config["fine_tuned_from"]["steps"]}
    if isinstance(llm := run.config.get("llm"), dict):  # how a language model was sampled and updated
        facts |= {key: _beginning(value) for key, value in llm.items() if key not in ASIDE}
    return {**run.settings, **facts, "file": code[:8] if isinstance(code, str) else None}


def _beginning(value: Any) -> Any:
    """Of a folder of a run what it shares with the same run of other seeds, from which other seeds may begin."""
    path = Path(value) if isinstance(value, str) else None
    return str(path.parent) if path is not None and RUN.fullmatch(path.name) else value


def _task_key(run: RunRecord) -> dict[str, Any]:
    keys = ("dataset_name", "dataset_sha256", "env_id", "env_kwargs", "reference_returns")
    return {key: run.config.get(key) for key in keys}


def _partition(runs: Sequence[RunRecord], key: Any) -> list[list[RunRecord]]:
    parts: dict[str, list[RunRecord]] = {}
    for run in runs:
        parts.setdefault(json.dumps(key(run), sort_keys=True, default=str), []).append(run)
    return list(parts.values())


def _label(run: RunRecord, rivals: Sequence[RunRecord]) -> str:
    """The algorithm, and what sets the run apart from its algorithm's other groups."""
    own, others = identity(run), [identity(rival) for rival in rivals]
    apart = [name for name in own if any(other.get(name) != own[name] for other in others)]
    return " ".join([run.algorithm, *(f"{name}={_plain(own[name])}" for name in apart)])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
