"""Log-probabilities of given responses: one pass, and the logits of all tokens never exist at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offrl.estimators.low_memory import log_probs_and_entropy
from offrl.llm.models import LanguageModel


@dataclass(frozen=True)
class Scores:
    """What a policy says of responses, with gradients."""

    log_probs: Tensor
    """(B, T), 0 outside the mask."""
    entropy: Tensor | None
    """(B, T) over the allowed tokens, 0 outside the mask."""
    hidden: Tensor
    """(B, T, H), the states that chose the tokens."""


def score(
    policy: LanguageModel,
    prompt_tokens: Tensor,
    prompt_mask: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    owners: Tensor | None = None,
) -> Scores:
    """Teacher forcing: what the policy says of each token of each response.

    Args:
        policy: in any mode.
        prompt_tokens: (B, P), padded on the left; with ``owners`` (N, P).
        prompt_mask: (B, P) bool; with ``owners`` (N, P).
        tokens: (B, T), padded on the right.
        mask: (B, T) bool; None: all.
        temperature: that of sampling.
        entropy: also entropies.
        owners: (B,), which of N prompts each response answers: shared prompts are read once.
    """
    if owners is None:
        owners = torch.arange(len(tokens), device=tokens.device)
    hidden = policy.hidden(prompt_tokens, prompt_mask, tokens, owners)
    log_probs, entropies = log_probs_and_entropy(
        hidden, policy.head, tokens, policy.bias, temperature=temperature, entropy=entropy
    )
    if mask is not None:
        log_probs = log_probs.where(mask, 0.0)
        entropies = None if entropies is None else entropies.where(mask, 0.0)
    return Scores(log_probs, entropies, hidden)
