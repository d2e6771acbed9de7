"""``offrl inventory solve``: optimal inventory policies and their costs, exactly."""

import difflib
import json
import math
import textwrap
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from offrl.commands.arguments import parse
from offrl.envs.inventory.solvers import lost_sales_policies as policies
from offrl.envs.inventory.solvers.base_stock import base_stock, base_stock_costs
from offrl.envs.inventory.solvers.demand import KINDS, STEPS_PER_STD, Demand, parse_demand
from offrl.envs.inventory.solvers.fixed_cost import fixed_cost
from offrl.envs.inventory.solvers.lost_sales import SLACK, Average, LostSales, compiled_loops, optimum
from offrl.envs.inventory.solvers.serial import serial
from offrl.envs.inventory.solvers.warehouse import warehouse
from offrl.errors import ConfigError, UsageError
from offrl.files import atomic_write, atomic_write_json

Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")]
Periods = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a problem's solver found, ready to print and to write."""

    cost: float
    lower: float
    upper: float
    meaning: str = "optimal cost"
    policy: dict[str, Any]
    """Levels and the like, by name."""
    table: tuple[Average, ...] = ()
    """Policies with their costs."""
    arrays: dict[str, Any] = field(default_factory=dict)
    """What ``--out FILE.npz`` holds."""


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Options of every problem."""

    penalty: float
    """Cost p of an item of demand that is not met; where demand waits, per period."""
    json: bool = False
    """Print one JSON object."""
    out: Path | None = None
    """Also write what was found: FILE.json, the same as --json; FILE.npz, the policy as arrays."""

    @abstractmethod
    def solve(self) -> Solution:
        """Solve it."""


@dataclass(frozen=True, kw_only=True)
class OneStore(Problem):
    """Options of one location."""

    demand: str
    """Demand of a period, e.g. poisson:5 or normal:5,1.6 (clipped at zero); 'offrl inventory solve' lists all."""
    lead_time: int
    """Periods L: an order serves the demand L periods later, so that L + 1 periods of demand matter."""
    holding: float = 1.0
    """Cost h of an item left at the end of a period."""
    step: float | None = None
    """Grid of a continuous demand, items; default: a 400th of its std."""

    def parsed(self) -> Demand:
        """The demand."""
        return parse_demand(self.demand, self.step)


@dataclass(frozen=True, kw_only=True)
class BaseStockOptions(OneStore):
    """One location, unmet demand waits: base-stock level (newsvendor).

    Example: offrl inventory solve base-stock --demand normal:5,1.6 --lead-time 4 --holding 1 --penalty 9
    """

    def solve(self) -> Solution:
        """By convolution."""
        demand = self.parsed()
        found = base_stock(demand, self.lead_time, self.holding, self.penalty)
        levels, costs = base_stock_costs(demand, self.lead_time, self.holding, self.penalty)
        return Solution(
            cost=found.cost, lower=found.lower, upper=found.upper, policy={"order up to": found.level},
            arrays={"level": found.level, "levels": levels, "costs": costs},
        )  # fmt: skip


SMALL = 1_000_000  # states with their orders: some seconds, heuristics included


@dataclass(frozen=True, kw_only=True)
class LostSalesOptions(OneStore):
    """One location, unmet demand is lost: dynamic program, and heuristics.

    States grow fast with the lead time: 4 takes seconds, 5 a minute or two. A continuous demand is solved as rounded to
    --step, which is printed; by default so coarse that this takes seconds, as far as its std allows.

    Example: offrl inventory solve lost-sales --demand poisson:5 --lead-time 4 --holding 1 --penalty 9
    """

    step: float | None = None
    """Grid of a continuous demand, items; default: a sixth of its std, more (up to that) where the table is large."""
    tolerance: float = 1e-6
    """Width of the bracket around every cost."""
    optimal_only: bool = False
    """Leave the heuristics out; capped base-stock is a search that takes longer than the optimum."""

    def parsed(self) -> Demand:
        """The demand."""
        demand = parse_demand(self.demand, self.step)
        if self.step is not None or not demand.continuous:
            return demand
        std = STEPS_PER_STD * demand.step
        level = base_stock(demand, self.lead_time, self.holding, self.penalty).level
        for parts in (6, 4, 3, 2, 1):
            top, length = math.ceil(level * parts / std) + SLACK, self.lead_time + 1
            if math.comb(top + length, length) <= SMALL:
                break
        return parse_demand(self.demand, std / parts)

    def solve(self) -> Solution:
        """By value iteration."""
        if not self.tolerance > 1e-11:
            raise ConfigError(f"tolerance must be above 1e-11, got {self.tolerance:g}")
        problem = LostSales(
            demand=self.parsed(), lead_time=self.lead_time, holding=self.holding, penalty=self.penalty
        )
        best = optimum(problem, self.tolerance)
        table: tuple[Average, ...] = (best,)
        if not self.optimal_only:
            table += (
                policies.myopic(problem, 2, self.tolerance),
                policies.best_capped_base_stock(problem, self.tolerance),
                policies.myopic(problem, 1, self.tolerance),
                policies.best_base_stock(problem, self.tolerance),
                policies.vector_base_stock(problem, self.tolerance),
                policies.best_constant_order(problem),
            )
        totals = compiled_loops().all_states(self.lead_time, best.top)
        rounded = {"grid step": best.step} if problem.demand.continuous else {}
        return Solution(
            cost=best.cost, lower=best.lower, upper=best.upper, table=table,
            policy=rounded | {"states": len(best.orders), "sweeps": best.sweeps},
            arrays={
                "pipelines": np.diff(totals, axis=1, prepend=0) * best.step,
                "orders": best.orders * best.step,
            },
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SerialOptions(Problem):
    """Stages in series, unmet demand waits: echelon levels (Clark-Scarf).

    Lead times and holding costs are given from the most upstream stage to the store. Stock on its way is free.

    Example: offrl inventory solve serial --demand normal:5,2 --lead-times 2 4 3 4 --holdings .1 .2 .5 1 --penalty 9
    """

    demand: str
    """Demand of a period at the store: poisson:MEAN, normal:MEAN,STD and so on, as for base-stock."""
    lead_times: Periods
    """Periods, one a stage, 0 or more."""
    holdings: Numbers
    """Local holding costs per item and period, one a stage, never falling towards the store."""
    step: float | None = None
    """Grid of a continuous demand, items; default: a 400th of its std."""

    def solve(self) -> Solution:
        """By Clark and Scarf's recursion."""
        found = serial(
            parse_demand(self.demand, self.step), list(self.lead_times), list(self.holdings), self.penalty
        )
        levels = {"echelon levels": found.levels, "local levels": found.local_levels}
        return Solution(
            cost=found.cost, lower=found.lower, upper=found.upper, policy=levels,
            arrays={"echelon_levels": found.levels, "local_levels": found.local_levels},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WarehouseOptions(Problem):
    """A centre without stock, many stores, unmet demand waits: lower bound (Federgruen-Zipkin).

    Demand is jointly normal and not clipped at zero. The bound is per period and store; it is nearly reached.

    Example: offrl inventory solve warehouse --means 4 5 6 --stds 1.5 2 2 --correlation .5 --centre-lead-time 3
    --store-lead-time 2 --penalty 9
    """

    means: Numbers
    """Mean demand of a period, one a store."""
    stds: Numbers
    """Standard deviations, one a store."""
    correlation: float = 0.0
    """Of any two stores' demands in the same period."""
    centre_lead_time: int
    """Periods from an order until the centre shares its goods out."""
    store_lead_time: int
    """Periods from there until they serve demand."""
    holding: float = 1.0
    """Cost h of an item left at a store at the end of a period."""

    def solve(self) -> Solution:
        """In closed form."""
        found = warehouse(
            np.array(self.means), np.array(self.stds), self.correlation, self.centre_lead_time,
            self.store_lead_time, self.holding, self.penalty,
        )  # fmt: skip
        bound = found.bound_per_store
        return Solution(
            cost=bound, lower=bound, upper=np.inf, meaning="lower bound per store",
            policy={"order up to, whole system": found.level}, arrays={"level": found.level},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FixedCostOptions(OneStore):
    """One location, unmet demand waits, orders have a fixed cost: (s, S) policy.

    Example: offrl inventory solve fixed-cost --demand poisson:5 --lead-time 2 --fixed 20 --holding 1 --penalty 9
    """

    fixed: float
    """Cost of an order, whatever its size."""

    def solve(self) -> Solution:
        """By the search of Zheng and Federgruen."""
        found = fixed_cost(self.parsed(), self.lead_time, self.holding, self.penalty, self.fixed)
        return Solution(
            cost=found.cost, lower=found.cost, upper=found.cost,
            policy={"reorder point s": found.reorder_point, "order up to S": found.level},
            arrays={"reorder_point": found.reorder_point, "level": found.level},
        )  # fmt: skip


PROBLEMS: dict[str, type[Problem]] = {
    "base-stock": BaseStockOptions,
    "lost-sales": LostSalesOptions,
    "serial": SerialOptions,
    "warehouse": WarehouseOptions,
    "fixed-cost": FixedCostOptions,
}
SETTINGS = {  # published setting -> the problem that it is; options typed after it replace these
    "one_store_backlogged": "base-stock --demand normal:5,1.6 --lead-time 4 --penalty 9",
    "one_store_lost": "lost-sales --demand poisson:5 --lead-time 4 --penalty 9",
    "serial_system": "serial --demand normal:5,2 --lead-times 2 4 3 4 --holdings .1 .2 .5 1 --penalty 9",
    "transshipment_backlogged": "warehouse --means 3.743 4.750 4.555 3.801 6.852 --stds 1.765 2.124 1.622 1.405 "
    "1.714 --correlation .5 --centre-lead-time 3 --store-lead-time 2 --penalty 4",
}


def overview() -> str:
    """The text of ``offrl inventory solve --help``."""
    lines = [
        "usage: offrl inventory solve PROBLEM ...   or   offrl inventory solve SETTING ...",
        "",
        "The optimal policy and its average cost per period, or a bound, with the bracket that is proven.",
        "",
        "problems ('offrl inventory solve PROBLEM --help' explains each):",
    ]
    lines += [f"  {name:10} {str(form.__doc__).splitlines()[0]}" for name, form in PROBLEMS.items()]
    lines += ["", "settings, with options that can be given anew:"]
    lines += [
        textwrap.fill(f"  {name:24} {typed}", 110, subsequent_indent=" " * 27)
        for name, typed in SETTINGS.items()
    ]
    lines += ["", "demands: " + ", ".join(f"{name}:{what}" for name, what in KINDS.items())]
    lines += [
        "",
        "An order with lead time L serves the demand L periods later. Each period: order, serve demand, pay for",
        "what is left (holding) and what is missing (penalty).",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``offrl inventory solve ...``."""
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    problem = problem_of(name, rest)
    if problem.out is not None and problem.out.suffix not in (".json", ".npz"):
        raise ConfigError(f"--out {problem.out} must end in .json or .npz")
    began = time.perf_counter()
    solution = problem.solve()
    record = record_of(name, problem, solution, time.perf_counter() - began)
    if problem.out is not None and problem.out.suffix == ".json":
        atomic_write_json(problem.out, record)
    elif problem.out is not None:
        with atomic_write(problem.out) as temporary:
            np.savez(temporary, **solution.arrays)
    print(json.dumps(record) if problem.json else describe(record))
    return 0


def problem_of(name: str, argv: list[str]) -> Problem:
    """The problem that was typed: a kind with its options, or a setting with what is to differ."""
    typed = SETTINGS.get(name, name).split()
    if typed[0] not in PROBLEMS:
        near = difflib.get_close_matches(name, [*PROBLEMS, *SETTINGS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown problem {name!r}{hint} ('offrl inventory solve --help' lists all)")
    return parse(PROBLEMS[typed[0]], f"offrl inventory solve {name}", [*typed[1:], *argv])


def record_of(name: str, problem: Problem, solution: Solution, seconds: float) -> dict[str, Any]:
    """Everything found, as JSON has it: no infinities, which stand as None."""
    options = {
        k: v for k, v in asdict(problem).items() if k not in ("json", "out", "optimal_only") and v is not None
    }
    rows = [
        {"policy": row.name, "parameters": row.parameters, "cost": row.cost, "lower": row.lower, "upper": row.upper,
         "gap_percent": 100 * (row.cost / solution.cost - 1) if solution.cost else None}
        for row in solution.table
    ]  # fmt: skip
    record = {"problem": name, "options": options, "meaning": solution.meaning, "cost": solution.cost}
    record |= {"lower": solution.lower, "upper": solution.upper, "policy": solution.policy, "policies": rows}
    finite: dict[str, Any] = json.loads(json.dumps(record | {"seconds": seconds}), parse_constant=_none)
    return finite


def _none(constant: str) -> None:
    """Infinity has no place in JSON."""


def describe(record: dict[str, Any]) -> str:
    """The record in words."""
    options = ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in record["options"].items())
    lines = [f"{record['problem']}: {options}", f"{record['meaning']:24} {record['cost']:.5f}"]
    if record["upper"] is not None and record["upper"] - record["lower"] > 5e-13 * abs(record["cost"]):
        lines[-1] += f"   proven: {record['lower']:.6f} to {record['upper']:.6f}"
    lines += [f"{name:24} {_shown(value)}" for name, value in record["policy"].items()]
    if record["policies"]:
        lines += ["", f"{'policy':20} {'cost':>10} {'gap':>9}   levels"]
    for row in record["policies"]:
        gap = "" if row["gap_percent"] is None else f"{round(row['gap_percent'], 2) + 0.0:.2f} %"
        lines.append(
            f"{row['policy']:20} {row['cost']:10.4f} {gap:>9}   {_shown(row['parameters'])}".rstrip()
        )
    return "\n".join([*lines, "", f"{record['seconds']:.2f} s"])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if value is None:
        return "unlimited"
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"
