"""What is measured: the cells of ``benchmarks/inventory.md`` by name, and the grid of any settings x policies.

A cell is a name and a description of JSON values; ``kind`` says how :mod:`offrl.inventory_bench.measure` takes it:
gap (train, then test), untrained, transfer, variance, time, speed.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from offrl.envs.inventory.classical import just_in_time
from offrl.envs.inventory.policies import POLICIES, DemandFacts, make_policy
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import ConfigError
from offrl.training.inventory import digest_of

Cells = dict[str, dict[str, Any]]
Protocol = Literal["quick", "paper"]

NET = {"policy": "mlp_one_store", "batch_size": 1024, "lr": 6e-3, "lr_decay": True, "patience": 0}
ECHELON = {"policy": "echelon_base_stock", "batch_size": 512, "lr": 0.5, "lr_decay": True, "patience": 0}
GNN = {"policy": "gnn", "hidden": (16, 16), "batch_size": 32, "lr": 3e-3, "lr_decay": True, "patience": 0}
TARGETS = {"backlogged": 0.1, "lost": 1.0, "lost-L4-p9": 0.5, "serial": 0.5}  # percent
TARGETS |= {"gnn_serial": 1.0, "gnn_transshipment": 1.0, "gnn_transshipment-S10": 1.5}
SAMPLED = ("one_warehouse_lost_demand", "transshipment_backlogged")  # settings of the sample-efficiency study
RATES = {
    "mlp_one_store": 6e-3,
    "mlp_serial": 1e-2,
    "mlp_network": 1e-3,
    "data_driven": 3e-3,
    "symmetry_aware": 1e-3,
}
RATES |= {"gnn": 3e-3}  # first Adam steps of the grid; levels and quantiles take the published ones
FORECASTS = ("quantile_nv", "returns_nv", "fixed_quantile", "transformed_nv")  # need recorded sales


def published() -> Cells:
    """Every cell of the page."""
    settings = [name.removesuffix("-v1") for name in SETTINGS]
    return dict([*gap_cells(), *other_cells(), *transfer_cells(), *grid_cells(settings)])


def gap_cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """Policies where the optimum is known."""
    level = {"policy": "base_stock", "batch_size": 512, "lr_decay": True, "patience": 0}
    yield "gap-backlogged-L4-p9", _gap("one_store_backlogged", 4, 9, level, 480, 4096)
    for lead_time in (1, 2, 3, 4):
        for p in (4, 9, 19, 39):
            yield f"gap-lost-L{lead_time}-p{p}", _gap("one_store_lost", lead_time, p, NET, 2000, 16384)
    for lead_time, p in ((1, 4), (2, 9), (4, 9), (4, 39)):
        echelon = ECHELON | ({"lr": 1.5} if p == 39 else {})  # its levels are far from the start
        yield f"gap-serial-L{lead_time}-p{p}", _gap("serial_system", lead_time, p, echelon, 800, 8192)
        cell = _gap("serial_system", lead_time, p, GNN, 300, 8192)
        cell["run"] |= {"dev_scenarios": 1024, "test_scenarios": 1024, "eval_every": 30}
        yield f"gap-gnn_serial-L{lead_time}-p{p}", cell
    for stores in (5, 10):
        cell = _gap("transshipment_backlogged", 2, 4, GNN, 600, 8192)
        cell["run"] |= {"dev_scenarios": 1024, "eval_every": 60}
        cell["run"]["vary"]["stores"] = float(stores)
        yield f"gap-gnn_transshipment-S{stores}", cell


def _gap(
    setting: str, lead_time: int, p: float, config: dict[str, Any], steps: int, paths: int
) -> dict[str, Any]:
    vary = {"lead_time": float(lead_time), "underage_cost": float(p)}
    run: dict[str, Any] = {"setting": setting, "vary": vary, "steps": steps}
    run |= {"scenarios": paths, "dev_scenarios": 4096}
    every = {"eval_every": max(steps // 20, 1), "log_every": 100}
    return {"kind": "gap", "config": config, "run": {**run, **every}}


def other_cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """Gradient variance, equal time, sample efficiency, speed."""
    for setting, policy in (("one_store_lost", "mlp_one_store"), ("serial_system", "mlp_serial"),
                            ("one_warehouse_lost_demand", "data_driven")):  # fmt: skip
        yield f"variance-{setting}", {"kind": "variance", "setting": setting, "policy": policy, "paths": 1024}
    for setting, policy in (("one_store_lost", "mlp_one_store"), ("serial_system", "mlp_serial")):
        for estimator in ("pathwise", "rloo", "ppo"):
            cell: dict[str, Any] = {
                "kind": "time",
                "setting": setting,
                "policy": policy,
                "estimator": estimator,
            }
            yield f"time-{setting}-{estimator}", {**cell, "seconds": 90}
    yield from sample_cells()
    yield "speed-one_store", {"kind": "speed", "setting": "one_store_lost", "policy": "mlp_one_store"}
    for stores, paths in ((5, 1024), (20, 256), (100, 64)):
        cell = {"setting": "one_warehouse_lost_demand", "policy": "gnn", "stores": stores, "paths": paths}
        yield f"speed-gnn-S{stores}", {"kind": "speed", **cell}


def sample_cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """Test cost by number of training paths: 3,000 updates of 16 paths, two seeds, dense net and graph net.

    A rollout takes as long with few paths as with some hundreds, so that the eight seeds of a line, each with its own
    number of paths, train as one stack; 4 paths fill a batch of 16 by repeating, which leaves their gradient as it is.
    Nets are narrow and rollouts of 20 periods, three times the time from an order outside to its sale.
    """
    for setting in SAMPLED:
        for policy, hidden in (("mlp_network", (128, 128, 128)), ("gnn", (16, 16))):
            for seed in range(8):
                paths = (4, 16, 256, 8192)[seed // 2]
                config = {"policy": policy, "batch_size": 16, "hidden": hidden, "lr": 1e-3, "lr_decay": True}
                run: dict[str, Any] = {
                    "setting": setting,
                    "scenarios": 8192,
                    "first_paths": (paths,),
                    "train_periods": 20,
                }
                run |= {"seeds": (seed,), "dev_scenarios": 256, "test_scenarios": 1024, "steps": 3000}
                cell = {"kind": "gap", "config": {**config, "patience": 0}}
                name = f"sample-{setting}-{policy}-n{paths}-s{seed}"
                yield name, {**cell, "run": {**run, "eval_every": 500, "log_every": 500}}


def transfer_cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """A graph policy of three stores on up to fifty, without another update."""
    run: dict[str, Any] = {"setting": "transshipment_backlogged", "vary": {"stores": 3.0}, "steps": 600}
    run |= {"scenarios": 8192, "dev_scenarios": 1024, "eval_every": 60, "log_every": 100}
    cell = {"kind": "transfer", "config": GNN, "run": run, "stores": [3, 5, 10, 20, 50], "paths": 512}
    yield "transfer-transshipment_backlogged-gnn-S3", cell


@dataclass(frozen=True)
class Asked:
    """A setting as it is typed: ``NAME``, ``NAME:KEY=VALUE,KEY=VALUE`` or ``FILE.yaml``."""

    setting: str
    vary: dict[str, float]
    label: str
    """Its part of a cell's name."""

    @classmethod
    def parse(cls, word: str) -> "Asked":
        """Raises ConfigError: what follows the colon is no list of numbers."""
        name, _, options = word.partition(":")
        vary = {}
        for pair in filter(None, options.split(",")):
            key, sign, value = pair.partition("=")
            try:
                vary[key] = float(value)
            except ValueError:
                sign = ""
            if not sign:
                raise ConfigError(f"{word}: a setting is NAME or NAME:KEY=NUMBER,KEY=NUMBER, got {pair!r}")
        label = Path(name).stem.removesuffix("-v1")
        return cls(name, vary, "-".join([label, *(f"{key}{value:g}" for key, value in vary.items())]))

    def load(self) -> AnySetting:
        """The setting, in its own sizes."""
        options: dict[str, Any] = dict(self.vary)
        return load_setting(self.setting, **options)


