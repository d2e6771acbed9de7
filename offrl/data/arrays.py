"""Datasets as plain arrays: NumPy ``.npz`` files, and CSV or Parquet tables with one row per step."""

import fnmatch
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError, MissingExtraError

ALIASES = {"terminals": "terminated", "timeouts": "truncated"}  # D4RL's names
MAX_COMPRESSION = 1100  # deflate reaches 1032:1; an array that claims more is not believed
TRUTHS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
TABLES = (".csv", ".parquet")


def read_npz(path: Path | str, metadata: Mapping[str, Any] | None = None) -> OfflineDataset:
    """Read an ``.npz`` file of arrays named as in ``OfflineDataset.fields`` (or ``terminals``, ``timeouts``).

    Pickled objects are refused. ``truncated`` may be missing, see ``OfflineDataset.from_arrays``. A file with
    ``masks`` is in OGBench's layout, see ``offrl.data.ogbench``.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not an npz file, damaged, or its arrays break a rule.
    """
    arrays, path = npz_arrays(path), _existing(path)
    if "masks" in arrays:
        from offrl.data.ogbench import from_layout

        return from_layout(arrays, path, metadata)
    for theirs, ours in ALIASES.items():
        if theirs in arrays and ours in arrays:
            raise DatasetError(f"{path} holds both {theirs!r} and {ours!r}; keep one of them")
    arrays = {ALIASES.get(name, name): array for name, array in arrays.items()}
    required = ("actions", "rewards", "terminated")
    missing = [name for name in required if name not in arrays]
    if not any(name == "observations" or name.startswith("observations.") for name in arrays):
        missing.insert(0, "observations")
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}"
        )
    try:
        return OfflineDataset.from_fields(arrays, metadata)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def npz_arrays(path: Path | str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file, under the names in the file; pickled objects are refused.

    Args:
        path: the file.
        names: which arrays, as far as they are there; None for all.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not an npz file, or damaged.
    """
    path = _existing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > MAX_COMPRESSION * entry.compress_size + 4096:
                    raise DatasetError(
                        f"{path}: {entry.filename!r} claims {entry.file_size} bytes; not believed"
                    )
                _check_header(archive, entry, path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if names is None or name in names}
    except (DatasetError, PermissionError):
        raise
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise DatasetError(f"{path} is not a readable .npz file (damaged or cut short?): {reason}") from None


def read_table(
    path: Path | str,
    *,
    observations: str | Sequence[str] = "observations_*",
    actions: str | Sequence[str] = "actions_*",
    reward: str = "reward",
    episode: str = "episode",
    terminated: str | None = "terminated",
    truncated: str | None = None,
    next_observations: str | Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> OfflineDataset:
    """Read a CSV or Parquet table with one row per step, the steps of an episode together and in order.

    Args:
        path: ending in ``.csv`` or ``.parquet``.
        observations: shell pattern(s) of column names, ``x*``; the columns of a pattern are sorted naturally,
            x2 before x10.
        actions: likewise; in Parquet they must be floats.
        reward: column of the step's reward.
        episode: column of anything that changes from episode to episode (number or text).
        terminated: column of 0/1 or true/false; None: no episode terminates.
        truncated: likewise; None: an episode that does not terminate is cut at its last row.
        next_observations: pattern(s) of the true successors, as many columns as ``observations``.
        metadata: JSON values.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not such a table; a pattern without a column; a cell that is empty or no number; an
            episode whose rows are not together.
        MissingExtraError: polars is not installed.
    """
    table = _Table(path := _existing(path))
    groups = {"observations": table.match(observations), "actions": table.match(actions)}
    if next_observations is not None:
        groups["next_observations"] = table.match(next_observations)
    single = [name for name in (reward, episode, terminated, truncated) if name is not None]
    table.load([column for columns in groups.values() for column in columns] + single)
    fields: dict[str, Any] = {k: np.stack([table.numbers(c) for c in v], axis=1) for k, v in groups.items()}
    fields["rewards"] = table.numbers(reward)
    starts = _episode_starts(table.texts(episode), path)
    last = np.zeros(starts[-1], dtype=bool)
    last[starts[1:] - 1] = True
    fields["terminated"] = table.flags(terminated) if terminated else np.zeros_like(last)
    fields["truncated"] = table.flags(truncated) if truncated else last & ~fields["terminated"]
    try:
        return OfflineDataset(fields, starts, metadata)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


class _Table:
    """The columns of a table; CSV cells stay text until a column is used, so that a bad cell can be named."""

    def __init__(self, path: Path) -> None:
        try:
            import polars
        except ImportError:
            raise MissingExtraError("polars", "tables") from None
        if path.suffix.lower() not in TABLES:
            raise DatasetError(
                f"{path} is not a table that can be read; it must end in {' or '.join(TABLES)}"
            )
        self.polars, self.path, self.csv = polars, path, path.suffix.lower() == ".csv"
        if self.csv:  # whole, because with chosen columns only polars overlooks lines that are too long
            self.source = self._read(lambda: polars.read_csv(path, infer_schema=False).lazy())
        else:
            self.source = self._read(lambda: polars.scan_parquet(path))
            check_rows(path, self._read(lambda: self.source.select(polars.len()).collect().item()))
        self.columns: list[str] = self._read(lambda: self.source.collect_schema().names())
        self.frame: Any = None

    def _read(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (self.polars.exceptions.PolarsError, self.polars.exceptions.PanicException, OSError) as error:
            reason = next(iter(str(error).splitlines()), "")[:160]
            raise DatasetError(f"{self.path} cannot be read as a table: {reason}") from None

    def match(self, patterns: str | Sequence[str]) -> list[str]:
        """The columns that match, each pattern's in natural order."""
        matched: list[str] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            exact = [pattern] if pattern in self.columns else []
            found = exact or [c for c in self.columns if fnmatch.fnmatchcase(c, pattern)]
            if not found:
                self.refuse_missing(pattern)
            matched += sorted(found, key=_natural)
        return matched

    def refuse_missing(self, name: str) -> NoReturn:
        """The error for a column that is not there."""
        advice = "Name the columns with 'offrl data convert' (its --help shows how)"
        if self.csv and len(self.columns) == 1:
            advice = "That is one column: only tables with commas between their columns are read"
        raise DatasetError(
            f"{self.path} has no column {name!r}; it has {', '.join(self.columns[:20])}. {advice}"
        )

    def load(self, names: list[str]) -> None:
        """Read these columns, by their exact names."""
        for name in names:
            if name not in self.columns:
                self.refuse_missing(name)
            if names.count(name) > 1:
                raise DatasetError(f"{self.path}: column {name!r} is asked for twice; narrow the patterns")
            if self.csv and (first := name.partition("_duplicated_")[0]) != name and first in self.columns:
                raise DatasetError(f"{self.path} has several columns named {first!r}; rename them")
        self.frame = self._read(lambda: self.source.select(names).collect())
        if self.frame.height == 0:
            raise DatasetError(f"{self.path} holds no rows")

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers."""
        values = self._complete(name)
        if self.csv:
            text, values = values, values.str.strip_chars().cast(self.polars.Float64, strict=False)
            if values.null_count():
                row = int(values.is_null().arg_max())
                self._refuse(name, row, f"{text[row]!r}, which is no number")
        elif not (values.dtype.is_numeric() or values.dtype == self.polars.Boolean):
            self._refuse_type(name, values.dtype, "which are no numbers")
        elif values.dtype.is_decimal() or values.dtype == self.polars.Int128:  # NumPy has no such types
            values = values.cast(self.polars.Float64)
        array: np.ndarray = values.to_numpy()
        return array

    def texts(self, name: str) -> np.ndarray:
        """A column of numbers, text or times, as text."""
        values = self._complete(name)
        if values.dtype.is_nested() or values.dtype == self.polars.Binary:
            self._refuse_type(name, values.dtype, "where a number or text is needed")
        array: np.ndarray = values.cast(self.polars.String).to_numpy()
        return array

    def flags(self, name: str) -> np.ndarray:
        """A column of 0/1 or true/false."""
        values = np.array([TRUTHS.get(text.strip().lower()) for text in self.texts(name)], dtype=object)
        unknown = np.flatnonzero(values == None)  # noqa: E711
        if len(unknown):
            self._refuse(
                name, int(unknown[0]), f"{self.texts(name)[unknown[0]]!r}; it needs 0/1 or true/false"
            )
        return values.astype(bool)

    def _complete(self, name: str) -> Any:
        values = self.frame[name]
        if values.null_count():
            self._refuse(name, int(values.is_null().arg_max()), "nothing")
        return values

    def _refuse_type(self, name: str, kind: Any, why: str) -> NoReturn:
        raise DatasetError(f"{self.path}: column {name!r} holds values of type {kind}, {why}")

    def _refuse(self, name: str, row: int, what: str) -> NoReturn:
        # each row is a line, unless a cell in quotes has several
        plain = self.csv and self.path.read_bytes().count(b"\n") <= self.frame.height + 1
        line = f" (line {row + 2})" if plain else ""
        where = f"{self.path}: column {name!r}, row {row}{line}"
        raise DatasetError(f"{where} holds {what}; repair or drop that episode")


def check_rows(path: Path, rows: int) -> None:
    """Refuse a Parquet file that claims far more rows than it can hold, before they are read."""
    if rows * 8 > MAX_COMPRESSION * (size := path.stat().st_size) + 4096:
        raise DatasetError(f"{path} claims {rows} rows, but takes {size} bytes; not believed")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts x2 before x10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name)]


def _episode_starts(labels: np.ndarray, path: Path) -> np.ndarray:
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1])
    seen: set[str] = set()
    for start in starts.tolist():
        if labels[start] in seen:
            raise DatasetError(
                f"{path}: episode {labels[start]!r} begins again at row {start}; the rows of an episode must "
                "be together, so sort the table by episode and step"
            )
        seen.add(labels[start])
    return np.append(starts, len(labels)).astype(np.int64)


def _existing(path: Path | str) -> Path:
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no dataset file {path}")
    return path


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an array whose header claims more bytes than follow it, before NumPy allocates them."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > entry.file_size:
        raise DatasetError(f"{path}: {entry.filename!r} claims {claimed} bytes, but holds {entry.file_size}")
