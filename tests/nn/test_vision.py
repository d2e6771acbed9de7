"""The image encoder: ResNet-18's shapes, where a feature is, crops."""

import pytest
import torch
from torch import nn

from offrl.nn.vision import ImageEncoder, SpatialSoftmax, crop, resized, resnet18


def test_the_backbone_is_resnet18_without_its_last_two_layers():
    """torchvision's has 11 689 512 parameters, 513 000 of them in the last layer; group norms have as many as batch norms."""
    with torch.device("meta"):
        net = resnet18()
        out = net(torch.empty(2, 3, 84, 84))
    assert out.shape == (2, 512, 3, 3)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - 513_000
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_channels == 16 * m.num_groups for m in norms)
    names = dict(net.named_parameters())
    for name in ("0.weight", "1.bias", "4.0.conv1.weight", "5.0.downsample.0.weight", "7.1.bn2.weight"):
        assert name in names
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_block_goes_around_its_convolutions():
    net = resnet18()
    block = net[4][0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 64, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_a_single_bright_pixel_is_found_where_it_is():
    """Softmax of one large value is all of it: x to the right, y down, corners at -1 and 1."""
    pool = SpatialSoftmax(2, 2)
    with torch.no_grad():
        pool.nets.weight.copy_(torch.eye(2)[:, :, None, None])
        pool.nets.bias.zero_()
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 2, 1] = maps[0, 1, 0, 4] = 100
    torch.testing.assert_close(pool(maps)[0], torch.tensor([[-0.5, 1.0], [1.0, -1.0]]))
    flat = pool(torch.zeros(1, 2, 3, 5))
    torch.testing.assert_close(flat, torch.zeros(1, 2, 2), rtol=0, atol=1e-6)


def test_crops_are_parts_of_their_own_image():
    images = torch.arange(2 * 1 * 5 * 6.0).reshape(2, 1, 5, 6)
    out = crop(images, (3, 2), torch.tensor([[0, 4], [2, 1]]))
    assert torch.equal(out[0, 0], images[0, 0, 0:3, 4:6])
    assert torch.equal(out[1, 0], images[1, 0, 2:5, 1:3])
    assert torch.equal(crop(images, (3, 2)), images[:, :, 1:4, 2:4])
    assert torch.equal(crop(images, (5, 6), torch.zeros(2, 2, dtype=torch.int64)), images)


def test_resizing_keeps_the_mean_of_a_ramp():
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert resized(images, (8, 8)) is images
    torch.testing.assert_close(resized(images, (4, 4)).mean(), images.mean())


def test_features_have_two_numbers_a_keypoint_and_gradients_reach_every_parameter():
    encoder = ImageEncoder(3, 4)
    out = encoder(torch.rand(2, 3, 40, 40))
    assert out.shape == (2, 8)
    assert (out >= 0).all()
    encoder.out.bias.data.fill_(1.0)
    encoder(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_moving_a_spot_moves_the_feature_whatever_the_weights():
    torch.manual_seed(0)
    encoder = ImageEncoder(1, 8).eval()
    image = torch.zeros(1, 1, 64, 64)
    image[:, :, 10:20, 10:20] = 1
    with torch.no_grad():
        here, there = encoder.pool(encoder.backbone(image)), encoder.pool(encoder.backbone(image.flip(3)))
    assert (here - there).abs().max() > 1e-3
    with pytest.raises(RuntimeError):
        encoder(torch.zeros(1, 3, 64, 64))
