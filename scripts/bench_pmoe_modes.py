"""Four equal goals: how many modes does a mixture policy keep?

    python scripts/bench_pmoe_modes.py run      benchmarks/raw/pmoe_modes.json (about 3 minutes, one core)
    python scripts/bench_pmoe_modes.py page     benchmarks/pmoe_modes.md and its figure

A bandit: actions in the plane, Q(a) = -4 min_g |a - g|^2 with goals g at (+-1, +-1), known exactly, so that only the
actor learns. A policy is a free gate, means and log standard deviations. A mode is kept when at least 5 % of 10 000
draws are nearer to its goal than 0.5. All seeds of a variant run side by side, from streams of their own.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from offrl.estimators import mixture as mx
from offrl.files import atomic_write_json
from offrl.nn.trainable import Trainable
from offrl.training.run_dir import versions
from offrl.training.seeding import stream

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/pmoe_modes.json", ROOT / "benchmarks/pmoe_modes.md"
GOALS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
SEEDS, STEPS, BATCH, LR, ALPHA = 10, 3_000, 256, 1e-2, 0.05
RADIUS, DRAWS, LEAST = 0.5, 10_000, 0.05
VARIANTS: dict[str, tuple[int, str, dict[str, Any]]] = {  # label -> experts, gradient, its options
    "SAC (one Gaussian)": (1, "frequency", {}),
    "frequency, winner learns (PMOE)": (4, "frequency", {}),
    "frequency, all experts learn": (4, "frequency", {"every": True}),
    "frequency, all learn, mixture's entropy": (4, "frequency", {"every": True, "whole": True}),
    "Gumbel-softmax": (4, "gumbel", {}),
    "score ratio": (4, "score", {}),
    "marginal (ours)": (4, "marginal", {}),
}


def value(actions: Tensor) -> Tensor:
    """Q, (..., 2) -> (...)."""
    return -4.0 * (actions[..., None, :] - GOALS).square().sum(-1).amin(-1)


def modes(m: mx.Mixture, seed: int) -> tuple[list[float], float]:
    """Shares of draws near each goal (the policy of one seed), and their mean Q."""
    g = stream(seed, "judge")
    wide = mx.Mixture(*(t.expand(DRAWS, *t.shape) for t in m))
    index = mx.draw_index(wide, mx.gumbel(torch.rand(wide.log_weights.shape, generator=g)))
    mean, log_std = wide.expert(index)
    actions = mean + log_std.exp() * torch.randn(mean.shape, generator=g)
    near = (actions[:, None] - GOALS).norm(dim=-1) < RADIUS
    return near.float().mean(0).tolist(), float(value(actions).mean())


def train(experts: int, gradient: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """All seeds of a variant."""
    shape = (SEEDS, experts, 2)
    first = torch.stack([0.3 * torch.randn(shape[1:], generator=stream(s, "init")) for s in range(SEEDS)])
    net = Trainable(
        [p.requires_grad_() for p in (torch.zeros(SEEDS, experts), first, torch.zeros(shape))], LR
    )
    streams, alpha = [stream(s, "draws") for s in range(SEEDS)], torch.full((SEEDS,), ALPHA)
    path = []
    for step in range(STEPS):
        noise = torch.stack([torch.randn(BATCH, experts, 2, generator=g) for g in streams])
        uniform = torch.stack([torch.rand(BATCH, experts, generator=g) for g in streams])
        gate, mean, log_std = (p[:, None].expand(-1, BATCH, *p.shape[1:]) for p in net.params)
        m = mx.mixture(gate, mean, log_std)
        net.minimize(
            mx.GRADIENTS[gradient](m, noise, uniform, value, alpha, squash=False, **options).loss.sum()
        )
        if (step + 1) % 200 == 0:
            final = mx.mixture(*net.constant)
            path.append([modes(mx.Mixture(*(t[s] for t in final)), s) for s in range(SEEDS)])
    return [
        {
            "kept": sum(share >= LEAST for share in path[-1][s][0]),
            "kept_path": [sum(share >= LEAST for share in at[s][0]) for at in path],
            "shares": path[-1][s][0],
            "mean_q": path[-1][s][1],
            "weights": final.weights[s].tolist(),
            "means": final.mean[s].tolist(),
            "stds": final.log_std[s].exp().tolist(),
        }
        for s in range(SEEDS)
    ]


def run() -> None:
    """Train everything and write the raw numbers."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = {"versions": versions("cpu", 1), "variants": {}}
    for label, variant in VARIANTS.items():
        began = time.process_time()
        found = train(*variant)
        raw["variants"][label] = {"cpu_seconds": time.process_time() - began, "seeds": found}
        print(
            label,
            [r["kept"] for r in found],
            f"{np.mean([r['mean_q'] for r in found]):.3f}",
            f"{time.process_time() - began:.0f} s",
        )
    atomic_write_json(RAW, raw)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "run2": run})
