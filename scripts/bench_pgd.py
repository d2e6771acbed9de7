"""Policy-guided diffusion: are its trajectories true, do they follow the target policy, do agents learn from them?

    python scripts/bench_pgd.py plan                       what would run, and the expected core-hours
    python scripts/bench_pgd.py run [--minutes 60] [--only NAME] [--smoke]
    python scripts/bench_pgd.py page                       benchmarks/pgd.md from benchmarks/raw/pgd/*.json

Needs the sets of scripts/make_zoo.py. Interrupted training cells resume. --smoke runs everything in minutes, into
runs/bench-pgd-smoke, and is good for nothing else.
"""

import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import offrl
from offrl.data.load import load_dataset
from offrl.data.reference import normalized_score
from offrl.diffusion.guidance import Guidance
from offrl.diffusion.sampler import Sampler
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.evaluation.simulated import Simulator, dynamics_error
from offrl.files import atomic_write_json, atomic_write_text
from offrl.generate import Plan, generate
from offrl.nn.dynamics import DynamicsEnsemble, Scale
from offrl.nn.policy import Policy, load_policy
from offrl.training.build import dataset_env
from offrl.training.cells import Cell, RunCells, TrainingCell, planned
from offrl.training.run_dir import versions
from offrl.training.seeding import stream
from offrl.training.synthetic import mean_log_prob

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/pgd.md"
SPEED = ROOT / "benchmarks/raw/diffusion_speed.json"
DATASETS = {"hopper": "minari:zoo/hopper-mixed-v0", "pointmaze": "minari:zoo/pointmaze-umaze-v0"}
COEFS, NOISES = (0.0, 0.25, 0.5, 1.0), (0.0, 0.3, 1.0)
SHARE = 0.9375  # 240 of 256 rows, as published
ARMS = {"real": {}, "unguided": {"guidance": 0.0}, "guided": {"guidance": 1.0}}
MEMBERS = 5


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    hidden: int = 64
    model_steps: int = 20_000
    agent_steps: int = 50_000
    agent_hidden: int = 256
    seeds: tuple[int, ...] = (0, 1)
    refresh: int = 10_000
    transitions: int = 20_000
    sampling_steps: int = 32
    windows: int = 256
    raw: Path = ROOT / "benchmarks/raw/pgd"
    work: Path = ROOT / "runs/bench-pgd"


FULL = Sizes()
SMOKE = Sizes(
    *(32, 30, 40, 16, (0,), 20, 60, 4, 4),
    raw=ROOT / "runs/bench-pgd-smoke/raw",
    work=ROOT / "runs/bench-pgd-smoke/work",
)


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class Quality:
    """Measure one dataset's trajectories (called by 'run')."""

    dataset: str
    smoke: bool = False


