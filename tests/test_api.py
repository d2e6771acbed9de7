"""The Python door: the same runs as the command line, typed, lazy."""

import inspect
import json
import typing

import numpy as np
import pytest

import offrl
from offrl import api
from offrl.cli import main
from offrl.errors import CheckpointError, ConfigError, DatasetError, Stopped
from offrl.nn.policy import load_policy

SHORT = {"steps": 10, "hidden": 8, "batch_size": 8, "eval_every": 5, "eval_episodes": 2, "progress": False}


def test_every_public_name_is_there_and_documented():
    for name in offrl.__all__:
        thing = getattr(offrl, name)
        assert inspect.getdoc(thing), name
        assert name in dir(offrl)
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        offrl.tarin  # noqa: B018


@pytest.mark.parametrize("name", api.__all__)
def test_the_door_is_typed(name):
    function = getattr(api, name)
    hints = typing.get_type_hints(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}


def test_train_resume_evaluate_and_load(tmp_path, pendulum):
    result = offrl.train("td3_bc", pendulum, out=tmp_path, seed=1, **SHORT)
    assert result.steps == 10
    assert result.returns.shape == (2,)
    assert result.scores.shape == (2,)
    assert result.directory.is_relative_to(tmp_path)
    again = offrl.resume(result.directory, progress=False)
    assert again.already_finished
    loaded = offrl.load_policy(result.directory)
    for policy in (result.policy, loaded, str(result.directory), f"run:{result.directory}"):
        played = offrl.evaluate(policy, "Pendulum-v1", episodes=2, seed=3)
        assert played.returns.shape == (2,)
        assert played.returns[0] == offrl.evaluate(loaded, "Pendulum-v1", episodes=1, seed=3).returns[0]


def test_many_seeds_give_a_list(tmp_path, pendulum):
    results = offrl.train("td3_bc", pendulum, out=tmp_path, seeds=[2, 1], **SHORT)
    assert [result.seed for result in results] == [2, 1]
    assert offrl.resume(results[1].directory, progress=False).seed == 1
    with pytest.raises(ConfigError, match="data in memory cannot be handed to processes"):
        offrl.train("td3_bc", pendulum, out=tmp_path, seeds=[2, 1], seed_mode="processes", **SHORT)


def test_the_command_line_makes_the_same_run(tmp_path, monkeypatch, pendulum_npz):
    monkeypatch.chdir(pendulum_npz.parent)
    ours = offrl.train("bc", "tiny.npz", env="Pendulum-v1", out="door", lr=1e-3, **SHORT)
    typed = (
        "--env Pendulum-v1 --lr 1e-3 --steps 10 --hidden 8 --batch-size 8 --eval-every 5 --eval-episodes 2 -q"
    )
    assert main(["train", "bc", "--dataset", "tiny.npz", *typed.split()]) == 0
    (config,) = tmp_path.glob("runs/*/*/*/config.json")
    for name in ("metrics.csv", "eval.csv", "policy.safetensors", "config.json"):
        assert (config.parent / name).read_bytes() == (ours.directory / name).read_bytes(), name
    assert str(ours.directory) in repr(ours)
    assert "bias" not in repr(ours)  # no networks in a notebook's cell
    np.testing.assert_array_equal(
        load_policy(config.parent).head.bias.detach(), ours.policy.head.bias.detach()
    )


def test_paths_name_data_and_own_files(tmp_path, pendulum_npz):
    own = tmp_path / "my_algo.py"
    assert main(["new", "algo", "my_algo", "--folder", str(tmp_path)]) == 0
    given = {"env": "Pendulum-v1", "out": tmp_path / "runs", "steps": 4, "batch_size": 8}
    result = offrl.train(own, pendulum_npz, eval_episodes=1, progress=False, **given)
    config = json.loads((result.directory / "config.json").read_text())
    assert (config["dataset"], config["algorithm_file"]) == (str(pendulum_npz), str(own))
    given = {"env": "Pendulum-v1", "out": tmp_path / "sweep", "steps": 4, "eval_episodes": 1}
    found = offrl.sweep(["bc"], [pendulum_npz], seeds=[0], progress=False, **given)
    assert [row["dataset"] for row in found.rows] == ["tiny"]


