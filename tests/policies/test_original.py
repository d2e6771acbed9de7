"""Checkpoints in the layout of the original Diffusion Policy code."""

import itertools
import json
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from offrl.cli import main
from offrl.data.normalize import AffineNormalizer
from offrl.errors import PolicyError
from offrl.nn.policy import load_policy
from offrl.nn.vision import ImageEncoder
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.original import load_checkpoint
from offrl.policies.robomimic_model import camera_weights

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
    config |= {"noise_scheduler": scheduler, "model": dict(FORMER if kind == "transformer" else UNET)}
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


@pytest.mark.parametrize(("asked", "steps"), [(5, 5), (None, 20)])
def test_the_sampler_is_the_checkpoints(asked, steps, tmp_path):
    content = payload(ours("unet"), num_inference_steps=asked)
    content["cfg"]["policy"]["noise_scheduler"].update(clip_sample=False, prediction_type="sample")
    torch.save(content, tmp_path / "x.ckpt")
    found, _ = load_checkpoint(tmp_path / "x.ckpt", None, None)
    assert (found.denoising_steps, found.clip_bound, found.output) == (steps, None, "x0")


def test_only_the_unet_of_numbers_knows_another_first_step(tmp_path):
    content = payload(ours("transformer"))
    del content["cfg"]["policy"]["oa_step_convention"]
    torch.save(content, tmp_path / "x.ckpt")
    assert load_checkpoint(tmp_path / "x.ckpt", None, None)[0].settings["kind"] == "transformer"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: p["cfg"]["policy"].update(oa_step_convention=False),
            "oa_step_convention = False is not built",
        ),
        (
            lambda p: p["cfg"]["policy"].pop("oa_step_convention"),
            "leave out oa_step_convention, which then is False.*set it to True",
        ),
        (
            lambda p: p["cfg"]["policy"].update(obs_as_global_cond=False),
            "obs_as_global_cond = False is not built",
        ),
        (
            lambda p: p["cfg"]["policy"]["noise_scheduler"].update(beta_schedule="linear"),
            "beta_schedule = 'linear'",
        ),
        (
            lambda p: p["cfg"]["policy"]["noise_scheduler"].update(variance_type="fixed_large"),
            "variance_type = 'fixed_large'",
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
            r"'obs_encoder.x' is .*expected nothing of that name",
        ),
        (lambda p: p["cfg"]["policy"]["model"].pop("kernel_size"), "settings do not describe a policy"),
        (lambda p: p["cfg"]["policy"].update(obs_encoder={}), "torchvision's pooled encoder"),
        (lambda p: p.pop("state_dicts"), "no Diffusion Policy checkpoint"),
        (lambda p: p.update(algo_name="bc", shape_metadata={}), "a robomimic 'bc' policy"),
    ],
)
def test_what_cannot_be_read_says_why(spoil, message, tmp_path):
    content = payload(ours("unet"))
    spoil(content)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(PolicyError, match=message):
        load_checkpoint(tmp_path / "x.ckpt", None, None)


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
        load_checkpoint(tmp_path / "x.ckpt", None, None)


# --- image policies: robomimic's encoder in the original code's files, and in robomimic's own -----------------

PARTS = [("wrist", (14, 12, 3)), ("agent_pos", (2,)), ("image", (14, 12, 3))]
CROP = [10, 8]


def small_backbone(channels, norm):
    """Three layers under ResNet's kind of names; 512 channels, as the softmax takes."""
    return nn.Sequential(nn.Conv2d(channels, 512, 4, 2, bias=False), norm(512), nn.ReLU())


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("offrl.nn.vision.resnet18", small_backbone)


