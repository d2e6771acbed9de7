"""How a run samples and updates, checked; and what that comes to before anything runs."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from offrl.errors import ConfigError
from offrl.llm.method import Method
from offrl.llm.prompts.options import PromptOptions
from offrl.llm.prompts.parts import check_parts, facts
from offrl.llm.tasks.task import Task
from offrl.training.options import check_word
from offrl.training.progress import spaced


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which model on which prompts."""

    model: str = "tiny:dense"
    """tiny:dense, tiny:medium, tiny:moe, tiny:table; a folder (a run, or a Hugging Face model), FILE.gguf, or hf:ID."""
    task: str = "t1"
    """What is learnt, such as t1, t2-hard or t4a ('offrl llm list' says which there are)."""
    actor: str = ""
    """Of t4d: the run whose model acts, frozen."""
    dataset: str = ""
    """Prompts of one's own in place of a task: FILE.jsonl, FILE.parquet, hf:ID or hf:ID:SPLIT."""
    eval_dataset: str = ""
    """Held-out prompts for evaluations; default: those of training."""
    prompt_key: str = "prompt"
    """Column of the prompts: text, or messages with role and content. Dots go into dictionaries."""
    answer_key: str = "answer"
    """Column of the answers."""
    chat_template: str = "auto"
    """auto: the tokenizer's own if it has one; none: prompts as they are; or a file with a Jinja template."""
    max_prompt: int = 512
    """Longer prompts of a data set are left out, in tokens."""
    context: Literal["full", "truncate", "supo"] = "full"
    """What a model sees of long episodes: all; the last half of a full window; summaries of its own (SUPO)."""
    context_window: int = 0
    """Tokens of that window; 0 with --context full."""
    summaries: int = 3
    """Summaries that an episode may have, of --context supo."""
    max_response: int = 128
    """Tokens of the longest response to prompts of a data set."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """integer, regex:PATTERN, math, python or FILE.py:FUNCTION, then =WEIGHT; repeatable, the first says what is
    right."""

    @property
    def task_name(self) -> str:
        """Of the task or the data set."""
        return (
            Path(self.dataset.removeprefix("hf:").replace(":", "-")).stem
            if self.dataset
            else self.task.replace(":", "-")
        )


@dataclass(frozen=True, kw_only=True)
class LLMOptions(DataOptions, PromptOptions):
    """How to run, whatever the method."""

    lora_rank: int = 0
    """Train an adapter of this rank beside the frozen weights of all linear layers; 0: train all weights."""
    steps: int = 500
    """Batches of rollouts; each is learnt from in reuse x minibatches updates."""
    seed: int = 0
    """Seed of every random stream."""
    out: Path = Path("runs")
    """Folder under which the run directory is made."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    prompts: int = 32
    """Prompts of a batch."""
    group: int = 16
    """Responses to each prompt."""
    minibatches: int = 1
    """Parts of a batch, an update each; must divide the prompts."""
    reuse: int = 1
    """Passes over a batch."""
    micro_batch: int = 0
    """Responses of one forward and backward pass; must divide a minibatch's. 0: all. Gradients do not depend on it."""
    delay: int = 0
    """Sample with the parameters of this many batches ago."""
    engine: Literal["exact", "bf16", "fp8", "int8"] = "exact"
    """Round the weights that sample, as another engine would."""
    bypass: bool = False
    """Take what sampling recorded for log pi_old, instead of computing it again with the current parameters."""
    temperature: float = 1.0
    """Of sampling and training."""
    lr: float = 1e-3
    """Learning rate of AdamW (no weight decay)."""
    warmup: int = 0
    """Updates over which the learning rate grows from 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    log_every: int = 10
    """Steps between rows of metrics.csv and samples.csv."""
    eval_every: int = 100
    """Steps between evaluations; 0: only before the first and after the last step."""
    eval_prompts: int = 512
    """Prompts of an evaluation."""
    eval_samples: int = 16
    """Responses to each of them: k of pass@k."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    threads: int = 1
    """CPU threads."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: the model's layers compute in bfloat16; weights, logits, losses and updates stay in float32."""
    generation: str = "own"
    """What samples: own, or vllm-server:URL, a vLLM on this machine; weights in the folder it serves are replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.reward, str):
            raise ConfigError(f"reward must be a tuple of rewards, got {self.reward!r}")
        for name in (
            "steps", "prompts", "group", "minibatches", "reuse", "log_every", "eval_prompts", "eval_samples",
            "checkpoint_every", "threads", "max_prompt", "max_response", "summaries",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seed", "micro_batch", "delay", "warmup", "eval_every", "lora_rank"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.generation != "own":
            check_served(self)
        if self.eval_dataset and not self.dataset and self.task != "arithmetic":
            raise ConfigError(f"task {self.task} has its own prompts: leave --eval-dataset out")
        if (self.context_window > 0) != (self.context != "full"):
            raise ConfigError("--context-window and --context truncate or supo go together")
        if self.context != "supo" and self.summaries != DataOptions.summaries:
            raise ConfigError("summaries has no effect without --context supo: leave it out")
        for name in ("temperature", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.prompts % self.minibatches:
            raise ConfigError(
                f"minibatches is {self.minibatches}, which does not divide the {self.prompts} prompts; "
                f"it can be {divisors(self.prompts)}"
            )
        if self.micro_batch and self.minibatch_rows % self.micro_batch:
            raise ConfigError(
                f"micro_batch is {self.micro_batch}, which does not divide the {self.minibatch_rows} responses of a "
                f"minibatch; it can be {divisors(self.minibatch_rows)}"
            )

    @property
    def minibatch_rows(self) -> int:
        """Responses of one update."""
        return self.prompts * self.group // self.minibatches


def check_idle(options: DataOptions) -> None:
    """Whether what was given about prompts of text has an effect, and the task beside them.

    Raises:
        ConfigError: it has none.
    """
    if options.dataset and options.task != DataOptions.task:
        raise ConfigError(f"--dataset takes the place of a task: leave --task {options.task} out")
    for name in idle(options):
        if getattr(options, name) != getattr(DataOptions, name):
            raise ConfigError(f"{name} has no effect with task {options.task}: leave it out")


def check_finite(*given: Any) -> None:
    """Whether the numbers of dataclasses can be written down as JSON.

    Raises:
        ConfigError: one is infinite or none.
    """
    for name, value in (pair for fields in given for pair in asdict(fields).items()):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name} must be a finite number, got {number}")


def check_choices(*given: Any) -> None:
    """Whether what is one of a few words is one of them: from Python nothing else looks.

    Raises:
        ConfigError: it is another.
    """
    for fields in given:
        for name in fields.__dataclass_fields__:
            check_word(type(fields), name, getattr(fields, name))


def idle(options: DataOptions) -> tuple[str, ...]:
    """Options that the task does not read."""
    keys, rest = ("prompt_key", "answer_key"), ("chat_template", "max_prompt", "max_response")
    return () if options.dataset else keys if options.task == "arithmetic" else (*keys, *rest)


def check_served(options: LLMOptions) -> None:
    """Whether a server can do what is asked.

    Raises:
        ConfigError: it cannot.
    """
    if not options.generation.startswith(("vllm-server:http://", "vllm-server:https://")):
        raise ConfigError(f"generation is own or vllm-server:URL with http, got {options.generation!r}")
    if options.allocator != "uniform":
        raise ConfigError("a server gives every prompt as many responses: leave --allocator out")
    idle = {"delay": options.delay, "engine": options.engine != "exact", "lora_rank": options.lora_rank}
    if wrong := [name for name, given in idle.items() if given]:
        raise ConfigError(
            f"a server samples with the weights it is sent: leave --{wrong[0].replace('_', '-')} out"
        )


def divisors(number: int, times: int = 1) -> str:
    """``1, 2, 4 or 8``, each times a number."""
    found = [str(n * times) for n in range(1, number + 1) if number % n == 0]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"


def check(name: str, method: Method, options: LLMOptions) -> None:
    """Whether method and options fit.

    Raises:
        ConfigError: they do not; the message says what would.
    """
    check_parts(name, method, options)
    if method.grouped and options.group < 2:
        raise ConfigError(f"{name} compares the responses of a group: --group must be 2 or more")
    if method.coupled and options.micro_batch % options.group:
        raise ConfigError(
            f"micro_batch is {options.micro_batch}, but {name} compares the responses of a group within its loss; it "
            f"can be {divisors(options.prompts // options.minibatches, options.group)}"
        )
    if method.data == "demonstrations":
        if options.group != 1:
            raise ConfigError(f"{name} learns from one demonstration a prompt: pass --group 1")
        idle = {"delay": options.delay, "engine": options.engine != "exact", "bypass": options.bypass}
        idle |= {"generation": options.generation != "own"}
        if wrong := [option for option, given in idle.items() if given]:
            raise ConfigError(f"{name} samples nothing: leave --{wrong[0]} out")


def plan(
    method: Method,
    settings: Any,
    options: LLMOptions,
    task: Task,
    parameters: int,
    width: int,
    layers: int = 2,
    frozen: int = 0,
) -> dict[str, str]:
    """What a step does, in words: name -> value.

    Args:
        method: that is trained.
        settings: of the method.
        options: of the run.
        task: of the run.
        parameters: that are trained.
        width: of the model's states.
        layers: of the model.
        frozen: parameters that are not trained.
    """
    rows = options.prompts * options.group + method.beside(settings, options)
    length, minibatch = task.max_prompt + task.max_response, rows // options.minibatches
    micro = options.micro_batch or minibatch
    # weights, gradients, two moments; a frozen first model; whole copies of what samples, now and before
    copies = 4 + bool(method.reference or settings.kl != 0.0) + (options.predictor == "v0")
    whole = (options.delay + 1 if options.delay else 0) + (options.delay > 0 or options.engine != "exact")
    # per token: about 16 vectors a layer are kept for the backward pass, and keys and values while sampling
    activations = 4 * micro * length * width * (16 * layers + 8)
    memory = 4 * (copies + whole) * parameters + 4 * frozen * (1 + whole) + activations
    told = "demonstrated" if method.data == "demonstrations" else "sampled"
    return (
        {
            "prompts per step": str(options.prompts),
            "responses per step": f"{rows} ({options.group} a prompt)"
            if method.data != "demonstrations"
            else "0",
            "updates per step": f"{options.reuse * options.minibatches} of {minibatch} responses",
            "rows of one pass": str(micro),
            "tokens per step": f"at most {rows * task.max_response} {told}, {rows * length} with prompts",
            "rollouts in all": str(rows * options.steps if method.data != "demonstrations" else 0),
            "parameters": spaced(parameters) + f" beside {spaced(frozen)} frozen" * (frozen > 0),
            "peak memory": f"about {memory / 1e6:.0f} MB beside the libraries (rough)",
        }
        | facts(options)
        | method.facts(settings, options)
    )
