"""OGBench's layout, labels, names and held-out data, on small files in the public layout."""

import importlib.machinery
import importlib.util
import sys
import types

import gymnasium
import numpy as np
import pytest

from offrl.data import ogbench
from offrl.data.download import add, data_home, installed_ogbench, local_path
from offrl.data.environments import environment_for, find_environment
from offrl.data.load import load_dataset
from offrl.data.reference import (
    OGBENCH,
    normalized_score,
    ogbench_name,
    reference_label,
    reference_returns,
    scored_values,
)
from offrl.errors import ConfigError, DatasetError, MissingExtraError

NAME = "pointmaze-medium-navigate-singletask-v0"
LENGTHS = (4, 3, 5)  # visited states of each trajectory, so 3 + 2 + 4 transitions


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRL_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("OFFRL_DATA_MIRROR", "http://127.0.0.1:9")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def raw(obs_dim=2, act_dim=2, lengths=LENGTHS):
    """A public file's arrays: state k of trajectory t is 100 t + k, its action -(100 t + k) / 1000."""
    number = np.concatenate([100 * t + np.arange(n) for t, n in enumerate(lengths)]).astype("f4")
    terminals = np.concatenate([np.arange(n) == n - 1 for n in lengths])
    return {
        "observations": np.repeat(number[:, None], obs_dim, axis=1),
        "actions": np.repeat(-number[:, None] / 1000, act_dim, axis=1),
        "terminals": terminals,
        "qpos": np.repeat(number[:, None].astype(float), obs_dim, axis=1),
        "qvel": np.zeros((len(number), obs_dim)),
    }


def labelled(goals=(1, 2, 101), **kwargs):
    """As ``raw``, with the labels of a task whose goal is met at the numbered states."""
    arrays = raw(**kwargs)
    met = np.isin(arrays["observations"][:, 0], goals).astype("f4")
    return arrays | {"rewards": met - 1, "masks": 1 - met}


