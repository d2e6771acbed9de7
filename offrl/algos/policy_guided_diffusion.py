"""Policy-guided diffusion: a diffusion model of windows of trajectories, from which synthetic data are drawn.

    model:   x = L rows of (o, a, r, d) of an episode, standardized;  ln rho ~ N(-1.2, 1.2^2), one for each window
             L = mean (1 + rho^2) / rho^2 (D(x + rho n, rho) - x)^2
    drawing: p(x) prod_t pi(a_t | o_t)^coef for a target policy pi, by ``offrl generate RUN --policy SOURCE``
             (offrl.diffusion.guidance); without one it is trajectory-level upsampling, as SynthER's

Windows start at every ``stride``-th step that is followed by L - 1 others of its episode, at the beginning of each
episode, and where a window ends with its terminal step; none ends in a time-out. Samples are drawn with the averaged
weights. A run of it has no policy to evaluate.

Source: Jackson et al., arXiv:2404.06356; official code EmptyJackson/policy-guided-diffusion.
Departures: the official network has 1024 channels (178 M parameters; preset 'official'), ours by default 64 (0.7 M),
for CPUs. Its 10 000 epochs set the length of its step-size schedule; ours is that of the run. Windows are drawn with
replacement, and none is held out for a validation loss. Averaged weights leave the initial ones out.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.diffusion import edm
from offrl.diffusion.training import AveragedTraining, ConstantAverage, WarmupCosine
from offrl.diffusion.trajectory import TrajectoryModel, raw_rows
from offrl.diffusion.unet import UNet
from offrl.errors import ConfigError, DatasetError
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params
from offrl.training.problem import Algorithm, Problem
from offrl.training.seeding import normal


@dataclass(frozen=True, kw_only=True)
class PolicyGuidedDiffusionConfig:
    """Settings of the trajectory model; defaults are the official code's but for the width."""

    context: int = 32
    """Steps of a window (L)."""
    stride: int = 8
    """Every how many possible starts a window begins."""
    hidden: int = 64
    """Channels of the U-Net's first block: 64 are 0.7 M parameters, the official 1024 are 178 M."""
    blocks: int = 3
    """Blocks of the U-Net; each has twice the channels of the one before, at half the time resolution."""
    lr: float = 2e-3
    """Adam step size after the warm-up; it then falls to 0 along a cosine."""
    warmup: float = 0.1
    """Share of the updates over which the step size rises from a tenth of lr."""
    ema_decay: float = 0.995
    """What the averaged weights keep of themselves, every ``ema_every`` updates."""
    ema_every: int = 10
    """Updates between steps of the average."""
    batch_size: int = 32
    """Windows per update."""

    def __post_init__(self) -> None:
        check_optimization(self)
        for name in ("stride", "ema_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError(f"warmup must be in [0, 1), got {self.warmup}: it is a share of the updates")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        try:
            UNet(1, self.hidden, self.blocks)
        except ValueError as error:
            raise ConfigError(f"hidden, blocks: {error}") from None
        if self.context < max(2, 2 ** (self.blocks - 1)):
            raise ConfigError(f"context must be 2^(blocks - 1) or more, got {self.context}")


PRESETS: dict[str, dict[str, Any]] = {"official": {"hidden": 1024}}


def window_starts(problem: Problem, config: PolicyGuidedDiffusionConfig) -> Tensor:
    """Rows (M,) at which the windows begin, rising.

    Raises:
        DatasetError: no episode is long enough.
    """
    if problem.episode is None:
        raise ValueError("windows need the rows' episodes")
    length, count = config.context, len(problem.episode)
    device = problem.episode.device
    last = torch.ones(count, dtype=torch.bool, device=device)
    last[:-1] = problem.episode[1:] != problem.episode[:-1]
    first = last.roll(1)
    ends = last.long().cumsum(0)
    fits = torch.zeros(count, dtype=torch.bool, device=device)
    if count >= length:  # no end among the first L - 1 steps
        before = ends - last.long()
        fits[: count - length + 1] = before[length - 1 :] == before[: count - length + 1]
    possible = fits.nonzero().flatten()
    final = possible + length - 1
    wanted = torch.zeros(len(possible), dtype=torch.bool, device=device)
    wanted[:: config.stride] = True
    terminal = problem.terminated[final] > 0
    wanted |= terminal | first[possible]
    wanted &= ~(last[final] & ~terminal)
    if not wanted.any():
        raise DatasetError(
            f"no window of {length} steps fits into the episodes without ending in a time-out; lower --context"
        )
    return possible[wanted]


def row_statistics(rows: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (W,) of ``rows`` (N, W), each counted as often as windows hold it; std 0 is 1."""
    counts = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for offset in range(length):
        counts[starts + offset] += 1.0
    weights, values = (counts / counts.sum())[:, None], rows.double()
    mean = (weights * values).sum(0)
    std = (weights * (values - mean).square()).sum(0).sqrt()
    constant = std <= 1e-6 * mean.abs()  # float32 tells no smaller ones apart
    return mean.float(), torch.where(constant, 1.0, std).float()


class PolicyGuidedDiffusion:
    """Learner: one denoising step on windows an update."""

    metrics = ("denoising_loss",)

    def __init__(self, problem: Problem, config: PolicyGuidedDiffusionConfig) -> None:
        self.config, self.box = config, ActionBox(problem.action_low, problem.action_high)
        rows = self._raw(problem.observations, problem.actions, problem.rewards, problem.terminated)
        self.mean, self.std = row_statistics(rows, window_starts(problem, config), config.context)
        self.net = UNet(rows.shape[1], config.hidden, config.blocks)
        self.training = AveragedTraining(
            self.net.init(problem.streams("init")),
            WarmupCosine(config.lr, problem.steps, round(config.warmup * problem.steps), start=0.1),
            ConstantAverage(config.ema_decay, config.ema_every),
        )
        self.noise = problem.streams("noise")
        self._gradients = compiled(self.gradients) if problem.compile else self.gradients

    def _raw(self, observations: Tensor, actions: Tensor, rewards: Tensor, terminated: Tensor) -> Tensor:
        return raw_rows(observations, (actions - self.box.center) / self.box.half, rewards, terminated)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on the denoising error of the windows."""
        rows = self._raw(batch.observations, batch.actions, batch.rewards, batch.terminated)
        x = (rows - self.mean) / self.std
        levels = edm.draw_levels(x.shape[1], self.noise)
        grads, metrics = self._gradients(x, levels, normal(x.shape[1:], self.noise))
        self.training.apply(grads)
        return metrics

    def gradients(
        self, x: Tensor, levels: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L for standardized windows (S, B, L, W) at noise levels (S, B)."""

        def loss(net: Params) -> tuple[Tensor, dict[str, Tensor]]:
            per_seed = edm.loss(lambda u, level: self.net(net, u, level), x, levels, noise)
            return per_seed.sum(), {"denoising_loss": per_seed}

        return gradients(loss, self.training.params)

    def policy(self, seed: int = 0) -> TrajectoryModel:
        """The averaged model of one seed; it does not act."""
        return TrajectoryModel.from_params(
            [p[seed : seed + 1] for p in self.training.average],
            *(self.mean, self.std, self.box.low, self.box.high),
            hidden=self.config.hidden,
            blocks=self.config.blocks,
            length=self.config.context,
        )

    def state_dict(self) -> dict[str, Any]:
        """The network, its average and optimizer, and the noise streams."""
        return {"training": self.training.state_dict(), "noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.training.load_state_dict(state["training"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(
    PolicyGuidedDiffusionConfig,
    PolicyGuidedDiffusion,
    PRESETS,
    windows=True,
    starts=window_starts,
    acts=False,
    online="it models data and does not act",
)
