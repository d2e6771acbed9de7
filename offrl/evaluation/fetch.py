"""A hand-written expert for FetchPickAndPlace: over the object, down, grasp, carry to the goal.

    far to the side     towards the place 0.06 m above the object, fingers open
    above it            straight down, fingers open
    around it           fingers close until they hold
    held                towards the goal: (goal - object), fingers closed

A function of the observation alone, so that a policy without memory can learn it. An action of 1 moves the gripper
by up to 0.05 m in a step; ``GAIN`` of them a metre, at most ``SPEED``.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.nn.policy import Policy

GAIN, SPEED = 12.0, 0.8  # of an action, a metre and at most
NOISE = 0.1  # std of the disturbance of stochastic actions, in action units; the fingers are not disturbed
HOVER = 0.06  # m above the object
ALIGNED = 0.012  # m to the side, below which the gripper may go down
DOWN = 0.012  # m in height, below which it may close
HOLDING = 0.0262  # m, opening of a finger around the object of 0.05 m


class FetchPickExpert(Policy):
    """Sees all 25 numbers and the goal (O = 28)."""

    kind: ClassVar[str] = "fetch_pick_expert"

    def __init__(self) -> None:
        super().__init__(28, 4)

    @classmethod
    def for_env(cls, spec: EnvSpec) -> "FetchPickExpert":
        """The expert of FetchPickAndPlace with all observations.

        Raises:
            ConfigError: only some of them.
        """
        if spec.flatten != ("observation", "desired_goal"):
            raise ConfigError("FetchPickAndPlace's expert sees the whole state: use --env fetch-pick-state")
        return cls()

    def forward(self, observations: Tensor) -> Tensor:
        """The undisturbed actions (B, 4)."""
        rows = observations.cpu().numpy().astype(np.float64)
        move, grip = _command(rows[:, :3], rows[:, 3:6], rows[:, 9:11].mean(axis=1), rows[:, 25:28])
        action = np.concatenate([np.clip(GAIN * move, -SPEED, SPEED), grip[:, None]], 1)
        return torch.as_tensor(action, dtype=torch.float32, device=observations.device)

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, None]:
        """Actions (B, 4) in [-1, 1]; disturbed unless deterministic."""
        actions = self.forward(observations)
        if not deterministic:
            noise = torch.randn((len(actions), 3), generator=generator, device=actions.device)
            actions = torch.cat([actions[:, :3] + NOISE * noise, actions[:, 3:]], 1)
        return self.clip(actions), None


def _command(
    gripper: np.ndarray, thing: np.ndarray, opening: np.ndarray, goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where to move (B, 3) in metres, and what the fingers do (B,): 1 open, -1 close."""
    to_thing = thing - gripper
    aligned = np.linalg.norm(to_thing[:, :2], axis=1) < ALIGNED
    around = aligned & (np.abs(to_thing[:, 2]) < DOWN)
    held = around & (opening < HOLDING)
    above = to_thing + np.array([0.0, 0.0, HOVER])
    move = np.where(aligned[:, None], to_thing, above)
    move = np.where(around[:, None], 0.0 * move, move)
    move = np.where(held[:, None], goal - thing, move)
    return move, np.where(around, -1.0, 1.0)
