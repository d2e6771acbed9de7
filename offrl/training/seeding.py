"""One seed, many named random streams that do not disturb each other."""

import random
import zlib
from collections.abc import Sequence

import numpy as np
import torch


def seed_globally(seed: int) -> None:
    """Seed the global streams of torch, NumPy and Python, which a method of one's own may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global stream itself
    random.seed(seed)


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator called ``name`` of run ``seed``; the same pair gives the same numbers."""
    words = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 ^ int(words[1]))


def streams(seeds: Sequence[int], name: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One stream a seed."""
    return [stream(seed, name, device) for seed in seeds]


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal draws (S, *shape); seed k's part comes from ``generators[k]`` alone."""
    parts = [torch.randn((1, *shape), generator=g, device=g.device) for g in generators]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
