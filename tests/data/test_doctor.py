"""The dataset doctor on toy data whose illness is known, and replays of data recorded a moment ago."""

import numpy as np
import pytest

from offrl.data.dataset import OfflineDataset
from offrl.data.doctor import check, described_environment, recorded_environment, replay
from offrl.data.environments import EnvSpec, environment_for
from offrl.errors import DatasetError
from offrl.evaluation.environments import make_env


def walk(episodes=4, length=50, obs_dim=11, act_dim=3, seed=0):
    """Slow random walks with nothing wrong: the first episode terminates, the others are cut."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(episodes, length + 1, obs_dim)) * 0.1
    states = np.cumsum(steps, axis=1).astype(np.float32)
    ends = np.zeros((episodes, length), bool)
    ends[:, -1] = True
    first = np.arange(episodes) == 0
    return {
        "observations": states[:, :-1].reshape(-1, obs_dim),
        "next_observations": states[:, 1:].reshape(-1, obs_dim),
        "actions": rng.uniform(-0.9, 0.9, size=(episodes * length, act_dim)).astype(np.float32),
        "rewards": np.arange(episodes * length) % length * 1.0,
        "terminated": (ends & first[:, None]).ravel(),
        "truncated": (ends & ~first[:, None]).ravel(),
    }


def build(arrays, **metadata):
    rest = {k: v for k, v in arrays.items() if k not in ("infos", "truncated")}
    truncated, infos = arrays.get("truncated"), arrays.get("infos")
    return OfflineDataset.from_arrays(**rest, truncated=truncated, infos=infos, metadata=metadata)


def texts(report, level):
    return [finding.text for finding in report.findings if finding.level == level]


def test_a_healthy_set_is_measured_and_nothing_is_found():
    report = check(build(walk(), name="zoo/hopper-medium-v0"))
    assert report.ok
    assert report.findings == ()
    assert (report.steps, report.episodes, report.terminated, report.truncated) == (200, 4, 1, 3)
    assert report.lengths == (50, 50.0, 50)
    assert report.returns == (1225.0, 1225.0, 1225.0)  # 0 + 1 + .. + 49
    assert report.rewards == (0.0, 49.0)
    assert report.saturated == 0.0
    assert report.duplicates == 0.0
    assert report.mismatches == 0
    assert len(report.teleports) == 0
    assert report.reference == (-20.272305, 3234.3)
    assert report.reference_source == "v5 env, D4RL reference"
    assert report.environment.env_id == "Hopper-v5"


def test_lengths_and_unfinished_last_episode():
    arrays = walk(episodes=2)
    arrays["truncated"][-1] = False
    report = check(build(arrays, name="zoo/hopper-medium-v0"))
    assert (report.terminated, report.truncated, report.unfinished) == (1, 0, 1)
    assert texts(report, "note") == ["the last episode is unfinished"]
    assert report.ok


def test_wrong_widths_are_errors():
    report = check(build(walk(), name="walker2d-medium-v2"))
    assert not report.ok
    assert texts(report, "error") == [
        "observations are 11 wide, those of Walker2d-v4 are 17",
        "actions are 3 wide, those of Walker2d-v4 are 6",
    ]


def test_actions_beyond_the_limit_are_an_error_and_saturation_is_a_share():
    arrays = walk()
    arrays["actions"][:20] = 1.0
    arrays["actions"][20:40, 1] = -1.0
    report = check(build(arrays, name="hopper-medium-v2"))
    assert report.ok
    assert report.saturated == pytest.approx((20 * 3 + 20) / 600)
    arrays["actions"][3, 2] = -1.01
    report = check(build(arrays, name="hopper-medium-v2"))
    assert texts(report, "error")[0].startswith("action 2 goes from -1.01 ..")
    assert texts(report, "error")[0].endswith("the environment allows -1 .. 1")


def test_recorded_action_bounds_win_over_the_tables():
    """Bounds 0 .. 4 in column 0: 3.999 is at the edge (0.0005 of half the width), 4.01 is beyond it."""
    arrays = walk(act_dim=1)
    arrays["actions"] = np.abs(arrays["actions"]) + 0.1
    arrays["actions"][:2] = 3.999
    box = {"action_low": [0.0], "action_high": [4.0]}
    report = check(build(arrays, **box))
    assert report.ok
    assert report.saturated == 2 / 200
    arrays["actions"][9] = 4.01
    assert texts(check(build(arrays, **box)), "error")[0].startswith("action 0 goes from 0.1")


def test_shuffled_successors_are_an_error():
    """Every successor inside an episode is off by one row: 4 episodes x 49 rows."""
    arrays = walk()
    arrays["next_observations"] = np.roll(arrays["next_observations"], 1, axis=0)
    report = check(build(arrays, name="hopper-medium-v2"))
    assert report.mismatches == 4 * 49
    assert "196 recorded next observations differ" in texts(report, "error")[0]


def test_jumps_inside_an_episode_are_found_and_resets_are_not_jumps():
    arrays = walk(episodes=20)
    del arrays["next_observations"]
    arrays["observations"] += np.repeat(10.0 * (np.arange(20) % 2), 50)[:, None].astype(np.float32)
    assert len(check(build(arrays, name="hopper-medium-v2")).teleports) == 0
    arrays["truncated"][149] = False  # now episodes 2 and 3 are one, with a jump of 10 after row 149
    report = check(build(arrays, name="hopper-medium-v2"))
    np.testing.assert_array_equal(report.teleports, [149])
    assert texts(report, "warning") == [
        "1 jumps inside episodes (after rows 149), in columns 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10: missing episode ends?"
    ]
    assert report.ok


def test_a_jump_of_one_column_may_be_an_angle():
    arrays = walk(episodes=20)
    del arrays["next_observations"]
    arrays["observations"][70:100, 4] += 10.0
    report = check(build(arrays, name="hopper-medium-v2"))
    np.testing.assert_array_equal(report.teleports, [69])
    assert report.teleporting == (4,)
    assert texts(report, "warning") == [
        "1 jumps inside episodes (after rows 69), in column 4 alone: an angle that wraps around? Else missing episode "
        "ends?"
    ]


def test_constant_columns_duplicates_constant_rewards_and_bad_infos():
    arrays = walk()
    arrays["observations"][:, [2, 7]] = arrays["next_observations"][:, [2, 7]] = 1.5
    arrays["rewards"][:] = 0.0
    half = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    half["infos"] = {"qpos": np.ones((400, 2))}
    half["infos"]["qpos"][[3, 5], 0] = np.nan
    report = check(build(half, name="mine", env_id="Hopper-v5"))
    assert report.constant_columns == (2, 7)
    assert report.duplicates == 0.5
    assert report.not_finite == {"infos.qpos": 2}
    assert "2 constant observation columns: 2, 7" in texts(report, "note")
    assert "50.0% of the rows repeat an earlier observation and action" in texts(report, "note")
    assert "no reference returns: results are plain returns, not scores" in texts(report, "note")
    assert texts(report, "warning")[:2] == [
        "every reward is 0: there is nothing to prefer",
        "infos.qpos is not finite in 2 rows",
    ]


def test_missing_time_limits_and_missing_environment_are_warnings():
    arrays = walk()
    arrays["truncated"] = None
    report = check(build(arrays))
    assert any("time limits were not recorded" in text for text in texts(report, "warning"))
    assert any("no environment is known" in text for text in texts(report, "warning"))
    assert report.environment is None


def test_a_refused_environment_is_a_warning_with_its_reason():
    report = check(build(walk(obs_dim=29, act_dim=8), name="antmaze-umaze-v2"))
    assert report.ok
    assert any(environment_for("antmaze-umaze-v2").reason in text for text in texts(report, "warning"))
    assert report.reference == (0.0, 1.0)


def test_own_reference_returns_win():
    report = check(build(walk(), name="hopper-medium-v2", reference_returns=[0.0, 10.0]))
    assert report.reference == (0.0, 10.0)
    assert report.reference_source == "recorded with the data"
    report = check(build(walk(), name="hopper-medium-v2", reference_returns=[-20.272305, 3234.3]))
    assert report.reference_source == "D4RL reference"


def test_images_are_counted_but_their_columns_are_not_looked_at():
    arrays = walk(episodes=1, length=10)
    arrays["observations"] = np.zeros((10, 70, 70), np.uint8)
    del arrays["next_observations"]
    report = check(build(arrays))
    assert report.constant_columns == ()
    assert report.steps == 10


def record(spec, steps=60, scene=(), seed=0):
    """Random actions in an environment, with simulator states as ``offrl collect`` and D4RL store them."""
    env = make_env(spec)
    base = env.unwrapped
    simulator = getattr(base, "point_env", base)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rows, infos = [], {name: [] for name in ("qpos", "qvel", "goal", *scene)}
    for _ in range(steps):
        infos["qpos"].append(simulator.data.qpos.copy())
        infos["qvel"].append(simulator.data.qvel.copy())
        infos["goal"].append(np.array(getattr(base, "goal", [0.0])))
        for name in scene:
            infos[name].append(base.get_env_state()[name])
        action = env.action_space.sample()
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, after, terminated, truncated))
        observation = env.reset()[0] if terminated or truncated else after
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return env, arrays | {"infos": {name: np.array(values) for name, values in infos.items()}}


@pytest.mark.parametrize(
    ("spec", "scene"),
    [
        (EnvSpec("Hopper-v5"), ()),
        (environment_for("halfcheetah-medium-v2"), ()),
        (environment_for("zoo/pointmaze-umaze"), ()),
        (environment_for("pen-human-v1"), ("desired_orien",)),
        (environment_for("relocate-human-v1"), ("obj_pos", "target_pos")),
    ],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_steps_recorded_here_replay_to_rounding(spec, scene):
    env, arrays = record(spec, scene=scene, seed=1)  # another scene and goal than the replay resets to
    result = replay(build(arrays), env, rows=25)
    assert result.rows == 25
    assert result.observation_error[1] < 1e-4  # float32 storage; one contact amplifies it a little
    assert result.reward_error[1] < 1e-4
    assert result.observation_step > 100 * result.observation_error[1]


def test_replay_tells_another_simulator():
    """The same states under stronger gravity: the error shows in the observations."""
    env, arrays = record(EnvSpec("Hopper-v5"))
    env.unwrapped.model.opt.gravity[2] *= 1.5
    assert replay(build(arrays), env, rows=25).observation_error[0] > 1e-3


def test_replay_without_recorded_successors_leaves_out_the_ends_of_episodes():
    env, arrays = record(EnvSpec("Hopper-v5"))
    ends = int((arrays["terminated"] | arrays["truncated"])[:-1].sum())
    assert ends > 0
    result = replay(build({k: v for k, v in arrays.items() if k != "next_observations"}), env, rows=1000)
    assert result.rows == 60 - ends - 1
    assert result.observation_error[1] < 1e-4


def test_what_cannot_be_replayed_is_refused_with_the_reason():
    env, arrays = record(EnvSpec("Hopper-v5"), steps=10)
    with pytest.raises(DatasetError, match=r"no simulator state \(infos.qpos, infos.qvel\)"):
        replay(build({k: v for k, v in arrays.items() if k != "infos"}), env)
    with pytest.raises(DatasetError, match="at least 1 step"):
        replay(build(arrays), env, rows=0)
    wrong = arrays | {"infos": {"qpos": np.zeros((10, 9)), "qvel": np.zeros((10, 9))}}
    with pytest.raises(DatasetError, match="9 positions and 9 velocities, the environment 6 and 6"):
        replay(build(wrong), env)
    with pytest.raises(DatasetError, match="no simulator state that could be restored"):
        replay(build(arrays), make_env("Pendulum-v1"))
    pen = make_env(environment_for("pen-human-v1"))
    bare = arrays | {"infos": {"qpos": np.zeros((10, 30)), "qvel": np.zeros((10, 30))}}
    with pytest.raises(DatasetError, match=r"no infos\.desired_orien"):
        replay(build(bare), pen)


def test_the_recorded_environment_wins_for_replay_and_the_table_for_the_verdict():
    dataset = build(walk(), name="hopper-medium-v2", env_id="Hopper-v5", env_kwargs={"frame_skip": 2})
    assert recorded_environment(dataset) == EnvSpec("Hopper-v5", {"frame_skip": 2})
    assert described_environment(dataset).env_id == "Hopper-v4"
    with pytest.raises(DatasetError, match="name no environment"):
        recorded_environment(build(walk()))
