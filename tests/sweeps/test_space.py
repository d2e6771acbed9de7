"""Random search: what a space file may say, what is drawn from it, and that it stays drawn."""

import json
import math

import numpy as np
import pytest

from offrl.errors import ConfigError
from offrl.sweeps.space import Range, draw, parse_space, ranges_of, read_space

SPACE = """
lr = { log_uniform = [1e-5, 1e-2] }
hidden = { choice = [8, 16, 32] }

[td3_bc]
alpha = { uniform = [1, 5] }
policy-delay = { int = [1, 3] }

[bc]
lr = { choice = [0.001] }
"""


def ranges(text: str, tmp_path, algorithms=("td3_bc", "bc")):
    (tmp_path / "space.toml").write_text(text)
    return ranges_of(read_space(tmp_path / "space.toml"), algorithms)


def setting_with_int() -> str:
    """A whole-number setting of TD3+BC besides hidden."""
    from offrl.algos.td3_bc import TD3BCConfig

    names = [f.name for f in TD3BCConfig.__dataclass_fields__.values() if type(f.default) is int]
    return next(name for name in names if name not in ("hidden", "batch_size"))


@pytest.fixture
def space(tmp_path):
    return ranges(SPACE.replace("policy-delay", setting_with_int()), tmp_path)


def test_a_range_applies_to_all_that_have_the_setting_and_an_algorithm_s_own_wins(space):
    assert {name: r.kind for name, r in space["td3_bc"].items()} == {
        "lr": "log_uniform", "hidden": "choice", "alpha": "uniform", setting_with_int(): "int",
    }  # fmt: skip
    assert {name: r.kind for name, r in space["bc"].items()} == {"lr": "choice", "hidden": "choice"}


def test_draws_lie_in_their_ranges_and_fill_them():
    rng = np.random.default_rng(0)
    logs = np.log10(Range("log_uniform", (1e-5, 1e-2)).draw(4000, rng))
    assert logs.min() >= -5
    assert logs.max() <= -2
    assert logs.mean() == pytest.approx(-3.5, abs=0.05), "uniform in the logarithm"
    assert np.mean(Range("uniform", (1.0, 5.0)).draw(4000, rng)) == pytest.approx(3.0, abs=0.1)
    assert set(Range("int", (1, 3)).draw(200, rng)) == {1, 2, 3}, "both ends"
    assert set(Range("choice", ("a", "b")).draw(200, rng)) == {"a", "b"}
    assert all(0.1 <= v <= 1 / 3 for v in Range("uniform", (0.1, 1 / 3)).draw(50, rng)), (
        "rounding stays inside"
    )


def test_draws_depend_on_seed_algorithm_and_setting_alone(space, tmp_path):
    out = [tmp_path / str(k) for k in range(5)]
    whole = draw(space, 6, 3, out[0])
    assert draw(space, 4, 3, out[1]) == {a: rows[:4] for a, rows in whole.items()}, (
        "more draws keep the first"
    )
    fewer = {"td3_bc": {"alpha": space["td3_bc"]["alpha"]}}
    assert [r["alpha"] for r in draw(fewer, 6, 3, out[2])["td3_bc"]] == [r["alpha"] for r in whole["td3_bc"]]
    assert draw(space, 6, 4, out[3]) != whole
    hidden = {a: [r["hidden"] for r in rows] for a, rows in draw(space, 30, 3, out[4]).items()}
    assert hidden["bc"] != hidden["td3_bc"]
    assert len({json.dumps(row) for row in whole["td3_bc"]}) == 6


def test_what_is_written_wins_and_may_grow(space, tmp_path):
    draw(space, 3, 0, tmp_path)
    path = tmp_path / "search.json"
    record = json.loads(path.read_text())
    record["draws"]["bc"][0]["hidden"] = 99  # as another version of NumPy might have drawn
    path.write_text(json.dumps(record))
    assert draw(space, 3, 0, tmp_path)["bc"][0]["hidden"] == 99
    grown = draw(space, 5, 0, tmp_path)
    assert (grown["bc"][0]["hidden"], len(grown["bc"])) == (99, 5)
    assert len(draw(space, 2, 0, tmp_path)["bc"]) == 2
    assert len(json.loads(path.read_text())["draws"]["bc"]) == 5, "a smaller call forgets nothing"
    before = path.read_bytes()
    assert len(draw(space, 9, 0, tmp_path, write=False)["bc"]) == 9
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="draws of another space, seed"):
        draw(space, 3, 1, tmp_path)


def test_an_algorithm_without_a_range_has_one_configuration(tmp_path):
    drawn = draw(ranges("[td3_bc]\nalpha = { uniform = [1, 5] }", tmp_path), 3, 0, tmp_path)
    assert drawn["bc"] == [{}]
    assert len(drawn["td3_bc"]) == 3
    assert all(math.isfinite(row["alpha"]) for row in drawn["td3_bc"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "is not TOML"),
        ("", "names no setting"),
        ("lr = 3", r"lr must be \{ KIND = \[...\] \} with KIND one of uniform"),
        ("lr = { normal = [0, 1] }", "lr must be .* got"),
        ("lr = { uniform = [0.1, 1], choice = [1] }", "lr must be"),
        ("lr = { uniform = 3 }", "takes a list of values"),
        ("lr = { uniform = [0.1] }", "takes two numbers, the lower one first"),
        ("lr = { uniform = [1.0, 0.1] }", "the lower one first"),
        ("lr = { uniform = ['a', 'b'] }", "takes two numbers"),
        ("lr = { uniform = [0.1, nan] }", "takes two numbers"),
        ("lr = { log_uniform = [0.0, 1.0] }", "ends above 0"),
        ("hidden = { int = [8.0, 16.0] }", "takes two whole numbers"),
        ("hidden = { choice = [] }", "different values"),
        ("hidden = { choice = [8, 8] }", "different values"),
        ("hidden = { uniform = [8, 16] }", "hidden takes no fractions"),
        ("lr = { int = [1, 2] }", "lr is a fraction"),
        ("alhpa = { uniform = [1, 5] }", "names 'alhpa', which is neither"),
        ("[td3bc]\nalpha = { uniform = [1, 5] }", "names 'td3bc', which is neither"),
        ("[bc]\nalpha = { uniform = [1, 5] }", "bc has no setting 'alpha'"),
        ("lr = { uniform = [-1.0, 1.0] }", "the space of td3_bc: lr"),
        ("hidden = { choice = [8, 'wide'] }", "the space of td3_bc: hidden is 'wide'"),
        ("[td3_bc]\nalpha = { gauss = [1, 5] }", "td3_bc.alpha must be"),
    ],
)
def test_an_impossible_space_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        ranges(text, tmp_path)
    assert "\n" not in str(caught.value).replace("is not TOML", "")


def test_nested_dicts_are_a_space_too():
    assert parse_space({"lr": {"uniform": [1, 2]}}) == {"": {"lr": Range("uniform", (1.0, 2.0))}}
