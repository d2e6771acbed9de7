"""Gradient steps per CPU-second of TD3+BC in a checkout of CORL (torch) or unifloral (JAX); prints one JSON line.

    python scripts/peer_public_speed.py corl PATH_OF_CORL 11 3
    jax-venv/bin/python scripts/peer_public_speed.py unifloral PATH_OF_UNIFLORAL 11 3

Their update code runs unchanged; the simulators and loggers that their files import are replaced by empty modules.
A unifloral step makes two critic updates and one actor update on one batch: it counts as two gradient steps.
"""

import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, BATCH = 1_000_000, 256


def load(path: Path, stubs: tuple[str, ...]) -> Any:
    """The module at ``path``, with the named imports replaced by empty modules."""
    for name in stubs:
        module = types.ModuleType(name)
        module.Env = object  # type: ignore[attr-defined]
        if name == "pyrallis":
            module.wrap = lambda: lambda function: function  # type: ignore[attr-defined]
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = loaded
    spec.loader.exec_module(loaded)
    for name in stubs:
        del sys.modules[name]
    return loaded


def random_data(obs_dim: int, act_dim: int) -> dict[str, np.ndarray]:
    """Random rows in the layout that both projects read."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(ROWS, obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(ROWS, act_dim)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "next_observations": rng.normal(size=(ROWS, obs_dim)).astype(np.float32),
        "terminals": np.zeros(ROWS, dtype=np.float32),
    }


def corl(root: Path, obs_dim: int, act_dim: int) -> Callable[[int], None]:
    """A function that makes n of CORL's gradient steps."""
    import torch

    torch.set_num_threads(1)
    peer = load(root / "algorithms/offline/td3_bc.py", ("gym", "d4rl", "wandb", "pyrallis"))
    buffer = peer.ReplayBuffer(obs_dim, act_dim, ROWS)
    buffer.load_d4rl_dataset(random_data(obs_dim, act_dim))
    actor, critics = peer.Actor(obs_dim, act_dim, 1.0), [peer.Critic(obs_dim, act_dim) for _ in range(2)]
    adam = [torch.optim.Adam(net.parameters(), lr=3e-4) for net in (actor, *critics)]
    agent = peer.TD3_BC(1.0, actor, adam[0], critics[0], adam[1], critics[1], adam[2])

    def steps(count: int) -> None:
        for _ in range(count):
            agent.train(buffer.sample(BATCH))

    return steps


def unifloral(root: Path, obs_dim: int, act_dim: int) -> Callable[[int], None]:
    """A function that makes n of unifloral's gradient steps (n / 2 of its steps)."""
    import jax
    import jax.numpy as jnp

    peer = load(root / "algorithms/td3_bc.py", ("gym", "d4rl", "wandb"))
    args, data = peer.Args(), random_data(obs_dim, act_dim)
    names = {"obs": "observations", "action": "actions", "reward": "rewards"}
    names |= {"next_obs": "next_observations", "done": "terminals"}
    dataset = peer.Transition(**{field: jnp.array(data[name]) for field, name in names.items()})
    mean, std = dataset.obs.mean(axis=0), dataset.obs.std(axis=0)
    actor, critic = peer.DeterministicTanhActor(act_dim, mean, std), peer.DualQNetwork(mean, std)
    key, inputs = jax.random.PRNGKey(0), [jnp.zeros(obs_dim), jnp.zeros(act_dim)]
    pairs = [(actor, inputs[:1]), (actor, inputs[:1]), (critic, inputs), (critic, inputs)]
    agent = peer.AgentTrainState(
        *(peer.create_train_state(args, key, net, arguments) for net, arguments in pairs)
    )
    step = peer.make_train_step(args, actor.apply, critic.apply, dataset)
    run = jax.jit(lambda state, count: jax.lax.scan(step, state, None, count), static_argnums=1)
    state = [(key, agent)]

    def steps(count: int) -> None:
        state[0], _ = jax.block_until_ready(run(state[0], count // 2))

    return steps


def product_rate() -> float:
    """GFLOP/s of a float32 product at 256^3 with numpy (median)."""
    a, b, out = (np.random.default_rng(i).normal(size=(256, 256)).astype(np.float32) for i in range(3))
    times = []
    for _ in range(8):
        began = time.process_time()
        for _ in range(100):
            np.matmul(a, b, out=out)
        times.append((time.process_time() - began) / 100)
    return 2 * 256**3 / 1e9 / statistics.median(times[1:])


def main() -> None:
    """Measure."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    make = {"corl": corl, "unifloral": unifloral}[sys.argv[1]]
    steps = make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    steps(200)
    before, times = product_rate(), []
    for _ in range(3):
        began = time.process_time()
        steps(200)
        times.append((time.process_time() - began) / 200)
    rate = 1 / statistics.median(times)
    print(json.dumps({"steps_per_second": rate, "gflops": [before, product_rate()]}))


if __name__ == "__main__":
    main()
