"""Which Gymnasium environment a policy trained on a D4RL, Minari or OGBench dataset is evaluated in today.

The verdicts: ``same`` (the environment that recorded the data), ``drifted`` (same observations, actions and
task, but physics or details changed: scores are comparable with each other, not with old tables), ``none``
(nothing installed today has these observations and this robot: evaluation is refused with the reason).

Sources: D4RL's environments (github.com/Farama-Foundation/D4RL: locomotion, pointmaze, kitchen,
hand_manipulation_suite), the generation scripts of Minari's datasets, and the installed packages
(Gymnasium 1.4, Gymnasium-Robotics 1.4.2, ogbench 1.2.2). The tests make every environment named here and
compare widths.
"""

import difflib
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from offrl.data.reference import (
    D4RL,
    FETCH_PICK,
    FETCH_PUSH,
    OGBENCH,
    PUSHT,
    OGBenchName,
    bare_name,
    ogbench_name,
)
from offrl.errors import DatasetError

Verdict = Literal["same", "drifted", "none"]


@dataclass(frozen=True)
class EnvSpec:
    """One row of the table: how to make the environment, and how far to trust it."""

    env_id: str  # Gymnasium id; empty where the verdict is none
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of gymnasium.make, JSON values
    flatten: tuple[str, ...] = ()  # keys of a dict observation, in order; empty if it is one array
    horizon: int | None = None  # steps of an evaluation episode
    verdict: Verdict = "same"
    reason: str = ""  # why not "same"
    goal_rule: str = ""  # what reaching the goal means, and what it pays
    obs_dim: int | None = None  # width of the flat observations in the data
    act_dim: int | None = None
    action_limit: float | None = None  # actions lie in [-limit, limit]


def environment_for(dataset_name: str) -> EnvSpec:
    """The row of a D4RL or OGBench name or Minari id, with or without its scheme.

    Raises:
        DatasetError: the name is in no table; the message offers the nearest one.
    """
    spec = find_environment(dataset_name)
    if spec is None:
        raise DatasetError(unknown_dataset(dataset_name))
    return spec


def find_environment(dataset_name: str) -> EnvSpec | None:
    """As ``environment_for``, with None for a name that is in no table (data of one's own)."""
    name = bare_name(dataset_name)
    if name in D4RL:
        return _d4rl(name)
    if parts := ogbench_name(name):
        return _ogbench(parts)
    for pattern, row in _MINARI:
        if match := re.fullmatch(pattern, name):
            return row(match)
    return None


def plain_row(env_id: str, kwargs: dict[str, Any]) -> EnvSpec | None:
    """The row of a Gymnasium v5 robot by its id, for data of one's own; None if it is not in the table."""
    for robot, (row_id, row_kwargs, *_) in _V5.items():
        if (row_id, row_kwargs) == (env_id, kwargs):
            return _v5_row(robot)
    return None


def named_environment(name: str) -> EnvSpec:
    """The environment that a person names: a short name (``pusht-state``) or a Gymnasium id.

    A dict observation gets its declared order.
    """
    if name in _SHORT_NAMES:
        return _SHORT_NAMES[name]
    return EnvSpec(env_id=name, flatten=flatten_order(name))


def module_named(env_id: str) -> str | None:
    """The module that an id MODULE:NAME makes Gymnasium import, unless the program imported it already.

    A person may name one; a file of data may not have code run that nobody asked for.
    """
    module, colon, _ = env_id.partition(":")
    return module if colon and module != "served" and module not in sys.modules else None


def key_columns(key: str) -> tuple[str, slice]:
    """A part of a dict observation in a flatten order: ``KEY``, or ``KEY[FROM:TO]`` for some of its columns."""
    match = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", key)
    return (key, slice(None)) if match is None else (match[1], slice(int(match[2]), int(match[3])))


