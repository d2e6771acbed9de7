"""The decision transformer: a stacked causal transformer over (return-to-go, state, action) tokens, and its policy.

    tokens   e_t = E_R R_t + T_t,  E_s s_t + T_t,  E_a a_t + T_t,   T: a learned vector for each step of the episode
    input    x = norm(R_1, s_1, a_1, R_2, s_2, a_2, ...)
    layer    x = x + attention(norm(x));  x = x + W_2 relu(W_1 norm(x))
    output   f_t = W norm(x at s_t);  the action is tanh(f_t) in units of the box's half-range

Attention is causal, so that filling up a window at its end changes nothing before it. Parameters are a flat list with
a leading axis S, in the order in which ``init_transformer`` makes them.

Source: Decision Transformer, arXiv:2106.01345, section 3; layout and initial weights as in kzl/decision-transformer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offrl.errors import PolicyError
from offrl.nn.mlp import Params
from offrl.nn.policy import Bounds, Policy, wrong_observations

WIDEN = 4  # of the hidden layer in a block


@dataclass(frozen=True)
class Sizes:
    """Widths O and A, vectors T for the steps of an episode, H, layers and attention heads."""

    obs_dim: int
    act_dim: int
    max_steps: int = 1000
    hidden: int = 128
    layers: int = 3
    heads: int = 1

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and shape of each parameter of one network, in order; kinds are what ``init_transformer`` draws."""
        h, norm = self.hidden, [("one", (1, self.hidden)), ("zero", (1, self.hidden))]
        embedding = [
            (kind, shape)
            for width in (1, self.obs_dim, self.act_dim)
            for kind, shape in ((f"linear {width}", (width, h)), (f"linear {width}", (1, h)))
        ]
        block = [*norm, ("small", (h, 3 * h)), ("zero", (1, 3 * h)), ("small", (h, h)), ("zero", (1, h))]
        block += [*norm, ("small", (h, WIDEN * h)), ("zero", (1, WIDEN * h))]
        block += [("small", (WIDEN * h, h)), ("zero", (1, h))]
        head = [(f"linear {h}", (h, self.act_dim)), (f"linear {h}", (1, self.act_dim))]
        return [*embedding, ("normal", (self.max_steps, h)), *norm, *block * self.layers, *norm, *head]


def init_transformer(sizes: Sizes, generators: Sequence[torch.Generator]) -> Params:
    """Fresh parameters (S, ...), requiring gradients: embeddings and head as torch's defaults, blocks as GPT-2's.

    Args:
        sizes: of each network.
        generators: one per seed (S).
    """
    return [
        torch.stack([_draw(kind, shape, g) for g in generators]).requires_grad_()
        for kind, shape in sizes.shapes()
    ]


