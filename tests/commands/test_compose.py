"""``offrl compose`` on tiny untrained policies in a pendulum."""

import json

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.commands.compose import describe
from offrl.data.normalize import AffineNormalizer
from offrl.nn.policy import load_policy, save_policy
from offrl.nn.random_policy import RandomPolicy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy


@pytest.fixture
def parents(tmp_path):
    folders = []
    for seed, family in enumerate(("diffusion", "flow")):
        torch.manual_seed(seed)
        sizes = {"widths": (8,), "step_embed": 4, "horizon": 8, "n_act": 6, "denoising_steps": 2}
        policy = ChunkPolicy(3, 1, [-2], [2], family=family, **sizes)
        units = (
            AffineNormalizer.build(np.zeros(3), np.ones(3)),
            AffineNormalizer.build(np.zeros(1), np.full(1, 0.5)),
        )
        policy.set_normalizers(*units)
        save_policy(policy, tmp_path / family)
        folders.append(str(tmp_path / family))
    return folders


def compose(parents, *options):
    named = [word for folder in parents for word in ("--policy", folder)]
    return main(["compose", *named, "--env", "Pendulum-v1", *options])


def test_a_search_reports_on_other_episodes_and_saves(parents, tmp_path, capsys):
    out = tmp_path / "out"
    options = (
        "--search",
        "--search-episodes",
        "2",
        "--rounds",
        "2",
        "--episodes",
        "2",
        "--json",
        "--out",
        str(out),
    )
    assert compose(parents, *options) == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((out / "compose.json").read_text()) == summary
    assert (summary["seed"], summary["search"]["seed"], summary["measure"]) == (0, 1, "return")
    assert summary["search"]["episodes"] == 9 + 5
    best = max(summary["search"]["candidates"], key=lambda row: (row[-1], row[-2]))
    assert summary["weights"] == best[:2]
    results = summary["results"]
    controls = ["equal weights", "action average", "policy 1 with itself"]
    assert list(results) == ["composition", "policy 1", "policy 2", *controls]
    assert results["policy 1 with itself"]["mean"] == results["policy 1"]["mean"]
    gain = results["policy 2"]
    assert gain["gain"] == pytest.approx(results["composition"]["mean"] - gain["mean"])
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
    assert isinstance(load_policy(out), ComposedPolicy)


@pytest.mark.parametrize(
    ("candidates", "line"),
    [
        (
            [[0.1, 0.9, 0.5, 4], [0.3, 0.7, 0.75, 8]],
            "weight of policy 1: success (episodes): 0.1: 0.50 (4), 0.3: 0.75 (8)",
        ),
        (
            [[0.1, 0.1, 0.8, 0.5, 4], [0.1, 0.2, 0.7, 0.75, 8]],
            "weights: success (episodes): 0.1 0.1 0.8: 0.50 (4), 0.1 0.2 0.7: 0.75 (8)",
        ),
    ],
)
def test_the_line_of_a_search_tells_its_candidates_apart(candidates, line):
    weights, rows = candidates[-1][:-2], {"composition": {"mean": 0.75}}
    summary = {
        "operator": "convex",
        "env_id": "x",
        "episodes": 2,
        "seed": 0,
        "measure": "success",
        "results": rows,
    }
    summary |= {"weights": weights, "policies": ["run"] * len(weights), "mismatch": [0.0] * len(weights)}
    summary |= {"normalizer_ratios": [[1.0]] * len(weights)}
    summary["search"] = {"seed": 1, "episodes": 12, "candidates": candidates}
    assert describe(summary).splitlines()[0] == f"search, 12 episodes of seed 1; {line}"


def test_given_weights_are_used_and_all_of_it_is_the_parent(parents, capsys):
    assert compose(parents, "--weights", "1", "0", "--episodes", "2", "--no-controls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "convex, weights 1 0 on Pendulum-v1: 2 episodes, seed 0"
    assert [line[:12].strip() for line in lines[2:]] == ["composition", "policy 1", "policy 2"]
    assert "+0.000 (+0.000 .. +0.000)" in lines[3]


def test_the_weights_of_or_are_called_logarithms(parents, capsys):
    options = ("--operator", "or", "--weights", "0.5", "-1", "--episodes", "2", "--no-controls")
    assert compose(parents, *options) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "or, log-weights 0.5 -1 on Pendulum-v1: 2 episodes, seed 0"


def test_a_matching_is_taken_where_ratios_may_differ(parents):
    assert (
        compose(parents, "--allow-anisotropic", "--matching", "mean", "--episodes", "2", "--no-controls") == 0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--search", "--weights", "0.5", "0.5"), "leave --weights"),
        (("--weights", "0.5", "0.6"), "sum to 1"),
        (("--episodes", "1"), "2 or more"),
        (("--side-by-side", "0"), "--side-by-side must be 1 or more, got 0"),
        (("--matching", "mean"), "--matching has no effect without --allow-anisotropic"),
        (("--rounds", "2"), "--rounds and --search-episodes have no effect without --search"),
        (("--search-episodes", "9"), "--rounds and --search-episodes have no effect without --search"),
    ],
)
def test_options_that_contradict_each_other_are_refused(parents, capsys, options, message):
    assert compose(parents, *options) == 1
    assert message in capsys.readouterr().err


def test_what_was_played_is_kept_where_the_page_fails(parents, tmp_path, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise OSError("no room for the page")

    monkeypatch.setattr("offrl.commands.compose.write_page", fails)
    out = tmp_path / "out"
    kept = ("--episodes", "2", "--no-controls", "--json", "--out", str(out))
    assert compose(parents, *kept, "--report", str(tmp_path / "page.html"), "--no-film") == 1
    printed = capsys.readouterr()
    assert "no room for the page" in printed.err
    assert json.loads(printed.out) == json.loads((out / "compose.json").read_text())
    assert isinstance(load_policy(out), ComposedPolicy)


def test_a_film_that_cannot_be_made_is_refused_before_anything_is_played(parents, capsys):
    named = [word for folder in parents for word in ("--policy", folder)]
    assert main(["compose", *named, "--env", "served:1", "--report", "page.html"]) == 1
    assert "cannot be filmed: add --no-film" in capsys.readouterr().err


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_what_has_no_denoiser_is_called_so(parents, tmp_path, capsys, check):
    base, model = RandomPolicy(3, 1, [-2], [2]), load_policy(parents[0])
    save_policy(ComposedPolicy([model, load_policy(parents[1])]), tmp_path / "both")
    save_policy(base, tmp_path / "random")
    for name, kind in (("both", "composed"), ("random", "random")):
        assert compose([parents[0], str(tmp_path / name)], *check, "--episodes", "2") == 1
        assert f"a {kind} policy has no denoiser; a composition needs" in capsys.readouterr().err


def test_one_policy_is_refused(parents, capsys):
    assert compose(parents[:1]) == 1
    assert "twice or more" in capsys.readouterr().err


def test_a_run_keeps_its_policy(parents, tmp_path, capsys):
    (tmp_path / "flow/config.json").write_text("{}")
    before = (tmp_path / "flow/policy.safetensors").read_bytes()
    assert compose(parents, "--episodes", "1", "--out", str(tmp_path / "flow")) == 1
    assert "is a run (it has a config.json) and would lose its policy" in capsys.readouterr().err
    assert (tmp_path / "flow/policy.safetensors").read_bytes() == before
    assert compose(parents, "--check", "--out", str(tmp_path / "new")) == 1
    assert "--out keeps what was played" in capsys.readouterr().err
