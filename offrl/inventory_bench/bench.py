"""A folder of cells: what is done, what it will cost, running what is missing, writing the pages."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offrl.algos.hdpo import HDPO, HDPOConfig
from offrl.envs.inventory.policies import DemandFacts
from offrl.envs.inventory.scenarios import evaluate
from offrl.errors import ConfigError, Stopped
from offrl.evaluation.svg import CSS as CHART_CSS
from offrl.evaluation.svg import tag
from offrl.files import atomic_write_json, atomic_write_text
from offrl.inventory_bench import html
from offrl.inventory_bench.drawings import CSS, order_map
from offrl.inventory_bench.measure import made, setting_of, view_from_run
from offrl.inventory_bench.plan import Cells
from offrl.inventory_bench.tables import markdown, tables
from offrl.training.cells import Cell, run_cells
from offrl.training.session import graceful_stop

Say = Callable[[str], None]
OTHERS = {"variance": 60.0, "speed": 60.0}  # seconds of cells that train nothing, about
TIMED = 2  # updates that an estimate takes


@dataclass(frozen=True)
class Bench:
    """A plan with its folders.

    Args:
        cells: name -> description.
        out: ``inventory.md``, ``inventory.html`` and ``raw/inventory/`` are written here.
        work: runs and logs.
        command: how it was asked for, for the page.
        protocol: size of the tests.
    """

    cells: Cells
    out: Path
    work: Path
    command: str
    protocol: str = "quick"

    @property
    def raw(self) -> Path:
        """Folder of raw numbers, a file a cell."""
        return self.out / "raw/inventory"

    def found(self) -> dict[str, dict[str, Any]]:
        """Raw numbers by name, of the cells that have them."""
        return {n: json.loads(p.read_text()) for n in self.cells if (p := self.raw / f"{n}.json").exists()}

    def check(self) -> None:
        """Refuse a folder whose finished cells were measured otherwise.

        Raises:
            ConfigError: it names the first one.
        """
        for name, record in self.found().items():
            same = record["cell"] == json.loads(json.dumps(self.cells[name]))
            if not same or record.get("protocol", self.protocol) != self.protocol:
                raise ConfigError(
                    f"{self.raw / name}.json was measured with other options; choose another --out or remove it"
                )

    def stacks(self, names: Sequence[str]) -> list[list[str]]:
        """Names in groups that differ in nothing but the seed and its own paths: each is one process."""
        groups: dict[str, list[str]] = {}
        for name in names:
            spec = self.cells[name]
            run = {k: v for k, v in spec.get("run", {}).items() if k not in ("seeds", "first_paths")}
            groups.setdefault(json.dumps({**spec, "run": run}, default=list), []).append(name)
        return list(groups.values())

    def run(self, names: Sequence[str], *, jobs: int, deadline: float | None, say: Say) -> list[str]:
        """Run what is missing and write the pages; returns the names of what still is.

        Raises:
            Stopped: a signal ended it; what ran has kept a checkpoint.
        """
        cells = [self._cell(group) for group in self.stacks(names)]
        self.raw.mkdir(parents=True, exist_ok=True)
        with graceful_stop(lambda: None) as asked:
            logs = self.work / "logs"
            run_cells(cells, logs, jobs=jobs, deadline=deadline, stop=lambda: bool(asked), note=say)
        self.write()
        missing = [name for name in names if not (self.raw / f"{name}.json").exists()]
        if asked and missing:
            raise Stopped(
                f"stopped, {len(missing)} cells to go; give the command again to go on", 128 + asked[0]
            )
        return missing

    def _cell(self, group: Sequence[str]) -> Cell:
        name = "+".join([group[0], *(n.rpartition("-")[2] for n in group[1:])])
        job = self.work / name / "cell.json"
        cells = {n: self.cells[n] for n in group}
        results = [self.raw / f"{n}.json" for n in group]
        if not all(path.exists() for path in results):
            known = {"cells": cells, "raw": str(self.raw.resolve()), "protocol": self.protocol}
            atomic_write_json(job, json.loads(json.dumps(known)))
        command = (sys.executable, "-m", "offrl.inventory_bench.measure", str(job.resolve()))
        return Cell(name, command, results[0], more=tuple(results[1:]))

    def views(self) -> dict[str, Any]:
        """Views by name; those of cells measured without one are made from their runs."""
        views = {}
        for name in self.found():
            path = self.raw / "views" / f"{name}.json"
            if not path.exists():
                view_from_run(name, self.cells[name], self.work / name, self.raw, self.protocol)
            if path.exists():
                views[name] = json.loads(path.read_text())
        return views

    def write(self) -> list[Path]:
        """Write both pages and the figures of the Markdown one; returns the files."""
        found, views = self.found(), self.views()
        shown, figures = tables(self.cells, found), self._figures(found, views)
        names = {title: [path.name for path in paths] for title, paths in figures.items()}
        intro = self._intro(found)
        atomic_write_text(self.out / "inventory.md", markdown(shown, intro, names))
        atomic_write_text(self.out / "inventory.html", html.page(shown, found, views, intro))
        return [
            self.out / "inventory.md", self.out / "inventory.html",
            *(path for paths in figures.values() for path in paths),
        ]  # fmt: skip

    def _figures(self, found: dict[str, Any], views: dict[str, Any]) -> dict[str, list[Path]]:
        """SVG files by the table they belong to."""
        drawn = {
            "Sample efficiency": ("inventory-samples", html.sample_charts(found)),
            "Size transfer": ("inventory-transfer", html.transfer_charts(found)),
        }
        maps = [view["map"] for view in views.values() if view["map"] and len(view["map"]["next"]) > 1]
        if maps:
            drawn["Gap to the optimum"] = ("inventory-orders", [order_map(maps[0], "m")])
        files: dict[str, list[Path]] = {}
        for title, (name, charts) in drawn.items():
            for i, chart in enumerate(charts):
                path = self.out / f"{name}{f'-{i + 1}' if i else ''}.svg"
                atomic_write_text(path, standalone(chart))
                files.setdefault(title, []).append(path)
        return files

    def _intro(self, found: dict[str, Any]) -> list[str]:
        lines = []
        if some := next(iter(found.values()), None):
            v = some["versions"]
            lines += [f"offrl commit {v['commit']}, torch {v['torch']}, {v['cpu']}, one thread.", ""]
        return [
            *lines,
            f"Command: `{self.command}`; raw numbers in `raw/inventory/`. Costs are per store and period.",
            "A paired gap is the mean difference to the optimal policy on the same demand, over the exact optimum;",
            "orders are rounded where demand comes in whole units. Training is HDPO, seed 0 unless said; the policy is",
            "the best by development cost.",
            "",
        ]

    def expected(self, names: Sequence[str]) -> dict[str, float]:
        """About how many core-seconds each unfinished process will take, by the first name in it.

        Raises:
            ConfigError: a policy and its setting do not fit.
        """
        torch.set_num_threads(1)
        done, costs, known = self.found(), {}, {}
        for group in self.stacks([n for n in names if n not in done]):
            spec = self.cells[group[0]]
            if spec["kind"] in OTHERS or spec["kind"] == "time":
                costs[group[0]] = OTHERS.get(spec["kind"], 0.0) or 1.3 * spec["seconds"]
                continue
            price = _price_class(spec, len(group))
            if price not in known:
                known[price] = rates(spec, len(group), self.protocol)
            update, dev, test = known[price]
            run = spec["run"]
            seconds = 0.0
            if spec["kind"] != "untrained":
                evaluations = run["steps"] / run["eval_every"]
                seconds = run["steps"] * update + len(group) * evaluations * dev
            if spec["kind"] == "transfer":
                test *= sum(spec["stores"]) / run["vary"]["stores"] * spec["paths"] / 4096
            costs[group[0]] = seconds + len(group) * test + 5.0  # start, draws of demand, the optimum
        return costs


def _price_class(spec: dict[str, Any], seeds: int) -> str:
    """Cells of a class cost the same an update: they differ in prices, learning rates and numbers of updates."""
    run = spec["run"]
    vary = {k: v for k, v in run.get("vary", {}).items() if k not in ("underage_cost", "correlation")}
    policy, batch = spec.get("policy", ""), 0
    if "config" in spec:
        policy, batch = spec["config"]["policy"], min(spec["config"]["batch_size"], run["scenarios"])
    sizes = (run.get("dev_scenarios"), seeds)
    return json.dumps([run["setting"], vary, policy, batch, sizes])


def rates(spec: dict[str, Any], seeds: int, protocol: str) -> tuple[float, float, float]:
    """Core-seconds of an update, of a development cost and of the test, from a few updates and periods timed here."""
    setting = setting_of(spec, protocol)
    update, splits = 0.0, setting.splits
    small = setting.resized(train=64, dev=64, test=min(512, splits["test"].scenarios))
    if spec["kind"] == "untrained":
        policy: Any = made(spec["policy"], small)
    else:
        config = HDPOConfig(**spec["config"])
        batch = min(config.batch_size, splits["train"].scenarios)
        paths = setting.resized(train=batch, dev=8).draw("train")
        learner = HDPO(paths, DemandFacts.of(setting, paths), config, tuple(range(seeds)), 100)
        rows = torch.arange(len(paths)).expand(seeds, -1)
        seconds = [_timed(lambda: learner.update(rows)) for _ in range(TIMED + 1)]
        update, policy = min(seconds[1:]), learner.policy()
    test = small.draw("test")
    periods = min(10, test.periods)
    evaluate(policy, test, periods=1)  # a dynamic program solves itself here
    period = _timed(lambda: evaluate(policy, test, periods=periods)) / periods / len(test)
    dev = period * splits["dev"].scenarios * splits["dev"].periods
    return update, dev, period * splits["test"].scenarios * splits["test"].periods


def _timed(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def standalone(chart: str) -> str:
    """A chart as an SVG file of its own, with its colors."""
    opening, rest = chart.split(">", 1)
    paper = tag("style", CHART_CSS + CSS) + tag("rect", class_="paper", width="100%", height="100%")
    return f"{opening}>{paper}{rest}\n"
