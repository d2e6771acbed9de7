"""A run from its start: what is refused before anything is written, what is on disk at the end, what it costs."""

import csv
import json
import math
import re
import time

import gymnasium
import numpy as np
import pytest
import torch

from offrl.algos import ALGORITHMS, load_algorithm
from offrl.data import minari_layout
from offrl.data.dataset import OfflineDataset
from offrl.data.doctor import recorded_environment
from offrl.data.source import UniformSource
from offrl.errors import ConfigError, DatasetError, MissingExtraError, PolicyError
from offrl.evaluation.groups import group_runs
from offrl.evaluation.runs import read_run
from offrl.nn.policy import load_policy
from offrl.training import run_dir
from offrl.training.build import action_box, dataset_env
from offrl.training.check import source_of, tiny_problem
from offrl.training.options import RunOptions, make_settings, resolve_device, settings_from_json
from offrl.training.progress import Reporter
from offrl.training.runner import resume, start

TINY = {"hidden": 8, "batch_size": 8}
SHORT = {"steps": 12, "log_every": 4, "eval_every": 5, "eval_episodes": 2, "checkpoint_every": 5}


def train(out, data, algorithm="td3_bc", *, settings=None, **options):
    chosen = make_settings(algorithm, TINY | (settings or {}))
    return start(algorithm, chosen, RunOptions(out=out, **SHORT | options), dataset=data)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_directory_is_complete(tmp_path, pendulum):
    result = train(tmp_path, pendulum)
    names = sorted(p.name for p in result.directory.iterdir())
    assert names == sorted(
        [
            "checkpoint-previous.pt",
            "checkpoint-previous.pt.sha256",
            "checkpoint.pt",
            "checkpoint.pt.sha256",
            "command.txt",
            "config.json",
            "eval.csv",
            "final_returns.npz",
            "metrics.csv",
            "policy.json",
            "policy.safetensors",
            "timing.csv",
            "versions.json",
        ]
    )
    assert [row["step"] for row in rows(result.directory / "metrics.csv")] == ["4", "8", "12"]
    evaluations = rows(result.directory / "eval.csv")
    assert [(r["step"], r["episode"]) for r in evaluations] == [
        (s, e) for s in ("5", "10", "12") for e in ("0", "1")
    ]
    assert {r["length"] for r in evaluations} == {"20"}
    assert {r["success"] for r in evaluations} == {""}
    timing = rows(result.directory / "timing.csv")
    assert [row["step"] for row in timing] == ["4", "8", "12"]
    assert all(float(row["steps_per_second"]) > 0 for row in timing)
    assert sorted(float(r["seconds"]) for r in timing) == [float(r["seconds"]) for r in timing]


def test_the_saved_policy_is_the_one_that_was_evaluated(tmp_path, pendulum):
    result = train(tmp_path, pendulum)
    loaded, observations = load_policy(result.directory), torch.randn(7, 3)
    actions, _ = loaded.act(observations)
    assert torch.equal(actions, result.policy.act(observations)[0])
    assert actions.abs().max() <= 2.0  # Pendulum's box


def test_the_config_says_what_ran(tmp_path, pendulum):
    config = json.loads((train(tmp_path, pendulum, seed=4).directory / "config.json").read_text())
    assert config["seed"] == 4
    assert config["env_id"] == "Pendulum-v1"
    assert config["env_kwargs"] == {"max_episode_steps": 20}
    assert config["dataset"] is None
    assert config["dataset_sha256"] == pendulum.sha256
    assert config["dataset_return_mean"] == pytest.approx(pendulum.episode_returns.mean())
    assert config["settings"] == vars(make_settings("td3_bc", TINY))


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, pendulum):
    runs = [train(tmp_path, pendulum, seed=seed).directory for seed in (1, 1, 2)]
    texts = [[(run / name).read_text() for name in ("metrics.csv", "eval.csv")] for run in runs]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[2][0]
    assert texts[0][1] != texts[2][1]


def test_what_the_process_drew_before_does_not_matter(tmp_path, pendulum):
    first = train(tmp_path, pendulum).directory
    torch.rand(7)
    second = train(tmp_path, pendulum).directory
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()


def test_how_often_is_logged_evaluated_and_saved_does_not_change_the_training(tmp_path, pendulum):
    often = train(tmp_path, pendulum, log_every=1, eval_every=3, checkpoint_every=2)
    rarely = train(tmp_path, pendulum, log_every=100, eval_every=0, checkpoint_every=100)
    a, b = (run.policy.state_dict() for run in (often, rarely))
    assert all(torch.equal(a[name], b[name]) for name in a)
    np.testing.assert_array_equal(often.returns, rarely.returns)
    mean = np.mean([float(row["critic_loss"]) for row in rows(often.directory / "metrics.csv")])
    assert float(rows(rarely.directory / "metrics.csv")[0]["critic_loss"]) == pytest.approx(mean, rel=1e-5)


