"""Images for PushT recordings that hold none: drawn again from the recorded poses."""

from typing import Any

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import named_environment
from offrl.errors import DatasetError
from offrl.evaluation.environments import make_env

NEEDED = ("observations.agent_pos", "observations.block_pose")


def with_pixels(data: OfflineDataset) -> OfflineDataset:
    """The dataset with ``observations.pixels`` (N, 96, 96, 3) bytes, seen through the view ``pixels``.

    The environment draws what it would have shown (up to the rounding of the poses to float32): about a millisecond
    and 27 kB a step, in memory.

    Args:
        data: with ``observations.agent_pos`` and ``observations.block_pose``: ``builtin:pusht-demo``.

    Raises:
        DatasetError: no poses.
        MissingExtraError: gym-pusht is not installed.
    """
    if missing := [name for name in NEEDED if name not in data.fields]:
        raise DatasetError(f"PushT's images are drawn from poses, but there is no {missing[0]!r}")
    spec = named_environment("pusht-pixels")
    env = make_env(spec)
    try:
        env.reset(seed=0)
        table: Any = env.unwrapped
        agents, blocks = (data.fields[name].astype(np.float64) for name in NEEDED)
        pixels = np.empty((data.num_steps, 96, 96, 3), np.uint8)
        for row, (agent, block) in enumerate(zip(agents.tolist(), blocks.tolist(), strict=True)):
            table.agent.position = tuple(agent)
            table.block.angle, table.block.position = block[2], tuple(block[:2])
            for body in (table.agent, table.block):  # what is drawn are the shapes, not the bodies
                table.space.reindex_shapes_for_body(body)
            pixels[row] = table.get_obs()["pixels"]
    finally:
        env.close()
    view = {"flatten": list(spec.flatten), "env_kwargs": spec.kwargs}
    known = {k: v for k, v in data.metadata.items() if k != "sha256"}
    views = known.get("views", {}) | {"pixels": view}
    fields = data.fields | {"observations.pixels": pixels}
    return OfflineDataset(fields, data.episode_starts, known | view | {"views": views, "view": "pixels"})
