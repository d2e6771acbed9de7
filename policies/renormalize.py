"""A chunk policy taught to speak another policy's normalized actions: a short fine-tuning on demonstrations.

    L = mean (net(alpha A + sigma eps, t, o) - target)^2,   A in the new units, the network's old weights to begin with

Policies whose action normalizers differ by another factor in each dim see noise of different shapes; no composition of
them is exact. After this one their factor is 1. What acts is the average of the weights.

Source: none; the loss and the average are those of the policies' training (arXiv:2303.04137).
"""

from collections.abc import Iterator

import numpy as np
import torch

from offrl.data.normalize import AffineNormalizer
from offrl.data.windows import windows
from offrl.diffusion.parameterization import from_x0
from offrl.diffusion.schedules import VP
from offrl.diffusion.training import GrowingAverage, WarmupCosine
from offrl.errors import DatasetError
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.network import denoiser_of

BETAS = (0.95, 0.999)


def renormalize(
    policy: ChunkPolicy,
    actions: AffineNormalizer,
    observations: np.ndarray,
    taken: np.ndarray,
    episode_starts: np.ndarray,
    *,
    steps: int,
    lr: float = 1e-4,
    batch_size: int = 64,
    seed: int = 0,
) -> Iterator[float]:
    """Change the policy in place, giving the loss of each step; it is done when the last one was taken.

    Args:
        policy: to be taught; on the CPU.
        actions: the new units.
        observations: (N, O), what the policy sees, raw.
        taken: (N, A), the actions of the demonstrations, raw.
        episode_starts: (E + 1,).
        steps: updates; the step size rises over a tenth of them and falls to 0.
        lr: its largest value.
        batch_size: windows an update.
        seed: of windows, levels and noise.

    Raises:
        DatasetError: no window fits.
    """
    rows, _ = windows(episode_starts, policy.horizon, pad_before=policy.n_obs - 1, pad_after=policy.n_act - 1)
    if not len(rows):
        raise DatasetError(f"no episode has the {policy.horizon - policy.n_act + 1} steps that a chunk needs")
    policy.set_normalizers(policy.normalizer("observation"), actions)
    g, average = torch.Generator().manual_seed(seed), GrowingAverage()
    seen, chunks = torch.from_numpy(observations), actions(torch.from_numpy(taken.astype(np.float32)))
    weights: list[torch.Tensor] = [p for p in policy.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in weights]
    rate = WarmupCosine(lr, steps, max(steps // 10, 1))
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=BETAS, weight_decay=1e-6)
    for step in range(steps):
        picked = torch.from_numpy(rows)[torch.randint(len(rows), (batch_size,), generator=g)]
        loss = denoising_loss(policy, seen[picked[:, : policy.n_obs]], chunks[picked], g)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, weights, 1.0 - average(step + 1))
        yield float(loss.detach())
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


def denoising_loss(
    policy: ChunkPolicy, history: torch.Tensor, chunks: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """What the policy was trained with, on raw histories (B, To, O) and normalized chunks (B, H, A)."""
    noise = torch.randn(chunks.shape, generator=generator)
    if isinstance(policy.schedule, VP):
        index = torch.randint(len(policy.schedule.rho), (len(chunks),), generator=generator)
        abar = policy.schedule.abar[index].float()
        alpha, sigma, time = abar.sqrt(), (1 - abar).sqrt(), index.float()
    else:
        s = torch.rand(len(chunks), generator=generator)
        alpha, sigma, time = 1 - s, s, policy.schedule.time_scale * s
    alpha, sigma = alpha[:, None, None], sigma[:, None, None]
    x = alpha * chunks + sigma * noise
    target = noise - chunks if policy.output == "flow" else from_x0(policy.output, chunks, x, alpha, sigma)
    out = denoiser_of(policy)(x, time, policy.encode(history))
    loss: torch.Tensor = (out - target).square().mean()
    return loss
