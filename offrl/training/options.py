"""How to run (the options of every algorithm) and with which settings (those of one), checked."""

import dataclasses
import difflib
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
import tyro

from offrl.algos import load_algorithm, preset
from offrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, whatever the algorithm."""

    dataset: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Data: builtin:NAME, d4rl:NAME, minari:ID, ogbench:NAME, or a file (.hdf5 .npz .csv .parquet)."""
    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
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
    holdout: float = 0.0
    """Share of the episodes that is not trained on, for the held-out errors of 'offrl diagnose'; 0 trains on all."""
    mix: Annotated[str | None, tyro.conf.arg(metavar="URI:SHARE")] = None
    """Take this share of every batch from other data, or from draws of a run of policy_guided_diffusion."""
    refresh: int = 0
    """Updates after which the draws are made anew, guided by the policy of that moment; 0 keeps the first ones."""
    synthetic_transitions: int = 100_000
    """Transitions drawn each time."""
    guidance: float = 1.0
    """Coefficient of the guidance, normalized, in its strength for 256 sampling steps; the first draws have none."""
    sampling_steps: int = 64
    """Noise levels of the sampler."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
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
    threads: int = 1
    """CPU threads; 0: all cores, at most 4. More helps an idle machine and costs much on a busy one."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: hidden layers and products in bfloat16, parameters in float32; for chips that have it."""
    compile: bool = False
    """Compile the gradient computation (a CPU needs a C++ compiler; on a GPU CUDA graphs are captured)."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run directory."""
    wandb: bool = False
    """Also log to Weights & Biases."""

    def __post_init__(self) -> None:
        if self.refresh < 0 or self.synthetic_transitions < 1 or self.sampling_steps < 2:
            raise ConfigError(
                "refresh must be 0 or more, synthetic_transitions 1 or more, sampling_steps 2 or more, got "
                f"{self.refresh}, {self.synthetic_transitions}, {self.sampling_steps}"
            )
        if not math.isfinite(self.guidance):
            raise ConfigError(f"guidance must be a finite number, got {self.guidance}")
        drawn = ("synthetic_transitions", "guidance", "sampling_steps")
        if self.mix is None and any(getattr(self, name) != getattr(RunOptions, name) for name in drawn):
            raise ConfigError(f"{', '.join(drawn)} say how rows are drawn: they need --mix RUN:SHARE")
        for name in ("steps", "log_every", "checkpoint_every", "eval_episodes", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "eval_every", "final_episodes", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 <= self.holdout < 1.0:
            raise ConfigError(f"holdout must be in [0, 1), got {self.holdout}: it is a share of the episodes")


SeedMode = Literal["auto", "stacked", "processes"]


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Several seeds at once."""

    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="S ...")] = ()
    """Train these seeds, each a run of its own, instead of --seed."""
    seed_mode: SeedMode = "auto"
    """stacked: together in one process; processes: one a seed, as many at once as there are cores; auto: what is
    faster, and it is printed."""

    def __post_init__(self) -> None:
        check_word(SeedOptions, "seed_mode", self.seed_mode)
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different and 0 or more, got {' '.join(map(str, self.seeds))}")


def make_settings(algorithm: str, given: dict[str, Any], preset_name: str | None = None) -> Any:
    """The algorithm's config from its preset and ``given`` values (which win).

    Raises:
        ConfigError: an unknown setting, with the nearest one named, or an impossible value.
    """
    name, method = load_algorithm(algorithm)
    require_known(name, method.config, given, RunOptions)
    base = preset(method, preset_name) if preset_name else {}
    return method.config(**fitted(base | given, method.config))


def fitted(values: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """``values`` with the kind of each default of these classes: 1 becomes 1.0 where it is one, 3.0 a 3 for a count.

    Raises:
        ConfigError: a fraction for a count, something else for a number or a switch, or none of a setting's words.
    """
    for kind in kinds:
        for name, value in values.items():
            check_word(kind, name, value)
    defaults = {f.name: f.default for kind in kinds for f in dataclasses.fields(kind)}
    return {name: _fit(name, value, defaults.get(name)) for name, value in values.items()}


def _fit(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ConfigError(f"{name}: {value!r} must be true or false")
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}: {value!r} must be a number")
    if isinstance(default, float):
        return float(value)
    if isinstance(value, Integral):
        return int(value)
    if not float(value).is_integer():
        raise ConfigError(f"{name}: {value!r} must be a whole number")
    return int(float(value))


def require_known(algorithm: str, config: type, given: Iterable[str], options: type) -> None:
    """Refuse a name that is no setting in ``config``; the nearest one, also of ``options``, is named (ConfigError)."""
    known = [f.name for f in dataclasses.fields(config)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(
                key, [*known, *(f.name for f in dataclasses.fields(options))], n=1
            )
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
            raise ConfigError(f"{algorithm} has no setting {key!r}{hint}")


def settings_from_json(config_class: type, values: dict[str, Any]) -> Any:
    """The settings recorded in a ``config.json``.

    Raises:
        ConfigError: an unknown setting, or a value of another type than the setting's default.
    """
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    settings = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"there is no setting {name!r}; it has {', '.join(fields)}")
        default = fields[name]
        check_word(config_class, name, value)
        settings[name] = value = tuple(value) if isinstance(value, list) else value
        if value is None:
            continue
        if default is None:
            _check_optional(config_class, name, value)
            continue
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(default, bool | int | float | str | tuple):
            continue  # a default that tells no kind
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
            raise ConfigError(f"{name} is {value!r}, it must be of the kind of its default {default!r}")
    return config_class(**settings)


def check_word(config_class: type, name: str, value: Any) -> None:
    """Refuse a value that is not one of the words which the annotation of its field lists (ConfigError)."""
    try:
        hint = get_type_hints(config_class).get(name)
    except NameError:  # of a class that was made inside a function
        return
    words = get_args(hint) if get_origin(hint) is Literal else ()
    if words and value not in words:
        raise ConfigError(f"{name} must be {' or '.join(map(str, words))}, got {value!r}")


def _check_optional(config_class: type, name: str, value: Any) -> None:
    """Refuse a value of another type than the annotation ``T | None`` of its field, T a plain one (ConfigError)."""
    try:
        hint = get_type_hints(config_class)[name]
    except NameError:  # of a class that was made inside a function
        return
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    known = {int, float} if kinds == [float] else {*kinds}
    if known <= {bool, int, float, str} and type(value) not in known:
        what = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{name} is {value!r}, it must be {what} or None")


def mix_options(record: Any) -> dict[str, Any]:
    """The options that a run's record of ``--mix`` came from (ConfigError if it is damaged)."""
    try:
        options = {"mix": f"{record['uri']}:{record['share']}"}
        if record["sampling_steps"]:
            options |= {name: record[name] for name in ("refresh", "guidance", "sampling_steps")}
            options["synthetic_transitions"] = record["transitions"]
    except (TypeError, KeyError) as error:
        raise ConfigError(f"its 'mix' is damaged: {error}") from None
    return options


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
        raise ConfigError(
            "--compile needs a C++ compiler (g++ or clang++) on the path; leave the option out without one"
        )
