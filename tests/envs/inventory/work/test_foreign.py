"""Files of stockpyl and or-gym become networks of ours, or say why not."""

import json
import os

import pytest
import stockpyl
import torch
from stockpyl.instances import load_instance
from stockpyl.sim import simulation

from offrl.envs.inventory.scenarios import Scenarios, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.work.foreign import from_or_gym, from_stockpyl, read_json, write_yaml
from offrl.errors import ConfigError, DatasetError

FILE = os.path.join(os.path.dirname(stockpyl.__file__), "datasets", "stockpyl_instances.json")


@pytest.fixture(scope="module")
def instances():
    from pathlib import Path

    return read_json(Path(FILE))


def test_a_serial_instance_behaves_as_in_stockpyl(instances, tmp_path):
    """Local base-stock levels, constant demand: the same stock at the end of every period."""
    made, notes = from_stockpyl(instances, "example_6_1")
    write_yaml(made, tmp_path / "net.yaml")
    network = load_setting(str(tmp_path / "net.yaml")).network
    assert network.lead_times == (1, 0, 2)
    assert [node.holding_cost for node in network.nodes] == [2.0, 4.0, 7.0]
    assert len(notes) == 2
    theirs = load_instance("example_6_1")
    for node in theirs.nodes:
        node.inventory_policy.base_stock_level = {1: 12.0, 2: 8.0, 3: 14.0}[node.index]
        if node.index == 1:
            node.demand_source.type, node.demand_source.demand_list = "D", [5.0] * 30
    simulation(theirs, 30, rand_seed=1, progress_bar=False)
    levels = torch.tensor([14.0, 8.0, 12.0])
    scenarios = Scenarios(
        network=network, initial=torch.zeros(1, 3, network.width), demands=torch.full((30, 1, 1), 5.0),
        parameters=load_setting(str(tmp_path / "net.yaml")).draw("dev").parameters,
    )  # fmt: skip

    def policy(seen):
        # each stage raises its position (what it owes downstream is our shipping limit) to its level
        gap = levels - seen.stock.sum(-1)
        gap[:, 1] += gap[:, 2]
        gap[:, 0] += gap[:, 1]
        return gap.clamp(min=0)[:, list(network.targets)]

    done = rollout(policy, scenarios, feasibility="project", record=True)
    ours = float(done.costs[-1, 0, 2])
    state = next(n for n in theirs.nodes if n.index == 1).state_vars[29]
    (level,) = state.inventory_level.values()
    assert ours == pytest.approx(7 * max(level, 0) + 37.12 * max(-level, 0))


def test_or_gym_defaults_are_the_preset(tmp_path):
    made, _ = from_or_gym({})
    write_yaml(made, tmp_path / "net.yaml")
    ours, preset = (load_setting(str(s)) for s in (tmp_path / "net.yaml", "or_gym_inv_management"))
    assert ours.network.order_penalty == preset.network.order_penalty
    assert ours.demand == preset.demand
    policy = lambda seen: torch.full((len(seen.stock), 3), 21.0)  # noqa: E731
    costs = [
        rollout(policy, s.resized(test=64, periods={"test": 30}).draw("test")).costs.sum(2).mean()
        for s in (ours, preset)
    ]
    assert float(costs[0]) == float(costs[1])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("assembly_3_stage", "node 0: parts of several suppliers are assembled"),
        ("shang_song_1", "shipment_lead_time is 0.25; whole periods are needed"),
        ("example_6_3", "node 3: no shipment_lead_time; fill it"),
        ("example_3_1", "no stockout_cost; networks and one-stage"),
        ("example_3_9", "no stockout_cost"),
    ],
)
def test_what_cannot_be_carried_over_says_why(instances, name, says):
    with pytest.raises(DatasetError, match=says):
        from_stockpyl(instances, name)


def test_every_shipped_instance_is_read_or_refused_in_one_line(instances, tmp_path):
    read = 0
    for entry in instances["instances"]:
        try:
            made, _ = from_stockpyl(instances, entry["name"])
        except DatasetError as error:
            assert "\n" not in str(error)
            continue
        path = tmp_path / "net.yaml"
        write_yaml(made, path)
        load_setting(str(path))
        read += 1
    assert read >= 15


def test_files_that_are_something_else(instances, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1, 2")
    with pytest.raises(DatasetError, match="not JSON"):
        read_json(path)
    path.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="want a JSON object, got a list"):
        read_json(path)
    with pytest.raises(
        ConfigError, match="choose an instance with --instance NAME; the file has example_3_1"
    ):
        from_stockpyl(instances, None)
    with pytest.raises(DatasetError, match="c has 2 values for 3 lead times; give 3"):
        from_or_gym({"c": [1, 2]})
    with pytest.raises(DatasetError, match="unknown key 'lead'"):
        from_or_gym({"lead": 2})
    with pytest.raises(DatasetError, match="dist 2: only Poisson"):
        from_or_gym({"dist": 2})
    with pytest.raises(DatasetError, match="functions and lists are not read"):
        from_stockpyl(json.loads('{"holding_cost": [1], "stockout_cost": 2, "demand_mean": 3}'), None)
