"""Where D4RL's and OGBench's files can be downloaded.

Addresses are tried in order. ``OFFRL_DATA_MIRROR`` (base addresses, separated by commas) replaces the public
ones; under each base ``BASE/NAME.hdf5`` (OGBench: ``.npz``) is asked for first, then ``BASE/`` + the file's
official path (OGBench: ``BASE/ogbench/NAME.npz``).
"""

import os
import re

from offrl.data.reference import bare_name, ogbench_name
from offrl.errors import ConfigError

# Facts from D4RL's registrations, public forks and ogbench/utils.py; whether they answer today was not tested.
MIRRORS: tuple[str, ...] = (
    "http://rail.eecs.berkeley.edu/datasets/offline_rl/{path}",
    "https://huggingface.co/datasets/imone/D4RL/resolve/main/{file}",
)
OGBENCH_MIRRORS: tuple[str, ...] = ("https://rail.eecs.berkeley.edu/datasets/{path}",)


def addresses(name: str) -> list[str]:
    """The addresses to try for a D4RL or OGBench name, in order."""
    if parts := ogbench_name(name):
        file, path, mirrors = f"{parts.file}.npz", f"ogbench/{parts.file}.npz", OGBENCH_MIRRORS
    else:
        file, path, mirrors = f"{bare_name(name)}.hdf5", official_path(name), MIRRORS
    bases = [base.strip().rstrip("/") for base in os.environ.get("OFFRL_DATA_MIRROR", "").split(",")]
    bases = [base for base in bases if base]
    if wrong := [base for base in bases if not re.match(r"https?://[^/]", base)]:
        raise ConfigError(
            f"OFFRL_DATA_MIRROR must hold http:// or https:// addresses separated by commas, got {wrong[0]!r}"
        )
    if bases:
        return [f"{base}/{tail}" for base in bases for tail in (file, path)]
    return [mirror.format(path=path, file=path.rpartition("/")[2]) for mirror in mirrors]


def official_path(name: str) -> str:
    """The path of a dataset's file below D4RL's public folder.

    Source: D4RL's registrations (d4rl/infos.py and the packages' ``__init__`` files).
    """
    name = bare_name(name)
    stem, _, version = name.rpartition("-v")
    family, _, task = stem.partition("-")
    if family in ("halfcheetah", "hopper", "walker2d", "ant"):
        if version != "0":
            return f"gym_mujoco_v{version}/{family}_{task.replace('-', '_')}-v{version}.hdf5"
        if task == "medium-replay":
            return f"gym_mujoco/{family.removesuffix('2d')}_mixed.hdf5"
        return f"gym_mujoco/{family}_{task.replace('-', '_')}.hdf5"
    if family == "antmaze":
        return _antmaze_path(task, version)
    if family == "maze2d":
        reward = "" if task.endswith("dense") else "-sparse"
        return f"maze2d/{stem}{reward}{'-v1' if version == '1' else ''}.hdf5"
    if family in ("kitchen", "minigrid"):
        return _OTHER_FILES[name]
    if version != "0":
        return f"hand_dapg_v{version}/{name}.hdf5"
    kind = {"human": "v0_demos_clipped", "cloned": "demos-v0-bc-combined", "expert": "v0_expert_clipped"}[
        task
    ]
    return f"hand_dapg/{family}-{kind}.hdf5"


_OTHER_FILES = {
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
    "minigrid-fourrooms-v0": "minigrid/minigrid4rooms.hdf5",
    "minigrid-fourrooms-random-v0": "minigrid/minigrid4rooms_random.hdf5",
}
# The eval sets' flags are D4RL's own: in the medium and large mazes play and diverse are the other way round.
_MULTIGOAL = {"umaze": False, "umaze-diverse": True, "medium-play": False, "large-play": False}
_MULTIGOAL_EVAL = {"umaze": False, "umaze-diverse": True, "medium-diverse": False, "large-diverse": False}


def _antmaze_path(task: str, version: str) -> str:
    evaluation, task = task.startswith("eval-"), task.removeprefix("eval-")
    size = task.split("-")[0]
    starts = evaluation or task != "umaze"
    goals = (_MULTIGOAL_EVAL if evaluation else _MULTIGOAL).get(task, True)
    flags = f"noisy_multistart_{starts}_multigoal_{goals}_sparse"
    if evaluation:
        return f"ant_maze_new/Ant_maze_{size}_eval_{flags}.hdf5"
    if version == "1":
        return f"ant_maze_v1/Ant_maze_{size}_{flags}.hdf5"
    maze = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}[size]
    folder, fixed = ("ant_maze_new", "") if version == "0" else ("ant_maze_v2", "_fixed")
    return f"{folder}/Ant_maze_{maze}_{flags}{fixed}.hdf5"
