"""Environment steps a second of sbx's SAC and PPO (JAX), one thread, updates included; prints one JSON line.

    sbx-venv/bin/python scripts/peer_sbx_speed.py HalfCheetah-v5 3

Called by 'bench_online.py speed --sbx PYTHON'. Needs sbx-rl and gymnasium[mujoco] in an environment of its own.
"""

import json
import os
import sys
import time


def main() -> None:
    """Measure."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    from sbx import PPO, SAC  # after the flags

    env, turns = sys.argv[1], int(sys.argv[2])
    models = {
        "sbx:SAC": (SAC("MlpPolicy", env, learning_starts=300, seed=0), 300),
        "sbx:PPO": (PPO("MlpPolicy", env, seed=0), 2048),
    }
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(turns + 1):  # the first one compiles and passes the random steps: it is not counted
        for name, (model, steps) in models.items():
            extra = 300 if turn == 0 and name == "sbx:SAC" else 0
            began = time.perf_counter()
            model.learn(steps + extra, reset_num_timesteps=turn == 0)
            if turn:
                rates[name].append(steps / (time.perf_counter() - began))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
