"""benchmarks/inventory_real.md: policies on weekly sales, profit per store and week on later weeks, paired by series.

    python scripts/bench_inventory_real.py run [NAME ...] [--data FOLDER]     run what is missing, write the page
    python scripts/bench_inventory_real.py page                               write the page from the raw numbers

FOLDER holds ``favorita/`` and ``favorita_21_stores/``, each with ``weekly_sales.pt`` (or csv, parquet); without it the
look-alike stands in, and the page says so. A cell leaves benchmarks/raw/inventory_real/NAME.json and is not run again.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.algos.hdpo import HDPOConfig
from offrl.envs.inventory.classical import just_in_time
from offrl.envs.inventory.policies import DemandFacts, make_policy
from offrl.envs.inventory.scenarios import evaluate
from offrl.files import atomic_write_text
from offrl.training.cells import Cell, run_cells
from offrl.training.inventory import InventoryOptions, resume, start
from offrl.training.run_dir import versions

ROOT = Path(__file__).parents[1]
RAW, PAGE = ROOT / "benchmarks/raw/inventory_real", ROOT / "benchmarks/inventory_real.md"
FOLDERS = {"favorita_one_store": "favorita", "favorita_21_stores": "favorita_21_stores"}
NET: dict[str, Any] = {"batch_size": 512, "lr": 3e-3, "lr_decay": True, "patience": 0, "normalize": True}
TAU: dict[str, Any] = {"batch_size": 512, "lr": 3e-2, "lr_decay": True, "patience": 0}
BIG: dict[str, Any] = {"batch_size": 24, "lr": 3e-3, "lr_decay": True, "patience": 0, "normalize": True}
TRAINED = {  # cell -> settings of HDPO, updates
    "favorita_one_store-data_driven": (NET, 400),
    "favorita_one_store-transformed_nv": (TAU, 80),
    "favorita_one_store-fixed_quantile": (TAU, 150),
    "favorita_one_store-base_stock": (TAU | {"lr": 1.0}, 80),
    "favorita_21_stores-data_driven": (BIG | {"lr": 1e-3}, 300),
    "favorita_21_stores-gnn": (BIG | {"normalize": False, "hidden": (16, 16)}, 100),
}
UNTRAINED = (
    "favorita_one_store-quantile_nv", "favorita_one_store-returns_nv", "favorita_one_store-just_in_time",
    "favorita_21_stores-just_in_time",
)  # fmt: skip
CELLS = (*TRAINED, *UNTRAINED)
NOTES = {
    "favorita_one_store-returns_nv": "may send stock back: not admissible",
    "favorita_one_store-just_in_time": "reads the future: the most that is possible",
    "favorita_21_stores-just_in_time": "reads the future and ships stock that is not there: no bound",
}


def run_cell(name: str, work: Path, data: Path | None) -> None:
    """Train where there is something to train; test on the last weeks; keep every series' profit."""
    torch.set_num_threads(1)
    setting_name, policy_name = name.split("-")
    source = str(data / FOLDERS[setting_name]) if data is not None else None
    settings, steps = TRAINED.get(name, ({}, 1))
    options = InventoryOptions(
        setting=setting_name, data=source, steps=steps, eval_every=max(steps // 10, 1), out=str(work / name)
    )
    setting, began = options.load(), time.process_time()
    if name in TRAINED:
        begun = sorted((work / name).glob("*/*/seed*"))
        (result,) = resume(begun[-1]) if begun else start(HDPOConfig(policy=policy_name, **settings), options)
        costs = result.costs
    else:
        test, train = setting.draw("test"), setting.draw("train")
        facts = DemandFacts.of(setting, train)
        if policy_name == "just_in_time":
            policy = just_in_time(test)
        else:
            policy = make_policy(policy_name, setting.network, facts, [torch.Generator().manual_seed(0)])
            policy.prepare(train)
        costs = evaluate(policy, test, ignore=setting.splits["test"].ignore)
    profits = [round(value, 4) for value in (-costs).tolist()]
    facts_of_run = {"settings": settings, "steps": steps, "cpu_seconds": time.process_time() - began}
    kind = "public" if data is not None else "look-alike"
    found = {"cell": name, "data": kind, "profits": profits, **facts_of_run}
    atomic_write_text(RAW / f"{name}.json", json.dumps({**found, "versions": versions("cpu", 1)}) + "\n")


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Half the width of the 95 % bootstrap interval of the mean by series, and the mean."""
    rows = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(high - low) / 2, float(values.mean())


def table(setting: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """Rows by falling profit; differences to the best admissible policy are paired by series."""
    own = {n: np.array(r["profits"]) for n, r in found.items() if n.startswith(f"{setting}-")}
    if not own:
        return []
    best = max((n for n in own if n not in NOTES), key=lambda n: own[n].mean(), default=next(iter(own)))
    oracle = own.get(f"{setting}-just_in_time")
    lines = [f"## {setting}", "", f"{len(own[best])} series."]
    lines += [
        "",
        "| policy | profit | % of just-in-time | less than the best | CPU s | |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(own, key=lambda n: -own[n].mean()):
        half, less = interval(own[best] - own[name])
        share = f"{100 * own[name].mean() / oracle.mean():.1f}" if oracle is not None else ""
        gap = "" if name == best or name in NOTES else f"{less:.2f} +- {half:.2f}"
        seconds, note = found[name]["cpu_seconds"], NOTES.get(name, "")
        shown = f"{own[name].mean():.2f} | {share} | {gap} | {seconds:.0f} | {note}"
        lines.append(f"| {name.split('-')[1]} | {shown} |")
    return [*lines, ""]


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    lines = ["# Inventory policies on weekly sales", ""]
    if found:
        some = next(iter(found.values()))
        v, kinds = some["versions"], sorted({r["data"] for r in found.values()})
        lines += [
            f"offrl commit {v['commit']}, torch {v['torch']}, {v['cpu']}, one thread. Data: {', '.join(kinds)}.",
            "",
        ]
    lines += [
        "Command: `python scripts/bench_inventory_real.py run`; raw numbers in `benchmarks/raw/inventory_real/`.",
        "",
        "Profit per store and week on weeks 118 to 170, of which the first 16 are only seen and the next 16 not",
        "counted. Policies are trained on weeks 0 to 110 and selected on weeks 88 to 140; all meet the same series, so",
        "that differences are paired; +- is half of the 95 % bootstrap interval over series. Seed 0, one run each.",
        "The look-alike is made up (`offrl.envs.inventory.sales.look_alike`): its numbers say how the methods rank on",
        "sales with seasons and returns, and are not those of the public data.",
        "",
    ]
    return "\n".join([*lines, *(line for setting in FOLDERS for line in table(setting, found))])


def main() -> int:
    """Run or write."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("action", choices=("run", "page", "cell"))
    parser.add_argument("names", nargs="*", help="cells, or prefixes of their names")
    parser.add_argument("--data", type=Path, help="folder of the public files")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench-inventory-real"), help="where runs are kept"
    )
    o = parser.parse_args()
    if o.action == "cell":
        run_cell(o.names[0], o.work, o.data)
        return 0
    missing: list[Any] = []
    if o.action == "run":
        RAW.mkdir(parents=True, exist_ok=True)
        chosen = [n for n in CELLS if not o.names or any(n.startswith(prefix) for prefix in o.names)]
        common = ("--work", str(o.work), *(("--data", str(o.data)) if o.data else ()))
        cells = [Cell(n, (sys.executable, __file__, "cell", n, *common), RAW / f"{n}.json") for n in chosen]
        missing = list(run_cells(cells, o.work / "logs", note=lambda s: print(s, flush=True)))
    files = {n: RAW / f"{n}.json" for n in CELLS}
    atomic_write_text(PAGE, page({n: json.loads(f.read_text()) for n, f in files.items() if f.exists()}))
    return 1 if missing else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
