"""From offline runs to runs that go on online: options, refusals, one run each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offrl.algos import load_algorithm
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.training.many import resume_runs
from offrl.training.offline import Origin
from offrl.training.options import RunOptions, SeedOptions, settings_from_json
from offrl.training.problem import OnlineSettings
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir
from offrl.training.runner import prepare, start_stack
from offrl.training.session import RunResult

OWN = {
    "steps",
    "out",
    "env",
    "preset",
    "tensorboard",
    "wandb",
    "mix",
}  # options that are not the offline run's
DIFFERENT = (
    "settings",
    "dataset_sha256",
    "rows",
    "holdout",
    "env_id",
)  # in which runs of one call must agree


def inherited(runs: Sequence[Path], algorithm: str) -> tuple[RunOptions, Any]:
    """Options and settings from which fine-tuning ``runs`` starts: theirs, and what the method changes online.

    Raises:
        ConfigError: they are of another algorithm, unfinished, unlike each other, or it cannot go on online.
        CheckpointError, FileNotFoundError: they are damaged or no runs.
    """
    name, method = load_algorithm(algorithm)
    if isinstance(method.online, str):
        raise ConfigError(f"{name} cannot go on online: {method.online}")
    found = [RunDir(path) for path in runs]
    for run in found:
        refuse(run, name)
        for key in DIFFERENT:
            if run.config.get(key) != found[0].config.get(key):
                raise ConfigError(
                    f"{run.path} and {found[0].path} differ in {key}: fine-tune them one by one"
                )
    if len({run.config["seed"] for run in found}) < len(found):
        raise ConfigError(
            "two of the runs have the same seed: they are not independent; fine-tune them one by one"
        )
    config = found[0].config
    fields = {f.name for f in dataclasses.fields(RunOptions)} - OWN
    options = {key: config[key] for key in fields if key in config} | {"env": config["env_id"]}
    settings = config["settings"] | dict(method.online_overrides)
    return settings_from_json(RunOptions, options), settings_from_json(method.config, settings)


def refuse(run: RunDir, name: str) -> None:
    """Raise ConfigError for a run that method ``name`` cannot go on from."""
    config = run.config
    if config["algorithm"] != name:
        raise ConfigError(f"{run.path} is a run of {config['algorithm']}, not of {name}")
    if "fine_tuned_from" in config:
        raise ConfigError(
            f"{run.path} is online already: its played steps would be lost; begin from its offline run"
        )
    if not run.finished:
        raise ConfigError(f"{run.path} is not finished; first: offrl resume {run.path}")


def fine_tune(
    algorithm: str,
    settings: Any,
    options: RunOptions,
    runs: Sequence[Path],
    online: OnlineSettings,
    *,
    many: SeedOptions | None = None,
    dataset: OfflineDataset | None = None,
    reporter: Reporter | None = None,
) -> list[RunResult]:
    """Go on online from each of ``runs``, each in a run directory of its own and with its own seed.

    Args:
        algorithm: that of the runs.
        settings: as ``inherited`` gives them, or changed where the networks allow it.
        options: likewise; ``steps`` are updates, and steps of the environment after the warm-up.
        runs: finished offline runs that differ in the seed alone.
        online: the method's settings online.
        many: refused if it names seeds.
        dataset: the data, for runs that were trained from data in memory.
        reporter: where progress goes.

    Raises:
        ConfigError, CheckpointError, FileNotFoundError: as ``inherited``, or settings, data or environment do not fit.
        Stopped: a signal stopped it; checkpoints were written.
    """
    inherited(runs, algorithm)  # refuses what is wrong with the runs
    origins = [Origin(RunDir(path), online) for path in runs]
    if many is not None and many.seeds:
        raise ConfigError(
            "a run keeps the seed of its offline run: instead of --seeds name several runs after --from"
        )
    if options.seed != origins[0].run.config["seed"]:
        raise ConfigError(
            f"seed is {options.seed}, but {runs[0]} has seed {origins[0].run.config['seed']}: leave it out"
        )
    if options.dataset is None and dataset is None:
        raise ConfigError(f"{runs[0]} was trained from data in memory; pass the same dataset to offrl.train")
    reporter = reporter or Reporter("quiet", options.steps)
    per_run = [dataclasses.replace(options, seed=origin.run.config["seed"]) for origin in origins]
    if len(origins) == 1 or dataset is not None:
        results = []
        for origin, own in zip(origins, per_run, strict=True):
            seeds = (own.seed,)
            results += start_stack(
                algorithm, settings, own, seeds, dataset=dataset, reporter=reporter, origin=origin
            )
        return results
    configs = [
        prepare(algorithm, settings, own, (own.seed,), origin=origin).configs[0]
        for origin, own in zip(origins, per_run, strict=True)
    ]
    made = [RunDir.create(options.out, config).path for config in configs]
    reporter.note(f"run directories {', '.join(map(str, made))}")
    return resume_runs(made, reporter_mode=reporter.mode)
