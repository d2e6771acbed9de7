"""Sixteen methods for language models against GRPO, Dr. GRPO and REINFORCE, where the claim of each would show.

    python scripts/bench_llm.py plan                       what would run, and the expected core-hours
    python scripts/bench_llm.py run [--minutes 60] [--only NAME] [--smoke]
    python scripts/bench_llm.py page                       benchmarks/llm.md from benchmarks/raw/llm/*.json

A cell is an arm's search of its learning rate (half a run a rate, on a seed that is not reported) or one seed of it.
All searches come first. --smoke runs everything in minutes, into runs/bench-llm-smoke, and is good for nothing else.
"""

import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from offrl.files import atomic_write_json, atomic_write_text
from offrl.llm.evaluate import evaluate
from offrl.llm.generate import sample
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.score import score
from offrl.llm.session import accuracy_row
from offrl.llm.tasks import load_task
from offrl.llm.text import BOS, Prompts
from offrl.training.cells import Cell, RunCells, planned
from offrl.training.run_dir import versions
from offrl.training.seeding import stream

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks/llm.md"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    share: float = 1.0
    points: int = 10
    prompts: int = 256
    samples: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)
    search_seed: int = 100
    resamples: int = 64
    raw: Path = ROOT / "benchmarks/raw/llm"
    work: Path = ROOT / "runs/bench-llm"


FULL = Sizes()
SMOKE = Sizes(
    0.02, 2, 8, 16, (0,), 100, 4, ROOT / "runs/bench-llm-smoke/raw", ROOT / "runs/bench-llm-smoke/work"
)


@dataclass(frozen=True)
class Arm:
    """A method as one experiment runs it."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    calibrate: float = 0.0
    """CAPO's bounds are this times the 95th percentiles of its moves in the first steps of the search seed."""

    @property
    def name(self) -> str:
        """In files and tables."""
        return self.label or self.method


@dataclass(frozen=True)
class Experiment:
    """A task and a setting that several methods share, with their baselines."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    steps: int
    options: dict[str, Any]
    seconds: float
    """Expected of a report cell, on one core."""
    lrs: tuple[float, ...] = (3e-4, 1e-3)
    start: str = ""
    """A supervised start, by its name in STARTS."""
    columns: tuple[str, ...] = ("accuracy", "pass@16", "entropy", "zero variance")
    curves: tuple[str, str] = ("sampled", "entropy")

    def arm(self, name: str) -> Arm:
        """By its name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    smoke: bool = False
    """Everything, tiny."""


@dataclass(frozen=True)
class CellOptions:
    """One cell (called by 'run')."""

    experiment: str
    arm: str = ""
    seed: int = -1
    """-1: the search of the learning rate."""
    smoke: bool = False


def baselines(**settings: Any) -> tuple[Arm, ...]:
    """Those of every experiment."""
    return tuple(Arm(name, settings) for name in ("grpo", "dr_grpo", "reinforce"))


def t3(beta: float, *arms: Arm) -> Experiment:
    """Known targets: the reward less beta times the KL to the first model."""
    given = {"task": "t3", "model": "tiny:table", "prompts": 8, "group": 32, "max_grad_norm": 1e9}
    both = (Arm("rloo", {"kl": beta}), Arm("p3o", {"kl": beta}))
    return Experiment(
        f"t3-beta{beta:g}", f"t3, KL coefficient {beta:g}", (*baselines(kl=beta), *both, *arms), 500, given, 9.0,
        (0.02, 0.05), columns=("tv to target", "gap", "exact reward", "exact kl"), curves=("tv", "kl_to_base"),
    )  # fmt: skip


def large_lr(lr: float) -> Experiment:
    """Small batches, large learning rates, no warm-up."""
    return Experiment(
        f"t2-lr{lr:g}", f"t2, batches of 64 at a learning rate of {lr:g}",
        (*baselines(), Arm("capo", calibrate=1.0), Arm("capo", label="capo-tight", calibrate=0.1)), 400,
        {"task": "t2", "prompts": 8, "group": 8}, 22.0, (lr,), start="t2",
        columns=("accuracy", "best", "fall", "entropy", "rejected"),
    )  # fmt: skip


