import pickle

import gymnasium
import numpy as np
import pytest
import torch

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.evaluation.rollout import evaluate
from offrl.evaluation.waypoint import MazeMap, Plan, WaypointPolicy, collect_waypoints

U_MAZE = "PointMaze_UMaze-v3"


def u_map() -> MazeMap:
    """5 x 5 cells of size 1 around the origin; the free ones form a U that opens to the left."""
    rows = ["11111", "10001", "11101", "10001", "11111"]
    return MazeMap(np.array([[c == "0" for c in row] for row in rows]), 1.0, (-2.5, 2.5))


def u_policy() -> WaypointPolicy:
    return WaypointPolicy(u_map(), obs_dim=6, motion=0, goal=4)


def observation(position=(0.0, 0.0), velocity=(0.0, 0.0), goal=(0.0, 0.0)) -> torch.Tensor:
    return torch.tensor([[*position, *velocity, *goal]], dtype=torch.float32)


@pytest.fixture(scope="module")
def walk():
    return collect_waypoints(U_MAZE, 2000, seed=123)


def test_cells_count_rows_downwards_and_columns_to_the_right():
    """x in (-0.5, 0.5) is column 2 of 5, y in (0.5, 1.5) is row 1: rows start at the top."""
    maze = u_map()
    assert maze.cell(np.array([0.2, 1.3])) == (1, 2)
    assert maze.center((1, 2)).tolist() == [0.0, 1.0]
    assert all(maze.cell(maze.center((i, j))) == (i, j) for i in range(5) for j in range(5))


