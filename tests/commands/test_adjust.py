"""offrl eval SOURCE --adjust RUN: the same episodes with and without, the saved policy, what is refused."""

import json

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.diffusion.adjustment import CDSAModel, CDSAPolicy
from offrl.nn.policy import DeterministicPolicy, load_policy, save_policy

FIVE_STEPS = {"format": 1, "algorithm": "td3_bc", "env_id": "Pendulum-v1", "env_flatten": []}
FIVE_STEPS |= {"env_kwargs": {"max_episode_steps": 5}, "reference_returns": None, "dataset_name": "x"}


@pytest.fixture
def folders(tmp_path):
    """A run whose policy never brakes, and a run of cdsa whose data brake with half the torque, whatever happens."""
    policy = DeterministicPolicy(3, 1, (4,), [-2.0], [2.0])
    for p in policy.parameters():
        torch.nn.init.zeros_(p)
    save_policy(policy, tmp_path / "run")
    (tmp_path / "run/config.json").write_text(json.dumps(FIVE_STEPS))
    sizes = {"hidden": 4, "blocks": 1, "dynamics_hidden": 4}
    model = CDSAModel(3, 1, [-2.0], [2.0], **sizes, target="cond_action", sigma_min=0.5, sigma_max=0.5)
    model.score_weights[-1].data.fill_(
        -1.0
    )  # noise predicted: -1, so that the action moves by +0.5 half-ranges
    save_policy(model, tmp_path / "cdsa")
    return tmp_path


def output_of(capsys, *argv):
    code = main(["eval", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_both_play_the_same_episodes_and_are_compared(folders, capsys):
    base = ["--episodes", "4", "--json", "--seed", "3"]
    _, alone, _ = output_of(capsys, folders / "run", *base)
    out_file = folders / "adjusted.npz"
    adjust = ["--adjust", folders / "cdsa", "--adjust-alpha", "1", "--out", out_file]
    code, out, _ = output_of(capsys, folders / "run", *base, *adjust)
    summary = json.loads(out)
    rows = summary["comparison"]
    assert code == 0
    assert list(rows) == ["mean", "VaR_0.1", "CVaR_0.1"]
    assert rows["mean"]["base"] == json.loads(alone)["return_mean"]
    assert rows["mean"]["adjusted"] == summary["return_mean"] == np.load(out_file)["returns"].mean()
    assert rows["mean"]["adjusted"] != rows["mean"]["base"]
    low, high = rows["mean"]["interval"]
    assert low < rows["mean"]["difference"] < high
    assert summary["adjustment"]["sigma"] == 0.5, "the only level of the run"
    assert "comparison" not in json.loads(alone)


def test_alpha_zero_changes_nothing_and_the_table_says_so(folders, capsys):
    argv = [folders / "run", "--episodes", "3", "--adjust", f"run:{folders / 'cdsa'}", "--adjust-alpha", "0"]
    code, out, _ = output_of(capsys, *argv)
    assert code == 0
    assert "CDSA (reconstruction, not verified against the authors' code): " in out
    rows = [line for line in out.splitlines() if line.startswith(("mean ", "VaR_0.1", "CVaR_0.1"))]
    assert len(rows) == 3
    assert all(" 0.0 (0.0 .. 0.0)" in row for row in rows)


def test_the_adjusted_policy_is_a_source_for_every_command(folders, capsys):
    saved = folders / "saved"
    argv = ["--episodes", "2", "--json"]
    adjust = ["--adjust", folders / "cdsa", "--adjust-alpha", "0.6", "--adjust-out", saved]
    first = json.loads(output_of(capsys, folders / "run", *argv, *adjust)[1])
    policy = load_policy(saved)
    assert isinstance(policy, CDSAPolicy)
    assert policy(torch.zeros(1, 3)).item() == pytest.approx(0.6)
    again = json.loads(output_of(capsys, saved, *argv)[1])
    assert (again["return_mean"], again["length_mean"]) == (first["return_mean"], 5.0), "its five steps too"
    target = folders / "steps.hdf5"
    collect = ["collect", "--env", "Pendulum-v1", "--policy", saved, "--steps", "20", "--out", target, "-q"]
    assert main(list(map(str, collect))) == 0
    assert target.exists()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--adjust-alpha", "0.5"], "--adjust-alpha needs --adjust RUN"),
        (["--adjust-out", "x"], "--adjust-out needs --adjust RUN"),
        (["--adjust", "{run}"], "is not a run of cdsa; make one with: offrl train cdsa"),
        (["--adjust", "{cdsa}", "--adjust-beta", "0.1"], "beta needs scores of the states"),
        (
            ["--adjust", "{cdsa}", "--adjust-beta", "0.1", "--adjust-eta", "0.3"],
            "beta needs scores of the states",
        ),
        (["--adjust", "{cdsa}", "--adjust-eta", "0.3"], "--adjust-eta has no effect without --adjust-beta"),
        (
            ["--adjust", "{cdsa}", "--adjust-state-ref", "next"],
            "--adjust-state-ref has no effect without --adjust-beta",
        ),
        (["--adjust", "{cdsa}", "--adjust-sigma", "0.1"], "trained at noise levels 0.5 .. 0.5"),
        (["--adjust", "{cdsa}", "--adjust-alpha", "-1"], "alpha must be a finite number"),
        (["--adjust", "{none}"], "no such folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folders, capsys, argv, why):
    names = {name: str(folders / name) for name in ("run", "cdsa", "none")}
    code, _, err = output_of(capsys, folders / "run", *(part.format(**names) for part in argv))
    assert code == 1
    assert why in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_keeps_its_policy(folders, capsys):
    before = {path.name: path.read_bytes() for path in (folders / "run").iterdir()}
    argv = [folders / "run", "--episodes", "1", "--adjust", folders / "cdsa"]
    code, out, err = output_of(capsys, *argv, "--adjust-out", folders / "run")
    assert (code, out) == (1, "")
    assert "is a run (it has a config.json) and would lose its policy: choose another --adjust-out" in err
    assert {path.name: path.read_bytes() for path in (folders / "run").iterdir()} == before
    assert output_of(capsys, *argv, "--adjust-out", folders / "run/policy.json")[0] == 1
