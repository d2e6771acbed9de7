"""GDPO: each of several rewards is normalized within the group before they are added, so that none drowns another.

    A_ik = (R_ik - mean) / (std + 1e-4) of reward k in the group            A_i = sum_k w_k A_ik
    loss = -mean_i 1/L_i sum_t min(r A^, clip(r) A^),     A^ = (A - mean) / (std + 1e-4) over the batch

Summed first, as in GRPO, responses that earn different rewards get equal advantages. The scale of a reward does not
matter here, only its weight.

Source: arXiv:2601.05242.
Departures: the loss is GRPO's; its variant with DAPO's parts is not here. Both epsilons are huggingface/trl's. By
default every response counts once in the batch's statistics, as in the paper and trl; volcengine/verl counts tokens.
A single reward is whitened too. A reward that counts only where another is earned is a matter of the task.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from offrl.estimators.advantages import each_reward, group_std
from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms
from offrl.llm.rollouts import component_names

EPSILON = 1e-4


@dataclass(frozen=True, kw_only=True)
class GDPOConfig(ClipSettings):
    """Settings of GDPO."""

    weights: tuple[float, ...] = ()
    """One a reward, in the order of the task's; none: all 1."""
    whiten_over: Literal["responses", "tokens"] = "responses"
    """What counts once in the batch's mean and std; over tokens, groups that teach nothing get an advantage too."""


def each_group_std(components: Tensor, group_ids: Tensor, *, weights: tuple[float, ...]) -> Tensor:
    """sum_k w_k (R_k - mean) / (std + epsilon), of each group; (B, K), (B,) -> (B,)."""
    return each_reward(components, partial(group_std, group_ids=group_ids, epsilon=EPSILON), weights)


def estimator(settings: GDPOConfig, length: int) -> Estimator:
    """The composition."""
    whiten = "whiten_rows" if settings.whiten_over == "responses" else "whiten"
    advantage = [(each_group_std, {"weights": settings.weights}), (whiten, {"epsilon": EPSILON})]
    return recipe("grpo", advantage=advantage, mask=clip(settings), regularizers=terms(settings))


def unfit(settings: GDPOConfig, options: Any, task: Any) -> str | None:
    """Weights that the task has no rewards for, or that normalizing takes away again."""
    names = component_names(task)
    for reward in getattr(task, "components", ()):  # of a data set; -1 turns a reward around, 0 leaves it out
        if reward.weight not in (-1.0, 0.0, 1.0):
            return f"the weight {reward.weight:g} of --reward {reward.name} has no effect: pass --weights"
    if settings.weights and len(settings.weights) != len(names):
        return f"{len(settings.weights)} weights for the {len(names)} rewards of {task.name} ({', '.join(names)})"
    if settings.weights and not any(settings.weights):
        return "all rewards weigh 0: nothing would be learnt"
    return None


METHOD = Method(config=GDPOConfig, estimator=estimator, grouped=True, unfit=unfit)
