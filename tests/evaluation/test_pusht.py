"""PushT as an evaluated environment, and its planning expert."""

import numpy as np
import pytest
import torch

from offrl.collect import collect_successes
from offrl.commands.eval import main as evaluate_command
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env
from offrl.evaluation.pusht import GOAL, coverage, error, remaining
from offrl.evaluation.pusht_pushes import CORNERS, place
from offrl.evaluation.rollout import evaluate
from offrl.evaluation.sources import load_source


@pytest.fixture(scope="module")
def expert():
    return load_source("expert", "pusht-state")


@pytest.mark.parametrize(("view", "width"), [("state", 5), ("keypoints", 18), ("pixels", 27_650)])
def test_the_three_views_have_the_declared_widths(view, width):
    """agent_pos first, then the 16 numbers of eight keypoints or the 96 x 96 x 3 pixels."""
    spec = named_environment(f"pusht-{view}")
    env = make_env(spec)
    flat, _ = env.reset(seed=0)
    assert flat.shape == (width,) == (spec.obs_dim,)
    assert env.spec.max_episode_steps == 300
    np.testing.assert_allclose(flat[:2], env.unwrapped.agent.position, atol=1e-4)
    if view == "pixels":
        assert set(np.unique(flat[2:] % 1)) == {0.0}
    env.close()


def test_the_error_is_the_corners_root_mean_square_distance():
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(20, 3)) * [50, 50, 2]
    moved = place(poses, CORNERS)
    expected = np.sqrt(((moved - CORNERS) ** 2).sum(-1).mean(-1))
    np.testing.assert_allclose(error(poses), expected, rtol=1e-9)
    assert error(np.zeros(3)) == 0


def test_the_remaining_cost_rises_and_is_flat_below_the_tolerance():
    errors = np.linspace(0, 200, 500)
    assert (np.diff(remaining(errors)) >= 0).all()
    assert remaining(np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_coverage_is_the_environments():
    env = make_env("pusht-state").unwrapped
    for seed in (1, 5, 9):
        env.reset(seed=seed)
        env.block.position = (250.0 + seed, 262.0)
        pose = np.array([*env.block.position, env.block.angle])
        assert coverage(pose) == pytest.approx(env._get_coverage(), abs=1e-6)
    assert coverage(GOAL) == pytest.approx(1.0)


def test_a_plan_reduces_the_error_and_its_targets_move_like_a_hand(expert):
    """Steps of at most 18 pixels from the agent on; the push ends where it said."""
    row = np.array([100.0, 120.0, 300.0, 310.0, 1.9])
    targets = expert.targets(row)
    steps = np.linalg.norm(np.diff(np.concatenate([row[None, :2], targets]), axis=0), axis=1)
    assert steps.max() <= 18.0 + 1e-6
    choice = expert.choose(row[:2], row[2:])
    np.testing.assert_allclose(targets[-1], choice.end)
    assert choice.cost < remaining(error(np.array([[60.0, 60.0, 1.0]])))[0] + 200


def test_nothing_is_done_once_the_target_is_covered(expert):
    row = np.array([50.0, 60.0, *GOAL])
    np.testing.assert_array_equal(expert.targets(row), [[50.0, 60.0]])


def test_a_squeezed_in_agent_steps_into_the_open(expert):
    """In the corner between bar and stem, the block at the wall: some finite target on the table follows."""
    for row in (
        [40.0, 300.0, 30.0, 300.0, 1.0],
        [500.0, 500.0, 470.0, 470.0, 0.5],
        [256.0, 256.0, 256.0, 256.0, 0.0],
    ):
        action, _ = expert.act(torch.tensor([row]))
        assert torch.isfinite(action).all()
        assert ((action >= 0) & (action <= 512)).all()


def test_rows_are_planned_alone(expert):
    """The targets of a row do not depend on its neighbours."""
    rows = torch.tensor([[100.0, 120.0, 300.0, 310.0, 1.9], [400.0, 90.0, 180.0, 250.0, 4.0]])
    both, queues = expert.act(rows)
    for i in range(2):
        alone, queue = expert.act(rows[i : i + 1])
        assert torch.equal(alone[0], both[i])
        np.testing.assert_array_equal(queue[0], queues[i])


def test_the_expert_solves_episodes_and_an_unsteady_hand_differs(expert):
    steady = evaluate(expert, "pusht-state", episodes=3, seed=0)
    assert steady.successes.all()
    assert (steady.max_rewards == 1.0).all()
    assert (steady.lengths < 300).all()
    row = torch.tensor([[100.0, 120.0, 300.0, 310.0, 1.9]])
    hands = [
        expert.act(row, deterministic=False, generator=torch.Generator().manual_seed(s))[1][0]
        for s in (0, 0, 1)
    ]
    assert np.array_equal(hands[0], hands[1])
    assert len(hands[0]) != len(hands[2]) or not np.array_equal(hands[0], hands[2])


@pytest.mark.slow
def test_the_expert_succeeds_on_sixty_of_a_hundred(expert):
    assert evaluate(expert, "pusht-state", episodes=100, seed=0).successes.mean() >= 0.6


@pytest.mark.slow
def test_demonstrations_do_not_depend_on_workers(expert):
    one, two = (
        collect_successes("pusht-state", expert, 3, steps_each=200, stochastic=True, seed=1, workers=w)
        for w in (1, 2)
    )
    assert one.sha256 == two.sha256
    assert one.fields["terminated"][one.episode_starts[1:] - 1].all()


def test_the_expert_needs_the_state():
    with pytest.raises(ConfigError, match="--env pusht-state"):
        load_source("expert", "pusht-keypoints")
    with pytest.raises(ConfigError, match="no scripted expert for Pendulum-v1"):
        load_source("expert", "Pendulum-v1")


def test_the_command_reports_success_and_the_mean_largest_reward(capsys):
    assert evaluate_command(["random", "--env", "pusht-keypoints", "--episodes", "2"]) == 0
    assert (
        "success 0.0 % (95 % interval 0.0 .. 84.2), mean of the episodes' largest reward 0."
        in capsys.readouterr().out
    )
