"""Which episodes a run does not train on: a share of the data, the same for every seed."""

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError

SPLIT_SEED = 0


def split_episodes(data: OfflineDataset, share: float) -> tuple[OfflineDataset, OfflineDataset]:
    """The episodes that are fitted and the round(share E) ones, at least one, that are held out.

    The choice depends on the number of episodes and the share alone.

    Args:
        data: two episodes or more.
        share: in (0, 1).

    Raises:
        DatasetError: there are fewer than two episodes.
    """
    episodes = data.num_episodes
    if episodes < 2:
        raise DatasetError(
            f"--holdout holds out whole episodes: the data have {episodes}, two or more are needed"
        )
    count = min(max(round(share * episodes), 1), episodes - 1)
    held_out = np.random.default_rng(SPLIT_SEED).permutation(episodes)[:count]
    kept = np.ones(episodes, dtype=bool)
    kept[held_out] = False
    return data.select(np.flatnonzero(kept)), data.select(np.flatnonzero(~kept))
