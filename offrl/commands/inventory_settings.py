"""``offrl inventory list`` and ``offrl inventory check``."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from offrl.commands.arguments import parse
from offrl.errors import ConfigError


@dataclass(frozen=True)
class List:
    """The published settings: name, what may be varied and its default, what it is."""


@dataclass(frozen=True)
class Check:
    """Read a network and show what was understood: nodes, lanes, demand, protocol, and what one order goes through."""

    network: tyro.conf.Positional[str]
    """A YAML file of your own, a workbook (.xlsx) or folder of CSV files ('offrl inventory init'), or the name of a
    setting; --example prints a YAML file to start from."""
    item: str | None = None
    """Workbook: the item whose order is followed; default: the first."""
    picture: Path | None = None
    """Workbook: where the network is drawn, .png or .svg; default: beside you, NAME-network.png."""


def main(argv: list[str]) -> int:
    """``argv`` begins with the subcommand's name."""
    name, rest = argv[0], argv[1:]
    if name == "list":
        parse(List, "offrl inventory list", rest)
        return _list()
    if rest == ["--example"]:
        from offrl.envs.inventory.yaml_file import EXAMPLE

        sys.stdout.write(EXAMPLE)
        return 0
    o = parse(Check, "offrl inventory check", rest)
    if Path(o.network).suffix.lower() in (".xlsx", ".xlsm", ".xls", ".ods") or Path(o.network).is_dir():
        from offrl.commands.inventory_work import check_company

        return check_company(o.network, o.item, o.picture)
    for option in ("item", "picture"):
        if getattr(o, option) is not None:
            raise ConfigError(
                f"--{option} is for a workbook or folder, and {o.network} is none: leave it out"
            )
    return _check(o.network)


def _list() -> int:
    from offrl.envs.inventory.policies import POLICIES
    from offrl.envs.inventory.settings import SETTINGS, options_of

    for name, make in SETTINGS.items():
        options = " ".join(f"{key}={value:g}" for key, value in options_of(name).items())
        print(f"{name:32} {options}\n    {(make.__doc__ or '').splitlines()[0]}")
    print(
        "\npolicies ('offrl inventory train SETTING --policy NAME', 'offrl inventory eval NAME --setting SETTING'):"
    )
    for name, (_, about) in POLICIES.items():
        print(f"    {name:20} {about}")
    return 0


def _check(name: str) -> int:
    from offrl.envs.inventory.protocol import Setting
    from offrl.envs.inventory.settings import load_setting

    setting = load_setting(name)
    network = setting.network
    unmet = "lost" if network.lost_sales else "waits"
    counts = f"upstream nodes: {network.upstream}, stores: {network.stores}, lanes: {len(network.edges)}"
    print(f"{setting.name}: {counts}")
    print(f"unmet demand {unmet}; {'profit' if network.profit else 'cost'}, discount {network.discount:g}")
    for node in network.nodes:
        shown = "  ".join(
            f"{key.rstrip('_')} {getattr(node, key):g}"
            for key in (
                "holding_cost",
                "underage_cost",
                "operating_cost",
                "price",
                "initial",
                "capacity",
                "yield_",
            )
            if getattr(node, key) not in (0, 1 if key == "yield_" else float("inf"))
        )
        print(f"  {node.kind:10} {node.name:16} {shown}{'' if node.holds else '  ships all it has'}")
    for edge, lead_time in zip(network.edges, network.lead_times, strict=True):
        costs = "".join(
            f"  {key} {getattr(edge, key):g}"
            for key in ("cost", "transit_cost", "price", "fixed_cost", "min_order", "pack", "capacity")
            if getattr(edge, key) not in (0, float("inf"))
        )
        days = f"  calendar {list(edge.calendar)}" if edge.calendar else ""
        print(f"  {edge.source} -> {edge.target}: {_arrival(network.slot(edge), lead_time)}{costs}{days}")
    if network.budget < float("inf"):
        print(f"budget of a period: {network.budget:g}")
    if isinstance(setting, Setting):
        means = ", ".join(f"{mean:g}" for mean in setting.demand.means)
        print(f"demand: {type(setting.demand).__name__.lower()}, means {means}")
    else:
        print(f"demand: {setting.sales.source}, {len(setting.sales.values)} series")
    for split, size in setting.splits.items():
        print(
            f"{split:5}: {size.scenarios} scenarios x {size.periods} periods, the first {size.ignore} not counted"
        )
    print(
        "a period: orders on what is seen; demand; costs; then what arrives before the next period comes in"
    )
    return 0


def _arrival(slot: int, lead_time: int) -> str:
    """When an order of period 0 is of use."""
    return f"lead time {lead_time}, an order of period 0 is on hand before period {slot + 1}"
