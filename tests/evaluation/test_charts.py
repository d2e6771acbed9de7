import xml.etree.ElementTree as ET

import numpy as np
import pytest

from offrl.errors import ConfigError
from offrl.evaluation.charts import (
    Chart,
    Frame,
    Interval,
    Series,
    interval_chart,
    learning_curves,
    metric_chart,
    thinned,
    wants_log,
)
from offrl.evaluation.groups import Curve, group_runs
from offrl.evaluation.report import save_curves
from offrl.evaluation.runs import read_run
from offrl.evaluation.svg import STYLES, Scale, marker, number, swatch, tag, ticks

SVG = "{http://www.w3.org/2000/svg}"


def elements(markup, kind, name):
    """Elements ``kind`` whose class list holds ``name``."""
    return [e for e in ET.fromstring(markup).iter(SVG + kind) if name in e.get("class", "").split()]


def polyline(element):
    return np.array([[float(v) for v in pair.split(",")] for pair in element.get("points").split()])


def axis(markup, name):
    """A function pixel -> value, from the positions and texts of an axis's tick labels alone."""
    labels = elements(markup, "text", name)
    pixels = [float(e.get("x" if name == "x" else "y")) - (0 if name == "x" else 4) for e in labels]
    values = [float(e.text.replace("k", "e3")) for e in labels]
    slope, offset = np.polyfit(pixels, values, 1)
    return lambda pixel: slope * pixel + offset


def test_a_line_says_what_the_data_say(make_run):
    """The points of the mean, read back through the tick labels, are the scores 10, 30, 50, 40."""
    (task,) = group_runs([read_run(make_run())])
    markup = learning_curves(task).svg("c")
    (line,) = elements(markup, "polyline", "mean")
    xy = polyline(line)
    np.testing.assert_allclose(axis(markup, "x")(xy[:, 0]), [250, 500, 750, 1000], atol=1.0)
    np.testing.assert_allclose(axis(markup, "y")(xy[:, 1]), [10, 30, 50, 40], atol=0.1)
    assert (np.diff(xy[:, 0]) > 0).all()  # later is to the right, more is up
    assert xy[2, 1] < xy[0, 1]
    assert (xy > 0).all()
    assert (xy < [560, 340]).all()
    (data,) = elements(markup, "line", "data")[:1]
    assert axis(markup, "y")(float(data.get("y1"))) == pytest.approx(20.0, abs=0.1)


def test_the_band_is_the_interval_and_thin_lines_are_the_seeds(make_run):
    runs = [make_run("a"), make_run("b", (40.0, 60.0, 80.0, 100.0), seed=1, finished=True)]
    (task,) = group_runs([read_run(run) for run in runs])
    markup = learning_curves(task).svg("c")
    y = axis(markup, "y")
    (band,) = elements(markup, "polygon", "band")
    np.testing.assert_allclose(y(polyline(band)[:, 1]), [20, 30, 50, 50, 40, 40, 30, 10], atol=0.1)
    seeds = elements(markup, "polyline", "seed")
    np.testing.assert_allclose(y(polyline(seeds[1])[:, 1]), [20, 30, 40, 50], atol=0.1)
    assert seeds[1].find(SVG + "title").text == "td3_bc, seed 1"


def test_an_unfinished_run_is_dotted_and_named_so(make_run):
    (task,) = group_runs([read_run(make_run(finished=False))])
    markup = learning_curves(task).svg("c")
    (line,) = elements(markup, "polyline", "unfinished")
    assert line.find(SVG + "title").text == "td3_bc, seed 0, unfinished"
    assert "td3_bc (unfinished)" in [e.text for e in elements(markup, "text", "name")]


def test_a_single_evaluation_is_a_point(make_run):
    (task,) = group_runs([read_run(make_run("a", (50.0,))), read_run(make_run("b", (70.0,), seed=1))])
    markup = learning_curves(task).svg("c")
    assert len(elements(markup, "circle", "seed")) == 2
    assert len(elements(markup, "circle", "mark")) == 2  # the mean, and its sample in the legend


def test_tooltips_and_description_tell_the_last_value(make_run):
    (task,) = group_runs([read_run(make_run())])
    markup = learning_curves(task).svg("c")
    assert ET.fromstring(markup).find(SVG + "desc").text == "td3_bc: step 1000: 40"
    assert "td3_bc, step 750: 50" in [e.text for e in ET.fromstring(markup).iter(SVG + "title")]


def test_names_are_escaped_and_ids_are_distinct():
    curve = Curve(np.array([1, 2]), np.array([0.0, 1.0]))
    chart = Chart("<b> & 'co'", "score", [Series("a<b", 0, curve, [("<s>", curve, True)])])
    root = ET.fromstring(chart.svg("one"))
    assert root.find(SVG + "title").text == "<b> & 'co'"
    assert root.get("aria-labelledby") == "one-t one-d"


def test_a_wide_metric_gets_a_logarithmic_axis():
    """From a factor of 100 on, and never with values at or below 0; decades are then equally far apart."""
    assert not wants_log([Curve(np.arange(2), np.array([1000.0, 100.0]))])
    assert wants_log([Curve(np.arange(2), np.array([1000.0, 10.0]))])
    assert not wants_log([Curve(np.arange(2), np.array([1000.0, 0.0]))])
    chart = Chart(
        "loss", "", [Series("a", 0, Curve(np.array([1, 2, 3]), np.array([1e3, 1e2, 1e1])))], log=True
    )
    ys = polyline(elements(chart.svg("c"), "polyline", "mean")[0])[:, 1]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)


