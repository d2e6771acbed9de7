"""Trains a method of d3rlpy on the rows of an .npz file and saves the actor's weights at given steps.

Runs with d3rlpy's own Python (it pins another Gymnasium), so it imports nothing of offrl:

    d3rlpy-venv/bin/python scripts/peer_d3rlpy.py --data rows.npz --algorithm td3_bc --steps 100000 --seed 0 --out DIR

The settings are offrl's, field by field (ReBRAC: those of its hopper-medium preset at batch 256); the observation
scaler gets offrl's mean and std. docs/from_d3rlpy.md names what no setting makes equal.
"""

import argparse
import json
import time
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import AWACConfig, IQLConfig, ReBRACConfig, TD3PlusBCConfig
from d3rlpy.models.encoders import VectorEncoderFactory
from d3rlpy.optimizers import AdamFactory
from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
from d3rlpy.preprocessing import StandardObservationScaler


def make(algorithm: str, steps: int, mean: np.ndarray, std: np.ndarray) -> "d3rlpy.algos.QLearningAlgoBase":
    """The peer's learner with matched settings."""
    common = {"batch_size": 256, "gamma": 0.99, "tau": 0.005}
    lr = 1e-3 if algorithm == "rebrac" else 3e-4
    common |= {"actor_learning_rate": lr, "critic_learning_rate": lr}
    scaler = StandardObservationScaler(mean=mean, std=std, eps=0.0)
    deep = VectorEncoderFactory([256, 256, 256])
    normed = VectorEncoderFactory([256, 256, 256], use_layer_norm=True)  # after the relu, as in ours
    if algorithm == "td3_bc":
        config = TD3PlusBCConfig(**common, alpha=2.5, observation_scaler=scaler)
    elif algorithm == "iql":
        cosine = AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(T_max=steps))
        config = IQLConfig(**common, expectile=0.7, weight_temp=3.0, actor_optim_factory=cosine)
    elif algorithm == "rebrac":
        encoders = {"actor_encoder_factory": deep, "critic_encoder_factory": normed}
        config = ReBRACConfig(**common, **encoders, actor_beta=0.01, critic_beta=0.01)
    else:
        encoders = {"actor_encoder_factory": deep, "critic_encoder_factory": deep}
        config = AWACConfig(**common, **encoders, lam=0.3333, observation_scaler=scaler)
    return config.create(device="cpu:0")


def actor_weights(algo: "d3rlpy.algos.QLearningAlgoBase") -> dict[str, np.ndarray]:
    """The policy network's tensors by their names."""
    return {name: tensor.numpy().copy() for name, tensor in algo.impl.policy.state_dict().items()}


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--algorithm", choices=("td3_bc", "iql", "rebrac", "awac"), required=True)
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
