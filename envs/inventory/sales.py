"""Weekly sales as recorded demand: the public Favorita files (PT, CSV, Parquet), and a synthetic look-alike."""

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
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DatasetError(
            f"{path}: not a tensor that torch can read without running code ({type(error).__name__})"
        ) from None
    if not isinstance(values, torch.Tensor):
        raise DatasetError(f"{path}: holds a {type(values).__name__}, want a tensor (items, stores, weeks)")
    calendar = path.with_name("dates_with_info.csv")
    weeks = values.shape[-1]
    days = [float(from_christmas(FIRST_WEEK + timedelta(weeks=k))) for k in range(weeks)]
    if calendar.is_file():
        column = "days_from_christmas"
        table = read_table(calendar)
        if column not in table.columns:
            raise DatasetError(f"{calendar}: no column {column!r}; there are {', '.join(table.columns)}")
        days = [float(value) for value in table[column]]
    return WeeklySales(values=values.float().numpy(), days_from_christmas=tuple(days), source=str(path))


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
    try:
        dates = [_day(value) for value in table["date"]]
        sales = np.array(table["unit_sales"].to_list(), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from None
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


def _day(value: object) -> date:
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write them as 2013-01-31") from None
