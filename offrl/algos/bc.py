"""BC: behaviour cloning, of all episodes or of the best ones.

    actor:   L_pi = mean (pi(s) - a)^2          mean over the batch and over action dims

Source: any_percent_bc of CORL, arXiv:2210.07105; the best-10 % variant of arXiv:2106.01345, section 5.
Departures: episodes are told apart by the data's own episode index; CORL cuts qlearning rows every 1000 rows,
which mixes the ends of episodes. Statistics for normalization are those of the kept episodes, as in CORL.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.estimators.pathwise import squared_distance
from offrl.nn.actor_critic import ActionBox, Metrics, check_optimization
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp, unstack
from offrl.nn.policy import DeterministicPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, Problem


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Settings of behaviour cloning; defaults are CORL's."""

    top_fraction: float = 1.0
    """Share of the episodes that is cloned, the best by undiscounted return; 0.1 is '10 % BC'."""
    lr: float = 3e-4
    """Adam step size."""
    hidden: int = 256
    """Width of the two hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = True
    """Subtract the kept data's mean and divide by its std + 1e-3."""

    def __post_init__(self) -> None:
        check_optimization(self)
        if not 0.0 < self.top_fraction <= 1.0:
            raise ConfigError(
                f"top_fraction must be in (0, 1], got {self.top_fraction}; 0.1 keeps the best 10 %"
            )


def best_episodes(dataset: OfflineDataset, config: BCConfig) -> OfflineDataset:
    """The best max(1, floor(fraction * n)) episodes by return, in their recorded order."""
    count = max(1, int(config.top_fraction * dataset.num_episodes + 1e-9))  # 0.29 * 100 is 28.999...
    if count == dataset.num_episodes:
        return dataset
    best = np.argsort(-dataset.episode_returns, kind="stable")[:count]
    return dataset.select(np.sort(best))


class BC:
    """Learner: one regression step an update."""

    metrics = ("bc_loss",)

    def __init__(self, problem: Problem, config: BCConfig) -> None:
        self.box, self.normalizer = ActionBox(problem.action_low, problem.action_high), problem.normalizer
        sizes = (problem.obs_dim, config.hidden, config.hidden, problem.act_dim)
        self.actor = Trainable(init_mlp(sizes, 1, problem.streams("init")), config.lr)
        self._gradients = compiled(self.gradients) if problem.compile else self.gradients

    def update(self, batch: Batch) -> Metrics:
        """Move pi(s) towards the batch's actions."""
        grads, metrics = self._gradients(batch)
        self.actor.apply(grads)
        return metrics

    def gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_pi for the actor's parameters."""

        def loss(actor: Params) -> tuple[Tensor, Metrics]:
            pi = self.box.squash(mlp(actor, batch.observations).transpose(1, 2))
            per_seed = squared_distance(pi, batch.actions)
            return per_seed.sum(), {"bc_loss": per_seed}

        return gradients(loss, self.actor.params)

    def policy(self, seed: int = 0) -> DeterministicPolicy:
        """Pi of one seed, acting on raw observations."""
        layers = unstack(self.actor.params, seed)
        return DeterministicPolicy.from_params(
            layers, self.box.low, self.box.high, self.normalizer.mean, self.normalizer.std
        )

    def state_dict(self) -> dict[str, Any]:
        """The actor and its optimizer."""
        return {"actor": self.actor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.actor.load_state_dict(state["actor"])


ALGORITHM = Algorithm(
    BCConfig, BC, prepare=best_episodes, online="it copies the data's actions, and no reward changes that"
)
