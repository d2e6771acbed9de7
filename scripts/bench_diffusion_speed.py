"""Speed of policy-guided diffusion: the training loop beside its bare step, batched drawing beside one at a time.

    python scripts/bench_diffusion_speed.py [--hidden 64] [--rounds 7]

Both sides of each ratio are timed in turn, on one thread; medians over the rounds. Writes
benchmarks/raw/diffusion_speed.json. Data are made up: the time does not depend on them.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from offrl.algos.policy_guided_diffusion import (
    PolicyGuidedDiffusion,
    PolicyGuidedDiffusionConfig,
    window_starts,
)
from offrl.diffusion import edm
from offrl.diffusion.sampler import Sampler, sample_rows
from offrl.files import atomic_write_json
from offrl.training.build import make_source
from offrl.training.check import tiny_problem
from offrl.training.loop import MetricMeans, train
from offrl.training.problem import Problem
from offrl.training.run_dir import versions

RESULT = Path(__file__).resolve().parents[1] / "benchmarks/raw/diffusion_speed.json"


@dataclass(frozen=True)
class Options:
    """What is timed."""

    hidden: int = 64
    """Channels of the U-Net's first block."""
    rounds: int = 7
    """Times that each side is timed."""
    updates: int = 10
    """Updates in each of them."""
    trajectories: int = 1000
    """Drawn together; a fiftieth of them one at a time."""
    sampling_steps: int = 4
    """Noise levels (the time is proportional to them)."""


def hopper_like(rows: int = 20_000) -> Problem:
    """Random steps of Hopper's sizes, in episodes of 200."""
    rng = np.random.default_rng(0)
    observations = torch.from_numpy(rng.normal(size=(rows, 11)).astype(np.float32))
    return replace(
        tiny_problem(rows=rows),
        observations=observations,
        next_observations=observations,
        actions=torch.from_numpy(rng.uniform(-1, 1, (rows, 3)).astype(np.float32)),
        action_low=-torch.ones(3),
        action_high=torch.ones(3),
        episode=torch.arange(rows) // 200,
        steps=100_000,
    )


def training(o: Options) -> dict[str, float]:
    """Seconds of an update in the loop, and of the bare forward, backward and Adam step on a fixed batch."""
    problem, config = hopper_like(), PolicyGuidedDiffusionConfig(hidden=o.hidden)
    learner = PolicyGuidedDiffusion(problem, config)
    source = make_source(problem, config.batch_size, config.context, window_starts(problem, config))
    params = learner.net.init(problem.streams("init"))
    optimizer = torch.optim.Adam(params, lr=1e-4, fused=True)
    x, noise = torch.randn(2, 1, config.batch_size, config.context, 16).unbind(0)
    levels = torch.rand(1, config.batch_size) + 0.1

    def bare() -> None:
        loss = edm.loss(lambda u, c: learner.net(params, u, c), x, levels, noise).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def loop() -> None:
        means = MetricMeans(learner.metrics)
        for _ in train(learner, source, problem.streams("data"), means, steps=o.updates, every=[o.updates]):
            means.pop()

    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for round_ in range(o.rounds + 1):
        began = time.perf_counter()
        loop()
        middle = time.perf_counter()
        for _ in range(o.updates):
            bare()
        if round_:  # the first one warms up
            times["loop"].append((middle - began) / o.updates)
            times["bare"].append((time.perf_counter() - middle) / o.updates)
    return {name: float(np.median(values)) for name, values in times.items()}


def drawing(o: Options) -> dict[str, float]:
    """Seconds a trajectory of 32 steps, drawn together and one at a time."""
    problem, config = hopper_like(2000), PolicyGuidedDiffusionConfig(hidden=o.hidden)
    model, sampler = (
        PolicyGuidedDiffusion(problem, config).policy(),
        Sampler(steps=o.sampling_steps, heun=False),
    )
    generator, few = torch.Generator().manual_seed(0), max(o.trajectories // 50, 1)
    times: dict[str, list[float]] = {"together": [], "one at a time": []}
    for round_ in range(max(o.rounds // 2, 1) + 1):
        began = time.perf_counter()
        sample_rows(model, o.trajectories, 32, generator, sampler)
        middle = time.perf_counter()
        for _ in range(few):
            sample_rows(model, 1, 32, generator, sampler)
        if round_:
            times["together"].append((middle - began) / o.trajectories)
            times["one at a time"].append((time.perf_counter() - middle) / few)
    return {name: float(np.median(values)) for name, values in times.items()}


def thousand(o: Options) -> float:
    """Seconds for 1000 trajectories of 32 steps with the sampler of the benchmark, on two threads."""
    model = PolicyGuidedDiffusion(hopper_like(2000), PolicyGuidedDiffusionConfig(hidden=o.hidden)).policy()
    torch.set_num_threads(2)
    began = time.perf_counter()
    for _ in range(4):  # as 'offrl generate' draws them
        sample_rows(model, 250, 32, torch.Generator().manual_seed(0), Sampler(steps=32))
    return time.perf_counter() - began


def main() -> None:
    """Time everything, print and keep the numbers."""
    o = tyro.cli(Options)
    torch.set_num_threads(1)
    step, draw = training(o), drawing(o)
    ratio = step["bare"] / step["loop"]
    gain = draw["one at a time"] / draw["together"]
    print(
        f"update {1e3 * step['loop']:.1f} ms, bare step {1e3 * step['bare']:.1f} ms: {ratio:.2f} of the bare speed"
    )
    per_level = draw["together"] / o.sampling_steps
    print(f"{o.trajectories} trajectories together: {gain:.1f} times as fast as one at a time")
    print(f"1000 trajectories of 32 steps cost {1000 * per_level:.2f} s a noise level (first order)")
    whole = thousand(o)
    print(f"1000 trajectories of 32 steps, 32 noise levels, Heun, two threads: {whole:.0f} s")
    record = {"thousand": whole} | {
        "training": step,
        "drawing": draw,
        "ratio": ratio,
        "gain": gain,
        "hidden": o.hidden,
    }
    atomic_write_json(RESULT, record | {"sampling_steps": o.sampling_steps, "versions": versions("cpu", 1)})


if __name__ == "__main__":
    main()
