"""Demand histories from CSV and Parquet files."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offrl.errors import DatasetError, MissingExtraError

if TYPE_CHECKING:
    import polars


def read_table(path: str | Path) -> "polars.DataFrame":
    """A CSV or Parquet file.

    Raises:
        DatasetError: it cannot be read.
        MissingExtraError: polars is not installed.
    """
    try:
        import polars
    except ImportError:
        raise MissingExtraError("polars", "tables") from None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if path.suffix == ".parquet":
            return polars.read_parquet(path)
        return polars.read_csv(path, try_parse_dates=True, infer_schema_length=None)
    except polars.exceptions.PolarsError as error:
        raise DatasetError(
            f"{path}: cannot be read as a table ({' '.join(str(error).split())[:160]})"
        ) from None


def read_demand(path: str | Path, stores: Sequence[str]) -> NDArray[np.float64]:
    """Demand histories, (n, S, T), units per period; n is 1 unless the table has a column ``item``.

    Two layouts: long, with columns ``store``, ``period`` and ``demand`` (and ``item``), or wide, with a column
    ``period`` and one for each store. Periods are dates or numbers; they are put in order. Every store needs every
    period.

    Raises:
        DatasetError: a column, store, period or number is missing or wrong; the message names it.
    """
    table = read_table(path)
    names = table.columns
    if "period" not in names:
        raise DatasetError(f"{path}: no column 'period'; there are {', '.join(names)}")
    if "demand" not in names:
        if missing := [store for store in stores if store not in names]:
            raise DatasetError(
                f"{path}: no column for store {missing[0]!r}; there are {', '.join(names)} "
                "(a long table has the columns store, period, demand)"
            )
        keep = ["item", "period"] if "item" in names else ["period"]
        table = table.unpivot(on=list(stores), index=keep, variable_name="store", value_name="demand")
    elif "store" not in names:
        raise DatasetError(f"{path}: no column 'store'; there are {', '.join(names)}")
    known = {str(value) for value in table["store"]}
    if missing := [store for store in stores if store not in known]:
        raise DatasetError(f"{path}: no rows for store {missing[0]!r}; there are {', '.join(sorted(known))}")
    return _histories(str(path), table, stores)


def _histories(path: str, table: "polars.DataFrame", stores: Sequence[str]) -> NDArray[np.float64]:
    """The long table as an array with every cell filled exactly once."""
    periods = _in_order(path, set(table["period"].drop_nulls()))
    if "item" in table.columns and table["item"].null_count():
        raise DatasetError(f"{path}: item is empty in {table['item'].null_count()} rows; fill it")
    items = sorted(set(table["item"])) if "item" in table.columns else [None]
    place = [{value: i for i, value in enumerate(values)} for values in (items, stores, periods)]
    values = np.full((len(items), len(stores), len(periods)), np.nan)
    own = table["item"] if "item" in table.columns else [None] * len(table)
    rows = zip(own, table["store"], table["period"], table["demand"], strict=True)
    for line, (item, store, period, demand) in enumerate(rows, 2):
        if str(store) not in place[1]:
            continue
        if period is None:
            raise DatasetError(f"{path}: line {line}: period is empty")
        units = _number(demand)
        if not np.isfinite(units):
            raise DatasetError(
                f"{path}: store {store!r}, period {period}: demand must be a number, got {demand!r}"
            )
        cell = (place[0][item], place[1][str(store)], place[2][period])
        if not np.isnan(values[cell]):
            raise DatasetError(f"{path}: store {store!r} has two rows for period {period}")
        values[cell] = units
    if np.isnan(values).any():
        item, store, period = np.argwhere(np.isnan(values))[0]
        raise DatasetError(
            f"{path}: store {stores[store]!r} has no row for period {periods[period]}"
            + (f", item {items[item]}" if items[item] is not None else "")
            + "; fill the gap or drop the period"
        )
    return values


def _number(value: Any) -> float:
    """A cell as a number, NaN for none: one text in a column makes texts of all its numbers."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _in_order(path: str, periods: set[Any]) -> list[Any]:
    """Dates, numbers, or dates as text: other text has no order in time ('10' is before '9', '1/5' before '12/4')."""
    try:
        return sorted(periods, key=lambda x: datetime.fromisoformat(x) if isinstance(x, str) else x)
    except (TypeError, ValueError):
        text = next(x for x in periods if isinstance(x, str))
        raise DatasetError(
            f"{path}: period is the text {text!r}; write dates as 2025-01-31, or numbers"
        ) from None
