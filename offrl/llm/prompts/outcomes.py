"""What policies do on fresh prompts, and V_0's adapter trained on that: ``offrl llm v0 RUN ...``.

The policies are the models of runs that began with one model, and that model itself. Its states are the features, at
training and later: the adapter is for runs that begin with it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import tyro

from offrl.errors import ConfigError
from offrl.llm.episodes import respond
from offrl.llm.evaluate import FEW_ROWS, LARGE
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.prompts.v0 import Outcomes, QueryAdapter, auc, logistic, save_adapter, train
from offrl.llm.tasks import task_for
from offrl.llm.tasks.task import Task
from offrl.training.options import settings_from_json
from offrl.training.run_dir import RunDir
from offrl.training.seeding import stream


@dataclass(frozen=True)
class Generalist:
    """Train the adapter with which --predictor v0 reads prompts, on what the models of runs that began alike can do."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run directories, of one task and one first model, which counts as a policy too."""
    held_out: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A run on whose model the adapter is only measured; repeatable."""
    out: Path = Path("v0.safetensors")
    """File of the adapter."""
    prompts: int = 1024
    """Fresh prompts of each policy, or all of a data set that has fewer."""
    samples: int = 8
    """Responses to each prompt."""
    steps: int = 300
    """Updates of the adapter."""
    context: int = 256
    """Pairs of prompt and success rate that the head is fitted to, as --v0-context later; up to half of the prompts."""
    share: float = 0.25
    """Share of the ranking part in the loss; the rest is cross-entropy."""
    seed: int = 0
    """Seed of prompts, responses and training."""

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.prompts < 64:
            raise ConfigError(f"prompts must be 64 or more, got {self.prompts}")
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"share must be within 0 and 1, got {self.share}")
        if not self.runs:
            raise ConfigError("pass at least one run directory")


def outcomes(
    policy: Any,
    backbone: Any,
    task: Task,
    *,
    count: int,
    samples: int,
    seed: int,
    name: str,
    temperature: float = 1.0,
) -> Outcomes:
    """Success rates of a policy on fresh prompts, with the frozen model's states of these; on the CPU."""
    device = policy.bias.device
    prompts = task.prompts(min(count, getattr(task, "size", count)), stream(seed, f"{name} prompts")).to(
        device
    )
    generator = stream(seed, name, device)
    many = sum(p.numel() for p in policy.parameters()) > LARGE
    right, states = [], []
    for rows in torch.arange(len(prompts)).split(max(FEW_ROWS // samples, 1) if many else len(prompts)):
        part = prompts.rows(rows.to(device))
        found = respond(policy, task, part, copies=samples, temperature=temperature, generator=generator)
        success = task.success(part.repeat(samples), found)
        right.append(success.view(-1, samples).float().mean(dim=1).cpu())
        with torch.no_grad():
            states.append(backbone.prompt_states(part.tokens, part.mask).float().cpu())
    return Outcomes(torch.cat(states), prompts.mask.cpu(), torch.cat(right))


def ranked(policies: Sequence[Outcomes], adapter: QueryAdapter | None, context: int) -> float | None:
    """Mean AUC within policies, right prompts above wrong ones: of the second half of each, the first half is context.

    None: all policies are all right or all wrong there.

    Args:
        policies: what they did; those that are all right or all wrong there do not count.
        adapter: of the features; None: the last states.
        context: pairs known, at most half of the prompts.
    """
    areas = []
    for e in policies:
        with torch.no_grad():
            features = e.states[:, -1] if adapter is None else adapter(e.states, e.mask)
        x, half = features.double(), len(e.rates) // 2
        known, right = min(context, half), e.rates[half:] >= 0.5
        if bool(right.any()) and not bool(right.all()):
            areas.append(auc(logistic(x[:known], e.rates[:known].double(), x[half:]), right))
    return fmean(areas) if areas else None


def origin(runs: Sequence[Path]) -> LLMOptions:
    """The options of the first run.

    Raises:
        ConfigError: runs of other programs, of several tasks, or that began with several models.
    """
    found: list[LLMOptions] = []
    for run in runs:
        config = RunDir(run).config
        if "llm" not in config:
            raise ConfigError(f"{run} is a run of {config['algorithm']}, not of a language model")
        found.append(settings_from_json(LLMOptions, config["llm"]))
    first = found[0]
    for run, other in zip(runs, found, strict=True):
        if other.task_name != first.task_name:
            raise ConfigError(
                f"{run} learnt {other.task_name}, {runs[0]} {first.task_name}: pass runs of one task"
            )
        if other.model != first.model or (first.model.startswith("tiny:") and other.seed != first.seed):
            raise ConfigError(
                f"{run} began with {other.model} of seed {other.seed}, {runs[0]} with {first.model} of seed "
                f"{first.seed}: V_0 reads the states of one model"
            )
    return first


def train_from_runs(o: Generalist, note: Callable[[str], None]) -> LLMOptions:
    """Train an adapter, measure it, write it; returns the options of the first run, whose first model it reads.

    Args:
        o: runs and sizes.
        note: called with lines of progress.

    Raises:
        ConfigError: the runs do not fit together, or all policies are all right or all wrong.
    """
    options = origin([*o.runs, *o.held_out])
    if o.out.is_dir():
        raise ConfigError(f"out must be a file, {o.out} is a folder")
    o.out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of work
    task = task_for(options)
    backbone = load_model(options.model, task, options.seed)
    if not hasattr(backbone, "prompt_states"):
        raise ConfigError(f"{options.model} has no states of prompts: V_0 needs a transformer")

    def did(name: str, number: int) -> Outcomes:
        policy = load_model(name, task, options.seed)
        found = outcomes(
            policy,
            backbone,
            task,
            count=o.prompts,
            samples=o.samples,
            seed=o.seed,
            name=f"policy {number}",
            temperature=options.temperature,
        )
        note(f"{name}: {float(found.rates.mean()):.3f} right on {len(found.rates)} prompts")
        return found

    seen = [did(name, i) for i, name in enumerate([options.model, *map(str, o.runs)])]
    unseen = [did(str(run), len(seen) + i) for i, run in enumerate(o.held_out)]
    context = min(o.context, len(seen[0].rates) // 2)
    torch.manual_seed(o.seed)
    adapter = QueryAdapter(seen[0].states.shape[2])
    generator = torch.Generator().manual_seed(o.seed)
    losses = train(adapter, seen, steps=o.steps, generator=generator, context=context, share=o.share)
    few = max(len(losses) // 10, 1)
    note(f"loss {fmean(losses[:few]):.3f} at first, {fmean(losses[-few:]):.3f} at last")
    for label, policies in (("the policies it was trained on", seen), ("held-out policies", unseen)):
        if policies:
            plain, own = ranked(policies, None, context), ranked(policies, adapter, context)
            if own is None or plain is None:
                note(f"no AUC within {label}: all right or all wrong on the prompts to be ranked")
            else:
                note(f"AUC within {label}: {own:.3f}, of the states alone {plain:.3f} (context {context})")
    save_adapter(adapter, o.out)
    return options
