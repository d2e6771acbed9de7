"""Convergence rates of the online policy-gradient methods where the theory is tight, and on sampled trajectories.

    python scripts/bench_rates.py run     benchmarks/raw/rates.json (3 to 5 minutes on one core)
    python scripts/bench_rates.py page    benchmarks/rates.md and rates.svg from it

Tight: minimize f(x) = exp(-x), whose |f'| equals f - f*; gradients with N(0, 1) noise, and f'' too where a method asks.
Sampled: a scalar linear-quadratic problem with a Gaussian policy, whose J is known in closed form.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from torch import Tensor

from offrl.estimators import transforms
from offrl.files import atomic_write_json, atomic_write_text
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE, FIGURE = (ROOT / f"benchmarks/{name}" for name in ("raw/rates.json", "rates.md", "rates.svg"))
TOLERANCE, FITTED, GROUP = (
    0.08,
    8,
    400,
)  # of a slope; marks from the end that it is fitted on; runs of a group
Gradient = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """gamma_t = gamma_0 u^step, eta_t = u^eta, u = 2/(t + 2); ``slope`` is the theory's, of J* - J in iterations."""

    step: float
    eta: float
    kind: str
    slope: float
    normalized: bool = True


METHODS = {
    "vanilla PG": Method(2 / 3, 0.0, "momentum", -1 / 3, normalized=False),
    "N-MPG": Method(1.0, 2 / 3, "momentum", -1 / 3),
    "N-PG-IGT": Method(1.0, 4 / 5, "transport", -2 / 5),
    "N-HARPG": Method(1.0, 1.0, "harpg", -1 / 2),
    "HARPG": Method(1 / 2, 1.0, "harpg", -1 / 2, normalized=False),
}


def ascend(
    m: Method, theta: Tensor, gradient: Gradient, product: Product, gamma: float, marks: np.ndarray, seed: int
) -> list[Tensor]:
    """Theta (runs, 1) after each of ``marks`` iterations."""
    draws = torch.Generator().manual_seed(seed)
    move = transforms.normalized_step if m.normalized else transforms.step
    previous, direction, kept = theta, torch.zeros_like(theta), []
    wanted = set(marks.tolist())
    for t in range(int(marks[-1])):
        u = 2.0 / (t + 2.0)
        eta = u**m.eta
        if m.kind == "transport":
            direction = transforms.momentum(
                direction, gradient(transforms.transported(theta, previous, eta)), eta
            )
        elif m.kind == "harpg" and t:
            share = torch.rand(theta.shape, generator=draws, dtype=theta.dtype)
            between = transforms.interpolated(theta, previous, share)
            correction = product(between, transforms.difference(theta, previous))
            direction = transforms.harpg(direction, gradient(theta), correction, eta)
        else:
            direction = transforms.momentum(direction, gradient(theta), eta)
        previous, theta = theta, move(theta, direction, gamma * u**m.step)
        if t + 1 in wanted:
            kept.append(theta)
    return kept


def exponential(m: Method, runs: int, marks: np.ndarray, seed: int) -> list[Tensor]:
    """F - f* = exp(-x) of ``runs`` runs from x = 0, gamma_0 = 1."""
    g = torch.Generator().manual_seed(1000 + seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g, dtype=like.dtype)

    def gradient(x: Tensor) -> Tensor:  # of -f
        return torch.exp(-x) + noise(x)

    def product(x: Tensor, vector: Tensor) -> Tensor:
        return (-torch.exp(-x) + noise(x)) * vector

    start = torch.zeros(runs, 1, dtype=torch.float64)
    return [torch.exp(-x[:, 0]) for x in ascend(m, start, gradient, product, 1.0, marks, seed)]


NOISY = (
    "A slope says nothing about the constant in front: the Hessian-vector product of a few whole trajectories, with "
    "its product of two sums over the horizon, has a heavy tail. Its correction costs more than it saves at this "
    "length, and now and then throws a run to where J is steep: its mean is of those few runs, its median is not."
)
HORIZON, DISCOUNT, STD, TRAJECTORIES = 20, 0.95, 0.3, 8
BEST = (-1.341838, -1.687477)  # theta* and J*


def lqr_value(theta: Tensor) -> Tensor:
    """J(theta) of s' = 0.9 s + 0.5 a, r = -(s^2 + 0.1 a^2), a ~ N(theta s, 0.3^2), s_0 ~ N(0, 1), elementwise."""
    m, total = torch.ones_like(theta), torch.zeros_like(theta)
    for t in range(HORIZON):
        total -= DISCOUNT**t * ((1 + 0.1 * theta**2) * m + 0.1 * STD**2)
        m = (0.9 + 0.5 * theta) ** 2 * m + 0.25 * STD**2
    return total


