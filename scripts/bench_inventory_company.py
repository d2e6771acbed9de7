"""Thousands of items under one policy: time and memory of reading, fitting and training, on made-up companies.

    OMP_NUM_THREADS=1 python scripts/bench_inventory_company.py --items 2000 --steps 150 --out runs/company

One warehouse and two stores an item (three places), 104 weeks of sales, training paths of 104 weeks, shared trucks.
Prints the parts and writes OUT/company.json.
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

import torch

from offrl.algos.hdpo import HDPOConfig
from offrl.envs.inventory.work.example import example
from offrl.envs.inventory.work.planning import held_out_scenarios, levels_in_use, min_max, read_plan
from offrl.envs.inventory.work.scoring import YEAR, saving, score
from offrl.envs.inventory.work.writing import write_tables
from offrl.training.inventory import InventoryOptions, start


def company(items: int, path: Path) -> None:
    """The example with one warehouse and two stores, as a folder."""
    rows = {name: list(table) for name, table in example(items=items, stores=2).rows.items()}
    lanes = [row for row in rows["lanes"] if row[1] != "West"]
    rows["lanes"] = [("East", *row[1:]) if row[0] == "West" else row for row in lanes]
    rows["orders"] = rows["orders"][:1]
    for name, column in (("nodes", 0), ("costs", 1), ("stock", 1)):
        rows[name] = [row for row in rows[name] if row[column] != "West"]
    trucks = [
        (*row[:-1], 2 * row[-1]) if row[-1] not in (None, "shared_capacity") else row for row in rows["lanes"]
    ]
    rows["lanes"] = trucks
    stock = {row[:2]: row for row in rows["stock"][1:]}
    for key, row in stock.items():  # the warehouse serves both stores now: twice its levels
        if key[1] == "East":
            stock[key] = (*row[:2], 2 * row[2], 0, None, 2 * row[5], 2 * row[6], row[7])
    rows["stock"] = [rows["stock"][0], *stock.values()]
    del rows["orders"]
    write_tables(rows, path)


def main() -> None:
    """Write the company, read it, fit, train, back-test; time each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/company"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.out / f"net{given.items}"
    if not folder.exists():
        company(given.items, folder)
    found: dict[str, Any] = {"items": given.items, "steps": given.steps, "machine": platform.machine()}

    def timed(name: str, began: tuple[float, float]) -> None:
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[name] = {"seconds": wall, "cpu_seconds": cpu, "peak_mib": peak}
        print(f"{name:10}{wall:9.1f} s{cpu:9.1f} s of processor, peak {peak:,.0f} MiB so far", flush=True)

    now = time.perf_counter(), time.process_time()
    options = InventoryOptions(
        setting=str(folder), train_periods=104, steps=given.steps, eval_every=max(1, given.steps // 3),
        checkpoint_every=given.steps, out=str(given.out / "runs"),
    )  # fmt: skip
    (result,) = start(HDPOConfig(policy="item_levels"), options)
    timed("train", now)
    now = time.perf_counter(), time.process_time()
    plan = read_plan(str(folder))
    scenarios = held_out_scenarios(plan)
    learned = score(result.policy, scenarios, plan.start)
    rule = score(min_max(plan.network, levels_in_use(plan)), scenarios, plan.start)
    timed("backtest", now)
    year, gain = YEAR["week"], saving(learned.costs.sum(1), rule.costs.sum(1))
    found["backtest"] |= {
        "learned": learned.costs.sum(1).mean() * year, "min_max": rule.costs.sum(1).mean() * year,
        "fill": [learned.fill, rule.fill], "saved": [x * year for x in (gain.per_period, gain.low, gain.high)],
    }  # fmt: skip
    print(json.dumps(found["backtest"]))
    (given.out / "company.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
