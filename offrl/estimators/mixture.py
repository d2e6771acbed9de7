"""Policies that are mixtures of K Gaussians: densities, draws, and four gradients for the weights.

    pi(a | s) = sum_i w_i(s) N(a; mu_i(s), sigma_i(s)^2),   a_i = mu_i + sigma_i eps_i one draw of every expert

A loss J = E_{i ~ w} c(a_i), c = alpha log pi(a | s) - Q(s, a), is minimised with one of

    frequency  the gate learns how often an expert wins:  mean (w - onehot argmax_i Q(s, a_i))^2;
               the experts descend c(a_i) of the winner alone, or the mean over all of them.  Not a gradient of J
    marginal   sum_i w_i c(a_i): exact in the index
    score      c(a_i) + (c(a_i) - baseline) log w_i with i ~ w, the factor constant: the score ratio
    gumbel     c(sum_i y_i a_i), y = onehot argmax(log w + g) with the derivative of softmax((log w + g) / T)

Shapes: K is the axis before A; what leads is free. Where ``squash`` is on, a = tanh(u) and u is the Gaussian one.

Source: PMOE, arXiv:2104.09122 (frequency); straight-through Gumbel-softmax, arXiv:1611.01144.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offrl.estimators.likelihood import gaussian_log_prob, tanh_gaussian_sample


class Mixture(NamedTuple):
    """The parameters of a mixture for a batch of states."""

    log_weights: Tensor  # (..., K), normalised
    mean: Tensor  # (..., K, A)
    log_std: Tensor  # (..., K, A)

    @property
    def weights(self) -> Tensor:
        """w, (..., K)."""
        return self.log_weights.exp()

    def expert(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std (..., A) of one expert a state, ``index`` (...) int64."""
        return pick(self.mean, index), pick(self.log_std, index)


def mixture(gate: Tensor, mean: Tensor, log_std: Tensor) -> Mixture:
    """From gate logits (..., K), and moments (..., K, A)."""
    return Mixture(gate.log_softmax(dim=-1), mean, log_std.expand_as(mean))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[..., index, :]``: (..., K, A), (...) int64 -> (..., A)."""
    if values.shape[-2] == 1:
        return values.squeeze(-2)
    chosen = index[..., None, None].expand(*index.shape, 1, values.shape[-1])
    return values.gather(-2, chosen).squeeze(-2)


def log_slope(u: Tensor) -> Tensor:
    """sum_A log(1 - tanh(u)^2), exact where tanh(u) rounds to 1: (..., A) -> (...)."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u)).sum(dim=-1)


def log_prob(m: Mixture, u: Tensor, *, squash: bool) -> Tensor:
    """Log pi of what was drawn, nats.

    Args:
        m: the mixture.
        u: the action before the tanh, (..., A).
        squash: whether the density is that of tanh(u).
    """
    experts = gaussian_log_prob(m.mean, m.log_std, u[..., None, :])
    total = torch.logsumexp(m.log_weights + experts, dim=-1)
    return total - log_slope(u) if squash else total


def every_log_prob(m: Mixture, u: Tensor, *, squash: bool) -> Tensor:
    """Log pi of each expert's draw under the whole mixture: u (..., K, A) -> (..., K)."""
    wide = Mixture(m.log_weights[..., None, :], m.mean[..., None, :, :], m.log_std[..., None, :, :])
    return log_prob(wide, u, squash=squash)


class Draws(NamedTuple):
    """One draw of every expert, differentiable in the moments."""

    u: Tensor  # before the tanh, (..., K, A)
    actions: Tensor  # (..., K, A)
    log_probs: Tensor  # of each expert's own density, (..., K)


def draw_all(m: Mixture, noise: Tensor, *, squash: bool) -> Draws:
    """One draw of every expert from standard normal ``noise`` (..., K, A)."""
    u = m.mean + m.log_std.exp() * noise
    if squash:
        return Draws(u, *tanh_gaussian_sample(m.mean, m.log_std, noise))
    log_normal = -(0.5 * noise.square() + m.log_std + 0.5 * math.log(2 * math.pi))
    return Draws(u, u, log_normal.sum(dim=-1))


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()


