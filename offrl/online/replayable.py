"""Environments that a resumed run brings back to where they were, by playing their episodes under way again.

Episode k of a seed always begins alike, so that a number and the actions since the reset are the episode. A
deterministic simulator comes to the same state, bit for bit, with all its wrappers; that the last observation and the
sum of the rewards are the same is checked. What an environment keeps from one episode to the next is not brought back.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

ENV_STREAM = 4  # evaluations and fine-tuning have 1 to 3


class Replayable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Seeds every episode and remembers what was done in the one under way; outside of all other wrappers.

    A reset with a seed begins episode 0 with that seed; the seeds of later ones derive from it and their number.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.first = int(np.random.SeedSequence().generate_state(1)[0])  # seed of episode 0
        self.number = 0
        self.actions: list[np.ndarray] = []
        self.rewards = 0.0  # of the episode under way

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        if seed is None:
            self.number += 1
        else:
            self.first, self.number = seed, 0
        return self._begin(options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As in gymnasium."""
        self.actions.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards += float(reward)
        return observation, reward, terminated, truncated, info

    def episode(self) -> dict[str, Any]:
        """The episode under way as plain data."""
        actions = torch.from_numpy(np.stack(self.actions)) if self.actions else torch.empty(0)
        return {"first": self.first, "number": self.number, "actions": actions, "rewards": self.rewards}

    def play_again(self, episode: dict[str, Any]) -> Any:
        """Begin ``episode`` again and take its actions; returns the last observation.

        None: it ends before, or its rewards are others.
        """
        self.go_on_after(episode)
        observation, _ = self._begin(None)
        for action in episode["actions"].cpu().numpy():
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return observation if repr(self.rewards) == repr(episode["rewards"]) else None

    def go_on_after(self, episode: dict[str, Any]) -> None:
        """Let the next reset begin the episode that follows this one."""
        self.first, self.number = episode["first"], episode["number"]

    def _begin(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self.actions, self.rewards = [], 0.0
        derived = np.random.SeedSequence([ENV_STREAM, self.first, self.number]).generate_state(1)
        return self.env.reset(seed=int(derived[0]) if self.number else self.first, options=options)


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
    """Bring ``env`` to where the saved episodes were; False if one comes elsewhere: a reset then begins the next."""
    for one, episode in zip(env.envs, saved, strict=True):
        one.go_on_after(episode)  # type: ignore[attr-defined]
    for k, (one, episode) in enumerate(zip(env.envs, saved, strict=True)):
        observation = one.play_again(episode)  # type: ignore[attr-defined]
        if observation is None:
            return False
        env._save_obs(k, observation)
        if last_observations(env)[k].tobytes() != episode["observation"].cpu().numpy().tobytes():
            return False
    return True
