"""Minari datasets (version 0.5): episodes with T + 1 observations and T of everything else.

Reading goes through Minari itself, so HDF5, Arrow and Parquet storage all work. What a set recorded by offrl
knows besides (collector, seed, versions ...) stands in its ``metadata.json`` under ``offrl``.
"""

import contextlib
import difflib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl.data import minari_layout as layout
from offrl.data import validate
from offrl.data.d4rl import check_array, open_hdf5
from offrl.data.dataset import OfflineDataset, flatten_keys
from offrl.data.environments import flatten_order
from offrl.errors import ConfigError, DatasetError, MissingExtraError

FORMATS = ("hdf5", "arrow", "parquet")
ID = re.compile(r"(?:[-_\w]{2,}/)*[-_\w]+-v\d+")
ENVIRONMENT_KEYS = ("env_id", "env_kwargs", "flatten", "max_episode_steps")
MAX_BATCH_ROWS = 1 << 17  # Minari reads back the first batch of an Arrow episode only, and batches end here


def read_minari(
    dataset_id: str, *, defaults: Mapping[str, Any] | None = None, repair_goals: bool | None = None
) -> OfflineDataset:
    """Read a local Minari dataset; every step's true successor is kept as ``next_observations``.

    Args:
        dataset_id: ``(namespace/)name-vN``.
        defaults: metadata used where offrl wrote none into the set. Reference scores of the set itself win;
            its environment is used only if neither names one.
        repair_goals: give each episode's first observation the ``desired_goal`` of its second, because
            PointMaze sets start with the goal that the episode before reached; None: in PointMaze sets only.
            The number of changed episodes is in ``metadata["goal_repairs"]``.

    Raises:
        DatasetError: malformed or unknown id, damaged set, an episode without T + 1 observations.
        MissingExtraError: Minari (or pyarrow, for Arrow storage) is not installed.
    """
    library = _import_minari()
    from minari.storage import get_dataset_path

    _check_id(dataset_id)
    if repair_goals is None:
        repair_goals = "pointmaze" in dataset_id.lower()
    with _readable(dataset_id):
        _check_file(get_dataset_path(dataset_id) / "data" / "main_data.hdf5")
        source = library.load_dataset(dataset_id)
        raw = source.storage.read_raw_metadata(source.storage.data_path)
        episodes = [_episode(data, repair_goals) for data in source.iterate_episodes()]
        steps = int(source.total_steps)
    lengths = np.array([len(fields["rewards"]) for fields, _ in episodes])
    if lengths.sum() != steps:
        raise DatasetError(f"minari:{dataset_id} declares {steps} steps, but {lengths.sum()} were read")
    if steps == 0:
        raise DatasetError(f"minari:{dataset_id} holds no steps")
    metadata = _metadata(raw, defaults or {}) | {"name": dataset_id}
    if repair_goals:
        metadata["goal_repairs"] = sum(repaired for _, repaired in episodes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    fields = _join([fields for fields, _ in episodes])
    middle = starts[1:-1] - 1
    fields["truncated"][middle] |= ~fields["terminated"][middle]
    try:
        return OfflineDataset(fields, starts, metadata)
    except DatasetError as error:
        raise DatasetError(f"minari:{dataset_id}: {error}") from None


def write_minari(
    dataset: OfflineDataset, dataset_id: str, *, data_format: str = "hdf5", overwrite: bool = False
) -> OfflineDataset:
    """Write ``dataset`` into the local Minari root, whole or not at all, and return what is read back.

    Minari stores T + 1 observations an episode. Where the dataset has no true successors, the last step of a
    cut episode becomes its final observation (one step fewer, counted in ``metadata["dropped_steps"]``), and
    a terminated episode ends on a repeated one. With true successors nothing changes, bit for bit.

    Args:
        dataset: float32 or uint8 observations.
        dataset_id: ``(namespace/)name-vN``.
        data_format: ``hdf5``, ``arrow`` (a fraction of the size for short episodes) or ``parquet``.
        overwrite: replace a set of that id.

    Raises:
        ConfigError: malformed id, unknown format, or the id exists.
        DatasetError: the format cannot hold the data.
        MissingExtraError: Minari (or pyarrow) is not installed.
    """
    _import_minari()
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    if not ID.fullmatch(dataset_id):
        raise ConfigError(f"a Minari id has the form (namespace/)name-vN, got {dataset_id!r}")
    if data_format not in FORMATS:
        raise ConfigError(f"data_format must be one of {', '.join(FORMATS)}, got {data_format!r}")
    target = get_dataset_path(dataset_id)
    if target.exists() and not overwrite:
        raise ConfigError(f"minari:{dataset_id} exists; choose another version, or pass overwrite=True")
    validate.storable(dataset.fields, "a Minari set", "/")
    whole = layout.with_successors(dataset)
    if data_format != "hdf5" and whole.episode_lengths.max() >= MAX_BATCH_ROWS:
        raise DatasetError(f"{data_format} storage holds episodes of < {MAX_BATCH_ROWS} steps; use hdf5")
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    with _new_folder(target) as folder:
        _fill(folder / "data", whole, dataset_id, data_format)
    return whole


def _fill(folder: Path, dataset: OfflineDataset, dataset_id: str, data_format: str) -> None:
    """As Minari's ``create_dataset_from_buffers``, into a folder of our choice."""
    from minari.dataset.minari_storage import MinariStorage

    spec, action_space = layout.environment(dataset)
    images = any(a.dtype == np.uint8 for k, a in dataset.fields.items() if k.startswith("observations"))
    try:
        storage = MinariStorage.new(
            folder,
            layout.observation_space(dataset),
            action_space,
            spec,
            data_format,
            **({"jpeg_encoding": False} if images else {}),
        )
    except ImportError:
        raise MissingExtraError("pyarrow", "minari") from None
    storage.update_metadata(layout.description(dataset, dataset_id))
    # Arrow storage would add up the size of all files after each episode: quadratic in their number
    storage.get_size = lambda: 0.0
    storage.update_episodes(layout.buffers(dataset))
    del storage.get_size
    storage.update_metadata({"dataset_size": float(storage.get_size())})


def _import_minari() -> Any:
    try:
        import minari
    except ImportError:
        raise MissingExtraError("minari", "minari") from None
    return minari


def _check_id(dataset_id: str) -> None:
    """Refuse a malformed id, and one that is not there, before Minari sees it."""
    from minari.storage import get_dataset_path

    if not ID.fullmatch(dataset_id):
        raise DatasetError(f"a Minari id has the form (namespace/)name-vN, got {dataset_id!r}")
    if get_dataset_path(dataset_id).joinpath("data").is_dir():
        return
    root = get_dataset_path()
    local = [p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/data/metadata.json")]
    near = difflib.get_close_matches(dataset_id, local, n=1)
    hint = f"did you mean {near[0]!r}? Else " if near else ""
    raise DatasetError(
        f"no Minari dataset {dataset_id!r} under {root}; {hint}fetch it: minari download {dataset_id}"
    )


def _check_file(path: Path) -> None:
    """Of HDF5 storage: no link to elsewhere, no array that claims more than is stored. Minari reads both."""
    if not path.is_file():
        return
    names: list[tuple[bytes, bool]] = []
    with open_hdf5(path) as file:
        file.id.links.visit(
            lambda name, link: names.append((name, link.type == h5py.h5l.TYPE_HARD)), info=True
        )
        for raw, hard in names:
            name = raw.decode(errors="replace")
            if not hard:
                raise DatasetError(f"{path}: {name!r} is a link; copy what it leads to")
            node = h5py.h5o.open(file.id, raw)
            if isinstance(node, h5py.h5d.DatasetID):
                check_array(node, name, path)


@contextlib.contextmanager
def _readable(dataset_id: str) -> Iterator[None]:
    """Whatever Minari, h5py and pyarrow report about a damaged set becomes one DatasetError."""
    import gymnasium

    try:
        yield
    except PermissionError:
        raise
    except DatasetError as error:
        raise DatasetError(f"minari:{dataset_id}: {error}") from None
    except ImportError as error:
        if "pyarrow" in str(error):
            raise MissingExtraError("pyarrow", "minari") from None
        raise
    except (
        AssertionError,
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        gymnasium.error.Error,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DatasetError(
            f"minari:{dataset_id} cannot be read (damaged or of another version?): {reason}"
        ) from None


def _episode(data: Any, repair_goals: bool) -> tuple[dict[str, np.ndarray], bool]:
    """One episode's fields with T rows each, and whether its first goal was repaired."""
    rewards = validate.column("rewards", data.rewards)
    steps, where = len(rewards), f"episode {data.id}"
    fields: dict[str, np.ndarray] = {}
    repaired = False
    for key, value in flatten_keys({"observations": data.observations}).items():
        if isinstance(value, tuple):
            raise DatasetError(
                f"{where} has tuple observations; only arrays and dicts of arrays are supported"
            )
        array = validate.single(validate.numbers(key, value))
        if len(array) != steps + 1:
            raise DatasetError(f"{where}: {key!r} has {len(array)} rows for {steps} steps; it needs T + 1")
        if repair_goals and key == "observations.desired_goal" and steps and (array[0] != array[1]).any():
            array = array.copy()
            array[0] = array[1]
            repaired = True
        fields[key], fields[f"next_{key}"] = array[:-1], array[1:]
    if isinstance(data.actions, dict | tuple):
        raise DatasetError(f"{where} has {type(data.actions).__name__} actions; only arrays are supported")
    fields |= {
        "actions": validate.single(np.asarray(data.actions)),
        "rewards": rewards,
        "terminated": validate.flags("terminations", data.terminations),
        "truncated": validate.flags("truncations", data.truncations),
    }
    for name in ("actions", "terminated", "truncated"):
        if len(fields[name]) != steps:
            raise DatasetError(f"{where}: {name!r} has {len(fields[name])} rows, 'rewards' have {steps}")
    return fields | _infos(data.infos, steps), repaired


def _infos(infos: Any, steps: int) -> dict[str, np.ndarray]:
    """Numeric infos, row t for observation t; T + 1 rows lose the last, other lengths are left out."""
    kept = {}
    for key, value in flatten_keys({"infos": infos or {}}).items():
        array = np.asarray(value) if isinstance(value, np.ndarray | list) else np.empty(0)
        if array.dtype.kind in "biuf" and array.ndim and len(array) in (steps, steps + 1):
            kept[key] = array[:steps]
    return kept


def _join(episodes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All episodes in one; infos that some episode lacks, or has in another shape, are left out."""
    joined: dict[str, np.ndarray] = {}
    for name in list(episodes[0]):
        parts = [fields.pop(name) for fields in episodes if name in fields]
        widths = {part.shape[1:] for part in parts}
        if len(widths) == 1 and len(parts) == len(episodes):
            joined[name] = np.concatenate(parts)
        elif not name.startswith("infos."):
            raise DatasetError(
                f"{name!r} has different shapes in different episodes: {sorted(map(str, widths))}"
            )
    return joined


def _metadata(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    own = raw.get("offrl")
    metadata = dict(own) if isinstance(own, dict) else {}
    metadata.pop("sha256", None)
    recorded = _recorded_environment(raw)
    source = next((m for m in (metadata, defaults, recorded) if m.get("env_id")), {})
    environment = {key: source[key] for key in ENVIRONMENT_KEYS if key in source}
    if defaults.get("env_id") != environment.get("env_id"):
        defaults = {k: v for k, v in defaults.items() if k not in ENVIRONMENT_KEYS}
    metadata = {**defaults, **metadata, **environment}
    pair = [raw.get("ref_min_score"), raw.get("ref_max_score")]
    if None not in pair:
        metadata["reference_returns"] = pair
    return metadata


def _recorded_environment(raw: Mapping[str, Any]) -> dict[str, Any]:
    import gymnasium

    text = raw.get("eval_env_spec") or raw.get("env_spec")
    if not isinstance(text, str):
        return {}
    try:
        spec = json.loads(text)
        order, kwargs = list(flatten_order(spec["id"])), spec.get("kwargs") or {}
        limit, registered = spec.get("max_episode_steps"), gymnasium.registry.get(spec["id"])
        if limit is not None and registered is not None and registered.max_episode_steps != limit:
            kwargs = kwargs | {"max_episode_steps": limit}  # what gymnasium.make was told besides
        return {"env_id": spec["id"], "env_kwargs": kwargs} | ({"flatten": order} if order else {})
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            f"minari:{raw.get('dataset_id')}: its env_spec is not a JSON environment spec"
        ) from None


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of ``target`` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".offrl-", dir=target.parent))  # Minari skips hidden folders
    try:
        new = workshop / "new"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        if target.exists():
            target.rename(workshop / "old")
        new.rename(target)
    finally:
        shutil.rmtree(workshop)
