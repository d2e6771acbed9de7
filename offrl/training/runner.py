"""From a dataset's name to a finished run directory: builds the learner, drives the loop, resumes exactly."""

import contextlib
import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from offrl.algos import load_algorithm, preset
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.data.load import load_dataset
from offrl.data.reference import normalized_score
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.nn.policy import Policy, save_policy
from offrl.training.build import build, dataset_env
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from offrl.training.loop import MetricMeans, train
from offrl.training.problem import Algorithm, Learner
from offrl.training.progress import Reporter
from offrl.training.run_dir import EVAL_COLUMNS, TIMING_COLUMNS, RunDir, versions
from offrl.training.seeding import stream
from offrl.training.sinks import Sinks

MUST_MATCH = ("torch", "cpu", "device", "threads")  # what bit-exact resume depends on


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, whatever the algorithm."""

    dataset: str | None = None
    """Data: builtin:NAME, d4rl:NAME, minari:ID, or a file (.hdf5 .npz .csv .parquet)."""
    env: str | None = None
    """Gymnasium id to evaluate on; default: the one the data name."""
    steps: int = 1_000_000
    """Gradient updates."""
    seed: int = 0
    """Seed of every random stream."""
    out: Path = Path("runs")
    """Folder under which the run directory is made."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    rows: Literal["auto", "exact", "qlearning"] = "auto"
    """Which rows are transitions: exact keeps true successors, qlearning is D4RL's own rule."""
    preset: str | None = None
    """Start from the settings tuned for this dataset name; never guessed."""
    log_every: int = 1_000
    """Updates between rows of metrics.csv."""
    eval_every: int = 5_000
    """Updates between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    final_episodes: int = 0
    """Episodes of the evaluation after the last update; 0: as eval_episodes."""
    checkpoint_every: int = 10_000
    """Updates between checkpoints."""
    workers: int = 1
    """Processes that evaluate; the scores do not depend on it."""
    threads: int = 0
    """CPU threads of torch; 0: all cores, at most 4. A run resumes exactly only with the same number."""
    compile: bool = False
    """Compile the gradient computation (on CPU this needs a C++ compiler)."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run directory."""
    wandb: bool = False
    """Also log to Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every", "eval_episodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "eval_every", "final_episodes", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    directory: Path
    steps: int
    returns: np.ndarray  # (episodes,) of the last policy; empty without an environment
    scores: np.ndarray | None  # the same on 0-100, if the reference returns are known
    policy: Policy
    already_finished: bool = False


def start(
    algorithm: str,
    settings: Any,
    options: RunOptions,
    *,
    dataset: OfflineDataset | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train ``algorithm`` from scratch in a new run directory.

    Args:
        algorithm: name, plug-in or file path.
        settings: an instance of the algorithm's config dataclass.
        options: how to run.
        dataset: data in memory, instead of ``options.dataset``.
        reporter: where progress goes.

    Raises:
        ConfigError, DatasetError, PolicyError: the options, the data or the environment do not fit together.
        Stopped: a signal stopped it; a checkpoint was written.
    """
    name, method = load_algorithm(algorithm)
    reporter = reporter or Reporter("quiet", options.steps)
    if dataset is None and options.dataset is None:
        raise ConfigError(f"{name} learns from data: pass --dataset ('offrl data list' shows what there is)")
    data = load_dataset(options.dataset) if dataset is None and options.dataset else dataset
    if data is None:
        raise ConfigError("no dataset")
    spec = dataset_env(data, options.env)
    config = {
        "algorithm": name,
        "algorithm_file": str(Path(algorithm).resolve()) if algorithm.endswith(".py") else None,
        "settings": dataclasses.asdict(settings),
        "preset": options.preset,
        "dataset": options.dataset if dataset is None else None,
        "dataset_name": data.metadata.get("name") or "data",
        "dataset_sha256": data.sha256,
        "dataset_return_mean": float(data.episode_returns.mean()),
        "rows": data.metadata.get("rows_default", "exact") if options.rows == "auto" else options.rows,
        "env_id": spec.env_id if spec else None,
        "env_kwargs": spec.kwargs if spec else {},
        "env_flatten": list(spec.flatten) if spec else [],
        "reference_returns": data.reference_returns,
        **{
            key: getattr(options, key)
            for key in ("seed", "steps", "log_every", "eval_every", "eval_episodes", "final_episodes")
        },
        "checkpoint_every": options.checkpoint_every,
        "workers": options.workers,
        "device": resolve_device(options.device),
        "threads": options.threads or min(os.cpu_count() or 1, 4),
        "compile": options.compile,
        "tensorboard": options.tensorboard,
        "wandb": options.wandb,
    }
    if options.compile:
        require_compiler(config["device"])
    torch.set_num_threads(config["threads"])
    torch.manual_seed(options.seed)
    learner, source = build(method, settings, data, spec, config)  # before a directory is made: bad input fails here
    run = RunDir.create(options.out, config)
    reporter.note(f"{name} on {config['dataset_name']}: {data.describe()}")
    reporter.note(
        f"{len(source)} rows ({config['rows']}), device {versions(config['device'], 1)['device']}, "
        f"{config['threads']} threads, {options.steps:,} steps, run directory {run.path}".replace(",", " ")
    )
    if spec is None:
        reporter.note("the data name no environment: training without evaluation (pass --env ID for scores)")
    return _Session(run, learner, source, spec, reporter).go()


