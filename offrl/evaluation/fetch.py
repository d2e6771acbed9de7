"""Hand-written experts for FetchPickAndPlace and FetchPush, functions of the observation alone: a policy without memory
can learn them.

FetchPickAndPlace: over the object, down, grasp, carry to the goal.

    far to the side     towards the place 0.06 m above the object, fingers open
    above it            straight down, fingers open
    around it           fingers close until they hold
    held                towards the goal: (goal - object), fingers closed

FetchPush, whose fingers are shut: over the place behind the object, down, push it along the line to the goal.

    low, out of place   up; a little away from the object first
    high                towards the place behind the object, 0.08 m above the table
    above that place    straight down
    low and in place    along the line, back onto it where it strays, slower as the goal comes near
    at the goal         rest

An action of 1 moves the gripper by up to 0.05 m in a step; ``GAIN`` of them a metre, at most ``SPEED``.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from offrl.data.environments import EnvSpec
from offrl.data.reference import FETCH_PICK, FETCH_PUSH
from offrl.errors import ConfigError
from offrl.nn.policy import Policy

GAIN, SPEED = 12.0, 0.8  # of an action, a metre and at most
NOISE = 0.1  # std of the disturbance of stochastic actions, in action units; the fingers are not disturbed
HOVER = 0.06  # m above the object
ALIGNED = 0.012  # m to the side, below which the gripper may go down
DOWN = 0.012  # m in height, below which it may close
HOLDING = 0.0262  # m, opening of a finger around the object of 0.05 m
BEHIND, CLEAR = 0.075, 0.08  # m behind the object's centre where a push begins, and above it on the way there
LOW, TOUCH, LANE = 0.02, 0.03, 0.02  # m: height of a push; least distance behind; most to the side
ARRIVED = 0.015  # m from the goal


class FetchExpert(Policy):
    """Sees all 25 numbers and the goal (O = 28)."""

    env_id: ClassVar[str]
    short_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__(28, 4)

    @classmethod
    def for_env(cls, spec: EnvSpec) -> Self:
        """The expert of its environment with all observations.

        Raises:
            ConfigError: only some of them.
        """
        if spec.flatten != ("observation", "desired_goal"):
            raise ConfigError(f"the expert of {cls.env_id} sees the whole state: use --env {cls.short_name}")
        return cls()

    @staticmethod
    @abstractmethod
    def command(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where to move (B, 3) in metres, and what the fingers do (B,): 1 open, -1 close; for observations (B, 28)."""

    def forward(self, observations: Tensor) -> Tensor:
        """The undisturbed actions (B, 4)."""
        move, grip = self.command(observations.cpu().numpy().astype(np.float64))
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


class FetchPickExpert(FetchExpert):
    """Lifts."""

    kind: ClassVar[str] = "fetch_pick_expert"
    env_id, short_name = FETCH_PICK, "fetch-pick-state"

    @staticmethod
    def command(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over the object, down, close, carry."""
        to_thing, opening = rows[:, 3:6] - rows[:, :3], rows[:, 9:11].mean(axis=1)
        aligned = np.linalg.norm(to_thing[:, :2], axis=1) < ALIGNED
        around = aligned & (np.abs(to_thing[:, 2]) < DOWN)
        held = around & (opening < HOLDING)
        above = to_thing + np.array([0.0, 0.0, HOVER])
        move = np.where(aligned[:, None], to_thing, above)
        move = np.where(around[:, None], 0.0 * move, move)
        move = np.where(held[:, None], rows[:, 25:28] - rows[:, 3:6], move)
        return move, np.where(around, -1.0, 1.0)


class FetchPushExpert(FetchExpert):
    """Pushes."""

    kind: ClassVar[str] = "fetch_push_expert"
    env_id, short_name = FETCH_PUSH, "fetch-push-state"

    @staticmethod
    def command(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over the place behind the object, down, along the line to the goal."""
        gripper, thing = rows[:, :3], rows[:, 3:6]
        way = rows[:, 25:27] - thing[:, :2]
        left = np.linalg.norm(way, axis=1, keepdims=True)
        line = way / np.maximum(left, 1e-9)
        from_thing, height = gripper[:, :2] - thing[:, :2], gripper[:, 2:] - thing[:, 2:]
        along = (from_thing * line).sum(axis=1, keepdims=True)
        aside = from_thing - along * line
        to_place = -BEHIND * line - from_thing
        low = height < LOW
        in_lane = (along < -TOUCH) & (np.linalg.norm(aside, axis=1, keepdims=True) < LANE)
        over = np.linalg.norm(to_place, axis=1, keepdims=True) < ALIGNED
        push = np.concatenate([(left + 0.01) * line - aside, -height], axis=1)
        up = np.concatenate([0.3 * from_thing, CLEAR - height], axis=1)
        across = np.concatenate([to_place, CLEAR - height], axis=1)
        down = np.concatenate([to_place, -height], axis=1)
        far = np.linalg.norm(from_thing, axis=1, keepdims=True) > BEHIND + LANE
        move = np.where((height > CLEAR / 2) | far, across, up)
        move = np.where(over | (in_lane & (along > -BEHIND - LANE)), down, move)
        move = np.where(low & in_lane & (along > -BEHIND - 2 * LANE), push, move)
        move = np.where(left < ARRIVED, 0.0, move)
        return move, -np.ones(len(rows))
