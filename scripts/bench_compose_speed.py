"""What a composition costs, and what denoising and playing side by side save: the ratios of docs/policies.md.

    python scripts/bench_compose_speed.py [--hidden 64] [--repeats 5] [--episode-steps 16]

Three ratios, each from runs back to back in one process, medians over the repeats (aims in brackets):

    composed   one composed chunk over the sum of its parents' own denoising      [at most 1.1]
    batch      32 chunks one at a time over 32 at once                            [5 or more]
    rollouts   32 PushT episodes one environment at a time over 32 side by side   [3 or more]

Nothing else may run on the machine. Prints threads and the torch version with the figures.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from offrl.data.environments import named_environment
from offrl.data.normalize import AffineNormalizer
from offrl.evaluation.environments import make_env
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy

BATCH = 32


def policy(family: str, hidden: int) -> ChunkPolicy:
    """An untrained policy for PushT's state: the time of a network does not depend on its weights."""
    made = ChunkPolicy(5, 2, [0, 0], [512, 512], family=family, widths=(hidden, 2 * hidden, 4 * hidden))
    units = (AffineNormalizer.build(np.full(n, 256.0), np.full(n, 1 / 256)) for n in (5, 2))
    made.set_normalizers(*units)
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


def play(acting: ChunkPolicy, envs: list, steps: int) -> None:
    """Some steps of all environments, those in the list side by side."""
    observations = np.stack([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    state = None
    for _ in range(steps):
        actions, state = acting.act(torch.from_numpy(observations).float(), state)
        observations = np.stack([env.step(a)[0] for env, a in zip(envs, actions.numpy(), strict=True)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--episode-steps", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    a, b = policy("diffusion", options.hidden), policy("flow", options.hidden)
    both = ComposedPolicy([a, b])
    one = torch.full((1, 2, 5), 100.0)
    many = one.expand(BATCH, -1, -1)
    envs = [make_env(named_environment("pusht-state")) for _ in range(BATCH)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, hidden {options.hidden}")
    with torch.no_grad():
        cases = {
            "composed": (lambda: both.plan(one), lambda: (a.plan(one), b.plan(one))),
            "batch": (lambda: [a.plan(one) for _ in range(BATCH)], lambda: a.plan(many)),
            "rollouts": (
                lambda: [play(a, [env], options.episode_steps) for env in envs],
                lambda: play(a, envs, options.episode_steps),
            ),
        }
        for name, (slow, fast) in cases.items():
            first, second, found = ratio(slow, fast, options.repeats)
            print(f"{name:9} {1000 * first:9.1f} ms / {1000 * second:9.1f} ms = {found:.2f}", flush=True)


if __name__ == "__main__":
    main()
