"""D4RL's HDF5 layout: one flat file, the steps of all episodes in order.

Layout (arXiv:2004.07219, github.com/Farama-Foundation/D4RL): ``observations, actions, rewards, terminals``
and optionally ``timeouts, next_observations, infos/*, metadata/*``. Files that offrl writes hold the same
arrays, dict observations as ``observations/KEY``, and the dataset's metadata as JSON in the file's attribute
``offrl``.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl.data import validate
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError
from offrl.files import atomic_write

REQUIRED = ("actions", "rewards", "terminals")
MEMORY_MAP_BYTES = 1 << 28  # an uncompressed array larger than this is mapped, not read
MAX_COMPRESSION = 1100  # deflate reaches 1032:1; an array that claims more is not believed
MAX_ARRAYS = 4096
SLASH = "%2F"  # a slash inside a key of dict observations, which HDF5 would take for a group
MAX_ATTRIBUTE_BYTES = 60_000  # HDF5 stores an attribute in at most 64 KiB


def read_d4rl(path: Path | str, metadata: Mapping[str, Any] | None = None) -> OfflineDataset:
    """Read a D4RL-format HDF5 file.

    Numeric arrays under ``infos`` become ``infos.NAME`` fields; arrays of other kinds, lengths or names
    are left out and listed in ``metadata["left_out"]``. In a file without ``timeouts``, episodes end at
    terminated steps and, if ``max_episode_steps`` is in the metadata, every that many steps.

    Args:
        path: the file.
        metadata: values that win over those in the file.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not HDF5, damaged, or its arrays break a rule.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no dataset file {path}")
    with open_hdf5(path) as file:
        arrays = list_arrays(file, path)
        own = _read_attribute(file, path)
        fields, left_out = _read_fields(arrays, path)
        if scalars := _read_scalars(arrays):
            own.setdefault("file_metadata", scalars)
    if left_out:
        own["left_out"] = left_out
    own |= dict(metadata or {})
    try:
        dataset = OfflineDataset.from_fields(fields, own)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    recorded = own.get("sha256")
    if recorded is not None and recorded != dataset.sha256:
        raise DatasetError(
            f"{path} does not match the checksum written into it: the file is damaged or was edited; "
            "write it again, or delete its 'offrl' attribute to use it as it is"
        )
    return dataset


def write_d4rl(dataset: OfflineDataset, path: Path | str) -> None:
    """Write ``dataset`` as a D4RL-format HDF5 file, atomically; the same content gives the same bytes.

    Arrays are not compressed: gzip makes float32 states and actions a sixth smaller, but writes 25 times and
    reads 14 times slower (1e6 steps of 17 + 6 numbers), and only an uncompressed array can be memory-mapped.

    Raises:
        DatasetError: the metadata are too long for an HDF5 attribute, or a key cannot be a name in HDF5.
    """
    validate.storable(dataset.fields, "an HDF5 file", SLASH)
    own = json.dumps(dataset.metadata | {"sha256": dataset.sha256}, sort_keys=True).encode()
    if len(own) > MAX_ATTRIBUTE_BYTES:
        raise DatasetError(f"the metadata take {len(own)} bytes as JSON; at most {MAX_ATTRIBUTE_BYTES} fit")
    names = {"terminated": "terminals", "truncated": "timeouts"}
    with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="earliest") as file:
        file.attrs["offrl"] = np.bytes_(own)  # fixed length: HDF5 can hang on a damaged variable-length one
        for name, array in dataset.fields.items():
            key = names.get(name) or "/".join(name.replace("/", SLASH).split("."))
            file.create_dataset(key, data=array, track_times=False)


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading; whatever HDF5 reports about a damaged file becomes one DatasetError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (DatasetError, PermissionError):
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # all seen on damaged files
        reason = " ".join(str(error).split())[:160]
        raise DatasetError(f"{path} is not a readable HDF5 file (damaged or cut short?): {reason}") from None


