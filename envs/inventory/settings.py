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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.envs.inventory.demand import Normal, Poisson
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.or_gym import or_gym_inv_management, or_gym_network_management
from offrl.envs.inventory.protocol import AnySetting, SalesSetting, Setting, Split
from offrl.envs.inventory.sales import WeeklySales, load_sales, look_alike
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.envs.inventory.yaml_file import read_network
from offrl.errors import ConfigError


def _uniform(seed: int, low: float, high: float, count: int) -> np.ndarray:
    return np.random.RandomState(seed).uniform(low, high, count)


def _one_store_splits(shift: int, test_stock: int = 4839) -> dict[str, Split]:
    """The demand seed of one-store settings moves with lead time and underage cost."""
    shift %= 2**31  # seeds have 32 bits
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
    """Two warehouses, ten stores with one or both: fast and dear against slow and cheap; unmet demand is lost."""
    return Setting(
        name="many_warehouses_lost_demand-v1",
        network=_many_warehouses("many_warehouses_lost_demand", MANY, (0.3, 0.4), (0.5, 1.5)),
        demand=_joint(10, correlation, clip=True),
        splits=_network_splits(8192, 1024, 8192),
        columns=6,
        features=("holding", "underage", "lead_time", "mean", "std"),
    )


WEEKS = {"train": (0, 111), "dev": (88, 141), "test": (118, 171)}


def _sales_splits(train: int, batch: int) -> dict[str, Split]:
    """No draw has a seed here; training sees 95 weeks, the others 37, 16 of each being warm-up."""
    return {
        "train": Split(scenarios=train, batch=batch, periods=95, ignore=16, demand_seed=0),
        "dev": Split(scenarios=train, batch=train, periods=37, ignore=16, demand_seed=0),
        "test": Split(scenarios=train, batch=train, periods=37, ignore=16, demand_seed=0),
    }


def favorita_one_store(
    *, data: WeeklySales | None = None, series: int = 32768, clip_negative: bool = False
) -> SalesSetting:
    """Weekly sales of single (store, item) series, margins and lead times 4 to 6 by series, profit, unmet demand lost.

    Without data: the look-alike.
    """
    sales = data if data is not None else look_alike(items=min(series, 4096), stores=1)
    values = sales.values.reshape(-1, 1, sales.values.shape[2])[:series]
    sales = replace(sales, values=values)
    count = len(values)
    network = replace(_one_store("favorita_one_store", 6, 9.0, lost=True), profit=True, widths=(6,), width=6)
    own = Parameters.of(network)._replace(
        underage=torch.from_numpy(_uniform(28, 6.3, 11.7, count)).float().reshape(-1, 1),
        lead_times=torch.from_numpy(np.random.RandomState(41).randint(4, 7, (count, 1))),
    )
    return SalesSetting(
        name="favorita_one_store-v1",
        network=network,
        sales=sales,
        splits=_sales_splits(count, min(8192, count)),
        weeks=WEEKS,
        parameters=own,
        clip_negative=clip_negative,
    )


REAL = """615 615 615 615 614 526 525 525 515 525 525 526 525 526 615 615 615 615 615 514 525"""
WITHOUT = ({3, 14}, {5, 10, 11, 12, 13}, {11})
"""Lead times of favorita_21_stores by store and warehouse, and the stores that a warehouse does not supply."""


def favorita_21_stores(*, data: WeeklySales | None = None, clip_negative: bool = False) -> SalesSetting:
    """Three warehouses, 21 stores, weekly sales of 288 items, profit, unmet demand lost.

    Margins differ by store and are those of every item, as in the official code. Without data: the look-alike.
    """
    rows = [
        "".join("0" if store in WITHOUT[w] else digit for w, digit in enumerate(row))
        for store, row in enumerate(REAL.split())
    ]
    network = _many_warehouses("favorita_21_stores", " ".join(rows), (0.3, 0.4, 0.2), (0.5, 1.5, 0.7))
    network = replace(network, profit=True)
    sales = data if data is not None else look_alike()
    count = len(sales.values)
    return SalesSetting(
        name="favorita_21_stores-v1",
        network=network,
        sales=sales,
        splits=_sales_splits(count, min(72, count)),
        weeks=WEEKS,
        parameters=Parameters.of(network),
        clip_negative=clip_negative,
    )


