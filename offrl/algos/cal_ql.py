"""Cal-QL: CQL that does not push the policy's actions below what the data are known to return.

    bound:       G(s)  = sum_t gamma^t r_t, the discounted return-to-go of the data from (s, a) on
    critics:     gap   = log sum_j exp(x_j) - Q_k(s, a)
                 x_j   = Q_k(s, a_j) - log mu_j(a_j)             for the 10 uniform actions
                 x_j   = max(Q_k(s, a_j), G(s)) - log mu_j(a_j)  for the 10 actions of pi(. | s') and 10 of pi(. | s)
    all else is CQL's

Where Q_k of a policy's action is below G(s) it has no gradient: values stay on the scale of real returns, which is
what fine-tuning online needs.

Source: Nakamoto et al., arXiv:2303.05479; official code nakamotoo/Cal-QL.
Departures: online (``offrl train cal_ql --from RUN``) one step follows each update, where the official code plays an
episode and then makes as many updates; here too the rows of an episode come in when it has ended, with its returns.
With ``sparse_rewards`` an episode of nothing but the data's lowest reward returns that reward / (1 - gamma), as in the
official code, which has the lowest reward in a table. On kitchen the official code also lets an episode without a
terminal step go on with its last reward for ever; we end it. Returns are those of the rows that are trained on, as in
the official code.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrl.data.batch import Batch
from offrl.errors import ConfigError, DatasetError
from offrl.nn.actor_critic import ActionBox
from offrl.nn.conservative import ConservativeActorCritic, ConservativeSettings
from offrl.nn.soft_actor_critic import SoftLearner
from offrl.training.problem import Algorithm, OnlineSettings, Problem


@dataclass(frozen=True, kw_only=True)
class CalQLConfig(ConservativeSettings):
    """Settings of Cal-QL; defaults are those of the official code."""

    cql_alpha: float = 5.0
    """Weight of the gap."""
    max_target_backup: bool = True
    """Bootstrap from the best of K next actions instead of from one."""
    actor_lr: float = 1e-4
    """Adam step size of actor and temperature."""
    actor_layers: int = 2
    """Hidden layers of the actor."""
    critic_layers: int = 2
    """Hidden layers of each critic."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3."""
    sparse_rewards: bool = False
    """An episode of nothing but the data's lowest reward returns that reward for ever, not only while recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparse_rewards and self.discount == 1.0:
            raise ConfigError("sparse_rewards needs a discount below 1: a reward for ever has no sum without")


PRESETS: dict[str, dict[str, Any]] = {  # scripts of nakamotoo/Cal-QL
    "antmaze-": {
        "target_gap": 0.8,
        "critic_layers": 4,
        "reward_scale": 10.0,
        "reward_shift": -5.0,
        "sparse_rewards": True,
    },
    "kitchen-": {"importance_sampling": False, "hidden": 512, "actor_layers": 3, "critic_layers": 3},
    **{
        f"{hand}-binary-": {
            "cql_alpha": 1.0,
            "hidden": 512,
            "critic_layers": 3,
            "reward_scale": 10.0,
            "reward_shift": 5.0,
            "sparse_rewards": True,
        }
        for hand in ("pen", "door", "relocate")
    },
}


def calibrated(q: Tensor, batch: Batch) -> Tensor:
    """max(Q_k(s, a_j), G(s)): (S, 2, J, B) -> the same; without gradient where G(s) is the larger."""
    if batch.returns_to_go is None:
        raise DatasetError("Cal-QL needs batches with returns_to_go")
    return q.maximum(batch.returns_to_go[:, None, None])


class CalQL(SoftLearner):
    """Learner: temperature, actor, critics and targets, once each an update."""

    metrics = (
        "critic_loss",
        "q_data",
        "cql_gap",
        "cql_weight",
        "bound_rate",
        "actor_loss",
        "q_policy",
        "entropy",
        "alpha",
    )

    def __init__(self, problem: Problem, config: CalQLConfig) -> None:
        self.normalizer = problem.normalizer
        self.sac = ConservativeActorCritic(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            calibrated,
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )


ALGORITHM = Algorithm(CalQLConfig, CalQL, PRESETS, returns_to_go=True, online=OnlineSettings)
