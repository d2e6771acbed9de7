"""Tables from a workbook (.xlsx) or from a folder of CSV and Parquet files, with the place of every cell.

What comes from outside is data: sizes are bounded, formulas are refused and never evaluated, merged cells are refused.
"""

import csv
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offrl.envs.inventory.tables import read_table
from offrl.envs.inventory.work.schema import DICTIONARY, LEVELS, SHEETS
from offrl.errors import DatasetError, MissingExtraError

MOST_BYTES = 2**29
"""Of a workbook once unpacked, or of a CSV file."""
MOST_ROWS = 5_000_000
WORKBOOKS = (".xlsx", ".xlsm")
"""Of the latter, the macros are not read."""
OLD_EXCEL = b"\xd0\xcf\x11\xe0"
SHOWN = 40
DAMAGED = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """The cells of one sheet or file, by column, with empty rows left out."""

    name: str
    source: str
    """Sheet or file, as a message names it."""
    columns: dict[str, list[Any]]
    lines: list[int] = field(repr=False)
    """Line of each row, from 1, the row of names included."""
    sheet: bool = True

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int | None, column: str | None = None) -> str:
        """Where a cell is: ``sheet 'lanes', cell C4`` or ``lanes.csv, line 4, column 'lead_time'``."""
        line = 1 if row is None else self.lines[row]
        if column is None:
            return f"{self.source}, {'row' if self.sheet else 'line'} {line}"
        if self.sheet:
            return f"{self.source}, cell {letters(list(self.columns).index(column))}{line}"
        return f"{self.source}, line {line}, column {column!r}"

    def wrong(self, row: int | None, column: str | None, what: str) -> DatasetError:
        """An error that names the place."""
        return DatasetError(f"{self.place(row, column)}: {what}")


