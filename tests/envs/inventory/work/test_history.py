"""Sales and stock from files of their own are what the workbook says."""

import csv
from datetime import date, timedelta

import numpy as np
import pytest

from offrl.envs.inventory.work.history import read_history
from offrl.errors import DatasetError


@pytest.fixture
def files(few, tmp_path):
    rows = few.rows["demand"]
    with open(tmp_path / "sales.csv", "w", newline="") as file:
        csv.writer(file).writerows([row[:4] for row in rows])
    with open(tmp_path / "stock.csv", "w", newline="") as file:
        csv.writer(file).writerows([(*row[:3], row[4]) for row in rows])
    return tmp_path


def test_two_files_are_the_workbook(files, workbook):
    a, b = read_history(files / "sales.csv", files / "stock.csv"), read_history(workbook)
    assert (a.items, a.first, a.period) == (b.items, b.first, b.period)
    np.testing.assert_array_equal(a.sales, b.sales)
    np.testing.assert_array_equal(a.left, b.left)
    assert a.sold.all()
    alone = read_history(files / "sales.csv")
    assert not alone.empty.any()
    assert a.until(5).sales.shape == (4, 3, 5)


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("stock.csv", "I002", "I2", "stock.csv, line 2, column 'item': unknown item 'I2'"),
        ("stock.csv", "2024-01-08", "2023-01-09", "line 3, column 'date': '2023-01-09' is no week of the sales"),
        ("stock.csv", "2024-01-08", "2024-01-09", "is no week of the sales, 2024-01-01 and on"),
        ("sales.csv", "2024-01-08", "2024-01-01", "line 3, column 'date': item 'I002' and node"),
        ("sales.csv", "2024-01-08", "1024-01-08", "before the last date; correct it"),
    ],
)  # fmt: skip
def test_mistakes_name_file_line_and_column(files, name, old, new, says):
    lines = (files / name).read_text().splitlines()
    lines = [lines[0], *(line for line in lines[1:] if line.startswith("I002"))]
    if old == "I002":
        lines[1] = lines[1].replace(old, new)
    else:
        lines[2] = lines[2].replace(old, new)
    (files / name).write_text("\n".join(lines))
    with pytest.raises(DatasetError) as caught:
        read_history(files / "sales.csv", files / "stock.csv")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("days", "period"),
    [
        ([7 * k for k in range(10)], "week"),
        ([7 * k for k in range(10) if k % 4], "week"),
        (range(20), "day"),
        ([k for k in range(60) if k % 7 in (0, 3)], "day"),
        (
            [7 * k + (k == 5) for k in range(10)],
            "line 7, column 'date': 2024-02-06 is no whole number of weeks",
        ),
        ([30 * k + k % 2 for k in range(10)], "line 3, column 'date': dates are 29 days apart or more"),
        ([14 * k for k in range(10)], "dates are 14 days apart or more; sales are counted by day or by week"),
    ],
)
def test_days_or_weeks_are_told_by_the_dates(days, period, tmp_path):
    first = date(2024, 1, 1)
    lines = ["item,node,date,sales", *(f"I,s,{first + timedelta(days=day)},3" for day in days)]
    path = tmp_path / "sales.csv"
    path.write_text("\n".join(lines))
    if period in ("day", "week"):
        assert read_history(path).period == period
        return
    with pytest.raises(DatasetError) as caught:
        read_history(path)
    assert period in str(caught.value)


def test_a_workbook_needs_no_stock_file(files, workbook):
    with pytest.raises(DatasetError, match="holds its own stock"):
        read_history(workbook, files / "stock.csv")
