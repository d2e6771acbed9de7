"""What a composition costs, and what denoising and playing side by side save: the ratios of docs/policies.md.

    python scripts/bench_compose_speed.py [--hidden 64] [--repeats 3] [--only composed batch rollouts]

Three ratios, each from runs back to back in one process, medians over the repeats (aims in brackets):

    composed   one composed chunk over the sum of its parents' own denoising                     [at most 1.1]
    batch      32 chunks one at a time over 32 at once                                           [5 or more]
    rollouts   32 whole Fetch episodes one environment at a time over 32 environments together   [3 or more]

Nothing else may run on the machine. One thread; figures go to benchmarks/raw/compose_speed.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from offrl.data.normalize import AffineNormalizer
from offrl.evaluation.rollout import Evaluator
from offrl.files import atomic_write_json
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy
from offrl.training.run_dir import versions

BATCH, ENV = 32, "fetch-pick-state"
RAW = Path(__file__).resolve().parents[1] / "benchmarks/raw/compose_speed.json"


def policy(family: str, hidden: int, obs_dim: int = 28, act_dim: int = 4) -> ChunkPolicy:
    """An untrained policy for Fetch's state: the time of a network does not depend on its weights."""
    made = ChunkPolicy(obs_dim, act_dim, family=family, widths=(hidden, 2 * hidden, 4 * hidden))
    made.set_normalizers(AffineNormalizer.identity(obs_dim), AffineNormalizer.identity(act_dim))
    return made.eval()


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Medians of both, taken in turn, and of their ratio."""
    slow(), fast()
    pairs = [(seconds(slow), seconds(fast)) for _ in range(repeats)]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["composed", "batch", "rollouts"])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    a, b = policy("diffusion", options.hidden), policy("flow", options.hidden)
    both = ComposedPolicy([a, b])
    one = torch.zeros(1, 2, a.obs_dim)
    many = one.expand(BATCH, -1, -1)
    record = json.loads(RAW.read_text()) if RAW.exists() else {}
    record |= {"hidden": options.hidden, "versions": versions("cpu", 1)}
    with torch.no_grad(), Evaluator(ENV, width=1) as single, Evaluator(ENV, width=BATCH) as wide:
        cases = {
            "composed": (lambda: both.plan(one), lambda: (a.plan(one), b.plan(one))),
            "batch": (lambda: [a.plan(one) for _ in range(BATCH)], lambda: a.plan(many)),
            "rollouts": (lambda: single(a, BATCH), lambda: wide(a, BATCH)),
        }
        for name in options.only:
            slow, fast, found = ratio(*cases[name], options.repeats)
            record[name] = {"seconds": [slow, fast], "ratio": found, "repeats": options.repeats}
            print(f"{name:9} {1000 * slow:9.1f} ms / {1000 * fast:9.1f} ms = {found:.2f}", flush=True)
    atomic_write_json(RAW, record)


if __name__ == "__main__":
    main()