def test_workers_do_not_change_the_scores(tmp_path, pendulum):
    one, two = (train(tmp_path, pendulum, eval_every=0, eval_episodes=6, workers=n) for n in (1, 2))
    np.testing.assert_array_equal(one.returns, two.returns)


def test_without_an_environment_there_are_no_scores(tmp_path, pendulum, capsys):
    data = OfflineDataset(
        pendulum.fields, pendulum.episode_starts, {"action_low": [-2.0], "action_high": [2.0]}
    )
    options = RunOptions(out=tmp_path, **SHORT)
    result = start("bc", make_settings("bc", TINY), options, dataset=data, reporter=Reporter("text", 12))
    assert len(result.returns) == 0
    assert result.scores is None
    assert (
        result.directory / "eval.csv"
    ).read_text() == "step,episode,return,normalized_score,length,success\n"
    assert "training without evaluation (pass --env ID for scores)" in capsys.readouterr().out


def test_a_diverged_run_says_so_once(tmp_path, pendulum, capsys):
    data = OfflineDataset(
        pendulum.fields, pendulum.episode_starts, {"action_low": [-2.0], "action_high": [2.0]}
    )
    settings = make_settings("td3_bc", TINY | {"reward_scale": 1e30})
    start("td3_bc", settings, RunOptions(out=tmp_path, **SHORT), dataset=data, reporter=Reporter("text", 12))
    out = capsys.readouterr().out
    assert out.count("the run has diverged") == 1
    assert re.search(r"critic_loss is (inf|nan) at step 4: the run has diverged", out)


def test_without_episodes_a_broken_policy_does_not_count_as_finished(tmp_path, pendulum, monkeypatch):
    data = OfflineDataset(
        pendulum.fields, pendulum.episode_starts, {"action_low": [-2.0], "action_high": [2.0]}
    )
    sample = UniformSource.sample

    def sampling(self, generators):
        batch = sample(self, generators)
        batch.actions.fill_(torch.nan)
        return batch

    monkeypatch.setattr(UniformSource, "sample", sampling)
    message = r"0 of 1 runs are finished; not seed 0 in .* \(the policy's weights are not finite\)"
    with pytest.raises(PolicyError, match=message):
        start("bc", make_settings("bc", TINY), RunOptions(out=tmp_path, **SHORT), dataset=data)
    (config,) = tmp_path.glob("*/*/*/config.json")
    assert not (config.parent / "final_returns.npz").exists()
    with pytest.raises(PolicyError, match=message):
        resume(config.parent, dataset=data)


def refused(tmp_path, error, message, data, algorithm="td3_bc", **options):
    """The run is refused with ``message``, and nothing is written."""
    with pytest.raises(error, match=message):
        train(tmp_path / "runs", data, algorithm, **options)
    assert not (tmp_path / "runs").exists()


