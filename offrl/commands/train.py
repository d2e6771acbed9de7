"""``offrl train ALGO`` and ``offrl resume RUN``."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from offrl.algos import ALGORITHMS, load_algorithm, plugins, preset
from offrl.errors import ConfigError
from offrl.training.progress import Reporter
from offrl.training.runner import RunOptions, RunResult, resume, start

FORMS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    json: bool = False
    """Print one JSON object per evaluation instead of progress."""

    @property
    def mode(self) -> str:
        """The reporter's mode."""
        return "quiet" if self.quiet else "json" if self.json else "text"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the settings start from."""

    config: Path | None = None
    """A run's config.json: repeat its settings; options given here win."""
    dry_run: bool = False
    """Print the settings, mark what differs from the default, and stop."""


def main(argv: list[str]) -> int:
    """``train ...`` or ``resume ...``."""
    return resume_command(argv[1:]) if argv[:1] == ["resume"] else train_command(argv)


def train_command(argv: list[str]) -> int:
    """Parse the options of the named algorithm and train it."""
    if not argv or argv[0].startswith("-"):
        names = ", ".join([*ALGORITHMS, *plugins()])
        print(f"usage: offrl train ALGO [options]\n\nALGO: {names}, or the path of your own FILE.py")
        print("'offrl train ALGO --help' shows the options of each")
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    _, method = load_algorithm(argv[0])
    options, settings, output, begin = parse(argv[0], method.config, argv[1:], {}, {})
    if begin.config or options.preset:
        base = _recorded(begin.config, argv[0]) if begin.config else ({}, {})
        tuned = preset(method, options.preset) if options.preset else {}
        options, settings, output, begin = parse(argv[0], method.config, argv[1:], base[0], base[1] | tuned)
    if begin.dry_run:
        _print_settings(settings, options)
        return 0
    result = start(argv[0], settings, options, reporter=Reporter(output.mode, options.steps))
    _summary(result, output)
    return 0


def parse(
    algorithm: str, config: type, argv: list[str], options: dict[str, Any], settings: dict[str, Any]
) -> tuple[RunOptions, Any, Output, Start]:
    """Options, settings and output flags from the command line, over the given defaults."""
    fields: list[tuple[str, Any, Any]] = [
        ("settings", config, config(**settings)),
        ("options", RunOptions, RunOptions(**options)),
        ("begin", Start, Start()),
        ("output", Output, Output()),
    ]
    parser = dataclasses.make_dataclass(
        "Train", [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields], frozen=True
    )
    parsed: Any = tyro.cli(
        parser,
        prog=f"offrl train {algorithm}",
        description=f"{(config.__doc__ or '').strip()} Data, environment, seeds and output are the options of every run.",
        args=argv,
        config=FORMS,
    )
    return parsed.options, parsed.settings, parsed.output, parsed.begin


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a stopped run exactly where its last checkpoint left it."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    allow_inexact: bool = False
    """Go on although torch, chip, device or threads differ from those recorded; the numbers may differ."""
    workers: int | None = None
    """Processes that evaluate, if other than recorded."""
    output: Output = dataclasses.field(default_factory=Output)


def resume_command(argv: list[str]) -> int:
    """``offrl resume RUN``."""
    o = tyro.cli(ResumeOptions, prog="offrl resume", args=argv, config=FORMS)
    result = resume(o.run, allow_inexact=o.allow_inexact, workers=o.workers, reporter_mode=o.output.mode)
    if result.already_finished and o.output.mode == "text":
        print(f"{result.directory} is already finished")
    _summary(result, o.output)
    return 0


def _summary(result: RunResult, output: Output) -> None:
    values = result.returns if result.scores is None else result.scores
    if output.mode == "json":
        final = {"directory": str(result.directory), "step": result.steps, "final": True}
        if len(values):
            final |= {"return": float(result.returns.mean()), "episodes": len(values)}
            final |= {} if result.scores is None else {"normalized_score": float(values.mean())}
        print(json.dumps(final))
    elif output.mode == "text":
        if len(values):
            what = "return" if result.scores is None else "normalized score"
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            print(
                f"last {what} {values.mean():.1f} +- {spread:.1f} (std over {len(values)} episodes), "
                f"mean return {result.returns.mean():.1f}"
            )
        print(f"run directory {result.directory}\nnext: offrl report {result.directory} --out report.html")


def _recorded(path: Path, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and settings of a run's ``config.json``."""
    try:
        recorded = json.loads(path.read_text())
        settings = dict(recorded["settings"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a run's config.json: {error}") from None
    if recorded.get("algorithm") != load_algorithm(algorithm)[0]:
        raise ConfigError(f"{path} belongs to {recorded.get('algorithm')}, not to {algorithm}")
    names = {f.name for f in dataclasses.fields(RunOptions)} - {"out", "env"}
    options = {name: recorded[name] for name in names if name in recorded}
    return options | {"env": recorded.get("env_id")}, settings


def _print_settings(settings: Any, options: RunOptions) -> None:
    for thing in (settings, options):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            note = "" if value == field.default else f"  (default {field.default})"
            sys.stdout.write(f"{field.name:24} {value}{note}\n")
