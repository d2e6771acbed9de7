"""Checkpoints of the original Diffusion Policy code as policies of this package.

    payload   {cfg, state_dicts: {model, ema_model, optimizer}, pickles}, torch with dill
    weights   model.*  with blocks.0.block for conv1.block, blocks.1.block for conv2.block
              obs_encoder.*  of policies that see images ('hybrid'): robomimic's, one network a camera
    units     normalizer.params_dict.NAME.{scale, offset}:  z = scale x + offset;  NAME is action, and obs, or that of
              each part of the observations; images are numbers from 0 to 1

Read as tensors and plain values. U-Net and transformer are built; the averaged weights act (``ema_model``), as in the
original's evaluation. Image policies with an encoder of torchvision (``MultiImageObsEncoder``) are refused, and those
whose crops are random when they act.

Source: real-stanford/diffusion_policy, workspace/base_workspace.py, policy/diffusion_*_{lowdim,hybrid_image}_policy.py.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.nn.plain_pickle import read_plain
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.lerobot_model import PREDICTIONS, fill, refuse
from offrl.policies.network import Input
from offrl.policies.robomimic_model import (
    Box,
    camera_weights,
    keypoints_of,
    load_robomimic,
    named_as_here,
    part_shape,
    set_box,
)

UNUSED = ("mask", "memory_mask", "_dummy_variable")


def load_checkpoint(path: Path | str, low: Box, high: Box) -> tuple[ChunkPolicy, str]:
    """The averaged policy of a checkpoint, on the CPU and in evaluation mode, and whose it is.

    Args:
        path: a ``.ckpt`` of the original code, or a ``.pth`` of robomimic.
        low: lower bounds of the action box; None: where the normalized actions are -1.
        high: upper bounds; None: where they are 1.

    Raises:
        FileNotFoundError: no such file.
        PolicyError: not such a checkpoint, of a policy or with settings that are not built here, or weights that do not
            fit.
    """
    payload = read_plain(path)
    if isinstance(payload, dict) and {"algo_name", "shape_metadata"} <= payload.keys():
        return load_robomimic(payload, path, low, high), "robomimic checkpoint"
    return _load_original(payload, path, low, high), "Diffusion Policy checkpoint"


def _load_original(payload: Any, path: Any, low: Box, high: Box) -> ChunkPolicy:
    state = _model(payload, path)
    config = _table(_table(payload, "cfg", path), "policy", path)
    if "obs_encoder" in config:
        raise PolicyError(f"{path} sees images through torchvision's pooled encoder, which is not built here")
    parts = _parts(config, path) if "shape_meta" in config else None
    cameras = [name for name, shape in parts or () if len(shape) == 3]
    encoder = camera_weights(state, "obs_encoder.", cameras, path)
    vision = _vision(config, cameras, encoder, path) if cameras else None
    policy = _built(config, parts, vision, path)
    _set_units(policy, parts or [("obs", (policy.obs_dim,))], state, path)
    set_box(policy, low, high)
    kind = policy.settings["kind"]
    network = named_as_here(state, "model.", UNUSED)
    fill(policy, {f"{kind}.{n}": v for n, v in network.items()} | encoder, path)
    return policy.eval()


def _model(payload: Any, path: Any) -> dict[str, Tensor]:
    states = payload.get("state_dicts") if isinstance(payload, dict) else None
    if not isinstance(states, dict) or not isinstance(states.get("model"), dict):
        raise PolicyError(f"{path} is no Diffusion Policy checkpoint: it has no 'state_dicts' with a 'model'")
    chosen = states["ema_model"] if isinstance(states.get("ema_model"), dict) else states["model"]
    return {name: value.float() for name, value in chosen.items() if isinstance(value, Tensor)}


def _table(owner: Any, name: str, path: Any) -> Mapping[str, Any]:
    table = owner.get(name) if isinstance(owner, Mapping) else None
    if not isinstance(table, Mapping):
        raise PolicyError(f"{path} has no settings {name!r}")
    return table


def _parts(config: Mapping[str, Any], path: Any) -> list[Input]:
    """Names and shapes of what the network is told, in its order."""
    parts: list[Input] = []
    try:
        for name, about in _table(_table(config, "shape_meta", path), "obs", path).items():
            kind = about.get("type", "low_dim")
            refuse(kind not in ("low_dim", "rgb"), path, f"type of {name}", kind)
            parts.append((name, part_shape(about["shape"], kind == "rgb")))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise PolicyError(f"{path}: its shape_meta does not describe observations: {error}") from None
    return parts


def _vision(
    config: Mapping[str, Any], cameras: Sequence[str], encoder: Mapping[str, Tensor], path: Any
) -> dict[str, Any]:
    crop, fixed = config.get("crop_shape"), config.get("eval_fixed_crop", False)
    refuse(crop is not None and fixed is not True, path, "eval_fixed_crop", fixed)
    return {
        "crop": crop,
        "keypoints": keypoints_of(encoder, path),
        "separate": len(cameras) > 1,
        "norm": "group" if config.get("obs_encoder_group_norm", False) else "batch",
    }


def _set_units(policy: ChunkPolicy, parts: Sequence[Input], state: Mapping[str, Tensor], path: Any) -> None:
    numbers = [_units(state, name, shape[0], path) for name, shape in parts if len(shape) == 1]
    images = [_units(state, name, shape[2], path, shared=True) for name, shape in parts if len(shape) == 3]
    joined = AffineNormalizer.concatenate([AffineNormalizer.identity(0), *numbers])
    policy.set_normalizers(
        joined,
        _units(state, "action", policy.act_dim, path),
        AffineNormalizer.concatenate(images) if images else None,
    )


def _units(
    state: Mapping[str, Tensor], name: str, width: int, path: Any, *, shared: bool = False
) -> AffineNormalizer:
    """One part's; ``shared``: all its channels have one scale and one offset."""
    stored = [state.get(f"normalizer.params_dict.{name}.{which}") for which in ("scale", "offset")]
    if any(t is None or t.numel() != (1 if shared else width) for t in stored):
        raise PolicyError(
            f"{path} has no normalizer of its {name!r} of the right size: it would act on raw numbers"
        )
    scale, offset = (t.flatten().expand(width).numpy() for t in stored if t is not None)
    return AffineNormalizer.build(0 * scale, scale, offset)


