"""What of a model acts."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from offrl.algos.pmoe_ppo import PMOEPPO
from offrl.algos.sac import SAC
from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import load_policy, save_policy
from offrl.nn.sb3 import load_sb3_actor
from offrl.online.acting import acting_policy


def test_what_no_run_directory_can_hold_is_refused():
    with pytest.raises(ConfigError, match="needs flat observations and a flat box of actions"):
        acting_policy(PPO("MlpPolicy", "CartPole-v1", device="cpu"))
    squashed = PPO("MlpPolicy", "TinyPendulum-v0", use_sde=True, device="cpu")
    with pytest.raises(PolicyError, match="without use_sde"):
        acting_policy(squashed)
    for shape in ((2, 2), ()):
        env = gymnasium.make("TinyPendulum-v0")
        env.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape)
        for algorithm in (PPO, PMOEPPO):
            with pytest.raises(ConfigError, match="a flat box of actions"):
                acting_policy(algorithm("MlpPolicy", env, device="cpu"))


def test_a_saved_model_of_ours_becomes_a_policy_on_disk(tmp_path):
    model = SAC("MlpPolicy", "TinyPendulum-v0", hidden=8, buffer_size=10, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    with pytest.raises(PolicyError, match="load it in Python and save its acting_policy"):
        load_sb3_actor(tmp_path / "model.zip")
    save_policy(acting_policy(SAC.load(tmp_path / "model.zip", device="cpu")), tmp_path / "policy")
    seen = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    acted = load_policy(tmp_path / "policy")(torch.from_numpy(seen)).detach().numpy()
    np.testing.assert_allclose(acted, model.predict(seen, deterministic=True)[0], atol=1e-5)


def test_the_normalizer_of_observations_that_hardly_vary():
    """x = (o - mean) / sqrt(var + epsilon): the epsilon is that of the variance."""
    env = VecNormalize(make_vec_env("TinyPendulum-v0"), norm_reward=False, clip_obs=1e9)
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, 0.0, 0.0]), np.array([1e-9, 1.0, 0.0])
    raw = np.array([[1.0001, 0.5, 2e-5], [0.9999, -0.5, -1e-5]], np.float32)
    acted = acting_policy(model)(torch.from_numpy(raw)).detach().numpy()
    np.testing.assert_allclose(acted, model.predict(env.normalize_obs(raw), deterministic=True)[0], atol=1e-5)
