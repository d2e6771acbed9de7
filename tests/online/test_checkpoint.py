"""The state of a model as tensors and numbers."""

import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from offrl.algos import sac
from offrl.algos.mdpo_off import MDPOOff
from offrl.algos.mdpo_on import MDPOOn
from offrl.online.checkpoint import ARRAYS, model_state, restore_model
from offrl.online.replayable import Replayable
from offrl.training.checkpoint import load_checkpoint, save_checkpoint


def environments():
    return make_vec_env("TinyPendulum-v0", n_envs=1, wrapper_class=Replayable)


def make(seed):
    env = VecNormalize(environments())
    settings = {
        "buffer_size": 500,
        "learning_starts": 20,
        "batch_size": 16,
        "policy_kwargs": {"net_arch": [8]},
    }
    return SAC("MlpPolicy", env, seed=seed, device="cpu", **settings)


def test_what_was_saved_comes_back(tmp_path):
    """Parameters, optimizers, temperature, counters, running statistics and the replay buffer, as plain data."""
    model, other = make(0).learn(90), make(1).learn(30)
    save_checkpoint(tmp_path, {"model": model_state(model)})
    state, _ = load_checkpoint(tmp_path)
    restore_model(other, state["model"])
    for name, value in model.get_parameters().items():
        torch.testing.assert_close(other.get_parameters()[name], value, rtol=0, atol=0)
    assert torch.equal(model.log_ent_coef, other.log_ent_coef)
    assert (other.num_timesteps, other._n_updates) == (90, model._n_updates)
    ours, theirs = other.get_vec_normalize_env(), model.get_vec_normalize_env()
    for name in ("obs_rms", "ret_rms"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a.mean == b.mean).all()
        assert (a.var == b.var).all()
        assert a.count == b.count
    for name in ARRAYS:
        assert (getattr(other.replay_buffer, name)[:90] == getattr(model.replay_buffer, name)[:90]).all()
    assert (other.replay_buffer.pos, other.replay_buffer.full) == (90, False)
    assert [e["r"] for e in other.ep_info_buffer] == [float(e["r"]) for e in model.ep_info_buffer]
    other.learn(30, reset_num_timesteps=False)
    assert other.num_timesteps == 120


def test_a_full_ring_of_transitions_comes_back():
    model, other = (
        SAC("MlpPolicy", environments(), buffer_size=50, learning_starts=1000, device="cpu").learn(steps)
        for steps in (70, 10)
    )
    restore_model(other, model_state(model))
    assert (other.replay_buffer.pos, other.replay_buffer.full) == (20, True)
    assert (other.replay_buffer.observations == model.replay_buffer.observations).all()


@pytest.mark.parametrize("kind", [MDPOOff, MDPOOn, sac.SAC])
def test_ours_come_back_with_their_optimizers(kind, tmp_path):
    small = {"hidden": 8, "batch_size": 16}
    small |= {"rollout": 32} if kind is MDPOOn else {"learning_starts": 20, "buffer_size": 500}
    model, other = (
        kind("MlpPolicy", environments(), seed=s, device="cpu", **small).learn(96 - 40 * s) for s in (0, 1)
    )
    save_checkpoint(tmp_path, {"model": model_state(model)})
    state, _ = load_checkpoint(tmp_path)
    restore_model(other, state["model"])
    torch.testing.assert_close(other.get_parameters(), model.get_parameters(), rtol=0, atol=0)
    if kind is not MDPOOn:
        assert model._summed > 0
        assert other._summed == model._summed
        assert other._sums == model._sums
        torch.manual_seed(0)
        batch = model.replay_buffer.batch(16)
        for m in (model, other):
            torch.manual_seed(0)
            m.update(batch)
        torch.testing.assert_close(other.get_parameters(), model.get_parameters(), rtol=0, atol=0)
    other.learn(32, reset_num_timesteps=False)
