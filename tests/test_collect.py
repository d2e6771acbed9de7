import json

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces

from offrl import cli
from offrl.collect import collect, collect_successes, concatenate
from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.data.load import load_dataset
from offrl.data.write import check_target
from offrl.errors import ConfigError, DatasetError, PolicyError
from offrl.evaluation import pool as pool_module
from offrl.evaluation.blocks import run_block
from offrl.evaluation.environments import env_spec, make_env
from offrl.evaluation.pool import BlockPool
from offrl.nn.policy import DeterministicPolicy, SquashedGaussianPolicy, save_policy
from offrl.nn.random_policy import RandomPolicy

PENDULUM = EnvSpec("Pendulum-v1", horizon=30)
INVERTED = env_spec("InvertedPendulum-v5")


def balance():
    """Falls after some steps, at different times."""
    torch.manual_seed(0)
    policy = SquashedGaussianPolicy(4, 1, (8,), [-3.0], [3.0])
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, 0.5]))
    return policy


class Walk(gymnasium.Env):
    """Position on a line as a dict observation; success at position 3 or more, termination at 5."""

    observation_space = spaces.Dict({"x": spaces.Box(-99, 99, (1,)), "goal": spaces.Box(-99, 99, (1,))})
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return self.observe(), {}

    def step(self, action):
        self.x += float(action[0])
        return self.observe(), self.x, self.x >= 5, False, {"success": self.x >= 3}

    def observe(self):
        return {"x": np.array([self.x]), "goal": np.array([5.0])}


@pytest.fixture
def walk():
    gymnasium.register("Walk-v0", entry_point=Walk, max_episode_steps=8)
    yield EnvSpec("Walk-v0", flatten=("x", "goal"))
    del gymnasium.registry["Walk-v0"]


# --- the rows ---------------------------------------------------------------------------------------------


def test_rows_are_whole_episodes_and_the_last_one_is_cut():
    """75 rows of episodes of 30 steps: 30, 30, 15, each ending truncated."""
    dataset = collect(PENDULUM, DeterministicPolicy(3, 1, (4,), [-2.0], [2.0]), 75)
    assert dataset.episode_starts.tolist() == [0, 30, 60, 75]
    assert np.flatnonzero(dataset.fields["truncated"]).tolist() == [29, 59, 74]
    assert not dataset.fields["terminated"].any()
    assert {name: array.dtype.str for name, array in dataset.fields.items()} == {
        "observations": "<f4",
        "next_observations": "<f4",
        "actions": "<f4",
        "rewards": "<f4",
        "terminated": "|b1",
        "truncated": "|b1",
    }


def test_a_termination_is_not_a_truncation_and_rows_chain():
    dataset = collect(INVERTED, balance(), 200, stochastic=True)
    ends = dataset.episode_starts[1:] - 1
    assert dataset.num_episodes > 5
    assert dataset.fields["terminated"][ends[:-1]].all()
    assert dataset.fields["terminated"].sum() + dataset.fields["truncated"].sum() == dataset.num_episodes
    inside = np.setdiff1d(np.arange(200), ends)
    observations, successors = dataset.fields["observations"], dataset.fields["next_observations"]
    assert np.array_equal(successors[inside], observations[inside + 1])
    assert (successors[ends[:-1]] != observations[ends[:-1] + 1]).any(axis=1).all()


def test_recorded_states_and_actions_replay_to_the_recorded_successors_and_rewards():
    """qpos and qvel are those before the action, and the action is the one that was executed."""
    dataset = collect(INVERTED, balance(), 100, stochastic=True, noise=1.5)
    env = make_env(INVERTED)
    env.reset(seed=0)
    simulator, fields = env.unwrapped, dataset.fields
    assert np.abs(fields["actions"]).max() == 3.0  # noise reached the bound
    for t in range(100):
        simulator.set_state(fields["infos.qpos"][t], fields["infos.qvel"][t])
        observation, reward, terminated, _, _ = simulator.step(fields["actions"][t])
        assert np.allclose(observation, fields["next_observations"][t], atol=1e-5)
        assert reward == fields["rewards"][t]
        assert terminated == fields["terminated"][t]


