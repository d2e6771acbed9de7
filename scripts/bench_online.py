"""The online benchmark: cells, raw files, page.

    python scripts/bench_online.py plan                               what would run, and the expected core-hours
    python scripts/bench_online.py run [--groups NAME ...] [--jobs 2] [--minutes 60]
    python scripts/bench_online.py speed [--sbx PYTHON]               environment steps a second beside SB3's
    python scripts/bench_online.py page                               benchmarks/online.md from raw/online/*.json

A cell is one training run: it leaves its learning curve and the returns of its last policy. A finished cell never runs
again, an interrupted one starts again. An algorithm is a name of 'offrl algos', or sb3:CLASS for one of SB3's own.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from offrl.algos import load_online
from offrl.evaluation.rollout import evaluate
from offrl.files import atomic_write_json, atomic_write_text
from offrl.online.acting import acting_policy
from offrl.online.options import OnlineOptions
from offrl.online.runner import vector_env
from offrl.training.cells import Cell, run_cells
from offrl.training.run_dir import versions
from offrl.training.seeding import seed_globally

ROOT = Path(__file__).resolve().parents[1]
RAW, WORK, PAGE = ROOT / "benchmarks/raw/online", ROOT / "runs/bench-online", ROOT / "benchmarks/online.md"
SPEED = (
    ROOT / "benchmarks/raw"
)  # online_speed.json of a chip with AVX-512, online_speed-avx2.json of one without
EPISODES, WINDOW = 20, 20  # of the last evaluation; of a point of the learning curve
SEEDS = 3  # the least for an interval: of two and two, equal methods are separable one time in three


@dataclass(frozen=True)
class Entry:
    """One row of a table."""

    label: str
    algorithm: str
    seconds: float  # a cell, rough, one core
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(
        default_factory=dict
    )  # of OnlineOptions: num_envs, normalize_observations, ...


@dataclass(frozen=True)
class Group:
    """One table: methods in one environment with one budget."""

    title: str
    env: str
    unit: str  # of the budget: episodes or steps
    budget: int
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    note: str = ""
    pairs: tuple[tuple[str, str], ...] = ()  # labels of rows whose areas are compared


TEN = {"num_envs": 10}
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}
FOUR = {"num_envs": 4}
MDPO_PENDULUM = {"rollout": 512, "discount": 0.9, "lr": 1e-3}
FAST = {"learning_starts": 100, "lr": 1e-3}  # the zoo's settings of SAC for Pendulum-v1
ON_POLICY = (
    Entry("MDPO on-policy", "mdpo_on", 100, {}, NORMALIZED),
    Entry("PPO of the core", "ppo", 140, {}, NORMALIZED),
    Entry("PPO of SB3", "sb3:PPO", 230, {}, NORMALIZED),
    Entry("PMOE-PPO", "pmoe_ppo", 230, {}, NORMALIZED),
)
LONGER = "MDPO on-policy, 40 inner steps"  # tried because ten steps a rollout are few beside PPO's 320
PPOS = tuple((ours, "PPO of SB3") for ours in ("PPO of the core", "MDPO on-policy", "PMOE-PPO"))
SACS = tuple((ours, "SAC of SB3") for ours in ("SAC of the core", "MDPO off-policy", "PMOE-SAC"))
DEFAULTS = (
    "Everybody's defaults: rollouts of 2048 steps, two layers of 64, observations and rewards normalized."
)
SOFT = (
    "Two layers of 256, batches of 256, one update a step, first steps random; MDPO's temperature is fixed."
)
GROUPS = {
    "on-hopper": Group(
        "Hopper-v5, on policy", "Hopper-v5", "steps", 500_000, (0, 1, 2), ON_POLICY, DEFAULTS, PPOS
    ),
    "on-halfcheetah": Group(
        "HalfCheetah-v5, on policy",
        "HalfCheetah-v5",
        "steps",
        500_000,
        (0, 1, 2),
        (*ON_POLICY, Entry(LONGER, "mdpo_on", 260, {"inner_steps": 40}, NORMALIZED)),
        DEFAULTS,
        (*PPOS, (LONGER, "PPO of SB3")),
    ),
    "ppo-pendulum": Group(
        "Pendulum-v1, PPO of the core and of stable-baselines3",
        "Pendulum-v1",
        "steps",
        100_000,
        (0, 1, 2, 3, 4),
        (
            Entry("PPO of the core", "ppo", 40, {"rollout": 1024, "discount": 0.9, "lr": 1e-3}, FOUR),
            Entry("PPO of SB3", "sb3:PPO", 40, {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3}, FOUR),
            Entry("MDPO on-policy", "mdpo_on", 30, MDPO_PENDULUM, FOUR),
            Entry(LONGER, "mdpo_on", 30, MDPO_PENDULUM | {"inner_steps": 40}, FOUR),
        ),
        "The zoo's settings of PPO, without its state-dependent exploration.",
        (*PPOS[:2], (LONGER, "PPO of SB3")),
    ),
    "soft-pendulum": Group(
        "Pendulum-v1, off policy",
        "Pendulum-v1",
        "steps",
        20_000,
        (0, 1, 2, 3, 4),
        (
            Entry("MDPO off-policy", "mdpo_off", 160, FAST | {"refresh_every": 100}),
            Entry("SAC of the core", "sac", 150, FAST),
            Entry("SAC of SB3", "sb3:SAC", 210, {"learning_starts": 100, "learning_rate": 1e-3}),
            Entry("PMOE-SAC", "pmoe_sac", 330, FAST),
        ),
        SOFT,
        SACS,
    ),
    "soft-halfcheetah": Group(
        "HalfCheetah-v5, off policy",
        "HalfCheetah-v5",
        "steps",
        100_000,
        (0, 1),
        (
            Entry("MDPO off-policy", "mdpo_off", 800, {"kl_coefficient": 0.3}),
            Entry("SAC of the core", "sac", 760),
            Entry("SAC of SB3", "sb3:SAC", 1050, {"learning_starts": 10_000}),
            Entry("PMOE-SAC", "pmoe_sac", 1100, {"learning_starts": 10_000}),
        ),
        SOFT,
        SACS,
    ),
    "pendulum": Group(
        "InvertedPendulum-v5, equal trajectories",
        "InvertedPendulum-v5",
        "episodes",
        600,
        (0, 1, 2, 3, 4),
        (
            Entry("N-PG-IGT", "n_pg_igt", 25, {"step_size": 0.2}, TEN),
            Entry("N-HARPG", "harpg", 25, {"step_size": 0.2, "normalize": True}, TEN),
            Entry("vanilla PG", "policy_gradient", 25, {"step_size": 0.01}, TEN),
        ),
        "Ten episodes a gradient and ten a Hessian-vector product, played side by side: steps of environments that "
        "wait for the longest episode are counted. Step sizes are the best of six for each method on another seed, by "
        "the last policy; at the same number of trajectories N-HARPG has half the iterations.",
    ),
}


def cells(group: str) -> list[Cell]:
    """All cells of a group."""
    g, found = GROUPS[group], []
    for number, entry in enumerate(g.entries):
        for seed in g.seeds:
            name = f"{group}-{entry.label.lower().replace(',', '').replace(' ', '_')}-{seed}"
            result, spec = RAW / f"{name}.json", WORK / f"{name}.json"
            if not result.exists():
                facts = {"group": group, "entry": number, "seed": seed, "result": str(result)}
                atomic_write_json(spec, facts)
            found.append(Cell(name, (sys.executable, __file__, "cell", "--spec", str(spec)), result))
    return found


class Curve(BaseCallback):
    """Learning curve at the start of every rollout; stops at the budget."""

    def __init__(self, unit: str, budget: int) -> None:
        super().__init__()
        self.unit, self.budget, self.points = unit, budget, list[list[float]]()
        self.last = 0

    def spent(self) -> int:
        """Of the budget."""
        return self.model._episode_num if self.unit == "episodes" else self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self.point()

    def _on_step(self) -> bool:
        return self.spent() < self.budget

    def point(self) -> None:
        """Episodes, steps, mean return of the last episodes played."""
        if self.spent() >= self.last + self.budget / 100 and self.model.ep_info_buffer:
            self.last = self.spent()
            recent = [float(e["r"]) for e in list(self.model.ep_info_buffer)[-WINDOW:]]
            self.points.append([self.model._episode_num, self.model.num_timesteps, float(np.mean(recent))])


def make(entry: Entry, env_id: str, seed: int) -> BaseAlgorithm:
    """The model of an entry, in its environments."""
    options = OnlineOptions(env=env_id, seed=seed, **entry.options)
    scheme, _, name = entry.algorithm.rpartition(":")
    env = vector_env(env_id, options, entry.settings.get("discount", entry.settings.get("gamma", 0.99)))
    if scheme == "sb3":
        import stable_baselines3

        return getattr(stable_baselines3, name)("MlpPolicy", env, seed=seed, device="cpu", **entry.settings)
    method = load_online(name)
    return method.model(method.config(**entry.settings), env, seed, "cpu")


def cell(spec: Path) -> None:
    """Train one cell and write its raw file."""
    facts = json.loads(spec.read_text())
    group = GROUPS[facts["group"]]
    entry, seed = group.entries[facts["entry"]], facts["seed"]
    torch.set_num_threads(1)
    seed_globally(seed)
    model, curve, began = make(entry, group.env, seed), Curve(group.unit, group.budget), time.process_time()
    model.learn(10**9 if group.unit == "episodes" else group.budget, callback=curve)
    seconds = time.process_time() - began
    curve.last = -group.budget
    curve.point()
    final = evaluate(acting_policy(model), group.env, episodes=EPISODES, seed=seed)
    raw = {
        "label": entry.label,
        "algorithm": entry.algorithm,
        "settings": entry.settings,
        "options": entry.options,
    }
    raw |= {"seed": seed, "budget": [group.budget, group.unit], "curve": curve.points, "cpu_seconds": seconds}
    raw |= {"final_returns": final.returns.tolist(), "versions": versions("cpu", 1)}
    atomic_write_json(Path(facts["result"]), raw)


def plan() -> None:
    """What would run."""
    for name, g in GROUPS.items():
        hours = sum(entry.seconds for entry in g.entries) * len(g.seeds) / 3600
        left = sum(not c.result.exists() for c in cells(name))
        print(
            f"{name}: {g.title}, {len(g.entries)} methods x {len(g.seeds)} seeds, {hours:.2f} core-hours; {left} left"
        )


def run(groups: tuple[str, ...] = tuple(GROUPS), jobs: int = 1, minutes: float | None = None) -> None:
    """Run what is missing.

    Args:
        groups: names of groups.
        jobs: processes at once.
        minutes: stop after these.
    """
    todo = [c for name in groups for c in cells(name)]
    RAW.mkdir(parents=True, exist_ok=True)
    deadline = None if minutes is None else 60 * minutes
    missing = run_cells(todo, WORK / "logs", jobs=jobs, deadline=deadline, nice=0, note=print)
    if missing:
        raise SystemExit(f"{len(missing)} cells have no result: {', '.join(missing)}")


def speed(env: str = "HalfCheetah-v5", turns: int = 3, sbx: Path | None = None) -> None:
    """Environment steps a second with updates, methods in turn on one thread; run it on a quiet machine.

    Args:
        env: id.
        turns: per method.
        sbx: Python of an environment with sbx-rl, to measure it too, right after.
    """
    torch.set_num_threads(1)
    after: dict[str, Any] = {"learning_starts": 300}
    names = {**dict.fromkeys(("sb3:SAC", "sac", "mdpo_off", "pmoe_sac"), after)}
    names |= {name: {} for name in ("sb3:PPO", "ppo", "mdpo_on", "pmoe_ppo")}
    models = {name: make(Entry(name, name, 0, settings), env, 0) for name, settings in names.items()}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):  # the first one passes the random steps and is not counted
        for name, model in models.items():
            steps = 2048 if names[name] == {} else 300
            began = time.perf_counter()
            model.learn(steps, reset_num_timesteps=turn == 0)
            if turn:
                rates[name].append(steps / (time.perf_counter() - began))
    if sbx:
        command = [str(sbx), str(ROOT / "scripts/peer_sbx_speed.py"), env, str(turns)]
        rates |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    chip = torch.backends.cpu.get_cpu_capability()
    path = SPEED / f"online_speed{'' if chip == 'AVX512' else f'-{chip.lower()}'}.json"
    atomic_write_json(path, {"env": env, "rates": rates, "versions": versions("cpu", 1)})
    print("\n".join(speed_table(json.loads(path.read_text()))))


def speed_table(raw: dict[str, Any]) -> list[str]:
    """Medians, and the ratio to stable-baselines3's method of the same kind."""
    medians = {name: float(np.median(found)) for name, found in raw["rates"].items()}
    rows = ["| method | environment steps a second | beside SB3's |", "| --- | --- | --- |"]
    for name, rate in medians.items():
        peer = medians[
            "sb3:PPO" if name in ("sb3:PPO", "ppo", "mdpo_on", "pmoe_ppo", "sbx:PPO") else "sb3:SAC"
        ]
        rows.append(f"| {name} | {rate:,.0f} | {rate / peer:.2f} |")
    return rows


