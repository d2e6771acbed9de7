"""Line and interval charts as SVG text: no scripts, no fonts, readable without color, light and dark.

Groups are told apart by color, dash pattern and marker together. Colors are CSS custom properties, so that a chart
follows the reader's color scheme inside a page and as a file of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from offrl.evaluation.groups import Curve, Group, Task, group_runs
from offrl.evaluation.runs import RunRecord
from offrl.files import atomic_write_text

DASHES = ("", "9 4", "2 3", "12 3 2 3")
STYLES = 6  # colors and markers; with four dash patterns twelve groups look different
MARKERS = 12  # at most this many along a line
MAX_POINTS = 400  # of a training metric; more are averaged in bins
LOG_RANGE = 100.0  # a positive metric that spans more is drawn on a logarithmic axis
CHARACTER = 7.0  # estimated width of one, at font size 13
CSS = """
.chart { --ink: #1f2328; --soft: #59636e; --rule: #d1d9e0; --paper: #ffffff;
  --c0: #0062b1; --c1: #c04a00; --c2: #00765a; --c3: #a8327e; --c4: #7a6200; --c5: #5b5b5b; }
@media (prefers-color-scheme: dark) { .chart { --ink: #e6edf3; --soft: #9aa4af; --rule: #3a424b; --paper: #14181d;
  --c0: #5fb4ee; --c1: #ff9a57; --c2: #3fcf9f; --c3: #ee94cc; --c4: #e0c435; --c5: #c4c4c4; } }
@media print { .chart { --ink: #000000; --soft: #404040; --rule: #c0c0c0; --paper: #ffffff;
  --c0: #0062b1; --c1: #c04a00; --c2: #00765a; --c3: #a8327e; --c4: #7a6200; --c5: #5b5b5b; } }
.chart text { font: 13px system-ui, sans-serif; fill: var(--soft); }
.chart .name { fill: var(--ink); }
.chart .head { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .data { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }
.chart .mean { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.chart .seed { fill: none; stroke-width: 1; stroke-opacity: 0.5; }
.chart .unfinished { stroke-dasharray: 2 3; }
.chart .band { stroke: none; fill-opacity: 0.16; }
.chart .mark { fill: var(--paper); stroke-width: 1.8; }
""" + "".join(
    f".chart .s{i} {{ stroke: var(--c{i}); }} .chart .f{i} {{ fill: var(--c{i}); }}\n" for i in range(STYLES)
)


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Pixels of ``values``, same shape."""
        low, high, x = (
            np.log10(v) if self.log else np.asarray(v, float) for v in (self.low, self.high, values)
        )
        pixels: np.ndarray = self.start + (x - low) / (high - low) * (self.end - self.start)
        return pixels

    def at(self, value: float) -> float:
        """The pixel of one value."""
        return float(self(np.array(value)))


@dataclass(frozen=True, eq=False)
class Series:
    """What a chart shows of one group."""

    label: str
    style: int
    mean: Curve | None
    seeds: Sequence[tuple[str, Curve, bool]] = ()  # name, curve, finished


@dataclass(frozen=True)
class Frame:
    """Size of a chart and of its margins, in pixels of its own coordinates."""

    width: int = 560
    height: int = 330
    left: int = 62
    right: int = 16
    bottom: int = 44
    ticks: int = 5
    legend: bool = True


SMALL = Frame(width=300, height=190, left=56, right=12, bottom=26, ticks=4, legend=False)


@dataclass(frozen=True, eq=False)
class Chart:
    """A line chart over training steps."""

    title: str
    y_label: str
    series: Sequence[Series]
    level: float | None = None  # the mean return of the data, as a dashed line
    frame: Frame = field(default_factory=Frame)
    log: bool = False

    def svg(self, identifier: str) -> str:
        """The chart as an ``<svg>`` element whose ids begin with ``identifier``."""
        frame = self.frame
        legend = _Legend(self.series, self.level, frame) if frame.legend else None
        top = 30 + (legend.height if legend else 0)
        curves = [c for s in self.series for c in (s.mean, *(c for _, c, _ in s.seeds)) if c is not None]
        x = x_scale(curves, frame)
        y = y_scale(curves, self.level, self.log, frame.height - frame.bottom, top)
        parts = [_axes(x, y, frame, self.y_label)]
        if self.level is not None:
            at = y.at(self.level)
            parts.append(
                f'<line class="data" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{at:.1f}" y2="{at:.1f}">'
                f"<title>mean of the data: {number(self.level)}</title></line>"
            )
        parts += [_series(s, x, y) for s in self.series]
        if legend:
            parts.append(legend.svg(y=36))
        described = "; ".join(_described(s) for s in self.series)
        return (
            f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" width="{frame.width}" '
            f'height="{frame.height}" role="img" aria-labelledby="{identifier}-t {identifier}-d" '
            f'xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{identifier}-t">{escape(self.title)}</title>'
            f'<desc id="{identifier}-d">{escape(described)}</desc>'
            f'<text class="head" x="{frame.left}" y="16">{escape(self.title)}</text>{"".join(parts)}</svg>'
        )


def x_scale(curves: Sequence[Curve], frame: Frame) -> Scale:
    """Steps from 0 to the last one."""
    end = max((int(curve.steps[-1]) for curve in curves), default=1)
    return Scale(0.0, float(max(end, 1)), frame.left, frame.width - frame.right)


def y_scale(curves: Sequence[Curve], level: float | None, log: bool, bottom: float, top: float) -> Scale:
    """A range of round numbers around all values, intervals and the level."""
    arrays = [a for c in curves for a in (c.values, c.low, c.high) if a is not None]
    values = np.concatenate([*arrays, [] if level is None else [level]])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log:
        return Scale(low / 1.2, high * 1.2, bottom, top, log=True)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - pad, high + pad, bottom, top)


def ticks(scale: Scale, count: int) -> list[float]:
    """About ``count`` round numbers inside a scale: multiples of 1, 2 or 5 times a power of ten, or decades."""
    if scale.log:
        first, last = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
        every = max(1, math.ceil((last - first + 1) / count))
        return [10.0**power for power in range(first, last + 1, every)]
    raw = (scale.high - scale.low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number for a reader: 4 significant digits, thousands as k and M."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{value:.4g}"


def wants_log(curves: Sequence[Curve]) -> bool:
    """Whether a metric is positive and spans so much that a linear axis would hide most of it."""
    values = np.concatenate([curve.values for curve in curves]) if curves else np.ones(1)
    return bool(values.min() > 0 and values.max() >= LOG_RANGE * values.min())


def thinned(curve: Curve, points: int = MAX_POINTS) -> Curve:
    """A long curve as the means of ``points`` bins of neighbouring rows, each at its last step."""
    n = len(curve.steps)
    if n <= points:
        return curve
    starts = np.linspace(0, n, points, endpoint=False).astype(np.int64)
    sizes = np.diff(starts, append=n)
    return Curve(curve.steps[starts + sizes - 1], np.add.reduceat(curve.values, starts) / sizes)


def learning_curves(task: Task, frame: Frame | None = None) -> Chart:
    """Evaluations of every group of a task: a thin line a seed, the mean and its interval."""
    series = [
        Series(
            group.label,
            style,
            group.curve,
            [
                (f"{group.label}, {_seed(run)}", group.run_curve(run), run.finished)
                for run in group.runs
                if run.evaluations
            ],
        )
        for style, group in enumerate(task.groups)
    ]
    return Chart(task.name, task.unit, series, task.data_level, frame or Frame())


def metric_chart(task: Task, name: str) -> Chart | None:
    """One training metric of every group of a task that reports it, small; None if none does."""
    series = []
    for style, group in enumerate(task.groups):
        curves = [(run, group.metric_curve(run, name)) for run in group.runs]
        seeds = [(f"{group.label}, {_seed(r)}", thinned(c), r.finished) for r, c in curves if c is not None]
        if seeds:
            series.append(Series(group.label, style, None, seeds))
    drawn = [curve for s in series for _, curve, _ in s.seeds]
    return Chart(name, "", series, frame=SMALL, log=wants_log(drawn)) if drawn else None


def interval_chart(
    rows: Sequence[tuple[str, int, float, float, float]], level: float | None, title: str
) -> str:
    """Intervals one below the other: rows of (label, style, low, middle, high) and a dashed level, as ``<svg>``."""
    left = 20 + CHARACTER * max(len(label) for label, *_ in rows)
    width, height = left + 380, 34 + 24 * len(rows)
    values = [v for _, _, *bounds in rows for v in bounds] + ([] if level is None else [level])
    x = y_scale([Curve(np.arange(len(values)), np.array(values))], None, False, left + 8, width - 20)
    bottom = height - 26
    parts = [
        f'<line class="grid" x1="{x.at(t):.1f}" x2="{x.at(t):.1f}" y1="4" y2="{bottom}"/>'
        f'<text x="{x.at(t):.1f}" y="{bottom + 18}" text-anchor="middle">{number(t)}</text>'
        for t in ticks(x, 5)
    ]
    if level is not None:
        parts.append(
            f'<line class="data" x1="{x.at(level):.1f}" x2="{x.at(level):.1f}" y1="4" y2="{bottom}">'
            f"<title>mean of the data: {number(level)}</title></line>"
        )
    for i, (label, style, low, middle, high) in enumerate(rows):
        y = 18 + 24 * i
        parts.append(
            f'<text class="name" x="{left}" y="{y + 4}" text-anchor="end">{escape(label)}</text>'
            f'<line class="mean s{style % STYLES}" x1="{x.at(low):.1f}" x2="{x.at(high):.1f}" y1="{y}" y2="{y}"/>'
            + _marker(style, x.at(middle), y, f"{label}: {number(middle)} ({number(low)} .. {number(high)})")
        )
    return (
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def save_curves(records: Sequence[RunRecord], path: Path | str) -> None:
    """Write the learning curves of runs, one chart a task, as one standalone SVG file."""
    charts = [learning_curves(task) for task in group_runs(records)]
    width, height = Frame().width, Frame().height
    note = (
        "thin: one seed each; thick: their mean; band: its 95 % bootstrap interval; dashed: mean of the data"
    )
    inner = "".join(
        f'<g transform="translate(0 {10 + i * (height + 10)})">{chart.svg(f"c{i}")}</g>'
        for i, chart in enumerate(charts)
    )
    total = 10 + len(charts) * (height + 10) + 24
    atomic_write_text(
        path,
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" '
        f'height="{total}"><style>{CSS}</style><rect width="100%" height="100%" style="fill: var(--paper)"/>{inner}'
        f'<text x="{Frame().left}" y="{total - 12}" style="font-size: 10.5px">{note}</text></svg>\n',
    )


def swatch(style: int) -> str:
    """A short sample of a group's line, for tables."""
    return (
        '<svg class="chart swatch" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">'
        f'<line class="mean s{style % STYLES}" x1="1" x2="33" y1="7" y2="7"{_dash(style)}/>{_marker(style, 17, 7)}</svg>'
    )


class _Legend:
    """Samples and names above the plot, wrapped into rows."""

    def __init__(self, series: Sequence[Series], level: float | None, frame: Frame) -> None:
        self.entries: list[tuple[float, int, str, int | None]] = []  # x, row, label, style
        names: list[tuple[str, int | None]] = [(s.label, s.style) for s in series]
        names += [] if level is None else [("mean of the data", None)]
        room = frame.width - frame.left - frame.right
        x, row = float(frame.left), 0
        for name, style in names:
            name = name if len(name) * CHARACTER < room - 60 else name[: int(room / CHARACTER) - 12] + " ..."
            needed = 56 + len(name) * CHARACTER
            if x > frame.left and x + needed > frame.width:
                x, row = float(frame.left), row + 1
            self.entries.append((x, row, name, style))
            x += needed
        self.height = 20 * (row + 1)

    def svg(self, y: float) -> str:
        """The entries, the first row centered on ``y``."""
        parts = []
        for x, row, name, style in self.entries:
            at = y + 20 * row
            ends = f'x1="{x:.1f}" x2="{x + 32:.1f}" y1="{at}" y2="{at}"'
            if style is None:
                parts.append(f'<line class="data" {ends}/>')
            else:
                parts.append(
                    f'<line class="mean s{style % STYLES}" {ends}{_dash(style)}/>'
                    + _marker(style, x + 16, at)
                )
            parts.append(f'<text class="name" x="{x + 38:.1f}" y="{at + 4}">{escape(name)}</text>')
        return "".join(parts)


def _axes(x: Scale, y: Scale, frame: Frame, y_label: str) -> str:
    bottom, top = y.start, y.end
    parts = []
    for value in ticks(y, frame.ticks):
        at = y.at(value)
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="y" x="{x.start - 8}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(x, frame.ticks):
        parts.append(
            f'<text class="x" x="{x.at(value):.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{number(value)}</text>'
        )
    parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{bottom}" y2="{bottom}"/>')
    if y_label:
        middle = (bottom + top) / 2
        parts.append(
            f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
            f'<text x="{(x.start + x.end) / 2:.1f}" y="{bottom + 36:.1f}" text-anchor="middle">gradient updates</text>'
        )
    return "".join(parts)


def _series(series: Series, x: Scale, y: Scale) -> str:
    parts, color = [], series.style % STYLES
    mean = series.mean
    if mean is not None and mean.low is not None and mean.high is not None and len(mean.steps) > 1:
        there, back = _points(x, y, mean.steps, mean.high), _points(x, y, mean.steps[::-1], mean.low[::-1])
        parts.append(f'<polygon class="band f{color}" points="{there} {back}"/>')
    for name, curve, finished in series.seeds:
        kind = "seed" if finished else "seed unfinished"
        title = escape(name if finished else f"{name}, unfinished")
        if len(curve.steps) > 1:
            points = _points(x, y, curve.steps, curve.values)
            parts.append(
                f'<polyline class="{kind} s{color}" points="{points}"><title>{title}</title></polyline>'
            )
        else:
            at_x, at_y = x.at(float(curve.steps[0])), y.at(float(curve.values[0]))
            parts.append(
                f'<circle class="seed s{color}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="2"><title>{title}</title></circle>'
            )
    if mean is not None:
        points = _points(x, y, mean.steps, mean.values)
        parts.append(f'<polyline class="mean s{color}" points="{points}"{_dash(series.style)}/>')
        every = math.ceil(len(mean.steps) / MARKERS)
        for i in range(len(mean.steps) - 1, -1, -every):
            parts.append(
                _marker(
                    series.style,
                    x.at(mean.steps[i]),
                    y.at(mean.values[i]),
                    f"{series.label}, {_point(mean, i)}",
                )
            )
    return "".join(parts)


def _points(x: Scale, y: Scale, steps: np.ndarray, values: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(values), strict=True))


def _point(curve: Curve, i: int) -> str:
    text = f"step {curve.steps[i]}: {number(float(curve.values[i]))}"
    if curve.low is not None and curve.high is not None:
        text += f" ({number(float(curve.low[i]))} .. {number(float(curve.high[i]))})"
    return text


def _described(series: Series) -> str:
    if series.mean is None:
        return f"{series.label}: {len(series.seeds)} runs"
    return f"{series.label}: {_point(series.mean, len(series.mean.steps) - 1)}"


def _seed(run: RunRecord) -> str:
    return f"seed {run.seed}"


def _dash(style: int) -> str:
    dash = DASHES[style % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _marker(style: int, x: float, y: float, title: str = "") -> str:
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"',
        f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6"',
        f'<path d="M{x:.1f} {y - 4.4:.1f}l4.4 7.8h-8.8z"',
        f'<path d="M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z"',
        f'<path d="M{x:.1f} {y + 4.4:.1f}l4.4 -7.8h-8.8z"',
        f'<path d="M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2"',
    )
    inner = f"<title>{escape(title)}</title>" if title else ""
    shape = shapes[style % STYLES]
    return f'{shape} class="mark s{style % STYLES}">{inner}</{shape[1:].split()[0]}>'
