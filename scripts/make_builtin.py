"""Makes the dataset that ships with the package, from an agent that it trains itself.

    python scripts/make_builtin.py [--out offrl/data/builtin] [--agent FILE.zip]

Trains soft actor-critic on HalfCheetah-v5 for 25k steps with stable-baselines3 (about ten minutes on one core),
then records the agent with noise of several strengths and a few random episodes, and writes
``halfcheetah-demo.hdf5``. Much of what is recorded is poor, so cloning the average is not enough. One thread and
fixed seeds: the same library versions on the same kind of processor give the same agent.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and NumPy are loaded

import h5py
import numpy as np
import torch

from offrl.collect import collect, concatenate
from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import USER_ERRORS, MissingExtraError
from offrl.evaluation.sources import load_source
from offrl.files import atomic_write

NAME, ENV_ID = "halfcheetah-demo", "HalfCheetah-v5"
AGENT_STEPS, AGENT_SEED = 25_000, 0
PARTS = (  # (policy, std of the action noise, episodes of 1000 steps); part k has seed k
    ("random", 0.0, 4),
    ("agent", 1.0, 6),
    ("agent", 0.5, 8),
    ("agent", 0.3, 8),
)
MAX_BYTES = 2_500_000


def train_agent(path: Path) -> None:
    """Train SAC on ``ENV_ID`` and save it as a stable-baselines3 zip."""
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise MissingExtraError("stable-baselines3", "sb3") from error
    torch.set_num_threads(1)
    agent = SAC(
        "MlpPolicy",
        ENV_ID,
        seed=AGENT_SEED,
        learning_starts=2_000,
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [128, 128]},
        device="cpu",
        verbose=1,
    )
    agent.learn(AGENT_STEPS, log_interval=5)
    agent.save(path)


def record(agent: Path) -> OfflineDataset:
    """Whole episodes of every part; without infos and successors, which would double the file."""
    datasets = []
    for seed, (who, noise, episodes) in enumerate(PARTS):
        source = "random" if who == "random" else f"sb3:{agent}"
        collector = "random" if who == "random" else f"sac, {AGENT_STEPS} steps"
        policy = load_source(source, ENV_ID)
        part = collect(ENV_ID, policy, 1_000 * episodes, noise=noise, seed=seed, collector=collector)
        print(f"{who}, noise {noise}: {part.describe()}", flush=True)
        datasets.append(part)
    whole = concatenate(datasets, {"name": NAME})
    kept = ("observations", "actions", "rewards", "terminated", "truncated")
    return OfflineDataset({k: whole.fields[k] for k in kept}, whole.episode_starts, whole.metadata)


def write(dataset: OfflineDataset, path: Path) -> None:
    """Write a compressed D4RL-format file of at most ``MAX_BYTES`` and check that it reads back."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.hdf5"
        write_d4rl(dataset, plain)
        with (
            h5py.File(plain) as source,
            atomic_write(path) as temporary,
            h5py.File(temporary, "w", libver="earliest") as target,
        ):
            target.attrs["offrl"] = source.attrs["offrl"]
            for name, array in source.items():
                rows = np.asarray(array)
                options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                target.create_dataset(name, data=rows, chunks=rows.shape, track_times=False, **options)
    again = read_d4rl(path)
    if again.sha256 != dataset.sha256:
        raise RuntimeError(f"{path} does not read back as it was written")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RuntimeError(f"{path} has {size} bytes, more than {MAX_BYTES}: record fewer episodes")
    print(f"{path}: {size} bytes, {again.describe()}, mean return {again.episode_returns.mean():.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train the agent unless it is given, record it, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("offrl/data/builtin"), help="folder of the dataset")
    parser.add_argument("--agent", type=Path, help="use this agent; default: train it")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            agent = options.agent or Path(scratch) / "agent.zip"
            if options.agent is None:
                train_agent(agent)
            write(record(agent), options.out / f"{NAME}.hdf5")
    except USER_ERRORS as error:
        print(f"make_builtin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
