"""Sweeps: algorithms x datasets or environments x settings x seeds as cells, and one table of what they scored."""

import ast
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offrl.algos import ONLINE, fitting_presets, load_method, preset
from offrl.data.reference import normalized_score, scored_values
from offrl.errors import ConfigError
from offrl.files import atomic_write_text, sha256_file
from offrl.online.options import ENVIRONMENTS, OnlineAlgorithm, OnlineOptions
from offrl.training.cells import Cell, TrainingCell
from offrl.training.many import choose_mode
from offrl.training.options import RunOptions, SeedMode, SeedOptions, make_settings, settings_from_json
from offrl.training.problem import Algorithm

NAME_LENGTH = 150  # of what precedes seed and hash in the name of a cell, which names files
LAST = 5  # evaluations in the column 'mean of last 5'; fewer, where a run has fewer
COLUMNS = (
    "algorithm",
    "dataset",
    "settings",
    "seed",
    "unit",
    "last",
    "best",
    "mean_last_5",
    "evaluations",
    "episodes",
)


@dataclass(frozen=True)
class Data:
    """A dataset of a sweep, or an environment to learn in, whose ``uri`` and ``name`` are its id."""

    uri: str
    name: str  # as the data name themselves
    sha256: str
    online: bool = False


@dataclass(frozen=True)
class Entry:
    """One run of a sweep: what is varied in it, and how it is trained."""

    name: str  # unique; ends in a hash of everything that the run depends on
    varied: dict[str, Any]
    training: TrainingCell
    algorithm: str  # short name
    dataset: str  # as the data name themselves

    @property
    def settings(self) -> str:
        """What is varied, in words."""
        return " ".join(f"{name}={value}" for name, value in self.varied.items())

    def result(self, out: Path) -> Path:
        """Its raw numbers; they exist once it is finished."""
        return out / "raw" / f"{self.name}.json"


def plan_cells(
    listed: Sequence[Entry],
    out: Path,
    seed_mode: SeedMode = "auto",
    note: Callable[[str], None] = lambda line: None,
) -> list[Cell]:
    """The cells that train ``listed`` in ``out/runs``: one process a run, or a process for seeds that are stacked.

    What a former call put together stays together, so that it can go on; later seeds join nobody's stack.

    Raises:
        ConfigError: seeds are to be stacked, and the method does not allow it.
    """
    kept, modes, cells = _kept_stacks(out), {}, {}
    same: dict[str, list[Entry]] = {}
    for entry in listed:
        facts = dataclasses.replace(entry.training, seed=0)
        same.setdefault(json.dumps([entry.dataset, dataclasses.asdict(facts)]), []).append(entry)
    for group in same.values():
        first = group[0].training
        fresh = [entry for entry in group if entry.name not in kept and not entry.result(out).exists()]
        key = (first.algorithm, first.settings.get("hidden"), first.preset, len(fresh) > 1)
        if key not in modes:
            modes[key] = _mode(first, [e.training.seed for e in fresh], seed_mode)
            if modes[key][0] == "stacked":
                note(f"{group[0].algorithm}: seeds are stacked, {modes[key][1]}")
        together = len(fresh) > 1 and modes[key][0] == "stacked"
        for entry in group:
            if entry.name in kept:
                name, seeds = kept[entry.name]
            elif together and entry in fresh:
                name = f"{fresh[0].name}+{len(fresh) - 1}"
                seeds = {e.training.seed: e.name for e in fresh}
            else:
                name, seeds = entry.name, {entry.training.seed: entry.name}
            if name not in cells:
                training = dataclasses.replace(entry.training, seed=next(iter(seeds)))
                cells[name] = training.stack(name, seeds, out / "raw", out / "runs")
    return list(cells.values())


