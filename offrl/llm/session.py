"""Runs: from options to a finished run directory, and exact resume.

Order at a step where something is due: evaluation, rows, checkpoint.
"""

import dataclasses
import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.rollout import EvaluationResult
from offrl.files import sha256_file
from offrl.llm.evaluate import Evaluation, evaluate
from offrl.llm.learner import Learner, Shown
from offrl.llm.methods import load_method
from offrl.llm.models import Table, load_model
from offrl.llm.options import DataOptions, LLMOptions, check, check_choices, check_finite, check_idle
from offrl.llm.parallel import Ranks, join
from offrl.llm.pretrained import folder_of
from offrl.llm.rewards import absolute, file_of
from offrl.llm.tasks import task_for
from offrl.llm.tasks.prompts import omissions
from offrl.llm.tasks.task import Task
from offrl.nn.precision import Precision
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from offrl.training.loop import MetricMeans
from offrl.training.options import resolve_device, settings_from_json
from offrl.training.progress import Reporter, spaced
from offrl.training.records import Record
from offrl.training.run_dir import RunDir
from offrl.training.runner import require_exactness
from offrl.training.seeding import seed_globally
from offrl.training.session import graceful_stop

Options = TypeVar("Options", bound=DataOptions)
COUNTERS = ("updates", "rollouts", "tokens")
SAMPLE_COLUMNS = ("step", "prompt", "response", "reward")


@dataclass(frozen=True)
class LLMResult:
    """What a finished run leaves behind."""

    directory: Path
    seed: int
    accuracy: float
    """Share of right responses in the last evaluation."""
    reward: float
    already_finished: bool = False


def start(name: str, settings: Any, options: LLMOptions, reporter: Reporter | None = None) -> LLMResult:
    """Train from the options' model, in a new run directory.

    Raises:
        ConfigError: method, model, task and options do not fit together.
        Stopped: a signal stopped it; a checkpoint was written.
    """
    reporter = reporter or Reporter("quiet", options.steps)
    options = dataclasses.replace(options, device=resolve_device(options.device), out=Path(options.out))
    options = anywhere(options)
    check_idle(options)
    check_finite(options, settings)
    ranks = join()
    learner = build(name, settings, options, ranks)
    config = _config(name, settings, options)
    if ranks.rank:
        return _aside(learner, config, options, None)
    run = RunDir.create(options.out, config)
    size = sum(p.numel() for p in learner.parameters)
    reporter.note(
        f"{name} on {options.task_name}: {options.model} ({spaced(size)} parameters), {options.prompts} prompts x "
        f"{options.group} responses a step, run directory {run.path}"
    )
    for line in omissions(learner.task, options.max_prompt):
        reporter.note(line)
    return _go(run, learner, options, reporter, restore=False)


def anywhere(options: Options) -> Options:
    """The same options with absolute paths, for a run that is resumed from another folder."""
    paths: dict[str, Any] = {
        name: str(Path(given).resolve())
        for name in ("model", "dataset", "eval_dataset", "chat_template", "hints", "v0_weights", "actor")
        if (given := getattr(options, name)) and Path(given).exists()
    }
    return dataclasses.replace(options, **paths, reward=tuple(map(absolute, options.reward)))


def resume(
    directory: Path | str, reporter: Reporter | None = None, *, allow_inexact: bool = False
) -> LLMResult:
    """Go on exactly where the last checkpoint left a run; a finished run is returned as it is.

    Raises:
        CheckpointError: damaged or foreign files, or another machine without ``allow_inexact``.
    """
    directory = Path(directory)
    run = RunDir(directory)
    if run.finished:
        return _result(run, already=True)
    if not allow_inexact:
        require_exactness(run)
    try:
        settings = settings_from_json(load_method(run.config["algorithm"]).config, run.config["settings"])
        options = settings_from_json(LLMOptions, run.config["llm"])
        options = dataclasses.replace(options, out=Path(options.out))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{directory} was edited or made by another version: {error}") from None
    reporter, ranks = reporter or Reporter("quiet", options.steps), join()
    if data_sha256(options) != run.config["dataset_sha256"]:
        raise CheckpointError(f"{options.dataset} is no longer the data set that {directory} was trained on")
    recorded, found = run.config.get("files_sha256", {}), files_sha256(options)
    if changed := [name for name in recorded if found.get(name) != recorded[name]]:
        raise CheckpointError(
            f"what {changed[0]} names changed since {directory} began (SHA-256 differs); restore it"
        )
    learner = build(run.config["algorithm"], settings, options, ranks)
    if ranks.rank:
        return _aside(learner, run.config, options, directory)
    return _go(run, learner, options, reporter, restore=True)


