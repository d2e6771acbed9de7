"""CQL: soft actor-critic whose critics are pushed down at actions that the data do not contain.

    critics:     y    = r + gamma (1 - d) min_k Q'_k(s', a'),   a' ~ pi(. | s')
                 gap  = log sum_j exp(Q_k(s, a_j) - log mu_j(a_j)) - Q_k(s, a)
                 L_Q  = sum_k mean (Q_k(s, a) - y)^2 + cql_alpha mean gap
    sampled a_j: 10 from the uniform density over the box, 10 from pi(. | s'), 10 from pi(. | s); mu_j their density
    temperature: L_alpha = -log alpha (mean log pi(a | s) - A)
    actor:       L_pi = mean (alpha log pi(a | s) - min_k Q_k(s, a)),   a ~ pi

Lagrange variant (``target_gap``): a factor on cql_alpha rises while the gap is above its target and falls below it.
``max_target_backup``: y takes the best of 10 next actions. ``clip_min``: gaps below it count as it, without gradient.
All gradients of an update are taken before any of its steps; then the target critics follow.

Source: Kumar, Zhou, Tucker & Levine, arXiv:2006.04779; cql of CORL, arXiv:2210.07105, whose settings these are.
Departures: in CORL the second critic always has three layers and the orthogonal initial weights do not reach the actor;
here both critics are alike and all networks begin orthogonal, as in young-geng/CQL, which CORL follows. The density of
tanh(u) is computed from u, exactly. The sum over actions is not divided by their number, as in the code. The range of
returns is that of whole episodes, not of pieces of 1000 rows.
"""

from dataclasses import dataclass
from typing import Any

from offrl.nn.actor_critic import ActionBox
from offrl.nn.conservative import ConservativeActorCritic, ConservativeSettings
from offrl.nn.soft_actor_critic import SoftLearner
from offrl.training.problem import Algorithm, OnlineSettings, Problem


@dataclass(frozen=True, kw_only=True)
class CQLConfig(ConservativeSettings):
    """Settings of CQL; defaults are those of CORL on MuJoCo."""


PRESETS: dict[str, dict[str, Any]] = {  # CORL's configs
    **{f"{robot}-": {"cql_alpha": 10.0} for robot in ("halfcheetah", "hopper", "walker2d")},
    "hopper-medium-v": {"return_range_scaling": True},
    "antmaze-": {
        "cql_alpha": 5.0,
        "target_gap": 0.8,
        "clip_min": -200.0,
        "max_target_backup": True,
        "actor_lr": 1e-4,
        "critic_layers": 5,
        "normalize_observations": False,
        "reward_scale": 10.0,
        "reward_shift": -5.0,
    },
    "maze2d-": {"target_gap": 5.0},
    **{f"{hand}-": {"cql_alpha": 1.0, "actor_lr": 1e-4} for hand in ("pen", "door", "hammer", "relocate")},
}


class CQL(SoftLearner):
    """Learner: temperature, actor, critics and targets, once each an update."""

    metrics = (
        "critic_loss",
        "q_data",
        "cql_gap",
        "cql_weight",
        "actor_loss",
        "q_policy",
        "entropy",
        "alpha",
    )

    def __init__(self, problem: Problem, config: CQLConfig) -> None:
        self.normalizer = problem.normalizer
        self.sac = ConservativeActorCritic(
            problem.obs_dim,
            ActionBox(problem.action_low, problem.action_high),
            config,
            init=problem.streams("init"),
            noise=problem.streams("noise"),
            compile=problem.compile,
        )


ALGORITHM = Algorithm(CQLConfig, CQL, PRESETS, online=OnlineSettings)
