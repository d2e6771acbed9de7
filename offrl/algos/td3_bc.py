"""TD3+BC: TD3 with a behaviour-cloning term in the actor loss.

    critic:  y    = r + gamma (1 - d) min_j Q'_j(s', clip(pi'(s') + eps))
             L_Q  = sum_j mean (Q_j(s, a) - y)^2
    actor:   L_pi = -lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2
             lambda = alpha / mean |Q_1(s, pi(s))|, a constant for the gradient

Online (``offrl train td3_bc --from RUN``) the second term of L_pi is multiplied by bc_end^p, p the share of the updates
made, so that by default it halves; exploration is TD3's, arXiv:1802.09477.

Source: Fujimoto & Gu, arXiv:2106.06860; official code sfujim/TD3_BC. Online: Beeson & Montana, arXiv:2211.11802.
Departures: the paper takes |Q| in lambda at the actions of the data, the official code at pi(s). We follow
the code, which made the published numbers. The squared error is a mean over both axes, as in the code. The decay
online is as others implement it; that paper was not at hand.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.pathwise import normalized_q_loss, squared_distance
from offrl.nn.actor_critic import TD3, ActionBox, TD3Learner, TD3Settings
from offrl.training.problem import Algorithm, Problem, PulledOnlineSettings


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(TD3Settings):
    """Settings of TD3+BC; defaults are those of the paper."""

    alpha: float = 2.5
    """Weight of the Q term; 0 is behaviour cloning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ConfigError(f"alpha must be 0 or more, got {self.alpha}: it weighs the Q term")


PRESETS: dict[str, dict[str, Any]] = {
    "antmaze-": {
        "reward_shift": -1.0,
        "normalize_observations": False,
    },  # r - 1: CORL; raw states: sfujim/TD3_BC #2
}


def actor_loss(
    q: Tensor, pi: Tensor, data_actions: Tensor, alpha: float, bc_weight: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """-lambda mean Q + bc_weight mean (pi - a)^2, per seed.

    Args:
        q: Q_1(s, pi(s)), (S, B).
        pi: pi(s), (S, B, A).
        data_actions: a, (S, B, A).
        alpha: weight of the Q term.
        bc_weight: of the second term, a scalar; None is 1.

    Returns:
        Loss (S,) and its parts.
    """
    q_loss, q_scale = normalized_q_loss(q, alpha)
    bc_loss = squared_distance(pi, data_actions)
    pull = bc_loss if bc_weight is None else bc_weight * bc_loss
    return q_loss + pull, {"bc_loss": bc_loss, "q_scale": q_scale}


class TD3BC(TD3Learner):
    """Learner: one critic step an update, one actor step every ``policy_delay`` updates."""

    metrics = ("critic_loss", "q_data", "actor_loss", "q_policy", "bc_loss", "q_scale")

    def __init__(self, problem: Problem, config: TD3BCConfig) -> None:
        self.normalizer, self.problem = problem.normalizer, problem
        self.alarms = problem.q_alarm(config.discount)
        self.bc_end, bc_weight = 1.0, None
        if isinstance(problem.online, PulledOnlineSettings):
            self.bc_end, bc_weight = problem.online.bc_end, torch.ones((), device=problem.device)
        self.bc_weight = bc_weight
        self.td3 = TD3(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            lambda q, pi, data_actions: actor_loss(q, pi, data_actions, config.alpha, bc_weight),
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Critic step; every ``policy_delay`` calls also actor and targets, pulled towards the batch's actions."""
        if self.bc_weight is not None:
            self.bc_weight.fill_(self.bc_end ** self.problem.online_progress(self.td3.updates))
        return self.td3.update(batch, anchor=batch.actions)


ALGORITHM = Algorithm(TD3BCConfig, TD3BC, PRESETS, online=PulledOnlineSettings)
