"""Line and interval charts as SVG text: no scripts, no fonts, readable without color."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from offrl.errors import ConfigError
from offrl.evaluation.groups import Curve, Task, mean_curve
from offrl.evaluation.svg import CSS, STYLES, Scale, dash, marker, number, points, sample, tag, ticks

MAX_POINTS = 200  # of a training metric; more are averaged in bins
LOG_RANGE = 100.0  # a positive metric that spans more is drawn on a logarithmic axis
CHARACTER = 7.0  # estimated width of one, at font size 13
NAMESPACE = "http://www.w3.org/2000/svg"
NOTE = "thin: seeds; thick: their mean; band: its 95 % bootstrap interval; dashed: mean of the data"


@dataclass(frozen=True, eq=False)
class Series:
    """What a chart shows of one group."""

    label: str
    style: int
    mean: Curve | None
    seeds: Sequence[tuple[str, Curve, bool]] = ()  # name, curve, whether the run is finished


@dataclass(frozen=True)
class Frame:
    """Size of a chart and of its margins, in its own pixels."""

    width: int = 560
    height: int = 340
    left: int = 62
    right: int = 18
    bottom: int = 46
    ticks: int = 6
    markers: int = 12  # at most this many along a line
    full: bool = True  # with legend and axis names


LARGE = Frame()
SMALL = Frame(width=300, height=180, left=56, right=14, bottom=26, ticks=4, markers=3, full=False)


@dataclass(frozen=True, eq=False)
class Chart:
    """Lines over training steps.

    Args:
        title: stands above the plot.
        unit: name of the vertical axis.
        series: one a group.
        level: mean return of the data, drawn as a dashed line, or None.
        frame: sizes.
        log: logarithmic vertical axis; every value must be positive.
        axis: name of the horizontal axis.
        log_steps: logarithmic horizontal axis from the first step on, with a tick at every step.
        point: what a step is called in tooltips.
        level_name: what the dashed line is.
    """

    title: str
    unit: str
    series: Sequence[Series]
    level: float | None = None
    frame: Frame = LARGE
    log: bool = False
    axis: str = "gradient updates"
    log_steps: bool = False
    point: str = "step"
    level_name: str = "mean of the data"

    def svg(self, identifier: str) -> str:
        """The chart as an ``<svg>`` element whose ids begin with ``identifier``."""
        frame = self.frame
        named = None if self.level is None else self.level_name
        legend, rows = _legend(self.series, named, frame) if frame.full else ("", 0)
        curves = drawn(self.series)
        x = step_scale(curves, frame, self.log_steps)
        steps = {float(step) for curve in curves for step in curve.steps}
        y = value_scale(curves, self.level, self.log, frame.height - frame.bottom, 30.0 + 20 * rows)
        content = [
            tag("title", escape(self.title), id=f"{identifier}-t"),
            tag(
                "desc",
                escape("; ".join(_described(s, self.point) for s in self.series)),
                id=f"{identifier}-d",
            ),
            tag("text", escape(self.title), class_="head", x=frame.left, y=16),
            _axes(x, y, frame, self.unit, self.axis, sorted(steps) if self.log_steps else None),
        ]
        if self.level is not None:
            title = tag("title", escape(f"{self.level_name}: {number(self.level)}"))
            at = y.at(self.level)
            content.append(tag("line", title, class_="data", x1=x.start, x2=x.end, y1=at, y2=at))
        content += [_series(s, x, y, frame.markers, self.point) for s in self.series]
        labelled = f"{identifier}-t {identifier}-d"
        return svg_element(frame.width, frame.height, *content, legend, role="img", aria_labelledby=labelled)


def step_scale(curves: Sequence[Curve], frame: Frame, log: bool = False) -> Scale:
    """From 0 to the last step; logarithmic from the first one."""
    end = max((int(curve.steps[-1]) for curve in curves), default=1)
    if log:
        first = float(min((int(curve.steps[0]) for curve in curves), default=1))
        return Scale(
            first / 1.2, max(end, first) * 1.2, float(frame.left), float(frame.width - frame.right), log=True
        )
    return Scale(0.0, float(max(end, 1)), float(frame.left), float(frame.width - frame.right))


def value_scale(curves: Sequence[Curve], level: float | None, log: bool, start: float, end: float) -> Scale:
    """All values, intervals and the level, with a little room around them."""
    arrays = [a for c in curves for a in (c.values, c.low, c.high) if a is not None]
    values = np.concatenate([*arrays, [] if level is None else [level]])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log:
        return Scale(low / 1.2, high * 1.2, start, end, log=True)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def learning_curves(task: Task) -> Chart:
    """Evaluations of every group of a task: a thin line a seed, the mean and its interval."""
    series = []
    for style, group in enumerate(task.groups):
        evaluated = [run for run in group.runs if run.evaluations]
        seeds = [(f"{group.label}, seed {r.seed}", group.run_curve(r), r.finished) for r in evaluated]
        label = f"{group.label} (unfinished)" if group.unfinished else group.label
        series.append(Series(label, style, group.curve, seeds))
    return Chart(task.name, task.unit, series, task.data_level, axis=task.clock)


def metric_chart(task: Task, name: str) -> Chart | None:
    """One training metric of every group of a task that reports it, small; None if none does."""
    series = []
    for style, group in enumerate(task.groups):
        known = [(run, c) for run in group.runs if (c := group.metric_curve(run, name)) is not None]
        mean = mean_curve([c for run, c in known if run.finished] or [c for _, c in known])
        seeds = [(f"{group.label}, seed {r.seed}", thinned(c), r.finished) for r, c in known]
        if mean is not None:
            mean = thinned(Curve(mean.steps, mean.values))
        if seeds:
            series.append(Series(group.label, style, mean, seeds if len(seeds) > 1 or mean is None else ()))
    return Chart(name, "", series, frame=SMALL, log=wants_log(drawn(series))) if series else None


def drawn(series: Sequence[Series]) -> list[Curve]:
    """Every curve of a chart."""
    return [c for s in series for c in (s.mean, *(curve for _, curve, _ in s.seeds)) if c is not None]


def wants_log(curves: Sequence[Curve]) -> bool:
    """Whether values are positive and span so much that a linear axis would hide most of them."""
    values = np.concatenate([curve.values for curve in curves])
    return bool(values.min() > 0 and values.max() >= LOG_RANGE * values.min())


def thinned(curve: Curve, points: int = MAX_POINTS) -> Curve:
    """A long curve as means of ``points`` bins of neighboring rows, each at its last step."""
    n = len(curve.steps)
    if n <= points:
        return curve
    starts = np.linspace(0, n, points, endpoint=False).astype(np.int64)
    sizes = np.diff(starts, append=n)
    return Curve(curve.steps[starts + sizes - 1], np.add.reduceat(curve.values, starts) / sizes)


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart."""

    label: str
    style: int
    low: float
    middle: float
    high: float


