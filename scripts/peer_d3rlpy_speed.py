"""Gradient steps per CPU-second of d3rlpy's own update on random data; prints one JSON line. Imports nothing of offrl.

d3rlpy-venv/bin/python scripts/peer_d3rlpy_speed.py td3_bc 11 3
"""

import json
import statistics
import sys
import time

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import IQLConfig, TD3PlusBCConfig

ROWS, EPISODE = 1_000_000, 1000


def product_rate() -> float:
    """GFLOP/s of a float32 product at 256^3 (median)."""
    a, b, out = torch.randn(256, 256), torch.randn(256, 256), torch.empty(256, 256)
    times = []
    for _ in range(8):
        began = time.process_time()
        for _ in range(100):
            torch.mm(a, b, out=out)
        times.append((time.process_time() - began) / 100)
    return 2 * 256**3 / 1e9 / statistics.median(times[1:])


def main() -> None:
    """Measure."""
    algorithm, obs_dim, act_dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    timeouts = np.zeros(ROWS, dtype=np.float32)
    timeouts[EPISODE - 1 :: EPISODE] = 1
    dataset = d3rlpy.dataset.MDPDataset(
        observations=rng.normal(size=(ROWS, obs_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(ROWS, act_dim)).astype(np.float32),
        rewards=rng.normal(size=ROWS).astype(np.float32),
        terminals=np.zeros(ROWS, dtype=np.float32),
        timeouts=timeouts,
    )
    config = TD3PlusBCConfig() if algorithm == "td3_bc" else IQLConfig()
    algo = config.create(device="cpu:0")
    algo.build_with_dataset(dataset)

    def steps(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            algo.update(dataset.sample_transition_batch(256))
        return (time.process_time() - began) / count

    steps(40)
    before = product_rate()
    per_step = statistics.median(steps(100) for _ in range(3))
    print(json.dumps({"steps_per_second": 1 / per_step, "gflops": [before, product_rate()]}))


if __name__ == "__main__":
    main()
