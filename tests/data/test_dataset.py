"""The dataset's rules, its row rules against plain loops, and one line for every breach."""

import numpy as np
import pytest

from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError, DatasetError


def reference_rows(terminals, timeouts, horizon):
    """D4RL's q-learning loop over a flat file, step by step; returns the rows kept."""
    kept, counter = [], 0
    for row in range(len(terminals) - 1):
        cut = timeouts[row] if timeouts is not None else counter == horizon - 1
        if cut:
            counter = 0
            continue
        if terminals[row]:
            counter = 0
        kept.append(row)
        counter += 1
    return kept


def flat(steps, terminated=(), truncated=(), *, seed=0, successors=False, **options):
    """A dataset of random steps whose flags are set at the given rows."""
    generator = np.random.default_rng(seed)
    flags = np.zeros((2, steps), dtype=bool)
    flags[0, list(terminated)] = True
    cut = None
    if truncated is not None:
        flags[1, list(truncated)] = True
        cut = flags[1]
    return OfflineDataset.from_arrays(
        generator.normal(size=(steps, 3)),
        generator.uniform(-1, 1, size=(steps, 2)),
        np.arange(steps, dtype=float),
        flags[0],
        cut,
        next_observations=generator.normal(size=(steps, 3)) if successors else None,
        **options,
    )


# --- rows --------------------------------------------------------------------------------------------------


def test_qlearning_rows_equal_the_reference_loop():
    """300 random patterns, adjacent and coinciding flags included; every value is compared."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        steps = int(generator.integers(2, 60))
        terminals, timeouts = generator.random((2, steps)) < generator.choice([0.05, 0.3, 0.7])
        want = reference_rows(terminals, timeouts, None)
        assert_qlearning(flat(steps, np.flatnonzero(terminals), np.flatnonzero(timeouts)), want)


def test_qlearning_rows_equal_the_reference_loop_without_timeouts():
    """300 random patterns of the counter that starts an episode at 1 after a terminated step."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        steps, horizon = int(generator.integers(2, 80)), int(generator.integers(2, 9))
        terminals = generator.random(steps) < generator.choice([0.0, 0.1, 0.4, 0.8])
        want = reference_rows(terminals, None, horizon)
        data = flat(steps, np.flatnonzero(terminals), None, metadata={"max_episode_steps": horizon})
        assert_qlearning(data, want)


def assert_qlearning(data, want):
    if not want:
        with pytest.raises(DatasetError, match="no transition is left"):
            data.transitions("qlearning")
        return
    got = data.transitions("qlearning", next_actions=True)
    rows = np.array(want)
    fields = data.fields
    np.testing.assert_array_equal(got.step, rows)
    np.testing.assert_array_equal(got.observations, fields["observations"][rows])
    np.testing.assert_array_equal(got.actions, fields["actions"][rows])
    np.testing.assert_array_equal(got.rewards, fields["rewards"][rows])
    np.testing.assert_array_equal(got.next_observations, fields["observations"][rows + 1])
    np.testing.assert_array_equal(got.next_actions, fields["actions"][rows + 1])
    np.testing.assert_array_equal(got.terminated, fields["terminated"][rows].astype("f4"))
    assert {a.dtype for a in (got.observations, got.rewards, got.terminated)} == {np.dtype("f4")}


def test_qlearning_skips_a_row_early_after_a_terminated_one():
    """Horizon 5, terminated at row 3: rows 7, 12 and 17 are skipped, though the episode's fifth row is 8."""
    data = flat(20, [3], None, metadata={"max_episode_steps": 5})
    assert set(range(19)) - set(data.transitions("qlearning").step.tolist()) == {7, 12, 17}
    assert data.episode_starts.tolist() == [0, 4, 9, 14, 19, 20]  # the true cuts


def test_qlearning_without_timeouts_asks_for_the_horizon():
    with pytest.raises(DatasetError, match="max_episode_steps"):
        flat(20, [3], None).transitions("qlearning")


