"""Contrast of points beside self-training, and what it shares with the other stages: parts by name, and places."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples.mmwhs.train.parts import Contrast, Part
from mmgl_losses import attach_heads, plugins


def build(part: Part, kind: plugins.Kind, classes: int, *args: Any) -> nn.Module:
    """A head or a loss by its name, with ``"classes"`` among its options replaced by their number."""
    options = {key: classes if value == "classes" else value for key, value in part.options.items()}
    return plugins.create(kind, part.name, *args, **options)


def heads(taps: Sequence[str], head: Part, classes: int) -> dict[str, Callable[[int], nn.Module]]:
    """What makes the head of each tap, with its own options."""
    return {tap: partial(build, part, "head", classes) for tap, part in zip(taps, head.each(len(taps)), strict=True)}


def places(images: Tensor, cell: int) -> Tensor:
    """For each point of (N, 1, *spatial) the number of its cell, of `cell` pixels a side, from 1 on: (N, *spatial)."""
    numbers = torch.zeros((), dtype=torch.long, device=images.device)
    for side in images.shape[2:]:
        numbers = numbers[..., None] * -(-side // cell) + torch.arange(side, device=images.device) // cell
    return (1 + numbers).expand(len(images), *images.shape[2:])


class PointContrast(nn.Module):
    """Heads beside those that a network has, and a contrast on them.

    Args:
        tapped: The network with the heads of its stage, as its submodule `net`.
        contrast: What to attach to it.
        classes: Number of classes, background included.
        example: Images as they come, for the pass that sizes the heads.
    """

    def __init__(self, tapped: nn.Module, contrast: Contrast, *, classes: int, example: Tensor) -> None:
        super().__init__()
        self.contrast, self.loss = contrast, build(contrast.loss, "loss", classes)
        self.tapped = attach_heads(tapped, example, heads([f"net.{x}" for x in contrast.taps], contrast.head, classes))

    def of_labels(self, images: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
        """What the tapped network gives for images, and the contrast of points by their labels (N, *spatial)."""
        found, features = self.tapped(images)
        return found, self.contrast.weight * self.loss(_named(features), labels)

    def of_places(self, one: Tensor, other: Tensor) -> Tensor:
        """The contrast of points by their places in two augmentations of the same slices."""
        _, features = self.tapped(images := torch.cat([one, other]))
        slices = torch.arange(len(one), device=one.device).repeat(2)
        return self.contrast.weight * self.loss(_named(features), places(images, self.contrast.cell), slices)


def _named(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features by the names of the network's own modules."""
    return {name.removeprefix("net."): feature for name, feature in features.items()}
