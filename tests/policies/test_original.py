"""Checkpoints in the layout of the original Diffusion Policy code."""

import sys
import types

import pytest
import torch

from offrl.cli import main
from offrl.errors import PolicyError
from offrl.nn.policy import load_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.original import load_original

SIZES = {"horizon": 8, "n_obs": 2, "n_act": 4, "denoising_steps": 20, "stochastic": True}
UNET = {
    "down_dims": [8, 16],
    "diffusion_step_embed_dim": 8,
    "kernel_size": 3,
    "n_groups": 4,
    "cond_predict_scale": True,
}
FORMER = {
    "n_layer": 1,
    "n_head": 2,
    "n_emb": 8,
    "causal_attn": True,
    "time_as_cond": True,
    "n_cond_layers": 0,
}


def ours(kind):
    torch.manual_seed(3)
    network = {"kind": "unet", "kernel": 3, "groups": 4}
    if kind == "transformer":
        network = {"kind": "transformer", "layers": 1, "heads": 2, "width": 8}
    sampler = {"levels": 20, "leading": True}
    policy = ChunkPolicy(3, 2, network=network, widths=(8, 16), step_embed=8, sampler=sampler, **SIZES).eval()
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
        policy.observation_scale.copy_(torch.tensor([1.0, 0.5, 2.0]))
        policy.observation_offset.copy_(torch.tensor([0.1, 0.0, -0.3]))
        for part, value in (("scale", [2.0, 0.25]), ("offset", [0.2, -0.5]), ("inverse_scale", [0.5, 4.0])):
            getattr(policy, f"action_{part}").copy_(torch.tensor(value))
    return policy


def payload(policy, **changes):
    """What the original would have saved for the same policy."""
    kind = policy.settings["kind"]
    state = {}
    for name, value in policy.state_dict().items():
        part, _, rest = name.partition(".")
        if part == kind:
            rest = rest.replace("conv1.block.", "blocks.0.block.").replace("conv2.block.", "blocks.1.block.")
            state[f"model.{rest}"] = value.clone()
    for theirs, name in (("obs", "observation"), ("action", "action")):
        for which in ("scale", "offset"):
            state[f"normalizer.params_dict.{theirs}.{which}"] = getattr(policy, f"{name}_{which}").clone()
    extra = (
        {"model.mask": torch.zeros(8, 8), "model.memory_mask": torch.zeros(8, 3)}
        if kind == "transformer"
        else {}
    )
    state |= extra | {
        "mask_generator._dummy_variable": torch.zeros(0),
        "model._dummy_variable": torch.zeros(0),
    }
    scheduler = {
        "num_train_timesteps": 20,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    scheduler |= {"clip_sample": True, "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler"}
    config = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4, "obs_dim": 3, "action_dim": 2}
    config |= {"num_inference_steps": 20, "oa_step_convention": True, "obs_as_global_cond": True}
    config |= {"noise_scheduler": scheduler, "model": FORMER if kind == "transformer" else UNET}
    worse = {name: value + 1 for name, value in state.items()}
    states = {"model": worse, "ema_model": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    return {
        "cfg": {"policy": config | changes},
        "state_dicts": states,
        "pickles": {"epoch": b"\x80\x04K\x05."},
    }


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_the_averaged_policy_acts_as_it_did(kind, tmp_path, capsys):
    policy = ours(kind)
    torch.save(payload(policy), tmp_path / "latest.ckpt")
    assert main(["policy", "convert", str(tmp_path / "latest.ckpt"), "--out", str(tmp_path / "out")]) == 0
    assert kind in capsys.readouterr().out
    found, seen = (
        load_policy(tmp_path / "out"),
        torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)),
    )
    plans = [p.plan(seen, torch.Generator().manual_seed(1)) for p in (found, policy)]
    torch.testing.assert_close(*plans, rtol=1e-5, atol=1e-5)
    assert found.action_low.tolist() == pytest.approx([(-1 - 0.2) / 2, (-1 + 0.5) * 4])
    assert found.action_high.tolist() == pytest.approx([(1 - 0.2) / 2, (1 + 0.5) * 4])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: p["cfg"]["policy"].update(oa_step_convention=False),
            "oa_step_convention = False is not built",
        ),
        (
            lambda p: p["cfg"]["policy"].update(obs_as_global_cond=False),
            "obs_as_global_cond = False is not built",
        ),
        (
            lambda p: p["cfg"]["policy"]["noise_scheduler"].update(beta_schedule="linear"),
            "beta_schedule = 'linear'",
        ),
        (lambda p: p["cfg"]["policy"].update(horizon=6.5), "settings do not describe a policy"),
        (lambda p: p["cfg"]["policy"].pop("obs_dim"), "settings do not describe a policy"),
        (lambda p: p["cfg"].pop("policy"), "has no settings 'policy'"),
        (lambda p: p["state_dicts"]["ema_model"].pop("normalizer.params_dict.obs.scale"), "no normalizer"),
        (
            lambda p: p["state_dicts"]["ema_model"].pop("model.final_conv.1.bias"),
            "'unet.final_conv.1.bias' is missing",
        ),
        (
            lambda p: p["state_dicts"]["ema_model"].update({"obs_encoder.x": torch.ones(1)}),
            "robomimic's encoder",
        ),
        (lambda p: p.pop("state_dicts"), "no Diffusion Policy checkpoint"),
        (lambda p: p.update(algo_name="diffusion_policy", shape_metadata={}), "is a robomimic checkpoint"),
    ],
)
def test_what_cannot_be_read_says_why(spoil, message, tmp_path):
    content = payload(ours("unet"))
    spoil(content)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(PolicyError, match=message):
        load_original(tmp_path / "x.ckpt", None, None)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    module = types.ModuleType("evil_module")
    exec("class Evil:\n    pass", module.__dict__)
    sys.modules["evil_module"] = module
    module.Evil.__module__ = "evil_module"
    try:
        torch.save(payload(ours("unet")) | {"x": module.Evil()}, tmp_path / "x.ckpt")
    finally:
        del sys.modules["evil_module"]
    with pytest.raises(PolicyError, match=r"evil_module\.Evil"):
        load_original(tmp_path / "x.ckpt", None, None)
