"""Files that survive accidents: atomic writes (a reader sees all of the old or of the new), bounded reads."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 20
MAX_VALUES = 1_000_000  # of a text file, with what it repeats by name counted each time


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on leaving, flush it to disk and rename it to ``path``.

    If the block raises (a full disk, Ctrl-C), the temporary file is removed and ``path`` is untouched.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError of the block that names no file (a full disk) or a temporary one."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is not None and (name is None or Path(str(name)).name.startswith(f".{path.name}.")):
            error.filename = str(path)
        raise


def atomic_write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity are refused (ValueError)."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json_object(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        error: it is not one JSON object, not UTF-8, or larger than 1 MiB; the message names the file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise error(f"{path} is larger than {MAX_JSON_BYTES} bytes; is it the right file?")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def check_values(content: Any, error: type[ValueError]) -> None:
    """Refuse what a YAML file says in a few aliases, and what would take all memory to print or copy.

    Raises:
        error: more than MAX_VALUES values when aliases are written out, or a list that holds itself.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, dict | list | tuple):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = MAX_VALUES + 1  # as long as its parts are counted: it may be one of them
            parts = node.values() if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(size(part) for part in parts)
        return sizes[id(node)]

    if size(content) > MAX_VALUES:
        raise error(f"with its aliases written out it holds more than {MAX_VALUES:,} values; not believed")


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
