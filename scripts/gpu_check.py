"""What a GPU must do like the CPU, and how fast stacked seeds are on it.

    python scripts/gpu_check.py run [--device cuda]    every method's updates, neighbours, log-probabilities; seeds
    python scripts/gpu_check.py seeds [--minutes 8.5]  ten stacked seeds of TD3+BC, 1M updates: a piece, or what is left
    python scripts/gpu_check.py page                   benchmarks/gpu.md from benchmarks/raw/gpu/*.json

Random numbers are drawn on the CPU and copied, so that both devices see the same ones. Exits with 1 if a check fails.
"""

import contextlib
import itertools
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from torch import Tensor

import offrl
from offrl.algos import ALGORITHMS, CHUNKS, MODELS, ONLINE, load_algorithm, load_online
from offrl.data.neighbours import NeighbourIndex
from offrl.estimators.low_memory import from_logits, log_probs_and_entropy
from offrl.evaluation.runs import read_run
from offrl.files import atomic_write_json, atomic_write_text
from offrl.online.options import OnlineOptions
from offrl.online.runner import vector_env
from offrl.training.check import batches, small_settings, tiny_problem
from offrl.training.checkpoint import load_checkpoint
from offrl.training.problem import Problem
from offrl.training.run_dir import RunDir, versions
from offrl.training.seeding import seed_globally, stream

ROOT = Path(__file__).resolve().parents[1]
offrl.__path__.append(str(ROOT))  # a checkout that is not installed (PYTHONPATH=.) finds policies and envs so
RAW, PAGE = ROOT / "benchmarks/raw/gpu", ROOT / "benchmarks/gpu.md"
UPDATES, TOLERANCE = 5, 1e-4  # of weights and metrics, relative to 1 + |value|
MODES = (False, True)  # eager, and as CUDA graphs
METHODS = (*ALGORITHMS, *CHUNKS, *MODELS)
TINY_ENV = "InvertedPendulum-v5"
SMALL_OFF = {"learning_starts": 40, "batch_size": 8, "hidden": 8}
SMALL_ON = {"rollout": 60, "batch_size": 20, "hidden": 8}
SMALL_ONLINE: dict[str, tuple[dict[str, Any], int]] = {  # settings, and steps of a run with a few updates
    **dict.fromkeys(("sac", "mdpo_off", "pmoe_sac"), (SMALL_OFF, 45)),
    **dict.fromkeys(("ppo", "mdpo_on", "pmoe_ppo"), (SMALL_ON, 60)),
    **dict.fromkeys(("n_pg_igt", "harpg", "policy_gradient"), ({}, 60)),
}


@dataclass(frozen=True)
class Run:
    """Run all checks on one device."""

    device: str = "cuda"
    """The device that is compared with the CPU."""
    rows: int = 100_000
    """Rows of the neighbour check."""
    tokens: int = 4096
    """Tokens of the log-probability check."""
    words: int = 50_000
    """Its vocabulary."""
    steps: int = 300
    """Updates of the timing of stacked seeds."""
    out: Path = RAW
    """Folder of the raw file."""


@dataclass(frozen=True)
class Seeds:
    """Train stacked seeds of TD3+BC for some minutes; the next call goes on where this one stopped."""

    minutes: float = 8.5
    """After these the piece ends with a checkpoint."""
    device: str = "cuda"
    """Where they train; on a GPU as CUDA graphs."""
    seeds: int = 10
    """How many, from seed 0 on."""
    steps: int = 1_000_000
    """Updates of each, in all pieces together."""
    dataset: str = "minari:zoo/hopper-medium-v0"
    """What they train on."""
    eval_every: int = 100_000
    """Updates between evaluations."""
    episodes: int = 10
    """Episodes of an evaluation, each seed."""
    workers: int = 1
    """Processes that evaluate."""
    work: Path = ROOT / "runs/gpu-seeds"
    """Folder of the run directories."""
    out: Path = RAW
    """Folder of the raw file."""