def list_arrays(file: h5py.File, path: Path, most: int | None = None) -> dict[str, h5py.Dataset]:
    """All arrays, at most ``most`` (MAX_ARRAYS), by slash-joined name. Links to other files are not followed."""
    most = MAX_ARRAYS if most is None else most
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: h5py.HLObject) -> bool | None:
        if isinstance(node, h5py.Dataset):
            found[name] = node
        return True if len(found) > most else None

    if file.visititems(visit):
        raise DatasetError(f"{path} holds more than {most} arrays; it is not in D4RL's flat layout")
    for name, array in found.items():
        check_array(array.id, name, path)
    return found


def check_array(array: h5py.h5d.DatasetID, name: str, path: Path) -> None:
    """Refuse an array that keeps its data elsewhere, or claims far more than the file holds, before it is read."""
    layout = array.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise DatasetError(f"{path}: {name!r} keeps its data in another file; copy it into this one")
    stored, claimed = array.get_storage_size(), math.prod(array.shape) * array.get_type().get_size()
    if claimed > MAX_COMPRESSION * stored + 4096:
        raise DatasetError(
            f"{path}: {name!r} claims {claimed} bytes, but only {stored} are stored; write all of its values"
        )


def _read_attribute(file: h5py.File, path: Path) -> dict[str, Any]:
    text = file.attrs.get("offrl")
    if text is None:
        return {}
    try:
        own = json.loads(text)
    except (TypeError, ValueError):
        own = None
    if not isinstance(own, dict):
        raise DatasetError(f"{path}: the attribute 'offrl' is not a JSON object; delete it or repair it")
    return own


def _read_fields(arrays: Mapping[str, h5py.Dataset], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Arrays under offrl's names, and the names that were left out."""
    missing = [key for key in REQUIRED if key not in arrays]
    if not any(_is_under(key, "observations") for key in arrays):
        missing = ["observations", *missing]
    if missing:
        have = ", ".join(sorted(arrays)[:12]) or "nothing"
        raise DatasetError(f"{path} lacks {', '.join(missing)}; it holds {have}")
    names = {"actions": "actions", "rewards": "rewards", "terminals": "terminated", "timeouts": "truncated"}
    rows = arrays["actions"].shape[:1]
    fields: dict[str, Any] = {}
    left_out = []
    for key, array in arrays.items():
        if key in names or _is_under(key, "observations") or _is_under(key, "next_observations"):
            fields[names.get(key) or _field(key)] = _read(array, path)
        elif key.startswith("infos") and array.dtype.kind in "biuf" and array.shape[:1] == rows:
            # kitchen files hold a plain array 'infos': the index of the demonstration
            fields["infos.index" if key == "infos" else _field(key)] = _read(array, path)
        elif not key.startswith("metadata/"):
            left_out.append(key)
    return fields, left_out


def _field(key: str) -> str:
    return key.replace("/", ".").replace(SLASH, "/")


def _is_under(key: str, name: str) -> bool:
    return key == name or key.startswith(name + "/")


def _read(array: h5py.Dataset, path: Path) -> np.ndarray:
    """The whole array; a large uncompressed one is mapped from the file instead."""
    offset = array.id.get_offset()  # None when the data lie in chunks
    if offset is not None and array.nbytes >= MEMORY_MAP_BYTES and array.dtype.kind in "biuf":
        return np.memmap(path, dtype=array.dtype, mode="r", offset=offset, shape=array.shape)
    values: np.ndarray = array[()]
    return values


def _read_scalars(arrays: Mapping[str, h5py.Dataset]) -> dict[str, Any]:
    """Scalars below ``metadata/`` (the collecting algorithm, its iteration); policy weights are not read."""
    out: dict[str, Any] = {}
    for key, array in arrays.items():
        if key.startswith("metadata/") and array.shape == ():
            value = array[()]
            if isinstance(value, bytes):
                out[key.removeprefix("metadata/")] = value.decode(errors="replace")
            elif array.dtype.kind in "biuf" and np.isfinite(value):
                out[key.removeprefix("metadata/")] = value.item()
    return out
