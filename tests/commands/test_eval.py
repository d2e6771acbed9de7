import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
import torch

from offrl.cli import main
from offrl.commands.eval import EvalOptions, describe, environment, mean_interval, reference, summarize
from offrl.data.environments import EnvSpec
from offrl.data.reference import PUSHT
from offrl.errors import ConfigError
from offrl.evaluation.rollout import EvaluationResult
from offrl.evaluation.sources import SourceFacts
from offrl.nn.policy import DeterministicPolicy, save_policy

PENDULUM = "InvertedPendulum-v5"


@pytest.fixture
def run_folder(tmp_path):
    """A run whose policy does nothing, evaluated on an environment of 5 steps, in which no pole falls."""
    policy = DeterministicPolicy(4, 1, (8,), [-3.0], [3.0])
    torch.nn.init.zeros_(policy.head.weight)
    torch.nn.init.zeros_(policy.head.bias)
    save_policy(policy, tmp_path / "run")
    config = {
        "format": 1,
        "algorithm": "td3_bc",
        "env_id": PENDULUM,
        "env_kwargs": {"max_episode_steps": 5},
        "env_flatten": [],
        "reference_returns": [0.0, 10.0],
        "dataset_name": "pendulum",
    }
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "run")


def output_of(capsys, *argv):
    code = main(["eval", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_is_evaluated_in_its_own_environment_and_scored_by_its_reference(run_folder, capsys):
    """The pole cannot fall within 5 steps and each pays 1: return 5 of reference 0 .. 10 is a score of 50."""
    code, out, _ = output_of(capsys, run_folder, "--episodes", "3")
    assert code == 0
    assert "3 episodes" in out
    assert "return 5.0 +- 0.0 (std), 95 % interval of the mean 5.0 .. 5.0, mean length 5.0" in out
    assert "normalized score 50.0 (50.0 .. 50.0), reference of its dataset" in out
    _, out, _ = output_of(capsys, run_folder, "--episodes", "1")
    assert "1 episode, seed 0\nreturn 5.0, mean length 5.0\n" in out


def test_json_is_one_object_with_the_same_numbers(run_folder, capsys):
    code, out, _ = output_of(capsys, f"run:{run_folder}", "--episodes", "2", "--json")
    summary = json.loads(out)
    assert code == 0
    assert (summary["env_id"], summary["episodes"], summary["return_mean"]) == (PENDULUM, 2, 5.0)
    assert (summary["normalized_score"], summary["interval"]) == (50.0, [5.0, 5.0])


def test_other_environment_has_another_horizon_and_no_reference(run_folder, capsys):
    _, out, _ = output_of(capsys, run_folder, "--env", PENDULUM, "--episodes", "1", "--json")
    assert json.loads(out)["return_mean"] == 5.0  # the run's own environment
    facts = SourceFacts(EnvSpec(PENDULUM), (0.0, 1.0))
    spec = environment(EvalOptions(source=run_folder, env="Hopper-v5"), facts)
    assert spec == EnvSpec("Hopper-v5")
    assert reference(spec, facts)[1] == "v5 env, D4RL reference"


@pytest.mark.parametrize(
    ("env_id", "pair", "label"),
    [
        ("Hopper-v4", (-20.272305, 3234.3), "D4RL reference"),
        ("HalfCheetah-v5", (-280.178953, 12135.0), "v5 env, D4RL reference"),
        ("Reacher-v5", None, None),
        ("PointMaze_UMaze-v3", None, None),
    ],
)
def test_reference_of_a_bare_environment(env_id, pair, label):
    assert reference(EnvSpec(env_id), SourceFacts()) == (pair, label)


def test_reference_of_a_run_is_labelled_by_its_dataset():
    facts = SourceFacts(EnvSpec("Hopper-v5"), (1.0, 2.0), "zoo/hopper-medium-v0")
    assert reference(EnvSpec("Hopper-v5"), facts) == ((1.0, 2.0), "v5 env, D4RL reference")


def test_mean_interval_is_students():
    """Three returns 1, 2, 3: mean 2, std 1, t(2 degrees, 0.975) = 4.3027, half width 4.3027 / sqrt(3)."""
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)
    assert mean_interval(np.array([1.0])) is None


def test_mean_interval_covers_the_mean_95_times_of_100():
    """2000 samples of 5 normal returns: four standard errors of a share of 0.95 are 0.0195."""
    samples = np.random.default_rng(0).normal(size=(2000, 5))
    covered = np.mean([low <= 0 <= high for low, high in map(mean_interval, samples)])
    assert covered == pytest.approx(0.95, abs=0.0195)


@pytest.mark.parametrize(("expected", "code"), [("5", 0), ("4.9", 0), ("5.1", 1)])
def test_expect_fails_only_when_the_upper_bound_is_lower(run_folder, capsys, expected, code):
    found, out, err = output_of(capsys, run_folder, "--episodes", "2", "--expect", expected)
    assert found == code
    assert "return 5.0" in out
    assert ("expected a mean return of 5.1, but its 95 % interval is 5.0 .. 5.0" in err) == bool(code)


def test_expect_lets_a_noisy_mean_pass(capsys):
    """Below the expectation, but not by more than chance: the interval of two returns is wide."""
    options = ["--episodes", "2", "--expect", "15", "--json"]
    code, out, _ = output_of(capsys, "random", "--env", PENDULUM, *options)
    summary = json.loads(out)
    assert summary["return_mean"] < 15 < summary["interval"][1]
    assert code == 0


def test_workers_and_repetition_change_nothing_and_seeds_do(tmp_path, capsys):
    common = ["random", "--env", PENDULUM, "--episodes", "6"]
    for name, more in {"a": [], "b": ["--workers", "2"], "c": ["--seed", "1"]}.items():
        assert output_of(capsys, *common, *more, "--out", str(tmp_path / f"{name}.npz"))[0] == 0
    returns = {name: np.load(tmp_path / f"{name}.npz")["returns"] for name in "abc"}
    np.testing.assert_array_equal(returns["a"], returns["b"])
    assert (returns["a"] != returns["c"]).any()
    assert set(np.load(tmp_path / "a.npz")) == {"returns", "lengths"}


def test_successes_are_shown_and_written(tmp_path, capsys):
    out_file = tmp_path / "out.npz"
    code, out, _ = output_of(
        capsys, "waypoint", "--env", "PointMaze_UMaze-v3", "--episodes", "1", "--out", str(out_file)
    )
    assert code == 0
    assert "success 100.0 %" in out
    assert np.load(out_file)["successes"].tolist() == [True]


def test_stochastic_is_passed_on(tmp_path, capsys, monkeypatch):
    seen = []

    def evaluate(policy, spec, *, deterministic, **rest):
        seen.append(deterministic)
        raise ConfigError("enough")

    monkeypatch.setattr("offrl.commands.eval.evaluate", evaluate)
    for flags in ([], ["--stochastic"]):
        assert output_of(capsys, "random", "--env", PENDULUM, *flags)[0] == 1
    assert seen == [True, False]


def test_numbers_are_printed_where_their_file_cannot_be_written(run_folder, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["eval", run_folder, "--episodes", "1", "--out", str(tmp_path / "file" / "returns.npz")]) == 1
    printed = capsys.readouterr()
    assert "return 5.0" in printed.out
    assert len(printed.err.splitlines()) == 1


def test_film_is_made_after_the_numbers(run_folder, capsys, monkeypatch, tmp_path):
    calls = []

    def record(policy, spec, path, **options):
        calls.append((spec, path, options))
        return 42

    monkeypatch.setattr("offrl.commands.eval.record", record)
    film = tmp_path / "film.gif"
    code, out, _ = output_of(capsys, run_folder, "--episodes", "1", "--seed", "3", "--video", str(film))
    assert code == 0
    assert out.splitlines()[-1] == f"film {film}: 42 frames"
    assert calls == [
        (EnvSpec(PENDULUM, kwargs={"max_episode_steps": 5}), film, {"seed": 3, "deterministic": True})
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["random"], "random does not say which environment it is for; pass --env ID"),
        (["random", "--env", "Hoper-v5"], "Hoper"),
        (["randm", "--env", PENDULUM], "did you mean 'random'"),
        (["random", "--env", PENDULUM, "--episodes", "0"], "episodes must be 1 or more"),
        (["random", "--env", PENDULUM, "--seed", "-1"], "seed must be 0 or more"),
        (["random", "--env", PENDULUM, "--out", "returns.csv"], "--out must end in .npz, got returns.csv"),
        (["random", "--env", PENDULUM, "--video", "film.avi"], "a film ends in .mp4 or .gif"),
        (["random", "--env", PENDULUM, "--expect", "1", "--episodes", "1"], "at least 2 episodes"),
        (["random", "--env", PENDULUM, "--expect", "nan"], "--expect needs a finite return"),
        (["run:missing"], "no such folder"),
    ],
)
def test_user_errors_are_one_line_and_exit_1(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = output_of(capsys, *argv)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_policy_of_another_environment_is_refused(run_folder, capsys):
    code, _, err = output_of(capsys, run_folder, "--env", "Reacher-v5")
    assert code == 1
    assert "was it trained on another environment?" in err


def test_wrong_usage_exits_2(capsys):
    code, _, err = output_of(capsys, "random", "--episode", "3", "--no-such-option")
    assert code == 2
    assert "--episodes" in err


def test_pusht_reports_success_and_the_mean_of_the_largest_rewards():
    """The papers' score is the latter, which is not a success rate."""
    result = EvaluationResult(
        np.array([10.0, 90.0]),
        np.array([300, 80]),
        np.array([False, True]),
        PUSHT,
        max_rewards=np.array([0.5, 1.0]),
    )
    summary = summarize(EvalOptions(source="random", episodes=2), result, (0.0, 1.0), "success rate")
    assert (summary["normalized_score"], summary["max_reward_mean"]) == (50.0, 0.75)
    assert (
        "success 50.0 % (95 % interval 1.3 .. 98.7), mean of the episodes' largest reward 0.750"
        in describe(summary)
    )


def test_the_score_of_a_single_task_is_its_success_rate():
    """Three of four episodes succeed: 75, whatever the returns; the interval is Clopper and Pearson's, within 0 .. 100."""
    result = EvaluationResult(
        returns=np.array([-10.0, -20.0, -30.0, -200.0]),
        lengths=np.array([11, 21, 31, 200]),
        successes=np.array([True, True, True, False]),
        env_id="cube-single-singletask-task1-v0",
    )
    summary = summarize(EvalOptions(source="random", episodes=4), result, (0.0, 1.0), "success rate")
    assert summary["normalized_score"] == 75.0
    assert summary["return_mean"] == -65.0
    exact = scipy.stats.binomtest(3, 4).proportion_ci(method="exact")
    assert summary["success_interval"] == pytest.approx([exact.low, exact.high])
    assert summary["score_interval"] == pytest.approx([100 * exact.low, 100 * exact.high])
    alone = dataclasses.replace(
        result, **{k: getattr(result, k)[:1] for k in ("returns", "lengths", "successes")}
    )
    summary = summarize(EvalOptions(source="random", episodes=1), alone, (0.0, 1.0), "success rate")
    assert summary["success_interval"] is None
    assert "score_interval" not in summary
    assert "success 100.0 %" in describe(summary)
    assert "interval" not in describe(summary)


def test_expect_is_a_success_rate_where_the_environment_tells_success(capsys):
    pytest.importorskip("gym_pusht")
    options = ["--env", "pusht-state", "--episodes", "2"]
    assert main(["eval", "random", *options, "--expect", "0.95"]) == 1
    assert (
        "expected a success rate of 0.95, but it is 0.00 with a 95 % interval of 0.00 .. 0.84"
        in capsys.readouterr().err
    )
    assert main(["eval", "random", *options, "--expect", "0.8"]) == 0
