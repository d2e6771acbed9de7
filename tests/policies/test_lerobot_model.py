"""A LeRobot policy acts here as it does there, in either layout; what cannot be loaded says why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from offrl.cli import main
from offrl.errors import PolicyError
from offrl.nn.policy import load_policy
from offrl.policies.composed import ComposedPolicy
from offrl.policies.lerobot_model import load_lerobot_policy

RECORDED = Path(__file__).parent / "lerobot_0_4_4"  # scripts/record_lerobot.py
STATE, ENV = "observation.state", "observation.environment_state"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(RECORDED, tmp_path / "policy"))


def chunk(policy, recorded=RECORDED, names=(STATE, ENV)):
    """The plan for the recorded observations and noise; later noise from torch's global stream, as there."""
    saved = np.load(recorded / "recorded.npz")
    rows = [
        torch.cat([torch.from_numpy(flat(saved[f"{name}/{i}"])) for name in names])
        for i in range(policy.n_obs)
    ]
    noise = [torch.from_numpy(saved["noise"])]
    inner = torch.randn

    def randn(*args, **kwargs):
        return noise.pop() if noise else inner(*args, **kwargs)

    torch.manual_seed(7)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "randn", randn)
        return policy.plan(torch.stack(rows)[None])[0], torch.from_numpy(saved["actions"])


def flat(array):
    """Images of 0 .. 1, channels first, as bytes with channels last."""
    return np.round(array.transpose(1, 2, 0) * 255).ravel().astype(np.float32) if array.ndim == 3 else array


def test_the_recorded_policy_gives_the_recorded_actions():
    found, expected = chunk(load_lerobot_policy(RECORDED))
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def older(folder):
    """The same policy in the layout before processors: statistics among the weights, underscores for dots."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    stats = safetensors.torch.load_file(next(folder.glob("policy_preprocessor_step*")))
    for key, value in stats.items():
        name, _, statistic = key.rpartition(".")
        owner = "unnormalize_outputs" if name == "action" else "normalize_inputs"
        if statistic in ("min", "max", "mean", "std"):
            weights[f"{owner}.buffer_{name.replace('.', '_')}.{statistic}"] = value.clone()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    for file in folder.glob("policy_p*"):
        file.unlink()


def test_the_old_layout_gives_the_same_actions(folder):
    older(folder)
    found, expected = chunk(load_lerobot_policy(folder))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_policy_is_converted_saved_and_composed(folder, tmp_path, capsys):
    assert main(["policy", "convert", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "sees 2 of observation.state [2], observation.environment_state [4]" in capsys.readouterr().out
    policy = load_policy(tmp_path / "out")
    found, expected = chunk(policy)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert policy.action_low.tolist() == pytest.approx(
        policy.normalizer("action").inverse(-torch.ones(3)).tolist()
    )
    ComposedPolicy([policy, load_policy(tmp_path / "out")])


def changed(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    for key, value in entries.items():
        config.pop(key) if value is None else config.update({key: value})
    (folder / "config.json").write_text(json.dumps(config))


def dropped(folder, name):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop(name)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def added(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors") | {
        "diffusion.unet.more": torch.zeros(1)
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: changed(f, type="act"),
            "'act' policy: it predicts a chunk in one pass: there is no noise level",
        ),
        (lambda f: changed(f, type="pi0"), "'pi0' policy, whose network is not built here"),
        (
            lambda f: changed(f, horizon=None),
            "does not say 'horizon', and its default differs between versions",
        ),
        (lambda f: changed(f, beta_schedule="linear"), "beta_schedule = 'linear' is not built here"),
        (
            lambda f: changed(f, use_film_scale_modulation=False),
            "use_film_scale_modulation = False is not built",
        ),
        (lambda f: changed(f, down_dims=[8, 16]), "the weights do not fit their description"),
        (lambda f: changed(f, down_dims="x"), "config.json does not describe a diffusion policy"),
        (lambda f: changed(f, clip_sample_range="x"), "clip must be a number above 0, or None, got 'x'"),
        (lambda f: dropped(f, "diffusion.unet.final_conv.1.bias"), "'unet.final_conv.1.bias' is missing"),
        (added, "'unet.more' is (1,), expected nothing of that name"),
        (lambda f: next(f.glob("policy_preprocessor_step*")).unlink(), "which is missing"),
    ],
    ids=[
        "act",
        "pi0",
        "horizon",
        "beta",
        "film",
        "widths",
        "words",
        "clip",
        "dropped",
        "added",
        "statistics",
    ],
)
def test_what_cannot_be_loaded_says_why(folder, spoil, message):
    spoil(folder)
    with pytest.raises((PolicyError, FileNotFoundError)) as caught:
        load_lerobot_policy(folder)
    assert message in str(caught.value)


def test_ddim_and_fewer_steps_are_diffusers(folder):
    """Against diffusers' own loop with a clip that bites, from the network's outputs."""
    diffusers = pytest.importorskip("diffusers")
    changed(folder, noise_scheduler_type="DDIM", num_inference_steps=5)
    policy = load_lerobot_policy(folder)
    found, _ = chunk(policy)
    saved = np.load(RECORDED / "recorded.npz")
    seen = torch.stack(
        [torch.from_numpy(np.concatenate([saved[f"{n}/{i}"] for n in (STATE, ENV)])) for i in (0, 1)]
    )
    scheduler = diffusers.DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(5)
    x = torch.from_numpy(saved["noise"])
    with torch.no_grad():
        told = policy.encode(seen[None])
        for t in scheduler.timesteps:
            x = scheduler.step(policy.unet(x, t.expand(1).float(), told), t, x).prev_sample
    torch.testing.assert_close(found, policy.to_actions(x)[0, 1:5], rtol=0, atol=1e-5)


def test_a_policy_that_predicts_the_actions_is_taken_so(folder):
    assert load_lerobot_policy(folder).output == "eps"
    changed(folder, prediction_type="sample")
    assert load_lerobot_policy(folder).output == "x0"


def test_an_action_box_that_is_not_known_is_asked_for(folder, capsys, tmp_path):
    file = folder / "policy_postprocessor.json"
    for path in (file, folder / "policy_preprocessor.json", folder / "config.json"):
        path.write_text(path.read_text().replace('"ACTION": "MIN_MAX"', '"ACTION": "MEAN_STD"'))
    assert main(["policy", "convert", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "name the environment (--env)" in capsys.readouterr().err
    assert load_lerobot_policy(folder, [-1, -1, -1], [1, 1, 1]).action_high.tolist() == [1, 1, 1]
    with pytest.raises(PolicyError, match="the policy's actions are 3 numbers, the environment's 2$"):
        load_lerobot_policy(folder, [-1, -1], [1, 1])
