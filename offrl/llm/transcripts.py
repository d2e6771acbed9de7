"""What episodes say: transcripts without gaps, whatever the lengths of their turns, and the passes that grow them.

Each pass reads what is new in all running episodes, to the end of each: shorter news are padded on the left, which
nothing attends to. Then all of them choose a token.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from offrl.llm.environment import Environment
from offrl.llm.generate import chosen
from offrl.llm.models import LanguageModel
from offrl.llm.text import Responses

SHARE = 0.9
"""Of the rows that are read, at which those that have left are dropped."""


class Transcripts:
    """N transcripts that grow token by token.

    Args:
        limits: (N,) tokens at most that each may have before an answer that ends it.
        extra: tokens beyond.
        pad: padding id.
        dtype: of log-probabilities and rewards.
    """

    def __init__(self, limits: Tensor, extra: int, pad: int, dtype: torch.dtype = torch.float32) -> None:
        shape, device = (len(limits), int(limits.max()) + extra), limits.device
        self.limits, self.pad = limits.clone(), pad
        self.tokens = torch.full(shape, pad, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.log_probs = torch.zeros(shape, device=device, dtype=dtype)
        self.rewards = torch.zeros_like(self.log_probs)
        self.step_ids = torch.full(shape, -1, device=device)
        self.length = torch.zeros_like(limits)
        self.turn = torch.zeros_like(limits)
        self.said = torch.zeros_like(limits)
        """Tokens of the current turn."""
        self.longest = torch.zeros_like(limits)
        """Tokens that the current turn may have."""

    def choose(self, rows: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """One chosen token for each of some rows."""
        place = rows, self.length[rows]
        self.tokens[place], self.mask[place], self.log_probs[place] = tokens, True, log_probs
        self.step_ids[place] = self.turn[rows]
        self.length[rows] += 1
        self.said[rows] += 1

    def over(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Those of some rows whose last token ended their turn."""
        last = self.tokens[rows, self.length[rows] - 1]
        done = ends[last] | (self.said[rows] >= self.longest[rows])
        return rows[done | (self.length[rows] >= self.limits[rows])]

    def actions(self, rows: Tensor, longest: int) -> Tensor:
        """(M, longest) the current turns of some rows, padded on the right."""
        offsets = torch.arange(longest, device=rows.device)
        places = (self.length - self.said)[rows, None] + offsets
        found = self.tokens[rows[:, None], places.clamp(max=self.tokens.shape[1] - 1)]
        return found.where(offsets < self.said[rows, None], self.pad)

    def tell(self, rows: Tensor, words: Tensor, lengths: Tensor) -> None:
        """Tokens that nobody chose, (M, O) padded on the right; the current turns of some rows end before them."""
        offsets = torch.arange(words.shape[1], device=rows.device)
        row, column = (offsets < lengths[:, None]).nonzero(as_tuple=True)
        self.tokens[rows[row], self.length[rows[row]] + column] = words[row, column]
        self.length[rows] += lengths
        self.turn[rows] += 1
        self.said[rows] = 0

    def answered(self, environment: Environment, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The environment takes the turns of some rows: whether each ended, and whether a limit ended it."""
        answer = environment.step(rows, self.actions(rows, environment.longest_turn))
        self.rewards[rows, self.length[rows] - 1] += answer.rewards.to(self.rewards)
        self.tell(rows, answer.observations, answer.lengths)
        full = ~answer.ended & (self.length[rows] >= self.limits[rows])
        return answer.ended | full, answer.cut | full

    def responses(self, cut: Tensor) -> Responses:
        """All of them."""
        width = max(int(self.length.max()), 1)
        tokens, mask, log_probs, turns, paid = (
            grid[:, :width] for grid in (self.tokens, self.mask, self.log_probs, self.step_ids, self.rewards)
        )
        return Responses(tokens, mask, log_probs, turns, paid, cut=cut)


class Reader(Protocol):
    """What reads transcripts and chooses tokens."""

    def begin(self, tokens: Tensor, mask: Tensor, copies: int | Tensor) -> None:
        """Contexts, (N, P), that ``copies`` rows beside each other begin with."""

    def advance(self, tokens: Tensor, seen: Tensor) -> None:
        """(R, K) the next tokens of all rows that are read, where (R, K) bool ``seen``."""

    def narrow(self, rows: Tensor) -> None:
        """(K,) rows of those that are read so far: the others have left."""

    def choose(self, rows: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities.

        Args:
            rows: (M,) of the transcripts.
            here: (R,) bool, which of the rows that are read they are.
        """


class Sampling:
    """A policy.

    Args:
        policy: the model.
        temperature: logits are divided by it; 0 takes the most probable token.
        generator: the random stream; not needed at temperature 0.
    """

    def __init__(self, policy: LanguageModel, temperature: float, generator: torch.Generator | None) -> None:
        self.policy, self.temperature, self.generator = policy, temperature, generator

    def begin(self, tokens: Tensor, mask: Tensor, copies: int | Tensor) -> None:
        """One pass; see ``Reader``."""
        self.hidden, self.cache = self.policy.begin(tokens, mask, copies)

    def advance(self, tokens: Tensor, seen: Tensor) -> None:
        """One pass; see ``Reader``."""
        self.hidden = self.policy.advance(self.cache, tokens, seen)

    def narrow(self, rows: Tensor) -> None:
        """Out of the cache; see ``Reader``."""
        self.policy.narrow(self.cache, rows)

    def choose(self, rows: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn; see ``Reader``."""
        policy = self.policy
        logits = (
            torch.nn.functional.linear(self.hidden[here], policy.head).to(policy.bias.dtype) + policy.bias
        )
        return chosen(logits, self.temperature, self.generator)


class Expert:
    """An environment's expert, each of whose tokens is random instead with probability ``noise``.

    Args:
        transcripts: that it speaks in.
        plan: rows whose turn begins -> (M, A) tokens of it, padded on the right.
        allowed: (V,) bool, random tokens.
        noise: their share.
        generator: the random stream.
    """

    def __init__(
        self,
        transcripts: Transcripts,
        plan: Callable[[Tensor], Tensor],
        allowed: Tensor,
        noise: float,
        generator: torch.Generator,
    ) -> None:
        self.t, self.plan, self.noise, self.generator = transcripts, plan, noise, generator
        self.some = allowed.nonzero()[:, 0]
        self.plans = torch.full((len(transcripts.length), 1), transcripts.pad)

    def begin(self, tokens: Tensor, mask: Tensor, copies: int | Tensor) -> None:
        """Nothing to read."""

    def advance(self, tokens: Tensor, seen: Tensor) -> None:
        """Nothing to read."""

    def narrow(self, rows: Tensor) -> None:
        """Nothing to read."""

    def choose(self, rows: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """As planned; see ``Reader``."""
        fresh = rows[self.t.said[rows] == 0]
        if len(fresh):
            plan = self.plan(fresh)
            if (more := plan.shape[1] - self.plans.shape[1]) > 0:
                self.plans = torch.nn.functional.pad(self.plans, (0, more), value=self.t.pad)
            self.plans[fresh, : plan.shape[1]] = plan
        tokens = self.plans[rows, self.t.said[rows].clamp(max=self.plans.shape[1] - 1)]
        drawn = self.some[torch.randint(len(self.some), tokens.shape, generator=self.generator)]
        random = torch.rand(tokens.shape, generator=self.generator) < self.noise
        return torch.where(random, drawn, tokens), torch.zeros(len(rows))


@torch.no_grad()
def read(
    reader: Reader,
    t: Transcripts,
    rows: Tensor,
    contexts: tuple[Tensor, Tensor],
    ends: Tensor,
    turn: Callable[[Tensor], Tensor],
    copies: int | Tensor = 1,
) -> None:
    """Passes until all of some episodes have left.

    Args:
        reader: what chooses.
        t: the transcripts, which grow.
        rows: (M,) the episodes.
        contexts: tokens and mask that they begin with, padded on the left, one for each ``copies`` rows.
        ends: (V,) bool, tokens that end a turn.
        turn: called with the rows whose turn is over; returns which of them leave.
        copies: rows that share a context.
    """
    reader.begin(*contexts, copies)
    done, here = (
        t.length[rows],
        torch.ones_like(rows, dtype=torch.bool),
    )  # what is read of each; who has not left
    place = torch.full_like(t.length, -1).index_put((rows,), torch.arange(len(rows), device=rows.device))
    while True:
        now = rows[here]
        t.choose(now, *reader.choose(now, here))
        if len(over := t.over(now, ends)):
            here = here.index_put((place[over],), ~turn(over))
        if not here.any():
            return
        if int(here.sum()) <= SHARE * len(rows):
            kept = here.nonzero()[:, 0]
            reader.narrow(kept)
            rows, done, here = rows[kept], done[kept], here[kept]
            place = place.index_put((rows,), torch.arange(len(rows), device=rows.device))
        length, width = t.length[rows], int((t.length[rows] - done)[here].max())
        columns = length[:, None] - width + torch.arange(width, device=rows.device)
        seen = (columns >= done[:, None]) | ~here[:, None]
        reader.advance(t.tokens[rows[:, None], columns.clamp(min=0)].where(seen, t.pad), seen)
        done = length
