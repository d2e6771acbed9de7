"""FetchPickAndPlace: two views of it, and its scripted expert."""

import numpy as np
import pytest
import torch

from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env
from offrl.evaluation.fetch import HOVER, FetchPickExpert
from offrl.evaluation.rollout import evaluate
from offrl.evaluation.sources import load_source


def row(gripper=(0, 0, 0), thing=(0, 0, 0), finger=0.05, goal=(0, 0, 0)):
    out = torch.zeros(1, 28)
    out[0, :3], out[0, 3:6], out[0, 9:11], out[0, 25:] = map(
        torch.tensor, (gripper, thing, (finger,) * 2, goal)
    )
    return out


def test_the_positions_view_is_columns_of_the_state_view():
    """Gripper 0:3, object 3:6, fingers 9:11, goal 25:28."""
    state, positions = (make_env(f"fetch-pick-{view}") for view in ("state", "positions"))
    whole, part = state.reset(seed=4)[0], positions.reset(seed=4)[0]
    assert (len(whole), len(part)) == (28, 11)
    np.testing.assert_array_equal(part, np.concatenate([whole[:6], whole[9:11], whole[25:]]))
    assert named_environment("fetch-pick-positions").obs_dim == 11
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


def test_the_expert_solves_episodes_disturbed_or_not():
    expert = load_source("expert", "fetch-pick-state")
    assert evaluate(expert, "fetch-pick-state", episodes=4, seed=0).successes.all()
    assert (
        evaluate(expert, "fetch-pick-state", episodes=4, seed=1, deterministic=False).successes.mean() >= 0.5
    )


@pytest.mark.slow
def test_the_expert_succeeds_on_ninety_of_a_hundred():
    assert evaluate(FetchPickExpert(), "fetch-pick-state", episodes=100, seed=0).successes.mean() >= 0.9


def test_the_expert_needs_the_whole_state():
    with pytest.raises(ConfigError, match="--env fetch-pick-state"):
        load_source("expert", "fetch-pick-positions")
