"""A diffusion model of windows of trajectories: what its rows mean, and its denoiser, as it is kept on disk.

    row t    [o_t, artanh(clip(a_t, -.999, .999)), r_t, d_t], each number standardized;  d_t = 1: the episode ended here
    back     a = tanh(.) in units of the box's half-range, d = [. > 1/2]

Source: arXiv:2404.06356, official code EmptyJackson/policy-guided-diffusion, ``environments/dataset.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offrl.diffusion import edm
from offrl.diffusion.unet import UNet
from offrl.errors import PolicyError
from offrl.nn.mlp import Params
from offrl.nn.policy import Bounds, Policy

LIMIT = 0.999  # of actions before artanh


@dataclass(frozen=True)
class Rows:
    """Steps of trajectories, (..., L) each, in the environment's units."""

    observations: Tensor  # (..., O)
    actions: Tensor  # (..., A)
    rewards: Tensor  # (...)
    terminated: Tensor  # (...) bool


def raw_rows(observations: Tensor, unit_actions: Tensor, rewards: Tensor, terminated: Tensor) -> Tensor:
    """Rows (..., O + A + 2) before they are standardized; actions in units of the box's half-range."""
    actions = unit_actions.clamp(-LIMIT, LIMIT).atanh()
    return torch.cat((observations, actions, rewards[..., None], terminated[..., None]), dim=-1)


class TrajectoryModel(Policy):
    """The denoiser of a finished run and the scale of its rows. It does not act: ``offrl generate`` samples from it.

    Args:
        obs_dim, act_dim, action_low, action_high: as in ``Policy``.
        hidden: F, channels of the U-Net's first block.
        blocks: of the U-Net.
        length: L, steps of the windows that it was trained on.
    """

    kind: ClassVar[str] = "trajectory_diffusion"
    row_mean: Tensor
    row_std: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        action_low: Bounds | None = None,
        action_high: Bounds | None = None,
        *,
        hidden: int,
        blocks: int,
        length: int,
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high)
        width = obs_dim + act_dim + 2
        try:
            self.net = UNet(width, hidden, blocks)
        except ValueError as error:
            raise PolicyError(str(error)) from None
        self.length = length
        self.register_buffer("row_mean", torch.zeros(width))
        self.register_buffer("row_std", torch.ones(width))
        self.weights = nn.ParameterList(torch.zeros((1, *shape)) for _, shape in self.net.shapes())

    @classmethod
    def from_params(
        cls, params: Sequence[Tensor], mean: Tensor, std: Tensor, low: Tensor, high: Tensor, **sizes: int
    ) -> "TrajectoryModel":
        """A model from one network's parameters (1, ...), the rows' statistics (W,) and the action box (A,)."""
        model = cls(len(mean) - len(low) - 2, len(low), low, high, **sizes).to(mean.device)
        with torch.no_grad():
            for own, given in zip(model.weights, params, strict=True):
                own.copy_(given)
        model.row_mean.copy_(mean)
        model.row_std.copy_(std)
        return model.eval().requires_grad_(False)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        sizes = {"hidden": self.net.features, "blocks": self.net.blocks, "length": self.length}
        return {"obs_dim": self.obs_dim, "act_dim": self.act_dim, **sizes}

    def forward(self, observations: Tensor) -> Tensor:
        """It has no actions (PolicyError)."""
        raise PolicyError("a model of trajectories does not act; draw from it with: offrl generate RUN")

    def denoise(self, u: Tensor, rho: float) -> Tensor:
        """D(u, rho) of standardized rows (B, L, W)."""
        params: Params = list(self.weights)
        level = torch.full((1, len(u)), rho, device=u.device)
        return edm.denoise(lambda x, c: self.net(params, x, c), u[None], level)[0]

    @property
    def action_columns(self) -> slice:
        """Where a row has its action."""
        return slice(self.obs_dim, self.obs_dim + self.act_dim)

    def observations_of(self, rows: Tensor) -> Tensor:
        """Observations (..., O) of standardized rows, in the environment's units."""
        o = slice(0, self.obs_dim)
        return rows[..., o] * self.row_std[o] + self.row_mean[o]

    def latent_actions(self, columns: Tensor) -> Tensor:
        """Action columns (..., A) of standardized rows before the tanh."""
        a = self.action_columns
        return columns * self.row_std[a] + self.row_mean[a]

    def decode(self, rows: Tensor) -> Rows:
        """Standardized rows (..., W) in the environment's units."""
        actions = self.to_box(self.latent_actions(rows[..., self.action_columns]).tanh())
        rewards, ended = (rows[..., -2:] * self.row_std[-2:] + self.row_mean[-2:]).unbind(-1)
        return Rows(self.observations_of(rows), self.clip(actions), rewards, ended > 0.5)
