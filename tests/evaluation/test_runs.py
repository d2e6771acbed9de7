import json
import zipfile

import numpy as np
import pytest

from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.runs import find_runs, read_run


def test_a_finished_run_is_read_whole(make_run):
    run = read_run(make_run(seed=3))
    assert (run.algorithm, run.dataset, run.seed, run.steps, run.finished) == ("td3_bc", "toy", 3, 1000, True)
    assert [e.step for e in run.evaluations] == [250, 500, 750, 1000]
    assert run.evaluations[1].returns.tolist() == [50.0, 60.0, 70.0]
    assert run.evaluations[1].successes is None
    assert run.metrics.steps.tolist() == list(range(100, 1001, 100))
    np.testing.assert_allclose(run.metrics.columns["critic_loss"], 1000.0 / np.arange(1, 11))
    assert np.isnan(run.metrics.columns["actor_loss"]).tolist() == [False, True] * 5
    assert run.final_returns is not None
    assert run.final_returns.tolist() == [70.0, 80.0, 90.0]
    assert (run.steps_per_second, run.steps_done) == (500.0, 1000)
    assert (run.versions["cpu"], run.command) == ("Abacus 1", "offrl train td3_bc --dataset builtin:toy")
    assert run.score(np.array([0.0, 50.0, 200.0])).tolist() == [0.0, 25.0, 100.0]


def test_successes_are_read_where_the_environment_says(make_run):
    folder = make_run()
    lines = (folder / "eval.csv").read_text().splitlines()
    lines[1:4] = [line + flag for line, flag in zip(lines[1:4], "101", strict=True)]
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    first, second, *_ = read_run(folder).evaluations
    assert first.successes is not None
    assert first.successes.tolist() == [1.0, 0.0, 1.0]
    assert second.successes is None


def test_a_run_without_environment_has_no_evaluations(make_run):
    run = read_run(make_run(evaluated=False, reference_returns=None))
    assert (run.evaluations, run.final_returns, run.finished) == ((), None, True)
    with pytest.raises(ConfigError, match="no reference returns"):
        run.score(np.ones(1))


def test_an_unfinished_run_is_read_as_far_as_it_got(make_run):
    """A line without its end and an evaluation without all its episodes are still being written."""
    folder = make_run(finished=False)
    text = (folder / "eval.csv").read_text()
    (folder / "eval.csv").write_text(text[: text.rindex("1000,2")] + "1000,2,9")
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[:-6])
    run = read_run(folder)
    assert [e.step for e in run.evaluations] == [250, 500, 750]
    assert run.metrics.steps.tolist() == list(range(100, 1000, 100))
    assert run.final_returns is None


@pytest.mark.parametrize(
    ("final", "known"), [(5, [250, 500, 750]), (3, [250, 500, 750, 1000]), (0, [250, 500, 750, 1000])]
)
def test_a_last_evaluation_that_was_cut_off_does_not_count(make_run, final, known):
    """Its rows are those of --final-episodes: of five, three were written when the run was killed."""
    run = read_run(make_run(finished=False, final_episodes=final))
    assert [e.step for e in run.evaluations] == known


def test_a_run_just_started_is_read(make_run):
    folder = make_run(finished=False)
    for name in ("eval.csv", "metrics.csv", "timing.csv"):
        header = (folder / name).read_text().splitlines()[0]
        (folder / name).write_text(header + "\n")
    run = read_run(folder)
    assert (run.evaluations, run.steps_done, run.steps_per_second) == ((), 0, None)


def test_a_run_that_has_not_begun_is_an_unfinished_one(make_run):
    """Seeds in processes of their own wait for a core; their folders are there from the beginning."""
    folder = make_run(finished=False)
    for name in ("eval.csv", "metrics.csv", "timing.csv"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.evaluations, run.steps_done, run.steps_per_second, run.finished) == ((), 0, None, False)
    (folder / "metrics.csv").write_text("step,critic_loss\n")
    with pytest.raises(CheckpointError, match="has no eval.csv: it lost a file"):
        read_run(folder)


def test_versions_and_command_may_be_missing(make_run):
    folder = make_run()
    (folder / "versions.json").unlink()
    (folder / "command.txt").unlink()
    run = read_run(folder)
    assert (run.versions, run.command) == ({}, "")


def test_the_rate_of_a_run_is_a_median(make_run):
    """A pause of the machine makes one row slow; the first row holds the warm-up."""
    folder = make_run()
    text = (folder / "timing.csv").read_text().replace("500.0", "9.0", 1)
    (folder / "timing.csv").write_text(text[: text.rindex("500.0")] + "9000.0\n")
    assert read_run(folder).steps_per_second == 500.0


