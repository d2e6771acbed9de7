"""Runs of HDPO on disk: files, selection, early stopping, exact resume, stacks."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from offrl.algos.hdpo import HDPOConfig
from offrl.envs.inventory.policies import load_policy
from offrl.envs.inventory.scenarios import evaluate
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.training import inventory
from offrl.training.inventory import InventoryOptions, resume, start, test_sized
from offrl.training.progress import Reporter


@pytest.fixture(autouse=True)
def _small_tests(monkeypatch):
    monkeypatch.setattr(inventory, "QUICK", (32, 40))


def options(tmp_path, **changes):
    base = {
        "setting": "one_store_backlogged",
        "scenarios": 64,
        "dev_scenarios": 32,
        "out": str(tmp_path),
        "steps": 24,
    }
    return InventoryOptions(**base | {"log_every": 4, "eval_every": 4, "checkpoint_every": 8} | changes)


CONFIG = HDPOConfig(policy="base_stock", batch_size=16, lr=1.0, patience=0)


OWN = """
format: 1
name: shop
lost_sales: true
nodes: [{name: shop, kind: store, holding_cost: 1.0, underage_cost: 9.0}]
lanes: [{from: outside, to: shop, lead_time: 2}]
demand: {kind: file, path: sales.csv}
protocol:
  train: {scenarios: 8, batch: 8, periods: 12, ignore: 4}
  dev: {scenarios: 8, batch: 8, periods: 12, ignore: 4}
  test: {scenarios: 8, batch: 8, periods: 12, ignore: 4}
