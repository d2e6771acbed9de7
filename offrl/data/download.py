"""D4RL and OGBench files: where they lie, fetching them where a network exists, adding them by hand.

A file is kept as ``<data home>/NAME.hdf5`` (OGBench: ``NAME.npz``) with its SHA-256 beside it
(``NAME.hdf5.sha256``, readable by ``sha256sum -c``). The checksum is recorded when the file first arrives and
verified ever after: the public files come with none. The data home is ``$OFFRL_DATA``, else
``~/.cache/offrl/datasets``.
"""

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from offrl.data.addresses import addresses
from offrl.data.environments import environment_for, unknown_dataset
from offrl.data.reference import D4RL, OGBENCH, bare_name, ogbench_name
from offrl.errors import DatasetError
from offrl.files import atomic_write, atomic_write_json, atomic_write_text, sha256_file

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 6  # connections to one address, each going on where the last one broke off
PAUSE = 1.0  # seconds before the second attempt, doubled each time
CHUNK = 1 << 20  # bytes
MAX_BYTES = 1 << 35  # nothing that is offered comes near
ARRAYS = {  # a file holds at least these
    ".hdf5": ("observations", "actions", "rewards", "terminals"),
    ".npz": ("observations", "actions", "terminals"),
}


Bar = Callable[[int, int | None], None]  # bytes so far, bytes in all


class _FailedError(Exception):
    """One address did not deliver; the next one is tried."""


def data_home() -> Path:
    """The folder of downloaded and added datasets: ``$OFFRL_DATA``, else ``~/.cache/offrl/datasets``."""
    return Path(os.environ.get("OFFRL_DATA") or "~/.cache/offrl/datasets").expanduser().absolute()


def local_path(name: str) -> Path:
    """Where the file of a D4RL or OGBench name lies, or would lie.

    The tasks of an OGBench environment share one public file; a file that was labelled for one task and then
    added lies under the task's own name and comes first.

    Raises:
        DatasetError: neither a D4RL nor an OGBench name.
    """
    bare = bare_name(name)
    if parts := ogbench_name(name):
        labelled = data_home() / f"{bare}.npz"
        return labelled if labelled.is_file() else data_home() / f"{parts.file}.npz"
    if bare not in D4RL:
        raise DatasetError(unknown_dataset(name))
    return data_home() / f"{bare}.hdf5"


def installed() -> list[str]:
    """The D4RL names whose files lie in the data home."""
    return [name for name in D4RL if (data_home() / f"{name}.hdf5").is_file()]


def installed_ogbench() -> list[str]:
    """The OGBench names that the files in the data home serve: a public file its default task, a labelled own."""
    tasks = ("", *(f"-task{k}" for k in range(1, 6)))
    names = [f"{data}-singletask{task}-v0{val}" for data in OGBENCH for task in tasks for val in ("", "-val")]
    there = {path.stem for path in data_home().glob("*.npz")}
    return [
        name
        for name in names
        if name in there or ("-task" not in name and name.replace("-singletask", "") in there)
    ]


