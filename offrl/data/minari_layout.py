"""What Minari's episodes need that a flat dataset lacks: T + 1 observations, spaces, a description."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import module_named
from offrl.errors import DatasetError


def with_successors(dataset: OfflineDataset) -> OfflineDataset:
    """The same episodes with a true successor for every step, as T + 1 observations can express them.

    Raises:
        DatasetError: inside an episode, a recorded next observation is not the observation that follows.
    """
    last = np.zeros(dataset.num_steps, dtype=bool)
    last[dataset.episode_starts[1:] - 1] = True
    keys = [k for k in dataset.fields if k.startswith("observations")]
    inside = np.flatnonzero(~last)
    metadata = {k: v for k, v in dataset.metadata.items() if k not in ("sha256", "timeouts_recorded")}
    if dataset.has_next_observations:
        for key in keys:
            same = dataset.fields[f"next_{key}"][inside] == dataset.fields[key][inside + 1]
            if not same.all():
                row = inside[np.argmin(same.reshape(len(inside), -1).all(axis=1))]
                raise DatasetError(
                    f"'next_{key}' at row {row} is not the observation at row {row + 1} of the same episode; "
                    "Minari cannot hold that, write an HDF5 file instead"
                )
        return OfflineDataset(dataset.fields, dataset.episode_starts, metadata)
    ends = dataset.episode_starts[1:] - 1
    open_end = ~dataset.fields["terminated"][ends]
    lengths = dataset.episode_lengths - open_end
    left = lengths > 0  # a single cut step leaves nothing
    if not left.any():
        raise DatasetError(
            "no step has a known successor: every episode is a single step cut by a time limit"
        )
    rows = np.delete(np.arange(dataset.num_steps), ends[open_end])
    starts = np.concatenate([[0], np.cumsum(lengths[left])])
    fields = {name: array[rows] for name, array in dataset.fields.items()}
    fields["truncated"][starts[1:] - 1] |= dataset.fields["truncated"][ends[left]]
    for key in keys:
        fields[f"next_{key}"] = dataset.fields[key][rows + ~last[rows]]
    if open_end.any():
        metadata["dropped_steps"] = int(open_end.sum())
    return OfflineDataset(fields, starts, metadata)


def environment(dataset: OfflineDataset) -> tuple[Any, Any]:
    """The Gymnasium spec and action space, or (None, unbounded) if the environment cannot be made here."""
    import gymnasium

    unbounded = gymnasium.spaces.Box(-np.inf, np.inf, (dataset.act_dim,), np.float32)
    env_id = dataset.metadata.get("env_id")
    if not env_id or module_named(env_id):
        return None, unbounded
    try:
        if env_id not in gymnasium.registry:
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
        env = gymnasium.make(env_id, **dataset.metadata.get("env_kwargs") or {})
    except (ImportError, TypeError, gymnasium.error.Error):  # TypeError: it takes other arguments now
        return None, unbounded
    spec, space = env.spec, env.action_space
    env.close()
    fits = isinstance(space, gymnasium.spaces.Box) and space.shape == (dataset.act_dim,)
    return spec, space if fits and space.dtype == np.float32 else unbounded


def observation_space(dataset: OfflineDataset) -> Any:
    """Unbounded boxes of the arrays' own types, so that what is read equals what was written."""
    from gymnasium.spaces import Box, Dict

    def box(array: np.ndarray) -> Any:
        if array.dtype == np.float32:
            return Box(-np.inf, np.inf, array.shape[1:], np.float32)
        if array.dtype == np.uint8:
            return Box(0, 255, array.shape[1:], np.uint8)
        raise DatasetError(f"Minari sets are written with float32 or uint8 observations, not {array.dtype}")

    def space(tree: Mapping[str, Any]) -> Any:
        return Dict({k: space(v) if isinstance(v, Mapping) else box(v) for k, v in tree.items()})

    arrays = {k: v for k, v in dataset.fields.items() if k.startswith("observations")}
    tree = _nest(arrays)["observations"]
    return space(tree) if isinstance(tree, Mapping) else box(tree)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def buffers(dataset: OfflineDataset) -> Iterator[Any]:
    """One ``minari`` EpisodeBuffer after the other."""
    from minari.data_collector import EpisodeBuffer

    fields = dataset.fields
    names = [k for k in fields if k.startswith("observations")]
    infos = [k for k in fields if k.startswith("infos.")]
    for start, end in zip(
        dataset.episode_starts[:-1].tolist(), dataset.episode_starts[1:].tolist(), strict=True
    ):
        rows = slice(start, end)
        final = slice(end - 1, end)
        observations = {k: np.concatenate([fields[k][rows], fields[f"next_{k}"][final]]) for k in names}
        # T + 1 rows, because Arrow needs as many as there are observations; the repeated last one is not read
        extra = {k.removeprefix("infos."): np.concatenate([fields[k][rows], fields[k][final]]) for k in infos}
        yield EpisodeBuffer(
            observations=_nest(observations)["observations"],
            actions=fields["actions"][rows],
            rewards=fields["rewards"][rows],
            terminations=fields["terminated"][rows],
            truncations=fields["truncated"][rows],
            # a list, because Minari's Arrow reader fails on one-dimensional arrays
            infos={k: v if v.ndim > 1 else list(v) for k, v in extra.items()} or None,
        )


def description(dataset: OfflineDataset, dataset_id: str) -> dict[str, Any]:
    """What goes into the set's ``metadata.json``."""
    import minari

    about = dataset.metadata
    out: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "description": f"written by offrl: {dataset.describe()}",
        "offrl": about | {"sha256": dataset.sha256},
    }
    if isinstance(about.get("collector"), str):
        out["algorithm_name"] = about["collector"]
    if dataset.reference_returns is not None:
        out["ref_min_score"], out["ref_max_score"] = dataset.reference_returns
    return out