def unknown_dataset(name: str) -> str:
    """The error line for a misspelt dataset name."""
    if name.startswith("ogbench:") or "-singletask" in name:
        return _unknown_ogbench(name)
    near = difflib.get_close_matches(bare_name(name), D4RL, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown dataset {name!r}{hint} ('offrl data list' shows all)"


def flatten_order(env_id: str) -> tuple[str, ...]:
    """The declared order in which an environment's dict observation is flattened; empty if none is declared.

    AntMaze keeps the position out of ``observation``, PointMaze and Fetch do not: only AntMaze needs
    ``achieved_goal``; its first 29 columns are then those of D4RL's AntMaze.
    """
    if env_id.startswith("AntMaze"):
        return ("achieved_goal", "observation", "desired_goal")
    if env_id.startswith(("PointMaze", "Fetch")):
        return ("observation", "desired_goal")
    return ("observation",) if env_id.startswith("FrankaKitchen") else ()


# --- robots ---------------------------------------------------------------------------------------------

_PUSHT_GOAL = "95 % of the T's target are covered; ends the episode; pays coverage / 0.95, at most 1, a step"
_SHORT_NAMES = {
    f"pusht-{view}": EnvSpec(PUSHT, {"obs_type": kind}, flatten, 300, "same", "", _PUSHT_GOAL, width, 2, None)
    for view, kind, flatten, width in (
        ("state", "state", (), 5),
        ("keypoints", "environment_state_agent_pos", ("agent_pos", "environment_state"), 18),
        ("pixels", "pixels_agent_pos", ("agent_pos", "pixels"), 27_650),
        ("all", "environment_state_agent_pos", ("agent_pos", "block_pose", "environment_state"), 21),
    )
}
# Of the 25 numbers: gripper and object positions, object from gripper, fingers, rotation, velocities.
_FETCH_GOAL = (
    "object within 0.05 m of the goal at the end or before; pays -1 a step until then; never ends the episode"
)
_SHORT_NAMES |= {
    f"fetch-{task}-{view}": EnvSpec(
        env_id, {}, (*flatten, "desired_goal"), 50, "same", "", _FETCH_GOAL, width, 4, 1.0
    )
    for task, env_id in (("pick", FETCH_PICK), ("push", FETCH_PUSH))
    for view, flatten, width in (
        ("state", ("observation",), 28),
        ("positions", ("observation[0:6]", "observation[9:11]"), 11),
    )
}

# --- D4RL -----------------------------------------------------------------------------------------------

_GYM_V2 = (
    "recorded with Gym v2 environments and mujoco-py; v4 keeps their observations, rewards and termination, "
    "but MuJoCo 3 moves a little differently"
)
# MuJoCo 2 under mujoco-py left the contact forces at zero, in the observation and in the reward (D4RL issue
# 143, gym issue 1711). An empty force range gives the same 84 zero columns.
_ANT = {"use_contact_forces": True, "contact_force_range": [0.0, 0.0]}
_LOCOMOTION = {  # robot -> id, arguments, observation and action widths
    "hopper": ("Hopper-v4", {}, 11, 3),
    "halfcheetah": ("HalfCheetah-v4", {}, 17, 6),
    "walker2d": ("Walker2d-v4", {}, 17, 6),
    "ant": ("Ant-v4", _ANT, 111, 8),
}
_HAND_WIDTHS = {"pen": (45, 24), "hammer": (46, 26), "door": (39, 28), "relocate": (39, 30)}
_HAND_STEPS = 200  # of the registered environments: another limit must be told to gymnasium.make
_HAND_GOALS = {
    "pen": "pen within 0.075 m of the target and aligned to 0.95; pays up to 60 a step while it is",
    "hammer": "nail within 0.01 m of the board; pays 100 a step while it is",
    "door": "hinge opened by 1.35 rad; pays 20 a step while it is",
    "relocate": "ball within 0.1 m of the target; pays 10 to 30 a step while it is",
}
_PEN_NEVER_ENDS = (
    "D4RL ended the episode when the pen dropped, AdroitHandPen-v1 goes on and charges 5 a step; "
    "recorded with mujoco-py"
)
_REACH_SIGN = (
    "AdroitHand{name}-v1 pays 0.1 x the hand's distance from the object where D4RL charged it (returns rise "
    "by 0.2 x that distance a step); recorded with mujoco-py"
)
_ANTMAZE_NONE = (
    "D4RL's ant is another robot: 30 Nm motors, 0.1 s a step (AntMaze v3 to v5: 150 Nm, 0.05 s), in a "
    "maze mirrored in y with its origin at the start cell; train on it, evaluate on D4RL's own environment"
)
_MAZE2D_NONE = (
    "D4RL's maze has x along the rows and its origin in a corner (PointMaze-v3: rotated by 90 degrees, "
    "centered), a fixed goal that its 4 observations leave out (PointMaze-v3 moves it by up to 0.25 at every "
    "reset) and a goal radius of 0.5 (0.45)"
)
_KITCHEN_NONE = (
    "D4RL's 60 observations are 30 positions and 30 goal positions; FrankaKitchen-v1 gives 59 positions and "
    "velocities, and no order of its keys makes the 60"
)
_MAZE2D_HORIZON = {
    "open-v0": 150,
    "umaze-v0": 150,
    "medium-v0": 250,
    "large-v0": 600,
    "umaze-v1": 300,
    "medium-v1": 600,
    "large-v1": 800,
}


def _d4rl(name: str) -> EnvSpec:
    family, _, task = name.partition("-")
    if family in _LOCOMOTION:
        env_id, kwargs, obs_dim, act_dim = _LOCOMOTION[family]
        reason = _GYM_V2 + ("; contact forces are held at zero, as in the data" if family == "ant" else "")
        return EnvSpec(env_id, dict(kwargs), (), 1000, "drifted", reason, "", obs_dim, act_dim, 1.0)
    if family in _HAND_WIDTHS:
        return _hand(family, horizon=100 if family == "pen" else _HAND_STEPS, d4rl=True)
    if family == "antmaze":
        rule = "within 0.5 m of the goal; ends the episode and pays 1"
        return _refused(_ANTMAZE_NONE, 700 if "umaze" in task else 1000, 29, 8, rule)
    if family == "maze2d":
        rule = "within 0.5 of the fixed goal; pays 1 a step (dense: exp(-distance))"
        horizon = _MAZE2D_HORIZON[task.replace("eval-", "").replace("dense-", "")]
        return _refused(_MAZE2D_NONE, horizon, 4, 2, rule)
    if family == "kitchen":
        return _refused(
            _KITCHEN_NONE, 280, 60, 9, "a sub-task within 0.3 of its goal pays 1 once; ends after 4"
        )
    return _refused("its actions are discrete; this library learns continuous actions only", None, None, None)


def _refused(
    reason: str, horizon: int | None, obs_dim: int | None, act_dim: int | None, goal_rule: str = ""
) -> EnvSpec:
    limit = None if act_dim is None else 1.0
    return EnvSpec("", {}, (), horizon, "none", reason, goal_rule, obs_dim, act_dim, limit)


def _hand(hand: str, *, horizon: int, d4rl: bool) -> EnvSpec:
    title = hand.capitalize()
    obs_dim, act_dim = _HAND_WIDTHS[hand]
    verdict: Verdict = "drifted"
    if hand == "pen":
        reason = _PEN_NEVER_ENDS if d4rl else ""
        verdict = "drifted" if d4rl else "same"
    elif d4rl:
        reason = _REACH_SIGN.format(name=title)
    else:
        reason = (
            f"Gymnasium-Robotics 1.2.1 changed the reward of AdroitHand{title}-v1 without a new version; "
            "the data may hold the older one"
        )
    goal = _HAND_GOALS[hand]
    kwargs = {} if horizon == _HAND_STEPS else {"max_episode_steps": horizon}
    return EnvSpec(f"AdroitHand{title}-v1", kwargs, (), horizon, verdict, reason, goal, obs_dim, act_dim, 1.0)


# --- Minari, and this project's own zoo -----------------------------------------------------------------

_STANDUP = {  # the arguments of the generation script
    "include_cinert_in_observation": False,
    "include_cvel_in_observation": False,
    "include_qfrc_actuator_in_observation": False,
    "include_cfrc_ext_in_observation": False,
    "ctrl_cost_weight": 0,
    "impact_cost_weight": 0,
}
_V5 = {  # Minari's spelling -> id, arguments, horizon, observation and action widths, action limit
    "hopper": ("Hopper-v5", {}, 1000, 11, 3, 1.0),
    "halfcheetah": ("HalfCheetah-v5", {}, 1000, 17, 6, 1.0),
    "walker2d": ("Walker2d-v5", {}, 1000, 17, 6, 1.0),
    "ant": ("Ant-v5", {}, 1000, 105, 8, 1.0),
    "humanoid": ("Humanoid-v5", {}, 1000, 348, 17, 0.4),
    "humanoidstandup": ("HumanoidStandup-v5", _STANDUP, 1000, 45, 17, 0.4),
    "invertedpendulum": ("InvertedPendulum-v5", {}, 1000, 4, 1, 3.0),
    "inverteddoublependulum": ("InvertedDoublePendulum-v5", {}, 1000, 9, 1, 1.0),
    "pusher": ("Pusher-v5", {}, 100, 23, 7, 2.0),
    "reacher": ("Reacher-v5", {}, 50, 10, 2, 1.0),
    "swimmer": ("Swimmer-v5", {}, 1000, 8, 2, 1.0),
}
_POINT_MAZES = {
    "open": ("Open", 300),
    "umaze": ("UMaze", 300),
    "medium": ("Medium", 600),
    "large": ("Large", 800),
}
# Start r and goal g as in D4RL. UMaze is the maze that the data were recorded in: the evaluation map that
# ships with the dataset is its mirror image (Minari issue 304).
_ANT_MAZES: dict[str, tuple[str, int, list[str]]] = {
    "umaze": ("UMaze", 700, ["11111", "1g001", "11101", "1r001", "11111"]),
    "medium": (
        "Medium",
        1000,
        ["11111111", "1r011001", "10010001", "11000111", "10010001", "10100101", "100010g1", "11111111"],
    ),
    "large": (
        "Large",
        1000,
        [
            "111111111111",
            "1r0001000001",
            "101101010101",
            "100000010001",
            "101111011101",
            "100101000001",
            "110101010111",
            "100100010g01",
            "111111111111",
        ],
    ),
}
_KITCHEN_TASKS = {
    "complete": ["microwave", "kettle", "light switch", "slide cabinet"],
    "partial": ["microwave", "kettle", "light switch", "slide cabinet"],
    "mixed": ["microwave", "kettle", "bottom burner", "light switch"],
}


def _v5_row(robot: str) -> EnvSpec | None:
    row = _V5.get(robot)
    if row is None:
        return None
    env_id, kwargs, horizon, obs_dim, act_dim, limit = row
    return EnvSpec(env_id, dict(kwargs), (), horizon, "same", "", "", obs_dim, act_dim, limit)


def _point_maze(match: re.Match[str]) -> EnvSpec:
    size, horizon = _POINT_MAZES[match["size"]]
    dense = "Dense" if match["dense"] else ""
    env_id = f"PointMaze_{size}{dense}-v3"
    pays = "pays exp(-distance) a step" if dense else "pays 1 a step while within 0.45"
    rule = f"the goal of the episode is observed and stays; {pays}; never ends the episode"
    kwargs = {"continuing_task": True, "reset_target": False}
    return EnvSpec(env_id, kwargs, flatten_order(env_id), horizon, "same", "", rule, 6, 2, 1.0)


def _ant_maze(match: re.Match[str]) -> EnvSpec:
    size, horizon, rows = _ANT_MAZES[match["size"]]
    maze: list[list[int | str]] = [[int(c) if c in "01" else c for c in row] for row in rows]
    env_id = f"AntMaze_{size}-v4"
    kwargs = {"maze_map": maze, "continuing_task": False}
    rule = "within 0.45 m of the goal; ends the episode and pays 1 (the data go on at the goal)"
    return EnvSpec(env_id, kwargs, flatten_order(env_id), horizon, "same", "", rule, 31, 8, 1.0)


def _kitchen(match: re.Match[str]) -> EnvSpec:
    kwargs = {"tasks_to_complete": list(_KITCHEN_TASKS[match["kind"]])}
    rule = "a sub-task within 0.3 of its goal pays 1 once; ends after 4 (the data pay on while it stays done)"
    flatten = flatten_order("FrankaKitchen-v1")
    return EnvSpec("FrankaKitchen-v1", kwargs, flatten, 280, "same", "", rule, 59, 9, 1.0)


_MINARI = (
    (r"mujoco/(?P<robot>\w+)/[\w-]+-v\d+", lambda m: _v5_row(m["robot"])),
    (r"zoo/(?P<robot>hopper|halfcheetah|walker2d|ant)-[\w-]+", lambda m: _v5_row(m["robot"])),
    (
        r"(?:D4RL/pointmaze/|zoo/pointmaze-)(?P<size>open|umaze|medium|large)(?P<dense>-dense)?(?:-v\d+)?",
        _point_maze,
    ),
    (r"D4RL/antmaze/(?P<size>umaze|medium|large)(?:-play|-diverse)?-v\d+", _ant_maze),
    (r"D4RL/kitchen/(?P<kind>complete|partial|mixed)-v\d+", _kitchen),
    (
        r"D4RL/(?P<hand>pen|hammer|door|relocate)/[\w-]+-v\d+",
        lambda m: _hand(m["hand"], horizon=_HAND_STEPS, d4rl=False),
    ),
)


# --- OGBench --------------------------------------------------------------------------------------------

_OGBENCH = {  # environment -> horizon, observation and action widths, default task
    **{f"pointmaze-{maze}": (1000, 2, 2, 1) for maze in ("medium", "large", "giant", "teleport")},
    **{f"antmaze-{maze}": (1000, 29, 8, 1) for maze in ("medium", "large", "giant", "teleport")},
    **{f"humanoidmaze-{maze}": (2000, 69, 21, 1) for maze in ("medium", "large")},
    "humanoidmaze-giant": (4000, 69, 21, 1),
    **{f"antsoccer-{maze}": (1000, 42, 8, 4) for maze in ("arena", "medium")},
    "cube-single": (200, 28, 5, 2),
    "cube-double": (500, 37, 5, 2),
    "cube-triple": (1000, 46, 5, 2),
    "cube-quadruple": (1000, 55, 5, 2),
    "scene": (750, 40, 5, 2),
    "puzzle-3x3": (500, 55, 5, 4),
    "puzzle-4x4": (500, 83, 5, 4),
    "puzzle-4x5": (1000, 99, 5, 2),
    "puzzle-4x6": (1000, 115, 5, 2),
}
_OGBENCH_GOALS = {
    "pointmaze": "within 1 of the goal",
    "antmaze": "within 0.5 of the goal",
    "humanoidmaze": "within 0.5 of the goal",
    "antsoccer": "ball within 0.5 of the goal",
    "cube": "every cube within 0.04 m of its place",
    "scene": "cube, drawer and window within 0.04 of their places, buttons in their states",
    "puzzle": "every button in its state",
}


def _ogbench(name: OGBenchName) -> EnvSpec:
    horizon, obs_dim, act_dim, default = _OGBENCH[name.environment]
    family = name.environment.partition("-")[0]
    pays = (
        "-1 a step until then"
        if "maze" in family or "soccer" in family
        else "-1 a step for each part missing"
    )
    task = name.task.removeprefix("-task") or f"{default} (the default)"
    rule = f"task {task}: {_OGBENCH_GOALS[family]}; pays {pays}, 0 and the end of the episode at a step from there"
    return EnvSpec(name.env_id, {}, (), horizon, "same", "", rule, obs_dim, act_dim, 1.0)


def _unknown_ogbench(name: str) -> str:
    bare = bare_name(name)
    data = re.sub(r"-v0(-val)?$", "", re.sub(r"-singletask(-task\w*)?", "", bare))
    if data.startswith("visual-"):
        return f"{name!r} has images as observations, which no method here takes"
    if data in OGBENCH and "-singletask" not in bare:
        return (
            f"{name!r} has no rewards: name a task of it, ogbench:{data}-singletask-v0 (the default one) or "
            f"ogbench:{data}-singletask-task1-v0 to -task5-v0"
        )
    near = data if data in OGBENCH else next(iter(difflib.get_close_matches(data, OGBENCH, n=1)), None)
    hint = f"; did you mean 'ogbench:{near}-singletask-v0'?" if near else ""
    return f"unknown OGBench dataset {name!r}{hint} ('offrl data list' shows all)"