def _kept_stacks(out: Path) -> dict[str, tuple[str, dict[int, str]]]:
    """Entry -> the cell that a former call put it into, with what each seed is called there."""
    kept: dict[str, tuple[str, dict[int, str]]] = {}
    for spec in sorted(out.glob("runs/*+*/cell.json")):
        results = json.loads(spec.read_text())["results"]
        seeds = {int(seed): Path(path).stem for seed, path in results.items()}
        kept |= {name: (spec.parent.name, seeds) for name in seeds.values()}
    return kept


def _mode(training: TrainingCell, seeds: Sequence[int], seed_mode: SeedMode) -> tuple[str, str]:
    if len(seeds) < 2:
        return "processes", "one seed"
    if training.algorithm in ONLINE:
        if seed_mode == "stacked":
            raise ConfigError(f"{training.algorithm} plays its own environments: its seeds cannot be stacked")
        return "processes", "every seed plays its own environments"
    settings = make_settings(training.algorithm, training.settings, training.preset)
    options = RunOptions(dataset=training.dataset, threads=1, **training.options)
    many = SeedOptions(seeds=tuple(seeds), seed_mode=seed_mode)
    return choose_mode(training.algorithm, settings, options, many, in_memory=False)


def run_directory(entry: Entry, out: Path) -> Path:
    """The run directory of a finished entry.

    Raises:
        FileNotFoundError: there is none (it was deleted).
    """
    name, _ = _kept_stacks(out).get(entry.name, (entry.name, {}))
    found = sorted((out / "runs" / name).glob(f"*/*/seed{entry.training.seed}-*/final_returns.npz"))
    if not found:
        raise FileNotFoundError(f"{out / 'runs' / name} holds no finished run of {entry.name}")
    return found[-1].parent


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
    presets: bool | Literal["where known"] = False,
    draws: dict[str, list[dict[str, Any]]] | None = None,
) -> list[Entry]:
    """Every run; an algorithm without a setting of the grid is not varied in it.

    Args:
        algorithms: names or paths.
        datasets: what to learn from; methods that learn in environments take those that are.
        seeds: of each.
        grid: setting -> values, as typed.
        options: of every run.
        presets: start from the settings tuned for each dataset; ``where known``: only where a method has them.
        draws: short name of an algorithm -> settings that vary besides, each combined with the grid.

    Raises:
        ConfigError: a setting that no algorithm has, an impossible value, a dataset without preset, a cell twice, or
            two datasets of one name, which tables and choices go by.
    """
    found, used, names = [], set(), {data.name: data for data in datasets}
    if twins := [data for data in datasets if names[data.name] != data]:
        other, name = names[twins[0].name], twins[0].name
        raise ConfigError(f"{twins[0].uri} and {other.uri} are both called {name!r}: sweep them one by one")
    for algorithm, data in itertools.product(algorithms, datasets):
        if data.online != (algorithm in ONLINE):
            continue
        short, method = load_method(algorithm)
        code = sha256_file(algorithm) if algorithm.endswith(".py") else None
        known = bool(fitting_presets(method, data.name))
        tuned_for = data.name if presets is True or (presets and known) else None
        tuned = preset(method, data.name) if tuned_for else {}
        drawn = (draws or {}).get(short, [{}])
        owners = settings_of(method)
        for point, draw in itertools.product(_points(owners, grid), drawn):
            if both := sorted({*point} & {*draw}):
                raise ConfigError(f"{both[0]} is in the grid and in the space; name it in one of them")
            used |= set(point)
            varied = point | draw
            refuse_impossible(owners, tuned | varied)
            for seed in seeds:
                training = TrainingCell(algorithm, data.uri, seed, options, varied, tuned_for)
                facts = [dataclasses.asdict(training), data.sha256, code]
                digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
                parts = [short, data.name, *(f"{k}={v}" for k, v in varied.items())]
                name = re.sub(r"[^\w.=-]+", "-", "-".join(parts))[:NAME_LENGTH]
                name = f"{name}-seed{seed}-{digest[:8]}"
                found.append(Entry(name, varied, training, short, data.name))
    unknown = sorted(set(grid) - used)
    if unknown:
        raise ConfigError(f"none of {', '.join(algorithms)} has a setting {unknown[0]!r}")
    if len({entry.name for entry in found}) < len(found):
        raise ConfigError("algorithms, datasets, seeds and values must each be named once")
    return found


