"""``offrl inventory eval SOURCE``: what a policy costs, and how far that is from the optimum."""

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from offrl.commands import arguments
from offrl.commands.inventory_train import SET, pairs
from offrl.errors import ConfigError

if TYPE_CHECKING:
    from offrl.envs.inventory.policies import InventoryPolicy
    from offrl.envs.inventory.protocol import AnySetting
    from offrl.envs.inventory.reference import Gap
    from offrl.envs.inventory.scenarios import Scenarios


@dataclass(frozen=True)
class Eval:
    """Cost per store and period on a setting's test demand, with the gap to the optimum or bound where one is known.

    The gap is paired: the optimal policy meets the same demand. Examples:
    offrl inventory eval runs/hdpo/one_store_lost-v1/seed0-TIME
    offrl inventory eval runs/hdpo/one_warehouse_lost_demand-v1-stores3/seed0-TIME --set stores=50 --paths 200
    offrl inventory eval base_stock --setting one_store_backlogged --with levels=29.59
    """

    source: tyro.conf.Positional[str]
    """A run directory, or the name of a policy that needs no training ('offrl inventory list')."""
    setting: str | None = None
    """Setting; default: the run's own. A gnn also runs on others, of any number of stores."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...", help=SET)] = ()
    with_: Annotated[tuple[str, ...], tyro.conf.arg(name="with", metavar="KEY=X,X ...")] = ()
    """Options of a named policy, e.g. levels=29.59, one number a node."""
    data: str | None = None
    """Weekly sales, for settings on recorded sales."""
    protocol: Literal["quick", "paper"] = "quick"
    """quick: 4096 paths of 1000 periods, fewer paths beyond ten stores; paper: the setting's own test (minutes)."""
    paths: int = 0
    """Fewer test paths than that, for a quick look; 0: as the protocol says."""
    rounding: Literal["auto", "none", "nearest", "feasible"] = "auto"
    """Whole-unit orders; auto: feasible ones where demand comes in whole units."""
    feasibility: Literal["trust", "project", "raise"] = "trust"
    """Orders that cannot be shipped: believe they can, shrink them, or stop."""
    json: bool = False
    """Print one JSON object."""
    report: Path | None = None
    """Also write one HTML page: a demand path, cost by part, flows, service, orders beside the optimal ones."""


AMOUNTS = ("levels", "caps", "reorder_points", "amounts")
"""What --with gives to the classical policies."""


def main(argv: list[str]) -> int:
    """Evaluate and print."""
    o = arguments.parse(Eval, "offrl inventory eval", argv)
    from offrl.envs.inventory.reference import compare, reference
    from offrl.envs.inventory.scenarios import evaluate
    from offrl.training.inventory import whole_units

    _require(o.source)
    setting = _setting(o)
    if o.paths < 0:
        raise ConfigError(f"--paths must be 0 or more, got {o.paths}")
    if o.paths:
        setting = setting.resized(test=min(o.paths, setting.splits["test"].scenarios))
    test, split = setting.draw("test"), setting.splits["test"]
    policy, ignore = _policy(o, setting, test), min(split.ignore, test.periods - 1)
    acting = whole_units(policy, setting, o.rounding)
    costs = evaluate(acting, test, ignore=ignore, feasibility=o.feasibility)
    best, gap = reference(setting), None
    if best is not None:
        optimal = evaluate(best.policy, test, ignore=ignore) if best.policy is not None else None
        gap = compare(costs, optimal, best)
    _show(o, policy, setting, costs, gap)
    if o.report is not None:
        from offrl.inventory_bench.html import write_single

        write_single(o.report, policy, setting, costs, gap, o.rounding)
    return 0


def _require(source: str) -> None:
    """A run directory or a policy's name, or the error that says which of the two is missing."""
    from offrl.envs.inventory.policies import POLICIES

    folder = Path(source)
    if source in POLICIES or (folder / "policy.json").is_file():
        return
    if folder.is_dir():
        raise FileNotFoundError(f"{source} is no run of an inventory policy: it has no policy.json")
    if len(folder.parts) > 1:
        raise FileNotFoundError(f"no such run directory: {source}")
    near = difflib.get_close_matches(source, POLICIES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"unknown policy {source!r}, and no run directory of that name{hint} ('offrl inventory list' shows policies)"
    )


