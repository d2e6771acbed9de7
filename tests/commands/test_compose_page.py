"""The page of a composition: its numbers, its figures, and a film of all players from one start."""

import json

import numpy as np
import pytest
import torch

from offrl.cli import run
from offrl.commands.compose_page import MODES, against_weight, paths, results
from offrl.data.normalize import AffineNormalizer
from offrl.evaluation.video import beside, record_side_by_side
from offrl.nn.policy import save_policy
from offrl.nn.random_policy import RandomPolicy
from offrl.policies.chunk import ChunkPolicy

SUMMARY = {
    "env_id": "gym_pusht/PushT-v0",
    "policies": ["a", "b"],
    "operator": "convex",
    "weights": [0.3, 0.7],
    "measure": "success",
    "episodes": 4,
    "results": {
        "composition": {"mean": 0.75, "max_reward_mean": 0.9},
        "policy 1": {"mean": 0.5, "max_reward_mean": 0.8, "gain": 0.25, "interval": [-0.1, 0.6]},
        "policy 2": {"mean": 0.25, "max_reward_mean": 0.7, "gain": 0.5, "interval": [0.1, 0.9]},
    },
    "search": {
        "seed": 1,
        "episodes": 12,
        "candidates": [[0.7, 0.3, 0.5, 4], [0.3, 0.7, 0.75, 8]],
        "intervals": [[0.2, 0.8], [0.6, 0.9]],
    },
}


def test_the_table_holds_means_gains_and_intervals():
    text = results(SUMMARY)
    assert ">0.750<" in text
    assert "+0.500 [+0.100, +0.900]" in text
    assert text.count("<tr>") == 4  # head and three players


def test_success_stands_against_the_weight_of_policy_1_with_its_interval():
    text = against_weight(SUMMARY)
    assert "weight 30: 0.75 (0.6 .. 0.9)" in text
    assert "weight 70: 0.5 (0.2 .. 0.8)" in text
    assert "weight 0: 0.25" in text  # all the weight on policy 2 is policy 2
    assert "weight 100: 0.5" in text
    assert "12 episodes of seed 1" in text
    assert against_weight({k: v for k, v in SUMMARY.items() if k != "search"}) == ""


@pytest.mark.parametrize(
    ("operator", "weights", "inside"),
    [
        ("convex", [1.0, 0.0], lambda x: abs(x.mean(0) - MODES[0].numpy()).max() < 0.3),
        ("convex", [0.5, 0.5], lambda x: abs(x[:, 0].mean()) < 0.3 and x[:, 0].std() > 0.3),
        ("and", None, lambda x: abs(x[:, 0]).max() < 0.2),  # as likely under both: the line between them
        ("or", [0.0, 0.0], lambda x: (x[:, 0] > 0.5).any() and (x[:, 0] < -0.5).any()),
    ],
)
def test_the_toy_s_paths_end_where_the_operator_says(operator, weights, inside):
    drawn = paths(operator, weights)
    assert drawn.shape[1:] == (24, 2)
    assert np.abs(drawn[0]).max() > np.abs(drawn[0]).std() > 1.5  # they begin in the noise
    assert inside(drawn[-1])


def test_films_side_by_side_are_as_long_as_the_longest_and_the_shortest_stands_still():
    films = [
        [np.full((4, 6, 3), 10 * n + i, np.uint8) for i in range(length)] for n, length in ((1, 3), (2, 1))
    ]
    frames = list(beside(films))
    assert [f.shape for f in frames] == [(4, 16, 3)] * 3
    assert [int(f[0, 0, 0]) for f in frames] == [10, 11, 12]
    assert [int(f[0, -1, 0]) for f in frames] == [20, 20, 20]
    assert (frames[0][:, 6:10] == 255).all()


def test_a_film_of_two_policies_begins_with_the_same_picture(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "offrl.evaluation.video.encode", lambda frames, path, fps: kept.extend(frames) or len(kept)
    )
    monkeypatch.setattr("offrl.evaluation.video.MAX_FRAMES", 4)
    policies = [RandomPolicy(5, 2, [0, 0], [512, 512]), RandomPolicy(5, 2, [0, 0], [10, 10])]
    assert record_side_by_side(policies, "pusht-state", tmp_path / "f.mp4", seed=3) == 4
    half = (kept[0].shape[1] - 4) // 2
    assert (kept[0][:, :half] == kept[0][:, half + 4 :]).all()
    assert (kept[-1][:, :half] != kept[-1][:, half + 4 :]).any()


def test_compose_writes_one_page_with_everything(tmp_path, capsys):
    for name, family in (("a", "diffusion"), ("b", "flow")):
        torch.manual_seed(0)
        policy = ChunkPolicy(
            5,
            2,
            [0, 0],
            [512, 512],
            family=family,
            widths=(8, 16),
            step_embed=8,
            horizon=8,
            n_act=4,
            denoising_steps=2,
        )
        policy.set_normalizers(
            *[AffineNormalizer.build(np.full(n, 256.0), np.full(n, 1 / 256)) for n in (5, 2)]
        )
        save_policy(policy, tmp_path / name, {"env_id": "gym_pusht/PushT-v0"})
    command = [
        "compose",
        "--policy",
        str(tmp_path / "a"),
        "--policy",
        str(tmp_path / "b"),
        "--env",
        "pusht-state",
    ]
    play = ["--episodes", "2", "--no-controls", "--side-by-side", "2", "--json"]
    for name in ("a", "b"):  # wired by the parts that the environment shows
        facts = json.loads((tmp_path / name / "policy.json").read_text())
        facts["config"]["inputs"] = [["agent_pos", [2]], ["block_pose", [3]]]
        (tmp_path / name / "policy.json").write_text(json.dumps(facts))
    page = tmp_path / "page.html"
    assert run([*command, *play, "--report", str(page), "--no-film"]) == 0
    text = page.read_text()
    assert "convex composition on gym_pusht/PushT-v0" in text
    assert text.count("<svg") == 1 + 3  # gains, and three panels of the toy
    assert "<video" not in text
    capsys.readouterr()
    for wrong, what in (
        (["--report", "page.pdf"], "must end in .html"),
        (["--no-film"], "with --report only"),
        (["--report", str(page), "--check"], "leave --check"),
    ):
        assert run([*command, *wrong]) == 1
        assert what in capsys.readouterr().err
