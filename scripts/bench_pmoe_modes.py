"""Four equal goals: how many modes does a mixture policy keep?

    python scripts/bench_pmoe_modes.py run      benchmarks/raw/pmoe_modes.json (about 3 minutes, one core)
    python scripts/bench_pmoe_modes.py page     benchmarks/pmoe_modes.md and its figure

A bandit: actions in the plane, Q(a) = -4 min_g |a - g|^2 with goals g at (+-1, +-1), known exactly, so that only the
actor learns. A policy is a free gate, means and log standard deviations. A mode is kept when at least 5 % of 10 000
draws are nearer to its goal than 0.5. All seeds of a variant run side by side, from streams of their own.
"""

import json
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from torch import Tensor

from offrl.estimators import mixture as mx
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.trainable import Trainable
from offrl.training.run_dir import versions
from offrl.training.seeding import stream

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/pmoe_modes.json", ROOT / "benchmarks/pmoe_modes.md"
GOALS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
SEEDS, STEPS, BATCH, LR, ALPHA = 10, 3_000, 256, 1e-2, 0.05
RADIUS, DRAWS, LEAST, EVERY = 0.5, 10_000, 0.05, 200
VARIANTS: dict[str, tuple[int, str, dict[str, Any]]] = {  # label -> experts, gradient, its options
    "SAC (one Gaussian)": (1, "frequency", {}),
    "frequency, the winner learns (PMOE's default)": (4, "frequency", {}),
    "frequency, all learn (`learners all`)": (4, "frequency", {"every": True}),
    "the same with `mixture_entropy`": (4, "frequency", {"every": True, "whole": True}),
    "Gumbel-softmax (`gradient gumbel`)": (4, "gumbel", {}),
    "score ratio (`gradient score`)": (4, "score", {}),
    "exact sum over experts (`gradient marginal`, ours)": (4, "marginal", {}),
}

READING = [
    "**Reading.** One Gaussian keeps one goal. So does PMOE where only the winner learns: the losers get "
    "neither a value nor an entropy gradient, stay wide and win less often, and the gate starves them. "
    "Where every expert learns, each goes to a goal near its start, and equally narrow experts win "
    "equally often; four goals drawn by chance are 2.7 different ones on average. The density of the "
    "whole mixture in the entropy pushes experts apart and fills most of the rest. The Gumbel-softmax "
    "keeps as many as learning all does. The two unbiased gradients of the true objective collapse here: "
    "the weight goes to whichever expert is best early on, before the others have arrived, and the "
    "entropy bonus of four modes, alpha log 4 = 0.07, does not bring them back.",
    "",
    "Free parameters, an exact critic and a fixed temperature: with networks, learned critics and a tuned "
    "temperature the numbers will differ.",
]


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
        if (step + 1) % EVERY == 0:
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


def table(variants: dict[str, Any]) -> list[str]:
    """One row a variant."""
    rows = [
        ["policy", "modes kept, by seed", "median", "draws near a goal", "mean Q", "largest weight", "CPU s"]
    ]
    rows.append(["---"] * len(rows[0]))
    for label, found in variants.items():
        seeds = found["seeds"]
        kept = [r["kept"] for r in seeds]
        near = np.median([sum(r["shares"]) for r in seeds])
        mean_q = np.median([r["mean_q"] for r in seeds])
        largest = np.median([max(r["weights"]) for r in seeds])
        numbers = f"{np.median(kept):g}", f"{100 * near:.0f} %", f"{mean_q:.3f}", f"{largest:.2f}"
        rows.append([label, " ".join(map(str, kept)), *numbers, f"{found['cpu_seconds']:.0f}"])
    return [f"| {' | '.join(row)} |" for row in rows]


def figure(variants: dict[str, Any]) -> None:
    """Modes kept while learning, mean over seeds; and where the experts of one seed ended."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "modes", "font.size": 9})
    from matplotlib import pyplot

    chart, axis = pyplot.subplots(figsize=(7, 3.6), constrained_layout=True)
    for k, (label, found) in enumerate(variants.items()):
        path = np.mean([r["kept_path"] for r in found["seeds"]], axis=0)
        style = "--" if label.startswith("SAC") else "-"
        axis.plot(np.arange(1, len(path) + 1) * EVERY, path, style, color=f"C{k}", label=label)
    axis.set(xlabel="actor steps", ylabel=f"modes kept of 4, mean of {SEEDS} seeds", ylim=(-0.1, 4.1))
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.grid(alpha=0.3)
    chart.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})


def page() -> None:
    """Write the page and its figure from the raw file."""
    raw = json.loads(RAW.read_text())
    figure(raw["variants"])
    v = raw["versions"]
    lines = [
        "# How many of four equal goals does a mixture policy keep?",
        "",
        "Regenerate: `python scripts/bench_pmoe_modes.py run`, then `page`; raw numbers: "
        "`benchmarks/raw/pmoe_modes.json`.",
        "",
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread.",
        "",
        "A bandit: Q(a) = -4 min_g |a - g|^2 in the plane, goals at (+-1, +-1), known exactly; "
        f"alpha = {ALPHA}, K = 4, batch {BATCH}, Adam {LR}, {STEPS:,} steps, {SEEDS} seeds. Means start at "
        "N(0, 0.3^2), deviations at 1, weights equal. A mode is kept when at least "
        f"{100 * LEAST:.0f} % of {DRAWS:,} draws are nearer to its goal than {RADIUS}. Losses are those of "
        "`offrl.estimators.mixture`, as `pmoe_sac` uses them; its settings in brackets.",
        "",
        f"![Modes kept while learning]({PAGE.stem}.svg)",
        "",
        *table(raw["variants"]),
        "",
        *READING,
    ]
    atomic_write_text(PAGE, "\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "page": page})
