"""Speed of the inventory simulator, forward and backward over 50 periods, one thread: store-periods per CPU-second.

OMP_NUM_THREADS=1 python scripts/bench_inventory_simulator.py
"""

import itertools
import time

import torch
from torch import nn

from offrl.envs.inventory.scenarios import rollout
from offrl.envs.inventory.settings import load_setting

CASES = (  # setting, its options, batch, hidden layers of 32 (0: fixed orders, the simulator alone)
    ("one_store_lost", {}, 8192, 3),
    ("one_store_lost", {}, 8192, 0),
    ("serial_system", {}, 8192, 0),
    ("one_warehouse_lost_demand", {"stores": 5}, 1024, 0),
    ("one_warehouse_lost_demand", {"stores": 100}, 1024, 0),
    ("many_warehouses_lost_demand", {}, 1024, 0),
)


def measure(name: str, options: dict[str, float], batch: int, layers: int, repeats: int = 5) -> float:
    """CPU-seconds of the fastest of some training steps."""
    setting = load_setting(name, **options).resized(train=batch, dev=2)
    train, network = setting.draw("train"), setting.network
    sizes = [len(network.nodes) * network.width] + [32] * layers
    hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ELU())]
    net = nn.Sequential(*hidden, nn.Linear(sizes[-1], len(network.edges)))
    fixed = torch.full((batch, len(network.edges)), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam(net.parameters() if layers else [fixed], lr=1e-3)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        loss = rollout(
            lambda o: nn.functional.softplus(net(o.stock.flatten(1)) + 1) if layers else fixed * 1,
            train,
            periods=50,
        ).mean(network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - start)
    return min(times[1:])


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, options, batch, layers in CASES:
        seconds = measure(name, options, batch, layers)
        stores = load_setting(name, **options).network.stores
        what = f"net of {layers} layers" if layers else "simulator alone"
        rate = batch * 50 * stores / seconds
        print(
            f"{name:28} S={stores:<4} B={batch:<5} {what:16} {1e3 * seconds:7.1f} ms  {rate:.3g} store-periods/CPU-s"
        )


if __name__ == "__main__":
    main()
