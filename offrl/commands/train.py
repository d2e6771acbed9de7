"""``offrl train ALGO`` and ``offrl resume RUN``."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from offrl.algos import ALGORITHMS, CHUNKS, MODELS, ONLINE, load_algorithm, plugins, preset
from offrl.commands import arguments
from offrl.errors import ConfigError
from offrl.files import read_json_object
from offrl.training.fine_tuning import fine_tune, inherited
from offrl.training.many import resume_runs, train_seeds
from offrl.training.options import RunOptions, SeedOptions, mix_options, settings_from_json
from offrl.training.problem import Algorithm
from offrl.training.progress import Reporter
from offrl.training.run_dir import RunDir
from offrl.training.session import RunResult


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

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A run's config.json: repeat its settings; options given here win."""
    dry_run: bool = False
    """Print the settings, mark what differs from the default, and stop."""


@dataclass(frozen=True, kw_only=True)
class StartFrom(Start):
    """Where the settings start from, and the weights."""

    from_runs: Annotated[tuple[Path, ...], tyro.conf.arg(name="from", metavar="RUN ...")] = ()
    """Finished runs of this algorithm: go on from each online, with half of every batch from its data and half from
    steps played in --env, one an update. Settings are theirs; each run keeps its seed."""


@dataclass(frozen=True, kw_only=True)
class Base(StartFrom):
    """What the other options are defaults of, to be known before they are read."""

    preset: str | None = None


def main(argv: list[str]) -> int:
    """``train ...`` or ``resume ...``."""
    return resume_command(argv[1:]) if argv[:1] == ["resume"] else train_command(argv)


def train_command(argv: list[str]) -> int:
    """Parse the options of the named algorithm and train it."""
    if not argv or argv[0].startswith("-"):
        names = ", ".join([*ALGORITHMS, *CHUNKS, *MODELS, *ONLINE, *plugins()])
        asked = argv[:1] in (["-h"], ["--help"])
        print(
            f"usage: offrl train ALGO [options]\n\nALGO: {names}, or the path of your own FILE.py\n"
            "'offrl train ALGO --help' shows the options of each",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    if argv[0] in ONLINE:
        from offrl.commands.online import train_command as train_online

        return train_online(argv)
    name, method = load_algorithm(argv[0])
    named = {word.partition("=")[0] for word in argv}
    if "--from" in named and isinstance(method.online, str):  # else its own options would be unknown ones
        raise ConfigError(f"{name} cannot go on online: {method.online}")
    begin = arguments.glimpse(Base, argv[1:]) or Base()
    if begin.from_runs and (begin.config or begin.preset):
        raise ConfigError("--from takes the settings of its runs: leave --config and --preset out")
    options, settings = RunOptions(), method.config()
    if begin.from_runs:
        options, settings = inherited(begin.from_runs, argv[0])
    elif begin.config:
        options, settings = _recorded(begin.config, argv[0])
    if begin.preset:
        settings = dataclasses.replace(settings, **preset(method, begin.preset))
    given = parse(argv[0], method, argv[1:], options, settings)
    options, settings, many, output = given.run, given.algorithm, given.seeds, given.output
    online: Any = getattr(given, "online", None)
    if begin.dry_run:
        print_settings(settings, options, many, *([online] if begin.from_runs else []))
        return 0
    reporter = Reporter(output.mode, options.steps)
    if begin.from_runs:
        results = fine_tune(argv[0], settings, options, begin.from_runs, online, many=many, reporter=reporter)
    elif online != (None if online is None else type(online)()):
        raise ConfigError("options of going on online need --from RUN")
    else:
        results = train_seeds(argv[0], settings, options, many, reporter=reporter)
    summarize(results, output)
    return 0


def parse(algorithm: str, method: Algorithm, argv: list[str], options: RunOptions, settings: Any) -> Any:
    """Options, settings and output flags from the command line, over the given defaults."""
    fields: list[tuple[str, Any, Any]] = [
        ("run", RunOptions, options),
        ("algorithm", method.config, settings),
        ("seeds", tyro.conf.FlagCreatePairsOff[SeedOptions], SeedOptions()),
        ("start", tyro.conf.FlagCreatePairsOff[StartFrom], StartFrom()),
        ("output", tyro.conf.FlagCreatePairsOff[Output], Output()),
    ]
    if not isinstance(method.online, str):
        fields.insert(4, ("online", method.online, method.online()))
    parser = dataclasses.make_dataclass(
        "Train",
        [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields],
        frozen=True,
    )
    return arguments.parse(
        parser,
        f"offrl train {algorithm}",
        argv,
        description=f"Train {Path(algorithm).stem} on a dataset; everything is kept in a new run directory.",
        pairs=True,
    )


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with stopped runs exactly where their last checkpoints left them."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...")]]
    """Run directories; several are resumed one process each, as many at once as there are cores; online methods one
    after the other."""
    allow_inexact: bool = False
    """Go on although torch, chip, device or threads differ from those recorded, or with new episodes where an
    environment does not come to the same state; the numbers may differ."""
    workers: int | None = None
    """Processes that evaluate, if other than recorded."""
    output: Output = dataclasses.field(default_factory=Output)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError(
                "name at least one run directory, e.g. offrl resume runs/td3_bc/DATASET/seed0-TIME"
            )


