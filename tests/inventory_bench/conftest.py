"""A small benchmark, measured in this process."""

from pathlib import Path

import pytest

from offrl.inventory_bench import bench, measure
from offrl.training import inventory


@pytest.fixture(autouse=True)
def _small_tests(monkeypatch):
    monkeypatch.setattr(inventory, "QUICK", (32, 40))


def run_here(cells, logs, *, jobs, deadline, stop, note):
    """Stands for ``run_cells``: the same commands without processes."""
    for cell in cells:
        if not cell.done:
            assert cell.command[1:3] == ("-m", "offrl.inventory_bench.measure")
            measure.main([cell.command[3]])
            assert cell.done, cell.name
            note(cell.name)
    return []


@pytest.fixture
def in_process(monkeypatch):
    """Cells run in this process; the names that ran are in what the command says."""
    monkeypatch.setattr(bench, "run_cells", run_here)


@pytest.fixture(scope="session")
def small_bench(tmp_path_factory):
    """Two settings, two policies, a few updates: the folder, and what was said."""
    from offrl.cli import main

    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "QUICK", (32, 40))
        patch.setattr(bench, "run_cells", run_here)
        words = ["one_store_lost:lead_time=2,underage_cost=4", "one_warehouse_lost_demand:stores=3"]
        options = ["--policies", "base_stock", "data_driven", "--steps", "4", "--out", str(out)]
        assert main(["inventory", "bench", *words, *options]) == 0
    return Path(out)
