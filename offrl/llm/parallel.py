"""Several processes, each with the whole model: prompts are shared out, rollouts exchanged, gradients added up.

Started by ``accelerate launch --num_processes N -m offrl.llm train ...`` or ``torchrun --nproc-per-node N -m offrl.llm
train ...``. Every process knows the whole batch, so that statistics and counts are those of one process; the gradient
is the same sum, taken in another order.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from offrl.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all; alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """The rows of this process, in order; ``size`` divides ``count``."""
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def gathered(self, item: Any) -> list[Any]:
        """The same item of every process, in order."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def total(self, number: int) -> int:
        """A count over all processes."""
        return sum(self.gathered(number))

    def any(self, asked: Any) -> bool:
        """Whether a process asks for something."""
        return any(self.gathered(bool(asked)))

    def add_gradients(self, parameters: list[Tensor]) -> None:
        """The sum over processes, in each of them; a process that had no rows adds 0."""
        if self.size == 1:
            return
        for kind in sorted({p.dtype for p in parameters}, key=str):
            mine = [p for p in parameters if p.dtype == kind]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in mine])
            dist.all_reduce(flat)
            for p, grad in zip(mine, flat.split([p.numel() for p in mine]), strict=True):
                p.grad = grad.view_as(p)

    def add(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over processes by name, also of names that this process lacks."""
        if self.size == 1:
            return values
        parts = self.gathered({name: float(value) for name, value in values.items()})
        names = {name: None for part in parts for name in part}
        device = next((value.device for value in values.values()), None)
        sums = {name: sum(part.get(name, 0.0) for part in parts) for name in names}
        return {name: torch.tensor(value, device=device) for name, value in sums.items()}


def join() -> Ranks:
    """The processes that a launcher started with this one; a process of its own is alone.

    Raises:
        ConfigError: the launcher's settings cannot be used.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except (ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"{size} processes on {socket.gethostname()} found no way together: {error}"
            ) from None
    return Ranks(dist.get_rank(), dist.get_world_size())
