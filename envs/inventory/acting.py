"""A trained inventory policy as an agent of the Gymnasium environments: flat observations in, actions out."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from offrl.envs.inventory.gymnasium_env import DAYS, InventoryEnv
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import InventoryPolicy, at_home, load_policy
from offrl.envs.inventory.scenarios import Observation
from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import Policy


class ActingPolicy(Policy):
    """Reads the observation of :class:`InventoryEnv` and orders as the inventory policy does, up to the largest action.

    Args:
        policy: one seed, for the environment's network.
        env: where it acts.

    Raises:
        ConfigError: the policy goes by the date, which no observation tells.
    """

    kind: ClassVar[str] = "inventory"

    def __init__(self, policy: InventoryPolicy, env: InventoryEnv) -> None:
        observations, actions = env.observation_space.shape or (), env.action_space.shape or ()
        super().__init__(observations[0], actions[0])
        if policy.name == "item_levels" and not policy.facts.stationary:
            raise ConfigError(
                "item_levels follows a season, and observations of Gymnasium environments have no date"
            )
        self.policy, self.history = policy, env.history
        self.register_buffer("largest", env.largest.clone())

    largest: Tensor

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (B, E) for flat observations (B, O)."""
        orders = observations.new_empty(len(observations), self.act_dim)
        for rows, seen in self._seen(observations):
            orders[rows] = self.policy(seen)
        return self.clip(2 * orders / self.largest - 1)

    def _seen(self, flat: Tensor) -> list[tuple[Tensor, Observation]]:
        """What an inventory policy sees, in groups of rows that share the week."""
        network = self.policy.network
        nodes, lanes, stores = len(network.nodes), len(network.edges), network.stores
        stock = flat[:, : nodes * network.width].view(-1, nodes, network.width)
        every = torch.arange(len(flat), device=flat.device)
        if not self.history:
            return [(every, Observation(stock, 0, None, None, Parameters.of(network)))]
        sizes = [stores * self.history, 1, nodes, nodes, lanes]
        past, days, holding, underage, times = flat[:, nodes * network.width :].split(sizes, 1)
        cost = torch.tensor([edge.cost for edge in network.edges])
        groups = []
        for day in days.unique():
            rows = every[days[:, 0] == day]
            known = Parameters(holding[rows], underage[rows], cost, times[rows].round().long())
            seen = past[rows].view(-1, stores, self.history)
            groups.append((rows, Observation(stock[rows], 0, seen, round(float(day) * DAYS), known)))
        return groups


def load_acting(folder: Path, env: Any) -> ActingPolicy:
    """The policy of a run, for an environment; one that can moves to another network.

    Raises:
        PolicyError: damaged files, or not an inventory environment.
        ConfigError: the policy was made for another network and cannot move.
    """
    inner, policy = env.unwrapped, load_policy(folder)
    if not isinstance(inner, InventoryEnv):
        raise PolicyError(
            f"{folder} holds an inventory policy, which acts in the environments offrl/NAME alone"
        )
    return ActingPolicy(at_home(policy, inner.setting), inner)
