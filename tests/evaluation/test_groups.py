import numpy as np
import pytest

from offrl.evaluation.groups import Curve, group_runs, mean_curve
from offrl.evaluation.runs import read_run


def tasks_of(*folders):
    return group_runs([read_run(folder) for folder in folders])


def test_seeds_of_the_same_settings_are_one_group(make_run):
    (task,) = tasks_of(make_run("b", seed=1), make_run("a", seed=0))
    (group,) = task.groups
    assert (task.name, task.unit, group.label) == ("toy", "normalized score", "td3_bc")
    assert [run.seed for run in group.runs] == [0, 1]


def test_the_order_of_the_arguments_does_not_matter(make_run):
    folders = [
        make_run(f"r{i}", seed=i % 2, algorithm=name) for i, name in enumerate(("iql", "bc", "iql", "bc"))
    ]
    shapes = [
        [(g.label, [r.directory for r in g.runs]) for g in tasks_of(*order)[0].groups]
        for order in (folders, folders[::-1])
    ]
    assert shapes[0] == shapes[1]


def test_what_sets_groups_apart_is_in_their_labels(make_run):
    settings = {"alpha": 2.5, "discount": 0.99, "hidden": 256}
    (task,) = tasks_of(
        make_run("a"),
        make_run("b", settings=settings | {"alpha": 5.0}),
        make_run("c", rows="qlearning"),
        make_run("d", steps=2000),
        make_run("e", algorithm="bc"),
    )
    assert {g.label for g in task.groups} == {
        "bc",
        "td3_bc alpha=2.5 rows=exact steps=1000",
        "td3_bc alpha=5 rows=exact steps=1000",
        "td3_bc alpha=2.5 rows=qlearning steps=1000",
        "td3_bc alpha=2.5 rows=exact steps=2000",
    }


def test_runs_with_other_data_mixed_in_are_another_group(make_run):
    """A run alone and one with nine tenths of every batch synthetic are no seeds of one experiment."""
    data = {"uri": "synth.hdf5", "sha256": "cd" * 32, "refresh": 0, "transitions": 0, "sampling_steps": 0}
    drawn = data | {"sha256": "ef" * 32, "refresh": 500, "transitions": 1000, "sampling_steps": 64}
    (task,) = tasks_of(
        make_run("a"),
        make_run("b", seed=1, mix=data | {"share": 0.9, "guidance": 0.0}),
        make_run("c", seed=2, mix=data | {"share": 0.5, "guidance": 0.0}),
        make_run("d", seed=3, mix=drawn | {"share": 0.9, "guidance": 0.0}),
        make_run("e", seed=4, mix=drawn | {"share": 0.9, "guidance": 1.0}),
        make_run("f", seed=5, mix=drawn | {"share": 0.9, "guidance": 1.0}),
    )
    assert [[run.seed for run in group.runs] for group in task.groups] == [[0], [1], [2], [3], [4, 5]]
    labels = [group.label for group in task.groups]
    assert len(set(labels)) == 5
    assert labels[:2] == ["td3_bc", "td3_bc mix=cdcdcdcd share=0.9"]
    assert "guidance=1" in labels[4]


def test_another_precision_is_another_group(make_run):
    (task,) = tasks_of(make_run("a"), make_run("b", seed=1, precision="bf16"))
    assert [group.label for group in task.groups] == ["td3_bc", "td3_bc precision=bf16"]


def test_methods_in_other_environments_side_by_side_are_other_groups(make_run):
    """What a sweep may vary besides the settings: an online run's own options."""
    facts = {
        "algorithm": "ppo",
        "rows": "online",
        "normalize_observations": False,
        "normalize_rewards": False,
    }
    runs = [make_run(f"n{n}", num_envs=n, **facts) for n in (1, 8)]
    runs.append(make_run("normal", num_envs=8, **facts | {"normalize_observations": True}))
    (task,) = tasks_of(*runs)
    assert [group.label for group in task.groups] == [
        "ppo num_envs=1 normalize_observations=False",
        "ppo num_envs=8 normalize_observations=False",
        "ppo num_envs=8 normalize_observations=True",
    ]
    assert task.clock == "environment steps"


def test_language_models_that_were_sampled_or_updated_otherwise_are_other_groups(make_run):
    """Seeds may begin from the same run of other seeds, and be evaluated and cut into passes otherwise."""
    llm = {"model": "/runs/sft/t2/seed0-20260101T000000", "lr": 1e-3, "group": 8, "sampler": "uniform"}
    llm |= {"seed": 0, "eval_prompts": 64, "micro_batch": 0}
    one = {"seed": 1, "eval_prompts": 32, "micro_batch": 8, "model": "/runs/sft/t2/seed1-20260101T000001-1"}
    (task,) = tasks_of(
        make_run("a", llm=llm),
        make_run("b", seed=1, llm=llm | one),
        make_run("c", seed=2, llm=llm | {"sampler": "vas"}),
        make_run("d", seed=3, llm=llm | {"model": "/runs/sft/t3/seed0-20260101T000000"}),
        make_run("e", seed=4, llm=llm | {"model": "tiny:dense"}),
    )
    assert [[run.seed for run in group.runs] for group in task.groups] == [[0, 1], [2], [3], [4]]
    labels = [group.label for group in task.groups]
    assert labels[0] == "td3_bc model=/runs/sft/t2 sampler=uniform"
    assert labels[1] == "td3_bc model=/runs/sft/t2 sampler=vas"
    assert labels[3] == "td3_bc model=tiny:dense sampler=uniform"


