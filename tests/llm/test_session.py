"""Runs: what is written, and that a stopped run goes on bit for bit."""

import json
import signal

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.llm import session
from offrl.llm.learner import Learner, Shown
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions, check_idle, plan
from offrl.llm.parallel import Ranks
from offrl.llm.session import completions, resume, start
from offrl.llm.tasks import load_task
from offrl.training.progress import Reporter

TABLES = ("metrics.csv", "eval.csv", "accuracy.csv", "samples.csv")


def options(tmp_path, **given):
    small = {"steps": 6, "prompts": 4, "group": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 3}
    small |= {"eval_prompts": 8, "eval_samples": 2, "out": tmp_path, "device": "cpu"}
    return LLMOptions(**small | given)


def stopped_at(monkeypatch, step):
    """Learner.update raises instead of making this step."""
    usual, calls = Learner.update, []

    def update(self):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return usual(self)

    monkeypatch.setattr(Learner, "update", update)
    return lambda: monkeypatch.setattr(Learner, "update", usual)


CASES = {
    "grpo": ({"kl": 0.1}, {"delay": 2, "reuse": 2, "minibatches": 2, "task": "t2"}),
    "ppo": ({"kl": 0.1}, {"engine": "int8", "task": "t2"}),
    "dapo": ({}, {"task": "t2"}),
    "sft": ({"noise": 0.3}, {"group": 1, "task": "t2"}),
    "clip_cov": (
        {"quantiles": True, "cov_low": 0.5, "cov_high": 1.0, "share": 0.1},
        {"minibatches": 2, "task": "t2"},
    ),
    "fdpg": ({}, {"model": "tiny:table", "task": "t3"}),
    "minirl": ({"replay": "R3"}, {"model": "tiny:moe", "engine": "fp8", "delay": 1, "task": "t2"}),
    "rloo": ({"kl": 1.0}, {"model": "tiny:table", "task": "t3"}),
    "capo": ({"tau_f": 0.1, "tau_h": 1e9}, {"task": "t2", "minibatches": 2}),
    "d3s": ({}, {"task": "t2", "minibatches": 2}),
    "oblr_po": ({}, {"task": "t2"}),
    "hpt": ({}, {"task": "t2", "minibatches": 2}),
    "gdpo": (
        {},
        {
            **{"task": "t2", "pool": 24, "sampler": "vas", "vas_every": 2, "vas_rollouts": 2, "group": 4},
            **{"allocator": "knapsack", "curriculum": "stages", "stage_bounds": (4, 8), "stage_replay": 0.5},
            **{"stage_advance": "plateau", "stage_every": 1, "stage_patience": 1},
            **{"scaffold": "hints", "hint_exempt": 0.3, "minibatches": 2},
        },
    ),
    "dr_grpo": (
        {},
        {"task": "t2", "allocator": "knapsack", "predictor": "v0", "budget_high": 9, "prompts": 8},
    ),
    "epo": ({"low": 0.9, "high": 1.0}, {"task": "t4a"}),
    "empg": ({}, {"task": "t6", "context": "supo", "context_window": 32}),
    "polychromic": ({"states": 1, "vines": 4, "share": "set"}, {"task": "t4b", "minibatches": 2}),
    "copg": ({"kl": 0.5}, {"task": "t2", "micro_batch": 8, "minibatches": 2}),
}