def build(name: str, settings: Any, options: LLMOptions, ranks: Ranks | None = None) -> Learner:
    """The learner of a run, in one of the processes that train it.

    Raises:
        ConfigError: what does not fit together.
    """
    check_choices(options, settings)
    method, task = load_method(name), task_for(options)
    check(name, method, options)
    if method.unfit is not None and (reason := method.unfit(settings, options, task)):
        raise ConfigError(f"{name}: {reason}")
    seed_globally(options.seed)
    torch.set_num_threads(options.threads)
    policy = load_model(options.model, task, options.seed, options.lora_rank)
    policy = policy.to(resolve_device(options.device))
    if options.precision == "bf16":
        if isinstance(policy, Table):
            raise ConfigError("tiny:table has no layers: leave --precision out")
        Precision("bf16", policy.bias.device.type)  # refuses what the device lacks
        policy.bf16 = True
    return Learner(method, settings, task, policy, options, ranks)


def _aside(learner: Learner, config: dict[str, Any], options: LLMOptions, restored: Path | None) -> LLMResult:
    """The part of a process that is not the first: it does the same, and what it writes is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder), config)
        session = Session(run, learner, options, Reporter("quiet", options.steps))
        if restored is not None:
            session.restore(restored)
        try:
            return session.go()
        except Stopped as stopped:  # the first process says how to go on: this folder goes
            raise Stopped(f"process {learner.ranks.rank} stopped with it", stopped.exit_code) from None


def _go(
    run: RunDir, learner: Learner, options: LLMOptions, reporter: Reporter, *, restore: bool
) -> LLMResult:
    with run.locked():
        session = Session(run, learner, options, reporter)
        if restore:
            session.restore()
        return session.go()


def data_sha256(options: DataOptions) -> str:
    """Of the data set's file; empty where there is none."""
    path = Path(options.dataset)
    return sha256_file(path) if options.dataset and path.is_file() else ""


def files_sha256(options: LLMOptions) -> dict[str, str]:
    """Of what a checkpoint does not hold: other files that options name, the models of actor and adapter."""
    options = anywhere(options)
    names = ("eval_dataset", "chat_template", "hints", "v0_weights")
    paths = {
        f"--{name.replace('_', '-')}": Path(getattr(options, name))
        for name in names
        if getattr(options, name)
    }
    paths |= {f"--reward {path}": path for text in options.reward if (path := file_of(text))}
    paths |= {"--actor": folder_of(options.actor)} if options.actor else {}
    kept = options.lora_rank or options.predictor == "v0"  # the first model goes on to be read
    paths |= {"--model": folder_of(options.model)} if kept else {}
    return {name: _sha256(path) for name, path in paths.items() if path.exists()}


def _sha256(path: Path) -> str:
    """Of a file, or of a folder's files and their names."""
    if path.is_file():
        return sha256_file(path)
    each = "".join(f"{file.name} {sha256_file(file)}\n" for file in sorted(path.iterdir()) if file.is_file())
    return hashlib.sha256(each.encode()).hexdigest()


def _config(name: str, settings: Any, options: LLMOptions) -> dict[str, Any]:
    """``config.json``: the fields of every run, and the engine's own."""
    own = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}
    return {
        "algorithm": name, "algorithm_file": None, "algorithm_sha256": None, "preset": None,
        "settings": dataclasses.asdict(settings), "llm": own, "dataset": options.dataset or None,
        "dataset_name": options.task_name, "dataset_sha256": data_sha256(options),
        "files_sha256": files_sha256(options),
        "rows": "prompts", "env_id": None, "env_kwargs": {}, "env_flatten": [],
        "reference_returns": None, "seed": options.seed, "steps": options.steps, "log_every": options.log_every,
        "eval_every": options.eval_every, "eval_episodes": options.eval_prompts, "final_episodes": 0,
        "checkpoint_every": options.checkpoint_every, "workers": 1, "device": options.device,
        "threads": options.threads, "precision": options.precision, "compile": False,
        "tensorboard": False, "wandb": False,
    }  # fmt: skip


