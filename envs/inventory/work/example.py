"""A made-up company whose demand and min/max rules are known, as the tables of a workbook.

Three suppliers, two warehouses, twelve stores; weekly sales of two years with gaps, returned goods and stock-outs. The
stores and warehouses order by min/max levels that are too low for some items and too high for others; sales are what
the simulator lets them sell under these rules. The trucks that items share leave room for two and a half usual weeks.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offrl.envs.inventory.kpis import orders_sent
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.scenarios import Observation, Scenarios, rollout
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.envs.inventory.work.schema import DICTIONARY, SHEETS, dictionary

Array = NDArray[np.float64]
Rows = dict[str, list[tuple[Any, ...]]]
SUPPLIERS = {"Nord": 2, "Sud": 3, "Asia": 6}
"""Lead time to every warehouse, in weeks."""
WAREHOUSES = ("East", "West")
PACK = 6
"""Of what warehouses order."""
GROUPS = ("fast", "steady", "seasonal", "slow")
FIRST = date(2024, 1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """The tables, and what only their maker knows."""

    rows: Rows
    """Sheet -> rows, the names of the columns first."""
    means: Array
    """(I, S), units a week, season left out."""
    demand: Array
    """(I, S, T), what customers wanted."""
    levels: Array
    """(I, N, 2), min and max in use; warehouses first."""


def example(*, items: int = 40, stores: int = 12, weeks: int = 104, seed: int = 0) -> Example:
    """The synthetic company; smaller ones for tests."""
    rng = np.random.default_rng(seed)
    places = [*WAREHOUSES, *(f"Store {k + 1:02d}" for k in range(stores))]
    group = np.arange(items) % len(GROUPS)
    means, demand = _demand(rng, group, stores, weeks)
    supplier = [list(SUPPLIERS)[k % len(SUPPLIERS)] for k in range(items)]
    levels = _levels(rng, means, [SUPPLIERS[name] for name in supplier])
    sold, left, today, sent = _history(supplier, places, demand, levels)
    names = [f"I{k + 1:03d}" for k in range(items)]
    rows = _fixed_rows(rng, names, supplier, group, places, means)
    rows["demand"] = _sales_rows(rng, names, places[2:], sold, left)
    rows["stock"] = [_head("stock")]
    for i, name in enumerate(names):
        for n, place in enumerate(places):
            hand, coming = (round(float(x)) for x in today[i, n])
            due = FIRST + timedelta(weeks=weeks) if coming else None
            low, high = (int(x) for x in levels[i, n])
            rows["stock"].append((name, place, hand, coming, due, low, high, "each"))
    rows["orders"] = [_head("orders"), *_order_rows(names, supplier, places, sent, weeks)]
    rows[DICTIONARY] = list(dictionary())
    return Example(rows=rows, means=means, demand=demand, levels=levels)


def _head(sheet: str) -> tuple[str, ...]:
    return tuple(column.name for column in SHEETS[sheet].columns)


def _demand(
    rng: np.random.Generator, group: NDArray[np.int64], stores: int, weeks: int
) -> tuple[Array, Array]:
    """Mean of each item and store, and whole-number demand: negative binomial, slow movers in rare batches."""
    base = np.array([25.0, 10.0, 12.0, 1.2])[group] * rng.lognormal(0.0, 0.3, len(group))
    means = base[:, None] * rng.lognormal(0.0, 0.35, (1, stores))
    week = np.arange(weeks)
    season = np.where(group[:, None] == 2, 1 + 0.5 * np.sin(2 * np.pi * (week - 10) / 52), 1.0)
    common = rng.gamma(25.0, 1 / 25.0, (len(group), 1, weeks))  # a good week is one in all stores
    level = means[:, :, None] * season[:, None] * common
    size = 8.0
    drawn = rng.negative_binomial(size, size / (size + level)).astype(np.float64)
    slow = group == 3
    bought = rng.random(drawn[slow].shape) < 0.25
    drawn[slow] = np.where(
        bought, rng.poisson(np.broadcast_to(4 * means[slow][:, :, None] - 1, bought.shape).clip(0.1)) + 1, 0
    )
    means = means.copy()
    means[slow] = 0.25 * ((4 * means[slow] - 1).clip(0.1) + 1)
    return means, drawn


def _levels(rng: np.random.Generator, means: Array, lead_times: list[int]) -> Array:
    """Rules of thumb: cover of so many weeks, rounded, the same for fast and slow items; (I, N, 2)."""
    half = (means.shape[1] + 1) // 2
    served = np.stack([means[:, :half].sum(1), means[:, half:].sum(1)], 1)
    low = np.concatenate([served * (np.array(lead_times)[:, None] + 1), means * 1.8], 1)
    cover = rng.uniform(0.85, 1.35, (len(means), 1))
    low = np.ceil(low * cover)
    return np.stack([low, low + np.ceil(np.concatenate([served * 2, means * 1.5], 1))], -1)


def _served(stores: int) -> list[tuple[str, str]]:
    half = (stores + 1) // 2
    return [(WAREHOUSES[int(k >= half)], f"Store {k + 1:02d}") for k in range(stores)]


def _history(
    supplier: list[str], places: list[str], demand: Array, levels: Array
) -> tuple[Array, Array, Array, Array]:
    """Under the rules in use: sales and stock left (I, S, T), on hand and on order at the end (I, N, 2), and what was
    sent to each place (I, N, T).
    """
    sold, left = np.zeros_like(demand), np.zeros_like(demand)
    sent = np.zeros((len(demand), len(places), demand.shape[2]))
    today = np.zeros((*levels.shape[:2], 2))
    for name, lead_time in SUPPLIERS.items():
        chosen = [i for i, own in enumerate(supplier) if own == name]
        if not chosen:
            continue
        edges = [Edge(source=a, target=b, lead_time=1, pack=1) for a, b in _served(len(places) - 2)]
        days = (1, 0) if name == "Asia" else ()
        edges += [
            Edge(source=OUTSIDE, target=place, lead_time=lead_time, pack=PACK, calendar=days)
            for place in WAREHOUSES
        ]
        nodes = [Node(name=p, kind="warehouse" if p in WAREHOUSES else "store") for p in places]
        network = Network(name=name, nodes=tuple(nodes), edges=tuple(edges), lost_sales=True)
        rule = torch.from_numpy(levels[chosen]).double()
        start = torch.zeros(len(chosen), len(places), network.width, dtype=torch.float64)
        start[:, :, 0] = rule[:, :, 1]
        wanted = torch.from_numpy(demand[chosen].transpose(2, 0, 1).copy())
        scenarios = Scenarios(
            network=network, initial=start, demands=wanted, parameters=Parameters.of(network, torch.float64)
        )
        done = rollout(_rule(network, rule), scenarios, record=True)
        on_hand = done.stocks[:-1, :, 2:, 0]
        sold[chosen] = torch.minimum(on_hand, wanted).permute(1, 2, 0).numpy()
        left[chosen] = (on_hand - wanted).clamp(min=0).permute(1, 2, 0).numpy()
        orders = orders_sent(done, scenarios.simulator())
        sent[chosen] = orders[:, :, np.argsort(network.targets)].permute(1, 2, 0).numpy()
        last = done.stocks[-1]
        today[chosen] = torch.stack([last[..., 0], last[..., 1:].sum(-1)], -1).numpy()
    return sold, left, today, sent


def _rule(network: Network, rule: torch.Tensor) -> Any:
    targets = torch.tensor(network.targets)

    def policy(seen: Observation) -> torch.Tensor:
        position = seen.stock.sum(-1)
        wish = torch.where(position <= rule[..., 0], rule[..., 1] - position, torch.zeros_like(position))
        return wish[:, targets]

    return policy


def _fixed_rows(
    rng: np.random.Generator,
    names: list[str],
    supplier: list[str],
    group: NDArray[np.int64],
    places: list[str],
    means: Array,
) -> Rows:
    nodes = [(name, "supplier") for name in SUPPLIERS]
    nodes += [(p, "warehouse" if p in WAREHOUSES else "store") for p in places]
    lanes: list[tuple[Any, ...]] = []
    sizes, half = np.array([1.0, 1.0, 2.0, 0.5])[group], (means.shape[1] + 1) // 2
    for name, lead_time in SUPPLIERS.items():
        days, every = ("every 2", 2) if name == "Asia" else (None, 1)
        own = [k for k, by in enumerate(supplier) if by == name]
        for place, stores in zip(WAREHOUSES, (slice(0, half), slice(half, None)), strict=True):
            truck = max(50, 10 * round(0.25 * every * float((sizes[own] @ means[own, stores]).sum())))
            lanes.append((name, place, lead_time, "week", 0.1, 20, None, PACK, None, days, truck))
    for source, place in _served(len(places) - 2):
        lanes.append((source, place, 1, "week", 0.05, None, None, None, None, None, None))
    values = rng.lognormal(2.0, 0.5, len(names)).round(2)
    costs: list[tuple[Any, ...]] = []
    for name, value in zip(names, values, strict=True):
        costs.append((name, "*", round(0.01 * value, 4), round(0.35 * value, 3)))
        costs += [(name, place, round(0.006 * value, 4), None) for place in WAREHOUSES]
    columns = zip(names, supplier, group, values, sizes, strict=True)
    items = [(n, s, "each", GROUPS[g], float(v), float(z)) for n, s, g, v, z in columns]
    about = ("Example Foods", "week", "EUR", "lost", None, None)
    rows: Rows = {"about": [about], "nodes": nodes, "lanes": lanes, "items": items, "costs": costs}
    return {name: [_head(name), *content] for name, content in rows.items()}


def _order_rows(
    names: list[str], supplier: list[str], places: list[str], sent: Array, weeks: int
) -> list[tuple[Any, ...]]:
    """Orders of the last two fifths of the weeks."""
    above, rows = {place: source for source, place in _served(len(places) - 2)}, []
    for t in range(3 * weeks // 5, weeks):
        for i, n in np.argwhere(sent[:, :, t] > 0):
            source = above.get(places[n], supplier[i])
            rows.append((names[i], source, places[n], FIRST + timedelta(weeks=t), int(sent[i, n, t]), None))
    return rows


def _sales_rows(
    rng: np.random.Generator, names: list[str], stores: list[str], sold: Array, left: Array
) -> list[tuple[Any, ...]]:
    """Rows by item, store and week; two in a hundred are missing, three in a thousand have goods returned."""
    rows: list[tuple[Any, ...]] = [_head("demand")]
    missing, returned = rng.random(sold.shape) < 0.02, rng.random(sold.shape) < 0.003
    for i, name in enumerate(names):
        for s, store in enumerate(stores):
            for t in range(sold.shape[2]):
                if missing[i, s, t]:
                    continue
                units = int(sold[i, s, t]) - 2 * int(returned[i, s, t])
                rows.append((name, store, FIRST + timedelta(weeks=t), units, int(left[i, s, t]), "each"))
    return rows
