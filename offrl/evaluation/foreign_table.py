"""Rows of the results table for runs of other toolkits, labelled as such."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from offrl.data.reference import bare_name, normalized_score, reference_returns
from offrl.evaluation.aggregate import iqm, stratified_bootstrap
from offrl.evaluation.foreign import ForeignRun
from offrl.evaluation.groups import BOOTSTRAP_SEED, Task
from offrl.evaluation.markup import Rows, interval_text, mean_std, shown
from offrl.evaluation.svg import tag


@dataclass(frozen=True, eq=False)
class ForeignGroup:
    """Runs of one toolkit's algorithm on the same data."""

    toolkit: str
    algorithm: str
    dataset: str
    runs: tuple[ForeignRun, ...]

    @property
    def label(self) -> str:
        """What its row is called."""
        return f"{self.algorithm} ({self.toolkit}, foreign)"

    def values(self, scored: bool, pair: tuple[float, float] | None) -> list[tuple[ForeignRun, np.ndarray]]:
        """Each run that has evaluations with these as scores or returns; runs of the other unit only with ``pair``."""
        found = []
        for run in self.runs:
            values = run.values
            if len(values) and run.scored != scored and pair is not None:
                low, high = pair
                values = normalized_score(pair, values) if scored else low + values * (high - low) / 100.0
            if len(values) and (run.scored == scored or pair is not None):
                found.append((run, values))
        return found


def group_foreign(runs: Sequence[ForeignRun]) -> list[ForeignGroup]:
    """Groups by dataset, toolkit and algorithm, in this order."""
    parts: dict[tuple[str, str, str], list[ForeignRun]] = {}
    for run in sorted(runs, key=lambda r: (r.dataset, r.toolkit, r.algorithm, str(r.path))):
        parts.setdefault((run.toolkit, run.algorithm, run.dataset), []).append(run)
    return [ForeignGroup(*key, tuple(part)) for key, part in parts.items()]


def fitting(task: Task, groups: Sequence[ForeignGroup]) -> list[ForeignGroup]:
    """The groups on the task's data."""
    return [group for group in groups if bare_name(task.runs[0].dataset) == group.dataset]


def foreign_rows(
    groups: Sequence[ForeignGroup], scored: bool, pair: tuple[float, float] | None, k: int
) -> Rows:
    """Cells: method, seeds, last, mean of last k, IQM of last, best; in scores or returns."""
    rows: Rows = []
    for group in groups:
        told = group.values(scored, pair)
        values = [v for _, v in told]
        count = _count(group, [run for run, _ in told] or group.runs)
        if not values:
            known = any(len(run.values) for run in group.runs)
            rows.append(
                [
                    escape(group.label),
                    count,
                    "in another unit" if known else "no scores in its files",
                    "",
                    "",
                    "",
                ]
            )
            continue
        last = np.array([v[-1] for v in values])
        middle, bounds = float(iqm(last)), "one run: no interval"
        if len(last) > 1:
            drawn = stratified_bootstrap(last[:, None], rng=np.random.default_rng(BOOTSTRAP_SEED))
            bounds = interval_text(*drawn, like=middle)
        several = [v for v in values if len(v) > 1]
        rows.append(
            [
                escape(group.label),
                count,
                tag("strong", mean_std(last.tolist())),
                mean_std([float(v[-k:].mean()) for v in values]) if several else "",
                f"{shown(middle)} {tag('small', bounds)}",
                mean_std([float(v.max()) for v in values]) if several else "",
            ]
        )
    return rows


def _count(group: ForeignGroup, counted: Sequence[ForeignRun]) -> str:
    """The runs whose numbers are shown, and what is odd about their number."""
    odd = ["of unknown seed"] if any(run.seed is None for run in counted) else []
    if left := len(group.runs) - len(counted):
        odd.append(f"{left} more without scores in this unit")
    return f"{len(counted)} {tag('small', ', '.join(odd))}" if odd else str(len(counted))


def foreign_notes(groups: Sequence[ForeignGroup]) -> list[str]:
    """What a reader must know of each group."""
    notes = []
    for group in groups:
        unknown = dict.fromkeys(name for run in group.runs for name in run.unknown)
        notes.append(
            f"{group.label} on {group.dataset}: read from files of {group.toolkit}, not run or checked here; not "
            f"known: {', '.join(unknown)}."
        )
    return notes


def unit_of(groups: Sequence[ForeignGroup]) -> tuple[bool, tuple[float, float] | None]:
    """Scores or returns for data that no run of ours learned from, and the references."""
    pair = reference_returns(groups[0].dataset)
    return pair is not None or all(run.scored for group in groups for run in group.runs), pair