@pytest.mark.parametrize(("name", "step"), [(name, 5) for name in CASES] + [("grpo", 2), ("ppo", 2)])
def test_a_stopped_run_goes_on_bit_for_bit(name, step, tmp_path, monkeypatch):
    """Stopped before the first checkpoint, and between a checkpoint and rows written after it."""
    settings, how = CASES[name]
    config = load_method(name).config(**settings)
    whole = start(name, config, options(tmp_path / "whole", **how)).directory
    go_on = stopped_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        start(name, config, options(tmp_path / "cut", **how))
    go_on()
    (cut,) = (tmp_path / "cut" / name / how.get("task", "t1")).iterdir()
    result = resume(cut)
    start_weights = load_model(
        how.get("model", "tiny:dense"), load_task(how.get("task", "t1")), 0
    ).state_dict()
    for table in TABLES:
        assert (whole / table).read_bytes() == (cut / table).read_bytes(), table
    assert not result.already_finished
    task = load_task(how.get("task", "t1"))
    one, other = (load_model(str(path), task, 0).state_dict() for path in (whole, cut))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not any(
        torch.equal(one[key], start_weights[key]) for key in one if "embed" in key or key == "logits"
    )
    assert resume(cut).already_finished


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_stopped_before_its_mark_of_the_end_is_only_marked(moved, tmp_path):
    """After the last checkpoint, or, ``moved``, before its model took the place of the one before."""
    run = start("grpo", load_method("grpo").config(), options(tmp_path)).directory
    written = {table: (run / table).read_bytes() for table in TABLES}
    weights, marked = (run / "model" / "model.safetensors").read_bytes(), np.load(run / "final_returns.npz")
    (run / "final_returns.npz").unlink()
    if moved:
        (run / "model").rename(run / "model-next")
    assert not resume(run).already_finished
    assert {table: (run / table).read_bytes() for table in TABLES} == written
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert not (run / "model-next").exists()
    again = np.load(run / "final_returns.npz")
    assert all((again[name] == marked[name]).all() for name in ("returns", "lengths", "successes"))


def test_the_speed_after_a_resume_is_that_of_the_steps_since(tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(session.time, "monotonic", lambda: float(next(clock)))
    go_on = stopped_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", load_method("grpo").config(), options(tmp_path))
    go_on()
    (cut,) = (tmp_path / "grpo" / "t1").iterdir()
    resume(cut)
    _, *rows = (cut / "timing.csv").read_text().splitlines()
    assert [row.split(",") for row in rows] == [[str(k), f"{k}.0", "1.0"] for k in (2, 4, 6)]


def test_a_signal_to_another_process_does_not_finish_the_run(tmp_path, monkeypatch):
    class Told(Ranks):
        """As if a second process had been asked to stop."""

        def any(self, asked):
            return True

        def gathered(self, item):
            return [item, [15]] if item == [] else [item]

    monkeypatch.setattr(session, "join", Told)
    with pytest.raises(Stopped, match="stopped at step 0") as stopped:
        start("grpo", load_method("grpo").config(), options(tmp_path))
    assert stopped.value.exit_code == 143
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    assert not (run / "final_returns.npz").exists()


def test_a_signal_between_two_steps_leaves_a_checkpoint_too(tmp_path, monkeypatch):
    def progress(self, step, rate, force=False):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "progress", progress)
        with pytest.raises(Stopped, match="stopped at step 3"):
            start("grpo", load_method("grpo").config(), options(tmp_path / "cut", checkpoint_every=2))
    (cut,) = (tmp_path / "cut" / "grpo" / "t1").iterdir()
    assert torch.load(cut / "checkpoint.pt", weights_only=True)["step"] == 3
    resume(cut)
    whole = start(
        "grpo", load_method("grpo").config(), options(tmp_path / "whole", checkpoint_every=2)
    ).directory
    for table in TABLES:
        assert (whole / table).read_bytes() == (cut / table).read_bytes(), table


def test_a_run_without_a_checkpoint_says_that_it_has_no_model(tmp_path, monkeypatch, capsys):
    stopped_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", load_method("grpo").config(), options(tmp_path))
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    for command in (["eval", str(run)], ["train", "grpo", "--model", str(run), "--out", str(tmp_path)]):
        assert main(["llm", *command]) == 1
        assert f"{run} has no language model: " in capsys.readouterr().err


