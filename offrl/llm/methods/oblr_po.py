"""OBLR-PO: the baseline of least variance, and a learning rate that follows how much of the gradient is signal.

    A_i = R_i - sum_{j != i} n_j R_j / sum_{j != i} n_j         n_j a proxy of |grad log pi(y_j)|^2
    lr  = lr_max clip(ema <g1, g2> / ema |(g1 + g2) / 2|^2, floor, 1)      g1, g2 gradients of two halves of the prompts
    loss = -mean_i sum_t min(r A, clip(r) A)

The ratio estimates |grad J|^2 / (|grad J|^2 + variance), the step of largest guaranteed gain on a smooth objective.

Source: arXiv:2511.23310.
Departures: a reconstruction. The paper's abstract was read, its estimators and constants were not; the formulas follow
from its statements. The step's argument is about plain gradients: with AdamW the ratio only scales the learning rate.
Proxies: ``energy`` sum_t |e_a - pi|^2, ``last_layer`` sum_t |e_a - pi|^2 |h_t|^2, ``length``.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError, unused
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.groups import Groups
from offrl.estimators.last_layer import chunks, energy
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms


@dataclass(frozen=True, kw_only=True)
class OBLRPOConfig(ClipSettings):
    """Settings of OBLR-PO."""

    proxy: Literal["energy", "last_layer", "length"] = "energy"
    """What stands for the squared norm of a response's score in the baseline."""
    leave_one_out: bool = True
    """The baseline leaves the response's own reward out; otherwise the gradient is biased."""
    adapt: bool = True
    """Scale the learning rate by the share of signal."""
    decay: float = 0.9
    """Of the averages over updates."""
    floor: float = 0.1
    """Least factor on the learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.decay < 1.0 or not 0.0 <= self.floor <= 1.0:
            raise ConfigError("decay must be in [0, 1) and floor in [0, 1]")
        if not self.adapt:
            unused(self, "without adapt", "decay", "floor")


def factor(agreement: Tensor, size: Tensor, floor: float) -> Tensor:
    """Share of the gradient that is signal, from <g1, g2> and |(g1 + g2) / 2|^2, clipped to [floor, 1]; 0-dim."""
    return (agreement / size).nan_to_num(0.0).clamp(floor, 1.0)


class Signal(Companion):
    """Weights of the baseline, and averages of the halves' products."""

    metrics = ("lr_factor",)

    def __init__(self, settings: OBLRPOConfig, learner: Any) -> None:
        super().__init__(settings, learner)
        if settings.adapt and learner.options.prompts // learner.options.minibatches < 2:
            raise ConfigError(
                "oblr_po compares halves of a minibatch: it needs 2 prompts or more, or --no-adapt"
            )
        self.averages = torch.zeros(2, dtype=torch.float64)
        self.shares = [1.0]

    @torch.no_grad()
    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With the proxies."""
        if self.settings.proxy == "length":
            return batch.replace(baseline_weights=batch.lengths.to(batch.rewards))
        policy, temperature = self.learner.policy, self.learner.options.temperature
        head, bias = policy.head.to(policy.bias.dtype), policy.bias
        sizes = torch.zeros_like(batch.mask, dtype=bias.dtype)
        for rows, scores in self.learner.scored(batch):
            chosen = batch.mask[rows].nonzero()
            for part in (chosen[piece] for piece in chunks(len(chosen), len(head))):
                hidden = scores.hidden[part[:, 0], part[:, 1]].to(bias.dtype)
                place = rows[part[:, 0]], part[:, 1]
                found = energy((hidden @ head.T + bias) / temperature, batch.tokens[place])
                if self.settings.proxy == "last_layer":
                    found = found * hidden.square().sum(dim=1)
                sizes[place] = found
        return batch.replace(baseline_weights=sizes.sum(dim=1).to(batch.rewards))

    def pieces(self, batch: TextRollouts) -> list[Tensor]:
        """Rows of the first and of the second half of the prompts."""
        if not self.settings.adapt:
            return super().pieces(batch)
        index = Groups(batch.group_ids).index
        groups = int(index.max()) + 1
        self.shares = [(groups + 1) // 2 / groups, groups // 2 / groups]
        first = index < (groups + 1) // 2
        return [first.nonzero()[:, 0], (~first).nonzero()[:, 0]]

    def rate(self, gradients: list[list[Tensor]]) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The factor, from the mean gradients of both halves."""
        if not self.settings.adapt:
            return 1.0, {"lr_factor": torch.ones(())}
        products = torch.zeros(2, dtype=torch.float64)
        for parts in zip(*gradients, strict=True):
            one, other = (part.double() / share for part, share in zip(parts, self.shares, strict=True))
            products += torch.stack([(one * other).sum(), ((one + other) / 2).square().sum()]).cpu()
        self.averages = self.averages.lerp(products, 1.0 - self.settings.decay)
        found = factor(self.averages[0], self.averages[1], self.settings.floor)
        return found, {"lr_factor": found}

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.averages = state["averages"].cpu()


def estimator(settings: OBLRPOConfig, length: int) -> Estimator:
    """The composition."""
    return compose(
        advantage=("group_weighted", {"leave_one_out": settings.leave_one_out}),
        mask=clip(settings),
        aggregation="seq-mean-token-sum",
        regularizers=terms(settings),
    )


METHOD = Method(config=OBLRPOConfig, estimator=estimator, grouped=True, companion=Signal)