@pytest.mark.parametrize(("steps", "length", "rows"), [(202_000, 1000, 201_798), (1_000_000, 1000, 999_000)])
def test_row_count_of_fixed_length_episodes(steps, length, rows):
    """N - 1 - (time-outs before the last row); under ``exact`` a row per episode goes instead."""
    cut = np.arange(length - 1, steps, length)
    data = OfflineDataset.from_arrays(
        np.zeros((steps, 1)),
        np.zeros((steps, 1)),
        np.zeros(steps),
        np.zeros(steps),
        np.isin(np.arange(steps), cut),
    )
    assert len(data.transitions("qlearning")) == rows == steps - 1 - (cut < steps - 1).sum()
    assert len(data.transitions("exact")) == steps - data.num_episodes


@pytest.mark.parametrize("successors", [False, True])
def test_exact_rows_equal_a_plain_loop(successors):
    generator = np.random.default_rng(0)
    for _ in range(200):
        steps = int(generator.integers(3, 50))
        terminals, timeouts = generator.random((2, steps)) < generator.choice([0.1, 0.5])
        terminals[1] = True
        data = flat(steps, np.flatnonzero(terminals), np.flatnonzero(timeouts), successors=successors)
        assert_exact(data, terminals, timeouts)


def assert_exact(data, terminals, timeouts):
    observations, following = data.fields["observations"], data.fields.get("next_observations")
    want = []
    for row in range(len(terminals)):
        last = terminals[row] or timeouts[row] or row == len(terminals) - 1
        if following is not None:
            want.append((row, following[row]))
        elif not last:
            want.append((row, observations[row + 1]))
        elif terminals[row]:
            want.append((row, observations[row]))
    got = data.transitions("exact")
    np.testing.assert_array_equal(got.step, [row for row, _ in want])
    np.testing.assert_array_equal(got.next_observations, [after for _, after in want])
    episode = np.concatenate([[0], np.cumsum(terminals | timeouts)[:-1]])
    np.testing.assert_array_equal(got.episode, episode[got.step])


def test_exact_rows_by_hand():
    """Six rows: 0 1 | terminated 2 | 3 cut 4 | 5 left unfinished. Rows 4 and 5 have no known successor."""
    data = flat(6, [2], [4])
    got = data.transitions("exact")
    assert got.step.tolist() == [0, 1, 2, 3]
    assert got.episode.tolist() == [0, 0, 0, 1]
    assert got.terminated.tolist() == [0, 0, 1, 0]
    assert data.transitions("qlearning").step.tolist() == [0, 1, 2, 3]
    assert flat(6, [2], [4], successors=True).transitions("exact").step.tolist() == [0, 1, 2, 3, 4, 5]


def test_next_actions_under_exact_are_the_ones_taken():
    data = flat(6, [2], [4], successors=True)
    got = data.transitions("exact", next_actions=True)
    assert got.step.tolist() == [0, 1, 2, 3]  # what would have been done after the cuts is not known
    np.testing.assert_array_equal(got.next_actions[[0, 1, 3]], data.fields["actions"][[1, 2, 4]])
    np.testing.assert_array_equal(got.next_observations, data.fields["next_observations"][[0, 1, 2, 3]])


def test_only_masked_rows_jump_between_episodes():
    """Episodes walk by 0.5 from starts 100 apart: exact never jumps, qlearning where terminated."""
    walk = np.cumsum(np.full((40, 1), 0.5), axis=0)
    walk += 100 * (np.arange(40) // 10)[:, None]
    terminated, truncated = np.zeros((2, 40), dtype=bool)
    terminated[[9, 29]], truncated[[19, 39]] = True, True
    data = OfflineDataset.from_arrays(walk, np.zeros((40, 1)), np.zeros(40), terminated, truncated)
    for rule in ("exact", "qlearning"):
        rows = data.transitions(rule)
        jump = np.abs(rows.next_observations - rows.observations).max(axis=1) > 1
        assert rows.terminated[jump].all()
        assert jump.sum() == (2 if rule == "qlearning" else 0)


def test_transitions_are_copies():
    data = flat(6, [2], [4])
    data.transitions().rewards[:] = 99
    assert data.fields["rewards"].max() == 5


def test_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="'exact' or 'qlearning'"):
        flat(6, [2], [4]).transitions("legacy")


