"""V_0: how likely a policy is to solve a prompt, from how it did on others; no weight changes when the policy does.

    features  f(x): states of a frozen model at the prompt, through an adapter of K queries that attend to its tokens:
              queries = static + generator(last state), whose last layer starts at 0
    head      fitted to the context {(f(x_j), r_j)}, j = 1 .. N, of one policy; score s(x), p(x) = sigmoid(s(x))
    training  0.25 mean -log sigmoid(s+ - s-) + 0.75 cross-entropy(r, p)    over queries of the same context

The pairs have one context, so that what a score owes to the context alone does not count in the ranking part.

Source: arXiv:2602.03584, Now-Join-Us/V0.
Departures: the head is a logistic regression with a ridge prior, fitted by Newton's method through which gradients
flow, in place of TabPFN (licensed weights); any function of its signature fits. Contexts have success rates, not
labels cut at 1/2. The frozen model is the one that training begins with; without trained weights its last state is
the feature. The adapter is small: 16 queries, a generator of width 64 without dropout (published: 168, 128, 0.2), and
its learning rate 2e-3 (2e-4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.files import atomic_write_bytes
from offrl.llm.text import Prompts

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(context features (..., N, D), success rates (..., N), features (..., M, D)) -> scores (..., M)."""
FEW = 16
"""Pairs below which a context says nothing."""


class QueryAdapter(nn.Module):
    """Features of a prompt from its tokens' states.

    Args:
        width: of the states.
        queries: K.
        dim: of a query; the features are K x dim.
        heads: of the attention.
        hidden: of the generator.
    """

    def __init__(self, width: int, queries: int = 16, dim: int = 6, heads: int = 3, hidden: int = 64) -> None:
        super().__init__()
        self.sizes = {"width": width, "queries": queries, "dim": dim, "heads": heads, "hidden": hidden}
        self.heads = heads
        self.static = nn.Parameter(torch.randn(queries, dim))
        last = nn.Linear(hidden, queries * dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.generator = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), last)
        self.project = nn.Linear(width, dim)
        self.of_queries, self.of_keys = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(N, P, H) states padded on the left, (N, P) bool -> (N, K dim)."""
        count, (queries, dim) = len(states), self.static.shape
        q = self.static + self.generator(states[:, -1]).view(count, queries, dim)
        v = self.project(states)
        q, k, v = (
            x.view(count, -1, self.heads, dim // self.heads).transpose(1, 2)
            for x in (self.of_queries(q), self.of_keys(v), v)
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return found.transpose(1, 2).reshape(count, -1)


def logistic(context: Tensor, rates: Tensor, features: Tensor, ridge: float = 1.0, rounds: int = 8) -> Tensor:
    """A head: logistic regression on standardized features, Gaussian prior of precision ``ridge`` on its slopes."""
    mean, std = context.mean(dim=-2, keepdim=True), context.std(dim=-2, keepdim=True) + 1e-6
    design = _with_one((context - mean) / std)
    prior = ridge * torch.ones_like(design[..., 0, :])
    prior = torch.cat([torch.full_like(prior[..., :1], 1e-2), prior[..., 1:]], dim=-1)
    weights = torch.zeros_like(prior)
    for _ in range(rounds):
        p = (design @ weights[..., None])[..., 0].clamp(-15.0, 15.0).sigmoid()
        gradient = (design.mT @ (p - rates)[..., None])[..., 0] + prior * weights
        curvature = design.mT @ ((p * (1.0 - p))[..., None] * design) + torch.diag_embed(prior)
        weights = weights - torch.linalg.solve(curvature, gradient)
    return (_with_one((features - mean) / std) @ weights[..., None])[..., 0]


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)


def rank_loss(above: Tensor, below: Tensor) -> Tensor:
    """Mean -log sigmoid(s+ - s-) over pairs of one context; unchanged by what all scores of a context share."""
    return -nn.functional.logsigmoid(above - below).mean()


def both_losses(above: Tensor, below: Tensor, rates: Tensor, share: float = 0.25) -> Tensor:
    """``share`` of the ranking, the rest cross-entropy: scores (..., M) of better and worse prompts, (..., 2, M)
    rates.
    """
    scores = torch.stack([above, below], dim=-2)
    entropy = nn.functional.binary_cross_entropy_with_logits(scores, rates)
    return share * rank_loss(above, below) + (1.0 - share) * entropy


@dataclass(frozen=True)
class Outcomes:
    """What one policy did: states (N, P, H) and mask (N, P) of prompts, (N,) success rates."""

    states: Tensor
    mask: Tensor
    rates: Tensor


def train(
    adapter: QueryAdapter, episodes: Sequence[Outcomes], *, steps: int, generator: torch.Generator,
    context: int = 256, pairs: int = 4, lr: float = 2e-3, share: float = 0.25, head: Head = logistic,
) -> list[float]:  # fmt: skip
    """Train an adapter in place, on contexts and pairs of one policy after the other; returns the losses.

    Args:
        adapter: what is trained.
        episodes: one a policy, also one a checkpoint; those without right or without wrong prompts are passed over.
        steps: updates of AdamW (weight decay 0.01, cosine after a warm-up of 5 %).
        generator: random stream.
        context: pairs that the head is fitted to.
        pairs: of a better and a worse prompt, an update.
        lr: learning rate.
        share: of the ranking part.
        head: fitted to contexts.
    """
    usable = [e for e in episodes if bool((e.rates >= 0.5).any()) and bool((e.rates < 0.5).any())]
    if not usable:
        raise ConfigError("no policy has both right and wrong prompts: nothing to learn V_0 from")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=lr, weight_decay=0.01)
    warm = max(steps // 20, 1)
    losses = []
    for step in range(steps):
        episode = usable[int(torch.randint(len(usable), (1,), generator=generator))]
        order = torch.randperm(len(episode.rates), generator=generator)
        right = episode.rates[order] >= 0.5
        above, below = (_cycled(order[side], pairs) for side in (right, ~right))
        asked = torch.cat([above, below])
        known = order[~torch.isin(order, asked)][:context]
        rows = torch.cat([known, asked])
        features = adapter(episode.states[rows], episode.mask[rows])
        scores = head(features[: len(known)], episode.rates[known], features[len(known) :]).view(2, pairs)
        loss = both_losses(scores[0], scores[1], episode.rates[asked].view(2, pairs), share)
        factor = min((step + 1) / warm, 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * step / steps)).item()))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _cycled(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(-(-count // len(rows)))[:count]


def auc(scores: Tensor, right: Tensor) -> float:
    """Chance that a right prompt scores above a wrong one, ties halved."""
    above, below = scores[right], scores[~right]
    gaps = above[:, None] - below
    return float((gaps > 0).double().mean() + 0.5 * (gaps == 0).double().mean())


def labels_with_cost(rewards: Tensor, cost: float, beta: float) -> Tensor:
    """What contexts of a router hold, beta r + (1 - beta) (1 - cost); costs are within 0 and 1."""
    return beta * rewards + (1.0 - beta) * (1.0 - cost)


def route(features: Tensor, contexts: Sequence[tuple[Tensor, Tensor]], head: Head = logistic) -> Tensor:
    """(M,) which policy should answer each prompt: that of the highest score; a context (features, labels) a policy."""
    return torch.stack([head(known, labels, features) for known, labels in contexts]).argmax(dim=0)


def save_adapter(adapter: QueryAdapter, path: Path) -> None:
    """As safetensors, sizes beside."""
    from safetensors.torch import save

    sizes = {name: str(value) for name, value in adapter.sizes.items()}
    weights = {name: value.contiguous() for name, value in adapter.state_dict().items()}
    atomic_write_bytes(path, save(weights, sizes))


def load_adapter(path: Path, width: int) -> QueryAdapter:
    """An adapter for states of this width.

    Raises:
        ConfigError: no such file, or one for other states.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            sizes = {name: int(value) for name, value in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        adapter = QueryAdapter(**sizes)
        adapter.load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path} is no adapter of V_0: {type(error).__name__}: {error}") from None
    if sizes["width"] != width:
        raise ConfigError(f"{path} was trained on states of width {sizes['width']}, this model has {width}")
    return adapter.requires_grad_(False)


