"""What one order goes through, and how lead times are counted here and elsewhere, as text."""

from offrl.envs.inventory.spec import Edge, Network, from_outside

CONVENTIONS = (
    ("here, and in every sheet", "n", "n"),
    ("stockpyl, shipment_lead_time (orders after demand is seen)", "n + 1", "n"),
    ("or-gym, L", "n", "n - 1"),
    ("periods of demand that a level has to cover", "n + 1", "n + 1"),
)
"""Who, and what they call our n: into a store, into a warehouse."""


def event_order(network: Network, period: str) -> list[str]:
    """The events of a period, one a line."""
    at_once = [f"{e.source} -> {e.target}" for e in network.edges if e.lead_time == 0]
    lines = [
        f"1. Before the {period} begins, all orders are fixed on the stock that is seen; nodes ship what is on hand.",
        f"2. Demand of the {period}; what is short is {'lost' if network.lost_sales else 'owed'}.",
        "3. Holding and underage costs on what is left and short.",
        f"4. What is due comes in, in time for the next {period}.",
    ]
    if at_once:
        more = f" and {len(at_once) - 1} more" if len(at_once) > 1 else ""
        lines.insert(
            1,
            f"   Lead time 0 ({at_once[0]}{more}): delivered at once, before the demand of the same {period}.",
        )
    return lines


def timeline(network: Network, period: str) -> list[str]:
    """One unit's longest way from outside to a store, order by order."""
    lines, now = [], 0
    way = _longest(network)
    for edge in way:
        word = f"{period} {now:2d}"
        rules = _rules(edge)
        lines.append(f"{word}: {edge.target} orders from {edge.source}{f' ({rules})' if rules else ''}")
        if edge.receipts:
            spread = [len(shares) for shares in edge.receipts]
            lines.append(
                f"         deliveries vary: the last part after {min(spread)} to {max(spread)} {period}s "
                f"({len(spread)} past orders); below with lead time {edge.lead_time}"
            )
        now += edge.lead_time
    last = way[-1].target if way else ""
    lines.append(f"{period} {now:2d}: the unit meets demand at {last}")
    return lines


def _rules(edge: Edge) -> str:
    parts = []
    if edge.pack:
        parts.append(f"packs of {edge.pack:g}")
    if edge.min_order:
        parts.append(f"at least {edge.min_order:g}")
    if edge.capacity < float("inf"):
        parts.append(f"at most {edge.capacity:g}")
    if edge.fixed_cost:
        parts.append(f"{edge.fixed_cost:g} an order")
    if edge.calendar:
        open_days = [str(k) for k, day in enumerate(edge.calendar) if day]
        parts.append(f"in periods {', '.join(open_days)} of every {len(edge.calendar)}")
    return ", ".join(parts)


def _longest(network: Network) -> list[Edge]:
    """The way of the largest sum of lead times, from outside to a store."""
    best: dict[str, list[Edge]] = {}

    def to(node: str) -> list[Edge]:
        if node not in best:
            ways = [
                [*([] if from_outside(edge.source) else to(edge.source)), edge]
                for edge in network.edges if edge.target == node
            ]  # fmt: skip
            best[node] = max(ways, key=lambda way: sum(edge.lead_time for edge in way))
        return best[node]

    ways = [to(node.name) for node in network.nodes[network.upstream :]]
    return max(ways, key=lambda way: sum(edge.lead_time for edge in way))
