"""Environments that a resumed run brings back to where they were, by playing their episodes under way again.

An episode is its environment's random stream at the reset and the actions since then. A deterministic simulator comes
to the same state, bit for bit, with all its wrappers; that the last observation is the same is checked.
"""

import json
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper


class Replayable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers how the episode under way began and what was done in it; outside of all other wrappers."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.began: int | None = None  # seed that the episode began with
        self.stream = ""  # or the state of the random stream that it began with, as JSON
        self.actions: list[np.ndarray] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        self.began, self.actions = seed, []
        self.stream = "" if seed is not None else json.dumps(self._bits.state, default=np.ndarray.tolist)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As in gymnasium."""
        self.actions.append(np.array(action))
        return self.env.step(action)

    def episode(self) -> dict[str, Any]:
        """The episode under way as plain data."""
        actions = torch.from_numpy(np.stack(self.actions)) if self.actions else torch.empty(0)
        return {"seed": self.began, "stream": self.stream, "actions": actions}

    def play_again(self, episode: dict[str, Any]) -> Any:
        """Begin ``episode`` again and take its actions; returns the last observation, None if it ends before."""
        if episode["stream"]:
            self._bits.state = json.loads(episode["stream"])
        observation, _ = self.reset(seed=episode["seed"])
        for action in episode["actions"].cpu().numpy():
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return observation

    @property
    def _bits(self) -> Any:
        return self.env.unwrapped.np_random.bit_generator


def replayable(env: VecEnv | None) -> DummyVecEnv | None:
    """The environments below all wrappers of ``env``, if each can be played again."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, DummyVecEnv) and all(isinstance(one, Replayable) for one in env.envs):
        return env
    return None


def last_observations(env: DummyVecEnv) -> np.ndarray:
    """What was seen last, (environments, ...), a copy."""
    (seen,) = env.buf_obs.values()  # one array, where observations are no dict
    return np.array(seen)


def episodes(env: DummyVecEnv) -> list[dict[str, Any]]:
    """The episodes under way, with their last observations."""
    return [
        {**one.episode(), "observation": torch.from_numpy(last)}  # type: ignore[attr-defined]
        for one, last in zip(env.envs, last_observations(env), strict=True)
    ]


def play_again(env: DummyVecEnv, saved: list[dict[str, Any]]) -> bool:
    """Bring ``env`` to where the saved episodes were; False if one does not come to the same observation."""
    for k, (one, episode) in enumerate(zip(env.envs, saved, strict=True)):
        observation = one.play_again(episode)  # type: ignore[attr-defined]
        if observation is None:
            return False
        env._save_obs(k, observation)
        if last_observations(env)[k].tobytes() != episode["observation"].cpu().numpy().tobytes():
            return False
    return True
