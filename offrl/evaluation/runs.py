"""Run directories as typed, validated records; nothing in them is trusted."""

import csv
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data.reference import normalized_score, scored_values
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.diagnostics import Diagnostics, FQERecord, read_diagnostics, read_fqe
from offrl.files import read_json_object

FORMAT = 1  # of config.json
MAX_CSV_BYTES = 256 * 2**20
MAX_COMMAND_BYTES = 64 * 2**10
MAX_RETURNS_BYTES = 16 * 2**20
MAX_STEP = 2**53
SEARCH_DEPTH = 5  # of a sweep: runs/CELL/ALGORITHM/DATASET/RUN
CELL = "cell.json"  # in a sweep's folder of one run
EVAL_COLUMNS = ("step", "episode", "return")
TABLES = ("eval.csv", "metrics.csv", "timing.csv")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation: the episodes played after ``step`` updates."""

    step: int
    returns: np.ndarray  # (episodes,) float64
    successes: np.ndarray | None  # (episodes,) 0/1; None where the environment does not say


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV table with a ``step`` column."""

    steps: np.ndarray  # (rows,) int64, ascending
    columns: dict[str, np.ndarray]  # name -> (rows,) float64; nan where the cell is empty


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run, as its directory tells it."""

    directory: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    command: str
    evaluations: tuple[Evaluation, ...]
    metrics: Table
    timing: Table
    final_returns: np.ndarray | None  # (episodes,) of the last policy; None if unfinished or never evaluated
    finished: bool
    final_successes: np.ndarray | None = None  # (episodes,) 0/1; None where the environment does not say
    diagnostics: Diagnostics | None = None  # what 'offrl diagnose' left
    fqe: FQERecord | None = None  # what 'offrl fqe' left

    @property
    def algorithm(self) -> str:
        """Name of the algorithm; of a run that went on online also that."""
        return str(self.config["algorithm"]) + " fine-tuning" * ("fine_tuned_from" in self.config)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.config["dataset_name"])

    @property
    def settings(self) -> dict[str, Any]:
        """The algorithm's settings."""
        return dict(self.config["settings"])

    @property
    def seed(self) -> int:
        """Seed."""
        return int(self.config["seed"])

    @property
    def steps(self) -> int:
        """Gradient updates that the run was asked for."""
        return int(self.config["steps"])

    @property
    def steps_done(self) -> int:
        """Gradient updates that its tables tell of."""
        ends = [table.steps[-1] for table in (self.metrics, self.timing) if len(table.steps)]
        return max([*map(int, ends), *(e.step for e in self.evaluations), 0])

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """Returns that count as 0 and 100, or None."""
        pair = self.config.get("reference_returns")
        return None if pair is None else (float(pair[0]), float(pair[1]))

    @property
    def dataset_return(self) -> float | None:
        """Mean return of the episodes in the data, or None."""
        value = self.config.get("dataset_return_mean")
        return None if value is None else float(value)

    @property
    def steps_per_second(self) -> float | None:
        """Median rate of the update loop, evaluations left out; None before the first row of timing.csv."""
        rates = self.timing.columns["steps_per_second"]
        return float(np.nanmedian(rates)) if len(rates) and not np.isnan(rates).all() else None

    def score(self, returns: np.ndarray, successes: np.ndarray | None = None) -> np.ndarray:
        """Normalized scores (0-100) of episodes.

        Raises:
            ConfigError: the run has no reference returns, or is scored by successes that are not given.
        """
        if self.reference_returns is None:
            raise ConfigError(f"{self.directory} has no reference returns, so its returns have no score")
        return normalized_score(
            self.reference_returns, scored_values(self.config.get("env_id"), returns, successes)
        )


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run directories among ``paths`` and up to five folders below them, each once, in order.

    Beside runs a cell of a sweep may have none: it failed before its run began. Models in Hugging Face's layout, which
    have a config.json too, are passed over.

    Raises:
        FileNotFoundError: a path does not exist.
        CheckpointError: a path is a file, or holds no run.
    """
    found: dict[Path, Path] = {}
    empty: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no such folder: {path.absolute()}")
        if not path.is_dir():
            raise CheckpointError(f"{path} is a file; name a run directory, or a folder with runs in it")
        here = [path] if (path / "config.json").is_file() else []
        for depth in range(1, SEARCH_DEPTH + 1):
            below = (c for c in path.glob("*/" * depth + "config.json") if not here and not _of_a_model(c))
            here = here or sorted(c.parent for c in below)
        if not here:
            empty.append(path)
        for directory in here:
            found.setdefault(directory.resolve(), directory)
    refused = [path for path in empty if not (found and (path / CELL).is_file())]
    if refused:
        raise CheckpointError(
            f"{refused[0]} holds no run: there is no config.json in it or up to {SEARCH_DEPTH} folders below"
        )
    return list(found.values())


def _of_a_model(config: Path) -> bool:
    try:
        content = read_json_object(config, CheckpointError)
    except (CheckpointError, OSError):
        return False  # a damaged run is one that its reader names
    return "model_type" in content and "algorithm" not in content


def read_run(directory: Path) -> RunRecord:
    """Read one run directory; an unfinished run is read as far as it got.

    Raises:
        FileNotFoundError: it does not exist or is no run.
        CheckpointError: a file is missing, damaged or of another format; the message names it.
    """
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory.absolute()} is not a run directory: it has no config.json")
    config = _read_config(directory / "config.json")
    finished = (directory / "final_returns.npz").is_file()
    versions = directory / "versions.json"
    command = directory / "command.txt"
    return RunRecord(
        directory=directory,
        config=config,
        versions=read_json_object(versions, CheckpointError) if versions.is_file() else {},
        command=_read_text(command) if command.is_file() else "",
        evaluations=_evaluations(directory / "eval.csv", config, finished),
        metrics=_table(directory / "metrics.csv", ("step",), finished),
        timing=_table(directory / "timing.csv", ("step", "seconds", "steps_per_second"), finished),
        final_returns=_final(directory / "final_returns.npz", "returns") if finished else None,
        finished=finished,
        final_successes=_final(directory / "final_returns.npz", "successes") if finished else None,
        diagnostics=read_diagnostics(directory),
        fqe=read_fqe(directory),
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json_object(path, CheckpointError)
    if "algorithm" not in config or "settings" not in config:
        raise CheckpointError(f"{path} does not describe a run: it names no algorithm and settings")
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')!r}, this version reads {FORMAT}; upgrade offrl"
        )
    wanted = {"algorithm": str, "dataset_name": str, "settings": dict, "seed": int, "steps": int}
    for name, kind in wanted.items():
        if not isinstance(config.get(name), kind) or isinstance(config[name], bool):
            raise CheckpointError(f"{path} is damaged: {name!r} is {config.get(name)!r}, not {kind.__name__}")
    if (mean := config.get("dataset_return_mean")) is not None and not _is_finite(mean):
        raise CheckpointError(f"{path} is damaged: 'dataset_return_mean' is {mean!r}, not a finite number")
    pair = config.get("reference_returns")
    if pair is not None and not (
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_finite, pair)) and pair[0] != pair[1]
    ):
        raise CheckpointError(f"{path} is damaged: 'reference_returns' is {pair!r}, not two numbers")
    return config


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_text(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_COMMAND_BYTES).strip()


def _evaluations(path: Path, config: dict[str, Any], finished: bool) -> tuple[Evaluation, ...]:
    table = _table(path, EVAL_COLUMNS, finished)
    returns, episode = table.columns["return"], table.columns["episode"]
    if not np.isfinite(returns).all():
        row = int(np.argmin(np.isfinite(returns)))
        raise CheckpointError(f"{path} line {row + 2}: 'return' is not a finite number")
    success = table.columns.get("success", np.full(len(returns), np.nan))
    starts = np.flatnonzero(np.diff(table.steps, prepend=-1)).tolist()
    found = []
    for start, end in zip(starts, [*starts, len(returns)][1:], strict=True):
        if not np.array_equal(episode[start:end], np.arange(end - start)):
            raise CheckpointError(
                f"{path}: the episodes of step {table.steps[start]} must be numbered 0, 1, 2, ...; "
                "was the file edited or written twice?"
            )
        known = not np.isnan(success[start:end]).any()
        found.append(
            Evaluation(int(table.steps[start]), returns[start:end], success[start:end] if known else None)
        )
    episodes = config.get("eval_episodes")
    if found and found[-1].step == config["steps"]:
        episodes = config.get("final_episodes") or episodes
    if found and not finished and isinstance(episodes, int) and len(found[-1].returns) < episodes:
        found.pop()  # the run was reading this one out when it stopped
    return tuple(found)


def _table(path: Path, needed: Sequence[str], finished: bool) -> Table:
    """A CSV file of numbers; the last line of an unfinished run may be cut short and is then left out."""
    if not path.is_file():
        if not finished and not any((path.parent / name).exists() for name in TABLES):  # it has not begun
            nothing = np.zeros(0)
            return Table(nothing.astype(np.int64), dict.fromkeys(needed[1:], nothing))
        raise CheckpointError(f"{path.parent} has no {path.name}: it lost a file; restore it or leave it out")
    if path.stat().st_size > MAX_CSV_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_CSV_BYTES >> 20} MiB; is it the right file?")
    try:
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(text.splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path} is not a CSV file: {error}") from None
    if not lines:
        raise CheckpointError(f"{path} is empty, without even a header; repair it or leave the run out")
    header, rows = lines[0], lines[1:]
    if missing := [name for name in needed if name not in header]:
        first = ",".join(header)[:80]
        raise CheckpointError(f"{path} has no column {missing[0]!r}; its first line is {first!r}")
    if len(set(header)) < len(header):
        raise CheckpointError(f"{path} names a column twice: {','.join(header)[:80]!r}")
    if rows and not finished and not text.endswith("\n"):
        rows.pop()
    values = np.array([_numbers(path, line, row, len(header)) for line, row in enumerate(rows, 2)])
    values = values.reshape(len(rows), len(header))
    steps = values[:, header.index("step")]
    with np.errstate(invalid="ignore"):  # inf - inf
        whole = (steps == np.round(steps)) & (np.diff(steps, prepend=0) >= 0) & (steps < MAX_STEP)
    if not whole.all():  # nan compares as False
        line = int(np.argmin(whole)) + 2
        raise CheckpointError(f"{path} line {line}: 'step' must be a whole number, not below the line before")
    columns = {name: values[:, i] for i, name in enumerate(header) if name != "step"}
    return Table(steps.astype(np.int64), columns)


def _numbers(path: Path, line: int, row: list[str], width: int) -> list[float]:
    if len(row) != width:
        raise CheckpointError(f"{path} line {line} has {len(row)} cells, the header has {width}")
    try:
        return [float(cell) if cell else math.nan for cell in row]
    except ValueError as error:
        raise CheckpointError(f"{path} line {line}: {error}") from None


def _final(path: Path, name: str) -> np.ndarray | None:
    """An array of the last policy's episodes; None if it is empty, or if there are no successes."""
    try:
        with zipfile.ZipFile(path) as archive:
            if name == "successes" and "successes.npy" not in archive.namelist():
                return None
            if archive.getinfo(f"{name}.npy").file_size > MAX_RETURNS_BYTES:
                raise ValueError("it is too large")
            with archive.open(f"{name}.npy") as member:
                values = np.lib.format.read_array(member, allow_pickle=False)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if values.ndim != 1 or values.dtype.kind not in "fb" or not np.isfinite(values).all():
        raise CheckpointError(f"{path} is damaged: {name!r} must be finite numbers, one an episode")
    return values.astype(np.float64) if len(values) else None