def resume_command(argv: list[str]) -> int:
    """``offrl resume RUN ...``."""
    o = arguments.parse(ResumeOptions, "offrl resume", argv)
    from offrl.commands.online import online_runs
    from offrl.commands.online import resume_command as resume_online

    if online := online_runs(o.runs):
        return resume_online(online, o)
    mode = o.output.mode
    if llm := [path for path in o.runs if "llm" in RunDir(path).config]:
        from offrl.commands.llm import resume as resume_llm

        if len(llm) < len(o.runs):
            raise ConfigError("resume runs of language models and other runs separately")
        resume_llm(llm, mode, o.allow_inexact)
        return 0
    results = resume_runs(o.runs, allow_inexact=o.allow_inexact, workers=o.workers, reporter_mode=mode)
    for result in results:
        if result.already_finished and mode == "text":
            print(f"{result.directory} is already finished")
    summarize(results, o.output)
    return 0


def summarize(results: list[RunResult], output: Output) -> None:
    """Say what runs came to, as the output options ask, and how to go on."""
    for result in results:
        _summary_of_one(result, output)
    if output.mode != "text":
        return
    if len(results) > 1 and all(len(result.returns) for result in results) and _alike(results):
        means = np.array([(r.returns if r.scores is None else r.scores).mean() for r in results])
        what = "return" if results[0].scores is None else "normalized score"
        spread = means.std(ddof=1)
        print(f"last {what} {means.mean():.1f} +- {spread:.1f} (std over {len(results)} seeds)")
    if results[0].policy.kind == "trajectory_diffusion":
        print(f"next: offrl generate {results[0].directory} --transitions 100000 --out synthetic.hdf5")
        return
    print(f"next: offrl report {' '.join(str(r.directory) for r in results)} --out report.html")


def _alike(results: list[RunResult]) -> bool:
    """Whether the runs differ in the seed alone, so that a mean over them says something."""
    configs = [RunDir(result.directory).config for result in results]
    facts = [
        {k: c.get(k) for k in ("algorithm", "settings", "dataset_sha256", "env_id", "steps", "online", "mix")}
        for c in configs
    ]
    return all(fact == facts[0] for fact in facts) and len({c["seed"] for c in configs}) == len(configs)


def _summary_of_one(result: RunResult, output: Output) -> None:
    values = result.returns if result.scores is None else result.scores
    if output.mode == "json":
        final = {"directory": str(result.directory), "seed": result.seed, "step": result.steps, "final": True}
        if len(values):
            final |= {"return": float(result.returns.mean()), "episodes": len(values)}
            final |= {} if result.scores is None else {"normalized_score": float(values.mean())}
        print(json.dumps(final))
    elif output.mode == "text":
        if len(values):
            what = "return" if result.scores is None else "normalized score"
            line = f"last {what} {values.mean():.1f}"
            if len(values) == 1:
                line += " (one episode)"
            else:
                line += f" +- {values.std(ddof=1):.1f} (std over {len(values)} episodes)"
            print(line if result.scores is None else f"{line}, mean return {result.returns.mean():.1f}")
        print(f"run directory {result.directory}")


def _recorded(path: Path, algorithm: str) -> tuple[RunOptions, Any]:
    """Options and settings of a run's ``config.json``."""
    recorded = read_json_object(path, ConfigError)
    name, method = load_algorithm(algorithm)
    if "fine_tuned_from" in recorded:
        raise ConfigError(f"{path} is of a run that went on online: name its offline run with --from")
    settings = recorded.get("settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is not a run's config.json: it has no settings")
    if recorded.get("algorithm") != name:
        raise ConfigError(f"{path} belongs to {recorded.get('algorithm')}, not to {name}")
    names = {f.name for f in dataclasses.fields(RunOptions)} - {"out", "env", "mix"}
    options = {name: recorded[name] for name in names if name in recorded}
    options["env"] = recorded.get("env_id")
    if options.get("rows") == "steps":  # of windows: no choice of the user's
        del options["rows"]
    try:
        if "mix" in recorded:
            options |= mix_options(recorded["mix"])
        return settings_from_json(RunOptions, options), settings_from_json(method.config, settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def print_settings(*groups: Any) -> None:
    """Every field of the options and settings, with the default where it was changed."""
    for thing in groups:
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            note = "" if value == field.default else f"  (default {field.default})"
            sys.stdout.write(f"{field.name:24} {value}{note}\n")
