"""From the example to money a year and orders: train, backtest, recommend."""

import csv

import pytest

from offrl.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_walk(capsys, tmp_path):
    assert main(["inventory", "init", "net", "--items", "3", "--stores", "2", "--weeks", "40"]) == 0
    arguments = [
        "--policy",
        "base_stock",
        "--normalize",
        "--lr",
        "0.05",
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--scenarios",
        "16",
        "--dev-scenarios",
        "8",
    ]
    assert main(["inventory", "train", "net:I001", *arguments, "--out", "runs"]) == 0
    page = capsys.readouterr().out
    assert "estimator rloo: lane outside Nord -> East has a fixed cost" in page
    (run,) = (tmp_path / "runs" / "hdpo" / "net-I001").iterdir()
    assert main(["inventory", "backtest", str(run)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("item 'I001': 2024-08-12 to 2024-09-30, 8 weeks held out\n")
    assert "EUR a year against min/max, 95 % interval" in page
    assert page.split()[-1] in ("better", "worse", "apart")
    assert main(["inventory", "recommend", str(run), "--out", "orders.xlsx"]) == 0
    import openpyxl

    sheet = openpyxl.load_workbook("orders.xlsx")["orders"]
    assert sheet.max_row == 5
    assert main(["inventory", "recommend", str(run), "--out", "orders.xlsx"]) == 1
    assert "orders.xlsx exists already" in capsys.readouterr().err
    path = tmp_path / "net" / "lanes.csv"
    path.write_text(path.read_text().replace("Nord,East,2", "Nord,East,3"))
    assert main(["inventory", "backtest", str(run)]) == 1
    assert "has changed its network or costs since" in capsys.readouterr().err


def test_a_company_from_training_to_levels(capsys, tmp_path):
    """All items together: train, back-test with past orders, recommend, explain, and its levels back again."""
    assert main(["inventory", "init", "net", "--items", "3", "--stores", "2", "--weeks", "40"]) == 0
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    arguments = ["--policy", "item_levels", "--steps", "2", "--eval-every", "2", *sizes]
    assert main(["inventory", "train", "net", *arguments, "--penalty", "2", "--out", "runs"]) == 0
    assert "order sizes are chosen on training paths before training" in capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "hdpo" / "net").iterdir()
    arguments = ["--orders", "net/orders.csv", "--from", "2024-08-20", "--out", "back.xlsx"]
    assert main(["inventory", "backtest", str(run), *arguments]) == 0
    page = capsys.readouterr().out
    assert page.startswith("Example Foods, 3 items: 2024-08-26 to 2024-09-30, 6 weeks held out\n")
    assert "against as ordered, 95 % interval" in page
    assert "the 3 items on which least is saved" in page
    assert main(["inventory", "explain", str(run), "--as", "sS"]) == 0
    assert "the simpler policy costs" in capsys.readouterr().out
    assert main(["inventory", "backtest", str(run), "--versus", "levels.xlsx"]) == 0
    assert (
        main(["inventory", "explain", str(run), "--out", "levels"]) == 0
    )  # a folder, which the next one reads
    capsys.readouterr()
    assert main(["inventory", "backtest", str(run), "--versus", "levels", "--orders", "net"]) == 0
    assert "against min/max" in capsys.readouterr().out
    assert main(["inventory", "backtest", str(run), "--versus", "net"]) == 1
    assert "net: there is no sheet 'levels'" in capsys.readouterr().err
    assert main(["inventory", "recommend", str(run), "--state", "net"]) == 0
    import openpyxl

    sheets = openpyxl.load_workbook("back.xlsx").sheetnames
    assert sheets == ["summary", "groups", "items", "worst"]
    assert openpyxl.load_workbook("orders.xlsx")["orders"]["G1"].value == "base_stock"
    capsys.readouterr()
    for words in (("backtest", str(run), "--out", "back.csv"), ("explain", str(run), "--out", "levels.csv")):
        assert main(["inventory", *words]) == 1
        out, error = capsys.readouterr()
        assert out == ""  # before the work
        assert "write a workbook NAME.xlsx, or a folder" in error
    for date, says in (
        ("2024-08-01", "is before 2024-08-12"),
        ("2025-01-01", "after the last"),
        ("soon", "takes a date"),
    ):
        assert main(["inventory", "backtest", str(run), "--from", date]) == 1
        assert says in capsys.readouterr().err


def test_what_service_costs(capsys, tmp_path):
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "30"]) == 0
    arguments = ["--penalties", "0.5", "4", "--steps", "1"]
    assert main(["inventory", "frontier", "net", *arguments]) == 0
    rows = (tmp_path / "frontier" / "frontier.csv").read_text().splitlines()
    assert rows[0] == "policy,factor,fill_rate,stock_and_orders,short,cost"
    assert [row.partition(",")[0] for row in rows[1:]] == ["min/max"] * 7 + ["item_levels"] * 2
    assert (tmp_path / "frontier" / "frontier.png").stat().st_size > 5000
    assert main(["inventory", "frontier", "net", *arguments]) == 1
    capsys.readouterr()
    unfit = ["--policies", "item_levels", "echelon_stock"]
    assert main(["inventory", "frontier", "net", *arguments, *unfit, "--out", "other"]) == 1
    assert capsys.readouterr().out == ""  # said before any work
    assert main(["inventory", "frontier", "one_store_lost", "--out", "other"]) == 1
    assert "is no workbook or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("backtest", "held-out"),
        ("recommend", "ordering rules"),
        ("explain", "classical"),
        ("frontier", "service"),
    ],
)
def test_help_teaches(capsys, name, word):
    assert main(["inventory", name, "--help"]) == 0
    assert word in capsys.readouterr().out


