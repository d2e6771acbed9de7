"""Deliveries that vary, from a file of receipts: late ones, partial ones, ones that overtake each other.

Each past order becomes a way of arriving: shares of what came, by periods after the order. The simulator draws one for
every order, independently, so that a later order may come first. Periods are counted as the lead time is: goods that
come k days after the order are of use after k / (days of a period), rounded up, and 1 at least.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from offrl.envs.inventory.spec import Edge
from offrl.envs.inventory.work.checking import Typed, known
from offrl.envs.inventory.work.reading import Table

MOST_PERIODS = 104


def with_receipts(table: Table, values: Typed, lanes: Sequence[Edge], days: int) -> tuple[Edge, ...]:
    """Lanes that have receipts, with them; the others as they are.

    Args:
        table: for messages.
        values: typed columns of the sheet ``receipts``.
        lanes: of the company.
        days: of a period.

    Raises:
        DatasetError: no such lane, or a delivery before its order.
    """
    by_name = {(lane.source, lane.target): k for k, lane in enumerate(lanes)}
    ends = [f"{a} -> {b}" for a, b in zip(values["from"], values["to"], strict=True)]
    known(table, "to", ends, [f"{a} -> {b}" for a, b in by_name], "lane", "lanes")
    orders: dict[tuple[int, str], dict[int, float]] = {}
    for row in range(len(table)):
        cell: dict[str, Any] = {key: column[row] for key, column in values.items()}
        taken = (cell["received"] - cell["ordered"]).days
        if taken < 0:
            raise table.wrong(
                row,
                "received",
                f"received {cell['received']} is before ordered {cell['ordered']}; correct it",
            )
        periods = max(1, math.ceil(taken / days))
        if periods > MOST_PERIODS:
            raise table.wrong(
                row, "received", f"a delivery after {taken} days; correct the date or remove the row"
            )
        came = orders.setdefault((by_name[cell["from"], cell["to"]], cell["order"]), {})
        came[periods] = came.get(periods, 0.0) + cell["quantity"]
    ways: dict[int, list[tuple[float, ...]]] = {}
    for (lane, _), came in orders.items():
        total = sum(came.values())
        shares = tuple(came.get(k, 0.0) / total for k in range(1, max(came) + 1))
        ways.setdefault(lane, []).append(shares)
    return tuple(replace(lane, receipts=tuple(ways.get(k, ()))) for k, lane in enumerate(lanes))
