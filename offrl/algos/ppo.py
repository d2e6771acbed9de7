"""PPO and REINFORCE as compositions of the estimator core.

    ppo        L = -mean min(rho A, clip(rho, 1 - e, 1 + e) A) + c_v mean (V - G)^2 - c_H mean H,   rho = pi / pi_old
    reinforce  L = -mean A log pi(a | s) + c_v mean (V - G)^2 - c_H mean H

over epochs of minibatches, with A = G - V whitened in each; ``reinforce`` is on policy in the first epoch's first step
only: give it one epoch, gae_lambda 1 and a batch as large as the rollout.

Source: Schulman et al., arXiv:1707.06347; defaults of stable-baselines3.
Departures: none from stable-baselines3's; the gradients are the same numbers.
"""

from dataclasses import dataclass
from typing import Any, Literal

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator, compose
from offrl.online.on_policy import CLIPPED_METRICS, ClippedConfig, ClippedMethod
from offrl.online.options import NORMALIZED, OnlineAlgorithm, model_of


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ClippedConfig):
    """Settings of PPO and REINFORCE."""

    estimator: Literal["ppo", "reinforce"] = "ppo"
    """ppo: clipped ratios; reinforce: none, see the head of the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ("ppo", "reinforce"):
            raise ConfigError(f"estimator must be ppo or reinforce, got {self.estimator!r}")


PRESETS: dict[str, dict[str, Any]] = {
    # rl-baselines3-zoo, its tuned settings for MuJoCo -v4 (networks there 256 wide, relu; log_std -2)
    "Hopper-": {
        **NORMALIZED,
        "rollout": 512,
        "batch_size": 32,
        "discount": 0.999,
        "lr": 9.80828e-5,
        "entropy_coefficient": 0.00229519,
        "clip": 0.2,
        "epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "value_coefficient": 0.835671,
        "hidden": 256,
        "activation": "relu",
        "log_std": -2.0,
        "orthogonal": False,
    },
    "HalfCheetah-": {
        **NORMALIZED,
        "rollout": 512,
        "batch_size": 64,
        "discount": 0.98,
        "lr": 2.0633e-5,
        "entropy_coefficient": 0.000401762,
        "clip": 0.1,
        "epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "value_coefficient": 0.58096,
        "hidden": 256,
        "activation": "relu",
        "log_std": -2.0,
        "orthogonal": False,
    },
    "Pendulum-": {  # the same, 4 environments
        "num_envs": 4,
        "steps": 100_000,
        "rollout": 1024,
        "gae_lambda": 0.95,
        "discount": 0.9,
        "epochs": 10,
        "lr": 1e-3,
    },
}


class PPO(ClippedMethod):
    """PPO as a stable-baselines3 algorithm: ``PPO("MlpPolicy", env, clip=0.2, seed=0).learn(100_000)``."""

    config_class = PPOConfig
    settings: PPOConfig

    def make_estimator(self) -> Estimator:
        """As ``estimator`` says."""
        s = self.settings
        if s.estimator == "ppo":
            return super().make_estimator()
        regularizers: list[Any] = [("value_loss", s.value_coefficient)]
        if s.entropy_coefficient:
            regularizers.append(("negative_entropy", s.entropy_coefficient))
        return compose(advantage="whiten", denominator="current", regularizers=regularizers)


ALGORITHM = OnlineAlgorithm(PPOConfig, model_of(PPO), CLIPPED_METRICS, PRESETS)
