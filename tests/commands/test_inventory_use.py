"""From the example to money a year and orders: train, backtest, recommend."""

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


@pytest.mark.parametrize(("name", "word"), [("backtest", "held-out"), ("recommend", "ordering rules")])
def test_help_teaches(capsys, name, word):
    assert main(["inventory", name, "--help"]) == 0
    assert word in capsys.readouterr().out


def test_another_run_is_refused(capsys):
    assert main(["inventory", "backtest", "nowhere"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
