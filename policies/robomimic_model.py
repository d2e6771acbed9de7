"""robomimic's own diffusion policies, and its image encoder, which the original code's image policies have too.

    file      {model: {nets, ema}, config, algo_name, shape_metadata, [obs|action_normalization_stats]}
    weights   policy.obs_encoder.nets.obs.*   policy.noise_pred_net.*
    camera    obs_nets.NAME.{backbone.nets, pool, nets.3}; nets.0 and nets.1 are backbone and pool once more
    units     z = (x - offset) / scale where there are statistics, else raw numbers, images from 0 to 1

Parts of an observation come in the order of ``all_shapes``. The averaged weights act, those of the encoder too, as in
robomimic's releases; an early commit took the encoder's plain ones. The middle crop of an image acts.

Source: ARISE-Initiative/robomimic, algo/diffusion_policy.py, models/obs_core.py, models/base_nets.py,
utils/train_utils.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.lerobot_model import PREDICTIONS, fill, refuse
from offrl.policies.network import Input

RENAMED = (("blocks.0.block.", "conv1.block."), ("blocks.1.block.", "conv2.block."))  # of the U-Net
PLACES = (  # of a camera's encoder
    ("backbone.nets.", "backbone."),
    ("nets.0.nets.", "backbone."),
    ("nets.1.", "pool."),
    ("nets.3.", "out."),
)
FIXED = ("pool.pos_x", "pool.pos_y", "pool.temperature")
CORE = {"backbone_class": "ResNet18Conv", "pool_class": "SpatialSoftmax"}
GROUPS = 8  # of the U-Net, whose sizes an early version did not take from its settings
Box = Sequence[float] | None


def load_robomimic(payload: Mapping[str, Any], path: Any, low: Box, high: Box) -> ChunkPolicy:
    """The policy of a robomimic checkpoint that was read as plain values.

    Raises:
        PolicyError: of another algorithm, with a setting that is not built here, or weights that do not fit.
    """
    if payload["algo_name"] != "diffusion_policy":
        raise PolicyError(
            f"{path} is a robomimic {payload['algo_name']!r} policy; 'diffusion_policy' is built here"
        )
    try:
        config = json.loads(payload["config"])
        algo, seen = config["algo"], config["observation"]
        parts = _parts(payload["shape_metadata"]["all_shapes"], seen["modalities"], path)
        _check_settings(algo, config.get("train", {}), path)
        model = payload["model"]
        state = model["ema"] if algo["ema"]["enabled"] and model.get("ema") else model["nets"]
        weights = {name.removeprefix("policy."): value.float() for name, value in state.items()}
        unet = named_as_here(weights, "noise_pred_net.")
        cameras = [name for name, shape in parts if len(shape) == 3]
        encoder = camera_weights(weights, "obs_encoder.nets.obs.", cameras, path)
        vision = _vision(seen["encoder"]["rgb"], parts, encoder, path) if cameras else None
        policy = ChunkPolicy(
            sum(math.prod(shape) for _, shape in parts),
            payload["shape_metadata"]["ac_dim"],
            inputs=parts,
            vision=vision,
            **_sizes(algo, unet),
        )
        seen_stats, acted = (payload.get(f"{which}_normalization_stats") or {} for which in ("obs", "action"))
        _set_units(policy, parts, seen_stats, acted, config["train"].get("action_keys", ["actions"]), path)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        if str(error).startswith(str(path)):
            raise
        raise PolicyError(f"{path}: its settings do not describe a policy: {error}") from None
    set_box(policy, low, high)
    fill(policy, {f"unet.{n}": v for n, v in unet.items()} | encoder, path)
    return policy.eval()


def set_box(policy: ChunkPolicy, low: Box, high: Box) -> None:
    """The action box; without bounds the range of normalized actions from -1 to 1."""
    ends = [policy.normalizer("action").inverse(sign * torch.ones(policy.act_dim)) for sign in (-1.0, 1.0)]
    policy.action_low.copy_(torch.minimum(*ends) if low is None else torch.as_tensor(low))
    policy.action_high.copy_(torch.maximum(*ends) if high is None else torch.as_tensor(high))
    policy.derive()


def named_as_here(state: Mapping[str, Tensor], owner: str, unused: Sequence[str] = ()) -> dict[str, Tensor]:
    """The U-Net's weights under the names that they have here; a transformer's have no others."""
    out = {}
    for name, value in state.items():
        own = name.removeprefix(owner)
        if own == name or own in unused:
            continue
        for theirs, ours in RENAMED:
            own = own.replace(theirs, ours)
        out[own] = value
    return out


def camera_weights(
    state: Mapping[str, Tensor], encoder: str, cameras: Sequence[str], path: Any
) -> dict[str, Tensor]:
    """The weights of the cameras' encoders under the names that they have here; unknown ones keep theirs.

    Args:
        state: all weights.
        encoder: how the names of robomimic's observation encoder begin.
        cameras: names, in order.
        path: for errors.

    Raises:
        PolicyError: a weight that is stored twice with two values, or a softmax of another temperature.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith(encoder):
            continue
        parts = name.removeprefix(encoder).split(".", 2)
        if parts[0] != "obs_nets" or len(parts) < 3 or parts[1] not in cameras:
            out[name] = value
            continue
        own = parts[2]
        for theirs, ours in PLACES:
            if own.startswith(theirs):
                own = ours + own.removeprefix(theirs)
                break
        if own in FIXED:
            refuse(own == "pool.temperature" and bool((value != 1).any()), path, own, value.tolist())
            continue
        place = f"{cameras.index(parts[1])}." if len(cameras) > 1 else ""
        if not torch.equal(value, out.setdefault(f"rgb_encoder.{place}{own}", value)):
            raise PolicyError(f"{path} stores {name!r} twice, with two values")
    return out


