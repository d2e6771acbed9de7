"""The Gymnasium faces: checks of Gymnasium and SB3, seeds, horizons, units, agreement with the simulator."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import offrl.envs.inventory.gymnasium_env  # noqa: F401  registers the ids
from offrl.envs.inventory.gymnasium_env import InventoryEnv, InventoryVectorEnv
from offrl.envs.inventory.sales import look_alike
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import ConfigError

SMALL = {"favorita_one_store-v1": {"series": 64}}


def make(name: str, **options):
    return gymnasium.make(f"offrl/{name}", **SMALL.get(name, {}), **options)


@pytest.mark.parametrize("name", [n for n in SETTINGS if n != "favorita_21_stores-v1"])
def test_gymnasium_finds_nothing_to_complain_about(name):
    env = make(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity.*")  # stocks have no bound
        check_env(env.unwrapped)
    env.close()


def test_stable_baselines_finds_nothing_to_complain_about():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check

    check(InventoryEnv("one_warehouse_lost_demand"))


def test_an_sb3_agent_trains_on_it():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO

    agent = PPO(
        "MlpPolicy",
        InventoryEnv("one_store_lost"),
        n_steps=64,
        batch_size=32,
        n_epochs=1,
        seed=0,
        device="cpu",
    )
    agent.learn(64)
    action, _ = agent.predict(np.zeros(4, dtype=np.float32))
    assert action.shape == (1,)


@pytest.mark.parametrize("periods", [128, 1000])
def test_fault_horizons_over_127(periods):
    """The published period counter was an int8; the episode ends by truncation, exactly once, at its horizon."""
    env = make("one_store_lost-v1", periods=periods)
    env.reset(seed=0)
    for t in range(1, periods + 1):
        _, _, terminated, truncated, info = env.step(np.array([0.3], dtype=np.float32))
        assert (terminated, truncated, info["period"]) == (False, t == periods, t)


def trace(env, seed: int) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    rows = [observation]
    for _ in range(12):
        observation, reward, *_ = env.step(np.full(env.action_space.shape, 0.2, dtype=np.float32))
        rows.append(np.append(observation, reward)[: observation.size])
        rows.append(np.full_like(observation, reward))
    return np.stack(rows)


def test_the_same_seed_gives_the_same_trace():
    env = make("serial_system-v1")
    first = trace(env, 3)
    np.testing.assert_array_equal(first, trace(env, 3))
    assert not np.array_equal(first, trace(env, 4))
    env.reset(seed=3)
    a = env.reset()[0]
    assert not np.array_equal(a, env.reset()[0]), "without a seed the stream goes on"


def test_rewards_are_minus_the_simulators_costs_per_store():
    """Actions from -1 to 1 are orders from 0 to four times the mean demand behind an edge."""
    envs = InventoryVectorEnv("one_warehouse_lost_demand", 5)
    observations, _ = envs.reset(seed=1)
    means = np.array(load_setting("one_warehouse_lost_demand").demand.means)
    np.testing.assert_allclose(envs.largest, 4 * np.append(means, means.sum()), rtol=1e-6)
    simulator = envs._simulator
    state, rng = torch.from_numpy(observations).reshape(5, 6, 3), np.random.default_rng(0)
    for t in range(8):
        shares = rng.random((5, 6), dtype=np.float32)
        orders = simulator.project(state, torch.from_numpy(shares) * envs.largest)
        state, cost = simulator.step(state, orders, envs._scenarios.demands[t])
        observations, rewards, terminated, truncated, info = envs.step(2 * shares - 1)
        np.testing.assert_allclose(observations.reshape(5, 6, 3), state, rtol=1e-5)
        np.testing.assert_allclose(rewards, -cost.sum(1) / 5, rtol=1e-5)
        np.testing.assert_allclose(info["node_costs"], cost, rtol=1e-4, atol=1e-5)
        assert not terminated.any()
        assert not truncated.any()


def test_no_agent_ships_what_is_not_there():
    envs = InventoryVectorEnv("transshipment_backlogged", 3, stores=3)
    envs.reset(seed=0)
    for _ in range(20):
        observations, *_ = envs.step(np.ones((3, 4), dtype=np.float32))
        assert observations.reshape(3, 4, 3)[:, 0, 0].min() >= -1e-4


def test_the_batch_starts_anew_after_the_horizon():
    envs = InventoryVectorEnv("one_store_backlogged", 4, periods=3)
    envs.reset(seed=0)
    action = np.full((4, 1), 0.25, dtype=np.float32)
    cut = [envs.step(action)[3].all() for _ in range(3)]
    assert cut == [False, False, True]
    observations, rewards, _, truncated, info = envs.step(action)
    assert (rewards == 0).all()
    assert not truncated.any()
    assert (info["period"] == 0).all()
    assert envs.observation_space.contains(observations)
    assert not envs.step(action)[3].any()


def test_make_vec_uses_the_batch():
    envs = gymnasium.make_vec("offrl/one_store_lost-v1", num_envs=6, vectorization_mode="vector_entry_point")
    observations, _ = envs.reset(seed=0)
    assert isinstance(envs.unwrapped, InventoryVectorEnv)
    assert observations.shape == (6, 4)
    assert (observations >= 0).all()
    assert observations.max() < 5.01, "stock starts as a share of the mean demand in every column"


def test_recorded_sales_show_their_history():
    """6 columns, 16 weeks, the calendar, one margin, one holding cost, one lead time."""
    env = InventoryEnv("favorita_one_store", data=look_alike(items=9, stores=2))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6 + 16 + 1 + 3,)
    assert observation[:6].sum() == 0
    assert observation[-1] in (4, 5, 6)
    with pytest.raises(ConfigError, match="periods must be 1 or more and at most 95, got 96"):
        InventoryEnv("favorita_one_store", data=look_alike(items=9, stores=2), periods=96)


def test_or_gyms_chain_remembers_what_it_owes():
    env = InventoryVectorEnv("or_gym_inv_management", 2)
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.ones((2, 3), dtype=np.float32))  # 80 on each lane: 120 more than the distributor ever had
    assert (env._state.owed[:, 0] > 0).all()


def test_text_and_errors():
    env = make("one_store_lost-v1", render_mode="ansi", lead_time=2)
    env.reset(seed=0)
    assert env.render().startswith("period 0\nstore          on hand")
    with pytest.raises(gymnasium.error.ResetNeeded):
        InventoryVectorEnv("one_store_lost", 2).step(np.zeros((2, 1)))
    with pytest.raises(ConfigError, match="has no option 'leadtime'"):
        InventoryVectorEnv("one_store_lost", 2, leadtime=3)
    with pytest.raises(ConfigError, match="must be above 0, got 0"):
        InventoryVectorEnv("one_store_lost", 0)


def test_deliveries_vary_where_receipts_do():
    import dataclasses

    setting = load_setting("one_store_lost")
    (lane,) = setting.network.edges
    width = setting.network.width
    lane = dataclasses.replace(lane, receipts=((1.0,), (0.0,) * (width - 1) + (1.0,)))
    setting = dataclasses.replace(setting, network=dataclasses.replace(setting.network, edges=(lane,)))
    env = InventoryVectorEnv(setting, 64, periods=6)
    env.reset(seed=0)
    env.step(np.ones((64, 1), dtype=np.float32))
    on_hand = env._simulator.stock(env._state)[:, 0, 0]
    early = on_hand >= float(env.largest[0]) - 1e-4
    assert 0.25 < early.float().mean() < 0.75
    again = InventoryVectorEnv(setting, 64, periods=6)
    again.reset(seed=0)
    np.testing.assert_array_equal(again._scenarios.deliveries, env._scenarios.deliveries)
