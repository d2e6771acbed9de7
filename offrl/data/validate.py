"""What every dataset must satisfy, checked once where data enter; each breach is one DatasetError."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from offrl.errors import DatasetError

CHUNK_ROWS = 1 << 16  # rows looked at together, so that a memory-mapped array is never copied whole
FLAGS = ("terminated", "truncated")
MAX_HORIZON, MAX_NUMBER = 1 << 31, 1e300  # JSON has integers of any size, arrays have not
TYPED: tuple[tuple[str, type, str], ...] = (  # metadata that the library acts on, where they are not null
    ("name", str, "text"),
    ("env_id", str, "text"),
    ("env_kwargs", dict, "a JSON object"),
    ("timeouts_recorded", bool, "true or false"),
)


def numbers(name: str, values: Any) -> np.ndarray:
    """``values`` as a bool, integer or float array; text, objects, complex and ragged data are refused."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise DatasetError(f"{name!r} is ragged; every row needs the same shape") from None
    if array.dtype.kind not in "biuf":
        raise DatasetError(
            f"{name!r} holds {array.dtype} values; it needs real numbers (floats, integers or bools)"
        )
    if array.ndim == 0:
        raise DatasetError(f"{name!r} is a single number; it needs one row per step")
    return array


def column(name: str, values: Any) -> np.ndarray:
    """``values`` of shape (N,) or (N, 1) as (N,)."""
    array = numbers(name, values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DatasetError(f"{name!r} has shape {array.shape}; it needs one number per step, shape (N,)")
    return array


def single(array: np.ndarray) -> np.ndarray:
    """Float64, float16 and big-endian floats become native float32; everything else keeps its type."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which check_finite names with its row
        return array.astype(np.float32, copy=False)


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity, naming the first bad row."""
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), CHUNK_ROWS):
        good = np.isfinite(array[start : start + CHUNK_ROWS])
        if not good.all():
            row = start + int(np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0])
            raise DatasetError(
                f"{name!r} is not finite (in float32) at row {row}; drop that episode or repair the file"
            )


def flags(name: str, values: Any) -> np.ndarray:
    """Booleans from bools or from the numbers 0 and 1, shape (N,)."""
    array = column(name, values)
    if array.dtype.kind != "b":
        odd = np.flatnonzero((array != 0) & (array != 1))
        if len(odd):
            raise DatasetError(f"{name!r} is {array[odd[0]]} at row {odd[0]}; it must be 0 or 1 (or a bool)")
    return array.astype(bool, copy=False)


