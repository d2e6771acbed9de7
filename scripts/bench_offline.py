"""The offline benchmark: cells, raw files, page.

    python scripts/bench_offline.py plan                    what would run, and the expected core-hours
    python scripts/bench_offline.py run --jobs 2 [--minutes 60] [--d3rlpy PYTHON] [--device cuda]
    python scripts/bench_offline.py page                    benchmarks/offline.md from benchmarks/raw/offline/*.json

Needs the sets of scripts/make_zoo.py. Cells of d3rlpy need a Python that has it (its own environment); their weights
are evaluated by offrl. Interrupted training cells resume; cells of d3rlpy start again.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from offrl.algos import ALGORITHMS, load_algorithm
from offrl.data.load import load_dataset
from offrl.data.normalize import ObservationNormalizer
from offrl.data.reference import normalized_score, reference_returns
from offrl.evaluation.aggregate import bootstrap_mean
from offrl.evaluation.rollout import Evaluator
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.policy import DeterministicPolicy
from offrl.sweeps.bands import LOCOMOTION, PUBLISHED
from offrl.training.build import dataset_env
from offrl.training.cells import Cell, RunCells, TrainingCell, planned
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, WORK, PAGE = ROOT / "benchmarks/raw/offline", ROOT / "runs/bench-offline", ROOT / "benchmarks/offline.md"
EPISODES, LAST = 20, 3
NORMALIZED_PEERS = ("td3_bc", "awac")  # the methods of d3rlpy whose observations are normalized


@dataclass(frozen=True)
class Entry:
    """One row of a table."""

    algorithm: str
    seconds: float  # a cell, rough, one core
    label: str = ""  # the algorithm's name if empty
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""  # the task's if empty
    preset: str | None = None  # the task's, where the method has it, if None
    seeds: tuple[int, ...] = ()  # the task's if empty

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.label or self.algorithm


@dataclass(frozen=True)
class Task:
    """One table: runs of several methods on one dataset."""

    dataset: str
    steps: int
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    about: str
    prefix: str  # of the cells' names
    preset: str | None = None  # of the methods that have it
    peers: tuple[str, ...] = ()  # methods of d3rlpy, with matched settings
    peer_seeds: tuple[int, ...] = (0, 1)
    peer_seconds: float = 0.0
    eval_every: int = 10_000
    episodes: int = EPISODES
    last: int = LAST  # evaluations in the closing mean
    claims: tuple[tuple[str, str], ...] = ()  # rows of which the first should be above the second
    reference: tuple[float, float] | None = None  # returns of scores 0 and 100, where D4RL has none

    def settings_of(self, entry: Entry) -> tuple[str | None, dict[str, Any]]:
        """Preset and settings of a row."""
        if entry.preset is not None:
            return entry.preset, entry.settings
        _, method = load_algorithm(entry.algorithm)
        known = self.preset is not None and any(self.preset.startswith(name) for name in method.presets)
        return (self.preset if known else None), entry.settings


_CORE = tuple(Entry(name, seconds) for name, seconds in (("td3_bc", 600), ("iql", 900), ("prdc", 1000)))
_SUITE = (
    *(Entry(name, seconds) for name, seconds in (("bc", 90), ("td3_bc", 200), ("iql", 280), ("awac", 500))),
    Entry("rebrac", 700, "rebrac (batch 256)", {"batch_size": 256}),
    Entry("fql", 1300, "fql (256 wide)", {"hidden": 256, "normalize_q": True, "alpha": 0.4}),
    *(Entry(name, seconds) for name, seconds in (("prdc", 280), ("a2pr", 1400))),
)
_ODICE = Entry("odice", 1000, "odice (lam 0.4)", {"lam": 0.4})
_PUBLISHED_LAM = Entry("odice", 1000, "odice (lam 0.6)", seeds=(0,))
_NORMALIZED_IQL = Entry("iql", 350, "iql (normalized)", {"normalize_observations": True})
_BASELINES = ("bc", "td3_bc", "iql")
_CLAIMS = tuple((ours, other) for ours in ("prdc", "a2pr", _ODICE.label) for other in _BASELINES)
_SPARSE = (
    *(e for e in _SUITE if e.algorithm in ("bc", "td3_bc", "iql", "prdc", "a2pr")),
    _ODICE,
    _PUBLISHED_LAM,
)
_DEMONSTRATIONS = "zoo/halfcheetah-demonstrations"  # 10 episodes
_IMITATION = {"lr": 1e-3, "policy_hidden": 256}
_IMITATORS = (
    Entry("bc", 60, "bc, demonstrations", dataset=_DEMONSTRATIONS),
    Entry("bc", 60, "bc, mixed set"),
    Entry(
        "odice", 480, "odice, demonstrations and mixed set",
        _IMITATION | {"expert_dataset": f"minari:{_DEMONSTRATIONS}-v0"}, preset="imitation-halfcheetah-",
    ),
)  # fmt: skip
_SCALED = {"normalize_observations": True, "return_range_scaling": True}
_PENDULUM = (
    Entry("bc", 30),
    Entry("td3_bc", 60, "td3_bc (alpha 10)", {"alpha": 10.0}),
    Entry("iql", 90, "iql (normalized, scaled)", _SCALED),
    Entry("odice", 200, "odice (lam 0.5, normalized)", _SCALED | {"lam": 0.5, "policy_hidden": 256}),
)
_HEAVY = (
    Entry("cql", 450),
    Entry("cal_ql", 300),
    Entry("sac_n", 320, "sac_n (N = 20)", {"num_critics": 20}),
    Entry("edac", 280, "edac (N = 10)", {"num_critics": 10}),
)
TASKS = (
    Task(
        "zoo/hopper-medium", 100_000, (0, 1, 2),
        (*_CORE, Entry("td3_bc", 500, "td3_bc bf16", options={"precision": "bf16"})),
        "Untuned, beside d3rlpy. Without reward scaling IQL's weights exp(3 A) pick a few rows (mean weight 8, limit "
        "100), and the policy of either library falls after some 40 steps (at 10 000 updates, one seed each: return 55 "
        "here, 58 for d3rlpy); with `--return-range-scaling` ours earned 824, with temperature 0 (cloning) 1486.",
        "hopper-medium", peers=("td3_bc", "iql"), peer_seconds=1500,
    ),
    Task(
        "zoo/walker2d-mixed", 50_000, (0, 1),
        tuple(replace(e, seeds=tuple(range(6))) if e.algorithm == "iql" else e for e in _CORE),
        "Untuned, beside d3rlpy. Of IQL more seeds: with two a side the difference was -21.5 (tolerance 5), because "
        "both of ours were bad ones. The mean weight of exp(3 A) is 18 here, so a few rows make the policy and seeds "
        "differ by tens of points. The update is d3rlpy's: from its weights, moments and batches, 20 updates of ours "
        "change each network as 20 of its own do, to 2e-5 of the change (at update 2000, 10 000 and 20 000), once ours "
        "is given its two differences: log-std through a sigmoid, and Q's target with V from before its step. All rows "
        "that d3rlpy drew are rows of ours, and its policies return the same through either library's network.",
        "walker2d-mixed", peer_seeds=(0, 1, 2),
        peers=("td3_bc", "iql"), peer_seconds=800,
    ),
    Task(
        "zoo/hopper-medium", 50_000, (0, 1),
        (*_SUITE, _ODICE, _PUBLISHED_LAM),
        "The suite, with each method's published settings for hopper-medium-v2 (ReBRAC's go with batches of 1024; "
        "A2PR's networks are one and two layers deeper than the others' and its discount is 0.995); ReBRAC and AWAC "
        "beside d3rlpy's, which differ in more than settings (`docs/from_d3rlpy.md`). FQL has no published settings "
        "for locomotion: here its four layers are 256 wide (512 in the paper); alpha 0.4 on the normalized Q is "
        "TD3+BC's balance (1 / 2.5). O-DICE's default lam, 0.6, gives weight 0 to 95 to 99.9 % of the rows here; 0.4 "
        "and 0.5 were tried on seed 100 (scores 45 and 40 after 20 000 updates, 10 episodes), as were IQL's "
        "temperature (0.5: 44, 3: 30, 10: 3) and TD3+BC's alpha (1: 34 after 85 at 10 000, 2.5: 35). The other rows "
        "keep published settings. At lam 0.4 O-DICE is close to BC by construction: its fixed point gives residuals a"
        " mean of 1 (measured on halfcheetah-medium-expert: effective sample size 0.88 of the rows, 0.5 % zero "
        "weights; at 0.5: 0.40 and 36 %). IQL, O-DICE and CQL ran with rewards scaled by 0.277: a piece of an episode"
        " that collection had cut off counted as one; whole episodes give 0.379, which is the rule now. d3rlpy's AWAC"
        " weighs rows by an unbounded softmax over the batch, ours (as CORL's) by exp(A / lam) cut at 100, and that "
        "is the whole gap: with d3rlpy's weights ours scores 5 on seed 0 (mean of its last five evaluations).",
        "hopper-medium-50k", preset="hopper-medium-v2", eval_every=5_000, last=5,
        peers=("rebrac", "awac"), peer_seconds=1200, claims=_CLAIMS,
    ),
    Task(
        "zoo/halfcheetah-medium-expert", 50_000, (0, 1), (*_SUITE, _NORMALIZED_IQL, _ODICE),
        "The suite, with each method's published settings for halfcheetah-medium-expert-v2, but for O-DICE's lam; FQL"
        " as on hopper-medium. A2PR's setting is from working notes of its authors, not final. These are made for 1M "
        "updates. Scores on seed 100 after 20 000 updates, 10 episodes: O-DICE with lam 0.5: 9, with 0.6 (its "
        "published default; weight 0 for 95 % of the rows): 2; TD3+BC with alpha 1: 64, with 2.5 (published): 43, "
        "with 5: 8; IQL with temperature 0.5: 11, with 3 (published): 4, with 10: 3. So O-DICE's lead over TD3+BC and"
        " IQL below is that of a searched setting over published ones: it stays at the level of BC, which TD3+BC with"
        " alpha 1 reaches too. Observations are normalized where the published setting does so (BC, TD3+BC, PRDC, "
        "A2PR, AWAC), and in short runs that decides: cloning scores 56 after 5000 updates with, 6 without (one seed,"
        " 4 episodes), IQL at temperature 0 44 and 4. The row *normalized* is IQL as CORL has it. PRDC's and A2PR's "
        "alpha of 40 was tuned for 1M updates of other data: TD3+BC with 40 falls here too (-2.5 after 5000 updates, "
        "13 with 2.5).",
        "halfcheetah-medium-expert", preset="halfcheetah-medium-expert-v2", eval_every=5_000, last=5, claims=_CLAIMS,
    ),
    Task(
        "zoo/pointmaze-umaze", 50_000, (0, 1), _SPARSE,
        "Sparse reward; success rate in %, 100 episodes an evaluation, settings of antmaze-umaze-v2.",
        "pointmaze-umaze", preset="antmaze-umaze-v2", episodes=100, last=5,
        claims=_CLAIMS,
    ),
    Task(
        "builtin:double-pendulum-demo", 10_000, (0, 1, 2), _PENDULUM,
        "The bundled data: 30 000 steps of policies from beginner to expert, most of them poor (mean return 280). 100"
        " is a return of 9360, the most that 1000 steps give. Searched on seed 100, scores after 10 000 updates: "
        "TD3+BC with alpha 1: 6, 2.5: 6, 10: 7; IQL as it comes: 8, normalized and with rewards scaled by the range "
        "of returns: 96, there with temperature 10: 72; O-DICE, one setting tried: 95; BC 17, at most 37 on the way; "
        "A2PR with mask 5: 8, also with alpha 0.5 and candidates from the prior: 10 (no row below).",
        "double-pendulum", eval_every=1_000, reference=(0.0, 9360.0),
        claims=tuple((_PENDULUM[3].label, entry.name) for entry in _PENDULUM[:3]),
    ),
    Task(
        "zoo/hopper-medium", 5_000, (0,), _HEAVY, "Costly methods, a tenth of the updates: no ranking follows.",
        "hopper-medium-5k", preset="hopper-medium-v2", eval_every=1_000, last=5,
    ),
    Task(
        "zoo/halfcheetah-medium-expert", 50_000, (0, 1, 2), _IMITATORS,
        "Imitation: no rewards. Ten demonstrations of the expert (tqc, another seed), beside them the set as "
        "unlabelled data, half of it the expert's. O-DICE at step size 1e-3 (official 1e-4 for 500 000 updates), "
        "its policy as wide as BC's. First run with 30 000 updates: 33.2 +- 1.8 with the mixed set against BC's "
        "25.4 +- 7.0 (+7.8, tolerance 8.3), its curves still rising, and 25.5 +- 16.8 from the demonstrations alone, "
        "falling; then the rows below anew with the suite's 50 000.",
        "imitation", claims=(("odice, demonstrations and mixed set", "bc, demonstrations"),),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Run(RunCells):
    """Run the cells that have no raw file yet."""

    jobs: int = 2
    """Processes at once, one thread each."""
    d3rlpy: Path | None = None
    """Python executable of an environment with d3rlpy; without it the peer's cells are left out."""
    device: str = "cpu"
    """On a GPU the missing seeds of a row are one cell, stacked, with --compile."""


