"""Synthetic datasets: rows and ends, the same bytes again, resuming, provenance, what is refused."""

import json
import sys
import types

import numpy as np
import pytest
import torch

import offrl.generate as generate_module
from offrl.cli import main
from offrl.commands.generate import target
from offrl.data.d4rl import read_d4rl
from offrl.diffusion.guidance import Guidance
from offrl.diffusion.sampler import Sampler
from offrl.diffusion.trajectory import Rows, TrajectoryModel
from offrl.diffusion.unet import UNet
from offrl.errors import ConfigError, PolicyError
from offrl.generate import Plan, generate, transitions_of
from offrl.nn.policy import DeterministicPolicy, save_policy
from offrl.nn.random_policy import RandomPolicy
from offrl.policies.chunk import ChunkPolicy

FAST = Plan(Sampler(steps=3), batch=5)


def model(obs=3, act=1, length=8):
    net = UNet(obs + act + 2, 32, 2)
    params = [p.detach() for p in net.init([torch.Generator().manual_seed(0)])]
    box = 2 * torch.ones(act)
    mean, std = torch.zeros(obs + act + 2), torch.ones(obs + act + 2)
    mean[-1], std[-1] = 0.1, 0.3
    return TrajectoryModel.from_params(params, mean, std, -box, box, hidden=32, blocks=2, length=length)


def policy(obs=3, act=1, high=2.0):
    torch.manual_seed(1)
    return DeterministicPolicy(obs, act, (8,), [-high] * act, [high] * act)


def windows(ends, length=4):
    """Windows of ``length`` rows numbered 0, 1, ...; ``ends`` are (window, row) that are terminal."""
    count = 3
    numbers = torch.arange(count * length).view(count, length).float()
    terminated = torch.zeros(count, length, dtype=torch.bool)
    for window, row in ends:
        terminated[window, row] = True
    return Rows(numbers[..., None], -numbers[..., None], 10 * numbers, terminated)


