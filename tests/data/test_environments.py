"""The table of environments, against the environments themselves."""

import json

import gymnasium
import numpy as np
import pytest

from offrl.data.environments import environment_for, find_environment, flatten_order
from offrl.data.reference import D4RL
from offrl.errors import ConfigError, DatasetError
from offrl.evaluation.environments import make_env

MINARI = [
    *(
        f"mujoco/{robot}/medium-v0"
        for robot in ("hopper", "halfcheetah", "walker2d", "ant", "humanoid", "humanoidstandup")
    ),
    *(
        f"mujoco/{robot}/expert-v0"
        for robot in ("invertedpendulum", "inverteddoublependulum", "pusher", "reacher")
    ),
    "mujoco/swimmer/medium-v0",
    *(f"D4RL/pointmaze/{size}-v2" for size in ("open", "umaze", "medium-dense", "large")),
    *(f"D4RL/antmaze/{task}-v1" for task in ("umaze", "umaze-diverse", "medium-play", "large-diverse")),
    *(f"D4RL/kitchen/{kind}-v2" for kind in ("complete", "mixed")),
    *(f"D4RL/{hand}/human-v2" for hand in ("pen", "hammer", "door", "relocate")),
    "zoo/hopper-medium-v0",
    "zoo/pointmaze-umaze",
]


KITCHEN = "D4RL/kitchen/complete-v2"  # takes a second to make: once, for all tests


def rows():
    """One name for each distinct environment of the table, the kitchen left out."""
    found = {}
    for name in [*D4RL, *MINARI]:
        spec = environment_for(name)
        found.setdefault(json.dumps([spec.env_id, spec.kwargs, spec.horizon]), name)
    refused = ("", "FrankaKitchen-v1")
    return [name for name in found.values() if environment_for(name).env_id not in refused]


@pytest.fixture(scope="module")
def kitchen():
    env = make_env(environment_for(KITCHEN))
    yield env
    env.close()


def check_row(spec, env):
    observation, _ = env.reset(seed=0)
    assert observation.shape == (spec.obs_dim,)
    assert env.action_space.shape == (spec.act_dim,)
    np.testing.assert_allclose(np.abs([env.action_space.low, env.action_space.high]), spec.action_limit)
    assert env.spec.max_episode_steps == spec.horizon
    registered = gymnasium.spec(spec.env_id).max_episode_steps
    alone = spec.kwargs.get("max_episode_steps", registered)
    assert alone == spec.horizon, "datasets and runs keep id and arguments, not the horizon"


@pytest.mark.parametrize("name", rows())
def test_the_environment_has_the_widths_and_limits_that_the_table_states(name):
    spec = environment_for(name)
    env = make_env(spec)
    check_row(spec, env)
    env.close()


def test_the_kitchen_has_the_widths_and_limits_that_the_table_states(kitchen):
    check_row(environment_for(KITCHEN), kitchen)


def test_hopper_maze_hand_kitchen_and_fetch_can_be_made_and_stepped(kitchen):
    """Guards the cap on MuJoCo: later releases break Gymnasium-Robotics' joint getters."""
    widths = {"Hopper-v5": 11, "PointMaze_UMaze-v3": 6, "AdroitHandPen-v1": 45, "FetchReach-v4": 13}
    for env, width in [*((make_env(env_id), width) for env_id, width in widths.items()), (kitchen, 59)]:
        env.reset(seed=0)
        observation, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        assert observation.shape == (width,)
        assert np.isfinite(observation).all()
        assert np.isfinite(reward)
        assert (terminated, truncated) == (False, False)


def test_every_name_has_a_row_and_every_doubt_a_reason():
    for name in [*D4RL, *MINARI]:
        spec = environment_for(name)
        assert (spec.verdict == "same") == (spec.reason == "")
        assert (spec.verdict == "none") == (spec.env_id == "")
        assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
        if name in D4RL:
            assert spec.verdict != "same"


def test_every_d4rl_name_has_a_horizon_and_widths_except_the_discrete_ones():
    for name in D4RL:
        spec = environment_for(name)
        known = not name.startswith("minigrid")
        assert (spec.horizon is not None, spec.obs_dim is not None, spec.act_dim is not None) == (known,) * 3
    horizons = {"pen-human-v1": 100, "door-human-v1": 200, "kitchen-mixed-v0": 280, "antmaze-umaze-v2": 700}
    horizons |= {"antmaze-large-play-v2": 1000, "maze2d-umaze-v1": 300, "maze2d-eval-large-dense-v1": 800}
    horizons |= {"hopper-medium-v2": 1000, "maze2d-medium-v0": 250}
    assert {name: environment_for(name).horizon for name in horizons} == horizons