class V0:
    """Predicts from the last pairs of prompt and success rate.

    Args:
        backbone: the frozen model.
        context: pairs that it looks back at.
        weights: file of a trained adapter; empty: none.
        head: fitted to the context.
    """

    def __init__(self, backbone: Any, context: int, weights: str = "", head: Head = logistic) -> None:
        if not hasattr(backbone, "prompt_states"):
            raise ConfigError("predictor v0 reads the states of a transformer: tiny:table has none")
        self.backbone, self.size, self.head = backbone, context, head
        self.adapter = load_adapter(Path(weights), backbone.head.shape[1]) if weights else None
        self.known: Tensor | None = None
        self.rates = torch.zeros(0)

    @torch.no_grad()
    def features(self, prompts: Prompts) -> Tensor:
        """(N, D) of prompts, on the CPU."""
        device = self.backbone.bias.device
        states = self.backbone.prompt_states(prompts.tokens.to(device), prompts.mask.to(device)).float()
        if self.adapter is None:
            last: Tensor = states[:, -1].cpu()
            return last
        found: Tensor = self.adapter.to(device)(states, prompts.mask.to(device)).cpu()
        return found

    def predict(self, prompts: Prompts, rows: Tensor | None) -> Tensor:
        """(N,) rates, NaN while the context is too short."""
        if self.known is None or len(self.rates) < FEW:
            return torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        scores = self.head(self.known.double(), self.rates.double(), self.features(prompts).double())
        return scores.sigmoid()

    def observe(self, prompts: Prompts, rows: Tensor | None, right: Tensor, tried: Tensor) -> None:
        """``right`` of ``tried`` responses to each prompt succeeded."""
        features = self.features(prompts)
        known = features if self.known is None else torch.cat([self.known, features])
        self.known = known[-self.size :]
        self.rates = torch.cat([self.rates, (right / tried).float()])[-self.size :]

    def state_dict(self) -> dict[str, Any]:
        """The context."""
        return {"known": self.known, "rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.known = None if state["known"] is None else state["known"].cpu()
        self.rates = state["rates"].cpu()
