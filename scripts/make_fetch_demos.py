"""Makes the FetchPickAndPlace and FetchPush demonstrations that ship with the package: scripted experts, disturbed.

    python scripts/make_fetch_demos.py [--tasks pick push] [--out offrl/data/builtin] [--demos 150] [--workers 2]

Plays episodes 0, 1, 2, ... of seed 0, keeps those that succeed, and writes the first ``--demos`` of them as
``fetch-pick-demo.hdf5`` and ``fetch-push-demo.hdf5``: 50 steps each, all observations; the view ``positions`` sees
neither velocities nor the object's rotation. The bytes depend on seed and library versions only.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from offrl.collect import collect_successes
from offrl.data.compressed import write_compressed
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import named_environment
from offrl.errors import USER_ERRORS
from offrl.evaluation.sources import load_expert

TASKS, SEED = ("pick", "push"), 0
STEPS_EACH = 55  # room for episodes that fail
MAX_BYTES = 1_500_000


def with_views(data: OfflineDataset, name: str) -> OfflineDataset:
    """What a dataset needs for two views; true successors and simulator states are left out to keep it small."""
    views = {v: {"flatten": list(named_environment(f"{name}-{v}").flatten)} for v in ("state", "positions")}
    facts = {
        "name": f"{name}-demo",
        "collector": "scripted expert (offrl.evaluation.fetch), disturbed, successful episodes only",
        "made_by": "scripts/make_fetch_demos.py",
        "gymnasium_robotics_version": importlib.metadata.version("gymnasium-robotics"),
        "reference_returns": [0.0, 1.0],
        "reference": "success rate",
        "views": views,
        **views["state"],
    }
    kept = (
        "observations.observation",
        "observations.desired_goal",
        "actions",
        "rewards",
        "terminated",
        "truncated",
    )
    return OfflineDataset({key: data.fields[key] for key in kept}, data.episode_starts, data.metadata | facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Record, keep the successes, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="which of the two")
    parser.add_argument("--out", type=Path, default=Path("offrl/data/builtin"), help="folder of the dataset")
    parser.add_argument("--demos", type=int, default=150, help="successful episodes that are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    options = parser.parse_args(argv)
    try:
        for name in (f"fetch-{task}" for task in options.tasks):
            spec = named_environment(f"{name}-state")
            data = collect_successes(
                spec,
                load_expert(spec),
                options.demos,
                steps_each=STEPS_EACH,
                stochastic=True,
                seed=SEED,
                workers=options.workers,
            )
            print(f"the expert succeeded in {data.metadata['success_rate']:.1%} of the episodes")
            data = with_views(data, name)
            size = write_compressed(data, path := options.out / f"{name}-demo.hdf5", MAX_BYTES)
            print(f"{path}: {size} bytes, {data.describe()}")
    except USER_ERRORS as error:
        print(f"make_fetch_demos: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
