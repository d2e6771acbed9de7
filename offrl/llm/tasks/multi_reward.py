"""T5, three rewards of unequal difficulty for one response.

Prompt: k = 2 to 4 digits and "=". A response has up to eight tokens out of the digits 0 to 4, "?" and the end. It earns
1 each if

    format     its first token is "?", and the last before its end is a digit
    length     at most k + 1 tokens come before its end
    correct    the last token before its end is the sum of the digits modulo 5

"?" and the running sums have just k + 1 tokens. In ``t5-conditioned`` a short response earns its length only if it is
correct. Without ``sft`` first, nothing is learnt but format and length.
"""

import torch
from torch import Tensor

from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, EOS, PAD, Prompts, Responses, Vocabulary, left_padded

BASE, THINK, SHORTEST = 5, "?", 2


class MultiReward:
    """Prompts of 2 to 4 digits; the difficulty is one less."""

    levels, max_prompt, max_response = 3, 6, 8

    def __init__(self, name: str = "t5", *, conditioned: bool = False) -> None:
        self.name, self.conditioned = name, conditioned
        digits = "0123456789"[:BASE]
        self.vocabulary = Vocabulary("=" + digits + THINK)
        self.equals, self.zero, self.think = self.vocabulary.ids("=0" + THINK)
        self.allowed = only(self.vocabulary, [EOS, *self.vocabulary.ids(digits + THINK)])

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Uniform lengths, uniform digits."""
        lengths = torch.randint(SHORTEST, SHORTEST + self.levels, (count,), generator=generator)
        digits = torch.randint(BASE, (count, SHORTEST + self.levels - 1), generator=generator)
        rows = [
            [BOS, *(self.zero + d for d in row[:k]), self.equals]
            for row, k in zip(digits.tolist(), lengths.tolist(), strict=True)
        ]
        tokens, mask = left_padded(rows, self.max_prompt)
        places = len(self.vocabulary) ** torch.arange(self.max_prompt)
        limits = torch.full((count,), self.max_response)
        return Prompts(tokens, mask, limits, (tokens * places).sum(dim=1), lengths - SHORTEST + 1)

    def totals(self, prompts: Prompts) -> Tensor:
        """(N,) token of the right digit."""
        digits = prompts.tokens - self.zero
        inside = (digits >= 0) & (digits < BASE)
        return self.zero + digits.where(inside, 0).sum(dim=1) % BASE

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """Format, length, correct: 0 or 1 each, all 0 for a response without an end."""
        ended, last, before = self._end(responses)
        digit = (last >= self.zero) & (last < self.zero + BASE)
        right = ended & (last == self.totals(prompts))
        well_formed = ended & digit & (responses.tokens[:, 0] == self.think)
        short = ended & (before <= prompts.levels + SHORTEST)
        if self.conditioned:
            short = short & right
        return {"format": well_formed.float(), "length": short.float(), "correct": right.float()}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the answer is right."""
        return self.rewards(prompts, responses)["correct"] > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The token before the end, -1 for a response without one."""
        ended, last, _ = self._end(responses)
        return last.where(ended, -1)

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """"?", the running sums and the end; with probability ``noise`` each, without "?", up to two digits longer
        before the sums, and each sum another digit.
        """  # fmt: skip
        count = len(prompts)
        chance = torch.rand(count, 2 + self.max_response, generator=generator) < noise
        other = torch.randint(BASE, (count, self.max_response + 2), generator=generator).tolist()
        extra = torch.randint(1, 3, (count,), generator=generator).tolist()
        rows = torch.full((count, self.max_response), PAD)
        for i, (tokens, level, drawn) in enumerate(
            zip(prompts.tokens.tolist(), prompts.levels.tolist(), other, strict=True)
        ):
            digits = [t - self.zero for t in tokens[-level - SHORTEST : -1]]
            sums = [sum(digits[: j + 1]) % BASE for j in range(len(digits))]
            noisy = [drawn[j] if chance[i, 2 + j] else x for j, x in enumerate(sums)]
            longer = drawn[-extra[i] :] if chance[i, 1] else []
            answer = [self.zero + x for x in [*longer, *noisy]]
            row = [*([] if chance[i, 0] else [self.think]), *answer, EOS]
            rows[i, : len(row)] = torch.tensor(row)
        return rows

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}

    def _end(self, responses: Responses) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a row ends (B,), its last token before the end (B,), and the number of tokens before it (B,)."""
        before = responses.lengths - 1
        final = responses.tokens.gather(1, before.clamp(min=0)[:, None])[:, 0]
        last = responses.tokens.gather(1, (before - 1).clamp(min=0)[:, None])[:, 0]
        return (final == EOS) & (before > 0), last, before
