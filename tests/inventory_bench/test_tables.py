"""Tables and verdicts from made-up raw numbers."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from offrl.inventory_bench import html
from offrl.inventory_bench.bench import Bench
from offrl.inventory_bench.plan import published
from offrl.inventory_bench.tables import markdown, sample_lines, samples, tables

CELLS = published()
VERSIONS = {"versions": {"commit": "0", "torch": "2", "cpu": "c"}}


def raw(excess):
    """Raw files of the sample study: policy, paths -> excess over a cost of 10."""
    found = {}
    for name, spec in CELLS.items():
        if name.startswith("sample-"):
            run = spec["run"]
            cost = 10 * (1 + excess(spec["config"]["policy"], run["first_paths"][0], run["seeds"][0] % 2))
            found[name] = {"cell": spec, "cost": cost, "cost_se": 0.01, "train_cpu_seconds": 3.0, **VERSIONS}
            if run["setting"].startswith("trans"):
                found[name] |= {"reference": 10.0, "gap": cost / 10 - 1, "gap_se": 0.001}
    return found


def small_samples_hurt(policy, paths, seed):
    return (0.01 if policy == "gnn" else 0.1 if paths < 100 else 0.005) + 0.001 * seed


def test_the_curves_are_the_excess_over_bound_or_best():
    lines = sample_lines(raw(small_samples_hurt))
    bound = lines["transshipment_backlogged"]["mlp_network"]
    assert bound[0] == (4, pytest.approx([10.0, 10.1]))
    assert bound[-1] == (8192, pytest.approx([0.5, 0.6]))
    best = lines["one_warehouse_lost_demand"]["mlp_network"]
    assert best[-1] == (8192, pytest.approx([0.0, 0.1], abs=0.01))
    assert [n for n, _ in best] == [4, 16, 256, 8192]


def test_the_verdict_names_where_the_graph_net_wins():
    verdict = samples(CELLS, raw(small_samples_hurt)).verdict
    assert verdict.count("The graph net is the better one at n = 4, 16 (of n = 4, 16, 256, 8192).") == 2
    assert "gnn 1.05 % (n=4)" in verdict
    never = samples(CELLS, raw(lambda policy, n, seed: 0.2 if policy == "gnn" else 0.1)).verdict
    assert "The graph net is the better one nowhere" in never


def test_a_study_that_has_begun_has_a_page():
    found = dict(list(raw(small_samples_hurt).items())[:3])
    assert "sample-" not in markdown(tables(CELLS, found), [], {})
    assert html.page(tables(CELLS, found), found, {}, []).count("paths 4:") > 0


def test_the_transfer_says_its_first_and_last_gap():
    name = "transfer-transshipment_backlogged-gnn-S3"
    sizes = [
        {"stores": s, "cost": 5.0, "cost_se": 0.01, "reference": 4.9, "gap": g, "gap_se": 0.001}
        for s, g in ((3, 0.01), (50, 0.25))
    ]
    found = {name: {"cell": CELLS[name], "sizes": sizes, **VERSIONS}}
    page = markdown(tables(CELLS, found), [], {"Size transfer": ["x.svg"]})
    assert "+1.00 % of the bound at 3 stores, +25.00 % at 50, without retraining" in page
    assert "![Size transfer](x.svg)" in page
    assert len(html.transfer_charts(found)) == 1


def test_figures_stand_beside_the_page_that_shows_them(tmp_path):
    bench = Bench(CELLS, tmp_path, tmp_path / "runs", "command")
    bench.raw.mkdir(parents=True)
    for name, record in raw(small_samples_hurt).items():
        (bench.raw / f"{name}.json").write_text(json.dumps(record))
    written = {path.name for path in bench.write()}
    shown = re.findall(r"\]\(([\w-]+\.svg)\)", (tmp_path / "inventory.md").read_text())
    assert (
        set(shown)
        == {"inventory-samples.svg", "inventory-samples-2.svg"}
        == written - {"inventory.md", "inventory.html"}
    )
    for name in shown:
        assert ET.parse(tmp_path / name).getroot().tag.endswith("svg")
