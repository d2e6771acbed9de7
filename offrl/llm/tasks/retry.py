"""T4d, reflections on failures: a frozen actor failed to find a hidden corner, and a hint for its next try is written.

The prompt is the transcript of the failed try, which shows the wrong corner and where the goal lies from there. The
response is one token, a corner or "?" for no hint. Its reward is the difference of the actor's returns, that of the
next try (the mean of four) less that of the failed one, which is 0.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from offrl.llm.tasks.grid import Grid
from offrl.llm.tasks.modsum import noisy
from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, PAD, Prompts, Responses
from offrl.training.seeding import stream

TRIES, MEASURED = 4, 512


class Retry:
    """Failures of an actor.

    Args:
        grid: the task of the actor.
        actor: its model; nothing here has gradients.
    """

    name, levels, max_response = "t4d", 1, 1

    def __init__(self, grid: Grid, actor: Any) -> None:
        self.grid, self.actor, self.vocabulary = grid, actor, grid.vocabulary
        self.actor.requires_grad_(False)
        self.max_prompt = 1 + grid.max_response
        self.hints = [grid.blank, *(grid.first + corner for corner in grid.corners)]
        self.allowed = only(grid.vocabulary, self.hints)
        self._last: tuple[Responses, Tensor] | None = None

    def attempts(self, goals: Tensor, hints: Tensor, generator: torch.Generator) -> Responses:
        """One of the actor's tries each."""
        from offrl.llm.episodes import respond

        self.actor.to(goals.device)
        return respond(self.actor, self.grid, self.grid.hinted(goals, hints), generator=generator)

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Failures without a hint."""
        tokens: list[Tensor] = []
        goals: list[Tensor] = []
        while sum(map(len, goals)) < count:
            hidden = torch.randint(4, (2 * count + 8,), generator=generator)
            blank = torch.full_like(hidden, self.grid.blank)
            self.actor.cpu()
            found = self.attempts(hidden, blank, generator)
            failed = found.paid == 0
            goals.append(hidden[failed])
            width = self.max_prompt - 1
            tokens.append(torch.nn.functional.pad(found.tokens, (0, width - found.tokens.shape[1]))[failed])
        return self.told(torch.cat(tokens)[:count], torch.cat(goals)[:count])

    def told(self, transcripts: Tensor, goals: Tensor) -> Prompts:
        """(N, T) transcripts of failures, padded on the right, and (N,) hidden goals."""
        shown = transcripts != PAD
        order = shown.long().argsort(dim=1, stable=True)  # padding to the left
        tokens = transcripts.gather(1, order)
        first = torch.full_like(goals, BOS)[:, None]
        tokens, mask = torch.cat([tokens, first], dim=1), torch.cat([tokens != PAD, first > 0], dim=1)
        ids = [int.from_bytes(hashlib.blake2b(bytes(row), digest_size=5).digest()) for row in tokens.tolist()]
        ones = torch.ones_like(goals)
        return Prompts(tokens, mask, ones, 4 * torch.tensor(ids, dtype=torch.int64).view(-1) + goals, ones)

    def returns(self, prompts: Prompts, responses: Responses) -> Tensor:
        """(N, TRIES) of the actor's next tries; the same for the same hints to the same prompts."""
        if self._last is None or self._last[0] is not responses:
            goals = (prompts.ids % 4).repeat_interleave(TRIES)
            hints = responses.tokens[:, 0].repeat_interleave(TRIES)
            paid = responses.log_probs.new_zeros(0, TRIES)
            if len(prompts):
                name = f"tries {prompts.ids.tolist()} {responses.tokens[:, 0].tolist()}"
                paid = self.attempts(goals, hints, stream(0, name, goals.device)).paid.view(-1, TRIES)
            self._last = responses, paid
        return self._last[1]

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """The difference of returns."""
        return {"difference": self.returns(prompts, responses).mean(dim=1)}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the first of the next tries found it."""
        return self.returns(prompts, responses)[:, 0] > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The hint."""
        return responses.tokens[:, 0]

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """The goal, or with probability ``noise`` a random cell that may be one."""
        number = noisy(1 + (prompts.ids % 4)[:, None], 1, 4, generator, noise)
        return torch.tensor(self.hints)[number]

    @torch.no_grad()
    def measures(self, policy: Any) -> dict[str, float]:
        """Success of one try, of two with this policy's hint between them, and of two without any (the control)."""
        from offrl.llm.episodes import respond

        generator = torch.Generator().manual_seed(0)
        hidden = torch.randint(4, (MEASURED,), generator=generator)
        blank = torch.full_like(hidden, self.grid.blank)
        self.actor.cpu()
        first = self.attempts(hidden, blank, generator)
        failed = first.paid == 0
        one = 1.0 - float(failed.float().mean())
        if not failed.any():
            return {"success_1": one, "success_2": one, "success_2_without": one}
        again = self.attempts(hidden[failed], blank[failed], generator).paid
        asked, device = self.told(first.tokens[failed], hidden[failed]), policy.bias.device
        hints = (
            respond(policy, self, asked.to(device), generator=stream(0, "measured", device))
            .tokens[:, 0]
            .cpu()
        )
        hinted = self.attempts(hidden[failed], hints, generator).paid
        rest = 1.0 - one
        with_, without = one + rest * float(hinted.mean()), one + rest * float(again.mean())
        return {"success_1": one, "success_2": with_, "success_2_without": without}
