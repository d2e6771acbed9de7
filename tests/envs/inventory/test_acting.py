"""Trained inventory policies in the Gymnasium environments: same orders, same costs; datasets from them."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.data.load import load_dataset
from offrl.envs.inventory.acting import ActingPolicy
from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.gymnasium_env import InventoryEnv
from offrl.envs.inventory.policies import DemandFacts, make_policy, save_policy
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.sources import load_source


def made(setting, name, **options):
    facts = DemandFacts.of(setting, setting.draw("train"))
    return make_policy(name, setting.network, facts, [torch.Generator().manual_seed(0)], **options)


@pytest.mark.parametrize(
    ("name", "policy", "options"),
    [
        ("one_store_backlogged", "base_stock", {"levels": 29.59}),
        ("one_warehouse_lost_demand", "gnn", {"hidden": (8, 8)}),
        ("favorita_one_store", "data_driven", {"normalize": True}),
    ],
)
def test_an_episode_costs_what_the_simulator_says(name, policy, options):
    setting = load_setting(name)
    setting = setting.resized(train=64, dev=4)
    env = InventoryEnv(setting, periods=20, order_limit=200.0)
    policy = made(setting, policy, **options)
    acting = ActingPolicy(policy, env)
    observation, _ = env.reset(seed=3)
    total, done = 0.0, False
    while not done:
        with torch.no_grad():
            action, _ = acting.act(torch.from_numpy(observation)[None])
        observation, reward, _, done, _ = env.step(action[0].numpy())
        total -= reward
    scenarios = env._batch._scenarios
    want = float(evaluate(policy, scenarios, periods=20).mean()) * 20
    assert total == pytest.approx(want, rel=1e-3)


def test_a_policy_that_follows_a_season_does_not_act_without_a_date():
    setting = load_setting("one_store_lost").resized(train=4, dev=4)
    env = InventoryEnv(setting, periods=20)
    ActingPolicy(made(setting, "item_levels"), env)
    seasonal = dataclasses.replace(setting, demand=Poisson(means=(5.0,), season=(0.5, 1.5)))
    with pytest.raises(ConfigError, match="have no date"):
        ActingPolicy(made(seasonal, "item_levels"), env)
    ActingPolicy(made(seasonal, "base_stock"), env)


def test_rows_of_other_weeks_are_kept_apart():
    """Days from Christmas are one number of a batch to a policy: rows of two weeks are two calls."""
    setting = load_setting("favorita_one_store").resized(train=64, dev=4)
    env = InventoryEnv(setting)
    acting = ActingPolicy(made(setting, "data_driven", normalize=True), env)
    first, _ = env.reset(seed=0)
    for _ in range(5):
        later, *_ = env.step(np.zeros(1, np.float32))
    both = torch.from_numpy(np.stack([first, later, first]))
    with torch.no_grad():
        alone = [acting.forward(row[None])[0] for row in both]
        assert torch.allclose(acting.forward(both), torch.stack(alone))


def test_a_run_is_a_source_and_writes_datasets(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    save_policy(
        made(load_setting("one_store_backlogged").resized(train=4, dev=4), "base_stock", levels=29.59), run
    )
    env_id = "offrl/one_store_backlogged-v1"
    for policy, out in ((str(run), "a"), ("random", "b")):
        words = [
            "--env",
            env_id,
            "--policy",
            policy,
            "--steps",
            "120",
            "--out",
            str(tmp_path / f"{out}.hdf5"),
            "-q",
        ]
        assert main(["collect", *words]) == 0, capsys.readouterr().err
    ours, random = (load_dataset(str(tmp_path / f"{out}.hdf5")) for out in "ab")
    assert ours.metadata["env_id"] == env_id
    assert ours.num_steps == 120
    assert ours.fields["truncated"].sum() == 3  # 50 + 50 + the cut
    assert not ours.fields["terminated"].any()
    assert ours.fields["rewards"].mean() > random.fields["rewards"].mean()
    assert main(["eval", str(run), "--env", env_id, "--episodes", "4"]) == 0
    capsys.readouterr()


def test_where_it_cannot_act_is_said(tmp_path):
    save_policy(made(load_setting("one_store_backlogged").resized(train=4, dev=4), "base_stock"), tmp_path)
    with pytest.raises(PolicyError, match="offrl/NAME alone"):
        load_source(str(tmp_path), "Pendulum-v1")
    with pytest.raises(ConfigError, match="fits no other network"):
        load_source(str(tmp_path), "offrl/serial_system-v1")
    gnn = made(
        load_setting("one_warehouse_lost_demand", stores=3).resized(train=4, dev=4), "gnn", hidden=(8,)
    )
    save_policy(gnn, tmp_path)
    moved = load_source(str(tmp_path), "offrl/one_warehouse_lost_demand-v1")
    assert moved.act_dim == 6
    with gymnasium.make("offrl/one_warehouse_lost_demand-v1") as env:
        assert env.observation_space.shape == (moved.obs_dim,)
