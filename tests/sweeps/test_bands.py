"""Published scores: the bands by hand, and what the check says about a sweep's rows."""

import numpy as np
import pytest

from offrl.algos import ALGORITHMS
from offrl.data.environments import environment_for
from offrl.data.reference import D4RL
from offrl.sweeps.bands import LOCOMOTION, NOTE, PUBLISHED, band, bands_section


def row(algorithm: str, dataset: str, last: float, **changes):
    facts = {
        "algorithm": algorithm,
        "dataset": dataset,
        "settings": "",
        "unit": "normalized score",
        "last": last,
    }
    return facts | changes


def test_the_note_names_the_environments_that_are_played():
    versions = {environment_for(name).env_id[-3:] for name in LOCOMOTION}
    assert versions == {"-v4"}
    assert "Ours: Gymnasium -v4 and" in NOTE


def test_bands_by_hand():
    assert band("iql", "halfcheetah-medium-v2") == (43.3, 53.3), "5 is the least"
    low, high = band("td3_bc", "hopper-medium-replay-v2")
    assert (low, high) == pytest.approx((64.4 - 43.0, 64.4 + 43.0)), "two deviations"
    assert band("iql", "antmaze-umaze-v2") is None
    assert band("mine", "hopper-medium-v2") is None


def test_the_table_is_whole_and_has_the_averages_of_its_source():
    """CORL prints the average of each column: a number in the wrong place would rarely keep it."""
    assert set(PUBLISHED) <= set(ALGORITHMS)
    assert set(LOCOMOTION) <= set(D4RL)
    assert len(set(LOCOMOTION)) == 9
    assert all(len(p.means) == len(p.stds) == 9 for p in PUBLISHED.values())
    averages = {
        "bc": 50.4,
        "td3_bc": 76.5,
        "awac": 79.4,
        "cql": 78.3,
        "iql": 81.6,
        "rebrac": 89.7,
        "sac_n": 83.5,
    }
    averages |= {"edac": 92.9, "a2pr": 93.0, "prdc": 90.1}
    for name, average in averages.items():
        assert np.mean(PUBLISHED[name].means) == pytest.approx(average, abs=0.11), name


def test_the_check_names_what_is_inside_and_outside():
    rows = [
        row("iql", "halfcheetah-medium-v2", 47.0),
        row("iql", "halfcheetah-medium-v2", 58.0),
        row("td3_bc", "hopper-medium-v2", 90.0),
        row("td3_bc", "hopper-medium-v2", 60.0, settings="alpha=1.0"),
        row("fql", "hopper-medium-v2", 60.0),
        row("iql", "hopper-medium-v2", 60.0, unit="return"),
    ]
    lines = bands_section(rows, 2_000).splitlines()
    assert [line for line in lines if line.startswith("| ") and "medium" in line] == [
        "| iql | halfcheetah-medium-v2 | 52.5 (2) | 48.3 +- 0.2 | 43.3 .. 53.3 | inside |",
        "| td3_bc | hopper-medium-v2 | 90.0 (1) | 60.4 +- 3.5 | 53.4 .. 67.4 | outside |",
    ]
    text = "\n".join(lines)
    for word in ("mujoco-py", "-v4", "-v2", "2,000 updates", "CORL's benchmark table, 4 seeds"):
        assert word in text


def test_without_a_published_score_it_says_so():
    assert "No finished run has a published score" in bands_section([row("fql", "x", 1.0)], 10)
