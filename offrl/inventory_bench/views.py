"""What is drawn of a policy, as JSON values: a path, where the money goes, flows, orders by state beside the optimum.

A view is of the policy in the test's own demand, orders rounded as in the test, warm-up left out.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.envs.inventory.classical import JustInTime, OrderTable, just_in_time
from offrl.envs.inventory.kpis import KPIs, kpis
from offrl.envs.inventory.policies import InventoryPolicy
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.reference import Reference
from offrl.envs.inventory.scenarios import Policy, Scenarios, rollout
from offrl.training.inventory import Rounding, whole_units

PATHS, PERIODS, SHOWN = 256, 200, 50  # scenarios and periods simulated, periods of one path drawn
SIDES = (10, 20)  # states a side of the map of orders: at least, at most
MOST = 20_000  # visited states that are compared

View = dict[str, Any]


def view_of(
    policy: InventoryPolicy, setting: AnySetting, best: Reference | None, rounding: Rounding = "auto"
) -> View:
    """The view of a policy on a setting.

    Args:
        policy: one seed.
        setting: where it acts.
        best: what is known to be best there.
        rounding: whole-unit orders, as in the test.
    """
    split = setting.splits["test"]
    small = setting.resized(test=min(PATHS, split.scenarios), periods={"test": min(PERIODS, split.periods)})
    paths = small.draw("test")
    ignore = min(small.splits["test"].ignore, paths.periods - 1)
    acting = whole_units(just_in_time(paths) if isinstance(policy, JustInTime) else policy, setting, rounding)
    with torch.no_grad():
        result = rollout(acting, paths, record=True)
    numbers, network = kpis(result, paths, ignore), setting.network
    shown = slice(ignore, ignore + SHOWN)
    stocks, actions = result.stocks[:-1][shown, 0], result.actions[shown, 0]
    demand = paths.demands[paths.history :][shown, 0]
    return {
        "policy": policy.name, "setting": setting.name, "options": dict(setting.options),
        "profit": network.profit, "first": ignore,
        "nodes": [{"name": node.name, "kind": node.kind} for node in network.nodes],
        "edges": [{"source": edge.source, "target": edge.target} for edge in network.edges],
        "on_hand": _plain(stocks[..., 0].T), "orders": _plain(actions.T), "demand": _plain(demand.T),
        "flows": _plain(result.actions[ignore:].mean((0, 1))),
        "demands": _plain(paths.demands[paths.history + ignore :].mean((0, 1))),
        "costs": _split(numbers, network.stores), "table": numbers.rows(paths),
        "map": order_map(acting, best, paths, result.stocks[ignore:-1]),
    }  # fmt: skip


def _plain(values: Tensor) -> Any:
    """Lists of numbers with four digits."""
    return np.vectorize(lambda x: float(f"{x:.4g}"))(values.double().numpy()).tolist()


def _split(numbers: KPIs, stores: int) -> dict[str, float]:
    """Cost per store and period by part."""
    parts = {"holding": numbers.holding, "underage": numbers.underage, "ordering": numbers.procurement}
    return {name: float(values.sum()) / stores for name, values in parts.items()}


def order_map(
    acting: Policy, best: Reference | None, paths: Scenarios, visited: Tensor
) -> dict[str, Any] | None:
    """Orders of the policy and of the dynamic program by what is on hand and what arrives next; one store, lost sales.

    What arrives later is held at its mean over ``visited``, (T, B, 1, K). None where no dynamic program is known.
    """
    if best is None or not isinstance(best.policy, OrderTable):
        return None
    table, lead_time = best.policy, paths.network.edges[0].lead_time
    means = visited.mean((0, 1))[0].round()
    means[lead_time:] = 0  # columns beyond the lead time are never used
    top = visited.flatten(0, 2).quantile(0.999, dim=0).clamp(*SIDES).int().tolist()
    hands = torch.arange(top[0] + 1)
    nexts = torch.arange(top[1] + 1) if lead_time > 1 else torch.zeros(1, dtype=torch.int64)
    state = means.repeat(len(hands) * len(nexts), 1, 1)
    state[:, 0, 0] = hands.repeat(len(nexts))
    if lead_time > 1:
        state[:, 0, 1] = nexts.repeat_interleave(len(hands))

    @torch.no_grad()
    def orders(policy: Policy, states: Tensor) -> Tensor:
        rows = paths.rows(torch.zeros(len(states), dtype=torch.int64))
        return policy(rows.observe(states, 0))[:, 0]

    seen = visited.flatten(0, 1)[:MOST]
    away = orders(acting, seen) - orders(table, seen)
    ours, theirs = (orders(policy, state).view(len(nexts), -1) for policy in (acting, table))
    return {
        "on_hand": hands.tolist(), "next": nexts.tolist(), "later": means[2:lead_time].tolist(),
        "policy": _plain(ours), "optimal": _plain(theirs),
        "equal": float((away.abs() < 0.5).double().mean()), "mean_difference": float(away.abs().double().mean()),
    }  # fmt: skip
