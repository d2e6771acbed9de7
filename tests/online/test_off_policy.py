"""Collection and memory of soft off-policy methods."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from offrl.algos.sac import SAC
from offrl.online.mixture import MixtureActor
from offrl.online.off_policy import SquashedActor

SMALL = {"hidden": 8, "batch_size": 64, "learning_starts": 20, "buffer_size": 400, "device": "cpu", "seed": 0}


@pytest.mark.parametrize("experts", [None, 1, 3])
def test_log_std_stays_between_its_bounds(experts):
    """[-20, 2], for mixtures too; beyond them it has no gradient."""
    if experts is None:
        actor = SquashedActor(3, 2, 8, torch.Generator().manual_seed(0))
    else:
        actor = MixtureActor(
            3, 2, 8, torch.Generator().manual_seed(0), experts=experts, whole=False, detach=True
        )
    seen = torch.randn(1, 5, 3)
    for bias, bound in ((99.0, 2.0), (-99.0, -20.0)):
        with torch.no_grad():
            actor.net[-1].fill_(bias)
        params = list(actor.parameters())
        log_std = actor.moments(params, seen)[1] if experts is None else actor.mixture(params, seen).log_std
        assert (log_std == bound).all()
        assert actor.sample(params, seen)[1].isfinite().all()


def fields(batch):
    return {
        "observations": batch.observations,
        "actions": batch.actions,
        "next_observations": batch.next_observations,
    }


def test_batches_are_what_was_played(tiny):
    """Rows of every environment, each field of the same step; observations in single precision."""
    model = SAC("MlpPolicy", make_vec_env(tiny, n_envs=3), **SMALL).learn(90)
    buffer = model.replay_buffer
    assert buffer.observations.dtype == np.float32
    batch = buffer.batch(500)
    row, env = np.divmod(batch.rows[0].numpy(), 3)
    assert set(row) == set(range(30))
    assert set(env) == {0, 1, 2}
    for name, value in fields(batch).items():
        assert np.array_equal(value[0].numpy(), getattr(buffer, name)[row, env])
    assert np.array_equal(batch.rewards[0].numpy(), buffer.rewards[row, env])
    going_on = ~np.isin(row, [19, 29])
    assert np.array_equal(
        batch.next_observations[0].numpy()[going_on],
        buffer.observations[row + 1 - (row == 29), env][going_on],
    )


def test_time_limits_are_no_ends_and_keep_the_true_last_observation(tiny):
    """Episodes of 20 steps, all cut: marked in the buffer, never in a batch; s' is not the next episode's first."""
    model = SAC("MlpPolicy", gymnasium.make(tiny), **SMALL).learn(100)
    buffer = model.replay_buffer
    assert buffer.dones.sum() == buffer.timeouts.sum() == 5
    batch = buffer.batch(500)
    assert batch.terminated.sum() == 0
    last = 19
    assert np.abs(buffer.next_observations[last] - buffer.observations[last + 1]).max() > 1e-3
    turned = np.arctan2(buffer.next_observations[last, 0, 1], buffer.next_observations[last, 0, 0])
    before = np.arctan2(buffer.observations[last, 0, 1], buffer.observations[last, 0, 0])
    moved = (turned - before + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(moved, 0.05 * buffer.next_observations[last, 0, 2], atol=1e-4)
    buffer.dones[3], buffer.timeouts[3] = 1.0, 0.0
    batch = buffer.batch(500)
    assert torch.equal(batch.terminated, (batch.rows == 3).float())


def test_under_vecnormalize_raw_steps_are_kept_and_batches_are_normalized(tiny):
    env = VecNormalize(make_vec_env(tiny, n_envs=2))
    model = SAC("MlpPolicy", env, **SMALL).learn(90)
    buffer = model.replay_buffer
    assert np.abs(buffer.observations[:45, :, :2]).max() <= 1.0  # cosine and sine, unchanged
    batch = buffer.batch(200, env)
    row, column = np.divmod(batch.rows[0].numpy(), 2)
    np.testing.assert_allclose(
        batch.observations[0], env.normalize_obs(buffer.observations[row, column]), atol=1e-5
    )
    np.testing.assert_allclose(
        batch.next_observations[0], env.normalize_obs(buffer.next_observations[row, column]), atol=1e-5
    )
    np.testing.assert_allclose(batch.rewards[0], env.normalize_reward(buffer.rewards[row, column]), rtol=1e-5)
    assert batch.terminated.sum() == 0
    plain = buffer.batch(200)
    assert batch.observations.shape == plain.observations.shape
    assert batch.rewards.shape == plain.rewards.shape == batch.terminated.shape


def test_one_update_an_environment_step_after_the_random_ones(tiny):
    model = SAC("MlpPolicy", make_vec_env(tiny, n_envs=2), **SMALL).learn(80)
    assert model._n_updates == 80 - 20
    assert not np.array_equal(model.replay_buffer.actions[:10], model.replay_buffer.actions[10:20])


def test_actions_are_kept_between_minus_one_and_one_and_played_in_the_box(tiny):
    """Torque is within [-2, 2]."""
    model = SAC("MlpPolicy", gymnasium.make(tiny), **SMALL).learn(60)
    played, kept = model._sample_action(0)
    np.testing.assert_allclose(played, 2 * kept, rtol=1e-6)
    assert np.abs(model.replay_buffer.actions).max() <= 1.0
    assert np.abs(model.replay_buffer.actions).max() > 0.5


def test_metrics_are_means_since_the_last_dump(tiny):
    model = SAC("MlpPolicy", gymnasium.make(tiny), **SMALL).learn(40)
    losses, update = [], model.update

    def watched(batch):
        found = update(batch)
        losses.append(float(found["critic_loss"]))
        return found

    model.update, seen, record = watched, {}, model.logger.record
    model.dump_logs()
    model.logger.record = lambda key, value, exclude=None: (
        seen.update({key: value}),
        record(key, value, exclude),
    )
    for steps in (3, 2):
        losses.clear()
        model.train(steps, 64)
        model.dump_logs()
        np.testing.assert_allclose(seen["train/critic_loss"], np.mean(losses), rtol=1e-5)
        assert len(losses) == steps


def test_the_policy_plays_from_the_step_after_the_random_ones(tiny):
    model, seen = SAC("MlpPolicy", gymnasium.make(tiny), **SMALL | {"learning_starts": 4}), []
    explore = model.explore
    model.explore = lambda observations: (seen.append(model.num_timesteps), explore(observations))[1]
    model.learn(7)
    assert seen == [4, 5, 6]


def test_a_full_ring_is_drawn_from_whole(tiny):
    """50 rows of two environments, of which the last 5 were written over the first."""
    model = SAC("MlpPolicy", make_vec_env(tiny, n_envs=2), **SMALL | {"buffer_size": 100}).learn(110)
    buffer = model.replay_buffer
    assert (buffer.full, buffer.pos, buffer.buffer_size) == (True, 5, 50)
    assert set(buffer.batch(3000).rows[0].tolist()) == set(range(100))
