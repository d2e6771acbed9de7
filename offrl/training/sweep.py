"""Sweeps: algorithms x datasets x settings x seeds as cells, and one table of what they scored."""

import ast
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.algos import load_algorithm, preset
from offrl.data.reference import normalized_score
from offrl.errors import ConfigError
from offrl.files import atomic_write_text, sha256_file
from offrl.training.cells import Cell, TrainingCell
from offrl.training.options import settings_from_json

LAST = 5  # evaluations in the column 'mean of last 5'
COLUMNS = ("algorithm", "dataset", "settings", "seed", "unit", "last", "best", "mean_last_5", "episodes")


@dataclass(frozen=True)
class Data:
    """A dataset of a sweep."""

    uri: str
    name: str  # as the data name themselves
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One cell of the grid: what is varied, and the run that it is."""

    name: str  # unique; ends in a hash of everything that the run depends on
    varied: dict[str, Any]
    training: TrainingCell

    def cell(self, out: Path) -> Cell:
        """The command that trains it under ``out/runs/NAME`` and leaves ``out/raw/NAME.json``."""
        return self.training.cell(self.name, out / "raw", out / "runs")

    def result(self, out: Path) -> Path:
        """Its raw numbers; they exist once it is finished."""
        return out / "raw" / f"{self.name}.json"


def parse_grid(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``alpha=1,2.5`` and so on as name -> values.

    Raises:
        ConfigError: not of this form, or a setting that is named twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        name, parts = name.strip().replace("-", "_"), tuple(v.strip() for v in values.split(","))
        if not (name and equals and all(parts)) or len(set(parts)) < len(parts):
            raise ConfigError(f"--grid takes SETTING=VALUE,VALUE,... with different values, got {text!r}")
        if name in grid:
            raise ConfigError(f"--grid names {name!r} twice")
        grid[name] = parts
    return grid


def entries(
    algorithms: Sequence[str],
    datasets: Sequence[Data],
    seeds: Sequence[int],
    grid: dict[str, tuple[str, ...]],
    options: dict[str, Any],
    *,
    presets: bool = False,
) -> list[Entry]:
    """Every cell; an algorithm without a setting of the grid is not varied in it.

    Args:
        algorithms: names or paths.
        datasets: what to learn from.
        seeds: of each.
        grid: setting -> values, as typed.
        options: of every run.
        presets: start from the settings tuned for each dataset.

    Raises:
        ConfigError: a setting that no algorithm has, an impossible value, a dataset without preset, a cell twice.
    """
    found, used = [], set()
    for algorithm, data in itertools.product(algorithms, datasets):
        short, method = load_algorithm(algorithm)
        code = sha256_file(algorithm) if algorithm.endswith(".py") else None
        tuned = preset(method, data.name) if presets else {}
        for varied in _points(method.config, grid):
            used |= set(varied)
            method.config(**tuned | varied)  # refuses what is impossible
            for seed in seeds:
                tuned_for = data.name if presets else None
                training = TrainingCell(algorithm, data.uri, seed, options, varied, tuned_for)
                facts = [dataclasses.asdict(training), data.sha256, code]
                digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
                parts = [
                    short,
                    data.name,
                    *(f"{k}={v}" for k, v in varied.items()),
                    f"seed{seed}",
                    digest[:8],
                ]
                found.append(Entry(re.sub(r"[^\w.=+-]+", "-", "-".join(parts)), varied, training))
    unknown = sorted(set(grid) - used)
    if unknown:
        raise ConfigError(f"none of {', '.join(algorithms)} has a setting {unknown[0]!r}")
    if len({entry.name for entry in found}) < len(found):
        raise ConfigError("algorithms, datasets and seeds must each be named once")
    return found


def _points(config: type, grid: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """The points of the grid in the settings that ``config`` has."""
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in grid}
    values = [
        [_value(config, name, default, text) for text in grid[name]] for name, default in defaults.items()
    ]
    for point in itertools.product(*values):
        yield dict(zip(defaults, point, strict=True))


def _value(config: type, name: str, default: Any, text: str) -> Any:
    """A typed value, of the kind of the setting's default."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    settings_from_json(config, {name: value})
    return value


def write_tables(listed: Sequence[Entry], out: Path) -> list[dict[str, Any]]:
    """Write ``results.csv`` (a row a finished cell) and ``results.md`` (mean and deviation over the seeds)."""
    rows = [
        row(entry, json.loads(entry.result(out).read_text()))
        for entry in listed
        if entry.result(out).exists()
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, "steps_per_second", "cell"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(out / "results.csv", buffer.getvalue())
    atomic_write_text(out / "results.md", markdown(rows, len(listed)))
    return rows


def row(entry: Entry, raw: dict[str, Any]) -> dict[str, Any]:
    """A row of ``results.csv`` from a cell's raw numbers: normalized scores where references are known."""
    config, evaluations = raw["config"], raw["evaluations"]
    reference = config["reference_returns"]
    means = [
        float(
            np.mean(normalized_score(tuple(reference), np.array(e["returns"])) if reference else e["returns"])
        )
        for e in evaluations
    ]
    facts: dict[str, Any] = {
        "algorithm": config["algorithm"],
        "dataset": config["dataset_name"],
        "settings": " ".join(f"{name}={value}" for name, value in entry.varied.items()),
        "seed": config["seed"],
        "unit": "normalized score" if reference else "return",
        "steps_per_second": raw["median_steps_per_second"],
        "cell": entry.name,
    }
    if not means:
        return facts
    last = {"last": means[-1], "best": max(means), "mean_last_5": float(np.mean(means[-LAST:]))}
    return facts | last | {"episodes": len(evaluations[-1]["returns"])}


def markdown(rows: Sequence[dict[str, Any]], expected: int) -> str:
    """A table of algorithm and settings against datasets: mean +- sample deviation of the last evaluation."""
    datasets = list(dict.fromkeys((row["dataset"], row["unit"]) for row in rows))
    lines = [
        f"{len(rows)} of {expected} cells are finished. Last evaluation: mean +- standard deviation (seeds).",
        "",
    ]
    lines.append(f"| algorithm | {' | '.join(f'{name} ({unit})' for name, unit in datasets)} |")
    lines.append("|---" * (len(datasets) + 1) + "|")
    for label in dict.fromkeys((row["algorithm"], row["settings"]) for row in rows):
        cells = []
        for dataset in datasets:
            here = [r for r in rows if (r["algorithm"], r["settings"]) == label]
            last = [r["last"] for r in here if (r["dataset"], r["unit"]) == dataset and "last" in r]
            spread = f" +- {np.std(last, ddof=1):.1f}" if len(last) > 1 else ""
            cells.append(f"{np.mean(last):.1f}{spread} ({len(last)})" if last else "")
        lines.append(f"| {' '.join(label).strip()} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
