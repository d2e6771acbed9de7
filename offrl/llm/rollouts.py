"""Batches of responses with their rewards: sampled by a policy, demonstrated, joined, filtered."""

import dataclasses

import torch
from torch import Tensor

from offrl.estimators.groups import Groups
from offrl.llm.method import TextRollouts
from offrl.llm.tasks.task import Task
from offrl.llm.text import PAD, Prompts, Responses


def demonstrated(tokens: Tensor, pad: int = PAD) -> Responses:
    """Responses of unknown origin: everything up to the padding was chosen."""
    mask = tokens != pad
    return Responses(tokens.clamp(min=0), mask, torch.zeros(tokens.shape, device=tokens.device))


def component_names(task: Task) -> tuple[str, ...]:
    """Of a task's rewards, in the order of ``TextRollouts.components``."""
    prompts = task.prompts(1, torch.Generator().manual_seed(0)).rows(slice(0))
    return tuple(task.rewards(prompts, demonstrated(torch.zeros(0, task.max_response, dtype=torch.int64))))


def rollouts(
    prompts: Prompts,
    responses: Responses,
    rewards: Tensor,
    group_ids: Tensor,
    components: Tensor,
    *,
    demo: bool = False,
) -> TextRollouts:
    """One row a response; ``prompts`` are already repeated, ``components`` are (B, K)."""
    return TextRollouts(
        mask=responses.mask,
        rollout_log_probs=responses.log_probs,
        rewards=rewards,
        group_ids=group_ids,
        demo=torch.full_like(rewards, demo, dtype=torch.bool),
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        tokens=responses.tokens,
        limits=prompts.limits,
        prompt_ids=prompts.ids,
        components=components,
    )


def joined(parts: list[TextRollouts], pad: int = PAD) -> TextRollouts:
    """Rows of all parts, prompts and responses padded to the longest; a group is named by its id, also across parts."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.tokens.shape[1] for part in parts)
    fields = {}
    for field in dataclasses.fields(TextRollouts):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            continue
        if field.name in ("mask", "tokens", "rollout_log_probs", "old_log_probs", "ref_log_probs"):
            fill = pad if field.name == "tokens" else 0
            values = [torch.nn.functional.pad(v, (0, width - v.shape[1]), value=fill) for v in values]
        if field.name in ("prompt_tokens", "prompt_mask"):
            longest = max(v.shape[1] for v in values)
            fill = pad if field.name == "prompt_tokens" else 0
            values = [torch.nn.functional.pad(v, (longest - v.shape[1], 0), value=fill) for v in values]
        fields[field.name] = torch.cat(values)
    return TextRollouts(**fields)


def moved(batch: TextRollouts, device: torch.device) -> TextRollouts:
    """The same on another device."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return batch.replace(**{name: x.to(device) for name, x in fields.items() if isinstance(x, Tensor)})


def first_groups(batch: TextRollouts, count: int) -> TextRollouts:
    """The rows of the ``count`` groups with the smallest ids."""
    kept = batch.group_ids.unique()[:count]
    return batch.rows(torch.isin(batch.group_ids, kept))


def group_shares(rewards: Tensor, group_ids: Tensor, success: Tensor) -> dict[str, Tensor]:
    """Shares of groups whose rewards are all equal: in all, with all rows successful, with none."""
    groups = Groups(group_ids)
    equal = groups.std(rewards) == 0
    right = groups.mean(success.float())
    return {
        "zero_variance": equal.float().mean(),
        "all_right": (equal & (right == 1)).float().mean(),
        "all_wrong": (equal & (right == 0)).float().mean(),
    }
