"""A planning expert for PushT: pushes in straight lines, chosen by looking two of them ahead.

    choose   push 1 (and push 2) with the least  time + c(E),   E = root mean square distance of the T's corners
             from where they should be,   c(E) = max(E - 1.5, 0) + 4 min(max(E - 1.2, 0), 3)
    then     walk around the block to where push 1 begins, push, look again

It sees what ``obs_type="state"`` shows (agent, block), nothing else. What pushes do is known from
``offrl.evaluation.pusht_pushes``. Its targets move with bounded speed and acceleration, as a hand would move them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.evaluation.pusht_pushes import (
    CORNERS,
    DWELL,
    LENGTHS,
    NODES,
    PUSH,
    TRAVEL,
    Pushes,
    compose,
    distance,
    follow,
    is_free,
    place,
    pushes,
    relative,
    turn,
)
from offrl.nn.policy import Policy

GOAL = np.array([256.0, 256.0, np.pi / 4])
TABLE = (12.0, 500.0)  # where the agent's center may go
ROOM = (7.0, 504.0)  # where the block's corners may come to lie
EXIT = 20.5  # distance from the block to which the agent steps back after a push
COVERED = 0.95  # share of the target above which nothing is left to do
BLOCKED = 1e6  # time of what cannot be done
UNSTEADY = 3.0, 0.08, 0.06  # std of a push's start (pixels, sideways), direction (radians) and length (share)
AHEAD = (
    2,
    5,
)  # first pushes looked at a second push ahead: the best so many a contact, and every so many-th length


@dataclass(frozen=True)
class Choice:
    """The next push, and what it should come to."""

    contact: int
    length: int
    points: np.ndarray  # (M, 2), the way to its start on the table, from where the agent stands
    end: np.ndarray  # (2,), where it ends
    cost: float


class PushTExpert(Policy):
    """Plans with the block's pose; ``state`` is the list of targets (T, 2) that each row has yet to send.

    With ``deterministic=False`` the hand is unsteady: every push begins a little beside its contact point, aims a
    little off and goes a little too far or not far enough. The plans after it put that right, so that recordings
    also show how to recover.
    """

    kind: ClassVar[str] = "pusht_expert"

    def __init__(self) -> None:
        super().__init__(5, 2, [0.0, 0.0], [512.0, 512.0])
        self.pushes: Pushes = pushes()

    @classmethod
    def for_env(cls, spec: EnvSpec) -> "PushTExpert":
        """The expert of PushT with state observations.

        Raises:
            ConfigError: other observations.
        """
        if spec.kwargs.get("obs_type", "state") != "state":
            raise ConfigError("PushT's expert sees the state: use --env pusht-state")
        return cls()

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[np.ndarray]]:
        """Targets (B, 2) of the agent, and those still to come."""
        rows = observations.cpu().numpy().astype(np.float64)
        hand = None if deterministic else generator or torch.default_generator
        queues = [
            old if old is not None and len(old) else self.targets(row, hand)
            for old, row in zip(state or [None] * len(rows), rows, strict=True)
        ]
        actions = torch.as_tensor(np.stack([queue[0] for queue in queues]), dtype=torch.float32)
        return self.clip(actions.to(observations.device)), [queue[1:] for queue in queues]

    def forward(self, observations: Tensor) -> Tensor:
        """The first targets (B, 2) of episodes that begin here."""
        return self.act(observations)[0]

    def targets(self, row: np.ndarray, hand: torch.Generator | None = None) -> np.ndarray:
        """Targets (T, 2) of the next push and the way to it, for one observation (5,); unsteady with a ``hand``."""
        agent, block = row[:2], row[2:]
        if coverage(block) > COVERED:
            return agent[None]
        choice = self.choose(agent, block)
        if choice is None:  # squeezed in: step into the open
            return follow(np.stack([agent, agent + 0.2 * (GOAL[:2] - agent)]), TRAVEL)
        points, push = choice.points, choice.end - choice.points[-1]
        if hand is not None:
            draws = torch.randn(3, generator=hand, dtype=torch.float64).numpy() * UNSTEADY
            points[-1] += draws[0] * (turn(np.pi / 2) @ push) / np.linalg.norm(push)
            push = turn(draws[1]) @ push * (1 + draws[2])
        walk, end = follow(points, TRAVEL), points[-1] + push
        stroke = follow(np.stack([points[-1], end]), PUSH)
        return np.concatenate([walk, points[-1:], stroke, np.repeat(end[None], DWELL, 0)])

    def choose(self, agent: np.ndarray, block: np.ndarray) -> Choice | None:
        """The best push for an agent (2,) and a block (3,); None if none can be reached."""
        p = self.pushes
        leave, to_nodes, direct = self.reach(agent, block)
        over_nodes = to_nodes[:, None] + p.ways[: len(NODES), len(NODES) :]
        walk = np.minimum(over_nodes.min(0), direct)
        goal = relative(block, GOAL)
        times = np.where(self.possible(block, walk), (walk / TRAVEL + 3)[:, None] + p.steps, BLOCKED)
        costs = times + remaining(error(relative(p.motions, goal)))
        costs = np.minimum(costs, self.second(block, goal, times, costs))
        contact, length = np.unravel_index(int(costs.argmin()), costs.shape)
        if times[contact, length] >= BLOCKED:
            return None
        stops = [leave, *self.stops(int(contact), direct, over_nodes)]
        points = np.concatenate([agent[None], place(block, np.array(stops))])
        end = points[-1] + turn(block[2]) @ p.directions[contact] * LENGTHS[length]
        return Choice(int(contact), int(length), points, end, float(costs[contact, length]))

    def reach(self, agent: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In the block's frame: where the agent steps back to (2,), ways from there to nodes (6,) and starts (P,)."""
        here = (agent - block[:2]) @ turn(block[2])
        shift = 0.1 * np.eye(2)
        away = distance(here + shift) - distance(here - shift)
        leave = here + away / (np.linalg.norm(away) + 1e-9) * max(0.0, EXIT - float(distance(here)))
        points = np.concatenate([NODES, self.pushes.starts])
        ways = np.linalg.norm(points - leave, axis=-1)
        ways[~is_free(np.broadcast_to(leave, points.shape), points)] = np.inf
        ways[: len(NODES)][~_within(place(block, NODES), TABLE)] = np.inf
        return leave, ways[: len(NODES)], ways[len(NODES) :]

    def stops(self, contact: int, direct: np.ndarray, over_nodes: np.ndarray) -> list[np.ndarray]:
        """Points of the block's frame on the way to the start of a push, the start included."""
        p, column = self.pushes, over_nodes[:, contact]
        if direct[contact] <= column.min():
            return [p.starts[contact]]
        points = np.concatenate([NODES, p.starts])
        at, goal = int(column.argmin()), len(NODES) + contact
        stops = [points[at]]
        while at != goal:
            at = int(p.following[at, goal])
            stops.append(points[at])
        return stops

    def possible(self, block: np.ndarray, walk: np.ndarray) -> np.ndarray:
        """(P, L) bool: the push can be reached, moves the block, and everything stays on the table."""
        p = self.pushes
        starts = place(block, p.starts)
        ends = starts[:, None] + (p.directions @ turn(block[2]).T)[:, None] * LENGTHS[:, None]
        corners = place(compose(block, p.motions), CORNERS)
        able: np.ndarray = _within(corners, ROOM).all(-1) & _within(ends, TABLE) & _moves(p.motions)
        able &= (_within(starts, TABLE) & np.isfinite(walk))[:, None]
        return able

    def second(self, block: np.ndarray, goal: np.ndarray, times: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """(P, L): least cost if another push follows; infinite for first pushes that are not looked into."""
        p = self.pushes
        best, every = AHEAD
        chosen = np.zeros(costs.shape, dtype=bool)
        chosen[:, every // 2 + 1 :: every] = True
        np.put_along_axis(chosen, np.argpartition(costs, best, axis=1)[:, :best], True, axis=1)
        first, length = np.nonzero(chosen & (times < BLOCKED))
        out = np.full(costs.shape, np.inf)
        if len(first) == 0:
            return out
        moved = p.motions[first, length]
        motions = p.motions[:, ::2].astype(
            np.float32
        )  # half of the lengths, in half the precision: a look is enough
        rest = relative(moved, goal).astype(np.float32)
        after = relative(motions[None], rest[:, None, None])
        walk = (
            p.ways[len(NODES) :, len(NODES) :][first] / TRAVEL + 8
        )  # 5 more than if the push were the first
        walk[~_within(place(compose(block, moved), p.starts), TABLE)] = BLOCKED
        total = remaining(error(after)) + p.steps[::2].astype(np.float32)
        total += np.where(_moves(motions), 0.0, BLOCKED).astype(np.float32)
        out[first, length] = times[first, length] + (total.min(-1) + walk).min(-1)
        return out


def coverage(block: np.ndarray) -> float:
    """Share of the target that a block (3,) covers: what the environment pays by."""
    from shapely.geometry import Polygon  # comes with gym-pusht

    target, shape = (Polygon(place(pose, CORNERS)) for pose in (GOAL, block))
    return float(target.intersection(shape).area / target.area)


def error(goal: np.ndarray) -> np.ndarray:
    """E (...,) in pixels, for goals (..., 3) as seen from the block."""
    center, square = CORNERS.mean(0), (CORNERS**2).sum(1).mean()
    gx, gy, c, s = goal[..., 0], goal[..., 1], np.cos(goal[..., 2]) - 1, np.sin(goal[..., 2])
    x, y = float(center[0]), float(center[1])
    total = gx * (gx + 2 * (c * x - s * y)) + gy * (gy + 2 * (s * x + c * y)) - c * float(2 * square)
    return np.asarray(np.sqrt(np.maximum(total, 0.0)))


def remaining(errors: np.ndarray) -> np.ndarray:
    """c(E): about how many steps an error still costs; flat below the tolerance of a success."""
    cost: np.ndarray = np.maximum(errors - 1.5, 0.0)
    cost += 4 * np.minimum(np.maximum(errors - 1.2, 0.0), 3.0)
    return cost


def _moves(motions: np.ndarray) -> np.ndarray:
    """(...) bool: a motion of the block by a pixel or more, not a touch."""
    far: np.ndarray = np.sqrt((motions[..., :2] ** 2).sum(-1) + (50 * motions[..., 2]) ** 2) > 1.0
    return far


def _within(points: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return np.asarray(((points > bounds[0]) & (points < bounds[1])).all(-1))
