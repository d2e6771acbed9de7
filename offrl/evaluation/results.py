"""The report's tables of results: last, mean of last k, IQM, best, of our runs and of other toolkits'."""

from collections.abc import Sequence
from html import escape

import numpy as np

from offrl.evaluation.aggregate import iqm, stratified_bootstrap
from offrl.evaluation.compare import improvement_rows
from offrl.evaluation.foreign_table import ForeignGroup, fitting, foreign_notes, foreign_rows, unit_of
from offrl.evaluation.groups import BOOTSTRAP_SEED, Group, Task
from offrl.evaluation.markup import Rows, count, interval_text, listed, mean_std, method_cell, shown, table
from offrl.evaluation.svg import number, swatch, tag

IMPROVEMENT = (
    "P(row ends above column): chance that the last evaluation of a seed of the one is above that of a seed of the "
    "other, ties half; its 95 % interval resamples the seeds of both."
)


def results(tasks: Sequence[Task], k: int, foreign: Sequence[ForeignGroup]) -> str:
    """A table a dataset, the pairs of its methods, and what a reader must know."""
    columns = ["method", "seeds", "last", f"mean of last {k}", "IQM of last, 95 % interval", "best *"]
    parts, notes = [], []
    for task in tasks:
        rows: Rows = []
        success = not task.by_success and any(group.success_rates() for group in task.groups)
        head = [*columns, *(["success rate of last, %"] if success else [])]
        for style, group in enumerate(task.groups):
            if group.counted:
                rates = group.success_rates()
                told = [mean_std(rates) if rates else "-"] if success else []
                rows.append([method_cell(style, group), *_numbers(group, k), *told])
                notes += _notes(task, group, k)
            else:
                rows.append(_padded([method_cell(style, group), str(len(group.runs)), "not evaluated"], head))
        if task.data_level is not None:
            rows.append(_padded([f"{swatch(None)} mean of the data", "", shown(task.data_level)], head))
        others = fitting(task, foreign)
        found = foreign_rows(others, task.scored, task.runs[0].reference_returns, k)
        rows += [_padded(row, head) for row in found]
        parts.append(tag("h3", escape(task.name), tag("small", f" {task.unit}")) + table(head, rows))
        pairs_head, pairs = improvement_rows(task)
        parts.append(table(pairs_head, pairs) if pairs else "")
    parts.append(_only_foreign(tasks, foreign, columns, k))
    notes += foreign_notes(foreign)
    explained = [
        "last: mean over the episodes of the last evaluation; then mean and standard deviation over seeds.",
        "IQM: interquartile mean of last over the seeds; its interval resamples the seeds (2000 bootstrap "
        "draws) and says little for fewer than five.",
        "* best is chosen with online episodes: it is not an offline result and not comparable with last.",
        *([IMPROVEMENT] if any(len(task.groups) > 1 for task in tasks) else []),
    ]
    items = [tag("li", escape(note)) for note in (*explained, *notes)]
    return "".join(parts) + tag("ul", *items, class_="notes")


def _only_foreign(tasks: Sequence[Task], groups: Sequence[ForeignGroup], head: Sequence[str], k: int) -> str:
    """Tables of data that only other toolkits learned from."""
    placed = {id(group) for task in tasks for group in fitting(task, groups)}
    rest: dict[str, list[ForeignGroup]] = {}
    for group in groups:
        if id(group) not in placed:
            rest.setdefault(group.dataset, []).append(group)
    parts = []
    for dataset, own in rest.items():
        scored, pair = unit_of(own)
        title = tag("h3", escape(dataset), tag("small", " normalized score" if scored else " return"))
        parts.append(title + table(head, foreign_rows(own, scored, pair, k)))
    return "".join(parts)


def _padded(row: list[str], head: Sequence[str]) -> list[str]:
    return row + [""] * (len(head) - len(row))


def _numbers(group: Group, k: int) -> list[str]:
    """Cells: seeds, last, mean of last k, IQM, best."""
    summaries = group.summaries(k)
    middle, interval = group.iqm_of_last()
    bounds = "one seed: no interval" if interval is None else interval_text(*interval, like=middle)
    best = mean_std([s.best for s in summaries])
    if len(summaries) == 1:
        best += tag("small", f" at step {number(summaries[0].best_step)}")
    return [
        str(len(summaries)),
        tag("strong", mean_std([s.last for s in summaries])),
        mean_std([s.mean_of_last for s in summaries]),
        f"{shown(middle)} {tag('small', bounds)}",
        best,
    ]


def _notes(task: Task, group: Group, k: int) -> list[str]:
    """What a reader must know before comparing this group's numbers."""
    name, notes = f"{group.label} on {task.name}", []
    unfinished = [run for run in group.runs if not run.finished]
    if unfinished and group.counted[0].finished:
        notes.append(f"{name}: {count(len(unfinished), 'unfinished run')} left out of the means.")
    elif unfinished:
        notes.append(f"{name}: no run is finished; the numbers are those of the last evaluation so far.")
    if short := [s.last_count for s in group.summaries(k) if s.last_count < k]:
        notes.append(f"{name}: only {count(min(short), 'evaluation')}, fewer than {k}.")
    if group.repeated_seeds:
        repeated = listed([str(seed) for seed in group.repeated_seeds])
        seeds = f"seed {repeated} occurs" if len(group.repeated_seeds) == 1 else f"seeds {repeated} occur"
        notes.append(f"{name}: {seeds} twice or more, so these runs are not independent.")
    return notes


def across(tasks: Sequence[Task]) -> str:
    """IQM over all datasets, of algorithms that have one group on each with the same number of seeds."""
    if len(tasks) < 2 or not all(task.scored for task in tasks):
        return ""
    rows: Rows = []
    for algorithm in sorted({group.algorithm for task in tasks for group in task.groups}):
        groups = [[g for g in task.groups if g.algorithm == algorithm and g.counted] for task in tasks]
        seeds = {len(g[0].counted) if len(g) == 1 else 0 for g in groups}
        if len(seeds) > 1 or 0 in seeds:
            reason = "needs one group on each dataset, all with the same number of seeds"
            rows.append([escape(algorithm), "", tag("small", reason), ""])
            continue
        scores = np.stack([g[0].last() for g in groups], axis=1)
        middle = float(iqm(scores))
        bounds = "one seed: no interval"
        if len(scores) > 1:
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            bounds = interval_text(*stratified_bootstrap(scores, rng=rng), like=middle)
        both = f"{shown(middle)} {tag('small', bounds)}"
        rows.append([escape(algorithm), str(len(scores)), both, shown(scores.mean())])
    head = ["method", "seeds", "IQM of last, 95 % interval", "mean of last"]
    return tag("h3", f"Over all {len(tasks)} datasets") + table(head, rows)
