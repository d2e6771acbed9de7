"""Steps per second and fraction of the float32 limit of the training step; benchmarks/speed.md from raw numbers.

    python scripts/bench_speed.py measure [--d3rlpy PYTHON] [--prdc-data URI] [--compile] [--parts td3_bc iql ...]
    python scripts/bench_speed.py page

Method: one thread; rates are gradient steps per CPU-second of the process; every figure is the median of repeats;
the rate of 256 x 256 x 256 float32 products (torch.mm, default settings) is measured just before and after, in the
same process, and fraction of the limit = steps/s x MFLOP a step / that rate. Where the two rates differ by more than
10 % the machine was too noisy and no figure is kept. Ratios are of rounds taken back to back. "Default products" is our
step with PyTorch's default matrix library, which the peers use. On some chips PyTorch's other library, oneDNN, is
faster and as exact; our step takes it there, so its fraction of the default library's limit can pass 1: the column
"of the fastest" divides by oneDNN's measured rate instead.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from offrl.algos import load_algorithm
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import UniformSource
from offrl.files import atomic_write_json, atomic_write_text
from offrl.nn.precision import Precision
from offrl.training.build import build
from offrl.training.loop import MetricMeans, train
from offrl.training.problem import Problem
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/speed.json", ROOT / "benchmarks/speed.md"
GPU = ROOT / "benchmarks/raw/gpu/cuda.json"  # of scripts/gpu_check.py
SHAPES = {"Hopper": (11, 3), "Walker2d": (17, 6)}
BATCH = HIDDEN = 256
NOISE_LIMIT = 0.10


def megaflops(algorithm: str, obs_dim: int, act_dim: int, batch: int = BATCH, hidden: int = HIDDEN) -> float:
    """Million floating-point operations of the matrix products of one gradient step.

    A forward pass of (i -> H -> H -> o) on B rows costs 2B(iH + H^2 + Ho), its backward pass without input gradient
    2B(2Ho + 2H^2 + iH). TD3+BC counts half an actor step; IQL counts 2 value and 4 critic forwards.
    """

    def forward(i: int, o: int) -> int:
        return 2 * batch * (i * hidden + hidden**2 + hidden * o)

    def backward(i: int, o: int) -> int:
        return 2 * batch * (2 * hidden * o + 2 * hidden**2 + i * hidden)

    s, a, both = obs_dim, act_dim, obs_dim + act_dim
    if algorithm == "iql":
        total = 2 * forward(s, 1) + 4 * forward(both, 1) + backward(s, 1) + 2 * backward(both, 1)
        return (total + forward(s, a) + backward(s, a)) / 1e6
    through_critic = 2 * batch * (hidden + hidden**2 + hidden * a)
    actor = forward(s, a) + forward(both, 1) + through_critic + backward(s, a)
    return (forward(s, a) + 4 * forward(both, 1) + 2 * backward(both, 1) + actor / 2) / 1e6


def product_rate(repeats: int = 7, count: int = 100) -> float:
    """GFLOP/s of a float32 product at 256^3, one thread, per CPU-second (median)."""
    a, b, out = torch.randn(256, 256), torch.randn(256, 256), torch.empty(256, 256)
    return 2 * 256**3 / 1e9 / _seconds(lambda: torch.mm(a, b, out=out), repeats, count)


def _seconds(call: Callable[[], Any], repeats: int, count: int) -> float:
    for _ in range(count // 5 + 1):
        call()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - began) / count)
    return statistics.median(times)


def random_problem(obs_dim: int, act_dim: int, rows: int, compile: bool) -> Problem:
    """Random data of the asked shape."""
    g = torch.Generator().manual_seed(0)
    observations = torch.randn(rows, obs_dim, generator=g)
    return Problem(
        observations=observations,
        actions=torch.rand(rows, act_dim, generator=g) * 2 - 1,
        rewards=torch.randn(rows, generator=g),
        next_observations=torch.randn(rows, obs_dim, generator=g),
        terminated=(torch.rand(rows, generator=g) < 0.01).float(),
        next_actions=None,
        action_low=-torch.ones(act_dim),
        action_high=torch.ones(act_dim),
        normalizer=ObservationNormalizer.identity(obs_dim),
        steps=1_000_000,
        compile=compile,
    )


def step_function(problem: Problem, algorithm: str, precision: str | None = "float32") -> Callable[[], Any]:
    """One bare training step, sample and update, as the loop runs it; precision None: without its context."""
    _, method = load_algorithm(algorithm)
    learner = method.learner(problem, method.config())
    source = UniformSource(
        problem.observations,
        problem.actions,
        problem.rewards,
        problem.next_observations,
        problem.terminated,
        batch_size=BATCH,
    )
    streams = problem.streams("data")
    around = Precision(precision, "cpu") if precision else contextlib.nullcontext()

    def step() -> None:
        with around:
            learner.update(source.sample(streams))

    return step


def measured(
    call: Callable[[], Any], mflop: float, seconds: float = 1.2, repeats: int = 3
) -> dict[str, float] | None:
    """Rate, product rate and fraction of the limit; None where the machine was too noisy."""
    for _ in range(100):
        call()
    before = product_rate()
    guess = _seconds(call, 1, 20)
    per_step = _seconds(call, repeats, max(int(seconds / guess), 5))
    after = product_rate()
    if abs(before - after) > NOISE_LIMIT * max(before, after):
        return None
    gflops = (before + after) / 2
    with Precision("float32", "cpu"):
        fastest = max(gflops, product_rate())
    return {
        "steps_per_second": 1 / per_step,
        "gflops": gflops,
        "fraction": mflop / 1000 / per_step / gflops,
        "fraction_of_fastest": mflop / 1000 / per_step / fastest,
    }


def patient(measure: Callable[[], dict[str, float] | None], tries: int = 6) -> dict[str, float]:
    """``measure`` until the machine is quiet; RuntimeError if it never is."""
    for _ in range(tries):
        if (found := measure()) is not None:
            return found
        time.sleep(2)
    raise RuntimeError(f"the machine was too noisy in {tries} tries: the product rate moved by over 10 %")


@dataclass(frozen=True)
class Measure:
    """Measure and write benchmarks/raw/speed.json."""

    d3rlpy: Path | None = None
    """Python of an environment with d3rlpy."""
    corl: Path | None = None
    """A checkout of CORL; its TD3+BC is timed with this Python."""
    unifloral: Path | None = None
    """A checkout of unifloral; its TD3+BC is timed with --jax-python."""
    jax_python: Path = Path(sys.executable)
    """Python of an environment with jax, flax, optax, distrax and tyro."""
    prdc_data: str | None = None
    """Dataset URI for the PRDC part (1e6 rows of collected Walker2d data)."""
    compile: bool = False
    """Also measure the compiled step."""
    parts: tuple[str, ...] = ("step", "loop", "sampler", "seeds", "prdc")
    """What to measure; the others keep their raw figures."""
    rows: int = 1_000_000
    """Rows of the random data."""
    rounds: int = 3
    """Rounds, taken in turns with d3rlpy."""


def measure(o: Measure) -> None:
    """Run the asked parts."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = json.loads(RAW.read_text()) if RAW.exists() else {}
    raw["versions"] = versions("cpu", 1)
    if "step" in o.parts:
        raw["step"] = _measure_steps(o)
    if "loop" in o.parts:
        raw["loop"] = _measure_loop(o)
    if "sampler" in o.parts:
        raw["sampler"] = _measure_sampler(o)
    if "seeds" in o.parts:
        raw["seeds"] = _measure_seeds()
    if "prdc" in o.parts and o.prdc_data:
        raw["prdc"] = _measure_prdc(o.prdc_data)
    atomic_write_json(RAW, raw)
    print(f"wrote {RAW}")