def table(g: Group, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows of a group: medians and quartiles over seeds."""
    head = [
        "method",
        "settings",
        "seeds",
        f"training return at a quarter of the {g.unit}",
        "at half",
        "at the end",
        "mean of the curve",
    ]
    rows = [[*head, f"last policy, mean of {EPISODES} episodes", "env steps", "CPU s"]]
    rows.append(["---"] * len(rows[0]))
    axis = 0 if g.unit == "episodes" else 1
    for entry in g.entries:
        runs = found.get(entry.label, [])
        settings = ", ".join(f"{k} {v}" for k, v in {**entry.settings, **entry.options}.items())
        row = [entry.label, settings or "defaults", str(len(runs))]
        if not runs:
            rows.append([*row, "not run yet", *[""] * 6])
            continue
        for share in (0.25, 0.5, 1.0):
            at = [
                [p[2] for p in r["curve"] if p[axis] <= max(share * g.budget, r["curve"][0][axis])]
                for r in runs
            ]
            row.append(quartiles([values[-1] for values in at]))
        row.append(quartiles([area(r, g) for r in runs]))
        row.append(quartiles([float(np.mean(r["final_returns"])) for r in runs]))
        row += [f"{np.median([r['curve'][-1][1] for r in runs]):,.0f}"]
        rows.append([*row, f"{np.median([r['cpu_seconds'] for r in runs]):.0f}"])
    return [f"| {' | '.join(row)} |" for row in rows]


def curve_at(run: dict[str, Any], g: Group) -> tuple[np.ndarray, np.ndarray]:
    """Fifty marks of the budget, and the training return there."""
    grid, curve = np.linspace(0.02, 1.0, 50) * g.budget, np.array(run["curve"])
    return grid, np.interp(grid, curve[:, 0 if g.unit == "episodes" else 1], curve[:, 2])


def area(run: dict[str, Any], g: Group) -> float:
    """Area under a learning curve over the budget: its mean."""
    return float(curve_at(run, g)[1].mean())


def compared(pair: tuple[str, str], g: Group, found: dict[str, list[dict[str, Any]]]) -> str:
    """What the interval of the difference of two rows' areas says.

    Ours and theirs of one algorithm agree if it holds 0, or if the ratio is 0.9 to 1.1.
    """
    one, other = (np.array([area(r, g) for r in found.get(label, [])]) for label in pair)
    what = f"Areas, {pair[0]} against {pair[1]}: "
    if not len(one) or not len(other):
        return what + "not run yet."
    difference, ratio = one.mean() - other.mean(), one.mean() / other.mean()
    if min(len(one), len(other)) < SEEDS:
        pairs = (one[:, None] - other).ravel()
        return (
            f"{what}difference {difference:+.0f}, ratio {ratio:.2f} ({len(one)} and {len(other)} seeds; pairs of seeds "
            f"{pairs.min():+.0f} .. {pairs.max():+.0f}): too few for an interval and a verdict."
        )
    rng = np.random.default_rng(0)
    means = [rng.choice(x, (10_000, len(x))).mean(axis=1) for x in (one, other)]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    verdict = "above" if low > 0 else "below" if high < 0 else "not separable"
    if pair[0].endswith("of the core"):
        verdict = "they agree" if low <= 0 <= high or 0.9 <= ratio <= 1.1 else "they differ"
    seeds = f"bootstrap over {len(one)} and {len(other)} seeds"
    return (
        f"{what}difference {difference:+.0f}, 95 % interval {low:+.0f} .. {high:+.0f} ({seeds}), ratio {ratio:.2f}: "
        f"{verdict}."
    )


def quartiles(values: list[float]) -> str:
    """Median (lower .. upper quartile); a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.0f}"
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.0f} ({low:.0f} .. {high:.0f})"