T1 = {"task": "t1", "prompts": 32, "group": 16}
T2 = {"task": "t2", "prompts": 32, "group": 8, "warmup": 20}
COV = {"quantiles": True, "cov_low": 0.95, "cov_high": 0.999, "share": 0.01}
PUBLISHED = {"bypass": True}
EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "t1", "t1, one update a batch", (*baselines(), Arm("beta_norm"), Arm("oblr_po")), 400, T1, 30.0,
            columns=("accuracy", "pass@16", "entropy", "zero variance", "gradient norm cv"),
        ),
        Experiment(
            "t1-four", "t1, four updates a batch",
            (*baselines(), Arm("gspo"), Arm("clip_cov", COV), Arm("kl_cov", {"share": 0.02}), Arm("real"), Arm("pacs")),
            300, {**T1, "minibatches": 4}, 38.0,
            columns=("accuracy", "pass@16", "entropy", "zero variance", "log ratio"),
        ),
        large_lr(1e-3), large_lr(3e-3),
        Experiment(
            "t1-moe", "t1, a mixture of experts that samples in 8 bits, four updates a batch",
            (*baselines(), *(Arm("minirl", {"replay": r}, label=f"minirl-{r}") for r in ("none", "R2", "R3"))),
            200, {**T1, "model": "tiny:moe", "engine": "fp8", "minibatches": 4}, 36.0,
            columns=("accuracy", "best", "entropy", "engine gap", "log ratio"), curves=("sampled", "engine_gap"),
        ),
        Experiment(
            "t2", "t2, after supervised running sums", (
                *baselines(), Arm("dapo"), Arm("adora", {"criterion": "difficulty"}), Arm("d3s"), Arm("copo"),
            ), 250, T2, 28.0, start="t2",
            columns=("accuracy", "7-8 digits", "maj@8", "answer entropy", "zero variance", "tokens kept"),
        ),
        t3(0.5), t3(1.0, *(
            Arm("fdpg", {"divergence": d}, label=f"fdpg-{d}") for d in ("js", "kl", "reverse_kl", "tv")
        )), t3(2.0),
        Experiment(
            "t3-offline", "t3, every sample from the first model", (
                Arm("grpo", {"kl": 1.0}, PUBLISHED), Arm("dr_grpo", {"kl": 1.0}, PUBLISHED),
                Arm("reinforce", {"kl": 1.0}), Arm("copg", {"kl": 1.0}),
            ), 500, {**t3(1.0).options, "delay": 500}, 9.0, (0.02, 0.05),
            columns=("tv to target", "gap", "exact reward", "exact kl"), curves=("tv", "kl_to_base"),
        ),
        Experiment(
            "t5", "t5, three rewards", (*baselines(), Arm("gdpo")), 250, {"task": "t5", "prompts": 32, "group": 8},
            26.0, start="t5", columns=("format", "length", "correct", "correct, area", "zero variance"),
            curves=("reward_format", "reward_correct"),
        ),
        Experiment(
            "t1-held-out", "t1, prompts that the start never solves", (*baselines(), Arm("sft", options={"group": 1}),
            Arm("hpt")), 150, {"task": "t1", "prompts": 32, "group": 8}, 12.0, start="misled",
            columns=("held out", "others", "zero variance", "entropy"), curves=("held_out", "others"),
        ),
    )
}  # fmt: skip
VARIANCE = (
    "reinforce",
    "rloo",
    "dr_grpo",
    "grpo",
    *(f"oblr_po-{p}" for p in ("energy", "last_layer", "length")),
)


# supervised starts