@dataclass(frozen=True)
class PeerCell:
    """Train one peer cell and evaluate its weights (called by 'run')."""

    python: Path
    algorithm: str
    dataset: str
    steps: int
    seed: int
    every: int
    """Updates between evaluations."""
    last: int
    """How many evaluations, up to the end."""
    result: Path


def cells(python: Path | None, device: str = "cpu") -> list[tuple[Cell, float]]:
    """All cells with their expected seconds on a CPU; first seeds of everything come first."""
    found: list[tuple[int, Cell, float]] = []
    for task in TASKS:
        options = {
            "steps": task.steps,
            "rows": "qlearning",
            "eval_every": task.eval_every,
            "eval_episodes": task.episodes,
            "checkpoint_every": min(5_000, task.eval_every),
        }
        for entry in present(task):
            preset, settings = task.settings_of(entry)
            own = options | entry.options
            if device != "cpu":
                own |= {"device": device, "compile": True}
            dataset = entry.dataset or task.dataset
            uri = dataset if ":" in dataset else f"minari:{dataset}-v0"
            name = f"{task.prefix}-{re.sub('[^a-z0-9_]+', '_', entry.name).strip('_')}"
            for seeds in together(name, entry.seeds or task.seeds, device):
                cell = TrainingCell(entry.algorithm, uri, seeds[0], own, settings, preset)
                stack = cell.stack(
                    "-".join(map(str, (name, *seeds))), {k: f"{name}-{k}" for k in seeds}, RAW, WORK
                )
                found.append((seeds[0], stack, len(seeds) * entry.seconds))
        for algorithm in task.peers if python else ():
            for seed in task.peer_seeds:
                name = f"{task.prefix}-d3rlpy_{algorithm}-{seed}"
                command = ["--python", python, "--algorithm", algorithm, "--dataset", task.dataset]
                command += ["--steps", task.steps, "--every", task.eval_every, "--last", task.last]
                command += ["--seed", seed, "--result", RAW / f"{name}.json"]
                words = (sys.executable, __file__, "peer-cell", *map(str, command))
                found.append((seed, Cell(name, words, RAW / f"{name}.json"), task.peer_seconds))
    found.sort(key=lambda item: item[0])
    return [(cell, seconds) for _, cell, seconds in found]


