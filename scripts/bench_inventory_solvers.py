"""Optimal costs of the published inventory settings; benchmarks/inventory_solvers.md from raw numbers.

    python scripts/bench_inventory_solvers.py measure    solves all of them, some minutes
    python scripts/bench_inventory_solvers.py page

Method: seconds are CPU-seconds of the process, one thread, with compiled code at hand; brackets are proven, see
docs/inventory_solvers.md.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offrl.envs.inventory.solvers import lost_sales_policies as policies
from offrl.envs.inventory.solvers.base_stock import base_stock
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.lost_sales import Average, LostSales, optimum
from offrl.envs.inventory.solvers.serial import serial
from offrl.envs.inventory.solvers.warehouse import warehouse
from offrl.files import atomic_write_json, atomic_write_text
from offrl.training.run_dir import versions

ROOT = Path(__file__).resolve().parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/inventory_solvers.json", ROOT / "benchmarks/inventory_solvers.md"
PENALTIES = (4, 9, 19, 39)
POLICIES: dict[str, Callable[[LostSales], Average]] = {
    "optimal": optimum,
    "Myopic-2": lambda problem: policies.myopic(problem, 2),
    "capped base-stock": policies.best_capped_base_stock,
    "myopic": policies.myopic,
    "base-stock": policies.best_base_stock,
    "vector base-stock": policies.vector_base_stock,
    "constant order": policies.best_constant_order,
}


def timed(solve: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the CPU-seconds that it took."""
    began = time.process_time()
    return solve(), time.process_time() - began


def record(problem: dict[str, Any], found: Any, seconds: float, **more: Any) -> dict[str, Any]:
    """One solved problem."""
    bracket = {"cost": found.cost, "lower": found.lower, "upper": found.upper}
    return {**problem, **bracket, "seconds": seconds, **more}


def backlogged() -> Iterator[dict[str, Any]]:
    """One store, demand Normal(5, 1.6) clipped at 0."""
    demand = parse_demand("normal:5,1.6")
    for lead_time in (1, 4, 7, 10, 15, 20):
        for penalty in PENALTIES:
            found, seconds = timed(lambda L=lead_time, p=penalty: base_stock(demand, L, 1, p))
            yield record({"lead_time": lead_time, "penalty": penalty}, found, seconds, level=found.level)


def lost() -> Iterator[dict[str, Any]]:
    """One store, lost sales, Poisson(5), all policies."""
    demand = parse_demand("poisson:5")
    for lead_time in (1, 2, 3, 4):
        for penalty in PENALTIES:
            problem = LostSales(demand=demand, lead_time=lead_time, holding=1, penalty=penalty)
            rows = {}
            for name, solve in POLICIES.items():
                found, seconds = timed(lambda solve=solve, problem=problem: solve(problem))
                rows[name] = record({"parameters": found.parameters}, found, seconds)
            yield {"lead_time": lead_time, "penalty": penalty, "policies": rows}


def series() -> Iterator[dict[str, Any]]:
    """Four stages, demand Normal(5, 2) clipped at 0."""
    demand = parse_demand("normal:5,2")
    for lead_time in (1, 2, 3, 4):
        for penalty in PENALTIES:
            found, seconds = timed(
                lambda L=lead_time, p=penalty: serial(demand, [2, 4, 3, L], [0.1, 0.2, 0.5, 1.0], p)
            )
            yield record({"lead_time": lead_time, "penalty": penalty}, found, seconds, levels=found.levels)


def transshipment() -> Iterator[dict[str, Any]]:
    """A centre and S stores; means and coefficients of variation as the published setting draws them."""
    for stores in (3, 5, 10):
        means = np.round(np.random.RandomState(33).uniform(2.5, 7.5, stores), 3)
        stds = np.round(means * np.random.RandomState(92).uniform(0.25, 0.5, stores), 3)
        for correlation in (0.0, 0.5):
            for lead_time in (2, 6):
                for penalty in (4, 9):
                    found = warehouse(means, stds, correlation, 3, lead_time, 1, penalty)
                    problem = {"stores": stores, "correlation": correlation, "lead_time": lead_time}
                    problem |= {"penalty": penalty, "bound_per_store": found.bound_per_store}
                    yield problem | {"level": found.level}


def measure() -> None:
    """Solve everything and write the raw numbers."""
    warm = LostSales(demand=parse_demand("pmf:.5,.5"), lead_time=2, holding=1, penalty=4)
    for solve in POLICIES.values():
        solve(warm)
    raw = {"versions": versions("cpu", 1), "backlogged": list(backlogged()), "lost": list(lost())}
    atomic_write_json(RAW, raw | {"serial": list(series()), "transshipment": list(transshipment())})


