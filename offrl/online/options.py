"""How to run a method that learns in an environment, and what its file declares. Loads no stable-baselines3."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offrl.errors import ConfigError
from offrl.online.zoo import is_zoo, zoo_values
from offrl.training.options import fitted, require_known

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

ROWS = "online"  # what config.json says in place of a rule for the rows of a dataset
ENVIRONMENTS = (
    "num_envs",
    "normalize_observations",
    "normalize_rewards",
)  # options that change what is learned
Model = Callable[[Any, "VecEnv", int, str], "BaseAlgorithm"]  # settings, environments, seed, device


NOT_COMPILED = "learns in an environment and has no --compile (benchmarks/pmoe_speed.md: what it would save)"
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}  # as presets for MuJoCo have it


def model_of(algorithm: "Callable[..., BaseAlgorithm]") -> Model:
    """What builds one of our classes from its settings, for ``OnlineAlgorithm``."""

    def build(settings: Any, env: "VecEnv", seed: int, device: str) -> "BaseAlgorithm":
        return algorithm("MlpPolicy", env, seed=seed, device=device, **dataclasses.asdict(settings))

    return build


@dataclass(frozen=True)
class OnlineAlgorithm:
    """What the file of a method that learns in an environment declares as ``ALGORITHM``."""

    config: type  # frozen dataclass of the settings: they become the command's options
    model: Model
    metrics: tuple[str, ...]  # last parts of the names that it logs, e.g. 'loss' of 'train/loss'
    presets: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # environment or its prefix -> options


@dataclass(frozen=True, kw_only=True)
class OnlineOptions:
    """How to run, whatever the algorithm."""

    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Gymnasium id to learn in, e.g. InvertedPendulum-v5."""
    steps: int = 1_000_000
    """Environment steps; the rollout under way at the end is finished (methods on whole episodes: these)."""
    seed: int = 0
    """Seed of every random stream."""
    out: Path = Path("runs")
    """Folder under which the run directory is made."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one, which small networks do not repay."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Start from the options tuned for this environment, or from FILE.yml (FILE.yml:SECTION) in rl-zoo's layout; never
    guessed."""
    num_envs: int = 1
    """Environments side by side."""
    normalize_observations: bool = False
    """Normalize observations by their running mean and standard deviation (SB3's VecNormalize)."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the return; evaluations are not."""
    record: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = None
    """Also keep every step of training, as FILE.hdf5 or minari:ID, e.g. to learn offline from."""
    log_every: int = 1_000
    """Environment steps between rows of metrics.csv, at the least."""
    eval_every: int = 10_000
    """Environment steps between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    final_episodes: int = 0
    """Episodes of the evaluation after the last update; 0: as eval_episodes."""
    checkpoint_every: int = 50_000
    """Environment steps between checkpoints, at the least."""
    workers: int = 1
    """Processes that evaluate; the scores do not depend on it."""
    threads: int = 1
    """CPU threads; 0: all cores, at most 4."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run directory."""
    wandb: bool = False
    """Also log to Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs", "log_every", "checkpoint_every", "eval_episodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "eval_every", "final_episodes", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


def apply_preset(
    algorithm: OnlineAlgorithm, name: str, options: OnlineOptions, settings: Any
) -> tuple[OnlineOptions, Any]:
    """Options and settings with those of preset ``name``: the longest key that ``name`` starts with, or FILE.yml.

    Raises:
        ConfigError: no preset fits, or something in the file that cannot be followed.
    """
    if is_zoo(name):
        names = {f.name for kind in (OnlineOptions, algorithm.config) for f in dataclasses.fields(kind)}
        texts = {f.name for f in dataclasses.fields(algorithm.config) if isinstance(f.default, str)}
        values = zoo_values(name, options.env, names, texts)
        try:
            values = fitted(values, algorithm.config, OnlineOptions)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        run, own = split(values)
        return dataclasses.replace(options, **run, preset=name), dataclasses.replace(settings, **own)
    fitting = [key for key in algorithm.presets if name.startswith(key)]
    if not fitting:
        known = ", ".join(sorted(algorithm.presets)) or "none"
        raise ConfigError(f"no preset for {name!r}; presets (environments or their prefixes): {known}")
    run, own = split(algorithm.presets[max(fitting, key=len)])
    return dataclasses.replace(options, **run, preset=name), dataclasses.replace(settings, **own)


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of ``values`` that are options, and the others, which are an algorithm's settings."""
    names = {f.name for f in dataclasses.fields(OnlineOptions)}
    run = {key: value for key, value in values.items() if key in names}
    return run, {key: value for key, value in values.items() if key not in names}


def choose(
    name: str, algorithm: OnlineAlgorithm, given: Mapping[str, Any], preset: str | None = None
) -> tuple[OnlineOptions, Any]:
    """Options and settings from a preset and ``given`` values of either, which win.

    Raises:
        ConfigError: an unknown name, with the nearest one named, or an impossible value; no preset fits.
    """
    if given.get("compile"):
        raise ConfigError(f"{name} {NOT_COMPILED}")
    require_known(name, algorithm.config, split(given)[1], OnlineOptions)
    run, own = split(fitted(given, algorithm.config, OnlineOptions))
    options, settings = OnlineOptions(env=run.get("env")), algorithm.config()
    if preset:
        options, settings = apply_preset(algorithm, preset, options, settings)
    return dataclasses.replace(options, **run), dataclasses.replace(settings, **own)
