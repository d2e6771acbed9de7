"""SAC-N: soft actor-critic whose pessimism is the minimum over many critics.

    temperature: L_alpha = -log alpha (mean log pi(a | s) - A)
    actor:       L_pi = mean (alpha log pi(a | s) - min_k Q_k(s, a)),   a ~ pi
    critics:     y    = r + gamma (1 - d) (min_k Q'_k(s', a') - alpha log pi(a' | s')),   a' ~ pi
                 L_Q  = sum_k mean (Q_k(s, a) - y)^2

Order in an update: temperature, actor, critics, target critics.

Source: An, Moon, Kim & Song, arXiv:2110.01548; sac_n of CORL, arXiv:2210.07105.
Departures: the density of tanh(u) is computed exactly, not with 1e-6 inside its logarithm. One draw of actions serves
temperature and actor, as in the official code (snu-mllab/EDAC); CORL draws twice. The official code takes all gradients
of an update before any step; we follow CORL's order. The official Adroit runs also standardize rewards and back up the
best of 10 actions; CORL and we do not.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrl.data.batch import Batch
from offrl.estimators.bellman import td_loss
from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import Params
from offrl.nn.soft_actor_critic import EnsembleSettings, SoftActorCritic, SoftLearner, values
from offrl.training.problem import Algorithm, OnlineSettings, Problem


@dataclass(frozen=True, kw_only=True)
class SACNConfig(EnsembleSettings):
    """Settings of SAC-N; defaults are those of CORL for halfcheetah."""


PRESETS: dict[str, dict[str, Any]] = {  # CORL's configs, which are run for 3 000 000 steps
    "halfcheetah-": {"num_critics": 10},
    "walker2d-": {"num_critics": 20},
    "hopper-medium-v": {"num_critics": 500},
    "hopper-medium-replay-": {"num_critics": 200},
    "hopper-medium-expert-": {"num_critics": 200},
    **{f"{maze}-": {"num_critics": 25} for maze in ("maze2d", "antmaze")},
    **{f"{hand}-": {"num_critics": 100} for hand in ("pen", "door", "hammer", "relocate")},
}


def critic_loss(critic: Params, batch: Batch, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_k mean (Q_k(s, a) - y)^2, per seed.

    Args:
        critic: parameters of S x N networks.
        batch: S x B transitions.
        target: y, (S, B), constant.

    Returns:
        Loss (S,) and metrics; ``q_std`` is the spread of the N critics at the data's actions.
    """
    q = values(critic, batch.observations, batch.actions)
    return td_loss(q, target), {"q_data": q.mean(dim=(1, 2)), "q_std": q.std(dim=1, correction=0).mean(dim=1)}


class SACN(SoftLearner):
    """Learner: temperature, actor, critics and targets, once each an update."""

    metrics = ("critic_loss", "q_data", "q_std", "actor_loss", "q_policy", "entropy", "alpha")

    def __init__(self, problem: Problem, config: SACNConfig) -> None:
        self.normalizer = problem.normalizer
        self.sac = SoftActorCritic(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            critic_loss,
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )


ALGORITHM = Algorithm(SACNConfig, SACN, PRESETS, online=OnlineSettings)
