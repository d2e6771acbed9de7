"""Results that other toolkits left: CORL, d3rlpy and unifloral. Read as data, size-limited, never unpickled.

    d3rlpy      d3rlpy_logs/NAME_TIME/: params.json, environment.csv (epoch,step,mean return; no header)
    CORL        a folder with config.yaml (of a checkpoint or of W&B) and beside it a W&B history (.csv, .json, .jsonl),
                output.log (what it printed) or wandb-summary.json; or a .csv that the W&B page exported, a column a run
    unifloral   final_returns/ALGORITHM_DATASET_TIME.npz (scores of the final episodes; its settings are pickled and not
                read), or a W&B folder as above

Sources: logging/file_adapter.py of d3rlpy 2.8.1; algorithms/offline of tinkoff-ai/CORL and algorithms of
EmptyJackson/unifloral, as they are in 2026.
"""

import csv
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data.reference import D4RL, bare_name
from offrl.errors import CheckpointError, ConfigError
from offrl.files import read_json_object

MAX_BYTES, MAX_ARRAY_BYTES = 64 * 2**20, 16 * 2**20
MAX_RUNS, DEPTH = 1_000, 4
LOGS = (".csv", ".json", ".jsonl", ".log")
REFUSED = (".pickle", ".pkl", ".pt", ".pth", ".d3", ".npy")
ASIDE = ("params.json", "wandb-metadata.json", "wandb-summary.json")  # no histories
SCORES = ("d4rl_normalized_score", "eval/normalized_score_mean", "eval/d4rl_normalized_score", "score")
TARGETED = re.compile(
    r"eval/(-?[\d.]+)_normalized_score_mean"
)  # the decision transformer's, one a target return
PRINTED = re.compile(r"Evaluation over (\d+) episodes: \S+ ?, D4RL score: (\S+)")
SCALAR = re.compile(r"([\w.]+):[ \t]*(.*)")
D3RLPY_NAME = re.compile(
    r"[^_]+_(?P<data>.+)_(?P<seed>\d+)_\d{14}"
)  # of the experiments that its authors ship
NPZ_NAME = re.compile(r"(?P<algorithm>.+)_(?P<data>[^_]+)_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


@dataclass(frozen=True, eq=False)
class ForeignRun:
    """One run of another toolkit, as far as its files tell."""

    toolkit: str
    path: Path
    algorithm: str
    dataset: str
    values: np.ndarray  # (evaluations,) means over episodes, in order; empty where no scores were found
    scored: bool  # D4RL scores (0-100); else returns
    seed: int | None = None
    episodes: int | None = None  # of an evaluation

    @property
    def unknown(self) -> list[str]:
        """What its files do not say."""
        facts = {"seed": self.seed, "episodes of an evaluation": self.episodes}
        return ["environment version", *(name for name, value in facts.items() if value is None)]


def read_foreign(text: str) -> list[ForeignRun]:
    """The runs under ``PATH``, or ``DATASET=PATH`` where the files do not name their data.

    Raises:
        FileNotFoundError: the path does not exist.
        CheckpointError: nothing there can be read, or a file is damaged, too large or a pickle.
        ConfigError: the files do not name their data and ``text`` does not either.
    """
    given, _, rest = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
    path = Path(rest)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path.absolute()}")
    runs = []
    for place in _places(path):
        runs += _read(place, bare_name(given))
        if len(runs) > MAX_RUNS:
            raise CheckpointError(f"{path} holds more than {MAX_RUNS} runs; name fewer folders")
    if not runs:
        raise CheckpointError(f"{path} holds no results of CORL, d3rlpy or unifloral that can be read here")
    return runs