def _draw(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    device = generator.device
    if kind in ("one", "zero"):
        return torch.full(shape, float(kind == "one"), device=device)
    if kind in ("normal", "small"):
        return torch.randn(shape, generator=generator, device=device) * (1.0 if kind == "normal" else 0.02)
    fan_in = int(kind.split()[1])
    return (2 * torch.rand(shape, generator=generator, device=device) - 1) / math.sqrt(fan_in)


def dropout_masks(
    sizes: Sizes, batch: int, length: int, rate: float, generators: Sequence[torch.Generator]
) -> list[Tensor]:
    """Masks (S, B, ...) of 0 or 1 / (1 - rate): one for the input, then for each layer attention, its result, MLP.

    Args:
        sizes: of the network.
        batch: B.
        length: L, steps in a window.
        rate: share that is dropped.
        generators: one per seed (S).
    """
    tokens = 3 * length
    wide, square = (batch, tokens, sizes.hidden), (batch, sizes.heads, tokens, tokens)
    shapes = [wide, *[square, wide, wide] * sizes.layers]
    counts = [math.prod(shape) for shape in shapes]
    draws = [
        torch.empty(1, sum(counts), device=g.device).bernoulli_(1 - rate, generator=g).div_(1 - rate)
        for g in generators
    ]
    parts = torch.cat(draws).split(counts, dim=1)
    return [part.view(len(draws), *shape) for part, shape in zip(parts, shapes, strict=True)]


def transformer(
    params: Params,
    heads: int,
    returns: Tensor,
    observations: Tensor,
    actions: Tensor,
    steps: Tensor,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Outputs f (S, B, L, A) at each state, from it and what came before it.

    Args:
        params: as from ``init_transformer``.
        heads: attention heads.
        returns: returns-to-go, scaled, (S, B, L).
        observations: (S, B, L, O).
        actions: (S, B, L, A), in units of the half-range; one never reaches the output at its own state.
        steps: int64 (S, B, L), steps since the episode's start, below the number of step vectors.
        masks: as from ``dropout_masks``; None drops nothing.
    """
    seeds, batch, length = returns.shape
    take, drop = iter(params), iter(masks or ())
    parts = (returns[..., None], observations, actions)
    embedded = [_linear(part.flatten(1, 2), take) for part in parts]
    table = next(take)
    first = torch.arange(seeds, device=steps.device)[:, None] * table.shape[1]
    time = F.embedding(steps.flatten(1) + first, table.flatten(0, 1))
    x = torch.stack([part + time for part in embedded], dim=2)  # (S, B L, 3, H)
    x = _dropped(_norm(x.flatten(1, 2), take), drop)
    for _ in range((len(params) - 13) // 12):
        x = x + _dropped(_attention(_norm(x, take), take, heads, batch, next(drop, None)), drop)
        hidden = _linear(_norm(x, take), take).relu()
        x = x + _dropped(_linear(hidden, take), drop)
    states = x.view(seeds, batch * length, 3, -1)[:, :, 1]
    out = _linear(_norm(states, take), take).view(seeds, batch, length, -1)
    return out.to(observations.dtype)  # under autocast it is another


def _linear(x: Tensor, take: Iterator[Tensor]) -> Tensor:
    weight, bias = next(take), next(take)
    return torch.baddbmm(bias, x, weight)


def _norm(x: Tensor, take: Iterator[Tensor]) -> Tensor:
    gain, shift = next(take), next(take)
    return torch.addcmul(shift, gain, F.layer_norm(x, x.shape[-1:]))


def _dropped(x: Tensor, drop: Iterator[Tensor]) -> Tensor:
    mask = next(drop, None)
    return x if mask is None else x * mask.view(x.shape)


def _attention(x: Tensor, take: Iterator[Tensor], heads: int, batch: int, mask: Tensor | None) -> Tensor:
    """Causal self-attention within each of the S x B windows, (S, B 3L, H)."""
    seeds, _, width = x.shape
    qkv = _linear(x, take).view(seeds * batch, -1, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if mask is None:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:  # dropped weights from a given mask, which that function cannot take
        scores = q @ k.transpose(2, 3) / math.sqrt(width // heads)
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = (scores.masked_fill(later, -math.inf).softmax(dim=3) * mask.flatten(0, 1)) @ v
    return _linear(mixed.transpose(1, 2).reshape(seeds, -1, width), take)


@dataclass(frozen=True)
class History:
    """What the policy remembers of B episodes: the last l steps, normalized, and what is still to be earned."""

    observations: Tensor  # (B, l, O)
    actions: Tensor  # (B, l, A), in units of the half-range
    returns: Tensor  # (B, l), scaled
    to_go: Tensor  # (B,), for the step to come
    step: int  # since the start


class DecisionTransformerPolicy(Policy):
    """Acts so as to earn ``target_return`` in the episode, by a transformer over its last ``context`` steps.

    ``state`` is a ``History``. After each step ``rewarded`` lowers what is still to be earned. ``forward`` is the
    action at an episode's first step. Deterministic.

    Args:
        obs_dim, act_dim, action_low, action_high, observation_clip: as in ``Policy``.
        max_steps, hidden, layers, heads: as in ``Sizes``; later steps than ``max_steps`` count as the last.
        context: L, steps that the transformer sees.
        target_return: undiscounted return of the episode, in units of the rewards.
        return_scale: returns are divided by this before the network sees them.
    """

    kind: ClassVar[str] = "decision_transformer"

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        max_steps: int = 1000,
        hidden: int = 128,
        layers: int = 3,
        heads: int = 1,
        context: int = 20,
        target_return: float = 0.0,
        return_scale: float = 1.0,
        observation_clip: float | None = None,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high, observation_clip=observation_clip)
        if min(max_steps, hidden, layers, heads, context) < 1 or hidden % heads:
            raise PolicyError("a transformer needs sizes of 1 or more and heads that divide its width")
        if not (math.isfinite(target_return) and math.isfinite(return_scale) and return_scale > 0):
            raise PolicyError("target_return must be finite and return_scale above 0")
        self.sizes = Sizes(obs_dim, act_dim, max_steps, hidden, layers, heads)
        self.context, self.target_return, self.return_scale = context, target_return, return_scale
        self.weights = nn.ParameterList([torch.zeros(1, *shape) for _, shape in self.sizes.shapes()])

    @classmethod
    def from_params(
        cls,
        params: Sequence[Tensor],
        sizes: Sizes,
        action_low: Tensor,
        action_high: Tensor,
        mean: Tensor,
        std: Tensor,
        **settings: Any,
    ) -> Self:
        """A policy with given weights.

        Args:
            params: of one network, each without the axis S; copied.
            sizes: of the network.
            action_low: lower bounds of the action box, (A,).
            action_high: upper bounds, (A,).
            mean: the normalizer's mean, (O,).
            std: its divisor, (O,).
            **settings: ``context``, ``target_return``, ``return_scale``.
        """
        given = {name: getattr(sizes, name) for name in ("max_steps", "hidden", "layers", "heads")}
        policy = cls(sizes.obs_dim, sizes.act_dim, action_low, action_high, **given, **settings)
        with torch.no_grad():
            for own, value in zip(policy.weights, params, strict=True):
                own.copy_(value[None])
        policy.set_normalizer(mean, std)
        return policy

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        names = ("context", "target_return", "return_scale")
        sizes = {name: getattr(self.sizes, name) for name in ("max_steps", "hidden", "layers", "heads")}
        return super().config() | sizes | {name: getattr(self, name) for name in names}

    def act(
        self,
        observations: Tensor,
        state: History | None = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, History]:
        """Actions (B, A) and the history with them."""
        if observations.shape[-1] != self.obs_dim:
            raise PolicyError(wrong_observations(tuple(observations.shape), self.obs_dim))
        past = state or self._start(observations)
        blank = observations.new_zeros(len(observations), 1, self.act_dim)
        seen = torch.cat((past.observations, self.normalize(observations)[:, None]), 1)[:, -self.context :]
        done = torch.cat((past.actions, blank), 1)[:, -self.context :]
        returns = torch.cat((past.returns, past.to_go[:, None]), 1)[:, -self.context :]
        steps = torch.arange(past.step + 1 - seen.shape[1], past.step + 1, device=observations.device)
        steps = steps.clamp(max=self.sizes.max_steps - 1).expand(1, len(seen), -1)
        weights = list(self.weights)
        out = transformer(weights, self.sizes.heads, returns[None], seen[None], done[None], steps)
        unit = out[0, :, -1].tanh()
        done = torch.cat((done[:, :-1], unit[:, None]), 1)
        return self.to_box(unit), History(seen, done, returns, past.to_go, past.step + 1)

    def rewarded(self, state: History, rewards: Tensor) -> History:
        """The history with ``rewards`` (B,) taken off what is still to be earned."""
        return replace(state, to_go=state.to_go - rewards.to(state.to_go) / self.return_scale)

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (B, A) at the first step of an episode."""
        return self.act(observations)[0]

    def _start(self, observations: Tensor) -> History:
        rows = len(observations)
        seen, done = (observations.new_zeros(rows, 0, width) for width in (self.obs_dim, self.act_dim))
        to_go = observations.new_full((rows,), self.target_return / self.return_scale)
        return History(seen, done, observations.new_zeros(rows, 0), to_go, 0)
