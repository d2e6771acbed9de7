"""Several datasets as one: the episodes stay apart, whatever their last steps say."""

import numpy as np
import pytest

from offrl.data.dataset import OfflineDataset
from offrl.data.join import join
from offrl.errors import DatasetError


def dataset(steps, start, *, terminated=(), truncated=None, obs_dim=2, **extra):
    observations = np.arange(start, start + steps, dtype=np.float32)[:, None].repeat(obs_dim, 1)
    flag = np.isin(np.arange(steps), terminated)
    cut = None if truncated is None else np.isin(np.arange(steps), truncated)
    return OfflineDataset.from_arrays(
        observations,
        np.full((steps, 1), start / 1000, dtype=np.float32),
        np.arange(steps),
        flag,
        cut,
        **extra,
    )


def test_episodes_rewards_and_metadata_come_in_order():
    a = dataset(5, 0, terminated=[1], metadata={"name": "a", "env_id": "Hopper-v5"})
    b = dataset(4, 100, terminated=[3], metadata={"name": "b"})
    both = join([a, b])
    assert both.episode_starts.tolist() == [0, 2, 5, 9]
    assert both.fields["observations"][:, 0].tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 103]
    assert both.fields["rewards"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert both.metadata["env_id"] == "Hopper-v5"


@pytest.mark.parametrize("rows", ["exact", "qlearning"])
def test_no_transition_leads_from_one_dataset_into_the_next(rows):
    """The first one stops in the middle of an episode, with and without recorded time limits."""
    for extra in ({"truncated": []}, {"metadata": {"max_episode_steps": 10}}):
        t = join([dataset(5, 0, **extra), dataset(4, 100, **extra)]).transitions(rows)
        assert (np.abs(t.next_observations - t.observations) <= 1).all()
        assert t.observations[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]


def test_fields_that_only_one_has_are_left_out():
    successors = np.zeros((5, 2), dtype=np.float32)
    a = dataset(5, 0, next_observations=successors, infos={"qpos": np.zeros(5), "odd": np.zeros((5, 2))})
    b = dataset(4, 100, infos={"qpos": np.ones(4), "odd": np.zeros((4, 3))})
    assert sorted(set(a.fields) - set(join([a, b]).fields)) == ["infos.odd", "next_observations"]
    assert join([a, a]).has_next_observations


def test_datasets_of_other_sizes_are_refused():
    with pytest.raises(DatasetError, match=r"must agree: one has O=2, A=1, observations; two has O=3, A=1"):
        join(
            [
                dataset(5, 0, metadata={"name": "one"}),
                dataset(4, 100, obs_dim=3, metadata={"name": "two"}),
            ]
        )
