"""``offrl inventory explain`` and ``frontier``: what an ERP can hold of a policy, and what service costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from offrl.commands.arguments import parse
from offrl.errors import ConfigError

if TYPE_CHECKING:
    from offrl.envs.inventory.work.planning import Plan

POINTS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Factors of today's levels on the frontier."""


@dataclass(frozen=True)
class Explain:
    """The classical policy nearest to a trained one, as levels that an ERP system can hold, and what that costs.

    The trained policy is followed on training paths; what it orders up to, and at which stock it orders, become the
    levels. Both then meet the held-out dates. The sheet 'levels' is what 'backtest --versus' reads. An example:
    offrl inventory explain runs/hdpo/net/seed0-TIME --as sS --out levels.xlsx
    """

    run: tyro.conf.Positional[Path]
    """A run directory, trained on a workbook or folder or on an item of it."""
    as_: Annotated[Literal["sS", "base-stock"], tyro.conf.arg(name="as")] = "sS"
    """sS: order up to max at or below min. base-stock: one level."""
    out: Path = Path("levels.xlsx")
    """Workbook to write; a name without a suffix: a folder of CSV files."""


@dataclass(frozen=True)
class Frontier:
    """What service costs: policies trained at several prices on unmet demand, beside today's min/max levels.

    Every point is scored on the held-out dates: the share of demand that is met at once, and the money a year for
    stock and orders (what is short is not in it, as that is what the other axis shows). Today's levels are also tried
    times 0.5 to 2, if the sheet 'stock' has any. An example:
    offrl inventory frontier net --policies item_levels --steps 150
    """

    setting: tyro.conf.Positional[str]
    """A workbook or folder (net.xlsx), or an item of it (net.xlsx:I003)."""
    policies: tuple[str, ...] = ("item_levels",)
    """What is trained; 'offrl inventory list' shows all."""
    penalties: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
    """Factors of the underage costs."""
    steps: int = 150
    """Updates of each training."""
    lr: float | None = None
    """Adam step size; None: that of the policy."""
    seed: int = 0
    """Of the trainings."""
    out: Path = Path("frontier")
    """Folder for frontier.csv and frontier.png."""


def main(argv: list[str]) -> int:
    """``argv`` begins with the subcommand's name."""
    if argv[0] == "explain":
        return _explain(parse(Explain, "offrl inventory explain", argv[1:]))
    return _frontier(parse(Frontier, "offrl inventory frontier", argv[1:]))


def _explain(o: Explain) -> int:
    import torch

    from offrl.commands.inventory_use import acting, load_plan
    from offrl.envs.inventory.work.explain import nearest
    from offrl.envs.inventory.work.planning import held_out_scenarios, min_max, setting_of
    from offrl.envs.inventory.work.scoring import YEAR, saving, score
    from offrl.envs.inventory.work.writing import writable, write_tables

    writable(o.out)
    plan, policy = load_plan(o.run)
    paths = setting_of(plan, "explained").draw("dev")
    levels = nearest(policy, paths.rows(torch.arange(min(len(paths), 16))), o.as_)
    scenarios, year = held_out_scenarios(plan), YEAR[plan.company.period]
    learned = score(acting(plan, policy), scenarios, plan.start)
    simple = score(acting(plan, min_max(plan.network, levels)), scenarios, plan.start)
    gap = saving(simple.costs.sum(1), learned.costs.sum(1))
    print(f"{plan.name}: {len(levels)} places by {'min and max' if o.as_ == 'sS' else 'one level each'}")
    for name, own in (("learned", learned), (o.as_, simple)):
        print(f"{name:12}{float(own.costs.sum(1).mean()) * year:14,.0f} a year, fill rate {own.fill:.3f}")
    print(
        f"the simpler policy costs {-gap.per_period * year:z,.0f} {plan.company.currency} more a year, 95 % interval "
        f"{-gap.high * year:z,.0f} to {-gap.low * year:z,.0f}"
    )
    rows = [(*plan.label(n), *map(int, levels[n].tolist())) for n in range(len(levels))]
    tables: dict[str, list[tuple[Any, ...]]] = {"levels": [("item", "node", "min", "max"), *rows]}
    tables["costs"] = _costs(plan, learned.costs, simple.costs)
    write_tables(tables, o.out)
    print(f"written: {o.out}; next: offrl inventory backtest {o.run} --versus {o.out}")
    return 0


