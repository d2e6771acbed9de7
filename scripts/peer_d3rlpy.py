"""Trains d3rlpy's TD3+BC or IQL on the rows of an .npz file and saves the actor's weights at given steps.

Runs with d3rlpy's own Python (it pins another Gymnasium), so it imports nothing of offrl:

    d3rlpy-venv/bin/python scripts/peer_d3rlpy.py --data rows.npz --algorithm td3_bc --steps 100000 --seed 0 --out DIR

The settings are offrl's, field by field; the observation scaler gets offrl's mean and std.
"""

import argparse
import json
import time
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import IQLConfig, TD3PlusBCConfig
from d3rlpy.optimizers import AdamFactory
from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
from d3rlpy.preprocessing import StandardObservationScaler


def make(algorithm: str, steps: int, mean: np.ndarray, std: np.ndarray) -> "d3rlpy.algos.QLearningAlgoBase":
    """The peer's learner with matched settings."""
    common = {"batch_size": 256, "gamma": 0.99, "tau": 0.005}
    rates = {"actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}
    if algorithm == "td3_bc":
        scaler = StandardObservationScaler(mean=mean, std=std, eps=0.0)
        config = TD3PlusBCConfig(**common, **rates, alpha=2.5, observation_scaler=scaler)
    else:
        cosine = AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(T_max=steps))
        config = IQLConfig(**common, **rates, expectile=0.7, weight_temp=3.0, actor_optim_factory=cosine)
    return config.create(device="cpu:0")


def actor_weights(algo: "d3rlpy.algos.QLearningAlgoBase") -> dict[str, np.ndarray]:
    """The policy network's tensors by their names."""
    return {name: tensor.numpy().copy() for name, tensor in algo.impl.policy.state_dict().items()}


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--algorithm", choices=("td3_bc", "iql"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    torch.set_num_threads(1)
    d3rlpy.seed(o.seed)
    with np.load(o.data, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    dataset = d3rlpy.dataset.MDPDataset(
        observations=data["observations"],
        actions=data["actions"],
        rewards=data["rewards"],
        terminals=data["terminals"].astype(np.float32),
        timeouts=data["timeouts"].astype(np.float32),
    )
    algo = make(o.algorithm, o.steps, data["mean"], data["std"])
    o.out.mkdir(parents=True, exist_ok=True)
    logger = d3rlpy.logging.NoopAdapterFactory()
    began = time.process_time()
    epochs = algo.fitter(
        dataset,
        n_steps=o.steps,
        n_steps_per_epoch=o.save_every,
        logger_adapter=logger,
        show_progress=False,
        save_interval=10**9,
    )
    for epoch, _ in epochs:
        np.savez(o.out / f"actor-{epoch * o.save_every}.npz", **actor_weights(algo))
    facts = {
        "d3rlpy": d3rlpy.__version__,
        "torch": torch.__version__,
        "cpu_seconds": time.process_time() - began,
    }
    (o.out / "facts.json").write_text(json.dumps(facts | {"transitions": int(dataset.transition_count)}))


if __name__ == "__main__":
    main()