"""


def rows(result, name):
    return (result.directory / name).read_text().splitlines()


def test_a_run_leaves_its_files_and_its_best_policy(tmp_path):
    (result,) = start(CONFIG, options(tmp_path))
    names = {path.name for path in result.directory.iterdir()}
    wanted = {
        "config.json",
        "versions.json",
        "command.txt",
        "metrics.csv",
        "eval.csv",
        "timing.csv",
        "test.json",
    }
    assert wanted | {"policy.json", "policy.safetensors", "checkpoint.pt", "final_returns.npz"} <= names
    costs = [-float(line.split(",")[2]) for line in rows(result, "eval.csv")[1:]]
    assert result.dev_cost == min(costs)
    assert result.best_step == 4 * (1 + int(np.argmin(costs)))
    saved = load_policy(result.directory)
    setting = options(tmp_path).load()
    dev = setting.draw("dev")
    assert float(evaluate(saved, dev, ignore=setting.splits["dev"].ignore).mean()) == pytest.approx(
        min(costs)
    )
    test = evaluate(saved, setting.draw("test"), ignore=setting.splits["test"].ignore)
    assert torch.equal(test, result.costs)
    assert json.loads((result.directory / "test.json").read_text())["cost"] == pytest.approx(
        float(test.mean())
    )


def test_the_dev_cost_leaves_the_warm_up_out_and_training_counts_it(tmp_path):
    (result,) = start(CONFIG, options(tmp_path, steps=4))
    dev = -float(rows(result, "eval.csv")[1].split(",")[2])
    cost = float(rows(result, "metrics.csv")[1].split(",")[1])
    assert cost > dev + 5  # stock-outs of the first periods, which no policy controls


@pytest.mark.parametrize("estimator", ["pathwise", "rloo"])
def test_stopped_and_resumed_is_bit_equal(tmp_path, monkeypatch, estimator):
    config = dataclasses.replace(CONFIG, estimator=estimator)
    whole = start(config, options(tmp_path / "a", seeds=(0, 1)))
    real, calls = inventory.HDPO.update, []

    def update(self, batch):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(inventory.HDPO, "update", update)
    with pytest.raises(KeyboardInterrupt):
        start(config, options(tmp_path / "b", seeds=(0, 1)))
    monkeypatch.setattr(inventory.HDPO, "update", real)
    first = sorted((tmp_path / "b").glob("*/*/seed0*"))[0]
    again = resume(first)
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a.costs, b.costs)
        assert a.best_step == b.best_step
        for name in ("metrics.csv", "eval.csv"):
            assert rows(a, name) == rows(b, name)
        assert (a.directory / "policy.safetensors").read_bytes() == (
            b.directory / "policy.safetensors"
        ).read_bytes()
    assert all(result.already_finished for result in resume(first))


def test_seeds_together_equal_single_runs_also_when_one_stops_early(tmp_path):
    config = dataclasses.replace(CONFIG, patience=8, lr=4.0)
    both = start(config, options(tmp_path / "both", seeds=(0, 1), steps=60))
    for k in (0, 1):
        (alone,) = start(config, options(tmp_path / str(k), seeds=(k,), steps=60))
        assert alone.best_step == both[k].best_step
        torch.testing.assert_close(alone.costs, both[k].costs, rtol=1e-4, atol=1e-3)
        assert len(rows(alone, "eval.csv")) == len(rows(both[k], "eval.csv")) < 16


def test_seeds_with_first_paths_of_their_own_equal_runs_on_fewer_paths(tmp_path):
    """Also after a stop: 16 of 64 paths in a stack are a run of 16."""
    stack = start(CONFIG, options(tmp_path / "a", seeds=(3, 4), first_paths=(16, 64), train_periods=20))
    few, many = (
        options(tmp_path / str(n), seeds=(s,), first_paths=(n,), train_periods=20)
        for s, n in ((3, 16), (4, 64))
    )
    for result, own in zip(stack, (few, many), strict=True):
        (single,) = start(CONFIG, own)
        assert single.dev_cost == pytest.approx(result.dev_cost, rel=1e-5)
        assert (
            rows(single, "metrics.csv")[-1].split(",")[1][:6]
            == rows(result, "metrics.csv")[-1].split(",")[1][:6]
        )
    (all_paths,) = start(CONFIG, options(tmp_path / "b", seeds=(3,), train_periods=20))
    assert all_paths.dev_cost != stack[0].dev_cost
    (longer,) = start(CONFIG, options(tmp_path / "c", seeds=(3,)))
    assert rows(longer, "metrics.csv") != rows(all_paths, "metrics.csv")
    with pytest.raises(ConfigError, match="for each of 2 seeds"):
        start(CONFIG, options(tmp_path / "d", seeds=(3, 4), first_paths=(16,)))


def test_patience_counts_updates_since_the_best(tmp_path):
    config = dataclasses.replace(CONFIG, patience=8, lr=4.0)
    (result,) = start(config, options(tmp_path, steps=200))
    last = int(rows(result, "eval.csv")[-1].split(",")[0])
    assert last == result.best_step + 8 < 200


@pytest.mark.parametrize(("change", "paths"), [({}, 1), ({"policy": "mlp_one_store", "lr": 1e30}, 4)])
def test_a_test_of_one_path_or_of_a_net_that_diverged_still_ends_the_run(tmp_path, change, paths):
    """One path has no standard error, NaN is no cost: JSON has null for both."""
    config = dataclasses.replace(CONFIG, **change)
    (result,) = start(config, options(tmp_path, test_scenarios=paths, steps=8))
    facts = json.loads((result.directory / "test.json").read_text())
    assert len(result.costs) == facts["scenarios"] == paths
    assert facts["standard_error"] is None
    assert (facts["cost"] is None) == (facts["dev_cost"] is None) == bool(change)
    (again,) = resume(result.directory)
    assert again.already_finished


def test_a_signal_stops_with_a_checkpoint(tmp_path, monkeypatch):
    real = inventory.HDPO.update

    def update(self, batch):
        if self.updates == 9:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(inventory.HDPO, "update", update)
    with pytest.raises(Stopped, match="stopped at step 10; go on with: offrl inventory resume") as stopped:
        start(CONFIG, options(tmp_path))
    assert stopped.value.exit_code == 143
    monkeypatch.setattr(inventory.HDPO, "update", real)
    page = io.StringIO()  # the command does not know the run's length
    (result,) = resume(next(tmp_path.glob("*/*/seed0*")), Reporter("text", 1, page))
    assert "\n24/24  100%" in page.getvalue()
    (whole,) = start(CONFIG, options(tmp_path / "whole"))
    assert torch.equal(result.costs, whole.costs)


def test_an_edited_run_is_refused(tmp_path):
    (result,) = start(CONFIG, options(tmp_path, steps=4))
    path = result.directory / "config.json"
    facts = json.loads(path.read_text())
    for change in (
        {"settings": facts["settings"] | {"lr": -1.0}},
        {"dataset_sha256": "0"},
        {"algorithm": "iql"},
    ):
        path.write_text(json.dumps(facts | change))
        with pytest.raises(CheckpointError):
            resume(result.directory)


def test_a_changed_demand_file_is_another_setting(tmp_path):
    (tmp_path / "sales.csv").write_text("period,shop\n" + "\n".join(f"{k},{k % 7}" for k in range(40)))
    (tmp_path / "net.yaml").write_text(OWN)
    load = lambda: inventory.digest_of(options(tmp_path, setting=str(tmp_path / "net.yaml")).load())  # noqa: E731
    first = load()
    assert load() == first
    (tmp_path / "sales.csv").write_text("period,shop\n" + "\n".join(f"{k},{k % 8}" for k in range(40)))
    assert load() != first
    (tmp_path / "net.yaml").write_text(
        OWN.replace("kind: file, path: sales.csv", "kind: poisson, stores: {shop: {mean: 5}}")
    )
    poisson = load()
    (tmp_path / "net.yaml").write_text((tmp_path / "net.yaml").read_text().replace("mean: 5", "mean: 6"))
    assert load() != poisson


def test_a_run_keeps_the_version_of_its_setting(tmp_path, monkeypatch):
    """A later version of the setting is another one: the run goes on, and is measured, on its own."""
    (result,) = start(CONFIG, options(tmp_path, steps=4))
    facts = json.loads((result.directory / "config.json").read_text())
    assert facts["inventory"]["setting"] == "one_store_backlogged-v1"
    monkeypatch.setitem(SETTINGS, "one_store_backlogged-v2", SETTINGS["one_store_lost-v1"])
    assert load_setting("one_store_backlogged").name == "one_store_lost-v1"
    assert resume(result.directory)[0].already_finished


def test_options_are_checked_and_sizes_follow_the_protocol(tmp_path, monkeypatch):
    for wrong in ({"steps": 0}, {"seeds": ()}, {"seeds": (1, 1)}, {"scenarios": -1}, {"train_periods": -1}):
        with pytest.raises(ConfigError):
            options(tmp_path, **wrong)
    setting = options(tmp_path, vary={"lead_time": 2.0}).load()
    assert setting.splits["train"].scenarios == 64
    assert setting.network.lead_times == (2,)
    assert (setting.splits["test"].scenarios, setting.splits["test"].periods) == (32, 40)
    own = options(tmp_path, test_scenarios=10, train_periods=30).load().splits
    assert (own["test"].scenarios, own["test"].periods, own["test"].ignore) == (10, 40, 24)
    assert (own["train"].periods, own["dev"].periods) == (30, 100)
    paper = options(tmp_path, protocol="paper").load().splits["test"]
    assert (paper.scenarios, paper.periods, paper.ignore) == (32768, 5000, 3000)
    assert test_sized(setting, "quick").splits["test"].ignore == 24
    monkeypatch.setattr(inventory, "QUICK_STORES", 1000)
    large = test_sized(load_setting("one_warehouse_lost_demand", stores=50), "quick")
    assert large.splits["test"].scenarios == 20


test_sized.__test__ = False
