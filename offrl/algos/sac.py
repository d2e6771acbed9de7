"""SAC: soft actor-critic with twin critics and a learned temperature, the control of the soft methods here.

    y    = r + gamma (1 - d) (min_k Q'_k(s', a') - alpha log pi(a' | s')),   a' ~ pi
    L_Q  = sum_k mean (Q_k(s, a) - y)^2 / 2
    L_pi = mean (alpha log pi(a | s) - min_k Q_k(s, a)),   a ~ pi
    L_alpha = -log alpha mean (log pi(a | s) + H),   H = -A

Source: Haarnoja et al., arXiv:1812.05905; order and defaults of stable-baselines3.
Departures: none from stable-baselines3's but 10 000 random steps first, as its zoo has for MuJoCo.
"""

from typing import Any

from offrl.online.off_policy import SAC_METRICS, OffPolicyConfig, SoftActorCritic
from offrl.online.options import OnlineAlgorithm, model_of

PRESETS: dict[str, dict[str, Any]] = {  # rl-baselines3-zoo
    "Pendulum-": {"learning_starts": 100, "lr": 1e-3, "steps": 20_000},
}


class SAC(SoftActorCritic):
    """SAC as a stable-baselines3 algorithm: ``SAC("MlpPolicy", env, lr=3e-4, seed=0).learn(100_000)``."""


ALGORITHM = OnlineAlgorithm(OffPolicyConfig, model_of(SAC), SAC_METRICS, PRESETS)
