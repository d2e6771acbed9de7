"""Inventory networks for agents that speak Gymnasium: ``gymnasium.make("offrl/one_store_lost-v1")`` and ``make_vec``.

Reward is minus the cost of the network, per store and undiscounted. Episodes end by truncation: the horizon is
artificial. An action in [-1, 1] on each edge goes from no order to the edge's largest; orders that a node cannot ship
shrink by one factor, so that no agent ships what is not there. Demand comes from the environment's own generator:
``reset(seed=...)`` repeats it.
"""

from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.protocol import AnySetting, Setting, SplitName, deliveries
from offrl.envs.inventory.scenarios import Scenarios
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import ConfigError

Array = NDArray[np.float32]
DAYS = 183.0
"""Days from Christmas are given in half years."""


class InventoryVectorEnv(VectorEnv):
    """A batch of independent scenarios that is stepped as one; it starts anew when the horizon is reached.

    Args:
        setting: its name, or a setting.
        num_envs: scenarios in the batch.
        periods: T of an episode; default: the split's.
        split: whose horizon and, for recorded sales, whose weeks.
        order_limit: largest order on an edge, in multiples of the mean demand behind it.
        options: of the setting, such as ``lead_time=2``.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        setting: str | AnySetting,
        num_envs: int = 1,
        *,
        periods: int | None = None,
        split: SplitName = "train",
        order_limit: float = 4.0,
        render_mode: Literal["ansi"] | None = None,
        **options: Any,
    ) -> None:
        if num_envs < 1 or order_limit <= 0:
            raise ConfigError(f"num_envs and order_limit must be above 0, got {num_envs} and {order_limit}")
        self.setting = load_setting(setting, **options) if isinstance(setting, str) else setting
        network = self.network = self.setting.network
        self.num_envs, self.render_mode, self._split = num_envs, render_mode, split
        self._recorded = None if isinstance(self.setting, Setting) else self.setting.draw(split)
        most = self._recorded.periods if self._recorded else None
        self.periods = periods if periods is not None else (most or self.setting.splits[split].periods)
        if self.periods < 1 or (most and self.periods > most):
            raise ConfigError(
                f"periods must be 1 or more{f' and at most {most}' if most else ''}, got {periods}"
            )
        self.largest = torch.tensor(order_limit * self._mean_behind(), dtype=torch.float32)
        size = len(self._flat(*self._blank())[0])
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (len(network.edges),), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._scenarios: Scenarios | None = None

    def _mean_behind(self) -> NDArray[np.float64]:
        """(E,) mean demand of all stores that an edge leads to."""
        network = self.network
        if self._recorded:
            means = self._recorded.demands.clamp(min=0).mean((0, 1)).double().numpy()
        else:
            means = np.array(self.setting.demand.means)  # type: ignore[union-attr]
        behind = np.zeros(len(network.nodes))
        behind[network.upstream :] = np.maximum(means, 1e-3)
        reach = np.diag(behind > 0)
        for _ in network.nodes:
            for source, target in zip(network.sources, network.targets, strict=True):
                if source < len(network.nodes):
                    reach[source] |= reach[target]
        return (reach @ behind)[list(network.targets)]

    def _blank(self) -> tuple[Scenarios, torch.Tensor]:
        stock = torch.zeros(1, len(self.network.nodes), self.network.width)
        drawn = Scenarios(
            network=self.network,
            initial=stock,
            demands=torch.zeros(1 + self.history, 1, self.network.stores),
            parameters=Parameters.of(self.network),
            history=self.history,
            calendar=(0.0,) * (1 + self.history) if self.history else None,
        )
        return drawn, stock

    @property
    def history(self) -> int:
        """Past periods of demand in the observation."""
        return self._recorded.history if self._recorded else 0

    def _draw(self) -> Scenarios:
        """New scenarios for a whole episode."""
        if self._recorded:
            return self._recorded.rows(
                torch.from_numpy(self.np_random.integers(len(self._recorded), size=self.num_envs))
            )
        setting, network = self.setting, self.network
        assert isinstance(setting, Setting)
        demands = setting.demand.draw(self.num_envs, self.periods, self.np_random).transpose(2, 0, 1)
        stock = np.zeros((self.num_envs, len(network.nodes), network.width), dtype=np.float32)
        stock[:, :, 0] = [node.initial for node in network.nodes]
        if setting.columns:
            shape = (self.num_envs, network.stores, setting.columns)
            means = np.array(setting.demand.means)[:, None]
            stock[:, network.upstream :, : setting.columns] = self.np_random.uniform(0, 1, shape) * means
        return Scenarios(
            network=network,
            initial=torch.from_numpy(stock),
            demands=torch.from_numpy(np.ascontiguousarray(demands)).float(),
            parameters=Parameters.of(network),
            deliveries=deliveries(network, self.periods, self.num_envs, self.np_random),
        )

    def _flat(self, scenarios: Scenarios, stock: torch.Tensor, period: int = 0) -> Array:
        """Observations (B, O): stock, then past demand, days from Christmas, costs and lead times where they vary."""
        seen = scenarios.observe(stock, min(period, scenarios.periods - 1))
        parts = [seen.stock.flatten(1)]
        if seen.past_demand is not None and seen.days_from_christmas is not None:
            days = torch.full((len(stock), 1), seen.days_from_christmas / DAYS)
            parts += [seen.past_demand.flatten(1), days]
            p = scenarios.parameters
            shape = (len(stock), -1)
            parts += [x.expand(*shape).float() for x in (p.holding, p.underage, p.lead_times)]
        flat: Array = torch.cat(parts, 1).numpy().astype(np.float32)
        return flat

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw scenarios for an episode of all environments."""
        super().reset(seed=seed, options=options)
        self._scenarios = self._draw()
        self._simulator = self._scenarios.simulator()
        self._state = self._simulator.start(self._scenarios.initial)
        self._period, self._over = 0, False
        self._last = torch.zeros(self.num_envs, len(self.network.nodes))
        return self._flat(self._scenarios, self._simulator.stock(self._state)), self._info()

    @torch.no_grad()
    def step(
        self, actions: Array
    ) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One period; after the last one the next call starts new episodes, as Gymnasium's vector environments do."""
        if self._scenarios is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        no = np.zeros(self.num_envs, dtype=bool)
        if self._over:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), no, no.copy(), info
        shares = torch.as_tensor(np.asarray(actions, dtype=np.float32)).clamp(-1, 1) / 2 + 0.5
        demand = self._scenarios.demands[self._period + self._scenarios.history]
        orders = shares * self.largest
        if not self.network.extended:  # those fill orders themselves, and some remember what they owe
            orders = self._simulator.project(self._simulator.stock(self._state), orders)
        self._state, cost = self._simulator.step(self._state, orders, demand)
        self._last = cost
        self._period += 1
        self._over = self._period >= self.periods
        stock = self._simulator.stock(self._state)
        reward = -cost.double().sum(1).numpy() / self.network.stores
        return self._flat(self._scenarios, stock, self._period), reward, no, no | self._over, self._info()

    def _info(self) -> dict[str, Any]:
        """Cost by node of the last period, (B, N), and the period."""
        every = np.ones(self.num_envs, dtype=bool)
        period = np.full(self.num_envs, self._period, dtype=np.int64)
        return {
            "node_costs": self._last.numpy(),
            "_node_costs": every,
            "period": period,
            "_period": every.copy(),
        }

    def render(self) -> tuple[str, ...] | None:
        """With ``render_mode="ansi"``: a line a node, stock on hand and under way."""
        if self.render_mode is None or self._scenarios is None:
            return None
        stock = self._simulator.stock(self._state)
        return tuple(
            "\n".join(
                [f"period {self._period}"]
                + [
                    f"{node.name:14} on hand {row[0]:8.2f}   under way {' '.join(f'{x:.2f}' for x in row[1:]) or '-'}"
                    for node, row in zip(self.network.nodes, one.tolist(), strict=True)
                ]
            )
            for one in stock
        )


