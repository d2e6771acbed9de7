"""The published settings by versioned name, and how their scenarios are drawn.

    setting = load_setting("one_store_lost-v1", lead_time=2, underage_cost=4)
    train = setting.draw("train")

A name says what the numbers mean: whoever changes a parameter makes a new version. Source: arXiv:2306.11246,
config_files/settings of MatiasAlvo/Neural_inventory_control at commit 4d77c14 (2025-08-26); numbers printed from older
commits belong to other parameters.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from offrl.envs.inventory.demand import Demand, Normal, Poisson
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.scenarios import Scenarios
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError

SplitName = Literal["train", "dev", "test"]
CHUNK = 10_000_000  # numbers drawn at a time: a whole test set in float64 would take gigabytes


@dataclass(frozen=True, kw_only=True)
class Split:
    """Size of a set of scenarios."""

    scenarios: int
    batch: int
    periods: int
    """T."""
    ignore: int
    """Warm-up periods that the reported cost leaves out; training uses all."""
    demand_seed: int
    stock_seed: int = 4839


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network with its demand and protocol."""

    name: str
    network: Network
    demand: Demand
    splits: Mapping[str, Split]
    columns: int = 0
    """Store columns that start with a share U[0, 1] of the mean demand each; 0: all empty."""
    integral: bool = False
    """Demand comes in whole units: reported costs are those of rounded orders."""
    features: tuple[str, ...] = ("holding", "underage", "lead_time")
    """Static features that policies of the publication see."""
    about: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def resized(self, *, periods: Mapping[str, int] | None = None, **scenarios: int) -> "Setting":
        """The same setting with other numbers of scenarios (``train=256``) or periods (``periods={"test": 500}``).

        Warm-up keeps its share of the periods.
        """
        splits = dict(self.splits)
        for name, count in scenarios.items():
            splits[name] = replace(splits[name], scenarios=count, batch=min(splits[name].batch, count))
        for name, count in (periods or {}).items():
            ignore = splits[name].ignore * count // splits[name].periods
            splits[name] = replace(splits[name], periods=count, ignore=ignore)
        return replace(self, splits=splits)

    def draw(self, name: SplitName, *, dtype: torch.dtype = torch.float32) -> Scenarios:
        """Scenarios of a split, as the publication draws them.

        Training and development scenarios come from one draw, whose first rows are the development set; the test set has seeds
        of its own. The seeds of the setting are read, never changed.
        """
        if name not in self.splits:
            raise ConfigError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        split = self.splits[name]
        if name == "test":
            first, count, periods = 0, split.scenarios, split.periods
        else:
            train, dev = self.splits["train"], self.splits["dev"]
            first = dev.scenarios if name == "train" else 0
            count, periods = train.scenarios + dev.scenarios, max(train.periods, dev.periods)
        rows, means = self._demands(count, periods, split, slice(first, first + split.scenarios))
        demands = rows[:, :, : split.periods].transpose(2, 0, 1)
        stock = self._stock(count, means, split.stock_seed)[first : first + split.scenarios]
        return Scenarios(
            network=self.network,
            initial=torch.from_numpy(stock).to(dtype),
            demands=torch.from_numpy(np.ascontiguousarray(demands)).to(dtype),
            parameters=Parameters.of(self.network, dtype),
        )

    def _demands(self, count: int, periods: int, split: Split, keep: slice) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``keep`` of a draw of ``count``, (n, S, T) float32, and the mean of all by store."""
        random = np.random.RandomState(split.demand_seed)
        stores = self.network.stores
        chunk = max(1, CHUNK // (stores * periods))
        kept = np.empty((split.scenarios, stores, periods), dtype=np.float32)
        total = np.zeros(stores)
        for start in range(0, count, chunk):
            part = self.demand.draw(min(chunk, count - start), periods, random)
            total += part.sum((0, 2))
            low, high = max(start, keep.start), min(start + len(part), keep.stop)
            if low < high:
                kept[low - keep.start : high - keep.start] = part[low - start : high - start]
        return kept, total / (count * periods)

    def _stock(self, count: int, means: np.ndarray, seed: int) -> np.ndarray:
        """(n, N, K): stores start with uniform shares of their mean demand in every column; all others are empty."""
        network = self.network
        stock = np.zeros((count, len(network.nodes), network.width))
        stock[:, :, 0] = [node.initial for node in network.nodes]
        if self.columns:
            shares = np.random.RandomState(seed).uniform(0, 1, (count, network.stores, self.columns))
            stock[:, network.upstream :, : self.columns] = shares * means[:, None]
        return stock


def _uniform(seed: int, low: float, high: float, count: int) -> np.ndarray:
    return np.random.RandomState(seed).uniform(low, high, count)


def _one_store_splits(shift: int, test_stock: int = 4839) -> dict[str, Split]:
    """The demand seed of one-store settings moves with lead time and underage cost."""
    return {
        "train": Split(scenarios=32768, batch=8192, periods=50, ignore=30, demand_seed=57 + shift),
        "dev": Split(scenarios=32768, batch=32768, periods=100, ignore=60, demand_seed=57 + shift),
        "test": Split(
            scenarios=32768, batch=32768, periods=5000, ignore=3000, demand_seed=65 + shift, stock_seed=test_stock
        ),
    }  # fmt: skip


def _network_splits(train: int, batch: int, dev: int) -> dict[str, Split]:
    return {
        "train": Split(scenarios=train, batch=batch, periods=50, ignore=30, demand_seed=57),
        "dev": Split(scenarios=dev, batch=dev, periods=100, ignore=60, demand_seed=57),
        "test": Split(scenarios=dev, batch=dev, periods=5000, ignore=3000, demand_seed=65),
    }


def _one_store(name: str, lead_time: int, underage_cost: float, lost: bool) -> Network:
    return Network(
        name=name,
        nodes=(Node(name="store", kind="store", holding_cost=1.0, underage_cost=underage_cost),),
        edges=(Edge(source=OUTSIDE, target="store", lead_time=lead_time),),
        lost_sales=lost,
        widths=(max(4, lead_time),),
    )


def one_store_lost(*, lead_time: int = 4, underage_cost: float = 9.0) -> Setting:
    """One store, Poisson(5), unmet demand lost; the optimum is known for lead times 1-4 and costs 4, 9, 19, 39."""
    network = _one_store("one_store_lost", lead_time, underage_cost, lost=True)
    shift = int(lead_time + 10 * underage_cost)
    return Setting(
        name="one_store_lost-v1",
        network=network,
        demand=Poisson(means=(5.0,)),
        splits=_one_store_splits(shift, test_stock=4847),
        columns=network.width,
        integral=True,
    )


def one_store_backlogged(*, lead_time: int = 4, underage_cost: float = 9.0) -> Setting:
    """One store, Normal(5, 1.6) cut at 0, unmet demand waits; a base-stock policy is optimal."""
    network = _one_store("one_store_backlogged", lead_time, underage_cost, lost=False)
    return Setting(
        name="one_store_backlogged-v1",
        network=network,
        demand=Normal(means=(5.0,), stds=(1.6,)),
        splits=_one_store_splits(int(lead_time + 10 * underage_cost)),
        columns=network.width,
    )


def serial_system(*, lead_time: int = 4, underage_cost: float = 9.0) -> Setting:
    """Two echelons, a warehouse and a store in a row, Normal(5, 2) cut at 0, backlogged; Clark and Scarf's optimum."""
    nodes = (
        Node(name="echelon 1", kind="echelon", holding_cost=0.1),
        Node(name="echelon 2", kind="echelon", holding_cost=0.2),
        Node(name="warehouse", kind="warehouse", holding_cost=0.5),
        Node(name="store", kind="store", holding_cost=1.0, underage_cost=underage_cost),
    )
    chain = (OUTSIDE, *(node.name for node in nodes))
    times = (2, 4, 3, lead_time)
    edges = tuple(
        Edge(source=a, target=b, lead_time=n) for a, b, n in zip(chain[:-1], chain[1:], times, strict=True)
    )
    columns = max(4, lead_time)
    return Setting(
        name="serial_system-v1",
        network=Network(
            name="serial_system", nodes=nodes, edges=edges, lost_sales=False, widths=(4, 4, 3, columns)
        ),
        demand=Normal(means=(5.0,), stds=(2.0,)),
        splits=_network_splits(32768, 8192, 32768),
        columns=columns,
    )


