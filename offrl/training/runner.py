"""From a dataset's name to a finished run directory: starts runs, and resumes them exactly."""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.algos import load_algorithm
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError
from offrl.files import sha256_file
from offrl.nn.policy import load_policy
from offrl.nn.precision import Precision
from offrl.training.build import BatchSource, build, dataset_env
from offrl.training.offline import Origin, load_offline
from offrl.training.online import OnlineSource
from offrl.training.options import (
    RunOptions,
    make_settings,
    require_compiler,
    resolve_device,
    settings_from_json,
)
from offrl.training.problem import Algorithm, Learner
from offrl.training.progress import Reporter, spaced
from offrl.training.run_dir import RunDir, device_name, versions
from offrl.training.seeding import seed_globally
from offrl.training.session import RunResult, Session, run_result
from offrl.training.sinks import require_sinks

__all__ = ["RunOptions", "RunResult", "make_settings", "resume", "start"]

MUST_MATCH = ("offrl", "torch", "numpy", "cpu", "device", "threads")  # what bit-exact resume depends on
MUST_MATCH_IN_ENVIRONMENTS = ("gymnasium", "mujoco")  # and its evaluations


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
    return start_stack(algorithm, settings, options, (options.seed,), dataset=dataset, reporter=reporter)[0]


def start_stack(
    algorithm: str,
    settings: Any,
    options: RunOptions,
    seeds: Sequence[int],
    *,
    dataset: OfflineDataset | None = None,
    reporter: Reporter | None = None,
    origin: Origin | None = None,
) -> list[RunResult]:
    """``start`` for several seeds that are trained together, each in a run directory of its own.

    With ``origin`` one seed goes on online from an offline run.
    """
    reporter = reporter or Reporter("quiet", options.steps)
    plan = prepare(algorithm, settings, options, seeds, dataset=dataset, origin=origin)
    torch.set_num_threads(plan.configs[0]["threads"])
    seed_globally(seeds[0])
    learner, source = plan.build(seeds)  # bad input fails before a folder is made
    load_offline(learner, plan.configs[0])
    runs = RunDir.create_stack(options.out, plan.configs)
    plan.announce(reporter, len(source), f"run director{'y' if len(runs) == 1 else 'ies'} {_listed(runs)}")
    with _locked(runs):
        return Session(runs, learner, source, plan.spec if plan.method.acts else None, reporter).go()


@dataclass(frozen=True)
class Plan:
    """What a run is made from, checked as far as it can be without building the learner."""

    method: Algorithm
    settings: Any
    data: OfflineDataset
    spec: EnvSpec | None
    configs: list[dict[str, Any]]  # of each seed

    def build(self, seeds: Sequence[int]) -> tuple[Learner, BatchSource]:
        """The learner of ``seeds`` and the source of its batches."""
        return build(self.method, self.settings, self.data, self.spec, self.configs[0], seeds)

    def announce(self, reporter: Reporter, rows: int, where: str) -> None:
        """Say what is trained on what, with what, and where it is kept."""
        c = self.configs[0]
        reporter.note(f"{c['algorithm']} on {c['dataset_name']}: {self.data.describe()}")
        if "mix" in c:
            mix = c["mix"]
            reporter.note(
                f"{mix['share']:.4g} of each batch from {mix['uri']}"
                + (f", drawn anew every {spaced(mix['refresh'])} steps" if mix["refresh"] else "")
            )
        if "online" in c:
            source, warmup = c["fine_tuned_from"]["run"], spaced(c["online"]["warmup_steps"])
            reporter.note(
                f"fine-tuning {source} on {c['env_id']}: {warmup} steps of the offline policy, "
                "then one step an update; half of each batch is offline rows"
            )
        reporter.note(
            f"{spaced(rows)} rows ({c['rows']}), device {device_name(c['device'])}, "
            f"{c['threads']} thread{'s' * (c['threads'] > 1)}, {spaced(c['steps'])} steps, {where}"
        )
        if self.spec is None and self.method.acts:
            reporter.note(
                "the data name no environment: training without evaluation (pass --env ID for scores)"
            )


def prepare(
    algorithm: str,
    settings: Any,
    options: RunOptions,
    seeds: Sequence[int],
    *,
    dataset: OfflineDataset | None = None,
    origin: Origin | None = None,
) -> Plan:
    """Load the data and refuse what cannot run here; raises what ``start`` raises."""
    name, method = load_algorithm(algorithm)
    data = dataset if dataset is not None else load_dataset(options.dataset) if options.dataset else None
    if data is None:
        raise ConfigError(f"{name} learns from data: pass --dataset ('offrl data list' shows what there is)")
    spec = dataset_env(data, options.env)
    config = _config(algorithm, settings, options, data, spec)
    if method.windows:
        config["rows"] = "steps"
    if dataset is not None:
        config["dataset"] = None  # in memory: it must be given again to resume
    if options.mix is not None or options.refresh:
        if origin is not None:
            raise ConfigError("--mix and --from do not go together")
        from offrl.training.synthetic import parse_mix

        config["mix"] = parse_mix(options)
    if origin is not None:
        config |= origin.facts(config)
    Precision(options.precision, config["device"])  # refuses what the device lacks
    if options.compile:
        require_compiler(config["device"])
    require_sinks(config)
    return Plan(method, settings, data, spec, [{**config, "seed": seed} for seed in seeds])


def _listed(runs: Sequence[RunDir]) -> str:
    return ", ".join(str(run.path) for run in runs)


@contextlib.contextmanager
def _locked(runs: Sequence[RunDir]) -> Iterator[None]:
    """Hold all of ``runs``."""
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.locked())
        yield


