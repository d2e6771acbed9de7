"""Images drawn again are those that the environment showed."""

import numpy as np
import pytest

from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError
from offrl.evaluation.environments import make_env
from offrl.evaluation.pusht_pixels import with_pixels


def test_pixels_are_the_environments():
    """Poses rounded to float32 may move an edge: all but a few of the bytes agree, and most frames wholly."""
    env = make_env("pusht-pixels")
    env.reset(seed=5)
    poses, shown = [], []
    for target in ([100.0, 400.0], [300.0, 300.0], [250.0, 200.0], [256.0, 256.0]):
        table = env.unwrapped
        poses.append([*table.agent.position, *table.block.position, table.block.angle])
        shown.append(env.raw["pixels"])
        env.step(np.array(target, np.float32))
    env.close()
    poses = np.array(poses, np.float32)
    observations = {"agent_pos": poses[:, :2], "block_pose": poses[:, 2:]}
    data = OfflineDataset.from_arrays(observations, np.zeros((4, 2)), np.zeros(4), [0, 0, 0, 1])
    seen = with_pixels(data)
    same = seen.fields["observations.pixels"] == np.array(shown)
    assert same.mean() > 0.999
    assert len({frame.tobytes() for frame in shown}) == 4
    assert seen.obs_dim == 2 + 96 * 96 * 3
    assert seen.metadata["env_kwargs"] == {"obs_type": "pixels_agent_pos"}


def test_poses_are_needed():
    data = OfflineDataset.from_arrays(np.zeros((2, 5)), np.zeros((2, 2)), np.zeros(2), [0, 1])
    with pytest.raises(DatasetError, match=r"no 'observations\.agent_pos'"):
        with_pixels(data)
