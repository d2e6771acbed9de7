"""Sales histories as arrays, from a company's tables or from two files of their own; where stock had run out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offrl.envs.inventory.work.checking import Typed, known, once, typed_table
from offrl.envs.inventory.work.company import LENGTH, Company, read_company
from offrl.envs.inventory.work.reading import WORKBOOKS, Table, read_file, shown
from offrl.envs.inventory.work.schema import DEMAND, Column, Sheet
from offrl.errors import DatasetError

Array = NDArray[np.float64]
MOST_PERIODS = 20_000
MOSTLY = 0.7
"""Share of dates on one weekday from which the sales are weekly, with mistakes; of days it is a seventh."""
SALES = Sheet(name="sales", about=DEMAND.about, columns=DEMAND.columns)
LEFT = Sheet(
    name="stock", about="Stock left at the end of every period.",
    columns=(*(DEMAND.column(n) for n in ("item", "node", "date")),
             Column(name="stock_left", kind="number", low=0.0, about="Units left at the end of the period."),
             DEMAND.column("unit")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Sales (I, S, T), and what was left (NaN: unknown)."""

    items: tuple[str, ...]
    stores: tuple[str, ...]
    first: date
    period: str
    sales: Array
    left: Array

    @property
    def empty(self) -> NDArray[np.bool_]:
        """(I, S, T): nothing was left, so that perhaps more was wanted."""
        return self.left <= 0

    @property
    def sold(self) -> NDArray[np.bool_]:
        """(I, S): any sales known."""
        return np.asarray(~np.isnan(self.sales).all(2))

    def day(self, period: int) -> date:
        """First day of a period."""
        return self.first + timedelta(days=LENGTH[self.period]) * period

    def until(self, periods: int) -> "History":
        """The first periods only."""
        return History(
            items=self.items, stores=self.stores, first=self.first, period=self.period,
            sales=self.sales[:, :, :periods], left=self.left[:, :, :periods],
        )  # fmt: skip


def history_of(company: Company) -> History:
    """A company's own."""
    return History(
        items=tuple(item.name for item in company.items), stores=company.stores, first=company.first,
        period=company.period, sales=company.sales, left=company.left,
    )  # fmt: skip


def read_history(sales: str | Path, stock: str | Path | None = None) -> History:
    """Sales from a company's workbook or folder, or from a CSV or Parquet file with stock beside it.

    Args:
        sales: a workbook, a folder, or a table with the columns item, node, date, sales and perhaps stock_left.
        stock: a table with item, node, date, stock_left, if that is not in the first.

    Raises:
        DatasetError: one line with place and remedy.
    """
    path = Path(sales)
    if path.is_dir() or path.suffix.lower() in WORKBOOKS:
        if stock is not None:
            raise DatasetError(
                f"{path} holds its own stock (sheet 'demand', column stock_left); leave --stock out"
            )
        return history_of(read_company(path))
    table = read_file(path, "sales")
    try:
        history = _from_sales(table, typed_table(table, SALES))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    if stock is None:
        return history
    table = read_file(stock, "stock")
    try:
        return _with_stock(history, table, typed_table(table, LEFT))
    except DatasetError as error:
        raise DatasetError(f"{stock}: {error}") from None


def _from_sales(table: Table, values: Typed) -> History:
    items, stores = tuple(dict.fromkeys(values["item"])), tuple(dict.fromkeys(values["node"]))
    days = sorted(set(values["date"]))
    period = _period(table, values["date"], days)
    once(
        table,
        ("item", "node", "date"),
        zip(values["item"], values["node"], values["date"], strict=True),
        "keep one",
    )
    length = (days[-1] - days[0]).days // LENGTH[period] + 1
    if length > MOST_PERIODS:
        row = values["date"].index(days[0])
        raise table.wrong(
            row, "date", f"{days[0]} is {(days[-1] - days[0]).days} days before the last date; correct it"
        )
    shape = (len(items), len(stores), length)
    arrays = [np.full(shape, np.nan), np.full(shape, np.nan)]
    history = History(
        items=items, stores=stores, first=days[0], period=period, sales=arrays[0], left=arrays[1]
    )
    _fill(history, values, "sales", arrays[0])
    _fill(history, values, "stock_left", arrays[1])
    return history


def _period(table: Table, dates: Sequence[date], days: Sequence[date]) -> str:
    """Day or week, as the dates (and ``days``, each of them once) tell."""
    gaps = [(b - a).days for a, b in pairwise(days)]
    if gaps and min(gaps) > 7:
        what = f"dates are {min(gaps)} days apart or more; sales are counted by day or by week"
        raise table.wrong(dates.index(days[1]), "date", what)
    if gaps and all(gap % 7 == 0 for gap in gaps):
        return "week"
    usual, count = Counter(day.weekday() for day in days).most_common(1)[0]
    if len(days) >= 8 and count >= MOSTLY * len(days) and (days[-1] - days[0]).days <= MOST_PERIODS:
        row = next(k for k, day in enumerate(dates) if day.weekday() != usual)
        what = f"{dates[row]} is no whole number of weeks from the others, most of which are; correct it"
        raise table.wrong(row, "date", what)
    return "day"


def _fill(history: History, values: Typed, column: str, target: Array) -> None:
    place_i, place_s = (
        {name: k for k, name in enumerate(names)} for names in (history.items, history.stores)
    )
    rows = zip(values["item"], values["node"], values["date"], values[column], strict=True)
    for item, store, day, value in rows:
        if value is not None:
            target[place_i[item], place_s[store], (day - history.first).days // LENGTH[history.period]] = (
                value
            )


def _with_stock(history: History, table: Table, values: Typed) -> History:
    known(table, "item", values["item"], history.items, "item", "sales")
    known(table, "node", values["node"], history.stores, "store", "sales")
    once(
        table,
        ("item", "node", "date"),
        zip(values["item"], values["node"], values["date"], strict=True),
        "keep one",
    )
    for row, day in enumerate(values["date"]):
        away = (day - history.first).days
        if not 0 <= away < LENGTH[history.period] * history.sales.shape[2] or away % LENGTH[history.period]:
            raise table.wrong(
                row,
                "date",
                f"{shown(day)} is no {history.period} of the sales, {history.first} and on; correct or remove it",
            )
    _fill(history, values, "stock_left", history.left)
    return history
