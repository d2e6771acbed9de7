"""What LeRobot's own evaluation saw and did with an exported policy is what the policy does here."""

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from offrl.cli import run
from offrl.errors import PolicyError
from offrl.export.lerobot import export_lerobot, key_of
from offrl.nn.policy import load_policy, save_policy
from offrl.nn.random_policy import RandomPolicy
from offrl.policies.chunk import ChunkPolicy

RECORDED = Path(__file__).parent / "lerobot_plugin"  # scripts/record_lerobot_plugin.py, lerobot 0.4.4
STATE, ENV = "observation.state", "observation.environment_state"


@pytest.fixture
def exported(tmp_path):
    export_lerobot(str(RECORDED / "policy"), tmp_path / "out")
    return tmp_path / "out"


def test_the_recorded_rollout_of_lerobot_is_the_policy_s_own():
    saved = np.load(RECORDED / "recorded.npz")
    policy, state, actions = load_policy(RECORDED / "policy"), None, []
    observations = torch.from_numpy(np.concatenate((saved[STATE], saved[ENV]), axis=2))
    assert observations.shape[1] == saved["action"].shape[1] + 1 == 13
    torch.manual_seed(7)
    with torch.no_grad():
        for t in range(saved["action"].shape[1]):
            action, state = policy.act(observations[:, t], state)
            actions.append(action)
    found = torch.stack(actions, dim=1)
    torch.testing.assert_close(found, torch.from_numpy(saved["action"]), rtol=0, atol=512e-5)
    assert (found[:, 0] - found[:, 5]).abs().max() > 1  # a rollout that moves


def test_what_is_exported_today_is_what_lerobot_ran(exported):
    ran = json.loads((RECORDED / "exported.json").read_text())
    files = {str(p.relative_to(exported)): p for p in exported.rglob("*") if p.is_file()}
    rest = {
        "plugin/pyproject.toml",
        "pretrained_model/offrl/policy.json",
        "pretrained_model/offrl/policy.safetensors",
    }
    assert files.keys() == ran.keys() | rest
    for name, digest in ran.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest, f"{name} changed: record anew"
    assert 'name = "lerobot_policy_offrl"' in files["plugin/pyproject.toml"].read_text()


