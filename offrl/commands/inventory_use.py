"""``offrl inventory backtest`` and ``recommend``: was it better, and what to order next."""

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offrl.commands.arguments import parse
from offrl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from offrl.envs.inventory.policies import InventoryPolicy
    from offrl.envs.inventory.scenarios import Policy, Scenarios
    from offrl.envs.inventory.spec import Network
    from offrl.envs.inventory.work.backtest import Report
    from offrl.envs.inventory.work.planning import Plan


@dataclass(frozen=True)
class Backtest:
    """A trained policy against the min/max levels in use, and against what was ordered, on held-out dates.

    All meet the same demand: sales as they were, and where stock had run out or a period is missing, draws from
    the demand fitted on earlier dates (32 times over). All keep all ordering rules. Costs count from the first
    held-out period on; the interval resamples blocks of four periods. Two examples:
    offrl inventory backtest runs/hdpo/net/seed0-TIME --out backtest.xlsx
    offrl inventory backtest runs/hdpo/net-I003/seed0-TIME --orders actual.csv --versus minmax.csv --from 2025-09-01

    With --orders, all start at that date from the stock that was there; without, at the first period of the sales.
    """

    run: tyro.conf.Positional[Path]
    """A run directory, trained on a workbook or folder (net.xlsx) or on an item of it (net.xlsx:I003)."""
    orders: Path | None = None
    """Orders as they were placed: a CSV or Parquet file with item, from, to, date, quantity, or the sheet 'orders'
    of a workbook or folder."""
    versus: Path | None = None
    """Other min/max levels: a file with item, node, min, max, or the sheet 'levels' of a workbook or folder.
    Default: the sheet 'stock'."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="DATE")] = None
    """First date that counts, such as 2025-09-01; default: the first that training did not see."""
    out: Path | None = None
    """Workbook to write, with a row for each item, its group of ABC-XYZ, and the worst 20."""


@dataclass(frozen=True)
class Recommend:
    """What a trained policy orders today, from the stock in its company's tables, with two other rules beside it.

    Beside each order stand those of today's min/max and of a textbook base-stock level (the mean of the periods to
    cover, and the quantile p / (p + h) of their spread). Quantities keep all ordering rules. A warning stands where
    today's stock is outside the range that training saw.
    """

    run: tyro.conf.Positional[Path]
    """A run directory, trained on a workbook or folder or on an item of it."""
    state: Path | None = None
    """Today's stock: a file with the columns of the sheet 'stock', or a workbook or folder with it; default:
    the company's."""
    out: Path = Path("orders.xlsx")
    """Workbook to write; a name without a suffix: a folder of CSV files."""


def main(argv: list[str]) -> int:
    """``argv`` begins with the subcommand's name."""
    if argv[0] == "backtest":
        return _backtest(parse(Backtest, "offrl inventory backtest", argv[1:]))
    return _recommend(parse(Recommend, "offrl inventory recommend", argv[1:]))


def load_plan(run: Path) -> "tuple[Plan, InventoryPolicy]":
    """What a run was trained on, and its policy.

    Raises:
        ConfigError: the tables are not here, or have changed.
    """
    from offrl.envs.inventory.policies import load_policy
    from offrl.envs.inventory.protocol import penalised
    from offrl.envs.inventory.work.planning import is_company, read_plan
    from offrl.training.run_dir import RunDir

    policy, known = load_policy(run), RunDir(run).config.get("inventory", {})
    name = str(known.get("setting", ""))
    if not any(is_company(part) and Path(part).exists() for part in (name, name.rpartition(":")[0])):
        raise ConfigError(f"{run} was trained on {name!r}, which is no workbook or folder that is here")
    plan = read_plan(name)
    if _without_stock(penalised(plan.network, known.get("penalty", 1.0))) != _without_stock(policy.network):
        raise ConfigError(f"{name} has changed its network or costs since {run} was trained; train again")
    dated = not policy.facts.stationary or any(edge.calendar for edge in plan.network.edges)
    first, now = RunDir(run).config.get("first"), plan.company.first.isoformat()
    if dated and first and first != now:
        raise ConfigError(
            f"the sales of {name} begin on {now}, those that {run} was trained on did on {first}: its season and order "
            "days would fall on other dates; keep the first rows, or train again"
        )
    until, held_out = RunDir(run).config.get("until"), plan.company.dates()[plan.start].isoformat()
    if until and held_out < until:
        raise ConfigError(
            f"the sales of {name} end sooner than those that {run} was trained on: their last fifth begins on "
            f"{held_out}, and training saw all dates before {until}; put the last rows back, or train again"
        )
    return plan, policy


