"""What is measured: names and sizes that must not change, and which policies fit which setting."""

import json
from pathlib import Path

import pytest

from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import ConfigError
from offrl.inventory_bench.plan import Asked, fitting, grid_cells, published, recipe

RAW = Path(__file__).parents[2] / "benchmarks/raw/inventory"
CELLS = published()


def test_the_published_cells_keep_their_names():
    counts = {
        kind: sum(n.startswith(f"{kind}-") for n in CELLS) for kind in ("gap", "variance", "time", "speed")
    }
    assert counts == {"gap": 27, "variance": 3, "time": 6, "speed": 4}
    for name in ("gap-backlogged-L4-p9", "gap-lost-L4-p39", "gap-gnn_transshipment-S10", "time-serial_system-rloo",
                 "sample-one_warehouse_lost_demand-mlp_network-n8192-s7", "speed-gnn-S100"):  # fmt: skip
        assert name in CELLS


def test_raw_files_are_of_the_cells():
    """What was measured with the script's older versions is what the plan says now."""
    paths = list(RAW.glob("*.json"))
    assert paths
    for path in paths:
        assert json.loads(path.read_text())["cell"] == json.loads(json.dumps(CELLS[path.stem])), path.stem


def test_the_sample_study_is_the_same_for_both_nets():
    found = {}
    for name, spec in CELLS.items():
        if name.startswith("sample-"):
            run = spec["run"]
            key = (run["setting"], run["first_paths"][0], run["seeds"])
            found.setdefault(spec["config"]["policy"], {})[key] = (run["steps"], spec["config"]["batch_size"])
    assert set(found) == {"gnn", "mlp_network"}
    assert found["gnn"] == found["mlp_network"]
    assert {n for _, n, _ in found["gnn"]} == {4, 16, 256, 8192}
    assert {steps for steps, _ in found["gnn"].values()} == {3000}
    assert len(found["gnn"]) == 2 * 4 * 2


def test_the_transfer_goes_from_three_stores_to_fifty():
    (spec,) = (s for n, s in CELLS.items() if n.startswith("transfer-"))
    assert spec["run"]["vary"]["stores"] == 3
    assert spec["stores"][0] == 3
    assert spec["stores"][-1] == 50
    assert spec["config"]["policy"] == "gnn"


def test_every_setting_has_a_policy_and_each_fits():
    for name in SETTINGS:
        fit = fitting(load_setting(name))
        assert "gnn" in fit
        assert fit["gnn"]


def test_policies_fit_where_they_make_sense():
    lost = fitting(load_setting("one_store_lost"))
    assert {"base_stock", "optimal", "myopic_2", "mlp_one_store", "just_in_time"} <= set(lost)
    assert not {"mlp_serial", "mlp_network", "echelon_base_stock", "quantile_nv"} & set(lost)
    assert not lost["optimal"]
    assert lost["mlp_one_store"]
    serial = fitting(load_setting("serial_system"))
    assert {"echelon_base_stock", "mlp_serial"} <= set(serial)
    assert not {"optimal", "mlp_one_store", "mlp_network"} & set(serial)
    assert {"quantile_nv", "transformed_nv"} <= set(fitting(load_setting("favorita_one_store")))
    assert list(fitting(load_setting("one_store_lost"), ["mlp_network"])) == ["mlp_network"]  # asked for


def test_a_setting_is_typed_with_what_it_lets_vary():
    asked = Asked.parse("one_store_lost-v1:lead_time=2,underage_cost=4")
    assert asked.vary == {"lead_time": 2.0, "underage_cost": 4.0}
    assert asked.label == "one_store_lost-lead_time2-underage_cost4"
    assert asked.load().network.edges[0].lead_time == 2
    assert Asked.parse("shops/net.yaml").label == "net"


@pytest.mark.parametrize(
    ("settings", "policies", "message"),
    [
        (["one_stor_lost"], [], "did you mean"),
        (["one_store_lost:lead_time"], [], "KEY=NUMBER"),
        (["one_store_lost:leadtime=2"], [], "no option 'leadtime'"),
        (["one_store_lost"], ["gnm"], "did you mean 'gnn'"),
        (["serial_system"], ["optimal"], "fits this network"),
        (
            ["serial_system", "serial_system-v1"],
            ["base_stock"],
            "serial_system and serial_system-v1 would be one name",
        ),
    ],
)
def test_wrong_names_are_told(settings, policies, message):
    with pytest.raises(ConfigError, match=message):
        list(grid_cells(settings, policies))


def test_names_are_different_and_carry_setting_policy_and_seed():
    cells = list(
        grid_cells(["one_store_lost", "serial_system"], ["base_stock", "just_in_time"], seeds=(0, 3))
    )
    names = [name for name, _ in cells]
    assert names == [
        "grid-one_store_lost-base_stock-s0", "grid-one_store_lost-base_stock-s3", "grid-one_store_lost-just_in_time",
        "grid-serial_system-base_stock-s0", "grid-serial_system-base_stock-s3", "grid-serial_system-just_in_time",
    ]  # fmt: skip


def test_a_recipe_follows_the_setting():
    setting = load_setting("one_store_lost")
    assert recipe("mlp_one_store", setting)["run"]["steps"] == 1000
    assert recipe("base_stock", setting)["run"]["steps"] == 400
    assert recipe("base_stock", setting, 7)["run"]["steps"] == 7
    sales = load_setting("favorita_21_stores")
    assert recipe("gnn", sales)["run"]["scenarios"] == sales.splits["train"].scenarios
