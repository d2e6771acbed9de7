"""Pictures of a company and its demand, as PNG or SVG files by matplotlib."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from offrl.envs.inventory.work.company import Company

INK, BLUE, ORANGE, GREY = "#22303c", "#2a6f97", "#c8553d", "#9aa5b1"


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure without a screen, and its axes."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=110)
    return made, made.subplots(rows, columns, squeeze=False)


def save(made: Any, path: str | Path) -> Path:
    """Write it; the suffix says how."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    return path


def draw_frontier(rows: Sequence[tuple[Any, ...]], title: str, currency: str, path: str | Path) -> Path:
    """Money for stock and orders against the fill rate, a line a policy; rows of name, factor, fill rate, money."""
    made, axes = figure(7, 4.5)
    axis, names = axes[0, 0], list(dict.fromkeys(row[0] for row in rows))
    for name, color in zip(names, itertools.cycle((ORANGE, BLUE, INK, GREY)), strict=False):
        points = sorted((row[2], row[3], row[1]) for row in rows if row[0] == name)
        fills, costs, factors = zip(*points, strict=True)
        axis.plot(fills, costs, color=color, marker="o", ms=4, lw=1.5, label=name)
        if 1.0 in factors:
            k = factors.index(1.0)
            axis.scatter(fills[k], costs[k], s=90, facecolor="none", edgecolor=color, zorder=3)
    axis.set_xlabel("share of demand that is met at once")
    axis.set_ylabel(f"{currency} a year for stock and orders")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_title(
        f"{title}: what service costs (rings: levels and prices as they are)", fontsize=10, loc="left"
    )
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return save(made, path)


def draw_network(company: "Company", path: str | Path) -> Path:
    """Suppliers, warehouses and stores from left to right; lanes with lead times, stores with mean sales."""
    columns = [list(company.suppliers)]
    columns += [[name for name, kind in company.places if kind == k] for k in ("warehouse", "store")]
    most = max(map(len, columns))
    place: dict[str, tuple[float, float]] = {}
    for column, names in enumerate(columns):
        for k, name in enumerate(names):
            place[name] = (float(column), -(k + 0.5) * most / len(names))
    made, axes = figure(9, max(3.0, 0.42 * most + 1))
    axis = axes[0, 0]
    for lane in company.lanes:
        (x0, y0), (x1, y1) = place[lane.source], place[lane.target]
        axis.plot([x0, x1], [y0, y1], color=ORANGE if lane.ruled else BLUE, lw=1.2, alpha=0.6, zorder=1)
        axis.text(
            x0 + 0.72 * (x1 - x0), y0 + 0.72 * (y1 - y0), f"{lane.lead_time}", fontsize=8, color=INK, zorder=3,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
        )  # fmt: skip
    known = (~np.isnan(company.sales)).sum(2)
    sales = np.nansum(company.sales, 2) / np.maximum(known, 1)  # none where an item is not sold
    for s, store in enumerate(company.stores):
        x, y = place[store]
        axis.text(
            x + 0.06,
            y,
            f"{store}   {sales[:, s].sum():,.0f} units sold a {company.period}",
            va="center",
            fontsize=9,
        )
    for name, (x, y) in place.items():
        axis.scatter([x], [y], s=70, color="white", edgecolor=INK, zorder=2)
        if name not in company.stores:
            axis.text(x, y + 0.03 * most, name, ha="center", va="bottom", fontsize=9)
    axis.set_xlim(-0.3, 3.2)
    axis.set_axis_off()
    axis.set_title(
        f"{company.name}: lead times in {company.period}s; orange lanes have ordering rules",
        fontsize=10,
        loc="left",
    )
    return save(made, path)
