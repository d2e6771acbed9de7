"""Measures cells: ``python -m offrl.inventory_bench.measure FILE.json`` does what ``bench`` has written there.

A cell leaves ``RAW/NAME.json``, and ``RAW/views/NAME.json`` where there is a policy to draw. Cells that differ in
nothing but the seed are trained in one stack. Training goes on from its checkpoint.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations, gradient_spread
from offrl.envs.inventory.classical import just_in_time
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy, load_policy, make_policy
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.reference import Reference, compare, reference, standard_error
from offrl.envs.inventory.scenarios import Policy, evaluate
from offrl.envs.inventory.settings import load_setting
from offrl.files import atomic_write_json
from offrl.inventory_bench.views import view_of
from offrl.training.inventory import InventoryOptions, InventoryResult, resume, start, test_sized, whole_units
from offrl.training.run_dir import versions
from offrl.training.seeding import streams

Facts = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Measure the cells described by the file that ``argv`` names."""
    torch.set_num_threads(1)
    job = json.loads(Path(argv[0]).read_text())
    run_job(job["cells"], Path(job["raw"]), Path(argv[0]).parent, job["protocol"])


def run_job(cells: dict[str, Facts], raw: Path, folder: Path, protocol: str) -> None:
    """Measure ``cells``, one or the seeds of a stack, and write their raw files."""
    name, spec = next(iter(cells.items()))
    if spec["kind"] == "gap":
        train_and_compare(cells, raw, folder, protocol)
    elif spec["kind"] == "untrained":
        untrained(name, spec, raw, protocol)
    elif spec["kind"] == "transfer":
        write(raw, name, spec, transfer(spec, folder, protocol))
    else:
        kinds = {"variance": variances, "time": equal_time, "speed": speed}
        write(raw, name, spec, kinds[spec["kind"]](spec))


def write(raw: Path, name: str, spec: Facts, found: Facts) -> None:
    """The raw file: the mark of a finished cell."""
    atomic_write_json(raw / f"{name}.json", {"cell": spec, **found, "versions": versions("cpu", 1)})


def train(cells: Sequence[Facts], folder: Path, protocol: str) -> tuple[list[InventoryResult], float | None]:
    """Results of a stack, one a cell, and CPU seconds; None of a run that was not trained in one go."""
    seeds = tuple(spec["run"].get("seeds", (0,))[0] for spec in cells)
    known = {**cells[0]["run"], "seeds": seeds, "out": str(folder), "protocol": protocol}
    if "first_paths" in known:
        known["first_paths"] = tuple(spec["run"]["first_paths"][0] for spec in cells)
    found = run_directories(folder)
    if found and len(found) < len(seeds):  # killed while it made a stack's folders: nothing was trained
        for directory in found:
            shutil.rmtree(directory)
        found = []
    began = time.process_time()
    if found:
        return resume(found[-1]), None
    results = start(HDPOConfig(**cells[0]["config"]), InventoryOptions(**known))
    return results, time.process_time() - began


def run_directories(folder: Path) -> list[Path]:
    """Of the runs under a cell's folder."""
    return sorted(path.parent for path in folder.glob("*/*/seed*/config.json"))


def train_and_compare(cells: dict[str, Facts], raw: Path, folder: Path, protocol: str) -> None:
    """Train (or go on), then test beside the optimal policy on the same paths."""
    results, seconds = train(list(cells.values()), folder, protocol)
    setting = setting_of(next(iter(cells.values())), protocol)
    measured = Yardstick(setting, protocol)
    for (name, spec), result in zip(cells.items(), results, strict=True):
        facts = measured.facts(result.costs)
        facts |= {"train_cpu_seconds": None if seconds is None else seconds / len(cells)}
        facts |= {"train_seconds": _seconds(result.directory) / len(cells), "best_step": result.best_step}
        keep_view(raw, name, result.policy, setting, measured.best)
        write(raw, name, spec, facts)


def untrained(name: str, spec: Facts, raw: Path, protocol: str) -> None:
    """Test a policy as it comes; what it fits to demand beforehand is its training time."""
    setting = setting_of(spec, protocol)
    began = time.process_time()
    policy = made(spec["policy"], setting)
    seconds, measured = time.process_time() - began, Yardstick(setting, protocol)
    if spec["policy"] == "just_in_time":
        policy = just_in_time(measured.scenarios)
    costs = evaluate(whole_units(policy, setting, "auto"), measured.scenarios, ignore=measured.ignore)
    facts = {"train_cpu_seconds": seconds, "train_seconds": seconds, "admissible": policy.admissible}
    keep_view(raw, name, policy, setting, measured.best)
    write(raw, name, spec, measured.facts(costs) | facts)


