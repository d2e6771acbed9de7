"""Memory and time of log-probabilities from hidden states, and the cost of PPO's loss through the core.

    python scripts/bench_core.py memory --kind chunked|dense [--tokens N --vocabulary V --hidden H]    one process, JSON
    python scripts/bench_core.py measure [--parts memory time loss]    adds a go to benchmarks/raw/core.json
    python scripts/bench_core.py page                                  benchmarks/core.md from it

Method: one thread, float32. Memory is the peak resident size of a fresh process during one forward and backward, minus
its size before (inputs there, libraries loaded by a tiny call) and minus the gradients that must be returned. Times are
CPU-seconds of the process; the two ways alternate in one process, and a ratio is the median over pairs taken back to
back. Dense is log_softmax, gather and -sum p log p; hand-written PPO is the usual min(r A, clip(r) A) with squared
value errors and an entropy bonus. Through the core means ``Estimator.loss`` with the minibatch's ``Rollouts`` built.
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from offrl.estimators.low_memory import from_logits, log_probs_and_entropy
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts
from offrl.files import atomic_write_json, atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/core.json", ROOT / "benchmarks/core.md"
TOKENS, VOCABULARY, HIDDEN = 4096, 50_000, 512
Kind = Literal["chunked", "dense"]
KINDS: tuple[Kind, Kind] = ("chunked", "dense")
Part = Literal["memory", "time", "loss"]


def inputs(tokens: int, vocabulary: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, actions and upstream gradients (2, tokens)."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(tokens, hidden, generator=g).requires_grad_()
    w = (torch.randn(vocabulary, hidden, generator=g).mul_(hidden**-0.5)).requires_grad_()
    return h, w, torch.randint(vocabulary, (tokens,), generator=g), torch.randn(2, tokens, generator=g)


def forward_backward(kind: Kind, h: Tensor, w: Tensor, actions: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies and the two gradients."""
    found = from_logits(h @ w.T, actions) if kind == "dense" else log_probs_and_entropy(h, w, actions)
    values = [x for x in found if x is not None]
    gradients = torch.autograd.grad(values, (h, w), (up[0], up[1]))
    return *(x.detach() for x in values), *gradients


