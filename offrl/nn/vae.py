"""A conditional variational autoencoder of actions, for S seeds side by side.

    encoder:  q(z | s, a) = N(mean, std^2),  std = exp(clip(log_std, -4, 15)),  z of size 2A
    decoder:  a~ = center + half-range * tanh(f(s, z))

Parameters are those of the encoder and then those of the decoder, each as ``offrl.nn.mlp`` keeps them.

Source: BCQ, arXiv:1812.02900, section 5; sizes and clip as in ltlhuuu/A2PR, which took them from BCQ's code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import Params, init_mlp, mlp

LOG_STD_RANGE = (-4.0, 15.0)


def init_vae(obs_dim: int, act_dim: int, hidden: int, generators: Sequence[torch.Generator]) -> Params:
    """Fresh encoder and decoder with two hidden layers each, one of both for every generator."""
    latent = 2 * act_dim
    encoder = init_mlp((obs_dim + act_dim, hidden, hidden, 2 * latent), 1, generators)
    return [*encoder, *init_mlp((obs_dim + latent, hidden, hidden, act_dim), 1, generators)]


def encode(params: Params, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log std of q(z | s, a): (S, B, O), (S, B, A) -> twice (S, B, 2A)."""
    encoder = params[: len(params) // 2]
    mean, log_std = mlp(encoder, torch.cat((observations, actions), dim=2)).transpose(1, 2).chunk(2, dim=2)
    return mean, log_std.clamp(*LOG_STD_RANGE)


def decode(params: Params, observations: Tensor, latents: Tensor, box: ActionBox) -> Tensor:
    """Actions inside the box: (S, B, O), (S, B, 2A) -> (S, B, A)."""
    decoder = params[len(params) // 2 :]
    return box.squash(mlp(decoder, torch.cat((observations, latents), dim=2)).transpose(1, 2))
