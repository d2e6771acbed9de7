"""Sales and stock from files of their own are what the workbook says."""

import csv

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


def test_a_workbook_needs_no_stock_file(files, workbook):
    with pytest.raises(DatasetError, match="holds its own stock"):
        read_history(workbook, files / "stock.csv")