def actions(values: Any) -> np.ndarray:
    """Continuous actions (N, A) as float32."""
    kind = np.asarray(values).dtype.kind
    if kind == "c":
        raise DatasetError(
            "'actions' are complex numbers; store real and imaginary parts as separate columns"
        )
    if kind in "biu":
        raise DatasetError(
            "'actions' are integers, but continuous actions are needed (discrete ones are not supported); "
            "if they are continuous values stored as integers, convert them: actions.astype('float32')"
        )
    array = numbers("actions", values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise DatasetError(f"'actions' have shape {array.shape}; they need shape (N, A) with A >= 1")
    return single(array)


def observations(name: str, values: Any) -> np.ndarray:
    """Observations (N, ...) with floats as float32; images and other integers keep their type."""
    array = numbers(name, values)
    if (array.size == 0 and len(array) > 0) or ("." not in name and array.ndim < 2):
        raise DatasetError(f"{name!r} has shape {array.shape}; it needs shape (N, O) with O >= 1")
    return single(array)


def fields(raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays of a dataset, converted, checked and in a fixed order.

    Args:
        raw: arrays under the names that ``OfflineDataset.fields`` documents, one row per step.

    Raises:
        DatasetError: an array is missing, unknown, of a wrong type, shape or length, or not finite.
    """
    names = _observation_names(raw, "observations")
    successors = _observation_names(raw, "next_observations")
    missing = [n for n in ("actions", "rewards", *FLAGS) if n not in raw]
    if not names or missing:
        raise DatasetError(
            f"missing arrays: {', '.join([*missing] if names else ['observations', *missing])}"
        )
    out = {name: observations(name, raw[name]) for name in names}
    out["actions"] = actions(raw["actions"])
    out["rewards"] = column("rewards", raw["rewards"])
    out["rewards"] = single(
        out["rewards"] if out["rewards"].dtype.kind == "f" else out["rewards"].astype(float)
    )
    out |= {name: flags(name, raw[name]) for name in FLAGS}
    out |= {name: observations(name, raw[name]) for name in successors}
    infos = sorted(n for n in raw if n.startswith("infos."))
    if unknown := sorted(set(raw) - set(out) - set(infos)):
        raise DatasetError(f"unknown array {unknown[0]!r}; extra arrays go under 'infos.NAME'")
    for name, array in out.items():
        if len(array) != len(out["actions"]):
            raise DatasetError(
                f"{name!r} has {len(array)} rows, 'actions' have {len(out['actions'])}; "
                "every array needs one row per step"
            )
        check_finite(name, array)
    _check_successors(out, names, successors)
    for name in infos:
        out[name] = numbers(name, raw[name])
        if len(out[name]) != len(out["actions"]):
            raise DatasetError(f"{name!r} has {len(out[name])} rows, 'actions' have {len(out['actions'])}")
    return out


def _observation_names(raw: Mapping[str, Any], prefix: str) -> list[str]:
    plain, keyed = prefix in raw, sorted(n for n in raw if n.startswith(prefix + "."))
    if plain and keyed:
        raise DatasetError(f"both {prefix!r} and {keyed[0]!r} are given; use one array or keys, not both")
    return [prefix] if plain else keyed


def _check_successors(arrays: Mapping[str, np.ndarray], names: list[str], successors: list[str]) -> None:
    if not successors:
        return
    if successors != [f"next_{name}" for name in names]:
        raise DatasetError(
            f"next observations have the keys {successors}, the observations {names}; they must correspond"
        )
    for name in names:
        ours, theirs = arrays[name].shape, arrays[f"next_{name}"].shape
        if ours != theirs:
            raise DatasetError(f"'next_{name}' has shape {theirs}, {name!r} has {ours}; they must be equal")


def episode_starts(offsets: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(E + 1,) int64 offsets that fit ``arrays``: in order, no episode empty, flags at episode ends only."""
    rows = len(arrays["actions"])
    if rows == 0:
        raise DatasetError("the dataset holds no steps")
    starts: np.ndarray = np.asarray(offsets)
    if starts.ndim != 1 or starts.dtype.kind not in "iu" or len(starts) < 2:
        raise DatasetError("episode_starts must be a list of integers: the first row of each episode, then N")
    starts = np.array(starts, dtype=np.int64)
    if starts[0] != 0 or starts[-1] != rows:
        raise DatasetError(
            f"episode_starts go from {starts[0]} to {starts[-1]}; they must go from 0 to N = {rows}"
        )
    lengths = np.diff(starts)
    if (lengths < 0).any():
        raise DatasetError(
            f"episodes are out of order: episode {int(np.argmax(lengths < 0))} ends before it starts"
        )
    if (lengths == 0).any():
        raise DatasetError(f"episode {int(np.argmax(lengths == 0))} is empty; drop it")
    _check_flags(starts, arrays)
    return starts


def _check_flags(starts: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    inside = np.ones(starts[-1], dtype=bool)
    inside[starts[1:] - 1] = False
    for name in FLAGS:
        odd = np.flatnonzero(arrays[name] & inside)
        if len(odd):
            episode = int(np.searchsorted(starts, odd[0], side="right")) - 1
            raise DatasetError(
                f"{name!r} is set at row {odd[0]}, inside episode {episode} (rows {starts[episode]} .. "
                f"{starts[episode + 1] - 1}); only an episode's last step may end it"
            )
    closed = (arrays["terminated"] | arrays["truncated"])[starts[1:-1] - 1]
    if not closed.all():
        episode = int(np.argmin(closed))
        raise DatasetError(
            f"episode {episode} ends at row {starts[episode + 1] - 1} neither terminated nor truncated; "
            "mark its last step truncated"
        )


def storable(names: Collection[str], what: str, reserved: str) -> None:
    """Refuse keys that a file format would lose or mix up: each dot of a name is a level, as of folders.

    Args:
        names: of all fields.
        what: the format, for the message.
        reserved: text that no name may hold there.

    Raises:
        DatasetError: an empty level, a reserved text, or a name that is also the folder of another.
    """
    for name in names:
        folder = next((other for other in names if other.startswith(f"{name}.")), None)
        if folder or "" in name.split(".") or "\0" in name or reserved in name:
            raise DatasetError(
                f"{what} cannot hold {name!r}{f' beside {folder!r}' if folder else ''}; rename that key"
            )


def metadata(values: Mapping[str, Any] | None, act_dim: int | None = None) -> dict[str, Any]:
    """A JSON copy of the metadata; the keys that the library acts on are checked.

    Args:
        values: as they were given, or as a file holds them.
        act_dim: width of the actions, for the bounds that the metadata may give; None: any.

    Raises:
        DatasetError: not JSON, or a key has a value that it cannot have.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(values or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"the metadata cannot be stored as JSON: {error}") from None
    pair = copy.get("reference_returns")
    if pair is not None:
        ok = isinstance(pair, list) and len(pair) == 2 and all(_is_number(x) for x in pair)
        if not ok or pair[0] >= pair[1]:
            raise DatasetError(f"reference_returns must be [random, expert] with random < expert, got {pair}")
    horizon = copy.get("max_episode_steps")
    if horizon is not None and (type(horizon) is not int or not 2 <= horizon < MAX_HORIZON):
        raise DatasetError(f"max_episode_steps must be an integer >= 2 (steps), got {horizon!r}")
    for key, kind, what in TYPED:
        if copy.get(key) is not None and not isinstance(copy[key], kind):
            raise DatasetError(f"metadata {key!r} must be {what}, got {copy[key]!r}")
    _check_box(copy, act_dim)
    order = copy.get("flatten")
    if order is not None and not (isinstance(order, list) and all(isinstance(k, str) for k in order)):
        raise DatasetError(f"metadata 'flatten' must be a list of observation keys, got {order!r}")
    return copy


def _check_box(copy: Mapping[str, Any], act_dim: int | None) -> None:
    """Both bounds of the actions or neither, one number for each action."""
    low, high = copy.get("action_low"), copy.get("action_high")
    if low is None and high is None:
        return
    good = (
        isinstance(low, list)
        and isinstance(high, list)
        and len(low) == len(high) == (act_dim or len(low))
        and all(_is_number(x) for x in low + high)
    )
    if not good:
        raise DatasetError(
            "metadata 'action_low' and 'action_high' must be lists of one number for each action, "
            f"got {low!r} and {high!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