def figure(name: str, g: Group, found: dict[str, list[dict[str, Any]]]) -> None:
    """Learning curves: median and quartiles over seeds, against the unit of the budget."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "online", "font.size": 9})
    from matplotlib import pyplot

    chart, axis = pyplot.subplots(figsize=(6, 3.6), constrained_layout=True)
    for k, entry in enumerate(g.entries):
        if runs := found.get(entry.label):
            marks = [curve_at(r, g) for r in runs]
            grid = marks[0][0]
            low, middle, high = np.quantile([at for _, at in marks], (0.25, 0.5, 0.75), axis=0)
            axis.plot(grid, middle, color=f"C{k}", label=entry.label)
            axis.fill_between(grid, low, high, color=f"C{k}", alpha=0.15, linewidth=0)
    axis.set(title=g.title, xlabel=g.unit, ylabel=f"return of the last {WINDOW} training episodes")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    chart.savefig(PAGE.with_name(f"online-{name}.svg"), metadata={"Date": None})


def made_with(versions: list[dict[str, Any]]) -> str:
    """Packages, commits and chips of all cells of a table."""
    found = {
        name: sorted({v[name] for v in versions}) for name in ("offrl", "commit", "torch", "mujoco", "cpu")
    }
    both = {name: " and ".join(values) for name, values in found.items()}
    return f"offrl {both['offrl']} ({both['commit']}), torch {both['torch']}, mujoco {both['mujoco']}, {both['cpu']}"


def page() -> None:
    """Write the page and its figures from the raw files."""
    lines = [
        "# Online methods",
        "",
        "Regenerate: `python scripts/bench_online.py run`, then `page`; raw numbers: ",
    ]
    lines[-1] += "`benchmarks/raw/online/*.json`."
    for name, g in GROUPS.items():
        found: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(RAW.glob(f"{name}-*.json")):
            raw = json.loads(path.read_text())
            found.setdefault(raw["label"], []).append(raw)
        lines += [
            "",
            f"## {g.title}",
            "",
            f"Budget: {g.budget:,} {g.unit} a run. ",
        ]
        lines[-1] += (
            "Medians over seeds, quartiles in brackets; training returns are of sampled actions, the last "
        )
        lines[-1] += f"policy's of its mean action. {g.note}"
        if found:
            figure(name, g, found)
            lines += ["", f"![Learning curves](online-{name}.svg)"]
            lines += [
                "",
                f"{made_with([raw['versions'] for runs in found.values() for raw in runs])}, one thread.",
            ]
        lines += ["", *table(g, found)]
        for pair in g.pairs:
            lines += ["", compared(pair, g, found)]
    for path in sorted(SPEED.glob("online_speed*.json"), reverse=True):
        raw, chip = json.loads(path.read_text()), path.stem.partition("-")[2].upper() or "AVX512"
        lines += ["", f"## Speed in {raw['env']}, one thread, {chip}", ""]
        lines[-1:] += [
            "`python scripts/bench_online.py speed`: methods in turn, default networks and batches; "
        ]
        lines[-1] += f"{raw['versions']['cpu']} with {chip}; medians."
        lines += ["", *speed_table(raw)]
    atomic_write_text(PAGE, "\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"plan": plan, "run": run, "page": page, "cell": cell, "speed": speed}
    )