def _measure_steps(o: Measure) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for algorithm in ("td3_bc", "iql"):
        for name, (s, a) in SHAPES.items():
            mflop = megaflops(algorithm, s, a)
            problem = random_problem(s, a, o.rows, False)
            calls = {
                "eager, default products": step_function(problem, algorithm, None),
                "eager": step_function(problem, algorithm),
            }
            record: dict[str, Any] = {"mflop": mflop}
            bf16 = torch.cpu._is_avx512_bf16_supported()
            if bf16:
                calls["eager, bf16"] = step_function(problem, algorithm, "bf16")
            if o.compile:
                for kind, precision in (("compiled", "float32"), ("compiled, bf16", "bf16"))[: 1 + bf16]:
                    calls[kind] = step_function(random_problem(s, a, o.rows, True), algorithm, precision)
                record["compile_seconds"] = _compile_seconds(algorithm, name)
            rounds = []
            for _ in range(o.rounds):
                one = {kind: patient(partial(measured, call, mflop)) for kind, call in calls.items()}
                for peer, command in _peers(o, algorithm).items():
                    one[peer] = _peer_rate([*command, str(s), str(a)], mflop)
                rounds.append(one)
                print(
                    algorithm,
                    name,
                    {k: f"{v['steps_per_second']:.0f}/s {v['fraction']:.3f}" for k, v in one.items()},
                )
            record["rounds"] = rounds
            results[f"{algorithm} {name}"] = record
    return results