def edit_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def overwrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def in_table(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def final(**arrays):
    return lambda folder: np.savez(folder / "final_returns.npz", **arrays)


def truncate_final(folder):
    path = folder / "final_returns.npz"
    path.write_bytes(path.read_bytes()[:-40])


def a_huge_array_in_a_small_file(folder):
    np.savez_compressed(folder / "final_returns.npz", returns=np.zeros(2**21 + 1))


def claim_a_huge_array(folder):
    with (
        zipfile.ZipFile(folder / "final_returns.npz", "w") as archive,
        archive.open("returns.npy", "w") as member,
    ):
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
        np.lib.format.write_array_header_1_0(member, header)


DAMAGE = {
    "empty table": (overwrite("eval.csv", b""), "eval.csv is empty, without even a header"),
    "missing table": (lambda folder: (folder / "metrics.csv").unlink(), "has no metrics.csv"),
    "binary table": (overwrite("timing.csv", b"\xff\xfe\x00step"), "timing.csv is not a CSV file"),
    "missing column": (in_table("eval.csv", "return", "reward"), "eval.csv has no column 'return'"),
    "column twice": (in_table("metrics.csv", "actor_loss", "critic_loss"), "names a column twice"),
    "a word": (in_table("metrics.csv", "500.0", "fast"), "metrics.csv line 3: could not convert"),
    "short row": (
        in_table("timing.csv", "200,0.4,500.0", "200,0.4"),
        "timing.csv line 3 has 2 cells, the header has 3",
    ),
    "steps backwards": (
        in_table("metrics.csv", "\n300,", "\n100,"),
        "metrics.csv line 4: 'step' must be a whole",
    ),
    "half a step": (in_table("metrics.csv", "\n300,", "\n300.5,"), "metrics.csv line 4: 'step'"),
    "no step": (in_table("metrics.csv", "\n300,", "\n,"), "metrics.csv line 4: 'step'"),
    "infinite step": (in_table("metrics.csv", "\n1000,", "\ninf,"), "metrics.csv line 11: 'step'"),
    "infinite return": (
        in_table("eval.csv", "50.0", "inf"),
        "eval.csv line 5: 'return' is not a finite number",
    ),
    "no return": (in_table("eval.csv", "500,0,50.0", "500,0,"), "eval.csv line 5: 'return' is not a finite"),
    "episode twice": (
        in_table("eval.csv", "500,1,", "500,0,"),
        "episodes of step 500 must be numbered 0, 1, 2",
    ),
    "config not JSON": (overwrite("config.json", b"{"), "config.json is not valid JSON"),
    "config of another program": (overwrite("config.json", b'{"model": "x"}'), "does not describe a run"),
    "future format": (edit_config(format=2), "has format 2, this version reads 1; upgrade"),
    "seed is text": (edit_config(seed="0"), "'seed' is '0', not int"),
    "steps is bool": (edit_config(steps=True), "'steps' is True"),
    "references equal": (edit_config(reference_returns=[1.0, 1.0]), "'reference_returns' is"),
    "data mean is text": (edit_config(dataset_return_mean="high"), "'dataset_return_mean' is 'high'"),
    "final not numbers": (final(returns=np.array(["a"])), "'returns' must be finite numbers"),
    "final pickled": (
        final(returns=np.array([{}], dtype=object)),
        "final_returns.npz is damaged: Object arrays",
    ),
    "final nan": (final(returns=np.array([np.nan])), "'returns' must be finite"),
    "final misses returns": (final(lengths=np.ones(1)), "final_returns.npz is damaged"),
    "final cut": (truncate_final, "final_returns.npz is damaged"),
    "final is huge": (a_huge_array_in_a_small_file, "final_returns.npz is damaged: it is too large"),
    "final claims a huge array": (claim_a_huge_array, "final_returns.npz is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused_with_one_line_that_names_the_file(make_run, damage, message):
    folder = make_run()
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        read_run(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_are_found_below_a_folder_once_each(make_run, tmp_path):
    a, b = make_run("runs/td3_bc/toy/seed0"), make_run("runs/td3_bc/toy/seed1")
    (tmp_path / "runs/td3_bc/notes").mkdir()
    assert find_runs([tmp_path / "runs"]) == [a, b]
    assert find_runs([b, tmp_path / "runs/td3_bc", a]) == [b, a]
    assert find_runs([a, tmp_path / "runs/../runs/td3_bc/toy/seed0"]) == [a]


def test_a_cell_of_a_sweep_that_failed_before_its_run_is_passed_over(make_run, tmp_path):
    run = make_run("sweep/runs/good/bc/toy/seed0")
    failed = tmp_path / "sweep/runs/failed"
    failed.mkdir()
    with pytest.raises(CheckpointError, match="failed holds no run"):
        find_runs([failed, tmp_path / "sweep/runs/good"])
    (failed / "cell.json").write_text("{}")
    assert find_runs([failed, tmp_path / "sweep/runs/good"]) == [run]
    assert find_runs([tmp_path / "sweep"]) == [run]
    with pytest.raises(CheckpointError, match="failed holds no run"):
        find_runs([failed])


def test_models_beside_runs_are_passed_over(make_run, tmp_path):
    run = make_run("out/td3_bc/toy/seed0")
    model = tmp_path / "out/exported"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    assert find_runs([tmp_path / "out"]) == [run]
    (model / "config.json").write_text("{damaged")
    assert find_runs([tmp_path / "out"]) == [model]  # its reader says what is wrong


def test_folders_without_runs_are_refused(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*/nowhere"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        read_run(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no run: there is no config\.json"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="is a file; name a run directory"):
        find_runs([make_run() / "config.json"])