def interval_chart(
    rows: Sequence[Interval], level: float | None, title: str, *, level_name: str = "mean of the data"
) -> str:
    """Intervals one below the other and a dashed level, as ``<svg>``."""
    left = 20 + CHARACTER * max(len(row.label) for row in rows)
    width, bottom = int(left) + 380, 8 + 24 * len(rows)
    bounds = np.array([[row.low, row.middle, row.high] for row in rows]).ravel()
    x = value_scale([Curve(np.arange(len(bounds)), bounds)], level, False, left + 8, width - 20.0)
    content = []
    for value in ticks(x, 5):
        at = x.at(value)
        content.append(tag("line", class_="grid", x1=at, x2=at, y1=4, y2=bottom))
        content.append(tag("text", number(value), x=at, y=bottom + 18, text_anchor="middle"))
    if level is not None:
        name = tag("title", f"{level_name}: {number(level)}")
        content.append(tag("line", name, class_="data", x1=x.at(level), x2=x.at(level), y1=4, y2=bottom))
    for i, row in enumerate(rows):
        y, look = 18.0 + 24 * i, f"mean s{row.style % STYLES}"
        told = f"{row.label}: {number(row.middle)} ({number(row.low)} .. {number(row.high)})"
        content.append(tag("text", escape(row.label), class_="name", x=left, y=y + 4, text_anchor="end"))
        content.append(tag("line", class_=look, x1=x.at(row.low), x2=x.at(row.high), y1=y, y2=y))
        content.append(marker(row.style, x.at(row.middle), y, told))
    return svg_element(width, bottom + 26, *content, class_="chart intervals", role="img", aria_label=title)