def test_more_rows_begin_with_the_same_rows():
    short, long = (collect(INVERTED, balance(), n, stochastic=True, seed=2) for n in (40, 130))
    for name, array in short.fields.items():
        assert np.array_equal(array[:39], long.fields[name][:39])
        if name != "truncated":
            assert np.array_equal(array, long.fields[name][:40])


def test_seed_sampling_and_noise_each_change_the_actions():
    base = collect(PENDULUM, policy := SquashedGaussianPolicy(3, 1, (4,), [-2.0], [2.0]), 30)
    for change in ({"seed": 1}, {"stochastic": True}, {"noise": 0.1}):
        assert not np.array_equal(
            collect(PENDULUM, policy, 30, **change).fields["actions"], base.fields["actions"]
        )
    assert np.array_equal(collect(PENDULUM, policy, 30).fields["actions"], base.fields["actions"])


def test_dict_observations_are_recorded_key_by_key_and_success_with_them(walk):
    dataset = collect(walk, RandomPolicy(2, 1, [-2.0], [2.0]), 100, seed=1)
    fields = dataset.fields
    assert {n for n in fields if "observations" in n} == {
        "observations.x",
        "observations.goal",
        "next_observations.x",
        "next_observations.goal",
    }
    assert np.array_equal(fields["infos.success"], fields["next_observations.x"][:, 0] >= 3)
    assert fields["infos.success"].any()
    assert np.allclose(fields["next_observations.x"] - fields["observations.x"], fields["actions"], atol=1e-5)
    assert dataset.metadata["flatten"] == ["x", "goal"]
    assert np.array_equal(dataset.flat_observations()[:, 1], fields["observations.goal"][:, 0])


def test_episodes_are_cut_at_max_steps_and_the_metadata_say_how_the_data_came_about():
    dataset = collect(
        INVERTED, balance(), 30, stochastic=True, noise=0.25, seed=5, max_steps=3, collector="sb3:a.zip"
    )
    assert dataset.episode_lengths.max() == 3
    facts = dataset.metadata
    assert facts["env_id"] == "InvertedPendulum-v5"
    assert (facts["collector"], facts["seed"], facts["noise"]) == ("sb3:a.zip", 5, 0.25)
    assert facts["stochastic"] is True
    assert facts["max_episode_steps"] == 3
    assert (facts["action_low"], facts["action_high"]) == ([-3.0], [3.0])
    assert facts["gymnasium_version"] == gymnasium.__version__
    assert "mujoco_version" in facts
    assert "reference_returns" not in facts


def test_a_d4rl_robot_brings_the_reference_returns_of_its_label():
    facts = collect("Hopper-v5", RandomPolicy(11, 3), 5).metadata
    assert facts["reference_returns"] == [-20.272305, 3234.3]
    assert facts["reference"] == "v5 env, D4RL reference"


class Ready(BlockPool):
    """Waits until its helpers have started, so that short work is shared too."""

    def run(self, *arguments):
        self.start_helpers()
        assert all(helper.connection.poll(300) for helper in self.helpers)
        super().run(*arguments)


def test_two_processes_write_the_same_bytes_as_one(tmp_path, monkeypatch):
    """10 blocks or so; the second process is handed the first two."""
    own = []
    monkeypatch.setattr("offrl.collect.BlockPool", Ready)
    monkeypatch.setattr(pool_module, "run_block", lambda *a, **k: own.append(a[3]) or run_block(*a, **k))
    for workers in (1, 2):
        dataset = collect(INVERTED, balance(), 600, stochastic=True, noise=0.1, workers=workers)
        write_d4rl(dataset, tmp_path / f"{workers}.hdf5")
    assert (tmp_path / "1.hdf5").read_bytes() == (tmp_path / "2.hdf5").read_bytes()
    assert own.count(0) == 1  # blocks 0 and 1 of the second run were played elsewhere


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match="steps must be 1 or more"):
        collect(PENDULUM, RandomPolicy(3, 1), 0)
    with pytest.raises(ConfigError, match="noise must be a standard deviation"):
        collect(PENDULUM, RandomPolicy(3, 1), 10, noise=-0.1)
    with pytest.raises(PolicyError, match="was it trained on another environment"):
        collect(PENDULUM, RandomPolicy(4, 1), 10)


