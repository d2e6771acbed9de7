"""Tables of the benchmark from raw numbers alone; the Markdown page and the HTML page show the same ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.envs.inventory.reference import shown
from offrl.inventory_bench.plan import TARGETS, Cells

Raw = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """A headed table with what must be known to read it, and what it says."""

    title: str
    text: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    verdict: str = ""


def tables(cells: Cells, found: Raw) -> list[Table]:
    """Those that have cells."""
    kinds: tuple[tuple[str, Callable[[Cells, Raw], Table]], ...] = (
        ("gap-", gaps), ("grid-", grid), ("variance-", variances), ("time-", times), ("sample-", samples),
        ("transfer-", transfers), ("speed-", speeds),
    )  # fmt: skip
    return [make(cells, found) for prefix, make in kinds if any(n.startswith(prefix) for n in cells)]


def label(spec: Mapping[str, Any]) -> str:
    """Setting and options of a cell."""
    run = spec["run"]
    options = " ".join(f"{key}={value:g}" for key, value in run.get("vary", {}).items())
    return f"{run['setting']} {options}".strip()


def policy_of(spec: Mapping[str, Any]) -> str:
    """The policy of a cell."""
    name: str = spec["policy"] if spec["kind"] == "untrained" else spec["config"]["policy"]
    return name


def _percent(r: Mapping[str, Any], digits: int = 3) -> tuple[str, str]:
    if "gap" not in r:
        return "", ""
    return f"{100 * r['gap']:+.{digits}f}", shown(r["gap_se"], digits, 100)


def _seconds(r: Mapping[str, Any]) -> str:
    used = r.get("train_cpu_seconds")
    used = r.get("train_seconds") if used is None else used
    return "" if used is None else f"{used:.0f}"


def grid(cells: Cells, found: Raw) -> Table:
    """Every setting x policy."""
    rows = []
    names = [n for n in cells if n.startswith("grid-")]
    for name in (n for n in names if n in found):
        spec, r = cells[name], found[name]
        run = spec["run"]
        seeds, steps = run.get("seeds", ()), str(run.get("steps", "-"))
        start = [label(spec), policy_of(spec), str(seeds[0]) if seeds else "-", steps]
        marked = "" if r.get("admissible", True) else " (oracle)"
        start[1] += marked
        rows.append([
            *start, f"{r['cost']:.4f}", shown(r["cost_se"]), *_percent(r), r.get("reference_name", "unknown"),
            _seconds(r),
        ])  # fmt: skip
    return Table(
        "Settings and policies",
        "Small training budgets, the same for all policies of a kind; costs of profit settings are negative. An oracle "
        "reads the future or may send stock back: no policy that sees the past alone can do that. "
        f"{len(rows)} of {len(names)} cells are measured.",
        ("setting", "policy", "seed", "updates", "cost", "s.e.", "gap %", "s.e. %", "gap to", "CPU s"),
        rows,
    )


def gaps(cells: Cells, found: Raw) -> Table:
    """Policies where the optimum is known."""
    rows = []
    for name in (n for n in cells if n.startswith("gap-")):
        case, r = name.removeprefix("gap-"), found.get(name)
        target = str(TARGETS.get(case, TARGETS[case.split("-")[0]]))
        if r is None:
            rows.append([case, cells[name]["config"]["policy"], "", "", "", "", target, ""])
            continue
        rows.append([
            case, policy_of(r["cell"]), f"{r['cost']:.4f}", f"{r['reference']:.4f}", *_percent(r), target, _seconds(r),
        ])  # fmt: skip
    head = ("case", "policy", "cost", "optimum", "gap %", "s.e. %", "target %", "CPU s")
    text = (
        "L: lead time, p: underage cost, S: stores, against Federgruen and Zipkin's lower bound (not paired). Graph "
        "nets (gnn) are in their echelon form, of width 16."
    )
    return Table("Gap to the optimum", text, head, rows)


def variances(cells: Cells, found: Raw) -> Table:
    """Of one path's gradient, by estimator."""
    names = ["rloo", "score_batch", "score_rtg", "score"]
    rows = []
    for name in (n for n in cells if n.startswith("variance-") and n in found):
        r = found[name]
        base = r["variance"]["pathwise"]
        values = [f"{r['variance'][n] / base:.3g} ({r['cosine'][n]:.2f})" for n in names]
        rows.append([name.removeprefix("variance-"), *values])
    text = (
        "Summed variance of one path's gradient over that of the pathwise one, first weights, sigma 0.5; in brackets "
        "the cosine of the mean gradient with the pathwise one."
    )
    return Table("Gradient variance", text, ("setting", *names), rows)


def times(cells: Cells, found: Raw) -> Table:
    """Estimators at equal time."""
    rows = []
    for name in (n for n in cells if n.startswith("time-") and n in found):
        r = found[name]
        used, updates, _ = r["curve"][-1]
        best = f"{r['reference']:.4f}" if r["reference"] else ""
        rows.append([name.removeprefix("time-"), f"{used:.0f}", f"{updates}", f"{r['best']:.4f}", best])
    text = "Least development cost within the same CPU seconds of training (orders not rounded)."
    return Table("Equal time", text, ("cell", "CPU s", "updates", "cost", "optimum"), rows)