# --- episodes ----------------------------------------------------------------------------------------------


def test_episodes_and_returns_follow_the_flags():
    """Returns by true boundaries: chunks of qlearning rows would start one row later in each episode."""
    rewards = np.arange(3000) % 1000 == 0  # one reward, at the start of each episode
    cut = np.arange(3000) % 1000 == 999
    data = OfflineDataset.from_arrays(np.zeros((3000, 1)), np.zeros((3000, 1)), rewards, np.zeros(3000), cut)
    assert data.episode_returns.tolist() == [1, 1, 1]
    assert data.episode_lengths.tolist() == [1000, 1000, 1000]
    kept = data.transitions("qlearning")
    assert np.bincount(kept.episode).tolist() == [999, 999, 999]
    assert [float(kept.rewards[kept.episode == e].sum()) for e in range(3)] == [1, 1, 1]


def test_select_keeps_whole_episodes_in_the_order_asked():
    data = flat(10, [2, 8], [5], infos={"row": np.arange(10)}, metadata={"sha256": "old", "name": "x"})
    got = data.select([3, 0])
    assert got.fields["infos.row"].tolist() == [9, 0, 1, 2]
    assert got.episode_starts.tolist() == [0, 1, 4]
    assert got.fields["truncated"].tolist() == [True, False, False, False]  # the unfinished one was cut
    assert got.metadata == {"name": "x"}
    assert data.select(np.arange(3)).fields["truncated"].sum() == 1
    for bad in ([], [4], [-1], [True], [0.5]):
        with pytest.raises(DatasetError):
            data.select(bad)


def test_counted_time_limits_do_not_run_over_an_unfinished_episode_that_was_moved():
    """Episodes 0-3 (terminated), 4-9 (six steps, the limit), 10-11 (unfinished); the last one first."""
    data = flat(12, [3], None, metadata={"max_episode_steps": 6}).select([2, 1])
    assert data.episode_starts.tolist() == [0, 2, 8]
    assert data.transitions("qlearning").step.tolist() == [0, 2, 3, 4, 5, 6]  # row 1 leads nowhere
    kept = flat(12, [3], None, metadata={"max_episode_steps": 6}).select([0, 2])
    assert kept.metadata["timeouts_recorded"] is False  # in order, D4RL's counting still holds


def test_time_limits_are_placed_where_they_were_not_recorded():
    data = flat(12, [3], None, metadata={"max_episode_steps": 4})
    assert np.flatnonzero(data.fields["truncated"]).tolist() == [7, 11]  # row 3 ended by itself
    assert flat(12, [3], None).num_episodes == 2


def test_describe_is_one_line():
    data = OfflineDataset.from_arrays(np.zeros((1200, 2)), np.zeros((1200, 1)), np.ones(1200), np.zeros(1200))
    assert data.describe() == "1 200 transitions, 1 episodes, O=2, A=1, return 1 200 .. 1 200"


# --- observations ------------------------------------------------------------------------------------------


def test_dict_observations_are_flattened_in_the_declared_order():
    parts = {"observation": np.ones((4, 2)), "goal": {"b": np.full((4, 1), 3.0), "a": np.full(4, 2.0)}}
    end = [0, 0, 0, 1]

    def build(**metadata):
        return OfflineDataset.from_arrays(
            parts, np.zeros((4, 1)), np.zeros(4), end, next_observations=parts, metadata=metadata
        )

    assert build().flat_observations()[0].tolist() == [2, 3, 1, 1]  # sorted: goal.a, goal.b, observation
    ordered = build(flatten=["observation", "goal.b"])
    assert ordered.flat_observations()[0].tolist() == [1, 1, 3]
    assert ordered.obs_dim == 3
    assert ordered.transitions().next_observations.tolist() == [[1, 1, 3]] * 4
    with pytest.raises(
        DatasetError, match=r"names 'gaol', but the observation keys are: goal\.a, goal\.b, obs"
    ):
        build(flatten=["gaol"])