Owners = dict[str, tuple[type, Any]]  # setting -> the dataclass that has it, its default


def settings_of(method: Algorithm | OnlineAlgorithm) -> Owners:
    """What a sweep may vary in a method: its settings; of one that learns in environments also what they are."""
    own = {f.name: (method.config, f.default) for f in dataclasses.fields(method.config)}
    if isinstance(method, Algorithm):
        return own
    fields = {f.name: f.default for f in dataclasses.fields(OnlineOptions)}
    return own | {name: (OnlineOptions, fields[name]) for name in ENVIRONMENTS}


def refuse_impossible(owners: Owners, values: dict[str, Any]) -> None:
    """Try the values in the dataclasses that have them (ConfigError)."""
    for config in {owner for owner, _ in owners.values()}:
        config(**{name: value for name, value in values.items() if owners.get(name, (None,))[0] is config})


def _points(owners: Owners, grid: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """The points of the grid in the settings that a method has."""
    known = [name for name in owners if name in grid]
    values = [[_value(*owners[name], name, text) for text in grid[name]] for name in known]
    for point in itertools.product(*values):
        yield dict(zip(known, point, strict=True))


def _value(config: type, default: Any, name: str, text: str) -> Any:
    """A typed value, of the kind of the setting's default."""
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, str):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    settings_from_json(config, {name: value})
    return value


def read_rows(listed: Sequence[Entry], out: Path) -> list[dict[str, Any]]:
    """A row a finished run."""
    finished = [entry for entry in listed if entry.result(out).exists()]
    return [row(entry, json.loads(entry.result(out).read_text())) for entry in finished]


def write_tables(listed: Sequence[Entry], out: Path, sections: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Write ``results.csv`` (a row a finished run) and ``results.md`` (mean and deviation over the seeds).

    ``sections`` are appended to the second one.
    """
    rows = read_rows(listed, out)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, "steps_per_second", "cell"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(out / "results.csv", buffer.getvalue())
    atomic_write_text(out / "results.md", "\n".join([markdown(rows, len(listed)), *sections]))
    return rows


def row(entry: Entry, raw: dict[str, Any]) -> dict[str, Any]:
    """A row of ``results.csv`` from a cell's raw numbers: normalized scores where references are known."""
    config, evaluations = raw["config"], raw["evaluations"]
    reference = config["reference_returns"]
    means = [
        float(np.mean(normalized_score(tuple(reference), scored(config, e)) if reference else e["returns"]))
        for e in evaluations
    ]
    facts: dict[str, Any] = {
        "algorithm": config["algorithm"],
        "dataset": config["dataset_name"],
        "settings": entry.settings,
        "seed": config["seed"],
        "unit": "normalized score" if reference else "return",
        "steps_per_second": raw["median_steps_per_second"],
        "cell": entry.name,
    }
    if not means:
        return facts
    last = {"last": means[-1], "best": max(means), "mean_last_5": float(np.mean(means[-LAST:]))}
    return facts | last | {"evaluations": len(means), "episodes": len(evaluations[-1]["returns"])}


def scored(config: dict[str, Any], evaluation: dict[str, Any]) -> np.ndarray:
    """What the scores of a recorded evaluation are made of: returns, or successes where those count."""
    successes = evaluation.get("successes")
    return scored_values(
        config.get("env_id"),
        np.array(evaluation["returns"]),
        None if successes is None else np.array(successes),
    )


def markdown(rows: Sequence[dict[str, Any]], expected: int) -> str:
    """A table of algorithm and settings against datasets: mean +- sample deviation of the last evaluation."""
    datasets = list(dict.fromkeys((row["dataset"], row["unit"]) for row in rows))
    lines = [
        f"{len(rows)} of {expected} runs are finished. Last evaluation: mean +- standard deviation (seeds).",
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
