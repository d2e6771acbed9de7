"""Online runs from start to finish, cut off and resumed, bit for bit where a method promises it."""

import dataclasses
import json
import tempfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl.algos import load_online
from offrl.algos.n_pg_igt import ALGORITHM, NPGIGT
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.environments import env_spec
from offrl.evaluation.runs import read_run
from offrl.nn.policy import load_policy
from offrl.online import run_callback, runner
from offrl.online.options import OnlineOptions
from offrl.online.replayable import replayable
from offrl.online.runner import resume, start
from offrl.training.checkpoint import load_checkpoint, save_checkpoint
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir

SETTINGS = ALGORITHM.config(trajectories=2, hidden=8, step_size=0.05)
EXACT = ("metrics.csv", "eval.csv", "policy.safetensors", "final_returns.npz")


def options(tmp_path, env="TinyPendulum-v0", **given):
    facts = {
        "steps": 400,
        "log_every": 50,
        "eval_every": 100,
        "eval_episodes": 2,
        "checkpoint_every": 90,
        "seed": 3,
    }
    return OnlineOptions(env=env, out=tmp_path, **facts | given)


def files(run):
    return {name: (run / name).read_bytes() for name in EXACT}


class PowerCutError(Exception):
    """What no code expects."""


def cut_off(monkeypatch, iteration, run_options):
    """Start a run that dies in ``iteration``; returns its directory."""
    step_size = NPGIGT.step_size

    def dying(self):
        if self._n_updates == iteration:
            raise PowerCutError
        return step_size(self)

    with monkeypatch.context() as patch:
        patch.setattr(NPGIGT, "step_size", dying)
        with pytest.raises(PowerCutError):
            start("n_pg_igt", SETTINGS, run_options)
    (found,) = run_options.out.glob("*/*/*")
    return found


def test_rewards_are_normalized_with_the_methods_discount(tmp_path):
    """The running return, whose standard deviation divides the rewards, is that of the method."""
    method, run_options = load_online("ppo"), options(tmp_path, normalize_rewards=True)
    settings = method.config(discount=0.9, hidden=8)
    config = run_callback.run_config("ppo", {}, run_options, env_spec("TinyPendulum-v0"))
    model = runner.build(method, settings, config)
    assert model.get_vec_normalize_env().gamma == model.gamma == 0.9


def test_a_run_directory_can_be_read_evaluated_and_loaded(tmp_path):
    result = start("n_pg_igt", SETTINGS, options(tmp_path))
    record = read_run(result.directory)
    assert record.finished
    assert (record.algorithm, record.dataset, record.seed) == ("n_pg_igt", "TinyPendulum-v0", 3)
    assert [e.step for e in record.evaluations] == [100, 200, 300, 400]
    assert np.array_equal(record.evaluations[-1].returns, result.returns)
    assert record.final_returns is not None
    assert record.metrics.steps[-1] == 400
    assert record.steps_per_second > 0
    x = torch.randn(5, 3)
    assert torch.equal(load_policy(result.directory)(x), result.policy(x))
    description = json.loads((result.directory / "policy.json").read_text())
    assert description["extra"]["env_id"] == "TinyPendulum-v0"


@pytest.mark.parametrize(
    "more", [{}, {"num_envs": 2, "normalize_observations": True, "normalize_rewards": True}]
)
def test_a_run_that_died_resumes_bit_for_bit(tmp_path, monkeypatch, more):
    """It dies after rows that no checkpoint knows; statistics of observations and rewards come back too."""
    whole = start("n_pg_igt", SETTINGS, options(tmp_path / "whole", **more))
    dead = cut_off(monkeypatch, 7, options(tmp_path / "dead", **more))
    rows = (dead / "eval.csv").read_text().count("\n")
    assert rows > 1
    result = resume(dead)
    assert files(dead) == files(whole.directory)
    assert np.array_equal(result.returns, whole.returns)
    assert not result.already_finished
    assert resume(dead).already_finished