def gumbel_like(values: Tensor) -> Tensor:
    """Standard Gumbel numbers from torch's global stream, in the shape of ``values``."""
    return -torch.empty_like(values).exponential_().log()


def draw_index(m: Mixture, gumbels: Tensor) -> Tensor:
    """I ~ w by the largest log w + g: (..., K) -> (...) int64."""
    return (m.log_weights + gumbels).argmax(dim=-1)


def straight_through(m: Mixture, gumbels: Tensor, temperature: float) -> Tensor:
    """One-hot i ~ w with the derivative of softmax((log w + g) / temperature), (..., K)."""
    soft = ((m.log_weights + gumbels) / temperature).softmax(dim=-1)
    hard = F.one_hot(draw_index(m, gumbels), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def entropy(log_weights: Tensor) -> Tensor:
    """-sum w log w in nats, (..., K) -> (...); a weight of 0 counts as nothing."""
    w = log_weights.exp()
    return -torch.where(w > 0, w * log_weights, 0.0).sum(dim=-1)


def distance(means: Tensor) -> Tensor:
    """Root-mean-square distance between two experts' means, over pairs and batch: (..., B, K, A) -> (...)."""
    rows, experts = means.shape[-3:-1]
    from_center = (means - means.mean(dim=-2, keepdim=True)).square().sum(dim=(-3, -2, -1))
    return (from_center * (2.0 / (rows * max(experts - 1, 1)))).sqrt()


def wins(q: Tensor) -> Tensor:
    """One-hot of the expert whose draw is best, a constant: (..., K) -> (..., K); the first one of equals."""
    return F.one_hot(q.detach().argmax(dim=-1), q.shape[-1]).to(q.dtype)


def frequency_loss(weights: Tensor, q: Tensor) -> Tensor:
    """Mean over batch and experts of (w - wins)^2: the gate's loss, (..., B, K), (..., B, K) -> (...).

    Its expectation over draws is least, inside the simplex, where w_i is the probability that i wins.
    """
    return (weights - wins(q)).square().mean(dim=(-2, -1))


def winner_loss(cost: Tensor, q: Tensor) -> Tensor:
    """Mean over the batch of the winner's cost, (..., B, K), (..., B, K) -> (...); the others get no gradient."""
    return (cost * wins(q)).sum(dim=-1).mean(dim=-1)


def marginal_loss(weights: Tensor, cost: Tensor) -> Tensor:
    """Mean over the batch of sum_i w_i c(a_i), (..., B, K), (..., B, K) -> (...)."""
    return (weights * cost).sum(dim=-1).mean(dim=-1)


def score_loss(log_weight: Tensor, cost: Tensor) -> Tensor:
    """Mean over the batch of c(a_i) with the score ratio for i: its value is mean c.

    The baseline is the mean cost of the batch's other rows, which keeps the gradient unbiased.

    Args:
        log_weight: log w_i of the drawn expert, (..., B).
        cost: c(a_i), reparameterised, (..., B).
    """
    rows, constant = cost.shape[-1], cost.detach()
    others = (constant.sum(dim=-1, keepdim=True) - constant) / max(rows - 1, 1)
    zero = log_weight - log_weight.detach()
    return (cost + (constant - others) * zero).mean(dim=-1)


Critic = Callable[[Tensor], Tensor]  # N actions a state, (..., B, N, A) -> their values (..., B, N)


class ActorLoss(NamedTuple):
    """What a step of a soft actor-critic needs; all but the loss are constants."""

    loss: Tensor  # (...)
    log_probs: Tensor  # of the actions that count, (..., B): what tunes the temperature
    q: Tensor  # their values, (..., B)
    gate_loss: Tensor  # of the frequency gradient, else 0, (...)
    own: Tensor  # log_probs of draws from pi itself, or their mean over experts, (..., B)


def frequency(
    m: Mixture,
    noise: Tensor,
    uniform: Tensor,
    critic: Critic,
    alpha: Tensor,
    *,
    squash: bool = True,
    every: bool = False,
    whole: bool = False,
    weight: float = 1.0,
) -> ActorLoss:
    """PMOE's own: the winner (or ``every`` expert) descends its cost, the gate learns how often each wins.

    The gate's gradient is that of its own loss only: where w enters the cost (``whole``), it is a constant.

    Args:
        m: the mixture, (..., B, K).
        noise: standard normal, (..., B, K, A).
        uniform: unused here; (..., B, K) from [0, 1) elsewhere.
        critic: values of actions.
        alpha: temperature (...), a constant.
        squash: actions are tanh(u).
        every: mean cost over all experts in place of the winner's.
        whole: log pi of the whole mixture in place of the expert's own density.
        weight: of the gate's loss.
    """
    draws = draw_all(m, noise, squash=squash)
    q = critic(draws.actions)
    fixed = Mixture(m.log_weights.detach(), m.mean, m.log_std)
    log_probs = every_log_prob(fixed, draws.u, squash=squash) if whole else draws.log_probs
    cost = alpha[..., None, None] * log_probs - q
    experts = cost.mean(dim=(-2, -1)) if every else winner_loss(cost, q)
    gate, won = frequency_loss(m.weights, q), wins(q)
    best = ((log_probs * won).sum(-1).detach(), (q * won).sum(-1).detach())
    own = (m.weights * log_probs).sum(-1).detach()
    return ActorLoss(experts + weight * gate, *best, gate.detach(), own)


def marginal(
    m: Mixture, noise: Tensor, uniform: Tensor, critic: Critic, alpha: Tensor, *, squash: bool = True
) -> ActorLoss:
    """The sum over experts of w c: exact in the index. Arguments as in ``frequency``."""
    draws = draw_all(m, noise, squash=squash)
    q, log_probs = critic(draws.actions), every_log_prob(m, draws.u, squash=squash)
    loss = marginal_loss(m.weights, alpha[..., None, None] * log_probs - q)
    mean = [(m.weights * values).sum(-1).detach() for values in (log_probs, q)]
    return ActorLoss(loss, mean[0], mean[1], torch.zeros_like(loss), mean[0])


def score(
    m: Mixture, noise: Tensor, uniform: Tensor, critic: Critic, alpha: Tensor, *, squash: bool = True
) -> ActorLoss:
    """An expert is drawn; the score ratio carries the gradient to the gate. Arguments as in ``frequency``."""
    index = draw_index(m, gumbel(uniform))
    u = pick(draw_all(m, noise, squash=squash).u, index)
    log_weight = m.log_weights.gather(-1, index[..., None]).squeeze(-1)
    log_probs, q = _density_and_value(m, u, critic, squash)
    loss = score_loss(log_weight, alpha[..., None] * log_probs - q)
    constant = log_probs.detach()
    return ActorLoss(loss, constant, q.detach(), torch.zeros_like(loss), constant)


def gumbel_softmax(
    m: Mixture,
    noise: Tensor,
    uniform: Tensor,
    critic: Critic,
    alpha: Tensor,
    *,
    squash: bool = True,
    temperature: float = 1.0,
) -> ActorLoss:
    """An expert is drawn; the derivative of a softmax stands in for that of the draw. Arguments as in ``frequency``."""
    y = straight_through(m, gumbel(uniform), temperature)
    u = (y[..., None] * draw_all(m, noise, squash=squash).u).sum(dim=-2)
    log_probs, q = _density_and_value(m, u, critic, squash)
    loss = (alpha[..., None] * log_probs - q).mean(dim=-1)
    constant = log_probs.detach()
    return ActorLoss(loss, constant, q.detach(), torch.zeros_like(loss), constant)


def _density_and_value(m: Mixture, u: Tensor, critic: Critic, squash: bool) -> tuple[Tensor, Tensor]:
    """Log pi and Q of one action a state, (..., B, A) -> (..., B) each."""
    actions = u.tanh() if squash else u
    return log_prob(m, u, squash=squash), critic(actions[..., None, :]).squeeze(-1)


GRADIENTS: dict[str, Callable[..., ActorLoss]] = {
    "frequency": frequency,
    "marginal": marginal,
    "score": score,
    "gumbel": gumbel_softmax,
}