def test_a_preset_is_taken_by_name_and_recorded(tmp_path, pendulum):
    result = offrl.train("prdc", pendulum, out=tmp_path, preset="halfcheetah-medium-v2", beta=1.0, **SHORT)
    config = offrl.training.run_dir.RunDir(result.directory).config
    assert (config["preset"], config["settings"]["alpha"], config["settings"]["beta"]) == (
        "halfcheetah-medium-v2",
        40.0,
        1.0,
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"stepz": 5}, ConfigError, "td3_bc has no setting 'stepz'; did you mean 'steps'"),
        ({"alhpa": 5}, ConfigError, "td3_bc has no setting 'alhpa'; did you mean 'alpha'"),
        ({"steps": -5}, ConfigError, "steps must be 1 or more"),
        ({"tau": 0.995}, ConfigError, "did you mean 0.005"),
        ({"env": "Pendlum-v1"}, ConfigError, "Pendlum"),
        ({"preset": "nothing"}, ConfigError, "no preset for 'nothing'"),
        ({"steps": 2.5}, ConfigError, "steps: 2.5 must be a whole number"),
        ({"steps": "5"}, ConfigError, "steps: '5' must be a number"),
        ({"batch_size": "8"}, ConfigError, "batch_size: '8' must be a number"),
        ({"alpha": True}, ConfigError, "alpha: True must be a number"),
        ({"normalize_observations": 1}, ConfigError, "normalize_observations: 1 must be true or false"),
        ({"precision": "fp16"}, ConfigError, "precision must be float32 or bf16, got 'fp16'"),
        ({"rows": "all"}, ConfigError, "rows must be auto or exact or qlearning, got 'all'"),
        (
            {"seeds": [0, 1], "seed_mode": "stack"},
            ConfigError,
            "seed_mode must be auto or stacked or processes",
        ),
        ({"seeds": 2}, ConfigError, "seeds must be a list of whole numbers, got 2"),
        ({"seeds": [0.5, 1]}, ConfigError, "seeds must be a list of whole numbers"),
        ({"seeds": []}, ConfigError, "seeds is empty"),
    ],
)
def test_mistakes_are_refused_by_name(tmp_path, pendulum, given, error, message):
    with pytest.raises(error, match=message):
        offrl.train("td3_bc", pendulum, **SHORT | {"out": tmp_path / "runs"} | given)
    assert not (tmp_path / "runs").exists()


def test_numbers_take_the_kind_of_their_defaults(tmp_path, pendulum):
    """1e1 steps are 10, an alpha of 1 is 1.0, NumPy's numbers are Python's, large seeds stay exact."""
    given = {"steps": 1e1, "batch_size": 8.0, "alpha": 1, "seed": np.int64(2**53 + 1), "lr": np.float32(0.5)}
    run = offrl.train("td3_bc", pendulum, **SHORT | given | {"out": tmp_path, "eval_every": 0})
    config = json.loads((run.directory / "config.json").read_text())
    kept = config | config["settings"]
    found = {name: kept[name] for name in given}
    assert found == {"steps": 10, "batch_size": 8, "alpha": 1.0, "seed": 2**53 + 1, "lr": 0.5}
    assert {name: type(value) for name, value in found.items()} == {
        "steps": int, "batch_size": int, "alpha": float, "seed": int, "lr": float,
    }  # fmt: skip


def test_seeds_may_be_an_array(tmp_path, pendulum):
    runs = offrl.train("bc", pendulum, out=tmp_path, seeds=np.arange(2), **SHORT)
    assert [(run.seed, type(run.seed)) for run in runs] == [(0, int), (1, int)]