def _costs(plan: "Plan", learned: Any, simple: Any) -> list[tuple[Any, ...]]:
    """A row an item: what the simplification costs there."""
    from offrl.envs.inventory.work.scoring import YEAR

    a, b = (plan.of_item(own.mean(0)) * YEAR[plan.company.period] for own in (learned, simple))
    rows = [
        (plan.company.items[k].name, float(x), float(y), float(y - x))
        for k, x, y in zip(plan.items, a, b, strict=True)
    ]
    return [("item", "cost learned", "cost simpler", "more a year"), *sorted(rows, key=lambda row: -row[3])]


def _frontier(o: Frontier) -> int:
    from offrl.algos.hdpo import HDPOConfig
    from offrl.commands.inventory_use import acting
    from offrl.envs.inventory.protocol import Setting
    from offrl.envs.inventory.work.planning import (
        has_levels,
        held_out_scenarios,
        levels_in_use,
        min_max,
        read_plan,
        setting_of,
    )
    from offrl.envs.inventory.work.scoring import YEAR, Score, score
    from offrl.training.inventory import dearer
    from offrl.training.inventory_target import fresh, trained

    if o.steps < 1 or not o.penalties or min(o.penalties) <= 0:
        raise ConfigError("--steps must be 1 or more, and every one of --penalties above 0")
    if o.out.exists():
        raise ConfigError(f"{o.out} exists already; choose another name or remove it")
    plan = read_plan(o.setting)
    configs = [HDPOConfig(policy=name, lr=o.lr) for name in o.policies]
    scenarios, year = held_out_scenarios(plan), YEAR[plan.company.period]
    setting: Setting = setting_of(plan, o.setting)
    for config in configs:  # one that does not fit is known before the work on the others
        fresh(config, setting, o.steps, o.seed)
    rows: list[tuple[Any, ...]] = [("policy", "factor", "fill_rate", "stock_and_orders", "short", "cost")]
    print(
        f"{plan.name}\n{'policy':14}{'factor':>8}{'fill rate':>11}{'stock and orders':>18}{'with short':>14}"
    )

    def add(name: str, factor: float, own: Score) -> None:
        cost, short = float(own.costs.sum(1).mean()) * year, float(own.underage.sum()) * year
        rows.append(
            (name, factor, round(own.fill, 5), round(cost - short, 2), round(short, 2), round(cost, 2))
        )
        print(f"{name:14}{factor:8g}{own.fill:11.3f}{cost - short:18,.0f}{cost:14,.0f}", flush=True)

    for factor in POINTS if has_levels(plan) else ():
        add(
            "min/max",
            factor,
            score(acting(plan, min_max(plan.network, levels_in_use(plan) * factor)), scenarios, plan.start),
        )
    for config in configs:
        for factor in o.penalties:
            policy = trained(config, dearer(setting, factor), o.steps, o.seed)
            add(config.policy, factor, score(acting(plan, policy), scenarios, plan.start))
    print(f"written: {_drawn(plan, rows, o.out)}")
    return 0


def _drawn(plan: "Plan", rows: list[tuple[Any, ...]], out: Path) -> str:
    """The table and the picture."""
    import csv

    from offrl.envs.inventory.work import pictures

    out.mkdir(parents=True)
    with open(out / "frontier.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    picture = pictures.draw_frontier(rows[1:], plan.name, plan.company.currency, out / "frontier.png")
    return f"{out / 'frontier.csv'}, {picture}"