def together(name: str, seeds: tuple[int, ...], device: str) -> list[tuple[int, ...]]:
    """The seeds of a row by cell: one each on a CPU, whose products fill a core; else the missing ones at once."""
    if device == "cpu":
        return [(seed,) for seed in seeds]
    missing = tuple(seed for seed in seeds if not (RAW / f"{name}-{seed}.json").exists())
    return [missing] if missing else []


def present(task: Task) -> list[Entry]:
    """The rows whose method exists here."""
    return [entry for entry in task.entries if entry.algorithm in ALGORITHMS]


def peer_cell(o: PeerCell) -> None:
    """Dump the rows, train d3rlpy on them in its own process, evaluate the weights, write the raw file."""
    folder = WORK / o.result.stem
    data = load_dataset(f"minari:{o.dataset}-v0")
    rows = data.transitions("qlearning")
    normalizer = ObservationNormalizer.fit(rows.observations)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "rows.npz",
        observations=data.fields["observations"],
        actions=data.fields["actions"],
        rewards=data.fields["rewards"],
        terminals=data.fields["terminated"],
        timeouts=data.fields["truncated"],
        mean=normalizer.mean.numpy(),
        std=normalizer.std.numpy(),
    )
    command = [str(o.python), str(ROOT / "scripts/peer_d3rlpy.py"), "--data", str(folder / "rows.npz")]
    command += ["--algorithm", o.algorithm, "--steps", str(o.steps), "--save-every", str(o.every)]
    subprocess.run([*command, "--seed", str(o.seed), "--out", str(folder)], check=True)
    facts = json.loads((folder / "facts.json").read_text())
    if facts["transitions"] != len(rows.rewards):
        raise RuntimeError(f"d3rlpy saw {facts['transitions']} transitions, offrl {len(rows.rewards)}")
    spec = dataset_env(data, None)
    evaluations = []
    with Evaluator(spec, workers=1) as evaluator:
        for step in range(o.steps - (o.last - 1) * o.every, o.steps + 1, o.every):
            policy = peer_policy(
                folder / f"actor-{step}.npz", normalizer if o.algorithm in NORMALIZED_PEERS else None
            )
            result = evaluator(policy, EPISODES, seed=o.seed, stream=step)
            evaluations.append({"step": step, "returns": result.returns.tolist()})
    record = {
        "config": {
            "algorithm": f"d3rlpy {o.algorithm}",
            "seed": o.seed,
            "steps": o.steps,
            "dataset": o.dataset,
        },
        "versions": versions("cpu", 1) | {"d3rlpy": facts["d3rlpy"]},
        "evaluations": evaluations,
        "seconds": facts["cpu_seconds"],
    }
    atomic_write_json(o.result, record)


