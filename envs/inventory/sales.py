"""Weekly sales as recorded demand: the public Favorita files (PT, CSV, Parquet), and a synthetic look-alike."""

import pickle
import re
import struct
import zipfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from offrl.envs.inventory.tables import read_table
from offrl.errors import DatasetError

Array = NDArray[np.float32]
FIRST_WEEK = date(2013, 1, 1)
NAMES = ("weekly_sales.pt", "weekly_sales.parquet", "weekly_sales.csv")
LFS_POINTER = b"version https://git-lfs"
DAMAGED = (  # what torch's own reader raises on damaged contents
    pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, AssertionError,
    struct.error,
)  # fmt: skip
COLUMNS = ("item_nbr", "store_nbr", "date", "unit_sales")


@dataclass(frozen=True, kw_only=True)
class WeeklySales:
    """Sales (items, stores, weeks), units per week. Negative numbers are returned goods; they are kept."""

    values: Array
    days_from_christmas: tuple[float, ...]
    """Of each week: days from the nearest Christmas, negative before it."""
    source: str

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or not self.values.size:
            raise DatasetError(
                f"{self.source}: sales must be (items, stores, weeks), got shape {self.values.shape}"
            )
        if not np.isfinite(self.values).all():
            item, store, week = np.argwhere(~np.isfinite(self.values))[0]
            raise DatasetError(
                f"{self.source}: sales are not finite at item {item}, store {store}, week {week}"
            )
        if len(self.days_from_christmas) < self.values.shape[2]:
            raise DatasetError(
                f"{self.source}: {self.values.shape[2]} weeks of sales but {len(self.days_from_christmas)} dates"
            )


def from_christmas(day: date) -> int:
    """Days from the nearest 25 December, negative before it."""
    gaps = [(day - date(day.year + k, 12, 25)).days for k in (-1, 0, 1)]
    return min(gaps, key=abs)


def look_alike(*, items: int = 288, stores: int = 21, weeks: int = 171, seed: int = 0) -> WeeklySales:
    """Made-up sales in the manner of the public ones, for tests and demonstrations.

    Negative binomial weeks with a level for each item, a factor for each store, a peak before Christmas and one week in
    a hundred with goods returned.
    """
    rng = np.random.default_rng(seed)
    dates = [FIRST_WEEK + timedelta(weeks=k) for k in range(weeks)]
    days = np.array([from_christmas(day) for day in dates], dtype=np.float64)
    peak = 1 + 0.6 * np.exp(-((days + 7) ** 2) / (2 * 14**2))
    level = rng.lognormal(4.0, 0.8, (items, 1, 1))
    store = rng.lognormal(0.0, 0.4, (1, stores, 1))
    mean = level * store * peak
    size = 6.0  # variance = mean + mean^2 / size
    sales = rng.negative_binomial(size, size / (size + mean)).astype(np.float32)
    returned = rng.random(sales.shape) < 0.01
    sales[returned] = -np.ceil(0.05 * sales[returned])
    return WeeklySales(values=sales, days_from_christmas=tuple(days), source="look-alike")


