"""Actions pulled towards the data by a score model, at decision time, whatever policy chose them.

A reconstruction, not verified against the authors' code: see ``offrl.algos.cdsa``, which trains the model.

    z = [s, a]   s standardized by the data's mean and sd, a in half-ranges of the action box
    repeat K times:
        d_s, d_a = sigma^2 S(z, sigma)                      the step to the denoised z, by Tweedie's formula
        delta    = eta d_s                                  state_ref 'current'
                 = f(s, a) - s + eta d_s(f(s, a), a)        state_ref 'next'
        a       <- clip(a + alpha d_a + beta (I(s, bound(delta)) - a), -1, 1)

I maps a state and a displacement to the action that makes it, f is the one-step model. ``bound`` shortens a
displacement to the 99th percentile of the data's, each number in units of the sd of one step: in raw units fast
coordinates would hide that slow ones ask for the impossible.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from offrl.diffusion.residual_mlp import ResidualMLP
from offrl.errors import ConfigError, PolicyError
from offrl.nn.mlp import mlp
from offrl.nn.policy import Bounds, Policy

Target = Literal["joint", "cond_action"]
StateReference = Literal["current", "next"]
SIGMA = 0.1  # default noise level of an adjustment


def score_network(
    obs_dim: int, act_dim: int, hidden: int, blocks: int, target: Target, told: bool
) -> ResidualMLP:
    """The network that predicts the noise on [s, a], or on a alone (``cond_action``); ``told`` the noise level."""
    outputs = act_dim if target == "cond_action" else obs_dim + act_dim
    return ResidualMLP(obs_dim + act_dim, outputs, hidden, blocks, levels=told)


def level_input(sigma: Tensor) -> Tensor:
    """What the network is told of a noise level: log(sigma) / 4."""
    return sigma.log() / 4.0


def dynamics_sizes(obs_dim: int, act_dim: int, hidden: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layer widths of I and of f."""
    return (2 * obs_dim, hidden, hidden, act_dim), (obs_dim + act_dim, hidden, hidden, obs_dim)


