"""The callback on stable-baselines3's own algorithms."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Image, configure

from offrl.algos import load_online
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.runs import read_run
from offrl.nn.policy import load_policy
from offrl.online.options import OnlineOptions
from offrl.online.run_callback import RunCallback
from offrl.online.runner import resume


def record(tmp_path, algorithm, model, steps=150):
    options = OnlineOptions(env="TinyPendulum-v0", steps=steps, out=tmp_path, log_every=1, eval_every=60)
    callback = RunCallback.new(algorithm, options, {"gamma": model.gamma})
    model.learn(steps, callback=callback, log_interval=1)
    callback.close()
    return callback


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_their_runs_become_run_directories(tmp_path, kind):
    settings = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
    if kind == "ppo":
        model = PPO("MlpPolicy", "TinyPendulum-v0", n_steps=40, batch_size=20, n_epochs=1, **settings)
    else:
        model = SAC(
            "MlpPolicy", "TinyPendulum-v0", learning_starts=20, batch_size=16, buffer_size=500, **settings
        )
    callback = record(tmp_path, kind, model)
    run = read_run(callback.run.path)
    assert run.finished
    assert [e.step for e in run.evaluations] == [60, 120, 150]
    assert run.settings == {"gamma": 0.99}
    names = {"ppo": "value_loss", "sac": "critic_loss"}
    assert np.isfinite(run.metrics.columns[names[kind]]).any()
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    ours = load_policy(callback.run.path)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours, model.predict(x, deterministic=True)[0], atol=1e-5)


def test_every_evaluation_has_episodes_of_its_own(tmp_path):
    """Their stream is the step."""
    options = OnlineOptions(env="TinyPendulum-v0", steps=150, out=tmp_path, eval_every=60, seed=7)
    callback = RunCallback.new("ppo", options)
    evaluator, seen = callback.evaluator, []

    def watched(policy, episodes, **given):
        seen.append((given["seed"], given["stream"]))
        return evaluator(policy, episodes, **given)

    callback.evaluator = watched
    PPO("MlpPolicy", "TinyPendulum-v0", n_steps=50, batch_size=25, device="cpu").learn(150, callback=callback)
    callback.evaluator = evaluator
    callback.close()
    assert seen == [(7, 60), (7, 120), (7, 150)]


class DiedError(Exception):
    """What no code expects."""


class Die(BaseCallback):
    """Ends training in the middle."""

    def _on_step(self):
        if self.num_timesteps == 100:
            raise DiedError
        return True


def test_a_run_of_a_foreign_model_is_not_resumed_with_one_of_ours(tmp_path):
    """'ppo' with settings by their names, or none at all, would build another model than the one that died."""
    options = OnlineOptions(env="TinyPendulum-v0", steps=200, out=tmp_path, checkpoint_every=40)
    callback = RunCallback.new("ppo", options, metrics=load_online("ppo").metrics)
    model = PPO("MlpPolicy", "TinyPendulum-v0", n_steps=40, batch_size=20, n_epochs=1, device="cpu")
    with pytest.raises(DiedError):
        model.learn(200, callback=[callback, Die()])
    callback.close()
    assert (callback.run.path / "policy.safetensors").exists()
    assert not (callback.run.path / "checkpoint.pt").exists()  # nobody could go on with it
    with pytest.raises(ConfigError, match="is of a model built in Python: go on there"):
        resume(callback.run.path)


class Logs(BaseCallback):
    """Logs what is no number."""

    def _on_training_start(self):
        self.logger.record("hparams", HParam({"lr": 1.0}, {"x": 0.0}), exclude=("stdout", "csv"))

    def _on_step(self):
        self.logger.record("picture", Image(torch.zeros(3, 2, 2), "CHW"), exclude=("stdout", "csv"))
        return True


def test_models_of_ones_own_may_log_pictures_and_save_memory(tmp_path):
    options = OnlineOptions(env="TinyPendulum-v0", steps=60, out=tmp_path, checkpoint_every=25)
    for given in (
        {},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ):
        callback = RunCallback.new("sac", options)
        model = SAC("MlpPolicy", "TinyPendulum-v0", buffer_size=50, learning_starts=20, device="cpu", **given)
        model.learn(60, callback=[callback, Logs()])
        callback.close()
        assert read_run(callback.run.path).finished


def test_recording_needs_the_environments_that_record(tmp_path):
    options = OnlineOptions(env="TinyPendulum-v0", steps=40, out=tmp_path, record=str(tmp_path / "x.hdf5"))
    callback = RunCallback.new("ppo", options)
    model = PPO("MlpPolicy", "TinyPendulum-v0", n_steps=40, batch_size=20, n_epochs=1, device="cpu")
    with pytest.raises(ConfigError, match="record needs"):
        model.learn(40, callback=callback)
    assert model.num_timesteps == 0
    callback.close()


def test_rows_hold_means_of_what_was_logged_since_the_last(tmp_path):
    """Dumps at steps 10, 20, 30, 40 with 1, 3, 5, 9; a row every 20 steps."""
    options = OnlineOptions(env="TinyPendulum-v0", steps=100, out=tmp_path, log_every=20)
    callback = RunCallback.new("own", options, metrics=("loss",))
    model = SAC("MlpPolicy", gymnasium.make("TinyPendulum-v0"), buffer_size=10, device="cpu")
    model.set_logger(configure(None, []))
    callback.init_callback(model)
    callback.on_training_start({}, {})
    for step, loss in ((10, 1.0), (20, 3.0), (30, 5.0), (40, 9.0)):
        model.num_timesteps = step
        model.logger.record("train/loss", loss)
        model.logger.record("train/other", 7.0)
        model.logger.dump(step)
    callback.close()
    header, *rows = (callback.run.path / "metrics.csv").read_text().splitlines()
    assert header == "step,loss,ep_rew_mean,ep_len_mean"
    assert rows == ["20,2.0,,", "40,7.0,,"]


def test_a_model_that_cannot_be_written_down_is_refused_before_it_learns(tmp_path):
    """Not at the first evaluation or checkpoint, which without --eval-every is the end of the training."""
    options = OnlineOptions(env="TinyPendulum-v0", steps=40, out=tmp_path, eval_every=0)
    arguments = {"n_steps": 40, "batch_size": 20, "n_epochs": 1, "device": "cpu"}
    for env, given, message in (
        ("TinyPendulum-v0", {"use_sde": True}, "without use_sde"),
        ("TinyPendulum-v0", {"policy_kwargs": {"activation_fn": torch.nn.GELU}}, "GELU"),
        ("InvertedPendulum-v5", {}, r"shapes \(4,\) and \(1,\), TinyPendulum-v0 of \(3,\) and \(1,\)"),
    ):
        callback = RunCallback.new("ppo", options)
        model = PPO("MlpPolicy", env, **arguments | given)
        with pytest.raises((ConfigError, PolicyError), match=message):
            model.learn(40, callback=callback)
        assert model.num_timesteps == 0
        callback.close()
