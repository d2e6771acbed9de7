"""benchmarks/inventory.md: gaps to known optima, gradient variance, equal time, sample efficiency, transfer, speed.

    python scripts/bench_inventory.py list                    all cells
    python scripts/bench_inventory.py run [NAME ...]          run what is missing (prefixes will do), write the pages
    python scripts/bench_inventory.py page                    write the pages from the raw numbers

A cell leaves benchmarks/raw/inventory/NAME.json and is never run twice; a training cell goes on from its checkpoint.
The cells are those of offrl.inventory_bench.plan; 'offrl inventory bench' runs its grid for any settings and policies.
"""

import argparse
import os
import sys
from pathlib import Path

from offrl.inventory_bench.bench import Bench
from offrl.inventory_bench.plan import published

ROOT = Path(__file__).parents[1]


def main() -> int:
    """List, run or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("list", "run", "page"))
    parser.add_argument("names", nargs="*", help="cells, or prefixes of their names")
    parser.add_argument("--work", type=Path, default=Path("bench-inventory"), help="where runs are kept")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--deadline", type=float, help="seconds after which no new cell starts")
    parser.add_argument(
        "--protocol", choices=("quick", "paper"), default="quick", help="paper: the sheet's full test"
    )
    o = parser.parse_args()
    cells = published()
    command = "python scripts/bench_inventory.py run"
    bench = Bench(cells, ROOT / "benchmarks", o.work, command, o.protocol)
    chosen = [n for n in cells if not o.names or any(n.startswith(prefix) for prefix in o.names)]
    if o.action == "list":
        done = bench.found()
        print("\n".join(f"{'done ' if n in done else '     '} {n}" for n in chosen))
        return 0
    if o.action == "page":
        bench.write()
        return 0
    missing = bench.run(chosen, jobs=o.jobs, deadline=o.deadline, say=lambda line: print(line, flush=True))
    return 1 if missing else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