def grid_cells(
    settings: Sequence[str], policies: Sequence[str] = (), *, seeds: Sequence[int] = (0,), steps: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings x policies, those that fit together.

    Args:
        settings: as :class:`Asked` reads them.
        policies: names; none: all that make sense on the setting.
        seeds: of the trained ones, stacked in one process.
        steps: updates; 0: the recipe's.

    Raises:
        ConfigError: an unknown name, the nearest one is named; two settings of one name; a setting on which no policy
            asked for can be.
    """
    for name in policies:
        if name not in POLICIES:
            near = difflib.get_close_matches(name, POLICIES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown policy {name!r}{hint} ('offrl inventory list' shows all)")
    labels: dict[str, str] = {}
    for word in settings:
        asked = Asked.parse(word)
        if asked.label in labels:
            raise ConfigError(
                f"{labels[asked.label]} and {word} would be one name on the page: rename one or leave it out"
            )
        labels[asked.label] = word
        setting = asked.load()
        fit = fitting(setting, policies)
        if not fit:
            raise ConfigError(f"{word}: none of {', '.join(policies)} fits this network")
        # a published name says what the numbers mean; a file of one's own may be changed
        own = {} if setting.name in SETTINGS else {"network": digest_of(setting)}
        for policy, trainable in fit.items():
            run: dict[str, Any] = {"setting": asked.setting, "vary": asked.vary}
            if not trainable:
                yield (
                    f"grid-{asked.label}-{policy}",
                    {"kind": "untrained", "policy": policy, "run": run, **own},
                )
                continue
            for seed in seeds:
                cell = {"kind": "gap", **recipe(policy, setting, steps), **own}
                cell["run"] = {**run, **cell["run"], "seeds": (seed,)}
                yield f"grid-{asked.label}-{policy}-s{seed}", cell


def fitting(setting: AnySetting, policies: Sequence[str] = ()) -> dict[str, bool]:
    """Policies for a setting and whether they are trained: all that make sense, or those asked for that can be."""
    small = setting.resized(train=4, dev=4, test=2)
    paths, network = small.draw("train"), setting.network
    facts, found = DemandFacts.of(small, paths), {}
    single = len(network.nodes) == 1
    chain = len(network.edges) == len(network.nodes) and network.stores == 1
    worse = (
        {"mlp_serial", "mlp_network", "echelon_base_stock"} if single else {"mlp_network"} if chain else set()
    )
    for name in policies or POLICIES:
        if (not policies and name in worse) or (name in FORECASTS and not facts.history):
            continue
        try:
            if name == "just_in_time":
                made: Any = just_in_time(small.draw("test"))
            else:
                made = make_policy(name, network, facts, [torch.Generator().manual_seed(0)])
        except ConfigError:
            continue
        found[name] = made.trainable
    return found


def recipe(policy: str, setting: AnySetting, steps: int = 0) -> dict[str, Any]:
    """How the grid trains a policy: ``config`` of HDPO and sizes of the ``run``; minutes, not the published days."""
    single, learned = len(setting.network.nodes) == 1, policy in RATES
    steps = steps or (1000 if learned else 400)
    config: dict[str, Any] = {"policy": policy, "batch_size": 512 if single else 64 if learned else 256}
    config |= {"lr": RATES.get(policy), "lr_decay": True, "patience": 0}
    train, dev = setting.splits["train"].scenarios, setting.splits["dev"].scenarios
    run = {"steps": steps, "scenarios": min(8192, train), "dev_scenarios": min(1024, dev)}
    return {
        "config": config,
        "run": {**run, "eval_every": max(steps // 20, 1), "log_every": max(steps // 20, 1)},
    }
