"""Runs of HDPO: from a setting's name to a finished run directory, stopped early, selected, resumed exactly.

Order at a multiple of ``eval_every``: development cost, rows, selection, checkpoint. A seed of a stack that
has lost its patience keeps its best policy; the run ends when all have, or at the last update.
"""

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations, resolved
from offrl.envs.inventory.demand import Recorded
from offrl.envs.inventory.levels import describe
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy, rounded, save_policy
from offrl.envs.inventory.protocol import AnySetting, SalesSetting, penalised
from offrl.envs.inventory.reference import standard_error
from offrl.envs.inventory.rules import advice
from offrl.envs.inventory.scenarios import Policy, Scenarios, evaluate
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.rollout import EvaluationResult
from offrl.files import atomic_write_json, read_json_object
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from offrl.training.loop import MetricMeans, train
from offrl.training.options import resolve_device, settings_from_json
from offrl.training.progress import Reporter, spaced
from offrl.training.ranks import Ranks, joined
from offrl.training.records import Record
from offrl.training.run_dir import RunDir
from offrl.training.seeding import seed_globally, streams
from offrl.training.session import graceful_stop

Rounding = Literal["auto", "none", "nearest", "feasible"]
QUICK = (4096, 1000)  # scenarios and periods of the test, where the paper takes 32768 and 5000
QUICK_STORES = 40_960  # scenarios times stores: more than ten stores have fewer scenarios


