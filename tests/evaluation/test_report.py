import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from offrl.cli import main
from offrl.errors import ConfigError
from offrl.evaluation.report import MAX_VIDEO_BYTES, render_report, write_report
from offrl.evaluation.runs import read_run

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that every element is closed where it should be; collects tables, texts and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tables, self.texts, self.attributes, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if any(tag in ("td", "th") for tag in self.open) and "title" not in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, first_cell, index=0):
        """Rows of the table whose head begins with ``first_cell``, as {row name: {column: cell}}."""
        head, *rows = [t for t in self.tables if t[0][0] == first_cell][index]
        return {
            row[0].strip(): dict(zip(head[1:], (c.strip() for c in row[1:]), strict=True)) for row in rows
        }


def report(*folders, **options):
    html = render_report([read_run(folder) for folder in folders], **options)
    return Page(html), html


def three_seeds(make_run, **config):
    """Scores of the evaluations (half the returns): 10 30 50 40, 20 30 40 50, 15 25 35 60."""
    means = [(20.0, 60.0, 100.0, 80.0), (40.0, 60.0, 80.0, 100.0), (30.0, 50.0, 70.0, 120.0)]
    name = config.get("algorithm", "td3_bc")
    return [make_run(f"{name}-{i}", m, seed=i, **config) for i, m in enumerate(means)]


def test_the_results_table_by_hand(make_run):
    """last: 40, 50, 60: mean 50, sample std 10; IQM of three is their mean; best: 50, 50, 60.

    Mean of the last 2: 45, 45, 47.5: mean 45.8, std 1.4.
    """
    page, _ = report(*three_seeds(make_run), last_k=2)
    results = page.table("method")
    assert results["td3_bc"] == {
        "seeds": "3",
        "last": "50.0 \u00b1 10.0",
        "mean of last 2": "45.8 \u00b1 1.4",
        "IQM of last, 95 % interval": "50.0 [40.0, 60.0]",
        "best *": "53.3 \u00b1 5.8",
    }
    assert results["mean of the data"]["last"] == "20.0"
    assert any(
        "best is chosen with online episodes: it is not an offline result" in text for text in page.texts
    )


def test_final_policies_are_compared_with_the_data(make_run):
    """Final returns m - 10, m, m + 10 over (0, 200): three values have their range as bootstrap interval."""
    folders = [
        make_run("a", (20.0, 80.0)),
        make_run("b", (40.0,), seed=1),
        make_run("c", (25.0,), seed=2),
    ]
    page, _ = report(*folders)
    head, *rows = next(table for table in page.tables if "against the data" in table[0])
    assert head[:4] == ["method", "seed", "episodes", "return"]
    assert [row[1:] for row in rows] == [
        ["0", "3", "80.0", "40.0", "[35.0, 45.0]", "above"],
        ["1", "3", "40.0", "20.0", "[15.0, 25.0]", "not separable"],
        ["2", "3", "25.0", "12.5", "[7.5, 17.5]", "below"],
    ]


def test_the_page_is_well_formed_and_loads_nothing(make_run):
    page, html = report(*three_seeds(make_run), make_run("other", algorithm="<script>alert(1)</script>"))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {tag for tag, _, _ in page.attributes} & {"script", "iframe", "img", "object"} == set()
    for tag, name, value in page.attributes:
        assert name not in ("src", "href") or value.startswith("data:"), (tag, name, value)
        assert not name.startswith("on")
    remaining = html.replace("http://www.w3.org/2000/svg", "")
    assert re.search(r"https?://|url\(|@import", remaining) is None
    assert "<script" not in html


def test_the_title_says_what_ran(make_run):
    folders = [
        *three_seeds(make_run),
        *three_seeds(make_run, algorithm="prdc"),
        make_run("x", finished=False),
    ]
    page, html = report(*folders)
    assert "<title>prdc and td3_bc on toy - offrl report</title>" in html
    assert any(text.startswith("7 runs, 6 finished. Written by offrl ") for text in page.texts)


def test_the_same_runs_give_the_same_bytes_in_any_order(make_run):
    folders = three_seeds(make_run)
    assert report(*folders)[1] == report(*folders[::-1])[1]


def test_unfinished_runs_are_marked_and_left_out(make_run):
    page, _ = report(*three_seeds(make_run), make_run("going", (200.0,), seed=9, finished=False))
    assert page.table("method")["td3_bc"]["last"] == "50.0 \u00b1 10.0"
    text = "".join(page.texts)
    assert "td3_bc on toy: 1 unfinished run left out of the means." in text
    assert "td3_bc seed 9 is unfinished: step 1000 of 1000. Go on with offrl resume " in text


def test_an_unfinished_run_of_ones_own_model_has_no_command(make_run):
    run = make_run("going", (200.0,), finished=False)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"own_model": True}))
    text = "".join(report(run)[0].texts)
    assert "is unfinished: step 1000 of 1000." in text
    assert "offrl resume" not in text


