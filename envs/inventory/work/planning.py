"""What is planned: one item of a company, or all of them together; as a setting to train on, its held-out dates, and
today's rules beside it.

All items together are one network, in which each item has its own nodes and lanes and only trucks and the budget are
shared; a path of demand is one of the whole company.

The last fifth of the periods is held out: demand is fitted on what comes before, training paths are drawn from that
fit, and the held-out dates score whatever was trained. Period 0 is the first of the history everywhere, so that
seasons and order days fall where they do in the calendar.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offrl.envs.inventory.demand import Demand
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import DemandFacts
from offrl.envs.inventory.protocol import Setting, Split, deliveries
from offrl.envs.inventory.scenarios import Observation, Policy, Scenarios
from offrl.envs.inventory.spec import Edge, Network, Node, from_outside
from offrl.envs.inventory.work.bootstrap import Together, completed
from offrl.envs.inventory.work.company import Company, read_company
from offrl.envs.inventory.work.fit import DemandFit, correlation, fit_demand, generator
from offrl.envs.inventory.work.history import History
from offrl.envs.inventory.work.reading import WORKBOOKS
from offrl.errors import ConfigError

Array = NDArray[np.float64]
SPLITS = {
    "train": Split(scenarios=2048, batch=64, periods=52, ignore=13, demand_seed=57),
    "dev": Split(scenarios=128, batch=128, periods=78, ignore=26, demand_seed=57),
    "test": Split(scenarios=256, batch=256, periods=78, ignore=26, demand_seed=65),
}
STORES = {"train": 24_576, "dev": 2048, "test": 4096}
"""Paths times stores of a company's own splits, of which each path has all items: 12 stores have the paths above."""
FEWEST = {"train": 16, "dev": 4, "test": 8}
COPIES = 32
"""Completed histories of the held-out dates: censored and unknown periods are drawn in each."""
AT = " @ "


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Items of a company that one policy orders for."""

    company: Company
    items: tuple[int, ...]
    joint: bool
    """All items of the company, with what they share."""
    network: Network
    nodes: tuple[tuple[int, int], ...]
    """Of each node of the network: the place of its item in ``items``, and its number among the company's places."""

    @property
    def name(self) -> str:
        """For people."""
        return self.company.name if self.joint else f"item {self.company.items[self.items[0]].name!r}"

    @property
    def whole(self) -> bool:
        """Whether orders are rounded to whole units: an item that is sold so. Lanes of a whole company have packs."""
        return not self.joint and whole_units(self.company, self.items[0])

    @cached_property
    def carried(self) -> Network:
        """The network in which orders are carried out. Rules that shrink a wish for whole units (a capacity, a budget,
        another lane's pack from the same stock) leave whole units, where the item is sold so: packs of 1.
        """
        if not (self.whole and self.network.extended):
            return self.network
        edges = tuple(replace(edge, pack=edge.pack or 1.0) for edge in self.network.edges)
        return replace(self.network, edges=edges)

    @cached_property
    def history(self) -> History:
        """Sales of the items in all stores, all periods."""
        c, chosen = self.company, list(self.items)
        return History(
            items=tuple(c.items[i].name for i in chosen), stores=c.stores, first=c.first, period=c.period,
            sales=c.sales[chosen], left=c.left[chosen],
        )  # fmt: skip

    @property
    def periods(self) -> int:
        """Of the history."""
        return int(self.company.sales.shape[2])

    @property
    def start(self) -> int:
        """The first period that is held out."""
        return self.periods - max(1, self.periods // 5)

    @cached_property
    def fit(self) -> DemandFit:
        """Demand, from the periods before ``start``.

        Raises:
            ConfigError: a history too short to fit and hold out.
        """
        if self.periods < 9:
            kind = self.company.period
            raise ConfigError(
                f"{self.periods} {kind}s of sales; 9 are the least: 8 to fit on and 1 to hold out"
            )
        return fit_demand(self.history.until(self.start))

    @cached_property
    def sold(self) -> list[tuple[int, list[int]]]:
        """Each item's place in ``items``, and its stores in the network's order."""
        found: dict[int, list[int]] = {}
        upstream = len(self.company.places) - len(self.company.stores)
        for item, place in self.nodes[self.network.upstream :]:
            found.setdefault(item, []).append(place - upstream)
        return list(found.items())

    @cached_property
    def means(self) -> Array:
        """(N,), fitted mean demand behind each node, units a period; 0: no sales before ``start``."""
        return np.array(
            self.network.behind([float(self.fit.means[k, s]) for k, stores in self.sold for s in stores])
        )

    @cached_property
    def facts(self) -> DemandFacts:
        """What policies know of the demand."""
        fit, stores = self.fit, [(k, s) for k, own in self.sold for s in own]
        std = fit.counts.std.reshape(fit.means.shape)
        return DemandFacts(
            means=tuple(float(fit.means[at]) for at in stores), stds=tuple(float(std[at]) for at in stores),
            season=tuple(season_of(fit, k) for k, _ in stores),
        )  # fmt: skip

    def of_item(self, values: Array) -> Array:
        """Sums over each item's nodes, (..., N) -> (..., I)."""
        total = np.zeros((*values.shape[:-1], len(self.items)))
        for n, (item, _) in enumerate(self.nodes):
            total[..., item] += values[..., n]
        return total

    def label(self, node: int) -> tuple[str, str]:
        """Names of a node's item and place."""
        item, place = self.nodes[node]
        return self.company.items[self.items[item]].name, self.company.places[place][0]

    def source(self, lane: int) -> str:
        """Name of who sends on a lane."""
        own = self.network.sources[lane]
        return (
            self.label(own)[1] if own < len(self.nodes) else self.network.edges[lane].source.partition(" ")[2]
        )

    def demand(self) -> Demand:
        """What training paths are drawn from.

        Raises:
            ConfigError: there are no sales before ``start``.
        """
        if not self.means.any():
            raise ConfigError(
                f"{self.name} has no sales before {self.company.dates()[self.start]}; all dates from then on are held "
                "out, and nothing is left to train on"
            )
        parts = tuple(generator(self.fit, k, stores) for k, stores in self.sold)
        return Together(parts=parts) if self.joint else parts[0]  # type: ignore[arg-type]


def season_of(fit: DemandFit, item: int) -> tuple[float, ...]:
    """Factors of an item's season from period 0 on; one factor where there is none."""
    own = tuple(round(float(factor), 4) for factor in fit.season[item])
    return (1.0,) if set(own) == {1.0} else own


def whole_units(company: Company, item: int) -> bool:
    """Whether an item is sold in whole units."""
    known = company.sales[item][~np.isnan(company.sales[item])]
    return bool((known == known.round()).all())


def is_company(name: str) -> bool:
    """Whether a setting's name is a workbook or folder, that is all items of a company."""
    return name.lower().endswith(WORKBOOKS) or (bool(name) and Path(name).is_dir())


def read_plan(name: str) -> Plan:
    """The plan of ``net.xlsx:I003``, or of the whole company ``net.xlsx``.

    Raises:
        ConfigError: no such item, or rules that the whole company cannot keep.
        DatasetError: the tables break a rule.
    """
    if is_company(name):
        return plan_of(read_company(name))
    path, _, item = name.rpartition(":")
    if not is_company(path):
        raise ConfigError(f"{name!r} is no workbook or folder, and no item of one (net.xlsx:I003)")
    company = read_company(path)
    return plan_of(company, company.index(item))


def plan_of(company: Company, item: int | None = None) -> Plan:
    """The plan of one item, or of all."""
    if item is None:
        return _joint(company)
    network, places = company.network(item), [name for name, _ in company.places]
    nodes = tuple((0, places.index(node.name)) for node in network.nodes)
    return Plan(company=company, items=(item,), joint=False, network=network, nodes=nodes)


def _joint(company: Company) -> Plan:
    if company.budget < np.inf:
        raise ConfigError(
            "sheet 'about' has a budget, which is each item's own; for all items together fill shared_budget instead"
        )
    places = {name: k for k, (name, _) in enumerate(company.places)}
    nodes: list[Node] = []
    edges: list[Edge] = []
    place: dict[str, tuple[int, int]] = {}
    for k, item in enumerate(company.items):
        own, lanes = company.parts(k)
        whole = 1.0 if whole_units(company, k) else 0.0
        names = {node.name: f"{item.name}{AT}{node.name}" for node in own}
        place |= {names[node.name]: (k, places[node.name]) for node in own}
        nodes += [replace(node, name=names[node.name]) for node in own]
        for lane in lanes:
            source = lane.source if from_outside(lane.source) else names[lane.source]
            edges.append(replace(lane, source=source, target=names[lane.target], pack=lane.pack or whole))
    network = Network(
        name=company.name, nodes=tuple(nodes), edges=tuple(edges), lost_sales=company.lost,
        same_period=any(edge.lead_time == 0 for edge in edges), budget=company.shared_budget, trucks=company.trucks,
    )  # fmt: skip
    return Plan(
        company=company, items=tuple(range(len(company.items))), joint=True, network=network,
        nodes=tuple(place[node.name] for node in network.nodes),
    )  # fmt: skip


def plan_setting(name: str) -> Setting:
    """The setting of an item or of a whole company.

    Raises:
        ConfigError: no such item.
        DatasetError: the tables break a rule.
    """
    plan = read_plan(name)
    path, _, item = (name, "", "") if plan.joint else name.rpartition(":")
    return setting_of(plan, Path(path).stem + (f"-{item}" if item else ""))


def setting_of(plan: Plan, word: str) -> Setting:
    """The plan as a setting of that name."""
    return Setting(
        name="".join(c if c.isalnum() or c in "-_" else "_" for c in word), network=plan.network, demand=plan.demand(),
        splits=splits(plan.network.stores) if plan.joint else SPLITS, integral=plan.whole,
        first=plan.company.first.isoformat(), until=plan.company.dates()[plan.start].isoformat(),
        about=f"{f'{len(plan.items)} items' if plan.joint else plan.name} of {plan.company.name}",
    )  # fmt: skip


def splits(stores: int) -> dict[str, Split]:
    """Sizes for a company: fewer paths, as each has all items."""
    found: dict[str, Split] = {}
    for name, split in SPLITS.items():
        paths = min(split.scenarios, max(FEWEST[name], STORES[name] // stores))
        found[name] = replace(split, scenarios=paths, batch=max(1, min(split.batch, 3072 // stores)))
    return found


def held_out_scenarios(plan: Plan) -> Scenarios:
    """The whole history as completed demand paths, ``COPIES`` of them, fewer for thousands of series.

    Policies start from today's stock at the first period, so that they have met their own orders long before they
    are counted, from ``plan.start`` on.
    """
    copies = max(4, min(COPIES, 16_384 // plan.network.stores))
    history, fit, parts = plan.history, plan.fit, []
    for k, stores in plan.sold:
        early = slice(0, plan.start)
        sales, empty, own = history.sales[k][stores], history.empty[k][stores], fit.series(k, stores)
        together = correlation(sales[:, early], empty[:, early], own, fit.factor[k])
        factor = fit.later(k, 0, plan.periods)
        seed = plan.items[k]
        parts.append(completed(sales, empty, own, factor, copies, seed=seed, correlation=together))
    paths, network = np.concatenate(parts, 1), plan.carried
    start = torch.zeros(copies, len(network.nodes), network.width)
    start[:, :, 0] = torch.tensor([node.initial for node in network.nodes])
    random = np.random.default_rng(
        (plan.items[0], 7919)
    )  # demand that is not known comes from the item's own number
    return Scenarios(
        network=network, initial=start, parameters=Parameters.of(network),
        demands=torch.from_numpy(np.ascontiguousarray(paths.transpose(2, 0, 1))).float(),
        deliveries=deliveries(network, plan.periods, copies, random),
    )  # fmt: skip


def today(plan: Plan) -> Tensor:
    """(1, N, K): on hand, and what is under way in the column of its date."""
    company, network = plan.company, plan.network
    stock = torch.zeros(1, len(network.nodes), network.width)
    for n, (k, place) in enumerate(plan.nodes):
        at = (plan.items[k], place)
        stock[0, n, 0] = float(company.on_hand[at])
        column = min(max(int(company.due[at]), 0), network.width - 1)
        stock[0, n, column] += float(company.on_order[at])
    return stock


def has_levels(plan: Plan) -> bool:
    """Whether the sheet ``stock`` gives min and max anywhere in the network."""
    return not np.isnan([plan.company.levels[plan.items[k], place] for k, place in plan.nodes]).all()


def levels_in_use(plan: Plan, levels: Array | None = None, *, needed: bool = True) -> Tensor:
    """Min and max of the network's nodes, (N, 2): today's, or ``levels`` (I, places, 2) of all items.

    Raises:
        ConfigError: a node has none; NaN where they are not ``needed``.
    """
    values = plan.company.levels if levels is None else levels
    found = []
    for n, (k, place) in enumerate(plan.nodes):
        low, high = values[plan.items[k], place]
        if needed and np.isnan(low):
            item, node = plan.label(n)
            where = "sheet 'stock' has" if levels is None else "--versus gives"
            raise ConfigError(f"{where} no min and max for item {item!r} at {node!r}; fill them")
        found.append((low, high))
    return torch.tensor(found, dtype=torch.float32)


def min_max(network: Network, levels: Tensor) -> Policy:
    """Order up to max at or below min, nothing where these are NaN; a node's first supplier gets the order."""
    lanes = first_lanes(network)

    def policy(seen: Observation) -> Tensor:
        position = seen.stock.sum(-1)
        wish = torch.where(position <= levels[:, 0], levels[:, 1] - position, torch.zeros_like(position))
        orders = wish.new_zeros(len(wish), len(network.edges))
        orders[:, lanes] = wish
        return orders

    return policy


def first_lanes(network: Network) -> list[int]:
    """The first lane into each node."""
    first: dict[int, int] = {}
    for lane, node in enumerate(network.targets):
        first.setdefault(node, lane)
    return [first[n] for n in range(len(network.nodes))]
