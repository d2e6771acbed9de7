"""A setting: a network, its demand, and how many scenarios of it are drawn for what."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from offrl.envs.inventory.demand import Demand, Random
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.sales import WeeklySales
from offrl.envs.inventory.scenarios import Scenarios
from offrl.envs.inventory.spec import Network
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


def _resized(
    splits: Mapping[str, Split], periods: Mapping[str, int], scenarios: Mapping[str, int]
) -> dict[str, Split]:
    """Splits with other sizes; warm-up keeps its share of the periods."""
    new = dict(splits)
    for name, count in scenarios.items():
        new[name] = replace(new[name], scenarios=count, batch=min(new[name].batch, count))
    for name, count in periods.items():
        new[name] = replace(new[name], periods=count, ignore=new[name].ignore * count // new[name].periods)
    return new


def penalised(network: Network, factor: float) -> Network:
    """The network with all underage costs times a factor."""
    nodes = (replace(node, underage_cost=node.underage_cost * factor) for node in network.nodes)
    return replace(network, nodes=tuple(nodes))


def deliveries(network: Network, periods: int, scenarios: int, random: Random) -> torch.Tensor | None:
    """Which of its lane's receipts each order gets, (T, n, E); None, and nothing drawn, where deliveries do not vary.

    Of a stream of its own, so that demand does not depend on it.
    """
    ways = [len(edge.receipts) for edge in network.edges]
    if not any(ways):
        return None
    drawn = random.uniform(size=(scenarios, periods, len(ways))).transpose(1, 0, 2)
    return torch.from_numpy((drawn * np.maximum(ways, 1)).astype(np.int64))


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
    first: str = ""
    """Date of period 0, where periods have dates."""
    until: str = ""
    """First date that is held out of what demand is fitted on, where one is."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def resized(self, *, periods: Mapping[str, int] | None = None, **scenarios: int) -> "Setting":
        """The same setting with other numbers of scenarios (``train=256``) or periods (``periods={"test": 500}``).

        Warm-up keeps its share of the periods.
        """
        return replace(self, splits=_resized(self.splits, periods or {}, scenarios))

    def draw(self, name: SplitName, *, dtype: torch.dtype = torch.float32) -> Scenarios:
        """Scenarios of a split, as the publication draws them.

        Training and development scenarios come from one draw, whose first rows are the development set; the test set
        has seeds of its own. The seeds of the setting are read, never changed.
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
        ways = deliveries(self.network, periods, count, np.random.RandomState(split.demand_seed + 7919))
        return Scenarios(
            network=self.network,
            initial=torch.from_numpy(stock).to(dtype),
            demands=torch.from_numpy(np.ascontiguousarray(demands)).to(dtype),
            parameters=Parameters.of(self.network, dtype),
            deliveries=None if ways is None else ways[: split.periods, first : first + split.scenarios],
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


@dataclass(frozen=True, kw_only=True)
class SalesSetting:
    """A network whose demand are recorded weekly sales: each split has a range of weeks, all share the series.

    The first ``history`` weeks of a range are only seen. Windows of the splits overlap, as in the publication.
    """

    name: str
    network: Network
    sales: WeeklySales
    splits: Mapping[str, Split]
    weeks: Mapping[str, tuple[int, int]]
    """First week, and the one after the last."""
    parameters: Parameters
    """Of all series: (n, ...) or shared."""
    history: int = 16
    integral: bool = False
    clip_negative: bool = False
    """True: weeks with more returned than sold count 0."""
    features: tuple[str, ...] = ("holding", "underage", "lead_time", "past_demand", "days_from_christmas")
    about: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        last = max(end for _, end in self.weeks.values())
        if self.sales.values.shape[2] < last:
            raise ConfigError(
                f"{self.name} needs {last} weeks of sales, {self.sales.source} has {self.sales.values.shape[2]}"
            )
        if self.sales.values.shape[1] != self.network.stores:
            raise ConfigError(
                f"{self.name} has {self.network.stores} stores, {self.sales.source} has {self.sales.values.shape[1]}"
            )

    def resized(self, *, periods: Mapping[str, int] | None = None, **scenarios: int) -> "SalesSetting":
        """The same setting with fewer series or periods."""
        return replace(self, splits=_resized(self.splits, periods or {}, scenarios))

    def draw(self, name: SplitName, *, dtype: torch.dtype = torch.float32) -> Scenarios:
        """The first series of the file, over the weeks of the split."""
        if name not in self.splits:
            raise ConfigError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        start, end = self.weeks[name]
        end = min(end, start + self.history + self.splits[name].periods)
        count = min(self.splits[name].scenarios, len(self.sales.values))
        values = self.sales.values[:count, :, start:end].transpose(2, 0, 1)
        if self.clip_negative:
            values = np.maximum(values, 0)
        demands = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        p = self.parameters
        shared = Parameters(p.holding.to(dtype), p.underage.to(dtype), p.edge_cost.to(dtype), p.lead_times)
        stock = torch.zeros(count, len(self.network.nodes), self.network.width, dtype=dtype)
        return Scenarios(
            network=self.network,
            initial=stock,
            demands=demands,
            parameters=shared.rows(torch.arange(count)),
            history=self.history,
            calendar=self.sales.days_from_christmas[start:end],
        )


AnySetting = Setting | SalesSetting
