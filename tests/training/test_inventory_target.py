"""The price on unmet demand that reaches a service level."""

import pytest

from offrl.algos.hdpo import HDPOConfig
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.work.scoring import score
from offrl.errors import ConfigError
from offrl.training.inventory import InventoryOptions, dearer
from offrl.training.inventory_target import parse_target, penalty_for, trained

OPTIONS = InventoryOptions(
    setting="one_store_backlogged", steps=240, scenarios=128, dev_scenarios=128, train_periods=30
)
CONFIG = HDPOConfig(policy="base_stock", batch_size=64)


@pytest.mark.parametrize("target", [0.7, 0.97])
def test_the_penalty_that_is_found_reaches_the_target(target):
    told = []
    penalty = penalty_for(CONFIG, OPTIONS, target, told.append)
    assert told[0].penalty == 1.0
    assert penalty in [trial.penalty for trial in told]
    assert (penalty > 1) == (told[0].fill < target)
    setting = OPTIONS.load()
    policy = trained(CONFIG, dearer(setting, penalty), 60, 0)
    found = score(policy, setting.draw("dev"), setting.splits["dev"].ignore)
    assert found.fill == pytest.approx(target, abs=0.01)


def test_what_is_no_target():
    assert parse_target("fill_rate=0.97") == 0.97
    for text in ("fill_rate=97", "0.97", "service=0.9", "fill_rate=x", "fill_rate=1"):
        with pytest.raises(ConfigError, match="--target takes fill_rate=SHARE"):
            parse_target(text)
    with pytest.raises(ConfigError, match="counts profit"):
        dearer(load_setting("favorita_one_store", series=8), 2.0)
    with pytest.raises(ConfigError, match="penalty must be above 0"):
        InventoryOptions(setting="x", penalty=0.0)


def test_a_penalty_is_a_factor_of_underage_costs():
    plain, dear = load_setting("one_store_lost"), dearer(load_setting("one_store_lost"), 2.5)
    assert [n.underage_cost * 2.5 for n in plain.network.nodes] == [
        n.underage_cost for n in dear.network.nodes
    ]
    assert [n.holding_cost for n in plain.network.nodes] == [n.holding_cost for n in dear.network.nodes]
