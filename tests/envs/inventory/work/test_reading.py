"""Files that are no tables, too large, or hold more than values."""

import zipfile

import pytest

from offrl.envs.inventory.work import reading
from offrl.envs.inventory.work.company import read_company
from offrl.envs.inventory.work.reading import letters, read_file, read_tables
from offrl.envs.inventory.work.writing import write_tables
from offrl.errors import ConfigError, DatasetError


def test_letters():
    assert [letters(k) for k in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a workbook; save it as .xlsx"),
        (b"\xd0\xcf\x11\xe0 old", "old .xls file, or one with a password; save it as .xlsx"),
        (b"PK\x03\x04 cut short", "not a workbook"),
        (b"item,node\n", "not a workbook"),
    ],
)
def test_what_is_no_workbook(content, says, tmp_path):
    path = tmp_path / "net.xlsx"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=says):
        read_tables(path)


def test_a_damaged_workbook_is_one_line(workbook, tmp_path):
    content = bytearray(workbook.read_bytes())
    for start in range(40, len(content), 997):
        broken = content.copy()
        broken[start : start + 30] = b"\0" * 30
        path = tmp_path / "net.xlsx"
        path.write_bytes(broken)
        try:
            read_company(path)
        except DatasetError as error:
            assert "\n" not in str(error)


def test_a_zip_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 10**5)
    path = tmp_path / "net.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b"0" * 10**6)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read_tables(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node;kind\nA;store\n", "nodes.csv, line 1: columns are parted by ';'"),
        ("node,kind\nA,store,x\n", "nodes.csv, line 2: 3 values under 2 names"),
        ("node,kind\nA\n", "nodes.csv, line 2: 1 values under 2 names"),
        ("node,kind\n=A1,store\n", "nodes.csv, line 2, column 'node': a formula"),
        ("node,kind\nA,store\n\nB,shop\n", "nodes.csv, line 4, column 'kind': kind is 'shop'; write one of"),
        ("", "nodes.csv: empty"),
        ("node,,kind\n", "nodes.csv, line 1, column 2: a column without a name"),
        ('node,kind\n"A,store\n', "nodes.csv: not a CSV file"),
    ],
)
def test_a_wrong_csv_names_file_line_and_column(text, says, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "nodes.csv").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_company(tmp_path)
    assert f"{tmp_path}: {says}" in str(caught.value)


def test_decimal_commas_and_other_encodings(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "costs.csv").write_text('item,node,holding_cost,underage_cost\n*,*,"0,5",3\n')
    with pytest.raises(
        DatasetError,
        match="column 'holding_cost': holding_cost is the text '0,5'; write decimals with a point",
    ):
        read_company(tmp_path)
    (tmp_path / "costs.csv").write_text("item,node,holding_cost,underage_cost\n*,*,1_000,3\n")
    with pytest.raises(DatasetError, match="holding_cost is the text '1_000'; write a number"):
        read_company(tmp_path)
    (tmp_path / "costs.csv").write_bytes(
        "item,node,holding_cost,underage_cost\nKäse,*,1,3\n".encode("latin-1")
    )
    with pytest.raises(DatasetError, match=r"costs.csv: not UTF-8 text; save it as 'CSV UTF-8'"):
        read_company(tmp_path)


def test_a_workbook_with_macros_is_one_everywhere(workbook, tmp_path):
    from offrl.envs.inventory.settings import load_setting
    from offrl.envs.inventory.work.history import read_history

    path = tmp_path / "net.XLSM"
    path.write_bytes(workbook.read_bytes())
    assert read_history(path).items == read_history(workbook).items
    with pytest.raises(
        ConfigError, match="8 weeks of sales; 9 are the least"
    ):  # read, but too short to train on
        load_setting(str(path))


def test_two_files_of_one_name(folder, tmp_path):
    import polars

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    polars.read_csv(folder / "nodes.csv").write_parquet(tmp_path / "nodes.parquet")
    with pytest.raises(DatasetError, match="both nodes.csv and nodes.parquet: keep one of them"):
        read_company(tmp_path)


def test_one_table_of_its_own(folder, workbook, tmp_path):
    assert len(read_file(folder / "lanes.csv", "lanes")) == len(read_file(workbook, "lanes")) == 9
    with pytest.raises(DatasetError, match="no sheet 'receipts'; add it"):
        read_file(workbook, "receipts")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.csv", "lanes")
    with pytest.raises(FileNotFoundError):
        read_company(tmp_path / "none.xlsx")


def test_names_are_read_as_they_were_written(tmp_path):
    """Levels of 'explain' are read by 'backtest --versus', whatever an item's name begins with."""
    rows = [("item", "node", "min", "max"), ("+5V adapter", "@home", 1, 2), ("-", "'quoted", 3, 4)]
    for name in ("levels.xlsx", "levels"):
        write_tables({"levels": rows}, tmp_path / name)
        table = read_file(tmp_path / name, "levels")
        assert table.columns["item"] == ["+5V adapter", "-"]
        assert table.columns["node"] == ["@home", "'quoted"]
