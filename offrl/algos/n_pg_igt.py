"""N-PG-IGT: normalized policy gradient with implicit gradient transport, from one gradient an iteration.

    theta~_t  = theta_t + (1 - eta_t)/eta_t (theta_t - theta_{t-1})
    d_t       = (1 - eta_t) d_{t-1} + eta_t g(tau~_t),   tau~_t sampled, and g taken, at theta~_t;  d_0 = g
    theta_t+1 = theta_t + gamma_t d_t / |d_t|
    gamma_t   = gamma_0 u_t,   eta_t = eta_0 u_t^{4/5},   u_t = 2/(t + 2)

with g = sum_t (sum_{h >= t} gamma^h r_h) grad log pi(a_t | s_t), averaged over the episodes of the iteration.

Source: Fatkhullin, Barakat, Kireeva and He, arXiv:2302.01734; its experiment code for the schedules.
Departures: the experiment code transports with the eta of the iteration before, drops the discount's weight of late
steps and averages over steps; we follow the paper's formulas. It subtracts a fitted linear baseline; we subtract the
mean return-to-go at the same time of the iteration's other episodes, which keeps g unbiased without a fit. Ten episodes
an iteration by default where the theory takes one. A log_std below its bound is set to it, in theta_t+1 and theta~_t:
there a step is shorter than gamma_t, and the transport, which looks less far ahead, is no longer exact.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from offrl.estimators import transforms
from offrl.online.options import OnlineAlgorithm, model_of
from offrl.online.policy_gradient import (
    METRICS,
    Episodes,
    PolicyGradientAlgorithm,
    PolicyGradientConfig,
)

# the best of six step sizes, one seed, 600 episodes (ours; scripts/bench_online.py compares)
PRESETS: dict[str, dict[str, Any]] = {"InvertedPendulum-": {"step_size": 0.2, "num_envs": 10}}


class NPGIGT(PolicyGradientAlgorithm):
    """N-PG-IGT as a stable-baselines3 algorithm: ``NPGIGT("MlpPolicy", env, step_size=0.1, seed=0).learn(100_000)``."""

    def points(self, theta: Tensor) -> list[Tensor]:
        """theta~."""
        return [transforms.transported(theta, self.previous, self.eta())]

    def new_direction(self, points: Sequence[Tensor], batches: Sequence[Episodes]) -> Tensor:
        """The moving average of gradients at the transported points."""
        gradient = self.gradient(points[0], batches[0])
        return gradient if self._n_updates == 0 else transforms.momentum(self.direction, gradient, self.eta())

    def step_size(self) -> float:
        """gamma_0 u."""
        return self.settings.step_size * self.decay

    def eta(self) -> float:
        """eta_0 u^{4/5}, the same for transport and average."""
        return float(self.settings.eta * self.decay**0.8)


ALGORITHM = OnlineAlgorithm(PolicyGradientConfig, model_of(NPGIGT), METRICS, PRESETS)
