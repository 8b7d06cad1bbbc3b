"""The points of the local loss: which there are, which are compared, and which of them count."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from mmgl_losses.losses.levels import Instances, rows_of_images
from mmgl_losses.sampling import foreground_places, points, resample, strided


def sampled(
    features: Tensor, labels: Tensor, *, stride: int, sampling: str, excluded: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Every `stride`-th point (B, n, D) and the label (B, n) at its place."""
    spatial = features.shape[2:]
    size = [strided(n, stride) for n in spatial]
    if sampling == "grid":
        return points(resample(features, size)), resample(labels, size).flatten(1)
    # Chosen among all labels there are: a structure between the points of the features would be lost before.
    labels = resample(labels, [max(full, n) for full, n in zip(labels.shape[1:], spatial, strict=True)])
    chosen = foreground_places(labels, size, excluded)
    y, place, rest = labels.flatten(1).gather(1, chosen), torch.zeros_like(chosen), chosen
    step = 1
    for full, n in reversed([*zip(labels.shape[1:], spatial, strict=True)]):  # the point that holds each chosen label
        place, rest, step = place + rest % full * n // full * step, rest // full, step * n
    return points(features).gather(1, place[..., None].expand(-1, -1, features.shape[1])), y


def compared(z: Tensor, y: Tensor, pairs: str, instances: Instances) -> tuple[Tensor, Tensor]:
    """Points (B, n, D) and labels (B, n) in groups, of which each is compared within itself: (groups, points, ...)."""
    if pairs == "batch":
        return rearrange(z, "b n d -> 1 (b n) d"), rearrange(y, "b n -> 1 (b n)")
    if pairs == "augmentations":
        rows = rows_of_images(instances, len(z))
        order = torch.tensor(rows, dtype=torch.int64, device=z.device).view(len(rows), len(z) // max(len(rows), 1))
        return rearrange(z[order], "i a n d -> i (a n) d"), rearrange(y[order], "i a n -> i (a n)")
    return z, y


def in_order(losses: Tensor, batch: int, pairs: str, instances: Instances) -> Tensor:
    """The losses of the points of groups, (groups, points), in the order of the batch again, (B, n)."""
    losses = losses.reshape(batch, losses.numel() // max(batch, 1))
    if pairs != "augmentations":
        return losses
    order = [row for rows in rows_of_images(instances, batch) for row in rows]
    return losses[torch.tensor(order, dtype=torch.int64, device=losses.device).argsort()]


def masks(
    y: Tensor, *, background: str, background_index: int, ignore_index: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which points of labels y are anchors and which are keys; None: all. Every anchor is a key."""
    part = None if ignore_index is None else y != ignore_index
    if background == "anchor":
        return part, part
    foreground = y != background_index
    anchors = foreground if part is None else foreground & part
    return anchors, part if background == "key" else anchors
