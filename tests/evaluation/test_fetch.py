"""FetchPickAndPlace and FetchPush: two views of each, and the scripted experts."""

import numpy as np
import pytest
import torch

from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env
from offrl.evaluation.fetch import BEHIND, HOVER, FetchPickExpert, FetchPushExpert
from offrl.evaluation.rollout import evaluate
from offrl.evaluation.sources import load_source


def row(gripper=(0, 0, 0), thing=(0, 0, 0), finger=0.05, goal=(0, 0, 0)):
    out = torch.zeros(1, 28)
    out[0, :3], out[0, 3:6], out[0, 9:11], out[0, 25:] = map(
        torch.tensor, (gripper, thing, (finger,) * 2, goal)
    )
    return out


@pytest.mark.parametrize("task", ["pick", "push"])
def test_the_positions_view_is_columns_of_the_state_view(task):
    """Gripper 0:3, object 3:6, fingers 9:11, goal 25:28."""
    state, positions = (make_env(f"fetch-{task}-{view}") for view in ("state", "positions"))
    whole, part = state.reset(seed=4)[0], positions.reset(seed=4)[0]
    assert (len(whole), len(part)) == (28, 11)
    np.testing.assert_array_equal(part, np.concatenate([whole[:6], whole[9:11], whole[25:]]))
    assert named_environment(f"fetch-{task}-positions").obs_dim == 11
    state.close()
    positions.close()


def test_the_four_stages():
    expert = FetchPickExpert()
    far = expert(row(thing=(0.1, 0.0, 0.0)))[0]
    assert far[0] > 0
    assert far[2] > 0  # up to the place above
    assert far[3] == 1
    down = expert(row(gripper=(0.0, 0.0, HOVER)))[0]
    assert down[:2].abs().max() == 0
    assert down[2] < 0
    assert down[3] == 1
    grasp = expert(row())[0]
    assert grasp.tolist() == [0.0, 0.0, 0.0, -1.0]
    carry = expert(row(finger=0.025, goal=(0.0, -0.3, 0.02)))[0]
    assert carry[1] == pytest.approx(-0.8)  # the largest speed
    assert carry[2] > 0
    assert carry[3] == -1


def test_the_stages_of_a_push():
    """Object at the origin, goal along +x: the gripper belongs at x = -BEHIND."""
    expert, goal = FetchPushExpert(), (0.2, 0.0, 0.0)
    up = expert(row(gripper=(0.05, 0.0, 0.0), goal=goal))[0]  # low, on the wrong side
    assert up[2] > 0
    assert up[0] > 0  # away from the object
    across = expert(row(gripper=(0.05, 0.02, 0.08), goal=goal))[0]
    assert across[0] < 0
    assert across[1] < 0
    down = expert(row(gripper=(-BEHIND, 0.0, 0.08), goal=goal))[0]
    assert down[:2].abs().max() < 1e-6
    assert down[2] < 0
    push = expert(row(gripper=(-0.05, 0.01, 0.0), goal=goal))[0]
    assert push[0] == pytest.approx(0.8)  # the largest speed
    assert push[1] < 0  # back onto the line
    assert expert(row(gripper=(-0.05, 0.05, 0.0), goal=goal))[0, 2] > 0  # beside the lane: up, no push
    slow = expert(row(gripper=(-0.05, 0.0, 0.0), goal=(0.03, 0.0, 0.0)))[0]
    assert slow[0] == pytest.approx(12.0 * 0.04)
    assert expert(row(gripper=(-0.05, 0.0, 0.0), goal=(0.01, 0.0, 0.0)))[0, :3].abs().max() == 0
    assert expert(row(goal=goal))[0, 3] == -1  # fingers shut


def test_a_push_goes_along_any_line():
    """Turning everything about the vertical turns the command."""
    turned, expert = ((0, -1, 0), (1, 0, 0), (0, 0, 1)), FetchPushExpert()
    for gripper in ((0.05, 0.02, 0.0), (-0.3, 0.1, 0.1), (-0.05, 0.01, 0.0), (0.1, 0.0, 0.08)):
        plain = expert(row(gripper=gripper, goal=(0.05, 0.0, 0.0)))[0, :3].numpy()
        moved = expert(row(gripper=np.dot(turned, gripper).tolist(), goal=(0.0, 0.05, 0.0)))[0, :3].numpy()
        np.testing.assert_allclose(moved, np.dot(turned, plain), atol=1e-6)


@pytest.mark.parametrize("task", ["pick", "push"])
def test_the_expert_solves_episodes_disturbed_or_not(task):
    env = f"fetch-{task}-state"
    expert = load_source("expert", env)
    assert evaluate(expert, env, episodes=4, seed=0).successes.all()
    assert evaluate(expert, env, episodes=4, seed=1, deterministic=False).successes.mean() >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pick", "push"])
def test_the_expert_succeeds_on_ninety_of_a_hundred(task):
    env = f"fetch-{task}-state"
    assert evaluate(load_source("expert", env), env, episodes=100, seed=0).successes.mean() >= 0.9


def test_the_experts_need_the_whole_state():
    for task in ("pick", "push"):
        with pytest.raises(ConfigError, match=f"--env fetch-{task}-state"):
            load_source("expert", f"fetch-{task}-positions")
