"""SVG drawings of views and costs: a path, the split of cost, orders by state, the network with its flows."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from offrl.evaluation.charts import CHARACTER, Chart, Frame, Series, svg_element
from offrl.evaluation.groups import Curve
from offrl.evaluation.svg import Scale, number, swatch, tag, ticks

View = Mapping[str, Any]
PARTS = ("holding", "underage", "ordering")
NODES = 8  # nodes whose paths are drawn: upstream ones first
NODE_FRAME = Frame(width=300, height=180, left=46, right=10, bottom=26, ticks=4, markers=1, full=False)
CSS = """
.chart .cell { stroke: none; }
figure > .natural { width: auto; max-width: 100%; }
.chart .lane { fill: none; stroke-opacity: 0.55; }
.chart .node { fill: var(--paper); stroke: var(--ink); stroke-width: 1.4; }
"""


def path_charts(view: View, identifier: str) -> str:
    """On hand, orders placed and demand of one scenario, a small chart a node."""
    charts = []
    for n, node in enumerate(view["nodes"][:NODES]):
        lines = {"on hand": (0, view["on_hand"][n]), "ordered": (1, _ordered(view, n))}
        s = n - (len(view["nodes"]) - len(view["demand"]))
        if s >= 0:
            lines["demand"] = (2, view["demand"][s])
        series = [
            Series(label, style, Curve(np.arange(len(values)), np.array(values)))
            for label, (style, values) in lines.items()
        ]
        charts.append(Chart(node["name"], "", series, frame=NODE_FRAME).svg(f"{identifier}-{n}"))
    names = ("on hand", "ordered", "demand")
    legend = "".join(
        tag("span", f"{swatch(style)} {name}", class_="method") for style, name in enumerate(names)
    )
    left = len(view["nodes"]) - NODES
    note = f" {left} more nodes are not drawn." if left > 0 else ""
    text = f"Units by period, one demand path, from period {view['first']} on.{note}"
    return tag("p", legend) + tag("div", *charts, class_="multiples") + tag("p", escape(text), class_="notes")


def _ordered(view: View, node: int) -> list[float]:
    name = view["nodes"][node]["name"]
    into = [o for edge, o in zip(view["edges"], view["orders"], strict=True) if edge["target"] == name]
    return [sum(values) for values in zip(*into, strict=True)]


def split_chart(rows: Sequence[tuple[str, Mapping[str, float]]], title: str) -> str:
    """Cost by part, a bar a row: costs to the right of zero, what is earned to the left."""
    left = 20 + CHARACTER * max(len(label) for label, _ in rows)
    width, top, bottom = int(left) + 420, 26, 34 + 26 * len(rows)
    low = min(sum(min(v, 0.0) for v in parts.values()) for _, parts in rows)
    high = max(sum(max(v, 0.0) for v in parts.values()) for _, parts in rows)
    x = Scale(low, max(high, low + 1e-9), left + 8, width - 20.0)
    content = []
    for value in ticks(x, 5):
        at = x.at(value)
        content.append(tag("line", class_="grid", x1=at, x2=at, y1=top, y2=bottom))
        content.append(tag("text", number(value), x=at, y=bottom + 18, text_anchor="middle"))
    for style, part in enumerate(PARTS):
        at = left + 8 + 96 * style
        content.append(
            tag("rect", class_=f"cell f{style}", x=at, y=8, width=12, height=12, fill_opacity="0.8")
        )
        content.append(tag("text", part, class_="name", x=at + 18, y=18))
    for i, (label, parts) in enumerate(rows):
        y, ends = top + 12.0 + 26 * i, [0.0, 0.0]
        content.append(tag("text", escape(label), class_="name", x=left, y=y + 12, text_anchor="end"))
        for style, part in enumerate(PARTS):
            value = parts[part]
            side = int(value < 0)
            a, b = sorted((x.at(ends[side]), x.at(ends[side] + value)))
            ends[side] += value
            told = tag("title", escape(f"{label}, {part}: {number(value)}"))
            look = {"class_": f"cell f{style}", "fill_opacity": "0.8"}
            content.append(tag("rect", told, x=a, y=y, width=b - a, height=16, **look))
    return svg_element(width, bottom + 26, *content, class_="chart intervals", role="img", aria_label=title)


def order_map(found: Mapping[str, Any], identifier: str) -> str:
    """Orders by state: the policy's, the optimal ones, and their difference; lines where only stock on hand counts."""
    if len(found["next"]) == 1:
        steps = np.array(found["on_hand"])
        pairs = (("policy", found["policy"][0]), ("optimal", found["optimal"][0]))
        series = [Series(name, k, Curve(steps, np.array(v))) for k, (name, v) in enumerate(pairs)]
        chart = Chart("Order by stock on hand", "units", series, axis="units on hand", point="on hand")
        return chart.svg(identifier)
    ours, best = np.array(found["policy"]), np.array(found["optimal"])
    side, top = 11, 30
    pitch = side * len(found["on_hand"]) + 56
    most = max(float(ours.max()), float(best.max()), 1.0)
    panels = (("policy", ours, most), ("optimal", best, most), ("policy - optimal", ours - best, 0.0))
    content = []
    for k, (name, values, scale) in enumerate(panels):
        content.append(_panel(values, scale, found, 40 + k * pitch, top, side, name))
    height = top + side * len(found["next"]) + 66
    content.append(_shades(most, 40, height - 12))
    title = "Order by units on hand and units that arrive next period"
    return svg_element(40 + 3 * pitch, height, *content, class_="chart natural", role="img", aria_label=title)


