"""A network with its optimizer and, where wanted, its target copy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.nn.mlp import Params, detached


class Trainable:
    """Stacked parameters, a fused Adam over them, and a slow target copy.

    Args:
        params: tensors that require gradients; updated in place.
        lr: Adam step size (betas 0.9, 0.999, eps 1e-8, no weight decay).
        target: keep a target copy, moved by ``update_target``.
    """

    def __init__(self, params: Params, lr: float, *, target: bool = False) -> None:
        self.params = params
        self.constant = detached(params)  # the same storage, for gradients that must not reach these weights
        self.target = [p.clone() for p in self.constant] if target else None
        self.optimizer = torch.optim.Adam(params, lr=lr, fused=True)

    def minimize(self, loss: Tensor) -> None:
        """One optimizer step on ``loss``; only this network's gradients are computed."""
        self.apply(torch.autograd.grad(loss, self.params))

    def apply(self, grads: Sequence[Tensor]) -> None:
        """One optimizer step with given gradients."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.optimizer.step()

    def update_target(self, tau: float) -> None:
        """target <- target + tau (online - target): ``tau`` is the step towards the online network."""
        if self.target is None:
            raise RuntimeError("this network has no target copy")
        torch._foreach_lerp_(self.target, self.constant, tau)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, target and optimizer state."""
        state = {"params": self.constant, "optimizer": self.optimizer.state_dict()}
        return state if self.target is None else state | {"target": self.target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place; shapes must match."""
        for own, saved in zip(self.constant, state["params"], strict=True):
            own.copy_(saved)
        if self.target is not None:
            for own, saved in zip(self.target, state["target"], strict=True):
                own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
