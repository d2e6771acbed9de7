"""stable-baselines3's environments in one process and its running normalization, to the bit, at less cost a step.

Deep copies of infos and observations, and means and variances over one environment, take a third of a step of MuJoCo
with a small network; here arrays are copied once and infos are handed over.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class SerialEnvs(DummyVecEnv):
    """``DummyVecEnv`` for observations that are arrays; the dicts of ``infos`` are the environments' own."""

    def step_wait(self) -> VecEnvStepReturn:
        """As in stable-baselines3."""
        (seen,) = self.buf_obs.values()
        for k, env in enumerate(self.envs):
            observation, reward, terminated, truncated, info = env.step(self.actions[k])
            info["TimeLimit.truncated"] = truncated and not terminated
            self.buf_rews[k], self.buf_dones[k] = reward, terminated or truncated
            if self.buf_dones[k]:
                info["terminal_observation"] = np.array(observation)  # the reset may fill the same array
                observation, self.reset_infos[k] = env.reset()
            else:
                info.pop("episode", None)  # Monitor's, of the episode before, where the dict is the same
            seen[k], self.buf_infos[k] = observation, info
        return seen.copy(), self.buf_rews.copy(), self.buf_dones.copy(), list(self.buf_infos)


class Moments(RunningMeanStd):
    """``RunningMeanStd`` that knows the mean and the variance of a single row."""

    def update(self, arr: np.ndarray) -> None:
        """Take (n, ...) rows in."""
        if len(arr) == 1:
            self.update_from_moments(arr[0], np.zeros_like(arr[0]), 1)
        else:
            super().update(arr)


class RunningNormalize(VecNormalize):
    """``VecNormalize`` of environments whose observations are arrays.

    Args:
        venv: the environments.
        **kwargs: as in stable-baselines3.
    """

    def __init__(self, venv: VecEnv, **kwargs: Any) -> None:
        super().__init__(venv, **kwargs)
        if self.norm_obs:
            self.obs_rms = Moments(shape=self.observation_space.shape or ())  # type: ignore[assignment]
        self.ret_rms = Moments(shape=())

    def normalize_obs(self, obs: Any) -> np.ndarray:
        """Of (n, ...) or (...) raw observations, as they are normalized now."""
        if not self.norm_obs:
            return np.array(obs)
        return self._normalize_obs(obs, self.obs_rms).astype(np.float32)  # type: ignore[arg-type]
