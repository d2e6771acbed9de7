"""Tables to a workbook or to a folder of CSV files; nothing that exists is written over."""

import csv
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from offrl.errors import ConfigError, MissingExtraError

FORMATS = dict.fromkeys(("cost", "saved", "stock", "of", "more", "demand", "units", "on"), "#,##0") | {
    "fill": "0.0%"
}
"""Of numbers with a fraction, by the first word of the column's name."""
Rows = Mapping[str, Sequence[tuple[Any, ...]]]


def writable(path: str | Path) -> Path:
    """Where tables can be written; asked before the work on them.

    Raises:
        ConfigError: it exists, or has another suffix than ``.xlsx``.
    """
    path = Path(path)
    if path.suffix.lower() not in ("", ".xlsx"):
        raise ConfigError(f"{path}: write a workbook NAME.xlsx, or a folder (a name without a suffix)")
    if path.exists():
        raise ConfigError(f"{path} exists already; choose another name or remove it")
    return path


def write_tables(rows: Rows, path: str | Path) -> Path:
    """Write every table, the names of the columns first.

    Args:
        rows: name -> rows.
        path: ``NAME.xlsx`` for a workbook, anything without a suffix for a folder of CSV files.

    Raises:
        ConfigError: it exists, or has another suffix.
        MissingExtraError: openpyxl is not installed.
    """
    path = writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        _workbook(rows, path)
    else:
        path.mkdir()
        for name, table in rows.items():
            with open(path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(table)
    return path


def _workbook(rows: Rows, path: Path) -> None:
    try:
        import openpyxl
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.styles import Alignment, Font, PatternFill
        from openpyxl.utils import get_column_letter
        from openpyxl.worksheet.properties import PageSetupProperties
    except ImportError:
        raise MissingExtraError("openpyxl", "inventory") from None
    book = openpyxl.Workbook(write_only=True)
    for name, table in rows.items():
        sheet = book.create_sheet(name)
        sheet.freeze_panes, sheet.print_title_rows = "A2", "1:1"
        sheet.page_setup.orientation, sheet.page_setup.fitToHeight = "landscape", 0
        sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
        for k in range(len(table[0])):
            longest = max(
                min(len(_text(row[k])), 12 if isinstance(row[k], float) else 90) for row in table[:200]
            )
            sheet.column_dimensions[get_column_letter(k + 1)].width = min(max(10, longest + 2), 90)
        head = []
        for k, text in enumerate(table[0]):
            cell = WriteOnlyCell(sheet, value=text)
            number = any(isinstance(row[k], int | float) for row in table[1:20])
            cell.font, cell.fill = Font(bold=True), PatternFill("solid", fgColor="DDE6F0")
            cell.alignment = Alignment(vertical="top", horizontal="right" if number else "left")
            head.append(cell)
        sheet.append(head)
        formats = [FORMATS.get(str(text).partition(" ")[0]) for text in table[0]]
        for row in table[1:]:
            sheet.append([
                _formatted(WriteOnlyCell(sheet, value=value), shape)
                if shape and isinstance(value, float) else _plain(value)
                for value, shape in zip(row, formats, strict=True)
            ])  # fmt: skip
        sheet.auto_filter.ref = f"A1:{get_column_letter(len(table[0]))}{len(table)}"
    book.save(path)


def _formatted(cell: Any, shape: str) -> Any:
    cell.number_format = shape
    return cell


def _text(value: Any) -> str:
    return f"{value:%Y-%m-%d}" if isinstance(value, date) else str("" if value is None else value)


def _plain(value: Any) -> Any:
    """A text that a workbook would hold as a formula is written so that it stays a text; others keep their name."""
    return f"'{value}" if isinstance(value, str) and value[:1] == "=" else value
