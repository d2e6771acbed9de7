"""``offrl llm``: train a language model by policy gradients, list the methods, evaluate a run."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from offrl.commands import arguments
from offrl.errors import ConfigError, UsageError
from offrl.llm.methods import METHODS, NATIVE, load_method, runs_in
from offrl.llm.prompts import PARTS
from offrl.llm.tasks import TASKS
from offrl.llm.verifiers import VERIFIERS

SUBCOMMANDS = {
    "train": "train a model: offrl llm train METHOD --model tiny:dense --task t1",
    "eval": "accuracy and pass@k of a run, the model it began with beside it",
    "list": "the methods with their parts, the tasks, the rewards and what chooses prompts",
    "hints": "make hints for a data set's prompts, for --scaffold hints",
    "v0": "train V_0's adapter on what the models of runs can do, for --v0-weights",
}
DATA = (
    "task",
    "dataset",
    "prompt_key",
    "answer_key",
    "chat_template",
    "max_prompt",
    "max_response",
    "context",
    "context_window",
    "summaries",
    "reward",
)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    json: bool = False
    """Print one JSON object per evaluation instead of progress."""
    dry_run: bool = False
    """Print what a step would do and how much memory it may take, then stop."""

    @property
    def mode(self) -> str:
        """The reporter's mode; of several processes the first speaks."""
        if os.environ.get("RANK", "0") != "0":
            return "quiet"
        return "quiet" if self.quiet else "json" if self.json else "text"


@dataclass(frozen=True)
class EvalOptions:
    """Sample from a run's model: avg@k, pass@k and greedy accuracy, with 95 % intervals over prompts."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    k: int = 16
    """Responses to each prompt."""
    prompts: int = 512
    """Prompts."""
    temperature: float | None = None
    """Of sampling, if other than the run's."""
    task: str | None = None
    """A task, if other than the run's."""
    dataset: str | None = None
    """Prompts of a file, if others than the run's held-out or own ones: FILE.jsonl, FILE.parquet, hf:ID[:SPLIT]."""
    prompt_key: str | None = None
    """Column of the prompts, if other than the run's."""
    answer_key: str | None = None
    """Column of the answers, if other than the run's."""
    chat_template: str | None = None
    """auto, none or a file, if other than the run's."""
    max_prompt: int | None = None
    """Longer prompts are left out, in tokens; if other than the run's."""
    max_response: int | None = None
    """Tokens of the longest response, if other than the run's."""
    context: Literal["full", "truncate", "supo"] | None = None
    """What the model sees of long episodes, if other than in the run."""
    context_window: int | None = None
    """Tokens of the window, if other than the run's."""
    summaries: int | None = None
    """Summaries that an episode may have, if other than in the run: more may be better."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What is right, if other than in the run: integer, regex:PATTERN, math, python, FILE.py:FUNCTION."""
    base: bool = True
    """Also the model that the run began with; --no-base leaves it out."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.k < 1 or self.prompts < 1:
            raise ConfigError("k and prompts must be 1 or more")
        if self.temperature is not None and not self.temperature > 0.0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")
        if self.task and self.dataset:
            raise ConfigError(f"--dataset takes the place of a task: leave --task {self.task} out")


def overview() -> str:
    """The text of ``offrl llm --help``."""
    lines = [
        "usage: offrl llm SUBCOMMAND ...",
        "",
        "Language models by policy gradients.",
        "",
        "subcommands:",
    ]
    lines += [f"  {name:6} {about}" for name, about in SUBCOMMANDS.items()]
    lines += ["", "a run goes on with: offrl resume RUN"]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``offrl llm ...``."""
    name, rest = arguments.subcommand("llm", SUBCOMMANDS, overview, argv), argv[1:]
    if name is None:
        return 0 if argv else 2
    return {"train": train, "eval": evaluate, "list": show, "hints": hints, "v0": generalist}[name](rest)


