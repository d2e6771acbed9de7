"""Hints and budgets in the manner of verl's agent loops: a group of rollouts at a time, through an async server.

verl's own loop (``AgentLoopBase.run``) sees one rollout; whether a group failed is known where the whole group is, so
that ``rollout_group`` runs one. It needs what a loop has: ``generate(request_id, prompt_ids=...,
sampling_params=...)``, a coroutine that gives an object with ``token_ids`` and ``log_probs``. Rows come back with the
fields of verl's ``AgentLoopOutput`` and the group's uid; advantages take groups of any size by uid, never by position.

Tested on these interfaces with a stand-in server; not run inside verl, nor at scale.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from offrl.estimators.compose import Estimator
from offrl.estimators.rollouts import Rollouts
from offrl.llm.prompts.knapsack import even

Generate = Callable[..., Awaitable[Any]]


@dataclass
class LoopOutput:
    """One rollout, named as verl names it."""

    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    response_logprobs: list[float] | None
    reward_score: float
    num_turns: int = 2
    extra_fields: dict[str, Any] = field(default_factory=dict)


async def rollout_group(
    generate: Generate,
    prompt_ids: list[int],
    count: int,
    reward: Callable[[list[int]], float],
    *,
    sampling_params: dict[str, Any] | None = None,
    hinted: Sequence[list[int]] = (),
    uid: str | None = None,
) -> list[LoopOutput]:
    """``count`` rollouts of a prompt; where none is rewarded, the first hint that is takes the first one's place.

    Args:
        generate: of verl's server manager.
        prompt_ids: of the prompt.
        count: rollouts.
        reward: response ids -> reward.
        sampling_params: passed on.
        hinted: the prompt with hints, from abstract to concrete; one rollout each, all at once.
        uid: of the group; default: a new one.
    """
    uid = uid or str(uuid4())

    async def one(ids: list[int], level: int) -> LoopOutput:
        given = await generate(uuid4().hex, prompt_ids=ids, sampling_params=dict(sampling_params or {}))
        tokens = list(given.token_ids)
        log_probs = None if given.log_probs is None else list(given.log_probs)
        extra = {"uid": uid, "hint_level": level}
        return LoopOutput(ids, tokens, [1] * len(tokens), log_probs, reward(tokens), extra_fields=extra)

    rows = list(await asyncio.gather(*(one(prompt_ids, 0) for _ in range(count))))
    if hinted and all(row.reward_score <= 0 for row in rows):
        tries = await asyncio.gather(*(one(list(ids), level) for level, ids in enumerate(hinted, 1)))
        if solved := [row for row in tries if row.reward_score > 0]:
            rows[0] = solved[0]
    return rows


def group_advantages(estimator: Estimator, rewards: Tensor, uids: Sequence[str], mask: Tensor) -> Tensor:
    """A method's advantages of rows in any order, all prompts weighing the same: (B,), B uids, (B, T) -> (B,)."""
    numbers = {uid: i for i, uid in enumerate(dict.fromkeys(uids))}
    ids = torch.tensor([numbers[uid] for uid in uids], device=rewards.device)
    found = estimator.advantages(Rollouts(rewards=rewards, group_ids=ids, mask=mask))
    return found * even(ids).to(found)
