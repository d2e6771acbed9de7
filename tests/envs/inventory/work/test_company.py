"""A company from its tables: what is read, and the one line that a mistake gives."""

from datetime import date

import numpy as np
import openpyxl
import pytest

from offrl.envs.inventory.work.company import company_of, read_company
from offrl.envs.inventory.work.reading import read_tables
from offrl.envs.inventory.work.schema import SHEETS
from offrl.envs.inventory.work.writing import write_tables
from offrl.errors import ConfigError, DatasetError


def test_workbook_folder_and_parquet_are_the_same(few, workbook, tmp_path):
    import polars

    folder = write_tables(few.rows, tmp_path / "net")
    tmp_path = tmp_path / "parquet"
    tmp_path.mkdir()
    for path in folder.iterdir():
        polars.read_csv(path, try_parse_dates=True).write_parquet(tmp_path / f"{path.stem}.parquet")
    ours, others = read_company(workbook), [read_company(folder), read_company(tmp_path)]
    for other in others:
        for name, value in vars(ours).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(other, name))
            else:
                assert value == getattr(other, name)


def test_what_is_read_is_what_was_made(small, folder):
    company = read_company(folder)
    assert (company.period, company.currency, company.lost, company.first) == (
        "week",
        "EUR",
        True,
        date(2024, 1, 1),
    )
    assert company.sales.shape == (4, 3, 30)
    known = ~np.isnan(company.sales)
    assert 0.9 < known.mean() < 1
    assert (company.sales[known] <= small.demand[known]).all()
    in_stock = known & (company.left > 0)
    assert (company.sales[in_stock] >= small.demand[in_stock] - 2).all()  # but for goods returned
    np.testing.assert_array_equal(company.levels, small.levels)
    assert company.dates()[-1] == date(2024, 7, 22)


def test_the_network_of_an_item_has_its_supplier_only(folder):
    company = read_company(folder)
    for k, name in enumerate(("Nord", "Sud", "Asia", "Nord")):
        network = company.network(k)
        outside = {e.source for e in network.edges if e.source not in network.place}
        assert outside == {f"outside {name}"}
        assert len(network.edges) == len(network.nodes) == 5
    asia = [e for e in company.network(2).edges if e.source == "outside Asia"]
    assert [(e.lead_time, e.calendar, e.pack, e.fixed_cost) for e in asia] == [(6, (1, 0), 6.0, 20.0)] * 2
    assert company.network(0).nodes[0].initial == company.on_hand[0, 0]


def test_costs_come_from_the_most_exact_row(workbook, tmp_path):
    rows = [("I001", "Store 01", 7.0, None), ("*", "Store 01", 9.0, 8.0), ("*", "*", 5.0, 4.0)]
    path = changed(workbook, tmp_path, lambda book: replaced(book["costs"], rows))
    company = read_company(path)
    stores = [name for name, _ in company.places].index("Store 01")
    assert company.holding[0, stores] == 7.0
    assert company.holding[1, stores] == 9.0
    assert company.holding[1, stores + 1] == 5.0
    np.testing.assert_array_equal(company.underage[:2, :2], [[8.0, 4.0], [8.0, 4.0]])


def test_goods_under_way_come_when_they_are_due(workbook, tmp_path):
    def change(book):
        book["stock"]["D2"], book["stock"]["E2"] = 30, date(2024, 3, 12)

    company = read_company(changed(workbook, tmp_path, change))  # the first day to plan is 26 February
    assert (company.on_order[0, 0], company.due[0, 0]) == (30.0, 3)


def test_a_store_that_does_not_sell_an_item_is_not_in_its_network(workbook, tmp_path):
    def change(book):
        sheet = book["demand"]
        rows = [r for r in sheet.iter_rows(min_row=2, values_only=True) if r[:2] != ("I001", "Store 03")]
        replaced(sheet, rows)

    company = read_company(changed(workbook, tmp_path, change))
    names = [node.name for node in company.network(0).nodes]
    assert names == ["East", "Store 01", "Store 02"]  # West would supply nobody
    assert len(company.network(1).nodes) == 5


def test_lead_time_zero_into_a_store(workbook, tmp_path):
    network = read_company(changed(workbook, tmp_path, lambda b: put(b, "lanes", "C8", 0))).network(0)
    assert network.same_period
    assert network.lead_times[0] == 0


def replaced(sheet, rows):
    sheet.delete_rows(2, sheet.max_row)
    for row in rows:
        sheet.append(row)


def put(book, sheet, cell, value, number_format=None):
    book[sheet][cell] = value
    if number_format:
        book[sheet][cell].number_format = number_format


