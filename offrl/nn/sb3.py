"""Actors out of stable-baselines3 zip files, read as data: no code of the file runs, SB3 is not needed.

A zip holds ``policy.pth`` (tensors, loaded with ``weights_only``) and ``data`` (JSON with pickles in its
``:serialized:`` fields, which are never touched). The layer sizes come from the tensors' shapes; activation
and action box from the plain strings that SB3 writes beside the pickles.

    SAC, TQC          actor.latent_pi.*, actor.mu, actor.log_std       squashed Gaussian, ReLU
    TD3, DDPG         actor.mu.*                                       deterministic, ReLU
    A2C, PPO, TRPO    mlp_extractor.policy_net.*, action_net, log_std  Gaussian clipped to the box, Tanh

``vecnormalize.pkl`` beside the zip, if there, gives the observation statistics.
"""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offrl.errors import PolicyError
from offrl.nn.policy import (
    DeterministicPolicy,
    DiagGaussianPolicy,
    Linear,
    MLPPolicy,
    SquashedGaussianPolicy,
)
from offrl.nn.vecnormalize import read_vecnormalize

MAX_DATA_BYTES = 32 << 20
MAX_WEIGHT_BYTES = 512 << 20
ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu", "LeakyReLU": "leaky_relu", "SiLU": "silu"}
KNOWN_CODE = ("stable_baselines3.", "sb3_contrib.")

State = dict[str, Tensor]


def load_sb3_actor(path: Path | str, vecnormalize: Path | str | None = None) -> MLPPolicy:
    """The acting part of a stable-baselines3 agent.

    Args:
        path: zip file that ``model.save`` wrote.
        vecnormalize: its ``vecnormalize.pkl``; default: the file of that name beside the zip, if any.

    Returns:
        A policy in evaluation mode, in the agent's action box; it can be saved with ``save_policy``.

    Raises:
        FileNotFoundError: no such file.
        PolicyError: not an SB3 zip, damaged or too large, an algorithm or network that is not in the table
            above (images, dict observations, discrete actions, gSDE, own policy classes), or statistics that
            do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    beside = path.parent / "vecnormalize.pkl"
    statistics_file = Path(vecnormalize) if vecnormalize else beside if beside.is_file() else None
    statistics = read_vecnormalize(statistics_file) if statistics_file else None
    try:
        data, weights = _read_zip(path)
        _check_code(data)
        low, high = (_bounds(data, side) for side in ("low", "high"))
        clip = statistics.clip if statistics else None
        policy = _actor(weights, data, low, high, clip)
        _check_observation_space(data, policy.obs_dim)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    if statistics:
        if statistics.mean.shape != (policy.obs_dim,):
            raise PolicyError(
                f"{statistics_file} normalizes O={len(statistics.mean)} "
                f"but {path} was built for O={policy.obs_dim}"
            )
        policy.set_normalizer(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))
    return policy.eval()


def _read_zip(path: Path) -> tuple[dict[str, Any], State]:
    try:
        with zipfile.ZipFile(path) as archive:
            text = _entry(archive, "data", MAX_DATA_BYTES)
            tensors = _entry(archive, "policy.pth", MAX_WEIGHT_BYTES)
        data = json.loads(text)
        with zipfile.ZipFile(io.BytesIO(tensors)) as inner:  # torch's own format is a zip too
            size = sum(info.file_size for info in inner.infolist())
        if size > MAX_WEIGHT_BYTES:
            raise PolicyError(f"its policy.pth unpacks to {size} bytes, the limit is {MAX_WEIGHT_BYTES}")
        state = torch.load(io.BytesIO(tensors), map_location="cpu", weights_only=True)
    except PolicyError:
        raise
    except pickle.UnpicklingError as error:
        raise PolicyError("its policy.pth holds more than tensors; refused") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OSError,
    ) as error:
        raise PolicyError(
            f"it is not a stable-baselines3 zip, or is damaged ({_first_line(error)})"
        ) from error
    if not isinstance(data, dict) or not isinstance(state, dict):
        raise PolicyError("it is not a stable-baselines3 zip: 'data' or 'policy.pth' is not a table")
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.is_contiguous() or value.layout != torch.strided:
            raise PolicyError(f"its policy.pth holds {name!r}, which is not a plain tensor")
    return data, state


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if name not in archive.namelist():
        raise PolicyError(
            f"it has no {name!r}; a stable-baselines3 zip has 'data' and 'policy.pth', unless it was cut short"
        )
    if (size := archive.getinfo(name).file_size) > limit:
        raise PolicyError(f"its {name!r} unpacks to {size} bytes, the limit is {limit}")
    with archive.open(name) as file:
        return file.read(limit)


def _check_code(data: dict[str, Any]) -> None:
    """Only policy classes whose forward pass is known."""
    policy_class = data.get("policy_class")
    module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
    if isinstance(module, str) and not module.startswith(KNOWN_CODE):
        ours = "; load it in Python and save its acting_policy (docs/online.md)"
        raise PolicyError(
            f"its policy class is from {module!r}; only those of stable-baselines3 are understood"
            + (ours if module.startswith("offrl.") else "")
        )
    if data.get("use_sde") is True:
        raise PolicyError("it explores with gSDE (use_sde=True), whose noise is not supported")


def _check_observation_space(data: dict[str, Any], obs_dim: int) -> None:
    space = data.get("observation_space")
    shape = (space.get("shape") or space.get("_shape")) if isinstance(space, dict) else None
    if isinstance(shape, list) and shape != [obs_dim]:
        raise PolicyError(f"its observation space has shape {shape} but its first layer takes O={obs_dim}")


def _bounds(data: dict[str, Any], side: str) -> Tensor:
    """``low`` or ``high`` of the action box, from numpy's plain text such as ``[-1. -1. -1.]``."""
    space = data.get("action_space")
    text = space.get(side) if isinstance(space, dict) else None
    if not isinstance(text, str):
        raise PolicyError("it does not say its action box; only agents with box actions can be read")
    try:
        return torch.tensor([float(word) for word in text.strip().strip("[]").split()])
    except ValueError as error:
        raise PolicyError(
            f"its action box has {side} {text[:80]!r}, which is not a list of numbers"
        ) from error