def _panel(
    values: np.ndarray, most: float, found: Mapping[str, Any], left: int, top: int, side: int, name: str
) -> str:
    """One map; all cells of a value are one path. ``most`` 0: differences, above in one color, below in another."""
    rows, columns = values.shape
    low = top + side * rows
    content = [tag("text", escape(name), class_="head", x=left, y=top - 10)]
    for value in np.unique(values.round()):
        places = np.argwhere(values.round() == value)
        strength = min(abs(value) / (most or 3.0), 1.0)
        if strength == 0:
            continue
        d = "".join(f"M{left + side * c} {low - side * (r + 1)}h{side}v{side}h-{side}z" for r, c in places)
        look = f"cell f{1 if value < 0 else 0}"
        content.append(
            tag("path", tag("title", f"{value:g}"), class_=look, d=d, fill_opacity=f"{strength:.2f}")
        )
    content.append(
        tag("rect", x=left, y=top, width=side * columns, height=side * rows, fill="none", class_="grid")
    )
    for c in range(0, columns, 5):
        text = str(found["on_hand"][c])
        content.append(tag("text", text, x=left + side * (c + 0.5), y=low + 16, text_anchor="middle"))
    for r in range(0, rows, 5):
        text = str(found["next"][r])
        content.append(tag("text", text, x=left - 6, y=low - side * (r + 0.5) + 4, text_anchor="end"))
    content.append(tag("text", "on hand", x=left + side * columns / 2, y=low + 32, text_anchor="middle"))
    return tag("g", *content)


def _shades(most: float, left: float, y: float) -> str:
    """The key of the colors."""
    parts = [tag("text", "up: arrives next; order 0", x=left, y=y)]
    at = left + 26 * CHARACTER
    for k in range(1, 7):
        parts.append(
            tag("rect", class_="cell f0", x=at, y=y - 10, width=12, height=12, fill_opacity=f"{k / 6:.2f}")
        )
        at += 12
    parts.append(tag("text", f"{most:g}", x=at + 6, y=y))
    parts.append(tag("rect", class_="cell f1", x=at + 46, y=y - 10, width=12, height=12, fill_opacity="0.67"))
    parts.append(tag("text", "fewer than optimal", x=at + 64, y=y))
    return "".join(parts)


