"""From an environment's id to a finished run directory: starts online runs, and resumes them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from offrl.algos import load_online
from offrl.data.environments import EnvSpec
from offrl.data.write import check_target
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import env_spec, make_env
from offrl.online.checkpoint import restore_model
from offrl.online.options import ENVIRONMENTS, OnlineAlgorithm, OnlineOptions
from offrl.online.recording import Recording
from offrl.online.replayable import Replayable
from offrl.online.run_callback import IDENTITY, RunCallback, run_config
from offrl.online.vector import RunningNormalize, SerialEnvs
from offrl.training.checkpoint import load_checkpoint, require_own, set_rng_state
from offrl.training.options import resolve_device, settings_from_json
from offrl.training.progress import Reporter, spaced
from offrl.training.run_dir import RunDir, device_name
from offrl.training.runner import finished_result, require_exactness
from offrl.training.seeding import seed_globally
from offrl.training.session import RunResult, graceful_stop
from offrl.training.sinks import require_sinks


def start(
    algorithm: str, settings: Any, options: OnlineOptions, *, reporter: Reporter | None = None
) -> RunResult:
    """Train ``algorithm`` in ``options.env``, in a new run directory.

    Raises:
        ConfigError: the options or the environment do not fit.
        Stopped: a signal stopped it; a checkpoint was written.
    """
    method = load_online(algorithm)
    if options.env is None:
        raise ConfigError(f"{algorithm} learns in an environment: pass --env ID, e.g. InvertedPendulum-v5")
    threads = options.threads or min(os.cpu_count() or 1, 4)
    options = dataclasses.replace(options, device=resolve_device(options.device), threads=threads)
    reporter = reporter or Reporter("quiet", options.steps)
    spec = env_spec(str(options.env))
    if options.record:
        check_target(options.record, overwrite=False, option="--record")
    config = run_config(algorithm, dataclasses.asdict(settings), options, spec)
    require_sinks(config)
    seed_globally(options.seed)
    torch.set_num_threads(threads)
    model = build(method, settings, config)  # bad input fails before a folder is made
    run = RunDir.create(options.out, config)
    environments = f"{options.num_envs} environments" if options.num_envs > 1 else "one environment"
    reporter.note(
        f"{algorithm} in {spec.env_id}: {environments}, device {device_name(options.device)}, "
        f"{spaced(options.steps)} steps, run directory {run.path}"
    )
    random = getattr(settings, "learning_starts", 0)
    if random >= options.steps:
        reporter.note(
            f"no update will be made: learning_starts is {spaced(random)}, steps {spaced(options.steps)}"
        )
    return _learn(run, method, model, reporter, None)


def resume(
    directory: Path,
    *,
    allow_inexact: bool = False,
    workers: int | None = None,
    reporter_mode: str = "quiet",
) -> RunResult:
    """Go on with an online run from its last checkpoint; a finished run is returned as it is.

    Args:
        directory: of the run.
        allow_inexact: go on although machine or library versions differ from those recorded, or with new episodes where
            environments do not come to the same state.
        workers: processes that evaluate, if other than recorded.
        reporter_mode: text, json or quiet.

    Raises:
        CheckpointError: damaged or foreign files; another machine or another state without ``allow_inexact``.
        ConfigError: the model was built by somebody else, see ``RunCallback.new``.
    """
    run = RunDir(directory)
    c = run.config
    if run.finished:
        return finished_result(run)
    if c.get("own_model"):
        raise ConfigError(
            f"{directory} is of a model built in Python: go on there, from the model's own file"
        )
    method = load_online(c["algorithm"])
    if not allow_inexact:
        require_exactness(run)
    try:
        settings = settings_from_json(method.config, c["settings"])
    except ConfigError as error:
        raise CheckpointError(f"{directory} was edited or made by another version: {error}") from None
    resolve_device(c["device"])
    seed_globally(c["seed"])
    torch.set_num_threads(c["threads"] or 4)  # the first versions recorded 0, and took 4
    reporter = Reporter(reporter_mode, c["steps"])
    state, note = load_checkpoint(directory, c["device"])
    if state is None:
        reporter.note("no checkpoint yet: starting over")
    else:
        kept = [key for key in IDENTITY if key in state]  # the first versions kept the algorithm alone
        require_own(directory, state, {key: c[key] for key in kept})
        reporter.note(f"resuming {directory} at step {state['step']}" + (f" ({note})" if note else ""))
    model = build(method, settings, c)
    return _learn(run, method, model, reporter, state, workers=workers, strict=not allow_inexact)


def build(method: OnlineAlgorithm, settings: Any, config: dict[str, Any]) -> BaseAlgorithm:
    """The model in its environments, as the run's ``config`` says."""
    spec = EnvSpec(config["env_id"], kwargs=config["env_kwargs"], flatten=tuple(config["env_flatten"]))
    options = OnlineOptions(**{name: config[name] for name in ENVIRONMENTS})
    record = config.get("record") is not None
    env = vector_env(spec, options, getattr(settings, "discount", 0.99), record=record)
    return method.model(settings, env, config["seed"], config["device"])


