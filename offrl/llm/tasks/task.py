"""What a task must offer."""

from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.llm.text import Prompts, Responses, Vocabulary, Words


class Task(Protocol):
    """Prompts, and rewards of responses."""

    name: str
    max_prompt: int
    """Tokens of the longest prompt."""
    max_response: int
    """Tokens of the longest response."""
    levels: int
    """Difficulties are 1 .. levels."""
    allowed: Tensor
    """(V,) bool: what may be sampled."""

    @property
    def vocabulary(self) -> Words:
        """What tokens mean."""

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Random prompts, on the CPU."""

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """Components by name, (N,) each; the reward is their sum."""

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """(N,) bool."""

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """(N,) int64, equal for equal final answers to a prompt, -1 where there is none."""

    def measures(self, policy: Any) -> dict[str, float]:
        """What can be computed exactly about a policy; mostly nothing."""


class Demonstrating(Task, Protocol):
    """A task of single turns; the others have an environment with an expert."""

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """(N, T) tokens of a good response each, padded on the right with ``vocabulary.pad``.

        ``noise`` is the share of the tokens that are random instead.
        """


def only(vocabulary: Vocabulary, ids: list[int]) -> Tensor:
    """(V,) bool: these ids."""
    allowed = torch.zeros(len(vocabulary), dtype=torch.bool)
    allowed[ids] = True
    return allowed
