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
from offrl.envs.inventory.reference import reference
from offrl.envs.inventory.scenarios import Policy, Scenarios, rollout
from offrl.training.inventory import whole_units

PATHS, PERIODS, SHOWN = 256, 200, 50  # scenarios and periods simulated, periods of one path drawn
SIDE = 20  # states a side of the map of orders, at most

View = dict[str, Any]


def view_of(policy: InventoryPolicy, setting: AnySetting) -> View:
    """The view of a policy on a setting."""
    split = setting.splits["test"]
    small = setting.resized(test=min(PATHS, split.scenarios), periods={"test": min(PERIODS, split.periods)})
    paths = small.draw("test")
    ignore = min(small.splits["test"].ignore, paths.periods - 1)
    acting = whole_units(just_in_time(paths) if isinstance(policy, JustInTime) else policy, setting, "auto")
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
        "map": order_map(acting, policy, setting, paths, result.stocks[ignore:-1]),
    }  # fmt: skip


def _plain(values: Tensor) -> Any:
    """Lists of numbers with four digits."""
    return np.vectorize(lambda x: float(f"{x:.4g}"))(values.double().numpy()).tolist()


def _split(numbers: KPIs, stores: int) -> dict[str, float]:
    """Cost per store and period by part."""
    parts = {"holding": numbers.holding, "underage": numbers.underage, "ordering": numbers.procurement}
    return {name: float(values.sum()) / stores for name, values in parts.items()}


def order_map(
    acting: Policy, policy: InventoryPolicy, setting: AnySetting, paths: Scenarios, visited: Tensor
) -> dict[str, Any] | None:
    """Orders of the policy and of the dynamic program by what is on hand and what arrives next; one store, lost sales.

    What arrives later is held at its mean. None where no dynamic program is known.
    """
    best = reference(setting)
    if best is None or not isinstance(best.policy, OrderTable):
        return None
    lead_time, means = setting.network.edges[0].lead_time, visited.mean((0, 1))[0].round()
    top = [min(SIDE, int(visited[:, :, 0, k].quantile(0.999)) + 1) for k in range(2)]
    hands = torch.arange(top[0] + 1)
    nexts = torch.arange(top[1] + 1) if lead_time > 1 else torch.zeros(1, dtype=torch.int64)
    state = means.expand(len(hands) * len(nexts), 1, -1).clone()
    state[:, 0, 0] = hands.repeat(len(nexts))
    state[:, 0, 1] = nexts.repeat_interleave(len(hands))
    state[:, :, lead_time:] = 0  # columns beyond the lead time are never used
    if lead_time == 1:
        state[:, 0, 1] = 0
    seen = paths.rows(torch.zeros(len(state), dtype=torch.int64)).observe(state, 0)
    with torch.no_grad():
        ours, theirs = ((p(seen)[:, 0].view(len(nexts), -1)) for p in (acting, best.policy))
        flat = visited.flatten(0, 1)[:: max(1, visited.shape[0] * visited.shape[1] // 20_000)]
        seen = paths.rows(torch.zeros(len(flat), dtype=torch.int64)).observe(flat, 0)
        away = (acting(seen) - best.policy(seen))[:, 0]
    return {
        "on_hand": hands.tolist(), "next": nexts.tolist(), "later": means[2:lead_time].tolist(),
        "policy": _plain(ours), "optimal": _plain(theirs),
        "equal": float((away.abs() < 0.5).double().mean()), "mean_difference": float(away.abs().double().mean()),
    }  # fmt: skip
