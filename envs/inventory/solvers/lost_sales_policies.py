"""Heuristic policies for one location with lost sales, as tables of orders, and the best of each kind.

    base-stock         z = (S - position)^+
    capped base-stock  z = min((S - position)^+, cap)
    vector base-stock  z = min_l (S_l - x_l - ... - x_{L-1})^+, l = 0 .. L, S_l the newsvendor level of periods l .. L
    myopic             z minimizes the expected cost of period t + L, the first that it changes
    myopic-2           z minimizes that of periods t + L and t + L + 1, the second order being myopic
    constant order     z = r, whatever the state

Source: Zipkin 2008 (vector base-stock, myopic, Myopic-2), Johansen & Thorstenson 2008, Xin 2021 (capped),
Reiman 2004 (constant order), Janakiraman & Roundy 2004 (a base-stock policy's cost is convex in its level).
"""

import numpy as np
from scipy import optimize

from offrl.envs.inventory.solvers.base_stock import base_stock
from offrl.envs.inventory.solvers.demand import Array
from offrl.envs.inventory.solvers.lost_sales import (
    SLACK,
    Average,
    Integers,
    LostSales,
    compiled_loops,
    evaluate,
)

LARGEST_SOLVE = 1_500  # states of the constant order's chain


def base_stock_orders(totals: Array | Integers, level: int, cap: int | None = None) -> Integers:
    """Orders up to ``level``, at most ``cap`` of them; everything in grid steps."""
    return np.clip(level - np.asarray(totals, dtype=np.int64), 0, cap)


def best_base_stock(problem: LostSales, tolerance: float = 1e-6) -> Average:
    """The best base-stock policy."""
    best: Average | None = None
    for level in range(problem.most - SLACK, -1, -1):
        found = _base_stock(problem, level, None, tolerance, best.upper if best else np.inf)
        if best is not None and found.lower > best.upper:
            break
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return best


def best_capped_base_stock(problem: LostSales, tolerance: float = 1e-6) -> Average:
    """The best capped one: all caps, with levels from the best base-stock level to the largest total considered."""
    best = best_base_stock(problem, tolerance)
    start = round(best.parameters[0] / problem.demand.step)
    best = Average(
        name="capped base-stock", lower=best.lower, upper=best.upper, parameters=best.parameters * 2
    )
    for cap in range(1, start + 1):
        for level in range(start, problem.most + 1):
            found = _base_stock(problem, level, cap, tolerance, best.upper)
            best = found if found.cost < best.cost else best
    return best


def _base_stock(problem: LostSales, level: int, cap: int | None, tolerance: float, give_up: float) -> Average:
    step = problem.demand.step
    totals = compiled_loops().all_states(problem.lead_time, level)[:, -1]
    return evaluate(
        problem, base_stock_orders(totals, level, cap), level,
        "base-stock" if cap is None else "capped base-stock",
        parameters=(level * step,) if cap is None else (level * step, cap * step),
        tolerance=tolerance, give_up=give_up,
    )  # fmt: skip


def vector_base_stock(problem: LostSales, tolerance: float = 1e-6) -> Average:
    """The standard vector base-stock policy, whose orders are never below the optimal ones."""
    states = compiled_loops().all_states(problem.lead_time, problem.most)
    before = np.concatenate([np.zeros((len(states), 1), dtype=np.int64), states], axis=1)
    levels = [
        round(
            base_stock(problem.demand, problem.lead_time - i, problem.holding, problem.penalty).level
            / problem.demand.step
        )
        for i in range(problem.lead_time + 1)
    ]
    orders = np.maximum((np.array(levels) - (states[:, -1:] - before)).min(axis=1), 0)
    return evaluate(problem, orders, problem.most, "vector base-stock", tolerance=tolerance)


def myopic_orders(problem: LostSales, periods: int = 1) -> Integers:
    """The orders of the myopic policy, or with ``periods=2`` of Myopic-2, by rank of the state, grid steps."""
    loops, length, top = compiled_loops(), problem.lead_time, problem.most
    cost, pmf, at_least = problem.tables(top)
    table = loops.binomials(length + 1, top)
    stage = cost
    for n in range(1, length + 1):
        stage = loops.expected_later(stage, pmf, at_least, table, n, top)
    values, best = np.zeros(problem.states(top)), np.empty(problem.states(top))
    orders = np.zeros(len(values), dtype=np.int64)
    for _ in range(periods):
        loops.minimize(values, np.zeros_like(cost), stage, pmf, at_least, table, length, top, best, orders)
        values, best = best, values
    return orders


def myopic(problem: LostSales, periods: int = 1, tolerance: float = 1e-6) -> Average:
    """The myopic policy, or with ``periods=2`` Myopic-2."""
    name = "myopic" if periods == 1 else f"myopic-{periods}"
    return evaluate(problem, myopic_orders(problem, periods), problem.most, name, tolerance=tolerance)


def best_constant_order(problem: LostSales) -> Average:
    """The best constant order; it does not depend on the lead time."""
    steps = problem.demand.mean / problem.demand.step
    return min(
        (constant_order(problem, r) for r in range(int(np.ceil(steps - 1e-9)))), key=lambda found: found.cost
    )


def constant_order(problem: LostSales, order: int) -> Average:
    """The cost of ordering ``order`` grid steps every period, fewer than the mean demand.

    What is left is Y' = (Y + r - D)^+. On 0 .. N it is solved exactly; with theta > 0 the root of
    E e^{theta (r - D)} = 1, N hides at most N e^{-theta N} + e^{-theta N} / (e^theta - 1) of its mean (Kingman's
    bound and duality).
    """
    demand, r = problem.demand, order
    steps = np.arange(len(demand.pmf))
    lost = problem.penalty * (demand.mean - r * demand.step)
    if r <= steps[demand.pmf > 0][0]:
        return Average(name="constant order", lower=lost, upper=lost, parameters=(r * demand.step,))

    def drift(theta: float) -> float:
        return float(np.log(np.exp(-theta * (steps - r)) @ demand.pmf))

    high = 1e-3
    while drift(high) < 0:
        high *= 2
    low = high
    while drift(low) >= 0:
        low /= 2
    theta = float(optimize.brentq(drift, low, high))
    size = min(int(np.ceil(36 / theta)), LARGEST_SOLVE)
    left = _mean_left(demand.pmf, r, size)
    hidden = size * np.exp(-theta * size) + np.exp(-theta * size) / np.expm1(theta)
    lower = lost + problem.holding * demand.step * left
    upper = lower + problem.holding * demand.step * float(hidden)
    return Average(name="constant order", lower=lower, upper=upper, parameters=(r * demand.step,))


def _mean_left(pmf: Array, order: int, size: int) -> float:
    """E Y of Y' = min((Y + order - D)^+, size), in grid steps."""
    states = np.arange(size + 1)
    sales = states[:, None] + order - states[None, :]  # demand that leads from a row to a column
    known = np.append(pmf, 0.0)
    moves = known[np.where((sales >= 0) & (sales < len(pmf)), sales, len(pmf))]
    cdf = np.append(np.cumsum(pmf), 1.0)
    moves[:, -1] = np.where(sales[:, -1] >= 0, cdf[np.clip(sales[:, -1], 0, len(pmf))], 0.0)
    moves[:, 0] = 0.0
    moves[:, 0] = 1.0 - moves.sum(axis=1)
    system = np.eye(size + 1) - moves.T
    system[0] = 1.0
    right = np.zeros(size + 1)
    right[0] = 1.0
    return float(np.linalg.solve(system, right) @ states)
