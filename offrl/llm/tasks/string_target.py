"""T3, strings of four symbols out of six: 1296 outcomes, so that distances to the best policy are exact.

The prompt is one of eight symbols x. With the base policy a (random, fixed) and the reward

    r(x, y) = 2 [y contains "a"] + 3 [y is a palindrome] + shift(x),      shift(x) ~ N(0, 10^2), fixed

the policy that maximises E r - KL(pi || a) is P = a exp(2 [...] + 3 [...]) / Z, whatever the shifts. ``tiny:table``
begins as a itself.
"""

from typing import Any

import torch
from torch import Tensor

from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, Prompts, Responses, Vocabulary

SYMBOLS, LENGTH, PROMPTS = "abcdef", 4, 8


class StringTarget:
    """Eight prompts of one difficulty."""

    name, levels, max_prompt, max_response = "t3", 1, 2, LENGTH

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(SYMBOLS + "12345678")
        self.first, self.prompt = self.vocabulary.ids("a1")
        self.allowed = only(self.vocabulary, self.vocabulary.ids(SYMBOLS))
        generator = torch.Generator().manual_seed(0)
        nodes = (len(SYMBOLS) ** LENGTH - 1) // (len(SYMBOLS) - 1)
        self.base_logits = torch.randn(nodes, len(SYMBOLS), generator=generator, dtype=torch.float64)
        self.shifts = 10.0 * torch.randn(PROMPTS, generator=generator)
        self.strings = self.first + torch.cartesian_prod(*[torch.arange(len(SYMBOLS))] * LENGTH)

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Uniform."""
        return self._prompts(torch.randint(PROMPTS, (count,), generator=generator))

    def _prompts(self, ids: Tensor) -> Prompts:
        tokens = torch.stack([torch.full_like(ids, BOS), self.prompt + ids], dim=1)
        mask, ones = torch.ones_like(tokens, dtype=torch.bool), torch.ones_like(ids)
        return Prompts(tokens, mask, LENGTH * ones, ids, ones)

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4) -> contains "a", is a palindrome: (N,) bool each."""
        return (tokens == self.first).any(dim=1), (tokens == tokens.flip(1)).all(dim=1)

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """Both features and the prompt's shift."""
        contains, palindrome = self.features(responses.tokens)
        shift = self.shifts.to(prompts.ids.device)[prompts.ids]
        return {"contains": 2.0 * contains, "palindrome": 3.0 * palindrome, "shift": shift}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Both features."""
        contains, palindrome = self.features(responses.tokens)
        return contains & palindrome

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The string, as a number."""
        places = len(SYMBOLS) ** torch.arange(LENGTH, device=responses.tokens.device)
        return ((responses.tokens - self.first) * places).sum(dim=1)

    def base_log_probs(self) -> Tensor:
        """(1296,) log a(y), float64."""
        log_p, node = self.base_logits.log_softmax(dim=1), torch.zeros(len(self.strings), dtype=torch.int64)
        total = torch.zeros(len(self.strings), dtype=torch.float64)
        for symbol in (self.strings - self.first).T:
            total += log_p[node, symbol]
            node = len(SYMBOLS) * node + symbol + 1
        return total

    def target_log_probs(self) -> Tensor:
        """(1296,) log P(y), float64."""
        contains, palindrome = self.features(self.strings)
        return (self.base_log_probs() + 2.0 * contains + 3.0 * palindrome).log_softmax(dim=0)

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """Draws from the base policy, whatever ``noise``: supervised training makes a model resemble it."""
        rows = torch.multinomial(self.base_log_probs().exp(), len(prompts), True, generator=generator)
        return self.strings[rows]

    def measures(self, policy: Any) -> dict[str, float]:
        """Exact KL(pi || P) and total variation, means over prompts."""
        from offrl.llm.score import score

        prompts = self._prompts(torch.arange(PROMPTS)).repeat(len(self.strings)).to(policy.bias.device)
        strings = self.strings.repeat(PROMPTS, 1).to(policy.bias.device)
        with torch.no_grad():
            log_probs = score(policy, prompts.tokens, prompts.mask, strings).log_probs
        log_p = log_probs.double().cpu().sum(dim=1).view(PROMPTS, -1)
        target = self.target_log_probs()
        kl = (log_p.exp() * (log_p - target)).sum(dim=1).mean()
        tv = 0.5 * (log_p.exp() - target.exp()).abs().sum(dim=1).mean()
        return {"kl_to_target": float(kl), "tv_to_target": float(tv)}
