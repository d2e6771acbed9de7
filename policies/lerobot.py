"""What a LeRobot policy directory says about itself, without its networks: features, horizons, normalizers.

    config.json                      type, n_obs_steps, horizon, n_action_steps, input_features, output_features,
                                     normalization_mapping {VISUAL, STATE, ACTION: mode}, settings of the network
    model.safetensors                weights
    policy_preprocessor.json         new layout: steps; the normalizer's statistics in the file that it names
    policy_postprocessor.json        likewise, for the actions

In the old layout the statistics are buffers among the weights (``normalize_inputs.buffer_observation_state.min``: the
dots of a feature's name are underscores there). LeRobot loads such a directory without an error and then acts without
normalization; here statistics are found in either layout, and a missing one is an error. Even older ``config.json``
files (``input_shapes``, ``input_normalization_modes``) are read too.

Source: huggingface/lerobot 0.4 to 0.6, configs/policies.py, processor/pipeline.py, normalize_processor.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from offrl.data.normalize import AffineNormalizer
from offrl.errors import ConfigError, PolicyError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIPELINES = {  # file, the step in it that holds statistics
    "policy_preprocessor.json": "normalizer_processor",
    "policy_postprocessor.json": "unnormalizer_processor",
}
BUFFERS = ("normalize_inputs.", "unnormalize_outputs.", "normalize_targets.")
MAX_JSON_BYTES = 4 << 20
Statistics = dict[str, dict[str, np.ndarray]]  # feature -> statistic -> flat array


@dataclass(frozen=True)
class Feature:
    """One entry of an observation, or the action."""

    kind: str  # STATE, VISUAL, ENV or ACTION
    shape: tuple[int, ...]
    mode: str  # MEAN_STD, MIN_MAX, QUANTILES, QUANTILE10 or IDENTITY


@dataclass(frozen=True, eq=False)
class LeRobotPolicy:
    """A LeRobot policy directory, described."""

    path: Path
    kind: str  # diffusion, act, ...
    layout: str  # old: statistics among the weights; new: in processor files
    observations: dict[str, Feature]  # in the order of config.json
    action: Feature
    normalizers: dict[str, AffineNormalizer]  # of every observation, and of "action"
    observation_steps: int  # To
    horizon: int | None  # T, rows of a predicted chunk; None where the kind has none
    action_steps: int  # Ta, executed
    settings: dict[str, Any] = field(default_factory=dict)  # config.json, whole
    weights: tuple[tuple[str, str], ...] = ()  # (name, name in the file) without the buffers of statistics


def is_lerobot_policy(path: Path | str) -> bool:
    """Whether a folder has the two files that every LeRobot policy has."""
    return all((Path(path) / name).is_file() for name in (CONFIG, WEIGHTS))


def read_lerobot_policy(path: Path | str) -> LeRobotPolicy:
    """Describe a policy directory of either layout.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        PolicyError: a file is damaged, or a statistic that its mode needs is not there.
    """
    path = Path(path).expanduser().absolute()
    config = _json(path / CONFIG)
    names = _weight_names(path / WEIGHTS)
    observations, action = _features(config, path)
    everything = observations | {"action": action}
    old = _from_buffers(path / WEIGHTS, names, everything)
    new, modes = _from_pipelines(path)
    if old and new:
        _refuse_differences(old, new, path)
    everything = {name: Feature(f.kind, f.shape, modes.get(f.kind, f.mode)) for name, f in everything.items()}
    action = everything["action"]
    return LeRobotPolicy(
        path=path,
        kind=_text(config, "type", path, default=_text(config, "name", path, default="unknown")),
        layout="old" if old and not new else "new",
        observations={name: everything[name] for name in observations},
        action=action,
        normalizers={name: _normalizer(name, f, new or old, path) for name, f in everything.items()},
        observation_steps=_count(config, "n_obs_steps", path) or 1,
        horizon=_count(config, "horizon", path) or _count(config, "chunk_size", path),
        action_steps=_count(config, "n_action_steps", path) or 1,
        settings=config,
        weights=tuple(
            (name.replace("_orig_mod.", ""), name) for name in names if not name.startswith(BUFFERS)
        ),
    )


def _normalizer(name: str, feature: Feature, statistics: Statistics, path: Path) -> AffineNormalizer:
    width = feature.shape[0] if feature.kind == "VISUAL" else int(np.prod(feature.shape))
    if feature.mode == "IDENTITY":
        return AffineNormalizer.identity(width)
    try:
        normalizer = AffineNormalizer.lerobot(feature.mode, statistics.get(name, {}), name)
    except ConfigError as error:
        raise PolicyError(
            f"{path}: {error}; without it the policy would act on unnormalized numbers"
        ) from None
    if normalizer.shift.numel() != width:
        raise PolicyError(
            f"{path}: the statistics of {name} have {normalizer.shift.numel()} numbers, its shape is {feature.shape}"
        )
    return normalizer


# --- config.json ------------------------------------------------------------------------------------------


def _features(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Feature], Feature]:
    """Observations by name, and the action."""
    if "input_shapes" in config:
        inputs = _by_shape(config, "input", path)
        outputs = _by_shape(config, "output", path)
    else:
        modes = config.get("normalization_mapping")
        inputs = _by_feature(config, "input_features", modes, path)
        outputs = _by_feature(config, "output_features", modes, path)
    if not inputs or "action" not in outputs:
        raise PolicyError(f"{path / CONFIG} names no observation, or no 'action' among its outputs")
    return inputs, outputs["action"]


def _by_feature(config: Mapping[str, Any], key: str, modes: Any, path: Path) -> dict[str, Feature]:
    table = config.get(key)
    if not isinstance(table, dict) or not isinstance(modes, dict):
        raise PolicyError(
            f"{path / CONFIG} lacks {key!r} or 'normalization_mapping'; is it a LeRobot policy?"
        )
    out = {}
    for name, entry in table.items():
        kind = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(kind, str):
            raise PolicyError(f"{path / CONFIG}: {key} of {name!r} has no type")
        mode = modes.get(kind, "IDENTITY")
        out[name] = Feature(kind, _shape(entry.get("shape"), name, path), str(mode))
    return out


def _by_shape(config: Mapping[str, Any], side: str, path: Path) -> dict[str, Feature]:
    """LeRobot before 0.2: ``input_shapes`` and ``input_normalization_modes``, lower case."""
    shapes, modes = config.get(f"{side}_shapes"), config.get(f"{side}_normalization_modes")
    if not isinstance(shapes, dict) or not isinstance(modes, dict):
        raise PolicyError(f"{path / CONFIG} lacks '{side}_shapes' or '{side}_normalization_modes'")
    out = {}
    for name, shape in shapes.items():
        image = "image" in name
        kind = (
            "ACTION"
            if side == "output"
            else "VISUAL"
            if image
            else "ENV"
            if "environment" in name
            else "STATE"
        )
        out[name] = Feature(kind, _shape(shape, name, path), str(modes.get(name, "identity")).upper())
    return out


def _shape(value: Any, name: str, path: Path) -> tuple[int, ...]:
    good = isinstance(value, list) and value and all(type(n) is int and 0 < n < 1 << 24 for n in value)
    if not good:
        raise PolicyError(f"{path / CONFIG}: the shape of {name!r} must be a list of sizes, got {value!r}")
    return tuple(value)


def _count(config: Mapping[str, Any], key: str, path: Path) -> int | None:
    value = config.get(key)
    if value is not None and (type(value) is not int or not 0 < value < 1 << 16):
        raise PolicyError(f"{path / CONFIG}: {key!r} must be a number of steps, got {value!r}")
    return value


def _text(config: Mapping[str, Any], key: str, path: Path, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise PolicyError(f"{path / CONFIG}: {key!r} must be text, got {value!r}")
    return value


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise PolicyError(f"{file} is larger than {MAX_JSON_BYTES} bytes; not believed")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise PolicyError(f"{file} is not a JSON object")
    return content


# --- statistics -------------------------------------------------------------------------------------------


def _weight_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    try:
        with safetensors.safe_open(file, framework="np") as content:
            return list(content.keys())
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PolicyError(f"{file} is not a readable safetensors file: {error}") from None


def _tensors(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, framework="np") as content:
            return {name: np.asarray(content.get_tensor(name), np.float64).reshape(-1) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise PolicyError(f"{file}: the statistics cannot be read: {error}") from None


def _from_buffers(file: Path, names: list[str], features: Mapping[str, Feature]) -> Statistics:
    """Old layout. Names with underscores are found by the features, never by turning underscores into dots."""
    buffers = [name for name in names if name.startswith(BUFFERS)]
    known = {name.replace(".", "_"): name for name in features}
    out: Statistics = {}
    for name, values in _tensors(file, buffers).items():
        _, _, rest = name.partition(".")
        owner, _, statistic = rest.removeprefix("buffer_").rpartition(".")
        if owner not in known:
            raise PolicyError(
                f"{file}: {name!r} belongs to no feature of config.json ({', '.join(features)})"
            )
        before = out.setdefault(known[owner], {}).setdefault(statistic, values)
        if not np.array_equal(before, values):
            raise PolicyError(
                f"{file}: {statistic!r} of {known[owner]} is stored twice with different numbers"
            )
    return out


def _from_pipelines(path: Path) -> tuple[Statistics, dict[str, str]]:
    """New layout: statistics, and the modes that the normalizer itself was saved with."""
    out: Statistics = {}
    modes: dict[str, str] = {}
    for name, registered in PIPELINES.items():
        if not (path / name).is_file():
            continue
        steps = _json(path / name).get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise PolicyError(f"{path / name}: 'steps' must be a list of steps")
        for step in steps:
            if step.get("registry_name") == registered:
                modes |= _modes(step, path / name)
                for owner, statistics in _state(path, name, step).items():
                    out[owner] = out.get(owner, {}) | statistics
    return out, modes


def _modes(step: Mapping[str, Any], file: Path) -> dict[str, str]:
    config = step.get("config") or {}
    table = config.get("norm_map", {}) if isinstance(config, dict) else None
    if not isinstance(table, dict):
        raise PolicyError(f"{file}: the normalizer's 'norm_map' must be an object")
    return {str(kind): str(mode) for kind, mode in table.items()}


def _state(path: Path, name: str, step: Mapping[str, Any]) -> Statistics:
    state = step.get("state_file")
    if state is None:
        return {}  # a normalizer that stored nothing: a mode that needs it will say so
    if not isinstance(state, str) or Path(state).name != state or state in ("", ".", ".."):
        raise PolicyError(f"{path / name}: the state file must be a plain file name, got {state!r}")
    if not (path / state).is_file():
        raise FileNotFoundError(f"{path / name} keeps its statistics in {state}, which is missing")
    out: Statistics = {}
    for key, values in _tensors(path / state, _weight_names(path / state)).items():
        owner, _, statistic = key.rpartition(".")
        out.setdefault(owner, {})[statistic] = values
    return out


def _refuse_differences(old: Statistics, new: Statistics, path: Path) -> None:
    for name, statistics in old.items():
        for key, values in statistics.items():
            theirs = new.get(name, {}).get(key)
            if theirs is not None and not np.allclose(theirs, values, rtol=1e-6, atol=0):
                raise PolicyError(
                    f"{path}: {key!r} of {name} differs between {WEIGHTS} and the processor files"
                )
