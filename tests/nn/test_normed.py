"""Stacked networks with layer normalization: against torch's own modules, in both orders."""

import pytest
import torch
from torch import nn

from offrl.nn.mlp import init_mlp, unstack
from offrl.nn.normed import init_normed, linear_part, normed_mlp
from offrl.training.seeding import streams

SIZES, BATCH = (3, 5, 4, 2), 7
ORDERS = pytest.mark.parametrize("order", ["before_relu", "after_relu"])


def network(copies=1, seeds=(0,)):
    """Double precision; gains and shifts away from 1 and 0, so that they count."""
    params = [p.detach().double() for p in init_normed(SIZES, copies, streams(seeds, "init"))]
    generator = torch.Generator().manual_seed(1)
    norms = params[len(linear_part(params)) :]
    for p in norms:
        p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return [p.requires_grad_() for p in params]


def inputs(groups):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(groups, BATCH, SIZES[0], dtype=torch.float64, generator=generator)


def modules(params, g, order):
    """Network ``g`` as torch's own modules."""
    norms, layers = params[len(linear_part(params)) :], []
    pairs = unstack(linear_part(params), g)
    for i, (weight, bias) in enumerate(pairs):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers.append(linear)
        if i < len(pairs) - 1:
            norm = nn.LayerNorm(weight.shape[0], dtype=torch.float64)
            gain, shift = (p[g].detach().flatten() for p in norms[2 * i : 2 * i + 2])
            norm.load_state_dict({"weight": gain, "bias": shift})
            layers += [norm, nn.ReLU()] if order == "before_relu" else [nn.ReLU(), norm]
    return nn.Sequential(*layers)


@ORDERS
def test_outputs_and_gradients_are_those_of_torchs_modules(order):
    """Two seeds of two members that share their seed's inputs; gradients of an arbitrary weighted sum."""
    params, x = network(2, (0, 1)), inputs(2)
    out = normed_mlp(params, x, order)
    assert out.shape == (4, SIZES[-1], BATCH)
    weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
    grads = torch.autograd.grad((weight * out).sum(), params)
    for g in range(4):
        net = modules(params, g, order)
        want = net(x[g // 2]).T
        torch.testing.assert_close(out[g], want)
        (weight[g] * want).sum().backward()
        linears = [m for m in net if isinstance(m, nn.Linear)]
        norms = [m for m in net if isinstance(m, nn.LayerNorm)]
        for i, linear in enumerate(linears):
            own = grads[2 * i][g] if linear is linears[-1] else grads[2 * i][g].T
            torch.testing.assert_close(own, linear.weight.grad)
            torch.testing.assert_close(grads[2 * i + 1][g].flatten(), linear.bias.grad)
        for i, norm in enumerate(norms):
            gain, shift = (grads[2 * len(linears) + 2 * i + j][g].flatten() for j in range(2))
            torch.testing.assert_close(gain, norm.weight.grad)
            torch.testing.assert_close(shift, norm.bias.grad)


def test_what_follows_the_last_norm_tells_the_orders_apart():
    """With gain 1, shift 0 a layer normalized last has mean 0 in every sample, one cut last is never negative.

    The output layer is set to the mean over the last hidden layer.
    """
    params = [p.detach() for p in init_normed(SIZES, 1, streams((0,), "init"))]
    linear = linear_part(params)
    linear[-2].fill_(1 / SIZES[-2])
    linear[-1].zero_()
    x = inputs(1).float()
    torch.testing.assert_close(normed_mlp(params, x, "after_relu"), torch.zeros(1, SIZES[-1], BATCH))
    assert (normed_mlp(params, x, "before_relu") > 0.1).all()


def test_fresh_linear_layers_are_those_without_norms_and_norms_do_nothing_else():
    params = init_normed(SIZES, 2, streams((0, 1), "init"))
    plain = init_mlp(SIZES, 2, streams((0, 1), "init"))
    assert all(torch.equal(a, b) for a, b in zip(linear_part(params), plain, strict=True))
    norms = params[len(plain) :]
    assert [tuple(p.shape) for p in norms] == [(4, 1, 5), (4, 1, 5), (4, 1, 4), (4, 1, 4)]
    assert all((p == 1 - i % 2).all() for i, p in enumerate(norms))
    assert all(p.requires_grad and p.is_leaf for p in params)


@ORDERS
def test_the_scale_of_a_hidden_layer_does_not_matter(order):
    """norm(c h) = norm(h) for c > 0, up to the 1e-5 beside the variance; here from scales 1e4 to 1e8."""
    params, x, outputs = [p.detach() for p in network()], inputs(1), []
    for _ in range(2):
        for p in params[:2]:
            p.mul_(1e4)
        outputs.append(normed_mlp(params, x, order))
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


@ORDERS
def test_under_autocast_outputs_stay_float32(order):
    params, x = [p.detach().float() for p in network()], inputs(1).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = normed_mlp(params, x, order)
    assert out.dtype == torch.float32
    assert not torch.equal(out, normed_mlp(params, x, order))
    torch.testing.assert_close(out, normed_mlp(params, x, order), rtol=0.2, atol=0.2)
