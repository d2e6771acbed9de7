"""The tables of a company against the data dictionary: kinds of cells, names that exist, one row a thing.

Every mistake is one line: sheet, cell, what is wrong, what to do.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from offrl.envs.inventory.work.reading import Table, letters, shown
from offrl.envs.inventory.work.schema import SHEETS, Column, Sheet
from offrl.errors import DatasetError

YES = ("true", "false", "yes", "no")
MOST = 1e12
"""No amount is this large: an item's bar code is."""
Typed = dict[str, list[Any]]
"""Column -> values; None where a cell is empty."""


def typed(tables: Mapping[str, Table]) -> dict[str, Typed]:
    """All tables with every cell of its kind; columns that a table lacks are full of None.

    Raises:
        DatasetError: a sheet, column or cell is missing or wrong.
    """
    found = {}
    for name, sheet in SHEETS.items():
        if name in tables:
            found[name] = typed_table(tables[name], sheet)
        elif sheet.needed:
            raise DatasetError(
                f"there is no sheet {name!r}; add it ('offrl inventory init' writes an example)"
            )
        else:
            found[name] = {column.name: [] for column in sheet.columns}
    return found


def typed_table(table: Table, sheet: Sheet) -> Typed:
    """One table with every cell of its kind."""
    known = [column.name for column in sheet.columns]
    for place, name in enumerate(table.columns):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"remove it; there are {', '.join(known)}"
            where = f"cell {letters(place)}1" if table.sheet else "line 1"
            raise DatasetError(f"{table.source}, {where}: unknown column {name!r}; {hint}")
    for column in sheet.columns:
        if column.needed and column.name not in table.columns:
            raise DatasetError(
                f"{table.source}: no column {column.name!r}; add it ({column.about.rstrip('.')})"
            )
    if not len(table):
        raise DatasetError(f"{table.source}: no rows under the names of the columns; fill it")
    empty = [None] * len(table)
    values: Typed = {}
    for column in sheet.columns:
        cells = table.columns.get(column.name, empty)
        values[column.name] = [_cell(table, row, column, value) for row, value in enumerate(cells)]
    return values


def _cell(table: Table, row: int, column: Column, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        if column.needed:
            raise table.wrong(
                row, column.name, f"{column.name} is empty; fill it ({column.about.rstrip('.')})"
            )
        return None
    if column.kind == "text":
        return _text(table, row, column, value)
    if column.kind == "date":
        return _date(table, row, column, value)
    return _number(table, row, column, value)


def _text(table: Table, row: int, column: Column, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a workbook keeps the item number 1001 as a number
    if isinstance(value, date):
        raise table.wrong(
            row, column.name, f"{column.name} is a date, {value:%Y-%m-%d}; format the cell as text"
        )
    text = " ".join(str(value).split())
    if column.choices:
        low = text.lower()
        if low not in column.choices:
            raise table.wrong(
                row, column.name, f"{column.name} is {shown(text)}; write one of {', '.join(column.choices)}"
            )
        return low
    return text


def _number(table: Table, row: int, column: Column, value: Any) -> float:
    name = column.name
    if isinstance(value, bool) or str(value).strip().lower() in YES:
        raise table.wrong(row, name, f"{name} is {shown(value)}; write a number")
    if isinstance(value, date):
        raise table.wrong(row, name, f"{name} is a date, {value:%Y-%m-%d}; format the cell as a number")
    try:
        if isinstance(value, str) and (table.sheet or "_" in value):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        hint = "write a number, without its unit"
        if str(value).strip().replace(",", "").replace(".", "").lstrip("-").isdigit():
            point = "write decimals with a point and no thousands marks"
            hint = "format the column as numbers and enter it again" if table.sheet else point
        raise table.wrong(row, name, f"{name} is the text {shown(value)}; {hint}") from None
    if not math.isfinite(number):
        raise table.wrong(row, name, f"{name} is {number}; write a finite number or leave it empty")
    most = MOST if column.most is None else column.most
    if abs(number) > most:
        hint = "is it in another unit?" if column.most else "is it in the wrong column?"
        raise table.wrong(row, name, f"{name} is {number:g}; it must be {most:g} at most: {hint}")
    if column.low is not None and number < column.low:
        least = "0 or more" if column.low == 0 else f"{column.low:g} or more"
        raise table.wrong(row, name, f"{name} is {number:g}; it must be {least}{_hint(name)}")
    if column.above is not None and number <= column.above:
        raise table.wrong(
            row, name, f"{name} is {number:g}; it must be above {column.above:g}, or empty for none"
        )
    if column.kind == "whole" and number != int(number):
        raise table.wrong(row, name, f"{name} is {number:g}; write whole periods, rounded up")
    return number


def _hint(name: str) -> str:
    if name in ("on_hand", "stock_left"):
        return "; put goods that customers wait for into a row of their own plan, or correct the count"
    return ""


def _date(table: Table, row: int, column: Column, value: Any) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, int | float):
        raise table.wrong(
            row, column.name, f"{column.name} is the number {value:g}; format the cell as a date"
        )
    try:
        return date.fromisoformat(str(value).strip())
    except ValueError:
        raise table.wrong(
            row, column.name, f"{column.name} is {shown(value)}; write dates as 2025-01-31"
        ) from None


def once(table: Table, columns: Sequence[str], rows: Iterable[tuple[Any, ...]], remedy: str) -> None:
    """Every combination at most once."""
    seen: dict[tuple[Any, ...], int] = {}
    stand = "stands" if len(columns) == 1 else "stand"
    for row, key in enumerate(rows):
        if key in seen:
            what = " and ".join(f"{name} {shown(value)}" for name, value in zip(columns, key, strict=True))
            first = table.lines[seen[key]]
            raise table.wrong(row, columns[-1], f"{what} already {stand} in row {first}; {remedy}")
        seen[key] = row


def known(
    table: Table, column: str, values: Sequence[str | None], names: Iterable[str], what: str, sheet: str
) -> None:
    """Every name is one of those."""
    allowed = set(names)
    for row, value in enumerate(values):
        if value is not None and value not in allowed:
            low = {name.lower(): name for name in sorted(allowed)}
            near = difflib.get_close_matches(value.lower(), low, n=1)
            hint = (
                f"did you mean {low[near[0]]!r}?"
                if near
                else f"add it to the sheet {sheet!r} or correct the name"
            )
            raise table.wrong(row, column, f"unknown {what} {shown(value)}; {hint}")
