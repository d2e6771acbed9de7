"""Networks of other libraries as a YAML file of ours: stockpyl's instances, or-gym's InvManagement.

What cannot be carried over is an error that says why; what is counted differently here is a note.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from offrl.envs.inventory.spec import OUTSIDE, Edge, Node
from offrl.errors import ConfigError, DatasetError, MissingExtraError

MOST_BYTES = 2**26
Entry = Mapping[str, Any]
TRANSIT = "stockpyl charges holding on goods under way at the sender's rate; here they cost nothing"


def read_json(path: Path) -> Entry:
    """A JSON object.

    Raises:
        DatasetError: it is none, or too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.stat().st_size > MOST_BYTES:
        raise DatasetError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: want a JSON object, got a {type(content).__name__}")
    return content


def write_yaml(content: Entry, path: Path) -> None:
    """A network file."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "inventory") from None
    path.write_text(
        yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110), encoding="utf-8"
    )


def _plain(thing: Node | Edge) -> dict[str, Any]:
    """An entry of the YAML file; what has its default is left out."""
    renamed = {"source": "from", "target": "to", "yield_": "yield"}
    named = ((f.name, getattr(thing, f.name), f.default) for f in fields(thing))
    return {renamed.get(name, name): value for name, value, default in named if value != default}


def _number(entry: Entry, key: str, where: str, default: float | None = 0.0) -> float:
    value = entry.get(key)
    if value is None:
        if default is None:
            raise DatasetError(f"{where}: no {key}; fill it there and save again")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(
            f"{where}: {key} must be one number, got {str(value)[:40]!r}; functions and lists are not read"
        )
    return float(value)


def _whole(entry: Entry, key: str, where: str, default: float | None = 0.0) -> int:
    value = _number(entry, key, where, default)
    if value != int(value) or value < 0:
        raise DatasetError(
            f"{where}: {key} is {value:g}; whole periods are needed: choose a shorter period and rescale"
        )
    return int(value)


def _file(
    name: str, nodes: Sequence[Node], edges: Sequence[Edge], demand: Entry, **flags: Any
) -> dict[str, Any]:
    lanes = [_plain(edge) for edge in edges]
    return {
        "format": 1, "name": name, **flags, "nodes": [_plain(node) for node in nodes], "lanes": lanes, "demand": demand,
    }  # fmt: skip


def from_stockpyl(content: Entry, instance: str | None) -> tuple[dict[str, Any], list[str]]:
    """A file of ``save_instance``, an instance of it, or a network's ``to_dict``.

    Returns:
        The content of a network file, and notes on what is counted differently.
    """
    name, data = _instance(content, instance)
    if "_nodes" not in data:
        return _one_stage(name, data)
    entries = data["_nodes"]
    if not isinstance(entries, list) or not all(isinstance(n, dict) for n in entries):
        raise DatasetError(f"instance {name!r}: _nodes must be a list of nodes")
    nodes, edges, demands = [], [], {}
    for n in entries:
        where = f"instance {name!r}, node {n.get('_index')}"
        source = n.get("demand_source") or {}
        store = isinstance(source, dict) and source.get("type") is not None
        _check_node(n, where, store)
        label = str(n.get("name") or f"node {n['_index']}")
        kind = "store" if store else "warehouse"
        start = n.get("initial_inventory_level")
        nodes.append(Node(
            name=label, kind="store" if store else "warehouse", holding_cost=_number(n, "local_holding_cost", where),
            underage_cost=_number(n, "stockout_cost", where) if store else 0.0,
            initial=_number(n, "initial_inventory_level", where) if not isinstance(start, dict) else 0.0,
        ))  # fmt: skip
        edges.append(_stockpyl_lane(n, entries, label, kind, where))
        if store:
            demands[label] = (source["type"], source)
    notes = [
        "lead times into stores are one less than in stockpyl, which orders after the period's demand is seen",
        TRANSIT,
    ]
    same = any(edge.lead_time == 0 for edge in edges)
    flags: dict[str, Any] = {"lost_sales": False} | ({"same_period": True} if same else {})
    return _file(name, nodes, edges, _stockpyl_demand(demands, name), **flags), notes


def _instance(content: Entry, wanted: str | None) -> tuple[str, Entry]:
    if "instances" not in content:
        data = content.get("data", content)
        name = str(content.get("name", "stockpyl"))
    else:
        known = {str(entry.get("name")): entry for entry in content["instances"] if isinstance(entry, dict)}
        if wanted is None and len(known) == 1:
            wanted = next(iter(known))
        if wanted not in known:
            some = ", ".join(list(known)[:6])
            raise ConfigError(
                f"choose an instance with --instance NAME; the file has {some}{', ...' if len(known) > 6 else ''}"
            )
        name, data = str(wanted), known[str(wanted)].get("data")
    if isinstance(data, str):
        data = json.loads(data)
    if not isinstance(data, dict):
        raise DatasetError(f"instance {name!r} has no data")
    return name, data


def _check_node(n: Entry, where: str, store: bool) -> None:
    if len(n.get("_predecessor_indices") or []) > 1:
        raise DatasetError(
            f"{where}: parts of several suppliers are assembled, which networks here do not do"
        )
    if store and (n.get("_successor_indices") or []):
        raise DatasetError(f"{where}: it has customers and successors; split it into a warehouse and a store")
    disrupted = n.get("disruption_process") or {}
    if isinstance(disrupted, dict) and disrupted.get("random_process_type") is not None:
        raise DatasetError(f"{where}: disruptions are not read; remove them and import again")


def _stockpyl_lane(n: Entry, entries: Sequence[Entry], label: str, kind: str, where: str) -> Edge:
    before = n.get("_predecessor_indices") or []
    source = OUTSIDE
    if before:
        found = [e for e in entries if e.get("_index") == before[0]]
        if not found:
            raise DatasetError(f"{where}: its supplier {before[0]} is not in the file")
        source = str(found[0].get("name") or f"node {before[0]}")
    total = _whole(n, "shipment_lead_time", where, None) + _whole(n, "order_lead_time", where)
    lead_time = total - (kind == "store")
    if lead_time < (kind != "store"):
        raise DatasetError(f"{where}: a lead time of {total} leaves nothing to wait for; 1 is the least")
    capacity = n.get("order_capacity")
    return Edge(
        source=source, target=label, lead_time=lead_time,
        capacity=float("inf") if capacity is None else _number(n, "order_capacity", where),
    )  # fmt: skip


def _stockpyl_demand(demands: Mapping[str, tuple[str, Entry]], name: str) -> dict[str, Any]:
    kinds = {kind for kind, _ in demands.values()}
    if kinds == {"N"}:
        stores = {
            s: {"mean": _number(d, "mean", s, None), "std": _number(d, "standard_deviation", s, None)}
            for s, (_, d) in demands.items()
        }
        return {"kind": "normal", "stores": stores}
    if kinds == {"P"}:
        return {
            "kind": "poisson",
            "stores": {s: {"mean": _number(d, "mean", s, None)} for s, (_, d) in demands.items()},
        }
    raise DatasetError(
        f"instance {name!r}: demand of type {', '.join(sorted(kinds)) or 'none'}; N and P are read"
    )


def _one_stage(name: str, data: Entry) -> tuple[dict[str, Any], list[str]]:
    """A dictionary of a newsvendor or (s, S) problem."""
    where = f"instance {name!r}"
    missing = [key for key in ("holding_cost", "stockout_cost", "demand_mean") if key not in data]
    if missing:
        raise DatasetError(
            f"{where}: no {missing[0]}; networks and one-stage problems with random demand are read"
        )
    node = Node(
        name="store", kind="store", holding_cost=_number(data, "holding_cost", where),
        underage_cost=_number(data, "stockout_cost", where),
    )  # fmt: skip
    lead_time = _whole(data, "lead_time", where)
    edge = Edge(
        source=OUTSIDE, target="store", lead_time=lead_time, fixed_cost=_number(data, "fixed_cost", where)
    )
    mean, spread = _number(data, "demand_mean", where), data.get("demand_sd")
    demand: dict[str, Any] = {"kind": "poisson", "stores": {"store": {"mean": mean}}}
    if spread is not None:
        demand = {
            "kind": "normal",
            "stores": {"store": {"mean": mean, "std": _number(data, "demand_sd", where)}},
        }
    flags: dict[str, Any] = {"lost_sales": False} | ({"same_period": True} if lead_time == 0 else {})
    return _file(name, [node], [edge], demand, **flags), []


def from_or_gym(content: Entry) -> tuple[dict[str, Any], list[str]]:
    """The ``env_config`` of InvManagement: I0, p, r, k, h, c, L, backlog, dist_param, alpha; defaults are or-gym's."""
    given = content.get("env_config", content)
    _known(given)
    lists: dict[str, Any] = {
        "I0": [100, 100, 200], "r": [1.5, 1.0, 0.75, 0.5], "k": [0.10, 0.075, 0.05, 0.025], "h": [0.15, 0.10, 0.05],
        "c": [100, 90, 80], "L": [3, 5, 10],
    }  # fmt: skip
    numbers = {key: _list(given, key, default) for key, default in lists.items()}
    m = _counted(numbers)
    if given.get("dist", 1) != 1:
        raise DatasetError(f"dist {given['dist']!r}: only Poisson demand (dist 1) is read")
    names = ["retailer", *(f"stage {k}" for k in range(1, m))]
    nodes, edges = [], []
    for k, name in enumerate(names):
        last = k == m - 1
        nodes.append(Node(
            name=name, kind="store" if k == 0 else "warehouse", holding_cost=numbers["h"][k], initial=numbers["I0"][k],
            underage_cost=numbers["k"][0] if k == 0 else 0.0,
            price=_number(given, "p", "p", 2.0) if k == 0 else 0.0,
        ))  # fmt: skip
        edges.append(Edge(
            source=OUTSIDE if last else names[k + 1], target=name, lead_time=int(numbers["L"][k]),
            capacity=numbers["c"][k], price=0.0 if last else numbers["r"][k], cost=numbers["r"][m] if last else 0.0,
        ))  # fmt: skip
    backlog, periods = bool(given.get("backlog", True)), int(_number(given, "periods", "periods", 30))
    param = given.get("dist_param") or {"mu": 20}
    demand = {"kind": "poisson", "stores": {"retailer": {"mean": _number(param, "mu", "dist_param", None)}}}
    made = _file(
        "or-gym InvManagement", nodes, edges, demand, lost_sales=not backlog, ships_before_receiving=True,
        owes_orders=backlog, discount=_number(given, "alpha", "alpha", 0.97),
        protocol={split: {"periods": periods, "ignore": 0} for split in ("train", "dev", "test")},
    )  # fmt: skip
    for lane, penalty in zip(made["lanes"], numbers["k"][1:], strict=True):
        lane["penalty"] = penalty
    return made, ["profit there is minus cost here; orders are not cut to whole numbers"]


OR_GYM = {"periods", "I0", "p", "r", "k", "h", "c", "L", "backlog", "dist", "dist_param", "alpha", "seed_int"}


def _known(given: Entry) -> None:
    if unknown := [key for key in given if key not in OR_GYM]:
        raise DatasetError(f"unknown key {unknown[0]!r}; InvManagement has {', '.join(sorted(OR_GYM))}")


def _counted(numbers: Mapping[str, Sequence[float]]) -> int:
    """The number of stages, of which every list has its share."""
    m = len(numbers["L"])
    for key, count in (("I0", m), ("h", m), ("c", m), ("r", m + 1), ("k", m + 1)):
        if len(numbers[key]) != count:
            raise DatasetError(f"{key} has {len(numbers[key])} values for {m} lead times; give {count}")
    return m


def _list(given: Entry, key: str, default: Sequence[float]) -> list[float]:
    values = given.get(key, default)
    if not isinstance(values, list) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in values
    ):
        raise DatasetError(f"{key} must be a list of numbers, got {str(values)[:40]!r}")
    return [float(v) for v in values]
