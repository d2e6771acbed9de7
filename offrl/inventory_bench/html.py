"""The HTML page: the tables, and drawings of every policy that was measured; nothing is loaded."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from offrl import __version__
from offrl.envs.inventory.policies import InventoryPolicy
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.reference import Gap, shown, standard_error
from offrl.evaluation.markup import table
from offrl.evaluation.report import document, section
from offrl.evaluation.svg import tag
from offrl.files import atomic_write_text
from offrl.inventory_bench.drawings import (
    CSS,
    View,
    lines_chart,
    network_chart,
    order_map,
    path_charts,
    split_chart,
)
from offrl.inventory_bench.tables import Raw, Table, sample_lines
from offrl.inventory_bench.views import view_of
from offrl.training.inventory import Rounding


def page(shown: Sequence[Table], found: Raw, views: Mapping[str, View], intro: Sequence[str]) -> str:
    """The whole page."""
    head = tag(
        "header", tag("h1", "Inventory policies"), *(tag("p", escape(text)) for text in _paragraphs(intro))
    )
    figures = {"Sample efficiency": sample_charts(found), "Size transfer": transfer_charts(found)}
    parts = [section(t.title, _table(t) + "".join(map(_figure, figures.get(t.title, [])))) for t in shown]
    body = [
        head,
        *parts,
        section("Where the money goes", _splits(views)),
        section("Policies", policies(views)),
    ]
    return document("Inventory policies", *body, css=CSS)


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Markdown lines as running text."""
    return [
        part.replace("`", "") for part in " ".join(line or "\n" for line in lines).split("\n") if part.strip()
    ]


def single(view: View, facts: Sequence[tuple[str, str]]) -> str:
    """The page of one policy."""
    title = f"{view['policy']} on {_setting(view)}"
    head = tag("header", tag("h1", escape(title)), tag("p", f"Written by offrl {__version__}."))
    rows = [[escape(name), escape(value)] for name, value in facts]
    split = split_chart([(view["policy"], view["costs"])], "Cost by part")
    parts = [
        section("Cost", table(("", ""), rows)),
        section("Where the money goes", _figure(split)),
        section("Policy", _view(view, "v0")),
    ]
    return document(title, head, *parts, css=CSS)


def write_single(
    path: Path,
    policy: InventoryPolicy,
    setting: AnySetting,
    costs: Tensor,
    gap: Gap | None,
    rounding: Rounding,
) -> None:
    """Write the page of one policy, with its test costs, (n,), and its gap where one is known."""
    error = shown(standard_error(costs))
    facts = [("cost per store and period", f"{float(costs.mean()):.4f}")]
    facts += [("standard error", f"{error}, over {len(costs)} scenarios")]
    if gap is not None:
        facts += [(gap.reference.name, f"{gap.reference.cost:.4f}")]
        facts += [("gap", f"{100 * gap.gap:+.3f} % +- {shown(gap.standard_error, 3, 100)} %")]
    if not policy.admissible:
        facts += [("an oracle", "no policy that sees the past alone can do this")]
    atomic_write_text(path, single(view_of(policy, setting, gap.reference if gap else None, rounding), facts))


def policies(views: Mapping[str, View]) -> str:
    """Drawings of every policy, folded; the first is open."""
    parts = []
    for i, (name, view) in enumerate(views.items()):
        summary = tag("summary", escape(f"{name}: {view['policy']} on {_setting(view)}"))
        parts.append(tag("details", summary, _view(view, f"v{i}"), **({"open": ""} if i == 0 else {})))
    return "".join(parts)


def sample_charts(found: Raw) -> list[str]:
    """Excess cost by number of training paths, a chart a setting."""
    unit = {"unit": "excess cost, %", "axis": "training paths", "point": "paths"}
    return [
        lines_chart(setting, lines=policies, identifier=f"n{i}", **unit)
        for i, (setting, policies) in enumerate(sample_lines(found).items())
    ]


def transfer_charts(found: Raw) -> list[str]:
    """Gap by number of stores."""
    charts = []
    for i, (name, r) in enumerate((n, r) for n, r in found.items() if n.startswith("transfer-")):
        line = [(size["stores"], [100 * size["gap"]]) for size in r["sizes"]]
        title = f"{r['cell']['run']['setting']}, trained on {r['cell']['run']['vary']['stores']:g} stores"
        lines = {name.removeprefix("transfer-"): line}
        charts.append(lines_chart(title, "gap to the bound, %", "stores", "stores", lines, f"s{i}"))
    return charts


def _splits(views: Mapping[str, View]) -> str:
    """Cost by part of every policy and case, a chart a setting."""
    groups: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for view in views.values():
        row = f"{view['policy']} {_options(view)}".strip()
        groups.setdefault(view["setting"], []).append((row, view["costs"]))
    caption = "cost per store and period; in profit settings underage is minus the margin on sales"
    return "".join(
        tag("h3", escape(setting)) + _figure(split_chart(rows, f"Cost by part, {setting}"), caption)
        for setting, rows in groups.items()
    )


def _view(view: View, identifier: str) -> str:
    parts = [tag("h4", "One demand path"), path_charts(view, identifier)]
    if found := view["map"]:
        later = ", ".join(f"{value:g}" for value in found["later"])
        held = f"; what arrives after that is held at {later}" if later else ""
        caption = f"orders equal the optimal ones in {100 * found['equal']:.1f} % of the states visited{held}"
        parts += [tag("h4", "Orders by state"), _figure(order_map(found, f"{identifier}-m"), caption)]
    parts += [tag("h4", "Flows"), _figure(network_chart(view), "width: mean units a period"), _kpis(view)]
    return "".join(parts)


def _kpis(view: View) -> str:
    head, *rows = view["table"]
    return tag("h4", "Service and stock") + table(head, [[escape(cell) for cell in row] for row in rows])


def _table(shown: Table) -> str:
    parts = [tag("p", escape(shown.text), class_="notes")] if shown.text else []
    rows = [[escape(cell) for cell in row] for row in shown.rows]
    parts.append(table(shown.head, rows) if rows else tag("p", "Not measured yet."))
    return "".join([*parts, *([tag("p", escape(shown.verdict))] if shown.verdict else [])])


def _figure(svg: str, caption: str = "") -> str:
    return tag("figure", svg, *([tag("figcaption", escape(caption))] if caption else []))


def _setting(view: Mapping[str, Any]) -> str:
    return f"{view['setting']} {_options(view)}".strip()


def _options(view: View) -> str:
    return " ".join(f"{key}={value:g}" for key, value in view["options"].items())
