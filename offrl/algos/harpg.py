"""HARPG and N-HARPG: policy gradient with Hessian-aided recursive momentum.

    q_t ~ U[0, 1],   theta^_t = q_t theta_t + (1 - q_t) theta_{t-1}
    v_t       = B(tau^_t, theta^_t)(theta_t - theta_{t-1}),   tau^_t sampled at theta^_t
    d_t       = (1 - eta_t)(d_{t-1} + v_t) + eta_t g(tau_t),  tau_t sampled at theta_t, independently;  d_0 = g
    theta_t+1 = theta_t + gamma_t d_t            HARPG,    gamma_t = gamma_0 u_t^{1/2}
    theta_t+1 = theta_t + gamma_t d_t / |d_t|    N-HARPG,  gamma_t = gamma_0 u_t
    eta_t     = eta_0 u_t,   u_t = 2/(t + 2)

with g and B of ``offrl.estimators.hvp``: E g = grad J, E B u = Hess J u, so that E v_t = grad J(theta_t) - grad
J(theta_{t-1}). An iteration costs two sets of episodes.

Source: Fatkhullin, Barakat, Kireeva and He, arXiv:2302.01734; its experiment code for the schedules.
Departures: the experiment code multiplies means over the batch where B has the mean of products, averages the score
over steps instead of summing it, and has the opposite sign in front; its correction is biased, and we follow the paper.
The baseline is that of ``n_pg_igt``; it does not depend on the trajectory itself, and g and B stay unbiased. Ten
episodes of either kind an iteration by default where the theory takes one. A log_std below its bound is set to it in
theta_t+1: there a step is shorter than gamma_t (or gamma_t |d_t|). v_t is of the thetas as they are, so it stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.estimators import transforms
from offrl.online.options import OnlineAlgorithm, model_of
from offrl.online.policy_gradient import (
    METRICS,
    Episodes,
    PolicyGradientAlgorithm,
    PolicyGradientConfig,
)


@dataclass(frozen=True, kw_only=True)
class HARPGConfig(PolicyGradientConfig):
    """Settings of HARPG."""

    normalize: bool = False
    """N-HARPG: steps of length gamma_t, whatever the length of the direction."""


# the best of six step sizes, one seed, 600 episodes (ours; scripts/bench_online.py compares)
PRESETS: dict[str, dict[str, Any]] = {
    "InvertedPendulum-": {"normalize": True, "step_size": 0.2, "num_envs": 10}
}


class HARPG(PolicyGradientAlgorithm):
    """HARPG as a stable-baselines3 algorithm: ``HARPG("MlpPolicy", env, normalize=True, seed=0).learn(100_000)``."""

    config_class = HARPGConfig
    settings: HARPGConfig

    def points(self, theta: Tensor) -> list[Tensor]:
        """Theta, and from the second iteration on a point between it and the theta before."""
        if self._n_updates == 0:
            return [theta]
        generator = self.iteration_stream("share")
        share = torch.rand((), generator=generator, device=theta.device)
        return [theta, transforms.interpolated(theta, self.previous, share)]

    def new_direction(self, points: Sequence[Tensor], batches: Sequence[Episodes]) -> Tensor:
        """The last direction carried over to theta by a Hessian-vector product, averaged with a new gradient."""
        gradient = self.gradient(points[0], batches[0])
        if len(points) == 1:
            return gradient
        move = transforms.difference(points[0], self.previous)
        correction = self.hessian_vector(points[1], move, batches[1])
        return transforms.harpg(self.direction, gradient, correction, self.eta())

    def step_size(self) -> float:
        """gamma_0 u, or gamma_0 u^{1/2} where steps are not normalized."""
        return self.settings.step_size * (self.decay if self.normalizes() else self.decay**0.5)

    def eta(self) -> float:
        """eta_0 u."""
        return self.settings.eta * self.decay

    def normalizes(self) -> bool:
        """True for N-HARPG."""
        return self.settings.normalize


ALGORITHM = OnlineAlgorithm(HARPGConfig, model_of(HARPG), METRICS, PRESETS)