class Session:
    """A run in progress.

    Args:
        run: where everything goes.
        learner: what is trained.
        options: how.
        reporter: where progress goes.
    """

    def __init__(self, run: RunDir, learner: Learner, options: LLMOptions, reporter: Reporter) -> None:
        self.run, self.learner, self.options, self.reporter = run, learner, options, reporter
        self.record = Record(run, (*learner.metrics, *COUNTERS), ())
        self.asked: Task = getattr(learner.task, "held_out", None) or learner.task
        levels = [f"level_{k}" for k in range(1, self.asked.levels + 1)] if self.asked.levels > 1 else []
        columns = ["step", *COUNTERS, "sampled", "greedy", f"pass_at_{options.eval_samples}", "length"]
        measured = sorted(learner.task.measures(learner.policy))
        self.accuracy = run.table("accuracy.csv", [*columns, *levels, *measured])
        self.samples = run.table("samples.csv", SAMPLE_COLUMNS)
        self.tables = (*self.record.tables, self.accuracy, self.samples)
        self.means = MetricMeans(learner.metrics)
        self.step, self.seconds = 0, 0.0
        self.last: EvaluationResult | None = None

    def restore(self, directory: Path | None = None) -> None:
        """Load the last checkpoint, of this run or of another directory, and forget the rows written after it."""
        state, note = load_checkpoint(directory or self.run.path, self.options.device)
        if state is None:
            for table in self.tables:
                table.clear()
            return
        try:
            self.learner.load_state_dict(state["learner"])
            self.means.load_state_dict(state["means"])
            set_rng_state(state["rng"])
            self.step, self.seconds, self.record.best = state["step"], state["seconds"], state["best"]
            sizes = state["sizes"] if directory is None else [table.sync() for table in self.tables]
            for table, size in zip(self.tables, sizes, strict=True):
                table.truncate(size)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.run.path} does not fit: {type(error).__name__}: {error}"
            ) from None
        self.reporter.note(f"resuming {self.run.path} at step {self.step}" + (f" ({note})" if note else ""))

    def go(self) -> LLMResult:
        """Train to the last step."""
        with graceful_stop(lambda: None) as asked:
            try:
                self._train(asked)
            finally:
                self.reporter.end()
                self.record.sinks.close()
        signals = [number for each in self.learner.ranks.gathered(asked[:1]) for number in each]
        if signals and self.step < self.options.steps:
            raise Stopped(
                f"stopped at step {self.step}; go on with: offrl resume {self.run.path}", 128 + signals[0]
            )
        if (
            self.last is None
        ):  # stopped between the last checkpoint and the mark of the end: its rows are written
            self.last = self._found()[1]
            self._save_model()
        self.run.finish(self.last.returns, self.last.lengths, self.last.successes)
        return _result(self.run)

    def _train(self, asked: list[int]) -> None:
        o = self.options
        began, before, self._logged, saved = time.monotonic(), self.step, self.seconds, -1
        if self.step == 0:
            self._evaluate()
        while self.step < o.steps and not self.learner.ranks.any(asked):
            self.means.add(self.learner.update())
            self.step += 1
            step, last = self.step, self.step == o.steps
            now = time.monotonic()
            self.seconds, rate = self.seconds + now - began, 1.0 / max(now - began, 1e-9)
            if last or (o.eval_every and step % o.eval_every == 0):
                self._evaluate()
            if last or step % o.log_every == 0:
                self._rows((step - before) / max(self.seconds - self._logged, 1e-9))
                before = step
            if last or self.learner.ranks.any(asked) or step % o.checkpoint_every == 0:
                self._checkpoint()
                saved = self.step
            if self.reporter.live:
                self.reporter.show(completions(self.learner.shown))
            self.reporter.progress(step, rate, force=last)
            began = time.monotonic()
        if 0 < self.step < o.steps and saved != self.step:  # asked to stop between two steps
            self._checkpoint()

    _logged = 0.0

    def _found(self) -> tuple[Evaluation, EvaluationResult]:
        """Accuracies now, and the first response to each prompt as an episode."""
        o, learner = self.options, self.learner
        found = evaluate(
            learner.policy, self.asked, prompts=o.eval_prompts, samples=o.eval_samples, seed=o.seed,
            name=str(self.step), temperature=o.temperature,
        )  # fmt: skip
        return found, EvaluationResult(
            found.rewards[:, 0].double().numpy(), found.lengths[:, 0].numpy(),
            found.success[:, 0].numpy(), learner.task.name,
        )  # fmt: skip

    def _evaluate(self) -> None:
        """Write accuracies: eval.csv, accuracy.csv."""
        o, learner = self.options, self.learner
        found, first = self._found()
        facts = self.record.evaluation(self.step, first)
        row = accuracy_row(found, o.eval_samples) | learner.task.measures(learner.policy)
        counters = {name: getattr(learner, name) for name in COUNTERS}
        self.accuracy.append({"step": self.step, **counters, **row})
        self.last = first
        self.reporter.evaluation(facts | row, 100 * row["sampled"], 100 * row["sampled"])
        self.reporter.note(
            f"step {self.step}: sampled {row['sampled']:.3f}, greedy {row['greedy']:.3f}, "
            f"pass@{o.eval_samples} {found.pass_at(o.eval_samples):.3f}"
        )
        for line in completions(learner.shown):
            self.reporter.note(line)

    def _rows(self, rate: float) -> None:
        means = {name: values[0] for name, values in self.means.pop().items()}
        counters = {name: float(getattr(self.learner, name)) for name in COUNTERS}
        timing = {"seconds": round(self.seconds, 3), "steps_per_second": round(rate, 3)}
        self._logged = self.seconds
        if wrong := self.record.means(self.step, means | counters, timing):
            self.reporter.note(f"{wrong}: the run has diverged")
        self.reporter.metrics = means
        shown = self.learner.shown
        for prompt, response, reward in zip(shown.prompts, shown.responses, shown.rewards, strict=True):
            row = {"step": self.step, "prompt": plain(prompt), "response": plain(response), "reward": reward}
            self.samples.append(row)

    def _checkpoint(self) -> None:
        state = {
            "step": self.step, "seconds": self.seconds, "best": self.record.best,
            "learner": self.learner.state_dict(), "means": self.means.state_dict(), "rng": rng_state(),
            "sizes": [table.sync() for table in self.tables],
        }  # fmt: skip
        if not self.learner.ranks.rank:
            self._save_model(state)

    def _save_model(self, state: dict[str, Any] | None = None) -> None:
        """Write the model as it is, and the checkpoint before it takes the place of the last one."""
        new, old = self.run.path / "model-next", self.run.path / "model"
        shutil.rmtree(new, ignore_errors=True)
        self.learner.policy.save(new, self.learner.task)
        if state is not None:
            save_checkpoint(self.run.path, state)
        shutil.rmtree(old, ignore_errors=True)
        new.rename(old)


