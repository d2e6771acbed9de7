"""Prompt data sets: rows of JSONL, Parquet or the hub, as dictionaries."""

import json
from pathlib import Path
from typing import Any

from offrl.errors import DatasetError, MissingExtraError

Row = dict[str, Any]


def load_rows(uri: str) -> list[Row]:
    """All rows of a data set.

    Args:
        uri: FILE.jsonl, FILE.parquet, or hf:ID (its train split), hf:ID:SPLIT.

    Raises:
        DatasetError: no such file or set, another format, a damaged row, no rows, no library datasets.
        MissingExtraError: pyarrow is not installed.
    """
    if uri.startswith("hf:"):
        rows = _hub(uri)
    elif uri.endswith(".jsonl"):
        rows = _jsonl(Path(uri))
    elif uri.endswith(".parquet"):
        rows = _parquet(Path(uri))
    else:
        raise DatasetError(f"{uri!r} must be FILE.jsonl, FILE.parquet or hf:ID")
    if not rows:
        raise DatasetError(f"{uri} has no rows")
    return rows


def field(row: Row, key: str, uri: str) -> Any:
    """A value of a row; dots go into dictionaries: ``reward_model.ground_truth``.

    Raises:
        DatasetError: there is none.
    """
    value: Any = row
    for part in [key] if key in row else key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DatasetError(f"{uri} has no {key!r}; its columns are {', '.join(map(str, row))}")
        value = value[part]
    return value


def _jsonl(path: Path) -> list[Row]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON strings hold other separators
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also endless numbers, and lists within lists
            raise DatasetError(f"{path}, line {number}: {getattr(error, 'msg', error)}") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{path}, line {number}: an object was expected")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "llm") from None
    path.stat()  # pyarrow names a missing file and nothing else
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not Parquet, or damaged: {error}") from None
    return rows


def _hub(uri: str) -> list[Row]:
    try:
        import datasets
    except ImportError:  # no extra brings it
        raise DatasetError(f"{uri} needs the library datasets; run: pip install datasets") from None
    name, _, split = uri.removeprefix("hf:").partition(":")
    try:
        return [dict(row) for row in datasets.load_dataset(name, split=split or "train")]
    except Exception as error:  # whatever a hub, or the lack of one, makes the library raise
        raise DatasetError(
            f"{uri} cannot be loaded: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
