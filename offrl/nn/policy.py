"""Policies: raw observations in, actions in the environment's units out, the normalizer inside.

    x = clip((o - mean) / std, -observation_clip, observation_clip)  (the clip only where the source had one)

    deterministic      a = center + half_range tanh(f(x))
    gaussian           a ~ Normal(center + half_range tanh(f(x)), half_range exp(log_std)), clipped to the box
    diag_gaussian      a ~ Normal(f(x), exp(log_std)), clipped to the box
    squashed_gaussian  a = center + half_range tanh(u),  u ~ Normal(f(x), exp(clamp(g(x), log_std_min, 2)))
    random             a ~ Uniform(box)
    one_step_flow      a = center + half_range clip(f(x, z)),  z ~ Normal(0, 1)   (offrl.nn.one_step_flow)
    decision_transformer  a = center + half_range tanh(f(x and returns-to-go so far)) (offrl.nn.decision_transformer)
    mixture, squashed_mixture  a Gaussian mixture, clipped or squashed          (offrl.nn.mixture)

f and g are multi-layer perceptrons; log_std is one free number per action dimension.

On disk a policy is two files: ``policy.json`` (format, kind, constructor arguments, spaces) and
``policy.safetensors`` (weights, normalizer, action box). A policy made of others has them in sub-folders.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from offrl.errors import PolicyError
from offrl.files import atomic_write_bytes, atomic_write_json

Linear = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)
Bounds = Sequence[float] | Tensor

FORMAT = 1
JSON_NAME, WEIGHTS_NAME = "policy.json", "policy.safetensors"
MAX_JSON_BYTES = 1 << 20
MOST_GENERATIONS = 3  # of policies inside policies

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}


class Policy(nn.Module):
    """What acts in an environment: ``act`` is all that a rollout calls, ``forward`` is the export path.

    Args:
        obs_dim: O, size of a flat observation.
        act_dim: A, size of an action.
        action_low, action_high: the action box, (A,), finite; -1 and 1 when None.
        observation_clip: bound of the normalized observation; None for no clipping.

    Raises:
        PolicyError: a size below 1, bounds that are not finite or not ordered.
    """

    kind: ClassVar[str] = ""
    parents: tuple[str, ...] = ()  # attributes that are policies; on disk a sub-folder each
    mean: Tensor
    std: Tensor
    action_low: Tensor
    action_high: Tensor
    center: Tensor  # of the box; this and what is below follow from what is above
    half_range: Tensor
    normalizes: bool
    scales: bool

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        observation_clip: float | None = None,
    ) -> None:
        super().__init__()
        if obs_dim < 1 or act_dim < 1:
            raise PolicyError(f"obs_dim and act_dim must be 1 or more, got {obs_dim} and {act_dim}")
        if observation_clip is not None and not observation_clip > 0:
            raise PolicyError(f"observation_clip must be above 0 or None, got {observation_clip}")
        self.obs_dim, self.act_dim, self.observation_clip = obs_dim, act_dim, observation_clip
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))
        self.register_buffer("action_low", _bound(action_low, -1.0, act_dim))
        self.register_buffer("action_high", _bound(action_high, 1.0, act_dim))
        self.register_buffer("center", torch.zeros(act_dim), persistent=False)
        self.register_buffer("half_range", torch.ones(act_dim), persistent=False)
        self.derive()
        self.register_load_state_dict_post_hook(_derive_after_load)  # type: ignore[no-untyped-call]

    def derive(self) -> None:
        """Recompute what follows from box and normalizer, after either was changed in place.

        Raises:
            PolicyError: the box is not finite, or empty.
        """
        low, high = self.action_low, self.action_high
        self.normalizes = self.scales = True
        if low.is_meta:
            return
        self.center, self.half_range = (high + low) / 2, (high - low) / 2
        self.scales = bool((low != -1).any() or (high != 1).any())
        self.normalizes = bool((self.mean != 0).any() or (self.std != 1).any())
        if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low < high).all()):
            raise PolicyError(
                f"the action box must be finite with low < high, got {low.tolist()} and {high.tolist()}"
            )

    def act(
        self,
        observations: Tensor,
        state: Any = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Any]:
        """Actions for a batch of raw observations.

        Args:
            observations: (B, O) float32, as the environment gives them.
            state: what the last call returned, None at the start of an episode.
            deterministic: the mode instead of a sample, where the policy has one.
            generator: stream of the sample; torch's global one when None.

        Returns:
            actions (B, A) inside the action box, and the state for the next call.

        Raises:
            PolicyError: the observations have another size than the policy was built for.
        """
        if observations.shape[-1] != self.obs_dim:
            raise PolicyError(wrong_observations(tuple(observations.shape), self.obs_dim))
        if deterministic:
            return self.forward(observations), state
        return self.sample(observations, generator), state

    def rewarded(self, state: Any, rewards: Tensor) -> Any:
        """The state after a step earned ``rewards`` (B,); only return-conditioned policies look at them."""
        return state

    def reset_state(self, mask: Tensor) -> None:
        """Forget what is kept for the rows where ``mask`` (B,) is true; memoryless policies keep nothing."""

    def forward(self, observations: Tensor) -> Tensor:
        """Deterministic actions (B, A) for raw observations (B, O)."""
        raise NotImplementedError

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sampled actions (B, A), inside the box; a deterministic policy gives its only action."""
        return self.forward(observations)

    @classmethod
    def made_of(cls, parents: dict[str, Any], config: dict[str, Any]) -> "Policy":
        """The policy of a description: its parents by name and the other constructor arguments."""
        return cls(**config, **parents)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values; weights, bounds and normalizer are in ``state_dict``."""
        return {"obs_dim": self.obs_dim, "act_dim": self.act_dim, "observation_clip": self.observation_clip}

    def set_normalizer(self, mean: Tensor, std: Tensor) -> None:
        """Normalize observations by ``(o - mean) / std``; both (O,), ``std`` above 0, epsilon inside."""
        for name, value in (("mean", mean), ("std", std)):
            if tuple(value.shape) != (self.obs_dim,) or not torch.isfinite(value).all():
                raise PolicyError(f"the normalizer's {name} must be {self.obs_dim} finite numbers")
        if not (std > 0).all():
            raise PolicyError("the normalizer's std must be above 0 in every column")
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.derive()

    def normalize(self, observations: Tensor) -> Tensor:
        """What the network sees, (B, O)."""
        x = (observations - self.mean) / self.std if self.normalizes else observations
        return x if self.observation_clip is None else x.clamp(-self.observation_clip, self.observation_clip)

    def clip(self, actions: Tensor) -> Tensor:
        """Actions cut to the box."""
        return torch.minimum(torch.maximum(actions, self.action_low), self.action_high)

    def to_box(self, unit: Tensor) -> Tensor:
        """[-1, 1] -> the action box, by center and half-range."""
        return torch.addcmul(self.center, self.half_range, unit) if self.scales else unit


class MLPPolicy(Policy):
    """A multi-layer perceptron from normalized observations to A numbers; the subclasses say what they mean.

    Args:
        obs_dim, act_dim, action_low, action_high, observation_clip: as in ``Policy``.
        hidden: sizes of the hidden layers; may be empty.
        activation: one of relu, tanh, elu, leaky_relu, silu, after each hidden layer.
    """

    heads: ClassVar[int] = 1  # numbers per action dimension that the network puts out

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int] = (256, 256),
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        activation: str = "relu",
        observation_clip: float | None = None,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high, observation_clip=observation_clip)
        if activation not in ACTIVATIONS:
            raise PolicyError(f"unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
        if any(size < 1 for size in hidden):
            raise PolicyError(f"hidden layers need 1 or more units each, got {tuple(hidden)}")
        self.hidden, self.activation = tuple(hidden), activation
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((obs_dim, *self.hidden)))
        self.head = nn.Linear(self.hidden[-1] if self.hidden else obs_dim, self.heads * act_dim)

    @classmethod
    def from_params(
        cls,
        params: Sequence[Linear],
        action_low: Bounds,
        action_high: Bounds,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        **settings: Any,
    ) -> Self:
        """A policy with given weights.

        Args:
            params: (weight (out, in), bias (out,)) pairs, input layer first; copied.
            action_low: lower bounds of the action box, (A,).
            action_high: upper bounds, (A,).
            mean: the normalizer's mean, (O,); no normalizer when None.
            std: the normalizer's divisor, (O,).
            **settings: ``activation``, ``observation_clip`` and what else the class takes.
        """
        sizes = [params[0][0].shape[1], *(weight.shape[0] for weight, _ in params)]
        policy = cls(sizes[0], sizes[-1] // cls.heads, sizes[1:-1], action_low, action_high, **settings)
        for layer, pair in zip([*policy.trunk, policy.head], params, strict=True):
            fill_linear(layer, pair)
        if mean is not None and std is not None:
            policy.set_normalizer(mean, std)
        return policy

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().config() | {"hidden": list(self.hidden), "activation": self.activation}

    def features(self, observations: Tensor) -> Tensor:
        """The last hidden layer (B, H), or the normalized observation if there is none."""
        x, function = self.normalize(observations), ACTIVATIONS[self.activation]
        for layer in self.trunk:
            x = function(layer(x))
        return x

    def output(self, observations: Tensor) -> Tensor:
        """The network's numbers, (B, heads * A)."""
        result: Tensor = self.head(self.features(observations))
        return result


