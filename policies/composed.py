"""Several chunk policies as one: the same face as any policy, saved with its parents in sub-folders.

Each parent normalizes its own columns of the observation, and as many of the last ones as it was trained on. The
control ``action_average`` lets each make its own plan from its own noise and averages the actions: no composition.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor

from offrl.errors import PolicyError
from offrl.nn.policy import DiagGaussianPolicy, Policy, SquashedGaussianPolicy
from offrl.policies.chunk import Plans, RecedingHorizon, drawer
from offrl.policies.composition import OPERATORS, Composition, Matching, Operator, check_weights
from offrl.policies.gaussian import GaussianPlan
from offrl.policies.wiring import Piece, see

Mode: TypeAlias = Operator | Literal["action_average"]
MODES: tuple[str, ...] = (*OPERATORS, "action_average")


class ComposedPolicy(RecedingHorizon):
    """Plans that frozen chunk policies make together.

    Args:
        parents: two or more chunk policies for the same action box.
        columns: which columns of the observation each sees; None: all of it, the same for each.
        wires: instead of columns, the pieces that each sees, images resized and laid out; see offrl.policies.wiring.
        obs_dim: columns of the environment's observation; None: that of the first parent.
        operator: of ``Composition``, or ``action_average``.
        weights: likewise.
        n_act: actions carried out before the next plan; None: the smallest of the parents'.
        denoising_steps, stochastic, temperature, allow_anisotropic, matching: of ``Composition``;
            None: the first parent's steps.

    Raises:
        PolicyError: parents that do not fit each other.
        ConfigError: weights or normalizers that cannot be composed.
    """

    kind: ClassVar[str] = "composed"

    def __init__(
        self,
        parents: Sequence[Policy],
        *,
        columns: Sequence[Sequence[int]] | None = None,
        wires: Sequence[Sequence[Piece | dict[str, Any]]] | None = None,
        obs_dim: int | None = None,
        operator: Mode = "convex",
        weights: Sequence[float] | None = None,
        n_act: int | None = None,
        denoising_steps: int | None = None,
        stochastic: bool = False,
        temperature: float = 1.0,
        allow_anisotropic: bool = False,
        matching: Matching = "mean",
    ) -> None:
        chunky = [composable(p) for p in parents]
        if len(parents) < 2:
            raise PolicyError("a composition needs two or more policies")
        first = chunky[0]
        if len(spaces := {p.space for p in chunky}) > 1:
            raise PolicyError(
                f"the policies denoise different things: {' and '.join(sorted(spaces))}; their noise cannot be shared"
            )
        self.draws = any(p.draws for p in chunky)
        super().__init__(
            first.obs_dim if obs_dim is None else obs_dim, first.act_dim, first.action_low, first.action_high
        )
        for a, b in pairwise(chunky):
            if not torch.equal(a.action_low, b.action_low) or not torch.equal(a.action_high, b.action_high):
                raise PolicyError("the policies act in different action boxes")
        self.parents = tuple(f"parent_{number}" for number in range(1, len(chunky) + 1))
        for name, parent in zip(self.parents, chunky, strict=True):
            self.add_module(name, cast(Policy, parent))
        self.wires = None if wires is None else _wires(chunky, wires, self.obs_dim)
        self.columns = None if self.wires is not None else _columns(chunky, columns, self.obs_dim)
        self.n_obs = max(p.n_obs for p in chunky)
        self.operator, self.stochastic, self.temperature = operator, stochastic, temperature
        self.denoising_steps = first.denoising_steps if denoising_steps is None else denoising_steps
        self.allow_anisotropic, self.matching = allow_anisotropic, matching
        blend: Operator = "convex" if operator == "action_average" else operator
        self.weights = check_weights(blend, weights, len(chunky))
        self.blend = blend
        self.mismatch = self.composition().mismatch
        longest = min(p.horizon - p.n_obs + 1 for p in chunky)
        self.n_act = min(p.n_act for p in chunky) if n_act is None else n_act
        if not 1 <= self.n_act <= longest:
            raise PolicyError(f"n_act must be in 1 .. {longest}, what every policy plans, got {self.n_act}")

    @classmethod
    def made_of(cls, parents: dict[str, Any], config: dict[str, Any]) -> "ComposedPolicy":
        """The parents in their order, whatever their names."""
        return cls(list(parents.values()), **config)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values; the parents are in folders of their own."""
        names = ("obs_dim", "operator", "n_act", "denoising_steps", "stochastic", "temperature")
        own = {name: getattr(self, name) for name in (*names, "allow_anisotropic", "matching")}
        weights = None if self.operator == "and" else self.weights
        seen: dict[str, Any] = {"columns": self.columns}
        if self.wires is not None:
            seen = {"wires": [[piece.to_json() for piece in pieces] for pieces in self.wires]}
        return own | seen | {"weights": weights}

    def composition(self) -> Composition:
        """The denoisers of the parents, composed."""
        return Composition(
            [p.denoiser() for p in self.chunky()],
            self.blend,
            None if self.blend == "and" else self.weights,
            steps=self.denoising_steps,
            stochastic=self.stochastic,
            temperature=self.temperature,
            clip=self.chunky()[0].clip_bound,
            allow_anisotropic=self.allow_anisotropic,
            matching=self.matching,
        )

    def chunky(self) -> list[Plans]:
        """The parents."""
        return [cast(Plans, getattr(self, name)) for name in self.parents]

    def histories(self, history: Tensor) -> list[Tensor]:
        """What each parent sees (B, To_i, O_i) of the last observations (B, To, O)."""
        recent = [history[:, self.n_obs - p.n_obs :] for p in self.chunky()]
        if self.wires is not None:
            return [see(pieces, rows) for pieces, rows in zip(self.wires, recent, strict=True)]
        assert self.columns is not None
        return [rows[:, :, columns] for rows, columns in zip(recent, self.columns, strict=True)]

    def plan(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """Actions to carry out (B, Ta, A)."""
        seen, parents = self.histories(history), self.chunky()
        if self.operator == "action_average":
            plans = [
                w * p.to_actions(p.chunk(h, generator, zero=zero))[:, p.n_obs - 1 :][:, : self.n_act]
                for w, p, h in zip(self.weights, parents, seen, strict=True)
            ]
            return torch.stack(plans).sum(0)
        conditions = [p.encode(h) for p, h in zip(parents, seen, strict=True)]
        draw, c = drawer(generator, zero), self.composition()
        noise = draw(history.new_empty(len(history), c.rows, self.act_dim))
        actions = parents[0].to_actions(c.sample(conditions, noise, draw))
        return actions[:, c.now : c.now + self.n_act]


def composable(policy: Policy) -> Plans:
    """A policy as one that plans: what has the methods of ``Plans`` as it is, Gaussian actors as plans of one step.

    Raises:
        PolicyError: it is neither.
    """
    if isinstance(policy, Plans):
        return policy
    if isinstance(policy, SquashedGaussianPolicy | DiagGaussianPolicy):
        return GaussianPlan(policy)
    raise PolicyError(no_denoiser(policy.kind or type(policy).__name__))


def no_denoiser(kind: str) -> str:
    """Why a policy of this kind cannot be composed."""
    return f"a {kind} policy has no denoiser; a composition needs diffusion or flow chunk policies, or Gaussian actors"


def _wires(
    parents: Sequence[Plans], wires: Sequence[Sequence[Piece | dict[str, Any]]], obs_dim: int
) -> list[list[Piece]]:
    """The pieces of each parent, checked."""
    if len(wires) != len(parents):
        raise PolicyError(f"wires must name those of {len(parents)} policies, got {len(wires)}")
    out = [[w if isinstance(w, Piece) else Piece.from_json(w) for w in pieces] for pieces in wires]
    for number, (p, pieces) in enumerate(zip(parents, out, strict=True), 1):
        inside = all(0 <= w.start < w.stop <= obs_dim for w in pieces)
        if not inside or sum(w.width for w in pieces) != p.obs_dim:
            raise PolicyError(f"the wires of policy {number} do not make up its {p.obs_dim} numbers")
    return out


def _columns(
    parents: Sequence[Plans], columns: Sequence[Sequence[int]] | None, obs_dim: int
) -> list[list[int]]:
    """The columns of each parent, checked."""
    given = [list(range(obs_dim))] * len(parents) if columns is None else [list(c) for c in columns]
    if len(given) != len(parents):
        raise PolicyError(f"columns must name those of {len(parents)} policies, got {len(given)}")
    for number, (p, c) in enumerate(zip(parents, given, strict=True), 1):
        if len(c) != p.obs_dim or not all(0 <= i < obs_dim for i in c):
            raise PolicyError(
                f"policy {number} was built for {p.obs_dim} numbers of the observation, but is to see {len(c)} "
                f"of {obs_dim}"
            )
    return given


class ViewedPolicy(Policy):
    """A policy that sees some pieces of the environment's observation.

    Args:
        policy: what acts.
        pieces: what it sees.
        obs_dim: numbers of the environment's observation.
    """

    kind: ClassVar[str] = "viewed"

    def __init__(self, policy: Policy, pieces: Sequence[Piece], obs_dim: int) -> None:
        super().__init__(obs_dim, policy.act_dim, policy.action_low, policy.action_high)
        self.policy, self.pieces = policy, list(pieces)

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """The policy's actions (B, A) on what it sees."""
        seen = see(self.pieces, observations)
        return self.policy.act(seen, state, deterministic=deterministic, generator=generator)

    def forward(self, observations: Tensor) -> Tensor:
        """The policy's actions (B, A) at an episode's first step."""
        actions: Tensor = self.policy(see(self.pieces, observations))
        return actions
