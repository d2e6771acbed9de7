"""Multi-turn rollouts: all episodes advance together, one pass of the model for all of them, one cache.

A transcript is what a policy said and what the environment answered, without gaps, whatever the lengths of the turns.
Each pass reads the next tokens that all running episodes already have; an episode whose transcript is read to its end
chooses a token, the others are read on. Environment tokens are outside the mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.llm.environment import Environment, State
from offrl.llm.generate import sample
from offrl.llm.models import LanguageModel
from offrl.llm.tasks.task import Task
from offrl.llm.text import Prompts, Responses


@dataclass(frozen=True)
class Moment:
    """Where episodes stood after some turn."""

    lengths: Tensor
    """(N,) tokens of their transcripts."""
    ready: Tensor
    """(N,) bool: running, and between two turns."""
    state: State
    """Of the environment."""


class Transcripts:
    """N transcripts that grow token by token.

    Args:
        limits: (N,) tokens at most that each may have before an answer that ends it.
        longest_answer: of the environment.
        pad: padding id.
        dtype: of log-probabilities and rewards.
    """

    def __init__(
        self, limits: Tensor, longest_answer: int, pad: int, dtype: torch.dtype = torch.float32
    ) -> None:
        shape, device = (len(limits), int(limits.max()) + longest_answer), limits.device
        self.limits, self.pad = limits, pad
        self.tokens = torch.full(shape, pad, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.log_probs = torch.zeros(shape, device=device, dtype=dtype)
        self.rewards = torch.zeros_like(self.log_probs)
        self.step_ids = torch.full(shape, -1, device=device)
        self.length = torch.zeros_like(limits)
        self.turn = torch.zeros_like(limits)
        self.said = torch.zeros_like(limits)
        """Tokens of the current turn."""

    def choose(self, rows: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """One chosen token for each of some rows."""
        place = rows, self.length[rows]
        self.tokens[place], self.mask[place], self.log_probs[place] = tokens, True, log_probs
        self.step_ids[place] = self.turn[rows]
        self.length[rows] += 1
        self.said[rows] += 1

    def actions(self, rows: Tensor, longest: int) -> Tensor:
        """(M, longest) the current turns of some rows, padded on the right."""
        offsets = torch.arange(longest, device=rows.device)
        places = (self.length - self.said)[rows, None] + offsets
        found = self.tokens[rows[:, None], places.clamp(max=self.tokens.shape[1] - 1)]
        return found.where(offsets < self.said[rows, None], self.pad)

    def answer(self, rows: Tensor, observations: Tensor, lengths: Tensor, rewards: Tensor) -> None:
        """The environment's answer to the current turns of some rows, which end with it."""
        self.rewards[rows, self.length[rows] - 1] += rewards.to(self.rewards)
        offsets = torch.arange(observations.shape[1], device=rows.device)
        row, column = (offsets < lengths[:, None]).nonzero(as_tuple=True)
        self.tokens[rows[row], self.length[rows[row]] + column] = observations[row, column]
        self.length[rows] += lengths
        self.turn[rows] += 1
        self.said[rows] = 0

    def responses(self, cut: Tensor) -> Responses:
        """All of them."""
        width = max(int(self.length.max()), 1)
        grids = (self.tokens, self.mask, self.log_probs, self.step_ids, self.rewards)
        return Responses(*(grid[:, :width] for grid in grids), cut=cut)


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
    alive, cut = torch.ones_like(limits, dtype=torch.bool), torch.zeros_like(limits, dtype=torch.bool)
    if moments is not None:
        moments.append(Moment(t.length.clone(), alive & (t.said == 0), environment.state()))
    hidden, cache = policy.begin(prompts.tokens, prompts.mask, copies)
    fed = 0
    while True:
        rows = (alive & (t.length == fed)).nonzero()[:, 0]
        if len(rows):
            t.choose(rows, *chosen(policy, hidden[rows], temperature, generator))
            over = turn_over(t, environment, rows)
            if len(over):
                ended, stopped = answered(t, environment, over)
                alive = alive.index_put((over,), ~ended)
                cut = cut.index_put((over,), stopped)
                if moments is not None:
                    moments.append(Moment(t.length.clone(), alive & (t.said == 0), environment.state()))
        if not alive.any():
            return t.responses(cut)
        new = int(t.length[alive].min()) - fed
        hidden = policy.advance(cache, t.tokens[:, fed : fed + new])
        fed += new


def chosen(
    policy: LanguageModel, hidden: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for each state and its log-probability: (M, H) -> (M,), (M,)."""
    logits = torch.nn.functional.linear(hidden, policy.head).to(policy.bias.dtype) + policy.bias
    log_p = (logits / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0.0:
        tokens = log_p.argmax(dim=-1)
    else:
        tokens = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
    return tokens, log_p.gather(1, tokens[:, None])[:, 0]


def turn_over(t: Transcripts, environment: Environment, rows: Tensor) -> Tensor:
    """Those of some rows whose last token ended their turn."""
    last = t.tokens[rows, t.length[rows] - 1]
    ends = environment.turn_ends.to(rows.device)[last] | (t.said[rows] >= environment.longest_turn)
    return rows[ends | (t.length[rows] >= t.limits[rows])]


def answered(t: Transcripts, environment: Environment, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The environment takes the turns of some rows: whether each ended, and whether a limit ended it."""
    answer = environment.step(rows, t.actions(rows, environment.longest_turn))
    t.answer(rows, answer.observations, answer.lengths, answer.rewards)
    full = ~answer.ended & (t.length[rows] >= t.limits[rows])
    return answer.ended | full, answer.cut | full


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
    environment.reset(prompts.repeat(copies))
    return converse(policy, environment, prompts, **how, moments=moments)


def environment_of(task: Task) -> Environment | None:
    """A new one of a multi-turn task; None of another."""
    make = getattr(task, "environment", None)
    return None if make is None else make()


def demonstrate(
    environment: Environment,
    prompts: Prompts,
    generator: torch.Generator,
    noise: float,
    allowed: Tensor,
    pad: int,
) -> Responses:
    """Episodes of the environment's expert, each of whose tokens is random instead with probability ``noise``."""
    environment.reset(prompts)
    t = Transcripts(prompts.limits, environment.longest_answer, pad)
    alive, cut = (
        torch.ones_like(prompts.ids, dtype=torch.bool),
        torch.zeros_like(prompts.ids, dtype=torch.bool),
    )
    some = allowed.nonzero()[:, 0]
    while alive.any():
        rows = alive.nonzero()[:, 0]
        actions = environment.expert(rows, generator)
        drawn = some[torch.randint(len(some), actions.shape, generator=generator)]
        random = (torch.rand(actions.shape, generator=generator) < noise) & (actions != pad)
        actions = torch.where(random, drawn, actions)
        speaking = torch.ones_like(rows, dtype=torch.bool)
        for said in actions.T:
            speaking = speaking & (said != pad)
            if not speaking.any():
                break
            now = rows[speaking]
            t.choose(now, said[speaking], torch.zeros(len(now)))
            over = turn_over(t, environment, now)
            speaking = speaking & ~torch.isin(rows, over)
        ended, stopped = answered(t, environment, rows)
        alive[rows], cut[rows] = ~ended, stopped
    return t.responses(cut)


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
