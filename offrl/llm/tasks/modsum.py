"""T1, the sum of two digits modulo ten: the task on which policies collapse.

Prompt: two digits and "=". A response has at most four tokens; it earns 1 iff it ends, and the token before its
end is the sum's last digit. The end must be learnt too.
"""

import torch
from torch import Tensor

from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, EOS, PAD, Prompts, Responses, Vocabulary

DIGITS = "0123456789"


class ModSum:
    """100 prompts of one difficulty."""

    name, levels, max_prompt, max_response = "t1", 1, 4, 4

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(DIGITS + "=")
        self.zero, self.equals = self.vocabulary.ids("0=")
        self.allowed = only(self.vocabulary, [EOS, *self.vocabulary.ids(DIGITS)])

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Uniform pairs of digits."""
        digits = torch.randint(10, (count, 2), generator=generator)
        ends = torch.tensor([[BOS, self.equals]]).expand(count, 2)
        tokens = torch.cat([ends[:, :1], self.zero + digits, ends[:, 1:]], dim=1)
        ones = torch.ones(count, dtype=torch.int64)
        ids = 10 * digits[:, 0] + digits[:, 1]
        return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), 4 * ones, ids, ones)

    def answers(self, prompts: Prompts) -> Tensor:
        """(N,) token of the right digit."""
        return self.zero + (prompts.tokens[:, 1:3] - self.zero).sum(dim=1) % 10

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """1 for a right answer that ends."""
        return {"correct": self.success(prompts, responses).float()}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the token before the end is the answer."""
        before = responses.tokens[:, :-1] == self.answers(prompts)[:, None]
        return (before & (responses.tokens[:, 1:] == EOS) & responses.mask[:, 1:]).any(dim=1)

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The token before the end."""
        following = torch.nn.functional.pad(responses.tokens[:, 1:], (0, 1))
        return torch.where(following == EOS, responses.tokens, -1).amax(dim=1)

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """The digit, or with probability ``noise`` another one, and the end."""
        digit = noisy(self.answers(prompts)[:, None], self.zero, 10, generator, noise)
        return torch.cat([digit, torch.full_like(digit, EOS)], dim=1)

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}


def noisy(tokens: Tensor, first: int, count: int, generator: torch.Generator, noise: float) -> Tensor:
    """Tokens, each but padding replaced with probability ``noise`` by one of first .. first + count - 1."""
    if noise == 0.0:
        return tokens
    drawn = first + torch.randint(count, tokens.shape, generator=generator)
    replaced = (torch.rand(tokens.shape, generator=generator) < noise) & (tokens != PAD)
    return torch.where(replaced, drawn, tokens)