class DeterministicPolicy(MLPPolicy):
    """``center + half_range tanh(f(x))``: the actor of TD3+BC and PRDC, and of SB3's TD3 and DDPG."""

    kind: ClassVar[str] = "deterministic"

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (B, A)."""
        return self.to_box(torch.tanh(self.output(observations)))


class GaussianPolicy(MLPPolicy):
    """Bounded mean, one free ``log_std`` per action dimension; samples are clipped to the box (IQL, BC).

    ``log_std`` is in units of the box's half-range and is clamped to [-5, 2]. The deterministic action is
    the mean.
    """

    kind: ClassVar[str] = "gaussian"
    log_std: Tensor

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.log_std = nn.Parameter(torch.zeros(self.act_dim))

    @classmethod
    def from_params(
        cls,
        params: Sequence[Linear],
        action_low: Bounds,
        action_high: Bounds,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        *,
        log_std: Tensor | None = None,
        **settings: Any,
    ) -> Self:
        """As in ``MLPPolicy``; ``log_std`` (A,) is 0 when None."""
        policy = super().from_params(params, action_low, action_high, mean, std, **settings)
        if log_std is not None:
            if tuple(log_std.shape) != (policy.act_dim,):
                raise PolicyError(
                    f"log_std has shape {tuple(log_std.shape)}, but the policy has A={policy.act_dim}"
                )
            with torch.no_grad():
                policy.log_std.copy_(log_std)
        return policy

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, A) and standard deviation (A,), in action units."""
        std = self.half_range * self.log_std.clamp(-5.0, 2.0).exp()
        return self.to_box(torch.tanh(self.output(observations))), std

    def forward(self, observations: Tensor) -> Tensor:
        """The mean, (B, A), inside the box."""
        return self.clip(self.moments(observations)[0])

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normal draws (B, A), clipped to the box."""
        mean, std = self.moments(observations)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self.clip(torch.addcmul(mean, std, noise))

    def distribution(self, observations: Tensor) -> Distribution:
        """The Normal before clipping, over (B, A) actions."""
        mean, std = self.moments(observations)
        return Independent(Normal(mean, std.expand_as(mean)), 1)


class DiagGaussianPolicy(GaussianPolicy):
    """Unbounded mean and free ``log_std``, clipped to the box: SB3's A2C, PPO and TRPO."""

    kind: ClassVar[str] = "diag_gaussian"

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, A) and standard deviation (A,), in action units."""
        return self.output(observations), self.log_std.exp()


class SquashedGaussianPolicy(MLPPolicy):
    """A tanh-squashed Normal (SAC and its kin); the output layer gives A means, then A values of log_std.

    ``log_std`` is clamped to [``log_std_min``, 2].
    """

    kind: ClassVar[str] = "squashed_gaussian"
    heads: ClassVar[int] = 2

    def __init__(self, *args: Any, log_std_min: float = -20.0, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if not -float("inf") < log_std_min < 2.0:
            raise PolicyError(f"log_std_min must be a finite number below 2, got {log_std_min}")
        self.log_std_min = log_std_min

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().config() | {"log_std_min": self.log_std_min}

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before the tanh, (B, A) each."""
        mean, log_std = self.output(observations).split(self.act_dim, dim=-1)
        return mean, log_std.clamp(self.log_std_min, 2.0).exp()

    def forward(self, observations: Tensor) -> Tensor:
        """The squashed mean, (B, A)."""
        return self.to_box(torch.tanh(self.output(observations)[..., : self.act_dim]))

    def sample(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Squashed Normal draws (B, A)."""
        mean, std = self.moments(observations)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self.to_box(torch.tanh(torch.addcmul(mean, std, noise)))

    def distribution(self, observations: Tensor) -> Distribution:
        """The distribution of actions in the box, with the tanh's correction in ``log_prob``."""
        mean, std = self.moments(observations)
        to_box = AffineTransform(self.center, self.half_range, event_dim=1, cache_size=1)
        transforms = [TanhTransform(cache_size=1), to_box]
        return TransformedDistribution(Independent(Normal(mean, std), 1), transforms)


KINDS: dict[str, type[Policy]] = {
    p.kind: p for p in (DeterministicPolicy, GaussianPolicy, DiagGaussianPolicy, SquashedGaussianPolicy)
}
KINDS_ELSEWHERE = {  # kind -> module and class, imported when a policy of that kind is saved or loaded
    "random": ("offrl.nn.random_policy", "RandomPolicy"),
    "one_step_flow": ("offrl.nn.one_step_flow", "OneStepFlowPolicy"),
    "decision_transformer": ("offrl.nn.decision_transformer", "DecisionTransformerPolicy"),
    "trajectory_diffusion": ("offrl.diffusion.trajectory", "TrajectoryModel"),
    "cdsa_model": ("offrl.diffusion.adjustment", "CDSAModel"),
    "cdsa": ("offrl.diffusion.adjustment", "CDSAPolicy"),
    "squashed_mixture": ("offrl.nn.mixture", "SquashedMixturePolicy"),
    "mixture": ("offrl.nn.mixture", "MixturePolicy"),
    "chunk": ("offrl.policies.chunk", "ChunkPolicy"),
    "gaussian_plan": ("offrl.policies.gaussian", "GaussianPlan"),
    "composed": ("offrl.policies.composed", "ComposedPolicy"),
}


def policy_class(kind: object) -> type[Policy] | None:
    """The class of a kind of policy; None for what is no kind."""
    if not isinstance(kind, str) or kind not in KINDS_ELSEWHERE:
        return KINDS.get(kind) if isinstance(kind, str) else None
    module, name = KINDS_ELSEWHERE[kind]
    found: type[Policy] = getattr(importlib.import_module(module), name)
    return found


def wrong_observations(shape: tuple[int, ...], obs_dim: int) -> str:
    """The sentence for observations of the wrong size."""
    return (
        f"observations have shape {shape} but the policy was built for O={obs_dim}; "
        "was it trained on another environment?"
    )


def save_policy(policy: Policy, directory: Path | str, extra: dict[str, Any] | None = None) -> None:
    """Write ``policy.json`` and ``policy.safetensors`` into ``directory``, each atomically.

    Args:
        policy: of a kind that ``policy_class`` knows.
        directory: made if missing; an older policy in it is replaced.
        extra: JSON values to keep beside (environment, dataset, step); not used for loading.

    Raises:
        PolicyError: a policy of another class, whose kind no reader would know.
    """
    if policy_class(policy.kind) is not type(policy):
        known = ", ".join([*KINDS, *KINDS_ELSEWHERE])
        raise PolicyError(f"{type(policy).__name__} is not one of the kinds that can be saved: {known}")
    directory = Path(directory)
    for name in policy.parents:
        save_policy(getattr(policy, name), directory / name)
    state = {name: value.detach().cpu().contiguous() for name, value in own_state(policy).items()}
    low, high = (state[name].tolist() for name in ("action_low", "action_high"))
    description = {
        "format": FORMAT,
        "kind": policy.kind,
        "config": policy.config(),
        "observation_space": {"shape": [policy.obs_dim], "dtype": "float32"},
        "action_space": {"shape": [policy.act_dim], "dtype": "float32", "low": low, "high": high},
        "parents": list(policy.parents),
        "extra": extra or {},
    }
    atomic_write_bytes(directory / WEIGHTS_NAME, safetensors.torch.save(state))
    atomic_write_json(directory / JSON_NAME, description)


def load_policy(directory: Path | str, *, depth: int = 0) -> Policy:
    """The policy that ``save_policy`` wrote, on the CPU and in evaluation mode; ``depth`` counts its children.

    Raises:
        FileNotFoundError: one of the two files is missing.
        PolicyError: damaged, of a newer format or unknown kind, or weights that do not fit the description.
    """
    description = read_description(directory)
    kind, config = description.get("kind"), description.get("config")
    if (found_class := policy_class(kind)) is None:
        known = ", ".join([*KINDS, *KINDS_ELSEWHERE])
        raise PolicyError(f"{directory}: unknown kind of policy {kind!r}; known are {known}")
    if not isinstance(config, dict):
        raise PolicyError(f"{directory}: {JSON_NAME} has no 'config'; it is damaged")
    parents = _load_parents(Path(directory), description, depth)
    try:
        with torch.device("cpu" if parents else "meta"):  # sizes only: a wrong description allocates nothing
            policy = found_class.made_of(parents, config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PolicyError(f"{directory}: {JSON_NAME} does not describe a {kind} policy: {error}") from error
    path = Path(directory) / WEIGHTS_NAME
    state = _read_weights(path, limit=MAX_JSON_BYTES + sum(v.nbytes for v in own_state(policy).values()))
    expected = {name: (tuple(v.shape), v.dtype) for name, v in own_state(policy).items()}
    found = {name: (tuple(v.shape), v.dtype) for name, v in state.items()}
    if wrong := sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)):
        raise PolicyError(
            f"{path} does not fit {JSON_NAME}: {wrong[0]!r} is {found.get(wrong[0], 'missing')}, "
            f"expected {expected.get(wrong[0], 'nothing of that name')}"
        )
    if not all(torch.isfinite(v).all() for v in state.values()):
        raise PolicyError(f"{path} holds numbers that are not finite")
    own = {name: value.clone() for name, value in state.items()}
    policy.load_state_dict(own, strict=not parents, assign=True)
    return policy.eval()


