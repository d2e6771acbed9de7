"""Makes the PushT demonstrations that ship with the package: the planning expert with an unsteady hand.

    python scripts/make_pusht_demos.py [--out offrl/data/builtin] [--parts DIR] [--workers 2]

For each of the seeds 0 to 3 it plays episodes 0, 1, 2, ..., keeps the first 50 that succeed, and writes all of them
as ``pusht-demo.hdf5``: agent, block and keypoints as observations, the agent's target as action, one episode a
demonstration. About a quarter of a second an episode on one core. With ``--parts`` the seeds that are done are kept
there and not played again. The bytes depend on seeds and library versions only.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offrl.collect import collect_successes, concatenate
from offrl.data.compressed import write_compressed
from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import named_environment
from offrl.errors import USER_ERRORS
from offrl.evaluation.pusht import PushTExpert
from offrl.evaluation.pusht_pushes import KEYPOINTS, place

NAME, SEEDS, DEMOS = "pusht-demo", (0, 1, 2, 3), 50
STEPS_EACH = 150  # room for episodes that fail or take long
MAX_BYTES = 2_500_000


def record(seed: int, workers: int = 1, parts: Path | None = None) -> OfflineDataset:
    """The first ``DEMOS`` successful episodes of a seed, as the environment showed them (state)."""
    if parts is not None and (path := parts / f"seed{seed}.hdf5").is_file():
        return read_d4rl(path)
    data = collect_successes(
        named_environment("pusht-state"),
        PushTExpert(),
        DEMOS,
        steps_each=STEPS_EACH,
        stochastic=True,
        seed=seed,
        workers=workers,
    )
    print(
        f"seed {seed}: the expert succeeded in {data.metadata['success_rate']:.1%} of the episodes",
        flush=True,
    )
    if parts is not None:
        write_d4rl(data, path)
    return data


def with_views(data: OfflineDataset) -> OfflineDataset:
    """Agent, block and keypoints as separate observations; the views say which of them a policy sees.

    Args:
        data: recorded with state observations (agent x, y, block x, y, angle).
    """
    state = data.fields["observations"]
    keypoints = place(state[:, 2:].astype(np.float64), KEYPOINTS).reshape(len(state), 16)
    views = {}
    for view, keys in (
        ("state", ["agent_pos", "block_pose"]),
        ("keypoints", ["agent_pos", "environment_state"]),
    ):
        views[view] = {"flatten": keys, "env_kwargs": named_environment(f"pusht-{view}").kwargs}
    facts = {
        "name": NAME,
        "collector": "planning expert (offrl.evaluation.pusht) with an unsteady hand, successful episodes only",
        "made_by": "scripts/make_pusht_demos.py",
        "gym_pusht_version": importlib.metadata.version("gym-pusht"),
        "pymunk_version": importlib.metadata.version("pymunk"),
        "reference_returns": [0.0, 1.0],
        "reference": "success rate",
        "views": views,
        **views["state"],
    }
    kept = ("actions", "rewards", "terminated", "truncated")
    fields = {
        "observations.agent_pos": state[:, :2],
        "observations.block_pose": state[:, 2:],
        "observations.environment_state": keypoints.astype(np.float32),
        **{key: data.fields[key] for key in kept},
    }
    return OfflineDataset(fields, data.episode_starts, data.metadata | facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Record, keep the successes, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("offrl/data/builtin"), help="folder of the dataset")
    parser.add_argument("--parts", type=Path, help="folder for the demonstrations of each seed")
    parser.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    options = parser.parse_args(argv)
    try:
        parts = [record(seed, options.workers, options.parts) for seed in SEEDS]
        data = with_views(concatenate(parts))
        size = write_compressed(data, path := options.out / f"{NAME}.hdf5", MAX_BYTES)
        print(f"{path}: {size} bytes, {data.describe()}")
    except USER_ERRORS as error:
        print(f"make_pusht_demos: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
