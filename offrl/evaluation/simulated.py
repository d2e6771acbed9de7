"""What the true simulator does from states that a model made up, and how far the model's next states are from it.

An observation fixes the simulator's state but for what no reward or later observation depends on (the robot's place
along its track is set to 0), so that ``set state, step`` gives the true successor. Hopper's and Walker2d's observed
velocities are cut to [-10, 10]: states beyond cannot be set apart.

Source: 'dynamics error' of arXiv:2404.06356.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.evaluation.environments import FlatObservation, make_env

LOCOMOTION = ("Hopper-", "Walker2d-", "HalfCheetah-")


class Simulator:
    """An environment whose state is set from flat observations.

    Args:
        spec: a locomotion robot of Gymnasium's (Hopper, Walker2d, HalfCheetah) or a point maze.

    Raises:
        ConfigError: its observations do not fix its state, or the environment cannot be made.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self.maze = spec.env_id.startswith("PointMaze")
        if not self.maze and not spec.env_id.startswith(LOCOMOTION):
            raise ConfigError(
                f"the state of {spec.env_id} cannot be set from its observations; possible are "
                f"{', '.join(name.rstrip('-') for name in LOCOMOTION)} and PointMaze"
            )
        self.env = make_env(spec)
        self.env.reset(seed=0)
        self.columns: dict[str, slice] = {}
        if self.maze:
            flat: Any = self.env
            while not isinstance(flat, FlatObservation):
                flat = flat.env
            parts: Any = flat.env.observation_space
            column = 0
            for key in flat.keys:
                width = parts[key].shape[0]
                self.columns[key], column = slice(column, column + width), column + width

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def set(self, observation: np.ndarray) -> None:
        """Put the simulator into the state of an observation (O,)."""
        base: Any = self.env.unwrapped
        observation = observation.astype(np.float64)
        self.env.reset()  # forgets step count and what the solver remembers
        if self.maze:
            state = observation[self.columns["observation"]]
            base.goal = observation[self.columns["desired_goal"]]
            base.point_env.set_state(state[:2], state[2:])
            return
        positions = base.model.nq - 1
        base.set_state(np.concatenate([[0.0], observation[:positions]]), observation[positions:])

    def step(self, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True successors (N, O) and rewards (N,) of states (N, O) and actions (N, A)."""
        successors, rewards = np.empty_like(observations), np.empty(len(observations), np.float32)
        for row, (observation, action) in enumerate(zip(observations, actions, strict=True)):
            self.set(observation)
            successors[row], reward, *_ = self.env.step(action)
            rewards[row] = reward
        return successors, rewards


@dataclass(frozen=True)
class DynamicsError:
    """How far generated successors are from the simulator's."""

    state: np.ndarray  # (N,) mean over dims of squared differences in units of the data's standard deviation
    reward: np.ndarray  # (N,) absolute differences

    @property
    def mean(self) -> float:
        """Over rows, of the state error."""
        return float(self.state.mean())


def dynamics_error(
    simulator: Simulator,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    successors: np.ndarray,
    scale: np.ndarray,
) -> DynamicsError:
    """Step the simulator from each generated state and compare.

    Args:
        simulator: of the environment that the model is of.
        observations: generated states (N, O).
        actions: generated actions (N, A), in the environment's units.
        rewards: generated rewards (N,).
        successors: generated next states (N, O).
        scale: standard deviation of the data's observations (O,); 0 counts as 1.
    """
    true, true_rewards = simulator.step(observations, actions)
    scale = np.where(scale > 1e-6, scale, 1.0)
    state = np.square((true - successors) / scale).mean(axis=1)
    return DynamicsError(state, np.abs(true_rewards - rewards))
