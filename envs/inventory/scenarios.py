"""Recorded demand with everything else that a policy is tried on, and the rollout of a policy through it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from offrl.envs.inventory.extended import simulator_of
from offrl.envs.inventory.network import Parameters, Simulator
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError

Feasibility = Literal["trust", "project", "raise"]


class Observation(NamedTuple):
    """What a policy sees before period t. Costs, lead times and other static features are in ``Scenarios``."""

    stock: Tensor
    """(B, N, K), units; column 0 on hand, column k arrives in k periods."""
    period: int
    """t, from 0."""
    past_demand: Tensor | None
    """(B, S, H), the H periods before t, oldest first; None without history."""
    days_from_christmas: float | None
    """Of period t; None without a calendar."""
    parameters: Parameters
    """Costs and lead times, shared or of these B scenarios."""


Policy = Callable[[Observation], Tensor]
"""Observation -> orders (B, E), in the network's order of edges."""


@dataclass(frozen=True, kw_only=True)
class Scenarios:
    """n scenarios of one network.

    ``demands`` is (H + T, n, S): periods first, so that a rollout reads memory in order. The first H = ``history``
    periods are only seen, as past demand.
    """

    network: Network
    initial: Tensor
    """(n, N, K), units."""
    demands: Tensor
    parameters: Parameters
    history: int = 0
    calendar: tuple[float, ...] | None = None
    """Days from the nearest Christmas for each of the H + T periods."""
    deliveries: Tensor | None = None
    """(T, n, E) int64: which of its lane's receipts the order of a period gets; None where deliveries do not vary."""

    def __post_init__(self) -> None:
        n, nodes, width = self.initial.shape
        want = (n, self.network.stores)
        if self.demands.ndim != 3 or self.demands.shape[1:] != want:
            raise ConfigError(
                f"demands have shape {tuple(self.demands.shape)}, want (periods, {n} scenarios, {want[1]} stores)"
            )
        if (nodes, width) != (len(self.network.nodes), self.network.width):
            raise ConfigError(
                f"initial stock has shape {tuple(self.initial.shape)}, want ({n}, {len(self.network.nodes)} nodes, "
                f"{self.network.width} columns)"
            )

    def __len__(self) -> int:
        return len(self.initial)

    @property
    def periods(self) -> int:
        """T: periods that can be simulated."""
        return len(self.demands) - self.history

    def rows(self, index: Tensor) -> "Scenarios":
        """Some of the scenarios, copied."""
        return replace(
            self,
            initial=self.initial[index],
            demands=self.demands[:, index],
            parameters=self.parameters.rows(index),
            deliveries=None if self.deliveries is None else self.deliveries[:, index],
        )

    def to(self, device: torch.device | str) -> "Scenarios":
        """On another device."""
        parameters = Parameters(*(value.to(device) for value in self.parameters))
        deliveries = None if self.deliveries is None else self.deliveries.to(device)
        return replace(
            self, initial=self.initial.to(device), demands=self.demands.to(device), parameters=parameters,
            deliveries=deliveries,
        )  # fmt: skip

    def simulator(self) -> Simulator:
        """One for these scenarios."""
        return simulator_of(
            self.network,
            self.parameters,
            self.deliveries,
            device=self.initial.device,
            dtype=self.initial.dtype,
        )

    def observe(self, stock: Tensor, period: int) -> Observation:
        """What is seen before ``period``."""
        past, at = None, period + self.history
        if self.history:
            past = self.demands[period:at].permute(1, 2, 0)
        days = self.calendar[at] if self.calendar else None
        return Observation(stock, period, past, days, self.parameters)


class Rollout(NamedTuple):
    """A recorded rollout."""

    costs: Tensor
    """(T, B, N), money of each period and node, to be minimised."""
    stocks: Tensor
    """(T + 1, B, N, K): before each period, and at the end; empty unless recorded."""
    actions: Tensor
    """(T, B, E); empty unless recorded."""

    def mean(self, network: Network, ignore: int = 0) -> Tensor:
        """Cost per store and period: all costs of periods >= ``ignore``, divided by scenarios, periods and stores.

        With a discount, period t counts discount^t.
        """
        kept = self.costs[ignore:]
        if network.discount != 1:
            power = network.discount ** torch.arange(
                ignore, len(self.costs), dtype=kept.dtype, device=kept.device
            )
            kept = kept * power[:, None, None]
        return kept.sum() / (kept.shape[0] * kept.shape[1] * network.stores)


def rollout(
    policy: Policy,
    scenarios: Scenarios,
    *,
    periods: int | None = None,
    feasibility: Feasibility = "trust",
    record: bool = False,
) -> Rollout:
    """Follow a policy from the initial stock; gradients flow through every period.

    Args:
        policy: observation -> orders (B, E).
        scenarios: what happens.
        periods: T; default: all.
        feasibility: orders that a node cannot ship are trusted (and make its stock negative), shrunk, or refused.
        record: keep stocks and actions.

    Raises:
        ConfigError: more periods than there is demand.
        PolicyError: an infeasible order, with ``feasibility="raise"``.
    """
    steps = _periods(scenarios, periods)
    simulator = scenarios.simulator()
    state = simulator.start(scenarios.initial)
    costs, stocks, actions = [], [scenarios.initial], []
    for t in range(steps):
        stock = simulator.stock(state)
        action = guarded(simulator, stock, policy(scenarios.observe(stock, t)), feasibility)
        state, cost = simulator.step(state, action, scenarios.demands[t + scenarios.history])
        costs.append(cost)
        if record:
            stocks.append(simulator.stock(state))
            actions.append(action)
    empty = costs[0].new_empty(0)
    return Rollout(torch.stack(costs), *(torch.stack(x) if record else empty for x in (stocks, actions)))


@torch.no_grad()
def evaluate(
    policy: Policy,
    scenarios: Scenarios,
    *,
    periods: int | None = None,
    ignore: int = 0,
    feasibility: Feasibility = "trust",
) -> Tensor:
    """Mean cost per store and period of each scenario, (n,), float64, periods before ``ignore`` left out."""
    steps = _periods(scenarios, periods)
    if not 0 <= ignore < steps:
        raise ConfigError(
            f"ignore must be in [0, {steps}), got {ignore}: it is the number of warm-up periods"
        )
    simulator = scenarios.simulator()
    state = simulator.start(scenarios.initial)
    total = torch.zeros(len(scenarios), dtype=torch.float64, device=scenarios.initial.device)
    for t in range(steps):
        stock = simulator.stock(state)
        action = guarded(simulator, stock, policy(scenarios.observe(stock, t)), feasibility)
        state, cost = simulator.step(state, action, scenarios.demands[t + scenarios.history])
        if t >= ignore:
            total += cost.sum(1) * scenarios.network.discount**t
    return total / ((steps - ignore) * scenarios.network.stores)


def guarded(simulator: Simulator, stock: Tensor, action: Tensor, feasibility: Feasibility) -> Tensor:
    """The action as it will be carried out."""
    if feasibility == "project":
        # extended networks fill orders themselves, by all their rules and with what they owe
        return action.clamp(min=0) if simulator.network.extended else simulator.project(stock, action)
    if feasibility == "raise":
        simulator.check(stock, action)
    elif feasibility != "trust":
        raise ConfigError(f"feasibility must be trust, project or raise, got {feasibility!r}")
    return action


def _periods(scenarios: Scenarios, periods: int | None) -> int:
    steps = scenarios.periods if periods is None else periods
    if not 1 <= steps <= scenarios.periods:
        raise ConfigError(f"periods must be in 1 .. {scenarios.periods} (the demand recorded), got {steps}")
    return steps