def grid(rows: list[dict[str, Any]], row: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
    """A table of penalties over another parameter."""
    lines = ["| L | " + " | ".join(f"p = {p}" for p in PENALTIES) + " |", "|---" * 5 + "|"]
    for value in dict.fromkeys(r[row] for r in rows):
        cells = [cell(next(r for r in rows if (r[row], r["penalty"]) == (value, p))) for p in PENALTIES]
        lines.append(f"| {value} | " + " | ".join(cells) + " |")
    return lines


def widest(rows: list[dict[str, Any]]) -> str:
    """The widest bracket and the CPU-seconds of a section."""
    width = max(row["upper"] - row["lower"] for row in rows)
    return f"Widest bracket {width:.1e}; {sum(row['seconds'] for row in rows):.2f} CPU-s in all."


def lost_table(rows: list[dict[str, Any]]) -> list[str]:
    """Policies with gaps, one line a problem."""
    lines = [
        "| L | p | optimal | " + " | ".join(list(POLICIES)[1:]) + " |",
        "|---" * (len(POLICIES) + 2) + "|",
    ]
    for row in rows:
        best = row["policies"]["optimal"]["cost"]
        cells = [f"{row['lead_time']}", f"{row['penalty']}", f"{best:.4f}"]
        for name in list(POLICIES)[1:]:
            one = row["policies"][name]
            levels = ",".join(f"{x:g}" for x in one["parameters"])
            gap = f"{round(100 * (one['cost'] / best - 1), 2) + 0.0:.2f} %"
            cells.append(f"{one['cost']:.4f} ({levels + '; ' if levels else ''}{gap})")
        lines.append("| " + " | ".join(cells) + " |")
    every = [one for row in rows for name, one in row["policies"].items()]
    seconds = {
        L: max(r["policies"]["optimal"]["seconds"] for r in rows if r["lead_time"] == L) for L in (3, 4)
    }
    search = max(row["policies"]["capped base-stock"]["seconds"] for row in rows)
    return [
        *lines,
        "",
        f"Widest bracket {max(one['upper'] - one['lower'] for one in every):.1e}. An optimum takes at most "
        f"{seconds[3]:.2f} CPU-s at L = 3 and {seconds[4]:.2f} at L = 4; the search for the best capped base-stock "
        f"policy up to {search:.1f}.",
    ]


def page() -> None:
    """Write the page from the raw numbers."""
    raw = json.loads(RAW.read_text())
    v = raw["versions"]
    lines = [
        "# Optimal costs of inventory settings",
        "",
        " ".join(str(__doc__).split("Method: ")[1].split()),
        "",
    ]
    lines += [
        "Regenerate: `python scripts/bench_inventory_solvers.py measure`, then `page`; raw numbers: "
        "`benchmarks/raw/inventory_solvers.json`.",
        "",
        f"offrl {v['offrl']} ({v['commit']}), numpy {v['numpy']}, {v['cpu']}, one thread. Costs are per "
        "period, holding 1.",
        "",
        "## One store, unmet demand waits, Normal(5, 1.6) clipped at 0: order-up-to level / cost",
        "",
    ]
    lines += grid(raw["backlogged"], "lead_time", lambda r: f"{r['level']:.2f} / {r['cost']:.4f}")
    lines += ["", widest(raw["backlogged"]), ""]
    lines += ["## One store, unmet demand is lost, Poisson(5): cost (levels; gap to the optimum)", ""]
    lines += [*lost_table(raw["lost"]), ""]
    lines += [
        "Zipkin (2008), L = 4, p = 4: optimal 4.73, Myopic-2 4.82, myopic 5.06, vector base-stock 5.83.",
        "",
    ]
    lines += [
        "## Four stages, Normal(5, 2) clipped at 0, lead times 2, 4, 3, L, holding .1, .2, .5, 1: echelon levels, cost",
        "",
    ]
    lines += grid(
        raw["serial"],
        "lead_time",
        lambda r: " ".join(f"{s:.2f}" for s in r["levels"]) + f" -> {r['cost']:.4f}",
    )
    lines += ["", widest(raw["serial"]), ""]
    lines += ["## Transshipment centre (lead time 3), normal demand not clipped: lower bound per store", ""]
    heads = [(L, p) for L in (2, 6) for p in (4, 9)]
    lines += [
        "| stores | correlation | " + " | ".join(f"L = {L}, p = {p}" for L, p in heads) + " |",
        "|---" * 6 + "|",
    ]
    bounds = {
        (r["stores"], r["correlation"], r["lead_time"], r["penalty"]): r["bound_per_store"]
        for r in raw["transshipment"]
    }
    for stores, correlation in dict.fromkeys(key[:2] for key in bounds):
        cells = [f"{bounds[stores, correlation, L, p]:.4f}" for L, p in heads]
        lines.append(f"| {stores} | {correlation:g} | " + " | ".join(cells) + " |")
    atomic_write_text(PAGE, "\n".join([*lines, ""]))


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    elif sys.argv[1:] == ["page"]:
        page()
    else:
        sys.exit(str(__doc__))
