"""A LeRobot diffusion policy as one of this package: the same actions for the same noise.

Everything is taken from ``config.json``, whose missing entries would be another default in each version of LeRobot:
those that shape the network or the sampler must be there. Statistics come from either layout, see
``offrl.policies.lerobot``. Parts of an observation are put in the order in which LeRobot's network is told them: state,
cameras, environment state; images are bytes (H, W, C) here.

Source: huggingface/lerobot 0.4.4, policies/diffusion/modeling_diffusion.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.lerobot import WEIGHTS, Feature, LeRobotPolicy, read_lerobot_policy

NO_DENOISER = {
    "act": "it predicts a chunk in one pass: there is no noise level at which it could be asked",
    "vqbet": "it chooses among codes: there is no noise level at which it could be asked",
    "tdmpc": "it plans with a model: there is no noise level at which it could be asked",
    "sac": "its actor is not read here; export it as a stable-baselines3 zip",
}
NEEDED: tuple[str, ...] = (
    "horizon",
    "n_obs_steps",
    "n_action_steps",
    "down_dims",
    "kernel_size",
    "n_groups",
    "diffusion_step_embed_dim",
    "use_film_scale_modulation",
    "noise_scheduler_type",
    "num_train_timesteps",
    "beta_schedule",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
)
SEEING = ("vision_backbone", "crop_shape", "use_group_norm", "spatial_softmax_num_keypoints")
PREDICTIONS = {"epsilon": "eps", "sample": "x0"}


def load_lerobot_policy(
    path: Any, low: Sequence[float] | None = None, high: Sequence[float] | None = None
) -> ChunkPolicy:
    """The policy of a pretrained directory, on the CPU and in evaluation mode.

    Args:
        path: the directory.
        low: lower bounds of the action box; None: the smallest action of its statistics, if they have one.
        high: upper bounds.

    Raises:
        FileNotFoundError, PolicyError: as ``read_lerobot_policy``; or the policy has no denoiser, is of a kind or has a
            setting that is not built here, weights are missing or left over, or its action box is not known.
    """
    described = read_lerobot_policy(path)
    check_kind(described)
    settings = described.settings
    ordered = in_order(described)
    images = [f for f in ordered.values() if f.kind == "VISUAL"]
    needed = NEEDED + (SEEING if images else ())
    if missing := [name for name in needed if name not in settings]:
        raise PolicyError(
            f"{path}: config.json does not say {missing[0]!r}, and its default differs between versions"
        )
    policy = _built(described, ordered, _box(described, low, high))
    numbers = [described.normalizers[name] for name, f in ordered.items() if f.kind != "VISUAL"]
    seen = [described.normalizers[name] for name, f in ordered.items() if f.kind == "VISUAL"]
    joined = AffineNormalizer.concatenate(seen) if seen else None
    policy.set_normalizers(AffineNormalizer.concatenate(numbers), described.normalizers["action"], joined)
    fill(policy, _weights(described), path)
    return policy.eval()


def check_kind(described: LeRobotPolicy) -> None:
    """Refuse what has no denoiser, or whose network is not built here (PolicyError)."""
    kind, path = described.kind, described.path
    if kind in NO_DENOISER:
        raise PolicyError(f"{path} is a LeRobot {kind!r} policy: {NO_DENOISER[kind]}")
    if kind != "diffusion":
        raise PolicyError(
            f"{path} is a LeRobot {kind!r} policy, whose network is not built here; 'diffusion' is"
        )


def in_order(described: LeRobotPolicy) -> dict[str, Feature]:
    """The features that the network is told, in its order: state, cameras, environment state."""
    kinds: dict[str, list[str]] = {"STATE": [], "VISUAL": [], "ENV": []}
    for name, feature in described.observations.items():
        if feature.kind not in kinds:
            raise PolicyError(
                f"{described.path}: the input {name!r} is of kind {feature.kind!r}, which is not known"
            )
        kinds[feature.kind].append(name)
    if len(kinds["STATE"]) != 1 or len(kinds["ENV"]) > 1:
        raise PolicyError(
            f"{described.path}: one state and at most one environment state are understood, got {kinds}"
        )
    names = [name for group in kinds.values() for name in group]
    return {name: described.observations[name] for name in names}


def _built(
    described: LeRobotPolicy, ordered: Mapping[str, Feature], box: tuple[Sequence[float], Sequence[float]]
) -> ChunkPolicy:
    s, path = described.settings, described.path
    _check_settings(s, path)
    inputs = [
        (
            name,
            (f.shape[1], f.shape[2], f.shape[0])
            if f.kind == "VISUAL"
            else (int(torch.Size(f.shape).numel()),),
        )
        for name, f in ordered.items()
    ]
    seeing = any(f.kind == "VISUAL" for f in ordered.values())
    levels = s["num_train_timesteps"]
    steps = s.get("num_inference_steps") or levels
    ddim = s["noise_scheduler_type"] == "DDIM"
    sampler = {
        "levels": levels,
        "prediction": PREDICTIONS[s["prediction_type"]],
        "clip": s["clip_sample_range"] if s["clip_sample"] else None,
        "leading": True,
        "raw_direction": ddim,
    }
    try:
        return ChunkPolicy(
            sum(int(torch.Size(shape).numel()) for _, shape in inputs),
            described.action.shape[0],
            *box,
            horizon=s["horizon"],
            n_obs=s["n_obs_steps"],
            n_act=s["n_action_steps"],
            widths=s["down_dims"],
            step_embed=s["diffusion_step_embed_dim"],
            denoising_steps=steps,
            stochastic=not ddim,
            inputs=inputs,
            network={"kind": "unet", "kernel": s["kernel_size"], "groups": s["n_groups"]},
            vision=_vision(s, path) if seeing else None,
            sampler=sampler,
        )
    except (PolicyError, TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{path}: config.json does not describe a diffusion policy: {error}") from None


def _check_settings(s: Mapping[str, Any], path: Any) -> None:
    refuse(s["beta_schedule"] != "squaredcos_cap_v2", path, "beta_schedule", s["beta_schedule"])
    refuse(
        s["noise_scheduler_type"] not in ("DDPM", "DDIM"),
        path,
        "noise_scheduler_type",
        s["noise_scheduler_type"],
    )
    refuse(s["prediction_type"] not in PREDICTIONS, path, "prediction_type", s["prediction_type"])
    refuse(s["use_film_scale_modulation"] is not True, path, "use_film_scale_modulation", False)


def _vision(settings: Mapping[str, Any], path: Any) -> dict[str, Any]:
    refuse(settings["vision_backbone"] != "resnet18", path, "vision_backbone", settings["vision_backbone"])
    return {
        "crop": settings["crop_shape"],
        "resize": settings.get("resize_shape"),
        "keypoints": settings["spatial_softmax_num_keypoints"],
        "separate": bool(settings.get("use_separate_rgb_encoder_per_camera", False)),
        "norm": "group" if settings["use_group_norm"] else "batch",
    }


def refuse(wrong: bool, path: Any, name: str, value: Any) -> None:
    """A setting that is not built here (PolicyError)."""
    if wrong:
        raise PolicyError(f"{path}: {name} = {value!r} is not built here")


def _box(
    described: LeRobotPolicy, low: Sequence[float] | None, high: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    width = described.action.shape[0]
    if low is not None and high is not None:
        if len(low) != width:
            raise PolicyError(
                f"{described.path}: the policy's actions are {width} numbers, the environment's {len(low)}"
            )
        return low, high
    if described.action.mode != "MIN_MAX":
        raise PolicyError(
            f"{described.path} does not say the bounds of its actions: name the environment (--env)"
        )
    one = torch.ones(width)
    ends = [described.normalizers["action"].inverse(sign * one) for sign in (-1, 1)]
    return ends[0].tolist(), ends[1].tolist()


def _weights(described: LeRobotPolicy) -> dict[str, Tensor]:
    with safetensors.safe_open(described.path / WEIGHTS, framework="pt") as file:
        own = {name.removeprefix("diffusion."): file.get_tensor(stored) for name, stored in described.weights}
    return {name: value for name, value in own.items() if not name.endswith("pool.pos_grid")}


def fill(policy: ChunkPolicy, weights: Mapping[str, Tensor], path: Any) -> None:
    """Load networks by name; nothing may be missing, left over, of another shape or not finite (PolicyError)."""
    ours = {
        n: v
        for n, v in policy.state_dict().items()
        if n.split(".")[0] in ("unet", "transformer", "rgb_encoder")
    }
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(n for n in shapes.keys() | theirs.keys() if shapes.get(n) != theirs.get(n)):
        raise PolicyError(
            f"{path}: the weights do not fit their description: {wrong[0]!r} is {theirs.get(wrong[0], 'missing')}, "
            f"expected {shapes.get(wrong[0], 'nothing of that name')} ({len(wrong)} differ)"
        )
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise PolicyError(f"{path}: the weights are not finite")
    policy.load_state_dict({n: v.to(ours[n].dtype) for n, v in weights.items()}, strict=False)
