"""Orders as they were placed and levels to compare with, from tables; the stock from which those orders went on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.envs.inventory.scenarios import Observation, Policy
from offrl.envs.inventory.work.checking import Typed, known, once, typed_table
from offrl.envs.inventory.work.company import LENGTH, Company, check_units
from offrl.envs.inventory.work.planning import Plan
from offrl.envs.inventory.work.reading import Table, read_file
from offrl.envs.inventory.work.schema import LEVELS, ORDERS, Sheet
from offrl.errors import DatasetError

Array = NDArray[np.float64]


def read_orders(path: str | Path, company: Company) -> Array:
    """(n, 4) of a CSV or Parquet file, or of a workbook's sheet ``orders``: see :func:`placed`."""
    table, values = _read(path, ORDERS)
    try:
        return placed(table, values, company)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def read_levels(path: str | Path, company: Company) -> Array:
    """(I, places, 2) min and max of a CSV or Parquet file, or of a workbook's sheet ``levels``; NaN: none.

    Raises:
        DatasetError: one line with place and remedy.
    """
    table, values = _read(path, LEVELS)
    places = [name for name, _ in company.places]
    found = np.full((len(company.items), len(places), 2), np.nan)
    try:
        _known(table, values, company, ("node",))
        once(table, ("item", "node"), zip(values["item"], values["node"], strict=True), "keep one row")
        rows = zip(values["item"], values["node"], values["min"], values["max"], strict=True)
        item = {own.name: k for k, own in enumerate(company.items)}
        for row, (name, place, low, high) in enumerate(rows):
            if (low is None) != (high is None):
                raise table.wrong(
                    row, "max" if high is None else "min", "min and max go together; fill both or none"
                )
            if low is not None and low > high:
                raise table.wrong(row, "min", f"min {low:g} is above max {high:g}; exchange them")
            if low is not None:
                found[item[name], places.index(place)] = low, high
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return found


def _read(path: str | Path, sheet: Sheet) -> tuple[Table, Typed]:
    table = read_file(path, sheet.name)
    try:
        return table, typed_table(table, sheet)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def _known(table: Table, values: Typed, company: Company, columns: tuple[str, ...]) -> None:
    known(table, "item", values["item"], [item.name for item in company.items], "item", "items")
    for column in columns:
        known(
            table, column, values[column], [name for name, _ in company.places], "warehouse or store", "nodes"
        )


def placed(table: Table, values: Typed, company: Company) -> Array:
    """Rows of item, lane (both as numbers of the company), period and units.

    Raises:
        DatasetError: an unknown item or lane, a date that is none of the sales.
    """
    _known(table, values, company, ("to",))
    check_units(table, values, company.items)
    item = {own.name: k for k, own in enumerate(company.items)}
    lane = {(own.source, own.target): k for k, own in enumerate(company.lanes)}
    length, step = company.sales.shape[2], LENGTH[company.period]
    found = np.empty((len(table), 4))
    for row in range(len(table)):
        cell: Mapping[str, Any] = {key: column[row] for key, column in values.items()}
        way, own = (cell["from"], cell["to"]), company.items[item[cell["item"]]]
        if way not in lane:
            raise table.wrong(
                row, "from", f"no lane leads from {way[0]!r} to {way[1]!r}; add it to the sheet 'lanes'"
            )
        if own.supplier is not None and way[0] in company.suppliers and way[0] != own.supplier:
            raise table.wrong(
                row, "from", f"item {own.name!r} comes from {own.supplier!r}, not {way[0]!r}; correct it"
            )
        days = (cell["date"] - company.first).days
        if days % step or not 0 <= days // step < length:
            last = company.dates()[-1]
            what = f"{cell['date']} is no first day of a {company.period} between {company.first} and {last}"
            raise table.wrong(row, "date", f"{what}; correct it or remove the row")
        found[row] = item[own.name], lane[way], days // step, cell["quantity"]
    return found


def by_lane(plan: Plan, orders: Array) -> Array:
    """(T, E): units ordered on each lane of the network in each period."""
    company, network = plan.company, plan.network
    places = {name: k for k, (name, _) in enumerate(company.places)}
    edge = {(plan.nodes[target], plan.source(e)): e for e, target in enumerate(network.targets)}
    of_item = {k: n for n, k in enumerate(plan.items)}
    total = np.zeros((plan.periods, len(network.edges)))
    for k, lane, period, units in orders:
        way = company.lanes[int(lane)]
        own = of_item.get(int(k))
        if own is not None and ((own, places[way.target]), way.source) in edge:
            total[int(period), edge[(own, places[way.target]), way.source]] += units
    return total


def as_placed(ordered: Array) -> Policy:
    """The policy that repeats orders (T, E)."""
    known_orders = torch.from_numpy(ordered).float()

    def policy(seen: Observation) -> Tensor:
        return known_orders[seen.period].expand(len(seen.stock), -1)

    return policy


def stock_at(plan: Plan, ordered: Array, period: int) -> Tensor:
    """(1, N, K): the stock before ``period``, as far as the tables tell it.

    Stores: what was left the period before (or, unknown, at the last known one, plus deliveries, less sales) and what
    came since. Warehouses: today's stock, less what has come, plus what has left since then. Deliveries take their
    lane's lead time.

    Args:
        plan: what is planned.
        ordered: (T, E).
        period: from 1 on.
    """
    network, company = plan.network, plan.company
    targets, times = network.targets, network.lead_times
    into: dict[int, list[int]] = {}
    out: dict[int, list[int]] = {}
    for e, (source, target) in enumerate(zip(network.sources, targets, strict=True)):
        into.setdefault(target, []).append(e)
        out.setdefault(source, []).append(e)
    upstream, warehouses = network.upstream, len(company.places) - len(company.stores)
    stock = np.zeros((len(plan.nodes), network.width))

    def came(node: int, first: int, last: int, before: int) -> float:
        """Units that arrived for periods ``first`` .. ``last`` - 1, of orders placed before ``before``."""
        return sum(
            float(ordered[max(first - times[e], 0) : max(min(last - times[e], before), 0), e].sum())
            for e in into[node]
        )

    for n, (k, place) in enumerate(plan.nodes):
        item = plan.items[k]
        if n >= upstream:
            left, sales = company.left[item, place - warehouses], company.sales[item, place - warehouses]
            seen = np.flatnonzero(~np.isnan(left[:period]))
            at, rest = (int(seen[-1]), float(left[seen[-1]])) if len(seen) else (-1, 0.0)
            stock[n, 0] = (
                rest + came(n, at + 1, period + 1, period) - float(np.nansum(sales[at + 1 : period]))
            )
            continue
        sent = sum(float(ordered[period:, e].sum()) for e in out[n])
        stock[n, 0] = (
            float(company.on_hand[item, place]) + sent - came(n, period + 1, plan.periods + 1, plan.periods)
        )
    for e, (target, time) in enumerate(zip(targets, times, strict=True)):
        for column in range(1, time):
            if period + column - time >= 0:
                stock[target, column] += ordered[period + column - time, e]
    return torch.from_numpy(stock.clip(min=0)).float()[None]