def network_chart(view: View) -> str:
    """Nodes by level, from the supplier to the customers; the width of a lane is its mean flow."""
    levels = _levels(view)
    last = max(levels.values()) + 1
    columns: dict[int, list[str]] = {}
    for name, level in levels.items():
        columns.setdefault(level, []).append(name)
    pitch = 34 if max(map(len, columns.values())) <= 12 else 20
    height = pitch * max(max(map(len, columns.values())), 3) + 30
    wide = max(150.0, 40 + CHARACTER * max(map(len, levels)))
    place = {
        name: (40 + wide * level, 20 + height * (i + 0.5) / len(column))
        for level, column in columns.items()
        for i, name in enumerate(column)
    }
    most = max([*view["flows"], *view["demands"], 1e-9])
    lanes, nodes = [], []
    for edge, flow in zip(view["edges"], view["flows"], strict=True):
        lanes.append(_lane(place[edge["source"]], place[edge["target"]], flow, most, edge, 0))
    stores = view["nodes"][len(view["nodes"]) - len(view["demands"]) :]
    for node, flow in zip(stores, view["demands"], strict=True):
        x, y = place[node["name"]]
        ends = {"source": node["name"], "target": "customers"}
        lanes.append(_lane((x, y), (40 + wide * last, y), flow, most, ends, 2))
        nodes.append(tag("text", number(flow), class_="note", x=46 + wide * last, y=y + 4))
    for name, (x, y) in place.items():
        nodes.append(tag("circle", tag("title", escape(name)), class_="node", cx=x, cy=y, r=6))
        nodes.append(tag("text", escape(name), class_="name", x=x, y=y - 10, text_anchor="middle"))
    title = "The network: the width of a lane is its mean flow"
    return svg_element(
        int(100 + wide * last),
        height + 40,
        *lanes,
        *nodes,
        class_="chart natural",
        role="img",
        aria_label=title,
    )


def _levels(view: View) -> dict[str, int]:
    """Longest way from a supplier, by name; suppliers are at 0."""
    names = {node["name"] for node in view["nodes"]}
    levels = {edge["source"]: 0 for edge in view["edges"] if edge["source"] not in names}
    levels |= {node["name"]: 1 for node in view["nodes"]}
    for _ in view["nodes"]:
        for edge in view["edges"]:
            levels[edge["target"]] = max(levels[edge["target"]], levels[edge["source"]] + 1)
    return levels


def _lane(
    a: tuple[float, float],
    b: tuple[float, float],
    flow: float,
    most: float,
    ends: Mapping[str, str],
    style: int,
) -> str:
    middle = (a[0] + b[0]) / 2
    d = f"M{a[0]:.1f} {a[1]:.1f}C{middle:.1f} {a[1]:.1f} {middle:.1f} {b[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
    told = tag("title", escape(f"{ends['source']} to {ends['target']}: {number(flow)} a period"))
    width = f"{0.6 + 9 * max(flow, 0.0) / most:.2f}"
    return tag("path", told, class_=f"lane s{style}", d=d, stroke_width=width)


def lines_chart(
    title: str,
    unit: str,
    axis: str,
    point: str,
    lines: Mapping[str, Sequence[tuple[int, Sequence[float]]]],
    identifier: str,
) -> str:
    """A line a name over a logarithmic count; at each count one value a seed, the line through their means."""
    series = []
    for style, (name, values) in enumerate(lines.items()):
        steps = np.array([count for count, _ in values])
        known = [np.array(v, dtype=np.float64) for _, v in values]
        low, mean, high = (np.array([f(v) for v in known]) for f in (np.min, np.mean, np.max))
        series.append(Series(name, style, Curve(steps, mean, low, high)))
    every = np.array([value for values in lines.values() for _, seeds in values for value in seeds])
    log = bool(every.min() > 0 and every.max() > 20 * every.min())
    chart = Chart(title, unit, series, log=log, axis=axis, log_steps=True, point=point)
    return chart.svg(identifier)
