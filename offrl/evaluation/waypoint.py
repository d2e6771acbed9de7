"""A hand-written controller for point mazes: shortest path through the cells, then a PD controller to each.

    way-points  centers of the cells of a shortest path, each shifted by -0.2 U(0, 1)^2, then the goal
    action      clip(clip(10 (way-point - position) - velocity, -1, 1) + 0.5 N(0, I), -1, 1)
    next one    when the position is within 0.1 of the way-point

Source: the recipe of the D4RL/pointmaze data in Farama-Foundation/Minari (docs/tutorials/dataset_creation).
Departures: that tutorial cuts no episode under today's libraries (it writes a key that is ignored, and the
target no longer moves by default); here an episode ends when its goal is reached and the target moves on. Its
first observation of an episode shows the goal that was just reached; here it shows the new one.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.evaluation.environments import FlatObservation, make_env, mujoco_state
from offrl.nn.policy import Policy

GAIN, DAMPING = 10.0, 1.0  # 1/length and 1/velocity, in units of the largest force
NOISE = 0.5  # std of the action noise, in units of the largest force
JITTER = 0.2  # largest shift of a way-point, as a length
SWITCH = 0.1  # a way-point nearer than this is reached

Cell = tuple[int, int]


@dataclass(frozen=True)
class MazeMap:
    """Where the walls are: H x W square cells, row 0 on top (largest y)."""

    free: np.ndarray  # (H, W) bool
    cell_size: float
    corner: tuple[float, float]  # x and y of the upper left corner of cell (0, 0)

    def cell(self, position: np.ndarray) -> Cell:
        """The cell of a position (x, y)."""
        column = int(np.floor((position[0] - self.corner[0]) / self.cell_size))
        row = int(np.floor((self.corner[1] - position[1]) / self.cell_size))
        height, width = self.free.shape
        return min(max(row, 0), height - 1), min(max(column, 0), width - 1)

    def center(self, cell: Cell) -> np.ndarray:
        """The middle (x, y) of a cell."""
        x = self.corner[0] + (cell[1] + 0.5) * self.cell_size
        return np.array([x, self.corner[1] - (cell[0] + 0.5) * self.cell_size])

    def path(self, start: Cell, goal: Cell) -> list[Cell]:
        """Cells of a shortest path over free neighbours, ``start`` excluded and ``goal`` included.

        Raises:
            ConfigError: walls separate the two.
        """
        before: dict[Cell, Cell] = {start: start}
        queue = deque([start])
        while queue and goal not in before:
            row, column = queue.popleft()
            for step in ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)):
                if step not in before and self._is_free(step):
                    before[step] = (row, column)
                    queue.append(step)
        if goal not in before:
            raise ConfigError(f"there is no way from cell {start} of the maze to cell {goal}")
        cells = []
        while goal != start:
            cells.append(goal)
            goal = before[goal]
        return cells[::-1]

    def _is_free(self, cell: Cell) -> bool:
        height, width = self.free.shape
        return 0 <= cell[0] < height and 0 <= cell[1] < width and bool(self.free[cell])


@dataclass(frozen=True)
class Plan:
    """The way of one row to its goal."""

    goal: tuple[float, float]
    waypoints: np.ndarray  # (M, 2), the last one is the goal
    next: int = 0


class WaypointPolicy(Policy):
    """Drives the ball of a point maze along the shortest path to the goal that its observation shows.

    ``state`` is one ``Plan`` a row; a row whose goal changed is planned anew. With ``deterministic=True``
    neither actions nor way-points are disturbed.

    Args:
        maze: the walls.
        obs_dim: O, size of the flat observation.
        motion: first column of (x, y, velocity x, velocity y) in it.
        goal: first column of the goal (x, y) in it.
    """

    kind: ClassVar[str] = "waypoint"

    def __init__(self, maze: MazeMap, obs_dim: int, motion: int, goal: int) -> None:
        super().__init__(obs_dim, 2)
        self.maze, self.motion_column, self.goal_column = maze, motion, goal

    @classmethod
    def for_env(cls, spec: EnvSpec | str) -> "WaypointPolicy":
        """The controller of a point-maze environment; its map is read once.

        Raises:
            ConfigError: the environment is not a point maze, or its flat observation lacks the goal.
        """
        env = make_env(spec)
        try:
            name = spec if isinstance(spec, str) else spec.env_id
            maze = getattr(env.unwrapped, "maze", None) if hasattr(env.unwrapped, "point_env") else None
            if maze is None or not isinstance(env, FlatObservation):
                raise ConfigError(f"the waypoint controller drives point mazes (PointMaze_*-v3), not {name}")
            columns, width = {}, 0
            for key in env.keys:
                columns[key] = width
                width += int(np.prod(env.env.observation_space[key].shape))  # type: ignore[index]
            if not {"observation", "desired_goal"} <= columns.keys():
                raise ConfigError(f"the controller must see 'observation' and 'desired_goal' of {name}")
            walls = MazeMap(
                free=np.array([[cell != 1 for cell in row] for row in maze.maze_map]),
                cell_size=float(maze.maze_size_scaling),
                corner=(-float(maze.x_map_center), float(maze.y_map_center)),
            )
            return cls(walls, width, columns["observation"], columns["desired_goal"])
        finally:
            env.close()

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[Plan]]:
        """Actions (B, 2) in [-1, 1] and the plans of the B rows."""
        rows = observations.cpu().numpy().astype(np.float64)
        motion = rows[:, self.motion_column : self.motion_column + 4]
        goals = rows[:, self.goal_column : self.goal_column + 2]
        jitter = None if deterministic else generator or torch.default_generator
        plans: list[Plan] = []
        for i, old in enumerate(state or [None] * len(rows)):
            plan = old if old and old.goal == tuple(goals[i]) else self.plan(motion[i, :2], goals[i], jitter)
            last = len(plan.waypoints) - 1
            reached = np.linalg.norm(plan.waypoints[plan.next] - motion[i, :2]) <= SWITCH
            plans.append(replace(plan, next=min(plan.next + 1, last)) if reached else plan)
        targets = np.stack([plan.waypoints[plan.next] for plan in plans])
        force = np.clip(GAIN * (targets - motion[:, :2]) - DAMPING * motion[:, 2:], -1.0, 1.0)
        actions = torch.as_tensor(force, dtype=torch.float32, device=observations.device)
        if not deterministic:
            actions = actions + NOISE * torch.randn(actions.shape, generator=generator, device=actions.device)
        return self.clip(actions), plans

    def plan(self, position: np.ndarray, goal: np.ndarray, generator: torch.Generator | None) -> Plan:
        """The way from ``position`` (2,) to ``goal`` (2,); way-points are shifted if there is a generator."""
        cells = self.maze.path(self.maze.cell(position), self.maze.cell(goal))
        waypoints = np.array([self.maze.center(cell) for cell in cells[:-1]] + [goal])
        if generator is not None:
            shift = torch.rand((len(waypoints) - 1, 2), generator=generator, device=generator.device)
            waypoints[:-1] -= JITTER * shift.cpu().numpy()
        return Plan((float(goal[0]), float(goal[1])), waypoints)

    def forward(self, observations: Tensor) -> Tensor:
        """The undisturbed actions (B, 2) of a first step."""
        return self.act(observations)[0]


def collect_waypoints(env_id: str, steps: int, *, seed: int = 0, reset_target: bool = True) -> OfflineDataset:
    """Record the noisy controller in one maze, where it goes on from goal to goal without a reset.

    An episode runs from one goal to the next and is cut, not terminated, when its goal is reached. The goal
    in a success row's next observation is the one that was reached.

    Args:
        env_id: a point maze, e.g. ``PointMaze_UMaze-v3``.
        steps: environment steps N; the last episode is cut where they end.
        seed: of the maze and of the noise.
        reset_target: whether a reached target moves; without it the ball would rest on its goal for ever.

    Returns:
        N rows with dict observations and true successors.

    Raises:
        ConfigError: not a point maze, or ``steps`` below 1.
    """
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more, got {steps}")
    kwargs = {"continuing_task": True, "reset_target": reset_target}
    spec = EnvSpec(env_id=env_id, kwargs=kwargs, horizon=steps + 1)
    policy = WaypointPolicy.for_env(spec)
    env = make_env(spec)
    try:
        rows = _walk(env, policy, steps, seed)
    finally:
        env.close()
    arrays = {name: np.asarray(values) for name, values in rows.items()}
    arrays["truncated"][-1] = True
    return OfflineDataset.from_arrays(
        _group(arrays, "observations."),
        arrays["actions"],
        arrays["rewards"],
        np.zeros(steps, dtype=bool),
        arrays["truncated"],
        next_observations=_group(arrays, "next_observations."),
        infos=_group(arrays, "infos."),
        metadata={"env_id": env_id, "env_kwargs": {}, "collector": "waypoint", "seed": seed, "noise": NOISE},
    )


def _walk(env: Any, policy: WaypointPolicy, steps: int, seed: int) -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(seed)
    data = mujoco_state(env)
    rows: dict[str, list[Any]] = {}

    def add(name: str, value: Any) -> None:
        rows.setdefault(name, []).append(np.array(value))

    flat, _ = env.reset(seed=seed)
    state: list[Plan] | None = None
    for _ in range(steps):
        for key, value in env.raw.items():
            add(f"observations.{key}", value)
        add("infos.qpos", data.qpos)
        add("infos.qvel", data.qvel)
        actions, state = policy.act(
            torch.from_numpy(flat)[None], state, deterministic=False, generator=generator
        )
        flat, reward, _, _, info = env.step(actions[0].numpy())
        for key, value in env.raw.items():
            add(f"next_observations.{key}", value)
        add("actions", actions[0].numpy())
        add("rewards", reward)
        add("truncated", info["success"])
        add("infos.success", info["success"])
        env.raw["desired_goal"] = env.unwrapped.goal.copy()  # it moved if it was reached
        flat = env.observation(env.raw)
    return rows


def _group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
