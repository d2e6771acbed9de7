"""Two processes: the gradient of one, whatever the method; the launcher of accelerate."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from offrl.errors import ConfigError
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.parallel import Ranks, join
from offrl.llm.tasks import load_task


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "found.json"
    script = Path(__file__).with_name("two_processes.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_two_processes_give_the_gradient_of_one(found):
    cases = {name: facts for name, facts in found.items() if name != "together"}
    assert len(cases) == 8
    for name, facts in cases.items():
        assert facts["scale"] > 1e-4, name
        assert facts["gradient"] < 1e-5, name
        assert facts["metrics"] < 1e-5, name


def test_each_samples_its_share_and_all_learn_from_the_whole(found):
    facts = found["together"]
    assert facts["equal batches"] == facts["equal weights"] == 1
    assert facts["halves differ"]
    assert facts["rollouts"] == 4 * 16
    assert facts["exact"]


@pytest.mark.slow
def test_accelerate_launches_one_run(tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    train = [
        "train",
        "grpo",
        "--steps",
        "2",
        "--prompts",
        "4",
        "--group",
        "4",
        "--eval-prompts",
        "4",
        "--eval-samples",
        "2",
    ]
    command = [
        *launch,
        "-m",
        "offrl.llm",
        *train,
        "--log-every",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "grpo" / "t1").iterdir()
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rollouts"]) for row in rows] == [16, 32]
    assert (run / "final_returns.npz").is_file()
    assert done.stdout.count("last accuracy") == 1
    assert json.loads((run / "config.json").read_text())["llm"]["prompts"] == 4


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == Ranks(0, 1)


def test_prompts_that_cannot_be_shared_out_are_refused():
    method, task = load_method("grpo"), load_task("t1")
    with pytest.raises(ConfigError, match="3 processes cannot share out 4 prompts evenly"):
        Learner(
            method,
            method.config(),
            task,
            load_model("tiny:dense", task, 0),
            LLMOptions(prompts=4),
            Ranks(0, 3),
        )


def test_whole_groups_stay_whole_among_more_processes_than_groups():
    """Two groups of four in a minibatch, of which four processes cannot take two rows each."""
    method, task, options = (
        load_method("pacs"),
        load_task("t1"),
        LLMOptions(prompts=4, group=4, minibatches=2),
    )
    made = Learner(method, method.config(), task, load_model("tiny:dense", task, 0), options)
    batch = made._collect()[0]
    made.ranks = Ranks(0, 4)
    for rows in made._minibatches(batch):
        ids = batch.group_ids[rows]
        parts = made._parts(batch.rows(rows))
        assert [ids[part].unique(return_counts=True)[1].tolist() for part in parts] == [[4], [4]]