def resume(
    directory: Path,
    *,
    dataset: OfflineDataset | None = None,
    allow_inexact: bool = False,
    workers: int | None = None,
    reporter_mode: str = "quiet",
) -> RunResult:
    """Go on with a run exactly where its last checkpoint left it; a finished run is returned as it is.

    Args:
        directory: the run directory.
        dataset: the data, for a run that was started from data in memory.
        allow_inexact: go on although torch, chip, device or thread count differ from those recorded.
        workers: evaluation processes, if other than recorded (scores do not depend on it).
        reporter_mode: ``text``, ``json`` or ``quiet``.

    Raises:
        CheckpointError: damaged or foreign files, other data, or another machine without ``allow_inexact``.
    """
    run = RunDir(directory)
    config = run.config
    name, method = load_algorithm(config.get("algorithm_file") or config["algorithm"])
    try:
        settings = method.config(**config["settings"])
    except TypeError as error:
        raise CheckpointError(f"{directory} was made by another version of {name}: {error}") from None
    if run.finished:
        return _finished(run)
    if dataset is None and config["dataset"] is None:
        raise ConfigError(f"{directory} was trained from data in memory; pass the same dataset to offrl.resume")
    data = dataset if dataset is not None else load_dataset(config["dataset"])
    if data.sha256 != config["dataset_sha256"]:
        raise CheckpointError(f"the data of {directory} changed since it began (SHA-256 differs); restore them")
    _check_machine(run, allow_inexact)
    torch.set_num_threads(config["threads"])
    spec = None
    if config["env_id"]:
        spec = dataclasses.replace(
            dataset_env(data, config["env_id"]) or EnvSpec(config["env_id"]),
            kwargs=config["env_kwargs"],
            flatten=tuple(config["env_flatten"]),
        )
    if workers is not None:
        config["workers"] = workers
    learner, source = build(method, settings, data, spec, config)
    session = _Session(run, learner, source, spec, Reporter(reporter_mode, config["steps"]))
    session.restore()
    return session.go()