def quadratic(m: Method, runs: int, marks: np.ndarray, seed: int) -> list[Tensor]:
    """J* - J of ``runs`` runs from theta = -0.6, gamma_0 = 0.5, eight trajectories a gradient and eight a product."""
    g = torch.Generator().manual_seed(2000 + seed)
    powers = DISCOUNT ** torch.arange(HORIZON, dtype=torch.float64)

    def play(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and their slopes by step, and psi less the other trajectories' mean: (runs, 8, 20) each."""
        shape = (len(theta), TRAJECTORIES)
        noise = STD * torch.randn(*shape, HORIZON, generator=g, dtype=torch.float64)
        s, states = torch.randn(shape, generator=g, dtype=torch.float64), []
        pull = 0.9 + 0.5 * theta
        for t in range(HORIZON):
            states.append(s)
            s = torch.addcmul(0.5 * noise[..., t], pull, s)
        s = torch.stack(states, dim=-1)
        rewards = -powers * (s**2 + 0.1 * (theta[..., None] * s + noise) ** 2)
        psi = rewards.flip(-1).cumsum(-1).flip(-1)
        psi = psi - (psi.sum(1, keepdim=True) - psi) / (TRAJECTORIES - 1)
        return s * noise / STD**2, -((s / STD) ** 2), psi

    def gradient(theta: Tensor) -> Tensor:
        score, _, psi = play(theta)
        return (psi * score).sum(-1).mean(1, keepdim=True)

    def product(theta: Tensor, vector: Tensor) -> Tensor:
        score, slope, psi = play(theta)
        each = (psi * score).sum(-1) * score.sum(-1) + (psi * slope).sum(-1)
        return each.mean(1, keepdim=True) * vector

    start = torch.full((runs, 1), -0.6, dtype=torch.float64)
    kept = ascend(m, start, gradient, product, 0.5, marks, seed)
    return [BEST[1] - lqr_value(theta[:, 0]) for theta in kept]


def summary(marks: np.ndarray, gaps: list[Tensor], seconds: float) -> dict[str, Any]:
    """Means, quartiles and slopes of J* - J at the marks."""
    values = torch.stack(gaps).numpy()
    found: dict[str, Any] = {
        "iterations": marks.tolist(),
        "seconds": seconds,
        "mean": values.mean(1).tolist(),
    }
    found["standard_error"] = (values.std(1, ddof=1) / values.shape[1] ** 0.5).tolist()
    for name, share in (("low", 0.25), ("median", 0.5), ("high", 0.75)):
        found[name] = np.quantile(values, share, axis=1).tolist()
    for name in ("mean", "median"):
        found[f"slope_{name}"] = slope(marks, np.asarray(found[name]))
    if values.shape[1] >= 2 * GROUP:
        groups = values.reshape(len(marks), -1, GROUP).mean(2).T
        found["slopes_of_groups"] = [slope(marks, group) for group in groups]
    return found


def slope(marks: np.ndarray, gaps: np.ndarray) -> float:
    """Of log gap in log iterations, over the last marks."""
    x, y = np.log(marks[-FITTED:]), np.log(gaps[-FITTED:])
    return float(np.polyfit(x, y, 1)[0])


def run() -> None:
    """Measure everything; about four minutes on one core."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = {"versions": versions("cpu", 1)}
    plans: list[tuple[str, Any, int, float, tuple[str, ...]]] = [
        ("exponential", exponential, 5 * GROUP, 1e5, tuple(METHODS)),
        ("quadratic", quadratic, 100, 1e4, ("N-MPG", "N-PG-IGT", "N-HARPG")),
    ]
    for problem, play, runs, last, names in plans:
        marks = np.unique(np.geomspace(100, last, 13).round().astype(int))
        raw[problem] = {"runs": runs, "methods": {}}
        for name in names:
            began = time.process_time()
            gaps = play(METHODS[name], runs, marks, list(METHODS).index(name))
            raw[problem]["methods"][name] = summary(marks, gaps, round(time.process_time() - began, 1))
            print(problem, name, raw[problem]["methods"][name]["slope_mean"], flush=True)
    atomic_write_json(RAW, raw)


def table(raw: dict[str, Any], problem: str) -> list[str]:
    """Rows of one problem."""
    found = raw[problem]["methods"]
    marks = next(iter(found.values()))["iterations"]
    shown = [marks.index(m) for m in marks if np.log10(m).is_integer()][-3:]
    theory = problem == "exponential"
    head = [
        "method",
        *(
            ["theory", "slope of the mean", "of groups of 400", "within 0.08"]
            if theory
            else ["slope of the mean"]
        ),
    ]
    head += [
        "slope of the median",
        *(f"mean gap at {marks[i]:,}" for i in shown),
        "median at the end",
        "CPU s",
    ]
    rows = [head, ["---"] * len(head)]
    for name, f in found.items():
        row, p = [name], METHODS[name].slope
        row += [f"{p:.3f}"] if theory else []
        row += [f"{f['slope_mean']:.3f}"]
        if theory:
            row += [f"{min(f['slopes_of_groups']):.2f} .. {max(f['slopes_of_groups']):.2f}"]
        row += ["yes" if abs(f["slope_mean"] - p) <= TOLERANCE else "no"] if theory else []
        row += [f"{f['slope_median']:.3f}"]
        row += [f"{f['mean'][i]:.4f} ± {f['standard_error'][i]:.4f}" for i in shown]
        rows.append([*row, f"{f['median'][-1]:.4f}", f"{f['seconds']:.0f}"])
    return [f"| {' | '.join(row)} |" for row in rows]


def figure(raw: dict[str, Any]) -> None:
    """Mean gaps, log-log, both problems side by side."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rates", "font.size": 9})
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    titles = {
        "exponential": "tight: f(x) = exp(-x)",
        "quadratic": "sampled: linear-quadratic",
    }
    for axis, (problem, title) in zip(axes, titles.items(), strict=True):
        center = "mean" if problem == "exponential" else "median"
        for k, (name, f) in enumerate(raw[problem]["methods"].items()):
            color, label = f"C{list(METHODS).index(name)}", f"{name}: {f[f'slope_{center}']:.2f}"
            axis.loglog(
                f["iterations"], f["mean"], "o^sDv"[k] + "-", color=color, label=label, markersize=3.5
            )
            axis.fill_between(f["iterations"], f["low"], f["high"], color=color, alpha=0.1, linewidth=0)
        axis.set(title=title, xlabel="iterations", ylabel=f"J* - J: {center}, quartiles")
        axis.legend(title=f"slope of the {center}", frameon=False)
        axis.grid(alpha=0.3)
    chart.savefig(FIGURE, metadata={"Date": None})


