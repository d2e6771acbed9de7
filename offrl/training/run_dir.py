"""The files of a run: settings, versions, append-only CSV tables, checkpoints and the policy."""

import contextlib
import csv
import functools
import io
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from offrl.errors import CheckpointError, ConfigError
from offrl.files import atomic_write, atomic_write_json, atomic_write_text, naming, read_json_object

try:
    import fcntl
except ImportError:  # not a Unix: two processes on one run are then not noticed
    fcntl = None  # type: ignore[assignment]

EVAL_COLUMNS = ("step", "episode", "return", "normalized_score", "length", "success")
TIMING_COLUMNS = ("step", "seconds", "steps_per_second")
CONFIG_FORMAT = 1
CONFIG_TYPES: dict[str, Any] = {  # what a resume relies on
    **dict.fromkeys(("algorithm", "dataset_name", "dataset_sha256", "rows", "device", "precision"), str),
    **dict.fromkeys(("algorithm_file", "algorithm_sha256", "dataset", "preset", "env_id"), str | None),
    **dict.fromkeys(("settings", "env_kwargs"), dict),
    **dict.fromkeys(("seed", "steps", "log_every", "eval_every", "eval_episodes", "final_episodes"), int),
    **dict.fromkeys(("checkpoint_every", "workers", "threads"), int),
    **dict.fromkeys(("compile", "tensorboard", "wandb"), bool),
    "env_flatten": list,
    "reference_returns": list | None,
}
CONFIG_SHARED = ({*CONFIG_TYPES} - {"seed"}) | {"stack"}  # what the runs of a stack have in common


class Table:
    """An append-only CSV file with a fixed header; every row is flushed, numbers are written exactly.

    Raises:
        CheckpointError: the file is there with other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        if not path.exists() or path.stat().st_size == 0:
            self._write("w", self.columns)
            return
        with naming(path), open(path, encoding="utf-8") as file:
            header = file.readline()
        if header != self._line(self.columns):
            raise CheckpointError(
                f"{path} has other columns than this version writes: it was edited, or the run is of another version"
            )

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; a column that ``row`` lacks stays empty."""
        self._write("a", [_cell(row.get(name)) for name in self.columns])

    def sync(self) -> int:
        """Force the rows to disk, so that no checkpoint outlives them; returns the bytes written so far."""
        with naming(self.path), open(self.path, "rb+") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Forget every byte after ``size`` (rows that a killed run wrote after its last checkpoint)."""
        if self.path.stat().st_size < size:
            raise CheckpointError(f"{self.path} is shorter than its checkpoint says: was it edited?")
        os.truncate(self.path, size)

    def clear(self) -> None:
        """Forget every row."""
        self._write("w", self.columns)

    def _write(self, mode: str, cells: Sequence[str]) -> None:
        with naming(self.path), open(self.path, mode, newline="", encoding="utf-8") as file:
            file.write(self._line(cells))

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        return buffer.getvalue()


class RunDir:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a run directory: it has no config.json")
        self.config = _read_config(path / "config.json")

    @classmethod
    def create(cls, root: Path, config: dict[str, Any]) -> "RunDir":
        """Make ``root/ALGORITHM/DATASET/seedS-TIME`` with config.json, versions.json and command.txt."""
        return cls.create_stack(root, [config])[0]

    @classmethod
    def create_stack(cls, root: Path, configs: Sequence[dict[str, Any]]) -> list["RunDir"]:
        """Make a run directory for each config, side by side; each of several names them all as its stack.

        Raises:
            ConfigError: a setting is infinite or not a number, which no file could keep.
        """
        for name, value in configs[0]["settings"].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value}")
        paths = [_new_folder(root, config) for config in configs]
        stack = {"stack": [path.name for path in paths]} if len(paths) > 1 else {}
        by_command = Path(sys.argv[0]).stem in (
            "offrl",
            "cli",
            "__main__",
        )  # else a script that calls offrl.train
        command = ["offrl", *sys.argv[1:]] if by_command else sys.argv
        for path, config in zip(paths, configs, strict=True):
            atomic_write_text(path / "command.txt", shlex.join(command) + "\n")
            atomic_write_json(path / "versions.json", versions(config["device"], config["threads"]))
            atomic_write_json(path / "config.json", {"format": CONFIG_FORMAT, **config, **stack})
        return [cls(path) for path in paths]

    def stack(self) -> list["RunDir"]:
        """The runs that were trained in one process with this one, itself included, in their order.

        Raises:
            CheckpointError: one of them is not beside this one, or was edited.
        """
        if "stack" not in self.config:
            return [self]
        own, runs = self.path.resolve(), []
        for name in self.config["stack"]:
            if name == own.name:
                runs.append(self)
                continue
            try:
                run = RunDir(own.parent / name)
            except FileNotFoundError:
                raise CheckpointError(
                    f"{self.path} was trained in one stack with {name}, which is not beside it; "
                    "put it back, or train anew"
                ) from None
            unequal = [k for k in CONFIG_SHARED if run.config.get(k) != self.config.get(k)]
            if unequal:
                raise CheckpointError(
                    f"{self.path} and {name} of its stack differ in {unequal[0]!r}; restore the files"
                )
            runs.append(run)
        if self not in runs:
            raise CheckpointError(f"{self.path} was renamed: its stack is {', '.join(self.config['stack'])}")
        return runs

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone; the lock ends with the process, however it ends.

        Raises:
            CheckpointError: another process is training this run.
        """
        with open(self.path / "config.json", "rb") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise CheckpointError(
                        f"{self.path} is being trained by another process; wait or stop it"
                    ) from None
                except OSError:
                    pass  # a file system without locks
            yield

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step and its final evaluation."""
        return (self.path / "final_returns.npz").is_file()

    def table(self, name: str, columns: Sequence[str]) -> Table:
        """The CSV table ``name`` (metrics.csv, eval.csv, timing.csv)."""
        return Table(self.path / name, columns)

    def finish(self, returns: np.ndarray, lengths: np.ndarray, successes: np.ndarray | None = None) -> None:
        """Write the raw returns of the last policy: the mark of a finished run."""
        arrays = {"returns": returns, "lengths": lengths}
        arrays |= {} if successes is None else {"successes": successes}
        with (
            atomic_write(self.path / "final_returns.npz") as temporary,
            open(temporary, "wb") as file,
        ):
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def recorded_versions(self) -> dict[str, Any]:
        """``versions.json`` as it was when the run began."""
        return read_json_object(self.path / "versions.json", CheckpointError)


def versions(device: str, threads: int) -> dict[str, Any]:
    """What the numbers of a run may depend on: program, libraries, chip, threads."""
    found: dict[str, Any] = {"offrl": _version("offrl"), "commit": _commit()}
    for library in ("torch", "numpy", "gymnasium", "mujoco", "minari"):
        found[library] = _version(library)
    return found | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "device": device_name(device),
        "threads": threads,
    }


def device_name(device: str) -> str:
    """``cpu``, or the name of the GPU."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return device


