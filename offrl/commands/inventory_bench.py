"""``offrl inventory bench``: settings x policies, trained, tested, drawn."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from offrl.commands.arguments import parse
from offrl.errors import ConfigError


@dataclass(frozen=True)
class BenchOptions:
    """Train and test policies on settings; write inventory.md and inventory.html with tables and drawings.

    A setting is a name ('offrl inventory list'), a name with what it lets vary, or a YAML file of your own; none: all
    published ones. Expected core-minutes are printed first; --dry-run stops there. Give the same command again to
    go on where it was stopped. A page shows cost, standard error, gap to the optimum or bound where theory has one,
    training time, one demand path, where the money goes, flows, and for lost sales the orders beside the optimal ones.

    To start from:

    offrl inventory bench one_store_lost:lead_time=2,underage_cost=4 --policies base_stock mlp_one_store optimal

    offrl inventory bench serial_system one_warehouse_lost_demand:stores=3 --jobs 2 --out my-bench
    """

    settings: tyro.conf.Positional[tuple[str, ...]] = ()
    """NAME, NAME:KEY=NUMBER,KEY=NUMBER or FILE.yaml."""
    policies: tuple[str, ...] = ()
    """Names; none: all that make sense on a setting. Those that a network cannot have are left out."""
    protocol: Literal["quick", "paper"] = "quick"
    """quick: tests of 4096 paths of 1000 periods; paper: the settings' own (many times longer)."""
    steps: int = 0
    """Updates of every trained policy; 0: 400 for levels and quantiles, 1000 for nets."""
    seeds: tuple[int, ...] = (0,)
    """Of every trained policy; trained side by side."""
    jobs: int = 1
    """Processes at once, one thread each."""
    deadline: float | None = None
    """Seconds after which nothing new starts and what runs is asked to stop; it goes on next time."""
    out: Path = Path("bench-inventory")
    """Folder of the pages, of raw/ numbers and of runs/."""
    dry_run: bool = False
    """Say what would be done and what it would cost."""
    quiet: bool = False
    """Print nothing but errors."""


def main(argv: list[str]) -> int:
    """``offrl inventory bench ...``."""
    o = parse(BenchOptions, "offrl inventory bench", argv)
    if o.jobs < 1:
        raise ConfigError(f"jobs must be 1 or more, got {o.jobs}")
    if o.steps < 0 or (o.deadline is not None and o.deadline <= 0):
        raise ConfigError("steps must be 0 or more, deadline above 0")
    if not o.seeds or min(o.seeds) < 0 or len(set(o.seeds)) < len(o.seeds):
        raise ConfigError(f"seeds must be different and 0 or more, got {o.seeds}")
    from offrl.envs.inventory.settings import SETTINGS
    from offrl.inventory_bench.bench import Bench
    from offrl.inventory_bench.plan import grid_cells

    settings = o.settings or tuple(name.removesuffix("-v1") for name in SETTINGS)
    cells = dict(grid_cells(settings, o.policies, seeds=o.seeds, steps=o.steps))
    command = " ".join(["offrl", "inventory", "bench", *argv])
    bench = Bench(cells, o.out, o.out / "runs", command, o.protocol)
    bench.check()
    _say_costs(bench.expected(list(cells)), o)
    if o.dry_run:
        return 0
    missing = bench.run(list(cells), jobs=o.jobs, deadline=o.deadline, say=lambda line: _say(line, o))
    _say(f"wrote {o.out / 'inventory.md'} and {o.out / 'inventory.html'}", o)
    if missing:
        raise ConfigError(
            f"{len(missing)} cells are not measured yet ({missing[0]}, ...): give the command again"
        )
    return 0


def _say(line: str, o: BenchOptions) -> None:
    if not o.quiet:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _say_costs(costs: dict[str, float], o: BenchOptions) -> None:
    for name, seconds in costs.items():
        _say(f"{seconds / 60:7.1f} core-min  {name}", o)
    total = sum(costs.values()) / 60
    _say(f"{total:7.1f} core-min expected in all, {total / o.jobs:.0f} min with {o.jobs} at once", o)
