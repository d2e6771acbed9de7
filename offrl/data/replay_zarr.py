"""diffusion_policy's zarr layout: the steps of all demonstrations in order, one array a quantity.

    data/{action, state, keypoint, img, n_contacts, ...} (N, ...)     meta/episode_ends (E,)

PushT's file has ``state`` (agent x, y, block x, y, angle), nine keypoints and 96 x 96 images. Its two published
policies see ``keypoint`` then the agent's position (20 numbers), or image and agent's position. gym-pusht's own
keypoints are eight: a policy trained on the file's does not fit its 18 numbers.

Source: real-stanford/diffusion_policy (common/replay_buffer.py, dataset/pusht_*_dataset.py).
"""

import itertools
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import named_environment
from offrl.errors import DatasetError, MissingExtraError

MAX_COMPRESSION = 5000  # white images go far; an array that claims more is not believed
MAX_ARRAYS = 256
GROUPS = ("data/", "meta/episode_ends")  # what is read
_DAMAGE = (  # all that zarr and its codecs raise on damaged files
    *(OSError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError),
    *(AssertionError, ArithmeticError, zipfile.BadZipFile, zlib.error, struct.error),
)


def read_zarr(path: Path | str, metadata: Mapping[str, Any] | None = None) -> OfflineDataset:
    """Read a zarr folder or ``.zarr.zip`` file; every demonstration ends truncated, rewards are zero.

    ``action`` becomes the actions, ``n_contacts`` an info, everything else an observation; with a ``state`` of five
    numbers (PushT) ``agent_pos`` is cut out of it and the views ``state`` and ``keypoints`` are described.

    Raises:
        FileNotFoundError: nothing there.
        DatasetError: not such a layout, damaged, or its arrays break a rule.
        MissingExtraError: zarr is not installed.
    """
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(f"no zarr data at {path}")
    arrays = _arrays(path)
    if missing := [name for name in ("data/action", "meta/episode_ends") if name not in arrays]:
        raise DatasetError(f"{path} lacks {missing[0]}; it holds {', '.join(sorted(arrays)) or 'no array'}")
    ends = arrays.pop("meta/episode_ends")
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DatasetError(f"{path}: meta/episode_ends must be a list of integers")
    starts = np.concatenate([[0], ends.astype(np.int64)])
    fields: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith("data/"):
            fields[_our_name(name.removeprefix("data/"))] = _plain(array)
    if fields["actions"].ndim == 0:
        raise DatasetError(f"{path}: data/action is a single number; it needs one row per step")
    rows = len(fields["actions"])
    fields |= {"rewards": np.zeros(rows, np.float32), "terminated": np.zeros(rows, dtype=bool)}
    fields["truncated"] = np.zeros(rows, dtype=bool)
    if len(starts) < 2 or starts[-1] != rows or (np.diff(starts) < 1).any():
        raise DatasetError(f"{path}: meta/episode_ends must rise to the number of rows, {rows}")
    fields["truncated"][starts[1:] - 1] = True
    facts = _pusht(fields)
    try:
        return OfflineDataset(fields, starts, facts | dict(metadata or {}))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def _our_name(name: str) -> str:
    if name == "action":
        return "actions"
    return "infos.n_contacts" if name == "n_contacts" else f"observations.{name.replace('/', '.')}"


def _plain(array: np.ndarray) -> np.ndarray:
    """Images stored as floats of whole numbers become bytes; keypoints (N, 9, 2) one row of 18."""
    if array.ndim == 4 and array.dtype.kind == "f" and _are_bytes(array):
        return array.astype(np.uint8)
    return array.reshape(len(array), math.prod(array.shape[1:])) if array.ndim == 3 else array


def _are_bytes(array: np.ndarray) -> bool:
    """Whether every value is one of 0, 1 .. 255."""
    parts = (array[start : start + 256] for start in range(0, len(array), 256))
    return all(((part == part.round()) & (part >= 0) & (part <= 255)).all() for part in parts)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays by slash-joined name."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "policies") from error
    try:
        store: Any = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        root = zarr.open_group(store, mode="r")
        nodes = list(itertools.islice(root.members(max_depth=4), MAX_ARRAYS + 1))
        if len(nodes) > MAX_ARRAYS:
            raise DatasetError(
                f"{path} holds more than {MAX_ARRAYS} arrays and groups; it is not such a layout"
            )
        found = {
            name: node for name, node in nodes if isinstance(node, zarr.Array) and name.startswith(GROUPS)
        }
        for name, array in found.items():
            if array.dtype.kind not in "biuf":  # objects may be pickles, which some numcodecs load
                raise DatasetError(
                    f"{path}: {name!r} holds {array.dtype} values; take it out, only numbers are read"
                )
            if array.nbytes > MAX_COMPRESSION * array.nbytes_stored() + 4096:
                raise DatasetError(
                    f"{path}: {name!r} claims {array.nbytes} bytes, but only {array.nbytes_stored()} are stored"
                )
        return {name: np.asarray(array[...]) for name, array in found.items()}
    except (DatasetError, PermissionError):
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DatasetError(f"{path} is not readable zarr data (damaged or cut short?): {reason}") from None


def _pusht(fields: dict[str, Any]) -> dict[str, Any]:
    """Metadata of PushT's file, and the agent's position as an observation of its own."""
    state = fields.get("observations.state")
    if state is None or state.shape[1:] != (5,):
        return {}
    fields["observations.agent_pos"] = state[:, :2]
    spec = named_environment("pusht-state")
    views: dict[str, dict[str, Any]] = {
        "state": {"flatten": ["state"], "env_id": spec.env_id, "env_kwargs": spec.kwargs}
    }
    if "observations.keypoint" in fields:
        views["keypoints"] = {"flatten": ["keypoint", "agent_pos"], "env_id": None, "env_kwargs": {}}
    return {"views": views, **views["state"], "max_episode_steps": spec.horizon}
