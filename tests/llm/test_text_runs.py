"""Runs on prompts of text, from files to what is printed of them."""

import csv
import json

import pytest

from offrl.cli import main
from offrl.errors import CheckpointError
from offrl.llm.learner import Shown
from offrl.llm.options import LLMOptions
from offrl.llm.session import completions, files_sha256, plain, resume
from offrl.training.run_dir import Table


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, numbers in (("train", range(8)), ("test", range(20, 23))):
        rows = [{"q": f"{i}+1", "a": i + 1, "level": 1 + i % 2} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "def short(completions, **kwargs):\n    return [-len(c) for c in completions]\n"
    )
    return tmp_path


def train(model, *more):
    given = [
        "--model",
        model,
        "--dataset",
        "train.jsonl",
        "--prompt-key",
        "q",
        "--answer-key",
        "a",
        "--reward",
    ]
    given += [
        "integer",
        "--reward",
        "own.py:short=0.1",
        "--prompts",
        "2",
        "--group",
        "4",
        "--max-response",
        "5",
    ]
    given += [
        "--eval-prompts",
        "50",
        "--eval-samples",
        "2",
        "--device",
        "cpu",
        "--log-every",
        "1",
        "--out",
        "runs",
    ]
    return main(["llm", "train", "grpo", *given, *more])


def test_a_run_on_a_file_from_training_to_report(files, hugging_face, capsys):
    assert train(hugging_face(), "--steps", "2", "--eval-dataset", "test.jsonl", "--lora-rank", "2") == 0
    out = capsys.readouterr().out
    assert "grpo on train" in out
    assert "prompt | response" in out
    (run,) = (files / "runs" / "grpo" / "train").iterdir()
    with open(run / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["reward_short"]) == pytest.approx(float(row["reward"]) - float(row["reward_integer"]))
    assert -0.5 <= float(row["reward_short"]) <= 0
    with open(run / "samples.csv", newline="") as file:
        samples = list(csv.DictReader(file))
    assert all(sample["prompt"].startswith("user: ") for sample in samples)
    assert len((run / "eval.csv").read_text().splitlines()) == 1 + 2 * 3
    config = json.loads((run / "config.json").read_text())
    assert config["llm"]["reward"] == ["integer", f"{files / 'own.py'}:short=0.1"]
    assert len(config["dataset_sha256"]) == 64
    assert main(["report", str(run), "--out", "report.html"]) == 0
    page = (files / "report.html").read_text()
    assert "Completions" in page
    assert "offrl train grpo" not in page  # there is no such command
    for option, value in (("lora_rank", 2), ("lr", 0.001), ("group", 4)):
        assert f'>{option}</th><td><span class="long">{value}</span>' in page, option


