"""The processes of one run under torchrun: each has its share of the scenarios, and sums go round.

Every process draws the same minibatch and takes its part of the rows; parts are summed over all processes, with
the whole batch's count in the scale. So N processes make the updates of one, to rounding, for any sizes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from offrl.errors import ConfigError


class Ranks:
    """One process among ``size``; alone by default, where everything returns what it got.

    Args:
        rank: number of this process; 0 is the one that writes.
        size: processes in all.
        local: number of this process on its machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """``cuda`` becomes this process's own GPU.

        Raises:
            ConfigError: the machine has fewer GPUs than processes.
        """
        if self.size == 1 or name != "cuda":
            return name
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"{torch.cuda.device_count()} GPUs cannot serve process {self.local + 1} of this machine: "
                "give torchrun a smaller --nproc-per-node"
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the last axis; parts differ in length by at most one and may be empty."""
        return rows.tensor_split(self.size, -1)[self.rank]

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over processes, the same bits in all of them; one message for all."""
        if self.size == 1:
            return list(parts)
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts])
        return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]

    def gather(self, part: Tensor, count: int) -> Tensor:
        """The values (count,) of all rows from each process's ``share`` of them, in order."""
        if self.size == 1:
            return part
        whole = part.new_zeros(count)
        whole[self.share(torch.arange(count, device=part.device))] = part
        dist.all_reduce(whole)
        return whole

    def most(self, number: int) -> int:
        """The largest number of all processes: on what one has seen, such as a signal, all agree."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes that torchrun started; without it, alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(rank, size, local)
    finally:
        dist.destroy_process_group()
