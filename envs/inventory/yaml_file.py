"""One's own network from a YAML file such as ``EXAMPLE``; every mistake is one line that names the place."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offrl.envs.inventory.demand import Compound, Demand, NegativeBinomial, Normal, Poisson, Recorded
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.spec import Edge, Network, Node
from offrl.envs.inventory.tables import read_demand
from offrl.errors import ConfigError, MissingExtraError
from offrl.files import check_values

EXAMPLE = """\
format: 1
name: two shops
period: week                # of lead times and demand
unit: case                  # of product
lost_sales: true            # false: unmet demand waits
nodes:
  - {name: hub, kind: warehouse, holding_cost: 0.3}
  - {name: north, kind: store, holding_cost: 1.0, underage_cost: 9.0}
  - {name: south, kind: store, holding_cost: 1.2, underage_cost: 7.5}
lanes:
  - {from: outside, to: hub, lead_time: 3, cost: 0.5}
  - {from: hub, to: north, lead_time: 2}
  - {from: hub, to: south, lead_time: 1}
demand:
  kind: normal              # poisson, negative_binomial, compound, file
  correlation: 0.5
  stores:
    north: {mean: 5, std: 2}
    south: {mean: 3, std: 1.5}
"""

TOP = {
    "format",
    "name",
    "period",
    "unit",
    "lost_sales",
    "profit",
    "discount",
    "nodes",
    "lanes",
    "demand",
    "protocol",
    "same_period",
    "budget",
    "ships_before_receiving",
    "owes_orders",
}
NODE = {
    "name", "kind", "holding_cost", "underage_cost", "holds", "capacity", "yield", "operating_cost", "price",
    "initial", "unit",
}  # fmt: skip
LANE = {
    "from", "to", "lead_time", "cost", "transit_cost", "price", "capacity", "unit", "period",
    "fixed_cost", "min_order", "pack", "calendar", "penalty",
}  # fmt: skip
DEMAND = {
    "normal": ({"mean", "std"}, {"correlation", "season", "clip"}),
    "poisson": ({"mean"}, {"season"}),
    "negative_binomial": ({"mean", "std"}, {"season"}),
    "compound": ({"rate"}, {"batch", "season"}),
    "file": (set(), {"path"}),
}
"""Kind -> numbers of each store, and of all of them."""
SPLIT = {"scenarios", "batch", "periods", "ignore"}
SPLITS = {
    "train": Split(scenarios=8192, batch=1024, periods=50, ignore=30, demand_seed=57),
    "dev": Split(scenarios=2048, batch=2048, periods=100, ignore=60, demand_seed=57),
    "test": Split(scenarios=2048, batch=2048, periods=500, ignore=100, demand_seed=65),
}

Entry = Mapping[str, Any]


def read_network(path: str | Path) -> Setting:
    """A setting from a YAML file.

    Raises:
        ConfigError: a rule of the file or the network is broken; the message names file, place and remedy.
        DatasetError: the demand file is wrong.
        MissingExtraError: pyyaml is not installed.
    """
    path = Path(path)
    try:
        return _setting(_load(path), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _load(path: Path) -> Entry:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "inventory") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain YAML, in which a key given twice is a mistake and not the last one's value."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            for i, key in enumerate(keys):
                if key in keys[:i]:
                    raise ConfigError(f"line {node.value[i][0].start_mark.line + 1}: {key!r} is given twice")
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
        check_values(content, ConfigError)
    except RecursionError:
        raise ConfigError("not the layout of a network: lists within lists without end") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}not YAML: {getattr(error, 'problem', None) or error}") from None
    except UnicodeDecodeError:
        raise ConfigError("not a text file in UTF-8") from None
    return _mapping(content, "the file", TOP, {"format", "nodes", "lanes", "demand", "lost_sales"})


def _setting(content: Entry, folder: Path) -> Setting:
    if content["format"] != 1:
        raise ConfigError(f"format must be 1, got {content['format']!r}: this version reads no other")
    units = {"unit": content.get("unit"), "period": content.get("period")}
    nodes = tuple(_node(entry, i, units) for i, entry in enumerate(_list(content, "nodes"), 1))
    lanes = tuple(_lane(entry, i, units) for i, entry in enumerate(_list(content, "lanes"), 1))
    name = str(content.get("name", "own network"))
    flags: dict[str, Any] = {
        key: _flag(content, key, False, "the file")
        for key in ("lost_sales", "profit", "same_period", "ships_before_receiving", "owes_orders")
    }
    network = Network(
        name=name,
        nodes=nodes,
        edges=lanes,
        discount=_number(content, "discount", "the file", 1.0),
        budget=_number(content, "budget", "the file", float("inf")),
        **flags,
    )
    network = _penalized(network, content["lanes"])
    stores = [node.name for node in network.nodes if node.kind == "store"]
    demand = _demand(content["demand"], stores, units, folder)
    return Setting(
        name=name,
        network=network,
        demand=demand,
        splits=_splits(content.get("protocol", {}), demand),
        integral=isinstance(demand, Poisson | NegativeBinomial | Compound),
        about="own network",
    )


def _mapping(value: Any, where: str, allowed: set[str], needed: set[str]) -> Entry:
    """A mapping with known keys, and those that it cannot do without."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of names to values, got {_shown(value)}")
    for key in value:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(allowed))}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")
    for key in sorted(needed):
        if value.get(key) is None:
            raise ConfigError(f"{where}: {key!r} is missing")
    return value