class CDSAModel(Policy):
    """The score model, inverse dynamics and one-step model of a finished run. It does not act by itself.

    Args:
        obs_dim, act_dim, action_low, action_high: as in ``Policy``.
        hidden, blocks: of the score network.
        dynamics_hidden: width of the inverse and of the one-step model.
        target: what the score network was trained on.
        sigma_min, sigma_max: noise levels that it was trained on; where they are equal it is not told the level.
    """

    kind: ClassVar[str] = "cdsa_model"
    state_mean: Tensor
    state_std: Tensor
    step_std: Tensor  # 0 in columns that never change
    step_limit: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        hidden: int,
        blocks: int,
        dynamics_hidden: int,
        target: Target,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high)
        if target not in get_args(Target):
            raise PolicyError(
                f"unknown target {target!r} of a score model; known are {', '.join(get_args(Target))}"
            )
        if not 0.0 < sigma_min <= sigma_max < math.inf:
            raise PolicyError(
                f"noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}"
            )
        if min(hidden, blocks, dynamics_hidden) < 1:
            raise PolicyError("hidden, blocks and dynamics_hidden must be 1 or more")
        self.target, self.sigma_min, self.sigma_max = target, sigma_min, sigma_max
        self.dynamics_hidden = dynamics_hidden
        self.net = score_network(obs_dim, act_dim, hidden, blocks, target, sigma_min < sigma_max)
        self.register_buffer("state_mean", torch.zeros(obs_dim))
        self.register_buffer("state_std", torch.ones(obs_dim))
        self.register_buffer("step_std", torch.ones(obs_dim))
        self.register_buffer("step_limit", torch.ones(()))
        self.score_weights = nn.ParameterList(torch.zeros((1, *shape)) for _, shape in self.net.shapes())
        inverse, ahead = dynamics_sizes(obs_dim, act_dim, dynamics_hidden)
        self.inverse_weights, self.ahead_weights = _mlp_weights(inverse), _mlp_weights(ahead)

    @classmethod
    def from_params(
        cls,
        weights: Sequence[Sequence[Tensor]],
        statistics: Sequence[Tensor],
        low: Tensor,
        high: Tensor,
        **settings: Any,
    ) -> "CDSAModel":
        """A model with given weights.

        Args:
            weights: parameters (1, ...) of the score network, of I and of f; copied.
            statistics: mean and sd of the states, sd of a step (O,), and the longest step ().
            low: lower bounds of the action box, (A,).
            high: upper bounds.
            **settings: sizes, target and noise levels, as the class takes them.
        """
        model = cls(len(statistics[0]), len(low), low, high, **settings).to(low.device)
        owners = (model.score_weights, model.inverse_weights, model.ahead_weights)
        with torch.no_grad():
            for own, given in zip(owners, weights, strict=True):
                for mine, theirs in zip(own, given, strict=True):
                    mine.copy_(theirs)
        for buffer, value in zip(model.statistics, statistics, strict=True):
            buffer.copy_(value)
        return model.eval().requires_grad_(False)

    @property
    def statistics(self) -> tuple[Tensor, ...]:
        """Mean and sd of the states, sd of a step, longest step."""
        return self.state_mean, self.state_std, self.step_std, self.step_limit

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        sizes = {
            "hidden": self.net.hidden,
            "blocks": self.net.blocks,
            "dynamics_hidden": self.dynamics_hidden,
        }
        noise = {"target": self.target, "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return {"obs_dim": self.obs_dim, "act_dim": self.act_dim, **sizes, **noise}

    def forward(self, observations: Tensor) -> Tensor:
        """It has no actions (PolicyError)."""
        raise PolicyError(
            "a model of CDSA does not act; adjust a policy with: offrl eval SOURCE --adjust RUN"
        )

    def standardize(self, observations: Tensor) -> Tensor:
        """Raw observations (B, O) as the networks see them."""
        return (observations - self.state_mean) / self.state_std

    def denoising_step(self, states: Tensor, actions: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """sigma^2 S(z, sigma) = E[z clean | z] - z for states and actions; 0 for the states under ``cond_action``.

        Args:
            states: standardized, (B, O).
            actions: in half-ranges of the box, (B, A).
            sigma: noise level.
        """
        z = torch.cat((states, actions), dim=-1)[None]
        told = None
        if self.net.levels:
            told = level_input(torch.full(z.shape[:2], sigma, device=z.device, dtype=z.dtype))
        step = -sigma * self.net(list(self.score_weights), z, told)[0]  # score = -noise / sigma
        if self.target == "cond_action":
            return torch.zeros_like(states), step
        return step[:, : self.obs_dim], step[:, self.obs_dim :]

    def inverse(self, states: Tensor, displacements: Tensor) -> Tensor:
        """I: actions (B, A) in half-ranges for standardized states and displacements in sds of a step, (B, O) each."""
        x = torch.cat((states, displacements), dim=-1)
        return mlp(list(self.inverse_weights), x[None])[0].T.tanh()

    def ahead(self, states: Tensor, actions: Tensor) -> Tensor:
        """f(s, a) - s in sds of a step, (B, O)."""
        return mlp(list(self.ahead_weights), torch.cat((states, actions), dim=-1)[None])[0].T

    def in_steps(self, changes: Tensor) -> Tensor:
        """Changes of standardized states in sds of a step; 0 where the data never change."""
        scale = torch.where(self.step_std > 0, self.state_std / self.step_std, 0.0)
        return changes * scale

    def in_states(self, displacements: Tensor) -> Tensor:
        """Displacements in sds of a step as changes of standardized states."""
        return displacements * (self.step_std / self.state_std)

    def bounded(self, displacements: Tensor) -> Tensor:
        """Displacements (B, O), none longer than 99 % of the data's steps."""
        lengths = displacements.norm(dim=-1, keepdim=True)
        return displacements * torch.where(lengths > self.step_limit, self.step_limit / lengths, 1.0)


@dataclass(frozen=True)
class Adjustment:
    """How far actions are pulled; alpha = beta = 0 leaves them alone."""

    alpha: float = 0.1  # share of the step to the denoised action
    beta: float = 0.0  # share of the step to the action that leads to the denoised state
    eta: float = 1.0  # share of the step to the denoised state
    sigma: float = SIGMA  # noise level of the score
    steps: int = 1  # K
    state_ref: StateReference = "current"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0.0 <= value < math.inf:
                raise ConfigError(f"{field.name} must be a finite number of 0 or more, got {value}")
        if self.steps < 1 or not self.sigma > 0:
            raise ConfigError(f"steps must be 1 or more and sigma above 0, got {self.steps} and {self.sigma}")
        if self.state_ref not in get_args(StateReference):
            raise ConfigError(f"state_ref must be current or next, got {self.state_ref!r}")


class CDSAPolicy(Policy):
    """Another policy, its actions adjusted; it is saved with both parents.

    Args:
        base: chooses the actions, from raw observations.
        model: pulls them, from raw observations.
        **settings: those of ``Adjustment``.

    Raises:
        PolicyError: base and model are of different environments, or the base is a model itself.
        ConfigError: settings out of range, or that this model was not trained for.
    """

    kind: ClassVar[str] = "cdsa"
    parents = ("base", "model")

    def __init__(self, base: Policy, model: CDSAModel, **settings: Any) -> None:
        if not isinstance(model, CDSAModel):
            raise PolicyError(f"an adjustment needs a run of cdsa, not a {model.kind} policy")
        super().__init__(base.obs_dim, base.act_dim, base.action_low, base.action_high)
        check_pair(base, model)
        self.base, self.model, self.adjustment = base, model, Adjustment(**settings)
        check_fits(model, self.adjustment)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values, besides the parents."""
        return asdict(self.adjustment)

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """The base's actions (B, A), adjusted, and its state."""
        actions, state = self.base.act(observations, state, deterministic=deterministic, generator=generator)
        return self.adjust(observations, actions), state

    def forward(self, observations: Tensor) -> Tensor:
        """The base's deterministic actions (B, A), adjusted."""
        return self.adjust(observations, self.base(observations))

    def rewarded(self, state: Any, rewards: Tensor) -> Any:
        """As the base."""
        return self.base.rewarded(state, rewards)

    def reset_state(self, mask: Tensor) -> None:
        """As the base."""
        self.base.reset_state(mask)

    def adjust(self, observations: Tensor, actions: Tensor) -> Tensor:
        """``actions`` (B, A) of the base, pulled; the very same ones for alpha = beta = 0."""
        s = self.adjustment
        if s.alpha == 0.0 and s.beta == 0.0:
            return actions
        states, unit = self.model.standardize(observations), (actions - self.center) / self.half_range
        for _ in range(s.steps):
            of_states, of_actions = self.model.denoising_step(states, unit, s.sigma)
            change = s.alpha * of_actions
            if s.beta > 0.0:
                change = change + s.beta * (self._auxiliary(states, unit, of_states) - unit)
            unit = (unit + change).clamp(-1.0, 1.0)
        return self.clip(self.to_box(unit))

    def _auxiliary(self, states: Tensor, actions: Tensor, of_states: Tensor) -> Tensor:
        """The action that leads to the denoised state, or to the denoised next state."""
        s, model = self.adjustment, self.model
        if s.state_ref == "current":
            wanted = model.in_steps(s.eta * of_states)
        else:
            moved = model.ahead(states, actions)
            there = states + model.in_states(moved)
            wanted = moved + model.in_steps(s.eta * model.denoising_step(there, actions, s.sigma)[0])
        return model.inverse(states, model.bounded(wanted))


def check_pair(base: Policy, model: CDSAModel) -> None:
    """Refuse a policy that is of another environment than the model, or one that does not act (PolicyError)."""
    if isinstance(base, CDSAModel):
        raise PolicyError("a model of CDSA does not act: adjust a policy with it")
    own, others = (base.obs_dim, base.act_dim), (model.obs_dim, model.act_dim)
    if own != others:
        raise PolicyError(
            f"the policy has O={own[0]}, A={own[1]}, the CDSA model O={others[0]}, A={others[1]}; "
            "were they trained on one environment?"
        )
    for name in ("action_low", "action_high"):
        if not torch.equal(getattr(base, name).cpu(), getattr(model, name).cpu()):
            raise PolicyError(f"policy and CDSA model have different action boxes ({name})")


def check_fits(model: CDSAModel, adjustment: Adjustment) -> None:
    """Refuse a noise level that the model was not trained on, and state corrections that it has not (ConfigError)."""
    if not model.sigma_min <= adjustment.sigma <= model.sigma_max:
        levels = f"{model.sigma_min:g} .. {model.sigma_max:g}"
        raise ConfigError(
            f"the score model was trained at noise levels {levels}, not at sigma {adjustment.sigma:g}"
        )
    if model.target == "cond_action" and adjustment.beta > 0:
        raise ConfigError(
            "beta needs scores of the states; this model has target cond_action, the actions' alone"
        )


def _mlp_weights(sizes: Sequence[int]) -> nn.ParameterList:
    """Zeros in the shapes of ``offrl.nn.mlp.init_mlp`` for one network."""
    shapes: list[tuple[int, ...]] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        shapes += [(1, fan_in, fan_out), (1, 1, fan_out)]
    shapes += [(1, sizes[-1], sizes[-2]), (1, sizes[-1], 1)]
    return nn.ParameterList(torch.zeros(shape) for shape in shapes)
