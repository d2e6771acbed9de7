"""``offrl llm``: what it prints and refuses."""

import dataclasses
import json

import pytest
import torch

from offrl.cli import main
from offrl.commands.llm import EvalOptions, asked
from offrl.errors import ConfigError
from offrl.llm.methods import METHODS, load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task

SMALL = ["--prompts", "4", "--group", "4", "--eval-prompts", "8", "--eval-samples", "2", "--device", "cpu"]


def test_the_list_has_every_method_and_task(capsys):
    assert main(["llm", "list"]) == 0
    out = capsys.readouterr().out
    for word in (
        "grpo",
        "group_std",
        "seq-mean-token-mean",
        "arXiv:2402.03300",
        "tested",
        "t2-hard",
        "arithmetic",
        "regex:PATTERN",
        "--sampler vas",
        "--allocator knapsack",
        "--predictor v0",
        "--curriculum stages",
        "--scaffold hints",
        "arXiv:2509.25849",
    ):
        assert word in out


@pytest.mark.parametrize("name", METHODS)
def test_settings_and_options_of_a_method_have_names_of_their_own(name):
    """Two of one name would be one option, which the command line refuses."""
    settings = {field.name for field in dataclasses.fields(load_method(name).config)}
    assert settings & {field.name for field in dataclasses.fields(LLMOptions)} == set()


@pytest.mark.parametrize("name", ["fdpg", "polychromic"])
def test_the_help_of_a_method_shows_its_settings(name, capsys):
    assert main(["llm", "train", name, "--help"]) == 0
    assert "--window" in capsys.readouterr().out


