"""Checkpoints of the original Diffusion Policy code as policies of this package: low-dimensional ones.

    payload   {cfg, state_dicts: {model, ema_model, optimizer}, pickles}, torch with dill
    weights   model.*  with blocks.0.block for conv1.block, blocks.1.block for conv2.block
    units     normalizer.params_dict.{obs, action}.{scale, offset}:  z = scale x + offset

Read as tensors and plain values. U-Net and transformer are built; the averaged weights act (``ema_model``), as in the
original's evaluation. Image policies have robomimic's observation
encoder and are refused.

Source: real-stanford/diffusion_policy, workspace/base_workspace.py, policy/diffusion_*_lowdim_policy.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.nn.plain_pickle import read_plain
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.lerobot_model import PREDICTIONS, fill, refuse

RENAMED = (("blocks.0.block.", "conv1.block."), ("blocks.1.block.", "conv2.block."))
UNUSED = ("mask", "memory_mask", "_dummy_variable")


def load_original(path: Path | str, low: Sequence[float] | None, high: Sequence[float] | None) -> ChunkPolicy:
    """The averaged policy of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: the ``.ckpt`` file.
        low: lower bounds of the action box; None: where the normalized actions are -1.
        high: upper bounds; None: where they are 1.

    Raises:
        FileNotFoundError: no such file.
        PolicyError: not such a checkpoint, of a policy or with settings that are not built here, or weights that do not
            fit.
    """
    payload = read_plain(path)
    if isinstance(payload, dict) and {"algo_name", "shape_metadata"} <= payload.keys():
        raise PolicyError(f"{path} is a robomimic checkpoint; its networks are not built here")
    state = _model(payload, path)
    config = _table(_table(payload, "cfg", path), "policy", path)
    if any("obs_encoder" in name for name in state) or "shape_meta" in config:
        raise PolicyError(f"{path} sees images through robomimic's encoder, which is not built here")
    policy = _built(config, state, path)
    for name, part in (("observation", "obs"), ("action", "action")):
        scale, offset = (state.get(f"normalizer.params_dict.{part}.{which}") for which in ("scale", "offset"))
        if scale is None or offset is None or scale.shape != getattr(policy, f"{name}_scale").shape:
            raise PolicyError(
                f"{path} has no normalizer of its {name}s of the right size: it would act on raw numbers"
            )
        units = AffineNormalizer.build(torch.zeros_like(scale).numpy(), scale.numpy(), offset.numpy())
        getattr(policy, f"{name}_scale").copy_(units.scale)
        getattr(policy, f"{name}_offset").copy_(units.offset)
        getattr(policy, f"{name}_inverse_scale").copy_(units.inverse_scale)
    ends = [policy.normalizer("action").inverse(sign * torch.ones(policy.act_dim)) for sign in (-1.0, 1.0)]
    policy.action_low.copy_(torch.minimum(*ends) if low is None else torch.as_tensor(low))
    policy.action_high.copy_(torch.maximum(*ends) if high is None else torch.as_tensor(high))
    policy.derive()
    kind = policy.settings["kind"]
    fill(policy, {f"{kind}.{n}": v for n, v in _network(state, kind).items()}, path)
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


def _built(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Any) -> ChunkPolicy:
    model, scheduler = _table(config, "model", path), _table(config, "noise_scheduler", path)
    beta, prediction = scheduler.get("beta_schedule"), scheduler.get("prediction_type", "epsilon")
    refuse(beta != "squaredcos_cap_v2", path, "beta_schedule", beta)
    refuse(prediction not in PREDICTIONS, path, "prediction_type", prediction)
    refuse(config.get("oa_step_convention", True) is not True, path, "oa_step_convention", False)
    refuse("ddim" in str(scheduler.get("_target_", "")).lower(), path, "noise_scheduler", "DDIM")
    network: dict[str, Any]
    sizes: dict[str, Any]
    if "n_emb" in model:
        refuse(model.get("causal_attn") is not True, path, "causal_attn", model.get("causal_attn"))
        refuse(model.get("time_as_cond", True) is not True, path, "time_as_cond", False)
        refuse(bool(model.get("n_cond_layers")), path, "n_cond_layers", model.get("n_cond_layers"))
        network = {
            "kind": "transformer",
            "layers": model["n_layer"],
            "heads": model["n_head"],
            "width": model["n_emb"],
        }
        sizes = {"widths": (8,)}
    else:
        for owner, name in ((config, "obs_as_global_cond"), (model, "cond_predict_scale")):
            refuse(owner.get(name) is not True, path, name, owner.get(name))
        network = {"kind": "unet", "kernel": model["kernel_size"], "groups": model["n_groups"]}
        sizes = {"widths": model["down_dims"], "step_embed": model["diffusion_step_embed_dim"]}
    levels = scheduler["num_train_timesteps"]
    clip = 1.0 if scheduler.get("clip_sample", True) else None
    try:
        return ChunkPolicy(
            config["obs_dim"],
            config["action_dim"],
            horizon=config["horizon"],
            n_obs=config["n_obs_steps"],
            n_act=config["n_action_steps"],
            denoising_steps=config.get("num_inference_steps") or levels,
            stochastic=True,
            network=network,
            sampler={"levels": levels, "prediction": PREDICTIONS[prediction], "clip": clip, "leading": True},
            **sizes,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{path}: its settings do not describe a policy: {error}") from None


def _network(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        if not name.startswith("model.") or name.removeprefix("model.") in UNUSED:
            continue
        own = name.removeprefix("model.")
        for theirs, ours in RENAMED if kind == "unet" else ():
            own = own.replace(theirs, ours)
        out[own] = value
    return out