def load_sales(path: str | Path) -> WeeklySales:
    """Read weekly sales.

    Args:
        path: a tensor (items, stores, weeks) as ``.pt``, a long table as ``.csv`` or ``.parquet`` with the columns
            item_nbr, store_nbr, date, unit_sales (one row a week; weeks without a row sold nothing), or a folder that
            holds ``weekly_sales`` in one of these forms. ``dates_with_info.csv`` beside a tensor gives the calendar.

    Raises:
        DatasetError: the content is not that; the message says where.
        FileNotFoundError: there is no such file, or the folder has none.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} holds none of {', '.join(NAMES)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".pt":
        return _from_tensor(path)
    if path.suffix in (".csv", ".parquet"):
        return _from_table(path)
    raise DatasetError(f"{path}: weekly sales are .pt, .csv or .parquet, not {path.suffix!r}")


def _from_tensor(path: Path) -> WeeklySales:
    values = _tensor(path)
    calendar = path.with_name("dates_with_info.csv")
    days = [float(from_christmas(FIRST_WEEK + timedelta(weeks=k))) for k in range(values.shape[2])]
    if calendar.is_file():
        days = _calendar(calendar)
    return WeeklySales(values=values.float().numpy(), days_from_christmas=tuple(days), source=str(path))


def _tensor(path: Path) -> torch.Tensor:
    """The real tensor (items, stores, weeks) in a file of ``torch.save``; nothing in the file is run."""
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise DatasetError(
            f"{path}: a pointer of Git LFS, not the file itself; fetch that with 'git lfs pull'"
        )
    if not start:
        raise DatasetError(f"{path}: the file is empty")
    if not zipfile.is_zipfile(path):
        raise DatasetError(
            f"{path}: not a file that torch.save wrote, or cut short (versions of torch before 1.6: save it again)"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which is not read" if found else f"is damaged ({type(error).__name__})"
        raise DatasetError(f"{path}: {what}; want one tensor (items, stores, weeks)") from None
    if not isinstance(values, torch.Tensor):
        raise DatasetError(f"{path}: holds a {type(values).__name__}, want a tensor (items, stores, weeks)")
    if values.ndim != 3 or values.is_complex() or values.layout != torch.strided:
        raise DatasetError(
            f"{path}: sales must be (items, stores, weeks), got shape {tuple(values.shape)} of {values.dtype}"
        )
    return values


def _calendar(path: Path) -> list[float]:
    """Days from Christmas of each week, from the public table of dates."""
    table, column = read_table(path), "days_from_christmas"
    if column not in table.columns:
        raise DatasetError(f"{path}: no column {column!r}; there are {', '.join(table.columns)}")
    return [_number(value, path, line, column) for line, value in enumerate(table[column], 2)]


def _number(value: object, path: Path, line: int, column: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DatasetError(f"{path}: line {line}: {column} must be a number, got {value!r}") from None


def _from_table(path: Path) -> WeeklySales:
    table = read_table(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise DatasetError(
            f"{path}: no column {missing[0]!r}; want {', '.join(COLUMNS)}, there are {', '.join(table.columns)}"
        )
    keys = ["item_nbr", "store_nbr", "date"]
    counts = table.group_by(keys, maintain_order=True).len()
    counts = counts.filter(counts["len"] > 1)
    if len(counts):
        raise DatasetError(
            f"{path}: item {counts['item_nbr'][0]}, store {counts['store_nbr'][0]} has two rows for {counts['date'][0]}"
        )
    if not len(table):
        raise DatasetError(f"{path}: the table has no rows")
    for name in keys[:2]:
        if table[name].null_count():
            line = table[name].is_null().to_list().index(True) + 2
            raise DatasetError(f"{path}: line {line}: {name} is empty")
    dates = [_day(value, path, line) for line, value in enumerate(table["date"], 2)]
    column = enumerate(table["unit_sales"], 2)
    sales = np.array([_number(value, path, line, "unit_sales") for line, value in column], dtype=np.float32)
    days = sorted(set(dates))
    first, last = days[0], days[-1]
    weeks = (last - first).days // 7 + 1
    if odd := [day for day in days if (day - first).days % 7]:
        raise DatasetError(f"{path}: {odd[0]} is not a whole number of weeks after the first date, {first}")
    items, item = np.unique(table["item_nbr"].to_numpy(), return_inverse=True)
    stores, store = np.unique(table["store_nbr"].to_numpy(), return_inverse=True)
    values = np.zeros((len(items), len(stores), weeks), dtype=np.float32)
    values[item, store, [(day - first).days // 7 for day in dates]] = sales
    calendar = tuple(float(from_christmas(first + timedelta(weeks=k))) for k in range(weeks))
    return WeeklySales(values=values, days_from_christmas=calendar, source=str(path))


def _day(value: object, path: Path, line: int) -> date:
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise DatasetError(
            f"{path}: line {line}: {value!r} is not a date; write them as 2013-01-31"
        ) from None
