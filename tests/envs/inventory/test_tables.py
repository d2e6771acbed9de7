"""Demand histories from tables: both layouts, order, and every way in which a file can be wrong."""

import numpy as np
import polars
import pytest

from offrl.envs.inventory.tables import read_demand
from offrl.errors import DatasetError

WIDE = "period,north,south\n2024-01-08,3,4\n2024-01-01,1,2\n"
LONG = "store,period,demand\nnorth,2024-01-01,1\nsouth,2024-01-01,2\nsouth,2024-01-08,4\nnorth,2024-01-08,3\neast,2024-01-01,9\n"
ITEMS = "item,store,period,demand\na,north,1,1\na,south,1,2\nb,north,1,3\nb,south,1,4\n"


@pytest.mark.parametrize("text", [WIDE, LONG])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_both_layouts_are_put_in_order(tmp_path, text, form):
    path = tmp_path / "d.csv"
    path.write_text(text)
    if form == "parquet":
        polars.read_csv(path).write_parquet(path := tmp_path / "d.parquet")
    np.testing.assert_array_equal(read_demand(path, ["north", "south"]), [[[1, 3], [2, 4]]])
    np.testing.assert_array_equal(read_demand(path, ["south", "north"]), [[[2, 4], [1, 3]]])


def test_items_are_rows(tmp_path):
    (tmp_path / "d.csv").write_text(ITEMS)
    np.testing.assert_array_equal(
        read_demand(tmp_path / "d.csv", ["north", "south"])[:, :, 0], [[1, 2], [3, 4]]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WIDE.replace("period", "week"), "no column 'period'; there are week, north, south"),
        (WIDE.replace("south", "west"), "no column for store 'south'; there are period, north, west"),
        (LONG.replace("store,", "shop,"), "no column 'store'"),
        (LONG.replace("south", "west"), "no rows for store 'south'; there are east, north, west"),
        (
            LONG.replace("south,2024-01-08,4\n", ""),
            "store 'south' has no row for period 2024-01-08; fill the gap",
        ),
        (LONG + "north,2024-01-08,7\n", "store 'north' has two rows for period 2024-01-08"),
        (
            WIDE.replace(",3,", ",lots,"),
            "store 'north', period 2024-01-08: demand must be a number, got 'lots'",
        ),
        (
            "period,north,south\n1,5,1\n2,3,1\n3,nan,1\n",
            "store 'north', period 3: demand must be a number, got 'nan'",
        ),
        (
            LONG.replace("-08,4", "-08,"),
            "store 'south', period 2024-01-08: demand must be a number, got None",
        ),
        (LONG.replace("south,2024-01-08", "south,"), "line 4: period is empty"),
        (ITEMS.replace("b,north", ",north"), "item is empty in 1 rows; fill it"),
        (
            "period,north,south\nweek 9,1,2\nweek 10,3,4\n",
            "period is the text 'week 1?[09]'; write dates as 2025-01-31, or numbers",
        ),
        ("", "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_demand(tmp_path / "d.csv", ["north", "south"])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_demand(tmp_path / "none.csv", ["north"])
