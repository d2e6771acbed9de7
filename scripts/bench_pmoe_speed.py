"""An update of SAC and PMOE-SAC against the time of its own matrix products, and compiled; one thread.

    python scripts/bench_pmoe_speed.py run                  benchmarks/raw/pmoe_speed.json; on a quiet machine
    python scripts/bench_pmoe_speed.py page                 benchmarks/pmoe_speed.md from it

HalfCheetah-v5, batch 256, two layers of 256. Products: forward passes of actor and critics, their weight gradients and
the gradients that flow to earlier layers; the actor's step asks the critics about K actions a state. Medians of five
rounds.
"""

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from offrl.algos.pmoe_sac import PMOESAC
from offrl.algos.sac import SAC
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.gradients import compiled
from offrl.nn.precision import Precision
from offrl.online.off_policy import Buffer, SoftActorCritic
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/pmoe_speed.json", ROOT / "benchmarks/pmoe_speed.md"
METHODS: dict[str, tuple[type[SoftActorCritic], int]] = {"sac": (SAC, 1), "pmoe_sac": (PMOESAC, 4)}
NOTE = (
    "An update runs once an environment step; what compiling can save is what is above the products. `offrl train` has "
    "no `--compile` for methods that learn in an environment. PPO and its kin are bound by small operations instead, "
    "where it could save more, but PPO's loss does not go into one graph: stable-baselines3's distributions keep "
    "tensors of the last call."
)
OBS, ACT, HIDDEN, BATCH = 17, 6, 256, 256


def products(experts: int) -> list[tuple[Tensor, Tensor]]:
    """Operands of every product of an update."""
    found: list[tuple[Tensor, Tensor]] = []

    def add(copies: int, *shapes: tuple[int, int, int]) -> None:
        found.extend((torch.randn(copies, a, b), torch.randn(copies, b, c)) for a, b, c in shapes)

    actor = list(pairwise((OBS, HIDDEN, HIDDEN, 2 * ACT * experts)))
    critic = list(pairwise((OBS + ACT, HIDDEN, HIDDEN, 1)))
    rows = BATCH * experts
    for copies, layers, passes in ((1, actor, 2), (2, critic, 2)):  # target and step
        add(copies, *[(BATCH, a, b) for a, b in layers] * passes)
        add(copies, *[(a, BATCH, b) for a, b in layers], *[(BATCH, b, a) for a, b in layers[1:]])
    add(2, *[(rows, a, b) for a, b in critic], *[(rows, b, a) for a, b in critic])
    return found


def median_ms(function: Callable[[], object], calls: int = 15, rounds: int = 5) -> float:
    """Median over rounds of the mean time of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - began) / calls * 1e3)
    return sorted(times)[rounds // 2]


def run(methods: tuple[str, ...] = tuple(METHODS)) -> None:
    """Measure ``methods``: products, update and products again, then the update with compiled gradients."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = json.loads(RAW.read_text()) if RAW.exists() else {}
    raw["versions"] = versions("cpu", 1)
    with Precision("float32", "cpu"):  # as training does, for updates and products alike
        for name in methods:
            raw.setdefault("methods", {})[name] = measured(*METHODS[name])
            print(name, raw["methods"][name], flush=True)
    atomic_write_json(RAW, raw)


def measured(kind: type[SoftActorCritic], experts: int) -> dict[str, float]:
    """Milliseconds of the products, of an update and of a compiled one."""
    model = kind("MlpPolicy", "HalfCheetah-v5", seed=0, device="cpu", learning_starts=300)
    model.learn(310)
    assert isinstance(model.replay_buffer, Buffer)
    batch, operands = model.replay_buffer.batch(BATCH), products(experts)

    def multiply() -> None:
        for a, b in operands:
            torch.bmm(a, b)

    def update() -> None:
        model.update(batch)

    before, eager, after = median_ms(multiply), median_ms(update), median_ms(multiply)
    for part in ("critic_gradients", "actor_gradients"):
        setattr(model, part, compiled(getattr(model, part)))
    update()  # compiles
    return {"products": (before + after) / 2, "update": eager, "compiled": median_ms(update)}


def page() -> None:
    """Write the page from the raw file."""
    raw = json.loads(RAW.read_text())
    v = raw["versions"]
    lines = [
        "# Speed of an update of SAC and PMOE-SAC",
        "",
        "Regenerate: `python scripts/bench_pmoe_speed.py run`, then `page`; raw: `benchmarks/raw/pmoe_speed.json`.",
        "",
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread, nothing else running. "
        "HalfCheetah-v5, batch 256, hidden layers 256-256; PMOE-SAC with four experts.",
        "",
        "The limit is the time of the update's own matrix products, forward and backward, measured before and after "
        "it; target for PMOE-SAC: half of the limit.",
        "",
        "| method | products ms | update ms | share of the limit | with compiled gradients ms | saved |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {f['products']:.2f} | {f['update']:.2f} | {f['products'] / f['update']:.2f} | "
        f"{f['compiled']:.2f} | {1 - f['compiled'] / f['update']:.0%} |"
        for name, f in raw["methods"].items()
    ]
    lines += ["", NOTE, ""]
    atomic_write_text(PAGE, "\n".join(lines))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "page": page})
