"""What one run writes while it trains: rows of its tables, its mirrors, its policy, its end."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.data.reference import normalized_score
from offrl.evaluation.rollout import EvaluationResult
from offrl.nn.policy import Policy, save_policy
from offrl.training.problem import Alarm
from offrl.training.run_dir import EVAL_COLUMNS, TIMING_COLUMNS, RunDir
from offrl.training.sinks import Sinks

PATIENCE = 5
POLICY_FACTS = (
    *("algorithm", "dataset_name", "dataset_sha256", "seed"),
    *("env_id", "env_kwargs", "env_flatten"),
)


class Record:
    """One run on its way.

    Args:
        run: where everything goes.
        metrics: names of the learner's metrics.
        timings: names of its wall-clock parts.
        alarms: where metrics should be.
    """

    def __init__(
        self,
        run: RunDir,
        metrics: tuple[str, ...],
        timings: tuple[str, ...],
        alarms: Mapping[str, Alarm] | None = None,
    ) -> None:
        self.run, self.seed, self.best, self.diverged = run, run.config["seed"], -math.inf, False
        self.alarms, self.outside = alarms or {}, Counter[str]()  # rows in a row, by metric
        self.failure: str | None = None  # why its policy cannot be evaluated
        self.metrics = run.table("metrics.csv", ["step", *metrics])
        self.evaluations = run.table("eval.csv", EVAL_COLUMNS)
        self.timing = run.table("timing.csv", [*TIMING_COLUMNS, *timings])
        self.tables = (self.metrics, self.evaluations, self.timing)
        self.sinks = Sinks(run.path, run.config)

    @property
    def unit(self) -> str:
        """What the means of its evaluations are: scores, or returns where no reference is known."""
        return "score" if self.run.config["reference_returns"] else "return"

    def means(self, step: int, means: dict[str, float], timing: dict[str, Any]) -> str | None:
        """Write a row of metrics and one of timing; returns what is wrong when the run first diverges."""
        self.metrics.append({"step": step, **means})
        self.timing.append({"step": step, **timing})
        rate = {"speed/steps_per_second": timing["steps_per_second"]}
        self.sinks.scalars(step, {f"train/{k}": v for k, v in means.items()} | rate)
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if not bad or self.diverged:
            return None
        self.diverged = True
        return f"{bad[0]} is {means[bad[0]]} at step {step}"

    def warnings(self, means: dict[str, float]) -> list[str]:
        """What to say of metrics that have now been out of their range for ``PATIENCE`` rows."""
        found = []
        for name, (low, high, meaning) in self.alarms.items():
            value = means.get(name, math.nan)
            self.outside[name] = self.outside[name] + 1 if value < low or value > high else 0
            if self.outside[name] == PATIENCE:
                bound = f"below {low:g}" if value < low else f"above {high:g}"
                found.append(f"{name} is {value:.3g}, for {PATIENCE} rows {bound}: {meaning}")
        return found

    def evaluation(self, step: int, result: EvaluationResult) -> dict[str, Any]:
        """Write a row an episode; returns the means and the best so far: scores where they are known."""
        reference = self.run.config["reference_returns"]
        scores = normalized_score(tuple(reference), result.scored) if reference else None
        for episode, value in enumerate(result.returns):
            self.evaluations.append(
                {
                    "step": step,
                    "episode": episode,
                    "return": float(value),
                    "normalized_score": None if scores is None else float(scores[episode]),
                    "length": int(result.lengths[episode]),
                    "success": None if result.successes is None else int(result.successes[episode]),
                }
            )
        last = float((result.returns if scores is None else scores).mean())
        self.best = max(self.best, last)
        facts = {"step": step, "return": float(result.returns.mean()), "best": self.best}
        facts |= {} if scores is None else {"normalized_score": last}
        self.sinks.scalars(step, {f"eval/{k}": v for k, v in facts.items() if k != "step"})
        return facts

    def save_policy(self, policy: Policy, step: int) -> None:
        """Write the policy as it is after ``step`` updates."""
        facts = {key: self.run.config[key] for key in POLICY_FACTS}
        save_policy(policy, self.run.path, {**facts, "step": step})

    def finish(self, result: EvaluationResult | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Mark the run as finished; returns returns (episodes,) and successes of its last policy."""
        empty = np.zeros(0)
        returns, lengths = (result.returns, result.lengths) if result else (empty, empty.astype(np.int64))
        successes = result.successes if result else None
        self.run.finish(returns, lengths, successes)
        return returns, successes
