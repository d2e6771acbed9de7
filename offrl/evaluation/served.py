"""An environment that lives in another process: its simulator needs to be installed only there.

    open()         observation size, action box, time limit, names and shapes of what it shows
    reset(seed)    observation (O,)
    step(action)   observation, reward, terminated, truncated, success (none where it does not say)

Each connection has an environment of its own.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import make_env, shown_parts
from offrl.messages import Client, Message


class EnvService:
    """Answers one connection's calls to an environment.

    Args:
        spec: what ``make_env`` takes.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self.spec, self.env = spec, make_env(spec)

    def answer(self, message: Message) -> Message:
        """See the module's text.

        Raises:
            ConfigError: an unknown call, or an action that does not fit.
        """
        if message.call == "describe":
            raise ConfigError("this is an environment, not a policy")
        if message.call == "open":
            return self.open(message)
        if message.call == "reset":
            seed = message.values.get("seed")
            return Message(message.call, {}, {"observation": flat(self.env.reset(seed=seed)[0])})
        if message.call == "step":
            return self.step(message)
        raise ConfigError(f"an environment answers open, reset and step, not {message.call!r}")

    def open(self, message: Message) -> Message:
        """What the environment shows and takes."""
        box: Any = self.env.action_space
        values = {"parts": [[name, list(shape)] for name, shape in shown_parts(self.env, self.spec)]}
        values |= {"limit": step_limit(self.env, None), "env_id": self.spec.env_id}  # type: ignore[dict-item]
        return Message(message.call, values, {"low": box.low, "high": box.high})

    def step(self, message: Message) -> Message:
        """One step."""
        action = message.arrays.get("action")
        if action is None or action.shape != self.env.action_space.shape:
            raise ConfigError(f"step takes an action of shape {self.env.action_space.shape}")
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = info.get("success", info.get("is_success"))
        values = {"reward": float(reward), "terminated": bool(terminated), "truncated": bool(truncated)}
        said = {"success": None if success is None else bool(success)}
        return Message(message.call, values | said, {"observation": flat(observation)})

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class ServedEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment behind a port of this machine.

    Args:
        port: that 'offrl serve env' printed.

    Raises:
        ConfigError: nobody answers there, or no environment.
    """

    def __init__(self, port: int) -> None:
        self.client = Client(port)
        try:
            found = self.client("open")
        except PolicyError as error:
            raise ConfigError(str(error)) from None
        self.parts = [(str(name), tuple(map(int, shape))) for name, shape in found.values["parts"]]
        self.max_episode_steps = int(found.values["limit"])
        size = sum(int(np.prod(shape)) for _, shape in self.parts)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = found.arrays["low"], found.arrays["high"]
        self.action_space = spaces.Box(low, high, low.shape, low.dtype.type)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; ``options`` are not passed on."""
        super().reset(seed=seed)
        return self.client("reset", seed=seed).arrays["observation"], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step."""
        answer = self.client("step", {"action": np.asarray(action)})
        v = answer.values
        info = {} if v["success"] is None else {"success": v["success"]}
        return answer.arrays["observation"], v["reward"], v["terminated"], v["truncated"], info

    def close(self) -> None:
        """Hang up."""
        self.client.close()


def flat(observation: np.ndarray) -> np.ndarray:
    """As the evaluation takes it."""
    return np.asarray(observation, np.float32)
