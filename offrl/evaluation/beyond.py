"""What returns do not show, in the report: diagnostics, fitted Q evaluation, choosing among runs by online episodes."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from offrl.evaluation.aggregate import bootstrap_mean
from offrl.evaluation.bandit import POLICIES, PULLS, TRIALS, selection_curve
from offrl.evaluation.charts import Chart, Interval, Series, interval_chart
from offrl.evaluation.groups import BOOTSTRAP_SEED, Curve, Group, Task
from offrl.evaluation.markup import Rows, mean_std, method_cell, shown, table
from offrl.evaluation.runs import RunRecord
from offrl.evaluation.svg import tag

TAIL_WARNING = 0.1
SHOWN_PULLS = (1, 2, 5, 10, 20, 50, 100, 200)
DASH = "-"
Number = Callable[[RunRecord], float | None]


def mean_of(run: RunRecord, name: str) -> float | None:
    """Mean over the played episodes of a list of the run's diagnostics; None without one."""
    values = getattr(run.diagnostics, name, None) if run.diagnostics else None
    return float(np.mean(values)) if values else None


def fact(run: RunRecord, name: str) -> float | None:
    """A number of the run's diagnostics; None without one."""
    return getattr(run.diagnostics, name) if run.diagnostics else None


def fqe(run: RunRecord) -> float | None:
    """The run's fitted Q evaluation."""
    return run.fqe.value if run.fqe else None


def played(run: RunRecord) -> float | None:
    """Discounted return of played episodes where it may stand beside the run's fitted Q evaluation."""
    if run.fqe is None or run.diagnostics is None or run.fqe.discount != run.diagnostics.discount:
        return None
    return run.diagnostics.discounted_return


CRITICS: tuple[tuple[str, Number], ...] = (
    ("Q at first states", lambda run: mean_of(run, "q")),
    ("return from there", lambda run: mean_of(run, "returns")),
    ("overestimation", lambda run: mean_of(run, "overestimation")),
    ("at visited states", lambda run: fact(run, "visited_overestimation")),
    ("Bellman error, fitted", lambda run: fact(run, "td_error")),
    ("held out", lambda run: fact(run, "held_out_td_error")),
)
POLICY: tuple[tuple[str, Number], ...] = (
    ("action distance", lambda run: fact(run, "action_distance")),
    ("to nearest pair", lambda run: fact(run, "nearest_action_distance")),
    ("FQE", fqe),
    ("played", played),
)
EXPLAINED = (
    "Q at first states: the smallest of the critics at (s, pi(s)). Return from there: discounted, in the reward that "
    "the critics learned from (scaled and shifted: compare across settings with care). Overestimation: the one minus "
    "the other. Where a time limit cut an episode, the critics' own value stands for what was not seen.",
    "At visited states: the same over all states of the episodes after which at most a tenth of the value was unseen.",
    "Bellman error: root mean square of Q(s, a) - r - gamma (1 - d) min Q(s', pi(s')), for every method; fitted: on "
    "rows that were trained on; held out: on rows that were not.",
    "Action distance: mean |pi(s) - a| over the data, in half-ranges of the action box. To nearest pair: to the action "
    "of the nearest (s, a) of the data.",
    "FQE: discounted return that fitted Q evaluation estimates from data alone; played: the one seen, with the same "
    "discount, nothing added after a time limit.",
    "A dash: the method has no critic, or 'offrl diagnose', 'offrl fqe', --holdout or an environment was missing.",
)


def diagnostics_section(tasks: Sequence[Task]) -> str:
    """Table, chart and explanations of the runs that were diagnosed; empty if none was."""
    parts, notes = [], []
    for task in tasks:
        known = [g for g in task.groups if any(run.diagnostics or run.fqe for run in g.runs)]
        if not known:
            continue
        parts.append(tag("h3", escape(task.name)))
        for columns in (CRITICS, POLICY):
            parts.append(_table(task, columns))
        notes += [note for group in known for run in group.runs for note in _notes(task, group, run)]
        parts.append(_chart(task))
    if not parts:
        return ""
    items = [tag("li", escape(note)) for note in (*EXPLAINED, *dict.fromkeys(notes))]
    return "".join(parts) + tag("ul", *items, class_="notes")


def _table(task: Task, columns: Sequence[tuple[str, Number]]) -> str:
    rows: Rows = []
    for style, group in enumerate(task.groups):
        runs = [run for run in group.runs if run.diagnostics or run.fqe]
        if runs:
            cells = [_cell(runs, column) for _, column in columns]
            rows.append([method_cell(style, group), str(len(runs)), *cells])
    return table(["method", "runs", *(name for name, _ in columns)], rows)


def _cell(runs: Sequence[RunRecord], column: Number) -> str:
    known = [number for run in runs if (number := column(run)) is not None]
    missing = len(runs) - len(known)
    if not known:
        return DASH
    return mean_std(known) + (tag("small", f" ({len(known)} of {len(runs)} runs)") if missing else "")