def page() -> None:
    """Write the page and its figure from the raw file."""
    raw = json.loads(RAW.read_text())
    v = raw["versions"]
    gaps = {name: f["median"][-1] for name, f in raw["quadratic"]["methods"].items()}
    best, worst = min(gaps, key=gaps.__getitem__), max(gaps, key=gaps.__getitem__)
    lines = [
        "# Rates of the policy-gradient methods",
        "",
        "Regenerate: `python scripts/bench_rates.py run`, then `page`; raw numbers: `benchmarks/raw/rates.json`.",
        "",
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread.",
        "",
        "![J* - J against iterations, log-log](rates.svg)",
        "",
        "The loops follow the methods' formulas, with the functions of `offrl.estimators.transforms`. A slope p is "
        "that of log(J* - J) in log(iterations) over the last 8 of 13 marks; p means eps^(-1/|p|) iterations. HARPG "
        "and N-HARPG play two sets of episodes an iteration, which moves a line and does not tilt it.",
        "",
        "## Where the theory is tight",
        "",
        "f(x) = exp(-x), so that |f'| = f - f*; x_0 = 0, N(0, 1) noise on gradients and on f'', gamma_0 = eta_0 = 1, "
        f"{raw['exponential']['runs']} independent runs. Near a nondegenerate optimum J* - J goes with the square of "
        "the gradient and rates look better than they are; here they cannot. A few late runs carry much of a mean, so "
        "the slopes of groups of 400 runs stand beside it.",
        "",
        *table(raw, "exponential"),
        "",
        "## On sampled trajectories",
        "",
        "s' = 0.9 s + 0.5 a, r = -(s^2 + 0.1 a^2), a ~ N(theta s, 0.3^2), discount 0.95, 20 steps; theta_0 = -0.6, "
        "optimum -1.3418. Eight trajectories a gradient and eight a Hessian-vector product, with the mean of the "
        f"other seven as baseline; gamma_0 = 0.5, {raw['quadratic']['runs']} runs.",
        "",
        *table(raw, "quadratic"),
        "",
        f"Here {best} ends nearest to the optimum and {worst} farthest, {gaps[worst] / gaps[best]:.0f} times as "
        "far, in the median.",
        "",
        *([NOISY, ""] if worst == "N-HARPG" else []),
    ]
    atomic_write_text(PAGE, "\n".join(lines))
    figure(raw)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "page": page})
