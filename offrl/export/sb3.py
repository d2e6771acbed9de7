"""A policy as a whole stable-baselines3 agent, with no class of ours inside: ``TD3.load(FILE)``, ``SAC.load(FILE)``.

    deterministic      center + half_range tanh(f(x))                            TD3
    gaussian           the same mean; its free, clipped noise is left out        TD3
    squashed_gaussian  center + half_range tanh(u), u ~ Normal(f(x), exp(g(x)))  SAC

stable-baselines3 networks put out [-1, 1] and ``predict`` scales that to the action space, which is our center and
half-range. The normalizer goes into the first layer, computed in float64: with x = (o - mean) / std

    W x + b = W' o + b',   W' = W / std,   b' = b - W' mean

SAC clamps log_std to [-20, 2]. A higher lower bound m of ours is one more ReLU layer (h, relu(g(h) - m)): it passes the
last hidden layer h >= 0 on, and log_std = m + relu(g(h) - m).

Critics and optimizers in the file are new: it acts as trained, but learning goes on from untrained critics.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

from offrl.errors import MissingExtraError, PolicyError
from offrl.nn.mixture import SquashedMixturePolicy
from offrl.nn.policy import (
    DeterministicPolicy,
    GaussianPolicy,
    Linear,
    MLPPolicy,
    Policy,
    SquashedGaussianPolicy,
)
from offrl.nn.sb3 import load_sb3_actor

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}
SAC_LOG_STD_MIN = -20.0
BUFFER_SIZE = 1_000_000  # stable-baselines3's default, for who goes on learning


def require() -> None:
    """Raises MissingExtraError where stable-baselines3 is not installed."""
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("stable-baselines3", "sb3") from error


def spaces_of(policy: Policy) -> tuple[Box, Box]:
    """Unbounded float32 observations (O,), and the policy's action box (A,)."""
    low, high = (bound.cpu().numpy() for bound in (policy.action_low, policy.action_high))
    return Box(-np.inf, np.inf, (policy.obs_dim,), np.float32), Box(low, high, dtype=np.float32)


def write(policy: Policy, path: Path, observation_space: Any, action_space: Any) -> str:
    """Write the agent's zip; returns its class, TD3 or SAC.

    Raises:
        PolicyError: no stable-baselines3 actor acts as the policy does; the message says why.
    """
    if not isinstance(policy, MLPPolicy):
        raise PolicyError(_refusal(policy, "TD3 and SAC have plain multi-layer perceptrons"))
    name = "SAC" if isinstance(policy, SquashedGaussianPolicy) else "TD3"
    if name == "TD3" and type(policy) not in (DeterministicPolicy, GaussianPolicy):
        mixed = isinstance(policy, SquashedMixturePolicy)
        why = "it is a mixture" if mixed else "its mean is not squashed by a tanh, as TD3's and SAC's are"
        raise PolicyError(_refusal(policy, why))
    if policy.observation_clip is not None:
        why = f"it clips normalized observations at {policy.observation_clip:g}, for which they have no layer"
        raise PolicyError(_refusal(policy, why))
    layers = _folded(policy)
    if isinstance(policy, SquashedGaussianPolicy) and policy.log_std_min != SAC_LOG_STD_MIN:
        layers = _with_lower_bound(layers, policy)
    agent = _agent(
        name, [len(bias) for _, bias in layers[:-1]], policy.activation, observation_space, action_space
    )
    _fill(agent, layers, policy.act_dim)
    agent.buffer_size = BUFFER_SIZE
    agent.save(path)
    return name


def readers(path: Path, name: str) -> list[Any]:
    """How stable-baselines3 and our own reader act with the file, as functions of observations (B, O)."""
    import stable_baselines3

    agent = getattr(stable_baselines3, name).load(path, device="cpu", custom_objects={"buffer_size": 1})
    return [
        lambda x: torch.as_tensor(agent.predict(x.numpy(), deterministic=True)[0], dtype=torch.float32),
        load_sb3_actor(path),
    ]


def _refusal(policy: Policy, why: str) -> str:
    return (
        f"no stable-baselines3 TD3 or SAC acts as this {policy.kind} policy: {why}; use format onnx or torch"
    )


def _folded(policy: MLPPolicy) -> list[Linear]:
    """Linear layers that take raw observations."""
    modules = [*policy.trunk, policy.head]
    layers = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in modules]
    weight, bias = (p.double() for p in layers[0])
    folded = weight / policy.std.double()
    layers[0] = folded.float(), (bias - folded @ policy.mean.double()).float()
    return layers


def _with_lower_bound(layers: list[Linear], policy: SquashedGaussianPolicy) -> list[Linear]:
    """One more layer that keeps log_std at ``log_std_min`` or above."""
    bound = policy.log_std_min
    if bound < SAC_LOG_STD_MIN or policy.activation != "relu" or not policy.hidden:
        why = f"its log_std is clamped at {bound:g}, SAC's at {SAC_LOG_STD_MIN:g}"
        raise PolicyError(_refusal(policy, why))
    weight, bias = layers[-1]
    actions, width = policy.act_dim, weight.shape[1]
    passing = torch.cat((torch.eye(width), weight[actions:]))
    shifted = torch.cat((torch.zeros(width), bias[actions:] - bound))
    head = torch.block_diag(weight[:actions], torch.eye(actions))
    return [
        *layers[:-1],
        (passing, shifted),
        (head, torch.cat((bias[:actions], torch.full((actions,), bound)))),
    ]


def _agent(name: str, hidden: list[int], activation: str, observation_space: Any, action_space: Any) -> Any:
    """A fresh agent with stable-baselines3's own settings; its critics are always the same."""
    import stable_baselines3

    class Spaces(gymnasium.Env):
        """Nothing but the two spaces; environments are not saved with an agent."""

    world = Spaces()
    world.observation_space, world.action_space = observation_space, action_space
    kwargs = {"net_arch": {"pi": hidden, "qf": hidden}, "activation_fn": ACTIVATIONS[activation]}
    torch.default_generator.manual_seed(0)
    algorithm = getattr(stable_baselines3, name)
    return algorithm("MlpPolicy", world, policy_kwargs=kwargs, buffer_size=1, device="cpu")


def _fill(agent: Any, layers: list[Linear], act_dim: int) -> None:
    """Put the layers into the agent's actor, and into its target where it has one."""
    actor = agent.policy.actor
    if hasattr(actor, "latent_pi"):
        targets = [*_linear(actor.latent_pi), actor.mu, actor.log_std]
        *trunk, (weight, bias) = layers
        layers = [*trunk, (weight[:act_dim], bias[:act_dim]), (weight[act_dim:], bias[act_dim:])]
    else:
        targets = _linear(actor.mu)
    with torch.no_grad():
        for layer, (weight, bias) in zip(targets, layers, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    if hasattr(agent.policy, "actor_target"):
        agent.policy.actor_target.load_state_dict(actor.state_dict())


def _linear(sequence: Any) -> list[Any]:
    return [module for module in sequence if isinstance(module, nn.Linear)]