def _without_stock(network: "Network") -> "Network":
    return replace(network, nodes=tuple(replace(node, initial=0.0) for node in network.nodes))


def acting(plan: "Plan", policy: "Policy") -> "Policy":
    """The policy with whole units, where the item is sold so; a company's own network has packs for that."""
    from offrl.envs.inventory.policies import rounded

    return rounded(policy, plan.network) if plan.whole else policy


def _backtest(o: Backtest) -> int:
    from offrl.envs.inventory.work.backtest import Report
    from offrl.envs.inventory.work.orders import as_placed, by_lane, read_levels, read_orders, stock_at
    from offrl.envs.inventory.work.planning import has_levels, held_out_scenarios, levels_in_use, min_max
    from offrl.envs.inventory.work.scoring import score
    from offrl.envs.inventory.work.writing import writable

    plan, policy = load_plan(o.run)
    if o.out is not None:
        writable(o.out)
    start, begin = _first(plan, o.from_), 0
    levels = None if o.versus is None else read_levels(o.versus, plan.company)
    rivals: dict[str, Policy] = {"learned": acting(plan, policy)}
    scenarios = held_out_scenarios(plan)
    if o.orders is not None:
        ordered, begin = by_lane(plan, read_orders(o.orders, plan.company)), start
        if not ordered[start:].any():
            raise ConfigError(f"{o.orders} has no order of {plan.name} from {plan.company.dates()[start]} on")
        scenarios = _from(scenarios, stock_at(plan, ordered, start))
        rivals["as ordered"] = as_placed(ordered)
    if o.orders is None or levels is not None or has_levels(plan):  # else what was ordered is rival enough
        rivals["min/max"] = acting(plan, min_max(plan.network, levels_in_use(plan, levels)))
    scores = {name: score(rival, scenarios, start, begin=begin) for name, rival in rivals.items()}
    report = Report(plan=plan, scores=scores)
    _print(report, start)
    if o.out is not None:
        _write(report, o.out)
    return 0