def _list(content: Entry, key: str) -> Sequence[Any]:
    if not isinstance(content[key], list) or not content[key]:
        raise ConfigError(f"{key} must be a list with one entry or more, got {_shown(content[key])}")
    entries: list[Any] = content[key]
    return entries


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _number(entry: Entry, key: str, where: str, default: float) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {key} must be a number, got {value!r}")
    return float(value)


def _flag(entry: Entry, key: str, default: bool, where: str) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key} must be true or false, got {value!r}")
    return value


def _same_units(entry: Entry, units: Mapping[str, Any], where: str) -> None:
    """Units that an entry states must be those of the file: nothing is converted."""
    for key, of_file in units.items():
        own = entry.get(key)
        if own is None or own == of_file:
            continue
        if of_file is None:
            raise ConfigError(
                f"{where}: {key} is {own!r} but the file states none; add '{key}: ...' at its top"
            )
        raise ConfigError(
            f"{where}: {key} is {own!r} but the file's is {of_file!r}; "
            f"nothing is converted, give the numbers in {of_file!r}"
        )


def _node(entry: Any, number: int, units: Mapping[str, Any]) -> Node:
    entry = _mapping(entry, f"node {number}", NODE, {"name", "kind"})
    where = f"node {entry['name']!r}"
    _same_units(entry, {"unit": units["unit"]}, where)
    amounts = {
        key: _number(entry, key, where, 0.0)
        for key in ("holding_cost", "underage_cost", "operating_cost", "price", "initial")
    }
    return Node(
        name=str(entry["name"]),
        kind=entry["kind"],
        holds=_flag(entry, "holds", True, where),
        capacity=_number(entry, "capacity", where, float("inf")),
        yield_=_number(entry, "yield", where, 1.0),
        **amounts,
    )


def _lane(entry: Any, number: int, units: Mapping[str, Any]) -> Edge:
    entry = _mapping(entry, f"lane {number}", LANE, {"from", "to", "lead_time"})
    where = f"lane {entry['from']!r} -> {entry['to']!r}"
    _same_units(entry, units, where)
    rules: dict[str, Any] = {
        key: _number(entry, key, where, 0.0) for key in ("fixed_cost", "min_order", "pack")
    }
    return Edge(
        source=str(entry["from"]),
        target=str(entry["to"]),
        lead_time=entry["lead_time"],
        cost=_number(entry, "cost", where, 0.0),
        transit_cost=_number(entry, "transit_cost", where, 0.0),
        price=_number(entry, "price", where, 0.0),
        capacity=_number(entry, "capacity", where, float("inf")),
        calendar=_calendar(entry, where),
        **rules,
    )


def _calendar(entry: Entry, where: str) -> tuple[int, ...]:
    given = entry.get("calendar", [])
    if not isinstance(given, list) or any(isinstance(day, bool) or day not in (0, 1) for day in given):
        raise ConfigError(f"{where}: calendar must be a list of 1 (orders are placed) and 0, got {given!r}")
    return tuple(given)


