"""One self-contained HTML page from runs: no scripts, nothing loaded, the same bytes for the same runs."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

import numpy as np

from offrl import __version__
from offrl.errors import ConfigError
from offrl.evaluation.aggregate import bootstrap_mean, iqm, stratified_bootstrap
from offrl.evaluation.charts import NOTE, Interval, curves_file, interval_chart, learning_curves, metric_chart
from offrl.evaluation.compare import improvement_rows
from offrl.evaluation.groups import BOOTSTRAP_SEED, Curve, Group, Task, group_runs
from offrl.evaluation.runs import RunRecord
from offrl.evaluation.svg import CSS, number, swatch, tag
from offrl.files import atomic_write_text

MAX_VIDEO_BYTES = 8 * 2**20
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
OPTIONS = (  # of config.json, besides the settings
    *("dataset", "dataset_sha256", "rows", "env_id", "preset", "steps", "eval_every", "eval_episodes"),
    *("final_episodes", "log_every", "device", "threads", "compile", "algorithm_file"),
)
IMPROVEMENT = (
    "P(row ends above column): chance that the last evaluation of a seed of the one is above that of a seed of the "
    "other, ties half; its 95 % interval resamples the seeds of both."
)
Defaults: TypeAlias = Mapping[str, Mapping[str, Any]]  # algorithm -> setting -> default
Rows: TypeAlias = list[list[str]]  # cells of markup


def write_report(
    records: Sequence[RunRecord], path: Path | str, *, last_k: int = 10, defaults: Defaults | None = None
) -> None:
    """Write the report of ``records`` to ``path``, atomically; see ``render_report``."""
    atomic_write_text(path, render_report(records, last_k=last_k, defaults=defaults))


def save_curves(records: Sequence[RunRecord], path: Path | str) -> None:
    """Write the learning curves of ``records``, one chart a dataset, as a standalone SVG file, atomically."""
    atomic_write_text(path, curves_file(group_runs(records)))


def render_report(records: Sequence[RunRecord], *, last_k: int = 10, defaults: Defaults | None = None) -> str:
    """The page.

    Args:
        records: at least one run.
        last_k: evaluations in the closing mean.
        defaults: default settings of each algorithm, where known: settings that differ are marked.

    Raises:
        ConfigError: no runs, or ``last_k`` below 1.
    """
    if not records:
        raise ConfigError("a report needs at least one run")
    tasks = group_runs(records)
    title, done = _title(tasks), sum(run.finished for run in records)
    counts = _count(len(records), "run") + ("" if done == len(records) else f", {done} finished")
    body = [
        tag("header", tag("h1", escape(title)), tag("p", f"{counts}. Written by offrl {__version__}.")),
        _section("Results", _results(tasks, last_k) + _across(tasks)),
        _section("Learning curves", "".join(_curves(task, i) for i, task in enumerate(tasks))),
        _section("Final policies", "".join(map(_final, tasks))),
        _section("Films", _films(tasks)),
        _section("Training metrics", _metrics(tasks)),
        _section("Settings", _settings(tasks, defaults or {}) + _options(tasks)),
        _section("Speed", _speed(tasks)),
        _section("Versions and hardware", _versions(tasks)),
        _section("Commands", _commands(tasks)),
    ]
    style = resources.files("offrl.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", escape(f"{title} - offrl report")),
        tag("style", CSS + style),
    ]
    page = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _title(tasks: Sequence[Task]) -> str:
    algorithms = sorted({group.algorithm for task in tasks for group in task.groups})
    names = [task.name for task in tasks]
    return f"{_listed(algorithms)} on {_listed(names) if len(names) <= 3 else f'{len(names)} datasets'}"


def _results(tasks: Sequence[Task], k: int) -> str:
    head = ["method", "seeds", "last", f"mean of last {k}", "IQM of last, 95 % interval", "best *"]
    parts, notes = [], []
    for task in tasks:
        rows: Rows = []
        for style, group in enumerate(task.groups):
            if group.counted:
                rows.append([_method(style, group), *_numbers(group, k)])
                notes += _notes(task, group, k)
            else:
                rows.append([_method(style, group), str(len(group.runs)), "not evaluated", "", "", ""])
        if task.data_level is not None:
            rows.append([f"{swatch(None)} mean of the data", "", _value(task.data_level), "", "", ""])
        parts.append(tag("h3", escape(task.name), tag("small", f" {task.unit}")) + _table(head, rows))
        pairs_head, pairs = improvement_rows(task)
        parts.append(_table(pairs_head, pairs) if pairs else "")
    explained = [
        "last: mean over the episodes of the last evaluation; then mean and standard deviation over seeds.",
        "IQM: interquartile mean of last over the seeds; its interval resamples the seeds (2000 bootstrap "
        "draws) and says little for fewer than five.",
        "* best is chosen with online episodes: it is not an offline result and not comparable with last.",
        *([IMPROVEMENT] if any(len(task.groups) > 1 for task in tasks) else []),
    ]
    items = [tag("li", escape(note)) for note in (*explained, *notes)]
    return "".join(parts) + tag("ul", *items, class_="notes")


def _numbers(group: Group, k: int) -> list[str]:
    """Cells: seeds, last, mean of last k, IQM, best."""
    summaries = group.summaries(k)
    middle, interval = group.iqm_of_last()
    bounds = "one seed: no interval" if interval is None else _interval(*interval, like=middle)
    best = _mean_std([s.best for s in summaries])
    if len(summaries) == 1:
        best += tag("small", f" at step {number(summaries[0].best_step)}")
    return [
        str(len(summaries)),
        tag("strong", _mean_std([s.last for s in summaries])),
        _mean_std([s.mean_of_last for s in summaries]),
        f"{_value(middle)} {tag('small', bounds)}",
        best,
    ]


def _notes(task: Task, group: Group, k: int) -> list[str]:
    """What a reader must know before comparing this group's numbers."""
    name, notes = f"{group.label} on {task.name}", []
    unfinished = [run for run in group.runs if not run.finished]
    if unfinished and group.counted[0].finished:
        notes.append(f"{name}: {_count(len(unfinished), 'unfinished run')} left out of the means.")
    elif unfinished:
        notes.append(f"{name}: no run is finished; the numbers are those of the last evaluation so far.")
    if short := [s.last_count for s in group.summaries(k) if s.last_count < k]:
        notes.append(f"{name}: only {_count(min(short), 'evaluation')}, fewer than {k}.")
    if group.repeated_seeds:
        repeated = _listed([str(seed) for seed in group.repeated_seeds])
        notes.append(f"{name}: seed {repeated} occurs twice or more, so these runs are not independent.")
    return notes