@dataclass(frozen=True, kw_only=True)
class InventoryOptions:
    """What is trained on and how the run is kept."""

    setting: str
    """Name of a setting ('offrl inventory list'), or a YAML file."""
    vary: dict[str, float] = field(default_factory=dict)
    """What the setting lets vary, e.g. lead_time=2."""
    data: str | None = None
    """Weekly sales, for settings on recorded sales."""
    scenarios: int = 0
    """Training demand paths; 0: as the setting says."""
    dev_scenarios: int = 0
    """Development paths; 0: as the setting says."""
    test_scenarios: int = 0
    """Test paths; 0: as the protocol says."""
    first_paths: tuple[int, ...] = ()
    """One number a seed: it trains on the first so many training paths alone. Empty: on all."""
    train_periods: int = 0
    """Periods of training paths; 0: as the setting says. Long enough for an order to be sold several times over."""
    penalty: float = 1.0
    """Factor of all underage costs: what --target finds, or a price on service of one's own."""
    protocol: Literal["quick", "paper"] = "quick"
    """Test size: quick is 4096 paths of 1000 periods (fewer paths beyond ten stores), paper what the setting says."""
    rounding: Rounding = "auto"
    """Whole-unit orders in the test: feasible, nearest, none; auto: feasible where demand comes in whole units."""
    steps: int = 80_000
    """Updates at most."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, trained side by side, each a run of its own."""
    out: str = "runs"
    """Folder under which run directories are made."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    log_every: int = 40
    """Updates between rows of metrics.csv."""
    eval_every: int = 40
    """Updates between development costs, among which the best policy is chosen."""
    checkpoint_every: int = 400
    """Updates between checkpoints."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "checkpoint_every", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("scenarios", "dev_scenarios", "test_scenarios", "train_periods"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.penalty < math.inf:
            raise ConfigError(f"penalty must be above 0 and finite, got {self.penalty}")
        if not self.seeds or any(s < 0 for s in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different and 0 or more, got {self.seeds}")

    def load(self) -> AnySetting:
        """The setting at the sizes asked for."""
        setting = load_setting(self.setting, data=self.data, **self.vary)
        sizes = {"train": self.scenarios, "dev": self.dev_scenarios}
        given: dict[str, Any] = {name: count for name, count in sizes.items() if count}
        periods = {"train": self.train_periods} if self.train_periods else None
        if self.penalty != 1:
            setting = dearer(setting, self.penalty)
        setting = test_sized(setting.resized(periods=periods, **given), self.protocol)
        return setting.resized(test=self.test_scenarios) if self.test_scenarios else setting


@dataclass(frozen=True)
class InventoryResult:
    """What a finished run leaves behind."""

    directory: Path
    seed: int
    policy: InventoryPolicy
    """The one with the least development cost."""
    costs: Tensor
    """(n,) test cost per store and period of each scenario."""
    best_step: int
    dev_cost: float
    already_finished: bool = False

    @property
    def cost(self) -> float:
        """Mean test cost."""
        return float(self.costs.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean, over scenarios; None for one."""
        return standard_error(self.costs)


def dearer(setting: AnySetting, factor: float) -> AnySetting:
    """The setting with all underage costs times a factor.

    Raises:
        ConfigError: what is called underage cost there is a margin on sales.
    """
    if setting.network.profit:
        raise ConfigError(f"{setting.name} counts profit: it has no penalty on demand that is not met")
    network = penalised(setting.network, factor)
    if isinstance(setting, SalesSetting):
        own = setting.parameters
        return dataclasses.replace(
            setting, network=network, parameters=own._replace(underage=own.underage * factor)
        )
    return dataclasses.replace(setting, network=network)


def test_sized(setting: AnySetting, protocol: str) -> AnySetting:
    """The setting with its own test size (paper) or the smaller one (quick)."""
    split = setting.splits["test"]
    if protocol == "paper":
        return setting
    most = max(min(QUICK[0], QUICK_STORES // setting.network.stores), 1)
    scenarios, periods = min(most, split.scenarios), min(QUICK[1], split.periods)
    return setting.resized(test=scenarios, periods={"test": periods})


def whole_units(policy: Policy, setting: AnySetting, rounding: Rounding) -> Policy:
    """The policy with the orders that the test asks for."""
    how = ("feasible" if setting.integral else "none") if rounding == "auto" else rounding
    return policy if how == "none" else rounded(policy, setting.network, how)


def start(
    config: HDPOConfig, options: InventoryOptions, reporter: Reporter | None = None
) -> list[InventoryResult]:
    """Train from scratch, each seed in a new run directory.

    Raises:
        ConfigError: setting, policy and options do not fit together.
        Stopped: a signal stopped it; a checkpoint was written.
    """
    reporter = reporter or Reporter("quiet", options.steps)
    torch.set_num_threads(options.threads)
    seed_globally(options.seeds[0])
    with joined() as ranks:
        setting = options.load()
        learner, source, dev = _build(config, options, setting, ranks)
        if not ranks.main:
            return _go([], learner, source, dev, setting, options, reporter, restore=None)
        device = str(learner.net.device)
        facts = [_config(config, options, setting, seed, device, ranks.size) for seed in options.seeds]
        runs = RunDir.create_stack(Path(options.out), facts)
        size = sum(p.numel() for p in learner.net.parameters() if p.requires_grad) // len(runs)
        reporter.note(
            f"{config.policy} ({spaced(size)} parameters) on {setting.name}, {spaced(len(source))} training paths, "
            f"run director{'y' if len(runs) == 1 else 'ies'} {', '.join(str(run.path) for run in runs)}"
            + (f", {ranks.size} processes" if ranks.size > 1 else "")
        )
        if setting.network.ruled:
            reporter.note(_gradients(config, setting))
        if chosen := describe(learner.net):
            reporter.note(chosen)
        if unknown := _unknown(learner.net):
            reporter.note(unknown)
        return _go(runs, learner, source, dev, setting, options, reporter, restore=None)


def _gradients(config: HDPOConfig, setting: AnySetting) -> str:
    """Which estimator trains on ordering rules, and why."""
    used, (best, why) = resolved(config, setting.network).estimator, advice(setting.network)
    if config.policy == "item_levels" and used == "pathwise":
        why = "order sizes are chosen on training paths before training, and levels follow smoothed steps"
        return f"estimator pathwise: {why}"
    note = (
        f"estimator {used}: {why}" if used == best else f"estimator {used}, as told; {best} is advised: {why}"
    )
    return note


def _unknown(policy: InventoryPolicy) -> str:
    """Which stores' demand training does not know, in a line; empty: none."""
    network = policy.network
    stores = zip(network.nodes[network.upstream :], policy.facts.means, strict=True)
    names = [node.name for node, mean in stores if mean == 0]
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"no demand is known at {names[0]}{more}: what is ordered there has to be planned by hand"


def resume(directory: Path, reporter: Reporter | None = None) -> list[InventoryResult]:
    """Go on exactly where the last checkpoint left a run and its stack.

    Raises:
        CheckpointError: damaged or foreign files.
    """
    runs = RunDir(directory).stack()
    if runs[0].config["algorithm"] != "hdpo":
        raise CheckpointError(f"{directory} is a run of {runs[0].config['algorithm']}: use offrl resume")
    try:
        config = settings_from_json(HDPOConfig, runs[0].config["settings"])
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in runs[0].config["inventory"].items()
        }
        options = InventoryOptions(**known)
        setting = options.load()
        if digest_of(setting) != runs[0].config["dataset_sha256"]:
            raise ConfigError("the setting changed since the run began")
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory} was edited or made by another version: {error}") from None
    reporter = reporter or Reporter("quiet", options.steps)
    reporter.steps = options.steps  # known to the run alone
    torch.set_num_threads(options.threads)
    seed_globally(options.seeds[0])
    with joined() as ranks:
        learner, source, dev = _build(config, options, setting, ranks)
        if ranks.size != runs[0].config.get("processes", 1):
            reporter.note(
                "another number of processes than before: the run goes on to rounding, not bit for bit"
            )
        path, runs = runs[0].path, runs if ranks.main else []
        return _go(runs, learner, source, dev, setting, options, reporter, restore=path)


