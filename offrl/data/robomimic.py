"""robomimic's HDF5 layout: one group a demonstration.

    data/demo_K/{obs/KEY, next_obs/KEY, actions, rewards, dones, states}     data.attrs["env_args"]: JSON
    mask/NAME: names of the demonstrations of a split

Source: ARISE-Initiative/robomimic (docs/datasets/overview.md).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl.data.d4rl import list_arrays, open_hdf5
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError

MAX_ARRAYS = 200_000  # a thousand demonstrations with dozens of observations
FIRST = (
    "object",
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_gripper_qpos",
)  # what low-dimensional policies see
SECOND_ARM = ("robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos")
GROUPS = {"obs": "observations", "next_obs": "next_observations"}


def is_robomimic(path: Path | str) -> bool:
    """Whether an HDF5 file has demonstrations in this layout; False for anything that cannot be opened."""
    try:
        with h5py.File(path, "r") as file:
            group = file.get("data")
            return isinstance(group, h5py.Group) and any(name.startswith("demo_") for name in group)
    except (OSError, RuntimeError, KeyError, ValueError):
        return False


def read_robomimic(
    path: Path | str, split: str | None = None, metadata: Mapping[str, Any] | None = None
) -> OfflineDataset:
    """Read demonstrations, in the order of their numbers.

    The flat view is what the published low-dimensional policies see: ``object``, then position, quaternion and
    fingers of each arm; in a file without these, every array of one dimension, by name. Images are read, but stay
    outside it. A demonstration whose last ``dones`` is set ends terminated, any other one truncated; ``dones``
    before that are kept as ``infos.dones``.

    Args:
        path: the file.
        split: name under ``mask`` (``train``, ``valid``, ``20_percent``); None for all.
        metadata: values that win over the file's.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not HDF5, damaged, no such split, or its arrays break a rule.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no dataset file {path}")
    with open_hdf5(path) as file:
        arrays = list_arrays(file, path, MAX_ARRAYS)
        demos = _demonstrations(file, path)
        if split is not None:
            demos = _split(arrays, split, demos, path)
        columns, left_out = _columns(arrays, demos, path)
        facts = _facts(file, path)
    lengths = [len(part) for part in columns["actions"]]
    if 0 in lengths:
        raise DatasetError(f"{path}: {demos[lengths.index(0)]} has no steps; take it out of the file")
    fields: dict[str, Any] = {}
    for name, parts in columns.items():
        if wrong := [i for i, part in enumerate(parts) if part.ndim == 0 or len(part) != lengths[i]]:
            shape = parts[wrong[0]].shape
            raise DatasetError(
                f"{path}: {name!r} of {demos[wrong[0]]} has shape {shape}, its actions have {lengths[wrong[0]]} rows"
            )
        fields[name] = np.concatenate(parts)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    fields |= _ends(fields, starts)
    facts |= {"left_out": left_out} if left_out else {}
    if order := _flatten(fields):
        facts["flatten"] = order
    facts["demonstrations"] = len(demos)
    try:
        return OfflineDataset(fields, starts, facts | dict(metadata or {}))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    """Names ``demo_K`` in the order of their numbers, those of empty groups too."""
    group = file.get("data")
    names = list(group) if isinstance(group, h5py.Group) else []
    names = [name for name in names if re.fullmatch(r"demo_\d+", name)]
    if not names:
        raise DatasetError(f"{path} is not in robomimic's layout: it has no data/demo_0 with arrays")
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _split(arrays: Mapping[str, h5py.Dataset], split: str, demos: list[str], path: Path) -> list[str]:
    known = sorted(key.removeprefix("mask/") for key in arrays if key.startswith("mask/"))
    if split not in known:
        raise DatasetError(f"{path} has no split {split!r}; it has {', '.join(known) or 'none'}")
    raw = np.atleast_1d(np.asarray(arrays[f"mask/{split}"][()]))
    names = {item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in raw.tolist()}
    if unknown := sorted(names - set(demos)):
        raise DatasetError(f"{path}: split {split!r} names {unknown[0]!r}, which is not in the file")
    if not names:
        raise DatasetError(f"{path}: split {split!r} names no demonstration")
    return [demo for demo in demos if demo in names]


def _columns(
    arrays: Mapping[str, h5py.Dataset], demos: list[str], path: Path
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Each array of every demonstration under our name; those that only some have are left out and listed."""
    found: dict[str, dict[str, h5py.Dataset]] = {demo: {} for demo in demos}
    for key, array in arrays.items():
        _, _, rest = key.partition("data/")
        demo, _, name = rest.partition("/")
        if demo in found and (ours := _our_name(name)):
            found[demo][ours] = array
    shared = set.intersection(*(set(names) for names in found.values()))
    some = set.union(*(set(names) for names in found.values()))
    needed = {"actions"} | {"rewards", "infos.dones"} & some
    if missing := sorted(needed - shared):
        demo = next(demo for demo in demos if missing[0] not in found[demo])
        raise DatasetError(f"{path}: {demo} lacks {missing[0].removeprefix('infos.')!r}")
    left_out = sorted(some - shared)
    for name in sorted(shared):
        shapes = {found[demo][name].shape[1:] for demo in demos}
        if len(shapes) > 1 and name.startswith("infos."):
            shared, left_out = shared - {name}, [*left_out, name]
        elif len(shapes) > 1:
            raise DatasetError(f"{path}: {name!r} has rows of different shapes: {sorted(shapes)}")
    if any(name.startswith("next_") for name in left_out):
        left_out += sorted(name for name in shared if name.startswith("next_"))
        shared = {name for name in shared if not name.startswith("next_")}
    return {name: [found[demo][name][()] for demo in demos] for name in sorted(shared)}, left_out


def _our_name(name: str) -> str | None:
    """``obs/KEY`` becomes ``observations.KEY`` and so on; None for what has no rows of its own."""
    head, _, tail = name.partition("/")
    if head in GROUPS and tail:
        return f"{GROUPS[head]}.{tail.replace('/', '.')}"
    return {"actions": "actions", "rewards": "rewards", "dones": "infos.dones", "states": "infos.states"}.get(
        name
    )


def _ends(fields: dict[str, Any], starts: np.ndarray) -> dict[str, np.ndarray]:
    """``terminated`` and ``truncated``, and zero rewards if there are none."""
    last = np.zeros(starts[-1], dtype=bool)
    last[starts[1:] - 1] = True
    done = np.asarray(fields.get("infos.dones", np.zeros(starts[-1]))).reshape(len(last), -1)[:, 0] > 0
    made = {"terminated": last & done, "truncated": last & ~done}
    return made if "rewards" in fields else made | {"rewards": np.zeros(len(last), np.float32)}


def _flatten(fields: Mapping[str, np.ndarray]) -> list[str]:
    known = [key for key in FIRST + SECOND_ARM if f"observations.{key}" in fields]
    prefix = "observations."
    plain = [k.removeprefix(prefix) for k, a in fields.items() if k.startswith(prefix) and a.ndim == 2]
    return known or sorted(plain)


def _facts(file: h5py.File, path: Path) -> dict[str, Any]:
    """What ``env_args`` says, as metadata."""
    text = file["data"].attrs.get("env_args")
    if text is None:
        return {}
    try:
        arguments = json.loads(text)
    except (TypeError, ValueError):
        arguments = None
    if not isinstance(arguments, dict):
        raise DatasetError(f"{path}: the attribute 'env_args' of 'data' is not a JSON object")
    return {"robomimic_env": arguments.get("env_name"), "robomimic_env_args": arguments}