def test_ant_contact_columns_are_zero_as_in_the_data():
    """D4RL's ant files hold 84 zero columns; with the default force range v4 fills them (up to 1)."""
    spec = environment_for("ant-medium-v2")
    for kwargs, largest in ((spec.kwargs, 0.0), ({"use_contact_forces": True}, 1.0)):
        env = make_env(type(spec)(spec.env_id, kwargs))
        env.reset(seed=0)
        env.action_space.seed(0)
        seen = [env.step(env.action_space.sample())[0][27:] for _ in range(100)]
        assert np.abs(seen).max() == pytest.approx(largest)
        env.close()


def test_todays_ant_maze_is_another_robot_in_another_frame():
    """Why D4RL's AntMaze is refused: its ant has 30 Nm motors, 0.1 s a step, and starts at (0, 0)."""
    make_env("AntMaze_UMaze-v4").close()  # registers the robotics environments
    maze = [[1, 1, 1, 1, 1], [1, "r", 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", 0, 0, 1], [1, 1, 1, 1, 1]]
    env = make_env(type(environment_for("hopper-medium-v2"))("AntMaze_UMaze-v4", {"maze_map": maze}))
    base = env.unwrapped
    assert base.ant_env.dt == pytest.approx(0.05)
    assert set(base.ant_env.model.actuator_gear[:, 0]) == {150.0}
    np.testing.assert_allclose(base.maze.unique_reset_locations, [[-4, 4]])  # D4RL: (0, 0)
    np.testing.assert_allclose(base.maze.unique_goal_locations, [[-4, -4]])  # D4RL: (0, 8)
    env.close()


def test_todays_point_maze_frame_is_rotated():
    """D4RL's x counts the rows of the maze (goal of the U at (1, 1)), PointMaze's x the columns."""
    maze = [[1, 1, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    env = make_env(type(environment_for("hopper-medium-v2"))("PointMaze_UMaze-v3", {"maze_map": maze}))
    np.testing.assert_allclose(env.unwrapped.maze.unique_goal_locations, [[1, 1]])  # row 1, column 3 of 5
    env.close()


def test_no_order_of_the_kitchens_keys_gives_d4rls_sixty_observations(kitchen):
    space = kitchen.unwrapped.observation_space
    goals = sum(part.shape[0] for part in space["desired_goal"].values())
    assert (space["observation"].shape, goals) == ((59,), 11)  # 59, 70 or 81, never 60


def test_a_refused_dataset_cannot_be_made_into_an_environment():
    for name in ("antmaze-umaze-v2", "maze2d-umaze-v1", "kitchen-complete-v0", "minigrid-fourrooms-v0"):
        spec = environment_for(name)
        with pytest.raises(ConfigError, match=spec.reason[:30]):
            make_env(spec)


def test_ant_mazes_are_the_mazes_of_the_recording():
    """Walls as in the registered maps; one start, one goal, at D4RL's places (the U upside down)."""
    make_env("AntMaze_UMaze-v4").close()
    for task, size in (("umaze", "UMaze"), ("medium-play", "Medium"), ("large-play", "Large")):
        ours = environment_for(f"D4RL/antmaze/{task}-v1").kwargs["maze_map"]
        theirs = gymnasium.spec(f"AntMaze_{size}-v4").kwargs["maze_map"]
        assert [[0 if c in ("r", "g") else c for c in row] for row in ours] == theirs
        assert sorted(str(c) for row in ours for c in row if c in ("r", "g")) == ["g", "r"]


def test_unknown_names_are_refused_with_the_nearest_one():
    assert find_environment("my/own-v0") is None
    with pytest.raises(
        DatasetError, match=r"'hoper-medium-v2'; did you mean 'hopper-medium-v2'\? \('offrl data list'"
    ):
        environment_for("hoper-medium-v2")
    with pytest.raises(DatasetError, match="unknown dataset 'mujoco/dog/medium-v0'"):
        environment_for("mujoco/dog/medium-v0")
    assert find_environment("hopper-medium-v2/../x") is None


def test_flatten_orders_are_those_of_the_rows():
    assert environment_for("D4RL/antmaze/umaze-v1").flatten == flatten_order("AntMaze_UMaze-v4")
    assert environment_for("zoo/pointmaze-medium-v0").flatten == ("observation", "desired_goal")
    assert flatten_order("Hopper-v5") == ()