@functools.cache
def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str | None:
    """Commit of the checkout that this package runs from, or None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _new_folder(root: Path, config: dict[str, Any]) -> Path:
    """``root/ALGORITHM/DATASET/seedS-TIME``, empty and nobody else's."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(config["dataset_name"])).strip("-.") or "data"
    parent = root / str(config["algorithm"]) / name
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        path = parent / f"seed{config['seed']}-{stamp}{f'-{attempt}' if attempt else ''}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} has a thousand runs of seed {config['seed']} from this second")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json_object(path, CheckpointError)
    if "algorithm" not in config:
        raise CheckpointError(f"{path} does not describe a run: it names no algorithm")
    if config.get("format") != CONFIG_FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')}, this version reads {CONFIG_FORMAT}; upgrade offrl"
        )
    for name, kind in CONFIG_TYPES.items():
        value = config.get(name)
        if name not in config or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(f"{path} is damaged: {name!r} is {value!r}")
    pair = config["reference_returns"]
    if pair is not None and (len(pair) != 2 or not all(isinstance(value, int | float) for value in pair)):
        raise CheckpointError(f"{path} is damaged: 'reference_returns' is {pair!r}")
    stack = config.get("stack", [])
    if not isinstance(stack, list) or not all(
        isinstance(n, str) and re.fullmatch(r"seed\d+-[\w-]+", n) for n in stack
    ):
        raise CheckpointError(f"{path} is damaged: 'stack' is {stack!r}")
    if not isinstance(config.get("mix", {}), dict):
        raise CheckpointError(f"{path} is damaged: 'mix' is {config['mix']!r}")
    source, online = config.get("fine_tuned_from"), config.get("online")
    if (source is None) != (online is None) or not isinstance(online or {}, dict):
        raise CheckpointError(f"{path} is damaged: 'online' is {online!r}")
    kinds = {"run": str, "steps": int, "checkpoint_sha256": str}
    if source is not None and not (
        isinstance(source, dict) and all(isinstance(source.get(name), kind) for name, kind in kinds.items())
    ):
        raise CheckpointError(f"{path} is damaged: 'fine_tuned_from' is {source!r}")
    return config