def _config(
    algorithm: str, settings: Any, options: RunOptions, data: OfflineDataset, spec: EnvSpec | None
) -> dict[str, Any]:
    """What ``config.json`` records: everything that the run depends on."""
    own_file = algorithm.endswith(".py")
    return {
        "algorithm": Path(algorithm).stem if own_file else algorithm,
        "algorithm_file": str(Path(algorithm).resolve()) if own_file else None,
        "algorithm_sha256": sha256_file(algorithm) if own_file else None,
        "settings": dataclasses.asdict(settings),
        "preset": options.preset,
        "dataset": _absolute(options.dataset),
        "dataset_name": data.metadata.get("name") or "data",
        "dataset_sha256": data.sha256,
        "dataset_return_mean": float(data.episode_returns.mean()),
        "rows": data.metadata.get("rows_default", "exact") if options.rows == "auto" else options.rows,
        "holdout": options.holdout,
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
        "precision": options.precision,
        "compile": options.compile,
        "tensorboard": options.tensorboard,
        "wandb": options.wandb,
    }


def resume(
    directory: Path,
    *,
    dataset: OfflineDataset | None = None,
    allow_inexact: bool = False,
    workers: int | None = None,
    reporter_mode: str = "quiet",
) -> RunResult:
    """Go on with a run exactly where its last checkpoint left it; a finished run is returned as it is.

    The others of a stack go on with it.

    Args:
        directory: the run directory.
        dataset: the data, for a run that was started from data in memory.
        allow_inexact: go on although torch, chip, device or thread count differ from those recorded.
        workers: evaluation processes, if other than recorded (scores do not depend on it).
        reporter_mode: ``text``, ``json`` or ``quiet``.

    Raises:
        CheckpointError: damaged or foreign files, other data, or another machine without ``allow_inexact``.
    """
    results = resume_stack(
        directory,
        dataset=dataset,
        allow_inexact=allow_inexact,
        workers=workers,
        reporter_mode=reporter_mode,
    )
    return next(result for result in results if result.directory == directory)


def resume_stack(
    directory: Path,
    *,
    dataset: OfflineDataset | None = None,
    allow_inexact: bool = False,
    workers: int | None = None,
    reporter_mode: str = "quiet",
) -> list[RunResult]:
    """``resume`` with the results of all runs of the stack, which is one run where it was trained alone."""
    runs = RunDir(directory).stack()
    config = runs[0].config
    if all(run.finished for run in runs):
        return [finished_result(run) for run in runs]
    name, method = load_algorithm(config["algorithm_file"] or config["algorithm"])
    try:
        settings = settings_from_json(method.config, config["settings"])
        known = {key: config[key] for key in RunOptions.__dataclass_fields__ if key in config}
        known.pop("mix", None)
        RunOptions(**known)  # checks the numbers
    except ConfigError as error:
        raise CheckpointError(
            f"{directory} was edited or made by another version of {name}: {error}"
        ) from None
    resolve_device(config["device"])
    if dataset is None and config["dataset"] is None:
        raise ConfigError(
            f"{directory} was trained from data in memory; pass the same dataset to offrl.resume"
        )
    data = dataset if dataset is not None else load_dataset(config["dataset"])
    if data.sha256 != config["dataset_sha256"]:
        raise CheckpointError(
            f"the data of {directory} changed since it began (SHA-256 differs); restore them"
        )
    if not allow_inexact:
        require_exactness(runs[0])
    torch.set_num_threads(config["threads"])
    seed_globally(config["seed"])
    spec = _recorded_env(data, config)
    if workers is not None:
        config["workers"] = workers
    with _locked(runs):
        seeds = [run.config["seed"] for run in runs]
        learner, source = build(method, settings, data, spec, config, seeds)
        if allow_inexact and isinstance(source, OnlineSource):
            source.strict = False
        played = spec if method.acts else None
        session = Session(runs, learner, source, played, Reporter(reporter_mode, config["steps"]))
        if not session.restore():
            load_offline(learner, config)
        return session.go()


def _recorded_env(data: OfflineDataset, config: dict[str, Any]) -> EnvSpec | None:
    """The environment that a run was started with."""
    if not config["env_id"]:
        return None
    return dataclasses.replace(
        dataset_env(data, config["env_id"]) or EnvSpec(config["env_id"]),
        kwargs=config["env_kwargs"],
        flatten=tuple(config["env_flatten"]),
    )


def finished_result(run: RunDir) -> RunResult:
    """What a finished run left behind."""
    path = run.path / "final_returns.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as final:
            returns = np.asarray(final["returns"], dtype=np.float64)
            successes = final.get("successes")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and resume to make it again") from None
    return run_result(run, returns, successes, load_policy(run.path), already=True)


def require_exactness(run: RunDir) -> None:
    """Refuse a machine, a library or an algorithm file that would change the numbers (CheckpointError)."""
    config, recorded = run.config, run.recorded_versions()
    now = versions(config["device"], config["threads"])
    names = MUST_MATCH + (MUST_MATCH_IN_ENVIRONMENTS if config["env_id"] else ())
    changed = [f"{key}: {recorded.get(key)} -> {now[key]}" for key in names if recorded.get(key) != now[key]]
    if config["algorithm_file"] and sha256_file(config["algorithm_file"]) != config["algorithm_sha256"]:
        changed.append(f"{config['algorithm_file']} was edited")
    if changed:
        raise CheckpointError(
            f"resuming {run.path} here would not be exact ({'; '.join(changed)}); "
            "add --allow-inexact to go on anyway"
        )


def _absolute(uri: str | None) -> str | None:
    """A data URI that means the same from any folder."""
    return str(Path(uri).resolve()) if uri and Path(uri).exists() else uri