def made(name: str, setting: AnySetting) -> InventoryPolicy:
    """An untrained policy, prepared on training scenarios; the oracle is one for the test scenarios."""
    if name == "just_in_time":
        return just_in_time(setting.draw("test"))
    paths = setting.draw("train")
    policy = make_policy(
        name, setting.network, DemandFacts.of(setting, paths), [torch.Generator().manual_seed(0)]
    )
    policy.prepare(paths)
    return policy


def keep_view(
    raw: Path, name: str, policy: InventoryPolicy, setting: AnySetting, best: Reference | None
) -> None:
    """What is drawn of a policy; not of the sample-efficiency study's."""
    if not name.startswith("sample-"):
        atomic_write_json(raw / "views" / f"{name}.json", view_of(policy, setting, best))


def view_from_run(name: str, spec: Facts, folder: Path, raw: Path, protocol: str) -> bool:
    """The view of a cell that was measured without one, from its run directory; False if that is gone."""
    found = run_directories(folder)
    if spec["kind"] != "gap" or not found or name.startswith("sample-"):
        return False
    setting = setting_of(spec, protocol)
    keep_view(raw, name, load_policy(found[-1]), setting, reference(setting))
    return True


class Yardstick:
    """A setting's test paths, with the optimal policy's costs on them."""

    def __init__(self, setting: AnySetting, protocol: str) -> None:
        self.scenarios, self.protocol = setting.draw("test"), protocol
        self.ignore = min(setting.splits["test"].ignore, self.scenarios.periods - 1)
        self.best = reference(setting)
        policy: Policy | None = self.best.policy if self.best is not None else None
        self.optimal = evaluate(policy, self.scenarios, ignore=self.ignore) if policy is not None else None

    def facts(self, costs: Tensor) -> Facts:
        """Mean, standard error, size of the test and, where something is known to be best, the gap to it."""
        facts: Facts = {"cost": float(costs.mean()), "cost_se": standard_error(costs)}
        facts |= {"scenarios": len(costs), "periods": self.scenarios.periods, "ignore": self.ignore}
        facts |= {"protocol": self.protocol}
        if self.best is not None:
            gap = compare(costs, self.optimal, self.best)
            facts |= {"reference": self.best.cost, "reference_name": self.best.name}
            facts |= {"paired": self.optimal is not None, "gap": gap.gap, "gap_se": gap.standard_error}
        return facts


def setting_of(spec: Facts, protocol: str) -> AnySetting:
    """The setting of a cell at its sizes."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["run"].items()}
    return InventoryOptions(**known | {"protocol": protocol}).load()


def _seconds(directory: Path) -> float:
    return float(json.loads((directory / "test.json").read_text())["seconds"])


def transfer(spec: Facts, folder: Path, protocol: str) -> Facts:
    """Train on one number of stores, test on others."""
    (result,), seconds = train([spec], folder, protocol)
    sizes = []
    for stores in spec["stores"]:
        vary = {**spec["run"]["vary"], "stores": float(stores)}
        setting = test_sized(load_setting(spec["run"]["setting"], **vary), protocol)
        small = setting.resized(train=64, dev=64, test=min(spec["paths"], setting.splits["test"].scenarios))
        policy = result.policy.moved(small.network, DemandFacts.of(small, small.draw("train")))
        measured = Yardstick(small, protocol)
        costs = evaluate(whole_units(policy, small, "auto"), measured.scenarios, ignore=measured.ignore)
        sizes.append({"stores": stores, **measured.facts(costs)})
    return {"sizes": sizes, "train_cpu_seconds": seconds, "train_seconds": _seconds(result.directory)}


def variances(spec: Facts) -> Facts:
    """Summed variance of one path's gradient at the first weights, by estimator, sigma .5."""
    setting = load_setting(spec["setting"]).resized(train=spec["paths"], dev=4)
    paths = setting.draw("train")
    facts = DemandFacts.of(setting, paths)
    policy = make_policy(spec["policy"], setting.network, facts, [torch.Generator().manual_seed(0)])
    means, found = {}, {}
    for name in ("pathwise", "score", "score_rtg", "score_batch", "rloo"):
        config = HDPOConfig(policy=spec["policy"], estimator=name)
        parts = [
            gradient_spread(policy, paths.rows(rows), config, torch.Generator().manual_seed(i))
            for i, rows in enumerate(torch.arange(len(paths)).chunk(8))
        ]
        means[name] = torch.stack([mean for mean, _ in parts]).mean(0)
        found[name] = float(torch.stack([variance for _, variance in parts]).mean())
    base = means["pathwise"]
    cosines = {name: float(torch.cosine_similarity(base, mean, 0)) for name, mean in means.items()}
    return {"variance": found, "cosine": cosines, "paths": len(paths), "periods": paths.periods, "sigma": 0.5}


