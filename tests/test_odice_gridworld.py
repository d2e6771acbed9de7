"""The gridworld script: its data, and the claim it is there for."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "scripts/odice_gridworld.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("odice_gridworld", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_walks_end_at_the_goal_and_nowhere_else(script):
    cells, next_cells, rewards, terminated = script.transitions()
    assert len(cells) == 36
    assert ((next_cells - cells).abs().sum(1) == 1).all()
    at_goal = (next_cells == script.SIDE - 1).all(1)
    assert at_goal.sum() == 2
    assert (terminated.bool() == at_goal).all()
    assert (rewards == script.GOAL_REWARD * at_goal).all()


def test_a_greedy_walk_follows_the_values(script):
    x, y = np.mgrid[: script.SIDE, : script.SIDE]
    assert script.greedy_success((x + y).astype(float)) == 1.0
    assert script.greedy_success(-(x + y).astype(float)) < 0.2


def test_along_the_data_the_semi_gradient_in_a_table_is_the_bellman_solution(script):
    """lam 0.5: residuals are 0 where one step leaves a cell, so V is 10 x 0.9^k, k steps before the last."""
    table = script.learned_values("table", "semi", steps=4_000, seeds=1)[0]
    np.testing.assert_allclose(table[8, 0:8][::-1], 10 * 0.9 ** np.arange(8), atol=0.05)


@pytest.mark.slow
def test_the_orthogonal_gradient_puts_cells_without_data_lower_than_the_semi_gradient(script):
    off = ~script.visited()
    off[-1, -1] = False
    orthogonal, semi = (script.learned_values("network", g)[:, off].mean(1) for g in ("orthogonal", "semi"))
    assert (orthogonal < semi).mean() >= 0.9
    assert orthogonal.mean() < semi.mean() - 0.5