def cells(sizes: Sizes, smoke: bool) -> list[tuple[Cell, float]]:
    """All cells in the order of their needs, with expected seconds on one core."""
    found: list[tuple[Cell, float]] = []
    for name, uri in DATASETS.items():
        options = {"steps": sizes.model_steps, "checkpoint_every": 2_000}
        model = TrainingCell("policy_guided_diffusion", uri, 0, options, {"hidden": sizes.hidden})
        found.append((model.cell(f"{name}-model-0", sizes.raw, sizes.work), 0.08 * sizes.model_steps))
        for seed in sizes.seeds:
            for arm, guidance in ARMS.items():
                options = {"steps": sizes.agent_steps, "eval_every": max(sizes.agent_steps // 10, 1)}
                options |= {"checkpoint_every": max(sizes.agent_steps // 10, 1), "eval_episodes": 20}
                seconds = 0.006 * sizes.agent_steps
                if arm != "real":
                    run = folder(sizes, f"{name}-model-0")
                    options |= {"mix": f"{run}:{SHARE}", "refresh": sizes.refresh, **guidance}
                    options |= {"synthetic_transitions": sizes.transitions}
                    options |= {"sampling_steps": sizes.sampling_steps}
                    seconds += 60 * sizes.agent_steps / sizes.refresh
                agent = TrainingCell("td3_bc", uri, seed, options, {"hidden": sizes.agent_hidden})
                found.append((agent.cell(f"{name}-{arm}-{seed}", sizes.raw, sizes.work), seconds))
        command = (sys.executable, __file__, "quality", "--dataset", name, *(["--smoke"] if smoke else []))
        found.append((Cell(f"{name}-quality", command, sizes.raw / f"{name}-quality.json"), 2400.0))
    order = ["-model", "-real", "-quality", "-unguided", "-guided"]
    return sorted(found, key=lambda item: next(i for i, part in enumerate(order) if part in item[0].name))


def folder(sizes: Sizes, cell: str) -> str:
    """The run directory of a training cell; the cell's folder while it has none."""
    runs = sorted(path.parent for path in (sizes.work / cell).glob("*/*/seed*/config.json"))
    return str(runs[-1] if runs else sizes.work / cell)


def quality(o: Quality) -> None:
    """Dynamics error and likelihood of guided trajectories and of rollouts of the one-step model."""
    sizes, torch_threads = SMOKE if o.smoke else FULL, 1
    torch.set_num_threads(torch_threads)
    data = load_dataset(DATASETS[o.dataset])
    model = load_policy(folder(sizes, f"{o.dataset}-model-0"))
    target = load_policy(folder(sizes, f"{o.dataset}-real-0"))
    assert isinstance(model, TrajectoryModel)
    scale, spec = data.flat_observations().std(axis=0), dataset_env(data, None)
    assert spec is not None
    simulator, rows = Simulator(spec), []
    for coef in COEFS:
        guidance = Guidance(coef, normalize=True, step_independent=True)
        plan = Plan(
            Sampler(sizes.sampling_steps, guidance=guidance), batch=sizes.windows, keep_terminal=False
        )
        began = time.process_time()
        fields = generate(model, sizes.windows * (model.length - 1), plan, target if coef else None)
        seconds = time.process_time() - began
        rows.append(measure(f"diffusion, coef {coef:g}", fields, simulator, scale, model, target, seconds))
    budget = update_seconds(DATASETS[o.dataset], sizes) * sizes.model_steps
    ensemble, updates = fit_ensemble(data, model, budget)
    for noise in NOISES:
        began = time.process_time()
        fields = rollouts(ensemble, data, target, noise, sizes.windows, model.length - 1)
        seconds = time.process_time() - began
        rows.append(measure(f"one-step, noise {noise:g}", fields, simulator, scale, model, target, seconds))
    record = {
        "rows": rows,
        "parameters": {
            "diffusion": sum(p.numel() for p in model.weights),
            "one-step": ensemble.num_parameters,
        },
        "training_seconds": budget,
        "one_step_updates": updates,
        "versions": versions("cpu", torch_threads),
    }
    atomic_write_json(sizes.raw / f"{o.dataset}-quality.json", record)


def update_seconds(uri: str, sizes: Sizes) -> float:
    """CPU-seconds of an update of the denoiser: the difference of two short runs."""

    def seconds(steps: int) -> float:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as out:
            offrl.train(
                "policy_guided_diffusion", uri, steps=steps, hidden=sizes.hidden, out=out, progress=False
            )
        return time.process_time() - began

    return (seconds(220) - seconds(20)) / 200


def fit_ensemble(data: Any, model: TrajectoryModel, seconds: float) -> tuple[DynamicsEnsemble, int]:
    """The one-step model with as many parameters as the denoiser, trained for as many CPU-seconds."""
    t = data.transitions("exact")
    arrays = (t.observations, t.actions, t.rewards, t.next_observations, t.terminated)
    tensors = [torch.from_numpy(x) for x in arrays]
    scale, wanted = Scale.fit(*tensors[:4]), sum(p.numel() for p in model.weights)
    inputs, outputs = data.obs_dim + data.act_dim, 2 * (data.obs_dim + 1) + 1
    sides = inputs + outputs + 2  # h^2 + sides h + outputs parameters a member
    hidden = round((-sides + (sides**2 + 4 * (wanted / MEMBERS - outputs)) ** 0.5) / 2)
    ensemble = DynamicsEnsemble(scale, hidden, MEMBERS, 1e-3, stream(0, "init"))
    generator, updates, began = stream(0, "data"), 0, time.process_time()
    while time.process_time() - began < seconds:
        chosen = torch.randint(len(t), (MEMBERS, 256), generator=generator)
        ensemble.update(*(x[chosen] for x in tensors))
        updates += 1
    return ensemble, updates


def rollouts(
    ensemble: DynamicsEnsemble, data: Any, policy: Policy, noise: float, count: int, horizon: int
) -> dict[str, np.ndarray]:
    """Steps (count, horizon, ...) of the one-step model from states of the data, with noisy actions of the policy."""
    generator = stream(0, f"rollout {noise}")
    start = torch.from_numpy(data.flat_observations())
    start = start[torch.randint(len(start), (count,), generator=generator)]

    def act(observations: torch.Tensor) -> torch.Tensor:
        actions = policy.act(observations)[0]
        draws = torch.randn(actions.shape, generator=generator)
        return policy.clip(actions + noise * policy.half_range * draws)

    steps = ensemble.rollout(start, act, horizon, generator)
    return {name: value.numpy() for name, value in steps.items()}


def measure(
    name: str,
    fields: dict[str, np.ndarray],
    simulator: Simulator,
    scale: np.ndarray,
    model: TrajectoryModel,
    target: Policy,
    seconds: float,
) -> dict[str, Any]:
    """Errors by step, likelihood under the target, time."""
    horizon = model.length - 1
    names = ("observations", "actions", "rewards", "next_observations")
    flat = [fields[n].reshape(-1, *fields[n].shape[2:]) if "valid" in fields else fields[n] for n in names]
    valid = fields["valid"].reshape(-1) if "valid" in fields else np.ones(len(flat[0]), bool)
    step = np.arange(len(flat[0])) % horizon
    error = dynamics_error(simulator, *(x[valid] for x in flat), scale)
    kept, index = [x[valid] for x in flat], step[valid]
    likelihood = mean_log_prob(model, target, {"observations": kept[0], "actions": kept[1]}).item()
    return {
        "name": name,
        "state_error": error.mean,
        "state_error_median": float(np.median(error.state)),
        "by_step": [
            float(error.state[index == s].mean()) if (index == s).any() else None for s in range(horizon)
        ],
        "reward_error": float(error.reward.mean()),
        "log_prob": likelihood,
        "rows": int(valid.sum()),
        "seconds": seconds,
    }


def page() -> str:
    """The page, from the raw files alone."""
    lines = [
        "# Policy-guided diffusion",
        "",
        "Regenerate: `python scripts/bench_pgd.py page`. Raw numbers: `benchmarks/raw/pgd/`.",
        "",
        f"Denoiser: U-Net of {FULL.hidden} channels, {FULL.model_steps:,} updates, windows of 32 steps; sampler: "
        f"{FULL.sampling_steps} steps, Heun, churn 80; guidance normalized, its coefficient in the strength for 256 "
        "steps. Target: TD3+BC trained on the real data. Dynamics error: the true simulator is stepped from each "
        "generated state; mean squared difference of the next state in units of the data's standard deviation. "
        "The one-step model is an ensemble of five Gaussian networks with as many parameters, trained for as many "
        "CPU-seconds; its rollouts begin at states of the data, its actions are the target's plus noise.",
        "",
        "What the paper claims: guided data have higher likelihood under the target than unguided, dynamics error "
        "below a one-step model's at comparable likelihood, and agents do better on guided than on unguided data. "
        "Its numbers could not be read and are not quoted.",
        "",
        f"Agents: {FULL.agent_steps:,} updates, {SHARE:.0%} of each batch synthetic, drawn anew every "
        f"{FULL.refresh:,} updates ({FULL.transitions:,} transitions) under the agent of that moment; one denoiser a "
        "dataset. Scores are normalized where the dataset has reference returns, else they are returns. IQL and the "
        "model-based arm were not run.",
        "",
    ]
    for name, uri in DATASETS.items():
        lines += [f"## {uri.removeprefix('minari:')}", "", *quality_table(name), "", *agent_table(name), ""]
    lines += ["## Speed", "", *speed(), ""]
    return "\n".join(lines) + "\n"


def quality_table(name: str) -> list[str]:
    """Errors and likelihoods of one dataset."""
    path = FULL.raw / f"{name}-quality.json"
    if not path.exists():
        return ["Dynamics error and likelihood: not run yet."]
    record = json.loads(path.read_text())
    sizes = ", ".join(f"{k} {v / 1e6:.2f} M parameters" for k, v in record["parameters"].items())
    lines = [f"{sizes}; {record['training_seconds']:.0f} CPU-seconds of training each.", ""]
    lines += [
        "| trajectories | error | median | step 1 | step 10 | step 31 | reward error | log pi | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        by = [row["by_step"][i] for i in (0, 9, 30)]
        steps = " | ".join("" if x is None else f"{x:.3g}" for x in by)
        lines.append(
            f"| {row['name']} | {row['state_error']:.3g} | {row['state_error_median']:.3g} | {steps} | "
            f"{row['reward_error']:.3g} | {row['log_prob']:.2f} | {row['seconds']:.0f} |"
        )
    figure(record["rows"], PAGE.parent / f"pgd-{name}.svg")
    return [*lines, "", f"![Error against likelihood](pgd-{name}.svg)", "", verdict(record["rows"])]


def speed() -> list[str]:
    """What scripts/bench_diffusion_speed.py measured."""
    if not SPEED.exists():
        return ["Not run yet."]
    found = json.loads(SPEED.read_text())
    step = found["training"]
    return [
        f"`python scripts/bench_diffusion_speed.py`, U-Net of {found['hidden']} channels, batch 32, one thread: an "
        f"update in the training loop {1e3 * step['loop']:.0f} ms, the bare forward, backward and Adam step "
        f"{1e3 * step['bare']:.0f} ms ({found['ratio']:.2f} of the bare speed). Trajectories drawn together cost "
        f"{1 / found['gain']:.2f} of those drawn one at a time ({found['gain']:.1f} times as fast). 1000 "
        f"trajectories of 32 steps with the sampler above, on two threads: {found['thousand']:.0f} s.",
    ]


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether likelihood rises with the coefficient, and which model is truer at the nearest likelihood."""
    ours = [row for row in rows if row["name"].startswith("diffusion")]
    others = [row for row in rows if not row["name"].startswith("diffusion")]
    steps = [
        f"{a['name'].split()[-1]} to {b['name'].split()[-1]} {b['log_prob'] - a['log_prob']:+.2f}"
        for a, b in itertools.pairwise(ours)
    ]
    a, b = min(
        itertools.product(ours, others), key=lambda pair: abs(pair[0]["log_prob"] - pair[1]["log_prob"])
    )
    truer = a if a["state_error"] < b["state_error"] else b
    return (
        f"Likelihood over coefficients: {', '.join(steps)}. At the nearest likelihoods "
        f"({a['name']}: {a['log_prob']:.2f}; {b['name']}: {b['log_prob']:.2f}) the errors are {a['state_error']:.3g} "
        f"and {b['state_error']:.3g}: {truer['name']} is truer."
    )


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against likelihood, both kinds of model."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "pgd"
    figure_, axes = pyplot.subplots(figsize=(5, 3.5))
    for kind, marker in (("diffusion", "o"), ("one-step", "s")):
        chosen = [row for row in rows if row["name"].startswith(kind)]
        axes.plot(*([r[k] for r in chosen] for k in ("log_prob", "state_error")), marker + "-", label=kind)
        for row in chosen:
            label = row["name"].split(", ")[1]
            axes.annotate(label, (row["log_prob"], row["state_error"]), fontsize=7)
    axes.set(xlabel="log pi(a | o) under the target, nats", ylabel="dynamics error", yscale="log")
    axes.legend()
    figure_.tight_layout()
    figure_.savefig(path, metadata={"Date": None})
    pyplot.close(figure_)


def agent_table(name: str) -> list[str]:
    """What TD3+BC learns from each kind of data: mean of the last five evaluations."""
    lines = ["| TD3+BC on | seeds | last 5 (mean +- std over seeds) |", "|---|---|---|"]
    found: dict[str, list[float]] = {}
    for arm in ARMS:
        paths = [FULL.raw / f"{name}-{arm}-{seed}.json" for seed in FULL.seeds]
        runs = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not runs:
            lines.append(f"| {arm} | 0 | not run yet |")
            continue
        pair = runs[0]["config"]["reference_returns"]
        means = found[arm] = []
        for run in runs:
            returns = np.array([np.mean(e["returns"]) for e in run["evaluations"][-5:]])
            means.append(float(np.mean(normalized_score(tuple(pair), returns) if pair else returns)))
        spread = f" +- {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
        lines.append(f"| {arm} | {len(runs)} | {np.mean(means):.1f}{spread} |")
    return [*lines, "", claim(found)]


def claim(means: dict[str, list[float]]) -> str:
    """What the agents say of the paper's claim, seed by seed."""
    if any(len(means.get(arm, [])) < len(FULL.seeds) for arm in ARMS):
        return "No verdict before all arms are run."
    gains = [a - b for a, b in zip(means["guided"], means["unguided"], strict=True)]
    over_real = [a - b for a, b in zip(means["guided"], means["real"], strict=True)]
    shown = "shown here" if min(gains) > 0 else "not shown here"
    return (
        f"Guided above unguided: {shown} (by seed {', '.join(f'{x:+.1f}' for x in gains)}). "
        f"Guided against the real data alone: {', '.join(f'{x:+.1f}' for x in over_real)}."
    )


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(FULL, False)))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        sizes = SMOKE if o.smoke else FULL
        stages = ("-model", "-real", "-quality", "-unguided", "-guided")  # later ones read earlier runs
        o.run(lambda: [cell for cell, _ in cells(sizes, o.smoke)], sizes.work / "logs", print, stages)
    elif word == "quality":
        quality(tyro.cli(Quality, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