def _built(
    config: Mapping[str, Any], parts: Sequence[Input] | None, vision: Mapping[str, Any] | None, path: Any
) -> ChunkPolicy:
    model = config if parts else _table(config, "model", path)
    scheduler = _table(config, "noise_scheduler", path)
    beta, prediction = scheduler.get("beta_schedule"), scheduler.get("prediction_type", "epsilon")
    refuse(beta != "squaredcos_cap_v2", path, "beta_schedule", beta)
    refuse(prediction not in PREDICTIONS, path, "prediction_type", prediction)
    variance = scheduler.get("variance_type", "fixed_small")
    refuse(variance not in ("fixed_small", "fixed_small_log"), path, "variance_type", variance)
    refuse("ddim" in str(scheduler.get("_target_", "")).lower(), path, "noise_scheduler", "DDIM")
    if parts is None and "n_emb" not in model and "oa_step_convention" not in config:
        raise PolicyError(
            f"{path}: its settings leave out oa_step_convention, which then is False and not built here: actions begin "
            "after the last observation's step; if they begin at that step, set it to True in cfg.policy"
        )
    for name, built in (
        ("oa_step_convention", True),
        ("obs_as_cond", True),
        ("pred_action_steps_only", False),
    ):
        refuse(config.get(name, built) is not built, path, name, config.get(name))
    try:
        levels = scheduler["num_train_timesteps"]
        clip = 1.0 if scheduler.get("clip_sample", True) else None
        inputs = parts or [("observation", (config["obs_dim"],))]
        return ChunkPolicy(
            sum(math.prod(shape) for _, shape in inputs),
            _table(config["shape_meta"], "action", path)["shape"][0] if parts else config["action_dim"],
            horizon=config["horizon"],
            n_obs=config["n_obs_steps"],
            n_act=config["n_action_steps"],
            denoising_steps=config.get("num_inference_steps") or levels,
            stochastic=True,
            inputs=inputs,
            vision=vision,
            sampler={"levels": levels, "prediction": PREDICTIONS[prediction], "clip": clip, "leading": True},
            **_network(config, model, path),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if str(error).startswith(str(path)):
            raise
        raise PolicyError(f"{path}: its settings do not describe a policy: {error}") from None


def _network(config: Mapping[str, Any], model: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Arguments of ``ChunkPolicy`` that describe the denoiser."""
    if "n_emb" in model:
        refuse(model.get("causal_attn") is not True, path, "causal_attn", model.get("causal_attn"))
        refuse(model.get("time_as_cond", True) is not True, path, "time_as_cond", False)
        refuse(bool(model.get("n_cond_layers")), path, "n_cond_layers", model.get("n_cond_layers"))
        sizes = {"layers": model["n_layer"], "heads": model["n_head"], "width": model["n_emb"]}
        return {"network": {"kind": "transformer"} | sizes, "widths": (8,)}
    for owner, name in ((config, "obs_as_global_cond"), (model, "cond_predict_scale")):
        refuse(owner.get(name) is not True, path, name, owner.get(name))
    network = {"kind": "unet", "kernel": model["kernel_size"], "groups": model["n_groups"]}
    return {
        "network": network,
        "widths": model["down_dims"],
        "step_embed": model["diffusion_step_embed_dim"],
    }