def test_a_flatten_order_may_take_some_columns_of_a_part():
    parts = {"observation": np.arange(12.0).reshape(4, 3), "goal": np.full((4, 1), 7.0)}

    def build(*order):
        return OfflineDataset.from_arrays(
            parts, np.zeros((4, 1)), np.zeros(4), [0, 0, 0, 1], metadata={"flatten": list(order)}
        )

    data = build("observation[1:3]", "goal", "observation[0:1]")
    assert data.obs_dim == 4
    assert data.flat_observations()[1].tolist() == [4, 5, 7, 3]
    with pytest.raises(DatasetError, match="but the observation keys are: goal, observation"):
        build("observation[5:9]")


def test_types():
    images = np.full((2, 8, 8, 3), 255, dtype=np.uint8)
    data = OfflineDataset.from_arrays(images, np.zeros((2, 1)), [1, 2], [0.0, 1.0], infos={"t": np.arange(2)})
    assert {k: v.dtype.str[1:] for k, v in data.fields.items()} == {
        "observations": "u1",
        "actions": "f4",
        "rewards": "f4",
        "terminated": "b1",
        "truncated": "b1",
        "infos.t": "i8",
    }
    assert data.obs_dim == 192
    assert data.transitions().observations.dtype == np.float32


def test_images_stand_apart_from_numbers_where_that_is_asked_for():
    a, b = (np.arange(k, k + 60, dtype=np.uint8).reshape(3, 2, 5, 2) for k in (0, 100))
    seen = {"a": a, "x": [[1.0], [2.0], [3.0]], "b": b, "y": [[4.0], [5.0], [6.0]]}

    def build(*order):
        return OfflineDataset.from_arrays(
            seen, np.zeros((3, 1)), [0.0] * 3, [0, 0, 1], metadata={"flatten": order}
        )

    data, rows = build("b", "x", "a", "y"), np.array([2, 0])
    assert data.flat_observations(rows, images=False).tolist() == [[3, 6], [1, 4]]
    assert data.flat_images(rows).tolist() == [[*b[k].ravel(), *a[k].ravel()] for k in rows]
    assert data.flat_images(rows).dtype == np.uint8
    apart = data.transitions("steps", images=False)
    assert apart.observations.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert apart.next_observations[:2].tolist() == [[2, 5], [3, 6]]
    assert data.transitions("steps").observations.shape == (3, 42)
    assert build("y").flat_images(rows).shape == (2, 0)
    some = build("a[0:3]", "y")  # columns of an image are numbers
    assert (some.flat_images(rows).shape, some.flat_observations(images=False).shape) == ((2, 0), (3, 4))


def test_columns_of_width_one_are_squeezed():
    column = np.ones((3, 1))
    data = OfflineDataset.from_arrays(np.zeros((3, 2)), np.zeros((3, 1)), 2 * column, column, 0 * column)
    assert data.fields["rewards"].tolist() == [2, 2, 2]
    assert data.num_episodes == 3


# --- identity ----------------------------------------------------------------------------------------------


def test_sha256_sees_every_array_and_the_episodes_but_not_the_notes():
    base = flat(6, [2], [4], successors=True)
    assert (
        base.sha256 == flat(6, [2], [4], successors=True, metadata={"a": 1}, infos={"t": np.arange(6)}).sha256
    )
    others = [flat(6, [2], [5], successors=True), flat(6, [2], [4]), flat(6, [2, 4], [4], successors=True)]
    for name in ("observations", "actions", "rewards", "next_observations"):
        fields = {k: v.copy() for k, v in base.fields.items()}
        fields[name][3] += 1
        others.append(OfflineDataset(fields, base.episode_starts))
    assert len({base.sha256, *(o.sha256 for o in others)}) == 8


# --- one line for every breach -----------------------------------------------------------------------------


