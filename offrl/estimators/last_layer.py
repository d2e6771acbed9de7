"""What one token's own gradient would do to the policy, exactly as far as the last linear layer goes.

    logits = (h W^T + b) / temperature       v = e_a - pi       d log pi(a) / d W = v h^T / temperature

States h are taken as constants. N tokens, vocabulary V, states of width H; nothing here has a gradient.

Source: CAPO, arXiv:2510.00819; the expansion in ``predicted`` is that of A pi(a) / pi_old(a) along a direction G.
"""

from typing import Any

import torch
from torch import Tensor

ELEMENTS = 2**22
"""Numbers that a chunk may hold at once."""


def chunks(size: int, width: int) -> list[slice]:
    """Slices of ``size`` tokens, each of which needs ``width`` numbers."""
    rows = max(ELEMENTS // max(width, 1), 1)
    return [slice(start, start + rows) for start in range(0, size, rows)]


def likeliest(logits: Tensor, actions: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` likeliest tokens, the action always among them: ids, pi over them alone, v = e_a - pi.

    Args:
        logits: (N, V).
        actions: (N,).
        count: of tokens; all if there are no more.

    Returns:
        (N, k) each.
    """
    raised = logits.scatter(1, actions[:, None], torch.inf)
    ids = raised.topk(min(count, logits.shape[1]), dim=1).indices
    pi = logits.gather(1, ids).softmax(dim=1)
    return ids, pi, (ids == actions[:, None]).to(pi.dtype) - pi


def energy(logits: Tensor, actions: Tensor) -> Tensor:
    """|e_a - pi|^2 = 1 - 2 pi(a) + sum pi^2, the squared gradient of log pi(a) in the logits: (N, V), (N,) -> (N,)."""
    others = logits.softmax(dim=1).scatter(1, actions[:, None], 0.0)  # 1 - pi(a) is their sum: no difference
    return others.sum(dim=1).square() + others.square().sum(dim=1)


def predicted(
    v: Tensor, pi: Tensor, advantages: Tensor, inner: Tensor, u: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """How far a step lr G of the last layer moves a token's objective and its policy, to second order.

        m_h = lr <g, G> + lr^2 / 2 A [(v u)^2 - u^T F u]        m_f = lr^2 / 2 (v u)^2       F = diag(pi) - pi pi^T

    (v u)^2 is u^T F u with the sampled action's outer product in place of its mean, and KL(pi || moved) is
    lr^2 / 2 u^T F u.

    Args:
        v: e_a - pi, (N, k).
        pi: (N, k).
        advantages: A, (N,).
        inner: <g, G> of g = A v h^T, (N,).
        u: G h, the change of the logits, (N, k).
        lr: size of the step.

    Returns:
        m_h and m_f, (N,).
    """
    square = (v * u).sum(dim=1).square()
    spread = (pi * u.square()).sum(dim=1) - (pi * u).sum(dim=1).square()
    return lr * inner + 0.5 * lr**2 * advantages * (square - spread), 0.5 * lr**2 * square


class Moments:
    """Adam's moments of the rows of a (V, H) matrix, of which a step touches some.

    Args:
        like: the matrix.
        betas: decays of the moments.
        epsilon: added to the root of the second.
    """

    def __init__(
        self, like: Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.betas, self.epsilon, self.steps = betas, epsilon, 0

    def direction(self, gradients: Tensor, ids: Tensor) -> Tensor:
        """Adam's step for gradients of some rows if they came next; the gradients themselves before the first.

        Args:
            gradients: (N, k, H).
            ids: (N, k), their rows.
        """
        if self.steps == 0:
            return gradients
        return self._step(
            self.first[ids].lerp(gradients, 1.0 - self.betas[0]),
            self.second[ids].lerp(gradients.square(), 1.0 - self.betas[1]),
            self.steps + 1,
        )

    def update(self, gradient: Tensor, touched: Tensor) -> Tensor:
        """Take in a gradient, (V, H), of the rows that it touched, (V,) bool; returns Adam's step, (V, H)."""
        self.steps += 1
        new = self.first.lerp(gradient, 1.0 - self.betas[0])
        self.first = torch.where(touched[:, None], new, self.first)
        new = self.second.lerp(gradient.square(), 1.0 - self.betas[1])
        self.second = torch.where(touched[:, None], new, self.second)
        return self._step(self.first, self.second, self.steps)

    def _step(self, first: Tensor, second: Tensor, steps: int) -> Tensor:
        mean = first / (1.0 - self.betas[0] ** steps)
        return mean / ((second / (1.0 - self.betas[1] ** steps)).sqrt() + self.epsilon)

    def state_dict(self) -> dict[str, Any]:
        """Both moments and the number of steps."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.first, self.second, self.steps = state["first"], state["second"], state["steps"]