def _activation(data: dict[str, Any], default: str) -> str:
    kwargs = data.get("policy_kwargs")
    text = kwargs.get("activation_fn") if isinstance(kwargs, dict) else None
    if text is None:
        return default
    match = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(text))
    if not match or match[1] not in ACTIVATIONS:
        raise PolicyError(f"its activation {str(text)[:80]} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[match[1]]


def _actor(state: State, data: dict[str, Any], low: Tensor, high: Tensor, clip: float | None) -> MLPPolicy:
    rest = {name: value for name, value in state.items() if not name.startswith(("critic", "actor_target."))}
    settings: dict[str, Any] = {"observation_clip": clip}
    policy: MLPPolicy
    if "actor.latent_pi.0.weight" in rest or "actor.mu.weight" in rest:
        settings["activation"] = _activation(data, "relu")
        heads = zip(_linear(rest, "actor.mu"), _linear(rest, "actor.log_std"), strict=True)
        weight, bias = (torch.cat(pair) for pair in heads)
        params = [*_stack(rest, "actor.latent_pi"), (weight, bias)]
        policy = SquashedGaussianPolicy.from_params(params, low, high, **settings)
    elif "actor.mu.0.weight" in rest:
        settings["activation"] = _activation(data, "relu")
        policy = DeterministicPolicy.from_params(_stack(rest, "actor.mu"), low, high, **settings)
    elif "action_net.weight" in rest and "log_std" in rest:
        settings["activation"] = _activation(data, "tanh")
        params = [*_stack(rest, "mlp_extractor.shared_net"), *_stack(rest, "mlp_extractor.policy_net")]
        params.append(_linear(rest, "action_net"))
        policy = DiagGaussianPolicy.from_params(params, low, high, log_std=rest.pop("log_std"), **settings)
        rest = {n: v for n, v in rest.items() if not n.startswith(("value_net.", "mlp_extractor.value_net."))}
    else:
        raise PolicyError(
            "its weights are not those of SAC, TQC, TD3, DDPG, A2C, PPO or TRPO with box actions"
        )
    if rest:
        raise PolicyError(
            f"its network has {sorted(rest)[0]!r}, which a plain multi-layer perceptron has not"
        )
    return policy


def actor_from_state(
    state: State,
    low: Tensor,
    high: Tensor,
    *,
    activation: type[nn.Module] | None = None,
    observation_clip: float | None = None,
) -> MLPPolicy:
    """The actor in the ``state_dict`` of a stable-baselines3 policy, in the box ``low`` .. ``high``.

    Args:
        state: names as in ``policy.pth``; entries of the actor are used up.
        low: lower bounds of the action box, (A,).
        high: upper bounds, (A,).
        activation: class of the activation; default: that of the algorithm.
        observation_clip: bound of the normalized observation.

    Raises:
        PolicyError: the network is not in the table above.
    """
    kwargs = {} if activation is None else {"activation_fn": str(activation)}
    return _actor(state, {"policy_kwargs": kwargs}, low, high, observation_clip)


def _stack(state: State, prefix: str) -> list[Linear]:
    """The linear layers prefix.0, prefix.2, ... (activations between them); removes them from ``state``."""
    layers: list[Linear] = []
    while f"{prefix}.{2 * len(layers)}.weight" in state:
        layers.append(_linear(state, f"{prefix}.{2 * len(layers)}"))
    return layers


def _linear(state: State, name: str) -> Linear:
    if f"{name}.weight" not in state or f"{name}.bias" not in state:
        raise PolicyError(f"its network has no layer {name!r}")
    weight, bias = state.pop(f"{name}.weight"), state.pop(f"{name}.bias")
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not weight.is_floating_point():
        raise PolicyError(f"its layer {name!r} has shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise PolicyError(f"its layer {name!r} holds numbers that are not finite")
    return weight, bias


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__
