"""Networks from YAML: the example of the module, its demand kinds, and one line for every mistake."""

import numpy as np
import pytest
import torch

from offrl.envs.inventory.demand import Compound, NegativeBinomial, Normal, Poisson, Recorded
from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.yaml_file import EXAMPLE, read_network
from offrl.errors import ConfigError, DatasetError

NORMAL = EXAMPLE[EXAMPLE.index("demand:") :]


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "net.yaml"
        path.write_text(text)
        return path

    return write


def test_the_example_in_the_module_is_read_and_runs(write):
    setting = read_network(write(EXAMPLE))
    network = setting.network
    assert (setting.name, [n.name for n in network.nodes]) == ("two shops", ["hub", "north", "south"])
    assert [(e.source, e.target, e.lead_time, e.cost) for e in network.edges] == [
        ("hub", "north", 2, 0),
        ("hub", "south", 1, 0),
        ("outside", "hub", 3, 0.5),
    ]
    assert network.lost_sales
    assert setting.demand == Normal(means=(5, 3), stds=(2, 1.5), correlation=0.5)
    drawn = setting.resized(train=3, dev=2).draw("train")
    result = rollout(lambda o: torch.ones(3, 3), drawn, feasibility="project")
    assert result.costs.shape == (50, 3, 3)
    assert load_setting(str(write(EXAMPLE))).network == network


@pytest.mark.parametrize(
    ("demand", "want"),
    [
        (
            "{kind: poisson, stores: {north: {mean: 5}, south: {mean: 3}}, season: [0.5, 1.5]}",
            Poisson(means=(5, 3), season=(0.5, 1.5)),
        ),
        (
            "{kind: negative_binomial, stores: {north: {mean: 5, std: 3}, south: {mean: 3, std: 2}}}",
            NegativeBinomial(means=(5, 3), stds=(3, 2)),
        ),
        (
            "{kind: compound, batch: 2, stores: {south: {rate: 3}, north: {rate: 5}}}",
            Compound(rates=(5, 3), batch=2),
        ),
        (
            "{kind: normal, clip: false, stores: {north: {mean: 5, std: 1}, south: {mean: 3, std: 1}}}",
            Normal(means=(5, 3), stds=(1, 1), clip=False),
        ),
    ],
)
def test_kinds_of_demand(write, demand, want):
    setting = read_network(write(EXAMPLE.replace(NORMAL, f"demand: {demand}\n")))
    assert setting.demand == want
    assert setting.integral == (not isinstance(want, Normal))


def test_demand_from_a_file_beside(write, tmp_path):
    rows = "".join(f"{t},{t % 7},{t % 5}\n" for t in range(60))
    (tmp_path / "d.csv").write_text("period,south,north\n" + rows)
    setting = read_network(write(EXAMPLE.replace(NORMAL, "demand: {kind: file, path: d.csv}\n")))
    assert isinstance(setting.demand, Recorded)
    np.testing.assert_array_equal(setting.demand.values[0, :, :3], [[0, 1, 2], [0, 1, 2]])
    assert setting.demand.values.shape == (1, 2, 60)
    assert setting.splits["test"].periods == 60
    assert {name: split.scenarios for name, split in setting.splits.items()} == {
        "train": 8192,
        "dev": 1,
        "test": 1,
    }
    shorter = "protocol: {test: {periods: 51, ignore: 0}, dev: {periods: 60, scenarios: 7}}\n"
    some = read_network(write(EXAMPLE.replace(NORMAL, "demand: {kind: file, path: d.csv}\n") + shorter))
    assert [some.splits[name].scenarios for name in ("dev", "test")] == [7, 10]  # windows of 51 of 60 periods
    assert setting.resized(train=3, dev=2).draw("train").demands.max() <= 6
    with pytest.raises(DatasetError, match="no column for store 'north'"):
        (tmp_path / "d.csv").write_text("period,south,nord\n" + rows)
        read_network(write(EXAMPLE.replace(NORMAL, "demand: {kind: file, path: d.csv}\n")))


