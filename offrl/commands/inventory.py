"""``offrl inventory``: finds the subcommand's module and hands over."""

import importlib

from offrl.commands.arguments import subcommand

SUBCOMMANDS = {  # name -> module under offrl.commands, one line for the overview
    "solve": ("inventory_solve", "the optimal policy and its cost, or a bound, where theory has one"),
    "list": ("inventory_settings", "the published settings with their options, and the policies"),
    "init": (
        "inventory_work",
        "write an example workbook (or folder of CSV files) of a company, to fill with your own",
    ),
    "check": (
        "inventory_settings",
        "read a network of your own, a workbook or a setting, and show what it is: check FILE.yaml, check net.xlsx",
    ),
    "import": ("inventory_work", "a network from stockpyl or or-gym: import stockpyl FILE.json"),
    "demand": ("inventory_demand", "the demand behind sales: demand fit sales.csv --stock stock.csv"),
    "train": ("inventory_train", "train a policy by gradients through the simulator (HDPO)"),
    "resume": ("inventory_train", "go on with stopped runs, bit for bit"),
    "eval": ("inventory_eval", "cost of a run's or a classical policy, and its distance to the optimum"),
    "backtest": (
        "inventory_use",
        "a trained policy against today's min/max and past orders on held-out dates, in money a year",
    ),
    "frontier": (
        "inventory_levels",
        "what service costs: policies at several prices on unmet demand, and min/max",
    ),
    "recommend": ("inventory_use", "what a trained policy orders today: orders.xlsx"),
    "explain": (
        "inventory_levels",
        "the nearest min/max or base-stock levels, and what they cost: levels.xlsx",
    ),
    "bench": ("inventory_bench", "settings x policies: costs, gaps, times and drawings on one page"),
}


def overview() -> str:
    """The text of ``offrl inventory --help``."""
    lines = [
        "usage: offrl inventory SUBCOMMAND ...",
        "",
        "Inventory control: how much to order, where to send it, and how far from the optimum a policy is.",
        "",
        "subcommands ('offrl inventory SUBCOMMAND --help' explains each):",
    ]
    lines += [f"  {name:9} {about}" for name, (_, about) in SUBCOMMANDS.items()]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``offrl inventory ...``."""
    name, rest = subcommand("inventory", SUBCOMMANDS, overview, argv), argv[1:]
    if name is None:
        return 0 if argv else 2
    module = SUBCOMMANDS[name][0]
    rest = rest if module == f"inventory_{name}" else [name, *rest]  # a module of several is told which
    code: int = importlib.import_module(f"offrl.commands.{module}").main(rest)
    return code
