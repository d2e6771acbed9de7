"""The scale of rewards from returns: whole episodes, or pieces as in the official code of O-DICE."""

import numpy as np
import pytest

from offrl.algos.odice import ODICEConfig
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError, DatasetError
from offrl.training.build import chunk_returns, return_range_scale, reward_map


def recorded(lengths, rewards, ends, horizon=None):
    """Episodes of constant reward; ``ends``: t terminated, c cut by a time limit, - neither."""
    n, last = sum(lengths), np.cumsum(lengths) - 1
    flags = {name: np.zeros(n, dtype=bool) for name in "tc"}
    for row, end in zip(last, ends, strict=True):
        if end != "-":
            flags[end][row] = True
    data = {
        "observations": np.zeros((n, 2), np.float32),
        "actions": np.zeros((n, 1), np.float32),
        "rewards": np.repeat(np.asarray(rewards, np.float32), lengths),
        "terminated": flags["t"],
        "truncated": flags["c"],
    }
    metadata = {} if horizon is None else {"max_episode_steps": horizon}
    return OfflineDataset(data, np.concatenate([[0], last + 1]), metadata)


@pytest.mark.parametrize(
    ("lengths", "ends", "horizon", "cut"),
    [
        ((10, 10, 4), "ccc", None, True),
        ((10, 10, 4), "cct", None, False),
        ((10, 10, 10), "ccc", None, False),
        ((10, 10, 10), "cc-", None, True),
        ((12, 10, 4), "ttc", None, False),  # no other episode shows that it could have gone on
        ((12, 10, 4), "ttc", 20, True),
        ((4, 6, 4), "ccc", 4, False),
        ((4,), "c", None, False),
    ],
)
def test_a_last_episode_that_could_have_gone_on_is_cut(lengths, ends, horizon, cut):
    assert recorded(lengths, [1.0] * len(lengths), ends, horizon).last_is_cut == cut


def test_the_scale_is_that_of_whole_episodes():
    """Returns 20, 50 and a rest of 4: 1000 / 30, and 1000 / 46 where the third one ended by itself."""
    lengths, rewards = (10, 10, 2), (2.0, 5.0, 2.0)
    assert return_range_scale(recorded(lengths, rewards, "ccc")) == pytest.approx(1000 / 30)
    assert return_range_scale(recorded(lengths, rewards, "cct")) == pytest.approx(1000 / 46)
    settings = ODICEConfig(return_range_scaling=True, reward_scale=0.5, reward_shift=1.0)
    scaled = reward_map(recorded(lengths, rewards, "ccc"), settings)
    np.testing.assert_allclose(scaled(np.array([3.0])), 3 * 0.5 * 1000 / 30 + 1)
    with pytest.raises(DatasetError, match="same return"):
        return_range_scale(recorded((5, 5, 2), (1.0, 1.0, 1.0), "ccc"))
    with pytest.raises(DatasetError, match="same return"):
        return_range_scale(recorded((5,), (1.0,), "-"))


def test_pieces_drift_over_episodes_of_999_rows():
    """Rewards of episode k are k: true returns 0, 999, 1998, ...; pieces hold 1, 1002, 2003, ..."""
    rewards = np.repeat(np.arange(4.0), 999)
    np.testing.assert_array_equal(chunk_returns(rewards, np.zeros(len(rewards))), [1.0, 1002.0, 2003.0])
    ends = np.zeros(len(rewards))
    ends[[998, 1200]] = 1  # the first episode terminates; so does one after 202 rows more
    np.testing.assert_array_equal(
        chunk_returns(rewards, ends), [0.0, 202.0, 797 + 2 * 203.0, 2 * 796 + 3 * 204.0]
    )


def test_legacy_chunking_takes_pieces_of_the_rows_that_d4rl_keeps():
    """Three episodes of 1000 steps lose a row each: 999 rows of 1, 2 and 3."""
    data = recorded((1000, 1000, 1000), (1.0, 2.0, 3.0), "ccc")
    pieces = [999 + 2.0, 998 * 2 + 2 * 3.0]
    assert return_range_scale(data) == pytest.approx(1000 / 2000)
    assert return_range_scale(data, legacy_chunking=True) == pytest.approx(1000 / (pieces[1] - pieces[0]))
    scaled = reward_map(data, ODICEConfig(return_range_scaling=True, legacy_chunking=True))(np.ones(1))
    np.testing.assert_allclose(scaled, 1000 / (pieces[1] - pieces[0]), rtol=1e-6)
    with pytest.raises(ConfigError, match="which is off"):
        ODICEConfig(legacy_chunking=True)
