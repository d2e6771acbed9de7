"""``load_dataset``: one door for every place that data come from."""

import difflib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import find_environment, unknown_dataset
from offrl.data.reference import D4RL, reference_returns
from offrl.errors import DatasetError

SUFFIXES = (".hdf5", ".h5", ".npz", ".csv", ".parquet")
PATHS = ("robomimic", "lerobot", "zarr")  # schemes that are followed by a path


def load_dataset(uri: str | Path | OfflineDataset) -> OfflineDataset:
    """Load a dataset.

    Args:
        uri: ``d4rl:NAME`` (downloaded at first use; a bare D4RL name means the same), ``minari:ID`` (local),
            ``ogbench:DATA-singletask-v0`` (downloaded at first use; ``-singletask-taskK-v0`` for task K,
            ``...-v0-val`` for the held-out data), ``builtin:NAME`` or ``builtin:NAME/VIEW``, robot data
            ``robomimic:FILE`` or ``robomimic:FILE#SPLIT``, ``lerobot:DIR`` or ``lerobot:DIR#video``,
            ``zarr:DIR`` or ``zarr:DIR#VIEW``, or a file ending in
            ``.hdf5``, ``.npz``, ``.csv`` or ``.parquet``. Nothing is guessed from a file's name. A dataset is
            returned as it is.

    Returns:
        The dataset, with ``metadata["source"]`` (the uri), ``metadata["name"]`` and
        ``metadata["rows_default"]``: ``qlearning`` for D4RL names, ``exact`` otherwise. D4RL, Minari and
        OGBench names bring the environment and reference returns of the tables.

    Raises:
        DatasetError: unknown scheme or name, or the data break a rule.
        FileNotFoundError: no such file.
        MissingExtraError: the reader's library is not installed.
    """
    if isinstance(uri, OfflineDataset):
        return uri
    text = str(uri)
    if isinstance(uri, str) and text in D4RL:
        text = f"d4rl:{text}"
    scheme, colon, name = text.partition(":")
    if colon and re.fullmatch(r"[a-z][a-z0-9+_-]+", scheme):
        if scheme not in _SCHEMES:
            known = ", ".join(f"{s}:NAME" for s in _SCHEMES)
            raise DatasetError(f"unknown scheme {scheme!r} in {text!r}; known are {known} and files")
        dataset = _SCHEMES[scheme](name)
    else:
        dataset = _load_file(text)
    dataset.metadata.setdefault("name", name if colon else Path(text).stem)
    dataset.metadata["source"] = text
    dataset.metadata["rows_default"] = "qlearning" if scheme == "d4rl" else "exact"
    return dataset


def absolute_uri(uri: str) -> str:
    """A data URI that means the same from any folder: the path in it, where it has one that exists, made absolute."""
    scheme, colon, name = uri.partition(":")
    if colon and scheme in PATHS:
        path, mark, part = name.partition("#")
        return f"{scheme}:{Path(path).resolve()}{mark}{part}" if path and Path(path).exists() else uri
    return str(Path(uri).resolve()) if Path(uri).is_file() else uri  # a folder may have the name of a dataset


def _load_file(text: str) -> OfflineDataset:
    suffix = Path(text).suffix.lower()
    if suffix in (".hdf5", ".h5"):
        from offrl.data.d4rl import read_d4rl
        from offrl.data.robomimic import is_robomimic, read_robomimic

        return read_robomimic(text) if is_robomimic(Path(text).expanduser()) else read_d4rl(text)
    if suffix == ".npz":
        from offrl.data.arrays import read_npz

        return read_npz(text)
    if suffix in SUFFIXES:
        from offrl.data.arrays import read_table

        return read_table(text)
    if "/" not in text and not suffix:
        raise DatasetError(unknown_dataset(text))
    raise DatasetError(f"{text!r} is not a dataset file; it must end in {', '.join(SUFFIXES)}")


