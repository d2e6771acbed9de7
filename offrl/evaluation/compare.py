"""Which method is better on a dataset, and how sure that is: probability of improvement between groups of runs."""

from html import escape

import numpy as np

from offrl.evaluation.aggregate import improvement_interval, probability_of_improvement
from offrl.evaluation.groups import BOOTSTRAP_SEED, Group, Task
from offrl.evaluation.svg import tag


def improvement(group: Group, other: Group) -> tuple[float, tuple[float, float] | None]:
    """P(a run of ``group`` ends above a run of ``other``) and its 95 % interval, None with one seed of either."""
    x, y = group.last()[:, None], other.last()[:, None]
    chance = float(probability_of_improvement(x, y))
    if min(len(x), len(y)) < 2:
        return chance, None
    return chance, improvement_interval(x, y, rng=np.random.default_rng(BOOTSTRAP_SEED))


def improvement_rows(task: Task) -> tuple[list[str], list[list[str]]]:
    """Head and rows (cells of markup) of the table of all pairs; no rows for fewer than two evaluated groups."""
    groups = [group for group in task.groups if group.counted]
    if len(groups) < 2:
        return [], []
    rows = []
    for group in groups:
        cells = [escape(group.label)]
        for other in groups:
            if other is group:
                cells.append("")
                continue
            chance, interval = improvement(group, other)
            bounds = "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
            cells.append(f"{chance:.2f} {tag('small', bounds)}")
        rows.append(cells)
    return ["P(row ends above column)", *(group.label for group in groups)], rows