def test_path_goes_round_the_wall():
    """From one arm of the U to the other: two to the right, two down, two to the left."""
    expected = [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert u_map().path((1, 1), (3, 1)) == expected
    assert u_map().path((1, 1), (1, 1)) == []


def test_unreachable_goal_is_refused():
    with pytest.raises(ConfigError, match=r"no way from cell \(1, 1\) of the maze to cell \(0, 0\)"):
        u_map().path((1, 1), (0, 0))


def test_map_equals_that_of_the_simulator():
    policy = WaypointPolicy.for_env(U_MAZE)
    env = gymnasium.make(U_MAZE)
    maze = env.unwrapped.maze
    for cell in np.ndindex(policy.maze.free.shape):
        np.testing.assert_allclose(policy.maze.center(cell), maze.cell_rowcol_to_xy(np.array(cell)))
        assert policy.maze.free[cell] == (maze.maze_map[cell[0]][cell[1]] != 1)
    env.close()


def test_force_is_that_of_a_pd_controller():
    """Same cell, so the goal is the only way-point: 10 (0.05, -0.02) - (0.3, -0.1) = (0.2, -0.1)."""
    actions, _ = u_policy().act(observation((0.0, 1.0), (0.3, -0.1), (0.05, 0.98)))
    torch.testing.assert_close(actions, torch.tensor([[0.2, -0.1]]), atol=1e-5, rtol=0)


def test_force_is_cut_before_and_after_the_noise():
    """The undisturbed force saturates at (1, 0): noise is added to 1, not to 20, and the sum is cut again."""
    far = observation((-1.0, 1.0), (0.0, 0.0), (1.0, 1.0)).repeat(4000, 1)
    assert u_policy().act(far[:1])[0].tolist() == [[1.0, 0.0]]
    actions, _ = u_policy().act(far, deterministic=False, generator=torch.Generator().manual_seed(0))
    assert actions.abs().max() <= 1.0
    # the first way-point is still 0.8 away or more: x stays saturated, and half of the noise lowers it
    below = (actions[:, 0] < 1.0).float().mean()
    assert abs(float(below) - 0.5) < 4 * 0.5 / 4000**0.5


def test_noise_has_a_standard_deviation_of_one_half():
    """At rest on the goal the force is the noise, N(0, 1/4) cut at 1 = two standard deviations.

    Its variance is E[min(z^2, 4)] / 4 with z standard normal, 0.2302; the root is 0.4798.
    """
    at_goal = observation((0.0, 1.0), goal=(0.0, 1.0)).repeat(5_000, 1)
    actions, _ = u_policy().act(at_goal, deterministic=False, generator=torch.Generator().manual_seed(1))
    assert actions.std() == pytest.approx(0.4798, abs=0.016)
    assert actions.mean() == pytest.approx(0.0, abs=4 * 0.5 / 10_000**0.5)


def test_way_points_are_shifted_except_the_goal():
    policy, generator = u_policy(), torch.Generator().manual_seed(0)
    position, goal = np.array([-1.0, 1.0]), np.array([-1.1, -0.8])
    plain, shifted = policy.plan(position, goal, None), policy.plan(position, goal, generator)
    shift = plain.waypoints - shifted.waypoints
    assert plain.waypoints[:-1].tolist() == [[0, 1], [1, 1], [1, 0], [1, -1], [0, -1]]
    assert shift[-1].tolist() == [0.0, 0.0]
    assert plain.waypoints[-1].tolist() == goal.tolist()
    assert (shift[:-1] > 0).all()
    assert (shift[:-1] < 0.2).all()
    assert len(np.unique(shift[:-1])) == 10


def test_next_way_point_within_a_tenth():
    policy = u_policy()
    plan = Plan((-1.0, -1.0), np.array([[0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]))
    for x, expected in ((-0.11, 0), (-0.09, 1)):
        _, plans = policy.act(observation((x, 1.0), goal=(-1.0, -1.0)), [plan])
        assert plans[0].next == expected
    _, plans = policy.act(observation((-1.0, -1.0), goal=(-1.0, -1.0)), [Plan(plan.goal, plan.waypoints, 2)])
    assert plans[0].next == 2


def test_new_goal_makes_a_new_plan_in_its_row_only():
    policy = u_policy()
    both = torch.cat([observation((0.0, 1.0), goal=(1.0, 1.0)), observation((0.0, 1.0), goal=(-1.0, 1.0))])
    _, before = policy.act(both)
    both[1, 4] = 1.0
    _, after = policy.act(both, before)
    assert after[0] is before[0]
    assert after[1].waypoints[-1].tolist() == [1.0, 1.0]


def test_controller_goes_from_goal_to_goal(walk):
    """About 80 steps from goal to goal, and each goal pays 1 once; only the last episode may be without.

    Over 50 000 steps the mean length is 82, its standard deviation 48: four standard errors of 20 episodes.
    """
    assert walk.num_episodes > 10
    assert 0.9 <= walk.episode_returns.mean() <= 1.0
    assert (walk.episode_returns[:-1] == 1.0).all()
    assert abs(walk.episode_lengths.mean() - 82) < 4 * 48 / walk.num_episodes**0.5
    assert not walk.fields["terminated"].any()


def test_check_of_the_walk_fails_when_targets_stay():
    """On a resting target every step is a success: episodes of one step."""
    data = collect_waypoints(U_MAZE, 300, seed=123, reset_target=False)
    assert data.episode_lengths.mean() < 10


def test_first_row_of_an_episode_shows_its_own_goal(walk):
    """The simulator's own observation still holds the goal that was just reached."""
    goals = walk.fields["observations.desired_goal"]
    for start, end in zip(walk.episode_starts[:-1], walk.episode_starts[1:], strict=True):
        assert (goals[start:end] == goals[start]).all()
    assert len(np.unique(goals[walk.episode_starts[:-1]], axis=0)) == walk.num_episodes


def test_goals_are_those_of_the_public_recipe(walk):
    """Seed 123 as in D4RL/pointmaze/umaze-v2; its second and first goals are printed in Minari issue 265."""
    goals = walk.fields["observations.desired_goal"][walk.episode_starts[:2]]
    np.testing.assert_allclose(goals, [[-1.2231, 0.8602], [1.2117, 0.8883]], atol=1e-4)


def test_successors_are_the_next_rows_within_an_episode(walk):
    inside = np.setdiff1d(np.arange(walk.num_steps - 1), walk.episode_starts[1:] - 1)
    for key in ("observation", "achieved_goal", "desired_goal"):
        now, later = walk.fields[f"observations.{key}"], walk.fields[f"next_observations.{key}"]
        np.testing.assert_array_equal(later[inside], now[inside + 1])
    position = walk.fields["observations.observation"][:, :2]
    np.testing.assert_array_equal(walk.fields["infos.qpos"].astype(np.float32), position)


def test_same_seed_gives_the_same_walk(walk):
    again = collect_waypoints(U_MAZE, 200, seed=123)
    for name in ("actions", "observations.observation"):
        np.testing.assert_array_equal(again.fields[name], walk.fields[name][:200])


def test_controller_succeeds_in_a_plain_evaluation():
    result = evaluate(WaypointPolicy.for_env(U_MAZE), U_MAZE, episodes=3)
    assert result.successes is not None
    assert result.successes.all()


def test_controller_travels_to_another_process():
    policy = u_policy()
    rows = observation((-1.0, 1.0), goal=(1.0, 1.0))
    copy = pickle.loads(pickle.dumps(policy))
    torch.testing.assert_close(copy.act(rows)[0], policy.act(rows)[0])


@pytest.mark.parametrize("env_id", ["Hopper-v5", "AntMaze_UMaze-v5", "InvertedPendulum-v5"])
def test_other_environments_are_refused(env_id):
    with pytest.raises(ConfigError, match=f"drives point mazes .*, not {env_id}"):
        WaypointPolicy.for_env(env_id)


def test_goal_must_be_seen():
    with pytest.raises(ConfigError, match="must see 'observation' and 'desired_goal'"):
        WaypointPolicy.for_env(EnvSpec(U_MAZE, flatten=("observation",)))


def test_steps_below_one_are_refused():
    with pytest.raises(ConfigError, match="steps must be 1 or more, got 0"):
        collect_waypoints(U_MAZE, 0)