class Misled:
    """T1 where demonstrations of a seventh of the prompts are wrong: what a first supervised stage may have learnt."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """Those of t1, five off where the prompt is held out."""
        tokens: Tensor = self.of.demonstrations(prompts, generator, noise)
        wrong = self.of.zero + (tokens - self.of.zero + 5) % 10
        return torch.where(held_out(prompts)[:, None] & (torch.arange(2) == 0), wrong, tokens)


def held_out(prompts: Prompts) -> Tensor:
    """(N,) bool."""
    return prompts.ids % 7 == 0


STARTS: dict[
    str, tuple[str, int, float, float]
] = {  # task, steps of 128 demonstrations, learning rate, noise
    "t2": ("t2", 300, 1e-3, 0.3),
    "t5": ("t5", 300, 1e-3, 0.5),
    "misled": ("t1", 600, 3e-3, 0.0),
}


def started(name: str, sizes: Sizes) -> dict[str, Tensor]:
    """Weights after a supervised stage."""
    task_name, steps, lr, noise = STARTS[name]
    task = load_task(task_name)
    task = Misled(task) if name == "misled" else task  # type: ignore[assignment]
    return supervised(sizes.work / f"start-{name}.pt", task, max(int(sizes.share * steps), 1), lr, noise)


def supervised(path: Path, task: Any, steps: int, lr: float, noise: float) -> dict[str, Tensor]:
    """Weights after steps of 128 demonstrations with seed 0; kept at ``path``."""
    if path.exists():
        return torch.load(path, weights_only=True)
    method, options = load_method("sft"), LLMOptions(prompts=128, group=1, lr=lr, task=task.name)
    policy = load_model("tiny:dense", task, 0)
    learner = Learner(method, method.config(noise=noise), task, policy, options)
    for _ in range(steps):
        learner.update()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    torch.save(policy.state_dict(), beside)
    beside.replace(path)
    return policy.state_dict()


# what is measured


def measured(learner: Learner, e: Experiment, sizes: Sizes, name: str) -> dict[str, float]:
    """Accuracies, and what only this task can tell."""
    policy, task, seed = learner.policy, learner.task, learner.options.seed
    if e.start == "misled":
        return of_held_out(policy, task)
    found = evaluate(policy, task, prompts=sizes.prompts, samples=sizes.samples, seed=seed, name=name)
    row = accuracy_row(found, sizes.samples)
    if task.name == "t2":
        row |= agreement(policy, task, sizes, seed)
    if task.name == "t3":
        row |= exact(policy, task, float(e.name.removeprefix("t3-beta")) if "beta" in e.name else 1.0)
    return row


def of_held_out(policy: Any, task: Any) -> dict[str, float]:
    """Accuracy on the held-out prompts and on the others: 32 samples of each of the 100."""
    digits = torch.cartesian_prod(torch.arange(10), torch.arange(10)) + task.zero
    ends = torch.tensor([[BOS, task.equals]]).expand(100, 2)
    tokens, ones = torch.cat([ends[:, :1], digits, ends[:, 1:]], dim=1), torch.ones(100).long()
    prompts = Prompts(tokens, tokens >= 0, 4 * ones, torch.arange(100), ones)
    found = sample(policy, prompts, copies=32, generator=torch.Generator().manual_seed(0))
    right = task.success(prompts.repeat(32), found).view(100, 32).float().mean(dim=1)
    mine = held_out(prompts)
    return {
        "held_out": float(right[mine].mean()),
        "others": float(right[~mine].mean()),
        "sampled": float(right.mean()),
    }


def agreement(policy: Any, task: Any, sizes: Sizes, seed: int) -> dict[str, float]:
    """Whether the most frequent of eight answers is right, and the entropy of the eight in bits."""
    prompts = task.prompts(sizes.prompts, stream(seed, "agreement prompts"))
    found = sample(policy, prompts, copies=8, generator=stream(seed, "agreement"))
    many = prompts.repeat(8)
    answers, right = task.final_answers(many, found).view(-1, 8), task.success(many, found).view(-1, 8)
    most = answers.mode(dim=1, keepdim=True).values
    alike = (answers[:, :, None] == answers[:, None, :]).float().mean(dim=2)
    majority = (right & (answers == most)).any(dim=1).float().mean()
    return {"maj_at_8": float(majority), "answer_entropy": float(-alike.log2().mean())}


@torch.no_grad()
def exact(policy: Any, task: Any, beta: float) -> dict[str, float]:
    """Of t3 by enumeration: distance to a exp(r / beta) / Z, the objective's gap to its best value, reward, KL to a."""
    prompts = task.prompts(1, torch.Generator().manual_seed(0)).repeat(len(task.strings))
    log_p = score(policy, prompts.tokens, prompts.mask, task.strings).log_probs.double().sum(dim=1)
    contains, palindrome = task.features(task.strings)
    rewards, log_a = 2.0 * contains.double() + 3.0 * palindrome.double(), task.base_log_probs()
    target = (log_a + rewards / beta).log_softmax(dim=0)
    p = log_p.exp()
    return {
        "tv": float(0.5 * (p - target.exp()).abs().sum()),
        "gap": float(beta * (p * (log_p - target)).sum()),
        "reward": float((p * rewards).sum()),
        "kl_to_base": float((p * (log_p - log_a)).sum()),
    }


