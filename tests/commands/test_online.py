"""``offrl train ALGO --env ID`` and ``offrl resume`` of online runs."""

import json
import sys

import gymnasium
import pytest

pytest.importorskip("stable_baselines3")

from offrl.cli import main
from offrl.errors import Stopped

SMALL = [
    "--trajectories",
    "2",
    "--hidden",
    "8",
    "--steps",
    "100",
    "--eval-every",
    "0",
    "--eval-episodes",
    "2",
]


@pytest.fixture
def tiny():
    if "TinyPendulum-v0" not in gymnasium.registry:
        entry = "gymnasium.envs.classic_control:PendulumEnv"
        gymnasium.register("TinyPendulum-v0", entry_point=entry, max_episode_steps=20)
    return "TinyPendulum-v0"


def test_train_evaluate_report_collect_and_resume(tiny, tmp_path, capsys):
    assert main(["train", "n_pg_igt", "--env", tiny, *SMALL, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "n_pg_igt in TinyPendulum-v0: one environment, device cpu, 100 steps" in text
    assert "last return" in text
    (run,) = tmp_path.glob("n_pg_igt/TinyPendulum-v0/seed0-*")
    assert main(["eval", f"run:{run}", "--episodes", "2"]) == 0
    assert "run:" in capsys.readouterr().out
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "n_pg_igt" in (tmp_path / "report.html").read_text()
    data = str(tmp_path / "data.hdf5")
    assert (
        main(["collect", "--env", tiny, "--policy", f"run:{run}", "--steps", "40", "--out", data, "-q"]) == 0
    )
    capsys.readouterr()
    assert main(["diagnose", str(run)]) == 1
    assert "learned in an environment: it has no data" in capsys.readouterr().err
    assert main(["resume", str(run)]) == 0
    assert f"{run} is already finished" in capsys.readouterr().out


def test_resume_passes_its_options_on(tiny, tmp_path, monkeypatch):
    from offrl.online import runner

    given = {}
    main(["train", "n_pg_igt", "--env", tiny, *SMALL, "--out", str(tmp_path), "-q"])
    (run,) = tmp_path.glob("n_pg_igt/TinyPendulum-v0/seed0-*")
    resume = runner.resume
    monkeypatch.setattr(runner, "resume", lambda path, **options: given.update(options) or resume(path))
    assert main(["resume", str(run), "--workers", "3", "--allow-inexact", "-q"]) == 0
    assert given == {"workers": 3, "allow_inexact": True, "reporter_mode": "quiet"}


def test_settings_are_repeated_from_a_config_and_options_win(tiny, tmp_path, capsys):
    main(["train", "harpg", "--env", tiny, *SMALL, "--step-size", "0.003", "--out", str(tmp_path), "-q"])
    (config,) = tmp_path.glob("*/*/*/config.json")
    capsys.readouterr()
    assert main(["train", "harpg", "--config", str(config), "--eta", "0.5", "--dry-run"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["step_size"].startswith("0.003  (default")
    assert lines["eta"].startswith("0.5")
    assert lines["env"].startswith(tiny)
    assert main(["train", "n_pg_igt", "--config", str(config)]) == 1
    assert "is not the config.json of a run of n_pg_igt" in capsys.readouterr().err


def test_a_config_keeps_what_was_given_beside_its_preset(tiny, tmp_path, capsys):
    typed = ["--preset", "Pendulum-", "--lr", "5e-4", "--rollout", "64", "--steps", "64", "--num-envs", "1"]
    few = ["--eval-episodes", "1", "--final-episodes", "1", "--out", str(tmp_path), "-q"]
    assert main(["train", "ppo", "--env", tiny, *typed, *few]) == 0
    (config,) = tmp_path.glob("*/*/*/config.json")
    expected = {"lr": "0.0005", "rollout": "64", "steps": "64", "num_envs": "1", "preset": "Pendulum-"}
    for more, wins in (
        ([], {}),
        (["--preset", "Pendulum-"], {"lr": "0.001", "rollout": "1024", "num_envs": "4"}),
    ):
        capsys.readouterr()
        assert main(["train", "ppo", "--config", str(config), *more, "--dry-run"]) == 0
        lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
        found = {name: lines[name] for name in expected}
        assert found == expected | wins | ({"steps": "100000"} if more else {})


def test_options_are_checked_with_the_preset_that_they_add_to(tiny, tmp_path, capsys):
    file = tmp_path / "zoo.yml"
    file.write_text(f"{tiny}:\n  gradient: gumbel\n")
    typed = ["--env", tiny, "--preset", str(file), "--softmax-temperature", "0.5", "--dry-run"]
    assert main(["train", "pmoe_sac", *typed]) == 0, capsys.readouterr().err


def test_json_has_one_object_an_evaluation(tiny, tmp_path, capsys):
    assert main(["train", "n_pg_igt", "--env", tiny, *SMALL, "--out", str(tmp_path), "--json"]) == 0
    evaluation, final = map(json.loads, capsys.readouterr().out.splitlines())
    assert evaluation["step"] == final["step"] == 100
    assert final["return"] == evaluation["return"]


def test_several_seeds_are_runs_of_their_own(tiny, tmp_path, capsys):
    one = ["train", "n_pg_igt", "--env", tiny, *SMALL]
    assert main([*one, "--seeds", "3", "1", "--out", str(tmp_path / "both")]) == 0
    assert "std over 2 seeds" in capsys.readouterr().out
    main([*one, "--seed", "1", "--out", str(tmp_path / "alone"), "-q"])
    metrics = [next((tmp_path / folder).glob("*/*/seed1-*/metrics.csv")) for folder in ("both", "alone")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    assert main([*one, "--seeds", "1", "1"]) == 2


def test_seeds_that_have_not_begun_are_named(tiny, tmp_path, monkeypatch, capsys):
    from offrl.online import runner

    start = runner.start

    def stopping(name, settings, options, **more):
        if options.seed == 1:
            raise Stopped("stopped at step 7", 130)
        return start(name, settings, options, **more)

    monkeypatch.setattr(runner, "start", stopping)
    typed = ["train", "n_pg_igt", "--env", tiny, *SMALL, "--out", str(tmp_path), "-q"]
    assert main([*typed, "--seeds", "0", "1", "2", "3"]) == 130
    assert capsys.readouterr().err.rstrip().endswith("stopped at step 7; not begun: --seeds 2 3")


def test_resume_without_stable_baselines3_names_the_extra(tiny, tmp_path, in_child):
    main(["train", "n_pg_igt", "--env", tiny, *SMALL, "--out", str(tmp_path), "-q"])
    (run,) = tmp_path.glob("n_pg_igt/TinyPendulum-v0/seed0-*")

    def without():
        for name in [name for name in sys.modules if name.startswith(("offrl.online", "stable_baselines3"))]:
            del sys.modules[name]
        sys.modules["stable_baselines3"] = None
        return main(["resume", str(run)])

    child = in_child(without)
    assert child.code == 1
    assert "pip install 'offrl[sb3]'" in child.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["n_pg_igt"], 1, "n_pg_igt learns in an environment: pass --env ID"),
        (
            ["n_pg_igt", "--dataset", "x"],
            2,
            "n_pg_igt learns in an environment (--env ID), not from --dataset",
        ),
        (
            ["n_pg_igt", "--env", "x", "--from=run"],
            2,
            "n_pg_igt learns in an environment (--env ID), not from --from",
        ),
        (["n_pg_igt", "--eta", "2"], 2, "eta must be in"),
        (["n_pg_igt", "--preset", "Nothing-v0"], 1, "no preset for 'Nothing-v0'"),
        (["n_pg_ig", "--env", "x"], 1, "did you mean 'n_pg_igt'?"),
        (["ppo", "--env", "x", "--compile"], 1, "ppo learns in an environment and has no --compile"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, capsys):
    assert main(["train", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_of_an_online_method_says_how_it_is_trained(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from offrl.algos.n_pg_igt import ALGORITHM")
    assert main(["train", str(file), "--env", "x"]) == 1
    assert (
        "learns in an environment: outside the package such a method is trained from Python"
        in capsys.readouterr().err
    )


def test_checks_and_datasets_are_for_methods_that_learn_from_data(capsys):
    assert main(["algos", "check", "n_pg_igt"]) == 1
    assert "n_pg_igt learns in an environment, not from data" in capsys.readouterr().err