def test_metrics_are_drawn_for_the_groups_that_report_them(make_run):
    (task,) = group_runs([read_run(make_run("a")), read_run(make_run("b", algorithm="bc"))])
    chart = metric_chart(task, "critic_loss")
    assert [s.label for s in chart.series] == ["bc", "td3_bc"]
    assert metric_chart(task, "value_loss") is None


def test_long_curves_are_thinned_without_changing_their_mean():
    n, bins = 1000, 200
    curve = Curve(np.arange(1, n + 1), np.random.default_rng(0).normal(size=n))
    thin = thinned(curve, bins)
    assert len(thin.steps) == bins
    assert thin.values.mean() == pytest.approx(curve.values.mean())
    assert (thin.steps[0], thin.steps[-1]) == (5, 1000)
    uneven = thinned(Curve(np.arange(7), np.arange(7.0)), 3)
    assert uneven.values.tolist() == [0.5, 2.5, 5.0]
    assert uneven.steps.tolist() == [1, 3, 6]


def test_intervals_lie_where_their_numbers_say():
    rows = [Interval("a", 0, 10.0, 20.0, 40.0), Interval("b", 1, 30.0, 50.0, 60.0)]
    markup = interval_chart(rows, 25.0, "title")
    bars = elements(markup, "line", "mean")
    level = float(elements(markup, "line", "data")[0].get("x1"))
    a, b = ([float(bar.get("x1")), float(bar.get("x2"))] for bar in bars)
    per_unit = (a[1] - a[0]) / 30
    assert b[0] - a[0] == pytest.approx(20 * per_unit, abs=0.2)
    assert b[1] - b[0] == pytest.approx(30 * per_unit, abs=0.2)
    assert level - a[0] == pytest.approx(15 * per_unit, abs=0.2)


def test_curves_are_saved_as_one_standalone_file(make_run, tmp_path):
    runs = [read_run(make_run("a")), read_run(make_run("b", dataset_name="other", seed=2))]
    runs.append(read_run(make_run("c", dataset_name="never evaluated", evaluated=False)))
    path = tmp_path / "curves.svg"
    save_curves(runs, path)
    root = ET.fromstring(path.read_text())
    assert len(list(root.iter(SVG + "desc"))) == 2
    assert root.find(SVG + "style") is not None
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids)) == 4


def test_there_is_no_file_of_curves_without_an_evaluation(make_run, tmp_path):
    with pytest.raises(ConfigError, match="no run was evaluated"):
        save_curves([read_run(make_run(evaluated=False))], tmp_path / "curves.svg")
    assert not (tmp_path / "curves.svg").exists()


def test_long_labels_are_cut_and_wrapped_inside_the_frame():
    curve, frame = Curve(np.array([1]), np.array([0.0])), Frame()
    names = ["x" * 200, "second label of some length", "third label of some length"]
    markup = Chart("t", "u", [Series(n, i, curve) for i, n in enumerate(names)], 1.0).svg("c")
    labels = elements(markup, "text", "name")
    for label in labels:
        assert float(label.get("x")) + 7 * len(label.text) <= frame.width
    assert labels[0].text.endswith(" ...")
    assert len({label.get("y") for label in labels}) == 3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (-0.3, 0.31, [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
        (1e6, 3.1e6, [1e6, 1.5e6, 2e6, 2.5e6, 3e6]),
        (7.0, 7.004, [7.0, 7.001, 7.002, 7.003, 7.004]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(Scale(low, high, 0, 1), 5) == pytest.approx(expected)


def test_logarithmic_ticks_are_decades():
    assert ticks(Scale(0.05, 2000.0, 0, 1, log=True), 6) == pytest.approx([0.1, 1, 10, 100, 1000])
    assert ticks(Scale(0.9, 1.1e8, 0, 1, log=True), 4) == pytest.approx([1, 1e3, 1e6])


def test_flat_and_empty_curves_have_a_scale():
    flat = Chart("t", "u", [Series("a", 0, Curve(np.array([5]), np.array([0.0])))]).svg("c")
    empty = Chart("t", "u", []).svg("c")
    assert "nan" not in flat + empty


def test_numbers_for_readers():
    shown = [number(v) for v in (0.0, -2.5, 1 / 3, 1234.5, 9999.0, 10_000.0, 12_345.0, 1e6, 2.5e6, 0.00012)]
    assert shown == ["0", "-2.5", "0.3333", "1234", "9999", "10k", "12.35k", "1M", "2.5M", "0.00012"]


def test_the_first_twelve_groups_look_different():
    looks = {swatch(style) for style in range(12)}
    assert len(looks) == 12
    shapes = {marker(style, 0.0, 0.0).replace(f"s{style}", "") for style in range(STYLES)}
    assert len(shapes) == STYLES


def test_tags_escape_and_name_their_attributes():
    got = tag("a", "in", class_="x", stroke_width=1.25, title='"<&', missing=None)
    assert got == '<a class="x" stroke-width="1.2" title="&quot;&lt;&amp;">in</a>'