def test_another_run_is_refused(capsys):
    assert main(["inventory", "backtest", "nowhere"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_dates_that_training_saw_are_not_held_out(capsys, tmp_path):
    """Sales of fewer weeks than the run was trained on: their last fifth is no test of it; more weeks are."""
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "40"]) == 0
    (tmp_path / "net" / "orders.csv").unlink()
    path = tmp_path / "net" / "demand.csv"
    head, *rows = path.read_text().splitlines(keepends=True)

    def keep(last):
        path.write_text("".join([head, *(row for row in rows if row.split(",")[2] <= last)]))

    keep("2024-09-16")
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    assert main(["inventory", "train", "net:I001", "--policy", "base_stock", "--steps", "1", *sizes]) == 0
    (run,) = (tmp_path / "runs" / "hdpo" / "net-I001").iterdir()
    keep("2024-09-30")
    assert main(["inventory", "backtest", str(run)]) == 0
    keep("2024-08-26")
    capsys.readouterr()
    assert main(["inventory", "backtest", str(run)]) == 1
    error = capsys.readouterr().err
    assert "last fifth begins on 2024-07-15, and training saw all dates before 2024-08-05" in error
    assert error.count("\n") == 1


def test_an_item_too_new_to_be_fitted_is_said_when_it_is_trained(capsys, tmp_path):
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "40"]) == 0
    path = tmp_path / "net" / "demand.csv"
    head, *rows = [line.split(",") for line in path.read_text().splitlines(keepends=True)]
    rows = [row for row in rows if row[0] != "I002" or row[2] > "2024-09-01"]
    path.write_text("".join(",".join(row) for row in (head, *rows)))
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    assert main(["inventory", "train", "net", "--policy", "item_levels", "--steps", "1", *sizes]) == 0
    assert "no demand is known at I002 @ Store 01 and 1 more: what is ordered" in capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "hdpo" / "net").iterdir()
    assert main(["inventory", "recommend", str(run)]) == 0
    page = capsys.readouterr().out
    assert "warning: I002 at Store 01: no sales on the dates that were fitted" in page
    assert main(["inventory", "train", "net:I002", "--policy", "base_stock", "--steps", "1", *sizes]) == 1
    assert "item 'I002' has no sales before 2024-08-12" in capsys.readouterr().err


def test_a_company_without_min_and_max(capsys, tmp_path):
    """The dictionary says that they are not needed: orders, past orders and prices on service go without."""
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "40"]) == 0
    path = tmp_path / "net" / "stock.csv"
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]
    low, high = head.index("min"), head.index("max")
    for row in rows:
        row[low] = row[high] = ""
    path.write_text("\n".join(",".join(row) for row in (head, *rows)))
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    assert main(["inventory", "train", "net", "--policy", "item_levels", "--steps", "1", *sizes]) == 0
    (run,) = (tmp_path / "runs" / "hdpo" / "net").iterdir()
    capsys.readouterr()
    assert main(["inventory", "recommend", str(run), "--out", "orders"]) == 0
    with open(tmp_path / "orders" / "orders.csv") as file:
        found = list(csv.DictReader(file))
    assert {row["min_max_order"] for row in found} == {""}
    assert any(float(row["order"]) > 0 for row in found)
    assert main(["inventory", "backtest", str(run), "--orders", "net"]) == 0
    page = capsys.readouterr().out
    assert "against as ordered, 95 % interval" in page
    assert "min/max" not in page
    assert main(["inventory", "backtest", str(run)]) == 1
    assert "sheet 'stock' has no min and max" in capsys.readouterr().err
    assert main(["inventory", "frontier", "net", "--penalties", "1", "--steps", "1"]) == 0
    rows = (tmp_path / "frontier" / "frontier.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == ["item_levels"]


def test_a_run_on_tables_is_used_from_any_folder(capsys, monkeypatch, tmp_path):
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "40"]) == 0
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    assert main(["inventory", "train", "net:I001", "--policy", "base_stock", "--steps", "1", *sizes]) == 0
    (run,) = (tmp_path / "runs" / "hdpo" / "net-I001").iterdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["inventory", "backtest", str(run)]) == 0
    assert main(["inventory", "recommend", str(run), "--out", "orders"]) == 0


def test_a_run_is_not_used_on_other_dates_than_its_season_and_order_days_fall_on(capsys, tmp_path):
    """A company that keeps its last so many weeks: period 0 is another week, and 'every 2' the other one."""
    assert main(["inventory", "init", "net", "--items", "3", "--stores", "2", "--weeks", "40"]) == 0
    sizes = ["--scenarios", "4", "--dev-scenarios", "2", "--test-scenarios", "2", "--batch-size", "2"]
    arguments = ["--policy", "item_levels", "--steps", "1", *sizes]
    for item in ("I001", "I003"):  # without order days, and with
        assert main(["inventory", "train", f"net:{item}", *arguments]) == 0
    without, dated = (
        next((tmp_path / "runs" / "hdpo" / f"net-{item}").iterdir()) for item in ("I001", "I003")
    )
    for name in ("demand", "orders"):
        path = tmp_path / "net" / f"{name}.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "2024-01-01" not in line))
    capsys.readouterr()
    assert main(["inventory", "recommend", str(without), "--out", "a"]) == 0
    assert main(["inventory", "recommend", str(dated), "--out", "b"]) == 1
    error = capsys.readouterr().err
    assert "begin on 2024-01-08" in error
    assert "did on 2024-01-01: its season and order days would fall on other dates" in error
    assert error.count("\n") == 1