def test_a_window_gives_a_transition_less_and_its_last_row_is_a_successor():
    """Three windows of 4 rows, none terminal: 9 transitions, each third one truncated."""
    got = transitions_of(windows([]), keep_terminal=True)
    assert got["observations"][:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert got["next_observations"][:, 0].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert got["actions"][:, 0].tolist() == [0, -1, -2, -4, -5, -6, -8, -9, -10]
    assert got["rewards"].tolist() == [0, 10, 20, 40, 50, 60, 80, 90, 100]
    assert np.flatnonzero(got["truncated"]).tolist() == [2, 5, 8]
    assert not got["terminated"].any()


def test_a_terminal_last_row_is_kept_and_the_official_rule_drops_it():
    """Window 1 ends in its last row: it is a transition whose successor is itself, masked by the termination."""
    kept = transitions_of(windows([(1, 3)]), keep_terminal=True)
    assert kept["observations"][:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert kept["next_observations"][6].item() == 7
    assert np.flatnonzero(kept["terminated"]).tolist() == [6]
    assert np.flatnonzero(kept["truncated"]).tolist() == [2, 9]
    dropped = transitions_of(windows([(1, 3)]), keep_terminal=False)
    assert not dropped["terminated"].any()
    assert np.flatnonzero(dropped["truncated"]).tolist() == [2, 5, 8]


def test_a_terminal_row_inside_a_window_ends_its_episode_there():
    got = transitions_of(windows([(0, 1), (2, 2)]), keep_terminal=True)
    assert np.flatnonzero(got["terminated"]).tolist() == [1, 8]
    assert np.flatnonzero(got["truncated"]).tolist() == [2, 5]


def test_the_number_of_transitions_is_exact_and_the_rest_begins_alike():
    """A longer sampling begins with the shorter one; the last row of each ends its episode; no row comes twice."""
    short, long = (generate(model(), n, FAST) for n in (20, 90))
    assert len(short["rewards"]) == 20
    assert len(long["rewards"]) == 90
    assert len(np.unique(long["observations"], axis=0)) == 90
    for name, array in short.items():
        if name != "truncated":
            assert np.array_equal(array, long[name][:20]), name
    assert short["truncated"][-1] or short["terminated"][-1]


def test_a_cut_at_a_terminal_row_is_no_time_out():
    whole = generate(model(), 90, FAST)
    for terminal in (True, False):
        row = int(np.flatnonzero((whole["terminated"] == terminal) & ~whole["truncated"])[0])
        part = generate(model(), row + 1, FAST)
        assert (part["terminated"][-1], part["truncated"][-1]) == (terminal, not terminal)


def test_seed_and_policy_and_nothing_else_change_the_data():
    base = generate(model(), 30, FAST)
    again = generate(model(), 30, FAST)
    assert all(np.array_equal(base[name], again[name]) for name in base)
    torch.manual_seed(77)  # the global stream is not drawn from
    assert np.array_equal(generate(model(), 30, FAST)["observations"], base["observations"])
    for change in ({"seed": 1}, {"number": 1}):
        other = generate(model(), 30, Plan(Sampler(steps=3), batch=5, **change))
        assert not np.array_equal(other["observations"], base["observations"])
    guided = Plan(Sampler(steps=3, guidance=Guidance(1.0)), batch=5)
    assert not np.array_equal(generate(model(), 30, guided, policy())["actions"], base["actions"])


def test_a_target_that_always_draws_is_the_same_target_every_time():
    drawn = ChunkPolicy(3, 1, [-2.0], [2.0], widths=(8,), step_embed=4, horizon=8, denoising_steps=2, n_act=6)
    guided = Plan(Sampler(steps=3, guidance=Guidance(1.0)), batch=5)
    first, again = (generate(model(), 30, guided, drawn)["actions"] for _ in range(2))
    assert np.array_equal(first, again)


def test_batches_that_failed_stand_in_nobodys_way(tmp_path):
    folder, guided = tmp_path / "parts", Plan(Sampler(steps=3, guidance=Guidance(1.0)), batch=5)
    with pytest.raises(PolicyError, match="guides nowhere"):
        generate(model(), 30, guided, RandomPolicy(3, 1, [-2.0], [2.0]), folder=folder)
    assert len(generate(model(), 30, guided, policy(), folder=folder)["rewards"]) == 30


def test_batches_on_disk_are_taken_up_again(tmp_path, monkeypatch):
    """Interrupted in the third batch, then repeated: the first two are not drawn again, the data are the same."""
    whole, drawn = generate(model(), 100, FAST), []
    draw = generate_module._draw

    def counted(model, policy, plan, index, *rest):
        drawn.append(index)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(model, policy, plan, index, *rest)

    monkeypatch.setattr(generate_module, "_draw", counted)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        generate(model(), 100, FAST, folder=folder)
    resumed = generate(model(), 100, FAST, folder=folder)
    assert drawn == [0, 1, 2, 2]
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ConfigError, match=r"holds batches of another sampling \(plan differs\)"):
        generate(model(), 100, Plan(Sampler(steps=4), batch=5), folder=folder)


def test_progress_rises_to_all_transitions():
    seen = []
    generate(model(), 70, FAST, progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) == 6
    assert seen[2] == 35


def test_a_policy_of_another_environment_is_refused():
    guided = Plan(Sampler(steps=3, guidance=Guidance(1.0)), batch=5)
    with pytest.raises(PolicyError, match="the policy has O=4, A=1, the model O=3, A=1"):
        generate(model(), 30, guided, policy(obs=4))
    with pytest.raises(PolicyError, match="different action boxes"):
        generate(model(), 30, guided, policy(high=1.0))


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="transitions must be 1 or more"):
        generate(model(), 0, FAST)
    for wrong in ({"batch": 0}, {"seed": -1}, {"length": 3}):
        with pytest.raises(ConfigError, match="batch must be 1 or more"):
            Plan(**wrong)
    deep = TrajectoryModel(3, 1, hidden=32, blocks=4, length=16)  # halves the time three times
    with pytest.raises(ConfigError, match="need 8 steps or more, got length 4"):
        generate(deep, 5, Plan(Sampler(steps=3), length=4))
    broken = model()
    broken.weights[0].data.fill_(float("nan"))
    with pytest.raises(PolicyError, match="not finite"):
        generate(broken, 5, FAST)


