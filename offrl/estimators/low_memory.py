"""Log-probabilities and entropies of tokens straight from hidden states; the (N, V) logits never exist as a whole.

    logits = (h W^T + b) / temperature       log pi(a) = logits_a - log Z       H = log Z - E_pi[logits]

Forward: running maximum, sum and mean of the logits over chunks of rows and of the vocabulary. Backward: each chunk's
logits again, from the saved log Z and H,

    d / d logits_v = g (1[v = a] - p_v) - e p_v (log p_v + H)

for upstream gradients g of the log-probability and e of the entropy. One matrix product more than the dense way.

Source: the idea of arXiv:2411.09009 and of linkedin/Liger-Kernel, arXiv:2410.10989; written anew.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, VOCABULARY = 512, 4096


def log_probs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    actions: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log softmax(hidden weight^T / temperature) at the actions, and the entropy of the softmax.

    Memory beyond inputs and their gradients: a few numbers a row and chunks of 512 x 4096 logits. Differentiable once,
    in ``hidden``, ``weight`` and ``bias``. The sums are in float32 where the inputs are bfloat16.

    Args:
        hidden: (..., H).
        weight: (V, H), the language model's head.
        actions: (...) int64 in [0, V), also at padding.
        bias: (V,).
        temperature: that of sampling.
        entropy: False saves its passes and returns None.

    Returns:
        (...) log-probabilities, (...) entropies in nats.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    log_probs, entropies = _FromHidden.apply(  # type: ignore[no-untyped-call]
        flat, weight, actions.reshape(-1), bias, float(temperature), entropy
    )
    return log_probs.view(actions.shape), entropies.view(actions.shape) if entropy else None


def from_logits(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The dense counterpart: (..., V), (...) -> log-probabilities (...), entropies (...)."""
    log_p = logits.log_softmax(dim=-1)
    chosen = log_p.gather(-1, actions[..., None])[..., 0]
    return chosen, -(log_p.exp() * log_p).sum(dim=-1)


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        actions: Tensor,
        bias: Tensor | None,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        chosen, log_z, entropies = (hidden.new_empty(len(hidden), dtype=_float(hidden)) for _ in range(3))
        for rows in _slices(len(hidden), ROWS):
            chosen[rows], log_z[rows], entropies[rows] = _chosen_log_z_and_entropy(
                hidden[rows], weight, actions[rows], bias, temperature, entropy
            )
        ctx.save_for_backward(hidden, weight, actions, bias, log_z, entropies)
        ctx.temperature, ctx.entropy = temperature, entropy
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return chosen - log_z, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, actions, bias, log_z, entropies = ctx.saved_tensors
        want_hidden, want_weight, _, want_bias = ctx.needs_input_grad[:4]
        grad = grad / ctx.temperature
        d_hidden = (weight[actions] * grad[:, None]).to(hidden.dtype) if want_hidden else None
        d_weight = torch.zeros_like(weight) if want_weight else None
        d_bias = torch.zeros_like(bias) if want_bias else None
        if d_weight is not None:
            d_weight.index_add_(0, actions, (hidden * grad[:, None]).to(weight.dtype))
        if d_bias is not None:
            d_bias.index_add_(0, actions, grad.to(d_bias.dtype))
        slope = grad_entropy / ctx.temperature if ctx.entropy else None
        for rows in _slices(len(hidden), ROWS):
            for words in _slices(len(weight), VOCABULARY):
                logits = _logits(hidden[rows], weight[words], bias, words, ctx.temperature)
                log_p = logits.sub_(log_z[rows, None])
                d_logits = log_p.exp()
                if slope is None:
                    d_logits.mul_(-grad[rows, None])
                else:  # -p (g + e (log p + H))
                    log_p.add_(entropies[rows, None]).mul_(slope[rows, None]).add_(grad[rows, None])
                    d_logits.mul_(log_p).neg_()
                d_logits = d_logits.to(hidden.dtype)
                if d_hidden is not None:
                    d_hidden[rows].addmm_(d_logits, weight[words])
                if d_weight is not None:
                    d_weight[words].addmm_(d_logits.T, hidden[rows])
                if d_bias is not None:
                    d_bias[words] += d_logits.sum(dim=0)
        return d_hidden, d_weight, None, d_bias, None, None


def _chosen_log_z_and_entropy(
    hidden: Tensor, weight: Tensor, actions: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(R, H) -> (R,) each; with top = max logit, total = sum exp(l - top), mean = sum exp(l - top) (l - top).

    The action's logit is one of those summed, rounded as they are: no probability is above 1.
    """
    top = torch.full((len(hidden),), -torch.inf, device=hidden.device, dtype=_float(hidden))
    total, mean, chosen = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
    for words in _slices(len(weight), VOCABULARY):
        logits = _logits(hidden, weight[words], bias, words, temperature)
        place = actions - words.start
        here = (place >= 0) & (place < logits.shape[1])
        place = place.clamp(0, logits.shape[1] - 1)
        chosen = torch.where(here, logits.gather(1, place[:, None])[:, 0], chosen)
        higher = torch.maximum(top, logits.amax(dim=1))
        shift = top - higher
        scale = shift.exp()
        logits.sub_(higher[:, None])
        if entropy:
            weights = logits.exp()
            old = total * shift.where(total > 0, 0.0)
            mean = scale * (mean + old) + weights.mul(logits).sum(dim=1)
        else:
            weights = logits.exp_()
        total = total * scale + weights.sum(dim=1)
        top = higher
    log_total = total.log()
    return chosen, top + log_total, log_total - mean / total


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, words: slice, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).to(_float(hidden))
    if bias is not None:
        logits += bias[words]
    return logits.div_(temperature) if temperature != 1.0 else logits


def _float(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
