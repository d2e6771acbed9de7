"""Policy gradients and Hessian-vector products from whole trajectories.

    psi_t  = sum_{h >= t} gamma^h r_h - b_t                the discount counts from the start of the episode
    Phi    = sum_t psi_t log pi(a_t | s_t)
    g      = grad Phi                                      E g = grad J
    B u    = grad Phi <grad log p(tau), u> + Hess Phi u    E B u = Hess J u,   log p(tau) = sum_t log pi(a_t | s_t)

The outer product matters: E Hess Phi alone is not the Hessian of J. ``b_t`` may depend on anything but the trajectory's
own actions from t on. M steps of N trajectories lie in a row, with the number of each step's trajectory beside. The
policy is any function from a parameter vector to the log-likelihoods of recorded actions.

Source: arXiv:2302.01734.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LogProbs = Callable[[Tensor], Tensor]  # parameters (D,) -> log pi of every recorded action (M,)


def rewards_to_go(rewards: Tensor, episode: Tensor, discount: float) -> Tensor:
    """sum_{h >= t} gamma^h r_h within the own trajectory, (M,).

    Args:
        rewards: (M,), trajectories one after the other, each in order.
        episode: (M,) int64, ascending: 0 .. N - 1.
        discount: gamma; its powers count from the first step of each trajectory.
    """
    time = time_in_episode(episode)
    discounted = rewards * discount ** time.to(rewards.dtype)
    padded = _by_episode(discounted, episode, time)
    return padded.flip(1).cumsum(1).flip(1)[episode, time]


def leave_one_out(psi: Tensor, episode: Tensor) -> Tensor:
    """Psi less the mean at the same time over the other trajectories, whose psi is 0 after their end, (M,).

    Raises:
        ValueError: there is one trajectory only.
    """
    time, count = time_in_episode(episode), int(episode[-1]) + 1
    if count < 2:
        raise ValueError("leave_one_out needs two or more trajectories")
    sums = _by_episode(psi, episode, time).sum(dim=0)
    return psi - (sums[time] - psi) / (count - 1)


def time_in_episode(episode: Tensor) -> Tensor:
    """Steps since the start of the own trajectory, (M,) int64."""
    lengths = torch.bincount(episode)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(episode), device=episode.device) - starts[episode]


def per_trajectory(values: Tensor, episode: Tensor) -> Tensor:
    """Sums over each trajectory: (M,) -> (N,)."""
    return values.new_zeros(int(episode[-1]) + 1).index_add(0, episode, values)


def policy_gradient(log_probs: LogProbs, theta: Tensor, psi: Tensor, episode: Tensor) -> Tensor:
    """(1/N) sum_i grad Phi_i at ``theta``, (D,); ``psi`` (M,) is constant."""
    count = int(episode[-1]) + 1

    def objective(parameters: Tensor) -> Tensor:
        return (psi * log_probs(parameters)).sum() / count

    gradient: Tensor = torch.func.grad(objective)(theta.detach())
    return gradient


def hessian_vector_product(
    log_probs: LogProbs, theta: Tensor, vector: Tensor, psi: Tensor, episode: Tensor
) -> Tensor:
    """(1/N) sum_i B_i u at ``theta``, (D,), without any Hessian.

    One forward-mode derivative along u gives d log pi; its sums over trajectories are the <grad log p, u> of the outer
    product (constants), its sum weighted by psi is <grad Phi, u>. One backward pass differentiates both terms.

    Args:
        log_probs: see above.
        theta: (D,), where the trajectories were sampled.
        vector: u, (D,), a constant.
        psi: (M,), constants.
        episode: (M,) int64.
    """
    count = int(episode[-1]) + 1

    def objective(parameters: Tensor) -> Tensor:
        values, slopes = torch.func.jvp(log_probs, (parameters,), (vector,))[:2]
        scores = per_trajectory(slopes.detach(), episode)
        total: Tensor = (psi * (scores[episode] * values + slopes)).sum()
        return total / count

    product: Tensor = torch.func.grad(objective)(theta.detach())
    return product


def _by_episode(values: Tensor, episode: Tensor, time: Tensor) -> Tensor:
    """(M,) -> (N, T), zero after the end of each trajectory."""
    table = values.new_zeros(int(episode[-1]) + 1, int(time.max()) + 1)
    return table.index_put((episode, time), values)