# The commands: train a model, draw from it, learn from what was drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of policy_guided_diffusion on tiny data of Pendulum's shapes, and a policy."""
    path = tmp_path_factory.mktemp("pgd")
    rng, cut = np.random.default_rng(0), np.zeros(160, dtype=bool)
    cut[39::40] = True
    arrays = {"observations": rng.normal(size=(160, 3)), "actions": rng.uniform(-2, 2, (160, 1))}
    arrays |= {"rewards": rng.normal(size=160), "terminated": np.zeros(160, dtype=bool), "truncated": cut}
    np.savez(path / "tiny.npz", **arrays)
    command = [
        "train",
        "policy_guided_diffusion",
        "--dataset",
        str(path / "tiny.npz"),
        "--env",
        "Pendulum-v1",
    ]
    command += ["--steps", "12", "--hidden", "32", "--blocks", "2", "--context", "8", "--batch-size", "4"]
    assert main([*command, "--out", str(path / "runs"), "-q"]) == 0
    save_policy(policy(), path / "policy")
    return path


def run_of(folder):
    (config,) = (folder / "runs").glob("*/*/*/config.json")
    return config.parent


def draw(folder, out, *more):
    command = [
        "generate",
        str(run_of(folder)),
        "--transitions",
        "40",
        "--sampling-steps",
        "3",
        "--batch",
        "4",
    ]
    return main([*command, "--out", str(folder / out), *more])


def test_a_generated_file_says_where_it_comes_from_and_a_method_learns_from_it(folder, capsys):
    assert draw(folder, "synth.hdf5") == 0
    assert "40 transitions" in capsys.readouterr().out
    data = read_d4rl(folder / "synth.hdf5")
    assert data.num_steps == 40
    assert data.metadata["env_id"] == "Pendulum-v1"
    facts = data.metadata["synthetic"]
    config = json.loads((run_of(folder) / "config.json").read_text())
    assert facts["dataset_sha256"] == config["dataset_sha256"]
    assert facts["algorithm"] == "policy_guided_diffusion"
    assert facts["policy"] is None
    assert facts["plan"]["sampler"]["steps"] == 3
    assert not (folder / "synth.hdf5.parts").exists()
    learn = ["train", "td3_bc", "--dataset", str(folder / "synth.hdf5"), "--steps", "4", "--hidden", "8"]
    learn += ["--batch-size", "4", "--eval-episodes", "1", "--out", str(folder / "agents"), "-q"]
    assert main(learn) == 0


def test_the_same_options_give_the_same_bytes_and_guidance_others(folder):
    assert draw(folder, "a.hdf5", "-q") == 0
    assert draw(folder, "b/of_another_name.hdf5", "-q") == 0
    first = (folder / "a.hdf5").read_bytes()
    assert first == (folder / "b/of_another_name.hdf5").read_bytes()
    guide = ["--policy", str(folder / "policy"), "--guidance", "1", "--normalize-guidance", "-q"]
    assert draw(folder, "guided.hdf5", *guide) == 0
    guided = read_d4rl(folder / "guided.hdf5")
    assert not np.array_equal(guided.fields["actions"], read_d4rl(folder / "a.hdf5").fields["actions"])
    assert guided.metadata["synthetic"]["policy"] == str(folder / "policy")
    assert len(guided.metadata["synthetic"]["policy_sha256"]) == 64


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--guidance", "1"], "--policy and --guidance go together"),
        (["--policy", "random"], "--policy and --guidance go together"),
        (["--policy", "random", "--guidance", "1"], "a random policy guides nowhere"),
        (["--normalize-guidance"], "has no effect without --policy and --guidance"),
        (["--guidance-mode", "score"], "has no effect without --policy and --guidance"),
        (["--first-order", "--legacy-euler-base"], "collapses"),
        (["--threads", "0"], "threads must be 1 or more"),
        (["--length", "2"], "length 4 or more"),
        (["--churn", "nan"], "churn must be a finite number of 0 or more, got nan"),
    ],
)
def test_a_wrong_command_is_one_line(folder, capsys, options, why):
    assert draw(folder, "wrong.hdf5", *options) == 1
    err = capsys.readouterr().err
    assert why in err
    assert len(err.splitlines()) == 1
    assert not (folder / "wrong.hdf5.parts").exists()  # the command put right finds nothing in its way


