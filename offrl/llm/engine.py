"""The policy that samples: the trained one, or a copy that lags behind or is rounded as another engine's would be."""

import copy
from typing import Any

import torch
from torch import Tensor

from offrl.llm.served import Served


class Engine:
    """Knobs of staleness and mismatch.

    Args:
        policy: as training begins.
        delay: steps that the copy lags behind.
        served: a server that samples instead, with the current weights.
        rounding: exact, bf16, int8 (symmetric, a scale a row) or fp8 (3 bits of mantissa, any exponent) weights.
    """

    def __init__(
        self, policy: torch.nn.Module, delay: int, rounding: str, served: Served | None = None
    ) -> None:
        self.delay, self.rounding, self.served, self.sent = delay, rounding, served, False
        self.copy = copy.deepcopy(policy) if delay or rounding != "exact" else None
        self.past: list[list[Tensor]] = []
        if delay:
            self.past.append(_weights(policy))

    def sampler(self, policy: Any) -> Any:
        """What samples now."""
        if self.served is not None:
            if not self.sent:
                self.served.synchronize()
            self.sent = True
            return self.served
        if self.copy is None:
            return policy
        current = self.past[0] if self.delay else _weights(policy)
        with torch.no_grad():
            for parameter, value in zip(self.copy.parameters(), current, strict=True):
                parameter.copy_(rounded(value, self.rounding))
        return self.copy

    def remember(self, policy: torch.nn.Module) -> None:
        """A step was made: the oldest parameters are dropped."""
        self.sent = False
        if self.delay:
            self.past = [*self.past, _weights(policy)][-self.delay - 1 :]

    def state_dict(self) -> dict[str, Any]:
        """Past parameters."""
        return {"past": self.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.past = state["past"]


def rounded(x: Tensor, rounding: str) -> Tensor:
    """Weights as a format of fewer bits holds them, back in their own type."""
    if rounding == "bf16":
        return x.to(torch.bfloat16).to(x.dtype)
    if rounding == "fp8":
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 16.0).round() / 16.0, exponent)
    if rounding == "int8" and x.dim() > 1:
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127.0
        return (x / scale).round() * scale
    return x


def _weights(policy: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in policy.parameters()]
