"""A run in progress: drives the loop, evaluates, writes rows and checkpoints, stops when asked, goes on."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data.environments import EnvSpec
from offrl.data.reference import normalized_score, scored_values
from offrl.errors import CheckpointError, Stopped
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.nn.policy import Policy, save_policy
from offrl.nn.precision import Precision
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from offrl.training.loop import MetricMeans, train
from offrl.training.problem import Learner
from offrl.training.progress import Reporter
from offrl.training.run_dir import EVAL_COLUMNS, TIMING_COLUMNS, RunDir
from offrl.training.seeding import stream
from offrl.training.sinks import Sinks

IDENTITY = ("algorithm", "settings", "seed", "steps", "dataset_sha256")  # a checkpoint must be this run's own


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    directory: Path
    steps: int
    returns: np.ndarray  # (episodes,) of the last policy; empty without an environment
    scores: np.ndarray | None  # the same on 0-100, if the reference returns are known
    policy: Policy
    already_finished: bool = False


class Session:
    """A run in progress: the loop's caller."""

    def __init__(
        self, run: RunDir, learner: Learner, source: Any, spec: EnvSpec | None, reporter: Reporter
    ) -> None:
        self.run, self.config, self.learner, self.source = run, run.config, learner, source
        self.spec, self.reporter = spec, reporter
        self.means = MetricMeans(learner.metrics)
        self.data = [stream(self.config["seed"], "data", self.config["device"])]
        self.step, self.best, self.seconds = 0, -np.inf, 0.0
        self.metrics_csv = run.table("metrics.csv", ["step", *learner.metrics])
        self.eval_csv = run.table("eval.csv", EVAL_COLUMNS)
        self.pop_timings = getattr(learner, "pop_timings", dict)  # wall-clock parts that some learners report
        self.timing_csv = run.table("timing.csv", [*TIMING_COLUMNS, *self.pop_timings()])
        self.sinks = Sinks(run.path, self.config)
        self.diverged, self.evaluating = False, False
        self.asked: list[int] = []  # signals received

    def restore(self) -> None:
        """Load the last checkpoint and forget the rows written after it."""
        state, note = load_checkpoint(self.run.path, self.config["device"])
        for leftover in self.run.path.glob(".*.tmp*"):  # of a write that was killed
            leftover.unlink()
        tables = (self.metrics_csv, self.eval_csv, self.timing_csv)
        if state is None:
            for table in tables:
                table.clear()
            self.reporter.note("no checkpoint yet: starting over")
            return
        for key in IDENTITY:
            if key not in state or state[key] != self.config[key]:
                raise CheckpointError(
                    f"the checkpoint in {self.run.path} is of another run: its {key} is {state.get(key)}, "
                    f"config.json says {self.config[key]}; restore the files, or train anew"
                )
        try:
            self._load(state)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.run.path} does not fit this version of {self.config['algorithm']}: "
                f"{type(error).__name__}: {error}"
            ) from None
        for table, size in zip(tables, state["sizes"], strict=True):
            table.truncate(size)
        self.reporter.note(f"resuming {self.run.path} at step {self.step}" + (f" ({note})" if note else ""))

    def _load(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        self.means.load_state_dict(state["means"])
        for generator, saved in zip(self.data, state["data"], strict=True):
            generator.set_state(saved.cpu())
        set_rng_state(state["rng"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]

    def go(self) -> RunResult:
        """Train to the last step; evaluate, write rows, checkpoint, in this order."""
        evaluator = Evaluator(self.spec, workers=self.config["workers"]) if self.spec else None
        with _graceful_stop(self._heard) as self.asked, evaluator or contextlib.nullcontext():
            try:
                result = self._train(evaluator)
            except KeyboardInterrupt:  # a second one
                message = (
                    f"stopped at once; go on from the last checkpoint with: offrl resume {self.run.path}"
                )
                raise Stopped(message, 130) from None
            except OSError as error:  # a full disk, a worker that died: what is on disk is whole
                error.add_note(f"go on with: offrl resume {self.run.path}")
                raise
            finally:
                self.reporter.end()
                self.sinks.close()
        if self.asked and self.step < self.config["steps"]:
            message = f"stopped at step {self.step}; go on with: offrl resume {self.run.path}"
            raise Stopped(message, 128 + self.asked[0])
        return self._finish(result)

    def _train(self, evaluator: Evaluator | None) -> EvaluationResult | None:
        """The updates that are left; returns the last evaluation."""
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
        began, before = time.monotonic(), self.step
        for step in loop:
            elapsed = time.monotonic() - began
            self.seconds += elapsed
            rate, self.step = (step - before) / max(elapsed, 1e-9), step
            last, stopped = step == c["steps"], bool(self.asked)
            result = None
            if evaluator and (last or (c["eval_every"] and step % c["eval_every"] == 0)):
                result = self._evaluate(evaluator)
                self._record_evaluation(result)
            if last or step % c["log_every"] == 0:
                self._record_metrics(rate)
            if last or stopped or step % c["checkpoint_every"] == 0:
                self._checkpoint()
            self.reporter.progress(step, rate, force=last)
            if last:
                return result
            began, before = time.monotonic(), step
        if self.step < c["steps"]:
            return None
        self._save_policy()  # it was killed between its last checkpoint and its end
        return self._evaluate(evaluator) if evaluator else None

    def _evaluate(self, evaluator: Evaluator) -> EvaluationResult:
        c = self.config
        episodes = (c["final_episodes"] if self.step == c["steps"] else 0) or c["eval_episodes"]
        self.evaluating = True
        if self.asked:
            self._heard()
        result = evaluator(self.learner.policy(), episodes, seed=c["seed"], stream=self.step)
        self.evaluating = False
        return result

    def _heard(self) -> None:
        """Say that a stop was heard, where it is not obeyed within milliseconds."""
        if self.evaluating and self.reporter.mode == "text":
            os.write(2, b"\noffrl: stopping after this evaluation; once more stops at once\n")

    def _record_metrics(self, rate: float) -> None:
        means = {name: values[0] for name, values in self.means.pop().items()}
        self.metrics_csv.append({"step": self.step, **means})
        timing = {"seconds": round(self.seconds, 3), "steps_per_second": round(rate, 2), **self.pop_timings()}
        self.timing_csv.append({"step": self.step, **timing})
        self.reporter.metrics = means
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad and not self.diverged:
            self.diverged = True
            self.reporter.note(f"{bad[0]} is {means[bad[0]]} at step {self.step}: the run has diverged")
        self.sinks.scalars(
            self.step, {f"train/{k}": v for k, v in means.items()} | {"speed/steps_per_second": rate}
        )

    def _record_evaluation(self, result: EvaluationResult) -> None:
        reference = self.config["reference_returns"]
        scores = normalized_score(tuple(reference), result.scored) if reference else None
        for episode, value in enumerate(result.returns):
            self.eval_csv.append(
                {
                    "step": self.step,
                    "episode": episode,
                    "return": float(value),
                    "normalized_score": None if scores is None else float(scores[episode]),
                    "length": int(result.lengths[episode]),
                    "success": None if result.successes is None else int(result.successes[episode]),
                }
            )
        last = float((result.returns if scores is None else scores).mean())
        self.best = max(self.best, last)
        record = {"step": self.step, "return": float(result.returns.mean()), "best": self.best}
        record |= {} if scores is None else {"normalized_score": last}
        self.reporter.evaluation(record, last, self.best)
        self.sinks.scalars(self.step, {f"eval/{k}": v for k, v in record.items() if k != "step"})

    def _checkpoint(self) -> None:
        state = {
            **{key: self.config[key] for key in IDENTITY},
            "step": self.step,
            "best": float(self.best),
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "means": self.means.state_dict(),
            "data": [g.get_state() for g in self.data],
            "rng": rng_state(),
            "sizes": [table.sync() for table in (self.metrics_csv, self.eval_csv, self.timing_csv)],
        }
        self._save_policy()  # first, so that a run with its last checkpoint has its last policy
        save_checkpoint(self.run.path, state)

    def _save_policy(self) -> None:
        facts = {
            key: self.config[key] for key in ("algorithm", "dataset_name", "dataset_sha256", "env_id", "seed")
        }
        save_policy(self.learner.policy(), self.run.path, {**facts, "step": self.step})

    def _finish(self, result: EvaluationResult | None) -> RunResult:
        empty = np.zeros(0)
        returns, lengths = (result.returns, result.lengths) if result else (empty, empty.astype(np.int64))
        successes = result.successes if result else None
        self.run.finish(returns, lengths, successes)
        return run_result(self.run, returns, successes, self.learner.policy())


def run_result(
    run: RunDir, returns: np.ndarray, successes: np.ndarray | None, policy: Policy, *, already: bool = False
) -> RunResult:
    """What a run that ends with ``returns`` hands back; scores where the reference returns are known."""
    reference, scores = run.config["reference_returns"], None
    if reference and len(returns):
        values = scored_values(run.config["env_id"], returns, successes)
        scores = normalized_score(tuple(reference), values)
    return RunResult(run.path, run.config["steps"], returns, scores, policy, already)


@contextlib.contextmanager
def _graceful_stop(heard: Callable[[], None]) -> Iterator[list[int]]:
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
