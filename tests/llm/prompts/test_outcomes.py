"""``offrl llm v0``: what is sampled of each policy, what is measured where, which runs go together."""

import json
import shutil

import pytest
import torch

from offrl.cli import main
from offrl.errors import ConfigError
from offrl.llm.methods import load_method
from offrl.llm.options import LLMOptions
from offrl.llm.prompts import outcomes
from offrl.llm.prompts.outcomes import Generalist, origin, ranked, train_from_runs
from offrl.llm.prompts.v0 import Outcomes, load_adapter
from offrl.llm.rollouts import demonstrated
from offrl.llm.session import start
from offrl.llm.tasks import load_task


class Frozen(torch.nn.Module):
    bias = torch.zeros(1)

    def prompt_states(self, tokens, mask):
        return tokens[..., None] * torch.ones(4)


def test_rates_are_those_of_each_prompts_own_responses(monkeypatch):
    task = load_task("t2")

    asked_for = []

    def respond(policy, task, prompts, *, copies, temperature, generator):
        asked_for.append((len(prompts), temperature))
        many, number = prompts.repeat(copies), torch.arange(len(prompts) * copies) % copies
        wrong = number >= many.ids % (copies + 1)
        sums = task.sums(many)
        last = torch.arange(len(many)), many.levels - 1
        sums[last] = torch.where(wrong, task.zero + (sums[last] - task.zero + 1) % 5, sums[last])
        return demonstrated(sums)

    monkeypatch.setattr(outcomes, "respond", respond)
    how = {"samples": 4, "seed": 3, "name": "x", "temperature": 0.6}
    found = outcomes.outcomes(Frozen(), Frozen(), task, count=70, **how)
    assert asked_for == [(70, 0.6)]
    asked = task.prompts(70, outcomes.stream(3, "x prompts"))
    torch.testing.assert_close(found.rates, (asked.ids % 5) / 4)
    assert torch.equal(found.states[..., 0].long(), asked.tokens)
    assert torch.equal(found.mask, asked.mask)
    assert len(outcomes.outcomes(Frozen(), Frozen(), Few(), count=70, **how).rates) == Few.size
    monkeypatch.setattr(outcomes, "LARGE", -1)
    monkeypatch.setattr(outcomes, "FEW_ROWS", 90)
    again = outcomes.outcomes(Frozen(), Frozen(), task, count=70, **how)  # of large models some at a time
    assert [size for size, _ in asked_for[-4:]] == [22, 22, 22, 4]
    assert all(
        torch.equal(getattr(again, field), getattr(found, field)) for field in ("states", "mask", "rates")
    )


class Few(type(load_task("t2"))):
    """A task with a data set's size."""

    size = 9


def policy(count=400, flipped=0):
    """Right where the first feature of the last state is positive; the other way round in the first ``flipped``."""
    states = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0))
    rates = (states[:, -1, 0] > 0).float()
    rates[:flipped] = 1 - rates[:flipped]
    return Outcomes(states, torch.ones(count, 3, dtype=torch.bool), rates)


def test_the_first_half_of_a_policys_prompts_ranks_the_second():
    assert ranked([policy()], None, 64) > 0.95
    assert ranked([policy(flipped=200)], None, 64) < 0.05
    assert ranked([policy(flipped=200)], None, 9999) == ranked([policy(flipped=200)], None, 200)
    always = Outcomes(policy().states, policy().mask, torch.ones(400))
    assert ranked([policy(), always], None, 64) == ranked([policy()], None, 64)
    assert ranked([always], None, 64) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def run(name, **given):
        options = {"task": "t2", "prompts": 4, "group": 1, "steps": 1, "eval_prompts": 1, "eval_samples": 1}
        return start(
            "sft", load_method("sft").config(), LLMOptions(**options | given, out=folder / name)
        ).directory

    return [run("a"), run("b", lr=0.1)]