def test_only_a_trajectory_model_generates_and_it_is_no_policy(folder, capsys):
    run, out = run_of(folder), str(folder / "x.hdf5")
    agents = ["train", "bc", "--dataset", str(folder / "tiny.npz"), "--steps", "2", "--hidden", "8", "-q"]
    agents += ["--env", "Pendulum-v1", "--eval-episodes", "1"]
    assert main([*agents, "--out", str(folder / "bc")]) == 0
    (other,) = (folder / "bc").glob("*/*/*/config.json")
    capsys.readouterr()
    assert main(["generate", str(other.parent), "--out", out]) == 1
    assert "holds no trajectory model: train policy_guided_diffusion first" in capsys.readouterr().err
    assert draw(folder, "x.hdf5", "--policy", str(run), "--guidance", "1") == 1
    assert "is a trajectory model itself" in capsys.readouterr().err
    assert main(["eval", str(run), "--episodes", "1"]) == 1
    assert "does not act" in capsys.readouterr().err
    assert main(["generate", str(run), "--out", str(folder / "x.csv")]) == 1
    assert "--out must be FILE.hdf5" in capsys.readouterr().err


def test_a_run_of_the_model_resumes_exactly(folder, capsys):
    """Stopped by a checkpoint after half and resumed: metrics and model of the whole run, byte for byte."""
    command = ["train", "policy_guided_diffusion", "--dataset", str(folder / "tiny.npz"), "--steps", "8"]
    command += ["--hidden", "32", "--blocks", "2", "--context", "8", "--batch-size", "4", "--log-every", "2"]
    command += ["--checkpoint-every", "4", "--env", "Pendulum-v1", "-q"]
    paths = []
    for name in ("whole", "half"):
        assert main([*command, "--out", str(folder / name)]) == 0
        (config,) = (folder / name).glob("*/*/*/config.json")
        paths.append(config.parent)
    whole, half = paths
    (half / "final_returns.npz").unlink()
    newest = sorted(half.glob("checkpoint*"))
    for path in newest:  # back to the checkpoint before the last
        if path.name.startswith("checkpoint.pt"):
            path.unlink()
    assert main(["resume", str(half), "-q"]) == 0
    assert (whole / "metrics.csv").read_bytes() == (half / "metrics.csv").read_bytes()
    assert (whole / "policy.safetensors").read_bytes() == (half / "policy.safetensors").read_bytes()
    assert capsys.readouterr().out == ""


def test_a_target_of_ones_own_is_built_for_the_observations_of_the_run(tmp_path, monkeypatch):
    config = {"env_id": "Maze-v0", "env_kwargs": {"a": 1}, "env_flatten": ["observation", "desired_goal"]}
    told = []
    maker = types.ModuleType("target_of_parts")
    maker.make = lambda spec: told.append(spec) or policy()
    monkeypatch.setitem(sys.modules, "target_of_parts", maker)
    assert target("py:target_of_parts:make", types.SimpleNamespace(config=config), "cpu") is not None
    assert (told[0].env_id, told[0].kwargs) == ("Maze-v0", {"a": 1})
    assert told[0].flatten == ("observation", "desired_goal")