def write(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


# --- layout ---------------------------------------------------------------------------------------------


def test_the_last_state_of_a_trajectory_is_a_successor_and_no_transition(tmp_path):
    data = load_dataset(write(tmp_path / "x.npz", labelled()))
    assert data.fields["observations"][:, 0].tolist() == [0, 1, 2, 100, 101, 200, 201, 202, 203]
    assert data.fields["next_observations"][:, 0].tolist() == [1, 2, 3, 101, 102, 201, 202, 203, 204]
    np.testing.assert_allclose(data.fields["actions"][:, 0], -data.fields["observations"][:, 0] / 1000)
    assert data.fields["infos.trajectory"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert data.metadata["rows_default"] == "exact"


def test_no_transition_leads_from_one_trajectory_into_another(tmp_path):
    """Whatever the lengths, also of single states, a step goes from k to k + 1 of the same hundred."""
    for lengths in ((2, 2, 2), (1, 4, 1, 1, 3), (9,), (3, 1)):
        data = load_dataset(write(tmp_path / "x.npz", labelled(lengths=lengths)))
        rows = data.transitions("exact")
        np.testing.assert_array_equal(rows.next_observations, rows.observations + 1)
        assert len(rows) == sum(lengths) - len(lengths)


def test_masks_terminate_and_terminals_only_cut(tmp_path):
    """Mask 0 belongs to the state before the action; the recording goes on after it."""
    data = load_dataset(write(tmp_path / "x.npz", labelled()))
    assert data.fields["terminated"].tolist() == [False, True, True, False, True, *[False] * 4]
    assert data.fields["truncated"].nonzero()[0].tolist() == [2, 4, 8]
    assert data.fields["rewards"].tolist() == [-1, 0, 0, -1, 0, -1, -1, -1, -1]
    rows = data.transitions("exact")
    assert rows.terminated.tolist() == [0, 1, 1, 0, 1, 0, 0, 0, 0]
    assert data.episode_starts.tolist() == [0, 2, 3, 5, 9]  # a trajectory is cut at each terminated step
    bootstrapped = load_dataset(write(tmp_path / "y.npz", labelled(goals=())))
    assert not bootstrapped.fields["terminated"].any()  # terminals alone terminate nothing
    assert bootstrapped.episode_starts.tolist() == [0, 3, 5, 9]
    assert len(bootstrapped.transitions("exact")) == 9


def test_files_with_successors_or_valids_say_the_same(tmp_path):
    """The two forms in which ogbench itself hands a labelled dataset out."""
    plain, arrays = load_dataset(write(tmp_path / "x.npz", labelled())), labelled()
    last = arrays["terminals"]
    kept = np.flatnonzero(~last)
    regular = {key: array[kept] for key, array in arrays.items()}
    regular |= {
        "terminals": last[kept + 1].astype("f4"),
        "next_observations": arrays["observations"][kept + 1],
    }
    compact = arrays | {"valids": 1.0 - last, "terminals": np.minimum(last + np.append(last[1:], 1.0), 1.0)}
    for form in (regular, compact):
        data = load_dataset(write(tmp_path / "y.npz", form))
        assert data.sha256 == plain.sha256
        np.testing.assert_array_equal(data.fields["infos.trajectory"], plain.fields["infos.trajectory"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"terminals": None}, "lacks terminals; with 'masks' it is read in OGBench's layout"),
        ({"rewards": None}, "lacks rewards; with 'masks'"),
        ({"masks": np.full(12, 0.5)}, "'masks' is 0.5 at row 0; it must be 0 or 1"),
        ({"masks": np.ones(11)}, "'masks' has 11 rows, 'terminals' has 12"),
        ({"terminals": np.zeros(12)}, "its last row does not end a trajectory .*cut short"),
        ({"terminals": np.ones(12)}, "holds no transition"),
        ({"terminals": np.full(12, 2)}, "'terminals' is 2 at row 0"),
        ({"valids": np.arange(12) != 5}, "'valids' is 0 at row 5, where 'terminals' ends no trajectory"),
        ({"observations": np.full((12, 2), np.nan)}, "'observations' is not finite .*at row 0"),
        ({"observations": np.zeros((0, 2)), "terminals": np.zeros(0)}, "rows, 'terminals' has 0"),
        ({"actions": np.zeros((12, 2), int)}, "'actions' are integers"),
        ({"actions": np.array(["a"] * 12)}, "'actions' holds <U1 values"),
    ],
)
def test_a_malformed_file_gives_one_line_that_names_it(tmp_path, change, line):
    arrays = {key: array for key, array in (labelled() | change).items() if array is not None}
    with pytest.raises(DatasetError, match=line) as caught:
        load_dataset(write(tmp_path / "x.npz", arrays))
    assert str(tmp_path / "x.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_public_file_without_a_name_has_no_rewards_and_is_not_taken_for_d4rls_layout(tmp_path):
    with pytest.raises(DatasetError, match="x.npz lacks rewards"):
        load_dataset(write(tmp_path / "x.npz", raw()))


# --- labels ---------------------------------------------------------------------------------------------


class Goal(gymnasium.Env):
    """Stands in for an environment of ogbench, whose reset draws from NumPy's global generator."""

    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, goal=0.0):
        self.goal = goal

    def reset(self, **_):
        np.random.uniform()  # noqa: NPY002
        return np.zeros(2, np.float32), {}


@pytest.fixture
def package(monkeypatch):
    """A package 'ogbench' with two tasks: the default is met at state 1, task 2 at state 202."""
    seen = []

    def relabel_dataset(env_id, env, rows):
        env.reset()
        seen.append((env_id, rows["qpos"][:, 0].tolist()))
        met = (rows["qpos"][:, 0] == env.unwrapped.goal).astype("f4")
        rows["rewards"], rows["masks"] = met - 1, 1 - met

    for name, content in (("ogbench", {}), ("ogbench.relabel_utils", {"relabel_dataset": relabel_dataset})):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    kept = dict(gymnasium.registry)
    for task, goal in (("", 1.0), ("-task2", 202.0)):
        env_id = f"pointmaze-medium-singletask{task}-v0"
        gymnasium.registry.pop(env_id, None)
        gymnasium.register(env_id, Goal, kwargs={"goal": goal})
    yield seen
    gymnasium.registry.clear()
    gymnasium.registry.update(kept)


