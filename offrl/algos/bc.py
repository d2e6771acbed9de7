"""BC: behaviour cloning, of all episodes or of the best ones.

    actor:   L_pi = mean (pi(s) - a)^2          mean over the batch and over action dims

Source: any_percent_bc of CORL, arXiv:2210.07105; the best-10 % variant of arXiv:2106.01345, section 5.
Departures: episodes are told apart by the data's own episode index; CORL cuts qlearning rows every 1000 rows,
which mixes the ends of episodes. Statistics for normalization are those of the kept episodes, as in CORL.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.estimators.pathwise import squared_distance
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.mlp import init_mlp, mlp, unstack
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

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Move pi(s) towards the batch's actions."""
        pi = self.box.squash(mlp(self.actor.params, batch.observations).transpose(1, 2))
        loss = squared_distance(pi, batch.actions)
        self.actor.minimize(loss.sum())
        return {"bc_loss": loss.detach()}

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