class _Session:
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
        self.pop_timings = getattr(learner, "pop_timings", dict)  # a learner may report wall-clock parts of its own
        self.timing_csv = run.table("timing.csv", [*TIMING_COLUMNS, *self.pop_timings()])
        self.sinks = Sinks(run.path, self.config)

    def restore(self) -> None:
        """Load the last checkpoint and forget the rows written after it."""
        state, note = load_checkpoint(self.run.path, self.config["device"])
        if state is None:
            for table in (self.metrics_csv, self.eval_csv, self.timing_csv):
                table.path.unlink()
                type(table).__init__(table, table.path, table.columns)
            torch.manual_seed(self.config["seed"])
            self.reporter.note("no checkpoint yet: starting over")
            return
        if state["algorithm"] != self.config["algorithm"]:
            raise CheckpointError(
                f"checkpoint was made by {state['algorithm']}, this run is {self.config['algorithm']}; "
                f"start it anew with 'offrl train {self.config['algorithm']}'"
            )
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        self.means.load_state_dict(state["means"])
        for generator, saved in zip(self.data, state["data"], strict=True):
            generator.set_state(saved.cpu())
        set_rng_state(state["rng"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        for table, size in zip((self.metrics_csv, self.eval_csv, self.timing_csv), state["sizes"], strict=True):
            table.truncate(size)
        self.reporter.note(f"resuming {self.run.path} at step {self.step}" + (f" ({note})" if note else ""))

    def go(self) -> RunResult:
        """Train to the last step; evaluate, write rows, checkpoint, in this order."""
        c = self.config
        periods = [p for p in (c["log_every"], c["eval_every"], c["checkpoint_every"]) if p]
        evaluator = Evaluator(self.spec, workers=c["workers"]) if self.spec else None
        result, stopped = None, False
        with _graceful_stop() as asked, evaluator or contextlib.nullcontext():
            began, before = time.monotonic(), self.step
            loop = train(
                self.learner,
                self.source,
                self.data,
                self.means,
                steps=c["steps"],
                every=periods,
                start=self.step,
                stop=lambda: bool(asked),
            )
            for step in loop:
                elapsed = time.monotonic() - began
                self.seconds += elapsed
                rate, self.step = (step - before) / max(elapsed, 1e-9), step
                last, stopped = step == c["steps"], bool(asked) and step < c["steps"]
                if evaluator and (last or (c["eval_every"] and step % c["eval_every"] == 0)):
                    episodes = (c["final_episodes"] if last else 0) or c["eval_episodes"]
                    result = evaluator(self.learner.policy(), episodes, seed=c["seed"], stream=step)
                    self._record_evaluation(result)
                if last or step % c["log_every"] == 0:
                    self._record_metrics(rate)
                if last or stopped or step % c["checkpoint_every"] == 0:
                    self._checkpoint()
                self.reporter.progress(step, rate, force=last)
                began, before = time.monotonic(), step
        self.sinks.close()
        if stopped:
            message = f"stopped at step {self.step}; go on with: offrl resume {self.run.path}"
            raise Stopped(message, 128 + asked[0])
        return self._finish(result)

    def _record_metrics(self, rate: float) -> None:
        means = {name: values[0] for name, values in self.means.pop().items()}
        self.metrics_csv.append({"step": self.step, **means})
        timing = {"seconds": round(self.seconds, 3), "steps_per_second": round(rate, 2), **self.pop_timings()}
        self.timing_csv.append({"step": self.step, **timing})
        self.reporter.metrics = means
        self.sinks.scalars(self.step, {f"train/{k}": v for k, v in means.items()} | {"speed/steps_per_second": rate})

    def _record_evaluation(self, result: EvaluationResult) -> None:
        reference = self.config["reference_returns"]
        scores = normalized_score(tuple(reference), result.returns) if reference else None
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
            "algorithm": self.config["algorithm"],
            "step": self.step,
            "best": float(self.best),
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "means": self.means.state_dict(),
            "data": [g.get_state() for g in self.data],
            "rng": rng_state(),
            "sizes": [table.size() for table in (self.metrics_csv, self.eval_csv, self.timing_csv)],
        }
        save_checkpoint(self.run.path, state)
        self._save_policy()

    def _save_policy(self) -> None:
        facts = {key: self.config[key] for key in ("algorithm", "dataset_name", "dataset_sha256", "env_id", "seed")}
        save_policy(self.learner.policy(), self.run.path, {**facts, "step": self.step})

    def _finish(self, result: EvaluationResult | None) -> RunResult:
        empty = np.zeros(0)
        returns, lengths = (result.returns, result.lengths) if result else (empty, empty.astype(np.int64))
        self.run.finish(returns, lengths)
        return _result(self.run, returns, self.learner.policy())


def _result(run: RunDir, returns: np.ndarray, policy: Policy, *, already: bool = False) -> RunResult:
    reference = run.config["reference_returns"]
    scores = normalized_score(tuple(reference), returns) if reference and len(returns) else None
    return RunResult(run.path, run.config["steps"], returns, scores, policy, already)


def _finished(run: RunDir) -> RunResult:
    from offrl.nn.policy import load_policy

    with np.load(run.path / "final_returns.npz", allow_pickle=False) as final:
        returns = final["returns"]
    return _result(run, returns, load_policy(run.path), already=True)


def make_settings(algorithm: str, given: dict[str, Any], preset_name: str | None = None) -> Any:
    """The algorithm's config from its preset and ``given`` values (which win).

    Raises:
        ConfigError: an unknown setting, with the nearest one named, or an impossible value.
    """
    import difflib

    name, method = load_algorithm(algorithm)
    known = [f.name for f in dataclasses.fields(method.config)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
            raise ConfigError(f"{name} has no setting {key!r}{hint}")
    base = preset(method, preset_name) if preset_name else {}
    return method.config(**base | given)


def resolve_device(name: str) -> str:
    """``auto`` becomes cuda or cpu; anything else must exist (ConfigError)."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def require_compiler(device: str) -> None:
    """Refuse ``compile`` on a CPU without a C++ compiler (ConfigError)."""
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ConfigError("--compile needs a C++ compiler (g++ or clang++) on the path; leave the option out without one")


def _check_machine(run: RunDir, allow_inexact: bool) -> None:
    recorded = run.recorded_versions()
    now = versions(run.config["device"], run.config["threads"])
    changed = [f"{key}: {recorded.get(key)} -> {now[key]}" for key in MUST_MATCH if recorded.get(key) != now[key]]
    if changed and not allow_inexact:
        raise CheckpointError(
            f"resuming {run.path} here would not be exact ({'; '.join(changed)}); add --allow-inexact to go on anyway"
        )


@contextlib.contextmanager
def _graceful_stop() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one acts as usual."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.getsignal(number) for number in numbers}

    def handler(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, usual[number])
