"""The online benchmark's page: areas under learning curves, and when two of them agree."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "scripts/bench_online.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_online", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def group(script, unit="steps"):
    return script.Group("a title", "Pendulum-v1", unit, 1000, (0,), (), "", (("ours", "theirs"),))


def run(*heights):
    """A curve through these heights at 0, 500 and 1000 steps, in 10 episodes."""
    return {"curve": [[5 * k, 500 * k, height] for k, height in enumerate(heights)]}


def test_an_area_is_the_mean_over_the_budget(script):
    assert script.area(run(3.0, 3.0, 3.0), group(script)) == pytest.approx(3.0)
    assert script.area(run(0.0, 1.0, 2.0), group(script)) == pytest.approx(1.02)  # marks at 0.02 .. 1 of it
    assert script.area(run(0.0, 1.0, 2.0), group(script, "episodes")) == pytest.approx(
        2.0, abs=0.01
    )  # of 1000


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((100, 101, 99), (200, 201, 199), "ratio 0.50: they differ"),
        ((100, 300, 50), (120, 310, 60), "they agree"),  # seeds differ more than sides
        ((95, 95, 95), (100, 100, 100), "difference -5, 95 % interval -5 .. -5 (bootstrap over 3 and 3 seeds), ratio 0.95: "
         "they agree"),
    ],
)  # fmt: skip
def test_areas_agree_within_their_seeds_or_a_tenth(script, ours, theirs, says):
    assert says in line_of(script, "PPO of the core", ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((100, 101, 99), (200, 201, 199), "below."),
        ((300, 301, 299), (200, 201, 199), "above."),
        ((100, 300, 50), (120, 310, 60), "not separable."),
        ((95, 95, 95), (100, 100, 100), "below."),
    ],
)
def test_another_method_is_above_below_or_not_separable(script, ours, theirs, says):
    assert line_of(script, "MDPO", ours, theirs).endswith(says)


def line_of(script, name, ours, theirs):
    found = {name: [run(h, h, h) for h in ours], "theirs": [run(h, h, h) for h in theirs]}
    line = script.compared((name, "theirs"), group(script), found)
    assert line.startswith(f"Areas, {name} against theirs: difference")
    return line


def test_a_missing_side_is_said(script):
    assert script.compared(("ours", "theirs"), group(script), {"ours": [run(1, 1, 1)]}).endswith(
        "not run yet."
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((100,), (200, 201), "1 and 2 seeds; pairs of seeds -101 .. -100"),
        ((100, 140), (200, 201), "2 and 2 seeds; pairs of seeds -101 .. -60"),
        ((100, 101, 102), (200, 240), "3 and 2 seeds; pairs of seeds -140 .. -98"),
    ],
)
def test_fewer_than_three_seeds_have_neither_interval_nor_verdict(script, ours, theirs, says):
    line = line_of(script, "MDPO", ours, theirs)
    assert line.endswith(f"({says}): too few for an interval and a verdict.")


def test_a_single_value_has_no_quartiles(script):
    assert script.quartiles([3.4]) == "3"
    assert script.quartiles([3.0, 5.0]) == "4 (4 .. 4)"


def test_rows_that_are_compared_exist(script):
    for g in script.GROUPS.values():
        labels = {entry.label for entry in g.entries}
        assert {label for pair in g.pairs for label in pair} <= labels


def test_a_page_names_the_commits_of_all_cells(script):
    first = {"offrl": "0.1.0", "commit": "a1", "torch": "2.13.0", "mujoco": "3.11.0", "cpu": "chip"}
    made = script.made_with([first | {"commit": "b2"}, first, first])
    assert made == "offrl 0.1.0 (a1 and b2), torch 2.13.0, mujoco 3.11.0, chip"