def test_progress_is_reported_up_to_the_number_of_rows():
    calls = []
    collect(PENDULUM, RandomPolicy(3, 1, [-2.0], [2.0]), 500, progress=lambda *c: calls.append(c))
    assert calls == [(300, 500), (500, 500)]


# --- joining ----------------------------------------------------------------------------------------------


def tiny(steps, *, width=2, terminated=False, **metadata):
    flags = np.zeros(steps, dtype=bool)
    flags[-1] = terminated
    observations = np.arange(steps * width, dtype=np.float32).reshape(steps, width)
    metadata = {"env_id": "X-v0", "source": "a file", "sha256": "0" * 64} | metadata
    return OfflineDataset.from_arrays(
        observations,
        np.zeros((steps, 1), np.float32),
        np.ones(steps),
        flags,
        flags & False,
        metadata=metadata,
    )


def test_no_episode_runs_across_a_seam_and_metadata_keep_what_differs():
    joined = concatenate(
        [tiny(3, seed=1), tiny(2, terminated=True, seed=2), tiny(4, seed=1)], {"name": "mixed"}
    )
    assert joined.episode_starts.tolist() == [0, 3, 5, 9]
    assert np.flatnonzero(joined.fields["truncated"]).tolist() == [2, 8]
    assert np.flatnonzero(joined.fields["terminated"]).tolist() == [4]
    assert joined.fields["observations"][:, 0].tolist() == [0, 2, 4, 0, 2, 0, 2, 4, 6]
    assert joined.metadata["env_id"] == "X-v0"
    assert joined.metadata["name"] == "mixed"
    assert joined.metadata["parts"] == [
        {"steps": 3, "seed": 1},
        {"steps": 2, "seed": 2},
        {"steps": 4, "seed": 1},
    ]
    assert not {"sha256", "source", "seed"} & joined.metadata.keys()


