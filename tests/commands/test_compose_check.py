"""``offrl compose --check`` says everything that is wrong, without loading a weight."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.commands.compose_check import Setting, inputs_of, named_columns
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import named_environment
from offrl.data.load import load_dataset
from offrl.data.normalize import AffineNormalizer
from offrl.errors import DatasetError
from offrl.evaluation.environments import make_env, shown_parts
from offrl.evaluation.sources import env_facts
from offrl.nn import policy as policy_module
from offrl.nn.policy import load_policy, save_policy
from offrl.nn.skeleton import policy_skeleton
from offrl.policies.chunk import ChunkPolicy

SIZES = {"widths": (8,), "step_embed": 4, "horizon": 8, "n_act": 6, "denoising_steps": 2}


def make(folder, obs_dim=3, scale=(0.5,), box=2.0, **settings):
    torch.manual_seed(len(str(folder)))
    policy = ChunkPolicy(obs_dim, 1, [-box], [box], **(SIZES | settings))
    observations = AffineNormalizer.build(np.zeros(obs_dim), np.ones(obs_dim))
    policy.set_normalizers(observations, AffineNormalizer.build(np.zeros(1), np.array(scale)))
    save_policy(policy, folder)
    return str(folder)


@pytest.fixture
def parents(tmp_path):
    return [
        make(tmp_path / "a"),
        make(tmp_path / "b", family="flow", inputs=[("state", (2,)), ("speed", (1,))]),
    ]


WIRED = '[inputs.state]\nfrom = "observation[0:2]"\n[inputs.speed]\nfrom = "observation[2:3]"\n'


@pytest.fixture
def wired(tmp_path):
    (tmp_path / "b.toml").write_text(WIRED)
    return ["--wiring", "-", "--wiring", str(tmp_path / "b.toml")]


def compose(parents, *options, env="Pendulum-v1"):
    named = [word for folder in parents for word in ("--policy", folder)]
    return main(["compose", *named, "--env", env, *options])


@pytest.mark.parametrize("env", ["pusht-state", "Hopper-v5"])
def test_a_policy_of_one_plain_observation_sees_the_environment_that_it_was_trained_in(tmp_path, env):
    """As after 'offrl collect --env pusht-state': the short name stands for the same environment, and more is known."""
    setting = Setting.of(named_environment(env))
    dims = sum(math.prod(shape) for _, shape in setting.shown)
    policy = ChunkPolicy(dims, len(setting.low), setting.low, setting.high, **SIZES)
    save_policy(policy, tmp_path / "run", env_facts(setting.spec))
    assert inputs_of(policy, str(tmp_path / "run"), setting) == setting.shown
    other = env_facts(setting.spec) | {"env_kwargs": {"obs_type": "pixels"}}
    save_policy(policy, tmp_path / "other", other)
    assert inputs_of(policy, str(tmp_path / "other"), setting) == [("observation", (dims,))]


def test_what_fits_is_described(parents, wired, capsys):
    assert compose(parents, *wired, "--check") == 0
    out = capsys.readouterr().out
    assert "policy 2: " in out
    assert "flow, chunks of 8, 2 observations seen, 6 actions carried out" in out
    assert "  input speed: 1 numbers" in out
    assert out.endswith("everything fits\n")


def test_no_weights_are_loaded(parents, wired, monkeypatch):
    def fails(*_, **__):
        raise AssertionError

    monkeypatch.setattr(policy_module, "_read_weights", fails)
    monkeypatch.setattr("offrl.commands.compose.load_source", fails)
    assert compose(parents, *wired, "--check") == 0
    skeleton = policy_skeleton(parents[0])
    assert {p.device.type for p in skeleton.unet.parameters()} == {"meta"}
    assert torch.equal(skeleton.action_scale, torch.tensor([0.5]))


def test_all_mistakes_come_at_once_each_on_its_line(parents, tmp_path, capsys):
    make(tmp_path / "c", box=1.0)
    assert compose([*parents[1:], str(tmp_path / "c")], "--check") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"offrl: {parents[1]}: input 'state' names 'state'")
    assert lines[0].endswith("there are observation; give --wiring a file that says what it is made of")
    assert "input 'speed'" in lines[1]
    assert "acts in the box [-1.0] .. [1.0], Pendulum-v1 takes [-2.0] .. [2.0]" in lines[2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "neither a folder nor a policy's name"),
        (lambda f: (f / "policy.json").unlink(), "neither a run directory nor a policy"),
        (lambda f: (f / "policy.safetensors").unlink(), "no such file"),
        (lambda f: (f / "policy.safetensors").write_bytes(b"x" * 40), "is damaged"),
        (lambda f: make(f, obs_dim=4), "takes 4 numbers, the environment shows 3 numbers"),
    ],
)
def test_spoilt_policies_are_named(parents, tmp_path, capsys, spoil, message):
    spoil(tmp_path / "a")
    assert compose([parents[0], parents[0]], "--check") == 1
    assert message in capsys.readouterr().err


def test_a_run_without_a_policy_is_called_so_and_nothing_else_is_printed(parents, tmp_path, capsys):
    (tmp_path / "a/policy.json").unlink()
    (tmp_path / "a/config.json").write_text("{}")
    assert compose(parents, "--check") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "has no policy yet" in err


def test_weights_of_other_shapes_are_found_in_the_header(parents, tmp_path, capsys):
    make(tmp_path / "d", widths=(16,))
    shutil.copy(tmp_path / "d/policy.safetensors", tmp_path / "a/policy.safetensors")
    assert compose([parents[0], parents[0]], "--check") == 1
    assert "does not fit policy.json" in capsys.readouterr().err


def test_the_wired_policy_sees_what_it_would_see_alone(parents, wired, tmp_path, capsys):
    """All weight on the wired policy: its wires put the numbers in the order that it was made for."""
    both = [parents[0], make(tmp_path / "c", inputs=[("state", (2,)), ("speed", (1,))])]
    out = tmp_path / "out"
    options = [*wired, "--weights", "0", "1", "--episodes", "2", "--no-controls", "--out", str(out), "--json"]
    assert compose(both, *options) == 0
    straight = json.loads(capsys.readouterr().out)["results"]
    assert load_policy(out).wires is None  # all of it, in order
    (tmp_path / "b.toml").write_text(WIRED.replace("[0:2]", "[1:3]").replace("[2:3]", "[0:1]"))
    assert compose(both, *options) == 0
    turned = json.loads(capsys.readouterr().out)["results"]
    assert straight["policy 2"]["gain"] == turned["policy 2"]["gain"] == 0
    assert turned["policy 1"]["mean"] == straight["policy 1"]["mean"]
    assert turned["policy 2"]["mean"] != straight["policy 2"]["mean"]
    saved = load_policy(out)
    assert [[p.start for p in pieces] for pieces in saved.wires] == [[0], [1, 0]]
    alone = load_policy(out / "parent_2")(torch.tensor([[2.0, 3.0, 1.0]]))
    assert torch.equal(saved(torch.tensor([[1.0, 2.0, 3.0]])), alone)


def test_policies_that_are_wired_wrongly_are_not_played(parents, capsys):
    assert compose(parents, "--episodes", "2") == 1
    assert "(1 more: see 'offrl compose ... --check')" in capsys.readouterr().err
    assert compose(parents, "--wiring", "x.toml", "--episodes", "2") == 1
    assert "give --wiring once for each of the 2 policies" in capsys.readouterr().err


def test_a_parent_below_its_published_result_is_warned_of(parents, wired, capsys):
    assert compose(parents, *wired, "--episodes", "2", "--no-controls", "--expect", "-1e9", "1e9") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert "policy 2" in lines[0]
    assert "of 1e+09 published: find out why first" in lines[0]


def test_demonstrations_that_were_collected_plain_have_the_same_parts():
    named = load_dataset("builtin:pusht-demo").select(range(2))
    steps = {k: v for k, v in named.fields.items() if not k.startswith("observations.")}
    steps["observations"] = named.flat_observations()  # as 'offrl collect --env pusht-state' records them
    recorded = {"env_id": "gym_pusht/PushT-v0", "env_kwargs": {"obs_type": "state"}}
    plain = OfflineDataset(steps, named.episode_starts, recorded)
    for parts in ([("agent_pos", (2,)), ("block_pose", (3,))], [("block_pose", (3,))], [("agent_pos", (2,))]):
        np.testing.assert_array_equal(named_columns(plain, parts), named_columns(named, parts))
    with pytest.raises(DatasetError, match="have no 'environment_state'; they have observations"):
        named_columns(plain, [("environment_state", (16,))])
    other = OfflineDataset(steps, named.episode_starts, {"env_id": "Other-v0"})
    with pytest.raises(DatasetError, match="have no 'agent_pos'"):
        named_columns(other, [("agent_pos", (2,))])


def test_a_diagnosis_reads_demonstrations_by_name(tmp_path, capsys):
    pytest.importorskip("gym_pusht")
    folders, demos = [], ["--demos", "builtin:pusht-demo", "--diagnose"]
    for name, inputs in (
        ("s", [("agent_pos", (2,)), ("block_pose", (3,))]),
        ("k", [("environment_state", (16,))]),
    ):
        torch.manual_seed(len(inputs))
        total = sum(shape[0] for _, shape in inputs)
        policy = ChunkPolicy(total, 2, [0, 0], [512, 512], inputs=inputs, **SIZES)
        policy.set_normalizers(
            *(AffineNormalizer.build(np.full(n, 256.0), np.full(n, 1 / 256)) for n in (total, 2))
        )
        save_policy(policy, tmp_path / name)
        folders.append(str(tmp_path / name))
    assert compose(folders, *demos, "--json", env="pusht-all") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hint"] is True
    assert sum(found["weights"]) == pytest.approx(1)
    assert found["mixture"] <= min(found["errors"]) + 1e-9
    assert compose(folders, *demos, env="pusht-all") == 0
    assert capsys.readouterr().out.startswith("a hint, not a result")
    assert compose(folders, "--diagnose", "--demos", "builtin:fetch-pick-demo", env="pusht-all") == 1
    assert "the demonstrations have no 'agent_pos'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--diagnose",), "go together"),
        (("--demos", "x"), "go together"),
        (("--check", "--diagnose", "--demos", "x"), "one of the two"),
        (("--expect", "0.5"), "--expect takes 2 numbers"),
    ],
)
def test_options_that_contradict_each_other_are_refused(parents, capsys, options, message):
    assert compose(parents, *options) == 1
    assert message in capsys.readouterr().err


def test_some_columns_of_a_part_are_found_in_demonstrations():
    pytest.importorskip("gymnasium_robotics")
    setting = Setting.of(named_environment("fetch-pick-positions"))
    data, positions = (load_dataset(f"builtin:fetch-pick-demo{view}") for view in ("", "/positions"))
    assert np.array_equal(named_columns(data, setting.shown), positions.flat_observations())


def test_angles_are_within_a_turn():
    pytest.importorskip("gym_pusht")
    env = make_env(named_environment("pusht-all"))
    env.reset(seed=0)
    env.unwrapped.block.angle = -1.0
    assert env.env.observation({})["block_pose"][2] == pytest.approx(2 * np.pi - 1)
    env.close()


def test_pushts_views_side_by_side_are_those_of_its_own():
    pytest.importorskip("gym_pusht")
    shown = {}
    for name in ("state", "keypoints", "all"):
        spec = named_environment(f"pusht-{name}")
        env = make_env(spec)
        flat, _ = env.reset(seed=3)
        for _ in range(3):
            flat, *_ = env.step(np.array([200.0, 300.0]))
        column = 0
        for key, shape in shown_parts(env, spec):
            shown.setdefault(key, []).append(flat[column : column + shape[0]])
            column += shape[0]
        assert column == len(flat) == spec.obs_dim
        env.close()
    assert {key: len(values) for key, values in shown.items()} == {
        "agent_pos": 3,
        "block_pose": 2,
        "environment_state": 2,
    }
    for values in shown.values():
        for other in values[1:]:
            np.testing.assert_allclose(values[0], other, rtol=1e-6)
