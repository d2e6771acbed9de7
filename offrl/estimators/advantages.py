"""Advantages: how much better than expected a step or a row was. Computed once a rollout, without gradient.

Temporal ones take (B, T) rewards, group ones (B,) outcomes. ``terminated`` alone says that nothing follows; where
``truncated`` (or the end of a segment) cuts a trajectory, the next value takes the place of what was not seen.
Functions that take ``advantages`` change them and can follow another in ``compose``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offrl.estimators.aggregation import masked_sum
from offrl.estimators.groups import Groups


def discounted_sums(x: Tensor, factors: Tensor) -> Tensor:
    """y_t = x_t + factors_t y_{t+1} along the last axis, y = 0 beyond it; (..., T), (..., T) -> (..., T).

    In log2 T passes over the whole tensor instead of T steps.
    """
    steps, reach = x.shape[-1], 1
    while reach < steps:
        ahead = torch.nn.functional.pad(x[..., reach:], (0, reach))
        x = torch.addcmul(x, factors, ahead)
        factors = factors * torch.nn.functional.pad(factors[..., reach:], (0, reach))
        reach *= 2
    return x


def next_values(
    values: Tensor,
    last_values: Tensor | None = None,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """V of what followed each step, (B, T): the next chosen step's value, or the true one at a time limit.

    Args:
        values: V(s_t), (B, T).
        last_values: V after the last step, (B,); 0 if None.
        truncated: (B, T); where true, s_{t+1} in the segment is already another episode's first.
        final_values: V(last observation of the cut episode), (B, T), read where ``truncated``.
        mask: (B, T) bool; steps that are not chosen are passed over.
    """
    last = torch.zeros_like(values[:, 0]) if last_values is None else last_values
    line = torch.cat([values, last[:, None]], dim=1)
    if mask is not None:
        keep = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1).to(values.dtype)
        line = discounted_sums(line.where(keep.bool(), 0.0), 1.0 - keep)
    following = line[:, 1:]
    if truncated is None:
        return following
    if final_values is None:
        raise ValueError("truncated steps need final_values: V of the observation that the time limit cut at")
    return torch.where(truncated.bool(), final_values, following)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    discount: float = 0.99,
    lam: float = 0.95,
) -> Tensor:
    """A_t = delta_t + discount lam (1 - done_t) A_{t+1}, delta_t = r_t + discount (1 - terminated_t) V' - V.

    The value targets are A + V. Steps that are not chosen are passed over and get 0.

    Args:
        rewards: (B, T).
        values: V(s_t), (B, T).
        next_values: V', (B, T); function ``next_values``.
        terminated: (B, T); None: never.
        truncated: (B, T); None: never. The end of the segment is one too, through V'.
        mask: (B, T) bool.
        discount: gamma, per step.
        lam: lambda; 0: one-step, 1: all rewards to the end.

    Source: arXiv:1506.02438; time limits as in arXiv:1712.00378.
    """
    _check_steps(rewards)
    alive = 1.0 if terminated is None else 1.0 - terminated.to(rewards.dtype)
    delta = rewards + discount * alive * next_values - values
    factors = discount * lam * _going_on(rewards, terminated, truncated)
    if mask is not None:
        delta, factors = delta.where(mask, 0.0), factors.where(mask, 1.0)
    sums = discounted_sums(delta, factors)
    return sums if mask is None else sums.where(mask, 0.0)


def returns_to_go(
    rewards: Tensor,
    next_values: Tensor | None = None,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    discount: float = 1.0,
) -> Tensor:
    """G_t = sum_k discount^k r_{t+k} to the end of the episode, (B, T).

    Args:
        rewards: (B, T).
        next_values: (B, T); read at time limits and at the end of the segment, 0 if None.
        terminated: (B, T); None: never.
        truncated: (B, T); None: never.
        mask: (B, T) bool; steps that are not chosen are passed over and get 0.
        discount: per step.
    """
    _check_steps(rewards)
    if next_values is None:
        next_values = torch.zeros_like(rewards)
    zero = torch.zeros_like(rewards)
    # with V = 0 except at cuts, lambda = 1 telescopes to the rewards and the value at the cut
    done = 1.0 - _going_on(rewards, terminated, truncated)
    done[:, -1] = 1.0
    cut = done if mask is None else _last_chosen(done, mask)
    return gae(rewards, zero, next_values * cut, terminated, cut, mask, discount=discount, lam=1.0)


def n_step(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    *,
    steps: int = 5,
    discount: float = 0.99,
) -> Tensor:
    """r_t + ... + discount^(n-1) r_{t+n-1} + discount^n V(s_{t+n}) - V(s_t), fewer rewards before an end or cut.

    Args:
        rewards: (B, T).
        values: V(s_t), (B, T).
        next_values: (B, T); function ``next_values``.
        terminated: (B, T); None: never.
        truncated: (B, T); None: never.
        steps: n, 1 or more.
        discount: per step.
    """
    _check_steps(rewards)
    if steps < 1:
        raise ValueError(f"n_step needs 1 step or more, got {steps}")
    alive = 1.0 if terminated is None else 1.0 - terminated.to(rewards.dtype)
    going = _going_on(rewards, terminated, truncated)
    going[:, -1] = 0.0
    one_step = rewards + discount * alive * next_values
    target = one_step
    for _ in range(steps - 1):
        longer = rewards + discount * target.roll(-1, dims=1)
        target = torch.where(going > 0, longer, one_step)
    return target - values


def outcome(rewards: Tensor) -> Tensor:
    """The reward itself, no baseline; (B,) or (B, T)."""
    return rewards


def ones(old_log_probs: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """1 everywhere: with denominator ``current`` that is supervised fine-tuning."""
    source = mask if old_log_probs is None else old_log_probs
    if source is None:
        raise ValueError("needs a mask or old_log_probs to know the shape")
    return torch.ones(source.shape, device=source.device)


def greedy(rewards: Tensor, baseline_rewards: Tensor) -> Tensor:
    """R minus the greedy response's; (B,), (B,) -> (B,). Source: ReMax, arXiv:2310.10505."""
    return rewards - baseline_rewards