def sighted(parts=PARTS, kind="unet", norm="group", scale=2.0, **settings):
    torch.manual_seed(5)
    network = {"kind": "unet", "kernel": 3, "groups": 8}
    if kind == "transformer":
        network = {"kind": "transformer", "layers": 1, "heads": 2, "width": 8}
    cameras = sum(len(shape) == 3 for _, shape in parts)
    settings = SIZES | {"sampler": {"levels": 20, "leading": True}} | settings
    vision = {"crop": CROP, "keypoints": 3, "separate": cameras > 1, "norm": norm}
    width = sum(torch.Size(shape).numel() for _, shape in parts)
    sizes = {"inputs": parts, "vision": vision, "network": network, "widths": (8, 16), "step_embed": 8}
    policy = ChunkPolicy(width, 2, **sizes, **settings).eval()
    g = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in policy.state_dict().items():
            if name.startswith(("rgb_encoder", "unet", "transformer")) and value.is_floating_point():
                value.copy_(
                    0.1 + 0.3 * torch.rand(value.shape, generator=g) - 0.3 * ("running" not in name) / 2
                )
    numbers, acted = ([[0.01, 0.02], [-0.5, 0.1]], [[2.0, 0.25], [0.2, -0.5]])
    units = [AffineNormalizer.build(np.zeros(2), *map(np.array, pair)) for pair in (numbers, acted)]
    policy.set_normalizers(
        *units, AffineNormalizer.build(np.zeros(3 * cameras), *np.tile([[scale], [-1.0]], 3 * cameras))
    )
    return policy


def encoder_names(policy, parts):
    """The encoder's weights under robomimic's names, the parts of its cameras' networks twice as there."""
    cameras = [name for name, shape in parts if len(shape) == 3]
    for name, value in policy.rgb_encoder.state_dict().items():
        camera, own = (cameras[0], name) if len(cameras) == 1 else name.split(".", 1)
        camera = camera if len(cameras) == 1 else cameras[int(camera)]
        part, _, rest = own.partition(".")
        for theirs in {
            "backbone": ("backbone.nets", "nets.0.nets"),
            "pool": ("pool", "nets.1"),
            "out": ("nets.3",),
        }[part]:
            yield f"obs_nets.{camera}.{theirs}.{rest}", value
    for camera in cameras:
        for place in ("pool", "nets.1"):
            yield f"obs_nets.{camera}.{place}.temperature", torch.ones(1)
            yield f"obs_nets.{camera}.{place}.pos_x", torch.zeros(1, 6)
            yield f"obs_nets.{camera}.{place}.pos_y", torch.zeros(1, 6)


def hybrid(policy, parts=PARTS):
    """What the original would have saved for the same image policy."""
    told = payload(policy)
    config = told["cfg"]["policy"]
    inner = config.pop("model")
    config |= (FORMER if "n_emb" in inner else UNET | {"n_groups": 8}) | {"obs_as_cond": True}
    del config["obs_dim"], config["action_dim"], config["oa_step_convention"]
    kinds = {
        1: lambda s: {"shape": list(s), "type": "low_dim"},
        3: lambda s: {"shape": [s[2], *s[:2]], "type": "rgb"},
    }
    observed = {name: kinds[len(shape)](shape) for name, shape in parts}
    config["shape_meta"] = {"obs": observed, "action": {"shape": [2]}}
    grouped = policy.vision["norm"] == "group"
    config |= {"crop_shape": CROP, "eval_fixed_crop": True, "obs_encoder_group_norm": grouped}
    state = told["state_dicts"]["ema_model"]
    for which in ("scale", "offset"):
        numbers = state.pop(f"normalizer.params_dict.obs.{which}")
        for name, shape in parts:
            own = getattr(policy, f"image_{which}")[:1] if len(shape) == 3 else numbers
            state[f"normalizer.params_dict.{name}.{which}"] = own.clone()
            state[f"normalizer.params_dict.{name}.input_stats.max"] = torch.ones(1)
    state |= {f"obs_encoder.{name}": value.clone() for name, value in encoder_names(policy, parts)}
    return told


