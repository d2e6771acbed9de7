"""The baselines of N-PG-IGT and HARPG: vanilla policy gradient, N-MPG and STORM-PG.

    plain     d_t = g(tau_t),                                 theta_t+1 = theta_t + gamma_0 u_t^{2/3} d_t
    momentum  d_t = (1 - eta_t) d_{t-1} + eta_t g(tau_t),     theta_t+1 = theta_t + gamma_0 u_t d_t / |d_t|
    storm     d_t = g(tau_t) + (1 - eta_t)(d_{t-1} - w_t g(tau_t; theta_{t-1})),
              w_t = p(tau_t | theta_{t-1}) / p(tau_t | theta_t),   theta_t+1 = theta_t + gamma_0 u_t^{1/3} d_t
    eta_t     = eta_0 u_t^{2/3},   u_t = 2/(t + 2),   d_0 = g,   tau_t sampled at theta_t

with the g of ``n_pg_igt``: REINFORCE with rewards-to-go (GPOMDP).

Source: the first two as compared in arXiv:2302.01734; STORM-PG (storm): Yuan et al., arXiv:2003.04302.
Departures: the experiment code's command for normalized momentum has no moving average; ours has. log w is held below
20, so that one unlikely trajectory makes a large direction and not an infinite one. STORM-PG's schedule is STORM's. The
bound of log_std is kept as in ``harpg``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators import transforms
from offrl.online.options import OnlineAlgorithm, model_of
from offrl.online.policy_gradient import (
    METRICS,
    Episodes,
    PolicyGradientAlgorithm,
    PolicyGradientConfig,
)

LARGEST_LOG_WEIGHT = 20.0
STEP_EXPONENT = {"plain": 2 / 3, "momentum": 1.0, "storm": 1 / 3}


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(PolicyGradientConfig):
    """Settings of the baselines."""

    update: Literal["plain", "momentum", "storm"] = "plain"
    """plain: REINFORCE; momentum: N-MPG, normalized steps; storm: STORM-PG, importance weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update not in STEP_EXPONENT:
            raise ConfigError(f"update must be one of {', '.join(STEP_EXPONENT)}, got {self.update!r}")


# the best of six step sizes, one seed, 600 episodes (ours; scripts/bench_online.py compares)
PRESETS: dict[str, dict[str, Any]] = {"InvertedPendulum-": {"step_size": 0.01, "num_envs": 10}}


class PolicyGradient(PolicyGradientAlgorithm):
    """The baselines as a stable-baselines3 algorithm: ``PolicyGradient("MlpPolicy", env, update="momentum")``."""

    config_class = BaselineConfig
    settings: BaselineConfig

    def points(self, theta: Tensor) -> list[Tensor]:
        """Theta itself."""
        return [theta]

    def new_direction(self, points: Sequence[Tensor], batches: Sequence[Episodes]) -> Tensor:
        """As ``update`` says."""
        (theta,), (batch,) = points, batches
        gradient = self.gradient(theta, batch)
        if self._n_updates == 0 or self.settings.update == "plain":
            return gradient
        if self.settings.update == "momentum":
            return transforms.momentum(self.direction, gradient, self.eta())
        log_weights = self.log_likelihood(self.previous, batch) - self.log_likelihood(theta, batch)
        weights = log_weights.clamp(max=LARGEST_LOG_WEIGHT).exp()
        return transforms.storm(
            self.direction, gradient, self.gradient(self.previous, batch, weights), self.eta()
        )

    def step_size(self) -> float:
        """gamma_0 u to the power of ``update``."""
        return float(self.settings.step_size * self.decay ** STEP_EXPONENT[self.settings.update])

    def eta(self) -> float:
        """eta_0 u^{2/3}; 1 for plain."""
        return 1.0 if self.settings.update == "plain" else float(self.settings.eta * self.decay ** (2 / 3))

    def normalizes(self) -> bool:
        """True for momentum."""
        return self.settings.update == "momentum"


ALGORITHM = OnlineAlgorithm(BaselineConfig, model_of(PolicyGradient), METRICS, PRESETS)
