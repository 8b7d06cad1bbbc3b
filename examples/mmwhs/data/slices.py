"""Slices of volumes: cut in three planes, resized to S x S whole or from their centre, and brought back.

Labels are resized class by class, so no resizing ever invents a class between two others.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from examples.mmwhs.data.description import PLANES
from examples.mmwhs.messages import message, one_of

BATCH = 16  # slices resized at a time, which bounds the memory
VALUES = 2**25  # probabilities resized at a time, for the same reason


def volume_to_slices(volume: np.ndarray, plane: str) -> np.ndarray:
    """(X, Y, Z) in RAS to the slices (n, H, W) of a plane; a view."""
    one_of("plane", plane, PLANES)
    return np.moveaxis(volume, PLANES.index(plane), 0)


def window(shape: tuple[int, ...], crop: float) -> tuple[slice, slice]:
    """Where the central square of slices (H, W) lies; it may reach beyond a shorter side. All of them for 1."""
    if crop == 1:
        return slice(0, shape[0]), slice(0, shape[1])
    side = max(1, round(crop * max(shape)))
    first = [(size - side) // 2 for size in shape]
    return slice(first[0], first[0] + side), slice(first[1], first[1] + side)


def cut(stack: np.ndarray, crop: float) -> np.ndarray:
    """The central squares of slices (n, H, W), zeros beyond their edges; a view where they reach beyond none."""
    parts = window(stack.shape[1:], crop)
    beyond = [(max(0, -p.start), max(0, p.stop - size)) for p, size in zip(parts, stack.shape[1:], strict=True)]
    inside = tuple(slice(max(0, p.start), p.stop) for p in parts)
    part = stack[(slice(None), *inside)]
    return np.pad(part, [(0, 0), *beyond]) if np.any(beyond) else part  # padding by nothing would copy it


def _linear(stack: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, C, H, W) to (n, C, *size), linear, with the low-pass that shrinking needs."""
    return interpolate(stack, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_images(stack: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) intensities to (n, S, S) float32, linear and antialiased."""
    out = np.empty((len(stack), size, size), dtype=np.float32)
    for i in range(0, len(stack), BATCH):
        part = torch.from_numpy(np.ascontiguousarray(stack[i : i + BATCH], dtype=np.float32))
        out[i : i + BATCH] = _linear(part[:, None], (size, size))[:, 0].numpy()
    return out


def resize_labels(stack: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) class indices to (n, S, S) uint8: the class with the largest share of each new pixel."""
    out = np.zeros((len(stack), size, size), dtype=np.uint8)
    for i in range(0, len(stack), BATCH):
        part = torch.from_numpy(np.ascontiguousarray(stack[i : i + BATCH], dtype=np.uint8))
        best = torch.zeros(len(part), size, size)
        for index in range(int(part.max()) + 1):
            here = part == index
            if not here.any():
                continue
            share = _linear(here.float()[:, None], (size, size))[:, 0]
            out[i : i + BATCH][(share > best).numpy()] = index
            best = torch.maximum(best, share)
    return out


def labels_from_probabilities(
    probabilities: Iterable[Tensor], shape: tuple[int, int, int], plane: str, *, crop: float = 1.0
) -> np.ndarray:
    """Class probabilities of every slice of a plane to class indices on the RAS grid of the volume.

    Probabilities are resized, and only then does the largest win.

    Args:
        probabilities: batches (n, C, S, S), with all slices in order; no more than one of them is held.
        shape: (X, Y, Z) of the volume in RAS.
        plane: the plane of the slices.
        crop: of the data set's description; what lies outside is background.

    Returns:
        (X, Y, Z) uint8.

    Raises:
        ValueError: a batch has another shape, or there are more or fewer slices than those of the volume.
    """
    out = np.zeros(shape, dtype=np.uint8)
    slices, done = volume_to_slices(out, plane), 0
    rows, columns = window(slices.shape[1:], crop)
    size = rows.stop - rows.start, columns.stop - columns.start
    top, left = max(0, rows.start), max(0, columns.start)
    expected = f"probabilities (n, C, S, S) of the {len(slices)} {plane} slices of {tuple(shape)}"
    for batch in probabilities:
        if batch.ndim != 4 or done + len(batch) > len(slices):
            raise ValueError(message(expected, f"shape {tuple(batch.shape)} behind {done} of them"))
        for part in batch.split(max(1, VALUES // (batch.shape[1] * size[0] * size[1]))):
            labels = _linear(part.to("cpu", torch.float32), size).argmax(dim=1).numpy()
            inside = slices[done : done + len(part), top : rows.stop, left : columns.stop]
            inside[:] = labels[:, top - rows.start :, left - columns.start :][:, : inside.shape[1], : inside.shape[2]]
            done += len(part)
    if done < len(slices):
        raise ValueError(message(expected, f"{done} slices"))
    return out
