import csv
import json

import numpy as np
import pytest

from offrl.evaluation.runs import read_run

CONFIG = {
    "format": 1,
    "algorithm": "td3_bc",
    "algorithm_file": None,
    "algorithm_sha256": None,
    "settings": {"alpha": 2.5, "discount": 0.99, "hidden": 256},
    "preset": None,
    "dataset": "builtin:toy",
    "dataset_name": "toy",
    "dataset_sha256": "ab" * 32,
    "dataset_return_mean": 40.0,
    "rows": "exact",
    "env_id": "Toy-v0",
    "env_kwargs": {},
    "env_flatten": [],
    "reference_returns": [0.0, 200.0],
    "seed": 0,
    "steps": 1000,
    "log_every": 100,
    "eval_every": 250,
    "eval_episodes": 3,
    "final_episodes": 0,
    "checkpoint_every": 500,
    "workers": 1,
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
    "compile": False,
    "tensorboard": False,
    "wandb": False,
}


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run directory with known numbers.

    Evaluation e has the returns ``means[e] + (-10, 0, 10)``; the metric critic_loss is 1000 / row,
    actor_loss is empty in even rows.
    """

    def make(
        name="run",
        means=(20.0, 60.0, 100.0, 80.0),
        *,
        finished=True,
        rate=500.0,
        evaluated=True,
        timing=None,
        **config,
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        facts = CONFIG | config
        (folder / "config.json").write_text(json.dumps(facts))
        (folder / "versions.json").write_text(
            json.dumps({"offrl": "0.1.0", "torch": "2.13.0", "cpu": "Abacus 1"})
        )
        (folder / "command.txt").write_text("offrl train td3_bc --dataset builtin:toy\n")
        lo, hi = facts["reference_returns"] or (0.0, 0.0)
        rows = [("step", "episode", "return", "normalized_score", "length", "success")]
        for e, mean in enumerate(means if evaluated else ()):
            for i, offset in enumerate((-10.0, 0.0, 10.0)):
                score = "" if lo == hi else repr(100 * (mean + offset - lo) / (hi - lo))
                rows.append((facts["eval_every"] * (e + 1), i, repr(mean + offset), score, 10, ""))
        write_csv(folder / "eval.csv", rows)
        metrics = [(100 * i, 1000.0 / i, "" if i % 2 == 0 else -float(i)) for i in range(1, 11)]
        write_csv(folder / "metrics.csv", [("step", "critic_loss", "actor_loss"), *metrics])
        extra = timing or {}
        seconds = [(100 * i, 0.2 * i, rate, *extra.values()) for i in range(1, 11)]
        write_csv(folder / "timing.csv", [("step", "seconds", "steps_per_second", *extra), *seconds])
        if finished:
            final = means[-1] + np.array([-10.0, 0.0, 10.0]) if evaluated else np.zeros(0)
            np.savez(folder / "final_returns.npz", returns=final, lengths=np.full(len(final), 10))
        return folder

    return make


@pytest.fixture
def records(make_run):
    """Two methods with three and two seeds on one dataset, one of them with one seed on another."""
    runs = [make_run(f"a{s}", means=(20.0, 60.0 + 10 * s), seed=s) for s in range(3)]
    runs += [make_run(f"b{s}", means=(10.0, 70.0 + 10 * s), seed=s, algorithm="iql") for s in range(2)]
    runs += [make_run("c", means=(5.0, 1.0), seed=0, dataset_name="other_50%", dataset_sha256="9" * 64)]
    return [read_run(folder) for folder in runs]


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
