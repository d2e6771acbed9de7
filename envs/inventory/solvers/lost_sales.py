"""One location, lost sales: the optimal policy by dynamic programming, and the exact cost of any other.

State: stock on hand x_0 (this period's delivery is in) and what arrives in 1 .. L - 1 periods, x_1 .. x_{L-1}. With
average cost g and order z,

    V(x) + g = min_z h E(x_0 - D)^+ + p E(D - x_0)^+ + E V((x_0 - D)^+ + x_1, x_2, ..., x_{L-1}, z)

No more than S, the newsvendor level of L + 1 periods, is ever ordered up to, which makes the states finite. Value
iteration keeps MacQueen's bracket: min (TV - V) <= g <= max (TV - V), and stops when it is narrow.

Source: Karlin & Scarf 1958, Morton 1969 (the bound S), Zipkin 2008 (states).
Demand is whole numbers of the grid; all demand beyond the stock acts alike, so that no tail is cut off.
"""

from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from offrl.envs.inventory.solvers.base_stock import base_stock, check_costs
from offrl.envs.inventory.solvers.demand import Array, Demand
from offrl.errors import ConfigError

Integers = NDArray[np.int64]
SLACK = 4  # grid points above S, so that reaching the edge would show
MOST_STATES = 100_000_000  # with their orders; the myopic policies keep a number for each
SWEEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Average:
    """A policy's cost per period, by a bracket."""

    name: str
    lower: float
    upper: float
    parameters: tuple[float, ...] = ()
    """Level, or level and cap, or the constant order, items."""

    @property
    def cost(self) -> float:
        """The middle of the bracket."""
        return (self.lower + self.upper) / 2


@dataclass(frozen=True, kw_only=True)
class Optimum(Average):
    """The optimal cost and policy."""

    orders: Integers = field(repr=False)
    """The optimal order by the rank of the state, in grid steps."""
    top: int
    """Largest total in the table, grid steps."""
    lead_time: int
    step: float
    sweeps: int

    def order(self, pipeline: Array) -> Array:
        """Optimal orders, (B,), items, for stock on hand and arrivals of the next L - 1 periods, (B, L), items."""
        totals = np.cumsum(np.rint(np.asarray(pipeline) / self.step).astype(np.int64), axis=1)
        table = compiled_loops().binomials(self.lead_time, self.top)
        inside = np.clip(totals, 0, self.top)
        ranks = table[np.arange(self.lead_time), inside].sum(axis=1)
        return np.where(totals[:, -1] < self.top, self.orders[ranks], 0) * self.step


@dataclass(frozen=True, kw_only=True)
class LostSales:
    """A problem: one location with lost sales.

    Raises:
        ConfigError: an impossible cost or lead time, or a table of more than a hundred million entries.
    """

    demand: Demand
    lead_time: int
    """L, 1 or more: an order serves the demand L periods later."""
    holding: float
    """h, per item left at the end of a period."""
    penalty: float
    """p, per item of demand lost."""

    def __post_init__(self) -> None:
        check_costs(self.lead_time, self.holding, self.penalty)
        if self.lead_time < 1:
            raise ConfigError("lead_time must be 1 period or more with lost sales")
        size = self.states(self.most, 1)
        if size > MOST_STATES:
            raise ConfigError(
                f"the dynamic program would have {size:.1e} states and orders (totals up to {self.most}, lead time "
                f"{self.lead_time}), more than {MOST_STATES:.0e}; take a shorter lead time or a coarser grid step"
            )

    def states(self, top: int, further: int = 0) -> int:
        """Number of states, or with ``further=1`` of states with an order."""
        size = 1
        for i in range(1, self.lead_time + further + 1):
            size = size * (top + i) // i
        return size

    @cached_property
    def most(self) -> int:
        """Totals considered, grid steps: the newsvendor level of L + 1 periods and a little slack."""
        level = base_stock(self.demand, self.lead_time, self.holding, self.penalty).level
        return int(np.ceil(level / self.demand.step - 1e-9)) + SLACK

    def tables(self, top: int) -> tuple[Array, Array, Array]:
        """Cost by stock on hand 0 .. top, pmf and P(D >= k) of demand."""
        pmf = np.zeros(top + 1)
        held = min(top + 1, len(self.demand.pmf))
        pmf[:held] = self.demand.pmf[:held]
        at_least = 1 - np.concatenate([[0.0], np.cumsum(pmf)[:-1]])
        left = self.demand.step * np.concatenate([[0.0], np.cumsum(np.cumsum(pmf)[:-1])])
        lost = left + self.demand.mean - self.demand.step * np.arange(top + 1)
        return self.holding * left + self.penalty * np.maximum(lost, 0.0), pmf, np.maximum(at_least, 0.0)


def compiled_loops() -> ModuleType:
    """The compiled part: numba comes in here."""
    from offrl.envs.inventory.solvers import lost_sales_loops

    return lost_sales_loops


def optimum(problem: LostSales, tolerance: float = 1e-6) -> Optimum:
    """The optimal cost, within ``tolerance``, and an optimal policy."""
    loops, length, top = compiled_loops(), problem.lead_time, problem.most
    cost, pmf, at_least = problem.tables(top)
    table = loops.binomials(length + 1, top)
    values, best = np.zeros(problem.states(top)), np.empty(problem.states(top))
    orders = np.zeros(len(values), dtype=np.int64)
    lower, upper, sweeps = -np.inf, np.inf, 0
    while upper - lower > tolerance:
        loops.minimize(values, cost, np.empty(0), pmf, at_least, table, length, top, best, orders)
        change = best - values
        lower, upper, sweeps = max(lower, change.min()), min(upper, change.max()), sweeps + 1
        values, best = best - best[0], values
        if sweeps == SWEEPS:
            raise ConfigError(f"value iteration has not converged: cost in [{lower:.6g}, {upper:.6g}]")
    return Optimum(
        name="optimal", lower=float(lower), upper=float(upper), orders=orders, top=top, lead_time=length,
        step=problem.demand.step, sweeps=sweeps,
    )  # fmt: skip


def evaluate(
    problem: LostSales, orders: Integers, top: int, name: str, *, parameters: tuple[float, ...] = (),
    tolerance: float = 1e-6, give_up: float = np.inf,
) -> Average:  # fmt: skip
    """The cost of a policy given as a table of orders in grid steps, by rank of the state.

    Args:
        problem: the system.
        orders: (states,); no order may lead above ``top``.
        top: largest total, grid steps.
        name: of the policy.
        parameters: recorded in the result.
        tolerance: width of the bracket.
        give_up: stop early once the cost is known to be above it.
    """
    loops, length = compiled_loops(), problem.lead_time
    cost, pmf, at_least = problem.tables(top)
    states = loops.all_states(length, top)
    ranks, begins, nexts = loops.reachable(states, orders, pmf, loops.binomials(length, top))
    lower, upper = loops.average_cost(
        states[ranks, 0], begins, nexts, cost, pmf, at_least, tolerance, give_up, SWEEPS
    )
    return Average(name=name, lower=lower, upper=upper, parameters=parameters)
