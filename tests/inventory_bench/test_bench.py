"""The small benchmark end to end, its pages, what goes on and what is refused."""

import json
import os
import re
import signal
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from offrl.cli import main
from offrl.envs.inventory.yaml_file import EXAMPLE
from offrl.errors import ConfigError, Stopped
from offrl.inventory_bench.bench import Bench
from offrl.inventory_bench.plan import grid_cells, published

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks nesting; collects charts by their label and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.labels, self.ids, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        known = dict(attrs)
        self.labels += [known["aria-label"]] if "aria-label" in known else []
        self.ids += [known["id"]] if "id" in known else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html(small_bench):
    return (small_bench / "inventory.html").read_text()


def test_the_page_loads_nothing(html):
    assert (
        re.search(r"https?://|url\(|@import|<script|<img", html.replace("http://www.w3.org/2000/svg", ""))
        is None
    )
    assert "default-src 'none'" in html


def test_the_page_parses_and_holds_every_drawing(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert sum(label.startswith("Order by units") for label in page.labels) == 2  # lost sales, two policies
    assert sum(label.startswith("The network") for label in page.labels) == 4
    assert sum(label.startswith("Cost by part") for label in page.labels) == 2  # settings
    text = " ".join(page.text)
    assert text.count("One demand path") == 4
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)


def test_every_cell_is_a_row_with_its_gap(small_bench):
    page = (small_bench / "inventory.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| one_")]
    assert len(rows) == 4
    for row in rows[:2]:
        assert "optimum by dynamic programming" in row
        assert float(row[6]) > 0  # gap %, of four updates
    for row in rows[2:]:
        assert "unknown" in row
    facts = json.loads(next((small_bench / "raw/inventory").glob("*lost-lead*base_stock*")).read_text())
    assert facts["gap"] == pytest.approx((facts["cost"] - facts["reference"]) / facts["reference"], abs=0.2)
    assert f"{facts['cost']:.4f}" in rows[0]
    assert rows[0][7] == f"{100 * facts['gap_se']:.3f}"
    assert facts["reference"] == pytest.approx(4.3953, abs=1e-3)
    assert facts["train_cpu_seconds"] > 0


def small(out, settings=("one_store_backlogged",), **options):
    options = {"policies": ["base_stock"], "steps": 2, "seeds": (0, 1)} | options
    cells = dict(grid_cells(settings, options.pop("policies"), **options))
    return Bench(cells, out, out / "runs", "command")


def test_seeds_share_a_process_and_finished_cells_are_not_run_again(tmp_path, in_process):
    bench, said = small(tmp_path), []
    assert bench.run(list(bench.cells), jobs=1, deadline=None, say=said.append) == []
    assert said == ["grid-one_store_backlogged-base_stock-s0+s1"]
    first = bench.found()
    assert [r["cell"]["run"]["seeds"] for r in first.values()] == [[0], [1]]
    assert bench.run(list(bench.cells), jobs=1, deadline=None, say=said.append) == []
    assert len(said) == 1
    assert bench.expected(list(bench.cells)) == {}


def test_seeds_of_a_stack_are_those_of_single_runs(tmp_path, in_process):
    stack = small(tmp_path / "a", ("one_store_lost:lead_time=1",), policies=["mlp_one_store"], seeds=(0, 5))
    alone = small(tmp_path / "b", ("one_store_lost:lead_time=1",), policies=["mlp_one_store"], seeds=(5,))
    for bench in (stack, alone):
        bench.run(list(bench.cells), jobs=1, deadline=None, say=lambda line: None)
    (name,) = alone.cells
    zero = stack.found()[name.replace("s5", "s0")]
    assert stack.found()[name]["cost"] == pytest.approx(alone.found()[name]["cost"], rel=1e-5)
    assert zero["cost"] != stack.found()[name]["cost"]


def test_cells_of_other_numbers_of_paths_share_a_process(tmp_path, in_process):
    """Each is what it is alone."""
    config = {"policy": "base_stock", "batch_size": 8, "lr": 1.0, "patience": 0}
    run = {
        "setting": "one_store_backlogged",
        "scenarios": 64,
        "dev_scenarios": 16,
        "test_scenarios": 20,
        "steps": 6,
    }
    cells = {}
    for seed, paths in enumerate((4, 64)):
        own = {**run, "first_paths": (paths,), "seeds": (seed,), "eval_every": 3, "log_every": 3}
        cells[f"sample-n{paths}-s{seed}"] = {"kind": "gap", "config": config, "run": own}
    together = Bench(cells, tmp_path / "t", tmp_path / "t", "c")
    assert together.stacks(list(cells)) == [list(cells)]
    assert not together.run(list(cells), jobs=1, deadline=None, say=print)
    for path in (tmp_path / "t").glob("*/*/*/seed*/config.json"):
        assert json.loads(path.read_text())["inventory"]["first_paths"] == [4, 64]
    for name, spec in cells.items():
        alone = Bench({name: spec}, tmp_path / name, tmp_path / name, "c")
        alone.run([name], jobs=1, deadline=None, say=print)
        one, two = (bench.found()[name] for bench in (together, alone))
        assert one["scenarios"] == 20
        assert one["cost"] == pytest.approx(two["cost"], rel=1e-5)
    costs = [record["cost"] for record in together.found().values()]
    assert costs[0] != costs[1]


