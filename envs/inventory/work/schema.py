"""The data dictionary: every sheet and column of a company's workbook, in one place.

The example, the sheet ``dictionary`` and every check read it here.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number", "whole", "date"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a sheet."""

    name: str
    about: str
    kind: Kind = "text"
    needed: bool = True
    low: float | None = None
    """Least number allowed."""
    above: float | None = None
    """Numbers must be larger than this."""
    most: float | None = None
    """Largest number allowed."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One sheet: a table with a row of names on top."""

    name: str
    about: str
    columns: tuple[Column, ...]
    needed: bool = True

    def column(self, name: str) -> Column:
        """By name."""
        return next(column for column in self.columns if column.name == name)


def _number(name: str, about: str, *, needed: bool = True, low: float | None = 0.0) -> Column:
    return Column(name=name, about=about, kind="number", needed=needed, low=low)


def _text(name: str, about: str, *choices: str, needed: bool = True) -> Column:
    return Column(name=name, about=about, needed=needed, choices=choices)


ABOUT = Sheet(
    name="about",
    about="What holds for the whole company: one row.",
    columns=(
        _text("company", "Name of the company or plan."),
        _text("period", "Length of a period; lead times, demand and costs are per this.", "day", "week"),
        _text("currency", "Of all money, such as EUR."),
        _text("unmet", "What happens to demand that stock cannot meet.", "lost", "waits"),
        Column(
            name="budget", kind="number", needed=False, above=0.0,
            about="Most money for goods from suppliers in a period and item; empty: no limit.",
        ),
        Column(
            name="shared_budget", kind="number", needed=False, above=0.0,
            about="Most money for goods from suppliers in a period, all items together; empty: no limit.",
        ),
    ),
)  # fmt: skip
NODES = Sheet(
    name="nodes",
    about="Places: suppliers (without limit), warehouses, stores.",
    columns=(
        _text("node", "Name, once."),
        _text("kind", "What it is; only stores meet customers.", "supplier", "warehouse", "store"),
    ),
)
LANES = Sheet(
    name="lanes",
    about="Who supplies whom, how fast, by which ordering rules. Empty rule: none.",
    columns=(
        _text("from", "Node that sends."),
        _text("to", "Node that orders and receives."),
        Column(
            name="lead_time", kind="whole", low=0, most=1000,
            about="Periods: an order placed before the demand of period t meets the demand of period t + lead_time.",
        ),
        _text("period", "Unit of lead_time, if stated: must be the period of the company.", needed=False),
        _number("cost", "Money per unit ordered.", needed=False),
        _number("fixed_cost", "Money per order of any size.", needed=False),
        _number("min_order", "Least units of an order that is placed.", needed=False),
        Column(name="pack_size", kind="number", needed=False, above=0.0, about="Orders are multiples of this."),
        Column(name="capacity", kind="number", needed=False, above=0.0, about="Most units in a period: a truck."),
        _text("order_days", "Days: 'Mon Thu'. Weeks: 'every 2' or 'every 2 from 1' (0 is the first).", needed=False),
        Column(
            name="shared_capacity", kind="number", needed=False, above=0.0,
            about="Most of size times units in a period, all items of the lane together: a truck.",
        ),
    ),
)  # fmt: skip
ITEMS = Sheet(
    name="items",
    about="What is sold.",
    columns=(
        _text("item", "Name or number, once."),
        _text("supplier", "The supplier node that carries it; empty: all do.", needed=False),
        _text("unit", "Unit of all its amounts: each, case, kg..."),
        _text("group", "Family, for tables.", needed=False),
        _number(
            "value", "Money that a unit in stock is worth, for the value of stock and ABC.", needed=False
        ),
        Column(
            name="size",
            kind="number",
            needed=False,
            above=0.0,
            about="Of a unit, for shared_capacity; empty: 1.",
        ),
    ),
)
COSTS = Sheet(
    name="costs",
    about="Money by item and node. '*' stands for all; the most exact row counts, item before node.",
    columns=(
        _text("item", "Item or *."),
        _text("node", "Warehouse or store, or *."),
        _number("holding_cost", "Per unit left at the end of a period."),
        _number("underage_cost", "Stores: per unit of demand not met at once (lost margin).", needed=False),
    ),
)
DEMAND = Sheet(
    name="demand",
    about="Sales by item, store and period; a period without a row is a gap, and stays unknown.",
    columns=(
        _text("item", "Item."),
        _text("node", "Store."),
        Column(name="date", kind="date", about="First day of the period, later in every row of an item and store."),
        _number("sales", "Units sold; negative: more came back than was sold.", low=None),
        _number("stock_left", "Units left at the end of the period; 0: perhaps more was wanted.", needed=False),
        _text("unit", "If stated, must be the item's.", needed=False),
    ),
)  # fmt: skip
STOCK = Sheet(
    name="stock",
    about="Today: what is on hand and under way, and the levels that are in use.",
    columns=(
        _text("item", "Item."),
        _text("node", "Warehouse or store."),
        _number("on_hand", "Units on hand."),
        _number("on_order", "Units under way to it.", needed=False),
        Column(name="due", kind="date", needed=False, about="When they arrive; needed with on_order."),
        _number("min", "Today's reorder point s: order at or below it.", needed=False),
        _number("max", "Today's level S: order up to it.", needed=False),
        _text("unit", "If stated, must be the item's.", needed=False),
    ),
)
RECEIPTS = Sheet(
    name="receipts",
    about="Deliveries as they came, one row each, for lead times that vary; without the sheet they do not.",
    needed=False,
    columns=(
        _text("from", "Node that sent."),
        _text("to", "Node that received."),
        _text("order", "Number of the order; several rows of one number are partial deliveries."),
        Column(name="ordered", kind="date", about="Day of the order."),
        Column(name="received", kind="date", about="Day of the delivery."),
        Column(name="quantity", kind="number", above=0.0, about="Units received."),
    ),
)
ORDERS = Sheet(
    name="orders",
    about="Orders as they were placed, for the back-test; not needed to plan.",
    needed=False,
    columns=(
        _text("item", "Item."),
        _text("from", "Node that was asked."),
        _text("to", "Node that ordered."),
        Column(name="date", kind="date", about="First day of the period in which it was placed."),
        Column(name="quantity", kind="number", above=0.0, about="Units that were sent."),
        _text("unit", "If stated, must be the item's.", needed=False),
    ),
)
LEVELS = Sheet(
    name="levels",
    about="Min/max levels to compare with, a file of their own ('backtest --versus').",
    needed=False,
    columns=(
        _text("item", "Item."), _text("node", "Warehouse or store."), STOCK.column("min"), STOCK.column("max"),
    ),
)  # fmt: skip
"""Not a sheet of the workbook: today's levels stand in ``stock``."""

SHEETS = {sheet.name: sheet for sheet in (ABOUT, NODES, LANES, ITEMS, COSTS, DEMAND, STOCK, RECEIPTS, ORDERS)}
DICTIONARY = "dictionary"
"""The sheet that explains the others; it is not read."""


def dictionary() -> list[tuple[str, ...]]:
    """The rows of the dictionary: head, then one a column."""
    rows: list[tuple[str, ...]] = [("sheet", "column", "kind", "needed", "allowed", "meaning")]
    for sheet in SHEETS.values():
        rows.append((sheet.name, "", "", "yes" if sheet.needed else "no", "", sheet.about))
        for c in sheet.columns:
            rows.append((sheet.name, c.name, c.kind, "yes" if c.needed else "no", _allowed(c), c.about))
    return rows


def _allowed(column: Column) -> str:
    if column.choices:
        return " | ".join(column.choices)
    if column.low is not None:
        return f"{column.low:g} or more" if column.most is None else f"{column.low:g} to {column.most:g}"
    return f"above {column.above:g}" if column.above is not None else ""
