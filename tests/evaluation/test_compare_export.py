"""Methods against each other, and runs as files for a paper."""

import csv
import itertools
import re

import numpy as np
import pytest

from offrl.cli import main
from offrl.errors import ConfigError
from offrl.evaluation.aggregate import improvement_interval, probability_of_improvement
from offrl.evaluation.compare import improvement, improvement_rows
from offrl.evaluation.export import COLUMNS, export_runs
from offrl.evaluation.groups import group_runs
from offrl.evaluation.runs import read_run


@pytest.fixture
def records(make_run):
    """Two methods with three and two seeds on one dataset, one of them with one seed on another."""
    runs = [make_run(f"a{s}", means=(20.0, 60.0 + 10 * s), seed=s) for s in range(3)]
    runs += [make_run(f"b{s}", means=(10.0, 70.0 + 10 * s), seed=s, algorithm="iql") for s in range(2)]
    runs += [make_run("c", means=(5.0, 1.0), seed=0, dataset_name="other_50%", dataset_sha256="9" * 64)]
    return [read_run(folder) for folder in runs]


def by_hand(x, y):
    tasks = [
        np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(x[:, t], y[:, t])])
        for t in range(x.shape[1])
    ]
    return np.mean(tasks)


def test_probability_of_improvement_is_rliables():
    """Ties, unequal numbers of runs and several tasks, as the library that the method comes with computes it."""
    from rliable.metrics import probability_of_improvement as reference

    rng = np.random.default_rng(0)
    for runs in ((3, 5), (5, 5), (1, 4)):
        x, y = (rng.integers(0, 6, (n, 4)).astype(float) for n in runs)
        assert probability_of_improvement(x, y) == pytest.approx(reference(x, y))
        assert probability_of_improvement(x, y) == pytest.approx(by_hand(x, y))
        assert probability_of_improvement(y, x) == pytest.approx(1 - by_hand(x, y))


def test_the_iqm_is_rliables():
    from rliable.metrics import aggregate_iqm

    from offrl.evaluation.aggregate import iqm

    rng = np.random.default_rng(1)
    for shape in ((5, 3), (4, 1), (10, 7)):
        scores = rng.normal(size=shape)
        assert float(iqm(scores)) == pytest.approx(aggregate_iqm(scores))


def test_resampled_tables_are_judged_one_by_one():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3, 2)), rng.normal(size=(6, 4, 2))
    want = [by_hand(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(probability_of_improvement(x, y), want)


def test_the_interval_covers_and_narrows():
    """For two equal distributions 1/2 is inside; more runs narrow it; both sides are resampled."""
    rng = np.random.default_rng(3)
    few = improvement_interval(*rng.normal(size=(2, 4, 1)), rng=np.random.default_rng(0))
    many = improvement_interval(*rng.normal(size=(2, 100, 1)), rng=np.random.default_rng(0))
    assert few[0] <= 0.5 <= few[1]
    assert many[0] <= 0.55
    assert many[1] >= 0.45
    assert many[1] - many[0] < few[1] - few[0]
    ladder, step = np.arange(5.0)[:, None], np.array([[2.0]])
    assert improvement_interval(ladder, step, rng=rng)[0] < improvement_interval(ladder, step, rng=rng)[1]
    assert improvement_interval(step, ladder, rng=rng)[0] < improvement_interval(step, ladder, rng=rng)[1]


def test_groups_are_compared_by_their_last_evaluations(records):
    """Last means 60, 70, 80 against 70, 80: of six pairs one is above and two are equal."""
    task = next(task for task in group_runs(records) if len(task.groups) == 2)
    td3, iql = sorted(task.groups, key=lambda g: g.label, reverse=True)
    chance, interval = improvement(td3, iql)
    assert chance == pytest.approx((1 + 0.5 * 2) / 6)
    assert interval is not None
    assert 0 <= interval[0] <= chance <= interval[1] <= 1
    head, rows = improvement_rows(task)
    assert len(rows) == 2
    assert len(head) == 3
    assert any("0.33" in cell for row in rows for cell in row)
    assert any("0.67" in cell for row in rows for cell in row)


def test_one_group_is_compared_with_nothing(records):
    task = next(task for task in group_runs(records) if len(task.groups) == 1)
    assert improvement_rows(task) == ([], [])


def test_scores_are_a_row_a_run(records, tmp_path):
    export_runs(records, tmp_path / "scores.csv", last_k=2)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6
    one = next(r for r in rows if r["algorithm"] == "iql" and r["seed"] == "1")
    reference = records[0].config["reference_returns"]
    low, high = reference
    assert float(one["last_return"]) == 80.0
    assert float(one["last"]) == pytest.approx(100 * (80 - low) / (high - low))
    assert float(one["mean_of_last_k"]) == pytest.approx(100 * (45 - low) / (high - low))
    assert (one["k"], one["episodes"], one["finished"]) == ("2", "3", "True")


def test_the_table_has_a_row_a_dataset_and_escapes_names(records, tmp_path):
    export_runs(records, tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    low, high = records[0].config["reference_returns"]
    mean, std = 100 * (70 - low) / (high - low), 100 * 10 / (high - low)
    assert f"${mean:.1f} \\pm {std:.1f}$" in text
    assert r"other\_50\%" in text
    assert r"td3\_bc" in text
    row = next(line for line in text.splitlines() if line.startswith("other"))
    assert row.count("&") == 2
    assert "--" in row
    assert text.count(r"\begin{tabular}{lrr}") == 1


def test_the_figures_are_a_page_a_dataset_and_the_same_bytes(records, tmp_path):
    for name in ("one.pdf", "two.pdf"):
        export_runs(records, tmp_path / name)
    one = (tmp_path / "one.pdf").read_bytes()
    assert one.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", one)) == 2
    assert one == (tmp_path / "two.pdf").read_bytes()


def test_another_suffix_is_refused(records, tmp_path):
    with pytest.raises(ConfigError, match=r"\.csv, \.tex, \.pdf"):
        export_runs(records, tmp_path / "table.docx")


def test_the_command_exports_and_the_page_compares(records, tmp_path, capsys):
    folders = [str(record.directory) for record in records]
    out = [str(tmp_path / name) for name in ("scores.csv", "table.tex")]
    assert main(["report", *folders, "--out", str(tmp_path / "r.html"), "--export", *out]) == 0
    assert "scores.csv" in capsys.readouterr().out
    assert "P(row ends above column)" in (tmp_path / "r.html").read_text()
    assert main(["report", *folders, "--out", str(tmp_path / "r.html"), "--export", "x.docx"]) == 2
    assert "an export ends in" in capsys.readouterr().err