def test_a_run_from_start_to_evaluation(tmp_path, capsys):
    train = ["llm", "train", "grpo", "--steps", "2", "--out", str(tmp_path), *SMALL]
    assert main(train) == 0
    out = capsys.readouterr().out
    assert "tiny:dense (84 416 parameters), 4 prompts x 4 responses" in out
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    assert f"next: offrl llm eval {run}" in out
    assert main(["resume", str(run)]) == 0
    assert "is already finished" in capsys.readouterr().out
    assert main(["llm", "eval", str(run), "--k", "4", "--prompts", "8", "--json"]) == 0
    trained, base = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (trained["model"], base["model"]) == ("trained", "base")
    assert {"greedy", "avg@4", "pass@2", "pass@4", "levels"} <= set(trained)
    low, high = trained["pass@4"][1:]
    assert low <= trained["pass@4"][0] <= high
    assert main(["llm", "eval", str(run), "--k", "2", "--prompts", "4", "--no-base"]) == 0
    assert "pass@2" in capsys.readouterr().out
    for k, passes in ((1, []), (5, ["pass@2", "pass@4", "pass@5"])):
        assert main(["llm", "eval", str(run), "--k", str(k), "--prompts", "4", "--no-base", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [name for name in found if name.startswith("pass@")] == passes


@pytest.mark.parametrize(
    ("name", "given", "lines"),
    [
        (
            "sft",
            [],
            {"tokens per step": "at most 512 demonstrated, 1024 with prompts", "rollouts in all": "0"},
        ),
        ("remax", [], {"greedy responses": "32 more a step", "rollouts in all": "5440"}),
        (
            "dapo",
            [],
            {
                "samplings per step": "1 to 4, until 32 groups have unequal rewards",
                "rollouts in all": "5120 to 20480",
            },
        ),
        ("dapo", ["--max-rounds", "1"], {"rollouts in all": "5120"}),
        (
            "polychromic",
            ["--task", "t4b", "--group", "8", "--minibatches", "2"],
            {
                "responses per step": "768 (8 a prompt and 2 x 8 vines)",
                "updates per step": "2 of 384 responses",
                "rows of one pass": "384",
                "tokens per step": "at most 18432 sampled, 20736 with prompts",
                "rollouts in all": "7680",
            },
        ),
        (
            "polychromic",
            ["--states", "0"],
            {"responses per step": "512 (16 a prompt)", "rollouts in all": "5120"},
        ),
        (
            "empg",
            ["--base", "dapo"],
            {
                "samplings per step": "1 to 4, until 32 groups have unequal rewards",
                "rollouts in all": "5120 to 20480",
            },
        ),
        (
            "luffy",
            ["--minibatches", "2"],
            {"updates per step": "2 of 256 responses and 16 demonstrations", "rollouts in all": "5120"},
        ),
    ],
)
def test_a_dry_run_tells_what_comes_on_top(name, given, lines, capsys):
    """Greedy responses and further samplings are rollouts; demonstrations are rows of updates."""
    assert main(["llm", "train", name, "--steps", "10", "--dry-run", *given]) == 0
    found = {line[:20].strip(): line[21:] for line in capsys.readouterr().out.splitlines()}
    assert lines.items() <= found.items()


@pytest.mark.parametrize(("name", "given"), [("remax", []), ("dapo", []), ("empg", ["--base", "dapo"])])
def test_a_dry_run_promises_the_rollouts_that_are_made(name, given, tmp_path, capsys):
    train = ["llm", "train", name, "--steps", "2", "--out", str(tmp_path), "--json", *SMALL, *given]
    assert main([*train, "--dry-run"]) == 0
    promised = capsys.readouterr().out.split("rollouts in all")[1].splitlines()[0].split(" to ")
    assert main(train) == 0
    (run,) = (tmp_path / name / "t1").iterdir()
    made = int((run / "accuracy.csv").read_text().splitlines()[-1].split(",")[2])
    assert int(promised[0]) <= made <= int(promised[-1])


def test_a_run_that_diverged_ends_with_a_line(tmp_path, capsys):
    train = ["llm", "train", "grpo", "--lr", "1e30", "--task", "t5", "--steps", "9", "--log-every", "1"]
    assert (
        main([*train, "--prompts", "8", "--group", "8", "--eval-prompts", "4", "--out", str(tmp_path)]) == 1
    )
    assert capsys.readouterr().err == (
        "offrl: the model's probabilities at temperature 1 are not finite: have its weights diverged?\n"
    )


PARTS = [
    "--task",
    "t2-hard",
    "--pool",
    "20",
    "--sampler",
    "vas",
    "--vas-rollouts",
    "2",
    "--allocator",
    "knapsack",
]
PARTS += ["--budget-high", "9", "--curriculum", "stages", "--stage-bounds", "4", "8", "--scaffold", "hints"]


def test_any_method_runs_with_all_parts(tmp_path, capsys):
    command = ["llm", "train", "gdpo", *PARTS, "--hint-exempt", "0", "--steps", "2", *SMALL]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "responses per step   16 (2 to 9 a prompt, by history)" in out
    assert "on top, 2 responses to each prompt of the pool every 28 steps (1 x)" in out
    assert "on top, from step 1 on, a response a level to each prompt that failed" in out
    assert "rising stages, the next by steps" in out
    assert main([*command, "--log-every", "1", "--out", str(tmp_path), "-q"]) == 0
    (run,) = (tmp_path / "gdpo" / "t2-hard").iterdir()
    header, first, _ = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    wanted = {"vas_variance", "vas_diversity", "vas_zero", "stage", "stage_success", "replayed"}
    wanted |= {"budget_least", "budget_most", "prediction_error"}
    wanted |= {"hint_prompts", "hint_rescued", "hint_level", "hint_graduated"}
    assert wanted <= set(row)
    assert float(row["rollouts"]) > 2 * 19 + 16
    assert float(row["stage"]) == 1.0


def test_a_dry_run_says_what_a_step_costs_and_writes_nothing(tmp_path, capsys):
    command = [
        "llm",
        "train",
        "grpo",
        "--dry-run",
        "--minibatches",
        "2",
        "--reuse",
        "3",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main([*command, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "responses per step   16 (4 a prompt)" in out
    assert "updates per step     6 of 8 responses" in out
    assert "rollouts in all      8000" in out
    assert "parameters           84 416" in out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["llm", "train", "gprpo"], 1, "did you mean 'grpo'"),
        (["llm", "train", "grpo", "--task", "t9"], 1, "there are t1, t2, t2-hard, t2-cliff, t3"),
        (["llm", "train", "grpo", "--minibatches", "5"], 2, "it can be 1, 2, 4, 8, 16 or 32"),
        (["llm", "train", "grpo", "--promts", "5"], 2, "did you mean --prompts"),
        (["llm", "trian"], 2, "did you mean 'train'"),
        (["llm", "train", "grpo", "--group", "1"], 1, "--group must be 2 or more"),
        (["llm", "list", "all"], 2, "takes no arguments"),
        (["llm", "train", "grpo", "--model", "tiny:huge"], 1, "there are tiny:dense"),
    ],
)
def test_a_mistake_is_one_line(argv, code, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_kind_is_refused(tmp_path, capsys):
    assert main(["llm", "eval", str(tmp_path)]) == 1
    assert "not a run directory" in capsys.readouterr().err


def test_an_evaluation_in_another_context_forgets_the_runs_summaries(tmp_path):
    options = LLMOptions(task="t6", context="supo", context_window=32, summaries=6)
    recorded = dataclasses.asdict(options) | {"out": "runs"}
    assert asked(EvalOptions(tmp_path), recorded).summaries == 6
    assert asked(EvalOptions(tmp_path, context="truncate"), recorded).summaries == 3
    assert asked(EvalOptions(tmp_path, context="full", context_window=0), recorded).context == "full"
    with pytest.raises(ConfigError, match="summaries has no effect without --context supo"):
        asked(EvalOptions(tmp_path, context="truncate", summaries=4), recorded)


def test_an_evaluation_on_another_task_forgets_the_runs_actor(tmp_path):
    recorded = dataclasses.asdict(LLMOptions(task="t4d", actor="a run")) | {"out": "runs"}
    assert asked(EvalOptions(tmp_path), recorded).actor == "a run"
    assert asked(EvalOptions(tmp_path, task="t4d"), recorded).actor == "a run"
    assert asked(EvalOptions(tmp_path, task="t4d-actor"), recorded).actor == ""


def test_an_evaluation_samples_where_it_is_told(tmp_path, capsys, monkeypatch):
    assert main(["llm", "train", "grpo", "--steps", "1", "--out", str(tmp_path), *SMALL]) == 0
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    few = ["--k", "2", "--prompts", "4", "--no-base"]
    assert main(["llm", "eval", str(run), *few, "--device", "cuda:77"]) == 1
    assert "device 'cuda:77' cannot be used" in capsys.readouterr().err
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device) or self)
    assert main(["llm", "eval", str(run), *few, "--device", "cpu"]) == 0
    assert moved == ["cpu"]


def test_an_evaluation_on_prompts_of_a_file(tmp_path, capsys):
    """A tiny model cannot read text: the mistake is said before anything is sampled."""
    assert main(["llm", "train", "grpo", "--steps", "1", "--out", str(tmp_path), *SMALL]) == 0
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    assert (
        main(["llm", "eval", str(run), "--task", "t1", "--k", "2", "--prompts", "4", "--no-base", "--json"])
        == 0
    )
    capsys.readouterr()
    assert main(["llm", "eval", str(run), "--task", "t2"]) == 1
    assert "made for another task" in capsys.readouterr().err
    for task, of in (("t1", "t2-hard"), ("t6", "t2-cliff")):  # as many words, and others
        made = load_model("tiny:dense", load_task(of), 0)
        made.save(tmp_path / of, load_task(of))
        load_model(str(tmp_path / of), load_task(of), 0)
        with pytest.raises(
            ConfigError, match=f"has another token for .* than task {task}: it was made for another"
        ):
            load_model(str(tmp_path / of), load_task(task), 0)
    assert main(["llm", "eval", str(run), "--reward", "integer"]) == 1
    assert "leave --reward out" in capsys.readouterr().err
