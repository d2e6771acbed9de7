"""What a robot policy sees in an image: ResNet-18 with group norm, then where each of K features is.

    crop       a part of the image: anywhere in training, the middle when acting
    backbone   ResNet-18 without its last two layers, batch norms replaced by group norms of 16 channels a group
    softmax    K maps by a 1 x 1 convolution; of each the mean place (x, y) in [-1, 1]^2 under softmax
    out        relu(W [x_1, y_1, ..., x_K, y_K])

Parameters have the names and shapes of LeRobot's encoder (``backbone.0`` and so on): its weights load unchanged.

Source: Diffusion Policy, arXiv:2303.04137; ResNet: arXiv:1512.03385; spatial softmax: arXiv:1509.06113.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
CHANNELS = (64, 128, 256, 512)


def group_norm(channels: int) -> nn.Module:
    """Sixteen channels a group."""
    return nn.GroupNorm(channels // 16, channels)


class _Block(nn.Module):
    """Two 3 x 3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = norm(outputs), norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.downsample(x))


def resnet18(channels: int = 3, norm: Norm = group_norm) -> nn.Sequential:
    """(B, C, H, W) -> (B, 512, about H / 32, about W / 32)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for before, now in zip((64, *CHANNELS), CHANNELS, strict=False):
        stride = 1 if now == 64 else 2
        layers.append(nn.Sequential(_Block(before, now, stride, norm), _Block(now, now, 1, norm)))
    return nn.Sequential(*layers)


class SpatialSoftmax(nn.Module):
    """Mean places (B, K, 2) of K features, x to the right and y down, both from -1 to 1.

    Args:
        channels: of the maps that come in.
        keypoints: K.
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Places for maps (B, C, H, W)."""
        share = torch.softmax(self.nets(maps).flatten(2), dim=2).unflatten(2, maps.shape[2:])
        y, x = (torch.linspace(-1, 1, n, dtype=maps.dtype, device=maps.device) for n in maps.shape[2:])
        return torch.stack(((share.sum(2) * x).sum(2), (share.sum(3) * y).sum(2)), dim=2)


class ImageEncoder(nn.Module):
    """Features (B, 2 K) of normalized images (B, C, H, W).

    Args:
        channels: C.
        keypoints: K.
        norm: of the backbone.
    """

    def __init__(self, channels: int = 3, keypoints: int = 32, norm: Norm = group_norm) -> None:
        super().__init__()
        self.backbone, self.pool = resnet18(channels, norm), SpatialSoftmax(CHANNELS[-1], keypoints)
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: Tensor) -> Tensor:
        """Features of cropped images."""
        return torch.relu(self.out(self.pool(self.backbone(images)).flatten(1)))


def crop(images: Tensor, size: tuple[int, int], corners: Tensor | None = None) -> Tensor:
    """A part of each image (B, C, h, w).

    Args:
        images: (B, C, H, W).
        size: h and w, at most H and W.
        corners: (B, 2) int64, row and column of each part's upper left corner; None: the middle, rounded as
            torchvision's centre crop does.
    """
    height, width = images.shape[2:]
    if corners is None:
        top, left = round((height - size[0]) / 2.0), round((width - size[1]) / 2.0)
        return images[:, :, top : top + size[0], left : left + size[1]]
    rows = corners[:, 0, None] + torch.arange(size[0], device=images.device)
    columns = corners[:, 1, None] + torch.arange(size[1], device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) brought to another size, smoothed where they shrink."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