def _joint(stores: int, correlation: float, clip: bool) -> Normal:
    """Jointly normal demand with a mean and a spread for each store; fewer stores are the first ones."""
    means = _uniform(33, 2.5, 7.5, stores).round(3)
    stds = (means * _uniform(92, 0.25, 0.5, stores)).round(3)
    return Normal(means=tuple(means), stds=tuple(stds), correlation=correlation, clip=clip)


def transshipment_backlogged(
    *, stores: int = 5, lead_time: int = 2, underage_cost: float = 4.0, correlation: float = 0.5
) -> Setting:
    """A centre that cannot hold, S stores, normal demand (not cut), backlogged; a tight lower bound is known."""
    centre = Node(name="centre", kind="warehouse", holding_cost=0.5, holds=False)
    names = [f"store {i + 1}" for i in range(stores)]
    shops = (Node(name=n, kind="store", holding_cost=1.0, underage_cost=underage_cost) for n in names)
    edges = (Edge(source="centre", target=n, lead_time=lead_time) for n in names)
    return Setting(
        name="transshipment_backlogged-v1",
        network=Network(
            name="transshipment_backlogged",
            nodes=(centre, *shops),
            edges=(*edges, Edge(source=OUTSIDE, target="centre", lead_time=3)),
            lost_sales=False,
        ),
        demand=_joint(stores, correlation, clip=False),
        splits=_network_splits(32768, 1024, 32768),
        columns=max(2, lead_time),
        features=("holding", "underage", "lead_time", "mean", "std"),
    )


