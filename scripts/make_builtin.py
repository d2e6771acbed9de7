"""Makes the dataset that ships with the package, from an agent that it trains itself.

    python scripts/make_builtin.py [--out offrl/data/builtin] [--agents DIR]

Trains soft actor-critic on the double pendulum for 8000 steps with stable-baselines3 (two to three minutes on one
core), records a random policy and four stages of the agent, each with noise, and writes
``double-pendulum-demo.hdf5``. Most of the episodes fall within a second. One thread and fixed seeds: the same
library versions on the same kind of processor give the same agents.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and NumPy are loaded

import torch

from offrl.collect import collect, concatenate
from offrl.data.compressed import write_compressed
from offrl.data.dataset import OfflineDataset
from offrl.errors import USER_ERRORS, MissingExtraError
from offrl.evaluation.sources import load_source

NAME, ENV_ID = "double-pendulum-demo", "InvertedDoublePendulum-v5"
SEED = 0
NOISE = 0.1  # std of Gaussian action noise on top of the agent's own
RANDOM_ROWS = 3_000
STAGES = {3_000: 6_000, 5_000: 6_000, 7_000: 6_000, 8_000: 9_000}  # training steps -> rows
FIELDS = ("observations", "actions", "rewards", "terminated", "truncated")  # successors would double the file
MAX_BYTES = 2_500_000


def train_agents(folder: Path) -> None:
    """Train SAC on ``ENV_ID`` and save its stages as ``agent_STEPS_steps.zip``."""
    try:
        from stable_baselines3 import SAC
        from stable_baselines3.common.callbacks import CheckpointCallback
    except ImportError as error:
        raise MissingExtraError("stable-baselines3", "sb3") from error
    torch.set_num_threads(1)
    agent = SAC(
        "MlpPolicy",
        ENV_ID,
        seed=SEED,
        learning_starts=500,
        learning_rate=1e-3,
        batch_size=128,
        policy_kwargs={"net_arch": [64, 64]},
        device="cpu",
        verbose=1,
    )
    agent.learn(max(STAGES), callback=CheckpointCallback(1_000, str(folder), "agent"), log_interval=20)


def record(agents: Path) -> OfflineDataset:
    """The random policy, then the stages of the agent; part k has seed k."""
    random = collect(ENV_ID, load_source("random", ENV_ID), RANDOM_ROWS, seed=SEED)
    parts = [random]
    for seed, (steps, rows) in enumerate(STAGES.items(), 1):
        policy = load_source(f"sb3:{agents / f'agent_{steps}_steps.zip'}", ENV_ID)
        who = f"sac, {steps} steps"
        part = collect(ENV_ID, policy, rows, stochastic=True, noise=NOISE, seed=seed, collector=who)
        parts.append(part)
    for part in parts:
        mean = part.episode_returns.mean()
        print(f"{part.metadata['collector']}: {part.describe()}, mean return {mean:.1f}")
    whole = concatenate(parts, {"name": NAME})
    return OfflineDataset({k: whole.fields[k] for k in FIELDS}, whole.episode_starts, whole.metadata)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the agents unless they are given, record them, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("offrl/data/builtin"), help="folder of the dataset")
    parser.add_argument("--agents", type=Path, help="where agent_STEPS_steps.zip are; default: train them")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            agents = options.agents or Path(scratch)
            if options.agents is None:
                train_agents(agents)
            data = record(agents)
            size = write_compressed(data, path := options.out / f"{NAME}.hdf5", MAX_BYTES)
            print(f"{path}: {size} bytes, {data.describe()}, mean return {data.episode_returns.mean():.1f}")
    except USER_ERRORS as error:
        print(f"make_builtin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