def test_an_edited_algorithm_file_is_another_group(make_run):
    (task,) = tasks_of(make_run("a", algorithm_sha256="aa" * 32), make_run("b", algorithm_sha256="bb" * 32))
    assert [g.label for g in task.groups] == ["td3_bc file=aaaaaaaa", "td3_bc file=bbbbbbbb"]


def test_data_of_the_same_name_but_other_content_are_another_task(make_run):
    tasks = tasks_of(make_run("a"), make_run("b", dataset_sha256="cd" * 32))
    assert [t.name for t in tasks] == ["toy (Toy-v0, data abababab)", "toy (Toy-v0, data cdcdcdcd)"]


def test_a_task_is_in_returns_where_no_reference_is_known(make_run):
    (task,) = tasks_of(make_run(reference_returns=None))
    assert (task.unit, task.data_level) == ("return", 40.0)
    assert task.groups[0].last().tolist() == [80.0]


def test_curve_and_numbers_of_a_group_by_hand(make_run):
    """Reference (0, 200) halves returns. Seeds end at 40 and 50; data at 40 / 2 = 20."""
    (task,) = tasks_of(make_run("a"), make_run("b", (40.0, 60.0, 80.0, 100.0), seed=1))
    group, curve = task.groups[0], task.groups[0].curve
    assert task.data_level == 20.0
    assert curve.steps.tolist() == [250, 500, 750, 1000]
    assert curve.values.tolist() == [15.0, 30.0, 45.0, 45.0]
    assert curve.low.tolist() == [10.0, 30.0, 40.0, 40.0]
    assert curve.high.tolist() == [20.0, 30.0, 50.0, 50.0]
    first, second = group.summaries(k=2)
    assert (first.last, first.best, first.best_step, first.mean_of_last) == (40.0, 50.0, 750, 45.0)
    assert (second.last, second.best, second.best_step, second.mean_of_last) == (50.0, 50.0, 1000, 45.0)
    assert group.iqm_of_last() == (45.0, (40.0, 50.0))


def test_one_seed_has_no_interval(make_run):
    (task,) = tasks_of(make_run())
    assert task.groups[0].iqm_of_last() == (40.0, None)
    assert task.groups[0].curve.low is None


def test_unfinished_runs_count_only_where_none_is_finished(make_run):
    done = make_run("a", seed=0)
    going = make_run("b", (0.0, 2.0), seed=1, finished=False)
    (task,) = tasks_of(done, going)
    assert [run.seed for run in task.groups[0].counted] == [0]
    (task,) = tasks_of(going)
    assert [run.seed for run in task.groups[0].counted] == [1]
    assert task.groups[0].last().tolist() == [1.0]


def test_a_repeated_seed_is_noticed(make_run):
    (task,) = tasks_of(make_run("a"), make_run("b"), make_run("c", seed=1))
    assert task.groups[0].repeated_seeds == [0]


def test_metric_curves_leave_out_empty_and_infinite_cells(make_run):
    folder = make_run()
    text = (folder / "metrics.csv").read_text().replace("500.0", "inf")
    (folder / "metrics.csv").write_text(text)
    group = tasks_of(folder)[0].groups[0]
    run = group.runs[0]
    assert group.metric_curve(run, "actor_loss").steps.tolist() == [100, 300, 500, 700, 900]
    assert 200 not in group.metric_curve(run, "critic_loss").steps
    assert group.metric_curve(run, "value_loss") is None


def test_curves_are_averaged_at_their_common_steps():
    """Different horizons and periods: {10, 20, 30} and {20, 30, 40} share 20 and 30."""
    one = Curve(np.array([10, 20, 30]), np.array([0.0, 1.0, 2.0]))
    two = Curve(np.array([20, 30, 40]), np.array([5.0, 8.0, 100.0]))
    mean = mean_curve([one, two])
    assert mean.steps.tolist() == [20, 30]
    assert mean.values.tolist() == [3.0, 5.0]
    assert mean_curve([one, Curve(np.array([7]), np.array([1.0]))]) is None
    assert mean_curve([]) is None


def test_groups_keep_the_rows_of_their_own_runs(make_run):
    (task,) = tasks_of(make_run("a"), make_run("b", algorithm="bc", reference_returns=[0.0, 200.0]))
    assert [g.values(g.runs[0], np.array([20.0])).tolist() for g in task.groups] == [[10.0], [10.0]]
    assert task.groups[0].algorithm == "bc"
    assert len(task.runs) == 2
    assert pytest.approx(task.data_level) == 20.0