def peer_policy(path: Path, normalizer: ObservationNormalizer | None) -> DeterministicPolicy:
    """d3rlpy's actor (its mean action) as our policy."""
    with np.load(path, allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    names = [
        name.removesuffix(".weight") for name in weights if name.endswith(".weight")
    ]  # input layer first
    layers = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]
    ones = torch.ones(len(layers[-1][1]))
    mean, std = (normalizer.mean, normalizer.std) if normalizer else (None, None)
    return DeterministicPolicy.from_params(layers, -ones, ones, mean, std)


def page() -> str:
    """The page, from the raw files alone."""
    lines = [
        "# Offline benchmark",
        "",
        "Regenerate: `python scripts/bench_offline.py page`. Raw numbers: `benchmarks/raw/offline/`.",
        "",
        "Same rows (D4RL's q-learning rule) and the same evaluation for all methods of a table; scores use D4RL's",
        "reference pair on the -v5 environments: they are not D4RL scores. *last k*: mean over the last k",
        "evaluations (20 episodes each unless said), its mean and standard deviation over seeds; beside it a",
        "bootstrap interval over these seeds' episodes, which says nothing of other seeds. *best* is chosen with",
        "online episodes. *paper* is the published score on D4RL's set of this name, after 1M updates: context,",
        "not a target (sources in `offrl/sweeps/bands.py`). A run counts only when it is finished. Where methods",
        "stand beside d3rlpy 2.8: batch 256, no reward scaling (TD3+BC, IQL: two hidden layers of 256; ReBRAC,",
        "AWAC: three); d3rlpy trains in its own environment with matched settings, and its weights are evaluated",
        "by offrl (the last k only: its *best* is of those).",
        "",
    ]
    seen: set[str] = set()
    for task in TASKS:
        records = _records(task)
        seen |= {_where(r) for group in records.values() for r in group}
        lines += [
            f"## {task.dataset}, {task.steps:,} steps".replace(",", " ").replace("  ", ", "),
            "",
            task.about,
            "",
        ]
        lines += [*_table(task, records), ""]
    lines += ["## Commits and hardware", "", *(f"* {where}" for where in sorted(seen))]
    return "\n".join(lines) + "\n"