def _run(o: Eval) -> dict[str, Any] | None:
    from offrl.training.run_dir import RunDir

    if not (Path(o.source) / "config.json").is_file():
        return None
    config: dict[str, Any] | None = RunDir(Path(o.source)).config.get("inventory")
    if config is None:
        raise ConfigError(f"{o.source} is no run of an inventory policy; use offrl eval")
    return config


def _setting(o: Eval) -> "AnySetting":
    from offrl.envs.inventory.settings import load_setting
    from offrl.training.inventory import InventoryOptions, test_sized

    run = _run(o)
    if run is not None and o.setting is None:
        own = {**run, "seeds": tuple(run["seeds"]), "protocol": o.protocol, "data": o.data or run["data"]}
        own["penalty"] = 1.0  # a price for training: what is reported are the costs that there are
        own["vary"] = {**run["vary"], **pairs(o.set)}
        return InventoryOptions(**own).load()
    if o.setting is None:
        raise ConfigError(f"which setting? offrl inventory eval {o.source} --setting NAME")
    return test_sized(load_setting(o.setting, data=o.data, **pairs(o.set)), o.protocol)


def _policy(o: Eval, setting: "AnySetting", test: "Scenarios") -> "InventoryPolicy":
    from offrl.envs.inventory.classical import just_in_time
    from offrl.envs.inventory.policies import DemandFacts, at_home, load_policy, make_policy

    folder = Path(o.source)
    if o.with_ and (o.source == "just_in_time" or (folder / "policy.json").is_file()):
        raise ConfigError(
            f"{o.source} takes no --with, which is for the levels of a policy given by its name"
        )
    if (folder / "policy.json").is_file():
        policy = load_policy(folder)
        return at_home(policy, setting)
    if o.source == "just_in_time":
        return just_in_time(test)
    options: dict[str, Any] = {}
    for word in o.with_:
        key, _, values = word.partition("=")
        if key not in AMOUNTS:
            raise ConfigError(f"--with takes {', '.join(AMOUNTS)}, one number a node, got {word!r}")
        try:
            options[key] = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise ConfigError(f"--with takes KEY=NUMBER,NUMBER..., got {word!r}") from None
    train = setting.draw("train")
    made = make_policy(
        o.source,
        setting.network,
        DemandFacts.of(setting, train),
        [torch.Generator().manual_seed(0)],
        **options,
    )
    made.prepare(train)
    return made


def _show(
    o: Eval, policy: "InventoryPolicy", setting: "AnySetting", costs: torch.Tensor, gap: "Gap | None"
) -> None:
    from offrl.envs.inventory.reference import shown, standard_error

    error = standard_error(costs)
    if o.json:
        facts: dict[str, Any] = {"policy": policy.name, "setting": setting.name, "cost": float(costs.mean())}
        facts |= {"options": dict(setting.options), "standard_error": error, "scenarios": len(costs)}
        if gap is not None:
            facts |= {"gap": dataclasses.asdict(dataclasses.replace(gap, reference=None))}  # type: ignore[arg-type]
            facts["gap"]["reference"] = {"cost": gap.reference.cost, "name": gap.reference.name}
        print(json.dumps(facts))
        return
    note = "" if policy.admissible else " (a reference: no policy that sees the past alone can do this)"
    print(f"{policy.name} on {setting.name} {dict(setting.options)}{note}")
    print(
        f"cost {float(costs.mean()):.4f} +- {shown(error)} per store and period (s.e. over {len(costs)} scenarios)"
    )
    if gap is not None:
        best = gap.reference
        how = "paired" if best.policy is not None else "not paired"
        print(
            f"{best.name}: {best.cost:.4f}; gap {100 * gap.gap:+.3f} % +- {shown(gap.standard_error, 3, 100)} % "
            f"({how})"
        )
