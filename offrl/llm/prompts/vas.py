"""MMR1's variance-aware sampling: a part of each batch is drawn by how much the rewards of a prompt vary.

    score_x = (1 - b) p (1 - p) + b TDS          p: share of N responses that are right; TDS: 1 - mean self-BLEU
    weight_x = (score_x - min) / (max - min) over the pool
    floor(share B) prompts by weight, with replacement; the others by a walk over the pool

Every ``every`` steps the current policy answers all prompts N times to score them anew.

Source: arXiv:2509.21268, LengSicong/MMR1.
Departures: the published code adds self-BLEU itself, which favours prompts whose responses are alike; we follow the
paper. Orders of n-grams that a response is too short for are left out. Old scores are forgotten.
"""

from typing import Any

import torch
from torch import Tensor

from offrl.llm.prompts.pool import Walk
from offrl.llm.text import Responses

ORDERS = (1, 2, 3)
SMOOTH = 0.1
"""Stands for the matches of an order that has none (smoothing method 1 of nltk); without a shared token BLEU is 0."""
CELLS = 2**24
"""Pairs of positions that are compared at once."""


class VAS:
    """Draws rows of a pool.

    Args:
        size: of the pool.
        share: of a batch that is drawn by weight.
        diversity: b.
        generator: random stream.
    """

    metrics = ("vas_variance", "vas_diversity", "vas_zero")

    def __init__(self, size: int, share: float, diversity: float, generator: torch.Generator) -> None:
        self.share, self.diversity, self.generator = share, diversity, generator
        self.walk = Walk(size, generator)
        self.weights = torch.ones(size, dtype=torch.float64)

    def refresh(self, success: Tensor, responses: Responses) -> dict[str, Tensor]:
        """New weights from N responses to each of the P prompts, beside each other: (P N,) bool.

        Returns:
            Both parts' share of the mean score, and the share of prompts of weight 0.
        """
        size = len(self.weights)
        variance = outcome_variance(success.view(size, -1).double().cpu())
        mask = responses.mask.view(size, -1, responses.mask.shape[1])
        spread = diversity(responses.tokens.view(mask.shape), mask).cpu()
        parts = torch.stack([(1.0 - self.diversity) * variance, self.diversity * spread])
        score = parts.sum(dim=0)
        self.weights = (score - score.min()) / (score.max() - score.min() + 1e-8)
        variance_part, diversity_part = parts.mean(dim=1)
        return {
            "vas_variance": variance_part, "vas_diversity": diversity_part,
            "vas_zero": (self.weights == 0.0).double().mean(),
        }  # fmt: skip

    def draw(self, count: int, allowed: Tensor) -> Tensor:
        """(count,) of the (size,) allowed rows, the weighted ones first."""
        weighted = int(count * self.share)
        weights = self.weights.where(allowed, 0.0)
        if float(weights.sum()) == 0.0:  # equal scores, or none yet
            weights = allowed.double()
        if weighted == 0:
            return self.walk.draw(count, allowed)
        chosen = torch.multinomial(weights, weighted, replacement=True, generator=self.generator)
        return torch.cat([chosen, self.walk.draw(count - weighted, allowed)])

    def state_dict(self) -> dict[str, Any]:
        """Weights, and where the walk is."""
        return {"weights": self.weights, "walk": self.walk.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.weights = state["weights"].cpu()
        self.walk.load_state_dict(state["walk"])


def outcome_variance(success: Tensor) -> Tensor:
    """Of each row, p (1 - p): (P, N) -> (P,); its mean is 1 - 1/N of the true one."""
    rate = success.mean(dim=1)
    return rate * (1.0 - rate)


def diversity(tokens: Tensor, mask: Tensor) -> Tensor:
    """1 - mean over responses of the BLEU of each against the others to its prompt: (P, N, T) -> (P,) in [0, 1]."""
    chosen = (~mask).to(torch.uint8).argsort(dim=2, stable=True)  # what an environment said is passed over
    tokens, mask = tokens.gather(2, chosen), mask.gather(2, chosen)
    at_once = max(CELLS // (mask.shape[1] * mask.shape[2]) ** 2, 1)
    parts = zip(tokens.split(at_once), mask.split(at_once), strict=True)
    return torch.cat([1.0 - _self_bleu(*part).mean(dim=1) for part in parts])


def _self_bleu(tokens: Tensor, mask: Tensor) -> Tensor:
    """(P, N, T) -> (P, N), equal weights of the orders that fit into a response."""
    many, lengths = mask.shape[1], mask.sum(dim=2)
    other = ~torch.eye(many, dtype=torch.bool, device=mask.device)
    same = tokens[:, :, :, None, None] == tokens[:, None, None]  # (P, N, T, N, T)
    same = same & mask[:, :, :, None, None] & mask[:, None, None]
    logs, orders = torch.zeros_like(lengths, dtype=torch.float64), torch.zeros_like(lengths)
    alike = lengths > 0
    grams = same
    for order in ORDERS:
        if order > mask.shape[2]:
            break
        if order > 1:  # grams begin where a match of one less is followed by a match
            grams = grams[:, :, :-1, :, :-1] & same[:, :, order - 1 :, :, order - 1 :]
        counts = grams.sum(dim=4)  # (P, N, T', N): how often each gram of a response occurs in each response
        own = counts.diagonal(dim1=1, dim2=3).transpose(1, 2)  # (P, N, T')
        most = counts.where(other[None, :, None], 0).amax(dim=3)
        shared = torch.minimum(own, most).double() / own.clamp(min=1)
        matches = shared.sum(dim=2)  # the occurrences of a gram add up to its clipped count
        alike = matches > 0 if order == 1 else alike
        total = (lengths - order + 1).clamp(min=0)
        fits = total > 0
        precision = matches.where(matches > 0, SMOOTH) / total.clamp(min=1)
        logs = logs + precision.log().where(fits, 0.0)
        orders = orders + fits
    gaps = (lengths[:, :, None] - lengths[:, None]).abs().double()
    nearest = (gaps + lengths[:, None] * 1e-6).where(other, torch.inf).argmin(dim=2)
    reference = lengths.gather(1, nearest).double()
    brevity = (1.0 - reference / lengths.clamp(min=1)).clamp(max=0.0).exp()
    return brevity * (logs / orders.clamp(min=1)).exp().where(alike, 0.0)