def _compile_seconds(algorithm: str, shape: str) -> dict[str, float]:
    """Seconds of the first two compiled updates in a new process: with an empty cache, then with a full one."""
    program = (
        f"import time; import bench_speed as b; step = b.step_function(b.random_problem(*b.SHAPES[{shape!r}], 2000, "
        f"True), {algorithm!r}); began = time.perf_counter(); [step() for _ in range(4)]; "
        "print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
        command, where = [sys.executable, "-W", "ignore", "-c", program], ROOT / "scripts"
        return {
            kind: float(
                subprocess.run(command, cwd=where, env=environment, check=True, capture_output=True).stdout
            )
            for kind in ("cold", "warm")
        }


def _peers(o: Measure, algorithm: str) -> dict[str, list[str]]:
    """Commands of the peers that were asked for; each prints one JSON line."""
    scripts, commands = ROOT / "scripts", {}
    if o.d3rlpy:
        commands["d3rlpy"] = [str(o.d3rlpy), str(scripts / "peer_d3rlpy_speed.py"), algorithm]
    if o.corl and algorithm == "td3_bc":
        commands["CORL"] = [sys.executable, str(scripts / "peer_public_speed.py"), "corl", str(o.corl)]
    if o.unifloral and algorithm == "td3_bc":
        script = str(scripts / "peer_public_speed.py")
        commands["unifloral"] = [str(o.jax_python), script, "unifloral", str(o.unifloral)]
    return commands


def _peer_rate(command: list[str], mflop: float) -> dict[str, float]:
    def once() -> dict[str, float] | None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peer = json.loads(done.stdout.splitlines()[-1])
        before, after = peer["gflops"]
        if abs(before - after) > NOISE_LIMIT * max(before, after):
            return None
        rate, gflops = peer["steps_per_second"], (before + after) / 2
        return {"steps_per_second": rate, "gflops": gflops, "fraction": rate * mflop / 1000 / gflops}

    return patient(once)


def _measure_loop(o: Measure) -> dict[str, float]:
    """Cost of loop, metric sums, log rows and checkpoints over the bare update, in turns."""
    from offrl.training.checkpoint import rng_state, save_checkpoint
    from offrl.training.run_dir import Table

    problem = random_problem(*SHAPES["Hopper"], o.rows, False)
    _, method = load_algorithm("td3_bc")
    learner = method.learner(problem, method.config())
    source = UniformSource(
        problem.observations,
        problem.actions,
        problem.rewards,
        problem.next_observations,
        problem.terminated,
        batch_size=BATCH,
    )
    streams, means, steps = problem.streams("data"), MetricMeans(learner.metrics), 100
    around, turns, ratios = Precision("float32", "cpu"), 30, []
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Path(folder) / "metrics.csv", ["step", *learner.metrics])
        for _ in range(2 * o.rounds + 1):
            bare = whole = 0.0
            for turn in range(turns):  # short ones, so that a slow second meets both
                began = time.process_time()
                for _ in range(steps):
                    with around:
                        learner.update(source.sample(streams))
                middle = time.process_time()
                for step in train(learner, source, streams, means, steps=steps, every=(1000,), around=around):
                    if turn % 10 == 9:  # a row every 1000 steps
                        table.append({"step": step, **{k: v[0] for k, v in means.pop().items()}})
                bare, whole = bare + middle - began, whole + time.process_time() - middle
            began = time.process_time()
            save_checkpoint(Path(folder), {"learner": learner.state_dict(), "rng": rng_state()})
            whole += (time.process_time() - began) * turns * steps / 10_000  # one every 10 000 steps
            ratios.append(whole / bare - 1)
    print("loop overhead", [f"{100 * r:.1f} %" for r in ratios])
    return {"overhead": statistics.median(ratios), "rounds": ratios}  # type: ignore[dict-item]


