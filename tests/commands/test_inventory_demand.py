"""``offrl inventory demand fit``."""

import csv
from datetime import date, timedelta

import pytest

from offrl.cli import main
from offrl.envs.inventory.work.example import example
from offrl.envs.inventory.work.writing import write_tables


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_fit_is_told_and_written(capsys, tmp_path):
    rows = example(items=4, stores=3, weeks=80).rows
    write_tables(rows, "net")
    assert main(["inventory", "demand", "fit", "net", "--out", "found"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("4 items in 3 stores, 80 weeks from 2024-01-01 to 2025-07-07: gaps")
    assert "held out: the last 16 weeks" in page
    with open("found/demand.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12
    assert {row["kind"] for row in table} >= {"steady", "intermittent"}
    for row in table:
        assert float(row["demand"]) - float(row["sales"]) == pytest.approx(float(row["hidden"]), abs=2e-4)
        assert float(row["std"]) > 0
    assert (tmp_path / "found" / "calibration.png").stat().st_size > 10000
    with open("sales.csv", "w", newline="") as file:
        csv.writer(file).writerows([row[:4] for row in rows["demand"]])
    assert main(["inventory", "demand", "fit", "sales.csv", "--held-out", "8"]) == 0
    assert "no stock is known: sales are taken for demand" in capsys.readouterr().out


def test_items_without_sales_and_without_held_out_dates(capsys, tmp_path):
    """No share of nothing; and what has no date to be scored on is not called free of over-fitting."""
    days = [f"{date(2024, 1, 1) + timedelta(weeks=k)}" for k in range(20)]

    def write(*series):
        rows = [(item, "s", day, units) for item, known, units in series for day in days[known]]
        with open("sales.csv", "w", newline="") as file:
            csv.writer(file).writerows([("item", "node", "date", "sales"), *rows])

    write(("A", slice(None), 0), ("B", slice(None), 5))
    assert main(["inventory", "demand", "fit", "sales.csv"]) == 0
    page = capsys.readouterr().out
    (line,) = [line for line in page.splitlines() if line.startswith("intermittent")]
    assert line.split() == ["intermittent", "1", "0.0", "0.0", "+0.0"]
    write(("A", slice(16, None), 3), ("B", slice(1), 2), ("B", slice(2, 12), 2))
    assert main(["inventory", "demand", "fit", "sales.csv"]) == 1
    assert "no sales are known on the last 4 weeks of what was sold before" in capsys.readouterr().err
    assert main(["inventory", "demand", "fit", "sales.csv", "--held-out", "10"]) == 0


def test_mistakes_and_help(capsys):
    assert main(["inventory", "demand", "fit", "none.csv"]) == 1
    assert main(["inventory", "demand", "fti", "none.csv"]) == 2
    assert "did you mean 'fit'?" in capsys.readouterr().err
    assert main(["inventory", "demand", "fit", "--help"]) == 0
    assert "censored" in capsys.readouterr().out
    assert main(["inventory", "demand", "--help"]) == 0