def test_one_public_file_serves_every_task_and_the_held_out_file_is_another(home, package):
    write(home / "pointmaze-medium-navigate-v0.npz", raw())
    write(home / "pointmaze-medium-navigate-v0-val.npz", raw(lengths=(3, 2)))
    first = load_dataset(f"ogbench:{NAME}")
    assert first.fields["observations"][first.fields["terminated"], 0].tolist() == [1]
    second = load_dataset("ogbench:pointmaze-medium-navigate-singletask-task2-v0")
    assert second.fields["observations"][second.fields["terminated"], 0].tolist() == [202]
    held_out = load_dataset(f"ogbench:{NAME}-val")
    assert held_out.fields["observations"][:, 0].tolist() == [0, 1, 100]
    assert held_out.metadata["name"] == f"{NAME}-val"
    assert [env_id for env_id, _ in package] == [
        "pointmaze-medium-singletask-v0",
        "pointmaze-medium-singletask-task2-v0",
        "pointmaze-medium-singletask-v0",
    ]
    assert package[0][1] == [0, 1, 2, 100, 101, 200, 201, 202, 203]  # qpos of the transitions' own rows
    assert installed_ogbench() == [NAME, f"{NAME}-val"]


def test_a_name_brings_environment_score_and_row_rule(home, package):
    write(home / "pointmaze-medium-navigate-v0.npz", raw())
    data = load_dataset(f"ogbench:{NAME}")
    assert data.metadata["env_id"] == "pointmaze-medium-singletask-v0"
    assert data.metadata["max_episode_steps"] == 1000
    assert data.metadata["rows_default"] == "exact"
    assert data.reference_returns == (0.0, 1.0)
    assert sorted(data.fields) == [  # simulator states are not kept
        "actions",
        "infos.trajectory",
        "next_observations",
        "observations",
        "rewards",
        "terminated",
        "truncated",
    ]


def test_labels_in_a_public_file_are_not_believed_and_global_randomness_is_untouched(home, package):
    """A file under the shared name does not say of which task its labels are."""
    write(home / "pointmaze-medium-navigate-v0.npz", labelled(goals=(0, 1, 2, 3)))
    np.random.seed(3)  # noqa: NPY002
    wanted = np.random.uniform()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    data = load_dataset(f"ogbench:{NAME}")
    assert np.random.uniform() == wanted  # noqa: NPY002
    assert data.fields["terminated"].sum() == 1


def test_states_that_do_not_fit_the_task_are_one_line(home, package):
    arrays = raw()
    del arrays["qpos"]
    write(home / "pointmaze-medium-navigate-v0.npz", arrays)
    with pytest.raises(DatasetError, match=r"cannot be labelled for pointmaze-medium-singletask-v0.*qpos"):
        load_dataset(f"ogbench:{NAME}")