def samples(cells: Cells, found: Raw) -> Table:
    """Test cost by number of training paths."""
    rows = []
    for name in (n for n in cells if n.startswith("sample-") and n in found):
        r = found[name]
        cost = (f"{r['cost']:.4f}", shown(r["cost_se"]))
        rows.append([name.removeprefix("sample-"), *cost, _percent(r, 2)[0], _seconds(r)])
    text = (
        "Test cost after 3000 updates of 16 paths and 20 periods, by number of training paths; two seeds, graph nets "
        "of width 16 and dense ones of width 128 with the same step sizes. The graph net starts from echelon "
        "positions, the dense one from nothing. Where no bound is known, the gap is missing and the figure shows the "
        "excess over the best cost found."
    )
    head = ("cell", "cost", "s.e.", "gap to bound %", "CPU s")
    return Table("Sample efficiency", text, head, rows, _samples_verdict(found))


def sample_lines(found: Raw) -> dict[str, dict[str, list[tuple[int, list[float]]]]]:
    """Setting -> policy -> (paths, excess cost in percent of each seed): over the bound, else the best cost found."""
    groups: dict[str, dict[str, dict[int, list[Mapping[str, Any]]]]] = {}
    for r in (r for name, r in found.items() if name.startswith("sample-")):
        run = r["cell"]["run"]
        sizes = groups.setdefault(run["setting"], {}).setdefault(policy_of(r["cell"]), {})
        sizes.setdefault(run["first_paths"][0], []).append(r)
    lines = {}
    for setting, policies in groups.items():
        every = [r for own in policies.values() for rs in own.values() for r in rs]
        base = every[0].get("reference", min(r["cost"] for r in every))
        lines[setting] = {
            policy: [(n, [100 * (r["cost"] / base - 1) for r in own[n]]) for n in sorted(own)]
            for policy, own in policies.items()
        }
    return lines


def _samples_verdict(found: Raw) -> str:
    """Which policy needs fewer paths, in words with the numbers."""
    told = []
    for setting, policies in sample_lines(found).items():
        parts = [
            f"{policy} {', '.join(f'{np.mean(values):.2f} % (n={n})' for n, values in sizes)}"
            for policy, sizes in policies.items()
        ]
        bound = any("gap" in r for r in found.values() if r["cell"].get("run", {}).get("setting") == setting)
        base = "the bound" if bound else "the best cost found"
        told.append(f"{setting}, mean excess over {base}: {'; '.join(parts)}.")
        if {"gnn", "mlp_network"} <= set(policies):
            both = [dict(policies[p]) for p in ("gnn", "mlp_network")]
            shared = sorted(set(both[0]) & set(both[1]))
            wins = [n for n in shared if np.mean(both[0][n]) < np.mean(both[1][n])]
            better = f"at n = {', '.join(map(str, wins))}" if wins else "nowhere"
            told.append(f"The graph net is the better one {better} (of n = {', '.join(map(str, shared))}).")
    return " ".join(told)


def transfers(cells: Cells, found: Raw) -> Table:
    """One set of weights on networks of other sizes."""
    rows, verdict = [], ""
    for name in (n for n in cells if n.startswith("transfer-") and n in found):
        r = found[name]
        run = r["cell"]["run"]
        for size in r["sizes"]:
            cost = (f"{size['cost']:.4f}", shown(size["cost_se"]), f"{size['reference']:.4f}")
            rows.append(
                [run["setting"], f"{run['vary']['stores']:g}", str(size["stores"]), *cost, *_percent(size, 2)]
            )
        first, last = r["sizes"][0], r["sizes"][-1]
        verdict = (
            f"{run['setting']}: {100 * first['gap']:+.2f} % of the bound at {first['stores']} stores, "
            f"{100 * last['gap']:+.2f} % at {last['stores']}, without retraining."
        )
    head = ("setting", "trained on S", "tested on S", "cost", "s.e.", "bound", "gap %", "s.e. %")
    return Table(
        "Size transfer", "The graph net's weights on more stores, not trained again.", head, rows, verdict
    )


def speeds(cells: Cells, found: Raw) -> Table:
    """Store-periods trained per CPU second."""
    rows = []
    for name in (n for n in cells if n.startswith("speed-") and n in found):
        r, spec = found[name], found[name]["cell"]
        shape = [spec["policy"], str(spec.get("stores", 1)), str(spec.get("paths", 8192))]
        rate = f"{r['store_periods_per_second']:.3g}", f"{r['products_only']:.3g}", f"{100 * r['share']:.0f}"
        peak = f"{r['peak_mb']:.0f}" if "peak_mb" in r else ""
        rows.append(
            [*shape, *rate, peak, {"speed-one_store": "9.6e5", "speed-gnn-S5": "1.0e5"}.get(name, "")]
        )
    text = (
        "Store-periods trained (forward, backward, Adam; 50 periods) per CPU second on one thread, beside what its "
        "matrix products alone reach; peak memory of the whole process, libraries "
        "included. The official code's numbers are from another machine of the same kind."
    )
    head = (
        "policy",
        "stores",
        "paths",
        "trained / s",
        "products only / s",
        "share %",
        "peak MB",
        "official code / s",
    )
    return Table("Speed", text, head, rows)


def markdown(shown: Sequence[Table], intro: Sequence[str], figures: Mapping[str, Sequence[str]]) -> str:
    """The page; ``figures`` are file names by the title of the table that they follow."""
    lines = ["# Inventory policies against known optima", "", *intro]
    for table in shown:
        lines += [f"## {table.title}", "", *([table.text, ""] if table.text else [])]
        if table.rows:
            lines += [f"| {' | '.join(table.head)} |", f"|{'---|' * len(table.head)}"]
            lines += [f"| {' | '.join(row)} |" for row in table.rows]
        else:
            lines += ["Not measured yet."]
        lines += ["", *([table.verdict, ""] if table.verdict else [])]
        lines += [f"![{table.title}]({name})\n" for name in figures.get(table.title, ())]
    return "\n".join(lines)
