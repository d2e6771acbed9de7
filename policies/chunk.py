"""Policies that plan a chunk of actions by denoising it, carry out its first steps, and plan again.

    o_{t-To+1} .. o_t         the last To observations, normalized; the first one repeated at an episode's start
    A = denoise(noise)        H actions, the first of them belonging to the oldest of these observations
    a_t .. a_{t+Ta-1}         rows To - 1 .. To - 2 + Ta are carried out, then a new plan is made

    diffusion   x = sqrt(abar) A + sqrt(1 - abar) eps, net(x, k, o) = eps, levels of the cosine schedule of 100
    flow        x = (1 - s) A + s eps,                 net(x, 100 s, o) = eps - A, Euler steps in s

Both are sampled in (u, rho) with the clean chunk clipped to the normalized actions' range, as the diffusion's
published sampler does. ``denoiser`` is the face that a composition asks.

Source: Diffusion Policy, arXiv:2303.04137; flow matching: arXiv:2210.02747.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.parameterization import Kind, to_x0
from offrl.diffusion.schedules import VP, Flow
from offrl.diffusion.steppers import ode_step, sde_step
from offrl.errors import PolicyError
from offrl.nn.policy import Bounds, Policy, wrong_observations
from offrl.policies.composition import Denoiser
from offrl.policies.network import ChunkNetwork, check_inputs, check_network, denoiser_of, encode, normalized

Family: TypeAlias = Literal["diffusion", "flow"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LEVELS = 100  # of the diffusion; a flow's time is told in the same range
SCHEDULES: dict[str, VP | Flow] = {"diffusion": VP.cosine(LEVELS), "flow": Flow(time_scale=float(LEVELS))}
SAMPLER: dict[str, Any] = {
    "levels": LEVELS,  # trained ones
    "prediction": "eps",  # or x0: what a diffusion's network puts out
    "clip": 1.0,  # bound of the clean chunk; None for none
    "leading": False,  # fewer levels than trained ones end at level 0 instead of beginning at the noisiest
    "raw_direction": False,  # DDIM steps along the noise from before the clip, as diffusers does
}
NORMALIZERS = ("shift", "scale", "offset", "inverse_scale")


@dataclass(frozen=True)
class ChunkState:
    """What a chunk policy remembers of B episodes."""

    history: Tensor  # (B, To, O), raw; the last row is the newest
    plan: Tensor  # (B, Ta, A), still to be carried out from row ``next`` on
    next: Tensor  # (B,) int64; Ta: nothing is left
    fresh: Tensor  # (B,) bool, nothing was seen yet

    def reset(self, mask: Tensor) -> "ChunkState":
        """Forget the episodes where ``mask`` (B,) is true: their environments were reset."""
        done = torch.where(mask, self.plan.shape[1], self.next)
        return replace(self, next=done, fresh=self.fresh | mask)


class RecedingHorizon(Policy):
    """History and queue of planned actions; a subclass says how a plan is made.

    Plans are drawn, also with ``deterministic=True``: their mean may lie between two ways of doing it. ``forward`` is
    the first action of the plan that grows from zero noise by the ODE, for an episode's first observation.
    """

    n_obs: int
    n_act: int
    draws = True  # plans are drawn, whatever deterministic says

    def plan(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """Actions to carry out (B, Ta, A), in the environment's units.

        Args:
            history: raw observations (B, To, O).
            generator: stream of the noise; torch's global one when None.
            zero: start at zero noise and add none.
        """
        raise NotImplementedError

    def start(self, observations: Tensor) -> ChunkState:
        """The state of B episodes before their first observation."""
        rows = len(observations)
        return ChunkState(
            observations.new_zeros(rows, self.n_obs, self.obs_dim),
            observations.new_zeros(rows, self.n_act, self.act_dim),
            torch.full((rows,), self.n_act, dtype=torch.int64, device=observations.device),
            torch.ones(rows, dtype=torch.bool, device=observations.device),
        )

    def act(
        self,
        observations: Tensor,
        state: ChunkState | None = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ChunkState]:
        """The next planned actions (B, A), and the state; episodes without one left are planned together."""
        if observations.shape[-1] != self.obs_dim:
            raise PolicyError(wrong_observations(tuple(observations.shape), self.obs_dim))
        state = self.start(observations) if state is None else state
        pushed = torch.cat((state.history[:, 1:], observations[:, None]), 1)
        repeated = observations[:, None].expand_as(pushed)
        history = torch.where(state.fresh[:, None, None], repeated, pushed)
        plan, at = state.plan, state.next
        empty, zero = at >= self.n_act, deterministic and not self.draws
        if bool(empty.any()):
            if bool(empty.all()):
                plan, at = self.plan(history, generator, zero=zero), torch.zeros_like(at)
            else:
                plan = plan.clone()
                plan[empty] = self.plan(history[empty], generator, zero=zero)
                at = torch.where(empty, 0, at)
        actions = plan[torch.arange(len(plan), device=plan.device), at]
        return self.clip(actions), ChunkState(history, plan, at + 1, torch.zeros_like(state.fresh))

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (B, A) at an episode's first step, from zero noise."""
        history = observations[:, None].expand(-1, self.n_obs, -1)
        return self.clip(self.plan(history, zero=True)[:, 0])