def _load_d4rl(name: str) -> OfflineDataset:
    from offrl.data.d4rl import read_d4rl
    from offrl.data.download import fetch

    if name not in D4RL:
        raise DatasetError(unknown_dataset(name))
    known = _from_tables(name)
    # Demonstrations in the kitchen end at terminated steps and may be longer than an evaluation episode: the
    # time limit is kept for D4RL's row rule, but does not cut them.
    horizon = known.pop("max_episode_steps", None) if name.startswith("kitchen-") else None
    dataset = read_d4rl(fetch(name), known | {"name": name})
    if horizon is not None:
        dataset.metadata["max_episode_steps"] = horizon
    return dataset


def _load_minari(name: str) -> OfflineDataset:
    from offrl.data.minari import read_minari

    return read_minari(name, defaults=_from_tables(name))


def _load_ogbench(name: str) -> OfflineDataset:
    from offrl.data.arrays import read_npz
    from offrl.data.download import fetch, local_path
    from offrl.data.ogbench import read_ogbench, require_ogbench

    uri, known = f"ogbench:{name}", _from_tables(name)
    if local_path(uri).stem == name:  # labelled already
        return read_npz(fetch(uri), known)
    require_ogbench()  # before gigabytes are fetched
    return read_ogbench(fetch(uri), name, known)


def _load_builtin(name: str) -> OfflineDataset:
    from offrl.data.d4rl import read_d4rl

    name, _, view = name.partition("/")
    folder = resources.files("offrl.data") / "builtin"
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    names = sorted(file.removesuffix(".hdf5") for file in files if file.endswith(".hdf5"))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DatasetError(f"no built-in dataset {name!r}; {hint}there are: {', '.join(names) or 'none'}")
    with resources.as_file(folder / f"{name}.hdf5") as path:
        return _view(read_d4rl(path), view)


def _load_robomimic(name: str) -> OfflineDataset:
    from offrl.data.robomimic import read_robomimic

    file, _, split = name.partition("#")
    return read_robomimic(file, split or None)


def _load_lerobot(name: str) -> OfflineDataset:
    from offrl.data.lerobot import read_lerobot

    folder, _, what = name.partition("#")
    if what not in ("", "video"):
        raise DatasetError(f"'lerobot:{name}': after '#' only 'video' can stand, which decodes the cameras")
    return read_lerobot(folder, video=what == "video")


def _load_zarr(name: str) -> OfflineDataset:
    from offrl.data.replay_zarr import read_zarr

    folder, _, view = name.partition("#")
    return _view(read_zarr(folder), view)


def _view(dataset: OfflineDataset, view: str) -> OfflineDataset:
    """The same rows with another choice of observations in the flat view; "" is the default one."""
    views = dataset.metadata.get("views") or {}
    if not view:
        return dataset
    if view not in views:
        raise DatasetError(
            f"there is no view {view!r} of these data; there are: {', '.join(views) or 'none'}"
        )
    return OfflineDataset(
        dataset.fields, dataset.episode_starts, dataset.metadata | views[view] | {"view": view}
    )


_SCHEMES: dict[str, Callable[[str], OfflineDataset]] = {
    "builtin": _load_builtin,
    "d4rl": _load_d4rl,
    "minari": _load_minari,
    "ogbench": _load_ogbench,
    "robomimic": _load_robomimic,
    "lerobot": _load_lerobot,
    "zarr": _load_zarr,
}


def _from_tables(name: str) -> dict[str, Any]:
    """What the tables know about a name, as metadata."""
    spec, pair = find_environment(name), reference_returns(name)
    known: dict[str, Any] = {}
    if spec is not None and spec.env_id:
        known |= {"env_id": spec.env_id, "env_kwargs": spec.kwargs}
    if spec is not None and spec.flatten:
        known["flatten"] = list(spec.flatten)
    if spec is not None and spec.horizon is not None:
        known["max_episode_steps"] = spec.horizon
    if pair is not None:
        known["reference_returns"] = list(pair)
    return known
