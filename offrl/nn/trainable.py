"""A network with its optimizer and, where wanted, its target copy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.nn.mlp import Params, detached


class Trainable:
    """Stacked parameters, Adam over them, and a slow target copy.

    Adam is torch's fused kernel called directly (eps 1e-8): the bookkeeping of
    ``torch.optim.Adam`` costs more than the kernel itself on networks of this size.

    Args:
        params: tensors that require gradients; updated in place.
        lr: Adam step size; may be changed between steps.
        target: keep a target copy, moved by ``update_target``.
        weight_decay: L2 penalty, added to the gradient before the moments as ``torch.optim.Adam`` does.
        betas: what the first and the second moments keep of themselves.

    Source: Adam, arXiv:1412.6980, algorithm 1.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        target: bool = False,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.params, self.lr, self.weight_decay, self.betas = params, lr, weight_decay, betas
        self.constant = detached(params)  # the same storage, for gradients that must not reach these weights
        self.target = [p.clone() for p in self.constant] if target else None
        self.first_moments = [torch.zeros_like(p) for p in self.constant]
        self.second_moments = [torch.zeros_like(p) for p in self.constant]
        self.steps = torch.zeros((), device=params[0].device)

    def minimize(self, loss: Tensor) -> None:
        """One optimizer step on ``loss``; only this network's gradients are computed."""
        self.apply(torch.autograd.grad(loss, self.params))

    @torch.no_grad()
    def apply(self, grads: Sequence[Tensor]) -> None:
        """One Adam step with given gradients."""
        self.steps.add_(1.0)
        torch._fused_adam_(
            self.constant,
            [g.contiguous() for g in grads],  # the kernel reads memory, not strides
            self.first_moments,
            self.second_moments,
            [],
            [self.steps] * len(self.constant),
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def update_target(self, tau: float) -> None:
        """Target <- target + tau (online - target): ``tau`` is the step towards the online network."""
        if self.target is None:
            raise RuntimeError("this network has no target copy")
        torch._foreach_lerp_(self.target, self.constant, tau)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, target, moments and step count."""
        state: dict[str, Any] = {
            "params": self.constant,
            "first_moments": self.first_moments,
            "second_moments": self.second_moments,
            "steps": self.steps,
        }
        return state if self.target is None else state | {"target": self.target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place; shapes must match."""
        pairs = [(self.constant, "params"), (self.first_moments, "first_moments")]
        pairs += [(self.second_moments, "second_moments")]
        pairs += [] if self.target is None else [(self.target, "target")]
        for own, name in pairs:
            for tensor, saved in zip(own, state[name], strict=True):
                if tensor.shape != saved.shape:
                    raise ValueError(
                        f"saved {name} have shape {tuple(saved.shape)}, here {tuple(tensor.shape)}"
                    )
                tensor.copy_(saved)
        self.steps.copy_(state["steps"])
