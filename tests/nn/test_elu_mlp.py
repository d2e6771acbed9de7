"""The hand-written gradient of stacked ELU perceptrons."""

import pytest
import torch
from torch.nn import functional as F

from offrl.nn.elu_mlp import EluMLP


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def plain(net, x):
    """The same by torch's own operations."""
    layers = list(net.layers)
    for i in range(0, len(layers), 2):
        x = layers[i] @ x + layers[i + 1]
        if net.last or i + 2 < len(layers):
            x = F.elu(x)
    return x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sizes", [(3, 5, 2), (4, 6, 5, 1), (2, 1)])
def test_values_and_gradients_are_torchs(sizes, last):
    net = EluMLP(sizes, generators(0, 1), last=last).double()
    x = torch.randn(2, sizes[0], 7, dtype=torch.float64, generator=generators(2)[0]).requires_grad_()
    torch.testing.assert_close(net(x), plain(net, x))
    weight = torch.randn(2, sizes[-1], 7, dtype=torch.float64, generator=generators(3)[0])
    inputs = [x, *net.layers]
    ours = torch.autograd.grad((net(x) * weight).sum(), inputs)
    theirs = torch.autograd.grad((plain(net, x) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_and_wanted_gradients_only():
    net = EluMLP((3, 4, 2), generators(0)).double()
    x = torch.randn(1, 3, 5, dtype=torch.float64, generator=generators(1)[0])
    assert torch.autograd.gradcheck(lambda *layers: plain_call(net, x, layers), tuple(net.layers))
    net.requires_grad_(False)
    (g,) = torch.autograd.grad(net(x.requires_grad_()).sum(), [x])
    torch.testing.assert_close(g, torch.autograd.grad(plain(net, x).sum(), [x])[0])


def plain_call(net, x, layers):
    from offrl.nn.elu_mlp import _EluMLP

    return _EluMLP.apply(x, net.last, *layers)


def test_a_seed_draws_its_own_network_within_torchs_bounds():
    both, one = EluMLP((9, 16, 1), generators(0, 1), bias=2.0), EluMLP((9, 16, 1), generators(1), bias=2.0)
    for p, q in zip(both.layers, one.layers, strict=True):
        assert torch.equal(p[1], q[0])
    assert 0.3 < float(both.layers[0].detach().abs().max()) <= 1 / 3
    assert torch.equal(both.layers[-1], torch.full((2, 1, 1), 2.0))