def group_mean(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """R_i - mean of its group; (B,), (B,) -> (B,). Source: Dr. GRPO, arXiv:2503.20783."""
    return Groups(group_ids).centered(rewards)


def group_std(rewards: Tensor, group_ids: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """(R_i - mean) / (std + epsilon) of its group, std unbiased; 0 where all rewards of a group are equal.

    Libraries differ in epsilon: verl 1e-6, trl 1e-4. A group of one gets 0.

    Source: GRPO, arXiv:2402.03300.
    """
    groups = Groups(group_ids)
    return groups.centered(rewards) / (groups.rows(groups.std(rewards)) + epsilon)


def group_leave_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """R_i - mean of the group's other rows = G / (G - 1) (R_i - mean); a group of one gets 0.

    Source: RLOO, arXiv:2402.14740.
    """
    groups = Groups(group_ids)
    size = groups.rows(groups.size)
    return groups.centered(rewards) * (size / (size - 1).clamp(min=1))


def lone_rewards(advantages: Tensor, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Advantages where a row alone in its group gets its reward, as in volcengine/verl, in place of 0; (B,)."""
    groups = Groups(group_ids)
    return torch.where(groups.rows(groups.size) == 1, rewards, advantages)


def group_length(
    rewards: Tensor, group_ids: Tensor, lengths: Tensor, *, leave_one_out: bool = False
) -> Tensor:
    """R_i - sum_j L_j R_j / sum_j L_j over its group; (B,) each. Source: OPO, arXiv:2505.23585."""
    return group_weighted(rewards, group_ids, lengths, leave_one_out=leave_one_out)


def group_weighted(
    rewards: Tensor, group_ids: Tensor, baseline_weights: Tensor, *, leave_one_out: bool = False
) -> Tensor:
    """R_i minus the weighted mean reward of its group; with ``leave_one_out`` of the others, which is unbiased.

    Weights |grad log pi(y_j)|^2 give the baseline of least variance. Groups whose weights all vanish have equal ones.
    All (B,).
    """
    groups = Groups(group_ids)
    rewards = rewards - groups.rows(groups.max(rewards))  # so that equal ones give exactly 0
    weights = baseline_weights.clamp(min=torch.finfo(baseline_weights.dtype).tiny ** 0.5)
    if not leave_one_out:
        return rewards - groups.rows(groups.sum(weights * rewards) / groups.sum(weights))
    alone = groups.rows(groups.size) == 1
    baseline = groups.others(weights * rewards) / groups.others(weights)
    return torch.where(alone, 0.0, rewards - baseline)


def whiten(
    advantages: Tensor, mask: Tensor | None = None, *, center: bool = True, epsilon: float = 1e-8
) -> Tensor:
    """(A - mean) / (std + epsilon) over all chosen steps, std unbiased; (B,) values count once a step.

    Where all are equal but for rounding of their mean, it is taken for them: 0 / epsilon, not noise / noise.
    Without ``center`` the mean is put back. Statistics are those of what is passed: give it the whole batch.
    """
    if mask is None:
        mean, std = advantages.mean(), _std(advantages)
    else:
        advantages = advantages if advantages.dim() == 2 else advantages[:, None]
        advantages = advantages.expand(mask.shape)
        tokens = mask.sum()
        mean = masked_sum(advantages, mask) / tokens.clamp(min=1)
        squares = masked_sum((advantages - mean).square(), mask)
        std = (squares / (tokens - 1).clamp(min=1)).sqrt()
    white = (advantages - mean) / (std + epsilon)
    white = white.masked_fill(
        std <= 16.0 * torch.finfo(std.dtype).eps * mean.abs(), 0.0
    )  # nothing but rounding
    return white if center else white + mean


def each_reward(
    components: Tensor, advantage: Callable[[Tensor], Tensor], weights: Sequence[float] = ()
) -> Tensor:
    """sum_k w_k advantage(r_k): several rewards, each turned into an advantage before they are added; (B, K) -> (B,).

    Args:
        components: (B, K).
        advantage: (B,) -> (B,).
        weights: K of them; none: all 1.
    """
    columns = components.unbind(dim=1)
    if weights and len(weights) != len(columns):
        raise ValueError(f"{len(weights)} weights for {len(columns)} rewards")
    total = torch.zeros_like(columns[0])
    for weight, column in zip(weights or [1.0] * len(columns), columns, strict=True):
        total = total + weight * advantage(column)
    return total


def whiten_rows(advantages: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """(A - mean) / (std + epsilon) over rows, std unbiased: (B,) -> (B,)."""
    return (advantages - advantages.mean()) / (_std(advantages) + epsilon)


def rewards_at_end(
    outcomes: Tensor, mask: Tensor, log_ratio: Tensor | None = None, coef: float = 0.0
) -> Tensor:
    """Step rewards: the outcome at the last chosen step, minus coef log(pi / ref) at every one.

    Args:
        outcomes: (B,).
        mask: (B, T) bool.
        log_ratio: (B, T) log pi_old - log pi_ref, the k1 estimate of the KL; None: no such term.
        coef: weight of the KL in the reward.

    Returns:
        (B, T).
    """
    last = _last_chosen(torch.zeros_like(mask, dtype=outcomes.dtype), mask) * mask.any(dim=1, keepdim=True)
    rewards = outcomes[:, None] * last
    return rewards if log_ratio is None else rewards - coef * log_ratio.where(mask, 0.0)


def _std(x: Tensor) -> Tensor:
    """Unbiased over all of ``x``; 0 of a single number."""
    return x.std() if x.numel() > 1 else x.new_zeros(())


def _check_steps(rewards: Tensor) -> None:
    """Refuse outcomes of rows where rewards of steps are read."""
    if rewards.dim() < 2:
        raise ValueError(
            f"rewards must be one a step, (B, T), got shape {tuple(rewards.shape)}; "
            "rewards_at_end makes them of outcomes"
        )


def _going_on(like: Tensor, terminated: Tensor | None, truncated: Tensor | None) -> Tensor:
    going = torch.ones_like(like)
    for flag in (terminated, truncated):
        if flag is not None:
            going = going * (1.0 - flag.to(like.dtype))
    return going


def _last_chosen(done: Tensor, mask: Tensor) -> Tensor:
    """``done`` with 1 also at the last chosen step of every row; (B, T)."""
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int8).argmax(dim=1)
    return done.scatter(1, last[:, None], 1.0)


ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "returns_to_go": returns_to_go,
    "n_step": n_step,
    "gae": gae,
    "outcome": outcome,
    "ones": ones,
    "greedy": greedy,
    "group_mean": group_mean,
    "group_std": group_std,
    "group_leave_one_out": group_leave_one_out,
    "lone_rewards": lone_rewards,
    "group_length": group_length,
    "group_weighted": group_weighted,
    "whiten": whiten,
    "whiten_rows": whiten_rows,
}
