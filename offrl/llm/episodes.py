"""Multi-turn rollouts: all episodes advance together, one pass of the model for all of them, one cache.

A transcript is what a policy said and what the environment answered; environment tokens are outside the mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.llm.contexts import Window, managed
from offrl.llm.environment import Environment, State
from offrl.llm.generate import sample
from offrl.llm.models import LanguageModel
from offrl.llm.tasks.task import Task
from offrl.llm.text import Prompts, Responses
from offrl.llm.transcripts import Expert, Sampling, Transcripts, read


@dataclass(frozen=True)
class Moment:
    """Where episodes stood after some turn."""

    lengths: Tensor
    """(N,) tokens of their transcripts."""
    ready: Tensor
    """(N,) bool: running, and between two turns."""
    state: State
    """Of the environment."""


@torch.no_grad()
def converse(
    policy: LanguageModel,
    environment: Environment,
    prompts: Prompts,
    *,
    copies: int | Tensor = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    moments: list[Moment] | None = None,
) -> Responses:
    """Episodes from where the environment stands, to their ends: (N copies, T).

    Args:
        policy: what chooses.
        environment: N copies episodes.
        prompts: N, what each was told so far; their limits bound the transcripts that follow.
        copies: episodes a prompt, beside each other.
        temperature: logits are divided by it; 0 takes the most probable token.
        generator: the random stream; not needed at temperature 0.
        moments: a list to which every pass after which a turn ended adds where all episodes stood.
    """
    limits = prompts.limits.repeat_interleave(copies)
    t = Transcripts(limits, environment.longest_answer, policy.pad, policy.bias.dtype)
    reader = Sampling(policy, temperature, generator)
    contexts = prompts.tokens, prompts.mask
    return t.responses(_played(reader, t, environment, contexts, copies, moments))


def _played(
    reader: Sampling | Expert,
    t: Transcripts,
    environment: Environment,
    contexts: tuple[Tensor, Tensor],
    copies: int,
    moments: list[Moment] | None,
) -> Tensor:
    """All episodes to their ends; (N,) bool, those that a limit cut."""
    t.longest.fill_(environment.longest_turn)
    alive, cut = torch.ones_like(t.length, dtype=torch.bool), torch.zeros_like(t.length, dtype=torch.bool)

    def note() -> None:
        if moments is not None:
            moments.append(Moment(t.length.clone(), alive & (t.said == 0), environment.state()))

    def turn(rows: Tensor) -> Tensor:
        ended, stopped = t.answered(environment, rows)
        alive[rows], cut[rows] = ~ended, stopped
        note()
        return ended

    note()
    rows = torch.arange(len(t.length), device=t.length.device)
    read(reader, t, rows, contexts, environment.turn_ends.to(rows.device), turn, copies)
    return cut


def respond(
    policy: Any,
    task: Task,
    prompts: Prompts,
    *,
    copies: int | Tensor = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    moments: list[Moment] | None = None,
) -> Responses:
    """Responses of one turn, or whole episodes where the task has an environment; see ``sample`` and ``converse``."""
    how: dict[str, Any] = {"copies": copies, "temperature": temperature, "generator": generator}
    if (environment := environment_of(task)) is None:
        return sample(policy, prompts, **how)
    many = prompts.repeat(copies)
    environment.reset(many)
    if (window := window_of(task)) is None:
        return converse(policy, environment, prompts, **how, moments=moments)
    t = Transcripts(many.limits, window.room(environment), policy.pad, policy.bias.dtype)
    return managed(Sampling(policy, temperature, generator), t, environment, many, window)


def environment_of(task: Task) -> Environment | None:
    """A new one of a multi-turn task; None of another."""
    make = getattr(task, "environment", None)
    return None if make is None else make()


def window_of(task: Task) -> Window | None:
    """Of its contexts; None: they hold whole episodes."""
    return getattr(task, "window", None)


def demonstrate(task: Task, prompts: Prompts, generator: torch.Generator, noise: float) -> Responses:
    """Episodes of the environment's expert, each of whose tokens is random instead with probability ``noise``."""
    environment, window = environment_of(task), window_of(task)
    assert environment is not None
    environment.reset(prompts)
    extra = environment.longest_answer if window is None else window.room(environment)
    t = Transcripts(prompts.limits, extra, task.vocabulary.pad)
    if window is None:
        expert = Expert(t, lambda rows: environment.expert(rows, generator), task.allowed, noise, generator)
        return t.responses(_played(expert, t, environment, (prompts.tokens, prompts.mask), 1, None))

    def plan(rows: Tensor) -> Tensor:
        """Summaries where ``managed`` asked for them."""
        acting, summing = environment.expert(rows, generator), window.summary.expert(environment, rows)
        width = max(acting.shape[1], summing.shape[1])
        padded = [torch.nn.functional.pad(x, (0, width - x.shape[1]), value=t.pad) for x in (acting, summing)]
        return torch.where(window.asked[rows, None], padded[1], padded[0])

    return managed(Expert(t, plan, task.allowed, noise, generator), t, environment, prompts, window)


@torch.no_grad()
def resumed(
    policy: LanguageModel,
    environment: Environment,
    prompts: Prompts,
    responses: Responses,
    moments: list[Moment],
    rows: Tensor,
    *,
    states: int,
    copies: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Prompts, Responses]:
    """New episodes from states inside others, evenly spaced over the turns of each and its beginning among them.

    Args:
        policy: what chooses.
        environment: of the episodes.
        prompts: of the episodes, one a row.
        responses: their transcripts.
        moments: as ``converse`` noted them.
        rows: (M,) the episodes to start from.
        states: of each.
        copies: new episodes from each state.
        temperature: of sampling.
        generator: the random stream.

    Returns:
        M states prompts, the old transcripts up to the state among them, and their (M states copies) responses.
    """
    picked: list[tuple[int, Moment]] = []
    for row in rows.tolist():
        own = [moment for moment in moments if bool(moment.ready[row])]
        own = [m for i, m in enumerate(own) if i == 0 or m.lengths[row] > own[i - 1].lengths[row]]
        picked += [(row, own[i * len(own) // states]) for i in range(states)]
    kept = [int(moment.lengths[row]) for row, moment in picked]
    told = [
        torch.cat([prompts.tokens[row][prompts.mask[row]], responses.tokens[row, :length]])
        for (row, _), length in zip(picked, kept, strict=True)
    ]
    sizes, width = torch.tensor([len(x) for x in told]), max(len(x) for x in told)
    tokens = torch.stack([torch.nn.functional.pad(x, (width - len(x), 0), value=policy.pad) for x in told])
    mask = (torch.arange(width) >= width - sizes[:, None]).to(tokens.device)
    whose = prompts.rows(torch.tensor([row for row, _ in picked], device=rows.device))
    limits = whose.limits - torch.tensor(kept, device=rows.device)
    asked = Prompts(tokens, mask, limits, whose.ids, whose.levels)
    each = [{name: x[row] for name, x in moment.state.items()} for row, moment in picked]
    environment.restore(
        {name: torch.stack([s[name] for s in each]).repeat_interleave(copies, 0) for name in each[0]}
    )
    how: dict[str, Any] = {"copies": copies, "temperature": temperature, "generator": generator}
    return asked, converse(policy, environment, asked, **how)