def show(argv: list[str]) -> int:
    """``offrl llm list``."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"offrl llm list takes no arguments, got {argv[0]!r}")
    head = (
        "method",
        "advantage",
        "denominator",
        "mask",
        "aggregation",
        "learns from",
        "source",
        "status",
        "runs in",
    )
    rows = [head, *((name, *dataclasses.astuple(e), " ".join(runs_in(name))) for name, e in METHODS.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nwhat TRL and verl have themselves, and how it differs (take theirs there)")
    for name, native in NATIVE.items():
        for framework, about in native.items():
            print(f"  {name:20} {framework:5} {about}")
    print("\ntasks")
    for name, about in TASKS.items():
        print(f"  {name:10} {about}")
    print("\nrewards of prompts of one's own (--dataset), besides FILE.py:FUNCTION")
    for name, about in VERIFIERS.items():
        print(f"  {name:14} {about}")
    print("\nwhat chooses prompts, with any method (options of 'offrl llm train')")
    for part in PARTS.values():
        print(f"  {part.option:22} {part.what} ({part.source})")
    return 0


@dataclass(frozen=True)
class HintOptions:
    """Have a teacher write hints for the prompts of a data set; what the file holds is not asked for again."""

    prompts: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """Prompts with answers: FILE.jsonl, FILE.parquet, hf:ID or hf:ID:SPLIT."""
    teacher: Annotated[str, tyro.conf.arg(metavar="URL")]
    """Base address of a chat endpoint of OpenAI's form, such as http://localhost:8000/v1."""
    out: Path = Path("hints.jsonl")
    """File of hints, written after each prompt."""
    model: str = "default"
    """Name that the endpoint knows its model by."""
    tiers: str = "knowledge,planning,solution"
    """Kinds of hints, from abstract to concrete."""
    parts: int = 4
    """Hints of each kind."""
    prompt_key: str = "prompt"
    """Column of the prompts."""
    answer_key: str = "answer"
    """Column of the answers, which no hint may show."""
    attempts: int = 2
    """Tries for each kind, until a reply has the asked form and does not show the answer."""
    timeout: float = 60.0
    """Seconds to wait for a reply."""
    max_tokens: int = 1024
    """Tokens of a reply at most."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key, if it wants one."""

    def __post_init__(self) -> None:
        for name in ("parts", "attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.timeout > 0.0:
            raise ConfigError(f"timeout must be positive, got {self.timeout}")


def hints(argv: list[str]) -> int:
    """``offrl llm hints make``."""
    usage = "usage: offrl llm hints make --prompts FILE --teacher URL [options]"
    if argv[:1] != ["make"]:
        asked = argv[:1] in (["-h"], ["--help"])
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    o = arguments.parse(HintOptions, "offrl llm hints make", argv[1:])
    from offrl.llm.data import load_rows
    from offrl.llm.prompts.hints import TIERS, Teacher, load_hints, make_hints

    key = os.environ.get(o.key_variable, "")
    made = make_hints(
        load_rows(o.prompts), o.out, Teacher(o.teacher, o.model, key, o.timeout, o.max_tokens),
        tiers=o.tiers.split(","), name=o.prompts, parts=o.parts, prompt_key=o.prompt_key, answer_key=o.answer_key,
        attempts=o.attempts, note=print,
    )  # fmt: skip
    print(
        f"{made.asked} asked: {made.kept} kept, {made.leaked} showed the answer, {made.malformed} of another form"
    )
    if not any(row.get(column) for row in load_hints(str(o.out)).values() for column in TIERS.values()):
        raise ConfigError(
            f"{o.out} holds no hint: remove it, and ask another teacher or with more --attempts"
        )
    given = {"--prompt-key": o.prompt_key, "--answer-key": o.answer_key}
    keys = "".join(f" {key} {name}" for key, name in given.items() if name != key[2:-4])
    print(
        f"next: offrl llm train METHOD --model MODEL --dataset {o.prompts}{keys} --reward REWARD "
        f"--scaffold hints --hints {o.out}"
    )
    return 0


def generalist(argv: list[str]) -> int:
    """``offrl llm v0 RUN ...``."""
    from offrl.llm.prompts.outcomes import Generalist, train_from_runs

    o = arguments.parse(Generalist, "offrl llm v0", argv)
    first = train_from_runs(o, print)
    print(f"wrote {o.out}")
    prompts = f"--dataset {first.dataset}" if first.dataset else f"--task {first.task}"
    seed = f" --seed {first.seed}" if first.model.startswith("tiny:") else ""  # whose weights it draws
    print(
        f"next: offrl llm train METHOD --model {first.model}{seed} {prompts} --allocator knapsack --predictor v0 "
        f"--v0-weights {o.out}"
    )
    return 0


def train(argv: list[str]) -> int:
    """``offrl llm train METHOD``."""
    if not argv or argv[0].startswith("-"):
        asked = argv[:1] in (["-h"], ["--help"])
        print(
            f"usage: offrl llm train METHOD [options]\n\nMETHOD: {', '.join(METHODS)}\n"
            "'offrl llm train METHOD --help' shows the options of each",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    name, method = argv[0], load_method(argv[0])
    from offrl.llm.options import LLMOptions
    from offrl.llm.session import start
    from offrl.training.progress import Reporter

    run = LLMOptions(group=1, prompts=128) if method.data == "demonstrations" else LLMOptions()
    form = dataclasses.make_dataclass(
        "Train",
        [
            ("run", LLMOptions, dataclasses.field(default=run)),
            ("method", method.config, dataclasses.field(default=method.config())),
            ("output", tyro.conf.FlagCreatePairsOff[Output], dataclasses.field(default=Output())),
        ],
        frozen=True,
    )
    about = f"Train a language model with {name}; everything is kept in a new run directory."
    o: Any = arguments.parse(form, f"offrl llm train {name}", argv[1:], description=about, pairs=True)
    if o.output.dry_run:
        return dry_run(name, o.method, o.run)
    summarize(start(name, o.method, o.run, Reporter(o.output.mode, o.run.steps)), o.output.mode)
    return 0


def dry_run(name: str, settings: Any, options: Any) -> int:
    """What a run would do."""
    from offrl.llm.options import check_idle, plan
    from offrl.llm.session import build

    check_idle(options)
    learner = build(name, settings, options)
    size = sum(p.numel() for p in learner.parameters)
    frozen = sum(p.numel() for p in learner.policy.parameters() if not p.requires_grad)
    config = getattr(getattr(learner.policy, "model", None), "config", None)
    sizes = (size, learner.policy.head.shape[1], getattr(config, "num_hidden_layers", 2), frozen)
    facts = plan(learner.method, settings, options, learner.task, *sizes)
    for key, value in facts.items():
        print(f"{key:20} {value}")
    return 0


def resume(directories: list[Path], mode: str, allow_inexact: bool) -> None:
    """Go on with runs, one after the other."""
    from offrl.llm.session import resume as go_on
    from offrl.training.progress import Reporter
    from offrl.training.run_dir import RunDir

    mode = mode if os.environ.get("RANK", "0") == "0" else "quiet"
    for directory in directories:
        reporter = Reporter(mode, RunDir(directory).config["steps"])
        summarize(go_on(directory, reporter, allow_inexact=allow_inexact), mode)


def summarize(result: Any, mode: str) -> None:
    """Say what a run came to."""
    if mode == "json":
        facts = {"directory": str(result.directory), "seed": result.seed, "final": True}
        sys.stdout.write(json.dumps(facts | {"accuracy": result.accuracy, "reward": result.reward}) + "\n")
    elif mode == "text":
        if result.already_finished:
            print(f"{result.directory} is already finished")
        print(
            f"last accuracy {result.accuracy:.3f}, reward {result.reward:.3f} (sampled, one response a prompt)"
        )
        print(f"next: offrl llm eval {result.directory}")


def evaluate(argv: list[str]) -> int:
    """``offrl llm eval RUN``."""
    o = arguments.parse(EvalOptions, "offrl llm eval", argv)
    from offrl.llm.evaluate import evaluate as sampled
    from offrl.llm.models import load_model
    from offrl.llm.tasks import task_for
    from offrl.llm.tasks.prompts import omissions
    from offrl.training.options import resolve_device
    from offrl.training.run_dir import RunDir

    device, config = resolve_device(o.device), RunDir(o.run).config
    if "llm" not in config:
        raise ConfigError(f"{o.run} is a run of {config['algorithm']}: use offrl eval")
    options = asked(o, config["llm"])
    task = task_for(options)
    task = getattr(task, "held_out", None) or task
    for line in omissions(task, options.max_prompt):
        print(line, file=sys.stderr)
    temperature = o.temperature or options.temperature
    models = {"trained": str(o.run)} | ({"base": config["llm"]["model"]} if o.base else {})
    for label, model in models.items():
        policy = load_model(model, task, config["seed"]).to(device)
        found = sampled(
            policy, task, prompts=o.prompts, samples=o.k, seed=config["seed"], name="eval", temperature=temperature
        )  # fmt: skip
        report(label, found, o.k, o.json)
    return 0


def asked(o: EvalOptions, recorded: dict[str, Any]) -> Any:
    """The run's options with those of the evaluation."""
    from offrl.llm.options import LLMOptions, idle
    from offrl.training.options import settings_from_json

    given = {name: value for name in DATA if (value := getattr(o, name)) not in (None, ())}
    if o.dataset or o.task:  # not those that the run held out
        given["eval_dataset"] = ""
    if o.task:
        given["dataset"] = ""
    if o.task not in (None, "t4d") or o.dataset:
        given["actor"] = ""
    if o.context not in (None, "supo") and o.summaries is None:  # the run's have no effect then
        given["summaries"] = LLMOptions.summaries
    if o.context == "full" and o.context_window is None:
        given["context_window"] = LLMOptions.context_window
    options = settings_from_json(LLMOptions, recorded | {"model": str(o.run)} | given)
    if wrong := [name for name in idle(options) if name in given]:
        raise ConfigError(f"{wrong[0]} has no effect with task {options.task}: leave it out")
    if not options.dataset and options.task != "arithmetic" and not o.reward:
        options = dataclasses.replace(options, reward=())
    return options


def report(label: str, found: Any, k: int, as_json: bool) -> None:
    """Print an evaluation."""
    from offrl.llm.evaluate import interval

    each = {"greedy": found.greedy.double(), f"avg@{k}": found.success.double().mean(dim=1)}
    powers = [2**i for i in range(1, k.bit_length())]
    each |= {f"pass@{j}": found.pass_each(j) for j in sorted({*powers, k} - {1})}
    facts = {name: (float(x.mean()), *interval(x)) for name, x in each.items()}
    if as_json:
        print(json.dumps({"model": label, **facts, "levels": found.by_level()}))
        return
    print(f"{label}")
    for name, (mean, low, high) in facts.items():
        print(f"  {name:8} {mean:.3f}  [{low:.3f}, {high:.3f}]")
    if len(found.by_level()) > 1:
        print("  by difficulty " + "  ".join(f"{n}: {x:.2f}" for n, x in found.by_level().items()))