def _places(path: Path) -> Iterator[Path]:
    """Folders that are one run, and files that stand alone, in order."""
    if path.is_file():
        if path.suffix in REFUSED:
            raise CheckpointError(
                f"{path} may hold pickled code and is never opened; give the logged scores instead"
            )
        yield path
        return
    yield from _below(path, DEPTH)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in ("params.json", "config.yaml")):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_file() and child.suffix in (".npz", *LOGS) and child.name not in ASIDE:
            yield child
        elif child.is_dir() and not child.is_symlink() and depth:
            yield from _below(child, depth - 1)


def _read(place: Path, dataset: str) -> list[ForeignRun]:
    if place.suffix == ".npz" and place.is_file():
        return [_unifloral(place, dataset)]
    if place.is_file():
        runs = [_named(place, name, values, dataset) for name, values in _histories(place).items()]
        return runs
    if (place / "params.json").is_file():
        return [_d3rlpy(place, dataset)]
    return [_configured(place, dataset)]


def _d3rlpy(folder: Path, dataset: str) -> ForeignRun:
    config = read_json_object(folder / "params.json", CheckpointError).get("config")
    kind = config.get("type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"{folder / 'params.json'} is not d3rlpy's: it has no config with a type")
    name = D3RLPY_NAME.fullmatch(folder.name)
    file = next((f for n in ("environment.csv", "evaluation.csv") if (f := folder / n).is_file()), None)
    rows = [] if file is None else [line.split(",") for line in _text(file).splitlines() if line]
    if any(len(row) != 3 for row in rows):
        raise CheckpointError(f"{file} is not d3rlpy's: a line is epoch,step,value")
    return ForeignRun(
        "d3rlpy",
        folder,
        kind,
        _dataset(folder, dataset or (name["data"] if name else "")),
        _finite(file or folder, [row[2] for row in rows]),
        scored=False,
        seed=int(name["seed"]) if name else None,
    )


def _unifloral(path: Path, dataset: str) -> ForeignRun:
    name = NPZ_NAME.fullmatch(path.stem)
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(n for n in ("final_scores.npy", "final_returns.npy") if n in archive.namelist())
            if archive.getinfo(member).file_size > MAX_ARRAY_BYTES:
                raise ValueError(f"{member} is too large")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
    except StopIteration:
        raise CheckpointError(f"{path} is not unifloral's: it has no final_scores or final_returns") from None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from None
    if array.dtype.kind not in "fiu" or array.size == 0 or not np.isfinite(array).all():
        raise CheckpointError(f"{path}: {member} must be finite numbers, one an episode")
    return ForeignRun(
        "unifloral",
        path,
        name["algorithm"] if name else path.stem,
        _dataset(path, dataset or (name["data"] if name else "")),
        np.array([array.mean(dtype=np.float64)]),
        scored=member == "final_scores.npy",
        episodes=array.size,
    )


def _configured(folder: Path, dataset: str) -> ForeignRun:
    """A folder with config.yaml, of CORL or unifloral."""
    config = _flat_yaml(folder / "config.yaml")
    unifloral = "algorithm" in config and "num_updates" in config
    data = next((config[key] for key in ("env", "dataset_name", "env_name", "dataset") if key in config), "")
    label = config.get("algorithm") or config.get("name") or config.get("group") or folder.name
    algorithm = _known(label)[0] if _known(label)[1] else label
    values, episodes = _scores_beside(folder / "config.yaml")
    asked = config.get("n_episodes") or config.get("eval_episodes") or ""
    seed = config.get("train_seed") or config.get("seed") or ""
    return ForeignRun(
        "unifloral" if unifloral else "CORL",
        folder,
        algorithm,
        _dataset(folder, dataset or data),
        values,
        scored=True,
        seed=int(seed) if seed.isdigit() else None,
        episodes=int(asked) if asked.isdigit() else episodes,
    )


def _scores_beside(config: Path) -> tuple[np.ndarray, int | None]:
    """The first history beside ``config``, else W&B's summary, else nothing; and the episodes, if printed."""
    for file in sorted(
        config.parent.iterdir(), key=lambda f: (LOGS.index(f.suffix) if f.suffix in LOGS else 9, f.name)
    ):
        if file.suffix in LOGS and file.name not in ASIDE and (found := _histories(file)):
            episodes = PRINTED.search(_text(file)) if file.suffix == ".log" else None
            return next(iter(found.values())), int(episodes[1]) if episodes else None
    summary = config.parent / "wandb-summary.json"
    if not summary.is_file():
        return np.zeros(0), None
    last = read_json_object(summary, CheckpointError)
    key = _score_key(last)
    return (np.zeros(0) if key is None else _finite(summary, [last[key]])), None


def _named(path: Path, name: str, values: np.ndarray, dataset: str) -> ForeignRun:
    """A run of a file that stands alone; ``name`` is W&B's, ALGORITHM-DATASET-ID, or empty."""
    algorithm, data = _known(name or path.stem)
    return ForeignRun("CORL", path, algorithm, _dataset(path, dataset or data), values, scored=True)


def _histories(path: Path) -> dict[str, np.ndarray]:
    """Scores in order, by W&B's name of the run (empty where the file is of one run); nothing if there are none."""
    if path.suffix == ".log":
        found = [match[2] for match in PRINTED.finditer(_text(path))]
        return {"": _finite(path, found)} if found else {}
    rows = _table(path) if path.suffix == ".csv" else _objects(path)
    if not rows:
        return {}
    header: dict[str, Any] = {}
    for row in rows:
        header |= row
    columns = {key.rpartition(" - ")[0]: key for key in header if key.rpartition(" - ")[2] in SCORES}
    if "" in columns or not columns:
        key = _score_key(header)
        columns = {} if key is None else {"": key}
    return {
        name: _finite(path, [row[key] for row in rows if row.get(key) not in (None, "")])
        for name, key in columns.items()
    }


def _score_key(row: Mapping[str, Any]) -> str | None:
    """The key of the score; of several target returns that of the highest."""
    targets = {float(match[1]): key for key in row if (match := TARGETED.fullmatch(key))}
    return next((key for key in SCORES if key in row), targets[max(targets)] if targets else None)


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        return [
            {k: v for k, v in row.items() if k}
            for row in csv.DictReader(_text(path).splitlines(), strict=True)
        ]
    except csv.Error as error:
        raise CheckpointError(f"{path} is not a CSV file: {error}") from None


def _objects(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    try:
        found = (
            [json.loads(line) for line in text.splitlines() if line]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    rows = found if isinstance(found, list) else [found]
    return [row for row in rows if isinstance(row, dict)]


def _flat_yaml(path: Path) -> dict[str, str]:
    """``key: scalar`` lines of a YAML file, and W&B's ``key:`` with an indented ``value: scalar``; the rest is left."""
    found, key = {}, ""
    for line in _text(path).splitlines():
        match = SCALAR.fullmatch(line.strip())
        if match is None:
            continue
        text = match[2].strip().strip("'\"")
        if not line[:1].isspace():
            key = match[1]
            if text:
                found[key] = text
        elif match[1] == "value" and key not in found:
            found[key] = text
    return found


def _known(name: str) -> tuple[str, str]:
    """``ALGORITHM-DATASET-ID`` as (algorithm, dataset); another name is an algorithm with an unknown dataset."""
    data = next((data for data in D4RL if f"-{data}-" in f"{name}-"), "")
    return (name[: name.index(f"-{data}")] if data else name), data


def _dataset(path: Path, name: str) -> str:
    if not name:
        raise ConfigError(f"{path} does not say which data its run learned from; write --with DATASET={path}")
    return name


def _finite(path: Path, cells: list[Any]) -> np.ndarray:
    try:
        values = np.array([float(cell) for cell in cells], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a score is not a number: {error}") from None
    if not np.isfinite(values).all():
        raise CheckpointError(f"{path}: a score is not a finite number")
    return values


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES >> 20} MiB; is it the right file?")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text: {error}") from None
