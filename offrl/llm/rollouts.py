"""Batches of responses with their rewards: sampled by a policy, demonstrated, joined, filtered."""

import dataclasses

import torch
from torch import Tensor

from offrl.estimators.groups import Groups
from offrl.llm.episodes import demonstrate, environment_of
from offrl.llm.method import TextRollouts
from offrl.llm.tasks.task import Task
from offrl.llm.text import PAD, Prompts, Responses


def demonstrated(tokens: Tensor, pad: int = PAD) -> Responses:
    """Responses of unknown origin: everything up to the padding was chosen."""
    mask = tokens != pad
    return Responses(tokens.clamp(min=0), mask, torch.zeros(tokens.shape, device=tokens.device))


def demonstrations(task: Task, prompts: Prompts, generator: torch.Generator, noise: float) -> Responses:
    """A good response to each prompt, or a good episode where the task has an environment."""
    if environment_of(task) is None:
        return demonstrated(task.demonstrations(prompts, generator, noise), task.vocabulary.pad)
    return demonstrate(task, prompts, generator, noise)


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
    turns = torch.where(responses.mask, 0, -1) if responses.step_ids is None else responses.step_ids
    mask = responses.mask
    if responses.overlong is not None:
        mask = mask & ~responses.overlong[:, None]
    return TextRollouts(
        mask=mask,
        segments=responses.segments,
        contexts=responses.contexts,
        context_mask=responses.context_mask,
        step_ids=turns,
        step_rewards=responses.rewards,
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
    fields = {}
    for field in dataclasses.fields(TextRollouts):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            continue
        fill = {"tokens": pad, "prompt_tokens": pad, "contexts": pad, "step_ids": -1, "segments": -1}
        if values[0].dim() > 1 and field.name != "components":
            on_the_left = field.name in ON_THE_LEFT
            values = widened(values, fill.get(field.name, 0), on_the_left=on_the_left)
        fields[field.name] = torch.cat(values)
    return TextRollouts(**fields)


ON_THE_LEFT = ("prompt_tokens", "prompt_mask", "contexts", "context_mask")
"""Fields that are padded on the left."""


def widened(parts: list[Tensor], fill: float, *, on_the_left: bool) -> list[Tensor]:
    """All as long as the longest in every axis but the first, the last one filled up on the side asked for."""
    sizes = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].dim())]
    found = []
    for part in parts:
        missing = [size - given for size, given in zip(sizes, part.shape[1:], strict=True)]
        *others, last = missing
        padding = [last, 0] if on_the_left else [0, last]
        for size in reversed(others):
            padding += [0, size]
        found.append(torch.nn.functional.pad(part, padding, value=fill))
    return found


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