def edited(run, folder, **given):
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["llm"] |= given
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_runs_share_a_task_and_the_model_they_began_with(runs, tmp_path):
    assert origin(runs).task == "t2"
    with pytest.raises(ConfigError, match="learnt t2-hard, .* t2: pass runs of one task"):
        origin([*runs, edited(runs[0], tmp_path / "task", task="t2-hard")])
    with pytest.raises(
        ConfigError, match="tiny:dense of seed 1, .* of seed 0: V_0 reads the states of one model"
    ):
        origin([*runs, edited(runs[0], tmp_path / "seed", seed=1)])
    with pytest.raises(ConfigError, match="began with tiny:medium"):
        origin([*runs, edited(runs[0], tmp_path / "model", model="tiny:medium")])
    folder = str(runs[0])
    later = [edited(runs[0], tmp_path / f"of-{seed}", model=folder, seed=seed) for seed in (0, 1)]
    assert origin(later).model == folder


def test_the_first_model_counts_and_held_out_ones_teach_nothing(runs, tmp_path):
    lines = []
    common = {"prompts": 64, "samples": 2, "steps": 3, "context": 16}
    alone = Generalist((runs[0],), out=tmp_path / "alone", **common)
    assert train_from_runs(alone, lines.append) == origin([runs[0]])
    assert [line.split(":")[0] for line in lines[:2]] == ["tiny", str(runs[0])]
    assert len([line for line in lines if "AUC within" in line]) == 1
    lines.clear()
    beside = Generalist((runs[0],), (runs[1],), tmp_path / "new/beside", **common)
    train_from_runs(beside, lines.append)
    assert [line.split(":")[0] for line in lines if "AUC within" in line][1] == "AUC within held-out policies"
    one, other = (load_adapter(o.out, 64).state_dict() for o in (alone, beside))
    assert all(torch.equal(one[name], other[name]) for name in one)
    both = Generalist(tuple(runs), out=tmp_path / "both", **common)
    train_from_runs(both, lines.append)
    assert not torch.equal(load_adapter(both.out, 64).static, load_adapter(alone.out, 64).static)
    other = Generalist((runs[0],), out=tmp_path / "share", share=1.0, **common)
    train_from_runs(other, lines.append)
    assert not torch.equal(load_adapter(other.out, 64).static, load_adapter(alone.out, 64).static)


def test_a_folder_is_refused_before_any_work(runs, tmp_path):
    lines = []
    with pytest.raises(ConfigError, match="out must be a file"):
        train_from_runs(Generalist((runs[0],), out=tmp_path), lines.append)
    assert lines == []


def test_policies_of_one_class_have_no_auc(runs, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(outcomes, "ranked", lambda *given: None)
    small = {"prompts": 64, "samples": 2, "steps": 1}
    train_from_runs(Generalist((runs[0],), out=tmp_path / "v0", **small), lines.append)
    assert lines[-1].startswith("no AUC within the policies it was trained on: all right or all wrong")


def test_the_command_writes_a_file_that_a_run_reads(runs, tmp_path, capsys):
    out = str(tmp_path / "v0.safetensors")
    assert (
        main(["llm", "v0", str(runs[0]), "--prompts", "64", "--samples", "2", "--steps", "2", "--out", out])
        == 0
    )
    said = capsys.readouterr().out
    assert f"wrote {out}" in said
    assert (
        f"--model tiny:dense --seed 0 --task t2 --allocator knapsack --predictor v0 --v0-weights {out}"
        in said
    )
    argv = [
        "llm",
        "train",
        "grpo",
        "--task",
        "t2",
        "--allocator",
        "knapsack",
        "--predictor",
        "v0",
        "--steps",
        "1",
    ]
    argv += [
        "--v0-weights",
        out,
        "--prompts",
        "4",
        "--group",
        "4",
        "--eval-prompts",
        "2",
        "--eval-samples",
        "1",
    ]
    assert main([*argv, "--out", str(tmp_path), "-q"]) == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "pass at least one run directory"),
        (["RUN", "--prompts", "63"], "prompts must be 64 or more, got 63"),
        (["RUN", "--share", "1.5"], "share must be within 0 and 1, got 1.5"),
        (["RUN", "--samples", "0"], "samples must be 1 or more, got 0"),
    ],
)
def test_a_mistake_is_one_line(argv, says, capsys):
    assert main(["llm", "v0", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