def test_a_resume_may_evaluate_with_other_workers(tmp_path, monkeypatch):
    """The scores do not depend on them, but the option is not forgotten."""
    dead = cut_off(monkeypatch, 7, options(tmp_path))
    made = []

    class Watched(run_callback.Evaluator):
        def __init__(self, env, workers=1):
            made.append(workers)
            super().__init__(env, 1)

    monkeypatch.setattr(run_callback, "Evaluator", Watched)
    resume(dead, workers=3)
    assert made == [3]


def test_before_its_first_checkpoint_a_run_starts_over(tmp_path, monkeypatch):
    whole = start("n_pg_igt", SETTINGS, options(tmp_path / "whole"))
    dead = cut_off(monkeypatch, 1, options(tmp_path / "dead"))
    resume(dead)
    assert files(dead) == files(whole.directory)


def test_a_run_that_died_between_its_last_checkpoint_and_its_end_repeats_no_row(tmp_path, monkeypatch):
    whole = start("n_pg_igt", SETTINGS, options(tmp_path / "whole"))

    def dying(*_):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "finish", dying)
        with pytest.raises(PowerCutError):
            start("n_pg_igt", SETTINGS, options(tmp_path / "dead"))
    (dead,) = (tmp_path / "dead").glob("*/*/*")
    resume(dead)
    assert files(dead) == files(whole.directory)


@pytest.mark.parametrize("iteration", [7, 1])
def test_the_mirror_has_each_row_of_the_table_once(tmp_path, monkeypatch, iteration):
    """It dies after rows that no checkpoint knows, or before its first checkpoint."""
    dead = cut_off(monkeypatch, iteration, options(tmp_path, tensorboard=True, log_every=1, eval_every=10))
    resume(dead)
    events = EventAccumulator(str(dead / "tensorboard")).Reload()
    record = read_run(dead)
    assert [e.step for e in events.Scalars("eval/return")] == [e.step for e in record.evaluations]
    name = next(iter(record.metrics.columns))
    assert [e.step for e in events.Scalars(f"train/{name}")] == record.metrics.steps.tolist()


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    """Asked during the third iteration, it stops before the fourth with a checkpoint; exit code 128 + 15."""
    whole = start("n_pg_igt", SETTINGS, options(tmp_path / "whole"))
    callbacks, step_size = [], NPGIGT.step_size
    made = runner.RunCallback

    def keep(*given, **named):
        callbacks.append(made(*given, **named))
        return callbacks[-1]

    def asking(self):
        if self._n_updates == 2:
            callbacks[0].asked.append(15)
        return step_size(self)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "RunCallback", keep)
        patch.setattr(NPGIGT, "step_size", asking)
        with pytest.raises(Stopped, match="stopped at step 120; go on with: offrl resume") as stopped:
            start("n_pg_igt", SETTINGS, options(tmp_path / "cut"))
    assert stopped.value.exit_code == 143
    (run,) = (tmp_path / "cut").glob("*/*/*")
    resume(run)
    assert files(run) == files(whole.directory)


def test_evaluations_see_theta_of_their_step_and_change_nothing(tmp_path):
    """With and without evaluations the run is the same."""
    one = start("n_pg_igt", SETTINGS, options(tmp_path / "one"))
    other = start("n_pg_igt", SETTINGS, options(tmp_path / "other", eval_every=0, checkpoint_every=1000))
    assert (one.directory / "metrics.csv").read_bytes() == (other.directory / "metrics.csv").read_bytes()
    assert [e.step for e in read_run(other.directory).evaluations] == [400]