# cells


def built(e: Experiment, arm: Arm, lr: float, seed: int, steps: int, sizes: Sizes) -> Learner:
    """A learner at its start."""
    method = load_method(arm.method)
    given = {**e.options, **arm.options, "lr": lr, "seed": seed, "steps": steps}
    options = LLMOptions(**given)
    task = load_task(options.task)
    policy = load_model(options.model, task, seed)
    if e.start:
        policy.load_state_dict(started(e.start, sizes))
    return Learner(method, method.config(**arm.settings), task, policy, options)


def train(e: Experiment, arm: Arm, lr: float, seed: int, share: float, sizes: Sizes) -> dict[str, Any]:
    """Train for an equal number of rollouts (demonstrations: of steps), measured at equal distances."""
    steps = max(round(share * sizes.share * e.steps), sizes.points)
    learner = built(e, arm, lr, seed, steps, sizes)
    budget = steps * e.options["prompts"] * e.options["group"]
    points: list[dict[str, float]] = [{"rollouts": 0, **measured(learner, e, sizes, "0")}]
    norms: list[float] = []
    began = time.process_time()
    for k in range(1, sizes.points + 1):
        sums: dict[str, float] = {}
        number = 0
        while learner.steps < steps * k / sizes.points and learner.rollouts < budget:
            for name, value in learner.update().items():
                sums[name] = sums.get(name, 0.0) + float(value)
                norms += [float(f"{float(value):.4g}")] if name == "grad_norm" else []
            number += 1
        means = {name: value / number for name, value in sums.items()} if number else {}
        counters = {"rollouts": learner.rollouts, "tokens": learner.tokens, "updates": learner.updates}
        row = counters | means | measured(learner, e, sizes, str(k))
        points.append({name: float(f"{value:.5g}") for name, value in row.items()})
    return {
        "lr": lr,
        "seed": seed,
        "points": points,
        "grad_norms": norms,
        "cpu_seconds": time.process_time() - began,
    }


def calibrated(e: Experiment, arm: Arm, sizes: Sizes) -> Arm:
    """CAPO with bounds from the 95th percentiles of its moves over the first 20 steps that taught something."""
    free = replace(arm, settings={"tau_f": 1e9, "tau_h": 1e9})
    learner = built(e, free, e.lrs[0], sizes.search_seed, 20, sizes)
    seen = [found for found in (learner.update() for _ in range(20)) if float(found.get("m_f_95", 0.0)) > 0.0]
    bounds = {
        f"tau_{x}": arm.calibrate * float(torch.stack([f[f"m_{x}_95"] for f in seen]).mean()) for x in "fh"
    }
    return replace(arm, settings={**arm.settings, **{name: float(f"{x:.3g}") for name, x in bounds.items()}})


def search(e: Experiment, arm: Arm, sizes: Sizes) -> dict[str, Any]:
    """Half a run with each learning rate; the best by accuracy at its end (t3: by total variation)."""
    arm = calibrated(e, arm, sizes) if arm.calibrate else arm
    runs = [train(e, arm, lr, sizes.search_seed, 0.5, sizes) for lr in e.lrs] if len(e.lrs) > 1 else []
    scores = {f"{run['lr']:g}": quality(e, run) for run in runs}
    best = max(runs, key=lambda run: quality(e, run))["lr"] if runs else e.lrs[0]
    return {"lr": best, "scores": scores, "settings": arm.settings, "seed": sizes.search_seed}


