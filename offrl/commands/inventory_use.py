"""``offrl inventory backtest`` and ``recommend``: was it better, and what to order next."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from offrl.commands.arguments import parse
from offrl.errors import ConfigError

if TYPE_CHECKING:
    from offrl.envs.inventory.policies import InventoryPolicy
    from offrl.envs.inventory.spec import Network
    from offrl.envs.inventory.work.company import Company

YEAR = {"week": 52, "day": 365}


@dataclass(frozen=True)
class Backtest:
    """A trained policy against the min/max levels in use, on the held-out dates of its company: money per year.

    Both meet the same demand: sales as they were, and where stock had run out or a period is missing, draws from
    the demand fitted on earlier dates (32 times over). Both keep all ordering rules. Costs count from the first
    held-out period on; the interval resamples blocks of four periods. An example:
    offrl inventory train net:I003 --policy base_stock --normalize --lr 0.05 --estimator pathwise --steps 400
    offrl inventory backtest runs/hdpo/net-I003/seed0-TIME
    """

    run: tyro.conf.Positional[Path]
    """A run directory, trained on an item of a workbook or folder (net.xlsx:I003)."""


@dataclass(frozen=True)
class Recommend:
    """What a trained policy orders today, from the stock in its company's tables, with today's min/max beside it.

    Quantities keep all ordering rules. A warning stands where today's stock is outside the range that training saw.
    """

    run: tyro.conf.Positional[Path]
    """A run directory, trained on an item of a workbook or folder."""
    out: Path = Path("orders.xlsx")
    """Workbook to write; a name without a suffix: a folder of CSV files."""


def main(argv: list[str]) -> int:
    """``argv`` begins with the subcommand's name."""
    if argv[0] == "backtest":
        return _backtest(parse(Backtest, "offrl inventory backtest", argv[1:]).run)
    o = parse(Recommend, "offrl inventory recommend", argv[1:])
    return _recommend(o.run, o.out)


def _load(run: Path) -> "tuple[Company, int, InventoryPolicy]":
    from offrl.envs.inventory.policies import load_policy
    from offrl.envs.inventory.work.company import read_company
    from offrl.training.run_dir import RunDir

    policy = load_policy(run)
    name = str(RunDir(run).config.get("inventory", {}).get("setting", ""))
    path, _, item = name.rpartition(":")
    if not path or not Path(path).exists():
        raise ConfigError(
            f"{run} was trained on {name!r}, which is no item of a workbook or folder that is here"
        )
    company = read_company(path)
    index = company.index(item)
    if _without_stock(company.network(index)) != _without_stock(policy.network):
        raise ConfigError(f"{path} has changed its network or costs since {run} was trained; train again")
    return company, index, policy


def _without_stock(network: "Network") -> "Network":
    return replace(network, nodes=tuple(replace(node, initial=0.0) for node in network.nodes))


def _backtest(run: Path) -> int:
    import torch

    from offrl.envs.inventory.kpis import kpis
    from offrl.envs.inventory.policies import rounded
    from offrl.envs.inventory.scenarios import rollout
    from offrl.envs.inventory.work.planning import held_out_scenarios, levels_in_use, min_max, saving

    company, item, policy = _load(run)
    scenarios, start = held_out_scenarios(company, item)
    network, dates = scenarios.network, company.dates()
    rivals = {
        "learned": rounded(policy, network), "min/max": min_max(network, levels_in_use(company, item, network))
    }  # fmt: skip
    span = f"{dates[start]} to {dates[-1]}, {len(dates) - start} {company.period}s held out"
    print(f"item {company.items[item].name!r}: {span}")
    print(f"{'policy':10}{'cost a year':>14}{'fill rate':>11}{'on hand':>11}")
    costs, year = {}, YEAR[company.period]
    with torch.no_grad():
        for name, rival in rivals.items():
            done = rollout(rival, scenarios, feasibility="project", record=True)
            found = kpis(done, scenarios, ignore=start)
            costs[name] = done.costs[start:].sum(2).mean(1)
            weight = scenarios.demands[start:].mean((0, 1)).double()
            fill = float((found.fill_rate * weight).sum() / weight.sum())
            print(
                f"{name:10}{float(costs[name].mean()) * year:14,.0f}{fill:11.3f}{float(found.on_hand.sum()):11,.0f}"
            )
    gain = saving(costs["learned"], costs["min/max"])
    low, high = gain.low * year, gain.high * year
    verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    print(
        f"learned saves {gain.per_period * year:,.0f} {company.currency} a year, 95 % interval {low:,.0f} to "
        f"{high:,.0f}: {verdict}"
    )
    return 0


def _recommend(run: Path, out: Path) -> int:
    from offrl.envs.inventory.work.recommend import recommend
    from offrl.envs.inventory.work.writing import write_tables

    company, item, policy = _load(run)
    rows: dict[str, Any] = {"orders": recommend(company, item, policy)}
    write_tables(rows, out)
    for row in rows["orders"]:
        print("  ".join(f"{'-' if value is None else value!s:>12}" for value in row))
    print(f"written: {out}")
    return 0