def _across(tasks: Sequence[Task]) -> str:
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
            bounds = _interval(*stratified_bootstrap(scores, rng=rng), like=middle)
        shown = f"{_value(middle)} {tag('small', bounds)}"
        rows.append([escape(algorithm), str(len(scores)), shown, _value(scores.mean())])
    head = ["method", "seeds", "IQM of last, 95 % interval", "mean of last"]
    return tag("h3", f"Over all {len(tasks)} datasets") + _table(head, rows)


def _curves(task: Task, index: int) -> str:
    if not any(group.counted for group in task.groups):
        return tag("p", f"{escape(task.name)}: no run was evaluated.")
    tables = [_curve_table(g.label, g.curve, task.unit) for g in task.groups if g.curve is not None]
    caption = tag("figcaption", escape(NOTE), "; dotted: unfinished")
    details = tag("details", tag("summary", "numbers"), *tables)
    return tag("figure", learning_curves(task).svg(f"task{index}"), caption, details)


def _curve_table(label: str, curve: Curve, unit: str) -> str:
    rows: Rows = []
    for i, (step, value) in enumerate(zip(curve.steps, curve.values, strict=True)):
        bounds = "" if curve.low is None or curve.high is None else (curve.low[i], curve.high[i])
        rows.append([str(step), _value(value), _interval(*bounds, like=value) if bounds else ""])
    return tag("h4", escape(label)) + _table(["step", f"mean {unit}", "95 % interval"], rows)


