"""Diffusion Policy's transformer: each noisy action is a token that looks at earlier ones and observations.

    memory   m = W mish(W [time features, W o_1, ..., W o_To] + places)
    token h  x_h = W a_h + place_h
    layer    x <- x + attend(norm(x), x, causal)              h sees h' <= h
             x <- x + attend(norm(x), m)                      h sees the time and o_1 .. o_{h+1}
             x <- x + W gelu(W norm(x))
    out      W norm(x)

Tokens of the future see no later observation than their own step, as in training on padded windows. Dropout acts on
attention weights and on what each layer adds, none on the embeddings (the published settings for PushT). Its draws come
in from outside, so that a run's streams decide them. Parameters have the original's names and shapes.

Source: Diffusion Policy, arXiv:2303.04137; real-stanford/diffusion_policy, ``transformer_for_diffusion.py``.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offrl.diffusion.layers import sinusoid

Keeps = Sequence[Tensor]  # bool, what each dropout keeps, in the order of use
BETAS = (0.9, 0.95)
WEIGHT_STD = 0.02


class _Attention(nn.Module):
    """Parameters of ``nn.MultiheadAttention``, with the dropout's mask as an argument."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor, drop: "_Dropout") -> Tensor:
        width = x.shape[2]
        weights, biases = self.in_proj_weight.split(width), self.in_proj_bias.split(width)
        q, k, v = (
            F.linear(source, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for source, w, b in zip((x, memory, memory), weights, biases, strict=True)
        )
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
        share = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=3)
        out: Tensor = self.out_proj((drop(share) @ v).transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = _Attention(width, heads), _Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, causal: Tensor, seen: Tensor, drop: "_Dropout") -> Tensor:
        own = self.norm1(x)
        x = x + drop(self.self_attn(own, own, causal, drop))
        x = x + drop(self.multihead_attn(self.norm2(x), memory, seen, drop))
        hidden = drop(F.gelu(self.linear1(self.norm3(x))))
        return x + drop(self.linear2(hidden))


class _Dropout:
    """Hands out what is kept, in order; keeps everything if there is nothing to hand out."""

    def __init__(self, keeps: Keeps | None, share: float) -> None:
        self.keeps: Iterator[Tensor] | None = None if keeps is None else iter(keeps)
        self.share = share

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.keeps is None else x * next(self.keeps) / (1.0 - self.share)


class DiffusionTransformer(nn.Module):
    """Output of the network for each action of a chunk.

    Args:
        act_dim: A.
        condition_dim: numbers that describe one observation.
        horizon: H, actions of a chunk.
        n_obs: To, observations.
        layers: of the decoder.
        heads: of attention; divides ``width``.
        width: of a token; even, 4 or more.
        dropout: share that is dropped in training.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        act_dim: int,
        condition_dim: int,
        horizon: int,
        n_obs: int,
        *,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        dropout: float = 0.01,
    ) -> None:
        super().__init__()
        if layers < 1 or heads < 1 or width < 4 or width % 2 or width % heads:
            raise ValueError(
                f"width must be even, 4 or more and a multiple of heads, layers 1 or more: {width}, {heads}, {layers}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.n_obs, self.width, self.dropout, self.heads = n_obs, width, dropout, heads
        self.input_emb, self.cond_obs_emb = nn.Linear(act_dim, width), nn.Linear(condition_dim, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, width))
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, n_obs + 1, width))
        self.encoder = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, act_dim)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, keeps: Keeps | None = None) -> Tensor:
        """Outputs (B, H, A).

        Args:
            x: noisy chunks (B, H, A).
            time: (B,), what the schedule calls it.
            condition: (B, To C), oldest observation first.
            keeps: as from ``draw_keeps``; None drops nothing.
        """
        drop = _Dropout(keeps, self.dropout)
        told = [
            sinusoid(time, self.width)[:, None],
            self.cond_obs_emb(condition.unflatten(1, (self.n_obs, -1))),
        ]
        memory = self.encoder(torch.cat(told, dim=1) + self.cond_pos_emb)
        tokens = self.input_emb(x) + self.pos_emb
        row, column = (torch.arange(n, device=x.device) for n in (x.shape[1], self.n_obs + 1))
        causal, seen = (
            row <= row[:, None],
            column - 1 <= row[:, None],
        )  # the time is the first of what is seen
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            tokens = layer(tokens, memory, causal, seen, drop)
        out: Tensor = self.head(self.ln_f(tokens))
        return out

    def keep_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Shape of what each dropout keeps, in the order of use."""
        h, to, w = self.pos_emb.shape[1], self.n_obs + 1, self.width
        one = [(batch, self.heads, h, h), (batch, h, w), (batch, self.heads, h, to), (batch, h, w)]
        return [*one, (batch, h, 4 * w), (batch, h, w)] * len(self.decoder.layers)  # type: ignore[arg-type]

    def draw_keeps(self, batch: int, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """What each dropout keeps, (S, batch, ...) bool each; empty without dropout."""
        if self.dropout == 0.0:
            return []
        return [
            torch.stack(
                [
                    torch.empty(shape, dtype=torch.bool, device=g.device).bernoulli_(
                        1.0 - self.dropout, generator=g
                    )
                    for g in generators
                ]
            )
            for shape in self.keep_shapes(batch)
        ]


def transformer_start(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A fresh parameter: weights and places N(0, 0.02^2), norms 1, biases 0."""
    norm = ".norm" in name or "ln_f" in name
    if name.endswith("bias") or norm:
        fill = 1.0 if norm and name.endswith("weight") else 0.0
        return torch.full(shape, fill, device=generator.device)
    return WEIGHT_STD * torch.randn(shape, generator=generator, device=generator.device)


def decays(name: str) -> bool:
    """Whether a parameter of the transformer shrinks under weight decay: matrices do; norms, biases and places not."""
    return name.endswith("weight") and ".norm" not in name and "ln_f" not in name