def robomimic(policy, parts=PARTS, **statistics):
    """What robomimic would have saved for it."""
    state = {}
    for name, value in policy.unet.state_dict().items():
        name = name.replace("conv1.block.", "blocks.0.block.").replace("conv2.block.", "blocks.1.block.")
        state[f"policy.noise_pred_net.{name}"] = value
    state |= {f"policy.obs_encoder.nets.obs.{name}": v for name, v in encoder_names(policy, parts)}
    steps = {"num_train_timesteps": 20, "num_inference_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    steps |= {"clip_sample": True, "prediction_type": "epsilon"}
    ddim = policy.sampler["raw_direction"]
    algo = {
        "horizon": {"observation_horizon": 2, "action_horizon": 4, "prediction_horizon": 8},
        "unet": {"enabled": True, "down_dims": [256, 512, 1024], "n_groups": 8},
        "ema": {"enabled": True, "power": 0.75},
        "ddpm": steps | {"enabled": not ddim},
        "ddim": steps
        | {"enabled": ddim, "num_inference_timesteps": 5, "set_alpha_to_one": True, "steps_offset": 0},
    }
    rgb = {
        "core_class": "VisualCore",
        "core_kwargs": {
            "backbone_class": "ResNet18Conv",
            "pool_class": "SpatialSoftmax",
            "feature_dimension": 6,
        },
        "obs_randomizer_class": "CropRandomizer",
        "obs_randomizer_kwargs": {"crop_height": 10, "crop_width": 8, "num_crops": 1, "pos_enc": False},
    }
    names = {n: [name for name, shape in parts if len(shape) == n] for n in (1, 3)}
    modalities = {
        "obs": {"low_dim": names[1], "rgb": names[3], "depth": []},
        "goal": {"low_dim": [], "rgb": []},
    }
    config = {"algo": algo, "observation": {"modalities": modalities, "encoder": {"rgb": rgb}}}
    config["train"] = {"action_keys": ["actions"], "action_config": {"actions": {"normalization": "min_max"}}}
    shapes = {name: [s[2], *s[:2]] if len(s) == 3 else list(s) for name, s in [*parts, ("unseen", (4,))]}
    return {
        "model": {"nets": {n: v + 1 for n, v in state.items()}, "ema": state, "optimizers": {}},
        "config": json.dumps(config, indent=4),
        "algo_name": "diffusion_policy",
        "env_metadata": {"env_name": "Lift"},
        "shape_metadata": {"ac_dim": 2, "all_shapes": OrderedDict(shapes), "use_images": True},
        **statistics,
    }


STATISTICS = {  # of the same units
    "obs_normalization_stats": {"agent_pos": {"scale": [[100.0, 50.0]], "offset": [[50.0, -5.0]]}},
    "action_normalization_stats": {"actions": {"scale": [[0.5, 4.0]], "offset": [[-0.1, 2.0]]}},
}


def seen(policy, count=4):
    """Observations of bytes and numbers, as the policy is shown them."""
    g = torch.Generator().manual_seed(1)
    parts = [
        torch.randint(256, (count, 2, torch.Size(shape).numel()), generator=g).float()
        / (1 if len(shape) == 3 else 25)
        for _, shape in policy.inputs
    ]
    return torch.cat(parts, dim=2)


def converted(content, folder):
    torch.save(content, folder / "x.ckpt")
    return load_checkpoint(folder / "x.ckpt", None, None)[0]


def same_plans(found, policy):
    history = seen(policy)
    assert found.inputs == policy.inputs
    plans = [p.plan(history, torch.Generator().manual_seed(1)) for p in (found, policy)]
    assert (plans[1][0] - plans[1][1]).abs().max() > 1e-3  # what is seen matters
    torch.testing.assert_close(*plans, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("parts", "settings"),
    [
        (PARTS, {}),
        (PARTS[1:], {"norm": "batch"}),
        (PARTS[:2], {"kind": "transformer"}),
    ],
    ids=["two-cameras", "batch-norm", "transformer"],
)
def test_an_image_policy_of_the_original_acts_as_it_did(parts, settings, tmp_path):
    policy = sighted(parts, **settings)
    found = converted(hybrid(policy, parts), tmp_path)
    same_plans(found, policy)
    assert found.vision == policy.vision
    assert found.action_low.tolist() == pytest.approx([(-1 - 0.2) / 2, (-1 + 0.5) * 4])


@pytest.mark.usefixtures("small")
def test_the_original_looks_at_the_middle_in_its_own_units(tmp_path):
    found, told = converted(hybrid(sighted(PARTS[1:], scale=3.0), PARTS[1:]), tmp_path), []
    found.rgb_encoder.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    history = seen(found)
    found.encode(history)
    image = history[0, 0, 2:].view(14, 12, 3) / 255
    torch.testing.assert_close(told[0][0], 3 * image[2:12, 2:10].permute(2, 0, 1) - 1)


def test_every_weight_of_resnet_18_has_a_place(tmp_path):
    names = ["0.weight", "1.weight", "1.bias"]
    for layer, block in itertools.product((4, 5, 6, 7), (0, 1)):
        for part in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"):
            names.append(f"{layer}.{block}.{part}")
        if block == 0 and layer > 4:
            names += [f"{layer}.0.downsample.{part}" for part in ("0.weight", "1.weight", "1.bias")]
    theirs = {f"encoder.obs_nets.eye.backbone.nets.{name}": torch.zeros(1) for name in names}
    with torch.device("meta"):
        ours = {name for name in ImageEncoder().state_dict() if name.startswith("backbone")}
    assert {n.removeprefix("rgb_encoder.") for n in camera_weights(theirs, "encoder.", ["eye"], "x")} == ours


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ddim", [False, True])
def test_a_policy_of_robomimic_acts_as_it_did(ddim, tmp_path):
    settings = {"sampler": {"levels": 20, "leading": True, "raw_direction": ddim}, "scale": 1.0}
    if ddim:
        settings |= {"denoising_steps": 5, "stochastic": False}
    policy = sighted(**settings)
    policy.image_offset.zero_()
    found = converted(robomimic(policy, **STATISTICS), tmp_path)
    same_plans(found, policy)
    assert (found.denoising_steps, found.stochastic) == (policy.denoising_steps, policy.stochastic)


@pytest.mark.usefixtures("small")
def test_robomimics_plain_weights_act_where_it_kept_no_average(tmp_path):
    content = robomimic(sighted(scale=1.0), **STATISTICS)
    configured(content, "algo", "ema", "enabled", value=False)
    configured(content, "algo", "ddpm", "clip_sample", value=False)
    bias = "policy.noise_pred_net.final_conv.1.bias"
    content["model"]["nets"] = content["model"]["ema"] | {bias: content["model"]["ema"][bias] + 1}
    found = converted(content, tmp_path)
    assert torch.equal(found.unet.final_conv[1].bias, content["model"]["nets"][bias])
    assert found.clip_bound is None


@pytest.mark.usefixtures("small")
def test_without_statistics_robomimics_numbers_are_raw(tmp_path, capsys):
    parts = PARTS[:2]
    torch.save(robomimic(sighted(parts), parts), tmp_path / "x.pth")
    assert main(["policy", "convert", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 0
    assert "robomimic checkpoint: unet, sees 2 of wrist [14, 12, 3], agent_pos [2]" in capsys.readouterr().out
    found = load_policy(tmp_path / "out")
    assert found.observation_scale.tolist() == [1, 1]
    assert found.image_scale.tolist() == [1, 1, 1]
    assert (found.action_low.tolist(), found.action_high.tolist()) == ([-1, -1], [1, 1])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", [hybrid, robomimic])
def test_the_box_is_that_of_the_environment_if_it_fits(layout, tmp_path):
    torch.save(layout(sighted()), tmp_path / "x.ckpt")
    found, _ = load_checkpoint(tmp_path / "x.ckpt", [0.0, -1.0], [2.0, 3.0])
    assert (found.action_low.tolist(), found.action_high.tolist()) == ([0, -1], [2, 3])
    with pytest.raises(PolicyError, match="actions are 2 numbers, the environment's 3"):
        load_checkpoint(tmp_path / "x.ckpt", [0.0] * 3, [1.0] * 3)


def configured(content, *path, value):
    """Change a setting in robomimic's JSON."""
    config = json.loads(content["config"])
    owner = config
    for name in path[:-1]:
        owner = owner[name]
    owner[path[-1]] = value
    content["config"] = json.dumps(config)


RGB = ("observation", "encoder", "rgb")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("layout", "spoil", "message"),
    [
        (hybrid, lambda p: p["cfg"]["policy"].update(eval_fixed_crop=False), "eval_fixed_crop = False"),
        (hybrid, lambda p: p["cfg"]["policy"].update(pred_action_steps_only=True), "pred_action_steps_only"),
        (
            hybrid,
            lambda p: p["cfg"]["policy"]["shape_meta"]["obs"]["image"].update(type="depth"),
            "type of image = 'depth'",
        ),
        (
            hybrid,
            lambda p: p["cfg"]["policy"]["shape_meta"]["obs"]["image"].pop("shape"),
            "shape_meta does not",
        ),
        (
            hybrid,
            lambda p: p["state_dicts"]["ema_model"].pop("normalizer.params_dict.image.scale"),
            "no normalizer of its 'image'",
        ),
        (
            hybrid,
            lambda p: p["state_dicts"]["ema_model"]["obs_encoder.obs_nets.image.pool.temperature"].mul_(2),
            r"pool.temperature = \[2.0\]",
        ),
        (
            hybrid,
            lambda p: p["state_dicts"]["ema_model"]["obs_encoder.obs_nets.image.nets.0.nets.0.weight"].add_(
                1
            ),
            "twice, with two values",
        ),
        (
            hybrid,
            lambda p: p["state_dicts"]["ema_model"].pop("obs_encoder.obs_nets.image.nets.3.bias"),
            r"'rgb_encoder.1.out.bias' is missing",
        ),
        (
            hybrid,
            lambda p: p["state_dicts"]["ema_model"].update(
                {"obs_encoder.obs_nets.agent_pos.w": torch.ones(1)}
            ),
            "expected nothing of that name",
        ),
        (robomimic, lambda p: p.update(obs_normalization_stats={"image": {}}), "normalized images"),
        (
            robomimic,
            lambda p: p.update(obs_normalization_stats={"agent_pos": {"mean": [[0, 0]], "std": [[1, 1]]}}),
            "no 'scale' and 'offset'",
        ),
        (
            robomimic,
            lambda p: p.update(action_normalization_stats={"actions": {"scale": [[1.0]], "offset": [[0.0]]}}),
            "of 1 numbers, not 2",
        ),
        (
            robomimic,
            lambda p: configured(p, *RGB, "obs_randomizer_class", value="ColorRandomizer"),
            "ColorRandomizer",
        ),
        (robomimic, lambda p: configured(p, *RGB, "obs_randomizer_kwargs", "crop_width", value=9), "crop = "),
        (
            robomimic,
            lambda p: configured(p, *RGB, "core_kwargs", "pool_class", value="Mean"),
            "pool_class = 'Mean'",
        ),
        (
            robomimic,
            lambda p: configured(p, "algo", "ddpm", "beta_schedule", value="linear"),
            "beta_schedule",
        ),
        (
            robomimic,
            lambda p: configured(p, "train", "action_config", value={"actions": {"format": "rot_6d"}}),
            "format of actions = 'rot_6d'",
        ),
        (
            robomimic,
            lambda p: configured(p, "observation", "modalities", "goal", value={"rgb": ["image"]}),
            "goal = ",
        ),
        (robomimic, lambda p: p["shape_metadata"].pop("ac_dim"), "do not describe a policy: 'ac_dim'"),
        (robomimic, lambda p: p.update(config="{"), "do not describe a policy"),
        (robomimic, lambda p: p["model"]["ema"].pop("policy.noise_pred_net.final_conv.1.bias"), "is missing"),
    ],
)
def test_what_is_not_built_for_images_says_why(layout, spoil, message, tmp_path):
    content = layout(sighted())
    spoil(content)
    with pytest.raises(PolicyError, match=message) as refused:
        converted(content, tmp_path)
    assert str(refused.value).startswith(str(tmp_path / "x.ckpt"))
