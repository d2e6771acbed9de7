"""CAPO: tokens whose own update would move the objective or the policy too far are left out, before the step.

    m_h = lr <g, G> + lr^2 / 2 A [(v u)^2 - u^T F u]     m_f = lr^2 / 2 (v u)^2     kept: m_f < tau_f and |m_h| < tau_h
    g = A v h^T,   v = e_a - pi,   G the optimizer's step for g,   u = G h,   F = diag(pi) - pi pi^T

of the last layer alone, pi over the ``top_k`` likeliest tokens and the chosen one. The rest is GRPO, Dr. GRPO or
REINFORCE, with means over what is kept: a row divides by its kept tokens.

Source: arXiv:2510.00819.
Departures: bounds are symmetric, as in the published code, where the theorem asks for m_h above a positive number; a
chosen token outside the top k takes the place of the least likely; a minibatch of which nothing is kept moves nothing;
GRPO's std + 1e-6, where the published code adds 1e-4.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.last_layer import Moments, chunks, likeliest, predicted
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms, too_small


@dataclass(frozen=True, kw_only=True)
class CAPOConfig(ClipSettings):
    """Settings of CAPO."""

    base: Literal["grpo", "dr_grpo", "reinforce"] = "grpo"
    """Whose advantage and mean; reinforce takes rewards without a baseline."""
    tau_f: float = 1e-4
    """Bound on the policy's move, which goes with the square of the learning rate; 1e9 is none."""
    tau_h: float = 0.01
    """Bound on the objective's move; 1e9 is none."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Model of the optimizer that G comes from."""
    top_k: int = 50
    """Likeliest tokens that pi is over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 2:
            raise ConfigError(f"top_k must be 2 or more, got {self.top_k}")
        if not 0.0 <= min(self.tau_f, self.tau_h) <= max(self.tau_f, self.tau_h) < math.inf:
            raise ConfigError("tau_f and tau_h must be numbers of 0 or more (1e9: no bound)")


def high(values: Tensor, share: float = 0.95) -> Tensor:
    """Their quantile, 0 of none; torch's own takes at most 2^24 of them: (n,) -> scalar."""
    if len(values) == 0:
        return values.new_zeros(())
    ordered, place = values.sort().values, share * (len(values) - 1)
    return ordered[math.floor(place)].lerp(ordered[math.ceil(place)], place % 1.0)


class Curvature(Companion):
    """Moments of the last layer, and which tokens they let through."""

    metrics = ("rejected", "m_f_95", "m_h_95")

    def __init__(self, settings: CAPOConfig, learner: Any) -> None:
        super().__init__(settings, learner)
        self.moments = Moments(self._head())

    def _head(self) -> Tensor:
        policy = self.learner.policy
        head: Tensor = policy.head.detach().to(policy.bias.dtype)
        return head

    @torch.no_grad()
    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """Tokens within the bounds; the moments take in the mean gradient of each word over its kept tokens."""
        head, temperature = self._head(), self.learner.options.temperature
        m_h, m_f = (torch.zeros_like(batch.mask, dtype=head.dtype) for _ in range(2))
        gradient, times = torch.zeros_like(head), torch.zeros_like(head[:, 0])
        for rows, scores in self.learner.scored(batch):
            chosen = batch.mask[rows].nonzero()
            for part in (chosen[piece] for piece in chunks(len(chosen), self.settings.top_k * head.shape[1])):
                states = scores.hidden[part[:, 0], part[:, 1]].to(head.dtype) / temperature
                logits = states @ head.T + self.learner.policy.bias / temperature
                place = rows[part[:, 0]], part[:, 1]
                m_h[place], m_f[place] = self._moves(batch, place, states, logits, gradient, times)
        if times.any():  # nothing kept: the optimizer makes no step either
            self.moments.update(gradient / times.clamp(min=1)[:, None], times > 0)
        keep = batch.mask & self.kept(m_h, m_f)
        metrics = {"rejected": (batch.mask & ~keep).sum() / batch.mask.sum().clamp(min=1)}
        metrics |= {f"{name}_95": high(x[batch.mask]) for name, x in (("m_f", m_f), ("m_h", m_h.abs()))}
        return batch.replace(mask=keep), metrics

    def kept(self, m_h: Tensor, m_f: Tensor) -> Tensor:
        """Whether both are within the bounds; any shape."""
        keep: Tensor = (m_f < self.settings.tau_f) & (m_h.abs() < self.settings.tau_h)
        return keep

    def _moves(
        self, batch: TextRollouts, place: Any, states: Tensor, logits: Tensor, gradient: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both moves of some tokens; adds the kept ones' gradients, by word, and how often a word occurs."""
        ids, pi, v = likeliest(logits, batch.tokens[place], self.settings.top_k)
        assert batch.advantages is not None
        a = batch.advantages[place[0]].to(pi)
        g = (a[:, None] * v)[:, :, None] * states[:, None]
        step = self.moments.direction(g, ids) if self.settings.optimizer == "adam" else g
        u = (step @ states[:, :, None])[..., 0]
        m_h, m_f = predicted(v, pi, a, (g * step).sum(dim=(1, 2)), u, self.learner.lr)
        keep = self.kept(m_h, m_f)
        words = ids[keep].flatten()
        gradient.index_add_(0, words, g[keep].flatten(0, 1))
        times.index_add_(0, words, torch.ones_like(words, dtype=times.dtype))
        return m_h, m_f

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return self.moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.moments.load_state_dict(state)


def estimator(settings: CAPOConfig, length: int) -> Estimator:
    """The base method's composition."""
    if settings.base == "dr_grpo":
        return recipe("dr_grpo", mask=clip(settings), length=length, regularizers=terms(settings))
    advantage = "group_std" if settings.base == "grpo" else "outcome"
    return recipe("grpo", advantage=advantage, mask=clip(settings), regularizers=terms(settings))


def unfit(settings: CAPOConfig, options: Any, task: Any) -> str | None:
    """Groups of one with a base that has a baseline."""
    return None if settings.base == "reinforce" else too_small(options, f"base {settings.base}")


METHOD = Method(config=CAPOConfig, estimator=estimator, companion=Curvature, unfit=unfit)