def _notes(task: Task, group: Group, run: RunRecord) -> list[str]:
    name, notes = f"{group.label} on {task.name}, seed {run.seed}", []
    for what, record in (("diagnostics", run.diagnostics), ("FQE", run.fqe)):
        if record is not None and record.step != run.steps_done:
            notes.append(
                f"{name}: {what} of step {record.step}, the run is at {run.steps_done}; make them again."
            )
    found = run.diagnostics
    if found is not None and found.tail_weight is not None and found.tail_weight > TAIL_WARNING:
        notes.append(
            f"{name}: time limits leave {100 * found.tail_weight:.0f} % of the value unseen; overestimation shows "
            "by so much less."
        )
    if found is not None and found.held_out:
        notes.append(f"{group.label} on {task.name}: held out: {found.held_out}.")
    return notes


def _chart(task: Task) -> str:
    """Overestimation of each run with its interval over episodes."""
    intervals = []
    for style, group in enumerate(task.groups):
        for run in group.runs:
            gaps = np.array(run.diagnostics.overestimation if run.diagnostics else [])
            if len(gaps):
                low, high = map(float, bootstrap_mean(gaps, rng=np.random.default_rng(BOOTSTRAP_SEED)))
                label = f"{group.label} seed {run.seed}"
                intervals.append(Interval(label, style, low, float(gaps.mean()), high))
    if not intervals:
        return ""
    title = f"Overestimation on {task.name}: Q minus return at first states, mean and 95 % bootstrap interval"
    caption = tag("figcaption", escape(f"{title} over episodes; dashed: no error"))
    return tag("figure", interval_chart(intervals, 0.0, title, level_name="no error"), caption)


def bandit_section(tasks: Sequence[Task]) -> str:
    """Score of the run that a bandit would choose, against the online episodes it used; empty without candidates."""
    parts = [part for i, task in enumerate(tasks) if (part := _bandit(task, i))]
    if not parts:
        return ""
    notes = (
        f"Unifloral's protocol (arXiv:2504.11453): {TRIALS} trials draw up to {POLICIES} of a method's finished runs, "
        "all settings and seeds alike; a UCB bandit plays their recorded final episodes, drawn with replacement, and "
        "names the best; the curve is the true mean of the one named.",
        "The band is the 95 % interval of the mean over the trials. It says nothing about other seeds, and nothing "
        "beyond the recorded episodes.",
        "Returns without references are scaled to 0-100 between a task's lowest and highest recorded episode while the "
        "bandit plays, as its exploration belongs to such scores, and shown as returns.",
        "At 1 pull this is a run taken blindly: an offline result of a method that learns from data alone. Further "
        "right, online episodes chose.",
    )
    return "".join(parts) + tag("ul", *(tag("li", escape(note)) for note in notes), class_="notes")


def candidates(task: Task) -> dict[str, list[np.ndarray]]:
    """Scores of the final episodes of every finished run, by algorithm; those with two runs or more."""
    found: dict[str, list[np.ndarray]] = {}
    for group in task.groups:
        for run in group.runs:
            if run.final_returns is not None:
                values = group.values(run, run.final_returns, run.final_successes)
                found.setdefault(group.algorithm, []).append(values)
    return {name: arms for name, arms in sorted(found.items()) if len(arms) > 1}


def _scale(task: Task, arms: dict[str, list[np.ndarray]]) -> tuple[float, float]:
    """Offset and span that bring a task's values to 0-100; scores are there already."""
    if task.scored:
        return 0.0, 100.0
    values = np.concatenate([episodes for scores in arms.values() for episodes in scores])
    return float(values.min()), float(np.ptp(values)) or 1.0


def _bandit(task: Task, index: int) -> str:
    arms = candidates(task)
    if not arms:
        return ""
    low, span = _scale(task, arms)
    curves: dict[str, Curve] = {}
    for name, scores in arms.items():
        scaled = [100.0 * (episodes - low) / span for episodes in scores]
        found = selection_curve(scaled, rng=np.random.default_rng(BOOTSTRAP_SEED))
        curves[name] = Curve(
            found.pulls, *(low + span * y / 100.0 for y in (found.mean, found.low, found.high))
        )
    series = [Series(name, style, curve) for style, (name, curve) in enumerate(curves.items())]
    chart = Chart(f"Choosing on {task.name}", task.unit, series, axis="online episodes used to choose")
    counts = [pulls for pulls in SHOWN_PULLS if pulls <= PULLS]
    rows: Rows = []
    for name, curve in curves.items():
        episodes = sorted({len(scores) for scores in arms[name]})
        told = "-".join(str(n) for n in dict.fromkeys((episodes[0], episodes[-1])))
        rows.append(
            [escape(name), str(len(arms[name])), told, *(shown(curve.values[pulls - 1]) for pulls in counts)]
        )
    head = ["method", "runs", "episodes each", *(f"{n} pull{'s' * (n > 1)}" for n in counts)]
    return tag("h3", escape(task.name)) + tag("figure", chart.svg(f"bandit{index}")) + table(head, rows)
