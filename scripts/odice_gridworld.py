"""Gridworld: what each gradient of O-DICE makes of cells that the data never visit.

    python scripts/odice_gridworld.py run      benchmarks/raw/odice_gridworld.json (about a minute, one core)
    python scripts/odice_gridworld.py page     benchmarks/odice_gridworld.md and its figure

A 9 x 9 grid without walls. The data hold two walks from one corner to the other, along the edge and by a detour; the
last step of each earns 10 and ends the episode. V is O-DICE's, on full batches, once as a table (one number a cell)
and once as a small network of the cell's coordinates. All seeds run side by side.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from torch import Tensor

from offrl.algos.odice import ODICE, Gradient, ODICEConfig
from offrl.data.batch import Batch
from offrl.data.normalize import ObservationNormalizer
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.mlp import Params
from offrl.nn.trainable import Trainable
from offrl.training.problem import Problem
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/odice_gridworld.json", ROOT / "benchmarks/odice_gridworld.md"
SIDE, GOAL_REWARD, DISCOUNT, LAM = 9, 10.0, 0.9, 0.5
SEEDS, STEPS, HIDDEN = 10, 4_000, 32
RATES = {"table": 3e-2, "network": 3e-3}  # Adam step sizes
MOVES = {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
WALKS = (
    ["right"] * 8 + ["up"] * 8,
    ["up"] * 4 + ["right"] * 4 + ["down"] * 2 + ["right"] * 2 + ["up"] * 6 + ["right"] * 2,
)
GRADIENTS: dict[Gradient, str] = {
    "orthogonal": "orthogonal (O-DICE)",
    "semi": "semi (S-DICE)",
    "true": "true",
}
FORMS = {"table": "a table", "network": f"a network, two layers of {HIDDEN}"}


class TableODICE(ODICE):
    """O-DICE whose V is one number a cell; observations are one-hot."""

    def __init__(self, problem: Problem, config: ODICEConfig) -> None:
        super().__init__(problem, config)
        table = torch.zeros(len(problem.seeds), problem.obs_dim, 1, requires_grad=True)
        self.value = Trainable([table], config.lr, target=config.gradient != "true")

    def values(self, value: Params, observations: Tensor) -> Tensor:
        """(S, B, cells) -> (S, 1, B)."""
        return torch.bmm(observations, value[0]).transpose(1, 2)


def transitions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells, next cells (N, 2) int64, rewards and terminations (N,) of both walks."""
    rows = []
    for walk in WALKS:
        x, y = 0, 0
        for i, move in enumerate(walk):
            dx, dy = MOVES[move]
            last = i == len(walk) - 1
            rows.append((x, y, x + dx, y + dy, GOAL_REWARD * last, float(last)))
            x, y = x + dx, y + dy
    table = torch.tensor(rows)
    return table[:, :2].long(), table[:, 2:4].long(), table[:, 4], table[:, 5]


def encode(cells: Tensor, form: str) -> Tensor:
    """Observations of cells (N, 2): one-hot for the table, coordinates in [-1, 1] for the network."""
    if form == "table":
        return torch.nn.functional.one_hot(cells[:, 0] * SIDE + cells[:, 1], SIDE * SIDE).float()
    return cells.float() / (SIDE - 1) * 2.0 - 1.0


def learned_values(form: str, gradient: Gradient, steps: int = STEPS, seeds: int = SEEDS) -> np.ndarray:
    """V of every cell after training, (seeds, SIDE, SIDE), [x, y]."""
    cells, next_cells, rewards, terminated = transitions()
    s, s2, moves = encode(cells, form), encode(next_cells, form), (next_cells - cells).float()
    config = ODICEConfig(
        gradient=gradient, lam=LAM, discount=DISCOUNT, lr=RATES[form], hidden=HIDDEN, policy_hidden=8,
        twin=False, layer_norm=False, batch_size=len(s),
    )  # fmt: skip
    identity = ObservationNormalizer.identity(s.shape[1])
    problem = Problem(
        observations=s, actions=moves, rewards=rewards, next_observations=s2, terminated=terminated, next_actions=None,
        action_low=-torch.ones(2), action_high=torch.ones(2), normalizer=identity, seeds=tuple(range(seeds)),
    )  # fmt: skip
    learner = (TableODICE if form == "table" else ODICE)(problem, config)
    batch = Batch(s, moves, rewards, s2, terminated, torch.arange(len(s)))
    batch = dataclasses.replace(batch, **{k: v.expand(seeds, *v.shape) for k, v in _present(batch).items()})
    for _ in range(steps):
        learner.update(batch)
    everywhere = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    x = encode(everywhere, form).expand(seeds, -1, -1)
    return learner.values(learner.value.constant, x)[:, 0].reshape(seeds, SIDE, SIDE).numpy()


def _present(batch: Batch) -> dict[str, Tensor]:
    return {f.name: v for f in dataclasses.fields(batch) if (v := getattr(batch, f.name)) is not None}