def _penalized(network: Network, entries: Sequence[Entry]) -> Network:
    """The network with the lanes' ``penalty`` per unit not filled, in its own order of lanes."""
    given = {(str(e["from"]), str(e["to"])): _number(e, "penalty", "a lane", 0.0) for e in entries}
    penalties = tuple(given[edge.source, edge.target] for edge in network.edges)
    return replace(network, order_penalty=penalties) if any(penalties) else network


def _demand(entry: Any, stores: Sequence[str], units: Mapping[str, Any], folder: Path) -> Demand:
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in DEMAND:
        raise ConfigError(f"demand: kind must be one of {', '.join(DEMAND)}, got {kind!r}")
    each, common = DEMAND[kind]
    keys = {"kind", "unit", "period"} | common | ({"stores"} if each else set())
    needed = {"path"} if kind == "file" else {"stores"} | ({"batch"} if kind == "compound" else set())
    entry = _mapping(entry, "demand", keys, needed)
    _same_units(entry, units, "demand")
    if kind == "file":
        return Recorded(values=read_demand(folder / str(entry["path"]), stores))
    table = _mapping(entry["stores"], "demand: stores", set(stores), set(stores))
    columns = {}
    for key in sorted(each):
        numbers = [_mapping(table[s], f"demand of store {s!r}", each, each) for s in stores]
        columns[key] = tuple(
            _number(n, key, f"demand of store {s!r}", 0.0) for n, s in zip(numbers, stores, strict=True)
        )
    return _generator(kind, columns, entry)


def _generator(kind: str, columns: Mapping[str, tuple[float, ...]], entry: Entry) -> Demand:
    season = entry.get("season", [])
    if not isinstance(season, list) or any(
        isinstance(x, bool) or not isinstance(x, int | float) for x in season
    ):
        raise ConfigError(f"demand: season must be a list of factors, got {season!r}")
    factors = tuple(float(x) for x in season)
    if kind == "normal":
        return Normal(
            means=columns["mean"],
            stds=columns["std"],
            correlation=_number(entry, "correlation", "demand", 0.0),
            clip=_flag(entry, "clip", True, "demand"),
            season=factors,
        )
    if kind == "poisson":
        return Poisson(means=columns["mean"], season=factors)
    if kind == "negative_binomial":
        return NegativeBinomial(means=columns["mean"], stds=columns["std"], season=factors)
    return Compound(rates=columns["rate"], batch=_number(entry, "batch", "demand", 1.0), season=factors)


def _splits(entry: Any, demand: Demand) -> dict[str, Split]:
    """The default protocol with the numbers that the file gives; no longer than recorded demand, and development and
    test of no more scenarios than that has windows.
    """
    entry = _mapping(entry, "protocol", set(SPLITS), set())
    splits = {}
    for name, split in SPLITS.items():
        where = f"protocol: {name}"
        own = _mapping(entry.get(name, {}), where, SPLIT, set())
        for key, value in own.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < (key != "ignore"):
                raise ConfigError(f"{where}: {key} must be a whole number, got {value!r}")
        numbers = {key: own.get(key, getattr(split, key)) for key in SPLIT}
        if isinstance(demand, Recorded) and "periods" not in own:
            numbers["periods"] = min(numbers["periods"], demand.values.shape[2])
        if isinstance(demand, Recorded) and "scenarios" not in own and name != "train":
            # copies of one window would be taken for so many scenarios by the standard error
            windows = len(demand.values) * (demand.values.shape[2] - numbers["periods"] + 1)
            numbers["scenarios"] = min(numbers["scenarios"], max(windows, 1))
        if "ignore" not in own and numbers["ignore"] >= numbers["periods"]:
            numbers["ignore"] = 0
        if "batch" not in own:
            numbers["batch"] = min(numbers["batch"], numbers["scenarios"])
        if numbers["ignore"] >= numbers["periods"]:
            raise ConfigError(
                f"{where}: ignore {numbers['ignore']} leaves none of {numbers['periods']} periods"
            )
        if isinstance(demand, Recorded) and numbers["periods"] > demand.values.shape[2]:
            raise ConfigError(
                f"{where}: {numbers['periods']} periods but the demand file has {demand.values.shape[2]}"
            )
        splits[name] = Split(demand_seed=split.demand_seed, **numbers)
    return splits