def _resident(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def memory(kind: Kind, tokens: int = TOKENS, vocabulary: int = VOCABULARY, hidden: int = HIDDEN) -> None:
    """Print the extra peak memory of one forward and backward in this process, in MB (Linux)."""
    torch.set_num_threads(1)
    forward_backward(kind, *inputs(8, 64, hidden))
    given = inputs(tokens, vocabulary, hidden)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    results = forward_backward(kind, *given)
    returned = sum(x.nbytes for x in results) / 2**20
    print(json.dumps({"kind": kind, "extra_megabytes": _resident("VmHWM") - before - returned}))


def measure_memory() -> dict[str, Any]:
    """Both kinds, each in a fresh process."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "memory", "--kind", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[kind] = json.loads(done.stdout)["extra_megabytes"]
    return found


def measure_time(rounds: int = 1) -> dict[str, Any]:
    """CPU-seconds of forward and backward, and the largest difference of gradients relative to the largest one."""
    given = inputs(TOKENS, VOCABULARY, HIDDEN)
    for kind in KINDS:
        forward_backward(kind, *inputs(64, 5000, HIDDEN))
    seconds: dict[str, list[float]] = {"chunked": [], "dense": []}
    results = {}
    for _ in range(rounds):
        for kind in KINDS:
            began = time.process_time()
            results[kind] = forward_backward(kind, *given)
            seconds[kind].append(time.process_time() - began)
    errors = [
        float((x - y).abs().max() / y.abs().max())
        for x, y in zip(results["chunked"], results["dense"], strict=True)
    ]
    return {
        "seconds": seconds,
        "errors": dict(zip(["log_prob", "entropy", "d_hidden", "d_head"], errors, strict=True)),
    }


def loss_pair(
    shape: tuple[int, ...], ragged: bool, terms: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """PPO's loss and its gradients, hand-written and through the core, on the same numbers."""
    g = torch.Generator().manual_seed(0)
    x, old, advantages, returns, values, entropy = (torch.randn(*shape, generator=g) for _ in range(6))
    old = x + 0.2 * old
    mask = (torch.rand(*shape, generator=g) < 0.7) if ragged else None
    leaves = [y.requires_grad_() for y in ((x, values, entropy) if terms else (x,))]

    def mean(y: Tensor) -> Tensor:
        return y.mean() if mask is None else (y * mask).sum() / mask.sum()

    def by_hand() -> tuple[Tensor, ...]:
        ratio = torch.exp(x - old)
        policy = torch.min(advantages * ratio, advantages * torch.clamp(ratio, 0.8, 1.2))
        loss = -mean(policy)
        if terms:
            loss = loss + 0.5 * mean((returns - values) ** 2) - 0.01 * mean(entropy)
        return torch.autograd.grad(loss, leaves)

    estimator = recipe("ppo", regularizers=[("value_loss", 0.5), ("negative_entropy", 0.01)] if terms else [])

    def core() -> tuple[Tensor, ...]:
        rollouts = Rollouts(mask=mask, old_log_probs=old, advantages=advantages, returns=returns)
        loss = estimator.loss(x, rollouts, entropy=entropy, predicted_values=values)
        return torch.autograd.grad(loss, leaves)

    for ours, theirs in zip(core(), by_hand(), strict=True):
        torch.testing.assert_close(ours, theirs)
    return by_hand, core


def measure_loss(rounds: int = 41) -> dict[str, Any]:
    """Microseconds of either way and the median ratio, per shape."""
    found = {}
    shapes = [("64 steps", (64,)), ("2048 steps", (2048,)), ("64 x 256 tokens, ragged", (64, 256))]
    shapes += [("64 x 2048 tokens, ragged", (64, 2048))]
    for (label, shape), terms in itertools.product(shapes, (True, False)):
        name = label if terms else f"{label}, policy term alone"
        pair = loss_pair(shape, len(shape) > 1, terms)
        count = max(3, int(4e5 / (2000 + torch.Size(shape).numel())))
        times: list[list[float]] = []
        for _ in range(rounds):
            times.append([])
            for call in pair:
                began = time.process_time()
                for _ in range(count):
                    call()
                times[-1].append((time.process_time() - began) / count)
        times = times[1:]
        found[name] = {
            "by_hand_us": 1e6 * statistics.median(t[0] for t in times),
            "core_us": 1e6 * statistics.median(t[1] for t in times),
            "ratio": statistics.median(t[1] / t[0] for t in times),
        }
    return found


def measure(parts: list[Part] = ["memory", "time", "loss"]) -> None:  # noqa: B006 tyro reads it
    """Add one go to the raw numbers."""
    from offrl.training.run_dir import versions  # the memory of a process is measured without it

    torch.set_num_threads(1)
    functions = {"memory": measure_memory, "time": measure_time, "loss": measure_loss}
    raw = json.loads(RAW.read_text()) if RAW.exists() else {part: [] for part in functions}
    raw["versions"] = versions("cpu", 1)
    for part in parts:
        raw[part].append(functions[part]())
        print(json.dumps({part: raw[part][-1]}))
    atomic_write_json(RAW, raw)


def page() -> None:
    """Write the page."""
    raw = json.loads(RAW.read_text())
    v = raw["versions"]
    extra = {kind: statistics.median(go[kind] for go in raw["memory"]) for kind in KINDS}
    pairs = [
        p for go in raw["time"] for p in zip(go["seconds"]["chunked"], go["seconds"]["dense"], strict=True)
    ]
    ratio = statistics.median(a / b for a, b in pairs)
    seconds = [statistics.median(p[i] for p in pairs) for i in (0, 1)]
    errors = {name: max(go["errors"][name] for go in raw["time"]) for name in raw["time"][0]["errors"]}
    lines = [
        "# Estimator core: memory and speed",
        "",
        "Regenerate: `python scripts/bench_core.py measure`, then `python scripts/bench_core.py page`; raw numbers:",
        "`benchmarks/raw/core.json`.",
        "",
        " ".join((__doc__ or "").split("Method: ")[1].split()),
        "",
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, one thread.",
        "",
        f"## Log-probability and entropy, {TOKENS} tokens, vocabulary {VOCABULARY}, hidden {HIDDEN}",
        "",
        "| way | extra peak memory | seconds, forward and backward |",
        "|---|---|---|",
        f"| dense | {extra['dense']:.0f} MB | {seconds[1]:.1f} |",
        f"| chunked | {extra['chunked']:.0f} MB | {seconds[0]:.1f} |",
        f"| ratio | 1 / {extra['dense'] / extra['chunked']:.0f} | {ratio:.2f} ({len(pairs)} pairs) |",
        "",
        "Targets: at most 1/8 of the memory, at most 1.6 times the time. Largest difference over the largest value: "
        + ", ".join(f"{name} {value:.0e}" for name, value in errors.items())
        + ".",
        "",
        "## PPO's loss (policy, value and entropy), forward and backward",
        "",
        "| minibatch | by hand, us | through the core, us | ratio |",
        "|---|---|---|---|",
    ]
    for name in raw["loss"][0]:
        row = {key: statistics.median(go[name][key] for go in raw["loss"]) for key in raw["loss"][0][name]}
        lines.append(f"| {name} | {row['by_hand_us']:.0f} | {row['core_us']:.0f} | {row['ratio']:.2f} |")
    lines += ["", f"Target: at most 1.05. Medians of {len(raw['loss'])} goes.", ""]
    atomic_write_text(PAGE, "\n".join(lines))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"memory": memory, "measure": measure, "page": page})