def changed(workbook, tmp_path, change):
    book = openpyxl.load_workbook(workbook)
    change(book)
    path = tmp_path / "net.xlsx"
    book.save(path)
    return path


def _swap(book, a, b):
    sheet = book["demand"]
    for letter in "ABCDE":
        sheet[f"{letter}{a}"].value, sheet[f"{letter}{b}"].value = (
            sheet[f"{letter}{b}"].value,
            sheet[f"{letter}{a}"].value,
        )


def _double(book, sheet, row):
    book[sheet].append([cell.value for cell in book[sheet][row]])


MISTAKES = {  # what is wrong -> how to do it, where the message says it is, what it says
    "sheet missing": (lambda b: b.remove(b["lanes"]), "", "no sheet 'lanes'; add it"),
    "sheet empty": (lambda b: b["lanes"].delete_rows(1, 99), "sheet 'lanes'", "empty; put the names"),
    "no rows": (lambda b: b["lanes"].delete_rows(2, 99), "sheet 'lanes'", "no rows under the names"),
    "column missing": (lambda b: b["lanes"].delete_cols(3), "sheet 'lanes'", "no column 'lead_time'; add it"),
    "column unknown": (lambda b: put(b, "lanes", "C1", "leadtime"), "sheet 'lanes', cell C1", "did you mean 'lead_time'?"),
    "column twice": (lambda b: put(b, "lanes", "K1", "cost"), "sheet 'lanes', cell K1", "appears twice; keep one"),
    "value without a column": (lambda b: put(b, "nodes", "C3", "note"), "sheet 'nodes', cell C3", "no name above it; remove it"),
    "text for a number": (lambda b: put(b, "demand", "D5", "twelve"), "sheet 'demand', cell D5", "text 'twelve'; write a number"),
    "number kept as text": (lambda b: put(b, "demand", "D5", "30"), "sheet 'demand', cell D5", "text '30'; format the column as numbers"),
    "decimal comma": (lambda b: put(b, "demand", "D5", "30,5"), "sheet 'demand', cell D5", "text '30,5'; format the column as numbers"),
    "title above": (lambda b: b["lanes"].insert_rows(1), "sheet 'lanes'", "the first row is empty; put the names"),
    "number with its unit": (lambda b: put(b, "stock", "C4", "12 kg"), "sheet 'stock', cell C4", "without its unit"),
    "true for a number": (lambda b: put(b, "stock", "C4", True), "sheet 'stock', cell C4", "write a number"),
    "date for a number": (lambda b: put(b, "stock", "C4", date(2024, 1, 1)), "sheet 'stock', cell C4", "format the cell as a number"),
    "formula": (lambda b: put(b, "demand", "D5", "=D4*2"), "sheet 'demand', cell D5", "formula, '=D4*2'; paste its value"),
    "error value": (lambda b: put(b, "demand", "D5", "#REF!"), "sheet 'demand', cell D5", "error value #REF!; put in a value"),
    "merged cells": (lambda b: b["nodes"].merge_cells("A3:A4"), "sheet 'nodes', cell A3", "cells A3:A4 are merged; unmerge"),
    "cell empty": (lambda b: put(b, "lanes", "B5", None), "sheet 'lanes', cell B5", "to is empty; fill it"),
    "negative stock": (lambda b: put(b, "stock", "C4", -3), "sheet 'stock', cell C4", "on_hand is -3; it must be 0 or more"),
    "negative stock left": (lambda b: put(b, "demand", "E4", -1), "sheet 'demand', cell E4", "correct the count"),
    "negative lead time": (lambda b: put(b, "lanes", "C4", -1), "sheet 'lanes', cell C4", "lead_time is -1; it must be 0 or more"),
    "part of a period": (lambda b: put(b, "lanes", "C4", 1.5), "sheet 'lanes', cell C4", "write whole periods, rounded up"),
    "pack of zero": (lambda b: put(b, "lanes", "H4", 0), "sheet 'lanes', cell H4", "must be above 0, or empty for none"),
    "lead time 0 into a warehouse": (lambda b: put(b, "lanes", "C2", 0), "sheet 'lanes', cell C2", "it can ship next period; write 1"),
    "another period": (lambda b: put(b, "lanes", "D4", "day"), "sheet 'lanes', cell D4", "plans by week; convert it"),
    "capacity below a pack": (lambda b: put(b, "lanes", "I4", 5), "sheet 'lanes', cell I4", "below the smallest order, 6"),
    "order days": (lambda b: put(b, "lanes", "J4", "Mondays"), "sheet 'lanes', cell J4", "write 'every 2'"),
    "unknown kind": (lambda b: put(b, "nodes", "B4", "shop"), "sheet 'nodes', cell B4", "one of supplier, warehouse, store"),
    "node twice": (lambda b: _double(b, "nodes", 4), "sheet 'nodes', cell A10", "already stands in row 4; names must differ"),
    "item twice": (lambda b: _double(b, "items", 2), "sheet 'items', cell A6", "already stands in row 2"),
    "lane twice": (lambda b: _double(b, "lanes", 3), "sheet 'lanes', cell B11", "already stand in row 3; merge the two rows"),
    "stock twice": (lambda b: _double(b, "stock", 3), "sheet 'stock', cell B22", "add the two up in one row"),
    "lane to nowhere": (lambda b: put(b, "lanes", "B9", "Store 3"), "sheet 'lanes', cell B9", "did you mean 'Store 03'?"),
    "cycle": (lambda b: (put(b, "lanes", "A2", "West"), b["lanes"].append(["East", "West", 1])), "sheet 'lanes', cell A", "form a cycle"),
    "lane to itself": (lambda b: put(b, "lanes", "A2", "East"), "sheet 'lanes', cell B2", "cannot supply itself"),
    "lane into a supplier": (lambda b: put(b, "lanes", "B2", "Asia"), "sheet 'lanes', cell B2", "is a supplier, which has no limit"),
    "lane out of a store": (lambda b: put(b, "lanes", "A9", "Store 01"), "sheet 'lanes', cell A9", "a store, which only sells"),
    "store without a lane": (lambda b: b["lanes"].delete_rows(9), "sheet 'lanes'", "no lane leads to store 'Store 02'; add one"),
    "supplier cannot reach": (lambda b: put(b, "items", "B3", "Store 01"), "sheet 'items', cell B3", "unknown supplier 'Store 01'"),
    "unknown item": (lambda b: put(b, "demand", "A7", "I0001"), "sheet 'demand', cell A7", "unknown item 'I0001'; did you mean 'I001'?"),
    "sales at a warehouse": (lambda b: put(b, "demand", "B7", "East"), "sheet 'demand', cell B7", "unknown store 'East'"),
    "wrong unit": (lambda b: put(b, "demand", "F7", "case"), "sheet 'demand', cell F7", "counted in 'each'; convert the amounts"),
    "wrong unit of stock": (lambda b: put(b, "stock", "H7", "case"), "sheet 'stock', cell H7", "counted in 'each'"),
    "dates out of order": (lambda b: _swap(b, 5, 6), "sheet 'demand', cell C6", "sort the rows by date"),
    "date twice": (lambda b: put(b, "demand", "C6", b["demand"]["C5"].value), "sheet 'demand', cell C6", "stands twice"),
    "date between periods": (lambda b: put(b, "demand", "C6", date(2024, 1, 31)), "sheet 'demand', cell C6", "no whole number of weeks"),
    "date as a number": (lambda b: put(b, "demand", "C6", 45292, "General"), "sheet 'demand', cell C6", "format the cell as a date"),
    "date as text": (lambda b: put(b, "demand", "C6", "31.1.24"), "sheet 'demand', cell C6", "write dates as 2025-01-31"),
    "year mistyped": (lambda b: put(b, "demand", "C2", date(24, 1, 1)), "sheet 'demand', cell C2", "days before the last date; correct it"),
    "item never sold": (lambda b: b["items"].append(["I999", "Nord", "each"]), "sheet 'items', cell A6", "add its sales or remove it"),
    "no cost": (lambda b: b["costs"].delete_rows(2), "sheet 'costs'", "no row covers item 'I001' at 'Store 01'; add one"),
    "no underage cost": (lambda b: put(b, "costs", "D2", None), "sheet 'costs'", "no underage_cost covers item 'I001'"),
    "customers at a warehouse": (lambda b: put(b, "costs", "D3", 2), "sheet 'costs', cell D3", "no customer sees; empty the cell"),
    "min above max": (lambda b: put(b, "stock", "F4", 9999), "sheet 'stock', cell F4", "exchange them"),
    "min without max": (lambda b: put(b, "stock", "G4", None), "sheet 'stock', cell G4", "min and max go together"),
    "under way, no date": (lambda b: (put(b, "stock", "D4", 5), put(b, "stock", "E4", None)), "sheet 'stock', cell D4", "write when they come"),
    "truck of no size": (lambda b: put(b, "lanes", "K4", 0), "sheet 'lanes', cell K4", "must be above 0, or empty for none"),
    "pack larger than its truck": (lambda b: put(b, "lanes", "K2", 5), "sheet 'lanes', cell K2", "do not fit; raise it or lower the pack"),
    "shared budget as text": (lambda b: put(b, "about", "F2", "much"), "sheet 'about', cell F2", "text 'much'; write a number"),
    "negative value": (lambda b: put(b, "items", "E3", -2), "sheet 'items', cell E3", "value is -2; it must be 0 or more"),
    "size of zero": (lambda b: put(b, "items", "F3", 0), "sheet 'items', cell F3", "must be above 0, or empty for none"),
    "order of an unknown item": (lambda b: put(b, "orders", "A3", "I0001"), "sheet 'orders', cell A3", "did you mean 'I001'?"),
    "order on no lane": (lambda b: put(b, "orders", "B2", "Store 01"), "sheet 'orders', cell B2", "no lane leads from 'Store 01'"),
    "order between periods": (lambda b: put(b, "orders", "D2", date(2024, 2, 7)), "sheet 'orders', cell D2", "no first day of a week"),
    "sheet twice": (lambda b: setattr(b.copy_worksheet(b["demand"]), "title", "Demand "), "sheet 'Demand '", "there is a sheet 'demand' as well; keep one"),
    "bar code for sales": (lambda b: put(b, "demand", "D5", 4006381333931), "sheet 'demand', cell D5", "is it in the wrong column?"),
    "large returns": (lambda b: put(b, "demand", "D5", -1e30), "sheet 'demand', cell D5", "it must be 1e+12 at most"),
    "lead time of hours": (lambda b: put(b, "lanes", "C4", 1008), "sheet 'lanes', cell C4", "it must be 1000 at most: is it in another unit?"),
    "other letters": (lambda b: put(b, "demand", "B7", "STORE 02"), "sheet 'demand', cell B7", "did you mean 'Store 02'?"),
    "two companies": (lambda b: _double(b, "about", 2), "sheet 'about', row 3", "remove the others"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_sheet_cell_and_remedy(name, workbook, tmp_path):
    change, where, says = MISTAKES[name]
    path = changed(workbook, tmp_path, change)
    with pytest.raises(DatasetError) as caught:
        read_company(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: {where}")
    assert says in text


def test_rows_that_are_empty_do_not_move_the_line(workbook, tmp_path):
    def change(book):
        book["stock"].insert_rows(3, 2)
        book["stock"]["C7"] = "x"

    with pytest.raises(DatasetError, match="sheet 'stock', cell C7: on_hand is the text 'x'"):
        read_company(changed(workbook, tmp_path, change))


def test_receipts_give_lanes_their_ways(workbook, tmp_path):
    def change(book):
        sheet = book.create_sheet("receipts")
        sheet.append([column.name for column in SHEETS["receipts"].columns])
        sheet.append(["Nord", "East", "a", date(2024, 1, 1), date(2024, 1, 9), 30])
        sheet.append(["Nord", "East", "a", date(2024, 1, 1), date(2024, 1, 22), 10])
        sheet.append(["Nord", "East", "b", date(2024, 1, 8), date(2024, 1, 12), 7])

    network = read_company(changed(workbook, tmp_path, change)).network(0)
    lane = next(e for e in network.edges if e.target == "East")
    assert lane.receipts == ((0.0, 0.75, 0.25), (1.0,))
    assert network.width == 3

    def early(book):
        change(book)
        book["receipts"]["E3"] = date(2023, 1, 1)

    with pytest.raises(
        DatasetError, match="sheet 'receipts', cell E3: received 2023-01-01 is before ordered"
    ):
        read_company(changed(workbook, tmp_path, early))


def test_days_have_weekdays_to_order_on(small):
    tables = read_tables_of(small.rows)
    tables["about"].columns["period"][:] = ["day"]
    tables["lanes"].columns["period"][:] = [None] * 9
    tables["lanes"].columns["order_days"][:] = ["Mon, thu"] + [None] * 8
    lane = company_of(tables).lanes[0]
    assert lane.calendar == (1, 0, 0, 1, 0, 0, 0)  # 1 January 2024 is a Monday
    tables["lanes"].columns["order_days"][0] = "Mon Thx"
    with pytest.raises(DatasetError, match="'thx' is not a weekday; write 'Mon Thu'"):
        company_of(tables)


def read_tables_of(rows):
    from offrl.envs.inventory.work.reading import Table

    return {
        name: Table(
            name=name, source=f"sheet {name!r}", lines=list(range(2, len(table) + 1)),
            columns={key: [row[k] for row in table[1:]] for k, key in enumerate(table[0])},
        )
        for name, table in rows.items() if name in SHEETS
    }  # fmt: skip


def test_an_unknown_item_is_named(folder):
    with pytest.raises(ConfigError, match="no item 'X'; there are I001, I002, I003, I004"):
        read_company(folder).index("X")


def test_tables_by_name_only(folder):
    assert list(read_tables(folder)) == [name for name in SHEETS if name != "receipts"]
