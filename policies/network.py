"""The networks of a chunk policy: what denoises, and what looks at images before it.

An observation is parts in order: numbers, and images (H, W, C) in bytes. What the denoiser is told of one observation
is the same parts in the same order, normalized, each image replaced by its features. They are computed once a plan.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.conditional_unet import ConditionalUNet
from offrl.diffusion.transformer import DiffusionTransformer, Keeps
from offrl.errors import PolicyError
from offrl.nn.vision import ImageEncoder, Norm, crop, group_norm, resized

Input: TypeAlias = tuple[str, tuple[int, ...]]  # name and shape of a part of an observation
NETWORKS = {"unet": ("kernel", "groups"), "transformer": ("layers", "heads", "width", "dropout")}
VISION = ("crop", "resize", "keypoints", "separate", "norm")
NORMS: dict[str, Norm] = {"group": group_norm, "batch": nn.BatchNorm2d}


class ChunkNetwork(nn.Module):
    """A denoiser, with an image encoder if there are images.

    Args:
        inputs: parts of an observation.
        act_dim, horizon, n_obs: A, H and To.
        widths, step_embed: of the U-Net.
        network: ``kind`` unet or transformer, and its settings.
        vision: crop (h, w), resize (h, w) before it, keypoints, separate encoders for the cameras, norm.

    Raises:
        PolicyError: sizes or settings that do not fit.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        act_dim: int,
        horizon: int,
        n_obs: int,
        widths: Sequence[int],
        step_embed: int,
        network: Mapping[str, Any] | None = None,
        vision: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.n_obs = tuple(inputs), n_obs
        self.images = [shape for _, shape in self.inputs if len(shape) == 3]
        self.vision = check_vision(vision, self.images)
        settings = check_network(network)
        kind = settings.pop("kind")
        if self.images:
            count = len(self.images) if self.vision["separate"] else 1
            made = [
                ImageEncoder(self.images[0][2], self.vision["keypoints"], NORMS[self.vision["norm"]])
                for _ in range(count)
            ]
            self.rgb_encoder = nn.ModuleList(made) if self.vision["separate"] else made[0]
        told = sum(2 * self.vision["keypoints"] if len(s) == 3 else math.prod(s) for _, s in self.inputs)
        try:
            if kind == "unet":
                self.unet = ConditionalUNet(act_dim, n_obs * told, widths, step_embed, **settings)
            else:
                self.transformer = DiffusionTransformer(act_dim, told, horizon, n_obs, **settings)
        except (ValueError, TypeError) as error:
            raise PolicyError(str(error)) from None

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net or the transformer."""
        found: nn.Module = denoiser_of(self)
        return found

    def forward(
        self, x: Tensor, time: Tensor, seen: Tensor, corners: Tensor | None = None, keeps: Keeps | None = None
    ) -> Tensor:
        """Output for noisy chunks (B, H, A).

        Args:
            x: chunks.
            time: (B,).
            seen: normalized observations (B, To, O), or (B, To O) without images.
            corners: of the crops, (B To, cameras, 2); None: the middle.
            keeps: of the transformer's dropout.
        """
        condition = encode(self, seen, corners) if self.images else seen.flatten(1)
        if keeps is None:
            out: Tensor = self.denoiser(x, time, condition)
            return out
        out = self.denoiser(x, time, condition, keeps)
        return out


def denoiser_of(owner: nn.Module) -> Any:
    """The U-Net or the transformer of a network or a policy."""
    return owner.unet if hasattr(owner, "unet") else owner.transformer


def encode(owner: Any, seen: Tensor, corners: Tensor | None = None) -> Tensor:
    """What the denoiser is told, (B, To C), of normalized observations (B, To, O).

    Args:
        owner: has ``inputs``, ``vision`` and, for images, ``rgb_encoder``.
        seen: the parts, images flat in (H, W, C).
        corners: of the crops, (B To, cameras, 2); None: the middle.
    """
    if all(len(shape) != 3 for _, shape in owner.inputs):
        return seen.flatten(1)
    batch, steps = seen.shape[:2]
    parts, camera = [], 0
    for (_, shape), part in zip(owner.inputs, split(owner.inputs, seen), strict=True):
        if len(shape) != 3:
            parts.append(part)
            continue
        images = part.reshape(-1, *shape).permute(0, 3, 1, 2)
        if owner.vision["resize"] is not None:
            images = resized(images, tuple(owner.vision["resize"]))
        if owner.vision["crop"] is not None:
            images = crop(
                images, tuple(owner.vision["crop"]), None if corners is None else corners[:, camera]
            )
        encoder = owner.rgb_encoder[camera] if owner.vision["separate"] else owner.rgb_encoder
        parts.append(encoder(images).view(batch, steps, -1))
        camera += 1
    return torch.cat(parts, dim=2).flatten(1)


def split(inputs: Sequence[Input], flat: Tensor) -> Sequence[Tensor]:
    """The parts (..., D_i) of flat observations (..., O)."""
    return torch.split(flat, [math.prod(shape) for _, shape in inputs], dim=-1)


def together(inputs: Sequence[Input], numbers: Tensor, images: Tensor) -> Tensor:
    """Flat observations (..., O) of their numbers (..., D) and their images (..., P), each side by side."""
    split_numbers, split_images = (
        iter(split([part for part in inputs if (len(part[1]) == 3) is seen], flat))
        for flat, seen in ((numbers, False), (images, True))
    )
    parts = [next(split_images if len(shape) == 3 else split_numbers) for _, shape in inputs]
    return torch.cat([part.to(numbers.dtype) for part in parts], dim=-1)


def normalized(
    inputs: Sequence[Input], flat: Tensor, numbers: AffineNormalizer, images: AffineNormalizer | None
) -> Tensor:
    """Normalized observations, same shape (..., O).

    Args:
        inputs: the parts.
        flat: raw observations (..., O).
        numbers: of all parts that are no images, side by side.
        images: of all images' channels, side by side, for values from 0 to 1; None where there are none.
    """
    if images is None:
        return numbers(flat)
    out, column, channel = [], 0, 0
    for (_, shape), part in zip(inputs, split(inputs, flat), strict=True):
        norm, start = (images, channel) if len(shape) == 3 else (numbers, column)
        stop = start + shape[-1]
        own = AffineNormalizer(*(t[start:stop] for t in vars(norm).values()))
        if len(shape) == 3:
            out.append(own((part / 255.0).unflatten(-1, (-1, shape[2]))).flatten(-2))
            channel = stop
        else:
            out.append(own(part))
            column = stop
    return torch.cat(out, dim=-1)


def check_inputs(inputs: Sequence[tuple[str, Sequence[int]]] | None, obs_dim: int) -> tuple[Input, ...]:
    """The parts of an observation, checked (PolicyError)."""
    if inputs is None:
        return (("observation", (obs_dim,)),)
    found = tuple((str(name), tuple(int(n) for n in shape)) for name, shape in inputs)
    total = sum(math.prod(shape) for _, shape in found)
    if total != obs_dim or any(len(shape) not in (1, 3) or min(shape) < 1 for _, shape in found):
        raise PolicyError(f"the inputs {found} do not make up {obs_dim} numbers")
    return found


def check_network(network: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of the denoiser, checked (PolicyError)."""
    settings = {"kind": "unet"} | dict(network or {})
    if settings["kind"] not in NETWORKS:
        raise PolicyError(f"unknown network {settings['kind']!r}; known are {', '.join(NETWORKS)}")
    if strange := sorted(set(settings) - {"kind", *NETWORKS[settings["kind"]]}):
        raise PolicyError(f"a {settings['kind']} has no setting {strange[0]!r}")
    return settings


def check_vision(vision: Mapping[str, Any] | None, images: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """The settings of the image encoder, filled in and checked (PolicyError)."""
    settings: dict[str, Any] = {
        "crop": None,
        "resize": None,
        "keypoints": 32,
        "separate": False,
        "norm": "group",
    }
    if strange := sorted(set(vision or {}) - set(VISION)):
        raise PolicyError(f"an image encoder has no setting {strange[0]!r}")
    settings |= dict(vision or {})
    if settings["norm"] not in NORMS or settings["keypoints"] < 1:
        raise PolicyError(f"norm must be one of {', '.join(NORMS)}, keypoints 1 or more: {settings}")
    if len(set(images)) > 1 and (len({s[2] for s in images}) > 1 or settings["resize"] is None):
        raise PolicyError(f"all images need one shape, got {list(images)}")
    for shape in images:
        height, width = settings["resize"] or shape[:2]
        if settings["crop"] is not None and (settings["crop"][0] > height or settings["crop"][1] > width):
            raise PolicyError(
                f"the crop {list(settings['crop'])} is larger than the image, {height} x {width}"
            )
    return settings
