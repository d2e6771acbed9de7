"""The Python door: the same things as the command line, as functions."""

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from offrl.algos import ONLINE, load_algorithm, load_online, online_runner
from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.environments import env_spec
from offrl.evaluation.rollout import EvaluationResult
from offrl.evaluation.rollout import evaluate as _evaluate
from offrl.evaluation.sources import load_source
from offrl.export.policy import export_policy
from offrl.nn.policy import Policy, load_policy
from offrl.online.options import ROWS
from offrl.sweeps.options import SweepOptions
from offrl.sweeps.run import SweepResult, run_sweep
from offrl.sweeps.space import parse_space
from offrl.training.fine_tuning import fine_tune, inherited
from offrl.training.many import train_seeds
from offrl.training.options import SeedMode, SeedOptions, fitted
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir
from offrl.training.runner import RunOptions, RunResult, make_settings, start
from offrl.training.runner import resume as _resume

__all__ = ["evaluate", "export_policy", "load_dataset", "load_policy", "resume", "sweep", "train"]


@overload
def train(
    algorithm: str | Path,
    dataset: str | Path | OfflineDataset | None = None,
    *,
    progress: bool = True,
    preset: str | None = None,
    seeds: None = None,
    seed_mode: SeedMode = "auto",
    from_run: str | Path | None = None,
    **given: Any,
) -> RunResult: ...


@overload
def train(
    algorithm: str | Path,
    dataset: str | Path | OfflineDataset | None = None,
    *,
    progress: bool = True,
    preset: str | None = None,
    seeds: Sequence[int],
    seed_mode: SeedMode = "auto",
    from_run: None = None,
    **given: Any,
) -> list[RunResult]: ...


def train(
    algorithm: str | Path,
    dataset: str | Path | OfflineDataset | None = None,
    *,
    progress: bool = True,
    preset: str | None = None,
    seeds: Sequence[int] | None = None,
    seed_mode: SeedMode = "auto",
    from_run: str | Path | None = None,
    **given: Any,
) -> RunResult | list[RunResult]:
    """Train an algorithm on a dataset in a new run directory, or go on online from a finished run.

    Methods that learn in an environment take no dataset: ``offrl.train("ppo", env="Pendulum-v1", steps=100_000)``.

    Args:
        algorithm: a name of ``offrl algos`` or the path of your own file.
        dataset: a data URI (``builtin:NAME``, ``d4rl:NAME``, ``minari:ID``, ``ogbench:NAME``, a
            file) or an ``OfflineDataset``; with ``from_run`` by default that run's.
        progress: print progress.
        preset: start from the settings tuned for this dataset name, or environment.
        seeds: train these seeds at once, each in a run directory of its own, instead of ``seed``; in an environment
            one after the other.
        seed_mode: ``stacked`` (one process), ``processes`` (one a seed) or ``auto`` (what is faster).
        from_run: a finished run of this algorithm, to go on from online: settings are its own where none are given.
        **given: run options (``steps``, ``seed``, ``env``, ``out``, ``device``, ... see ``RunOptions``; in an
            environment ``OnlineOptions``, also with ``num_envs``, ...) and the algorithm's settings (``alpha``,
            ``lr``, ...), by the names of the command line; with ``from_run`` also those of going on online
            (``warmup_steps``, ...).

    Returns:
        The run directory, the returns and scores of the last policy, and the policy itself; a list of these for
        ``seeds``.

    Raises:
        ConfigError: an unknown option or setting, or an impossible value.
        DatasetError: the data are malformed or unknown.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    algorithm = str(algorithm)
    if algorithm in ONLINE:
        if dataset is not None or from_run is not None or seed_mode != "auto":
            raise ConfigError(
                f"{algorithm} learns in an environment: pass env= instead of data, runs and seed_mode"
            )
        runs = _online(algorithm, given, preset, seeds, progress)
        return runs[0] if seeds is None else runs
    run_fields = RunOptions.__dataclass_fields__
    options = fitted({key: given.pop(key) for key in list(given) if key in run_fields}, RunOptions)
    if "dataset" in options:
        raise ConfigError("pass the dataset as the second argument")
    if "out" in options:
        options["out"] = Path(options["out"])
    if not isinstance(dataset, str | Path | OfflineDataset | None):
        raise ConfigError(
            f"the dataset is a {type(dataset).__name__}: pass a URI, a path, or what OfflineDataset.from_arrays makes"
        )
    in_memory = dataset if isinstance(dataset, OfflineDataset) else None
    if isinstance(dataset, str | Path):
        options["dataset"] = str(dataset)
    if from_run is not None:
        if preset is not None or seeds is not None:
            raise ConfigError("from_run takes settings and seed of its run: leave preset and seeds out")
        return _from_run(algorithm, Path(from_run), given, options, in_memory, progress)
    settings = make_settings(algorithm, given, preset)
    run_options = RunOptions(preset=preset, **options)
    reporter = Reporter("text" if progress else "quiet", run_options.steps)
    if seeds is None:
        return start(algorithm, settings, run_options, dataset=in_memory, reporter=reporter)
    many = SeedOptions(seeds=_seeds(seeds), seed_mode=seed_mode)
    return train_seeds(algorithm, settings, run_options, many, dataset=in_memory, reporter=reporter)


def _seeds(given: Sequence[int]) -> tuple[int, ...]:
    """Seeds as the plain numbers that files keep (ConfigError)."""
    try:
        seeds = tuple(map(operator.index, given))
    except TypeError:
        raise ConfigError(f"seeds must be a list of whole numbers, got {given!r}") from None
    if not seeds:
        raise ConfigError("seeds is empty: name at least one, or leave it out")
    return seeds


def _several(name: str, given: Any) -> tuple[Any, ...]:
    """What a list of several holds; a string alone would be taken for its letters (ConfigError)."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"{name} must be a list, got {given!r}")
    return tuple(given)