def curves_file(tasks: Sequence[Task]) -> str:
    """The learning curves of evaluated tasks, one chart below the other, as text of a standalone SVG file.

    Raises:
        ConfigError: no run was evaluated.
    """
    tasks = [task for task in tasks if any(group.counted for group in task.groups)]
    if not tasks:
        raise ConfigError("no run was evaluated, so there are no learning curves to draw")
    pitch = LARGE.height + 12
    placed = [
        tag("g", learning_curves(task).svg(f"c{i}"), transform=f"translate(0 {8 + i * pitch})")
        for i, task in enumerate(tasks)
    ]
    height = 8 + len(tasks) * pitch + 22
    content = [
        tag("style", CSS),
        tag("rect", class_="paper", width="100%", height="100%"),
        *placed,
        tag("text", escape(NOTE), class_="note", x=14, y=height - 12),
    ]
    return svg_element(LARGE.width, height, *content) + "\n"


def svg_element(width: int, height: int, *content: str, **attributes: object) -> str:
    """A chart's root element."""
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", *content, **{"xmlns": NAMESPACE, "class_": "chart", **size, **attributes})


def _legend(series: Sequence[Series], level: str | None, frame: Frame) -> tuple[str, int]:
    """Samples and names above the plot, wrapped into rows; also the number of rows."""
    names: list[tuple[str, int | None]] = [(s.label, s.style) for s in series]
    names += [] if level is None else [(level, None)]
    longest = int((frame.width - frame.left - 56) / CHARACTER)
    x, row, parts = float(frame.left), 0, []
    for name, style in names:
        name = name if len(name) <= longest else f"{name[: longest - 4]} ..."
        needed = 56 + len(name) * CHARACTER
        if x > frame.left and x + needed > frame.width:
            x, row = float(frame.left), row + 1
        y = 34.0 + 20 * row
        parts.append(sample(style, x, y) + tag("text", escape(name), class_="name", x=x + 38, y=y + 4))
        x += needed
    return "".join(parts), row + 1


def _axes(
    x: Scale, y: Scale, frame: Frame, unit: str, axis: str, marks: Sequence[float] | None = None
) -> str:
    parts = []
    for value in ticks(y, frame.ticks):
        at = y.at(value)
        parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        parts.append(tag("text", number(value), class_="y", x=x.start - 8, y=at + 4, text_anchor="end"))
    for value in marks or ticks(x, frame.ticks):
        place = {"x": x.at(value), "y": y.start + 17}
        parts.append(tag("text", number(value), class_="x", text_anchor="middle", **place))
    parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    if frame.full:
        turned = f"translate(14 {(y.start + y.end) / 2:.1f}) rotate(-90)"
        parts.append(tag("text", escape(unit), transform=turned, text_anchor="middle"))
        middle = (x.start + x.end) / 2
        parts.append(tag("text", escape(axis), x=middle, y=y.start + 37, text_anchor="middle"))
    return "".join(parts)


def _series(series: Series, x: Scale, y: Scale, markers: int, point: str = "step") -> str:
    parts, color, mean = [], series.style % STYLES, series.mean
    if mean is not None and mean.low is not None and mean.high is not None:
        there, back = points(x, y, mean.steps, mean.high), points(x, y, mean.steps[::-1], mean.low[::-1])
        parts.append(tag("polygon", class_=f"band f{color}", points=f"{there} {back}"))
    for name, curve, finished in series.seeds:
        look = f"seed s{color}" + ("" if finished else " unfinished")
        title = tag("title", escape(name if finished else f"{name}, unfinished"))
        if len(curve.steps) > 1:
            line = points(x, y, curve.steps, curve.values)
            parts.append(tag("polyline", title, class_=look, points=line))
        else:
            place = {"cx": x.at(float(curve.steps[0])), "cy": y.at(float(curve.values[0]))}
            parts.append(tag("circle", title, class_=look, r=2, **place))
    if mean is not None:
        line = points(x, y, mean.steps, mean.values)
        look = f"mean s{color}"
        parts.append(tag("polyline", class_=look, points=line, stroke_dasharray=dash(series.style)))
        for i in range(len(mean.steps) - 1, -1, -math.ceil(len(mean.steps) / markers)):
            place_x, place_y = x.at(float(mean.steps[i])), y.at(float(mean.values[i]))
            parts.append(marker(series.style, place_x, place_y, f"{series.label}, {_told(mean, i, point)}"))
    return "".join(parts)


def _told(curve: Curve, i: int, point: str = "step") -> str:
    text = f"{point} {curve.steps[i]}: {number(float(curve.values[i]))}"
    if curve.low is not None and curve.high is not None:
        text += f" ({number(float(curve.low[i]))} .. {number(float(curve.high[i]))})"
    return text


def _described(series: Series, point: str = "step") -> str:
    if series.mean is None:
        return f"{series.label}: {len(series.seeds)} runs"
    return f"{series.label}: {_told(series.mean, len(series.mean.steps) - 1, point)}"
