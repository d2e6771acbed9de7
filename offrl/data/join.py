"""Several datasets as one."""

from collections.abc import Sequence

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError


def join(datasets: Sequence[OfflineDataset]) -> OfflineDataset:
    """The episodes of all datasets, in the order given, with the first one's metadata.

    Fields that not all of them have, in one shape, are left out. An episode that a dataset leaves unfinished is marked
    truncated, so that none runs over into the next dataset.

    Raises:
        DatasetError: observations or actions have other sizes or keys.
    """
    first = datasets[0]
    for other in datasets[1:]:
        shapes = [(d.observation_keys, d.obs_dim, d.act_dim) for d in (first, other)]
        if shapes[0] != shapes[1]:
            (keys, obs, act), (other_keys, other_obs, other_act) = shapes
            raise DatasetError(
                f"datasets to be joined must agree: {first.metadata.get('name', 'the first')} has O={obs}, A={act}, "
                f"{', '.join(keys)}; {other.metadata.get('name', 'another')} has O={other_obs}, A={other_act}, "
                f"{', '.join(other_keys)}"
            )
    parts = [d.select(np.arange(d.num_episodes)) for d in datasets]
    names = [name for name in parts[0].fields if len({_width(part, name) for part in parts}) == 1]
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in names}
    lengths = np.concatenate([part.episode_lengths for part in parts])
    metadata = {k: v for k, v in parts[0].metadata.items() if k != "timeouts_recorded"}  # they are marked now
    return OfflineDataset(fields, np.concatenate([[0], np.cumsum(lengths)]), metadata)


def _width(dataset: OfflineDataset, name: str) -> tuple[int, ...] | None:
    return dataset.fields[name].shape[1:] if name in dataset.fields else None
