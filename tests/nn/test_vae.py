"""The action VAE: shapes, layout, the box, the clip of its spread, and seeds that stay apart."""

import pytest
import torch
from torch import nn

from offrl.nn.actor_critic import ActionBox
from offrl.nn.mlp import unstack
from offrl.nn.vae import decode, encode, init_vae
from offrl.training.seeding import streams

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
BOX = ActionBox(LOW, HIGH)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sequential(params, g):
    """Network ``g`` as torch's own modules."""
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_encoder_and_decoder_are_those_of_torchs_modules():
    """O = 3, A = 2: the encoder (5, 8, 8, 8) gives mean and log std of 4 latents, the decoder is (7, 8, 8, 2)."""
    params = init_vae(3, 2, 8, streams((0, 1), "init"))
    observations, actions, latents = draw(2, 7, 3), draw(2, 7, 2, seed=1), draw(2, 7, 4, seed=2)
    mean, log_std = encode(params, observations, actions)
    decoded = decode(params, observations, latents, BOX)
    assert mean.shape == log_std.shape == (2, 7, 4)
    for s in range(2):
        out = sequential(params[:6], s)(torch.cat([observations[s], actions[s]], dim=1))
        torch.testing.assert_close(torch.cat([mean[s], log_std[s]], dim=1), out)
        raw = sequential(params[6:], s)(torch.cat([observations[s], latents[s]], dim=1))
        torch.testing.assert_close(decoded[s], (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * raw.tanh())
    assert len(params) == 12


@pytest.mark.parametrize(("bias", "limit"), [(-99.0, -4.0), (99.0, 15.0)])
def test_the_log_std_is_clipped_and_the_mean_is_not(bias, limit):
    params = [p.detach() for p in init_vae(3, 2, 8, streams((0,), "init"))]
    params[5].fill_(bias)
    mean, log_std = encode(params, draw(1, 7, 3), draw(1, 7, 2))
    assert (log_std == limit).all()
    assert (mean.abs() > 90).all()


def test_each_seed_draws_its_own_weights_whatever_stands_beside_it():
    both, own = init_vae(3, 2, 8, streams((0, 1), "init")), init_vae(3, 2, 8, streams((1,), "init"))
    assert all(torch.equal(a[1:], b) for a, b in zip(both, own, strict=True))
