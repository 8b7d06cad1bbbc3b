"""A network, and the stages a person would choose in it, written down before anything looked for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmgl_losses.networks.stages import Row

Expected = str | tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One network of the list.

    Attributes:
        make: builds it, with random weights, from its configuration; nothing is downloaded.
        encoder: stages, shallow to deep: names of modules, or levels ``"stride:channels"`` parted by blanks, such as
            ``"1:8 2:16"`` or, with a stride for each axis, ``"1x2x2:8"``.
        decoder: stages, coarse to fine; empty where the network has no decoder.
        output: names of the modules that make the output; None where a person would not care.
        size: of the image.
        channels: of the image.
        logits: what a segmentation loss is given, from the output in training; None where the output is no map.
        calls: for modules that run once more in training, which call to take.
        revised: why the expectation is no longer the first one that was written down; shown with the results.
    """

    make: Callable[[], nn.Module]
    encoder: Expected
    decoder: Expected
    output: tuple[str, ...] | None = None
    size: tuple[int, ...] = (32, 32)
    channels: int = 1
    logits: Callable[[Any], torch.Tensor] | None = lambda output: output
    calls: Mapping[str, int] = field(default_factory=dict)
    revised: str = ""

    def image(self, batch: int = 2) -> torch.Tensor:
        """A batch of images."""
        return torch.randn(batch, self.channels, *self.size)


def agree(expected: Expected, rows: Sequence[Row]) -> bool:
    """The rows are the expected stages."""
    if not isinstance(expected, str):
        return expected == tuple(row.name for row in rows)
    levels = [level.split(":") for level in expected.split()]
    return len(levels) == len(rows) and all(
        int(channels) == row.channels and _stride(stride, len(row.stride)) == row.stride
        for (stride, channels), row in zip(levels, rows, strict=True)
    )


def _stride(text: str, dims: int) -> tuple[int, ...]:
    steps = tuple(map(int, text.split("x")))
    return steps if len(steps) > 1 else steps * dims


def level(row: Row) -> str:
    """A row as levels are written."""
    steps = {*row.stride}
    return f"{'x'.join(map(str, row.stride if len(steps) > 1 else steps))}:{row.channels}"


def names(pattern: str, count: int) -> tuple[str, ...]:
    """The pattern with the numbers from 0."""
    return tuple(pattern.format(i) for i in range(count))
