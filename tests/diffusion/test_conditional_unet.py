"""Names, shapes and arithmetic of the U-Net; its fresh weights."""

import pytest
import torch

from offrl.diffusion.conditional_unet import ConditionalUNet, init_weights

SHAPES = {  # of LeRobot's module for the published low-dimensional PushT network
    "diffusion_step_encoder.1.weight": (1024, 256),
    "diffusion_step_encoder.3.bias": (256,),
    "down_modules.0.0.conv1.block.0.weight": (256, 2, 5),
    "down_modules.0.0.conv1.block.1.weight": (256,),
    "down_modules.0.0.cond_encoder.1.weight": (512, 296),
    "down_modules.0.0.residual_conv.weight": (256, 2, 1),
    "down_modules.0.1.conv2.block.0.weight": (256, 256, 5),
    "down_modules.0.2.weight": (256, 256, 3),
    "down_modules.2.1.conv1.block.0.bias": (1024,),
    "mid_modules.1.conv2.block.0.weight": (1024, 1024, 5),
    "up_modules.0.0.conv1.block.0.weight": (512, 2048, 5),
    "up_modules.0.0.residual_conv.weight": (512, 2048, 1),
    "up_modules.1.1.cond_encoder.1.weight": (512, 296),
    "up_modules.1.2.weight": (256, 256, 4),
    "final_conv.0.block.0.weight": (256, 256, 5),
    "final_conv.1.weight": (2, 256, 1),
}
ABSENT = (
    "down_modules.2.2.weight",
    "down_modules.0.1.residual_conv.weight",
    "up_modules.2.0.conv1.block.0.weight",
)


def test_parameters_have_lerobots_names_and_shapes():
    """Action dim 2, two observations of 20 numbers."""
    with torch.device("meta"):
        state = ConditionalUNet(2, 40, (256, 512, 1024), 256).state_dict()
    assert {name: tuple(state[name].shape) for name in SHAPES} == SHAPES
    assert not any(name in state for name in ABSENT)
    assert 64e6 < sum(v.numel() for v in state.values()) < 68e6


def small(seed=0):
    torch.manual_seed(seed)
    return ConditionalUNet(2, 3, (8, 16), 8).eval()


def test_the_condition_scales_by_the_scale_itself():
    """A zero FiLM layer gives h = 0, not h: what is left of a block is its shift, its second half and the skip."""
    net = small()
    block = net.mid_modules[0]
    with torch.no_grad():
        block.cond_encoder[1].weight.zero_()
        block.cond_encoder[1].bias.zero_()
    x, g = torch.randn(4, 16, 4), torch.randn(4, 11)
    expected = block.conv2(torch.zeros_like(x)) + x
    torch.testing.assert_close(block(x, g), expected)
    with torch.no_grad():
        block.cond_encoder[1].bias[:16] = 2.0
        block.cond_encoder[1].bias[16:] = 0.5
    torch.testing.assert_close(block(x, g), block.conv2(2 * block.conv1(x) + 0.5) + x)


def test_time_condition_and_every_row_matter_and_samples_do_not_mix():
    net, x, time, c = small(), torch.randn(3, 8, 2), torch.tensor([1.0, 50, 99]), torch.randn(3, 3)
    out = net(x, time, c)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], time[1:2], c[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert (net(x, time + 1, c) - out).abs().max() > 1e-4
    assert (net(x, time, c + 1) - out).abs().max() > 1e-4
    changed = x.clone()
    changed[:, 7] += 1
    assert ((net(changed, time, c) - out).abs().amax((0, 2)) > 1e-7).all()


def test_fresh_weights_are_torchs_own_law_and_each_seeds_own():
    with torch.device("meta"):
        net = ConditionalUNet(2, 3, (32, 64), 16)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    weights, own = init_weights(net, generators), ConditionalUNet(2, 3, (32, 64), 16)
    assert weights.keys() == dict(own.named_parameters()).keys()
    for name, value in own.named_parameters():
        assert weights[name].shape == (2, *value.shape)
        assert weights[name].requires_grad
        if value.numel() > 2000:
            assert weights[name].std().item() == pytest.approx(value.std().item(), rel=0.06)
    name = "mid_modules.0.conv1.block.0.weight"
    assert not torch.equal(weights[name][0], weights[name][1])
    alone = init_weights(net, [torch.Generator().manual_seed(0)])
    assert all(torch.equal(alone[n][0], weights[n][0]) for n in weights)


@pytest.mark.parametrize("change", [{"widths": ()}, {"widths": (9,)}, {"step_embed": 5}, {"kernel": 4}])
def test_sizes_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="widths|step_embed"):
        ConditionalUNet(2, 3, **({"widths": (8,), "step_embed": 8} | change))
