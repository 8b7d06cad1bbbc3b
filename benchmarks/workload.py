"""What is measured: the local loss, forward and backward, on label maps like those of a heart."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmgl_losses.functional import local_supcon

CLASSES = 8


def label_maps(batch: int, points: int) -> Tensor:
    """(batch, side, side) maps of seven ellipses on a background of about four fifths; side² is about `points`."""
    side = round(math.sqrt(points))
    generator = torch.Generator().manual_seed(0)
    grid = (torch.arange(side) + 0.5) / side
    maps = torch.zeros(batch, side, side, dtype=torch.int64)
    for image in maps:
        for kind in range(1, CLASSES):
            y, x, a, b = torch.rand(4, generator=generator)
            inside = ((grid[:, None] - y) / (0.06 + 0.1 * a)) ** 2 + ((grid - x) / (0.06 + 0.1 * b)) ** 2 < 1
            image[inside] = kind
    return maps


def step(impl: str, points: int, *, dims: int, batch: int) -> Callable[[], Tensor]:
    """One call is one forward and backward of the loss; it returns the gradient of the features."""
    labels = label_maps(batch, points)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, dims, *labels.shape[1:], generator=generator).requires_grad_()

    def run() -> Tensor:
        loss = local_supcon(features, labels, impl=impl)
        return torch.autograd.grad(loss, features)[0]

    return run
