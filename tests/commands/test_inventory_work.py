"""``offrl inventory init``, ``import``, and ``check`` of a workbook."""

import json

import pytest

from offrl.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_example_is_written_and_checked(capsys, tmp_path):
    import openpyxl

    assert main(["inventory", "init", "net.xlsx", "--items", "3", "--stores", "2", "--weeks", "9"]) == 0
    assert "next: offrl inventory check net.xlsx" in capsys.readouterr().out
    book = openpyxl.load_workbook("net.xlsx", read_only=True)
    names = "about nodes lanes items costs demand stock orders dictionary"
    assert book.sheetnames == names.split()
    assert main(["inventory", "check", "net.xlsx", "--item", "I003"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("Example Foods: 3 suppliers, 2 warehouses, 2 stores, 8 lanes, 3 items\n")
    assert "one order of item 'I003':\n  week  0: East orders from outside Asia" in page
    assert "stockpyl" in page
    assert "4. What is due comes in, in time for the next week." in page
    assert (tmp_path / "net-network.png").stat().st_size > 5000


def test_an_item_that_a_store_does_not_sell_is_no_warning(capsys, tmp_path, recwarn):
    assert main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "9"]) == 0
    for name in ("demand", "orders", "stock"):
        path = tmp_path / "net" / f"{name}.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(x for x in lines if not (x.startswith("I002,") and "Store 01" in x)))
    assert main(["inventory", "check", "net"]) == 0
    assert not recwarn.list


def test_nothing_is_written_over(capsys):
    arguments = ["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "4"]
    assert main(arguments) == 0
    assert main(["inventory", "check", "net", "--picture", "n.svg"]) == 0
    assert main(arguments) == 1
    assert "net exists already; choose another name or remove it" in capsys.readouterr().err
    assert main(["inventory", "init", "net.csv"]) == 1
    assert "write a workbook NAME.xlsx, or a folder" in capsys.readouterr().err
    assert main(["inventory", "init", "other", "--items", "0"]) == 1


def test_a_mistake_is_one_line(capsys, tmp_path):
    main(["inventory", "init", "net", "--items", "2", "--stores", "2", "--weeks", "4"])
    path = tmp_path / "net" / "lanes.csv"
    path.write_text(path.read_text().replace("Nord,East,2", "Nord,East,two"))
    capsys.readouterr()
    assert main(["inventory", "check", "net"]) == 1
    assert capsys.readouterr().err == (
        "offrl: net: lanes.csv, line 2, column 'lead_time': lead_time is the text 'two'; write a number, without its unit\n"
    )


def test_imports(capsys, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"L": [1, 2, 3]}))
    assert main(["inventory", "import", "or-gym", "a.json", "--out", "b.yaml"]) == 0
    assert "note: profit there is minus cost here" in capsys.readouterr().out
    assert main(["inventory", "check", "b.yaml"]) == 0
    assert main(["inventory", "import", "or-gym", "a.json", "--out", "b.yaml"]) == 1
    assert "b.yaml exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "word"), [("init", "made up"), ("import", "stockpyl"), ("check", "workbook")]
)
def test_help_teaches(capsys, name, word):
    assert main(["inventory", name, "--help"]) == 0
    assert word in capsys.readouterr().out
