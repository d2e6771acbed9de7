"""Records the zoo: D4RL-like datasets by pretrained stable-baselines3 agents and by the waypoint controller.

    python scripts/make_zoo.py --agents DIR [--only zoo/hopper-medium ...] [--workers 2] [--hdf5 DIR]

``--agents`` holds one folder an agent, ``ALGO-ENV-v3/model.zip`` (and ``vecnormalize.pkl`` where it has one):
sac, tqc, trpo, ppo and a2c on HalfCheetah, Hopper and Walker2d from the rl-baselines3-zoo. They act in the
-v5 environments. Sets are written as ``minari:zoo/NAME-v0``; those that exist are left alone, so that an
interrupted run goes on where it stopped. At the end the mean returns stand beside the expected ones.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minari.storage import get_dataset_path

from offrl.collect import collect, concatenate
from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec, environment_for
from offrl.data.load import load_dataset
from offrl.data.minari import write_minari
from offrl.errors import USER_ERRORS
from offrl.evaluation.sources import load_source
from offrl.evaluation.waypoint import collect_waypoints

TOLERANCE = 0.05  # of the mean return: it drifts with MuJoCo's version


@dataclass(frozen=True)
class Part:
    """Rows of one behaviour."""

    agent: str  # algorithm of a folder in --agents, or random
    steps: int
    noise: float = 0.0  # std of Gaussian action noise, clipped
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """One dataset."""

    parts: tuple[Part, ...]
    mean_return: float | None = None  # as measured with MuJoCo 4.0; None where it was not


def _mixed(*parts: tuple[str, float]) -> Recipe:
    return Recipe(tuple(Part(agent, 40_000, noise, seed=1) for agent, noise in parts))


MEDIUM = {
    "hopper": ("sac", 0.0, 1541.0),
    "halfcheetah": ("sac", 0.3, 5400.0),
    "walker2d": ("trpo", 0.0, 2028.0),
}
EXPERT = {"hopper": 3232.0, "halfcheetah": 11445.0, "walker2d": 4116.0}  # all by tqc
RECIPES: dict[str, Recipe] = {}
for _env, (_agent, _noise, _mean) in MEDIUM.items():
    RECIPES[f"{_env}-medium"] = Recipe((Part(_agent, 200_000, _noise),), _mean)
    RECIPES[f"{_env}-expert"] = Recipe((Part("tqc", 200_000),), EXPERT[_env])
    RECIPES[f"{_env}-medium-expert"] = Recipe((Part(_agent, 100_000, _noise), Part("tqc", 100_000)))
RECIPES["halfcheetah-demonstrations"] = Recipe((Part("tqc", 10_000, seed=2),))
RECIPES["halfcheetah-narrow"] = Recipe((Part("ppo", 200_000),), 5402.0)
RECIPES["hopper-mixed"] = _mixed(("random", 0.0), ("a2c", 0.1), ("sac", 0.2), ("trpo", 0.3), ("ppo", 0.1))
RECIPES["halfcheetah-mixed"] = _mixed(
    ("random", 0.0), ("a2c", 0.1), ("ppo", 0.2), ("trpo", 0.3), ("sac", 0.1)
)
RECIPES["walker2d-mixed"] = _mixed(("random", 0.0), ("a2c", 0.1), ("trpo", 0.2), ("sac", 0.3), ("sac", 0.1))
RECIPES["walker2d-mixed-1m"] = Recipe(
    tuple(replace(p, steps=200_000) for p in RECIPES["walker2d-mixed"].parts)
)
MAZES = {"pointmaze-umaze": 100_000, "pointmaze-medium": 100_000}  # steps of the waypoint controller, seed 0
FOLDER_NAMES = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}


def record(name: str, agents: Path, workers: int) -> OfflineDataset:
    """Collect the set ``name``, e.g. ``hopper-medium``."""
    spec = environment_for(f"zoo/{name}")
    if name in MAZES:
        return collect_waypoints(spec.env_id, MAZES[name], seed=0)
    robot = FOLDER_NAMES[name.partition("-")[0]]
    datasets = [record_part(part, spec, robot, agents, workers) for part in RECIPES[name].parts]
    return datasets[0] if len(datasets) == 1 else concatenate(datasets)


def record_part(part: Part, spec: EnvSpec, robot: str, agents: Path, workers: int) -> OfflineDataset:
    """Rows of one behaviour; actions are sampled where the agent has a distribution."""
    folder = f"{part.agent}-{robot}-v3"
    source = "random" if part.agent == "random" else f"sb3:{agents / folder / 'model.zip'}"
    return collect(
        spec,
        load_source(source, spec),
        part.steps,
        stochastic=True,
        noise=part.noise,
        seed=part.seed,
        workers=workers,
        collector="random" if part.agent == "random" else folder,
    )


def make(name: str, agents: Path, workers: int, hdf5: Path | None) -> OfflineDataset:
    """Load ``minari:zoo/NAME-v0``, or record it if it is not there; the same for the HDF5 copy."""
    uri = f"minari:zoo/{name}-v0"
    if get_dataset_path(uri.removeprefix("minari:")).exists():
        dataset, what = load_dataset(uri), "exists"
    else:
        began = time.perf_counter()
        recorded = record(name, agents, workers)
        what = f"recorded at {recorded.num_steps / (time.perf_counter() - began):.0f} steps/s"
        dataset = write_minari(recorded, uri.removeprefix("minari:"))
    print(f"{uri}: {what}, {dataset.describe()}", flush=True)
    if hdf5 is not None and not (path := hdf5 / f"{name}-v0.hdf5").exists():
        write_d4rl(dataset, path)
        print(f"  written to {path}", flush=True)
    return dataset


def compare(name: str, dataset: OfflineDataset) -> str:
    """One line of the closing table."""
    mean = float(dataset.episode_returns.mean())
    expected = RECIPES[name].mean_return if name in RECIPES else None
    if expected is None:
        return f"{name:26} {mean:10.1f} {'-':>10}"
    off = mean / expected - 1
    return f"{name:26} {mean:10.1f} {expected:10.1f}" + (
        f"  off by {off:+.0%}" if abs(off) > TOLERANCE else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the sets that are not there yet."""
    names = [*RECIPES, *MAZES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=Path, required=True, help="folder of the agents")
    parser.add_argument("--only", nargs="+", metavar="zoo/NAME", default=names, help="; ".join(names))
    parser.add_argument("--workers", type=int, default=1, help="processes; the data do not depend on it")
    parser.add_argument("--hdf5", type=Path, metavar="DIR", help="also write DIR/NAME-v0.hdf5")
    options = parser.parse_args(argv)
    wanted = [name.removeprefix("minari:").removeprefix("zoo/").removesuffix("-v0") for name in options.only]
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"unknown set {unknown[0]!r}; there are {', '.join(names)}")
    if not options.agents.is_dir():
        parser.error(f"no such folder: {options.agents.absolute()}")
    try:
        lines = [compare(n, make(n, options.agents, options.workers, options.hdf5)) for n in wanted]
    except USER_ERRORS as error:
        print(f"make_zoo: {error}", file=sys.stderr)
        return 1
    print(f"\n{'mean episode return':26} {'here':>10} {'expected':>10}", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