def keypoints_of(encoder: Mapping[str, Tensor], path: Any) -> int:
    """How many features the spatial softmax of the first camera has."""
    for name, value in encoder.items():
        if name.endswith("pool.nets.weight"):
            return len(value)
    raise PolicyError(f"{path} has no spatial softmax; other encoders of images are not built here")


def _parts(shapes: Mapping[str, Sequence[int]], modalities: Mapping[str, Any], path: Any) -> list[Input]:
    """Names and shapes of what the network is told, in its order."""
    kinds = {name: kind for kind, names in modalities["obs"].items() for name in names}
    goals = [name for names in modalities.get("goal", {}).values() for name in names]
    refuse(bool(goals), path, "goal", goals)
    parts: list[Input] = []
    for name in shapes:
        if name in kinds:
            refuse(kinds[name] not in ("low_dim", "rgb"), path, f"modality of {name}", kinds[name])
            parts.append((name, part_shape(shapes[name], kinds[name] == "rgb")))
    return parts


def part_shape(shape: Sequence[int], image: bool) -> tuple[int, ...]:
    """Of a part of an observation: images come channels first, and are (H, W, C) here."""
    if image:
        channels, height, width = shape
        return height, width, channels
    return (math.prod(shape),)


def _check_settings(algo: Mapping[str, Any], train: Mapping[str, Any], path: Any) -> None:
    refuse(bool(algo.get("language_conditioned")), path, "language_conditioned", True)
    refuse(not algo["unet"]["enabled"], path, "unet.enabled", False)
    groups = algo["unet"].get("n_groups", GROUPS)
    refuse(groups != GROUPS, path, "unet.n_groups", groups)
    chosen = _scheduler(algo)
    wrong = {"beta_schedule": chosen["beta_schedule"] != "squaredcos_cap_v2"}
    wrong["prediction_type"] = chosen["prediction_type"] not in PREDICTIONS
    wrong["set_alpha_to_one"] = chosen.get("set_alpha_to_one", True) is not True
    wrong["steps_offset"] = chosen.get("steps_offset", 0) != 0
    for name, is_wrong in wrong.items():
        refuse(is_wrong, path, name, chosen.get(name))
    for key, about in (train.get("action_config") or {}).items():
        for name in ("format", "rot_conversion"):
            refuse(bool(about.get(name)), path, f"{name} of {key}", about.get(name))