def test_nothing_is_left_outside_the_runs_folder(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("SB3_LOGDIR", raising=False)
    start("n_pg_igt", SETTINGS, options(tmp_path))
    assert list(temporary.iterdir()) == []


def test_the_episodes_under_way_at_the_end_are_finished(tmp_path):
    """390 steps asked, 400 played in whole iterations of 40; the tables end at 390, and can be read."""
    result = start("n_pg_igt", SETTINGS, options(tmp_path, steps=390, log_every=1))
    record = read_run(result.directory)
    assert [e.step for e in record.evaluations] == [100, 200, 300, 390]
    assert record.metrics.steps.tolist() == [*range(40, 390, 40), 390]


def test_evaluations_are_at_the_same_steps_whatever_the_number_of_environments(tmp_path):
    """Three environments pass step 100 at 102."""
    result = start("n_pg_igt", SETTINGS, options(tmp_path, num_envs=3))
    assert [e.step for e in read_run(result.directory).evaluations] == [100, 200, 300, 400]


def test_what_cannot_run_is_refused_before_a_folder_is_made(tmp_path):
    if "EndlessPendulum-v0" not in gymnasium.registry:
        entry = "gymnasium.envs.classic_control:PendulumEnv"
        gymnasium.register("EndlessPendulum-v0", entry_point=entry)
    for given, message in (
        ({"env": None}, "n_pg_igt learns in an environment: pass --env ID"),
        ({"env": "CartPole-v1"}, "only boxes of shape"),
        ({"env": "NoSuch-v0"}, "NoSuch"),
        ({"device": "cuda:77"}, "cannot be used"),
        ({"env": "EndlessPendulum-v0"}, "EndlessPendulum-v0 has no time limit"),
    ):
        with pytest.raises(ConfigError, match=message):
            start("n_pg_igt", SETTINGS, options(tmp_path, **given))
    with pytest.raises(ConfigError, match="no time limit"):
        run_callback.RunCallback.new("ppo", options(tmp_path, env="EndlessPendulum-v0"))
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_edited_files_are_refused(tmp_path, monkeypatch):
    dead = cut_off(monkeypatch, 7, options(tmp_path))
    config = json.loads((dead / "config.json").read_text())
    changed = config | {"settings": config["settings"] | {"hidden": 9}}
    (dead / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="is of another run: its settings is "):
        resume(dead)
    for name, value in (("steps", 500), ("num_envs", 2), ("normalize_rewards", True), ("seed", 4)):
        (dead / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(CheckpointError, match=f"is of another run: its {name} is {config[name]}"):
            resume(dead)
    (dead / "config.json").write_text(json.dumps(config | {"settings": {"alpha": 1}}))
    with pytest.raises(CheckpointError, match="there is no setting 'alpha'"):
        resume(dead)
    (dead / "config.json").write_text(json.dumps(config | {"threads": 3}))
    with pytest.raises(CheckpointError, match="would not be exact"):
        resume(dead)
    (dead / "config.json").write_text(json.dumps(config | {"algorithm": "harpg"}))
    with pytest.raises(CheckpointError, match="is of another run: its algorithm is n_pg_igt"):
        resume(dead)


def test_options_are_recorded(tmp_path):
    run_options = options(tmp_path, steps=40, num_envs=2, eval_every=0)
    config = RunDir(start("n_pg_igt", SETTINGS, run_options).directory).config
    assert config["settings"] == dataclasses.asdict(SETTINGS)
    names = {f.name for f in dataclasses.fields(OnlineOptions)} - {"env", "out"}
    assert {name: config[name] for name in names} == {name: getattr(run_options, name) for name in names}


OFF = {"learning_starts": 40, "batch_size": 8, "hidden": 8}
ON = {"rollout": 60, "batch_size": 20, "hidden": 8}
SMALL = {"sac": OFF, "mdpo_off": OFF, "pmoe_sac": OFF, "ppo": ON, "mdpo_on": ON, "pmoe_ppo": ON}


@pytest.mark.parametrize("name", list(SMALL))
def test_evaluations_and_checkpoints_take_no_random_number_of_training(name, tmp_path):
    settings, runs = load_online(name).config(**SMALL[name]), []
    for out, given in (("rarely", (0, 1000)), ("often", (50, 50))):
        more = dict(zip(("eval_every", "checkpoint_every"), given, strict=True))
        runs.append(start(name, settings, options(tmp_path / out, steps=240, **more)).directory)
    for file in ("metrics.csv", "policy.safetensors"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()


def interrupted(monkeypatch, name, at, given):
    """Start a run of SMALL that is asked to stop at step ``at``; its directory."""
    made, settings = runner.RunCallback, load_online(name).config(**SMALL[name])

    class Asking(made):
        def _on_step(self):
            if self.num_timesteps >= at:
                self.asked.append(15)
            return super()._on_step()

    with monkeypatch.context() as patch:
        patch.setattr(runner, "RunCallback", Asking)
        with pytest.raises(Stopped, match="go on with: offrl resume"):
            start(name, settings, given)
    (run,) = given.out.glob("*/*/*")
    return run


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"normalize_observations": True, "normalize_rewards": True, "num_envs": 2, "record": "steps.hdf5"},
    ],
    ids=["plain", "normalized"],
)
@pytest.mark.parametrize("name", list(SMALL))
def test_a_run_stopped_within_an_episode_goes_on_bit_for_bit(tmp_path, monkeypatch, name, more):
    """Episodes under way, random actions, running statistics, replay buffer and recorded steps."""
    runs = []
    for out in ("whole", "cut"):
        (tmp_path / out).mkdir()
        monkeypatch.chdir(tmp_path / out)
        given = options(tmp_path / out / "runs", steps=320, log_every=1, checkpoint_every=1000, **more)
        if out == "whole":
            runs.append(start(name, load_online(name).config(**SMALL[name]), given).directory)
        else:
            runs.append(interrupted(monkeypatch, name, 206, given))
    monkeypatch.chdir(tmp_path)
    resume(runs[1])
    assert files(runs[1]) == files(runs[0])
    if "record" in more:
        one, other = (load_dataset(str(tmp_path / out / "steps.hdf5")) for out in ("whole", "cut"))
        assert one.sha256 == other.sha256


