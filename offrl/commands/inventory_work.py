"""``offrl inventory init`` and ``import``, and ``check`` of a workbook: from a company's tables to a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from offrl.commands.arguments import parse


@dataclass(frozen=True)
class Init:
    """Write an example company that is read without a change, with a sheet that explains every column.

    Replace its rows by your own, sheet by sheet, then: offrl inventory check net.xlsx

    The company is made up (3 suppliers, 2 warehouses, 12 stores, 40 items, 104 weeks): its sales come from a known
    demand under known min/max levels, with gaps, returned goods and stock-outs. The same tables may be a folder of CSV
    or Parquet files, which is faster from some 100,000 rows on: offrl inventory init net
    """

    path: tyro.conf.Positional[Path]
    """NAME.xlsx for a workbook; a name without a suffix for a folder of CSV files."""
    items: int = 40
    """Items of the example."""
    stores: int = 12
    """Stores of the example."""
    weeks: int = 104
    """Weeks of sales."""
    seed: int = 0
    """Another seed, another company."""


@dataclass(frozen=True)
class Import:
    """Turn another library's file into a network that 'check', 'train' and 'eval' read (YAML).

    stockpyl: an instance file as save_instance writes it (JSON); lead times into stores become one less, as stockpyl
    orders after the demand of the period is seen. or-gym: the env_config of InvManagement as JSON.
    """

    library: tyro.conf.Positional[Literal["stockpyl", "or-gym"]]
    """Where the file comes from."""
    file: tyro.conf.Positional[Path]
    """A JSON file."""
    instance: str | None = None
    """Name of the instance, where a stockpyl file has several."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("net.yaml")
    """What is written."""


def main(argv: list[str]) -> int:
    """``argv`` begins with the subcommand's name."""
    name, rest = argv[0], argv[1:]
    return _init(parse(Init, "offrl inventory init", rest)) if name == "init" else _import(rest)


def _init(o: Init) -> int:
    from offrl.envs.inventory.work.example import example
    from offrl.envs.inventory.work.writing import writable, write_tables
    from offrl.errors import ConfigError

    for name, least in (("items", 1), ("stores", 2), ("weeks", 2)):
        if getattr(o, name) < least:
            raise ConfigError(f"--{name} must be {least} or more, got {getattr(o, name)}")
    writable(o.path)
    made = example(items=o.items, stores=o.stores, weeks=o.weeks, seed=o.seed)
    write_tables(made.rows, o.path)
    sheets = ", ".join(f"{name} {len(rows) - 1}" for name, rows in made.rows.items())
    print(f"{o.path}: rows by sheet: {sheets}")
    print(f"next: offrl inventory check {o.path}")
    return 0


def _import(argv: list[str]) -> int:
    from offrl.envs.inventory.work.foreign import from_or_gym, from_stockpyl, read_json, write_yaml
    from offrl.errors import ConfigError

    o = parse(Import, "offrl inventory import", argv)
    if o.out.exists():
        raise ConfigError(f"{o.out} exists already; choose another name with --out")
    content = read_json(o.file)
    made, notes = from_stockpyl(content, o.instance) if o.library == "stockpyl" else from_or_gym(content)
    write_yaml(made, o.out)
    for note in notes:
        print(f"note: {note}")
    print(f"{o.out} written; next: offrl inventory check {o.out}")
    return 0


def check_company(path: str, item: str | None, picture: Path | None) -> int:
    """Read a workbook or folder and show what was understood."""
    import numpy as np

    from offrl.envs.inventory.work.company import read_company
    from offrl.envs.inventory.work.pictures import draw_network
    from offrl.envs.inventory.work.timeline import CONVENTIONS, event_order, timeline

    company = read_company(path)
    index = 0 if item is None else company.index(item)
    network, dates = company.network(index), company.dates()
    known = ~np.isnan(company.sales)
    warehouses = len(company.places) - len(company.stores)
    print(
        f"{company.name}: {len(company.suppliers)} suppliers, {warehouses} warehouses, {len(company.stores)} stores, "
        f"{len(company.lanes)} lanes, {len(company.items)} items"
    )
    sold = [(i, s) for i in range(len(company.items)) for s in company.sold(i)]
    cells = len(sold) * len(dates)
    empty, returned = company.left[known] == 0, company.sales[known] < 0
    print(
        f"sales: {len(dates)} {company.period}s from {dates[0]} to {dates[-1]}, gaps {1 - known.sum() / cells:.1%}, "
        f"no stock left {empty.mean():.1%}, returns {returned.mean():.2%} of known {company.period}s"
    )
    in_use = ~np.isnan(company.levels[:, :, 0])
    stock = f"{company.on_hand.sum():,.0f} units on hand, {company.on_order.sum():,.0f} under way"
    print(f"today: {stock}; min/max for {in_use.mean():.0%} of items and nodes")
    print(f"\none order of item {company.items[index].name!r}:")
    print("\n".join(f"  {line}" for line in timeline(network, company.period)))
    print(f"\na {company.period}:")
    print("\n".join(f"  {line}" for line in event_order(network, company.period)))
    print(f"\nlead time n of the workbook is called{'into a store':>31}  into a warehouse")
    print("\n".join(f"  {who:58} {store:>7}  {above:>16}" for who, store, above in CONVENTIONS))
    picture = picture or Path(f"{Path(path).stem}-network.png")
    print(f"\nnetwork drawn: {draw_network(company, picture)}")
    print(f"next: offrl inventory demand fit {path}")
    return 0
