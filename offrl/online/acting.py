"""The acting part of a stable-baselines3 model, as one of our policies: what a run directory keeps.

Where the model learns under VecNormalize: x = clip((o - mean) / sqrt(var + epsilon), -clip_obs, clip_obs).
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import Policy
from offrl.nn.sb3 import actor_from_state


@runtime_checkable
class Acts(Protocol):
    """A policy network that knows its own form on disk."""

    def acting_policy(self, low: Tensor, high: Tensor, observation_clip: float | None) -> Policy:
        """Itself as a policy in the box ``low`` .. ``high``, without a normalizer."""


@torch.random.fork_rng(devices=[])
def acting_policy(model: BaseAlgorithm) -> Policy:
    """A copy of what ``model`` does in its environment: raw observations in, clipped actions out, on the CPU.

    To make one takes no random number, so that training does not depend on how often it is looked at.

    Args:
        model: one of ours, whose policy has ``acting_policy``; or SB3's own A2C, PPO, SAC, TD3, DDPG, or TQC, TRPO.

    Raises:
        ConfigError: its observations or actions are not flat boxes, or it extracts features first.
        PolicyError: its network is none that we can write down.
    """
    observations, actions = model.observation_space, model.action_space
    flat = [isinstance(space, Box) and len(space.shape) == 1 for space in (observations, actions)]
    if not (isinstance(actions, Box) and all(flat)):
        raise ConfigError(
            f"a run directory needs flat observations and a flat box of actions, not {observations} and {actions}"
        )
    if getattr(model, "use_sde", False):
        raise PolicyError("a run directory cannot hold gSDE's noise: make the model without use_sde")
    for module in model.policy.modules():
        if isinstance(module, BaseFeaturesExtractor) and type(module) is not FlattenExtractor:
            raise ConfigError(f"a run directory cannot hold the features extractor {type(module).__name__}")
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (actions.low, actions.high))
    normalizer = _normalizer(model)
    clip = float(normalizer.clip_obs) if normalizer else None
    if isinstance(model.policy, Acts):
        policy = model.policy.acting_policy(low, high, clip)
    else:
        state = {name: value.detach().cpu().clone() for name, value in model.policy.state_dict().items()}
        activation = getattr(model.policy, "activation_fn", None)
        policy = actor_from_state(state, low, high, activation=activation, observation_clip=clip)
    if normalizer:
        statistics = normalizer.obs_rms
        assert isinstance(statistics, RunningMeanStd)
        std = np.sqrt(statistics.var + normalizer.epsilon)
        policy.set_normalizer(*(torch.as_tensor(x, dtype=torch.float32) for x in (statistics.mean, std)))
    return policy.eval()


def _normalizer(model: BaseAlgorithm) -> VecNormalize | None:
    found = model.get_vec_normalize_env()
    return found if found is not None and found.norm_obs else None
