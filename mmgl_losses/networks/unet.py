"""The reference network of the paper: a plain U-Net for slices and volumes."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgl_losses import checks

Norm = Literal["instance", "batch"]
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _block(in_channels: int, out_channels: int, dims: int, norm: str | None) -> nn.Sequential:
    """Twice: 3x3 convolution, normalisation, LeakyReLU(0.01)."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(_CONV[dims](channels, out_channels, 3, padding=1))
        if norm is not None:
            layers.append((_INSTANCE if norm == "instance" else _BATCH)[dims](out_channels))
        layers.append(nn.LeakyReLU(0.01, inplace=True))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """The way down: blocks and pools, the bottleneck, and its transposed convolution.

    A module of its own, so that global pre-training runs it alone and pays for no decoder.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], dims: int, norm: str | None) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dims = dims
        self.norm = norm
        down = (in_channels, *channels[:-1])
        self.blocks = nn.ModuleList(_block(*pair, dims, norm) for pair in zip(down, channels[:-1], strict=False))
        self.pools = nn.ModuleList(_POOL[dims](2) for _ in channels[:-1])
        self.bottleneck = _block(channels[-2], channels[-1], dims, norm)
        self.up = _UP[dims](channels[-1], channels[-2], 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, *spatial) -> the outputs of the blocks, fine to coarse, and of `up`."""
        factor = 2 ** len(self.pools)
        several = self.norm == "instance"
        _image("x", x, channels=self.in_channels, dims=self.dims, factor=factor, several=several)
        features = []
        for block, pool in zip(self.blocks, self.pools, strict=True):
            features.append(block(x))
            x = pool(features[-1])
        return [*features, self.up(self.bottleneck(x))]


class Decoder(nn.Module):
    """The way up: each block joins what comes from below with the encoder's map of the same level."""

    def __init__(self, channels: tuple[int, ...], dims: int, norm: str | None) -> None:
        super().__init__()
        up = channels[-2::-1]
        self.blocks = nn.ModuleList(_block(2 * level, level, dims, norm) for level in up)
        self.ups = nn.ModuleList(_UP[dims](*pair, 2, stride=2) for pair in pairwise(up))

    def forward(self, features: list[Tensor]) -> Tensor:
        """The encoder's list -> (B, channels[0], *spatial)."""
        *skips, x = features
        for i, block in enumerate(self.blocks):
            x = self.ups[i - 1](x) if i else x
            skip = skips[-1 - i]
            missing = [a - b for a, b in zip(skip.shape[2:], x.shape[2:], strict=True)]
            if any(missing):  # an odd size lost an element on the way down
                x = F.pad(x, [p for m in reversed(missing) for p in (0, m)])
            x = block(torch.cat([skip, x], 1))
        return x


class UNet(nn.Module):
    """The U-Net of the paper (section 4.1), for 2-D and 3-D: four blocks down, four blocks up.

    A block is twice: 3x3 convolution, normalisation, LeakyReLU(0.01). Between blocks there is max-pooling by 2 on
    the way down and a 2x2 transposed convolution on the way up; a 1x1 convolution ends it. The output has the
    size of the input, whatever that is: where an odd size lost an element, the map from below is padded with
    zeros to its partner.

    The names are fixed, for taps: ``encoder.blocks.i``, ``encoder.pools.i``, ``encoder.bottleneck``,
    ``encoder.up``, ``decoder.blocks.i``, ``decoder.ups.i``, ``classifier``. Stage one of the paper taps
    ``pools.2``, ``pools.3`` and ``up`` of ``net.encoder``; stage two ``decoder.blocks.1``, ``.2`` and ``.3``.

    The code base that the paper builds on normalises in the encoder only, has ReLUs around the
    bottleneck, and one after the bottleneck's transposed convolution. Here every block is the same, and no activation
    follows a transposed convolution.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        channels: channels of the levels, fine to coarse; the last is the bottleneck.
        spatial_dims: 2 or 3.
        norm: ``"instance"`` (without parameters), ``"batch"`` or None.

    Shape:
        ``(B, in_channels, *spatial) -> (B, out_channels, *spatial)``.

    Raises:
        ValueError: an input smaller than one bottleneck element or, with instance normalisation, not larger.

    Example:
        >>> net = UNet(1, 8, channels=(4, 8, 16))
        >>> net(torch.zeros(2, 1, 37, 50)).shape
        torch.Size([2, 8, 37, 50])
        >>> [tuple(f.shape[1:]) for f in net.encoder(torch.zeros(2, 1, 32, 32))]
        [(4, 32, 32), (8, 16, 16), (8, 16, 16)]
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        channels: tuple[int, ...] = (64, 128, 256, 512, 1024),
        spatial_dims: int = 2,
        norm: Norm | None = "instance",
    ) -> None:
        super().__init__()
        checks.integer("in_channels", in_channels, least=1)
        checks.integer("out_channels", out_channels, least=1)
        checks.choice("spatial_dims", spatial_dims, (2, 3))
        if norm is not None:
            checks.one_of("norm", norm, get_args(Norm))
        channels = _channel_plan("channels", channels)
        self.encoder = Encoder(in_channels, channels, spatial_dims, norm)
        self.decoder = Decoder(channels, spatial_dims, norm)
        self.classifier = _CONV[spatial_dims](channels[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        return self.classifier(self.decoder(self.encoder(x)))


def _image(name: str, value: object, *, channels: int, dims: int, factor: int, several: bool) -> Tensor:
    """An image (B, C, *spatial) that is still there after `factor` halvings; `several`: as more than one element."""
    checked = checks.floating(name, value)
    if checked.ndim != dims + 2 or checked.shape[1] != channels:
        axes = ", ".join("DHW"[-dims:])
        raise ValueError(checks.message(f"`{name}` of shape (B, {channels}, {axes})", checks.shape(checked)))
    deepest = [size // factor for size in checked.shape[2:]]
    if min(deepest) < 1:
        expected = f"`{name}` with at least {factor} elements along each spatial axis"
        raise ValueError(
            checks.message(expected, checks.shape(checked), "Use larger images, or fewer levels of `channels`.")
        )
    if several and math.prod(deepest) < 2:
        expected = f"`{name}` with at least {2 * factor} elements along one spatial axis"
        cure = "The bottleneck is one element, which instance normalisation cannot normalise. "
        cure += "Use larger images, fewer levels of `channels`, or another `norm`."
        raise ValueError(checks.message(expected, checks.shape(checked), cure))
    return checked


def _channel_plan(name: str, value: object) -> tuple[int, ...]:
    """The channels of the levels of a U-Net: at least one level and the bottleneck."""
    expected = f"`{name}` to be a sequence of at least 2 integers, one per level and one for the bottleneck"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(checks.message(expected, checks.typed(value)))
    if len(value) < 2:
        raise ValueError(checks.message(expected, repr(value)))
    return tuple(checks.integer(f"{name}[{i}]", item, least=1) for i, item in enumerate(value))