def good():
    return {
        "observations": np.zeros((6, 3)),
        "actions": np.zeros((6, 2)),
        "rewards": np.zeros(6),
        "terminated": np.arange(6) == 2,
        "truncated": np.arange(6) == 5,
    }


def at(shape, row, value):
    array = np.zeros(shape)
    array[row] = value
    return array


BREACHES = {
    "missing": ({"actions": None}, "missing arrays: actions"),
    "no observations": ({"observations": None, "rewards": None}, "missing arrays: observations, rewards"),
    "no end flags": ({"terminated": None}, "missing arrays: terminated"),
    "short rewards": ({"rewards": np.zeros(5)}, "'rewards' has 5 rows, 'actions' have 6"),
    "long observations": ({"observations": np.zeros((7, 3))}, "'observations' has 7 rows, 'actions' have 6"),
    "short time-outs": ({"truncated": np.zeros(5)}, "'truncated' has 5 rows, 'terminated' has 6"),
    "nan": ({"observations": at((6, 3), (4, 1), np.nan)}, r"'observations' is not finite .* at row 4"),
    "infinite reward": (
        {"rewards": at(6, 1, np.inf)},
        r"'rewards' is not finite .* at row 1; drop that episode",
    ),
    "too large for float32": (
        {"rewards": at(6, 3, 1e39)},
        r"'rewards' is not finite \(in float32\) at row 3",
    ),
    "nan action": ({"actions": at((6, 2), (5, 0), -np.inf)}, r"'actions' is not finite .* at row 5"),
    "nan successor": ({"next_observations": at((6, 3), 0, np.nan)}, "'next_observations' is not finite"),
    "integer actions": (
        {"actions": np.zeros((6, 2), int)},
        r"'actions' are integers.*actions\.astype\('float32'\)",
    ),
    "bool actions": ({"actions": np.zeros((6, 2), bool)}, "'actions' are integers"),
    "complex actions": ({"actions": np.zeros((6, 2), complex)}, "'actions' are complex numbers; store real"),
    "complex rewards": ({"rewards": np.zeros(6, complex)}, "'rewards' holds complex128 values"),
    "text": ({"observations": np.full((6, 3), "a")}, "'observations' holds <U1 values"),
    "objects": ({"actions": np.full((6, 2), None)}, "'actions' holds object values"),
    "ragged": ({"observations": [[1.0], [1.0, 2.0]] * 3}, "'observations' is ragged"),
    "flat observations": (
        {"observations": np.zeros(6)},
        r"'observations' has shape \(6,\); it needs shape \(N, O\)",
    ),
    "no width": ({"observations": np.zeros((6, 0))}, r"'observations' has shape \(6, 0\)"),
    "flat actions": ({"actions": np.zeros(6)}, r"'actions' have shape \(6,\); they need shape \(N, A\)"),
    "wide rewards": (
        {"rewards": np.zeros((6, 2))},
        r"'rewards' has shape \(6, 2\); it needs one number per step",
    ),
    "half a flag": ({"terminated": at(6, 2, 0.5)}, "'terminated' is 0.5 at row 2; it must be 0 or 1"),
    "nan flag": ({"truncated": at(6, 3, np.nan)}, "'truncated' is nan at row 3"),
    "both kinds": ({"observations.a": np.zeros((6, 1))}, "both 'observations' and 'observations.a'"),
    "successor width": ({"next_observations": np.zeros((6, 4))}, r"'next_observations' has shape \(6, 4\)"),
    "successor keys": ({"next_observations.a": np.zeros((6, 3))}, "next observations have the keys"),
    "unknown": (
        {"reward_to_go": np.zeros(6)},
        "unknown array 'reward_to_go'; extra arrays go under 'infos.NAME'",
    ),
    "short info": ({"infos.t": np.zeros(5)}, "'infos.t' has 5 rows, 'actions' have 6"),
    "empty": ({k: v[:0] for k, v in good().items()}, "the dataset holds no steps"),
}