def _final(task: Task) -> str:
    """Every seed's last policy over its episodes, beside the data."""
    rows: Rows = []
    intervals, level = [], task.data_level
    for style, group in enumerate(task.groups):
        for run in group.runs:
            if run.final_returns is None:
                continue
            values = group.values(run, run.final_returns, run.final_successes)
            low, high = map(float, bootstrap_mean(values, rng=np.random.default_rng(BOOTSTRAP_SEED)))
            mean = float(values.mean())
            intervals.append(Interval(f"{group.label} seed {run.seed}", style, low, mean, high))
            cells = [_method(style, group), str(run.seed), str(len(values))]
            raw = [] if task.unit == "return" else [_value(run.final_returns.mean())]
            cells += [*raw, _value(mean), _interval(low, high, like=mean)]
            rows.append([*cells, _verdict(low, high, level)])
    parts = []
    if rows:
        title = f"Final policies on {task.name}: {task.unit}, mean and 95 % bootstrap interval over episodes"
        caption = title if level is None else f"{title}; dashed: mean of the data, {_value(level)}"
        figure = interval_chart(intervals, level, title) + tag("figcaption", escape(caption))
        units = dict.fromkeys(("return", task.unit))  # one column where they are the same
        head = ["method", "seed", "episodes", *units, "95 % interval", "against the data"]
        parts += [tag("figure", figure), _table(head, rows)]
    parts += [_unfinished(g, run) for g in task.groups for run in g.runs if not run.finished]
    return tag("h3", escape(task.name)) + "".join(parts) if parts else ""


def _verdict(low: float, high: float, level: float | None) -> str:
    if level is None:
        return ""
    return "above" if low > level else "below" if high < level else "not separable"


def _unfinished(group: Group, run: RunRecord) -> str:
    text = f"{group.label} seed {run.seed} is unfinished: step {run.steps_done} of {run.steps}. Go on with "
    command = shlex.join(["offrl", "resume", str(run.directory)])
    return tag("p", escape(text), tag("code", escape(command)), class_="warning")


def _films(tasks: Sequence[Task]) -> str:
    parts = []
    for task, group, run in _all_runs(tasks):
        path = run.directory / "video.mp4"
        if not path.is_file():
            continue
        name = f"{group.label} on {task.name}, seed {run.seed}"
        if path.stat().st_size > MAX_VIDEO_BYTES:
            parts.append(tag("p", escape(f"{name}: {path} is too large for this page")))
            continue
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        film = tag("video", controls="", muted="", playsinline="", aria_label=name, src=source)
        parts.append(tag("figure", film, tag("figcaption", escape(name))))
    return "".join(parts)


def _metrics(tasks: Sequence[Task]) -> str:
    parts = []
    for i, task in enumerate(tasks):
        names = dict.fromkeys(name for run in task.runs for name in run.metrics.columns)
        charts = [chart for name in names if (chart := metric_chart(task, name)) is not None]
        if charts:
            legend = tag("p", *(_method(style, group) for style, group in enumerate(task.groups)))
            drawn = tag("div", *(c.svg(f"m{i}-{j}") for j, c in enumerate(charts)), class_="multiples")
            parts.append(tag("h3", escape(task.name)) + legend + drawn)
    note = "Means over the updates between rows; a logarithmic axis where a positive metric spans a lot."
    return tag("p", note, class_="notes") + "".join(parts) if parts else ""


def _settings(tasks: Sequence[Task], defaults: Defaults) -> str:
    """A table an algorithm: setting, default, value in each group."""
    pairs, parts, marked = [(task, group) for task in tasks for group in task.groups], [], False
    for algorithm in sorted({group.algorithm for _, group in pairs}):
        columns = [(task, group) for task, group in pairs if group.algorithm == algorithm]
        own_code = any(group.runs[0].config.get("algorithm_file") for _, group in columns)
        known = {} if own_code else defaults.get(algorithm, {})
        names = dict.fromkeys(name for _, group in columns for name in group.runs[0].settings)
        rows: Rows = []
        for name in names:
            row = [escape(name), *([_setting(known.get(name, ""))] if known else [])]
            for _, group in columns:
                value = group.runs[0].settings.get(name, "")
                changed = name in known and value != known[name]
                row.append(tag("strong", _setting(value), " *") if changed else _setting(value))
                marked |= changed
            rows.append(row)
        head = [f"{algorithm} setting", *(["default"] if known else []), *_names(tasks, columns)]
        parts.append(_table(head, rows))
    note = tag("p", "* differs from the default", class_="notes") if marked else ""
    return tag("div", *parts, class_="side-by-side") + note


def _options(tasks: Sequence[Task]) -> str:
    pairs = [(task, group) for task in tasks for group in task.groups]
    rows: Rows = []
    for option in OPTIONS:
        values = [sorted({_option(run, option) for run in group.runs}) for _, group in pairs]
        if any(value != ["None"] for value in values):
            rows.append([option, *(tag("span", escape(", ".join(v)), class_="long") for v in values)])
    return _table(["option", *_names(tasks, pairs)], rows)