def _measure_sampler(o: Measure) -> dict[str, float]:
    problem = random_problem(*SHAPES["Hopper"], o.rows, False)
    source = UniformSource(
        problem.observations,
        problem.actions,
        problem.rewards,
        problem.next_observations,
        problem.terminated,
        batch_size=BATCH,
    )
    streams = problem.streams("data")
    return {"milliseconds": 1000 * _seconds(lambda: source.sample(streams), 7, 1000)}


def _measure_seeds(stacked: int = 5, rounds: int = 3) -> dict[str, dict[str, list[float]]]:
    """Summed steps/s of stacked seeds over those of one seed, TD3+BC, eager, in turns."""
    _, method = load_algorithm("td3_bc")
    found = {}
    for width, batch in ((64, 64), (256, 256)):
        steps = []
        for seeds in (1, stacked):
            problem = replace(random_problem(*SHAPES["Hopper"], 100_000, False), seeds=tuple(range(seeds)))
            learner = method.learner(problem, method.config(hidden=width, batch_size=batch))
            fields = (problem.observations, problem.actions, problem.rewards, problem.next_observations)
            source = UniformSource(*fields, problem.terminated, batch_size=batch)
            steps.append(
                partial(_step, learner, source, problem.streams("data"), Precision("float32", "cpu"))
            )
        rates: dict[str, list[float]] = {"one": [], "stacked": []}
        for _ in range(rounds):
            rates["one"].append(1 / _seconds(steps[0], 3, 300))
            rates["stacked"].append(stacked / _seconds(steps[1], 3, 100))
        found[f"width {width}, batch {batch}"] = rates
        print(width, rates)
    return found


def _step(learner: Any, source: UniformSource, streams: list[torch.Generator], around: Precision) -> None:
    with around:
        learner.update(source.sample(streams))


def _measure_prdc(uri: str) -> dict[str, Any]:
    """PRDC against TD3+BC on the same rows, beta 2: steps 0-2k and 0-20k, in turns of 500 steps."""
    from offrl.data.load import load_dataset
    from offrl.training.seeding import stream

    data = load_dataset(uri)
    config = {"rows": "exact", "device": "cpu", "seed": 0, "steps": 1_000_000, "compile": False, "threads": 1}
    contexts = {"": Precision("float32", "cpu"), ", default products": contextlib.nullcontext()}
    built, build_seconds = {}, 0.0
    for name in ("td3_bc", "prdc"):
        _, method = load_algorithm(name)
        for suffix, around in contexts.items():
            learner, source = build(method, method.config(), data, None, config)
            built[name + suffix] = (learner, source, [stream(0, "data")], around)
            build_seconds = float(learner.index.build_seconds) if name == "prdc" else 0.0  # type: ignore[attr-defined]
    chunks: dict[str, list[float]] = {name: [] for name in built}
    products = [product_rate()]
    for chunk in range(40):
        for name, (learner, source, streams, around) in built.items():
            began = time.process_time()
            for _ in range(500):
                with around:
                    learner.update(source.sample(streams))
            chunks[name].append(time.process_time() - began)
        if chunk % 10 == 9:
            products.append(product_rate())
            done = {k: f"{500 * len(v) / sum(v):.0f}/s" for k, v in chunks.items()}
            print(f"steps 0-{500 * (chunk + 1)}", done, f"products {products[-1]:.0f} GFLOP/s", flush=True)
    share = build_seconds * 20_000 / 1_000_000
    ratios = {
        f"td3_bc{suffix}": {
            "0-2k": sum(chunks["td3_bc" + suffix][:4]) / sum(chunks["prdc" + suffix][:4]),
            "0-20k": sum(chunks["td3_bc" + suffix]) / (sum(chunks["prdc" + suffix]) + share),
        }
        for suffix in contexts
    }
    return {
        "dataset": uri,
        "rows": int(data.num_steps),
        "build_cpu_seconds": build_seconds,
        "chunk_cpu_seconds": chunks,
        "gflops": products,
        "ratios": ratios,
    }