@runtime_checkable
class Plans(Protocol):
    """What a composition asks of a policy."""

    horizon: int
    n_obs: int
    n_act: int
    obs_dim: int
    act_dim: int
    denoising_steps: int
    action_low: Tensor
    action_high: Tensor
    draws: bool
    space: str

    @property
    def clip_bound(self) -> float | None:
        """Bound of clean chunks; None for none."""

    def encode(self, history: Tensor) -> Any:
        """What the denoiser is told of the last observations."""

    def denoiser(self) -> Denoiser:
        """The face that is asked."""

    def chunk(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """A clean chunk of its own."""

    def to_actions(self, chunk: Tensor) -> Tensor:
        """A clean chunk in the environment's units."""


class ChunkPolicy(RecedingHorizon):
    """A diffusion or flow policy over chunks of actions, with its U-Net and normalizers inside.

    Args:
        obs_dim, act_dim, action_low, action_high: as in ``Policy``.
        family: ``diffusion`` or ``flow``.
        horizon: H, actions of a chunk; a multiple of 2^(levels - 1).
        n_obs: To, observations that the network sees.
        n_act: Ta, actions carried out before the next plan, at most H - To + 1.
        widths, step_embed: of the network.
        denoising_steps: noise levels of a plan.
        stochastic: draw each step of a diffusion from its posterior (DDPM) instead of following the ODE (DDIM).
        inputs: name and shape of each part of an observation, in order; images are (H, W, C). None: one part,
            'observation'.
        network, vision: settings of the denoiser and of the image encoder, see ``ChunkNetwork``.
        sampler: what other people's policies do otherwise, see ``SAMPLER``.
    """

    kind: ClassVar[str] = "chunk"
    space = "actions"  # what a chunk holds, up to the normalizer

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        family: Family = "diffusion",
        horizon: int = 16,
        n_obs: int = 2,
        n_act: int = 8,
        widths: Sequence[int] = (64, 128, 256),
        step_embed: int = 128,
        denoising_steps: int = 10,
        stochastic: bool = False,
        inputs: Sequence[tuple[str, Sequence[int]]] | None = None,
        network: Mapping[str, Any] | None = None,
        vision: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        observation_clip: None = None,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high)
        self.inputs = check_inputs(inputs, obs_dim)
        self.settings = check_network(network)
        unet = self.settings["kind"] == "unet"
        check_chunk(family, horizon, n_obs, n_act, widths if unet else (), denoising_steps, stochastic)
        self.family, self.horizon, self.n_obs, self.n_act = family, horizon, n_obs, n_act
        self.widths, self.step_embed = tuple(widths), step_embed
        self.denoising_steps, self.stochastic = denoising_steps, stochastic
        built = ChunkNetwork(self.inputs, act_dim, horizon, n_obs, widths, step_embed, self.settings, vision)
        self.vision = built.vision
        for part, module in built.named_children():
            self.add_module(part, module)
        self.channels = sum(shape[2] for shape in built.images)
        numbers = obs_dim - sum(math.prod(shape) for shape in built.images)
        pairs = (("observation", numbers), ("action", act_dim), ("image", self.channels))
        for name, width in pairs if self.channels else pairs[:2]:
            for part in NORMALIZERS:
                start = torch.zeros(width) if part in ("shift", "offset") else torch.ones(width)
                self.register_buffer(f"{name}_{part}", start)
        self.sampler = check_sampler(sampler, family, denoising_steps)
        self.schedule: VP | Flow = SCHEDULES[family]
        if isinstance(self.schedule, VP) and self.sampler["levels"] != LEVELS:
            with torch.device("cpu"):  # also where a policy is described without its weights
                self.schedule = VP.cosine(self.sampler["levels"])

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        names = ("family", "horizon", "n_obs", "n_act", "step_embed", "denoising_steps", "stochastic")
        own = {name: getattr(self, name) for name in names}
        inputs = [[name, list(shape)] for name, shape in self.inputs]
        own |= {"widths": list(self.widths), "inputs": inputs, "network": self.settings}
        own |= {} if self.sampler == SAMPLER else {"sampler": self.sampler}
        return super().config() | own | ({"vision": self.vision} if self.channels else {})

    def set_normalizers(
        self,
        observations: AffineNormalizer,
        actions: AffineNormalizer,
        images: AffineNormalizer | None = None,
    ) -> None:
        """Copy in what maps observations (without images), actions and images' channels to the network's units."""
        given = {"observation": observations, "action": actions} | (
            {} if images is None else {"image": images}
        )
        for name, normalizer in given.items():
            for part in NORMALIZERS:
                getattr(self, f"{name}_{part}").copy_(getattr(normalizer, part))

    def normalizer(self, name: Literal["observation", "action", "image"]) -> AffineNormalizer:
        """That of observations without images, of actions, or of images' channels."""
        return AffineNormalizer(*(getattr(self, f"{name}_{part}") for part in NORMALIZERS))

    def encode(self, history: Tensor) -> Tensor:
        """What the denoiser is told of the last observations (B, To, O), once a plan: (B, To C)."""
        images = self.normalizer("image") if self.channels else None
        return encode(self, normalized(self.inputs, history, self.normalizer("observation"), images))

    def denoise(self, u: Tensor, rho: float, condition: Tensor) -> Tensor:
        """Clean chunks D(u, rho) (B, H, A), not clipped; see ``Denoiser``."""
        if math.isinf(rho):
            alpha, sigma, x, time = 0.0, 1.0, u, float(LEVELS)
        else:
            alpha = float(self.schedule.alpha(rho))
            sigma, x, time = alpha * rho, alpha * u, float(self.schedule.time(rho))
        out = denoiser_of(self)(x, torch.full((len(u),), time, dtype=u.dtype, device=u.device), condition)
        return to_x0(self.output, out, x, alpha, sigma)

    @property
    def output(self) -> Kind:
        """What the network puts out."""
        kind: Kind = self.sampler["prediction"]
        return kind if self.family == "diffusion" else "flow"

    @property
    def clip_bound(self) -> float | None:
        """Bound of clean normalized chunks."""
        bound: float | None = self.sampler["clip"]
        return bound

    def to_actions(self, chunk: Tensor) -> Tensor:
        """Normalized chunks in the environment's units."""
        return self.normalizer("action").inverse(chunk)

    def grid(self) -> list[float]:
        """Noise levels of a plan, ending in 0."""
        if not self.sampler["leading"]:
            return self.schedule.grid(self.denoising_steps)
        assert isinstance(self.schedule, VP)
        stride = len(self.schedule.rho) // self.denoising_steps
        return [*(float(self.schedule.rho[i * stride]) for i in reversed(range(self.denoising_steps))), 0.0]

    def denoiser(self) -> Denoiser:
        """The face for compositions."""
        levels = self.schedule if isinstance(self.schedule, VP) else None
        return Denoiser(self.denoise, self.horizon, self.n_obs - 1, self.normalizer("action"), levels)

    def chunk(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """Clean normalized chunks (B, H, A) for raw observations (B, To, O)."""
        condition = self.encode(history)
        draw = drawer(generator, zero)
        u: Tensor = draw(condition.new_empty(len(history), self.horizon, self.act_dim))
        grid, bound = self.grid(), self.clip_bound
        if not math.isinf(
            grid[0]
        ):  # leading levels begin below pure noise; the network is given noise all the same
            u = u * (math.hypot(1.0, grid[0]) if self.sampler["leading"] else grid[0])
        for rho, after in pairwise(grid):
            clean = self.denoise(u, rho, condition)
            x0 = clean if bound is None else clean.clamp(-bound, bound)
            if self.stochastic:
                u = sde_step(u, x0, rho, after, draw(u))
            elif self.sampler["raw_direction"]:
                u = x0 + (after / rho) * (u - clean)
            else:
                u = ode_step(u, x0, rho, after)
        return u

    def plan(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """Actions to carry out (B, Ta, A)."""
        actions = self.to_actions(self.chunk(history, generator, zero=zero))
        return actions[:, self.n_obs - 1 : self.n_obs - 1 + self.n_act]


def check_sampler(sampler: Mapping[str, Any] | None, family: str, steps: int) -> dict[str, Any]:
    """The settings of the sampler, filled in and checked (PolicyError)."""
    if strange := sorted(set(sampler or {}) - set(SAMPLER)):
        raise PolicyError(f"a sampler has no setting {strange[0]!r}")
    settings = SAMPLER | dict(sampler or {})
    if settings["prediction"] not in ("eps", "x0") or not 2 <= settings["levels"] <= 10_000:
        raise PolicyError(f"prediction must be eps or x0, levels 2 .. 10000: {settings}")
    clip = settings["clip"]
    if clip is not None and not (isinstance(clip, int | float) and 0 < clip < math.inf):
        raise PolicyError(f"clip must be a number above 0, or None, got {clip!r}")
    if family == "flow" and settings != SAMPLER:
        raise PolicyError("a flow has no settings of a sampler")
    if family == "diffusion" and steps > settings["levels"]:
        raise PolicyError(
            f"denoising_steps must be at most {settings['levels']}, the trained levels, got {steps}"
        )
    return settings


def drawer(generator: torch.Generator | None, zero: bool) -> Any:
    """Standard normal draws shaped as the argument, or zeros."""
    if zero:
        return torch.zeros_like
    return lambda x: torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def check_chunk(
    family: str,
    horizon: int,
    n_obs: int,
    n_act: int,
    widths: Sequence[int],
    denoising_steps: int,
    stochastic: bool,
) -> None:
    """Refuse horizons and samplers that do not fit each other (PolicyError)."""
    if family not in FAMILIES:
        raise PolicyError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if min(horizon, n_obs, n_act, denoising_steps) < 1:
        raise PolicyError("horizon, n_obs, n_act and denoising_steps must be 1 or more")
    if n_obs - 1 + n_act > horizon:
        raise PolicyError(f"n_obs - 1 + n_act must be at most horizon {horizon}, got {n_obs - 1 + n_act}")
    if widths and horizon % (halvings := 2 ** (len(widths) - 1)):
        raise PolicyError(
            f"horizon must be a multiple of {halvings}, by which the network halves it: {horizon}"
        )
    if family == "flow" and stochastic:
        raise PolicyError("a flow is sampled by its ODE only; leave stochastic out")


def copy_weights(policy: ChunkPolicy, weights: dict[str, Tensor]) -> None:
    """Fill the networks with parameters by name."""
    own: nn.Module = policy
    with torch.no_grad():
        for name, value in own.named_parameters():
            value.copy_(weights[name])