def accuracy_row(found: Evaluation, samples: int) -> dict[str, float]:
    """Columns of accuracy.csv."""
    row = {"sampled": found.accuracy, "greedy": float(found.greedy.float().mean())}
    row |= {f"pass_at_{samples}": found.pass_at(samples), "length": float(found.lengths.float().mean())}
    return row | {f"level_{level}": value for level, value in found.by_level().items()}


def plain(text: str) -> str:
    """For a table: lines end with a line feed, whatever a model thought of; no NUL."""
    return "\n".join(text.replace("\0", "\ufffd").splitlines())


def completions(shown: Shown, width: int = 110) -> list[str]:
    """Up to four of the last batch as lines: reward, end of the prompt, response."""
    rows = zip(shown.rewards, shown.prompts, shown.responses, strict=True)
    third = width // 3
    lines = [
        f"  {reward:7.3g}  {_line(prompt)[-third:]:>{third}} | {_line(response)[: 2 * third - 12]}"
        for reward, prompt, response in list(rows)[:4]
    ]
    return ["   reward  " + "prompt | response".rjust(third + 11), *lines] if lines else []


def _line(text: str) -> str:
    """What a model writes may hold line feeds, and escape sequences that a terminal would obey: spaces instead."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _result(run: RunDir, *, already: bool = False) -> LLMResult:
    with np.load(run.path / "final_returns.npz", allow_pickle=False) as final:
        accuracy, reward = float(final["successes"].mean()), float(final["returns"].mean())
    return LLMResult(run.path, run.config["seed"], accuracy, reward, already)
