"""Policies against each other on the held-out dates of a plan, as tables: summary, groups, items, the worst items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offrl.envs.inventory.work.planning import Plan
from offrl.envs.inventory.work.scoring import YEAR, Score, abc_xyz

Array = NDArray[np.float64]
Row = tuple[Any, ...]
WORST = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What a back-test found; the first policy is the one that is judged, the last one what it is judged against."""

    plan: Plan
    scores: Mapping[str, Score]

    @property
    def year(self) -> int:
        """Periods."""
        return YEAR[self.plan.company.period]

    @property
    def values(self) -> Array:
        """(N,), money that a unit in stock is worth; NaN: not known."""
        items = self.plan.company.items
        return np.array([items[self.plan.items[k]].value for k, _ in self.plan.nodes])

    def groups(self) -> list[str]:
        """AX to CZ of each item, by the money that its demand moves and the spread of its demand in a store."""
        plan, upstream = self.plan, self.plan.network.upstream
        fit = plan.fit
        std, mean = np.zeros(len(plan.items)), np.zeros(len(plan.items))
        for k, stores in plan.sold:
            std[k], mean[k] = fit.series(k, stores).std.sum(), fit.means[k, stores].sum()
        short = [node.underage_cost for node in plan.network.nodes[upstream:]]
        of_store = np.concatenate([np.zeros(upstream), np.array(short) * plan.means[upstream:]])
        values = np.array([plan.company.items[k].value for k in plan.items])
        money = plan.of_item(of_store) if np.isnan(values).any() else values * mean
        return abc_xyz(money, std / np.maximum(mean, 1e-9))

    def summary(self) -> list[Row]:
        """A row a policy."""
        rows: list[Row] = [
            ("policy", "cost a year", "of it short", "fill rate", "units on hand", "stock value")
        ]
        for name, own in self.scores.items():
            cost, short = float(own.costs.sum(1).mean()) * self.year, float(own.underage.sum()) * self.year
            rows.append(
                (
                    name,
                    cost,
                    short,
                    own.fill,
                    float(own.on_hand.sum()),
                    _known(float(own.on_hand @ self.values)),
                )
            )
        return rows

    def items(self) -> list[Row]:
        """A row an item, the one with the largest cost first."""
        plan, names = self.plan, list(self.scores)
        head = ("item", "group", "family", "demand a year")
        columns: list[Array] = [self._costs(name) for name in names]
        columns.append(columns[-1] - columns[0])
        columns += [self._fill(name) for name in names]
        columns += [plan.of_item(self.scores[name].on_hand) for name in names]
        columns += [plan.of_item(self.scores[name].on_hand * self.values) for name in names]
        more = [f"{what} {name}" for what in ("fill", "on hand", "stock value") for name in names]
        titles = (*head, *(f"cost {name}" for name in names), "saved a year", *more)
        demand = self._by_item(self.scores[names[0]].demand) * self.year
        rows: list[Row] = []
        for k, group in enumerate(self.groups()):
            item = plan.company.items[plan.items[k]]
            numbers = [_known(float(column[k])) for column in columns]
            rows.append((item.name, group, item.group, float(demand[k]), *numbers))
        return [titles, *sorted(rows, key=lambda row: -float(row[4]))]

    def worst(self) -> list[Row]:
        """The items on which least is saved, or most is lost."""
        head, *rows = self.items()
        saved = head.index("saved a year")
        return [head, *sorted(rows, key=lambda row: float(row[saved]))[:WORST]]

    def by_group(self) -> list[Row]:
        """A row a group of ABC-XYZ."""
        names, groups = list(self.scores), np.array(self.groups())
        head = (
            "group",
            "items",
            *(f"cost {name}" for name in names),
            "saved a year",
            *(f"fill {name}" for name in names),
        )
        rows: list[Row] = [head]
        for group in sorted(set(groups)):
            own = groups == group
            costs = [float(self._costs(name)[own].sum()) for name in names]
            fill = [
                _known(float(_share(self._by_item(s.served)[own].sum(), self._by_item(s.demand)[own].sum())))
                for s in self.scores.values()
            ]
            rows.append((str(group), int(own.sum()), *costs, costs[-1] - costs[0], *fill))
        return rows

    def _costs(self, name: str) -> Array:
        """(I,), a year."""
        return self.plan.of_item(self.scores[name].costs.mean(0)) * self.year

    def _fill(self, name: str) -> Array:
        own = self.scores[name]
        return _share(self._by_item(own.served), self._by_item(own.demand))

    def _by_item(self, of_stores: Array) -> Array:
        """(S,) -> (I,)."""
        return self.plan.of_item(np.concatenate([np.zeros(self.plan.network.upstream), of_stores]))


def _share(served: Any, demand: Any) -> Array:
    """Of demand that was served; NaN where there was none."""
    return np.where(demand > 0, served / np.maximum(demand, 1e-12), np.nan)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