def test_random_actions_before_the_first_update_go_on_too(tmp_path, monkeypatch):
    settings = load_online("sac").config(**OFF | {"learning_starts": 100})
    whole = start("sac", settings, options(tmp_path / "whole", steps=160)).directory
    monkeypatch.setitem(SMALL, "sac", OFF | {"learning_starts": 100})
    cut = interrupted(monkeypatch, "sac", 33, options(tmp_path / "cut", steps=160))
    resume(cut)
    assert files(cut) == files(whole)


class Drunk(PendulumEnv):
    """Draws from where nobody can look."""

    def step(self, action):
        self.state = self.state + np.random.default_rng().normal(size=2) * 1e-3
        return super().step(action)


def test_an_environment_that_comes_to_another_state_is_refused_or_starts_anew(tmp_path, monkeypatch, capsys):
    if "Drunk-v0" not in gymnasium.registry:
        gymnasium.register("Drunk-v0", entry_point=Drunk, max_episode_steps=20)
    more = {"normalize_observations": True, "num_envs": 2, "log_every": 1, "checkpoint_every": 1000}
    run = interrupted(
        monkeypatch, "sac", 206, options(tmp_path, env="Drunk-v0", steps=300, eval_every=0, **more)
    )
    state, _ = load_checkpoint(run)
    with pytest.raises(CheckpointError, match="does not come to the same state .* add --allow-inexact"):
        resume(run)
    model, seen, restored = state["model"], [], runner.restore_model

    def watched(other, saved, *, strict):
        assert not restored(other, saved, strict=strict)
        seen.append(other)
        assert other._last_episode_starts.all()
        begun = [(e.first, e.number) for e in replayable(other.env).envs]
        assert begun == [(e["first"], e["number"] + 1) for e in model["under_way"]]
        assert begun[0][1] > 1
        mean, var, _ = model["statistics"]["obs_rms"]
        expected = (other.env.get_original_obs() - mean.numpy()) / np.sqrt(var.numpy() + 1e-8)
        np.testing.assert_allclose(other._last_obs, np.clip(expected, -10, 10), rtol=1e-5, atol=1e-5)

    monkeypatch.setattr(runner, "restore_model", watched)
    resume(run, allow_inexact=True, reporter_mode="text")
    assert "agrees with an uninterrupted one in distribution only" in capsys.readouterr().out
    rows = len(model["buffer"]["observations"])
    assert torch.equal(
        torch.from_numpy(seen[0].replay_buffer.observations[:rows]), model["buffer"]["observations"]
    )
    assert seen[0].replay_buffer.pos == 150
    table = read_run(run).metrics
    assert (np.diff(table.steps) > 0).all()