def test_a_single_unfinished_run_is_a_report_too(make_run):
    page, _ = report(make_run(finished=False, steps=4000))
    row = page.table("method")["td3_bc"]
    assert (row["last"], row["IQM of last, 95 % interval"]) == ("40.0", "40.0 one seed: no interval")
    assert row["best *"] == "50.0 at step 750"
    text = "".join(page.texts)
    assert "no run is finished" in text
    assert "only 4 evaluations, fewer than 10" in text
    assert "step 1000 of 4000" in text


def test_runs_without_evaluation_have_metrics_and_speed(make_run):
    page, html = report(
        make_run(evaluated=False, reference_returns=None, env_id=None, dataset_return_mean=None)
    )
    assert page.table("method")["td3_bc"]["last"] == "not evaluated"
    assert "toy: no run was evaluated." in page.texts
    assert "critic_loss" in page.texts
    assert "<h2>Final policies</h2>" not in html


def test_runs_without_reference_are_in_returns(make_run):
    page, _ = report(make_run(reference_returns=None))
    assert page.table("method")["td3_bc"]["last"] == "80.0"
    assert " return" in page.texts


def test_different_horizons_are_different_groups_in_one_chart(make_run):
    page, html = report(make_run("a"), make_run("b", steps=2000, eval_every=500))
    assert list(page.table("method")) == ["td3_bc steps=1000", "td3_bc steps=2000", "mean of the data"]
    assert html.count('id="task0-t"') == 1


