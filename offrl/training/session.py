"""Runs in progress: drives the loop, evaluates, writes rows and checkpoints, stops when asked, goes on.

One run, or a stack: runs that differ in the seed alone, trained together as the leading axis of every tensor.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.data.environments import EnvSpec
from offrl.data.reference import normalized_score, scored_values
from offrl.errors import CheckpointError, PolicyError, Stopped
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.nn.policy import Policy
from offrl.nn.precision import Precision
from offrl.training.checkpoint import load_checkpoint, require_own, rng_state, save_checkpoint, set_rng_state
from offrl.training.loop import MetricMeans, train
from offrl.training.problem import Learner
from offrl.training.progress import Reporter
from offrl.training.records import Record
from offrl.training.run_dir import RunDir
from offrl.training.seeding import streams

IDENTITY = ("algorithm", "settings", "seed", "steps", "dataset_sha256")  # a checkpoint must be this run's own


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    directory: Path
    seed: int
    steps: int
    returns: np.ndarray  # (episodes,) of the last policy; empty without an environment
    scores: np.ndarray | None  # the same on 0-100, if the reference returns are known
    policy: Policy = field(repr=False)
    already_finished: bool = False


class Session:
    """Runs in progress: the loop's caller.

    Args:
        runs: one run, or all of a stack in the order of its seeds; the first one holds the checkpoints of all.
        learner: of these seeds.
        source: where batches come from.
        spec: where policies are evaluated, or None.
        reporter: where progress goes.
    """

    def __init__(
        self, runs: Sequence[RunDir], learner: Learner, source: Any, spec: EnvSpec | None, reporter: Reporter
    ) -> None:
        self.path, self.config, self.learner, self.source = runs[0].path, runs[0].config, learner, source
        self.spec, self.reporter = spec, reporter
        metrics = (*learner.metrics, *getattr(source, "metrics", ()))
        self.means = MetricMeans(metrics)
        seeds = [run.config["seed"] for run in runs]
        self.data = streams(seeds, "data", self.config["device"])
        self.step, self.seconds = 0, 0.0
        self.pop_timings = getattr(learner, "pop_timings", dict)  # wall-clock parts that some learners report
        alarms = getattr(learner, "alarms", None)
        self.records = [Record(run, metrics, tuple(self.pop_timings()), alarms) for run in runs]
        self.tables = [table for record in self.records for table in record.tables]
        self.identity = {key: self.config[key] for key in IDENTITY}
        self.identity["seeds"] = seeds if len(seeds) > 1 else None
        self.identity |= {key: self.config.get(key) for key in ("online", "mix")}
        self.evaluating = False
        self.asked: list[int] = []  # signals received

    def restore(self) -> bool:
        """Load the last checkpoint and forget the rows written after it; whether there was one."""
        state, note = load_checkpoint(self.path, self.config["device"])
        for record in self.records:
            for leftover in record.run.path.glob(".*.tmp*"):  # of a write that was killed
                leftover.unlink()
        if state is None:
            for table in self.tables:
                table.clear()
            for record in self.records:
                record.sinks.resume(-1)
            self.reporter.note("no checkpoint yet: starting over")
            return False
        require_own(self.path, state, self.identity)
        try:
            self._load(state)
        except CheckpointError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.path} does not fit this version of {self.config['algorithm']}: "
                f"{type(error).__name__}: {error}"
            ) from None
        for table, size in zip(self.tables, state["sizes"], strict=True):
            table.truncate(size)
        for record in self.records:
            record.sinks.resume(self.step)
        self.reporter.note(f"resuming {self.path} at step {self.step}" + (f" ({note})" if note else ""))
        return True

    def _load(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        self.means.load_state_dict(state["means"])
        for generator, saved in zip(self.data, state["data"], strict=True):
            generator.set_state(saved.cpu())
        set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        for record, best in zip(self.records, np.atleast_1d(state["best"]), strict=True):
            record.best = float(best)

    def go(self) -> list[RunResult]:
        """Train to the last step; evaluate, write rows, checkpoint, in this order."""
        evaluator = Evaluator(self.spec, workers=self.config["workers"]) if self.spec else None
        with graceful_stop(self._heard) as self.asked, evaluator or contextlib.nullcontext():
            try:
                results = self._train(evaluator)
            except KeyboardInterrupt:  # a second one
                message = f"stopped at once; go on from the last checkpoint with: offrl resume {self.path}"
                raise Stopped(message, 130) from None
            except OSError as error:  # a full disk, a worker that died: what is on disk is whole
                error.add_note(f"go on with: offrl resume {self.path}")
                raise
            finally:
                self.reporter.end()
                for record in self.records:
                    record.sinks.close()
        if self.asked and self.step < self.config["steps"]:
            message = f"stopped at step {self.step}; go on with: offrl resume {self.path}"
            raise Stopped(message, 128 + self.asked[0])
        return self._finish(results)

    def _train(self, evaluator: Evaluator | None) -> list[EvaluationResult | None]:
        """The updates that are left; returns the last evaluation of each run, or nothing."""
        c = self.config
        loop = train(
            self.learner,
            self.source,
            self.data,
            self.means,
            steps=c["steps"],
            every=[p for p in (c["log_every"], c["eval_every"], c["checkpoint_every"]) if p],
            start=self.step,
            around=Precision(c["precision"], c["device"]),
            stop=lambda: bool(self.asked),
        )
        if evaluator and self.step == 0 and self.identity["online"] is not None:
            self._record_evaluations(self._evaluate(evaluator))  # where the offline run left off
        began, before = time.monotonic(), self.step
        for step in loop:
            elapsed = time.monotonic() - began
            self.seconds += elapsed
            rate, self.step = (step - before) / max(elapsed, 1e-9), step
            last, stopped = step == c["steps"], bool(self.asked)
            results: list[EvaluationResult | None] = []
            if evaluator and (last or (c["eval_every"] and step % c["eval_every"] == 0)):
                results = self._evaluate(evaluator)
                self._record_evaluations(results)
            if last or step % c["log_every"] == 0:
                self._record_metrics(rate)
            if last or stopped or step % c["checkpoint_every"] == 0:
                self._checkpoint()
            self.reporter.progress(step, rate, force=last)
            if last:
                return results
            began, before = time.monotonic(), step
        if self.step < c["steps"]:
            return []
        self._save_policies()  # it was killed between its last checkpoint and its end
        return self._evaluate(evaluator) if evaluator else []

    def _evaluate(self, evaluator: Evaluator) -> list[EvaluationResult | None]:
        """Every seed's policy plays its own episodes; None for one that cannot act while others of its stack can."""
        c = self.config
        episodes = (c["final_episodes"] if self.step == c["steps"] else 0) or c["eval_episodes"]
        self.evaluating = True
        if self.asked:
            self._heard()
        results: list[EvaluationResult | None] = []
        for k, record in enumerate(self.records):
            record.failure = None
            try:
                results.append(
                    evaluator(self.learner.policy(k), episodes, seed=record.seed, stream=self.step)
                )
            except PolicyError as error:  # it has diverged
                record.failure = str(error)
                results.append(None)
                if not any(results) and k + 1 == len(self.records):
                    raise
        self.evaluating = False
        return results

    def _heard(self) -> None:
        """Say that a stop was heard, where it is not obeyed within milliseconds."""
        if self.evaluating and self.reporter.mode == "text":
            os.write(2, b"\noffrl: stopping after this evaluation; once more stops at once\n")

    def _record_metrics(self, rate: float) -> None:
        means, rows = self.means.pop(), []
        timing = {"seconds": round(self.seconds, 3), "steps_per_second": round(rate, 2), **self.pop_timings()}
        for k, record in enumerate(self.records):
            rows.append({name: values[k] for name, values in means.items()})
            who = f"seed {record.seed}" if len(self.records) > 1 else "the run"
            if wrong := record.means(self.step, rows[-1], timing):
                self.reporter.note(f"{wrong}: {who} has diverged")
            for warning in record.warnings(rows[-1]):
                self.reporter.note(f"{who}: {warning}" if len(self.records) > 1 else warning)
        self.reporter.metrics = {name: float(np.mean([row[name] for row in rows])) for name in means}

    def _record_evaluations(self, results: list[EvaluationResult | None]) -> None:
        played = [(record, r) for record, r in zip(self.records, results, strict=True) if r]
        facts = [record.evaluation(self.step, result) for record, result in played]
        last = float(np.mean([fact.get("normalized_score", fact["return"]) for fact in facts]))
        best = float(np.mean([record.best for record, _ in played]))
        for (record, _), fact in zip(played, facts, strict=True):
            seed = {"seed": record.seed} if len(self.records) > 1 else {}
            self.reporter.evaluation(seed | fact, last, best, record.unit)

    def _checkpoint(self) -> None:
        state = {
            **self.identity,
            "step": self.step,
            "best": [record.best for record in self.records],
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "means": self.means.state_dict(),
            "data": [g.get_state() for g in self.data],
            "rng": rng_state(),
            "sizes": [table.sync() for table in self.tables],
        }
        self._save_policies()  # first, so that a run with its last checkpoint has its last policy
        save_checkpoint(self.path, state)

    def _save_policies(self) -> None:
        for k, record in enumerate(self.records):
            record.save_policy(self.learner.policy(k), self.step)

    def _finish(self, results: list[EvaluationResult | None]) -> list[RunResult]:
        outcomes = results or [None] * len(self.records)
        for k, record in enumerate(self.records):
            if outcomes[k] is None and record.failure is None and not _is_finite(self.learner.policy(k)):
                record.failure = "the policy's weights are not finite"  # no episode would show it
        finished = [
            run_result(record.run, *record.finish(result), self.learner.policy(k))
            for k, (record, result) in enumerate(zip(self.records, outcomes, strict=True))
            if record.failure is None
        ]
        bad = [f"seed {r.seed} in {r.run.path} ({r.failure})" for r in self.records if r.failure]
        if bad:
            raise PolicyError(
                f"{len(finished)} of {len(self.records)} runs are finished; not {', '.join(bad)}"
            )
        return finished


def _is_finite(policy: Policy) -> bool:
    return all(bool(torch.isfinite(weights).all()) for weights in policy.parameters())


def run_result(
    run: RunDir, returns: np.ndarray, successes: np.ndarray | None, policy: Policy, *, already: bool = False
) -> RunResult:
    """What a run that ends with ``returns`` hands back; scores where the reference returns are known."""
    reference, scores = run.config["reference_returns"], None
    if reference and len(returns):
        values = scored_values(run.config["env_id"], returns, successes)
        scores = normalized_score(tuple(reference), values)
    return RunResult(run.path, run.config["seed"], run.config["steps"], returns, scores, policy, already)


@contextlib.contextmanager
def graceful_stop(heard: Callable[[], None]) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one acts as usual."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.getsignal(number) for number in numbers}

    def handler(number: int, _frame: Any) -> None:
        asked.append(number)
        heard()
        signal.signal(number, usual[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, usual[number])
