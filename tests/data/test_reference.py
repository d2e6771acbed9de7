"""Reference returns and the 0-100 score."""

import subprocess
import sys

import numpy as np
import pytest

from offrl.data.reference import D4RL, normalized_score, reference_label, reference_returns
from offrl.errors import ConfigError, DatasetError


@pytest.mark.parametrize(
    ("name", "value", "score"),
    [
        ("halfcheetah-medium-v2", 12135.0, 100.0),
        ("hopper-medium-replay-v2", 0.0, 0.6229),  # 100 * 20.272305 / 3254.572305
        ("pen-human-v1", 0.0, -3.2297),  # a dead pen policy: -100 * 96.262799 / 2980.570303
        ("walker2d-medium-expert-v0", 2296.9645, 50.0),
        ("antmaze-large-play-v2", 1.0, 100.0),
        ("kitchen-mixed-v0", 1.0, 25.0),
    ],
)
def test_scores_of_known_returns(name, value, score):
    """The unit tests of D4RL's own table, by pencil from the pairs."""
    assert normalized_score(name, value) == pytest.approx(score, abs=5e-5)


def test_score_is_zero_at_random_and_hundred_at_expert_for_every_name():
    for name, (low, high) in D4RL.items():
        np.testing.assert_allclose(normalized_score(name, [low, high]), [0.0, 100.0])


def test_every_quality_and_version_of_a_robot_shares_one_pair():
    for family in (
        "halfcheetah",
        "hopper",
        "walker2d",
        "ant",
        "pen",
        "hammer",
        "door",
        "relocate",
        "kitchen",
    ):
        pairs = {pair for name, pair in D4RL.items() if name.split("-")[0] == family}
        assert len(pairs) == 1, family


def test_the_names_are_those_that_d4rl_registers():
    """5 qualities of 4 robots in v0, 6 in v1 and v2; 6 AntMaze tasks x 3 + 6 eval; 20 mazes; 24 + 3 + 2."""
    assert len(D4RL) == 4 * (5 + 6 + 6) + 6 * 3 + 6 + 20 + 4 * 3 * 2 + 3 + 2
    assert "hopper-full-replay-v0" not in D4RL
    assert "hopper-full-replay-v1" in D4RL


def test_minari_and_zoo_names_borrow_the_pair_of_their_robot_and_say_so():
    for name in (
        "mujoco/hopper/medium-v0",
        "minari:mujoco/hopper/expert-v0",
        "zoo/hopper-mixed",
        "zoo/hopper-medium-v0",
    ):
        assert reference_returns(name) == (-20.272305, 3234.3)
        assert reference_label(name) == "v5 env, D4RL reference"
    assert reference_returns("D4RL/door/human-v2") == reference_returns("door-human-v1")
    assert "D4RL reference" in (reference_label("D4RL/door/human-v2") or "")
    assert reference_label("d4rl:hopper-medium-v2") == "D4RL reference"


@pytest.mark.parametrize(
    "name",
    [
        "mujoco/humanoid/expert-v0",
        "mujoco/swimmer/medium-v0",
        "zoo/pointmaze-umaze",
        "D4RL/pointmaze/umaze-v2",
        "mine",
    ],
)
def test_robots_without_a_pair_get_none_rather_than_a_guess(name):
    assert reference_returns(name) is None
    assert reference_label(name) is None
    with pytest.raises(DatasetError, match="no reference returns"):
        normalized_score(name, 1.0)


def test_a_pair_can_be_given_and_is_checked():
    np.testing.assert_allclose(normalized_score((10, 20), [[10, 15], [20, 30]]), [[0, 50], [100, 200]])
    for pair in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (1.0,)):
        with pytest.raises(ConfigError, match="random < expert"):
            normalized_score(pair, 0.0)


def test_the_tables_load_no_torch():
    code = "import offrl.data.reference, offrl.data.environments, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
