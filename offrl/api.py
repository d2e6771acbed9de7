"""The Python door: the same things as the command line, as functions."""

from pathlib import Path
from typing import Any

from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.errors import ConfigError
from offrl.evaluation.environments import env_spec
from offrl.evaluation.rollout import EvaluationResult
from offrl.evaluation.rollout import evaluate as _evaluate
from offrl.evaluation.sources import load_source
from offrl.nn.policy import Policy, load_policy
from offrl.training.progress import Reporter
from offrl.training.runner import RunOptions, RunResult, make_settings, start
from offrl.training.runner import resume as _resume

__all__ = ["evaluate", "load_dataset", "load_policy", "resume", "train"]


def train(
    algorithm: str,
    dataset: str | OfflineDataset,
    *,
    progress: bool = True,
    preset: str | None = None,
    **given: Any,
) -> RunResult:
    """Train an algorithm on a dataset in a new run directory.

    Args:
        algorithm: a name of ``offrl algos`` or the path of your own file.
        dataset: a data URI (``builtin:NAME``, ``d4rl:NAME``, ``minari:ID``, ``ogbench:NAME``, a
            file) or an ``OfflineDataset``.
        progress: print progress.
        preset: start from the settings tuned for this dataset name.
        **given: run options (``steps``, ``seed``, ``env``, ``out``, ``device``, ... see ``RunOptions``) and the
            algorithm's settings (``alpha``, ``lr``, ...), by the names of the command line.

    Returns:
        The run directory, the returns and scores of the last policy, and the policy itself.

    Raises:
        ConfigError: an unknown option or setting, or an impossible value.
        DatasetError: the data are malformed or unknown.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    run_fields = RunOptions.__dataclass_fields__
    options = {key: given.pop(key) for key in list(given) if key in run_fields}
    if "dataset" in options:
        raise ConfigError("pass the dataset as the second argument")
    if "out" in options:
        options["out"] = Path(options["out"])
    settings = make_settings(algorithm, given, preset)
    in_memory = dataset if isinstance(dataset, OfflineDataset) else None
    run_options = RunOptions(dataset=None if in_memory else str(dataset), preset=preset, **options)
    reporter = Reporter("text" if progress else "quiet", run_options.steps)
    return start(algorithm, settings, run_options, dataset=in_memory, reporter=reporter)


def resume(
    run: str | Path,
    *,
    dataset: OfflineDataset | None = None,
    progress: bool = True,
    allow_inexact: bool = False,
) -> RunResult:
    """Go on with a run exactly where it stopped; see ``offrl resume``.

    Args:
        run: the run directory.
        dataset: the data, if the run was started from data in memory.
        progress: print progress.
        allow_inexact: go on although machine or library versions differ from those recorded.
    """
    mode = "text" if progress else "quiet"
    return _resume(Path(run), dataset=dataset, allow_inexact=allow_inexact, reporter_mode=mode)


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