def test_an_evaluation_takes_prompts_and_rewards_of_its_own(files, hugging_face, capsys):
    assert train(hugging_face(), "--steps", "1", "-q") == 0
    (run,) = (files / "runs" / "grpo" / "train").iterdir()
    evaluate = ["llm", "eval", str(run), "--json", "--k", "4"]
    assert main([*evaluate, "--dataset", "test.jsonl", "--reward", "regex:."]) == 0
    trained, base = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (trained["model"], base["model"]) == ("trained", "base")
    assert trained["avg@4"][0] > 0.5
    assert set(trained["levels"]) == {"1", "2"}
    assert main([*evaluate, "--no-base", "--max-response", "1"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["avg@4"][0] < 0.5


def test_prompts_that_are_left_out_are_counted_wherever_they_stand(files, hugging_face, capsys):
    """An evaluation on fewer prompts than its file holds says so; an empty prompt is not a long one."""
    rows = [{"q": q, "a": 1} for q in ("", "1+0", "1000+1", "2000+1")]
    (files / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = ["--steps", "1", "--chat-template", "none", "--max-prompt", "4"]
    assert train(hugging_face(), *short, "--eval-dataset", "mixed.jsonl") == 0
    out = capsys.readouterr().out
    assert "3 prompts of mixed are empty or longer than 4 tokens: left out" in out
    assert "of train are" not in out
    (run,) = (files / "runs" / "grpo" / "train").iterdir()
    assert main(["llm", "eval", str(run), "--k", "1", "--no-base", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "3 prompts of mixed are empty or longer than 4 tokens: left out\n"
    assert json.loads(out)["model"] == "trained"


def test_an_evaluation_refuses_what_its_task_does_not_read(files, capsys):
    small = ["--steps", "1", "--prompts", "2", "--group", "2", "--eval-prompts", "2", "--eval-samples", "2"]
    window = ["--context", "supo", "--context-window", "32", "--out", "runs", "-q"]
    assert main(["llm", "train", "grpo", "--task", "t6", *small, *window]) == 0
    (run,) = (files / "runs" / "grpo" / "t6").iterdir()
    evaluate = ["llm", "eval", str(run), "--k", "1", "--prompts", "2", "--no-base"]
    assert main([*evaluate, "--max-response", "9"]) == 1
    assert "max_response has no effect with task t6" in capsys.readouterr().err
    assert main([*evaluate, "--task", "t6", "--dataset", "train.jsonl"]) == 2
    assert "--dataset takes the place of a task: leave --task t6 out" in capsys.readouterr().err
    assert main(["llm", "train", "grpo", "--task", "t1", "--max-prompt", "9", "--dry-run"]) == 1
    assert "max_prompt has no effect with task t1" in capsys.readouterr().err
    assert main([*evaluate, "--context", "full"]) == 0  # without the window of the run


def test_a_run_of_a_table_is_no_hugging_face_model_and_no_policy(files, capsys):
    small = ["--steps", "1", "--prompts", "2", "--group", "2", "--eval-prompts", "2", "--eval-samples", "2"]
    task = ["--task", "t3", "--model", "tiny:table", "--out", "runs", "-q"]
    assert main(["llm", "train", "grpo", *task, *small]) == 0
    (run,) = (files / "runs" / "grpo" / "t3").iterdir()
    assert main(["export", str(run), "--format", "huggingface", "--out", "out"]) == 1
    assert "trained tiny:table, which is no model of Hugging Face" in capsys.readouterr().err
    assert main(["eval", str(run)]) == 1
    assert capsys.readouterr().err == f"offrl: {run} is the run of a language model: use offrl llm eval\n"
    assert main(["export", str(run), "--format", "onnx", "--out", "out.onnx"]) == 1
    assert "is the run of a language model, which acts in no environment" in capsys.readouterr().err
    assert main(["diagnose", str(run)]) == 1
    assert "is the run of a language model: it has no critics" in capsys.readouterr().err


def test_a_dry_run_counts_what_is_frozen(files, hugging_face, capsys):
    assert train(hugging_face(), "--lora-rank", "2", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {line[:20].strip(): line[21:] for line in lines}
    trained, frozen = facts["parameters"].split(" beside ")
    assert 0 < int(trained.replace(" ", "")) < int(frozen.removesuffix(" frozen").replace(" ", ""))
    assert not (files / "runs").exists()


def test_a_changed_data_set_is_not_resumed(files, hugging_face):
    assert train(hugging_face(), "--steps", "1", "-q") == 0
    (run,) = (files / "runs" / "grpo" / "train").iterdir()
    (run / "final_returns.npz").unlink()
    with open(files / "train.jsonl", "a") as file:
        file.write('{"q": "", "a": 1}\n')
    with pytest.raises(CheckpointError, match="no longer the data set"):
        resume(run)


@pytest.mark.parametrize(
    ("name", "says"), [("test.jsonl", "--eval-dataset"), ("own.py", "--reward .*own.py")]
)
def test_other_files_that_changed_are_noticed(name, says, files, hugging_face):
    assert train(hugging_face(), "--steps", "1", "-q", "--eval-dataset", "test.jsonl") == 0
    (run,) = (files / "runs" / "grpo" / "train").iterdir()
    (run / "final_returns.npz").unlink()
    resume(run)
    (run / "final_returns.npz").unlink()
    before = (files / name).read_bytes()
    (files / name).write_bytes(before + b"\n")
    with pytest.raises(CheckpointError, match=f"what {says} names changed since"):
        resume(run)
    (files / name).unlink()
    with pytest.raises(CheckpointError, match=f"what {says} names changed since"):
        resume(run)
    (files / name).write_bytes(before)
    config = json.loads((run / "config.json").read_text())
    del config["files_sha256"]  # as runs before had it
    (run / "config.json").write_text(json.dumps(config))
    resume(run)


def test_every_file_that_options_name_is_known_by_its_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "actor" / "model").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    files = {"--hints": "h.jsonl", "--v0-weights": "v.safetensors", "--chat-template": "t.jinja"}
    files |= {"--eval-dataset": "e.jsonl", f"--reward {tmp_path / 'r.py'}": "r.py"}
    files |= {"--actor": "actor/model/model.safetensors", "--model": "base/model.safetensors"}
    for name in files.values():
        (tmp_path / name).write_text(name)
    options = LLMOptions(
        dataset="d.jsonl", actor="actor", eval_dataset="e.jsonl", chat_template="t.jinja", scaffold="hints",
        hints="h.jsonl", allocator="knapsack", predictor="v0", v0_weights="v.safetensors",
        reward=("integer", "r.py:f=2"), model="base", lora_rank=4,
    )  # fmt: skip
    first = files_sha256(options)
    assert set(first) == set(files)
    for option, name in files.items():
        (tmp_path / name).write_text("other")
        now = files_sha256(options)
        assert [key for key in first if now[key] != first[key]] == [option]
        (tmp_path / name).write_text(name)
    assert files_sha256(LLMOptions()) == {}
    assert files_sha256(LLMOptions(model="base")) == {}  # a checkpoint holds all of its weights
    reads = LLMOptions(model="base", allocator="knapsack", predictor="v0")  # the states of the first model
    assert list(files_sha256(reads)) == ["--model"]


def test_demonstrations_of_a_file_are_learnt(files, hugging_face, capsys):
    given = [
        "--model",
        hugging_face(),
        "--task",
        "arithmetic",
        "--prompts",
        "4",
        "--steps",
        "3",
        "--device",
        "cpu",
    ]
    given += [
        "--max-response",
        "20",
        "--lr",
        "0.01",
        "--eval-prompts",
        "2",
        "--eval-samples",
        "2",
        "--log-every",
        "1",
    ]
    assert main(["llm", "train", "sft", *given, "-q", "--out", "runs"]) == 0
    (run,) = (files / "runs" / "sft" / "arithmetic").iterdir()
    with open(run / "metrics.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    with open(run / "metrics.csv", newline="") as file:
        assert all(float(row["success"]) == 1 for row in csv.DictReader(file))
    assert main(["llm", "train", "sft", *given, "--noise", "0.5", "--out", "other"]) == 1
    assert "demonstrations of arithmetic are text: leave --noise out" in capsys.readouterr().err
    assert not (files / "other").exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--task", "arithmetic"], 1, "tiny:dense has no tokenizer"),
        (["--dataset", "none.csv", "--reward", "correct"], 1, "unknown verifier 'correct'"),
        (["--lora-rank", "-1"], 2, "lora_rank must be 0 or more"),
        (["--reward", "integer"], 1, "leave --reward out"),
        (["--model", "none.gguf", "--task", "arithmetic"], 1, "neither a folder"),
    ],
)
def test_a_mistake_is_one_line(argv, code, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["llm", "train", "grpo", *argv]) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_what_a_model_says_does_not_break_a_table(tmp_path):
    table = Table(tmp_path / "t.csv", ["response", "reward"])
    for text in ("a\rb", "a\r\nb", 'a"b,\n', "a\0b", "a\x0bb\u2028c"):
        table.append({"response": plain(text), "reward": 1.0})
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["response"] for row in rows] == ["a\nb", "a\nb", 'a"b,', "a\ufffdb", "a\nb\nc"]


def test_completions_are_lines_of_one_width():
    shown = Shown(["long " * 50 + "end?", "a\nb"], ["x" * 500, "y\nz"], [1.0, -0.25])
    _, *lines = completions(shown, 60)
    assert len(lines) == 2
    assert all(len(line) <= 62 and "\n" not in line for line in lines)
    assert "end? | xxx" in lines[0]
    assert lines[1].startswith("    -0.25")
    assert lines[1].endswith("a b | y z")
    assert completions(Shown([], [], [])) == []
