"""Pieces of charts: elements, scales, ticks, and the look of a group (color, dash pattern and marker).

Colors are CSS custom properties, so that a chart follows the reader's light or dark scheme, in a page and as
a file of its own.
"""

import math
from dataclasses import dataclass
from html import escape

import numpy as np

STYLES = 6  # colors and markers; with four dash patterns twelve groups look different
DASHES = ("", "9 4", "2 3", "12 3 2 3")
LIGHT = (
    "--ink: #1f2328; --soft: #59636e; --rule: #d1d9e0; --paper: #ffffff; "
    "--c0: #0062b1; --c1: #c04a00; --c2: #00765a; --c3: #a8327e; --c4: #7a6200; --c5: #5b5b5b;"
)
DARK = (
    "--ink: #e6edf3; --soft: #9aa4af; --rule: #3a424b; --paper: #14181d; "
    "--c0: #5fb4ee; --c1: #ff9a57; --c2: #3fcf9f; --c3: #ee94cc; --c4: #e0c435; --c5: #c4c4c4;"
)
CSS = f"""
:root {{ {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
.chart text {{ font: 13px system-ui, sans-serif; fill: var(--soft); }}
.chart .name {{ fill: var(--ink); }}
.chart .head {{ fill: var(--ink); font-weight: 600; }}
.chart .note {{ font-size: 10.5px; }}
.chart .paper {{ fill: var(--paper); }}
.chart .grid {{ stroke: var(--rule); stroke-width: 1; }}
.chart .data {{ stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }}
.chart .mean {{ fill: none; stroke-width: 2.2; stroke-linejoin: round; }}
.chart .seed {{ fill: none; stroke-width: 1; stroke-opacity: 0.5; }}
.chart .unfinished {{ stroke-dasharray: 2 3; }}
.chart .band {{ stroke: none; fill-opacity: 0.16; }}
.chart .mark {{ fill: var(--paper); stroke-width: 1.8; }}
"""
CSS += "".join(
    f".chart .s{i} {{ stroke: var(--c{i}); }}\n.chart .f{i} {{ fill: var(--c{i}); }}\n" for i in range(STYLES)
)


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element. ``content`` is markup; attribute values are escaped; floats get one decimal; None is left.

    ``class_`` is the attribute class; other underscores become hyphens.
    """
    parts = []
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.1f}" if isinstance(value, float | np.floating) else str(value)
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{name}{''.join(parts)}>{''.join(content)}</{name}>"


def number(value: float) -> str:
    """A number for a reader: 4 significant digits, from ten thousand on as k and M."""
    for unit, at_least, size in (("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if abs(value) >= at_least:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values ``low .. high`` to pixels ``start .. end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Pixels of ``values``, same shape."""
        low, high, x = (np.log10(v) if self.log else np.asarray(v) for v in (self.low, self.high, values))
        pixels: np.ndarray = self.start + (x - low) / (high - low) * (self.end - self.start)
        return pixels

    def at(self, value: float) -> float:
        """The pixel of one value."""
        return float(self(np.array(value)))


def ticks(scale: Scale, count: int) -> list[float]:
    """About ``count`` round numbers inside a scale: multiples of 1, 2 or 5 x 10^n, or decades."""
    if scale.log:
        first, last = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
        every = max(1, math.ceil((last - first + 1) / count))
        return [10.0**power for power in range(first, last + 1, every)]
    raw = (scale.high - scale.low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= 0.8 * raw)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def points(x: Scale, y: Scale, steps: np.ndarray, values: np.ndarray) -> str:
    """The ``points`` attribute of a line."""
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(values), strict=True))


def dash(style: int) -> str | None:
    """Dash pattern of a group, None for a solid line."""
    return DASHES[style % len(DASHES)] or None


def marker(style: int, x: float, y: float, title: str = "") -> str:
    """Marker of a group around (x, y), with a tooltip."""
    corners = (  # triangle up, diamond, triangle down, cross
        f"M{x:.1f} {y - 4.4:.1f}l4.4 7.8h-8.8z",
        f"M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z",
        f"M{x:.1f} {y + 4.4:.1f}l4.4 -7.8h-8.8z",
        f"M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2",
    )
    inner = tag("title", escape(title)) if title else ""
    kind, look = style % STYLES, f"mark s{style % STYLES}"
    if kind == 0:
        return tag("circle", inner, class_=look, cx=x, cy=y, r=3.6)
    if kind == 1:
        return tag("rect", inner, class_=look, x=x - 3.3, y=y - 3.3, width=6.6, height=6.6)
    return tag("path", inner, class_=look, d=corners[kind - 2])


def sample(style: int | None, x: float, y: float) -> str:
    """A piece of a group's line with its marker, 32 wide; None: the line of the data."""
    if style is None:
        return tag("line", class_="data", x1=x, x2=x + 32, y1=y, y2=y)
    line = tag(
        "line", class_=f"mean s{style % STYLES}", x1=x, x2=x + 32, y1=y, y2=y, stroke_dasharray=dash(style)
    )
    return line + marker(style, x + 16, y)


def swatch(style: int | None) -> str:
    """``sample`` as an element of its own, for tables."""
    return tag("svg", sample(style, 1.0, 7.0), class_="chart swatch", viewBox="0 0 34 14", aria_hidden="true")
