"""What training a chunk policy needs besides its loss: windows, normalizers, AdamW along a cosine, averaged weights.

A window has H rows, its row To - 1 is "now". Windows begin up to To - 1 steps before their episode and end up to Ta - 1
after it; the rows that are missing repeat the first or last one and are trained on like all others.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from offrl.data.batch import Batch
from offrl.data.normalize import AffineNormalizer
from offrl.data.windows import windows
from offrl.diffusion.conditional_unet import ConditionalUNet, init_weights
from offrl.diffusion.training import AveragedTraining, GrowingAverage, WarmupCosine
from offrl.errors import ConfigError, PolicyError
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params
from offrl.policies.chunk import ChunkPolicy, Family, check_chunk, copy_weights
from offrl.training.problem import Problem

LEVEL_WIDTHS = (1, 2, 4)  # of the U-Net, times ``hidden``
BETAS = (0.95, 0.999)


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """Settings of a chunk policy; defaults are Diffusion Policy's but for the size of network and batch."""

    horizon: int = 16
    """Actions of a chunk (H), a multiple of 4."""
    n_obs: int = 2
    """Last observations that the policy sees (To)."""
    n_act: int = 8
    """Actions carried out before the next plan (Ta)."""
    hidden: int = 64
    """Channels of the U-Net's first level, a multiple of 8; the others have 2 and 4 times as many."""
    step_embed: int = 128
    """Width of the time features."""
    denoising_steps: int = 10
    """Noise levels of a plan when acting."""
    lr: float = 1e-4
    """AdamW step size after the warm-up; it then falls to 0 along a cosine."""
    warmup_steps: int = 500
    """Updates over which the step size rises to lr."""
    weight_decay: float = 1e-6
    """Every parameter shrinks by the step size times this each update."""
    ema_power: float = 0.75
    """The averaged weights, which act, keep 1 - n^-power of themselves at update n."""
    batch_size: int = 64
    """Windows per update."""

    family: ClassVar[Family]

    @property
    def context(self) -> int:
        """Length of a window."""
        return self.horizon

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.hidden * k for k in LEVEL_WIDTHS)

    @property
    def acting(self) -> dict[str, Any]:
        """How the policy is sampled, and its sizes: arguments of ``ChunkPolicy``."""
        names = ("horizon", "n_obs", "n_act", "step_embed", "denoising_steps")
        own = {name: getattr(self, name) for name in names}
        return own | {"family": self.family, "widths": self.widths, "stochastic": False}

    def __post_init__(self) -> None:
        check_optimization(self)
        if self.warmup_steps < 1:
            raise ConfigError(f"warmup_steps must be 1 or more, got {self.warmup_steps}")
        if self.weight_decay < 0 or not 0 < self.ema_power <= 1:
            raise ConfigError("weight_decay must be 0 or more, ema_power in (0, 1]")
        sizes = {name: value for name, value in self.acting.items() if name != "step_embed"}
        try:
            check_chunk(**sizes)
            with torch.device("meta"):
                ConditionalUNet(1, 1, self.widths, self.step_embed)
        except (PolicyError, ValueError) as error:
            raise ConfigError(str(error)) from None


def chunk_windows(problem: Problem, config: ChunkConfig) -> Tensor:
    """Rows (M, H) of all windows.

    Raises:
        DatasetError: no episode is long enough.
    """
    if problem.episode is None:
        raise ValueError("windows need the rows' episodes")
    counts = torch.unique_consecutive(problem.episode, return_counts=True)[1]
    starts = np.concatenate(([0], counts.cumsum(0).cpu().numpy()))
    rows, _ = windows(starts, config.horizon, pad_before=config.n_obs - 1, pad_after=config.n_act - 1)
    return torch.from_numpy(rows).to(problem.episode.device)


class ChunkLearner:
    """One step of AdamW on windows an update; subclasses say what is drawn and what the loss is."""

    metrics = ("loss",)

    def __init__(self, problem: Problem, config: ChunkConfig) -> None:
        self.config, self.box = config, ActionBox(problem.action_low, problem.action_high)
        self.obs_dim, self.act_dim = problem.obs_dim, problem.act_dim
        self.inputs = problem.inputs or None
        self.observation_units = AffineNormalizer.limits(problem.observations.cpu().numpy())
        self.action_units = AffineNormalizer.limits(problem.actions.cpu().numpy())
        self.net = ConditionalUNet(
            self.act_dim, config.n_obs * self.obs_dim, config.widths, config.step_embed
        ).to(problem.device)
        initial = init_weights(self.net, problem.streams("init"))
        self.names = list(initial)
        self.training = AveragedTraining(
            list(initial.values()),
            WarmupCosine(config.lr, problem.steps, config.warmup_steps),
            GrowingAverage(config.ema_power),
            betas=BETAS,
            weight_decay=config.weight_decay,
        )
        self.noise = problem.streams("noise")
        self._gradients = compiled(self.gradients) if problem.compile else self.gradients

    def draw(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Times (S, B) and noise (S, B, H, A) for chunks (S, B, H, A)."""
        raise NotImplementedError

    def example(self, chunks: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees of each chunk, the time it is told (S, B), and what it should put out."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on the windows' chunks."""
        seen = self.observation_units(batch.observations[:, :, : self.config.n_obs]).flatten(2)
        chunks = self.action_units(batch.actions)
        grads, metrics = self._gradients(seen, chunks, *self.draw(chunks))
        self.training.apply(grads)
        return metrics

    def gradients(
        self, seen: Tensor, chunks: Tensor, times: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of the mean squared error for chunks (S, B, H, A) after observations (S, B, To O)."""
        x, told, target = self.example(chunks, times, noise)

        def loss(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
            errors = []
            for seed in range(len(x)):  # convolutions of one seed fill the machine already
                own = {name: p[seed] for name, p in zip(self.names, params, strict=True)}
                out = functional_call(self.net, own, (x[seed], told[seed], seen[seed]))
                errors.append((out - target[seed]).square().mean())
            per_seed = torch.stack(errors)
            return per_seed.sum(), {"loss": per_seed}

        return gradients(loss, self.training.params)

    def policy(self, seed: int = 0) -> ChunkPolicy:
        """The averaged policy of one seed."""
        acting = self.config.acting | {"inputs": self.inputs}
        policy = ChunkPolicy(self.obs_dim, self.act_dim, self.box.low, self.box.high, **acting)
        policy.set_normalizers(self.observation_units, self.action_units)
        average = zip(self.names, self.training.average, strict=True)
        copy_weights(policy, {name: p[seed] for name, p in average})
        return policy.to(self.box.low.device).eval()

    def state_dict(self) -> dict[str, Any]:
        """The network, its average and optimizer, and the noise streams."""
        return {"training": self.training.state_dict(), "noise": [g.get_state() for g in self.noise]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.training.load_state_dict(state["training"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())