def test_without_the_package_the_extra_is_named_before_anything_is_fetched(home, monkeypatch):
    monkeypatch.setattr(ogbench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offrl\[ogbench\]'"):
        load_dataset(f"ogbench:{NAME}")


def test_an_added_file_with_labels_is_kept_for_its_task_and_needs_no_package(tmp_path, home, monkeypatch):
    monkeypatch.setattr(ogbench.importlib.util, "find_spec", lambda name: None)
    task = "ogbench:pointmaze-medium-navigate-singletask-task3-v0"
    path = add(write(tmp_path / "mine.npz", labelled(goals=(101,))), task)
    assert path == home / "pointmaze-medium-navigate-singletask-task3-v0.npz" == local_path(task)
    data = load_dataset(task)
    assert data.fields["observations"][data.fields["terminated"], 0].tolist() == [101]
    assert data.metadata["env_id"] == "pointmaze-medium-singletask-task3-v0"
    assert installed_ogbench() == [task.removeprefix("ogbench:")]
    shared = add(write(tmp_path / "public.npz", raw()), f"ogbench:{NAME}")
    assert shared == home / "pointmaze-medium-navigate-v0.npz" == local_path(f"ogbench:{NAME}")
    assert (home / "pointmaze-medium-navigate-v0.npz.sha256").is_file()


def test_a_file_of_another_environment_or_layout_is_not_added(tmp_path):
    with pytest.raises(DatasetError, match=r"observations of shape \(12, 3\), .* has \(N, 2\); wrong file"):
        add(write(tmp_path / "x.npz", raw(obs_dim=3)), f"ogbench:{NAME}")
    with pytest.raises(DatasetError, match="lacks terminals; an OGBench file holds"):
        add(
            write(tmp_path / "x.npz", {"observations": np.zeros((3, 2)), "actions": np.zeros((3, 2))}),
            f"ogbench:{NAME}",
        )
    (tmp_path / "x.npz").write_bytes(b"no zip at all")
    with pytest.raises(DatasetError, match="not a readable .npz file"):
        add(tmp_path / "x.npz", f"ogbench:{NAME}")
    assert list(data_home().iterdir()) == []


# --- names ----------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_benchmark():
    """8 + 11 + 6 + 4 of locomotion, 8 + 2 + 8 of manipulation: the 85 without 35 visual and 3 of Powderworld."""
    assert len(OGBENCH) == len(set(OGBENCH)) == 29 + 18
    assert {"scene-play", "cube-single-noisy", "puzzle-4x6-play", "antmaze-teleport-explore"} < set(OGBENCH)
    assert not {"antmaze-giant-explore", "humanoidmaze-teleport-navigate"} & set(OGBENCH)
    for data in OGBENCH:
        for task in ("", "-task1", "-task5"):
            for val in ("", "-val"):
                parts = ogbench_name(f"ogbench:{data}-singletask{task}-v0{val}")
                assert (parts.data, parts.task, parts.val, parts.file) == (data, task, val, f"{data}-v0{val}")
                spec = environment_for(f"{data}-singletask{task}-v0{val}")
                assert spec.env_id == f"{data.rpartition('-')[0]}-singletask{task}-v0"
                assert spec.obs_dim
                assert spec.horizon


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "antmaze-large-navigate-v0",
            "has no rewards: name a task of it, ogbench:antmaze-large-navigate-singletask-v0",
        ),
        (
            "antmaze-larg-navigate-singletask-v0",
            "did you mean 'ogbench:antmaze-large-navigate-singletask-v0'",
        ),
        (
            "antmaze-large-navigate-singletask-task6-v0",
            "did you mean 'ogbench:antmaze-large-navigate-singletask-v0'",
        ),
        ("antmaze-large-navigate-singletask-v1", "unknown OGBench dataset"),
        ("visual-cube-single-play-singletask-v0", "has images as observations"),
        ("powderworld-easy-play-v0", "unknown OGBench dataset"),
        ("../pointmaze-medium-navigate-singletask-v0", "unknown OGBench dataset"),
        ("", "unknown OGBench dataset 'ogbench:'"),
    ],
)
def test_other_names_are_refused_in_one_line(name, line):
    with pytest.raises(DatasetError, match=line) as caught:
        load_dataset(f"ogbench:{name}")
    assert "\n" not in str(caught.value)
    assert find_environment(f"ogbench:{name}") is None


