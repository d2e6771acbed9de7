"""Returns of a random and an expert policy, by dataset name, and the 0-100 score made from them.

    score = 100 (R - random) / (expert - random)

In OGBench's single tasks R is not the return but 1 for an episode that succeeds, else 0: the score is the
success rate in percent, although a step pays -1 for each part of the goal that is not met.

All qualities and versions of one D4RL robot share one pair. Minari's ``mujoco/...`` sets and this project's
own ``zoo/...`` sets ship none: they borrow D4RL's pair of the same robot and say so in their label. A robot
that D4RL does not have gets None, never a guess.

Sources: D4RL (arXiv:2004.07219), d4rl/infos.py and the registrations in d4rl/pointmaze and d4rl/locomotion;
OGBench (arXiv:2410.20092), its list of datasets and the registrations of ogbench 1.2.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from offrl.errors import ConfigError, DatasetError

Pair = tuple[float, float]  # undiscounted returns of an episode: (random, expert)

MUJOCO: dict[str, Pair] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
ADROIT: dict[str, Pair] = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
ANTMAZE: Pair = (0.0, 1.0)  # an episode pays 1 on success
KITCHEN: Pair = (0.0, 4.0)  # sub-tasks
MAZE2D: dict[str, Pair] = {
    "open-v0": (0.01, 20.66),
    "umaze-v0": (0.94, 62.6),
    "medium-v0": (5.77, 85.14),
    "large-v0": (4.83, 191.99),
    "umaze-v1": (23.85, 161.86),
    "medium-v1": (13.13, 277.39),
    "large-v1": (6.7, 273.99),
    "eval-umaze-v1": (36.63, 141.4),
    "eval-medium-v1": (13.07, 204.93),
    "eval-large-v1": (16.4, 302.22),
    "open-dense-v0": (11.17817, 27.166538620695782),
    "umaze-dense-v0": (23.249793, 81.78995240126592),
    "medium-dense-v0": (19.47762, 96.03474232952358),
    "large-dense-v0": (27.38831, 215.09965671563742),
    "umaze-dense-v1": (68.537689, 193.66285642381482),
    "medium-dense-v1": (44.264742, 297.4552547777125),
    "large-dense-v1": (30.569041, 303.4857382709002),
    "eval-umaze-dense-v1": (56.95455, 178.21373133248397),
    "eval-medium-dense-v1": (42.28578, 235.5658957482388),
    "eval-large-dense-v1": (56.95455, 326.09647655082637),
}
MINIGRID: Pair = (0.01442, 2.89685)

# The qualities that exist: full-replay came with v1. Left out: the renamed *-mixed-v0, ant-random-expert-v0
# (has no reference pair) and the antmaze-ultra sets (hosted elsewhere).
QUALITIES = ("random", "medium", "expert", "medium-replay", "medium-expert")
ANTMAZE_TASKS = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")


def _d4rl_table() -> dict[str, Pair]:
    table: dict[str, Pair] = {}
    for robot, pair in MUJOCO.items():
        table |= {f"{robot}-{quality}-v0": pair for quality in QUALITIES}
        table |= {f"{robot}-{quality}-v{v}": pair for v in (1, 2) for quality in (*QUALITIES, "full-replay")}
    table |= {f"antmaze-{task}-v{version}": ANTMAZE for version in (0, 1, 2) for task in ANTMAZE_TASKS}
    table |= {f"antmaze-eval-{task}-v0": ANTMAZE for task in ANTMAZE_TASKS}
    table |= {f"maze2d-{task}": pair for task, pair in MAZE2D.items()}
    for hand, pair in ADROIT.items():
        table |= {f"{hand}-{kind}-v{v}": pair for v in (0, 1) for kind in ("human", "cloned", "expert")}
    table |= {f"kitchen-{kind}-v0": KITCHEN for kind in ("complete", "partial", "mixed")}
    return table | {"minigrid-fourrooms-v0": MINIGRID, "minigrid-fourrooms-random-v0": MINIGRID}


D4RL: dict[str, Pair] = _d4rl_table()  # every D4RL name that this library knows

# --- OGBench --------------------------------------------------------------------------------------------

PUSHT = "gym_pusht/PushT-v0"
FETCH_PICK, FETCH_PUSH = "FetchPickAndPlace-v4", "FetchPush-v4"
SUCCESS: Pair = (0.0, 1.0)  # an episode counts 1 if it succeeds
OGBENCH: tuple[str, ...] = tuple(  # every OGBench dataset with vector observations: environment and kind
    f"{group}-{variant}-{kind}".replace("--", "-")
    for group, variants, kinds in (
        ("pointmaze", ("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
        ("antmaze", ("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
        ("antmaze", ("medium", "large", "teleport"), ("explore",)),
        ("humanoidmaze", ("medium", "large", "giant"), ("navigate", "stitch")),
        ("antsoccer", ("arena", "medium"), ("navigate", "stitch")),
        ("cube", ("single", "double", "triple", "quadruple"), ("play", "noisy")),
        ("scene", ("",), ("play", "noisy")),
        ("puzzle", ("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
    )
    for variant in variants
    for kind in kinds
)
_SINGLETASK = re.compile(r"(?P<data>[\w-]+?)-singletask(?P<task>-task[1-5])?-v0(?P<val>-val)?")


@dataclass(frozen=True)
class OGBenchName:
    """The parts of an OGBench name ``DATA-singletask[-taskK]-v0[-val]``."""

    data: str  # environment and kind of data: antmaze-large-navigate
    task: str  # "-task1" .. "-task5"; "" is the environment's default task
    val: str  # "-val" for the held-out data, else ""

    @property
    def file(self) -> str:
        """Stem of the public file, which all tasks share."""
        return f"{self.data}-v0{self.val}"

    @property
    def environment(self) -> str:
        """The environment without its task: antmaze-large."""
        return self.data.rpartition("-")[0]

    @property
    def env_id(self) -> str:
        """Gymnasium id of the task."""
        return f"{self.environment}-singletask{self.task}-v0"


def ogbench_name(name: str) -> OGBenchName | None:
    """The parts of an OGBench single-task name, with or without ``ogbench:``; None for any other name."""
    match = _SINGLETASK.fullmatch(name.removeprefix("ogbench:"))
    if match is None or match["data"] not in OGBENCH:
        return None
    return OGBenchName(match["data"], match["task"] or "", match["val"] or "")


def scored_by_success(env_id: str) -> bool:
    """Whether scores in this environment are success rates (OGBench's single tasks, robots), not scaled returns."""
    return (
        env_id in (PUSHT, FETCH_PICK, FETCH_PUSH)
        or re.fullmatch(r"[\w-]+-singletask(-task[1-5])?-v0", env_id) is not None
    )


def scored_values(env_id: str | None, returns: np.ndarray, successes: np.ndarray | None) -> np.ndarray:
    """What the episodes' scores are made of: their returns, or their successes (0 or 1) where those count.

    Raises:
        ConfigError: a score needs the successes, and they were not recorded.
    """
    if env_id is None or not scored_by_success(env_id):
        return returns
    if successes is None:
        raise ConfigError(f"scores in {env_id} are success rates, but no successes were recorded")
    return np.asarray(successes, dtype=np.float64)


# --- looking up -----------------------------------------------------------------------------------------

_MINARI: tuple[tuple[str, dict[str, Pair], str], ...] = (  # pattern (its group is the key), pairs, label
    (r"mujoco/(\w+)/[\w-]+-v\d+", MUJOCO, "v5 env, D4RL reference"),
    (r"zoo/(hopper|halfcheetah|walker2d|ant)-[\w-]+", MUJOCO, "v5 env, D4RL reference"),
    (r"D4RL/(pen|hammer|door|relocate)/[\w-]+-v\d+", ADROIT, "AdroitHand v1 env, D4RL reference"),
    (r"D4RL/(kitchen)/[\w-]+-v\d+", {"kitchen": KITCHEN}, "FrankaKitchen v1 env, D4RL reference"),
    (r"D4RL/(antmaze)/[\w-]+-v\d+", {"antmaze": ANTMAZE}, "success rate"),
)


def bare_name(name: str) -> str:
    """A dataset's name without its scheme: ``d4rl:hopper-medium-v2`` becomes ``hopper-medium-v2``."""
    return name.removeprefix("d4rl:").removeprefix("minari:").removeprefix("ogbench:")


def reference_returns(name: str) -> Pair | None:
    """Returns of a random and an expert policy for a dataset, or None when they are not known.

    Args:
        name: a D4RL or OGBench name or a Minari id, with or without its scheme.
    """
    return _look_up(name)[0]


def reference_label(name: str) -> str | None:
    """Where the reference returns come from, for tables and reports; None where there are none."""
    return _look_up(name)[1]


def normalized_score(reference: str | Sequence[float], returns: ArrayLike) -> np.ndarray:
    """Scores on 0-100 (below 0 and above 100 are possible).

    Args:
        reference: a dataset's name, or the pair (random return, expert return).
        returns: undiscounted episode returns, any shape.

    Returns:
        float64, the shape of ``returns``.

    Raises:
        DatasetError: the dataset has no reference returns.
        ConfigError: the pair is not (random, expert) with random < expert.
    """
    pair = reference_returns(reference) if isinstance(reference, str) else tuple(reference)
    if pair is None:
        raise DatasetError(
            f"no reference returns for {reference!r}; pass the pair (random_return, expert_return)"
        )
    if len(pair) != 2 or not (np.isfinite(pair).all() and pair[0] < pair[1]):
        raise ConfigError(f"reference returns must be (random, expert) with random < expert, got {pair}")
    low, high = pair
    return 100.0 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)


def _look_up(name: str) -> tuple[Pair | None, str | None]:
    name = bare_name(name)
    if name in D4RL:
        return D4RL[name], "D4RL reference"
    if ogbench_name(name):
        return SUCCESS, "success rate"
    for pattern, pairs, label in _MINARI:
        match = re.fullmatch(pattern, name)
        if match and match[1] in pairs:
            return pairs[match[1]], label
    return None, None
