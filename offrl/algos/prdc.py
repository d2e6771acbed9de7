"""PRDC: TD3+BC whose actor is pulled to the nearest state-action pair anywhere in the data.

    metric:  d((s, a), (s_i, a_i)) = || (beta s, a) - (beta s_i, a_i) ||_2        s normalized
    actor:   i*   = argmin_i d((s, pi(s)), (s_i, a_i))                            a constant for the gradient
             L_pi = -lambda mean Q_1(s, pi(s)) + mean (pi(s) - a_i*)^2
             lambda = alpha / mean |Q_1(s, pi(s))|, a constant for the gradient
    critic and targets: TD3's

Source: Ran, Li, Zhang, Zhang & Yu, arXiv:2306.06569; official code LAMDA-RL/PRDC.
Departures: none from the official code. Paper and code differ: the paper regularizes by the un-squared distance
over states and actions, and takes |Q| in lambda at the data's actions; the code, which made the published numbers,
squares the action difference alone and takes |Q| at pi(s). We follow the code. The batch's own pair is a candidate
(as in the code), so where no other pair is nearer PRDC is TD3+BC: ``self_hit_rate`` says how often.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.neighbours import NeighbourIndex
from offrl.errors import ConfigError
from offrl.estimators.pathwise import normalized_q_loss, squared_distance
from offrl.nn.actor_critic import TD3, ActionBox, TD3Learner, TD3Settings
from offrl.training.problem import Algorithm, Problem


@dataclass(frozen=True, kw_only=True)
class PRDCConfig(TD3Settings):
    """Settings of PRDC; defaults are those of the README of the official code."""

    alpha: float = 2.5
    """Weight of the Q term."""
    beta: float = 2.0
    """Weight of the normalized state in the metric; 0 ignores states, a large value gives TD3+BC."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


PRESETS: dict[str, dict[str, Any]] = {  # README of LAMDA-RL/PRDC
    "halfcheetah-": {"alpha": 40.0},
    "hopper-": {"alpha": 2.5},
    "walker2d-": {"alpha": 2.5},
    "antmaze-": {
        "alpha": 7.5,
        "beta": 7.5,
        "reward_scale": 10_000.0,
        "reward_shift": -1.0,
    },  # given for medium-play
}


def actor_loss(
    q: Tensor, pi: Tensor, neighbour_actions: Tensor, alpha: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-lambda mean Q + mean (pi - a*)^2, per seed.

    Args:
        q: Q_1(s, pi(s)), (S, B).
        pi: pi(s), (S, B, A).
        neighbour_actions: a* of the nearest pair, (S, B, A), constant.
        alpha: weight of the Q term.

    Returns:
        Loss (S,) and its parts.
    """
    q_loss, q_scale = normalized_q_loss(q, alpha)
    dc_loss = squared_distance(pi, neighbour_actions)
    return q_loss + dc_loss, {"dc_loss": dc_loss, "q_scale": q_scale}


class PRDC(TD3Learner):
    """Learner: one critic step an update, one neighbour search and actor step every ``policy_delay`` updates."""

    metrics = (
        "critic_loss",
        "q_data",
        "actor_loss",
        "q_policy",
        "dc_loss",
        "bc_loss",
        "q_scale",
        "self_hit_rate",
        "neighbour_state_distance",
        "neighbour_action_distance",
    )

    def __init__(self, problem: Problem, config: PRDCConfig) -> None:
        self.normalizer, self.beta = problem.normalizer, config.beta
        self.alarms = problem.q_alarm(config.discount)
        self.index = NeighbourIndex(
            problem.observations, problem.actions, config.beta, threads=problem.threads
        )
        self.query_seconds, self.queries = 0.0, 0
        self.td3 = TD3(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            lambda q, pi, neighbours: actor_loss(q, pi, neighbours, config.alpha),
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Critic step; every ``policy_delay`` calls also actor and targets, pulled towards the nearest pairs."""
        found: dict[str, Tensor] = {}
        metrics = self.td3.update(batch, anchor=lambda pi: self.nearest_actions(batch, pi, found))
        return metrics | found

    def nearest_actions(self, batch: Batch, pi: Tensor, metrics: dict[str, Tensor]) -> Tensor:
        """a* (S, B, A) of the pair nearest to (s, pi(s)), both constants; fills ``metrics`` per seed."""
        began = time.perf_counter()
        asked = torch.where(pi.isnan(), batch.actions, pi)  # a seed that has diverged leaves the others alone
        rows = self.index.query(batch.rows.flatten(), asked.flatten(0, 1)).view_as(batch.rows)
        self.query_seconds, self.queries = self.query_seconds + time.perf_counter() - began, self.queries + 1
        obs_dim = batch.observations.shape[2]
        found = self.index.points(rows.flatten()).view(
            *rows.shape, -1
        )  # still in the cache, unlike the table
        state_gap, nearest = found[..., :obs_dim] - self.beta * batch.observations, found[..., obs_dim:]
        metrics["bc_loss"] = squared_distance(pi, batch.actions)
        metrics["self_hit_rate"] = (rows == batch.rows).float().mean(dim=1)
        metrics["neighbour_state_distance"] = state_gap.norm(dim=2).mean(dim=1)
        metrics["neighbour_action_distance"] = (nearest - pi).norm(dim=2).mean(dim=1)
        return nearest

    def pop_timings(self) -> dict[str, float]:
        """Mean milliseconds of a neighbour search since the last call, for timing.csv."""
        mean = 1000 * self.query_seconds / max(self.queries, 1)
        self.query_seconds, self.queries = 0.0, 0
        return {"neighbour_query_ms": mean}


ALGORITHM = Algorithm(
    PRDCConfig,
    PRDC,
    PRESETS,
    own_rows=True,
    online="its nearest neighbours are looked up among the offline rows alone",
)