def test_a_checkpoint_without_episodes_is_gone_on_from_with_new_ones(tmp_path, monkeypatch):
    """As the first versions wrote them."""
    run = interrupted(monkeypatch, "sac", 206, options(tmp_path, steps=300, eval_every=0))
    state, _ = load_checkpoint(run)
    for name in ("under_way", "last", "random_actions"):
        del state["model"][name]
    save_checkpoint(run, {name: value for name, value in state.items() if name != "format"})
    with pytest.raises(CheckpointError, match="add --allow-inexact to go on with new episodes"):
        resume(run)
    assert np.isfinite(resume(run, allow_inexact=True).returns).all()


def test_metrics_that_waited_for_their_row_are_in_it_after_a_resume(tmp_path, monkeypatch):
    """MDPO logs an update with the next rollout's row; the stop falls between them."""
    given = options(tmp_path, steps=360, eval_every=0, log_every=1, checkpoint_every=1000)
    run = interrupted(monkeypatch, "mdpo_on", 170, given)
    state, _ = load_checkpoint(run)
    waiting = state["pending"]["train/value_loss"]
    resume(run)
    table = read_run(run).metrics
    at = table.steps.tolist().index(240)
    assert float(table.columns["value_loss"][at]) == pytest.approx(waiting, rel=1e-6)


def test_a_run_that_is_too_short_to_learn_says_so(tmp_path, capsys):
    settings = load_online("sac").config(**OFF)
    start("sac", settings, options(tmp_path, steps=40, eval_every=0), reporter=Reporter("text", 40))
    assert "no update will be made: learning_starts is 40, steps 40" in capsys.readouterr().out


def test_the_last_update_is_in_the_last_row(tmp_path):
    """stable-baselines3 dumps its log before it learns from a rollout; a row would have been due later."""
    given = options(tmp_path, steps=60, eval_every=0, log_every=1000)
    table = read_run(start("ppo", load_online("ppo").config(**ON), given).directory).metrics
    assert table.steps.tolist() == [60]
    assert np.isfinite(table.columns["value_loss"]).all()


def test_a_second_interrupt_names_the_way_back(tmp_path, monkeypatch):
    def twice(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(NPGIGT, "step_size", twice)
    with pytest.raises(
        Stopped, match="stopped at once; go on from the last checkpoint with: offrl resume"
    ) as stop:
        start("n_pg_igt", SETTINGS, options(tmp_path))
    assert stop.value.exit_code == 130


def test_a_full_disk_names_the_way_back(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(run_callback, "save_checkpoint", full)
    with pytest.raises(OSError, match="no space left") as error:
        start("n_pg_igt", SETTINGS, options(tmp_path))
    assert error.value.__notes__[0].startswith("go on with: offrl resume ")


@pytest.mark.parametrize(("cores", "taken"), [(2, 2), (16, 4)])
def test_no_number_of_threads_is_all_cores_and_at_most_four(tmp_path, monkeypatch, cores, taken):
    """And what was taken is on record, so that a resumed run takes as many."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run = start("n_pg_igt", SETTINGS, options(tmp_path, steps=40, eval_every=0, threads=0))
    assert taken in asked
    assert set(asked) <= {1, taken}
    assert RunDir(run.directory).config["threads"] == taken


def test_what_was_learned_after_the_last_whole_episode_is_in_the_metrics(tmp_path):
    """Off-policy methods log at the ends of episodes; this run ends before its first one."""
    settings = load_online("sac").config(learning_starts=5, batch_size=4, hidden=8, buffer_size=100)
    run = start("sac", settings, options(tmp_path, steps=15, eval_every=0))
    metrics = read_run(run.directory).metrics
    assert metrics.steps.tolist() == [15]
    assert np.isfinite(metrics.columns["critic_loss"]).all()
