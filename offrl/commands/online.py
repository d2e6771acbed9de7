"""``offrl train ALGO --env ID`` for methods that learn in an environment, and ``offrl resume`` of their runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from offrl.algos import load_online, online_runner
from offrl.commands import arguments
from offrl.commands.train import Output, ResumeOptions, Start, print_settings, summarize
from offrl.errors import ConfigError, Stopped, UsageError
from offrl.files import read_json_object
from offrl.online.options import NOT_COMPILED, OnlineAlgorithm, OnlineOptions, apply_preset
from offrl.training.options import settings_from_json
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Several seeds."""

    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="S ...")] = ()
    """Train these seeds one after the other, each a run of its own, instead of --seed."""

    def __post_init__(self) -> None:
        if any(seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different and 0 or more, got {' '.join(map(str, self.seeds))}")


@dataclass(frozen=True, kw_only=True)
class Base(Start):
    """What the other options are defaults of, to be known before they are read."""

    preset: str | None = None
    env: str | None = None


def train_command(argv: list[str]) -> int:
    """Parse the options of the named method and train it."""
    name = argv[0]
    if "--compile" in argv:
        raise ConfigError(f"{name} {NOT_COMPILED}")
    if alien := {word.partition("=")[0] for word in argv} & {"--dataset", "--from"}:
        raise UsageError(
            f"{name} learns in an environment (--env ID), not from {' and '.join(sorted(alien))}; "
            "'offrl algos' lists the methods that learn from data"
        )
    method = load_online(name)
    base = arguments.glimpse(Base, argv[1:]) or Base()
    options, settings = OnlineOptions(), method.config()
    if base.config:
        options, settings = _recorded(base.config, name, method)
    if base.preset:
        options = dataclasses.replace(options, env=base.env or options.env)
        options, settings = apply_preset(method, base.preset, options, settings)
    options, settings, many, begin, output = parse(name, argv[1:], options, settings)
    if begin.dry_run:
        print_settings(settings, options, many)
        return 0
    from offrl.online.runner import start

    if options.record and len(many.seeds) > 1:
        raise ConfigError(
            "--record names one dataset: train its seeds one at a time, each with a name of its own"
        )
    seeds, results = many.seeds or (options.seed,), []
    for k, seed in enumerate(seeds):
        run = dataclasses.replace(options, seed=seed)
        try:
            results.append(start(name, settings, run, reporter=Reporter(output.mode, run.steps)))
        except Stopped as stopped:
            if left := " ".join(map(str, seeds[k + 1 :])):
                raise Stopped(f"{stopped}; not begun: --seeds {left}", stopped.exit_code) from None
            raise
    summarize(results, output)
    return 0


def parse(
    name: str, argv: list[str], options: OnlineOptions, settings: Any
) -> tuple[OnlineOptions, Any, Seeds, Start, Output]:
    """Options, settings and output flags from the command line, over the given defaults."""
    fields: list[tuple[str, Any, Any]] = [
        ("run", OnlineOptions, options),
        ("algorithm", type(settings), settings),
        ("seeds", tyro.conf.FlagCreatePairsOff[Seeds], Seeds()),
        ("start", tyro.conf.FlagCreatePairsOff[Start], Start()),
        ("output", tyro.conf.FlagCreatePairsOff[Output], Output()),
    ]
    parser = dataclasses.make_dataclass(
        "Train",
        [(field, kind, dataclasses.field(default=default)) for field, kind, default in fields],
        frozen=True,
    )
    parsed: Any = arguments.parse(
        parser,
        f"offrl train {name}",
        argv,
        description=f"Train {name} in an environment; everything is kept in a new run directory.",
        pairs=True,
    )
    return parsed.run, parsed.algorithm, parsed.seeds, parsed.start, parsed.output


def resume_command(directories: Sequence[Path], options: ResumeOptions) -> int:
    """Go on with online runs, one after the other."""
    resume = online_runner().resume
    results = [
        resume(
            path,
            allow_inexact=options.allow_inexact,
            workers=options.workers,
            reporter_mode=options.output.mode,
        )
        for path in directories
    ]
    if options.output.mode == "text":
        for result in results:
            if result.already_finished:
                print(f"{result.directory} is already finished")
    summarize(results, options.output)
    return 0


def online_runs(directories: Sequence[Path]) -> list[Path]:
    """Those of ``directories`` that are online runs.

    Raises:
        ConfigError: some are, and some are not.
    """
    found = [path for path in directories if RunDir(path).config["rows"] == "online"]
    if found and len(found) < len(directories):
        raise ConfigError("resume runs that learn from data and runs that learn in an environment separately")
    return found


def _recorded(path: Path, name: str, method: OnlineAlgorithm) -> tuple[OnlineOptions, Any]:
    """Options and settings of a run's ``config.json``."""
    recorded = read_json_object(path, ConfigError)
    if recorded.get("algorithm") != name or not isinstance(recorded.get("settings"), dict):
        raise ConfigError(f"{path} is not the config.json of a run of {name}")
    names = {f.name for f in dataclasses.fields(OnlineOptions)} - {"out", "env"}
    options = {key: recorded[key] for key in names if key in recorded}
    options["env"] = recorded.get("env_id")
    try:
        return settings_from_json(OnlineOptions, options), settings_from_json(
            method.config, recorded["settings"]
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