def _online(
    algorithm: str, given: dict[str, Any], preset: str | None, seeds: Sequence[int] | None, progress: bool
) -> list[RunResult]:
    """``train`` of a method that learns in an environment."""
    from offrl.online import runner  # on stable-baselines3
    from offrl.online.options import choose

    if "out" in given:
        given["out"] = Path(given["out"])
    options, settings = choose(algorithm, load_online(algorithm), given, preset)
    mode = "text" if progress else "quiet"
    each = (options.seed,) if seeds is None else SeedOptions(seeds=_seeds(seeds)).seeds
    runs = [dataclasses.replace(options, seed=seed) for seed in each]
    return [runner.start(algorithm, settings, run, reporter=Reporter(mode, run.steps)) for run in runs]


def _from_run(
    algorithm: str,
    run: Path,
    given: dict[str, Any],
    options: dict[str, Any],
    dataset: OfflineDataset | None,
    progress: bool,
) -> RunResult:
    """``train`` with ``from_run``."""
    run_options, settings = inherited([run], algorithm)
    online_class: Any = load_algorithm(algorithm)[1].online
    own = {k: given.pop(k) for k in list(given) if k in online_class.__dataclass_fields__}
    online = online_class(**fitted(own, online_class))
    changed = make_settings(algorithm, dataclasses.asdict(settings) | given)
    run_options = dataclasses.replace(run_options, **options)
    reporter = Reporter("text" if progress else "quiet", run_options.steps)
    return fine_tune(algorithm, changed, run_options, [run], online, dataset=dataset, reporter=reporter)[0]


