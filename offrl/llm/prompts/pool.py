"""A fixed set of prompts, and a walk over it that meets each of them once before any comes again."""

from typing import Any

import torch
from torch import Tensor

from offrl.llm.text import Prompts


class Pool:
    """N different prompts, found by their ids.

    Args:
        prompts: of which equal ones are kept once.
    """

    def __init__(self, prompts: Prompts) -> None:
        ids, inverse = torch.unique(prompts.ids, return_inverse=True)
        first = torch.full_like(ids, len(inverse)).scatter_reduce(
            0, inverse, torch.arange(len(inverse)), "amin"
        )
        self.prompts = prompts.rows(first.sort().values)
        self.order = self.prompts.ids.argsort()

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, prompts: Prompts) -> Tensor:
        """(N,) where some prompts of the pool stand in it."""
        return self.order[torch.searchsorted(self.prompts.ids[self.order], prompts.ids.cpu())]


class Walk:
    """Rows of a pool in random order; who may be drawn can change.

    Args:
        size: of the pool.
        generator: of the orders.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.order = torch.randperm(size, generator=generator)
        self.met = torch.zeros(size, dtype=torch.bool)

    def draw(self, count: int, allowed: Tensor) -> Tensor:
        """(count,) of the (size,) allowed rows, none again before all of them were met."""
        drawn: list[Tensor] = []
        while count:
            left = self.order[(allowed & ~self.met)[self.order]][:count]
            self.met[left] = True
            drawn.append(left)
            count -= len(left)
            if count:  # all allowed ones were met: a new order
                self.met[allowed] = False
                self.order = torch.randperm(self.size, generator=self.generator)
        return torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"order": self.order, "met": self.met.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.order, self.met = state["order"].cpu(), state["met"].cpu()
        self.generator.set_state(state["generator"].cpu())