def _first(plan: "Plan", text: str | None) -> int:
    """The period from which costs count."""
    from offrl.envs.inventory.work.company import LENGTH

    if text is None:
        return plan.start
    dates, step = plan.company.dates(), LENGTH[plan.company.period]
    try:
        away = (date.fromisoformat(text) - plan.company.first).days
    except ValueError:
        raise ConfigError(f"--from takes a date such as {dates[plan.start]}, got {text!r}") from None
    period = -(-away // step)
    if period < plan.start:
        raise ConfigError(
            f"--from {text} is before {dates[plan.start]}, the first date that training did not see"
        )
    if period >= plan.periods:
        raise ConfigError(f"--from {text} is after the last sales, of {dates[-1]}")
    return period


def _from(scenarios: "Scenarios", stock: "Tensor") -> "Scenarios":
    return replace(scenarios, initial=stock.expand(len(scenarios), -1, -1).clone())


def _print(report: "Report", start: int) -> None:
    from offrl.envs.inventory.work.scoring import saving

    plan, year = report.plan, report.year
    dates, period = plan.company.dates(), plan.company.period
    what = f"{plan.name}, {len(plan.items)} items" if plan.joint else plan.name
    print(f"{what}: {dates[start]} to {dates[-1]}, {len(dates) - start} {period}s held out")
    print(
        f"{'policy':12}{'cost a year':>14}{'of it short':>14}{'fill rate':>11}{'on hand':>11}{'stock value':>13}"
    )
    for name, cost, short, fill, on_hand, value in report.summary()[1:]:
        worth = "-" if value is None else f"{value:,.0f}"
        print(f"{name:12}{cost:14,.0f}{short:14,.0f}{fill:11.3f}{on_hand:11,.0f}{worth:>13}")
    first, *others = report.scores.items()
    for name, other in others:
        gain = saving(first[1].costs.sum(1), other.costs.sum(1))
        print(
            f"learned saves {gain.per_period * year:z,.0f} {plan.company.currency} a year against {name}, "
            f"95 % interval {gain.low * year:z,.0f} to {gain.high * year:z,.0f}: {gain.verdict}"
        )
    if plan.joint:
        print("\nby value (A 80 %, B 15 %, C 5 %) and spread of demand (X < 0.5, Y < 1, Z)")
        _lines(report.by_group())
        worst = report.worst()
        head = worst[0]
        chosen = [
            k
            for k, name in enumerate(head)
            if name.partition(" ")[0] in ("item", "group", "cost", "saved", "fill")
        ]
        print(f"\nthe {len(worst) - 1} items on which least is saved")
        _lines([tuple(row[k] for k in chosen) for row in worst])


def _lines(rows: list[tuple[Any, ...]]) -> None:
    def text(value: Any, name: str) -> str:
        if not isinstance(value, float):
            return "-" if value is None else str(value)
        return f"{value:.3f}" if name.startswith("fill") else f"{value:z,.0f}"

    head = rows[0]
    table = [head, *([text(value, name) for value, name in zip(row, head, strict=True)] for row in rows[1:])]
    widths = [max(len(str(row[k])) for row in table) + 2 for k in range(len(head))]
    for row in table:
        print("".join(f"{value!s:>{width}}" for value, width in zip(row, widths, strict=True)).rstrip())


def _write(report: "Report", out: Path) -> None:
    from offrl.envs.inventory.work.writing import write_tables

    rows = {
        "summary": report.summary(),
        "groups": report.by_group(),
        "items": report.items(),
        "worst": report.worst(),
    }
    write_tables(rows, out)
    print(f"written: {out}")


def _recommend(o: Recommend) -> int:
    from offrl.envs.inventory.work.recommend import recommend
    from offrl.envs.inventory.work.writing import writable, write_tables

    writable(o.out)
    plan, policy = load_plan(o.run)
    if o.state is not None:
        plan = _with_stock(plan, o.state)
    rows: dict[str, Any] = {"orders": recommend(plan, policy)}
    write_tables(rows, o.out)
    head, *body = rows["orders"]
    shown = [row for row in body if row[3]][:SHOWN] if plan.joint else body
    for row in [head[:-1], *(row[:-1] for row in shown)]:
        print(
            "".join(
                f"{'-' if value is None else value!s:>{width}}"
                for value, width in zip(row, WIDTHS, strict=True)
            )
        )
    if len(shown) < len(body):
        print(f"... {len(body)} lanes, {sum(row[3] > 0 for row in body)} with an order")
    for row in body:
        if row[-1]:
            print(f"warning: {row[0]} at {row[2]}: {row[-1]}")
    print(f"written: {o.out}")
    return 0


SHOWN = 12
WIDTHS = (8, 10, 10, 9, 15, 18, 12, 9, 11, 12)


def _with_stock(plan: "Plan", path: Path) -> "Plan":
    """The plan with today's stock from a file of its own."""
    from offrl.envs.inventory.work.company import with_stock
    from offrl.envs.inventory.work.planning import plan_of

    return plan_of(with_stock(plan.company, path), None if plan.joint else plan.items[0])