def _build(
    config: HDPOConfig, options: InventoryOptions, setting: AnySetting, ranks: Ranks
) -> tuple[HDPO, Permutations, Scenarios]:
    device = ranks.device(resolve_device(options.device))
    paths = setting.draw("train").to(device)
    batch = config.batch_size or setting.splits["train"].batch
    source = Permutations(len(paths), batch, len(options.seeds), options.first_paths)
    fewest = min(source.batch_size, setting.splits["dev"].scenarios, setting.splits["test"].scenarios)
    if fewest < ranks.size:
        raise ConfigError(f"{ranks.size} processes cannot share {fewest} demand paths: start fewer")
    learner = HDPO(paths, DemandFacts.of(setting, paths), config, options.seeds, options.steps, ranks)
    return learner, source, setting.draw("dev").to(device)


def _go(
    runs: Sequence[RunDir], learner: HDPO, source: Permutations, dev: Scenarios, setting: AnySetting,
    options: InventoryOptions, reporter: Reporter, *, restore: Path | None,
) -> list[InventoryResult]:  # fmt: skip
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.locked())
        session = InventorySession(runs, learner, source, dev, setting, options, reporter)
        if restore is not None:
            session.restore(restore)
        return session.go()


def digest_of(setting: AnySetting) -> str:
    """What tells settings apart: description, sizes, options, and the demand that their name does not tell."""
    shown = f"{setting.name} {dict(setting.options)} {setting.network!r} {setting.splits!r}"
    digest = hashlib.sha256(shown.encode())
    if isinstance(setting, SalesSetting):
        digest.update(f"{setting.weeks} {setting.clip_negative}".encode())
        digest.update(np.ascontiguousarray(setting.sales.values).tobytes())
    elif setting.name not in SETTINGS:  # a network of one's own
        digest.update(repr(setting.demand).encode())
        if isinstance(setting.demand, Recorded):
            digest.update(np.ascontiguousarray(setting.demand.values).tobytes())
    return digest.hexdigest()


def _config(
    config: HDPOConfig, options: InventoryOptions, setting: AnySetting, seed: int, device: str, processes: int
) -> dict[str, Any]:
    """``config.json``: the fields of every run, and the setting's own."""
    known = setting.name in SETTINGS  # then its name has the version; a file's path serves from any folder
    named = {"setting": setting.name if known else os.path.abspath(options.setting)}
    if options.data is not None:
        named["data"] = os.path.abspath(options.data)
    varied = "-".join(f"{key}{value:g}" for key, value in setting.options.items())
    return {
        "algorithm": "hdpo", "algorithm_file": None, "algorithm_sha256": None, "preset": None,
        "settings": dataclasses.asdict(config), "inventory": dataclasses.asdict(options) | named,
        "dataset": None, "dataset_name": f"{setting.name}-{varied}".strip("-"), "dataset_sha256": digest_of(setting),
        "first": getattr(setting, "first", ""), "until": getattr(setting, "until", ""),
        "rows": "exact", "env_id": None, "env_kwargs": {}, "env_flatten": [], "reference_returns": None,
        "seed": seed, "steps": options.steps, "log_every": options.log_every, "eval_every": options.eval_every,
        "eval_episodes": 1, "final_episodes": 0, "checkpoint_every": options.checkpoint_every, "workers": 1,
        "device": device, "threads": options.threads, "precision": "float32", "processes": processes,
        "compile": False, "tensorboard": False, "wandb": False,
    }  # fmt: skip


