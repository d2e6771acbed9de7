"""Two processes under torchrun: the gradients, costs, files and resumed runs of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from offrl.algos.hdpo import HDPO, HDPOConfig
from offrl.envs.inventory.policies import DemandFacts
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError
from offrl.training import inventory
from offrl.training.inventory import InventoryOptions, start
from offrl.training.ranks import ALONE, Ranks, joined

CASES = {  # setting, policy, seeds, batch: halves unequal, one part empty, two seeds, parts in chunks
    "store": ("one_store_lost", "mlp_one_store", (0, 1), 7, {}),
    "one path": ("one_store_backlogged", "base_stock", (0,), 1, {}),
    "network": ("one_warehouse_lost_demand", "gnn", (0,), 5, {"hidden": (8, 8), "chunk": 2}),
}
SCRIPT = """
import sys, torch
from offrl.training.ranks import joined
sys.path.insert(0, sys.argv[1])
from test_ranks import gradients
with joined() as ranks:
    found = gradients(ranks)
    whole = ranks.gather(torch.arange(5.0).tensor_split(2)[ranks.rank], 5)
    most, other = ranks.most(9 * ranks.rank), torch.full((2,), float(ranks.rank))
    ranks.copy([other])
    if not ranks.main:  # the one that writes no run has the sums too
        torch.save([found, whole, most, other], sys.argv[2])
"""


def gradients(ranks):
    found = {}
    for name, (setting, policy, seeds, batch, more) in CASES.items():
        small = load_setting(setting).resized(train=16, dev=16, periods={"train": 8})
        paths = small.draw("train")
        config = HDPOConfig(policy=policy, **more)
        learner = HDPO(paths, DemandFacts.of(small, paths), config, seeds, 1, ranks)
        rows = torch.stack([torch.arange(batch) + k for k in range(len(seeds))])
        grads, cost = learner._pathwise(rows)
        found[name] = [*grads, cost]
    return found


def torchrun(*words, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(str(tmp_path / "script.py"), str(Path(__file__).parent), str(tmp_path / "found.pt"))
    _, errors = done.communicate(timeout=100)
    assert done.returncode == 0, errors
    found, whole, most, other = torch.load(tmp_path / "found.pt")
    assert whole.tolist() == [0, 1, 2, 3, 4]
    assert most == 9
    assert other.tolist() == [0, 0]
    for name, wanted in gradients(ALONE).items():
        for a, b in zip(wanted, found[name], strict=True):
            assert float((a - b).abs().max()) <= 1e-6 * max(1.0, float(a.abs().max())), name


NET = """
format: 1
name: shop
lost_sales: true
nodes: [{name: shop, kind: store, holding_cost: 1.0, underage_cost: 9.0}]
lanes: [{from: outside, to: shop, lead_time: 2}]
demand: {kind: poisson, stores: {shop: {mean: 5}}}
protocol:
  train: {scenarios: 46, batch: 16, periods: 12, ignore: 4}
  dev: {scenarios: 17, batch: 17, periods: 12, ignore: 4}
  test: {scenarios: 33, batch: 33, periods: 20, ignore: 5}
