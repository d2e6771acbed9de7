"""EDAC: SAC-N with fewer critics, whose gradients over actions are kept apart.

    temperature, actor, y: those of SAC-N
    critics:     g_k  = dQ_k(s, a) / da
                 L_Q  = sum_k mean (Q_k(s, a) - y)^2 + eta mean sum_{i != j} cos(g_i, g_j) / (N - 1)

Order in an update: temperature, actor, critics, target critics.

Source: An, Moon, Kim & Song, arXiv:2110.01548; edac of CORL, arXiv:2210.07105.
Departures: those of sac_n.py. The official code takes the similarity of min(N, A) critics drawn at random in each
update; CORL and we take that of all N. Gradients are over actions in units of the box's half-range, so that a box other
than [-1, 1] does not tilt them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.bellman import td_loss
from offrl.estimators.ensemble import gradient_similarity
from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import Params
from offrl.nn.soft_actor_critic import EnsembleSettings, SoftActorCritic, SoftLearner
from offrl.training.problem import Algorithm, OnlineSettings, Problem


@dataclass(frozen=True, kw_only=True)
class EDACConfig(EnsembleSettings):
    """Settings of EDAC; defaults are those of CORL for halfcheetah."""

    eta: float = 1.0
    """Weight of the similarity of the critics' gradients; 0 is SAC-N."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_critics < 2:
            raise ConfigError(f"num_critics must be 2 or more, got {self.num_critics}: one has no other")
        if self.eta < 0:
            raise ConfigError(f"eta must be 0 or more, got {self.eta}: it weighs a penalty")


def _settings(num_critics: int, eta: float) -> dict[str, Any]:
    return {"num_critics": num_critics, "eta": eta}


PRESETS: dict[str, dict[str, Any]] = {  # CORL's configs, which are run for 3 000 000 steps
    "halfcheetah-": _settings(10, 1.0),
    "halfcheetah-medium-expert-": _settings(10, 5.0),
    "walker2d-": _settings(10, 1.0),
    "walker2d-medium-expert-": _settings(10, 5.0),
    "hopper-": _settings(50, 1.0),
    "maze2d-": _settings(10, 0.1),
    "antmaze-": _settings(10, 1.0),
    "pen-human-": _settings(20, 1000.0),
    "pen-cloned-": _settings(20, 10.0),
    "pen-expert-": _settings(20, 10.0),
    **{f"{hand}-": _settings(50, 200.0) for hand in ("door", "hammer", "relocate")},
}


def values_and_action_gradients(
    critic: Params, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Q_k(s, a) and dQ_k / da, both differentiable for the critics' parameters.

    The chain rule is written out: a ReLU network is linear around almost every input, so that dQ/da is a product of
    its weights with the pattern of active units between them, a constant for the gradient.

    Args:
        critic: parameters of S x N networks.
        observations: (S, B, O).
        actions: (S, B, A).

    Returns:
        (S, N, B) and (S, N, B, A).
    """
    seeds, batch_size, obs_dim = observations.shape
    weights, biases = critic[::2], critic[1::2]
    members = len(weights[0]) // seeds
    pairs = torch.cat((observations, actions), dim=2)
    h, active = pairs[:, None].expand(-1, members, -1, -1).flatten(0, 1), []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.baddbmm(bias, h, weight).relu()
        active.append(h.detach() > 0)
    q = torch.baddbmm(biases[-1], weights[-1], h.transpose(1, 2))
    flow = weights[-1] * active[-1]
    for weight, mask in zip(weights[-2:0:-1], active[-2::-1], strict=True):
        flow = torch.bmm(flow, weight.transpose(1, 2)) * mask
    slopes = torch.bmm(flow, weights[0][:, obs_dim:].transpose(1, 2))
    q, slopes = (x.to(observations.dtype) for x in (q, slopes))  # not so under autocast
    return q.view(seeds, members, batch_size), slopes.view(seeds, members, batch_size, -1)


class EDAC(SoftLearner):
    """Learner: temperature, actor, critics and targets, once each an update."""

    metrics = ("critic_loss", "q_data", "q_std", "similarity", "actor_loss", "q_policy", "entropy", "alpha")

    def __init__(self, problem: Problem, config: EDACConfig) -> None:
        self.normalizer, self.eta = problem.normalizer, config.eta
        self.box = ActionBox(problem.action_low, problem.action_high)
        self.sac = SoftActorCritic(
            problem.obs_dim,
            self.box,
            config,
            self.critic_loss,
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )

    def critic_loss(self, critic: Params, batch: Batch, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_Q (S,) and metrics, for a constant target y (S, B)."""
        q, slopes = values_and_action_gradients(critic, batch.observations, batch.actions)
        similarity = gradient_similarity(slopes * self.box.half)
        return td_loss(q, target) + self.eta * similarity, {
            "q_data": q.mean(dim=(1, 2)),
            "q_std": q.std(dim=1, correction=0).mean(dim=1),
            "similarity": similarity,
        }


ALGORITHM = Algorithm(EDACConfig, EDAC, PRESETS, online=OnlineSettings)