@pytest.mark.parametrize("rows", ["exact", "qlearning"])
def test_time_limits_are_not_counted_across_a_seam(rows):
    """The first one stops in the middle of an episode; its file marks no time limits."""
    parts = []
    for start in (0, 100):
        observations = np.arange(start, start + 5, dtype=np.float32)[:, None]
        flat = np.zeros((5, 1), np.float32), np.ones(5), np.zeros(5, dtype=bool)
        parts.append(OfflineDataset.from_arrays(observations, *flat, metadata={"max_episode_steps": 10}))
    assert parts[0].metadata["timeouts_recorded"] is False
    t = concatenate(parts).transitions(rows)
    assert t.observations[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert (t.next_observations - t.observations == 1).all()


def test_datasets_that_do_not_fit_are_not_joined():
    with pytest.raises(DatasetError, match="nothing to concatenate"):
        concatenate([])
    with pytest.raises(DatasetError, match=r"'observations' has rows of shape \(3,\) in dataset 1, \(2,\)"):
        concatenate([tiny(3), tiny(3, width=3)])
    other = OfflineDataset(tiny(3).fields | {"infos.success": np.zeros(3, dtype=bool)}, [0, 3])
    with pytest.raises(DatasetError, match=r"dataset 1 and dataset 0 do not both have 'infos\.success'"):
        concatenate([tiny(3), other])


# --- the command ------------------------------------------------------------------------------------------


def run(*arguments):
    return cli.main(["collect", "--env", "InvertedPendulum-v5", *map(str, arguments)])


def test_the_command_writes_what_the_function_collects(tmp_path, capsys):
    save_policy(balance(), tmp_path / "policy")
    out = tmp_path / "data.hdf5"
    given = ["--policy", tmp_path / "policy", "--steps", 50, "--stochastic", "--noise", 0.5, "--seed", 3]
    assert run(*given, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "50 transitions" in printed
    assert f"written to {out}" in printed
    expected = collect(INVERTED, balance(), 50, stochastic=True, noise=0.5, seed=3)
    written = read_d4rl(out)
    assert {n: a.tolist() for n, a in written.fields.items()} == {
        n: a.tolist() for n, a in expected.fields.items()
    }
    assert written.metadata["collector"] == str(tmp_path / "policy")


def test_the_command_writes_minari_sets_that_hold_the_same_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    given = ["--policy", "random", "--steps", 40, "-q"]
    assert run(*given, "--out", "minari:zoo/pole-v0") == 0
    assert run(*given, "--out", tmp_path / "pole.hdf5") == 0
    one, other = (
        load_dataset(uri).transitions("exact") for uri in ("minari:zoo/pole-v0", tmp_path / "pole.hdf5")
    )
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert len(one) == 40
    assert run(*given, "--out", "minari:zoo/pole-v0") == 1
    assert "exists already; choose another version, or pass --overwrite" in capsys.readouterr().err
    assert run(*given, "--out", "minari:zoo/pole-v0", "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "random", "--out", "x.csv"], "--out must be FILE.hdf5 or minari:ID, got 'x.csv'"),
        (["--policy", "random", "--out", "minari:pole"], "has the form (namespace/)name-vN"),
        (["--policy", "random", "--out", "here.hdf5"], "here.hdf5 exists already"),
        (["--policy", "random", "--out", "here.hdf5/x.hdf5"], "is not a folder"),
        (["--policy", "sb3:none.zip", "--out", "x.hdf5"], "no such file"),
        (
            ["--policy", "other", "--out", "x.hdf5"],
            "observations have shape (4,) but the policy was built for O=3",
        ),
        (["--policy", "random", "--out", "x.hdf5", "--noise", "-1"], "noise must be a standard deviation"),
        (["--policy", "random", "--out", "x.hdf5", "--workers", "0"], "workers must be 1 or more"),
        (
            ["--policy", "random", "--out", "x.hdf5", "--steps", "100000000000000"],
            "offrl: not enough memory: ",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_a_step_is_made(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.hdf5").write_bytes(b"old")
    save_policy(DeterministicPolicy(3, 1), tmp_path / "other")
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "here.hdf5").read_bytes() == b"old"
    assert not (tmp_path / "x.hdf5").exists()


def test_an_existing_file_is_replaced_only_on_request_and_whole(tmp_path, monkeypatch):
    out = tmp_path / "data.hdf5"
    out.write_bytes(b"old")
    given = ["--policy", "random", "--steps", 20, "--out", out, "-q"]
    assert run(*given) == 1
    assert out.read_bytes() == b"old"
    assert run(*given, "--overwrite") == 0
    with h5py.File(out) as file:
        assert json.loads(file.attrs["offrl"])["collector"] == "random"


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"no permission to write in {tmp_path}"):
        check_target(str(tmp_path / "new" / "x.hdf5"), overwrite=False)


# --- demonstrations ---------------------------------------------------------------------------------------


def test_only_the_first_successful_episodes_are_kept(walk):
    """Of the same recording: episodes that reach position 3, in order; the one that the end cut does not count."""
    policy = RandomPolicy(2, 1, [-2.0], [2.0])
    whole = collect(walk, policy, 5 * 40, stochastic=True, seed=3)
    reached = [bool(e.any()) for e in np.split(whole.fields["infos.success"], whole.episode_starts[1:-1])]
    kept = collect_successes(walk, policy, 5, steps_each=40, stochastic=True, seed=3)
    assert kept.num_episodes == 5
    assert kept.sha256 == whole.select(np.flatnonzero(reached[:-1])[:5]).sha256
    assert kept.metadata["success_rate"] == round(sum(reached[:-1]) / len(reached[:-1]), 4) < 1


def test_too_few_successes_and_silent_environments_are_refused(walk):
    policy = RandomPolicy(2, 1, [-2.0], [2.0])
    with pytest.raises(
        ConfigError, match=r"only \d of \d episodes succeeded, 5 are wanted; raise steps_each"
    ):
        collect_successes(walk, policy, 5, steps_each=9, stochastic=True, seed=3)
    with pytest.raises(ConfigError, match="Pendulum-v1 does not tell whether"):
        collect_successes(PENDULUM, RandomPolicy(3, 1, [-2.0], [2.0]), 1, steps_each=30)
