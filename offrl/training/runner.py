"""From a dataset's name to a finished run directory: starts runs, and resumes them exactly."""

import dataclasses
import os
import zipfile
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
from offrl.training.build import build, dataset_env
from offrl.training.options import (
    RunOptions,
    make_settings,
    require_compiler,
    resolve_device,
    settings_from_json,
)
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
    name, method = load_algorithm(algorithm)
    reporter = reporter or Reporter("quiet", options.steps)
    data = dataset if dataset is not None else load_dataset(options.dataset) if options.dataset else None
    if data is None:
        raise ConfigError(f"{name} learns from data: pass --dataset ('offrl data list' shows what there is)")
    spec = dataset_env(data, options.env)
    config = _config(algorithm, settings, options, data, spec)
    if dataset is not None:
        config["dataset"] = None  # in memory: it must be given again to resume
    Precision(options.precision, config["device"])  # refuses what the device lacks
    if options.compile:
        require_compiler(config["device"])
    require_sinks(config)
    torch.set_num_threads(config["threads"])
    seed_globally(options.seed)
    learner, source = build(method, settings, data, spec, config)  # bad input fails before a folder is made
    run = RunDir.create(options.out, config)
    reporter.note(f"{name} on {config['dataset_name']}: {data.describe()}")
    reporter.note(
        f"{spaced(len(source))} rows ({config['rows']}), device {device_name(config['device'])}, "
        f"{config['threads']} thread{'s' * (config['threads'] > 1)}, {spaced(options.steps)} steps, "
        f"run directory {run.path}"
    )
    if spec is None:
        reporter.note("the data name no environment: training without evaluation (pass --env ID for scores)")
    with run.locked():
        return Session(run, learner, source, spec, reporter).go()


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
    if run.finished:
        return _finished(run)
    name, method = load_algorithm(config["algorithm_file"] or config["algorithm"])
    try:
        settings = settings_from_json(method.config, config["settings"])
        known = {key: config[key] for key in RunOptions.__dataclass_fields__ if key in config}
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
        _require_exactness(run)
    torch.set_num_threads(config["threads"])
    seed_globally(config["seed"])
    spec = None
    if config["env_id"]:
        spec = dataclasses.replace(
            dataset_env(data, config["env_id"]) or EnvSpec(config["env_id"]),
            kwargs=config["env_kwargs"],
            flatten=tuple(config["env_flatten"]),
        )
    if workers is not None:
        config["workers"] = workers
    with run.locked():
        learner, source = build(method, settings, data, spec, config)
        session = Session(run, learner, source, spec, Reporter(reporter_mode, config["steps"]))
        session.restore()
        return session.go()


def _finished(run: RunDir) -> RunResult:
    path = run.path / "final_returns.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as final:
            returns = np.asarray(final["returns"], dtype=np.float64)
            successes = final.get("successes")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and resume to make it again") from None
    return run_result(run, returns, successes, load_policy(run.path), already=True)


def _require_exactness(run: RunDir) -> None:
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
