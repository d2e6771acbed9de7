"""Files that torch saved with a pickle inside, read as tensors and plain containers; no code runs.

A torch zip holds ``data.pkl`` and one file for the numbers of each storage. The pickle is read by an unpickler that
knows a handful of names: how torch puts a tensor on its storage, ordered dicts. Names of omegaconf, which training code
saves its settings with, become inert stand-ins whose contents are then taken out as plain values. Any other name is an
error that says it.
"""

import collections
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import PolicyError

MAX_PICKLE_BYTES = 64 << 20
MAX_BYTES = 8 << 30
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
INERT = {
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.nodes", "AnyNode"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("typing", "Any"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "int"),
    ("builtins", "str"),
    ("builtins", "float"),
    ("builtins", "bool"),
    ("builtins", "NoneType"),
}
MOST_LEVELS = 64


class Inert:
    """Keeps what a pickle passes; does nothing with it."""

    name = ""
    state: Any

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Without looking at the arguments."""
        self = super().__new__(cls)
        self.state = None
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


STAND_INS = {key: type("Named", (Inert,), {"name": key[1]}) for key in INERT}


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(data))
        self.archive, self.folder, self.storages = archive, folder, dict[str, Tensor]()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _tensor(*args)  # a pickle may spoil what it gets: not the one of all
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, *_: _bytes(text)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        raise PolicyError(
            f"it names {module}.{name}, which is neither a tensor nor a plain container; refused"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        if (
            not isinstance(pid, tuple)
            or len(pid) != 5
            or pid[0] != "storage"
            or not isinstance(pid[1], torch.dtype)
        ):
            raise PolicyError("it names numbers in a way that torch does not")
        key, count = str(pid[2]), pid[4]
        if key not in self.storages:
            name = f"{self.folder}/data/{key}"
            if name not in self.archive.namelist():
                raise PolicyError(f"the numbers {name} are missing")
            raw = bytearray(self.archive.read(name))
            if not isinstance(count, int) or len(raw) != count * pid[1].itemsize:
                raise PolicyError(f"the numbers {name} are {len(raw)} bytes, not {count} of {pid[1]}")
            self.storages[key] = torch.frombuffer(raw, dtype=pid[1]) if raw else torch.empty(0, dtype=pid[1])
        return self.storages[key]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, inside it."""
    plain = all(isinstance(n, int) and 0 <= n < 1 << 40 for n in (offset, *tuple(size), *tuple(stride)))
    if not isinstance(storage, Tensor) or not plain or len(size) != len(stride):
        raise PolicyError("a tensor is not described by plain numbers")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.numel():
        raise PolicyError("a tensor reaches beyond its numbers")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _bytes(text: Any) -> bytes:
    """Bytes, which old pickles write as text."""
    if not isinstance(text, str):
        raise PolicyError("bytes are not written as text")
    return text.encode("latin1")


def read_plain(path: Path | str) -> Any:
    """What a torch file holds: tensors, dicts, lists, tuples, numbers, text, bytes, and settings as plain dicts.

    Raises:
        FileNotFoundError: no such file.
        PolicyError: not a torch zip, damaged, too large, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path.absolute()}")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info.file_size for info in archive.infolist()}
            pickles = [name for name in infos if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise PolicyError("it is not a file that torch saved: it has no data.pkl")
            if infos[pickles[0]] > MAX_PICKLE_BYTES or sum(infos.values()) > MAX_BYTES:
                raise PolicyError("it is too large to be believed")
            folder = pickles[0].removesuffix("/data.pkl")
            return plain(_Reader(archive.read(pickles[0]), archive, folder).load())
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise PolicyError(f"{path} is not a file that torch saved, or is damaged ({first})") from None


def plain(value: Any, depth: int = 0) -> Any:
    """Stand-ins replaced by what they hold: settings as dicts and lists, their nodes as values."""
    if depth > MOST_LEVELS:
        raise PolicyError("it is nested too deeply")
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        inner = state.get("_val") if value.name == "AnyNode" else state.get("_content")
        return plain(inner, depth + 1)
    if isinstance(value, dict):
        return {key: plain(item, depth + 1) for key, item in value.items() if isinstance(key, str | int)}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, Tensor | str | bytes | bool | int | float) or value is None:
        return value
    return None  # a stand-in's class, an attribute of no interest
