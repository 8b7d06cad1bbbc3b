"""What is measured: label maps like those of a heart, and features to go with them."""

import math

import torch
from torch import Tensor

CLASSES = 8


def shape(points: int) -> tuple[int, ...]:
    """A square of so many points, a cube where there is none, else a line.

    Example:
        >>> shape(400), shape(110592)
        ((20, 20), (48, 48, 48))
    """
    for axes in (2, 3):
        side = round(points ** (1 / axes))
        if side**axes == points:
            return (side,) * axes
    return (points,)


def label_maps(batch: int, size: tuple[int, ...]) -> Tensor:
    """(batch, *size), int64: seven ellipses or ellipsoids on a background of about four fifths."""
    generator = torch.Generator().manual_seed(0)
    least, more = (0.06, 0.1) if len(size) < 3 else (0.12, 0.12)  # of the half axes
    grid = torch.meshgrid(*[(torch.arange(side) + 0.5) / side for side in size], indexing="ij")
    maps = torch.zeros(batch, *size, dtype=torch.int64)
    for image in maps:
        for kind in range(1, CLASSES):
            centre, half = torch.rand(2, len(size), generator=generator)
            distance = sum(((x - c) / (least + more * h)) ** 2 for x, c, h in zip(grid, centre, half, strict=True))
            image[distance < 1] = kind
    return maps


def point_features(labels: Tensor, dims: int, *, pull: float = 0.0) -> Tensor:
    """(batch, n, dims), float32: normal noise and, times `pull`, a centre for each class of labels (batch, n)."""
    generator = torch.Generator().manual_seed(math.prod(labels.shape))
    noise = torch.randn(*labels.shape, dims, generator=generator)
    return noise + pull * torch.randn(CLASSES, dims, generator=generator)[labels]
