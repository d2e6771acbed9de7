"""One self-contained HTML page from runs: no scripts, nothing loaded, the same bytes for the same runs."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from offrl import __version__
from offrl.errors import ConfigError
from offrl.evaluation.aggregate import bootstrap_mean
from offrl.evaluation.beyond import bandit_section, diagnostics_section
from offrl.evaluation.charts import NOTE, Interval, curves_file, interval_chart, learning_curves, metric_chart
from offrl.evaluation.completions import completions_section
from offrl.evaluation.foreign import ForeignRun
from offrl.evaluation.foreign_table import group_foreign
from offrl.evaluation.groups import BOOTSTRAP_SEED, ENVIRONMENTS, Curve, Group, Task, group_runs
from offrl.evaluation.markup import Rows, count, interval_text, listed, method_cell, shown, table
from offrl.evaluation.results import across, results
from offrl.evaluation.runs import RunRecord
from offrl.evaluation.svg import CSS, tag
from offrl.files import atomic_write_text

MAX_VIDEO_BYTES = 8 * 2**20
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
OPTIONS = (  # of config.json, besides the settings
    *(
        "dataset",
        "dataset_sha256",
        "rows",
        "holdout",
        "env_id",
        "preset",
        "steps",
        "eval_every",
        "eval_episodes",
    ),
    *("final_episodes", "log_every", "device", "threads", "compile", "algorithm_file"),
    *ENVIRONMENTS,
)
OF_LLM = (  # of a language model's options
    *("model", "lora_rank", "prompts", "group", "reuse", "minibatches", "delay", "engine", "bypass"),
    *("temperature", "lr", "warmup", "max_grad_norm", "reward", "max_response", "context", "context_window"),
    *("pool", "sampler", "allocator", "predictor", "curriculum", "scaffold"),
)
Defaults: TypeAlias = Mapping[str, Mapping[str, Any]]  # algorithm -> setting -> default


def write_report(
    records: Sequence[RunRecord],
    path: Path | str,
    *,
    last_k: int = 10,
    defaults: Defaults | None = None,
    foreign: Sequence[ForeignRun] = (),
) -> None:
    """Write the report of ``records`` to ``path``, atomically; see ``render_report``."""
    atomic_write_text(path, render_report(records, last_k=last_k, defaults=defaults, foreign=foreign))


def save_curves(records: Sequence[RunRecord], path: Path | str) -> None:
    """Write the learning curves of ``records``, one chart a dataset, as a standalone SVG file, atomically."""
    atomic_write_text(path, curves_file(group_runs(records)))


def render_report(
    records: Sequence[RunRecord],
    *,
    last_k: int = 10,
    defaults: Defaults | None = None,
    foreign: Sequence[ForeignRun] = (),
) -> str:
    """The page.

    Args:
        records: at least one run.
        last_k: evaluations in the closing mean.
        defaults: default settings of each algorithm, where known: settings that differ are marked.
        foreign: runs of other toolkits, for the table of results.

    Raises:
        ConfigError: no runs, or ``last_k`` below 1.
    """
    if not records:
        raise ConfigError("a report needs at least one run")
    tasks = group_runs(records)
    title, done = _title(tasks), sum(run.finished for run in records)
    counts = count(len(records), "run") + ("" if done == len(records) else f", {done} finished")
    body = [
        tag("header", tag("h1", escape(title)), tag("p", f"{counts}. Written by offrl {__version__}.")),
        section("Results", results(tasks, last_k, group_foreign(foreign)) + across(tasks)),
        section("Learning curves", "".join(_curves(task, i) for i, task in enumerate(tasks))),
        section("Completions", completions_section(tasks)),
        section("Final policies", "".join(map(_final, tasks))),
        section("Beyond return", diagnostics_section(tasks)),
        section("Choosing by online episodes", bandit_section(tasks)),
        section("Films", _films(tasks)),
        section("Training metrics", _metrics(tasks)),
        section("Settings", _settings(tasks, defaults or {}) + _options(tasks)),
        section("Speed", _speed(tasks)),
        section("Versions and hardware", _versions(tasks)),
        section("Commands", _commands(tasks)),
    ]
    return document(title, *body)


def _title(tasks: Sequence[Task]) -> str:
    algorithms = sorted({group.algorithm for task in tasks for group in task.groups})
    names = [task.name for task in tasks]
    return f"{listed(algorithms)} on {listed(names) if len(names) <= 3 else f'{len(names)} datasets'}"


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
        rows.append([str(step), shown(value), interval_text(*bounds, like=value) if bounds else ""])
    return tag("h4", escape(label)) + table(["step", f"mean {unit}", "95 % interval"], rows)


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
            mean, several = float(values.mean()), len(values) > 1
            intervals.append(Interval(f"{group.label} seed {run.seed}", style, low, mean, high))
            cells = [method_cell(style, group), str(run.seed), str(len(values))]
            raw = [] if task.unit == "return" else [shown(run.final_returns.mean())]
            cells += [*raw, shown(mean)]
            cells.append(interval_text(low, high, like=mean) if several else "one episode: no interval")
            rows.append([*cells, _verdict(low, high, level) if several else ""])
    parts = []
    if rows:
        title = f"Final policies on {task.name}: {task.unit}, mean and 95 % bootstrap interval over episodes"
        caption = title if level is None else f"{title}; dashed: mean of the data, {shown(level)}"
        figure = interval_chart(intervals, level, title) + tag("figcaption", escape(caption))
        units = dict.fromkeys(("return", task.unit))  # one column where they are the same
        head = ["method", "seed", "episodes", *units, "95 % interval", "against the data"]
        parts += [tag("figure", figure), table(head, rows)]
    parts += [_unfinished(g, run) for g in task.groups for run in g.runs if not run.finished]
    return tag("h3", escape(task.name)) + "".join(parts) if parts else ""


def _verdict(low: float, high: float, level: float | None) -> str:
    if level is None:
        return ""
    return "above" if low > level else "below" if high < level else "not separable"


def _unfinished(group: Group, run: RunRecord) -> str:
    text = f"{group.label} seed {run.seed} is unfinished: step {run.steps_done} of {run.steps}."
    if run.config.get("own_model"):
        return tag("p", escape(text), class_="warning")
    text += " Go on with "
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
            legend = tag("p", *(method_cell(style, group) for style, group in enumerate(task.groups)))
            drawn = tag("div", *(c.svg(f"m{i}-{j}") for j, c in enumerate(charts)), class_="multiples")
            parts.append(tag("h3", escape(task.name)) + legend + drawn)
    note = "Means since the row before; a logarithmic axis where a positive metric spans a lot."
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
        parts.append(table(head, rows))
    note = tag("p", "* differs from the default", class_="notes") if marked else ""
    return tag("div", *parts, class_="side-by-side") + note


def _options(tasks: Sequence[Task]) -> str:
    pairs = [(task, group) for task in tasks for group in task.groups]
    rows: Rows = []
    for option in (*OPTIONS, *OF_LLM):
        values = [sorted({_option(run, option) for run in group.runs}) for _, group in pairs]
        if any(value != ["None"] for value in values):
            rows.append([option, *(tag("span", escape(", ".join(v)), class_="long") for v in values)])
    return table(["option", *_names(tasks, pairs)], rows)


def _option(run: RunRecord, name: str) -> str:
    llm = run.config.get("llm")
    known = run.config if name not in OF_LLM else llm if isinstance(llm, dict) else {}
    value = str(known.get(name))
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
        cells.append("" if rate is None else shown(rate))
        cells.append(_duration(seconds[-1]) if len(seconds) else "")
        for name in extra:
            column = run.timing.columns.get(name, np.zeros(0))
            known = column[np.isfinite(column)]
            cells.append(shown(np.median(known)) if len(known) else "")
        rows.append(cells)
    unit = "steps" if any(task.online for task in tasks) else "updates"
    head = ["data", "method", "seed", unit, f"{unit}/s (median)", f"time in {unit}"]
    return table([*head, *(f"{name} (median)" for name in extra)], rows)


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
    return table(head, rows)


def _commands(tasks: Sequence[Task]) -> str:
    parts = []
    for task, group, run in _all_runs(tasks):
        name = f"{group.label} on {task.name}, seed {run.seed}"
        method = run.config.get("algorithm_file") or run.algorithm
        again = shlex.join(["offrl", "train", str(method), "--config", str(run.directory / "config.json")])
        text = f"{run.command}\n\n# the same settings again\n{again}"
        if "fine_tuned_from" in run.config or "llm" in run.config:  # names its offline run; takes no --config
            text = run.command
        parts.append(tag("details", tag("summary", escape(name)), tag("pre", escape(text))))
    return "".join(parts)


def _all_runs(tasks: Sequence[Task]) -> list[tuple[Task, Group, RunRecord]]:
    return [(task, group, run) for task in tasks for group in task.groups for run in group.runs]


def document(title: str, *body: str, css: str = "") -> str:
    """A page that loads nothing: ``body`` is markup, ``css`` is added to the report's own."""
    style = resources.files("offrl.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", escape(f"{title} - offrl report")),
        tag("style", CSS + style + css),
    ]
    page = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def section(name: str, content: str) -> str:
    """A headed part of the page; nothing without content."""
    return tag("section", tag("h2", name), content) if content else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