def _load_parents(directory: Path, description: dict[str, Any], depth: int) -> dict[str, Any]:
    """The policies in sub-folders, by name."""
    names = description.get("parents", [])
    if not isinstance(names, list) or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise PolicyError(f"{directory}: the names of its parents' folders are damaged")
    if names and depth == MOST_GENERATIONS:
        raise PolicyError(f"{directory}: policies inside policies, more than {MOST_GENERATIONS} deep")
    return {name: load_policy(directory / name, depth=depth + 1) for name in names}


def own_state(policy: Policy) -> dict[str, Tensor]:
    """The tensors of a policy without those of its parents."""
    return {n: v for n, v in policy.state_dict().items() if n.split(".")[0] not in policy.parents}


def read_description(directory: Path | str) -> dict[str, Any]:
    """``policy.json`` of a directory; its format number is checked, ``extra`` is there for the taking.

    Raises:
        FileNotFoundError: no ``policy.json``.
        PolicyError: not JSON, or written by a newer version.
    """
    path = Path(directory) / JSON_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise PolicyError(f"{path} is larger than {MAX_JSON_BYTES} bytes; it is not a policy description")
    try:
        description = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path} is not JSON: {error}") from error
    if not isinstance(description, dict):
        raise PolicyError(f"{path} is not a policy description; it holds a JSON {type(description).__name__}")
    number = description.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise PolicyError(f"{path} has no valid 'format' number; it is not a policy description")
    if number > FORMAT:
        raise PolicyError(
            f"{path} has format {number}, this version reads up to {FORMAT}; upgrade offrl to use it"
        )
    return description


def _read_weights(path: Path, limit: int) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.stat().st_size > limit:
        raise PolicyError(f"{path} is larger than the policy that {JSON_NAME} describes")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PolicyError(f"{path} is damaged: {error}") from error


def _derive_after_load(policy: nn.Module, _: Any) -> None:
    if isinstance(policy, Policy):
        policy.derive()


def _bound(value: Bounds | None, default: float, act_dim: int) -> Tensor:
    if value is None:
        return torch.full((act_dim,), default)
    bound = torch.as_tensor(value, dtype=torch.float32).detach().clone()
    if tuple(bound.shape) != (act_dim,):
        raise PolicyError(f"an action bound has shape {tuple(bound.shape)}, but the policy has A={act_dim}")
    return bound


def fill_linear(layer: nn.Module, pair: Linear) -> None:
    """Copy weight and bias into a linear layer of that size."""
    weight, bias = pair
    if not isinstance(layer, nn.Linear) or (weight.shape, bias.shape) != (
        layer.weight.shape,
        layer.bias.shape,
    ):
        raise PolicyError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit the layers around them"
        )
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
