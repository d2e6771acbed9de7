"""What training a chunk policy needs besides its loss: windows, normalizers, AdamW along a cosine, averaged weights.

A window has H rows, its row To - 1 is "now". Windows begin up to To - 1 steps before their episode and end up to Ta - 1
after it; the rows that are missing repeat the first or last one and are trained on like all others.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from offrl.data.batch import Batch
from offrl.data.normalize import AffineNormalizer
from offrl.data.windows import windows
from offrl.diffusion.conditional_unet import init_weights
from offrl.diffusion.training import AveragedTraining, GrowingAverage, WarmupCosine
from offrl.diffusion.transformer import BETAS as TRANSFORMER_BETAS
from offrl.diffusion.transformer import DiffusionTransformer, decays
from offrl.errors import ConfigError, PolicyError, unused
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params
from offrl.policies.chunk import ChunkPolicy, Family, copy_weights
from offrl.policies.network import ChunkNetwork, Input, check_inputs, normalized, together
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
    denoiser: Literal["unet", "transformer"] = "unet"
    """Network: the 1-D U-Net, or the transformer (its published settings: preset transformer)."""
    hidden: int = 64
    """Channels of the U-Net's first level, a multiple of 8; the others have 2 and 4 times as many. A quarter of the
    transformer's width."""
    step_embed: int = 128
    """Width of the U-Net's time features."""
    layers: int = 8
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    dropout: float = 0.01
    """Share that the transformer drops in training."""
    crop: float = 0.875
    """Side of the part of each image that is seen, anywhere in training, the middle when acting; 1 is all of it."""
    keypoints: int = 32
    """Features of the spatial softmax over an image."""
    denoising_steps: int = 10
    """Noise levels of a plan when acting."""
    lr: float = 1e-4
    """AdamW step size after the warm-up; it then falls to 0 along a cosine."""
    warmup_steps: int = 500
    """Updates over which the step size rises to lr."""
    weight_decay: float = 1e-6
    """Parameters shrink by the step size times this each update; of the transformer only matrices."""
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
        return own | {
            "family": self.family,
            "widths": self.widths,
            "stochastic": False,
            "network": self.network,
        }

    @property
    def network(self) -> dict[str, Any]:
        """The denoiser's settings."""
        if self.denoiser == "unet":
            return {"kind": "unet"}
        own = {"layers": self.layers, "heads": self.heads, "dropout": self.dropout}
        return {"kind": "transformer", "width": 4 * self.hidden} | own

    def vision(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """The image encoder's settings for observations made of these parts."""
        images = [shape for _, shape in inputs if len(shape) == 3]
        sides = [round(self.crop * side) for side in images[0][:2]] if images else None
        return {"crop": None if self.crop == 1 else sides, "keypoints": self.keypoints}

    def __post_init__(self) -> None:
        check_optimization(self)
        if self.warmup_steps < 1:
            raise ConfigError(f"warmup_steps must be 1 or more, got {self.warmup_steps}")
        if self.weight_decay < 0 or not 0 < self.ema_power <= 1:
            raise ConfigError("weight_decay must be 0 or more, ema_power in (0, 1]")
        if self.denoiser == "unet":
            unused(self, "with denoiser unet", "layers", "heads", "dropout")
        else:
            unused(self, f"with denoiser {self.denoiser}", "step_embed")
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"crop must be in (0, 1], got {self.crop}")
        try:
            with torch.device("meta"):
                ChunkPolicy(1, 1, **self.acting)
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
        self.inputs = check_inputs(problem.inputs or None, self.obs_dim)
        if all(len(shape) != 3 for _, shape in self.inputs):
            unused(config, "on observations without images", "crop", "keypoints")
        self.vision = config.vision(self.inputs)
        seen = problem.observations.cpu().numpy()  # images are apart
        self.observation_units = AffineNormalizer.limits(seen).to(problem.device)
        actions = problem.actions.cpu().numpy()
        self.action_units = AffineNormalizer.limits(actions).to(problem.device)
        channels = sum(shape[2] for _, shape in self.inputs if len(shape) == 3)
        one = np.ones(channels)
        images = AffineNormalizer.build(0 * one, 2 * one, -one).to(problem.device)
        self.image_units = images if channels else None
        sizes = (config.horizon, config.n_obs, config.widths, config.step_embed)
        self.net = ChunkNetwork(self.inputs, self.act_dim, *sizes, config.network, self.vision)
        self.net.to(problem.device)
        initial = init_weights(self.net, problem.streams("init"))
        self.names = list(initial)
        plain = config.denoiser == "unet"
        self.training = AveragedTraining(
            list(initial.values()),
            WarmupCosine(config.lr, problem.steps, config.warmup_steps),
            GrowingAverage(config.ema_power),
            betas=BETAS if plain else TRANSFORMER_BETAS,
            weight_decay=config.weight_decay,
            decayed=None if plain else [decays(name) for name in self.names],
        )
        self.drops = problem.streams("dropout")
        self.crops = problem.streams("crop")
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
        raw = batch.observations[:, :, : self.config.n_obs]
        if batch.images is not None:
            raw = together(self.inputs, raw, batch.images[:, :, : self.config.n_obs])
        seen = normalized(self.inputs, raw, self.observation_units, self.image_units)
        seen = seen if self.net.images else seen.flatten(2)
        chunks = self.action_units(batch.actions)
        extras = self.draw_extras(chunks.shape[1])
        grads, metrics = self._gradients(seen, chunks, *self.draw(chunks), *extras)
        self.training.apply(grads)
        return metrics

    def draw_extras(self, batch: int) -> tuple[Tensor | None, list[Tensor] | None]:
        """Corners of the crops (S, B To, cameras, 2), and what the dropout keeps; None where there is none."""
        corners, keeps = None, None
        if self.net.images and self.vision["crop"] is not None:
            shape = (batch * self.config.n_obs, len(self.net.images))
            free = [
                side - part + 1
                for side, part in zip(self.net.images[0][:2], self.vision["crop"], strict=True)
            ]
            drawn = [
                torch.stack([torch.randint(n, shape, generator=g, device=g.device) for n in free], dim=2)
                for g in self.crops
            ]
            corners = torch.stack(drawn)
        if isinstance(self.net.denoiser, DiffusionTransformer):
            keeps = self.net.denoiser.draw_keeps(batch, self.drops) or None
        return corners, keeps

    def gradients(
        self,
        seen: Tensor,
        chunks: Tensor,
        times: Tensor,
        noise: Tensor,
        corners: Tensor | None = None,
        keeps: list[Tensor] | None = None,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of the mean squared error for chunks (S, B, H, A) after normalized observations (S, B, To O)."""
        x, told, target = self.example(chunks, times, noise)

        def loss(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
            errors = []
            for seed in range(len(x)):  # convolutions of one seed fill the machine already
                own = {name: p[seed] for name, p in zip(self.names, params, strict=True)}
                places = None if corners is None else corners[seed]
                kept = None if keeps is None else [k[seed] for k in keeps]
                out = functional_call(self.net, own, (x[seed], told[seed], seen[seed], places, kept))
                errors.append((out - target[seed]).square().mean())
            per_seed = torch.stack(errors)
            return per_seed.sum(), {"loss": per_seed}

        return gradients(loss, self.training.params)

    def policy(self, seed: int = 0) -> ChunkPolicy:
        """The averaged policy of one seed."""
        acting = self.config.acting | {"inputs": self.inputs, "vision": self.vision}
        policy = ChunkPolicy(self.obs_dim, self.act_dim, self.box.low, self.box.high, **acting)
        policy.set_normalizers(self.observation_units, self.action_units, self.image_units)
        average = zip(self.names, self.training.average, strict=True)
        copy_weights(policy, {name: p[seed] for name, p in average})
        return policy.to(self.box.low.device).eval()

    def state_dict(self) -> dict[str, Any]:
        """The network, its average and optimizer, and the streams of noise, dropout and crops."""
        streams = {name: [g.get_state() for g in own] for name, own in self._streams().items()}
        return {"training": self.training.state_dict(), **streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.training.load_state_dict(state["training"])
        for name, own in self._streams().items():
            for generator, saved in zip(own, state.get(name, []), strict=name in state):
                generator.set_state(saved.cpu())

    def _streams(self) -> dict[str, list[torch.Generator]]:
        return {"noise": self.noise, "drops": self.drops, "crops": self.crops}
