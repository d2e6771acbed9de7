"""The supply chains of or-gym with their default numbers, as settings.

Profit there is minus cost here. Source: hubbs5/or-gym (MIT), envs/supply_chain; arXiv:2008.06319.
Departures: see :mod:`offrl.envs.inventory.extended`; orders are not cut to whole numbers.
"""

from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node

SPLITS = {
    "train": Split(scenarios=8192, batch=1024, periods=30, ignore=0, demand_seed=57),
    "dev": Split(scenarios=2048, batch=2048, periods=30, ignore=0, demand_seed=57),
    "test": Split(scenarios=8192, batch=8192, periods=30, ignore=0, demand_seed=65),
}


def or_gym_inv_management(*, backlog: bool = True) -> Setting:
    """or-gym's InvManagement: four stages in a row, capacities, owed orders, discounted profit over 30 periods.

    With backlog it is v0, without v1.
    """
    stock, holding = (100.0, 100.0, 200.0), (0.15, 0.10, 0.05)
    names = ("retailer", "distributor", "manufacturer")
    nodes = tuple(
        Node(
            name=name,
            kind="store" if i == 0 else "warehouse",
            holding_cost=holding[i],
            initial=stock[i],
            underage_cost=0.10 if i == 0 else 0.0,
            price=2.0 if i == 0 else 0.0,
        )
        for i, name in enumerate(names)
    )
    edges = (
        Edge(source="distributor", target="retailer", lead_time=3, capacity=100, price=1.5),
        Edge(source="manufacturer", target="distributor", lead_time=5, capacity=90, price=1.0),
        Edge(source=OUTSIDE, target="manufacturer", lead_time=10, capacity=80, cost=0.5),
    )
    network = Network(
        name="or_gym_inv_management",
        nodes=nodes,
        edges=edges,
        lost_sales=not backlog,
        ships_before_receiving=True,
        owes_orders=backlog,
        order_penalty=(0.075, 0.05, 0.025),
        discount=0.97,
    )
    return Setting(
        name="or_gym_inv_management-v1",
        network=network,
        demand=Poisson(means=(20.0,)),
        splits=SPLITS,
        integral=True,
    )


STOCK = {"1": (100, 0.030), "2": (110, 0.020), "3": (80, 0.015)}
PLANTS = {"4": (400, 0.012, 90, 0.010), "5": (350, 0.013, 90, 0.015), "6": (380, 0.011, 80, 0.012)}
LANES = (
    ("2", "1", 5, 1.500, 0.010), ("3", "1", 3, 1.600, 0.015), ("4", "2", 8, 1.000, 0.008),
    ("4", "3", 10, 0.800, 0.006), ("5", "2", 9, 0.700, 0.005), ("6", "2", 11, 0.750, 0.007),
    ("6", "3", 12, 0.800, 0.004),
)  # fmt: skip
RAW = (
    ("outside 7", "4", 0, 0.150, 0.000), ("outside 7", "5", 1, 0.050, 0.005), ("outside 8", "5", 2, 0.070, 0.002),
    ("outside 8", "6", 0, 0.200, 0.000),
)  # fmt: skip


def or_gym_network_management(*, backlog: bool = True) -> Setting:
    """or-gym's NetworkManagement: raw material, three plants, two distributors, a retailer; profit over 30 periods.

    With backlog it is v0, without v1.
    """
    nodes = [
        Node(
            name=name,
            kind="store" if name == "1" else "warehouse",
            initial=stock,
            holding_cost=h,
            underage_cost=0.1 if name == "1" else 0.0,
            price=2.0 if name == "1" else 0.0,
        )
        for name, (stock, h) in STOCK.items()
    ]
    nodes += [
        Node(name=name, kind="echelon", initial=stock, holding_cost=h, capacity=c, operating_cost=o)
        for name, (stock, h, c, o) in PLANTS.items()
    ]
    edges = [Edge(source=a, target=b, lead_time=n, price=p, transit_cost=g) for a, b, n, p, g in LANES]
    edges += [Edge(source=a, target=b, lead_time=n, cost=c, transit_cost=g) for a, b, n, c, g in RAW]
    network = Network(
        name="or_gym_network_management",
        nodes=tuple(nodes),
        edges=tuple(edges),
        lost_sales=not backlog,
        ships_before_receiving=True,
    )
    return Setting(
        name="or_gym_network_management-v1",
        network=network,
        demand=Poisson(means=(20.0,)),
        splits=SPLITS,
        integral=True,
    )