def visited() -> np.ndarray:
    """Which cells a step of the data starts in, (SIDE, SIDE)."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[tuple(transitions()[0].T.numpy())] = True
    return mask


def greedy_success(values: np.ndarray) -> float:
    """Share of the data's cells from which always stepping to the neighbour of highest V reaches the goal."""
    starts, reached = np.argwhere(visited()), 0
    for x, y in starts:
        for _ in range(4 * SIDE):
            around = [(x + dx, y + dy) for dx, dy in MOVES.values()]
            around = [(i, j) for i, j in around if 0 <= i < SIDE and 0 <= j < SIDE]
            if (SIDE - 1, SIDE - 1) in around:
                reached += 1
                break
            x, y = max(around, key=lambda cell: values[cell])
    return reached / len(starts)


def run() -> None:
    """Train everything and write the raw numbers."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = {"versions": versions("cpu", 1), "values": {}}
    for form in FORMS:
        for gradient in GRADIENTS:
            began = time.process_time()
            raw["values"][f"{form} {gradient}"] = learned_values(form, gradient).round(4).tolist()
            print(form, gradient, f"{time.process_time() - began:.0f} s", flush=True)
    atomic_write_json(RAW, raw)


def table(values: dict[str, np.ndarray]) -> list[str]:
    """One row a form and gradient."""
    mask = visited()
    off = ~mask
    off[-1, -1] = False  # the goal: entered, never left
    head = ["V is", "gradient", "V, visited", "V, not visited", "difference", "greedy walks that arrive"]
    rows = [head, ["---"] * len(head)]
    for form, about in FORMS.items():
        for gradient, name in GRADIENTS.items():
            v = values[f"{form} {gradient}"]
            inside, outside = v[:, mask].mean(axis=1), v[:, off].mean(axis=1)
            success = [100 * greedy_success(one) for one in v]
            numbers = (f"{x.mean():.2f} +- {x.std(ddof=1):.2f}" for x in (inside, outside, inside - outside))
            rows.append([about, name, *numbers, f"{np.mean(success):.0f} %"])
    return [f"| {' | '.join(row)} |" for row in rows]


def figure(values: dict[str, np.ndarray]) -> None:
    """V of every cell under each gradient, mean over seeds; the data's cells are marked."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gridworld", "font.size": 9})
    from matplotlib import pyplot

    means = [values[f"network {gradient}"].mean(axis=0) for gradient in GRADIENTS]
    scale = {"vmin": min(m.min() for m in means), "vmax": max(m.max() for m in means)}
    chart, axes = pyplot.subplots(1, 3, figsize=(8, 2.9), constrained_layout=True)
    for axis, mean, name in zip(axes, means, GRADIENTS.values(), strict=True):
        image = axis.imshow(mean.T, origin="lower", cmap="viridis", **scale)
        axis.plot(*np.argwhere(visited()).T, "w.", markersize=3)
        axis.set(title=name, xticks=[], yticks=[])
    chart.colorbar(image, ax=axes, label="V")
    chart.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})


READING = [
    "**Reading.** As the paper says, the orthogonal gradient puts cells without data lower than the semi-gradient "
    "does, also relative to the visited ones (there by about one standard deviation). In this grid that does not help "
    "a greedy walk: at lam 0.5 the semi-gradient's V is the Bellman solution along the data, which always climbs, and "
    "O-DICE's is not: the projection runs over all parameters at once, so part of the backward gradient stays on "
    "visited cells. O-DICE itself never walks greedily in V; its policy weighs recorded steps.",
    "",
    "The three gradients have no common fixed point, not even in a table with full batches. The true gradient's V is "
    "far below any return: at its fixed point (lam 0.5) the ratio of a step is 1 + gamma times that of the step "
    "before, and residuals of up to 2 gamma / (1 - gamma) = 18 add up along a walk.",
]


def page() -> None:
    """Write the page and its figure from the raw file."""
    raw = json.loads(RAW.read_text())
    values = {name: np.array(v) for name, v in raw["values"].items()}
    figure(values)
    v = raw["versions"]
    lines = [
        "# O-DICE in a gridworld: what the gradient says about cells without data",
        "",
        "Regenerate: `python scripts/odice_gridworld.py run`, then `page`; raw numbers: "
        "`benchmarks/raw/odice_gridworld.json`.",
        "",
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread.",
        "",
        f"A {SIDE} x {SIDE} grid without walls; two walks from one corner to the other, {len(WALKS[0])} and "
        f"{len(WALKS[1])} steps, the last of each earning {GOAL_REWARD:g}. lam {LAM}, eta 1, discount {DISCOUNT}, "
        f"one V without layer norm, full batches, Adam at {RATES['table']} (table) and {RATES['network']}, "
        f"{STEPS:,} steps, {SEEDS} seeds (mean +- std). A greedy walk "
        "steps to the neighbour of highest V, from every visited cell.",
        "",
        f"![V of every cell]({PAGE.stem}.svg)",
        "",
        "V as a network, mean over seeds; white: cells that the data visit.",
        "",
        *table(values),
        "",
        *READING,
    ]
    atomic_write_text(PAGE, "\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "page": page})