@pytest.mark.parametrize(("changes", "message"), BREACHES.values(), ids=BREACHES.keys())
def test_a_broken_array_is_refused_in_one_line(changes, message):
    fields = {k: v for k, v in (good() | changes).items() if v is not None}
    with pytest.raises(DatasetError, match=message) as caught:
        OfflineDataset.from_fields(fields)
    assert "\n" not in str(caught.value)


def test_the_bad_row_of_a_long_array_is_named():
    """Arrays are looked at in parts; row 150 000 lies in the third."""
    zero = np.zeros((200_000, 1))
    with pytest.raises(DatasetError, match="at row 150000;"):
        OfflineDataset.from_arrays(zero, zero, at(200_000, 150_000, np.nan), np.zeros(200_000))


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 3, 3, 6], "episode 1 is empty"),
        ([0, 5, 3, 6], "episodes are out of order: episode 1 ends before it starts"),
        ([0, 6], r"'terminated' is set at row 2, inside episode 0 \(rows 0 \.\. 5\)"),
        ([0, 2, 3, 6], "episode 0 ends at row 1 neither terminated nor truncated"),
        ([0, 3], "from 0 to 3; they must go from 0 to N = 6"),
        ([1, 3, 6], "from 1 to 6"),
        ([0.0, 6.0], "list of integers"),
        ([0], "list of integers"),
    ],
)
def test_broken_episodes_are_refused(starts, message):
    with pytest.raises(DatasetError, match=message):
        OfflineDataset(good(), starts)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": np.zeros(2)}, "cannot be stored as JSON"),
        ({"x": float("nan")}, "cannot be stored as JSON"),
        ({"reference_returns": [3, 3]}, "random < expert"),
        ({"reference_returns": "ab"}, "random < expert"),
        ({"max_episode_steps": 1}, "integer >= 2"),
        ({"max_episode_steps": 10.0}, "integer >= 2"),
        ({"flatten": "observation"}, "list of observation keys"),
        ({"reference_returns": [0, 10**400]}, "random < expert"),
        ({"max_episode_steps": 2**70}, "integer >= 2"),
        ({"name": ["x"]}, "metadata 'name' must be text"),
        ({"env_id": 5}, "metadata 'env_id' must be text, got 5"),
        ({"env_id": "Pendulum-v1", "env_kwargs": [1]}, "metadata 'env_kwargs' must be a JSON object"),
        ({"timeouts_recorded": "no"}, "'timeouts_recorded' must be true or false"),
        ({"action_low": [0.0]}, "'action_low' and 'action_high' must be lists of one number for each action"),
        ({"action_low": [[0], [1, 2]], "action_high": [1.0, 1.0]}, "lists of one number"),
        ({"action_low": ["a"], "action_high": [1]}, "lists of one number"),
        ({"action_low": [0, 0, 0], "action_high": [1, 1, 1]}, "lists of one number"),
    ],
)
def test_broken_metadata_are_refused(metadata, message):
    with pytest.raises(DatasetError, match=message):
        OfflineDataset.from_fields(good(), metadata)


def test_reference_returns():
    assert OfflineDataset.from_fields(good()).reference_returns is None
    assert OfflineDataset.from_fields(good(), {"reference_returns": (1, 2)}).reference_returns == (1.0, 2.0)


def test_the_rule_steps_keeps_every_step_of_every_episode():
    """Two episodes of 2 and 3 steps, both cut: 'exact' drops their last steps, whose successors are not known."""
    n, cut = 5, [False, True, False, False, True]
    observations = np.arange(n, dtype=np.float32)[:, None]
    data = OfflineDataset.from_arrays(observations, observations, np.ones(n), np.zeros(n, dtype=bool), cut)
    rows = data.transitions("steps")
    assert rows.step.tolist() == [0, 1, 2, 3, 4]
    assert rows.episode.tolist() == [0, 0, 1, 1, 1]
    assert rows.next_observations[:, 0].tolist() == [1, 1, 3, 4, 4]
    assert len(data.transitions("exact")) == 3
