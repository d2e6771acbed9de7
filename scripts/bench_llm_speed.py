"""A step of GRPO here and in TRL's GRPOTrainer: the same tiny model, prompts, batch and hardware, in fresh processes.

    python scripts/bench_llm_speed.py --python PYTHON_WITH_TRL [--rounds 1]

A round runs one after the other and adds to benchmarks/raw/llm_speed.json; delete that file to begin anew. A step is
sampling, rewards, scoring and the update; the first ten of a run are not counted.
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "benchmarks/raw/llm_speed.json"
PROMPTS, GROUP, WARM, STEPS, LR = 32, 16, 10, 30, 1e-3
ABOUT = (
    f"GRPO on t1 with tiny:dense, {PROMPTS} prompts x {GROUP} responses of at most 4 tokens, one update, float32, "
    f"{STEPS} steps"
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    python: str = sys.executable
    """An interpreter with offrl and TRL."""
    rounds: int = 1
    """Runs of each."""
    child: str = ""
    """offrl or trl: one run in this process (called by this script)."""


def ours() -> tuple[list[float], str]:
    """Seconds of each step of the own engine."""
    from offrl.llm.learner import Learner
    from offrl.llm.methods import load_method
    from offrl.llm.models import load_model
    from offrl.llm.options import LLMOptions
    from offrl.llm.tasks import load_task

    method, task = load_method("grpo"), load_task("t1")
    options = LLMOptions(prompts=PROMPTS, group=GROUP, lr=LR, task="t1")
    learner = Learner(method, method.config(), task, load_model("tiny:dense", task, 0), options)
    seconds = []
    for _ in range(WARM + STEPS):
        began = time.perf_counter()
        learner.update()
        seconds.append(time.perf_counter() - began)
    return seconds, ""


def theirs() -> tuple[list[float], str]:
    """Those of TRL's."""
    import tempfile

    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    from offrl.llm.models import load_model
    from offrl.llm.tasks import load_task

    task = load_task("t1")
    words = task.vocabulary
    rows = [{"prompt": f"<bos>{i // 10}{i % 10}=", "answer": (i // 10 + i % 10) % 10} for i in range(100)]
    end = words.ids("0")[0]

    def right(completion_ids: list[list[int]], answer: list[int], **kwargs: Any) -> list[float]:
        return [
            float(len(ids) > 1 and ids[-1] == 2 and ids[-2] == end + value)
            for ids, value in zip(completion_ids, answer, strict=True)
        ]

    times: list[float] = []

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
            max_completion_length=task.max_response, max_steps=WARM + STEPS, learning_rate=LR, loss_type="grpo",
            lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, temperature=1.0,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            load_model("tiny:dense", task, 0).model, reward_funcs=[right], args=config,
            train_dataset=Dataset.from_list(rows * 40), processing_class=words.tokenizer(), callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return [b - a for a, b in itertools.pairwise(times)], trl.__version__


def child(name: str) -> None:
    """One run: prints a line of JSON."""
    torch.set_num_threads(1)
    seconds, version = ours() if name == "offrl" else theirs()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": statistics.median(seconds[-STEPS:]), "peak_mb": peak, "trl": version}))


def main(o: Options) -> None:
    """Rounds, and the page's raw file."""
    from offrl.files import atomic_write_json
    from offrl.training.run_dir import versions

    empty: dict[str, Any] = {
        "engines": {n: {"seconds": [], "peak_mb": []} for n in ("offrl", "TRL")},
        "trl": "",
    }
    found = json.loads(RAW.read_text()) if RAW.exists() else empty
    for _ in range(o.rounds):
        for name in ("offrl", "TRL"):
            words = [o.python, __file__, "--child", name.lower()]
            run = subprocess.run(words, capture_output=True, text=True, check=True)
            row = json.loads(run.stdout.splitlines()[-1])
            for key in ("seconds", "peak_mb"):
                found["engines"][name][key].append(row[key])
            found["trl"] = row["trl"] or found["trl"]
            print(f"{name}: {1e3 * row['seconds']:.1f} ms a step, {row['peak_mb']:.0f} MB at the peak")
    speed = {n: statistics.median(e["seconds"]) for n, e in found["engines"].items()}
    memory = {n: statistics.median(e["peak_mb"]) for n, e in found["engines"].items()}
    found |= {
        "about": ABOUT,
        "ratio": speed["TRL"] / speed["offrl"],
        "memory": memory["offrl"] / memory["TRL"],
    }
    found["versions"] = versions("cpu", 1)
    atomic_write_json(RAW, found)
    print(f"{found['ratio']:.2f} times as fast, {found['memory']:.2f} of the memory")


if __name__ == "__main__":
    options = tyro.cli(Options)
    if options.child:
        child(options.child)
    else:
        main(options)
