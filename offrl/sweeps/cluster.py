"""Cells on a Ray cluster. Ray places them, restarts what died or failed, and says what did not work out.

A cell runs inside a Ray worker, a fresh process each, so that nothing of it outlives a worker that is killed; tried
again, it resumes from its last checkpoint. Folder and data must be reachable from every node under the same path.
"""

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from offrl.errors import MissingExtraError, Stopped
from offrl.training.cells import Cell

PATIENCE = 120.0  # seconds for checkpoints after a stop


def require_ray() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtraError("Ray", "dist") from None


def run_on_ray(
    cells: Sequence[Cell],
    logs: Path,
    *,
    jobs: int,
    address: str | None = None,
    gpus: float = 0.0,
    retries: int = 1,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """``run_cells`` on a cluster: one CPU a cell.

    Args:
        cells: what to run; their commands are ``python -m MODULE ...`` with a ``main`` in the module.
        logs: folder of one log file a cell.
        jobs: CPUs of the local instance that is started where there is no ``address``.
        address: of a cluster, as ``ray.init`` takes it (``auto``, ``ray://HOST:PORT``).
        gpus: share of a GPU that Ray reserves for each cell.
        retries: how often Ray tries a cell again.
        stop: asked again and again; True interrupts what runs (it checkpoints).
        note: called with a line of progress.

    Returns:
        Names of the cells that still have no result.

    Raises:
        MissingExtraError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
    """
    ray = require_ray()
    waiting = [cell for cell in cells if not cell.done]
    note(f"{len(cells) - len(waiting)} of {len(cells)} cells are done, {len(waiting)} to run")
    if not waiting:
        return []
    logs.mkdir(parents=True, exist_ok=True)
    with _connected(ray, address, jobs):
        resources = {"num_cpus": 1, "num_gpus": gpus, "max_calls": 1}
        task = ray.remote(**resources, max_retries=retries, retry_exceptions=True)(play)
        running = {
            task.options(name=cell.name).remote(cell.command[2:], _log(cell, logs)): cell for cell in waiting
        }
        there = ray.cluster_resources()
        note(f"Ray: {len(running)} cells on {there.get('CPU', 0):.0f} CPUs")
        if gpus > there.get("GPU", 0):
            note(f"Ray: no {gpus} GPUs in the cluster now; the cells wait until a node with them joins")
        return _follow(ray, running, logs, stop, note)


def _follow(
    ray: Any, running: dict[Any, Cell], logs: Path, stop: Callable[[], bool], note: Callable[[str], None]
) -> list[str]:
    """Wait for every task; returns the names of the cells without result."""
    missing: list[str] = []
    until: float | None = None
    while running:
        if until is None and stop():
            until = time.monotonic() + PATIENCE
            for task in running:
                ray.cancel(task)
        if until is not None and time.monotonic() > until:
            break
        ready, _ = ray.wait(list(running), timeout=0.5)
        for task in ready:
            cell, why = running.pop(task), ""
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                why = str(getattr(error, "cause", None) or error).splitlines()[0]
            if cell.done:
                note(f"finished {cell.name}")
            else:
                note(f"{cell.name} has no result ({why or 'stopped'}); see {_log(cell, logs)}")
                missing.append(cell.name)
    return missing + [cell.name for cell in running.values()]


def _log(cell: Cell, logs: Path) -> str:
    return str((cell.log or logs / f"{cell.name}.log").resolve())


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, jobs: int) -> Iterator[None]:
    """A connection of our own; one that the caller has is used and left open."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address}
    _answers(address)
    if address is None:
        options = {"address": "local", "include_dashboard": False, "num_cpus": jobs}
    on_term = signal.getsignal(signal.SIGTERM)
    ray.init(**options, log_to_driver=False, logging_level="error")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in place, which exits
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str | None) -> None:
    """Refuse an address where nobody listens: Ray itself would wait for minutes (ConnectionError)."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from None


def play(words: Sequence[str], log: str) -> None:
    """A cell's command inside a Ray worker, with its output in ``log``."""
    module, *arguments = words
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        own = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            importlib.import_module(module).main(arguments)
        except Stopped:
            raise
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())
            raise RuntimeError(f"{type(error).__name__}: {text}") from None
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, kept in zip((1, 2), own, strict=True):
                os.dup2(kept, number)
                os.close(kept)