def fake_lerobot(monkeypatch):
    """Modules with the names that the plug-in imports from LeRobot."""

    class PreTrainedConfig:
        known = {}

        @classmethod
        def register_subclass(cls, name):
            return lambda own: cls.known.setdefault(name, own)

        @classmethod
        def from_pretrained(cls, folder):
            values = json.loads((folder / "config.json").read_text())
            made = cls.known[values.pop("type")]()
            for name, value in values.items():
                setattr(made, name, value)
            return made

    class PreTrainedPolicy(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

    modes = types.SimpleNamespace(IDENTITY="IDENTITY")
    for name, content in {
        "lerobot": {},
        "lerobot.configs": {},
        "lerobot.configs.policies": {"PreTrainedConfig": PreTrainedConfig},
        "lerobot.configs.types": {"NormalizationMode": modes},
        "lerobot.policies": {},
        "lerobot.policies.pretrained": {"PreTrainedPolicy": PreTrainedPolicy},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def plugin(exported, monkeypatch):
    fake_lerobot(monkeypatch)
    monkeypatch.syspath_prepend(exported / "plugin")
    for name in [n for n in sys.modules if n.startswith("lerobot_policy_offrl")]:
        monkeypatch.delitem(sys.modules, name)
    __import__("lerobot_policy_offrl.modeling_offrl")
    yield sys.modules["lerobot_policy_offrl.modeling_offrl"]
    for name in [n for n in sys.modules if n.startswith("lerobot_policy_offrl")]:
        del sys.modules[name]


def batch(step, images=False):
    g = torch.Generator().manual_seed(step)
    parts = {STATE: 512 * torch.rand(2, 2, generator=g), ENV: 512 * torch.rand(2, 16, generator=g)}
    return parts | ({"observation.image": torch.rand(2, 3, 4, 5, generator=g)} if images else {})


def test_the_plugin_acts_as_the_policy_and_forgets_at_a_reset(plugin, exported):
    theirs = plugin.OffrlPolicy.from_pretrained(exported / "pretrained_model")
    ours, state, told = load_policy(RECORDED / "policy"), None, []
    torch.manual_seed(0)
    with torch.no_grad():
        found = [theirs.select_action(batch(t)) for t in range(6)]
        torch.manual_seed(0)
        for t in range(6):
            action, state = ours.act(torch.cat([batch(t)[STATE], batch(t)[ENV]], 1), state)
            told.append(action)
    assert torch.equal(torch.stack(found), torch.stack(told))
    theirs.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(theirs.select_action(batch(0)), found[0])


def test_a_chunk_is_the_plan_after_what_was_seen(plugin, exported):
    theirs = plugin.OffrlPolicy.from_pretrained(exported / "pretrained_model")
    ours = load_policy(RECORDED / "policy")
    seen = [torch.cat([batch(t)[STATE], batch(t)[ENV]], 1) for t in range(2)]
    with torch.no_grad():
        for histories in ([seen[0], seen[0]], [seen[0], seen[1]]):
            torch.manual_seed(1)
            found = theirs.predict_action_chunk(batch(int(histories[1] is seen[1])))
            torch.manual_seed(1)
            assert torch.equal(found, ours.plan(torch.stack(histories, 1)))
            theirs.select_action(batch(0))


def test_the_plugin_refuses_another_environment_and_another_folder(plugin, exported, tmp_path):
    file = exported / "pretrained_model" / "config.json"
    config = json.loads(file.read_text())
    del config["input_features"][ENV]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"needs '{ENV}', the environment shows"):
        plugin.OffrlPolicy.from_pretrained(exported / "pretrained_model")
    with pytest.raises(FileNotFoundError, match="offrl export --format lerobot"):
        plugin.OffrlPolicy.from_pretrained(tmp_path)


def test_images_come_as_the_policy_was_trained_on_them(plugin, tmp_path):
    shape = [4, 5, 3]
    policy = ChunkPolicy(
        62,
        2,
        inputs=[("agent_pos", [2]), ("pixels", shape)],
        widths=(8, 16),
        step_embed=8,
        horizon=8,
        n_obs=1,
        n_act=4,
    )
    save_policy(policy, tmp_path / "p", {"env_id": "gym_pusht/PushT-v0"})
    lines = export_lerobot(str(tmp_path / "p"), tmp_path / "images")
    assert lines[-1].endswith("--env.obs_type=pixels_agent_pos")  # what shows images
    config = json.loads((tmp_path / "images/pretrained_model/config.json").read_text())
    assert config["input_features"]["observation.image"] == {"type": "VISUAL", "shape": [3, 4, 5]}
    theirs = plugin.OffrlPolicy.from_pretrained(tmp_path / "images/pretrained_model")
    parts = batch(0, images=True)
    flat = theirs.observation(parts)
    wanted = (parts["observation.image"] * 255).round().permute(0, 2, 3, 1).reshape(2, -1)
    assert torch.equal(flat, torch.cat((parts[STATE], wanted), 1))


def test_what_lerobot_cannot_show_is_refused(tmp_path, capsys):
    assert key_of("observation.images.wrist", (3, 4, 5)) == ("observation.images.wrist", "VISUAL")
    with pytest.raises(PolicyError, match="'block_pose', which LeRobot's environments do not show"):
        key_of("block_pose", (3,))
    save_policy(RandomPolicy(3, 2), tmp_path / "random")
    command = ["export", str(tmp_path / "random"), "--format", "lerobot", "--out"]
    assert run([*command, str(tmp_path / "out")]) == 1
    assert "pass --env ID" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "random")]) == 1
    assert "name a new folder" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "out"), "--env", "Hopper-v5"]) == 0
    out = capsys.readouterr().out
    assert "observation as observation.state" in out
    assert "lerobot-eval --policy.path=" in out
    shutil.rmtree(tmp_path / "out")
