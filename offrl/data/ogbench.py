"""OGBench's npz layout, and the rewards of its single tasks.

A public file holds ``observations, actions, terminals`` and the simulator's ``qpos, qvel`` (with buttons also
``button_states``), one row per visited state. ``terminals`` is 1 on the last state of a trajectory: its action
was never taken, so the row gives a successor and no transition, and nothing terminated there.

    row          0   1   2   3 | 4   5 ...      transitions: 0 -> 1, 1 -> 2, 2 -> 3, 4 -> 5, ...
    terminals    0   0   0   1 | 0   0

A single task adds ``rewards`` and ``masks``: both belong to the state before the action, and mask 0 (the state
meets the goal) is the termination. The recording goes on after it, so that a trajectory that passes through
the goal becomes several episodes here; ``infos.trajectory`` numbers the recorded ones.

Files written after labelling may also hold ``next_observations`` (then every row is a transition, and
``terminals`` marks a trajectory's last one) or ``valids`` (0 on the rows that are a last state only).

Source: OGBench (arXiv:2410.20092), ogbench 1.2.2 (utils.py, relabel_utils.py), whose own labelling is called.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data import validate
from offrl.data.arrays import npz_arrays
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import environment_for
from offrl.data.reference import ogbench_name
from offrl.errors import DatasetError, MissingExtraError

REQUIRED = ("observations", "actions", "terminals")
LABELS = ("rewards", "masks")
STATES = ("qpos", "button_states")  # what labelling reads
OPTIONAL = (*LABELS, *STATES, "next_observations", "valids")


def read_ogbench(path: Path | str, name: str, metadata: Mapping[str, Any] | None = None) -> OfflineDataset:
    """Read a public OGBench file and label it with rewards and terminations of the task that ``name`` gives.

    Labels that the file may hold already are not used: it does not say of which task they are.

    Args:
        path: the ``.npz`` file.
        name: ``antmaze-large-navigate-singletask-task2-v0`` or alike.
        metadata: JSON values.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: damaged, not in this layout, or of another environment.
        MissingExtraError: ogbench, which knows the goals, is not installed.
    """
    require_ogbench()
    path = Path(path).expanduser().absolute()
    arrays = _arrays(path, skip=LABELS)
    _check_widths(arrays, name, path)
    rows = _transitions(arrays, path)
    _label(rows, name, path)
    return _dataset(rows, path, metadata)


def from_layout(
    arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, Any] | None = None
) -> OfflineDataset:
    """The dataset in the arrays of a labelled file; ``path`` is for the error lines.

    Raises:
        DatasetError: an array is missing or breaks a rule.
    """
    if missing := [key for key in (*REQUIRED, *LABELS) if key not in arrays]:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)}; with 'masks' it is read in OGBench's layout, "
            f"and holds {', '.join(sorted(arrays))}"
        )
    known = {key: array for key, array in arrays.items() if key in (*REQUIRED, *OPTIONAL)}
    return _dataset(_transitions(known, path), path, metadata)


def inspect(path: Path, name: str) -> bool:
    """Read a file through as the data of ``name``; whether it holds labels (rewards and masks) already.

    Raises:
        DatasetError: damaged, not in this layout, or of another environment.
    """
    arrays = _arrays(path)
    _check_widths(arrays, name, path)
    labelled = "rewards" in arrays and "masks" in arrays
    if not labelled:
        nothing = np.zeros(len(arrays["actions"]), np.float32)
        arrays |= {"rewards": nothing, "masks": 1 - nothing}
    _dataset(_transitions(arrays, path), path, None)
    return labelled


def require_ogbench() -> None:
    """Raise MissingExtraError if the ogbench package is not installed."""
    if importlib.util.find_spec("ogbench") is None:
        raise MissingExtraError("ogbench, which knows the goals of the tasks,", "ogbench")


def _arrays(path: Path, skip: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    arrays = npz_arrays(path, names={*REQUIRED, *OPTIONAL} - set(skip))
    if missing := [key for key in REQUIRED if key not in arrays]:
        raise DatasetError(f"{path} lacks {', '.join(missing)}; an OGBench file holds {', '.join(REQUIRED)}")
    return arrays


def _check_widths(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> None:
    spec = environment_for(name)
    for key, want in (("observations", spec.obs_dim), ("actions", spec.act_dim)):
        if arrays[key].shape[1:] != (want,):
            raise DatasetError(
                f"{path} has {key} of shape {arrays[key].shape}, {name} has (N, {want}); wrong file or name?"
            )


def _transitions(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """One row per transition, with ``next_observations`` and ``trajectory``; ``terminals`` marks the last."""
    try:
        rows = {key: validate.numbers(key, array) for key, array in arrays.items()}
        ends = validate.flags("terminals", rows["terminals"])
        for key, array in rows.items():
            if len(array) != len(ends):
                raise DatasetError(f"{key!r} has {len(array)} rows, 'terminals' has {len(ends)}")
        recorded = "next_observations" in rows
        last_states = ends if recorded else _last_states(rows, ends)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    if not len(last_states) or not last_states[-1]:
        raise DatasetError(f"{path}: its last row does not end a trajectory (terminals); is it cut short?")
    trajectory = np.cumsum(last_states) - last_states
    if recorded:
        return rows | {"terminals": ends, "trajectory": trajectory}
    kept = np.flatnonzero(~last_states)
    if not len(kept):
        raise DatasetError(f"{path} holds no transition: every row ends a trajectory")
    cut = {key: array[kept] for key, array in rows.items() if key != "valids"}
    cut["next_observations"] = rows["observations"][kept + 1]  # a trajectory's last row is never kept
    return cut | {"terminals": last_states[kept + 1], "trajectory": trajectory[kept]}


def _last_states(rows: Mapping[str, np.ndarray], ends: np.ndarray) -> np.ndarray:
    """(N,) bool: rows that are the last state of a trajectory, without an action of their own."""
    if "valids" not in rows:
        return ends
    last = ~validate.flags("valids", rows["valids"])
    wrong = np.flatnonzero(last & ~ends)
    if len(wrong):
        raise DatasetError(f"'valids' is 0 at row {wrong[0]}, where 'terminals' ends no trajectory")
    return last


def _label(rows: dict[str, np.ndarray], name: str, path: Path) -> None:
    """Set ``rewards`` and ``masks`` as ogbench does for the task of ``name``."""
    import gymnasium
    import ogbench  # noqa: F401 - registers the environments
    from ogbench.relabel_utils import relabel_dataset

    parts = ogbench_name(name)
    assert parts is not None
    shared = np.random.get_state()  # noqa: NPY002 - its mazes draw from it
    env = gymnasium.make(parts.env_id, disable_env_checker=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's about the package's own spaces
            relabel_dataset(parts.env_id, env, rows)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DatasetError(
            f"{path} cannot be labelled for {parts.env_id}: its qpos or button_states do not fit ({reason})"
        ) from None
    finally:
        env.close()
        np.random.set_state(shared)  # noqa: NPY002


def _dataset(
    rows: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, Any] | None
) -> OfflineDataset:
    try:
        fields = {key: rows[key] for key in ("observations", "actions", "rewards", "next_observations")}
        fields["terminated"] = ~validate.flags("masks", rows["masks"])
        fields["truncated"] = rows["terminals"]
        fields["infos.trajectory"] = rows["trajectory"]
        return OfflineDataset.from_fields(fields, metadata)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