def test_repeated_seeds_are_pointed_out(make_run):
    page, _ = report(make_run("a"), make_run("b"))
    assert any("seed 0 occurs twice or more" in text for text in page.texts)
    page, _ = report(*(make_run(f"c{i}", seed=i // 2) for i in range(4)))
    assert any("seeds 0 and 1 occur twice or more" in text for text in page.texts)


def test_the_iqm_over_datasets_takes_all_runs_of_all_datasets(make_run):
    """Lasts 40, 50, 60 and, on the other data, 80, 90, 100: the middle four of six are 50, 60, 80, 90."""
    here = three_seeds(make_run)
    means = [(160.0,), (180.0,), (200.0,)]
    there = [make_run(f"o{i}", m, seed=i, dataset_name="zoo") for i, m in enumerate(means)]
    page, _ = report(*here, *there)
    over = page.table("method", index=2)["td3_bc"]
    assert over["IQM of last, 95 % interval"].startswith("70.0 [")
    assert (over["seeds"], over["mean of last"]) == ("3", "70.0")


def test_the_iqm_over_datasets_needs_equally_many_seeds(make_run):
    page, _ = report(*three_seeds(make_run), make_run("o", dataset_name="zoo"))
    cells = page.table("method", index=2)["td3_bc"]
    assert "needs one group on each dataset" in cells["IQM of last, 95 % interval"]


def test_settings_that_differ_from_the_default_are_marked(make_run):
    defaults = {"td3_bc": {"alpha": 1.0, "discount": 0.99, "hidden": 256}}
    page, _ = report(make_run(), defaults=defaults)
    settings = page.table("td3_bc setting")
    assert settings["alpha"] == {"default": "1", "td3_bc": "2.5 *"}
    assert settings["hidden"] == {"default": "256", "td3_bc": "256"}


def test_defaults_are_not_claimed_for_a_file_of_ones_own(make_run):
    folder = make_run(algorithm_file="/home/me/td3_bc.py")
    page, _ = report(folder, defaults={"td3_bc": {"alpha": 1.0}})
    assert page.table("td3_bc setting")["alpha"] == {"td3_bc": "2.5"}
    assert f"offrl train /home/me/td3_bc.py --config {folder}/config.json" in "".join(page.texts)


def test_speed_versions_and_commands_are_there(make_run):
    page, _ = report(make_run(rate=432.0, timing={"neighbour_query_ms": 1.5}))
    speed = page.table("data")["toy"]
    assert speed["updates/s (median)"] == "432.0"
    assert speed["neighbour_query_ms (median)"] == "1.50"
    assert speed["time in updates"] == "2 s"
    assert page.table("")["cpu"] == {"all runs": "Abacus 1"}
    assert "offrl train td3_bc --dataset builtin:toy" in "".join(page.texts)


def test_steps_of_a_method_in_an_environment_are_not_called_updates(make_run):
    run = make_run(algorithm="ppo", rows="online", num_envs=4, dataset_return_mean=None)
    page, html = report(run)
    assert page.table("data")["toy"]["steps/s (median)"] == "500.0"
    assert ">environment steps</text>" in html
    assert "updates" not in "".join(page.texts)
    assert page.table("option")["num_envs"] == {"ppo": "4"}


def test_one_episode_has_no_interval_and_decides_nothing(make_run):
    run = make_run("a", (80.0,), finished=False)
    np.savez(run / "final_returns.npz", returns=np.array([80.0]), lengths=np.array([10]))
    page, _ = report(run)
    (row,) = [rows[1] for rows in page.tables if "against the data" in rows[0]]
    assert row[1:] == ["0", "1", "80.0", "40.0", "one episode: no interval", ""]


def test_different_versions_stand_side_by_side(make_run):
    a, b = make_run("a"), make_run("b", seed=1)
    (b / "versions.json").write_text('{"offrl": "0.1.0", "torch": "2.14.0"}')
    torch = report(a, b)[0].table("")["torch"]
    assert torch == {"td3_bc seed 0": "2.13.0", "td3_bc seed 1": "2.14.0"}


def succeed(folder, rates):
    """The last evaluation's three episodes succeed or not."""
    lines = (folder / "eval.csv").read_text().splitlines()
    for i, success in zip((-3, -2, -1), rates, strict=True):
        lines[i] += str(success)
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_success_rates_stand_in_the_table_where_the_environment_tells_them(make_run):
    """A third and two thirds of the last episodes: 50 on average, 23.6 apart; a method without is a dash."""
    folders = [succeed(make_run("a"), (1, 0, 0)), succeed(make_run("b", seed=1), (1, 0, 1))]
    page, _ = report(*folders, make_run("c", algorithm="iql"))
    results, column = page.table("method"), "success rate of last, %"
    assert results["td3_bc"][column] == "50.0 \u00b1 23.6"
    assert results["iql"][column] == "-"
    assert results["mean of the data"][column] == ""
    assert column not in report(make_run("d"))[0].table("method")["td3_bc"]


def test_tasks_scored_by_success_say_so(make_run):
    fields = {"env_id": "cube-single-singletask-v0", "reference_returns": [0.0, 1.0]}
    folder = succeed(make_run("a", (20.0,), **fields), (1, 0, 0))
    final = {"returns": np.zeros(3), "lengths": np.full(3, 10), "successes": np.array([1, 0, 0], bool)}
    np.savez(folder / "final_returns.npz", **final)
    page, _ = report(folder)
    assert page.table("method")["td3_bc"]["last"] == "33.3"
    assert " success rate, %" in page.texts
    assert "success rate of last, %" not in page.table("method")["td3_bc"]


def test_runs_that_hold_out_episodes_are_a_group_of_their_own(make_run):
    page, _ = report(make_run("a"), make_run("b", holdout=0.1, seed=1), make_run("c", holdout=0.0, seed=2))
    assert list(page.table("method"))[:2] == ["td3_bc holdout=0", "td3_bc holdout=0.1"]


def test_a_film_is_embedded_if_it_is_small(make_run):
    small, large = make_run("a"), make_run("b", seed=1)
    (small / "video.mp4").write_bytes(b"\x00\x01film")
    with open(large / "video.mp4", "wb") as file:
        file.truncate(MAX_VIDEO_BYTES + 1)
    page, _ = report(small, large)
    assert ("video", "src", "data:video/mp4;base64,AAFmaWxt") in page.attributes
    assert any("seed 1" in text and "is too large for this page" in text for text in page.texts)


def test_writing_replaces_a_report_and_never_leaves_half_of_one(make_run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], path)
    assert path.read_text() == "old"
    write_report([read_run(make_run())], path)
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_the_command_writes_page_and_curves(make_run, tmp_path, capsys):
    folder = make_run(settings={"alpha": 7.5, "hidden": 256})
    out, curves = tmp_path / "r.html", tmp_path / "c.svg"
    assert main(["report", str(folder.parent), "--out", str(out), "--curves", str(curves)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 1 run\nwrote {curves}\n"
    assert Page(out.read_text()).table("td3_bc setting")["alpha"] == {"default": "2.5", "td3_bc": "7.5 *"}
    assert curves.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "--out", "report.txt"], 2, "--out must end in .html, got report.txt"),
        (["RUN", "--curves", "curves.png"], 2, "--curves must end in .svg, got curves.png"),
        (["RUN", "--last-k", "0"], 2, "--last-k must be 1 or more, got 0"),
        ([], 2, "name at least one run directory"),
        (["NOWHERE"], 1, "no such folder"),
        (["EMPTY"], 1, "holds no run"),
        (["BROKEN"], 1, "eval.csv is empty"),
        (["RUN", "--out", "FILE/report.html"], 1, "FILE"),
    ],
)
def test_misuse_is_one_line(make_run, tmp_path, capsys, arguments, code, message):
    (make_run("broken") / "eval.csv").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"RUN": make_run("good"), "BROKEN": tmp_path / "broken", "EMPTY": tmp_path / "empty"}
    places |= {"NOWHERE": tmp_path / "nowhere", "FILE/report.html": tmp_path / "file/report.html"}
    assert main(["report", *(str(places.get(a, a)) for a in arguments)]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message.replace("FILE", str(tmp_path / "file")) in err


def test_a_report_never_runs_the_code_of_a_run(make_run, tmp_path):
    """A run directory from elsewhere may name any file as its algorithm."""
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder = make_run(algorithm="evil", algorithm_file=str(code))
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert not (tmp_path / "ran").exists()


def test_scores_in_the_page_are_those_of_the_episodes(make_run):
    """Normalization is affine, so the mean of scores is the score of the mean: 100 (80 - -20) / 200 = 50."""
    page, _ = report(make_run(reference_returns=[-20.0, 180.0]))
    assert page.table("method")["td3_bc"]["last"] == "50.0"
    assert np.isclose(float(page.table("method")["mean of the data"]["last"]), 30.0)