SETTINGS: dict[str, Callable[..., AnySetting]] = {
    f"{make.__name__}-v1": make
    for make in (
        one_store_lost,
        one_store_backlogged,
        serial_system,
        transshipment_backlogged,
        one_warehouse_lost_demand,
        many_warehouses_lost_demand,
        favorita_one_store,
        favorita_21_stores,
        or_gym_inv_management,
        or_gym_network_management,
    )
}
ALIASES = {
    "one_store_real_data_lost_demand": "favorita_one_store",
    "many_warehouses_real_data_lost_demand": "favorita_21_stores",
}


def load_setting(name: str, *, data: str | Path | WeeklySales | None = None, **options: float) -> AnySetting:
    """A setting by name; without a version the newest one.

    Args:
        name: such as ``one_store_lost-v1``, a YAML file, a company's tables ``net.xlsx`` or an item of them,
            ``net.xlsx:I003``.
        data: weekly sales, or where they lie, for the settings that are about them; default: made-up ones.
        options: what that setting lets vary, such as ``lead_time=2``.

    Raises:
        ConfigError: an unknown name or option (the nearest one is named), or a value that makes no network.
    """
    if name.endswith((".yaml", ".yml")):
        if options or data is not None:
            raise ConfigError(f"{name}: a network of one's own takes no options; change the file")
        own = read_network(name)
        if own.name in SETTINGS:  # a run is known by it
            raise ConfigError(f"{name}: {own.name!r} is the name of a published setting; choose another")
        return own
    path = name.rpartition(":")[0]
    if any(
        part.lower().endswith((".xlsx", ".xlsm")) or (part and Path(part).is_dir()) for part in (name, path)
    ):
        if options or data is not None:
            raise ConfigError(f"{name}: a company takes no options; change its tables")
        from offrl.envs.inventory.work.planning import plan_setting

        return plan_setting(name)
    name = ALIASES.get(name, name)
    known = [key for key in SETTINGS if name in (key, key.rpartition("-v")[0])]
    if not known:
        near = difflib.get_close_matches(name, [*SETTINGS, *ALIASES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown setting {name!r}{hint} ('offrl inventory list' shows all)")
    make = SETTINGS[known[-1]]
    allowed = options_of(known[-1])
    typed = {key: _typed(known[-1], key, value, allowed) for key, value in options.items()}
    given: dict[str, Any] = dict(typed)
    if data is not None:
        if "data" not in inspect.signature(make).parameters:
            raise ConfigError(f"{known[-1]} draws its demand itself and takes no data")
        given["data"] = data if isinstance(data, WeeklySales) else load_sales(data)
    about = (make.__doc__ or "").split("\n")[0]
    return replace(make(**given), about=about, options=typed)


def options_of(name: str) -> dict[str, float]:
    """What a setting lets vary, with its default."""
    parameters = inspect.signature(SETTINGS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "data"}


def _typed(setting: str, key: str, value: float, allowed: dict[str, float]) -> float:
    """An option's value as the type that its default has."""
    if key not in allowed:
        raise ConfigError(f"{setting} has no option {key!r}; it has: {', '.join(allowed) or 'none'}")
    if isinstance(allowed[key], bool):
        return bool(value)
    if not isinstance(allowed[key], int):
        return float(value)
    if not math.isfinite(value) or value != int(value) or value < 1:
        raise ConfigError(f"{setting}: {key} must be a whole number, 1 or more, got {value}")
    return int(value)
