"""A company as its tables describe it, checked as a whole; the network of each item.

Shapes: I items, N places (warehouses, then stores), S stores, T periods of the calendar of sales.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.envs.inventory.work.checking import Typed, known, once, typed, typed_table
from offrl.envs.inventory.work.reading import Table, read_file, read_tables, shown
from offrl.envs.inventory.work.schema import SHEETS
from offrl.errors import ConfigError, DatasetError

Array = NDArray[np.float64]
LENGTH = {"day": 1, "week": 7}
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ALL = "*"


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is sold."""

    name: str
    supplier: str | None
    """None: every supplier carries it."""
    unit: str
    group: str
    value: float
    """Money that a unit in stock is worth; NaN: not known."""
    size: float
    """Of a unit, in what trucks are filled with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Company:
    """Everything that the tables say."""

    name: str
    period: str
    currency: str
    lost: bool
    budget: float
    """Of each item."""
    shared_budget: float
    """Of all items together."""
    suppliers: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    """Name and kind of each, warehouses first."""
    lanes: tuple[Edge, ...]
    """Sources are names of suppliers and warehouses."""
    trucks: tuple[tuple[str, float], ...]
    """Limits that all items of a lane share: the lane's ``truck``, and its limit."""
    items: tuple[Item, ...]
    holding: Array
    """(I, N), money per unit left and period."""
    underage: Array
    """(I, S), money per unit short; NaN where the item is not sold."""
    first: date
    """First day of period 0."""
    sales: Array
    """(I, S, T), units; NaN: unknown."""
    left: Array
    """(I, S, T), units left at the end of a period; NaN: unknown."""
    on_hand: Array
    """(I, N), today."""
    on_order: Array
    """(I, N), under way today."""
    due: NDArray[np.int64]
    """(I, N), periods until they come, 0 or more."""
    levels: Array
    """(I, N, 2), today's min and max; NaN: none."""

    @property
    def stores(self) -> tuple[str, ...]:
        """Names."""
        return tuple(name for name, kind in self.places if kind == "store")

    def dates(self) -> list[date]:
        """First day of every period."""
        step = timedelta(days=LENGTH[self.period])
        return [self.first + step * t for t in range(self.sales.shape[2])]

    def sold(self, item: int) -> list[int]:
        """The stores that sell an item: those with any sales row."""
        return [int(s) for s in np.flatnonzero(~np.isnan(self.sales[item]).all(1))]

    def index(self, name: str) -> int:
        """Of an item."""
        names = [item.name for item in self.items]
        if name not in names:
            raise ConfigError(
                f"no item {name!r}; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
        return names.index(name)

    def network(self, item: int) -> Network:
        """The network of one item: its supplier, the warehouses on its ways, the stores that sell it.

        What items share (trucks, the shared budget) is left out.
        """
        nodes, edges = self.parts(item)
        edges = [replace(edge, truck="") for edge in edges]
        return Network(
            name=self.items[item].name, nodes=tuple(nodes), edges=tuple(edges), lost_sales=self.lost,
            same_period=any(edge.lead_time == 0 for edge in edges), budget=self.budget,
        )  # fmt: skip

    def parts(self, item: int) -> tuple[list[Node], list[Edge]]:
        """Nodes, warehouses first, and lanes of one item."""
        own, upstream = self.items[item], len(self.places) - len(self.stores)
        sold = {self.places[upstream + s][0] for s in self.sold(item)}
        gone = set(self.suppliers) - {own.supplier} if own.supplier else set()
        gone |= {name for name, kind in self.places if kind == "store" and name not in sold}
        lanes = [lane for lane in self.lanes if lane.source not in gone and lane.target not in gone]
        lanes = _useful(lanes, {name for name, kind in self.places if kind == "warehouse"})
        reached = {lane.target for lane in lanes}
        if lost := sorted(sold - reached):
            raise DatasetError(
                f"item {own.name!r}: no way from its supplier to store {lost[0]!r}; add a lane or correct the supplier"
            )
        nodes = [
            Node(
                name=name, kind="store" if kind == "store" else "warehouse",
                holding_cost=float(self.holding[item, n]), initial=float(self.on_hand[item, n]),
                underage_cost=float(self.underage[item, n - upstream]) if kind == "store" else 0.0,
            )
            for n, (name, kind) in enumerate(self.places) if name in reached
        ]  # fmt: skip
        return nodes, [replace(_inside(lane, self.suppliers), size=own.size) for lane in lanes]


def _inside(lane: Edge, suppliers: Sequence[str]) -> Edge:
    """The lane of a network, where suppliers are outside."""
    return replace(lane, source=f"{OUTSIDE} {lane.source}") if lane.source in suppliers else lane


def _useful(lanes: list[Edge], warehouses: set[str]) -> list[Edge]:
    """Without warehouses that supply nobody or that nobody supplies."""
    while True:
        sends, gets = {lane.source for lane in lanes}, {lane.target for lane in lanes}
        idle = {name for name in warehouses if (name in sends) != (name in gets)}
        kept = [lane for lane in lanes if lane.source not in idle and lane.target not in idle]
        if len(kept) == len(lanes):
            return kept
        lanes = kept


def read_company(path: str | Path) -> Company:
    """A company from a workbook or a folder of CSV and Parquet files.

    Raises:
        DatasetError: a table breaks a rule; one line with sheet, cell and remedy.
        FileNotFoundError: there is nothing.
    """
    tables = read_tables(path)
    try:
        return company_of(tables)
    except (DatasetError, ConfigError) as error:
        raise DatasetError(f"{path}: {error}") from None


def with_stock(company: Company, path: str | Path) -> Company:
    """The company with today's stock from a file of its own, or from a workbook's sheet ``stock``; places and items
    without a row there have none, and levels that it leaves out stay.

    Raises:
        DatasetError: one line with place and remedy.
    """
    table = read_file(path, "stock")
    today = company.first + timedelta(days=LENGTH[company.period]) * company.sales.shape[2]
    try:
        values = typed_table(table, SHEETS["stock"])
        found = _today(table, values, company.items, company.places, company.period, today)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    found["levels"] = np.where(np.isnan(found["levels"]), company.levels, found["levels"])
    return replace(company, **found)


def company_of(tables: Mapping[str, Table]) -> Company:
    """A company from its raw tables."""
    values = typed(tables)
    about = {name: column[0] for name, column in values["about"].items()}
    if len(tables["about"]) > 1:
        raise tables["about"].wrong(1, None, "a second row; this sheet has one, remove the others")
    suppliers, places = _places(tables["nodes"], values["nodes"])
    items = _items(tables["items"], values["items"], suppliers)
    first, sales, left = _history(tables["demand"], values["demand"], items, places, about["period"])
    for unsold in np.flatnonzero(np.isnan(sales).all((1, 2))):
        k = int(unsold)
        what = f"item {items[k].name!r} has no row in sheet 'demand'; add its sales or remove it"
        raise tables["items"].wrong(k, "item", what)
    lanes = _lanes(tables["lanes"], values["lanes"], suppliers, places, about["period"], first)
    _check_trucks(tables["lanes"], values["lanes"], lanes, items)
    lanes = _received(tables.get("receipts"), values["receipts"], lanes, about["period"])
    holding, underage = _costs(tables["costs"], values["costs"], items, places, sales)
    today = first + timedelta(days=LENGTH[about["period"]]) * sales.shape[2]
    company = Company(
        name=about["company"], period=about["period"], currency=about["currency"], lost=about["unmet"] == "lost",
        budget=float("inf") if about["budget"] is None else about["budget"],
        shared_budget=float("inf") if about["shared_budget"] is None else about["shared_budget"],
        suppliers=suppliers, places=places, lanes=lanes, trucks=_trucks(values["lanes"]),
        items=items, holding=holding, underage=underage, first=first,
        sales=sales, left=left, **_today(tables["stock"], values["stock"], items, places, about["period"], today),
    )  # fmt: skip
    for k in range(len(items)):
        company.network(k)
    if "orders" in tables:
        from offrl.envs.inventory.work.orders import placed

        placed(tables["orders"], values["orders"], company)
    return company


def _places(table: Table, values: Typed) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    once(table, ("node",), zip(values["node"], strict=True), "names must differ: rename one or remove it")
    rows = list(zip(values["node"], values["kind"], strict=True))
    for row, (name, _) in enumerate(rows):
        if name == ALL or name.lower().startswith(OUTSIDE):
            raise table.wrong(row, "node", f"the name {shown(name)} has a meaning of its own; choose another")
    for kind in ("supplier", "store"):
        if kind not in values["kind"]:
            raise DatasetError(f"{table.source}: no node of kind {kind!r}; add one")
    suppliers = tuple(name for name, kind in rows if kind == "supplier")
    places = [(name, kind) for wanted in ("warehouse", "store") for name, kind in rows if kind == wanted]
    return suppliers, tuple(places)


def _items(table: Table, values: Typed, suppliers: Sequence[str]) -> tuple[Item, ...]:
    once(table, ("item",), zip(values["item"], strict=True), "names must differ: rename one or remove it")
    known(table, "supplier", values["supplier"], suppliers, "supplier", "nodes")
    columns = ("item", "supplier", "unit", "group", "value", "size")
    return tuple(
        Item(
            name=a, supplier=b, unit=c, group=d or "", value=float("nan") if e is None else e,
            size=1.0 if f is None else f,
        )
        for a, b, c, d, e, f in zip(*(values[column] for column in columns), strict=True)
    )  # fmt: skip


def _lanes(
    table: Table, values: Typed, suppliers: Sequence[str], places: Sequence[tuple[str, str]], period: str, first: date
) -> tuple[Edge, ...]:  # fmt: skip
    kinds = dict.fromkeys(suppliers, "supplier") | dict(places)
    for column in ("from", "to"):
        known(table, column, values[column], kinds, "node", "nodes")
    once(table, ("from", "to"), zip(values["from"], values["to"], strict=True), "merge the two rows")
    lanes = []
    for row, (source, target) in enumerate(zip(values["from"], values["to"], strict=True)):
        _check_lane(
            table, row, source, target, kinds, {key: column[row] for key, column in values.items()}, period
        )
        number: dict[str, Any] = {
            field: values[column][row] or 0.0
            for field, column in (("cost", "cost"), ("fixed_cost", "fixed_cost"), ("min_order", "min_order"),
                                  ("pack", "pack_size"))
        }  # fmt: skip
        capacity = values["capacity"][row]
        lanes.append(
            Edge(
                source=source,
                target=target,
                lead_time=int(values["lead_time"][row]),
                capacity=float("inf") if capacity is None else capacity,
                truck="" if values["shared_capacity"][row] is None else _truck(source, target),
                calendar=_calendar(table, row, values["order_days"][row], period, first),
                **number,
            )
        )
    _check_ways(table, lanes, kinds)
    return tuple(lanes)


def _truck(source: str, target: str) -> str:
    return f"{source} -> {target}"


def _trucks(lanes: Typed) -> tuple[tuple[str, float], ...]:
    """Shared limits by lane."""
    rows = zip(lanes["from"], lanes["to"], lanes["shared_capacity"], strict=True)
    return tuple((_truck(source, target), limit) for source, target, limit in rows if limit is not None)


def _check_lane(
    table: Table,
    row: int,
    source: str,
    target: str,
    kinds: Mapping[str, str],
    cells: Mapping[str, Any],
    period: str,
) -> None:
    if source == target:
        raise table.wrong(row, "to", f"{target!r} cannot supply itself; correct one end or remove the row")
    if kinds[target] == "supplier":
        raise table.wrong(
            row, "to", f"{target!r} is a supplier, which has no limit; remove the row or change its kind"
        )
    if kinds[source] == "store":
        raise table.wrong(
            row, "from", f"{source!r} is a store, which only sells; make it a warehouse with a store behind"
        )
    if cells["period"] not in (None, period):
        raise table.wrong(
            row,
            "period",
            f"the lead time is in {shown(cells['period'])} but the company plans by {period}; convert it",
        )
    if cells["lead_time"] == 0 and kinds[target] == "warehouse":
        raise table.wrong(
            row,
            "lead_time",
            "lead time 0 is for stores: what a warehouse orders now it can ship next period; write 1",
        )
    smallest, most = _smallest(cells["pack_size"] or 0.0, cells["min_order"] or 0.0), cells["capacity"]
    if most is not None and smallest > most:
        raise table.wrong(
            row,
            "capacity",
            f"capacity {most:g} is below the smallest order, {smallest:g}; raise it or lower min_order",
        )


def _smallest(pack: float, least: float) -> float:
    """Units of the smallest order that packs and the least order admit."""
    return max(pack * float(np.ceil(least / pack - 1e-9)), pack) if pack else least


def _check_trucks(table: Table, values: Typed, lanes: Sequence[Edge], items: Sequence[Item]) -> None:
    """The smallest order of each item fits the truck of its lane."""
    suppliers = {item.supplier for item in items}
    for row, (lane, limit) in enumerate(zip(lanes, values["shared_capacity"], strict=True)):
        own = [item for item in items if lane.source not in suppliers or item.supplier == lane.source]
        if limit is None or not own:
            continue
        largest, smallest = max(own, key=lambda item: item.size), _smallest(lane.pack, lane.min_order)
        if largest.size * smallest > limit:
            what = f"{smallest:g} units of size {largest.size:g}, the smallest order of item {largest.name!r}"
            raise table.wrong(row, "shared_capacity", f"{what}, do not fit; raise it or lower the pack")


def _check_ways(table: Table, lanes: Sequence[Edge], kinds: Mapping[str, str]) -> None:
    """No cycle, and everything is supplied."""
    into: dict[str, list[int]] = {name: [] for name in kinds}
    for row, lane in enumerate(lanes):
        into[lane.target].append(row)
    done: set[str] = {name for name, kind in kinds.items() if kind == "supplier"}

    def follow(name: str, path: tuple[str, ...]) -> None:
        for row in into[name]:
            source = lanes[row].source
            if source in (*path, name):
                circle = [*(*path, name)[(*path, name).index(source) :], source]
                raise table.wrong(
                    row, "from", f"the lanes form a cycle, {' <- '.join(circle)}; remove one of them"
                )
            if source not in done:
                follow(source, (*path, name))
        done.add(name)

    for name, kind in kinds.items():
        if kind != "supplier":
            follow(name, ())
            if not into[name]:
                raise DatasetError(
                    f"{table.source}: no lane leads to {kind} {name!r}; add one, or remove the node"
                )


def _calendar(table: Table, row: int, text: str | None, period: str, first: date) -> tuple[int, ...]:
    if text is None:
        return ()
    if period == "day":
        names = [part[:3] for part in re.split(r"[ ,;/]+", text.lower()) if part]
        if not names or (wrong := [name for name in names if name not in WEEKDAYS]):
            bad = wrong[0] if names else text
            raise table.wrong(row, "order_days", f"{shown(bad)} is not a weekday; write 'Mon Thu'")
        return tuple(int(WEEKDAYS[(first.weekday() + k) % 7] in names) for k in range(7))
    match = re.fullmatch(r"every (\d{1,2})(?: from (\d{1,2}))?", text.lower())
    every, start = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not 0 <= start < every:
        raise table.wrong(
            row, "order_days", f"order_days is {shown(text)}; write 'every 2' or 'every 2 from 1'"
        )
    return tuple(int(k == start) for k in range(every)) if every > 1 else ()


def _history(
    table: Table, values: Typed, items: Sequence[Item], places: Sequence[tuple[str, str]], period: str
) -> tuple[date, Array, Array]:
    """First day, sales and stock left, on the calendar of all rows."""
    stores = [name for name, kind in places if kind == "store"]
    place_i, place_s = (
        {item.name: k for k, item in enumerate(items)},
        {name: k for k, name in enumerate(stores)},
    )
    known(table, "item", values["item"], place_i, "item", "items")
    known(table, "node", values["node"], place_s, "store", "nodes")
    check_units(table, values, items)
    first, last, step = min(values["date"]), max(values["date"]), LENGTH[period]
    shape = (len(items), len(stores), (last - first).days // step + 1)
    if shape[2] > 20_000:
        row = values["date"].index(first)
        raise table.wrong(
            row, "date", f"{first} is {(last - first).days} days before the last date; correct it"
        )
    sales, left = np.full(shape, np.nan), np.full(shape, np.nan)
    before: dict[tuple[str, str], date] = {}
    rows = zip(
        values["item"], values["node"], values["date"], values["sales"], values["stock_left"], strict=True
    )
    for row, (item, store, day, sold, rest) in enumerate(rows):
        if (day - first).days % step:
            raise table.wrong(
                row,
                "date",
                f"{day} is no whole number of {period}s after the first date, {first}; correct it",
            )
        previous = before.get((item, store))
        if previous is not None and day <= previous:
            what = "stands twice" if day == previous else f"comes after {previous}"
            remedy = "keep one row" if day == previous else "sort the rows by date"
            raise table.wrong(row, "date", f"{day} {what} for item {item!r}, store {store!r}; {remedy}")
        before[item, store] = day
        cell = (place_i[item], place_s[store], (day - first).days // step)
        sales[cell], left[cell] = sold, np.nan if rest is None else rest
    return first, sales, left


def check_units(table: Table, values: Typed, items: Sequence[Item]) -> None:
    """Where a row states its unit, it is the item's."""
    units = {item.name: item.unit for item in items}
    for row, (item, unit) in enumerate(zip(values["item"], values["unit"], strict=True)):
        if unit is not None and unit != units[item]:
            raise table.wrong(
                row,
                "unit",
                f"unit is {shown(unit)} but item {item!r} is counted in {units[item]!r}; convert the amounts",
            )


def _costs(
    table: Table, values: Typed, items: Sequence[Item], places: Sequence[tuple[str, str]], sales: Array
) -> tuple[Array, Array]:
    """Holding (I, N) and underage (I, S); the most exact row counts."""
    kinds = dict(places)
    known(table, "item", values["item"], [ALL, *(item.name for item in items)], "item", "items")
    known(table, "node", values["node"], [ALL, *kinds], "warehouse or store", "nodes")
    once(table, ("item", "node"), zip(values["item"], values["node"], strict=True), "keep one row")
    rows: dict[tuple[str, str], tuple[float, float | None]] = {}
    entries = zip(
        values["item"], values["node"], values["holding_cost"], values["underage_cost"], strict=True
    )
    for row, (item, node, h, p) in enumerate(entries):
        if p and kinds.get(node) == "warehouse":
            raise table.wrong(
                row, "underage_cost", f"{node!r} is a warehouse, which no customer sees; empty the cell"
            )
        rows[item, node] = (h, p)
    upstream = sum(kind == "warehouse" for _, kind in places)
    holding = np.zeros((len(items), len(places)))
    underage = np.full((len(items), len(places) - upstream), np.nan)
    for i, item in enumerate(items):
        for n, (name, kind) in enumerate(places):
            keys = ((item.name, name), (item.name, ALL), (ALL, name), (ALL, ALL))
            found = [rows[key] for key in keys if key in rows]
            if not found:
                raise DatasetError(
                    f"{table.source}: no row covers item {item.name!r} at {name!r}; add one, * stands for all"
                )
            holding[i, n] = found[0][0]
            if kind == "store" and not np.isnan(sales[i, n - upstream]).all():
                known_costs = [p for _, p in found if p is not None]
                if not known_costs:
                    raise DatasetError(
                        f"{table.source}: no underage_cost covers item {item.name!r} at store {name!r}; fill it"
                    )
                underage[i, n - upstream] = known_costs[0]
    return holding, underage


def _today(
    table: Table,
    values: Typed,
    items: Sequence[Item],
    places: Sequence[tuple[str, str]],
    period: str,
    today: date,
) -> dict[str, Any]:
    place_i, place_n = (
        {item.name: k for k, item in enumerate(items)},
        {name: k for k, (name, _) in enumerate(places)},
    )
    known(table, "item", values["item"], place_i, "item", "items")
    known(table, "node", values["node"], place_n, "warehouse or store", "nodes")
    once(
        table, ("item", "node"), zip(values["item"], values["node"], strict=True), "add the two up in one row"
    )
    check_units(table, values, items)
    shape = (len(items), len(places))
    on_hand, on_order, due = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    levels = np.full((*shape, 2), np.nan)
    for row in range(len(table)):
        cell = {key: column[row] for key, column in values.items()}
        at = (place_i[cell["item"]], place_n[cell["node"]])
        on_hand[at], on_order[at] = cell["on_hand"], cell["on_order"] or 0.0
        if on_order[at]:
            if cell["due"] is None:
                raise table.wrong(
                    row, "on_order", "goods are under way but due is empty; write when they come"
                )
            due[at] = max(0, -(-(cell["due"] - today).days // LENGTH[period]))
        low, high = cell["min"], cell["max"]
        if (low is None) != (high is None):
            raise table.wrong(
                row, "max" if high is None else "min", "min and max go together; fill both or none"
            )
        if low is not None and low > high:
            raise table.wrong(row, "min", f"min {low:g} is above max {high:g}; exchange them")
        if low is not None:
            levels[at] = (low, high)
    return {"on_hand": on_hand, "on_order": on_order, "due": due, "levels": levels}


def _received(table: Table | None, values: Typed, lanes: tuple[Edge, ...], period: str) -> tuple[Edge, ...]:
    """The lanes with their deliveries as they came."""
    if table is None:
        return lanes
    from offrl.envs.inventory.work.receipts import with_receipts

    return with_receipts(table, values, lanes, LENGTH[period])
