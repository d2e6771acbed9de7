"""One callback writes the run directory of any stable-baselines3 algorithm: the same files as an offline run's.

``metrics.csv`` has means of what the model logged since the last row, ``eval.csv`` the episodes of evaluations at exact
multiples of ``eval_every`` (the last one: after the last update), ``policy.json`` and ``policy.safetensors`` what acts,
``checkpoint.pt`` the rest. Steps are environment steps.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from offrl.data.environments import EnvSpec
from offrl.data.write import MINARI, write_dataset
from offrl.errors import ConfigError, Stopped
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import env_spec, make_env
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.online.acting import acting_policy
from offrl.online.checkpoint import model_state
from offrl.online.off_policy import OffPolicyMethod
from offrl.online.options import ENVIRONMENTS, ROWS, OnlineOptions
from offrl.online.recording import claim, forget, recorded, recording
from offrl.training.checkpoint import rng_state, save_checkpoint
from offrl.training.progress import Reporter
from offrl.training.records import Record
from offrl.training.run_dir import RunDir
from offrl.training.session import RunResult, run_result

ROLLOUT = (
    "ep_rew_mean",
    "ep_len_mean",
)  # what every stable-baselines3 algorithm logs of its training episodes
FROM_OPTIONS = (
    *("preset", "seed", "steps", "log_every", "eval_every", "eval_episodes", "final_episodes"),
    *("checkpoint_every", "workers", "device", "threads", "tensorboard", "wandb", "num_envs"),
    *("normalize_observations", "normalize_rewards"),
)
IDENTITY = ("algorithm", "settings", "seed", "steps", "env_id", *ENVIRONMENTS)
"""What a checkpoint must have in common with its run."""
NUMBER = (int, float, np.number)
METRICS = {  # of stable-baselines3's own algorithms
    "PPO": ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "std"),
    "A2C": ("policy_loss", "value_loss", "entropy_loss", "std"),
    "SAC": ("actor_loss", "critic_loss", "ent_coef", "ent_coef_loss"),
    "TD3": ("actor_loss", "critic_loss"),
}


def run_config(
    algorithm: str, settings: dict[str, Any], options: OnlineOptions, spec: EnvSpec
) -> dict[str, Any]:
    """What ``config.json`` records of an online run; its dataset is the environment."""
    target = options.record
    if target and not target.startswith(MINARI):
        target = str(Path(target).absolute())  # a run is resumed from any folder
    return {
        "algorithm": algorithm,
        "algorithm_file": None,
        "algorithm_sha256": None,
        "settings": settings,
        "dataset": None,
        "dataset_name": spec.env_id,
        "dataset_sha256": "",
        "rows": ROWS,
        "env_id": spec.env_id,
        "env_kwargs": spec.kwargs,
        "env_flatten": list(spec.flatten),
        "reference_returns": None,
        "precision": "float32",
        "compile": False,
        **{name: getattr(options, name) for name in FROM_OPTIONS},
        "record": target,
    }


class RunCallback(BaseCallback):
    """Writes a run directory while a model learns.

    Args:
        run: the run directory.
        metrics: names to log, without what is before the slash; default: those of stable-baselines3's own algorithms.
        reporter: where progress goes.
        asked: signals received; with one in it, the run is saved and stopped before its next rollout.
        workers: processes that evaluate, if other than the run's.
    """

    def __init__(
        self,
        run: RunDir,
        metrics: Sequence[str] = (),
        *,
        reporter: Reporter | None = None,
        asked: Sequence[int] = (),
        workers: int | None = None,
    ) -> None:
        super().__init__()
        c = self.config = run.config
        self.run, self.asked = run, asked
        names = metrics or METRICS.get(c["algorithm"].upper(), ())
        self.record = Record(run, (*names, *ROLLOUT), ())
        self.reporter = reporter or Reporter("quiet", c["steps"])
        spec = EnvSpec(c["env_id"], kwargs=c["env_kwargs"], flatten=tuple(c["env_flatten"]))
        self.evaluator = Evaluator(spec, workers=c["workers"] if workers is None else workers)
        self.sums: dict[str, list[float]] = {}  # metric -> sum and number since the last row
        self.seconds, self.logged, self.saved = 0.0, 0, 0  # of training; steps of the last row and checkpoint
        self.parts = 0  # of the recorded steps
        self.pending: dict[
            str, float
        ] = {}  # logged before the checkpoint that is gone on from, and not dumped
        self.result: RunResult | None = None
        self.sizes: tuple[Any, Any] | None = None  # of the environment, for models that are not made here

    @classmethod
    def new(
        cls,
        algorithm: str,
        options: OnlineOptions,
        settings: dict[str, Any] | None = None,
        metrics: Sequence[str] = (),
    ) -> "RunCallback":
        """A callback with a new run directory ``OUT/ALGORITHM/ENV/seedS-TIME``, for models that you build yourself.

        Args:
            algorithm: what the run is called; ``ppo``, ``a2c``, ``sac`` and ``td3`` also choose the metrics.
            options: of the run; those about environments, seeds and devices are only recorded.
            settings: JSON values to record.
            metrics: as above.

        Raises:
            ConfigError: episodes might never end in the environment, so that it cannot be evaluated in.
        """
        spec = env_spec(str(options.env))
        env = make_env(spec)
        step_limit(env, None)
        sizes = (env.observation_space.shape, env.action_space.shape)
        env.close()
        config = run_config(algorithm, settings or {}, options, spec) | {"own_model": True}
        run = RunDir.create(Path(options.out), config)
        callback = cls(run, metrics)
        callback.sizes = sizes
        return callback

    def _on_training_start(self) -> None:
        acting_policy(self.model)  # what cannot be written is refused before anything is learned
        own = (self.model.observation_space.shape, self.model.action_space.shape)
        if self.sizes not in (None, own):
            raise ConfigError(
                f"the model has observations and actions of shapes {own[0]} and {own[1]}, {self.config['env_id']} of "
                f"{self.sizes[0]} and {self.sizes[1]}: name the environment that it learns in"
            )
        self.began, self.before = time.monotonic(), self.model.num_timesteps
        self.evaluated = self.model.num_timesteps  # steps of the last one
        if self.config.get("record") and recording(self.model.env) is None:
            raise ConfigError("record needs offrl.online.recording.Recording around the model's environments")
        self.logger.output_formats.append(Rows(self))
        for name, value in self.pending.items():
            self.logger.record(name, value)

    def _on_step(self) -> bool:
        step, every = self.num_timesteps, self.config["eval_every"]
        if every and step // every > self.evaluated // every and step < self.config["steps"]:
            self._evaluate(step - step % every, self.config["eval_episodes"])
        self.evaluated = step
        self.reporter.progress(min(step, self.config["steps"]), self._rate())
        return True

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        if self.asked:
            self.checkpoint()
            message = f"stopped at step {step}; go on with: offrl resume {self.run.path}"
            raise Stopped(message, 128 + self.asked[0])
        if step - self.saved >= self.config["checkpoint_every"]:
            self.checkpoint()

    def _on_training_end(self) -> None:
        c, step = self.config, min(self.model.num_timesteps, self.config["steps"])
        if step > self.logged:  # with the last update, which some algorithms log and do not dump
            if isinstance(self.model, OffPolicyMethod):
                self.model.record_means()
            self.dumped(self.logger.name_to_value, self.logged)
            self._row(step)
        ended = self.before == self.model.num_timesteps  # gone on from the end: its rows are there
        result = self._evaluate(step, c["final_episodes"] or c["eval_episodes"], rows=not ended)
        self.checkpoint()
        self.reporter.progress(step, self._rate(), force=True)
        if target := c.get("record"):
            dataset = recorded(self.run.path, self.parts, c)
            claim(self.run.path, target)
            write_dataset(dataset, target, overwrite=True)
            self.reporter.note(f"{dataset.describe()}; written to {target}")
        returns, successes = self.record.finish(result)
        forget(self.run.path)
        self.result = run_result(self.run, returns, successes, acting_policy(self.model))

    def dumped(self, values: dict[str, Any], step: int) -> None:
        """Take what the model logs; a row every ``log_every`` steps."""
        for key, value in values.items():
            name = key.rpartition("/")[2]
            if name in self.record.metrics.columns and not isinstance(value, str):
                total = self.sums.setdefault(name, [0.0, 0.0])
                total[0] += float(value)
                total[1] += 1.0
        if step - self.logged >= self.config["log_every"]:
            self._row(min(step, self.config["steps"]))

    def checkpoint(self) -> None:
        """Write the policy and everything that going on needs."""
        step = self.model.num_timesteps
        self.seconds += time.monotonic() - self.began
        self.began, self.saved = time.monotonic(), step
        if steps := recording(self.model.env):
            self.parts = steps.save(self.run.path, self.parts)
        self.record.save_policy(acting_policy(self.model), step)
        sizes = [table.sync() for table in self.record.tables]
        if self.config.get("own_model"):  # nobody can go on with it here
            return
        state = {
            **{key: self.config[key] for key in IDENTITY},
            "model": model_state(self.model),
            "step": step,
            "best": self.record.best,
            "seconds": self.seconds,
            "sums": self.sums,
            "logged": self.logged,
            "pending": {k: float(v) for k, v in self.logger.name_to_value.items() if isinstance(v, NUMBER)},
            "parts": self.parts,
            "rng": rng_state(),
            "sizes": sizes,
        }
        save_checkpoint(self.run.path, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: rows written after it are forgotten."""
        self.record.best, self.seconds = state["best"], state["seconds"]
        self.sums, self.logged, self.saved = state["sums"], state["logged"], state["step"]
        self.parts, self.pending = state.get("parts", 0), state.get("pending", {})
        for table, size in zip(self.record.tables, state["sizes"], strict=True):
            table.truncate(size)
        self.record.sinks.resume(self.saved)

    def close(self) -> None:
        """End evaluation processes, mirrors and the progress line."""
        self.reporter.end()
        self.evaluator.close()
        self.record.sinks.close()

    def _rate(self) -> float:
        elapsed = self.seconds + time.monotonic() - self.began
        return max(self.model.num_timesteps, 1) / max(elapsed, 1e-9)

    def _row(self, step: int) -> None:
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums, self.logged = {}, step
        if not means:
            return
        timing = {
            "seconds": round(self.seconds + time.monotonic() - self.began, 3),
            "steps_per_second": round(self._rate(), 2),
        }
        wrong = self.record.means(step, means, timing)
        if wrong:
            self.reporter.note(f"{wrong}: the run has diverged")
        self.reporter.metrics = means

    def _evaluate(self, step: int, episodes: int, *, rows: bool = True) -> EvaluationResult:
        """Play the current policy; its time is not counted as training."""
        paused = time.monotonic()
        c = self.config
        result = self.evaluator(acting_policy(self.model), episodes, seed=c["seed"], stream=step)
        if rows:
            facts = self.record.evaluation(step, result)
            last = facts.get("normalized_score", facts["return"])
            self.reporter.evaluation(facts, last, self.record.best, self.record.unit)
        self.began += time.monotonic() - paused
        return result


class Rows(KVWriter):
    """Hands what a model's logger dumps to the callback."""

    def __init__(self, callback: RunCallback) -> None:
        self.callback = callback

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        """Called by the logger at every dump."""
        self.callback.dumped(key_values, step)

    def close(self) -> None:
        """Nothing is held open."""