def letters(column: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    text = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        text = chr(65 + rest) + text
    return text


def shown(value: Any) -> str:
    """A cell's content, cut short."""
    text = str(value)
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def read_tables(path: str | Path) -> dict[str, Table]:
    """All tables of a company, by name.

    Args:
        path: a workbook ``.xlsx``, or a folder with one ``NAME.csv`` or ``NAME.parquet`` a sheet.

    Raises:
        DatasetError: it cannot be read, or is not what it should be; names the place and a remedy.
        FileNotFoundError: there is nothing.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return {table.name: table for table in _folder(path)}
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        return {table.name: table for table in _workbook(path)}
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def read_file(path: str | Path, name: str) -> Table:
    """One table of its own: ``.csv``, ``.parquet``, or the sheet ``name`` of a workbook or folder."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if path.suffix.lower() in (".csv", ".parquet") and path.is_file():
            return _file(path, name)
        for table in _folder(path, (name,)) if path.is_dir() else _workbook(path):
            if table.name == name:
                return table
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    raise DatasetError(
        f"{path}: there is no sheet {name!r}; add it ('offrl inventory init' writes an example)"
    )


def _folder(folder: Path, names: Iterable[str] = tuple(SHEETS)) -> Iterator[Table]:
    for name in names:
        found = [p for suffix in (".csv", ".parquet") if (p := folder / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            raise DatasetError(f"both {found[0].name} and {found[1].name}: keep one of them")
        if found:
            yield _file(found[0], name)


def _file(path: Path, name: str) -> Table:
    if path.stat().st_size > MOST_BYTES:
        raise DatasetError(f"{path.name}: larger than {MOST_BYTES >> 20} MiB; leave out what is not needed")
    if path.suffix.lower() == ".parquet":
        table = read_table(path)
        columns = {str(key).strip().lower(): table[key].to_list() for key in table.columns}
        return Table(
            name=name, source=path.name, columns=columns, lines=list(range(1, len(table) + 1)), sheet=False
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _table(
                name, path.name, _checked_csv(path.name, csv.reader(file, strict=True)), sheet=False
            )
    except UnicodeDecodeError:
        raise DatasetError(f"{path.name}: not UTF-8 text; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise DatasetError(f"{path.name}: not a CSV file ({error}); save it again as 'CSV UTF-8'") from None


def _checked_csv(source: str, rows: Iterable[list[str]]) -> Iterator[list[str]]:
    width = 0
    for line, row in enumerate(rows, 1):
        if line == 1:
            if len(row) == 1 and (";" in row[0] or "\t" in row[0]):
                raise DatasetError(
                    f"{source}, line 1: columns are parted by {';' if ';' in row[0] else 'tabs'!r}; "
                    "save it with commas between columns and points in numbers"
                )
            width = len(row)
        elif row and len(row) != width:
            raise DatasetError(
                f"{source}, line {line}: {len(row)} values under {width} names; quote texts that hold commas"
            )
        yield row


def _workbook(path: Path) -> Iterator[Table]:
    try:
        import openpyxl
    except ImportError:
        raise MissingExtraError("openpyxl", "inventory") from None
    with open(path, "rb") as file:
        start = file.read(4)
    if start == OLD_EXCEL:
        raise DatasetError("an old .xls file, or one with a password; save it as .xlsx without a password")
    if not zipfile.is_zipfile(path):
        raise DatasetError("not a workbook; save it as .xlsx, or give a folder of CSV files")
    merged = _examined(path)
    try:
        book = openpyxl.load_workbook(path, read_only=not merged, data_only=False, keep_links=False)
    except Exception as error:  # what openpyxl raises on damaged files is not documented
        raise DatasetError(f"damaged ({type(error).__name__}); open it and save it again as .xlsx") from None
    try:
        yield from _sheets(book)
    finally:
        book.close()


def _examined(path: Path) -> bool:
    """Bounds what the file unpacks to; whether any sheet has merged cells."""
    try:
        with zipfile.ZipFile(path) as archive:
            large = sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES
            pages = [e for e in archive.namelist() if e.startswith("xl/worksheets/") and e.endswith(".xml")]
            merged = not large and any(b"<mergeCell " in archive.read(page) for page in pages)
    except DAMAGED as error:
        raise DatasetError(f"damaged ({type(error).__name__}); open it and save it again as .xlsx") from None
    if large:
        raise DatasetError(
            f"unpacks to more than {MOST_BYTES >> 20} MiB; give large tables as CSV or Parquet files"
        )
    return merged


def _sheets(book: Any) -> Iterator[Table]:
    titles: dict[str, str] = {}
    for sheet in book.worksheets:
        name = str(sheet.title).strip().lower()
        if name not in (*SHEETS, LEVELS.name):
            continue
        source = f"sheet {sheet.title!r}"
        if name in titles:
            raise DatasetError(
                f"{source}: there is a sheet {titles[name]!r} as well; keep one, or rename the other"
            )
        titles[name] = str(sheet.title)
        if ranges := list(getattr(getattr(sheet, "merged_cells", None), "ranges", ())):
            first = str(ranges[0])
            raise DatasetError(
                f"{source}, cell {first.split(':')[0]}: cells {first} are merged; unmerge them and fill every row"
            )
        try:
            with closing(sheet.iter_rows(values_only=True)) as rows:
                yield _table(name, source, rows, sheet=True)
        except DatasetError:
            raise
        except Exception as error:  # see above
            raise DatasetError(
                f"{source}: damaged ({type(error).__name__}); open it and save it again as .xlsx"
            ) from None


def _table(name: str, source: str, rows: Iterable[Iterable[Any]], *, sheet: bool) -> Table:
    """Rows as columns; refuses formulas, error values, nameless and double columns."""
    iterator = iter(rows)
    head = [None if _empty(v) else str(v).strip().lower() for v in next(iterator, ())]
    while head and head[-1] is None:
        head.pop()
    if not head:
        what = "empty" if next(iterator, None) is None else "the first row is empty"
        raise DatasetError(f"{source}: {what}; put the names of the columns in its first row")
    _check_head(source, head, sheet)
    columns: dict[str, list[Any]] = {str(key): [] for key in head}
    table = Table(name=name, source=source, columns=columns, lines=[], sheet=sheet)
    lists = list(columns.values())
    for line, row in enumerate(iterator, 2):
        values = list(row)
        if all(_empty(v) for v in values):
            continue
        if len(table.lines) >= MOST_ROWS:
            raise DatasetError(f"{source}: more than {MOST_ROWS} rows; leave out what is not needed")
        table.lines.append(line)
        for k, target in enumerate(lists):
            value = values[k] if k < len(values) else None
            if isinstance(value, str) and value[:1] in ("=", "#"):
                _refuse(table, head[k] or "", value)
            target.append(value)
        for k in range(len(lists), len(values)):
            if not _empty(values[k]):
                where = f"cell {letters(k)}{line}" if sheet else f"line {line}"
                raise DatasetError(f"{source}, {where}: {shown(values[k])} has no name above it; remove it")
    return table


def _check_head(source: str, head: list[str | None], sheet: bool) -> None:
    for k, key in enumerate(head):
        where = f"cell {letters(k)}1" if sheet else f"line 1, column {k + 1}"
        if key is None:
            raise DatasetError(f"{source}, {where}: a column without a name; name it or remove it")
        if key in head[:k]:
            raise DatasetError(f"{source}, {where}: column {key!r} appears twice; keep one")


def _refuse(table: Table, column: str, value: str) -> None:
    row = len(table.lines) - 1
    if value.startswith("=") and len(value) > 1:
        raise table.wrong(
            row, column, f"a formula, {shown(value)}; paste its value instead: formulas are not run"
        )
    if value.upper() in ("#REF!", "#N/A", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!", "#NULL!"):
        raise table.wrong(row, column, f"the error value {value}; put in a value or empty the cell")


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


__all__ = ["DICTIONARY", "Table", "letters", "read_file", "read_tables", "shown"]
