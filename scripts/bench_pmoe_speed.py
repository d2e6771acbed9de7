"""An update of SAC and PMOE-SAC against the time of its own matrix products, one thread.

python scripts/bench_pmoe_speed.py      run it on a quiet machine; HalfCheetah-v5, batch 256, two layers of 256

Products: forward passes of actor and critics, their weight gradients and the gradients that flow to earlier layers;
the actor's step asks the critics about K actions a state. Medians of five rounds.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from offrl.algos.pmoe_sac import PMOESAC
from offrl.algos.sac import SAC

OBS, ACT, HIDDEN, BATCH = 17, 6, 256, 256


def products(experts: int) -> list[tuple[Tensor, Tensor]]:
    """Operands of every product of an update."""
    found: list[tuple[Tensor, Tensor]] = []

    def add(copies: int, *shapes: tuple[int, int, int]) -> None:
        found.extend((torch.randn(copies, a, b), torch.randn(copies, b, c)) for a, b, c in shapes)

    actor = list(pairwise((OBS, HIDDEN, HIDDEN, 2 * ACT * experts)))
    critic = list(pairwise((OBS + ACT, HIDDEN, HIDDEN, 1)))
    rows = BATCH * experts
    for copies, layers, passes in ((1, actor, 2), (2, critic, 2)):  # target and step
        add(copies, *[(BATCH, a, b) for a, b in layers] * passes)
        add(copies, *[(a, BATCH, b) for a, b in layers], *[(BATCH, b, a) for a, b in layers[1:]])
    add(2, *[(rows, a, b) for a, b in critic], *[(rows, b, a) for a, b in critic])
    return found


def median_ms(function: Callable[[], object], calls: int = 15, rounds: int = 5) -> float:
    """Median over rounds of the mean time of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - began) / calls * 1e3)
    return sorted(times)[rounds // 2]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for label, kind, experts in (("sac", SAC, 1), ("pmoe_sac", PMOESAC, 4)):
        model = kind("MlpPolicy", "HalfCheetah-v5", seed=0, device="cpu", learning_starts=300)
        model.learn(310)
        batch, operands = model.replay_buffer.batch(BATCH), products(experts)  # type: ignore[union-attr]
        limit = median_ms(lambda operands=operands: [torch.bmm(a, b) for a, b in operands])  # type: ignore[misc]
        update = median_ms(lambda model=model, batch=batch: model.update(batch))  # type: ignore[misc]
        print(f"{label}: products {limit:.2f} ms, update {update:.2f} ms, share {limit / update:.2f}")


if __name__ == "__main__":
    main()
