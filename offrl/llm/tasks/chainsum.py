"""T2, sums of one to eight digits in base b: unequal difficulty, and a cliff behind which nothing succeeds.

Prompt: k digits and "=". A response has exactly k tokens, for which the running sums modulo b are the natural chain of
thought; it earns 1 iff its last token is the total. Without ``sft`` on such chains first, long prompts stay at chance.
A hint of level j is the first j running sums, of at most k - 1, which end the prompt; the response is that much
shorter.
"""

import torch
from torch import Tensor

from offrl.llm.tasks.modsum import noisy
from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, PAD, Prompts, Responses, Vocabulary, left_padded


class ChainSum:
    """Prompts of k digits, k uniform in 1 .. 8; the difficulty is k."""

    levels, max_prompt, max_response, hint_levels = 8, 10, 8, 7

    def __init__(self, name: str = "t2", base: int = 5) -> None:
        self.name, self.base = name, base
        digits = "0123456789ABCDEFGHIJ"[:base]
        self.vocabulary = Vocabulary("=" + digits)
        self.equals, self.zero = self.vocabulary.ids("=0")
        self.allowed = only(self.vocabulary, self.vocabulary.ids(digits))

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Uniform lengths, uniform digits."""
        lengths = torch.randint(1, self.levels + 1, (count,), generator=generator)
        digits = torch.randint(self.base, (count, self.levels), generator=generator)
        kept = torch.arange(self.levels) < lengths[:, None]
        places = (self.base + 1) ** torch.arange(self.levels)
        ids = ((digits + 1) * kept * places).sum(dim=1)
        rows = [
            [BOS, *(self.zero + d for d in row[:k]), self.equals]
            for row, k in zip(digits.tolist(), lengths.tolist(), strict=True)
        ]
        return Prompts(*left_padded(rows, self.max_prompt), lengths, ids, lengths)

    def sums(self, prompts: Prompts) -> Tensor:
        """(N, 8) tokens of the running sums modulo b, padded on the right."""
        end = (prompts.tokens == self.equals).int().argmax(dim=1)
        place = torch.arange(self.levels, device=prompts.tokens.device) + (end - prompts.levels)[:, None]
        digits = prompts.tokens.gather(1, place.clamp(max=prompts.tokens.shape[1] - 1)) - self.zero
        inside = torch.arange(self.levels, device=prompts.tokens.device) < prompts.levels[:, None]
        sums = self.zero + digits.where(inside, 0).cumsum(dim=1) % self.base
        return sums.where(inside, PAD)

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """1 for the right total."""
        return {"correct": self.success(prompts, responses).float()}

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The last token."""
        last, width = prompts.limits - 1, responses.tokens.shape[1]
        given = responses.tokens.gather(1, last.clamp(max=width - 1)[:, None])[:, 0]
        return given.where(last < width, -1)

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the last token is the total."""
        total = self.sums(prompts).gather(1, prompts.levels[:, None] - 1)
        last = prompts.limits[:, None] - 1
        width = responses.tokens.shape[1]
        given = responses.tokens.gather(1, last.clamp(max=width - 1))
        return ((given == total) & (last < width))[:, 0]

    def hinted(self, prompts: Prompts, level: int) -> tuple[Prompts, Tensor]:
        """The first ``level`` running sums after each prompt, and which prompts have that many before the last."""
        tokens = torch.cat([prompts.tokens, self.sums(prompts)[:, :level]], dim=1)
        mask = torch.nn.functional.pad(prompts.mask, (0, level), value=True)
        limits = (prompts.limits - level).clamp(min=1)
        return Prompts(tokens, mask, limits, prompts.ids, prompts.levels), prompts.levels > level

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """Running sums, each digit random with probability ``noise``."""
        return noisy(self.sums(prompts), self.zero, self.base, generator, noise)

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}