def _scheduler(algo: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = algo["ddpm"] if algo["ddpm"]["enabled"] else algo["ddim"]
    return chosen


def _sizes(algo: Mapping[str, Any], unet: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ``ChunkPolicy``; the U-Net's sizes are those of its weights."""
    stages = sum(f"down_modules.{n}.0.conv1.block.0.weight" in unet for n in range(len(unet)))
    first = [unet[f"down_modules.{n}.0.conv1.block.0.weight"] for n in range(stages)]
    scheduler, horizon = _scheduler(algo), algo["horizon"]
    ddim = not algo["ddpm"]["enabled"]
    sampler = {
        "levels": scheduler["num_train_timesteps"],
        "prediction": PREDICTIONS[scheduler["prediction_type"]],
        "clip": 1.0 if scheduler["clip_sample"] else None,
        "leading": True,
        "raw_direction": ddim,
    }
    return {
        "horizon": horizon["prediction_horizon"],
        "n_obs": horizon["observation_horizon"],
        "n_act": horizon["action_horizon"],
        "widths": [len(weight) for weight in first],
        "step_embed": unet["diffusion_step_encoder.1.weight"].shape[1],
        "denoising_steps": scheduler["num_inference_timesteps"],
        "stochastic": not ddim,
        "network": {"kind": "unet", "kernel": first[0].shape[2], "groups": GROUPS},
        "sampler": sampler,
    }


def _vision(
    rgb: Mapping[str, Any], parts: Sequence[Input], encoder: Mapping[str, Tensor], path: Any
) -> dict[str, Any]:
    core = rgb["core_kwargs"]
    refuse(rgb["core_class"] != "VisualCore", path, "rgb.core_class", rgb["core_class"])
    for name, built in CORE.items():
        refuse(core.get(name, built) != built, path, name, core.get(name))
    coordinates = (core.get("backbone_kwargs") or {}).get("input_coord_conv")
    refuse(bool(coordinates), path, "input_coord_conv", coordinates)
    shapes = [shape for _, shape in parts if len(shape) == 3]
    crop, randomizer = None, rgb.get("obs_randomizer_class")
    if randomizer is not None:
        refuse(randomizer != "CropRandomizer", path, "obs_randomizer_class", randomizer)
        asked = rgb["obs_randomizer_kwargs"]
        crop = [asked["crop_height"], asked["crop_width"]]
        refuse(bool(asked.get("pos_enc")), path, "pos_enc", True)
        free = [side - part for shape in shapes for side, part in zip(shape[:2], crop, strict=True)]
        refuse(any(round(n / 2) != n // 2 for n in free), path, "crop", crop)  # rounded otherwise there
    return {
        "crop": crop,
        "keypoints": keypoints_of(encoder, path),
        "separate": len(shapes) > 1,
        "norm": "group",
    }


def _set_units(
    policy: ChunkPolicy,
    parts: Sequence[Input],
    seen: Mapping[str, Any],
    acted: Mapping[str, Any],
    action_keys: Sequence[str],
    path: Any,
) -> None:
    refuse(any(len(shape) == 3 and name in seen for name, shape in parts), path, "normalized images", True)
    numbers = [_units(seen.get(name), shape[0], name, path) for name, shape in parts if len(shape) == 1]
    widths = [torch.tensor(acted[key]["scale"]).numel() for key in action_keys] if acted else [policy.act_dim]
    pairs = zip(action_keys if acted else [""], widths, strict=True)
    actions = [_units(acted.get(key), width, key, path) for key, width in pairs]
    if sum(widths) != policy.act_dim:
        raise PolicyError(
            f"{path}: the statistics of its actions are of {sum(widths)} numbers, not {policy.act_dim}"
        )
    joined = [
        AffineNormalizer.concatenate([AffineNormalizer.identity(0), *own]) for own in (numbers, actions)
    ]
    policy.set_normalizers(*joined)  # images stay as they are, from 0 to 1


def _units(stats: Mapping[str, Any] | None, width: int, name: str, path: Any) -> AffineNormalizer:
    if stats is None:
        return AffineNormalizer.identity(width)
    if not {"scale", "offset"} <= stats.keys():
        raise PolicyError(
            f"{path}: the statistics of {name!r} are no 'scale' and 'offset'; an older robomimic's?"
        )
    scale, offset = (torch.tensor(stats[part], dtype=torch.float64).flatten() for part in ("scale", "offset"))
    if len(scale) != width or len(offset) != width or not (scale != 0).all():
        raise PolicyError(f"{path}: the statistics of {name!r} are not {width} scales and offsets")
    return AffineNormalizer.build(offset.numpy(), (1 / scale).numpy(), inverse=scale.numpy())