@dataclass
class Best:
    """The best policy of a seed so far."""

    cost: float = math.inf
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = False


class InventorySession:
    """Runs in progress, one a seed of the learner; no ``runs`` in a process that writes nothing."""

    def __init__(
        self, runs: Sequence[RunDir], learner: HDPO, source: Permutations, dev: Scenarios, setting: AnySetting,
        options: InventoryOptions, reporter: Reporter,
    ) -> None:  # fmt: skip
        self.runs, self.learner, self.source, self.dev = runs, learner, source, dev
        self.setting, self.options, self.reporter = setting, options, reporter
        self.ranks, self.signal = learner.ranks, 0
        self.records = [Record(run, learner.metrics, ()) for run in runs]
        self.tables = [table for record in self.records for table in record.tables]
        self.means = MetricMeans(learner.metrics)
        self.data = streams(options.seeds, "data", learner.net.device)
        self.best = [Best() for _ in options.seeds]
        self.step, self.seconds = 0, 0.0

    def restore(self, path: Path) -> None:
        """Load the last checkpoint and forget the rows written after it."""
        state, note = load_checkpoint(path, self.learner.net.device)
        if state is None:
            for table in self.tables:
                table.clear()
            return
        try:
            self.learner.load_state_dict(state["learner"])
            self.source.load_state_dict(state["source"])
            self.means.load_state_dict(state["means"])
            for generator, saved in zip(self.data, state["data"], strict=True):
                generator.set_state(saved.cpu())
            set_rng_state(state["rng"])
            self.best = [Best(**values) for values in state["best"]]
            self.step, self.seconds = state["step"], state["seconds"]
            for table, size in zip(self.tables, state["sizes"], strict=self.ranks.main):
                table.truncate(size)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {path} does not fit: {type(error).__name__}: {error}"
            ) from None
        for record, best in zip(self.records, self.best, strict=self.ranks.main):
            record.best = -best.cost
        self.reporter.note(f"resuming {path} at step {self.step}" + (f" ({note})" if note else ""))

    def go(self) -> list[InventoryResult]:
        """Train until the last update or until every seed has lost its patience; test the best policies."""
        done = self.step >= self.options.steps or all(best.stopped for best in self.best)
        with graceful_stop(lambda: None) as asked:
            try:
                if not done:
                    self._train(asked)
            finally:
                self.reporter.end()
                for record in self.records:
                    record.sinks.close()
        if self._heard(asked):
            path = self.runs[0].path if self.runs else "RUN"
            raise Stopped(
                f"stopped at step {self.step}; go on with: offrl inventory resume {path}", 128 + self.signal
            )
        return [result for k in range(len(self.best)) if (result := self._finish(k)) is not None]

    def _heard(self, asked: list[int]) -> bool:
        """Whether any process was asked to stop, which all learn here."""
        self.signal = self.ranks.most(self.signal or (asked[0] if asked else 0))
        return self.signal > 0

    def _train(self, asked: list[int]) -> None:
        o = self.options
        ended: list[bool] = []
        loop = train(
            self.learner, self.source, self.data, self.means,  # type: ignore[arg-type]
            steps=o.steps, every=[o.log_every, o.eval_every, o.checkpoint_every], start=self.step,
            stop=lambda: self._heard(asked),
        )  # fmt: skip
        began, before = time.monotonic(), self.step
        for step in loop:
            self.seconds += time.monotonic() - began
            rate, self.step = (step - before) / max(time.monotonic() - began, 1e-9), step
            last = step == o.steps
            if last or step % o.eval_every == 0:
                self._select(step)
            if all(best.stopped for best in self.best):
                ended.append(True)
            if last or ended or step % o.log_every == 0:
                self._rows(rate)
            if last or ended or self.signal or step % o.checkpoint_every == 0:
                self._checkpoint()
            self.reporter.progress(step, rate, force=last or bool(ended))
            if ended:
                return
            began, before = time.monotonic(), step

    def _select(self, step: int) -> None:
        """Development costs; the best policies so far."""
        split, patience = self.setting.splits["dev"], self.learner.config.patience
        for k, best in enumerate(self.best):
            if best.stopped:
                continue
            policy = self.learner.policy(k)
            cost = float(self._costs(policy, self.dev, split.ignore).mean())
            if cost < best.cost:
                best.cost, best.step, best.weights = cost, step, policy.state_dict()
            best.stopped = bool(patience) and step - best.step >= patience
            if self.records:
                outcome = EvaluationResult(
                    np.array([-cost]), np.array([self.dev.periods]), None, self.setting.name
                )
                facts = {"seed": self.records[k].seed, **self.records[k].evaluation(step, outcome)}
                self.reporter.evaluation(facts, -cost, -best.cost)

    def _costs(self, policy: Policy, scenarios: Scenarios, ignore: int) -> Tensor:
        """Cost of each scenario, (n,), of which every process simulates its share."""
        rows = self.ranks.share(torch.arange(len(scenarios), device=scenarios.initial.device))
        own = scenarios.rows(rows) if self.ranks.size > 1 else scenarios
        costs = evaluate(policy, own, ignore=min(ignore, scenarios.periods - 1))
        return self.ranks.gather(costs, len(scenarios))

    def _rows(self, rate: float) -> None:
        means = self.means.pop()
        timing = {"seconds": round(self.seconds, 3), "steps_per_second": round(rate, 2)}
        for k, record in enumerate(self.records):  # none where nothing is written
            if wrong := record.means(self.step, {name: values[k] for name, values in means.items()}, timing):
                self.reporter.note(f"{wrong}: seed {record.seed} has diverged")
        self.reporter.metrics = {name: float(np.mean(values)) for name, values in means.items()}

    def _checkpoint(self) -> None:
        if not self.runs:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "best": [dataclasses.asdict(best) for best in self.best],
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "means": self.means.state_dict(),
            "data": [g.get_state() for g in self.data],
            "rng": rng_state(),
            "sizes": [table.sync() for table in self.tables],
        }
        for k in range(len(self.runs)):
            self._save_policy(k)
        save_checkpoint(self.runs[0].path, state)

    def _best_policy(self, k: int) -> InventoryPolicy:
        policy = self.learner.policy(k)
        if self.best[k].weights:
            policy.load_state_dict(self.best[k].weights)
        return policy

    def _save_policy(self, k: int) -> None:
        extra: dict[str, Any] = {
            "algorithm": "hdpo",
            "setting": self.setting.name,
            "options": dict(self.setting.options),
        }
        extra |= {"seed": self.records[k].seed, "step": self.best[k].step}
        save_policy(self._best_policy(k), self.runs[k].path, extra)

    def _finish(self, k: int) -> InventoryResult | None:
        """Test the best policy of a seed, once; the files are the mark of a finished run. None: another one writes."""
        best, policy = self.best[k], self._best_policy(k)
        run = self.runs[k] if self.runs else None
        if self.ranks.most(run is not None and run.finished):
            return None if run is None else self._finished(run, k)
        scenarios, split = self.setting.draw("test").to(policy.device), self.setting.splits["test"]
        acting = whole_units(policy, self.setting, self.options.rounding)
        costs = self._costs(acting, scenarios, split.ignore).cpu()
        if run is None:
            return None
        result = InventoryResult(run.path, self.records[k].seed, policy, costs, best.step, best.cost)
        self._save_policy(k)
        facts = {
            "seed": result.seed, "cost": result.cost, "standard_error": result.standard_error,
            "dev_cost": best.cost, "best_step": best.step, "steps": self.step, "seconds": self.seconds,
            "scenarios": len(costs), "periods": scenarios.periods, "ignore": split.ignore,
        }  # fmt: skip
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
        atomic_write_json(run.path / "test.json", known)
        run.finish(-costs.numpy(), np.full(len(costs), scenarios.periods))
        return result

    def _finished(self, run: RunDir, k: int) -> InventoryResult:
        """What a finished run wrote."""
        facts, best = read_json_object(run.path / "test.json", CheckpointError), self.best[k]
        with np.load(run.path / "final_returns.npz", allow_pickle=False) as final:
            costs = torch.from_numpy(-final["returns"])
        return InventoryResult(
            run.path, facts["seed"], self._best_policy(k), costs, best.step, best.cost, True
        )