class InventoryEnv(gymnasium.Env[Array, Array]):
    """One scenario; arguments as :class:`InventoryVectorEnv`."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self, setting: str | AnySetting, *, render_mode: Literal["ansi"] | None = None, **options: Any
    ) -> None:
        self._batch = InventoryVectorEnv(setting, 1, render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    @property
    def network(self) -> Any:
        """What is simulated."""
        return self._batch.network

    @property
    def setting(self) -> AnySetting:
        """Where scenarios come from."""
        return self._batch.setting

    @property
    def history(self) -> int:
        """Past periods of demand in the observation."""
        return self._batch.history

    @property
    def max_episode_steps(self) -> int:
        """Periods of an episode."""
        return self._batch.periods

    @property
    def largest(self) -> torch.Tensor:
        """(E,) the order that action 1 means, units."""
        return self._batch.largest

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw a scenario."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        observations, info = self._batch.reset(seed=seed)
        return observations[0], self._single(info)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One period."""
        observations, rewards, _, truncated, info = self._batch.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), False, bool(truncated[0]), self._single(info)

    @staticmethod
    def _single(info: dict[str, Any]) -> dict[str, Any]:
        return {key: value[0] for key, value in info.items() if not key.startswith("_")}

    def render(self) -> str | None:
        """Stock as text."""
        text = self._batch.render()
        return text[0] if text else None


def register() -> None:
    """Make the ids ``offrl/NAME`` known to Gymnasium."""
    for name in SETTINGS:
        if f"offrl/{name}" not in gymnasium.registry:
            gymnasium.register(
                id=f"offrl/{name}",
                entry_point="offrl.envs.inventory.gymnasium_env:InventoryEnv",
                vector_entry_point="offrl.envs.inventory.gymnasium_env:InventoryVectorEnv",
                kwargs={"setting": name},
            )


register()