def gpu_lines() -> list[str]:
    """Stacked seeds on a GPU."""
    if not GPU.exists():
        return ["## Stacked seeds on a GPU", "", "Not run: none was at hand."]
    r = json.loads(GPU.read_text())
    lines = [
        f"## TD3+BC on one {r['device']}, stacked seeds",
        "",
        f"torch {r['versions']['torch']}, commit {r['versions']['commit']}; more in [gpu.md](gpu.md).",
        "",
        "| | one seed, ms an update | ten seeds, ms | ten beside one |",
        "|---|---|---|---|",
    ]
    for mode, name in (("eager", "eager"), ("graphs", "`--compile` (CUDA graphs)")):
        one, ten = r["stacked"][f"{mode}_1"], r["stacked"][f"{mode}_10"]
        lines.append(f"| {name} | {one:.2f} | {ten:.2f} | {ten / one:.2f} |")
    return lines


def page() -> str:
    """The page from the raw figures."""
    raw = json.loads(RAW.read_text())
    v = raw["versions"]
    lines = [
        "# Speed",
        "",
        "Regenerate: `python scripts/bench_speed.py page`; raw numbers: `benchmarks/raw/speed.json`.",
        "",
    ]
    lines += [" ".join(str(__doc__).split("Method: ")[1].split()), ""]
    lines += [f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread.", ""]
    if "step" in raw:
        lines += ["## Training step, batch 256, width 256, 1e6 rows", ""]
        lines += [
            "| step | variant | steps/s | fraction of the limit | of the fastest | against d3rlpy 2.8 |",
            "|---|---|---|---|---|---|",
        ]
        for name, record in raw["step"].items():
            for kind in record["rounds"][0]:
                rate = statistics.median(r[kind]["steps_per_second"] for r in record["rounds"])
                fraction = statistics.median(r[kind]["fraction"] for r in record["rounds"])
                ratio = ""
                if "d3rlpy" in record["rounds"][0] and kind != "d3rlpy":
                    pairs = [r[kind]["fraction"] / r["d3rlpy"]["fraction"] for r in record["rounds"]]
                    ratio = f"{statistics.median(pairs):.2f} x"
                fastest = [r[kind].get("fraction_of_fastest") for r in record["rounds"]]
                share = f"{statistics.median(fastest):.2f}" if all(fastest) else ""
                lines.append(f"| {name} | {kind} | {rate:.0f} | {fraction:.2f} | {share} | {ratio} |")
        compiles = [r["compile_seconds"] for r in raw["step"].values() if "compile_seconds" in r]
        for kind in ("cold", "warm") if compiles else ():
            seconds = [c[kind] for c in compiles]
            lines += [
                "",
                f"First compiled updates, {kind} cache: {min(seconds):.1f} to {max(seconds):.1f} s.",
            ]
        lines += [""]
    if "loop" in raw:
        lines += ["## Loop", "", "Loop, metric means, log rows and checkpoints (every 10 000 steps) add "]
        lines[-1] += f"{100 * raw['loop']['overhead']:.1f} % to the bare update."
        lines += [""]
    if "sampler" in raw:
        lines += [f"A batch of 256 of 1e6 rows is drawn in {raw['sampler']['milliseconds']:.3f} ms.", ""]
    if "seeds" in raw:
        lines += ["## Five seeds stacked in one process, one core, TD3+BC, eager", ""]
        for size, rates in raw["seeds"].items():
            one, many = (statistics.median(rates[kind]) for kind in ("one", "stacked"))
            lines += [
                f"* {size}: one seed {one:.0f} steps/s, five {many:.0f} in sum: {many / one:.1f} times",
                "",
            ]
    if "prdc" in raw:
        p = raw["prdc"]
        lines += [
            "## PRDC",
            "",
            f"`{p['dataset']}`, {p['rows']} rows, beta 2; index built in {p['build_cpu_seconds']:.0f} CPU-s.",
        ]
        for name, ratio in p["ratios"].items():
            kind = "both with PyTorch's default matrix products" if "default" in name else "as they run"
            lines += [
                "",
                f"* {kind}: {ratio['0-20k']:.2f} of TD3+BC's rate over steps 0-20k, the build spread over",
            ]
            lines[-1] += f" 1M steps; {ratio['0-2k']:.2f} over steps 0-2k"
        lines += [""]
    lines += gpu_lines()
    return "\n".join(lines) + "\n"


def main() -> None:
    """Dispatch."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word == "measure":
        measure(tyro.cli(Measure, args=rest))
    elif word == "page":
        atomic_write_text(PAGE, page())
        print(f"wrote {PAGE}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