def quality(e: Experiment, run: dict[str, Any]) -> float:
    """What a learning rate is chosen by."""
    last = run["points"][-3:]
    name, sign = ("tv", -1.0) if e.name.startswith("t3") else ("sampled", 1.0)
    return sign * sum(point[name] for point in last) / len(last)


def variance(seed: int, sizes: Sizes) -> dict[str, Any]:
    """Relative variance of each estimator's gradient at one policy, from the same rollouts: tr Cov / |mean|^2."""
    e = EXPERIMENTS["t1"]
    learner = built(e, e.arm("dr_grpo"), 1e-3, seed, 400, sizes)
    for _ in range(max(int(75 * sizes.share), 1)):
        learner.update()
    rows = {}
    for name in VARIANCE:
        method, _, proxy = name.partition("-")
        arm = Arm(method, {"proxy": proxy, "adapt": False} if proxy else {}, {"max_grad_norm": 1e9})
        made = built(e, arm, 1e-30, seed, 400, sizes)
        made.policy.load_state_dict(copy.deepcopy(learner.policy.state_dict()))
        total = torch.zeros(sum(p.numel() for p in made.parameters), dtype=torch.float64)
        squares, n = 0.0, sizes.resamples
        for _ in range(n):
            made.update()
            gradient = torch.cat([p.grad.flatten() for p in made.parameters if p.grad is not None]).double()
            total, squares = total + gradient, squares + float(gradient.square().sum())
        size = float((total / n).square().sum())
        trace = (squares - n * size) / (n - 1)
        rows[name] = {"relative_variance": trace / max(size - trace / n, 1e-30), "trace": trace}
    return {"seed": seed, "rows": rows, "resamples": sizes.resamples}


def run_cell(o: CellOptions) -> None:
    """Write one raw file."""
    sizes = SMOKE if o.smoke else FULL
    torch.set_num_threads(1)
    if o.experiment == "variance":
        record = variance(o.seed, sizes)
    else:
        e = EXPERIMENTS[o.experiment]
        arm = e.arm(o.arm)
        if o.seed < 0:
            record = search(e, arm, sizes)
        else:
            found = json.loads((sizes.raw / f"{e.name}-{arm.name}-lr.json").read_text())
            record = train(e, replace(arm, settings=found["settings"]), found["lr"], o.seed, 1.0, sizes)
    record |= {"cell": asdict(o), "versions": versions("cpu", 1)}
    atomic_write_json(sizes.raw / f"{cell_name(o)}.json", record)


def cell_name(o: CellOptions) -> str:
    """Of its raw file."""
    parts = (o.experiment, o.arm, "lr" if o.seed < 0 else str(o.seed))
    return "-".join(part for part in parts if part)


def cells(sizes: Sizes) -> list[tuple[Cell, float]]:
    """All, searches first, then seed by seed, with expected seconds on one core."""
    found: list[tuple[Cell, float]] = []

    def add(o: CellOptions, seconds: float) -> None:
        words = [sys.executable, __file__, "cell", "--experiment", o.experiment, "--seed", str(o.seed)]
        words += ["--arm", o.arm] if o.arm else []
        words += ["--smoke"] if o.smoke else []
        found.append((Cell(cell_name(o), tuple(words), sizes.raw / f"{cell_name(o)}.json"), seconds))

    for seed in (-1, *sizes.seeds):
        for e in EXPERIMENTS.values():
            for arm in e.arms:
                seconds = e.seconds if seed >= 0 or len(e.lrs) > 1 else 6.0
                add(CellOptions(e.name, arm.name, seed, sizes is SMOKE), seconds)
        if seed >= 0:
            add(CellOptions("variance", "", seed, sizes is SMOKE), 45.0)
    return found


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(FULL)))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        sizes = SMOKE if o.smoke else FULL
        o.run(lambda: [cell for cell, _ in cells(sizes)], sizes.work / "logs", print, ("-lr", ""))
    elif word == "cell":
        run_cell(tyro.cli(CellOptions, args=rest))
    elif word == "page":
        from bench_llm_page import page

        atomic_write_text(PAGE, page(FULL))
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
