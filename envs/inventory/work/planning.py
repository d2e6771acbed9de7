"""One item of a company as a setting to train on, its held-out dates as scenarios, and today's rules beside it.

The last fifth of the periods is held out: demand is fitted on what comes before, training paths are drawn from that
fit, and the held-out dates score whatever was trained.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.scenarios import Observation, Policy, Scenarios
from offrl.envs.inventory.spec import Network
from offrl.envs.inventory.work.bootstrap import completed
from offrl.envs.inventory.work.company import Company, read_company
from offrl.envs.inventory.work.fit import DemandFit, fit_demand, generator
from offrl.envs.inventory.work.history import History, history_of
from offrl.errors import ConfigError

SPLITS = {
    "train": Split(scenarios=2048, batch=64, periods=52, ignore=13, demand_seed=57),
    "dev": Split(scenarios=128, batch=128, periods=78, ignore=26, demand_seed=57),
    "test": Split(scenarios=256, batch=256, periods=78, ignore=26, demand_seed=65),
}
COPIES = 32
"""Completed histories of the held-out dates: censored and unknown periods are drawn in each."""


def held_out(periods: int) -> int:
    """How many of a history's periods are held out."""
    return max(1, periods // 5)


def one_item(company: Company, item: int) -> History:
    """The history of one item in the stores that sell it."""
    full, sold = history_of(company), company.sold(item)
    return History(
        items=(full.items[item],), stores=tuple(full.stores[s] for s in sold), first=full.first, period=full.period,
        sales=full.sales[item : item + 1][:, sold], left=full.left[item : item + 1][:, sold],
    )  # fmt: skip


def fitted(company: Company, item: int) -> DemandFit:
    """Demand of one item, without the held-out periods."""
    history = one_item(company, item)
    periods = history.sales.shape[2]
    return fit_demand(history.until(periods - held_out(periods)))


def item_setting(path: str | Path, name: str) -> Setting:
    """The setting of one item.

    Raises:
        ConfigError: no such item.
        DatasetError: the tables break a rule.
    """
    company = read_company(path)
    item = company.index(name)
    fit = fitted(company, item)
    stores = list(range(len(fit.history.stores)))
    demand = generator(fit, 0, stores, start=fit.history.sales.shape[2])
    shown = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{Path(path).stem}-{name}")
    return Setting(
        name=shown, network=company.network(item), demand=demand, splits=SPLITS, integral=True,
        about=f"item {name} of {company.name}",
    )  # fmt: skip


def held_out_scenarios(company: Company, item: int) -> tuple[Scenarios, int]:
    """The whole history as ``COPIES`` completed demand paths, and the first held-out period.

    Policies start from today's stock at the first period, so that they have met their own orders long before they
    are counted.
    """
    history, fit = one_item(company, item), fitted(company, item)
    periods = history.sales.shape[2]
    factor = fit.later(0, 0, periods)
    paths = completed(history.sales[0], history.empty[0], fit.counts, factor, COPIES, seed=item)
    network = company.network(item)
    start = torch.zeros(COPIES, len(network.nodes), network.width)
    start[:, :, 0] = torch.tensor([node.initial for node in network.nodes])
    deliveries = None
    ways = [len(edge.receipts) for edge in network.edges]
    if any(ways):
        drawn = np.random.default_rng(item).random((periods, COPIES, len(ways)))
        deliveries = torch.from_numpy((drawn * np.maximum(ways, 1)).astype(np.int64))
    scenarios = Scenarios(
        network=network, initial=start, parameters=Parameters.of(network), deliveries=deliveries,
        demands=torch.from_numpy(np.ascontiguousarray(paths.transpose(2, 0, 1))).float(),
    )  # fmt: skip
    return scenarios, periods - held_out(periods)


def levels_in_use(company: Company, item: int, network: Network) -> Tensor:
    """Today's min and max of the network's nodes, (N, 2).

    Raises:
        ConfigError: a node has none.
    """
    places = [name for name, _ in company.places]
    found = []
    for node in network.nodes:
        low, high = company.levels[item, places.index(node.name)]
        if np.isnan(low):
            raise ConfigError(
                f"sheet 'stock' has no min and max for item {company.items[item].name!r} at {node.name!r}; fill them"
            )
        found.append((low, high))
    return torch.tensor(found, dtype=torch.float32)


def min_max(network: Network, levels: Tensor) -> Policy:
    """Order up to max at or below min; a node's first supplier gets the order."""
    first = [network.targets.index(n) for n in range(len(network.nodes))]

    def policy(seen: Observation) -> Tensor:
        position = seen.stock.sum(-1)
        wish = torch.where(position <= levels[:, 0], levels[:, 1] - position, torch.zeros_like(position))
        orders = wish.new_zeros(len(wish), len(network.edges))
        orders[:, first] = wish
        return orders

    return policy


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Money that one policy saves against another on the same demand."""

    per_period: float
    low: float
    """95 % interval, by blocks of 4 periods resampled."""
    high: float


def saving(ours: Tensor, theirs: Tensor, block: int = 4, draws: int = 4000) -> Saving:
    """Of the costs of each period, (T,) each; the interval is over dates, which are what is scarce."""
    gap = (theirs - ours).double().numpy()
    blocks = [gap[k : k + block].mean() for k in range(0, len(gap) - block + 1, block)] or [gap.mean()]
    random = np.random.default_rng(0)
    means = np.array(blocks)[random.integers(0, len(blocks), (draws, len(blocks)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Saving(per_period=float(gap.mean()), low=float(low), high=float(high))