def test_a_run_writes_its_contract(tmp_path):
    run = start("grpo", load_method("grpo").config(), options(tmp_path)).directory
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["2", "4", "6"]
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert float(last["rollouts"]) == 6 * 16
    assert {"entropy", "grad_norm", "clip_fraction", "log_ratio", "length", "reward_correct"} <= set(last)
    steps = [line.split(",")[0] for line in (run / "eval.csv").read_text().splitlines()[1:]]
    assert [steps.count(step) for step in ("0", "4", "6")] == [8, 8, 8]
    header, *rows = (run / "accuracy.csv").read_text().splitlines()
    assert header.startswith("step,updates,rollouts,tokens,sampled,greedy,pass_at_2,length")
    assert len(rows) == 3
    assert (run / "samples.csv").read_text().splitlines()[0] == "step,prompt,response,reward"
    assert json.loads((run / "model" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    names = {path.name for path in run.iterdir()}
    assert {"checkpoint.pt", "timing.csv", "versions.json", "command.txt", "final_returns.npz"} <= names


def test_a_run_is_a_hugging_face_directory(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = start("grpo", load_method("grpo").config(), options(tmp_path)).directory
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("<bos>34=", add_special_tokens=False, return_tensors="pt").input_ids
    task = load_task("t1")
    assert ids.tolist() == [[1, *task.vocabulary.ids("34=")]]
    theirs = AutoModelForCausalLM.from_pretrained(run / "model")(input_ids=ids).logits[0, -1]
    ours = load_model(str(run), task, 0)
    states = ours.hidden(ids, torch.ones_like(ids, dtype=torch.bool), ids[:, :1], torch.tensor([0]))
    torch.testing.assert_close((states[0, 0] @ ours.head.T), theirs, atol=1e-5, rtol=0)


def test_a_run_begins_where_another_ended(tmp_path):
    first = start("sft", load_method("sft").config(), options(tmp_path, task="t2", group=1)).directory
    built = session.build(
        "grpo", load_method("grpo").config(), options(tmp_path, task="t2", model=str(first))
    )
    for name, value in load_model(str(first), load_task("t2"), 0).state_dict().items():
        assert torch.equal(built.policy.state_dict()[name], value)


def test_a_model_of_another_task_is_refused(tmp_path):
    run = start("grpo", load_method("grpo").config(), options(tmp_path, steps=1)).directory
    with pytest.raises(ConfigError, match="vocabulary of 14, task t2 of 9"):
        load_model(str(run), load_task("t2"), 0)


def test_a_damaged_tokenizer_beside_a_tiny_model_is_named(tmp_path):
    task = load_task("t1")
    load_model("tiny:dense", task, 0).save(tmp_path, task)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is no tokenizer of words"):
        load_model(str(tmp_path), task, 0)


def test_seeds_differ_and_a_seed_repeats(tmp_path):
    runs = [
        start("grpo", load_method("grpo").config(), options(tmp_path / str(i), seed=s))
        for i, s in enumerate([0, 0, 1])
    ]
    texts = [(run.directory / "metrics.csv").read_bytes() for run in runs]
    assert texts[0] == texts[1] != texts[2]


def test_a_damaged_run_is_refused(tmp_path):
    run = start("grpo", load_method("grpo").config(), options(tmp_path)).directory
    (run / "final_returns.npz").unlink()
    config = json.loads((run / "config.json").read_text())
    config["llm"]["prompts"] = "many"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="prompts"):
        resume(run)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"minibatches": 3}, "does not divide the 4 prompts; it can be 1, 2 or 4"),
        ({"micro_batch": 5}, "does not divide the 16 responses of a minibatch; it can be 1, 2, 4, 8 or 16"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"delay": -1}, "delay must be 0 or more"),
    ],
)
def test_impossible_options_say_what_is_possible(given, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        options(tmp_path, **given)


def test_methods_and_options_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="--group must be 2 or more"):
        start("grpo", load_method("grpo").config(), options(tmp_path, group=1))
    with pytest.raises(ConfigError, match="compares the responses of a batch, which has one: pass --prompts"):
        start("reinforce", load_method("reinforce").config(), options(tmp_path, prompts=1, group=1))
    with pytest.raises(ConfigError, match="overlong is 5, more than the 4 tokens of the longest response"):
        start("dapo", load_method("dapo").config(overlong=5), options(tmp_path))
    settings = load_method("reinforce_plus_plus").config(group_baseline=True)
    with pytest.raises(ConfigError, match="--group-baseline compares .*: --group must be 2 or more"):
        start("reinforce_plus_plus", settings, options(tmp_path, group=1))
    with pytest.raises(ConfigError, match="pass --group 1"):
        start("sft", load_method("sft").config(), options(tmp_path))
    with pytest.raises(ConfigError, match="leave --delay out"):
        start("sft", load_method("sft").config(), options(tmp_path, group=1, delay=2))
    with pytest.raises(ConfigError, match="copg compares .* within its loss; it can be 4, 8 or 16"):
        start("copg", load_method("copg").config(), options(tmp_path, micro_batch=2))
    with pytest.raises(ConfigError, match="for task t3, not t1"):
        start("grpo", load_method("grpo").config(), options(tmp_path, model="tiny:table"))
    with pytest.raises(ConfigError, match="neither a folder"):
        start("grpo", load_method("grpo").config(), options(tmp_path, model="nowhere"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "how", "copies"),
    [
        ("grpo", {}, {}, 4),
        ("grpo", {"kl": 0.1}, {}, 5),
        ("grpo", {}, {"engine": "bf16"}, 5),
        ("grpo", {}, {"delay": 2}, 8),
        ("grpo", {"kl": 0.1}, {"delay": 1, "engine": "int8"}, 8),
        ("grpo", {}, {"allocator": "knapsack", "predictor": "v0"}, 5),
        ("fdpg", {}, {}, 5),
    ],
)
def test_the_plan_counts_copies_of_the_weights(name, settings, how, copies, tmp_path):
    """As many as a learner holds in the end: weights, gradients, moments, other models, past parameters."""
    method, given, task = load_method(name), options(tmp_path, **how), load_task("t2")
    made = plan(method, method.config(**settings), given, task, 10**9, 1)
    assert abs(float(made["peak memory"].split()[1]) - 4000 * copies) < 5
    policy = load_model("tiny:dense", task, 0)
    learner = Learner(method, method.config(**settings), task, policy, given)
    for _ in range(given.delay):
        learner.update()
    others = [learner.reference, learner.engine.copy, getattr(learner.prompting.predictor, "backbone", None)]
    assert 4 + sum(model is not None for model in others) + len(learner.engine.past) == copies


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_response": 8}, "max_response has no effect with task t2"),
        ({"chat_template": "none"}, "chat_template has no effect with task t2"),
        ({"prompt_key": "q", "task": "arithmetic"}, "prompt_key has no effect with task arithmetic"),
        ({"dataset": "d.jsonl"}, "--dataset takes the place of a task: leave --task t2 out"),
    ],
)
def test_options_of_text_that_have_no_effect_are_refused(given, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        start("grpo", load_method("grpo").config(), options(tmp_path, **{"task": "t2", **given}))
    assert list(tmp_path.iterdir()) == []
    check_idle(LLMOptions(task="arithmetic", max_response=8, max_prompt=64, chat_template="none"))
    check_idle(LLMOptions(dataset="d.jsonl", prompt_key="q", answer_key="a", max_response=8))


@pytest.mark.parametrize(
    ("name", "settings", "how"),
    [
        ("grpo", {}, {"max_grad_norm": float("inf")}),
        ("grpo", {"clip_high": float("inf")}, {}),
        ("grpo", {"entropy": float("nan")}, {}),
        ("gdpo", {"weights": (1.0, float("nan"), 1.0)}, {"task": "t5"}),
    ],
)
def test_numbers_that_no_file_holds_leave_no_folder(name, settings, how, tmp_path):
    with pytest.raises(ConfigError, match=f"{[*settings, *how][0]} must be a finite number, got (inf|nan)"):
        start(name, load_method(name).config(**settings), options(tmp_path, **how))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "how", "says"),
    [
        ("grpo", {}, {"engine": "fp4"}, "engine must be exact or bf16 or fp8 or int8, got 'fp4'"),
        ("grpo", {}, {"sampler": "vsa"}, "sampler must be uniform or vas, got 'vsa'"),
        ("fdpg", {"divergence": "kld"}, {}, "divergence must be js or kl or .*, got 'kld'"),
    ],
)
def test_words_from_python_are_checked(name, settings, how, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        start(name, load_method(name).config(**settings), options(tmp_path, **how))
    assert list(tmp_path.iterdir()) == []


def test_python_names_folders_by_text_too(tmp_path, monkeypatch):
    go_on = stopped_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", load_method("grpo").config(), options(str(tmp_path)))
    go_on()
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    assert resume(str(run)).directory == run
    with pytest.raises(ConfigError, match="reward must be a tuple of rewards, got 'integer'"):
        options(tmp_path, reward="integer")


def test_completions_cannot_speak_to_the_terminal():
    lines = completions(Shown(["1 +\n1"], ["\x1b[2J2\r\x07\u202e"], [1.0]))
    assert len(lines) == 2
    assert all(character.isprintable() for line in lines for character in line)
    assert lines[1].endswith("1 + 1 | [2J2")