def equal_time(spec: Facts) -> Facts:
    """Development cost against CPU seconds of training, evaluation not counted."""
    setting = load_setting(spec["setting"]).resized(train=8192, dev=2048)
    paths, dev = setting.draw("train"), setting.draw("dev")
    lr = {"pathwise": None, "rloo": 1e-3, "ppo": 1e-3}[spec["estimator"]]
    config = HDPOConfig(policy=spec["policy"], estimator=spec["estimator"], lr=lr)
    learner = HDPO(paths, DemandFacts.of(setting, paths), config, (0,))
    source, data = Permutations(len(paths), 1024, 1), streams((0,), "data")
    used, due, curve, updates = 0.0, 0.0, [], 0
    while used < spec["seconds"]:
        began = time.process_time()
        learner.update(source.sample(data))
        used, updates = used + time.process_time() - began, updates + 1
        if used >= due:
            cost = float(evaluate(learner.policy(), dev, ignore=setting.splits["dev"].ignore).mean())
            curve.append([used, updates, cost])
            due = used + spec["seconds"] / 15
    best = reference(setting)
    return {"curve": curve, "best": min(c for *_, c in curve), "reference": best.cost if best else None}


def speed(spec: Facts) -> Facts:
    """Store-periods trained per CPU second on one thread, and what share the network's products alone would take."""
    count, vary = spec.get("paths", 8192), {"stores": spec["stores"]} if "stores" in spec else {}
    setting = load_setting(spec["setting"], **vary).resized(train=count, dev=8)
    paths = setting.draw("train")
    learner = HDPO(paths, DemandFacts.of(setting, paths), HDPOConfig(policy=spec["policy"]), (0,))
    rows = torch.arange(count)[None]
    update = _fastest(lambda: learner.update(rows))
    chains = _chains(learner.net)

    def products() -> None:
        for layers in chains * paths.periods:
            values = [torch.rand(layers[0].shape[0], layers[0].shape[2], count)]
            for w in layers:
                values.append(torch.bmm(w, values[-1]))
            grad = values[-1]
            for w, value in zip(reversed(layers), reversed(values[:-1]), strict=True):
                torch.bmm(grad, value.transpose(1, 2))
                grad = torch.bmm(w.transpose(1, 2), grad)

    limit, work = _fastest(products), count * paths.periods * setting.network.stores
    import resource  # Unix has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of this cell's own process
    rates = {
        "store_periods_per_second": work / update,
        "products_only": work / limit,
        "share": limit / update,
    }
    return rates | {"peak_mb": peak}


def _fastest(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(6):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return min(seconds[1:])


def _chains(net: Any) -> list[list[Tensor]]:
    """Weights of a period's perceptrons, (rows, out, in) each: the graph policy's run on all nodes or edges."""

    def weights(part: torch.nn.Module, rows: int) -> list[Tensor]:
        return [p.detach().expand(rows, -1, -1).contiguous() for p in part.parameters()][::2]

    if net.name != "gnn":
        return [weights(net, 1)]
    g = net.graph
    rounds = [(net.node_round, g.nodes), (net.edge_round, g.edges)] * net.rounds
    parts = [(net.node_start, g.nodes), (net.edge_start, g.edges), *rounds[:-1], (net.edge_round, g.scored)]
    return [weights(part, rows) for part, rows in [*parts, (net.score, g.scored)]]


if __name__ == "__main__":
    main(sys.argv[1:])