@contextlib.contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """Draws from a generator of another device come from a CPU generator with the same seed."""
    twins: dict[int, tuple[torch.Generator, torch.Generator]] = {}

    def mirrored(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
            if generator is None or generator.device.type == "cpu":
                return draw(*args, generator=generator, **kwargs)
            seeded = torch.Generator().manual_seed(generator.initial_seed())
            twin = twins.setdefault(id(generator), (seeded, generator))[0]
            kwargs.pop("device", None)
            return draw(*args, generator=twin, **kwargs).to(generator.device)

        return wrapped

    uniform, normal = mirrored(torch.rand), mirrored(torch.randn)

    def like(draw: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: draw(x.shape, dtype=x.dtype).to(x.device)

    def bernoulli_(self: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
        return self.copy_(uniform(self.shape, generator=generator) < p)

    def normal_(
        self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.copy_(mean + std * normal(self.shape, generator=generator))

    with contextlib.ExitStack() as stack:
        for name in ("randn", "rand", "randint"):
            stack.enter_context(mock.patch.object(torch, name, mirrored(getattr(torch, name))))
        for name, draw in (("randn_like", normal), ("rand_like", uniform)):
            stack.enter_context(mock.patch.object(torch, name, like(draw)))
        for own in (bernoulli_, normal_):
            stack.enter_context(mock.patch.object(Tensor, own.__name__, own))
        yield


def on(problem: Problem, device: str) -> Problem:
    """The same problem on another device."""
    moved = {f.name: getattr(problem, f.name) for f in fields(problem)}
    tensors = {name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)}
    return replace(problem, **tensors, device=torch.device(device))


def parity(name: str, device: str, graphs: bool = False) -> float:
    """Largest difference of policy weights and metrics after some updates, relative to 1 + |value|."""
    _, method = load_algorithm(name)
    found = []
    for place, compiled in (("cpu", False), (device, graphs)):
        seed_globally(0)
        problem = replace(on(tiny_problem((0, 1)), place), compile=compiled)
        config = method.config() if name in ALGORITHMS else method.config(**small_settings(method))
        learner = method.learner(problem, config)
        logs = [learner.update(batch) for batch in itertools.islice(batches(method, problem), UPDATES)]
        weights = [p.detach().cpu() for k in (0, 1) for p in learner.policy(k).parameters()]
        found.append(
            weights + [value.detach().float().cpu() for log in logs for _, value in sorted(log.items())]
        )
    return apart(*found)


def apart(here: list[Tensor], there: list[Tensor]) -> float:
    """Largest difference, relative to 1 + |value|; NaN if there is one."""
    pairs = zip(here, there, strict=True)
    return float(torch.stack([((a - b).abs() / (1 + a.abs())).max() for a, b in pairs]).max())


def online_parity(name: str, device: str) -> float:
    """Largest difference of weights after a short run in an environment, relative to 1 + |value|."""
    (settings, steps), method, found = SMALL_ONLINE[name], load_online(name), []
    for place in ("cpu", device):
        seed_globally(0)
        env = vector_env(TINY_ENV, OnlineOptions(env=TINY_ENV, seed=0), 0.99)
        model = method.model(method.config(**settings), env, 0, place)
        before = [p.detach().cpu().clone() for p in model.policy.parameters()]
        model.learn(steps)
        found.append([p.detach().cpu() for p in model.policy.parameters()])
        env.close()
        if all(map(torch.equal, before, found[-1])):
            raise RuntimeError(f"{name} learned nothing in {steps} steps")
    return apart(*found)


def neighbours(device: str, rows: int) -> int:
    """How many of 512 queries find another row on the device than the CPU's search."""
    generator = stream(0, "neighbours")
    observations = torch.randn(rows, 17, generator=generator)
    actions = torch.rand(rows, 6, generator=generator) * 2 - 1
    asked = torch.randint(rows, (512,), generator=generator)
    policy = torch.rand(512, 6, generator=generator) * 2 - 1
    here = NeighbourIndex(observations, actions, 2.0).query(asked, policy)
    there = NeighbourIndex(observations.to(device), actions.to(device), 2.0, backend="torch")
    return int((there.query(asked.to(device), policy.to(device)).cpu() != here).sum())


def log_probabilities(device: str, tokens: int, words: int) -> dict[str, Any]:
    """Differences of values and gradients from the dense computation on the device, and peak memory of both there."""
    generator = stream(0, "tokens")
    hidden = torch.randn(tokens, 512, generator=generator).to(device)
    weight = (torch.randn(words, 512, generator=generator) / 512**0.5).to(device)
    actions = torch.randint(words, (tokens,), generator=generator).to(device)
    results, peaks = [], []
    for dense in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        log_p, entropy = from_logits(h @ w.T, actions) if dense else log_probs_and_entropy(h, w, actions)
        if entropy is None:
            raise RuntimeError("entropy was asked for")
        grads = torch.autograd.grad((log_p + 0.1 * entropy).mean(), (h, w))
        results.append([log_p.detach(), entropy.detach(), *(g / g.abs().max() for g in grads)])
        peaks.append(torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None)
    difference = float(torch.stack([(a - b).abs().max() for a, b in zip(*results, strict=True)]).max())
    return {"difference": difference, "peak_mib": peaks[0], "dense_peak_mib": peaks[1]}


def stacked(device: str, steps: int) -> dict[str, float]:
    """Milliseconds an update of TD3+BC with 1 and with 10 stacked seeds, eager and as CUDA graphs."""
    found = {}
    for mode, count in itertools.product(("eager", "graphs"), (1, 10)):
        _, method = load_algorithm("td3_bc")
        problem = on(tiny_problem(tuple(range(count)), rows=20_000), device)
        problem = replace(problem, compile=mode == "graphs")
        learner = method.learner(problem, method.config())
        series = batches(method, problem)
        for _ in range(50):
            learner.update(next(series))
        times = []
        for _ in range(3):
            _wait(device)
            began = time.perf_counter()
            for _ in range(steps):
                learner.update(next(series))
            _wait(device)
            times.append((time.perf_counter() - began) / steps)
        found[f"{mode}_{count}"] = 1000 * statistics.median(times)
    return found


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def run(o: Run) -> bool:
    """All checks; writes the raw file and says whether they hold."""
    if o.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing was run", file=sys.stderr)
        return False
    with drawn_on_the_cpu():
        offline = {name: [parity(name, o.device, graphs) for graphs in MODES] for name in METHODS}
        online = {name: online_parity(name, o.device) for name in ONLINE}
    record = {
        "device": torch.cuda.get_device_name() if o.device.startswith("cuda") else o.device,
        "versions": versions(o.device, torch.get_num_threads()),
        "parity": {name: [_known(x) for x in values] for name, values in offline.items()},
        "online": {name: _known(x) for name, x in online.items()},
        "other_neighbours": neighbours(o.device, o.rows),
        "log_probabilities": log_probabilities(o.device, o.tokens, o.words),
        "stacked": stacked(o.device, o.steps),
    }
    atomic_write_json(o.out / f"{o.device.partition(':')[0]}.json", record)
    found = {**offline, **{name: [value] for name, value in online.items()}}
    for name, values in found.items():
        print(
            f"{name:24}",
            *(f"{x:.1e}" for x in values),
            "" if all(x <= TOLERANCE for x in values) else "  TOO FAR",
        )
    print({key: record[key] for key in ("other_neighbours", "log_probabilities", "stacked")})
    logs = record["log_probabilities"]["difference"]
    return (
        all(x <= TOLERANCE for x in itertools.chain(*found.values()))
        and not record["other_neighbours"]
        and logs <= TOLERANCE
    )


def seeds(o: Seeds) -> bool:
    """One piece of the long run; writes the raw file and says whether all updates are made."""
    o.work.mkdir(parents=True, exist_ok=True)
    folders, log = sorted(path.parent for path in o.work.rglob("config.json")), o.work / "pieces.json"
    pieces = json.loads(log.read_text()) if log.exists() else []
    asked = ["--dataset", o.dataset, "--seeds", *map(str, range(o.seeds)), "--steps", str(o.steps)]
    asked += [
        "--device",
        o.device,
        "--seed-mode",
        "stacked",
        "--out",
        str(o.work),
        "--workers",
        str(o.workers),
    ]
    asked += ["--eval-every", str(o.eval_every), "--eval-episodes", str(o.episodes)]
    asked += ["--checkpoint-every", str(o.eval_every)]
    asked += ["--compile"] if o.device.startswith("cuda") else []
    words = ["resume", str(folders[0])] if folders else ["train", "td3_bc", *asked]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "offrl.cli", *words])
    try:
        process.wait(60 * o.minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it writes a checkpoint
        process.wait()
    runs = [RunDir(path.parent) for path in o.work.rglob("config.json")]
    state, _ = load_checkpoint(runs[0].stack()[0].path, "cpu") if runs else (None, "")
    if state is None:
        print("it stopped before its first checkpoint: nothing is recorded", file=sys.stderr)
        return False
    pieces.append({"until": state["step"], "seconds": round(time.monotonic() - began, 1)})
    atomic_write_json(log, pieces)
    runs = runs[0].stack()
    records = [read_run(run.path) for run in runs]
    pair, scores = records[0].config["reference_returns"], {}
    for marks in zip(*(record.evaluations for record in records), strict=True):
        both = zip(records, marks, strict=True)
        played = [mark.returns if pair is None else record.score(mark.returns) for record, mark in both]
        scores[str(marks[0].step)] = [float(values.mean()) for values in played]
    record = {
        "dataset": o.dataset, "algorithm": "td3_bc", "seeds": len(runs), "wanted": o.steps, "pieces": pieces,
        "median_steps_per_second": records[0].steps_per_second, "episodes": o.episodes,
        "unit": "return" if pair is None else "D4RL score", "scores": scores,
        "versions": runs[0].recorded_versions(),
    }  # fmt: skip
    atomic_write_json(o.out / "ten_seeds.json", record)
    print(f"{state['step']} of {o.steps} updates are made")
    return bool(state["step"] == o.steps)


def ten_seeds(t: dict[str, Any]) -> list[str]:
    """The lines about the long run of many seeds."""
    command = f"offrl train {t['algorithm']} --dataset {t['dataset']} --seeds 0 ... {t['seeds'] - 1}"
    rate, pieces, v = t["median_steps_per_second"], t["pieces"], t["versions"]
    speed = ""
    if rate is not None:
        speed = (
            f"{rate:,.0f} updates a second with batches, metrics and logs (median; {t['seeds'] * rate:,.0f} "
        )
        speed += "seed-updates). "
    lines = [
        "",
        f"## {t['seeds']} stacked seeds of TD3+BC, {t['wanted']:,} updates",
        "",
        f"`python scripts/gpu_check.py seeds` ran `{command} --device cuda --compile` in {len(pieces)} piece(s) on "
        f"{v['device']} (torch {v['torch']}, commit {v['commit']}): {pieces[-1]['until']:,} of {t['wanted']:,} updates "
        f"of every seed in {sum(p['seconds'] for p in pieces):,.0f} s, evaluations and start included; "
        f"{speed}{t['unit']}s, {t['episodes']} episodes a seed:",
        "",
        "| updates | mean +- std over seeds | lowest | highest |",
        "|---|---|---|---|",
    ]
    for step, of in sorted(t["scores"].items(), key=lambda item: int(item[0])):
        spread = statistics.stdev(of) if len(of) > 1 else 0.0
        lines.append(
            f"| {int(step):,} | {statistics.mean(of):.1f} +- {spread:.1f} | {min(of):.1f} | {max(of):.1f} |"
        )
    return lines


def table_row(name: str, values: list[float | None] | None, rest: str) -> str:
    """A method's differences, eager and as CUDA graphs."""
    shown = ["not run"] if values is None else ["NaN" if x is None else f"{x:.1e}" for x in values]
    return f"| {' | '.join([name, *shown, rest][:3])} |"


def page(raw: Path = RAW) -> str:
    """The page, from the raw file alone."""
    lines = [
        "# On a GPU",
        "",
        "Regenerate: `python scripts/gpu_check.py run`, then `page`. Raw numbers: `benchmarks/raw/gpu/`.",
        "",
    ]
    path = raw / "cuda.json"
    if not path.exists():
        return "\n".join([*lines, "**Not run**: no CUDA device was at hand yet."]) + "\n"
    r = json.loads(path.read_text())
    v, s, logs = r["versions"], r["stacked"], r["log_probabilities"]
    online = {name: [value] for name, value in r.get("online", {}).items()}
    lines += [
        f"{r['device']}, torch {v['torch']}, commit {v['commit']}. After {UPDATES} updates of two stacked seeds, "
        f"the largest difference of policy weights and metrics from the CPU's, relative to 1 + |value| (at most "
        f"{TOLERANCE:g}):",
        "",
        "| method | eager | `--compile` (CUDA graphs) |",
        "|---|---|---|",
        *(table_row(name, r["parity"].get(name), "not run") for name in METHODS),
        *(table_row(name, online.get(name), "has none") for name in ONLINE),
        "",
        f"Methods that learn in an environment (from `{next(iter(ONLINE))}` on): weights after a short run in "
        f"{TINY_ENV}.",
        "",
        f"* Neighbours: {r['other_neighbours']} of 512 differ from the CPU's.",
        f"* Log-probabilities from hidden states: {logs['difference']:.1e} from the dense ones; peak memory "
        f"{logs['peak_mib']:.0f} MiB, dense {logs['dense_peak_mib']:.0f} MiB.",
        f"* TD3+BC, an update of 10 stacked seeds beside one: eager {s['eager_10']:.2f} and {s['eager_1']:.2f} ms, "
        f"as CUDA graphs {s['graphs_10']:.2f} and {s['graphs_1']:.2f} ms ({s['graphs_10'] / s['graphs_1']:.2f} times; "
        "at most 2 was the aim).",
    ]
    if (path := raw / "ten_seeds.json").exists():
        lines += ten_seeds(json.loads(path.read_text()))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "run":
        return 0 if run(tyro.cli(Run, args=rest)) else 1
    if word == "seeds":
        return 0 if seeds(tyro.cli(Seeds, args=rest)) else 1
    if word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