def test_one_test_path_has_no_error_and_the_table_a_dash(tmp_path, in_process):
    run = {
        "setting": "one_store_backlogged",
        "scenarios": 8,
        "dev_scenarios": 4,
        "test_scenarios": 1,
        "steps": 1,
    }
    run |= {"eval_every": 1, "log_every": 1}
    config = {"policy": "base_stock", "batch_size": 8, "patience": 0}
    cells = {
        "grid-trained": {"kind": "gap", "config": config, "run": run},
        "grid-untrained": {"kind": "untrained", "policy": "just_in_time", "run": run},
    }
    bench = Bench(cells, tmp_path, tmp_path / "runs", "c")
    assert bench.run(list(cells), jobs=1, deadline=None, say=print) == []
    for facts in bench.found().values():
        assert facts["scenarios"] == 1
        assert facts["cost_se"] is facts["gap_se"] is None
    rows = [row.split(" | ") for row in (tmp_path / "inventory.md").read_text().splitlines() if " | " in row]
    assert [(row[5], row[7]) for row in rows[1:]] == [("-", "-"), ("-", "-")]
    assert "nan" not in (tmp_path / "inventory.html").read_text()


def test_a_view_that_is_missing_is_made_from_the_run(tmp_path, in_process):
    bench = small(tmp_path, seeds=(0,))
    bench.run(list(bench.cells), jobs=1, deadline=None, say=lambda line: None)
    (name,) = bench.cells
    path = bench.raw / "views" / f"{name}.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert bench.views()[name] == before


def test_a_signal_stops_the_cells_and_writes_what_there_is(tmp_path, monkeypatch):
    def stopped(cells, logs, *, jobs, deadline, stop, note):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()

    monkeypatch.setattr("offrl.inventory_bench.bench.run_cells", stopped)
    bench = small(tmp_path)
    with pytest.raises(Stopped, match="2 cells to go") as caught:
        bench.run(list(bench.cells), jobs=1, deadline=None, say=lambda line: None)
    assert caught.value.exit_code == 143
    assert (tmp_path / "inventory.md").exists()


def test_a_folder_of_other_options_is_refused(tmp_path, in_process):
    bench = small(tmp_path, seeds=(0,))
    bench.run(list(bench.cells), jobs=1, deadline=None, say=lambda line: None)
    bench.check()
    with pytest.raises(ConfigError, match="other options"):
        small(tmp_path, seeds=(0,), steps=3).check()
    with pytest.raises(ConfigError, match="other options"):
        Bench(bench.cells, tmp_path, tmp_path / "runs", "command", "paper").check()


def test_numbers_of_a_file_that_has_changed_are_refused(tmp_path, in_process):
    """They would stand on the page as those of the network that the file holds now."""
    file, out = tmp_path / "net.yaml", tmp_path / "bench"
    file.write_text(
        EXAMPLE
        + "protocol: {train: {scenarios: 8}, dev: {scenarios: 4}, test: {scenarios: 4, periods: 20}}\n"
    )
    bench = small(out, (str(file),), seeds=(0,))
    bench.run(list(bench.cells), jobs=1, deadline=None, say=lambda line: None)
    small(out, (str(file),), seeds=(0,)).check()
    file.write_text(file.read_text().replace("underage_cost: 9.0", "underage_cost: 4.0"))
    with pytest.raises(ConfigError, match="other options"):
        small(out, (str(file),), seeds=(0,)).check()


def test_what_it_costs_is_said_before(tmp_path, capsys):
    words = ["one_store_backlogged", "--policies", "base_stock", "just_in_time", "--seeds", "0", "1"]
    assert main(["inventory", "bench", *words, "--dry-run", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == [
        "grid-one_store_backlogged-base_stock-s0", "grid-one_store_backlogged-just_in_time",
    ]  # fmt: skip
    assert "core-min expected in all" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_more_updates_and_seeds_cost_more(tmp_path):
    def cost(**options):
        bench = small(tmp_path, **options)
        return sum(bench.expected(list(bench.cells)).values()) - 5.0

    few, many = cost(steps=100, seeds=(0,)), cost(steps=100_000, seeds=(0,))
    assert many > 20 * few


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one_stor_lost"], "did you mean 'one_store_lost"),
        (["one_store_lost", "--policies", "gnm"], "unknown policy 'gnm'; did you mean 'gnn'"),
        (["one_store_lost", "--jobs", "0"], "jobs must be 1 or more"),
        (["one_store_lost", "--seeds", "0", "0"], "seeds must be different"),
        (["one_store_lost", "--deadline", "-1"], "deadline above 0"),
        (["one_store_lost", "--protocol", "slow"], "protocol"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path):
    assert main(["inventory", "bench", *words, "--out", str(tmp_path)]) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_published_page_is_made_of_what_is_there(tmp_path):
    bench = Bench(published(), tmp_path, tmp_path / "runs", "command")
    bench.raw.mkdir(parents=True)
    files = bench.write()
    page = files[0].read_text()
    assert "| lost-L4-p39 | mlp_one_store |" in page
    Page(files[1].read_text())


@pytest.mark.parametrize("more", [[], ["--paths", "1"]])
def test_eval_writes_the_page_of_one_policy(tmp_path, capsys, more):
    out = tmp_path / "one.html"
    words = [
        "base_stock",
        "--setting",
        "one_store_lost",
        "--set",
        "lead_time=2",
        "--with",
        "levels=19",
        *more,
    ]
    assert main(["inventory", "eval", *words, "--report", str(out)]) == 0
    said = capsys.readouterr().out
    assert "nan" not in said
    assert said.count("+- - ") == (2 if more else 0)
    cost = re.search(r"cost ([\d.]+)", said)[1]
    page = Page(out.read_text())
    assert cost in page.text
    assert {"Cost by part"} <= set(page.labels)
    assert "nan" not in " ".join(page.text)
    assert any(label.startswith("Order by units") for label in page.labels)
