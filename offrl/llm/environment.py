"""Text environments: many episodes that advance together, spoken to in tokens."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from offrl.llm.text import Prompts

State = dict[str, Tensor]
"""Everything that the rest of the episodes depends on, one row an episode."""


@dataclass(frozen=True)
class Answer:
    """What an environment answers to a turn of M episodes."""

    observations: Tensor
    """(M, O) int64 tokens, padded on the right."""
    lengths: Tensor
    """(M,) int64, how many of them there are; at least one."""
    rewards: Tensor
    """(M,) float."""
    ended: Tensor
    """(M,) bool."""
    cut: Tensor
    """(M,) bool: ended by a limit on turns."""


class Environment(Protocol):
    """Episodes after ``reset``; they end one by one."""

    longest_turn: int
    """Tokens that a turn may have; it ends earlier with one of ``turn_ends``."""
    longest_answer: int
    """Tokens of the longest observation."""
    turn_ends: Tensor
    """(V,) bool."""

    def reset(self, prompts: Prompts) -> None:
        """One episode a prompt; rows of equal ``prompts.ids`` begin alike."""

    def step(self, rows: Tensor, actions: Tensor) -> Answer:
        """One turn of some episodes.

        Args:
            rows: (M,) int64.
            actions: (M, longest_turn) tokens, padded on the right.
        """

    def expert(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(M, longest_turn) tokens of a good turn, padded on the right."""

    def state(self) -> State:
        """A copy of the state of all episodes."""

    def restore(self, state: State) -> None:
        """Go on from such a state; also from some of its rows, in any order and number."""


class Stateful:
    """``state`` and ``restore`` of an environment all of whose state is in ``self.now``."""

    now: State

    def state(self) -> State:
        """A copy."""
        return {name: x.clone() for name, x in self.now.items()}

    def restore(self, state: State) -> None:
        """Go on from it."""
        self.now = {name: x.clone() for name, x in state.items()}
