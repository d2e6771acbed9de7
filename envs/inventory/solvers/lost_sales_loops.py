"""The loops of the lost-sales dynamic program, compiled by numba.

A state is c_0 <= c_1 <= ... <= c_{L-1}, running totals of stock on hand and of what arrives in 1 .. L - 1 periods, none
above ``top``. Its rank is sum_i B[i, c_i] with B[i, c] = C(c + i, i + 1), the combinatorial number system: ranks run
without gaps from 0 to C(top + L, L) - 1, and states that differ in c_0 only are neighbours. An order raises c_{L-1} to
c_L; then demand sells s = min(d, c_0) and the next state is (c_1 - s, ..., c_L - s).

For fixed (c_1 .. c_L) the expectation over demand is a running sum in c_0, so that a sweep costs one look-up for every
(c_0 .. c_L), not one for every demand besides.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from offrl.errors import MissingExtraError

try:
    from numba import njit
except ImportError as error:
    raise MissingExtraError("numba", "inventory") from error

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Numba's ``njit``, cached on disk, without the lock."""
    return cast(Function, njit(cache=True, nogil=True)(function))


@compiled
def binomials(length: int, top: int) -> Integers:
    """B[i, c] = C(c + i, i + 1) for i < length and c <= top + 1; B[length - 1, top + 1] is the number of states."""
    table = np.zeros((length, top + 2), dtype=np.int64)
    table[0] = np.arange(top + 2)
    for i in range(1, length):
        for c in range(1, top + 2):
            table[i, c] = table[i, c - 1] + table[i - 1, c]
    return table


@compiled
def all_states(length: int, top: int) -> Integers:
    """Every non-decreasing c of ``length`` totals up to ``top``, in the order of ranks: (states, length)."""
    table = binomials(length, top)
    states = np.zeros((table[length - 1, top + 1], length), dtype=np.int64)
    for rank in range(1, len(states)):
        i = 0
        while i < length - 1 and states[rank - 1, i] == states[rank - 1, i + 1]:
            i += 1
        states[rank] = states[rank - 1]
        states[rank, i] += 1
        states[rank, :i] = 0
    return states


@compiled
def _advance(c: Integers, top: int) -> bool:
    """The next non-decreasing sequence, the last number moving fastest; False after the last one."""
    i = len(c) - 1
    while i >= 0 and c[i] == top:
        i -= 1
    if i < 0:
        return False
    value = c[i] + 1
    for k in range(i, len(c)):
        c[k] = value
    return True


@compiled
def minimize(
    values: Floats,
    cost: Floats,
    stage: Floats,
    pmf: Floats,
    at_least: Floats,
    table: Integers,
    length: int,
    top: int,
    best: Floats,
    orders: Integers,
) -> None:
    """One sweep: best = min over c_L of [cost(c_0) + stage(c_0 .. c_L) + E values(next)], and the smallest minimizer.

    Args:
        values: of the next state, by rank.
        cost: of the period by c_0.
        stage: further cost of state and order, by the rank of (c_0 .. c_L); empty for none.
        pmf: of demand 0 .. top.
        at_least: P(demand >= k), k = 0 .. top.
        table: of ``binomials(length + 1, top)``.
        length: L.
        top: largest total.
        best: the result, by rank.
        orders: its order quantities c_L - c_{L-1}.
    """
    best[:] = np.inf
    c = np.zeros(length, dtype=np.int64)  # c_1 .. c_L
    going = True
    while going:
        row, extended = 0, 0
        for i in range(length - 1):
            row += table[i + 1, c[i]]
        if len(stage):
            extended = row + table[length, c[length - 1]]
        below = 0.0  # sum over d < k
        for k in range(c[0] + 1):
            rank = 0
            for i in range(length):
                rank += table[i, c[i] - k]
            value = values[rank]
            total = cost[k] + below + at_least[k] * value
            if len(stage):
                total += stage[extended + k]
            if total < best[row + k]:
                best[row + k] = total
                orders[row + k] = c[length - 1] - (c[length - 2] if length > 1 else k)
            below += pmf[k] * value
        going = _advance(c, top)


@compiled
def expected_later(
    values: Floats, pmf: Floats, at_least: Floats, table: Integers, length: int, top: int
) -> Floats:
    """E values(c_1 - s, ..., c_n - s) by the rank of (c_0 .. c_n), n = ``length`` the length of the given states."""
    result = np.empty(table[length, top + 1])
    c = np.zeros(length, dtype=np.int64)
    going = True
    while going:
        row = 0
        for i in range(length):
            row += table[i + 1, c[i]]
        below = 0.0
        for k in range(c[0] + 1):
            rank = 0
            for i in range(length):
                rank += table[i, c[i] - k]
            result[row + k] = below + at_least[k] * values[rank]
            below += pmf[k] * values[rank]
        going = _advance(c, top)
    return result


@compiled
def reachable(
    states: Integers, orders: Integers, pmf: Floats, table: Integers
) -> tuple[Integers, Integers, Integers]:
    """What a policy can reach from the empty system.

    Returns:
        The ranks reached; where the successors of each begin, one more than ranks; the successors' positions among the
        ranks, for sales 0 .. c_0.
    """
    length = states.shape[1]
    place = np.full(len(states), -1, dtype=np.int64)
    ranks = np.empty(len(states), dtype=np.int64)
    begins = np.zeros(len(states) + 1, dtype=np.int64)
    nexts = np.empty(1024, dtype=np.int64)
    ranks[0], place[0], count = 0, 0, 1
    done = 0
    while done < count:
        at = ranks[done]
        begin, width = begins[done], states[at, 0] + 1
        while begin + width > len(nexts):
            nexts = np.concatenate((nexts, np.empty_like(nexts)))
        last = states[at, length - 1] + orders[at]
        for k in range(width):
            rank = table[length - 1, last - k]
            for i in range(length - 1):
                rank += table[i, states[at, i + 1] - k]
            if place[rank] < 0 and (k == width - 1 or pmf[k] > 0):
                place[rank] = count
                ranks[count] = rank
                count += 1
            nexts[begin + k] = max(place[rank], 0)
        begins[done + 1] = begin + width
        done += 1
    return ranks[:count].copy(), begins[: count + 1].copy(), nexts[: begins[count]].copy()


@compiled
def average_cost(
    on_hand: Integers,
    begins: Integers,
    nexts: Integers,
    cost: Floats,
    pmf: Floats,
    at_least: Floats,
    tolerance: float,
    give_up: float,
    sweeps: int,
) -> tuple[float, float]:
    """Lower and upper bound of a policy's cost per period, from the span of value iteration on what it reaches.

    Stops when they are ``tolerance`` apart, or when the lower one is above ``give_up``.
    """
    values = np.zeros(len(on_hand))
    after = np.zeros(len(on_hand))
    lower, upper = -np.inf, np.inf
    for _ in range(sweeps):
        for state in range(len(on_hand)):
            begin, stock = begins[state], on_hand[state]
            total = cost[stock] + at_least[stock] * values[nexts[begin + stock]]
            for k in range(stock):
                total += pmf[k] * values[nexts[begin + k]]
            after[state] = total
        change = after - values
        lower, upper = max(lower, change.min()), min(upper, change.max())
        values[:] = after - after[0]
        if upper - lower <= tolerance or lower > give_up:
            break
    return lower, upper