def resume(
    run: str | Path,
    *,
    dataset: OfflineDataset | None = None,
    progress: bool = True,
    allow_inexact: bool = False,
) -> RunResult:
    """Go on with a run exactly where it stopped, and with those that were trained in one stack with it.

    Args:
        run: the run directory.
        dataset: the data, if the run was started from data in memory.
        progress: print progress.
        allow_inexact: go on although machine or library versions differ from those recorded, or with new episodes where
            an environment does not come to the same state.

    Raises:
        CheckpointError: damaged or foreign files, other data, another machine without ``allow_inexact``, or a run of a
            language model or an inventory policy.
        FileNotFoundError: no run directory.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    mode = "text" if progress else "quiet"
    config = RunDir(Path(run)).config
    for kind, module in (("llm", "offrl.llm.session"), ("inventory", "offrl.training.inventory")):
        if kind in config:
            raise CheckpointError(f"{run} is a run of {config['algorithm']}: go on with {module}.resume")
    if config["rows"] == ROWS:
        result: RunResult = online_runner().resume(Path(run), allow_inexact=allow_inexact, reporter_mode=mode)
        return result
    return _resume(Path(run), dataset=dataset, allow_inexact=allow_inexact, reporter_mode=mode)


def sweep(
    algos: Sequence[str | Path],
    datasets: Sequence[str | Path] = (),
    *,
    envs: Sequence[str] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    space: str | Path | dict[str, Any] | None = None,
    progress: bool = True,
    **given: Any,
) -> SweepResult:
    """``offrl sweep``: algorithms x datasets x settings x seeds in processes, resumable, in one table.

    Args:
        algos: names or paths of your own files.
        datasets: data URIs.
        envs: Gymnasium ids, for the methods that learn in an environment.
        grid: setting -> values; every combination is a configuration.
        space: ranges that ``random=N`` settings are drawn from: a TOML file, or what it would hold as nested dicts.
        progress: print progress.
        **given: what else the command takes, by its names: ``seeds``, ``steps``, ``select``, ``budget``, ``out``, ...

    Returns:
        Rows of the finished runs and of the chosen configurations; both tables are also in the folder.

    Raises:
        ConfigError: an unknown option or an impossible value.
        ChildProcessError: some runs failed, the others are finished.
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    if unknown := sorted(set(given) - set(SweepOptions.__dataclass_fields__)):
        raise ConfigError(f"sweep has no option {unknown[0]!r}; 'offrl sweep --help' shows all")
    given = fitted(given, SweepOptions)
    if "seeds" in given:
        given["seeds"] = _seeds(given["seeds"])
    if "out" in given:
        given["out"] = Path(given["out"])
    ranges = parse_space(space) if isinstance(space, dict) else None
    file = Path("in memory") if ranges else Path(space) if isinstance(space, str | Path) else None
    points = {name: _several(f"grid[{name!r}]", listed) for name, listed in (grid or {}).items()}
    values = tuple(f"{name}={','.join(map(str, listed))}" for name, listed in points.items())
    options = SweepOptions(
        algos=tuple(map(str, _several("algos", algos))),
        datasets=tuple(map(str, _several("datasets", datasets))),
        envs=_several("envs", envs),
        grid=values,
        space=file,
        **given,
    )
    reporter = Reporter("text" if progress and not options.quiet else "quiet", options.steps)
    return run_sweep(options, reporter.note, ranges)


def evaluate(
    policy: str | Path | Policy,
    env: str,
    *,
    episodes: int = 10,
    seed: int = 0,
    workers: int = 1,
    deterministic: bool = True,
) -> EvaluationResult:
    """Roll out a policy in a Gymnasium environment.

    Args:
        policy: a ``Policy``, or a SOURCE: ``run:DIR``, a directory, ``sb3:FILE.zip``, ``py:MODULE:FACTORY`` or
            ``random``.
        env: Gymnasium id.
        episodes: episodes to run.
        seed: seed of the environments and of action noise.
        workers: processes; the result does not depend on it.
        deterministic: take the mean action.

    Returns:
        Returns (episodes,) and lengths (episodes,).
    """
    spec = env_spec(env)
    actor = policy if isinstance(policy, Policy) else load_source(str(policy), spec)
    return _evaluate(actor, spec, episodes=episodes, seed=seed, workers=workers, deterministic=deterministic)