def test_bad_runs_are_refused_before_anything_is_written(tmp_path, pendulum, monkeypatch):
    refused(tmp_path, ConfigError, "pass --dataset", None)
    refused(tmp_path, ConfigError, "O=3, A=1 but MountainCarContinuous-v0 has observations", pendulum,
            env="MountainCarContinuous-v0")  # fmt: skip
    refused(tmp_path, ConfigError, "only boxes", pendulum, env="CartPole-v1")
    refused(tmp_path, ConfigError, "Nowhere-v0", pendulum, env="Nowhere-v0")
    refused(tmp_path, ConfigError, "device 'tpu' cannot be used", pendulum, device="tpu")
    fields = pendulum.fields | {"actions": pendulum.fields["actions"] * 1.5}
    wide = OfflineDataset(fields, pendulum.episode_starts, pendulum.metadata)
    refused(tmp_path, DatasetError, r"at row \d+ lies outside \[\[-2.0\], \[2.0\]\]", wide)
    same = OfflineDataset(pendulum.fields | {"rewards": np.zeros(pendulum.num_steps, np.float32)},
                          pendulum.episode_starts, pendulum.metadata)  # fmt: skip
    refused(tmp_path, DatasetError, "same return", same, "iql", settings={"return_range_scaling": True})
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(tmp_path, ConfigError, "needs a C.. compiler", pendulum, compile=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(tmp_path, MissingExtraError, r"offrl\[wandb\]", pendulum, wandb=True)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_whose_episodes_never_end_is_refused_at_once(tmp_path, pendulum):
    """It would otherwise be noticed at the first evaluation, after thousands of updates."""
    spec = gymnasium.spec("Pendulum-v1")
    gymnasium.register("offrl-test/Endless-v0", spec.entry_point)
    try:
        refused(tmp_path, ConfigError, "no time limit", pendulum, env="offrl-test/Endless-v0")
    finally:
        del gymnasium.registry["offrl-test/Endless-v0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"log_every": -1}, "log_every must be 1 or more"),
        ({"checkpoint_every": 0}, "checkpoint_every must be 1 or more"),
        ({"eval_episodes": 0}, "eval_episodes must be 1 or more"),
        ({"workers": 0}, "workers must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"eval_every": -5}, "eval_every must be 0 or more"),
        ({"threads": -1}, "threads must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RunOptions(**options)


def test_settings_are_refused_by_name_and_range():
    with pytest.raises(ConfigError, match="td3_bc has no setting 'alhpa'; did you mean 'alpha'"):
        make_settings("td3_bc", {"alhpa": 1.0})
    with pytest.raises(ConfigError, match=r"it has .*alpha"):
        make_settings("td3_bc", {"zzz": 1.0})
    with pytest.raises(ConfigError, match=r"did you mean 0\.005"):
        make_settings("td3_bc", {"tau": 0.995})


def test_a_preset_is_the_longest_prefix_and_given_values_win():
    assert make_settings("td3_bc", {}, "antmaze-umaze-v2").reward_shift == -1.0
    assert make_settings("td3_bc", {"reward_shift": 0.5}, "antmaze-umaze-v2").reward_shift == 0.5
    assert make_settings("prdc", {}, "halfcheetah-medium-v2").alpha == 40.0
    with pytest.raises(ConfigError, match=r"no preset for 'pendulum'; presets .*antmaze-"):
        make_settings("td3_bc", {}, "pendulum")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_settings_survive_json(algorithm):
    _, method = load_algorithm(algorithm)
    settings = method.config()
    assert settings_from_json(method.config, json.loads(json.dumps(vars(settings)))) == settings
    with pytest.raises(ConfigError, match="there is no setting 'nothing'"):
        settings_from_json(method.config, {"nothing": 1})
    with pytest.raises(ConfigError, match="lr is True, it must be of the kind"):
        settings_from_json(method.config, {"lr": True})


@pytest.mark.parametrize(
    ("algorithm", "name"), [("cql", "target_gap"), ("decision_transformer", "target_return")]
)
def test_a_setting_that_is_off_by_default_takes_numbers_alone(algorithm, name):
    config = load_algorithm(algorithm)[1].config
    for value in (None, 5, 2.5):
        assert getattr(settings_from_json(config, {name: value}), name) == value
    for value in ("abc", True, [1.0]):
        with pytest.raises(ConfigError, match=f"{name} is .*, it must be float or None"):
            settings_from_json(config, {name: value})


def test_the_action_box_is_the_environments_then_the_datas_then_one(pendulum):
    table = pendulum.transitions()
    low, high = action_box(pendulum, table, dataset_env(pendulum, None))
    assert (low.tolist(), high.tolist()) == ([-2.0], [2.0])
    narrow = OfflineDataset(
        pendulum.fields | {"actions": pendulum.fields["actions"] / 4}, pendulum.episode_starts, {}
    )
    low, high = action_box(narrow, narrow.transitions(), None)
    assert (low.tolist(), high.tolist()) == ([-1.0], [1.0])
    narrow.metadata.update(action_low=[-0.5], action_high=[0.75])
    low, high = action_box(narrow, narrow.transitions(), None)
    assert (low.tolist(), high.tolist()) == ([-0.5], [0.75])
    narrow.metadata.update(action_low=[-math.inf])
    with pytest.raises(ConfigError, match="must be finite"):
        action_box(narrow, narrow.transitions(), None)


def test_actions_may_leave_the_box_by_rounding_only(pendulum):
    """1e-4 of the box's width of 4: 2.0003 passes, 2.0005 does not."""
    table = pendulum.transitions()
    spec = dataset_env(pendulum, None)
    table.actions[3] = 2.0003
    action_box(pendulum, table, spec)
    table.actions[3] = 2.0005
    with pytest.raises(DatasetError, match="at row 3"):
        action_box(pendulum, table, spec)


def test_the_environment_of_the_data_keeps_its_arguments_and_another_does_not(pendulum):
    assert dataset_env(pendulum, "Pendulum-v1").kwargs == {"max_episode_steps": 20}
    assert dataset_env(pendulum, "Hopper-v5").kwargs == {}
    assert dataset_env(OfflineDataset(pendulum.fields, pendulum.episode_starts), None) is None


def test_a_module_that_only_the_data_name_is_not_imported(pendulum, tmp_path, monkeypatch):
    """Gymnasium imports MODULE for an id MODULE:NAME: a person may ask for it, a file may not."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    pendulum.metadata |= {"env_id": "trap:Trap-v0", "env_kwargs": {}}
    with pytest.raises(ConfigError, match="would import the module 'trap'; pass --env trap:Trap-v0 if"):
        dataset_env(pendulum, None)
    with pytest.raises(DatasetError, match="would import the module 'trap'; it is not replayed"):
        recorded_environment(pendulum)
    assert minari_layout.environment(pendulum)[0] is None
    assert not (tmp_path / "trace").exists()
    assert dataset_env(pendulum, "trap:Trap-v0").env_id == "trap:Trap-v0"
    pendulum.metadata["env_id"] = "sys:Pendulum-v1"  # imported already
    assert dataset_env(pendulum, None).env_id == "sys:Pendulum-v1"


def test_devices_are_checked():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    for name in ("cuda:99", "gpu", ""):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used"):
            resolve_device(name)


def test_the_command_is_recorded(tmp_path, pendulum, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/offrl", "train", "bc", "--dataset", "a file.npz"])
    assert (
        train(tmp_path, pendulum).directory / "command.txt"
    ).read_text() == "offrl train bc --dataset 'a file.npz'\n"
    monkeypatch.setattr("sys.argv", ["my_script.py", "--fast"])
    assert (train(tmp_path, pendulum).directory / "command.txt").read_text() == "my_script.py --fast\n"


def test_no_commit_is_recorded_outside_a_checkout(tmp_path, monkeypatch):
    run_dir._commit.cache_clear()
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / "offrl" / "training" / "run_dir.py"))
    try:
        assert run_dir._commit() is None
    finally:
        run_dir._commit.cache_clear()


def test_loop_logging_and_checkpoints_cost_little_beside_the_updates(tmp_path, pendulum):
    """A whole run of BC against the same updates alone. The target is 3 % of TD3+BC; the margin here is wide.

    An update of BC costs a fifth of TD3+BC's, and these few updates pay for the start and the end of a run and
    for checkpoints a hundred times as frequent as by default.
    """
    data = OfflineDataset(
        pendulum.fields, pendulum.episode_starts, {"action_low": [-2.0], "action_high": [2.0]}
    )
    steps, ratios = 100, []
    for _ in range(2):
        problem = tiny_problem()
        learner, source = (
            load_algorithm("bc")[1].learner(problem, make_settings("bc", {})),
            source_of(problem, 256),
        )
        generators = problem.streams("data")
        began = time.process_time()
        for _step in range(steps):
            learner.update(source.sample(generators))
        bare = time.process_time() - began
        began = time.process_time()
        options = RunOptions(out=tmp_path, steps=steps, log_every=25, checkpoint_every=50)
        start("bc", make_settings("bc", {}), options, dataset=data)
        ratios.append((time.process_time() - began) / bare)
    assert min(ratios) < 2.0, ratios


class Reach(gymnasium.Env):
    """As OGBench's single tasks: -1 a step, then success (0, the end) in about half of the episodes."""

    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.lucky = 3, self.np_random.random() < 0.5
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        success = self.left == 0 and self.lucky
        return np.zeros(2, np.float32), float(success) - 1, success, False, {"success": success}


def test_scores_of_single_tasks_are_success_rates_in_tables_results_and_reports(tmp_path):
    """Returns are -5 or -2, never a score: each episode scores 100 times its success, also when read again."""
    env_id = "toy-reach-singletask-v0"
    gymnasium.register(env_id, Reach, max_episode_steps=5)
    generator = np.random.default_rng(0)
    data = OfflineDataset.from_arrays(
        *(generator.uniform(-1, 1, (40, 2)) for _ in range(2)),
        -np.ones(40),
        np.zeros(40, bool),
        np.arange(40) % 5 == 4,
        metadata={"env_id": env_id, "reference_returns": [0.0, 1.0], "name": "toy"},
    )
    try:
        result = train(tmp_path / "run", data, eval_episodes=8, final_episodes=20)
    finally:
        del gymnasium.registry[env_id]
    evaluations = rows(result.directory / "eval.csv")
    assert {row["success"] for row in evaluations} == {"0", "1"}
    for row in evaluations:
        assert float(row["normalized_score"]) == 100 * int(row["success"])
        assert float(row["return"]) == (-2.0 if row["success"] == "1" else -5.0)
    assert set(result.scores) == {0.0, 100.0}
    np.testing.assert_array_equal(result.scores, 100.0 * (result.returns == -2))
    again = resume(result.directory, dataset=data, reporter_mode="quiet")
    np.testing.assert_array_equal(again.scores, result.scores)
    record = read_run(result.directory)
    (task,) = group_runs([record])
    (group,) = task.groups
    np.testing.assert_array_equal(
        group.values(record, record.final_returns, record.final_successes), result.scores
    )
    first = [float(row["normalized_score"]) for row in evaluations[:8]]
    assert group.run_curve(record).values[0] == np.mean(first)
    assert task.data_level is None
