"""Drawings say what the numbers say."""

import re
import xml.etree.ElementTree as ET

import pytest

from offrl.inventory_bench.drawings import lines_chart, network_chart, order_map, path_charts, split_chart

SVG = "{http://www.w3.org/2000/svg}"
VIEW = {
    "nodes": [{"name": "hub", "kind": "warehouse"}, {"name": "a", "kind": "store"}, {"name": "b <&", "kind": "store"}],
    "edges": [{"source": "hub", "target": "a"}, {"source": "hub", "target": "b <&"}, {"source": "outside", "target": "hub"}],
    "flows": [2.0, 6.0, 8.0], "demands": [2.0, 6.0], "first": 10,
    "on_hand": [[8.0, 7.0], [1.0, 2.0], [3.0, 4.0]], "orders": [[2.0, 1.0], [6.0, 5.0], [8.0, 6.0]],
    "demand": [[2.0, 3.0], [6.0, 5.0]],
}  # fmt: skip
MAP = {
    "on_hand": [0, 1, 2], "next": [0, 1], "later": [], "equal": 0.5, "mean_difference": 0.5,
    "policy": [[4.0, 3.0, 0.0], [3.0, 2.0, 0.0]], "optimal": [[4.0, 2.0, 0.0], [3.0, 3.0, 0.0]],
}  # fmt: skip


def found(markup, kind, name):
    return [e for e in ET.fromstring(markup).iter(SVG + kind) if name in e.get("class", "").split()]


def told(element):
    return element.find(SVG + "title").text


def test_lanes_are_as_wide_as_their_flows_and_nodes_stand_by_level():
    markup = network_chart(VIEW)
    lanes = {told(e).split(":")[0]: e for e in found(markup, "path", "lane")}
    widths = {name: float(e.get("stroke-width")) - 0.6 for name, e in lanes.items()}
    assert widths["hub to b <&"] == pytest.approx(3 * widths["hub to a"], abs=0.05)
    assert widths["outside to hub"] == pytest.approx(9.0, abs=0.02)
    assert widths["a to customers"] == pytest.approx(widths["hub to a"], abs=0.01)
    x = {told(e): float(e.get("cx")) for e in found(markup, "circle", "node")}
    assert x["outside"] < x["hub"] < x["a"] == x["b <&"]
    y = [float(e.get("cy")) for e in found(markup, "circle", "node")]
    assert len(set(zip(x.values(), y, strict=True))) == 4  # no two in one place


def test_a_lane_over_two_levels_does_not_move_its_target_back():
    edges = [*VIEW["edges"], {"source": "outside", "target": "a"}]
    markup = network_chart({**VIEW, "edges": edges, "flows": [2.0, 6.0, 8.0, 1.0]})
    x = {told(e): float(e.get("cx")) for e in found(markup, "circle", "node")}
    assert x["a"] == x["b <&"]


def test_bars_add_up_and_earnings_point_left():
    rows = [("plain", {"holding": 2.0, "underage": 1.0, "ordering": 0.0}), ("shop", {"holding": 1.0, "underage": -3.0, "ordering": 0.5})]  # fmt: skip
    bars = {told(e).split(":")[0]: e for e in found(split_chart(rows, "t"), "rect", "cell") if len(e)}
    x = {name: (float(e.get("x")), float(e.get("width"))) for name, e in bars.items()}
    assert x["plain, holding"][1] == pytest.approx(2 * x["plain, underage"][1], abs=0.2)
    assert x["plain, underage"][0] == pytest.approx(sum(x["plain, holding"]), abs=0.2)  # stacked
    assert sum(x["shop, underage"]) == pytest.approx(x["plain, holding"][0], abs=0.2)  # ends at zero
    assert x["shop, underage"][1] == pytest.approx(3 * x["shop, holding"][1], abs=0.2)


def test_cells_of_the_map_are_where_and_as_strong_as_the_orders():
    panels = list(ET.fromstring(order_map(MAP, "m")).iter(SVG + "g"))
    assert len(panels) == 3
    policy = {told(e): e for e in panels[0].iter(SVG + "path")}
    assert set(policy) == {"2", "3", "4"}  # nothing is drawn where nothing is ordered
    assert policy["3"].get("d").count("M") == 2
    assert float(policy["4"].get("fill-opacity")) == pytest.approx(1.0)
    assert float(policy["2"].get("fill-opacity")) == pytest.approx(0.5)
    corner = re.match(r"M(\d+) (\d+)", policy["4"].get("d"))
    others = re.findall(r"M(\d+) (\d+)", policy["3"].get("d"))
    assert all(
        int(x) >= int(corner[1]) and int(y) <= int(corner[2]) for x, y in others
    )  # origin at the lower left
    away = {told(e): e.get("class") for e in panels[2].iter(SVG + "path")}
    assert away == {"1": "cell f0", "-1": "cell f1"}


def test_a_path_has_a_line_for_each_thing_and_demand_at_stores_only():
    charts = re.findall(r"<svg(?:(?!swatch).)*?</svg>", path_charts(VIEW, "p"), re.DOTALL)
    charts = [c for c in charts if "<desc" in c]
    assert len(charts) == 3
    lines = [len(found(c, "polyline", "mean")) for c in charts]
    assert lines == [2, 3, 3]
    assert "ordered: step 1: 6" in ET.fromstring(charts[0]).find(SVG + "desc").text


def test_counts_are_on_a_logarithmic_axis_with_the_spread_of_seeds():
    lines = {"gnn": [(4, [2.0, 4.0]), (16, [1.0, 1.0]), (64, [0.5, 0.7])]}
    markup = lines_chart("s", "%", "paths", "paths", lines, "n")
    (line,) = found(markup, "polyline", "mean")
    x = [float(pair.split(",")[0]) for pair in line.get("points").split()]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert len(found(markup, "polygon", "band")) == 1
    assert [e.text for e in found(markup, "text", "x")] == ["4", "16", "64"]
    assert any("paths 4: 3 (2 .. 4)" in told(e) for e in found(markup, "circle", "mark"))


def test_values_that_span_much_are_on_a_logarithmic_axis_if_every_seed_is_positive():
    def ticks(lowest):
        markup = lines_chart("s", "%", "paths", "paths", {"a": [(4, [100.0, 90.0]), (8, [lowest, 2.0])]}, "n")
        return [e.text for e in found(markup, "text", "y")]

    assert ticks(1.0) == ["1", "10", "100"]
    assert "0" in ticks(-0.5)  # the mean is positive, a seed is not