def vector_env(
    env: EnvSpec | str, options: OnlineOptions, discount: float, *, record: bool = False
) -> VecEnv:
    """``options.num_envs`` monitored environments in this process, under VecNormalize where the options ask for it.

    Raises:
        ConfigError: their episodes might never end, so that they cannot be evaluated in.
    """
    monitored = [Replayable(Monitor(make_env(env))) for _ in range(options.num_envs)]
    step_limit(monitored[0], None)
    made: VecEnv = SerialEnvs([lambda one=one: one for one in monitored])  # type: ignore[misc]
    made = Recording(made) if record else made
    observations, rewards = options.normalize_observations, options.normalize_rewards
    if observations or rewards:
        made = RunningNormalize(made, norm_obs=observations, norm_reward=rewards, gamma=discount)
    return made


def _learn(
    run: RunDir,
    method: OnlineAlgorithm,
    model: BaseAlgorithm,
    reporter: Reporter,
    state: dict[str, Any] | None,
    *,
    workers: int | None = None,
    strict: bool = True,
) -> RunResult:
    """Train to the last step, from a checkpoint or from the start."""
    with run.locked(), graceful_stop(lambda: None) as asked:
        callback = RunCallback(run, method.metrics, reporter=reporter, asked=asked, workers=workers)
        try:
            if state is None:
                for table in callback.record.tables:
                    table.clear()
                callback.record.sinks.resume(-1)
            elif not _restore(model, callback, state, strict):
                reporter.note(
                    "the environments do not come to the same state and start new episodes: the run agrees with an "
                    "uninterrupted one in distribution only"
                )
            left = run.config["steps"] - model.num_timesteps
            first = state is None
            model.set_logger(Logger(None, []))  # its own would leave an empty folder in the temporary one
            model.learn(max(left, 0), callback=callback, log_interval=1, reset_num_timesteps=first)
        except KeyboardInterrupt:  # a second one
            message = f"stopped at once; go on from the last checkpoint with: offrl resume {run.path}"
            raise Stopped(message, 130) from None
        except OSError as error:  # a full disk: what is on it is whole
            error.add_note(f"go on with: offrl resume {run.path}")
            raise
        finally:
            callback.close()
            if model.env is not None:
                model.env.close()
    assert callback.result is not None
    return callback.result


def _restore(model: BaseAlgorithm, callback: RunCallback, state: dict[str, Any], strict: bool) -> bool:
    """Whether the run goes on exactly."""
    path = callback.run.path
    try:
        same = restore_model(model, state["model"], strict=strict)
        callback.restore(state)
        set_rng_state(state["rng"])
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint in {path} does not fit this version: {type(error).__name__}: {error}"
        ) from None
    return same