def _option(run: RunRecord, name: str) -> str:
    value = str(run.config.get(name))
    return value[:16] if name == "dataset_sha256" and run.config.get(name) else value


def _names(tasks: Sequence[Task], pairs: Sequence[tuple[Task, Group]]) -> list[str]:
    return [f"{g.label}, {task.name}" if len(tasks) > 1 else g.label for task, g in pairs]


def _setting(value: Any) -> str:
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def _speed(tasks: Sequence[Task]) -> str:
    runs = _all_runs(tasks)
    extra = dict.fromkeys(name for _, _, run in runs for name in run.timing.columns)
    extra = {name: None for name in extra if name not in ("seconds", "steps_per_second")}
    rows: Rows = []
    for task, group, run in runs:
        seconds, rate = run.timing.columns["seconds"], run.steps_per_second
        cells = [escape(task.name), escape(group.label), str(run.seed), str(run.steps_done)]
        cells.append("" if rate is None else _value(rate))
        cells.append(_duration(seconds[-1]) if len(seconds) else "")
        for name in extra:
            column = run.timing.columns.get(name, np.zeros(0))
            known = column[np.isfinite(column)]
            cells.append(_value(np.median(known)) if len(known) else "")
        rows.append(cells)
    head = ["data", "method", "seed", "updates", "updates/s (median)", "time in updates"]
    return _table([*head, *(f"{name} (median)" for name in extra)], rows)


def _versions(tasks: Sequence[Task]) -> str:
    """One column for each distinct set of versions."""
    columns: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for _, group, run in _all_runs(tasks):
        key = repr(sorted(run.versions.items(), key=str))
        columns.setdefault(key, (run.versions, []))[1].append(f"{group.label} seed {run.seed}")
    names = dict.fromkeys(name for facts, _ in columns.values() for name in facts)
    if not names:
        return tag("p", "No versions were recorded.")
    head = ["", *("all runs" if len(columns) == 1 else ", ".join(runs) for _, runs in columns.values())]
    facts = [found for found, _ in columns.values()]
    rows = [[escape(name), *(escape(str(found.get(name, "-"))) for found in facts)] for name in names]
    return _table(head, rows)


def _commands(tasks: Sequence[Task]) -> str:
    parts = []
    for task, group, run in _all_runs(tasks):
        name = f"{group.label} on {task.name}, seed {run.seed}"
        method = run.config.get("algorithm_file") or run.algorithm
        again = shlex.join(["offrl", "train", str(method), "--config", str(run.directory / "config.json")])
        text = f"{run.command}\n\n# the same settings again\n{again}"
        text = run.command if "fine_tuned_from" in run.config else text  # that one names its offline run
        parts.append(tag("details", tag("summary", escape(name)), tag("pre", escape(text))))
    return "".join(parts)


def _all_runs(tasks: Sequence[Task]) -> list[tuple[Task, Group, RunRecord]]:
    return [(task, group, run) for task in tasks for group in task.groups for run in group.runs]


def _section(name: str, content: str) -> str:
    return tag("section", tag("h2", name), content) if content else ""


def _table(head: Sequence[str], rows: Rows) -> str:
    """A table whose cells are markup; the first column names the row. A wide one scrolls inside its box."""
    top = tag("tr", *(tag("th", escape(name), scope="col") for name in head))
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows
    ]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *lines)), class_="scroll")


def _method(style: int, group: Group) -> str:
    return tag("span", f"{swatch(style)} {escape(group.label)}", class_="method")


def _mean_std(values: Sequence[float]) -> str:
    mean = np.mean(values)
    if len(values) == 1:
        return _value(mean)
    return f"{_value(mean)} &plusmn; {_value(np.std(values, ddof=1), like=mean)}"


def _interval(low: float, high: float, *, like: float) -> str:
    return f"[{_value(low, like=like)}, {_value(high, like=like)}]"


def _value(value: SupportsFloat, *, like: SupportsFloat | None = None) -> str:
    """``value`` with the decimals that suit ``like``: one from 10 on, two from 1 on, else three."""
    size = abs(float(value if like is None else like))
    return f"{float(value):.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
