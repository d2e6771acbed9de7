"""A share of the episodes that a run does not see."""

import numpy as np
import pytest

from offrl.data.dataset import OfflineDataset
from offrl.data.split import split_episodes
from offrl.errors import DatasetError


def episodes(count, length=3):
    """Episode e has the observation e in every row."""
    number = np.repeat(np.arange(float(count)), length)[:, None]
    ends = np.arange(count * length) % length == length - 1
    return OfflineDataset.from_arrays(
        number, np.zeros_like(number), number[:, 0], ends, metadata={"name": "x"}
    )


@pytest.mark.parametrize(
    ("count", "share", "held"), [(10, 0.1, 1), (20, 0.25, 5), (3, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)]
)
def test_every_episode_is_on_one_side_whole(count, share, held):
    fitted, unseen = split_episodes(episodes(count), share)
    assert (fitted.num_episodes, unseen.num_episodes) == (count - held, held)
    sides = [set(part.fields["observations"][:, 0]) for part in (fitted, unseen)]
    assert sides[0] | sides[1] == set(range(count))
    assert not sides[0] & sides[1]
    assert fitted.episode_lengths.tolist() == [3] * fitted.num_episodes
    assert fitted.metadata["name"] == "x"


def test_the_choice_is_drawn_and_always_the_same():
    first, again = (split_episodes(episodes(100), 0.3)[1].fields["observations"][:, 0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (np.diff(first) >= 0).all()
    assert first.max() > 60
    assert first.min() < 40


def test_one_episode_cannot_be_split():
    with pytest.raises(DatasetError, match="have 1, two or more"):
        split_episodes(episodes(1), 0.5)