def fetch(name: str, *, progress: bool = True) -> Path:
    """The local file of a D4RL or OGBench dataset, verified; downloaded first if it is not there.

    A broken transfer goes on where it stopped, also in a later call. Of several processes one downloads, the
    others wait for it.

    Args:
        name: with or without ``d4rl:`` or ``ogbench:``.
        progress: show a bar if stderr is a terminal.

    Raises:
        DatasetError: neither a D4RL nor an OGBench name; the file differs from its recorded checksum; no address
            delivered it (the line lists each address with its reason).
        ConfigError: ``OFFRL_DATA_MIRROR`` holds something else than http addresses.
    """
    path = local_path(name)
    if not path.is_file():
        urls = addresses(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not path.is_file():
                _fetch_from(urls, path, progress, name)
                return path
    verify(path)
    return path


def add(file: Path | str, as_name: str) -> Path:
    """Copy a D4RL or OGBench file that was obtained elsewhere into the data home, after reading it through.

    An OGBench file with rewards and masks is kept for the one task that is named, any other for all tasks.

    Args:
        file: the HDF5 file, or OGBench's npz file.
        as_name: the D4RL or OGBench name that it is to be found under.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: an unknown name, a damaged file, another robot's file, or other data are there already.
    """
    source, path = Path(file).expanduser().absolute(), local_path(as_name)
    if parts := ogbench_name(as_name):
        from offrl.data.ogbench import inspect

        labelled = inspect(source, as_name)
        path = data_home() / f"{bare_name(as_name) if labelled else parts.file}.npz"
    else:
        _check_d4rl(source, as_name)
    digest = sha256_file(source)
    if path.is_file() and sha256_file(path) != digest:
        raise DatasetError(f"{path} exists and holds other data; delete it first")
    _compare(path, digest)
    if not path.is_file():
        with atomic_write(path) as temporary:
            shutil.copyfile(source, temporary)
            if sha256_file(temporary) != digest:
                raise DatasetError(f"{source} changed while it was copied; try again")
            _record(path, digest)
    _record(path, digest)
    return path


def _check_d4rl(source: Path, as_name: str) -> None:
    """Read a D4RL file through and compare its widths with those of the name."""
    from offrl.data.d4rl import read_d4rl

    dataset, spec = read_d4rl(source), environment_for(as_name)
    for what, have, want in (
        ("observations", dataset.obs_dim, spec.obs_dim),
        ("actions", dataset.act_dim, spec.act_dim),
    ):
        if want is not None and have != want:
            raise DatasetError(
                f"{source} has {what} of width {have}, {bare_name(as_name)} has {want}; wrong file or name?"
            )


def verify(path: Path) -> None:
    """Compare a file with its recorded checksum; record it if this is the first look.

    Raises:
        DatasetError: the file differs.
    """
    digest = sha256_file(path)
    _compare(path, digest)
    _record(path, digest)


def _fetch_from(urls: list[str], path: Path, progress: bool, name: str) -> None:
    part = path.with_name(path.name + ".part")
    reasons = []
    for url in urls:
        try:
            _download(url, part, progress)
            _check_content(part, path)
        except _FailedError as failure:
            reasons.append(f"{url} ({failure})")
            continue
        os.replace(part, path)
        _state_file(part).unlink(missing_ok=True)
        return
    scheme = "ogbench" if ogbench_name(name) else "d4rl"
    raise DatasetError(
        f"could not download {path.stem}: {'; '.join(reasons)}. Get the file by other means, then run: "
        f"offrl data add FILE --as {scheme}:{bare_name(name)}"
    )


def _check_content(part: Path, path: Path) -> None:
    """Accept a complete file: the layout's arrays, and the checksum recorded earlier if there is one."""
    try:
        have = _names_in(part, path.suffix)
        missing = [name for name in ARRAYS[path.suffix] if name not in have]
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        start = part.read_bytes()[:16] if part.stat().st_size < CHUNK else b""
        _discard(part)
        what = "a web page" if start.lstrip().startswith(b"<") else " ".join(str(error).split())[:120]
        kind = "HDF5" if path.suffix == ".hdf5" else path.suffix
        raise _FailedError(f"it sent no readable {kind} file: {what}") from error
    digest = sha256_file(part)
    try:
        if missing:
            raise DatasetError(f"its file lacks {', '.join(missing)}")
        _compare(path, digest)
    except DatasetError as error:
        _discard(part)
        raise _FailedError(str(error)) from error
    _record(path, digest)


def _names_in(part: Path, suffix: str) -> set[str]:
    """The arrays in a file."""
    if suffix == ".npz":
        with zipfile.ZipFile(part) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    import h5py

    with h5py.File(part, "r") as file:
        return set(file)


def _download(url: str, part: Path, progress: bool) -> None:
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            with _bar(url, progress) as bar:
                reason = _transfer(url, part, bar)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise _FailedError(f"{error.code} {error.reason}") from error
            if _is_whole(error, part):
                return
            _discard(part)
            reason = "the server refused to go on with the transfer"
        except urllib.error.URLError as error:  # not even connected: another attempt would not help
            raise _FailedError(getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
        if not reason:
            return
    raise _FailedError(reason)


def _transfer(url: str, part: Path, bar: Bar) -> str:
    """One connection; returns "" when the file is complete, else why it is not."""
    state = _read_state(part)
    have = part.stat().st_size if part.is_file() and state.get("url") == url else 0
    headers = {"User-Agent": "offrl", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state.get("validator"):
            headers["If-Range"] = state["validator"]
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        start, total = _extent(response, have)
        if total is not None and total > MAX_BYTES:
            raise _FailedError(f"it claims to have {total} bytes, more than any dataset file")
        if start and total != state.get("total"):
            _discard(part)
            return "the file on the server changed"
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak tag does not promise the same bytes
        atomic_write_json(_state_file(part), {"url": url, "validator": validator, "total": total})
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({total - start} bytes needed)", str(part)
            )
        size = _write(response, part, start, bar, total)
    if total is not None and size < total:
        return f"the connection ended after {size} of {total} bytes"
    return ""


def _write(response: http.client.HTTPResponse, part: Path, start: int, bar: Bar, total: int | None) -> int:
    with open(part, "r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar(file.tell(), total)
            if file.tell() > MAX_BYTES:
                raise _FailedError(f"it sent more than {MAX_BYTES} bytes")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the body starts in the file and how long the whole file is (None if the server does not say)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _FailedError(f"it answered with the wrong range {response.headers.get('Content-Range')!r}")
        return have, int(match[2])
    if response.status != 200:
        raise _FailedError(f"it answered {response.status}")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _is_whole(error: urllib.error.HTTPError, part: Path) -> bool:
    """Whether a 416 ('range not satisfiable') says that every byte is here already."""
    total = error.headers.get("Content-Range", "").removeprefix("bytes */")
    return part.is_file() and total == str(part.stat().st_size)


def _compare(path: Path, digest: str) -> None:
    side = _checksum_file(path)
    if not side.is_file():
        return
    recorded = (side.read_text(errors="replace").split() or [""])[0]
    if recorded != digest:
        raise DatasetError(
            f"{path.name} does not match its recorded checksum ({digest[:9]}.. instead of {recorded[:9]}..): "
            f"it is damaged or was changed; delete it and download again, or delete {side} to accept it"
        )


def _record(path: Path, digest: str) -> None:
    if not _checksum_file(path).is_file():
        atomic_write_text(_checksum_file(path), f"{digest}  {path.name}\n")


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state_file(part).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; released by the system if the process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two downloads at once are not guarded against
        yield
        return
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _bar(url: str, progress: bool) -> Iterator[Bar]:
    """A progress bar on the terminal, or nothing."""
    if not progress:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        task = display.add_task(url.rpartition("/")[2], total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)