def _stores_with_own_costs(stores: int) -> tuple[Node, ...]:
    holding, underage = _uniform(73, 0.7, 1.3, stores), _uniform(28, 6.3, 11.7, stores)
    return tuple(
        Node(name=f"store {i + 1}", kind="store", holding_cost=float(h), underage_cost=float(p))
        for i, (h, p) in enumerate(zip(holding, underage, strict=True))
    )


def one_warehouse_lost_demand(*, stores: int = 5, correlation: float = 0.5) -> Setting:
    """A warehouse and S stores that differ in costs, lead times and demand (normal, cut at 0); unmet demand is lost."""
    shops = _stores_with_own_costs(stores)
    times = np.random.RandomState(41).randint(2, 4, stores)
    edges = (
        Edge(source="warehouse", target=n.name, lead_time=int(t)) for n, t in zip(shops, times, strict=True)
    )
    return Setting(
        name="one_warehouse_lost_demand-v1",
        network=Network(
            name="one_warehouse_lost_demand",
            nodes=(Node(name="warehouse", kind="warehouse", holding_cost=0.3), *shops),
            edges=(*edges, Edge(source=OUTSIDE, target="warehouse", lead_time=3)),
            lost_sales=True,
        ),
        demand=_joint(stores, correlation, clip=True),
        splits=_network_splits(8192, 1024, 8192),
        columns=3,
        features=("holding", "underage", "lead_time", "mean", "std"),
    )


MANY = "02 01 62 62 61 02 60 52 62 02"
"""Lead times of many_warehouses_lost_demand: a group a store, a digit a warehouse, 0 = no lane."""


def _many_warehouses(name: str, table: str, holding: tuple[float, ...], cost: tuple[float, ...]) -> Network:
    rows = table.split()
    sources = [f"warehouse {i + 1}" for i in range(len(holding))]
    shops = _stores_with_own_costs(len(rows))
    edges = [
        Edge(source=source, target=shop.name, lead_time=int(row[w]))
        for shop, row in zip(shops, rows, strict=True)
        for w, source in enumerate(sources)
        if row[w] != "0"
    ]
    edges += [Edge(source=OUTSIDE, target=w, lead_time=3, cost=c) for w, c in zip(sources, cost, strict=True)]
    houses = (Node(name=w, kind="warehouse", holding_cost=h) for w, h in zip(sources, holding, strict=True))
    return Network(name=name, nodes=(*houses, *shops), edges=tuple(edges), lost_sales=True)


def many_warehouses_lost_demand(*, correlation: float = 0.5) -> Setting:
    """Two warehouses, ten stores with one or two of them: fast and dear against slow and cheap; unmet demand is lost."""
    return Setting(
        name="many_warehouses_lost_demand-v1",
        network=_many_warehouses("many_warehouses_lost_demand", MANY, (0.3, 0.4), (0.5, 1.5)),
        demand=_joint(10, correlation, clip=True),
        splits=_network_splits(8192, 1024, 8192),
        columns=6,
        features=("holding", "underage", "lead_time", "mean", "std"),
    )


SETTINGS: dict[str, Callable[..., Setting]] = {
    f"{make.__name__}-v1": make
    for make in (
        one_store_lost,
        one_store_backlogged,
        serial_system,
        transshipment_backlogged,
        one_warehouse_lost_demand,
        many_warehouses_lost_demand,
    )
}


def load_setting(name: str, **options: float) -> Setting:
    """A setting by name; without a version the newest one.

    Args:
        name: such as ``one_store_lost-v1``.
        options: what that setting lets vary, such as ``lead_time=2``.

    Raises:
        ConfigError: an unknown name or option (the nearest one is named), or a value that makes no network.
    """
    known = [key for key in SETTINGS if name in (key, key.rpartition("-v")[0])]
    if not known:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown setting {name!r}{hint} ('offrl inventory list' shows all)")
    make = SETTINGS[known[-1]]
    allowed = {key: p.default for key, p in inspect.signature(make).parameters.items()}
    for key, value in options.items():
        if key not in allowed:
            shown = ", ".join(allowed) or "none"
            raise ConfigError(f"{known[-1]} has no option {key!r}; it has: {shown}")
        if isinstance(allowed[key], int) and (not math.isfinite(value) or value != int(value) or value < 1):
            raise ConfigError(f"{known[-1]}: {key} must be a whole number, 1 or more, got {value}")
    typed = {
        key: int(value) if isinstance(allowed[key], int) else float(value) for key, value in options.items()
    }
    about = " ".join((make.__doc__ or "").split())
    return replace(make(**typed), about=about, options=typed)
