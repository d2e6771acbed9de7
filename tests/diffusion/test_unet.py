"""The temporal U-Net: size, lengths, what reaches what, seeds side by side, equality with torch's own layers."""

import pytest
import torch
import torch.nn.functional as F

from offrl.diffusion.layers import conv, draw, group_norm, sinusoid
from offrl.diffusion.unet import UNet, _halve, _resize


def generators(*seeds):
    return [torch.Generator().manual_seed(k) for k in seeds]


def count(net):
    return sum(torch.Size(shape).numel() for _, shape in net.shapes())


def test_it_has_the_published_number_of_parameters():
    """177.7 M at F = 1024, 0.18 M at F = 32, for rows of 25 numbers (pgd sheet 5)."""
    assert count(UNet(25)) == pytest.approx(177.7e6, abs=0.05e6)
    assert count(UNet(25, features=32)) == pytest.approx(0.18e6, abs=0.005e6)


@pytest.mark.parametrize("length", [4, 5, 16, 32, 33, 129])
def test_any_length_comes_out_as_it_went_in(length):
    net = UNet(6, features=32)
    x = torch.randn(2, 3, length, 6)
    assert net(net.init(generators(0, 1)), x, torch.randn(2, 3)).shape == x.shape


def test_the_output_far_from_an_edit_does_not_change():
    """Receptive field: 3 convolutions of width 3 at each of 3 scales and two of width 2 reach less than 48 steps.

    A norm that pooled over time, as torch.nn.GroupNorm does, would carry an edit everywhere (pgd sheet 12.9).
    """
    net, level = UNet(6, features=32), torch.zeros(1, 1)
    params = net.init(generators(0))
    x = torch.randn(1, 1, 128, 6)
    other = x.clone()
    other[:, :, 100:] += 5.0
    before, after = net(params, x, level), net(params, other, level)
    assert torch.equal(before[:, :, :50], after[:, :, :50])
    assert not torch.equal(before[:, :, 99:], after[:, :, 99:])


def test_the_norm_is_that_of_groups_at_one_time_step_and_not_torchs_group_norm():
    x = torch.randn(1, 2, 5, 16)
    scale, shift = torch.rand(1, 1, 16), torch.rand(1, 1, 16)
    ours = group_norm(x, 8, iter([scale, shift]))
    parts = x.view(1, 2, 5, 8, 2)
    mean, var = parts.mean(-1, keepdim=True), parts.var(-1, unbiased=False, keepdim=True)
    wanted = ((parts - mean) / (var + 1e-6).sqrt()).view(1, 2, 5, 16) * scale[0, 0] + shift[0, 0]
    torch.testing.assert_close(ours, wanted)
    pooled = F.group_norm(x[0].transpose(1, 2), 8, scale[0, 0], shift[0, 0], 1e-6).transpose(1, 2)
    assert (pooled - ours[0]).abs().max() > 0.3


@pytest.mark.parametrize(("kernel", "padding"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (5, (2, 2))])
def test_the_convolution_is_torchs_with_same_padding(kernel, padding):
    x, weight, bias = torch.randn(2, 3, 7, 4), torch.randn(2, kernel * 4, 6), torch.randn(2, 1, 6)
    ours = conv(x, kernel, iter([weight, bias]))
    for k in range(2):
        taps = weight[k].view(kernel, 4, 6).permute(2, 1, 0)  # (out, in, kernel)
        theirs = F.conv1d(F.pad(x[k].transpose(1, 2), padding), taps, bias[k, 0])
        torch.testing.assert_close(ours[k], theirs.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("now", "length"), [(8, 16), (64, 129), (4, 9), (32, 64)])
def test_resizing_takes_the_nearest_half_pixel_centre(now, length):
    """torch's 'nearest-exact'; plain 'nearest' differs for 64 -> 129."""
    x = torch.randn(1, 2, now, 3)
    exact, plain = (
        F.interpolate(x[0].transpose(1, 2), length, mode=m).transpose(1, 2)
        for m in ("nearest-exact", "nearest")
    )
    assert torch.equal(_resize(x, length)[0], exact)
    assert torch.equal(exact, plain) == (length == 2 * now)


def test_halving_keeps_the_larger_of_each_pair():
    x = torch.tensor([1.0, 5.0, 4.0, 2.0, 9.0]).view(1, 1, 5, 1)
    assert _halve(x).flatten().tolist() == [5.0, 4.0]


def test_the_level_is_seen_as_sines_and_cosines():
    """Frequencies exp(-ln(10000) k / (half - 1)): 1 first, 1e-4 last."""
    got = sinusoid(torch.tensor([[0.7]]), 8)[0, 0]
    freqs = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])
    torch.testing.assert_close(got, torch.cat(((0.7 * freqs).sin(), (0.7 * freqs).cos())))


def test_seeds_side_by_side_equal_their_single_networks():
    net, x, level = UNet(5, features=32), torch.randn(3, 2, 8, 5), torch.randn(3, 2)
    stacked = net(net.init(generators(0, 1, 2)), x, level)
    for k in range(3):
        alone = net(net.init(generators(k)), x[k : k + 1], level[k : k + 1])
        torch.testing.assert_close(stacked[k : k + 1], alone, rtol=1e-5, atol=1e-5)


def test_each_sample_has_its_own_level_and_every_parameter_a_gradient():
    net = UNet(5, features=32)
    params, x = net.init(generators(0)), torch.randn(1, 2, 8, 5)
    level = torch.tensor([[0.0, 1.0]])
    one, other = net(params, x, level), net(params, x, level + torch.tensor([0.0, 1.0]))
    assert torch.equal(one[:, 0], other[:, 0])
    assert (one[:, 1] != other[:, 1]).all()
    grads = torch.autograd.grad(one.square().sum(), params)
    assert all(g.abs().sum() > 0 for g in grads)


def test_fresh_weights_have_the_variance_of_their_fan_in():
    weight, bias = draw([("lecun 400", (400, 300)), ("zero", (1, 300))], generators(0))
    assert weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert weight.requires_grad
    assert bias.abs().sum() == 0


def test_sizes_that_cannot_be_are_refused():
    for features in (16, 36, 24):
        with pytest.raises(ValueError, match="features must be a multiple of 8"):
            UNet(5, features=features)
    with pytest.raises(ValueError, match="blocks"):
        UNet(5, features=32, blocks=0)