"""
TRAIN = [
    "net.yaml", "--policy", "mlp_one_store",
    "--eval-every", "4", "--checkpoint-every", "4", "--log-every", "2", "--seeds", "0", "1", "--patience", "0", "--out", "two",
]  # fmt: skip


def rows(directory, name):
    lines = (directory / name).read_text().splitlines()[1:]
    return torch.tensor([[float(x or 0) for x in line.split(",")] for line in lines])


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one_also_stopped_and_resumed(tmp_path):
    """46 paths in batches of 16 (the last of an epoch 14), stopped by SIGTERM to torchrun, resumed by torchrun."""
    (tmp_path / "net.yaml").write_text(NET)
    running = torchrun("-m", "offrl", "inventory", "train", *TRAIN, "--steps", "400", cwd=tmp_path)
    while not list((tmp_path / "two").glob("*/*/seed1*/policy.json")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=100)
    folders = sorted((tmp_path / "two").glob("*/*/seed*"))
    assert not (folders[0] / "test.json").exists()
    again = torchrun("-m", "offrl", "inventory", "resume", str(folders[0]), cwd=tmp_path)
    out, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert out.count("test cost") == 2  # one a seed: the other process prints nothing
    options = InventoryOptions(
        setting=str(tmp_path / "net.yaml"), steps=400, seeds=(0, 1),
        eval_every=4, checkpoint_every=4, log_every=2, out=str(tmp_path / "one"),
    )  # fmt: skip
    config = HDPOConfig(policy="mlp_one_store", patience=0)
    for one, two in zip(start(config, options), folders, strict=True):
        a, b = (rows(folder, "metrics.csv") for folder in (one.directory, two))
        torch.testing.assert_close(
            a[:20], b[:20], rtol=1e-4, atol=1e-4
        )  # later rounding grows, as it does anywhere
        assert a.shape == b.shape
        assert rows(one.directory, "eval.csv").shape == rows(two, "eval.csv").shape
        assert json.loads((two / "config.json").read_text())["processes"] == 2
        assert json.loads((two / "test.json").read_text())["scenarios"] == 33


def test_a_short_run_of_two_processes_is_that_of_one(tmp_path):
    (tmp_path / "net.yaml").write_text(NET)
    done = torchrun("-m", "offrl", "inventory", "train", *TRAIN, "--steps", "8", cwd=tmp_path)
    out, errors = done.communicate(timeout=100)
    assert done.returncode == 0, errors
    assert out.count("test cost") == 2
    options = InventoryOptions(
        setting=str(tmp_path / "net.yaml"), steps=8, seeds=(0, 1),
        eval_every=4, checkpoint_every=4, log_every=2, out=str(tmp_path / "one"),
    )  # fmt: skip
    config = HDPOConfig(policy="mlp_one_store", patience=0)
    folders = sorted((tmp_path / "two").glob("*/*/seed*"))
    for one, two in zip(start(config, options), folders, strict=True):
        for name in ("metrics.csv", "eval.csv"):
            torch.testing.assert_close(rows(one.directory, name), rows(two, name), rtol=1e-5, atol=1e-5)
        a, b = (safetensors.torch.load_file(f / "policy.safetensors") for f in (one.directory, two))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
        test = json.loads((two / "test.json").read_text())
        assert test["cost"] == pytest.approx(one.cost, rel=1e-3)
        assert test["best_step"] == one.best_step


def test_what_processes_cannot_share_is_refused():
    setting = load_setting("one_store_lost").resized(train=4, dev=4)
    paths = setting.draw("train")
    config = HDPOConfig(policy="mlp_one_store", estimator="rloo")
    with pytest.raises(ConfigError, match="several processes share pathwise"):
        HDPO(paths, DemandFacts.of(setting, paths), config, (0,), 1, Ranks(0, 2))
    options = InventoryOptions(setting="one_store_lost", scenarios=4, dev_scenarios=4, device="cpu")
    with pytest.raises(ConfigError, match="8 processes cannot share 4 demand paths"):
        inventory._build(HDPOConfig(policy="constant_order"), options, options.load(), Ranks(0, 8))


def test_shares_are_all_rows_once_and_one_process_is_alone(monkeypatch):
    rows = torch.arange(14).view(2, 7)
    assert torch.equal(torch.cat([Ranks(k, 3).share(rows) for k in range(3)], 1), rows)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher
    with joined() as ranks:
        assert ranks is ALONE
    assert ranks.most(3) == 3
    assert ranks.sum([rows])[0] is rows


def test_every_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    assert Ranks(3, 4, local=1).device("cuda") == "cuda:1"
    assert Ranks(3, 4, local=1).device("cpu") == "cpu"
    assert Ranks().device("cuda") == "cuda"
    with pytest.raises(ConfigError, match="2 GPUs cannot serve process 3 of this machine"):
        Ranks(2, 4, local=2).device("cuda")