def test_a_word_is_one_of_those_that_the_setting_lists(tmp_path, pendulum):
    with pytest.raises(ConfigError, match="denoiser must be .* or .*, got 'bogus'"):
        offrl.train("diffusion_policy", pendulum, out=tmp_path, denoiser="bogus")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algos": "bc"}, "algos must be a list, got 'bc'"),
        ({"datasets": "tiny.npz"}, "datasets must be a list, got 'tiny.npz'"),
        ({"grid": {"lr": 0.1}}, r"grid\['lr'\] must be a list, got 0.1"),
        ({"grid": {"lr": "0.1"}}, r"grid\['lr'\] must be a list"),
        ({"seeds": 2}, "seeds must be a list of whole numbers"),
        ({"select": "best"}, "select must be none or last or fqe or bandit, got 'best'"),
        ({"steps": 2.5}, "steps: 2.5 must be a whole number"),
    ],
)
def test_mistakes_about_a_sweep_are_refused_by_name(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        offrl.sweep(**{"algos": ["bc"], "datasets": ["tiny.npz"], "out": tmp_path} | given)


def test_a_sweep_takes_numpys_numbers(tmp_path, pendulum_npz):
    given = {"steps": 1e3, "seeds": np.arange(2), "grid": {"hidden": np.array([8, 16])}, "progress": False}
    result = offrl.sweep(["bc"], [pendulum_npz], env="Pendulum-v1", out=tmp_path, dry_run=True, **given)
    assert len(result.cells) == 4


def test_runs_of_other_kinds_name_the_function_that_resumes_them(tmp_path, pendulum):
    run = offrl.train("bc", pendulum, out=tmp_path, **SHORT)
    path = run.directory / "config.json"
    config = json.loads(path.read_text())
    for kind, module in (("llm", "offrl.llm.session"), ("inventory", "offrl.training.inventory")):
        path.write_text(json.dumps(config | {kind: {}}))
        with pytest.raises(CheckpointError, match=f"is a run of bc: go on with {module}.resume"):
            offrl.resume(run.directory)


def test_the_dataset_is_the_second_argument(tmp_path, pendulum):
    with pytest.raises(TypeError, match="dataset"):
        offrl.train("td3_bc", pendulum, dataset="hopper-medium-v2")
    with pytest.raises(DatasetError, match="did you mean 'hopper-medium-v2'"):
        offrl.train("td3_bc", "hoper-medium-v2", out=tmp_path)
    with pytest.raises(
        ConfigError, match="the dataset is a ndarray: pass a URI, a path, or what OfflineDataset"
    ):
        offrl.train("td3_bc", np.zeros((3, 3)), out=tmp_path)


def test_progress_is_printed_unless_it_is_not_wanted(tmp_path, pendulum, capsys):
    offrl.train("bc", pendulum, out=tmp_path, **SHORT)
    assert capsys.readouterr().out == ""
    offrl.train("bc", pendulum, out=tmp_path, **SHORT | {"progress": True})
    assert "10/10  100%" in capsys.readouterr().out


def test_methods_that_learn_in_an_environment(tmp_path):
    pytest.importorskip("stable_baselines3")
    given = {"env": "Pendulum-v1", "steps": 32, "rollout": 16, "batch_size": 16, "eval_episodes": 1}
    given |= {"out": tmp_path, "progress": False}
    result = offrl.train("ppo", **given)
    assert result.returns.shape == (1,)
    assert offrl.resume(result.directory, progress=False).already_finished
    assert [r.seed for r in offrl.train("ppo", seeds=[1, 0], **given)] == [1, 0]
    tuned = offrl.train("ppo", preset="Pendulum-v1", num_envs=2, **given)
    config = offrl.training.run_dir.RunDir(tuned.directory).config
    assert (config["num_envs"], config["settings"]["lr"], config["steps"]) == (2, 1e-3, 32)


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (None, {"rolout": 3}, "ppo has no setting 'rolout'; did you mean 'rollout'"),
        (None, {"num_env": 3}, "did you mean 'num_envs'"),
        (None, {}, "pass --env ID"),
        (None, {"compile": True}, "ppo learns in an environment and has no --compile"),
        ("hopper-medium-v2", {}, "pass env= instead of data"),
        (None, {"seed_mode": "stacked"}, "pass env= instead of data, runs and seed_mode"),
        (None, {"from_run": "x"}, "pass env= instead of data"),
        (None, {"preset": "Nothing-v1"}, "no preset for 'Nothing-v1'"),
    ],
)
def test_mistakes_about_environments_are_refused_by_name(data, given, message):
    pytest.importorskip("stable_baselines3")
    with pytest.raises(ConfigError, match=message):
        offrl.train("ppo", data, **given)


def test_a_stop_is_an_exception_that_names_the_way_on():
    stopped = Stopped("stopped at step 3; go on with: offrl resume R", 130)
    assert stopped.exit_code == 130
    assert not isinstance(stopped, ValueError | OSError)
