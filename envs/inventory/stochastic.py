"""Sampled rollouts of a policy with Gaussian noise on its logits, for score-function estimators; gradient variance.

    z_t ~ Normal(logits(o_t), sigma^2),  a_t = orders(z_t),  log pi(z_t | o_t) summed over the logits

The feasibility layer comes after the noise, so that every sampled order can be shipped. Rows are scenarios;
several draws on the same demand path are several rows with one group id.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from offrl.envs.inventory.policies import InventoryPolicy
from offrl.envs.inventory.scenarios import Scenarios
from offrl.estimators.groups import Groups

LOG_TWO_PI = math.log(2 * math.pi)


class Sampled(NamedTuple):
    """What a sampled rollout leaves; T periods, B rows."""

    rewards: Tensor
    """(B, T): minus the network's discounted cost of all nodes over T times the number of stores; their sum is minus
    the training loss."""
    log_probs: Tensor
    """(B, T), with gradient where it was asked for."""
    stocks: list[Tensor]
    """T + 1 states (B, N, K)."""
    wishes: list[Tensor]
    """T samples z, (B, Z)."""


def log_prob(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of z, summed over the last axis; (B, Z) each -> (B,)."""
    scaled = (z - mean) * (-log_std).exp()
    return (-0.5 * (scaled.square() + LOG_TWO_PI) - log_std).sum(-1)


def sample(
    policy: InventoryPolicy,
    log_std: Tensor,
    scenarios: Scenarios,
    noise: Callable[[tuple[int, int]], Tensor],
) -> Sampled:
    """Follow the noisy policy. States are constants, so that ``log_probs`` has the gradient of the score alone.

    Args:
        policy: S seeds.
        log_std: log sigma of each row's logits, (B, Z) or (1, Z).
        scenarios: S * rows of them, those of seed 0 first.
        noise: (rows, columns) -> standard normal draws.
    """
    simulator = scenarios.simulator()
    state = simulator.start(scenarios.initial)
    scale = -1.0 / (scenarios.network.stores * scenarios.periods)
    rewards, log_probs, stocks, wishes = [], [], [scenarios.initial], []
    for t in range(scenarios.periods):
        seen = scenarios.observe(simulator.stock(state), t)
        mean = policy.logits(seen)
        with torch.no_grad():
            z = mean + log_std.exp() * noise((len(mean), mean.shape[1]))
            state, cost = simulator.step(
                state, policy.orders(z, seen), scenarios.demands[t + scenarios.history]
            )
        log_probs.append(log_prob(z, mean, log_std))
        rewards.append(cost.sum(1) * (scale * scenarios.network.discount**t))
        stocks.append(simulator.stock(state))
        wishes.append(z)
    return Sampled(torch.stack(rewards, 1), torch.stack(log_probs, 1), stocks, wishes)


def recomputed(policy: InventoryPolicy, log_std: Tensor, scenarios: Scenarios, sampled: Sampled) -> Tensor:
    """Log pi of the recorded samples under the current policy, (B, T), with gradient."""
    columns = [
        log_prob(z, policy.logits(scenarios.observe(stock, t)), log_std)
        for t, (stock, z) in enumerate(zip(sampled.stocks, sampled.wishes, strict=False))
    ]
    return torch.stack(columns, 1)


def total_return(rewards: Tensor) -> Tensor:
    """The whole row's sum at every step: REINFORCE without causality, (B, T)."""
    return rewards.sum(1, keepdim=True).expand_as(rewards)


def minus_group_mean(advantages: Tensor, group_ids: Tensor) -> Tensor:
    """Minus the mean of the group at the same period, (B, T)."""
    groups = Groups(group_ids)
    sums = advantages.new_zeros(len(groups.ids), advantages.shape[1]).index_add(0, groups.index, advantages)
    means: Tensor = sums / groups.size[:, None]
    return advantages - means[groups.index]


def minus_other_draws(advantages: Tensor, group_ids: Tensor) -> Tensor:
    """Minus the mean of the group's other rows at the same period (leave one out), (B, T).

    With groups of the same demand path this takes the noise of demand out of the baseline.
    """
    size = Groups(group_ids)
    rows = size.rows(size.size)[:, None]
    return minus_group_mean(advantages, group_ids) * (rows / (rows - 1).clamp(min=1))


def whiten_groups(advantages: Tensor, group_ids: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) over all steps of each group, (B, T)."""
    groups = Groups(group_ids)
    centered = advantages - groups.rows(groups.mean(advantages.mean(1)))[:, None]
    std = groups.mean(centered.square().mean(1)).sqrt()
    return centered / (groups.rows(std)[:, None] + 1e-8)


def per_scenario(policy: InventoryPolicy, copies: int) -> InventoryPolicy:
    """The policy of one seed with a copy of its parameters for each of ``copies`` equal parts of the rows.

    Gradients of a sum over rows are then gradients of each part by itself.
    """
    other = copy.deepcopy(policy.single(0))
    other.copies = copies
    for parameter in other.parameters():
        if not parameter.requires_grad:
            continue
        parameter.data = parameter.data.expand(copies, *parameter.shape[1:]).clone()
    return other


def spread(gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean gradient (P,), and the variance of a part's gradient summed over parameters, from (copies, ...) each."""
    flat = torch.cat([g.flatten(1) for g in gradients], 1)
    return flat.mean(0), flat.var(0).sum()
