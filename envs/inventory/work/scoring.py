"""What a policy costs on scenarios, what it serves and what lies in stock; savings with their interval; ABC-XYZ."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.envs.inventory.extended import ExtendedSimulator
from offrl.envs.inventory.rules import RuledState
from offrl.envs.inventory.scenarios import Policy, Scenarios, guarded

Array = NDArray[np.float64]
YEAR = {"week": 52, "day": 365}
"""Periods."""
ABC = ((0.8, "A"), (0.95, "B"), (1.0, "C"))
"""Share of all money, the largest items first."""
XYZ = ((0.5, "X"), (1.0, "Y"), (np.inf, "Z"))
"""Spread of demand over its mean, season left out."""
SAME = 1e-6
"""Costs are sums in single precision: those that differ by a smaller part are the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Means over scenarios; T periods from the first that counts, N nodes, S stores."""

    costs: Array
    """(T, N), money of a period."""
    underage: Array
    """(N,), its part for what was short, a period."""
    served: Array
    """(S,), units a period."""
    demand: Array
    """(S,), units a period."""
    on_hand: Array
    """(N,), units at the end of a period."""

    @property
    def fill(self) -> float:
        """Share of all units demanded that were served at once."""
        return float(self.served.sum() / max(self.demand.sum(), 1e-12))


@torch.no_grad()
def score(policy: Policy, scenarios: Scenarios, start: int, *, begin: int = 0) -> Score:
    """Follow a policy from the initial stock at period ``begin`` on; periods from ``start`` on count."""
    simulator, upstream = scenarios.simulator(), scenarios.network.upstream
    state, costs = simulator.start(scenarios.initial), []
    if isinstance(state, RuledState):
        state = state._replace(period=begin)
    totals: list[Tensor] = [torch.zeros(())] * 4
    for t in range(begin, scenarios.periods):
        stock = simulator.stock(state)
        action = guarded(simulator, stock, policy(scenarios.observe(stock, t)), "project")
        demand = scenarios.demands[t + scenarios.history]
        sent = (
            simulator.filled(stock, action.clamp(min=0), t)
            if isinstance(simulator, ExtendedSimulator)
            else action
        )
        state, cost = simulator.step(state, action, demand)
        if t < start:
            continue
        costs.append(cost.double().mean(0))
        there = stock[..., 0]
        if scenarios.network.same_period:
            there = there + simulator.at_once(sent)
        left = there - torch.cat([simulator.shipped(sent), demand], 1)
        short = (-left[:, upstream:]).clamp(min=0)
        own = (
            torch.minimum(there[:, upstream:].clamp(min=0), demand),
            demand,
            left.clamp(min=0),
            short * scenarios.parameters.underage[..., upstream:],
        )
        totals = [total + x.double().mean(0) for total, x in zip(totals, own, strict=True)]
    served, wanted, on_hand, lost = (x.numpy() / len(costs) for x in totals)
    money = np.concatenate([np.zeros(upstream), lost])
    return Score(
        costs=torch.stack(costs).numpy(), underage=money, served=served, demand=wanted, on_hand=on_hand,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Money that one policy saves against another on the same demand."""

    per_period: float
    low: float
    """95 % interval, by blocks of 4 periods resampled; all numbers where there are fewer than two."""
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"


def saving(ours: Array, theirs: Array, block: int = 4, draws: int = 4000) -> Saving:
    """Of the costs of each period, (T,) each; the interval is over dates, which are what is scarce."""
    gap = theirs - ours
    gap[np.abs(gap) <= SAME * (np.abs(ours) + np.abs(theirs))] = 0.0
    count = len(gap) // block
    if count < 2:  # one block resampled is always itself
        return Saving(per_period=float(gap.mean()), low=-np.inf, high=np.inf)
    blocks = np.array_split(gap, count)  # what is left over makes the first ones longer
    sums, sizes = np.array([own.sum() for own in blocks]), np.array([len(own) for own in blocks])
    pick = np.random.default_rng(0).integers(0, count, (draws, count))
    means = sums[pick].sum(1) / sizes[pick].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Saving(per_period=float(gap.mean()), low=float(low), high=float(high))


def abc_xyz(money: Array, spread: Array) -> list[str]:
    """Groups AX to CZ of items: ``money`` (I,) they move, and ``spread`` (I,) of their demand over its mean."""
    order = np.argsort(-money, kind="stable")
    before = np.empty(len(money))
    before[order] = (np.cumsum(money[order]) - money[order]) / max(money.sum(), 1e-12)
    first = [next(name for most, name in ABC if share < most or most == 1.0) for share in before]
    second = [next(name for most, name in XYZ if own < most or most == np.inf) for own in spread]
    return [a + b for a, b in zip(first, second, strict=True)]
