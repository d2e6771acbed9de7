"""Runs as files for a paper: scores (.csv), a table (.tex), learning curves (.pdf). All are written atomically."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from offrl.errors import ConfigError
from offrl.evaluation.aggregate import summarize_run
from offrl.evaluation.beyond import fact, fqe, mean_of
from offrl.evaluation.groups import Group, Task, group_runs
from offrl.evaluation.runs import RunRecord
from offrl.files import atomic_write_bytes

COLUMNS = (
    *("dataset", "environment", "method", "algorithm", "seed", "unit", "step", "finished", "episodes"),
    *("last", "mean_of_last_k", "k", "best", "best_step", "last_return", "success_rate"),
    *("overestimation", "td_error", "held_out_td_error", "action_distance", "fqe_value"),
)
ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
Writer = Callable[[Sequence[Task], int], bytes]


def export_runs(records: Sequence[RunRecord], path: Path, *, last_k: int = 10) -> None:
    """Write ``records`` to ``path``; its suffix says what is written.

    Args:
        records: at least one run.
        path: .csv: a row for each run. .tex: mean and standard deviation of the last evaluation over seeds, a row for
            each dataset, a column for each method. .pdf: learning curves, a page for each dataset.
        last_k: evaluations in the mean of the last k.

    Raises:
        ConfigError: no runs, or another suffix.
    """
    if not records:
        raise ConfigError("there are no runs to export")
    atomic_write_bytes(path, writer_of(path)(group_runs(records), last_k))


def writer_of(path: Path) -> Writer:
    """What writes a file of this suffix (ConfigError: nothing does)."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"an export ends in {', '.join(WRITERS)}, got {path}")
    return WRITERS[path.suffix]


def scores_csv(tasks: Sequence[Task], last_k: int) -> bytes:
    """A row for each evaluated run; ``last`` and so on are in the task's unit."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for task in tasks:
        for group in task.groups:
            table.writerows(_row(task, group, run, last_k) for run in group.runs if run.evaluations)
    return text.getvalue().encode()


def _row(task: Task, group: Group, run: RunRecord, last_k: int) -> dict[str, object]:
    curve, final = group.run_curve(run), run.evaluations[-1]
    summary = summarize_run(curve.steps, curve.values, last_k)
    return {
        "dataset": task.name,
        "environment": run.config.get("env_id"),
        "method": group.label,
        "algorithm": run.algorithm,
        "seed": run.seed,
        "unit": task.unit,
        "step": final.step,
        "finished": run.finished,
        "episodes": len(final.returns),
        "last": summary.last,
        "mean_of_last_k": summary.mean_of_last,
        "k": summary.last_count,
        "best": summary.best,
        "best_step": summary.best_step,
        "last_return": float(final.returns.mean()),
        "success_rate": None if final.successes is None else 100.0 * float(final.successes.mean()),
        "overestimation": mean_of(run, "overestimation"),
        **{name: fact(run, name) for name in ("td_error", "held_out_td_error", "action_distance")},
        "fqe_value": fqe(run),
    }


def table_tex(tasks: Sequence[Task], _last_k: int) -> bytes:
    """A booktabs table of the last evaluation; comments say units, seeds and what is unfinished."""
    methods = list(dict.fromkeys(group.label for task in tasks for group in task.groups))
    units = {task.unit for task in tasks}
    lines = [
        "% last evaluation: mean and standard deviation over seeds; needs \\usepackage{booktabs}",
        *([f"% {task.name}: {task.unit}" for task in tasks] if len(units) > 1 else [f"% {units.pop()}"]),
        f"\\begin{{tabular}}{{l{'r' * len(methods)}}}",
        "\\toprule",
        " & ".join(["dataset", *(m.translate(ESCAPES) for m in methods)]) + r" \\",
        "\\midrule",
    ]
    seeds: dict[str, int] = {}
    running = False
    for task in tasks:
        found = {group.label: group for group in task.groups if group.counted}
        seeds |= {f"{label} on {task.name}": len(group.counted) for label, group in found.items()}
        running |= any(group.unfinished for group in found.values())
        cells = [_cell(found.get(method)) for method in methods]
        lines.append(" & ".join([task.name.translate(ESCAPES), *cells]) + r" \\")
    numbers = {*seeds.values()}
    told = [f"{name} {number}" for name, number in seeds.items()] if len(numbers) > 1 else map(str, numbers)
    lines += ["\\bottomrule", "\\end{tabular}", f"% seeds: {'; '.join(told)}"]
    lines += ["% dagger: no run is finished; the last evaluation so far"] if running else []
    return "\n".join([*lines, ""]).encode()


def _cell(group: Group | None) -> str:
    if group is None:
        return "--"
    values, mark = group.last(), r"^\dagger" if group.unfinished else ""
    if len(values) == 1:
        return f"${values[0]:.1f}{mark}$"
    return f"${values.mean():.1f} \\pm {values.std(ddof=1):.1f}{mark}$"


def curves_pdf(tasks: Sequence[Task], _last_k: int) -> bytes:
    """Learning curves: mean over seeds, its 95 % bootstrap interval, the mean of the data dashed."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with PdfPages(content, metadata={"CreationDate": None}) as pages:
        for task in tasks:
            figure = Figure(figsize=(6, 4), layout="constrained")
            axes = figure.add_subplot()
            for style, group in enumerate(task.groups):
                if (curve := group.curve) is None:
                    continue
                axes.plot(
                    curve.steps,
                    curve.values,
                    label=f"{group.label} ({len(group.counted)}{', unfinished' if group.unfinished else ''})",
                    color=f"C{style}",
                )
                if curve.low is not None and curve.high is not None:
                    axes.fill_between(curve.steps, curve.low, curve.high, color=f"C{style}", alpha=0.2, lw=0)
            if task.data_level is not None:
                axes.axhline(task.data_level, ls="--", color="black", lw=1, label="mean of the data")
            axes.set(title=task.name, xlabel=task.clock, ylabel=task.unit)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(title="method (seeds)")
            pages.savefig(figure)
    return content.getvalue()


WRITERS: dict[str, Writer] = {".csv": scores_csv, ".tex": table_tex, ".pdf": curves_pdf}
