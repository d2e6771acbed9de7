"""Stacked GELU networks against torch's own modules, and their initial weights."""

import pytest
import torch
from torch import nn

from offrl.nn.gelu import gelu, gelu_mlp, init_gelu
from offrl.nn.mlp import unstack
from offrl.nn.normed import linear_part
from offrl.training.seeding import streams

SIZES, BATCH = (3, 5, 4, 2), 7


def modules(params, g, layer_norm):
    linear = linear_part(params) if layer_norm else params
    norms, layers = params[len(linear) :], []
    pairs = unstack(linear, g)
    for i, (weight, bias) in enumerate(pairs):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
        if i < len(pairs) - 1:
            layers.append(nn.GELU(approximate="tanh"))
            if layer_norm:
                norm = nn.LayerNorm(len(bias), eps=1e-6)
                gain, shift = (p[g].detach().flatten() for p in norms[2 * i : 2 * i + 2])
                norm.load_state_dict({"weight": gain, "bias": shift})
                layers.append(norm)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_network_is_torchs_own(layer_norm):
    """Two seeds, two members, inputs shared by the members of a seed; all parameters off their initial values."""
    generator = torch.Generator().manual_seed(0)
    params = [
        (p.detach() + 0.5 * torch.randn(p.shape, generator=generator)).requires_grad_()
        for p in init_gelu(SIZES, 2, streams((0, 1), "init"), layer_norm=layer_norm)
    ]
    x = torch.randn(2, BATCH, 3, generator=generator)
    out = gelu_mlp(params, x, layer_norm=layer_norm)
    assert out.shape == (4, 2, BATCH)
    for g in range(4):
        torch.testing.assert_close(out[g].T, modules(params, g, layer_norm)(x[g // 2]))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_initial_weights_are_glorots_and_biases_zero(layer_norm):
    params = init_gelu((6, 300, 200, 4), 2, streams((0,), "init"), layer_norm=layer_norm)
    linear = linear_part(params) if layer_norm else params
    assert len(linear) == 6
    for weight, bias, total in zip(linear[::2], linear[1::2], (306, 500, 204), strict=True):
        bound = (6 / total) ** 0.5
        assert 0.97 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not bias.any()
    assert all((p == 1 - i % 2).all() for i, p in enumerate(params[len(linear) :]))
    assert all(p.requires_grad and p.is_leaf for p in params)


def test_a_seeds_weights_do_not_depend_on_the_others():
    both = init_gelu(SIZES, 2, streams((0, 1), "init"), layer_norm=True)
    alone = init_gelu(SIZES, 2, streams((1,), "init"), layer_norm=True)
    assert all(torch.equal(a[2:], b) for a, b in zip(both, alone, strict=True))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_under_autocast_outputs_and_gradients_stay_float32(layer_norm):
    params = init_gelu(SIZES, 1, streams((0,), "init"), layer_norm=layer_norm)
    x = torch.randn(1, BATCH, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = gelu_mlp(params, x, layer_norm=layer_norm)
        grads = torch.autograd.grad(out.square().sum(), params)
    exact = gelu_mlp(params, x, layer_norm=layer_norm)
    assert {t.dtype for t in (out, *grads)} == {torch.float32}
    assert not torch.equal(out, exact)
    torch.testing.assert_close(out, exact, rtol=0.1, atol=0.1)


def test_value_and_slope_are_those_of_torchs_own_also_far_out():
    x = torch.cat((torch.linspace(-8, 8, 2001), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4]))).requires_grad_()
    weight = torch.linspace(0.5, 2.0, len(x))
    ours, own = gelu(x), torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours, gelu(x.detach()))
    slopes = [torch.autograd.grad((weight * y).sum(), x)[0] for y in (ours, own)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=2e-6)