def test_scores_are_success_rates_not_scaled_returns():
    """Three episodes that take 10, 20 and for ever: returns -10, -20, -1000, score 200 / 3."""
    name = f"ogbench:{NAME}"
    assert (reference_returns(name), reference_label(name)) == ((0.0, 1.0), "success rate")
    returns, successes = np.array([-10.0, -20.0, -1000.0]), np.array([True, True, False])
    env_id = environment_for(name).env_id
    values = scored_values(env_id, returns, successes)
    assert normalized_score(name, values).mean() == pytest.approx(200 / 3)
    assert scored_values("Hopper-v5", returns, successes) is returns
    assert scored_values(None, returns, None) is returns
    with pytest.raises(ConfigError, match="success rates, but no successes were recorded"):
        scored_values(env_id, returns, None)


# --- the package itself ----------------------------------------------------------------------------------

ENVIRONMENTS = {data.rpartition("-")[0]: data for data in OGBENCH}


@pytest.mark.parametrize("data", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_environment_is_as_the_table_states(data):
    from offrl.evaluation.environments import make_env

    spec = environment_for(f"{data}-singletask-v0")
    env = make_env(spec)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (spec.obs_dim,)
    assert env.action_space.shape == (spec.act_dim,)
    assert env.spec.max_episode_steps == spec.horizon
    assert spec.goal_rule.startswith(f"task {env.unwrapped.cur_task_id} (the default)")
    assert "success" in env.step(np.zeros(spec.act_dim, np.float32))[4]
    env.close()


@pytest.mark.parametrize("data", ["pointmaze-medium-navigate", "cube-single-play", "puzzle-3x3-play"])
def test_labels_are_what_the_environment_pays(data, home):
    """A recording in the public layout, made in the task: rewards and terminations come back."""
    from offrl.evaluation.environments import make_env

    env = make_env(environment_for(f"{data}-singletask-v0"))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    base, rows, paid, met = env.unwrapped, [], [], []
    names = ["qpos", "qvel"] + (["button_states"] if "puzzle" in data else [])
    for k in range(40):
        if "maze" in data and k == 30:
            base.set_xy(base.cur_goal_xy)
            observation = base.get_ob()
        action = env.action_space.sample()
        after, reward, terminated, _, info = env.step(action)
        before = {n: info[f"prev_{n}"].copy() for n in names}
        rows.append({"observations": observation, "actions": action, **before})
        paid.append(reward)
        met.append(terminated)
        observation = after
    final = {n: info[n].copy() for n in names}
    rows.append({"observations": observation, "actions": action, **final})
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    arrays["observations"] = arrays["observations"].astype("f4")
    write(home / f"{data}-v0.npz", arrays | {"terminals": np.arange(41) == 40})
    labels = load_dataset(f"ogbench:{data}-singletask-v0").fields
    np.testing.assert_array_equal(labels["rewards"], paid)
    np.testing.assert_array_equal(labels["terminated"], met)
    assert any(met) == ("maze" in data)
    env.close()


def test_a_maze_episode_depends_on_its_seed_alone():
    from offrl.evaluation.environments import make_env

    env = make_env(environment_for("pointmaze-teleport-navigate-singletask-v0"))
    seen = []
    for noise in (0, 1):
        np.random.seed(noise)  # noqa: NPY002
        env.action_space.seed(5)
        seen.append(env.reset(seed=5)[0])
    np.testing.assert_array_equal(*seen)
    env.close()


def test_a_random_policy_is_played_and_fails_in_every_episode():
    """The whole way: two episodes of a cube task that random actions do not solve, twice the same."""
    from offrl.evaluation.rollout import Evaluator
    from offrl.evaluation.sources import load_source

    spec = environment_for("cube-single-play-singletask-v0")
    with Evaluator(spec) as play:
        first, second = (play(load_source("random", spec), 2, max_steps=30) for _ in range(2))
    assert first.successes.tolist() == [False, False]
    assert first.returns.tolist() == [-30.0, -30.0]  # -1 a step
    np.testing.assert_array_equal(first.returns, second.returns)
    assert normalized_score((0.0, 1.0), first.scored).tolist() == [0.0, 0.0]