def _records(task: Task) -> dict[str, list[dict[str, Any]]]:
    """Raw files of a task by row."""
    found: dict[str, list[dict[str, Any]]] = {}
    names = {re.sub("[^a-z0-9_]+", "_", e.name).strip("_"): e.name for e in task.entries}
    names |= {f"d3rlpy_{peer}": f"d3rlpy {peer}" for peer in task.peers}
    for slug, name in names.items():
        paths = [RAW / f"{task.prefix}-{slug}-{seed}.json" for seed in range(10)]
        found[name] = [json.loads(path.read_text()) for path in paths if path.exists()]
    return found


def _table(task: Task, records: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        f"| algorithm | seeds | last | last {task.last} (mean +- std) | 95 % (episodes) | best | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    means = {}
    for name in (*(e.name for e in present(task)), *(f"d3rlpy {p}" for p in task.peers)):
        runs = records[name]
        paper = _paper(task, name)
        if not runs:
            lines.append(f"| {name} | 0 | not run yet | | | | {paper} |")
            continue
        curves = [[_scores(task, e) for e in r["evaluations"]] for r in runs]
        last = [np.concatenate(c[-task.last :]) for c in curves]
        means[name] = np.array([scores.mean() for scores in last])
        spread = f" +- {means[name].std(ddof=1):.1f}" if len(runs) > 1 else ""
        low, high = bootstrap_mean(np.stack(last).mean(axis=0), rng=np.random.default_rng(0))
        numbers = (
            f"{np.mean([c[-1].mean() for c in curves]):.1f}",
            f"{means[name].mean():.1f}{spread}",
            f"{low:.1f} .. {high:.1f}",
            f"{np.mean([max(e.mean() for e in c) for c in curves]):.1f}",
        )
        lines.append(f"| {name} | {len(runs)} | {' | '.join(numbers)} | {paper} |")
    named = {e.algorithm: e.name for e in reversed(task.entries)}  # the first row of a method
    pairs = [(named[peer], f"d3rlpy {peer}") for peer in task.peers]
    pairs += [(e.name, e.algorithm) for e in task.entries if e.options]
    said = [_agreement(ours, other, means) for ours, other in pairs]
    said += [_claim(ours, other, means) for ours, other in task.claims]
    return lines + [line for verdict in said for line in ("", verdict)]


def _scores(task: Task, evaluation: dict[str, Any]) -> np.ndarray:
    """Of an evaluation's episodes: normalized returns, or 100 for a success where the dataset has no reference pair."""
    pair = task.reference or reference_returns(task.dataset)
    if pair is None:
        return 100.0 * np.array(evaluation["successes"])
    return normalized_score(pair, np.array(evaluation["returns"]))


def _paper(task: Task, name: str) -> str:
    """The published score on D4RL's set of the same kind, where there is one."""
    entry = next((e for e in present(task) if e.name == name), None)
    if entry is None or task.preset not in LOCOMOTION or entry.algorithm not in PUBLISHED:
        return ""
    return f"{PUBLISHED[entry.algorithm].means[LOCOMOTION.index(task.preset)]:.1f}"


def _gap(ours: str, other: str, means: dict[str, np.ndarray]) -> tuple[float, float, str] | None:
    """Difference of two rows, its tolerance max(5, 2 standard errors), and a word on single seeds."""
    a, b = means.get(ours), means.get(other)
    if a is None or b is None:
        return None
    few = (
        ""
        if min(len(a), len(b)) > 1
        else " (one seed on a side: no standard error, the tolerance is the floor of 5)"
    )
    errors = sum(x.var(ddof=1) / len(x) for x in (a, b)) if not few else 0.0
    return a.mean() - b.mean(), max(5.0, 2 * np.sqrt(errors)), few


def _agreement(ours: str, other: str, means: dict[str, np.ndarray]) -> str:
    """Whether two rows that should agree do."""
    if (found := _gap(ours, other, means)) is None:
        return f"{ours} against {other}: not run yet."
    gap, limit, few = found
    verdict = "within" if abs(gap) <= limit else "OUTSIDE"
    return f"{ours} against {other}: difference {gap:+.1f}, tolerance {limit:.1f}: {verdict}{few}."


def _claim(ours: str, other: str, means: dict[str, np.ndarray]) -> str:
    """Whether a row is above another, as its paper says."""
    if (found := _gap(ours, other, means)) is None:
        return f"Is {ours} above {other}? Not run yet."
    gap, limit, few = found
    verdict = "yes" if gap > limit else "no, below" if gap < -limit else "not clearly"
    return f"Is {ours} above {other}? Difference {gap:+.1f}, tolerance {limit:.1f}: {verdict}{few}."


def _where(record: dict[str, Any]) -> str:
    v = record["versions"]
    libraries = f"torch {v['torch']}, mujoco {v['mujoco']}"
    chip = v["cpu"] if v["device"] == "cpu" else f"{v['device']} (seeds stacked, --compile)"
    return f"offrl {v['offrl']} ({v['commit']}), {libraries}, {chip}, {v['threads']} thread"


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "plan":
        print(planned(cells(Path(rest[0]) if rest else Path("d3rlpy"))))
    elif word == "run":
        o = tyro.cli(Run, args=rest)
        o.run(lambda: [cell for cell, _ in cells(o.d3rlpy, o.device)], WORK / "logs", print)
    elif word == "peer-cell":
        peer_cell(tyro.cli(PeerCell, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
