"""Scaf-GRPO's scaffold: where all responses to a prompt fail, the policy answers it with hints, and one success counts.

    hinted prompts q + h_1 .. q + h_K, from abstract to concrete, one response each
    h* = the first that succeeds; its response takes the place of the group's first one, under the prompt q + h*

The group then has one success among its failures. Log-probabilities of that row, old and new, are those under q + h*,
so that it is on policy. No hints in the first part of the run, and none in evaluations.

Source: arXiv:2510.19807, dvlab-research/Scaf-GRPO.
Departures: all three tiers, of which the published code leaves planning out. All levels are sampled at once, and hints
begin after a fixed share of the run, as in the code; the paper's sign, that fewer prompts are newly solved, is not
looked for.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.estimators.groups import Groups
from offrl.llm.method import TextRollouts
from offrl.llm.rollouts import joined
from offrl.llm.text import Prompts, Responses, stacked


class Hinter(Protocol):
    """Who knows hints."""

    @property
    def hint_levels(self) -> int:
        """How many levels there are at most."""

    def hinted(self, prompts: Prompts, level: int) -> tuple[Prompts, Tensor]:
        """The prompts with their hints of a level from 1, and (N,) bool: which of them have one that fits."""


class Scaffold:
    """Rescues groups that failed.

    Args:
        hinter: knows the hints.
        first: step at which hints begin.
    """

    metrics = ("hint_prompts", "hint_rescued", "hint_level", "hint_graduated")
    always = ("hint_prompts", "hint_rescued", "hint_graduated")
    """Those of every step; a level is there where a hint helped."""

    def __init__(self, hinter: Hinter, first: int) -> None:
        self.hinter, self.first = hinter, first
        self.solved_at: dict[int, int] = {}
        """Prompt id -> the level at which it was solved last, 0 without a hint."""

    def rescue(
        self,
        prompts: Prompts,
        batch: TextRollouts,
        respond: Callable[[Prompts], Responses],
        rewarded: Callable[[Prompts, Responses, Tensor], TextRollouts],
    ) -> tuple[TextRollouts, dict[str, Tensor]]:
        """A batch in which a hinted success replaces a failure of each group that had no success.

        Args:
            prompts: of the groups, in the order of their ids.
            batch: responses.
            respond: one response of the sampling policy to each prompt.
            rewarded: (prompts, responses, group ids) -> rows of a batch.
        """
        assert batch.success is not None
        groups = Groups(batch.group_ids)
        solved = groups.sum(batch.success.float()) > 0
        failed = (~solved).nonzero()[:, 0]
        level = torch.full_like(groups.size, -1).where(~solved, 0)  # -1: not solved at all
        if len(failed):
            batch, level[failed] = self._replaced(prompts, groups, failed, batch, respond, rewarded)
        helped = level > 0
        found = {
            "hint_prompts": (~solved).double().mean(), "hint_rescued": helped.double().mean(),
            "hint_graduated": torch.tensor(self._graduated(prompts, level), dtype=torch.float64),
        }  # fmt: skip
        return batch, found | ({"hint_level": level[helped].double().mean()} if helped.any() else {})

    def _replaced(
        self,
        prompts: Prompts,
        groups: Groups,
        failed: Tensor,
        batch: TextRollouts,
        respond: Any,
        rewarded: Any,
    ) -> tuple[TextRollouts, Tensor]:
        """The batch with a success in each failed group that hints could help, and the levels of these; -1: none."""
        none = self.hinter.hint_levels + 1
        tries, owners, levels = [], [], []
        for number in range(1, none):
            hinted, fits = self.hinter.hinted(prompts.rows(failed), number)
            tries.append(hinted.rows(fits))
            owners.append(failed[fits])
            levels.append(torch.full_like(owners[-1], number))
        asked, owner, level = stacked(tries), torch.cat(owners), torch.cat(levels)
        best = torch.full_like(groups.size, none)
        if len(asked) == 0:
            return batch, best[failed].fill_(-1)
        responses = respond(asked)
        tried = rewarded(asked, responses, groups.ids[owner])
        assert tried.success is not None
        right = tried.success
        best = best.scatter_reduce(0, owner, level.where(right, none), "amin")
        won = (right & (level == best[owner])).nonzero()[:, 0]
        rows = tried.rows(won).replace(
            sources=-1 - groups.ids[owner[won]]
        )  # read under a prompt of their own
        size, device = len(batch.group_ids), batch.group_ids.device
        place = torch.arange(size, device=device)
        first = torch.full_like(groups.size, size).scatter_reduce(0, groups.index, place, "amin")
        place[first[owner[won]]] = size + torch.arange(len(won), device=device)
        batch = joined([batch.replace(sources=batch.group_ids), rows]).rows(place)
        return batch, best[failed].where(best[failed] < none, -1)

    def _graduated(self, prompts: Prompts, level: Tensor) -> float:
        """Share of the prompts solved with a more abstract hint, or none, than the last time."""
        now = {i: at for i, at in zip(prompts.ids.tolist(), level.tolist(), strict=True) if at >= 0}
        higher = [i for i, at in now.items() if at < self.solved_at.get(i, 0)]
        self.solved_at |= {i: at for i, at in now.items() if at or i in self.solved_at}
        return len(higher) / len(prompts)

    def state_dict(self) -> dict[str, Any]:
        """Levels so far."""
        return {"solved_at": dict(self.solved_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.solved_at = dict(state["solved_at"])