def test_protocol_and_features(write):
    text = EXAMPLE.replace("lost_sales: true", "lost_sales: false\nprofit: true\ndiscount: 0.9")
    text += "protocol: {train: {scenarios: 10, periods: 20, ignore: 5}}\n"
    text = text.replace(
        "kind: warehouse,", "kind: warehouse, capacity: 90, yield: 0.8, operating_cost: 0.1, initial: 7,"
    )
    setting = read_network(write(text))
    train, hub = setting.splits["train"], setting.network.nodes[0]
    assert (train.scenarios, train.batch, train.periods, train.ignore) == (10, 10, 20, 5)
    assert (hub.capacity, hub.yield_, hub.operating_cost, hub.initial) == (90, 0.8, 0.1, 7)
    assert (setting.network.profit, setting.network.lost_sales, setting.network.discount) == (
        True,
        False,
        0.9,
    )


MISTAKES = [
    # structure of the file
    ("format: 1", "format: 2", "format must be 1, got 2"),
    ("lost_sales: true", "lost_sale: true", "unknown key 'lost_sale'; did you mean 'lost_sales'"),
    ("lost_sales: true", "lost_sales: maybe", "lost_sales must be true or false, got 'maybe'"),
    ("lost_sales: true            # false: unmet demand waits\n", "", "'lost_sales' is missing"),
    ("period: week", "period: week\nperiod: day", "line 4: 'period' is given twice"),
    ("unit: case", "unit: [case", "not YAML"),
    ("unit: case", "unit: " + "[" * 20_000, "lists within lists without end"),
    ("unit: case", "unit: &a [*a]", "more than 1,000,000 values; not believed"),
    ("nodes:", "nodes: 3\nspare:", "unknown key 'spare'"),
    # nodes
    ("holding_cost: 0.3", "holding_cost: -0.3", "node 'hub': holding_cost must not be negative, got -0.3"),
    ("holding_cost: 0.3", "holding_cost: cheap", "node 'hub': holding_cost must be a number, got 'cheap'"),
    ("holding_cost: 0.3", "holding_cost: .nan", "node 'hub': holding_cost must be a finite number"),
    ("holding_cost: 0.3", "holdingcost: 0.3", "node 1: unknown key 'holdingcost'; did you mean 'holding_cost'"),
    ("holding_cost: 0.3", "underage_cost: 0.3", "node 'hub': underage_cost is for stores"),
    ("holding_cost: 0.3", "yield: 1.2", r"node 'hub': yield must be in \(0, 1\], got 1.2"),
    ("holding_cost: 0.3", "capacity: 0", "node 'hub': capacity must be above 0"),
    ("kind: warehouse", "kind: depot", "node 'hub': kind must be one of echelon, warehouse, store, got 'depot'"),
    ("name: south", "name: north", "node 'north' appears twice"),
    ("name: south", "name: outside", "this name is kept for the supplier without limit"),
    ("name: hub, ", "", "node 1: 'name' is missing"),
    # lanes
    ("lead_time: 3", "lead_time: -3", "lane 'outside' -> 'hub': lead_time must not be negative, got -3"),
    ("lead_time: 3", "lead_time: 0", "lead_time must be 1 or more, got 0"),
    ("lead_time: 3", "lead_time: 2.5", "lead_time must be a whole number of periods, got 2.5"),
    ("lead_time: 3", "lead_time: 3 weeks", "lead_time must be a whole number of periods, got '3 weeks'"),
    ("cost: 0.5", "cost: -0.5", "lane 'outside' -> 'hub': cost must not be negative"),
    ("to: south", "to: east", "lane 'hub' -> 'east': no node is called 'east'; there are hub, north, south"),
    ("to: south", "to: north", "lane 'hub' -> 'north' appears twice"),
    ("to: south", "to: hub", "a node cannot supply itself"),
    ("  - {from: hub, to: south, lead_time: 1}\n", "", "store 'south' cannot be reached: no lane leads to it"),
    ("from: outside, to: hub", "from: north, to: hub", "a store only sells; make 'north' a warehouse"),
    ("to: south", "to: outside", "no node is called 'outside'"),
    # units
    ("lead_time: 3", "period: day, lead_time: 21", "lane 'outside' -> 'hub': period is 'day' but the file's is 'week'"),
    ("kind: warehouse", "kind: warehouse, unit: pallet", "node 'hub': unit is 'pallet' but the file's is 'case'"),
    ("correlation: 0.5", "unit: piece", "demand: unit is 'piece' but the file's is 'case'; nothing is converted"),
    ("unit: case                  # of product\n", "", None),
    # demand
    ("kind: normal", "kind: gamma", "demand: kind must be one of normal, poisson"),
    ("kind: normal", "kind: [normal]", r"demand: kind must be one of normal, .*, got \['normal'\]"),
    ("lead_time: 2}", "lead_time: 2, penalty: -1}", "lane 'hub' -> 'north': penalty must not be negative, got -1.0"),
    ("lead_time: 2}", "lead_time: 2, penalty: .nan}", "lane 'hub' -> 'north': penalty must be a finite number"),
    ("correlation: 0.5", "correlation: -1.5", r"correlation must be in \[-1, 1\] for 2 stores, got -1.5"),
    ("    south: {mean: 3, std: 1.5}", "", "demand: stores: 'south' is missing"),
    ("    south: {mean: 3, std: 1.5}", "    south: {mean: 3}", "demand of store 'south': 'std' is missing"),
    ("    south: {mean", "    east: {mean: 3, std: 1}\n    south: {mean", "demand: stores: unknown key 'east'"),
    ("std: 1.5", "std: -1.5", "must be 0 or more and finite, got -1.5"),
    ("correlation: 0.5", "season: 3", "season must be a list of factors, got 3"),
    ("demand:\n", "protocol: {train: {periods: 20, ignore: 20}}\ndemand:\n", "train: ignore 20 leaves none of 20"),
    ("demand:\n", "protocol: {train: {scenarios: 0}}\ndemand:\n", "scenarios must be a whole number, got 0"),
    ("demand:\n", "discount: 1.5\ndemand:\n", r"discount must be in \(0, 1\], got 1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_place(write, old, new, message):
    assert old in EXAMPLE
    path = write(EXAMPLE.replace(old, new, 1))
    if message is None:  # leaving the unit out is no mistake
        assert read_network(path).network.stores == 2
        return
    with pytest.raises(ConfigError, match=message) as caught:
        read_network(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_two_suppliers_outside(write):
    """Dual sourcing: a fast and dear one, and a slow and cheap one."""
    text = EXAMPLE.replace(
        "lanes:\n", "lanes:\n  - {from: outside express, to: hub, lead_time: 1, cost: 2}\n"
    )
    edges = read_network(write(text)).network.edges[-2:]
    assert [(e.source, e.lead_time, e.cost) for e in edges] == [
        ("outside", 3, 0.5),
        ("outside express", 1, 2.0),
    ]


def test_the_name_of_a_published_setting_is_refused(write):
    """A run knows its setting by that name, and would be resumed and measured on the published one."""
    path = str(write(EXAMPLE.replace("two shops", "one_store_lost-v1")))
    with pytest.raises(ConfigError, match="'one_store_lost-v1' is the name of a published setting"):
        load_setting(path)


def test_a_cycle_is_shown(write):
    text = EXAMPLE.replace(
        "nodes:\n", "nodes:\n  - {name: a, kind: warehouse}\n  - {name: b, kind: warehouse}\n"
    )
    text = text.replace("from: outside, to: hub", "from: a, to: hub")
    text = text.replace(
        "lanes:\n", "lanes:\n  - {from: a, to: b, lead_time: 1}\n  - {from: b, to: a, lead_time: 1}\n"
    )
    with pytest.raises(ConfigError, match="the lanes form a cycle: a <- b <- a"):
        read_network(write(text))


def test_a_dead_end_and_an_empty_file(write, tmp_path):
    text = EXAMPLE.replace("nodes:\n", "nodes:\n  - {name: spare, kind: warehouse}\n")
    text = text.replace("lanes:\n", "lanes:\n  - {from: outside, to: spare, lead_time: 1}\n")
    with pytest.raises(ConfigError, match="warehouse 'spare' supplies nobody"):
        read_network(write(text))
    with pytest.raises(ConfigError, match="the file must be a mapping of names to values, got nothing"):
        read_network(write(""))
    with pytest.raises(ConfigError, match="has no store"):
        stores = EXAMPLE.replace("kind: store", "kind: warehouse").replace(", underage_cost: 9.0", "")
        read_network(write(stores.replace(", underage_cost: 7.5", "")))
    with pytest.raises(FileNotFoundError):
        read_network(tmp_path / "none.yaml")
    path = tmp_path / "b.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not"):
        read_network(path)
