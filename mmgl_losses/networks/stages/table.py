"""One stage of a network, and stages as a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Row:
    """One stage: the module to tap, and what it returns.

    Attributes:
        name: of the module, as in ``net.named_modules()``; of a stage that cannot be tapped, what stands in the way.
        role: ``"encoder"``, ``"decoder"`` or ``"output"``.
        channels: of the feature map.
        size: of its spatial axes.
        stride: elements of the image between two neighbours, along each axis; a fraction where the network enlarges.
        module: the name of its class.
    """

    name: str
    role: str
    channels: int
    size: tuple[int, ...]
    stride: tuple[int | Fraction, ...]
    module: str


def table(rows: Iterable[Row]) -> str:
    """The rows as text, one under the other."""
    lines = [("role", "name", "channels", "size", "stride", "module")]
    for row in rows:
        lines.append((row.role, row.name, str(row.channels), times(row.size), times(row.stride), row.module))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i == 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def times(values: Iterable[int | Fraction]) -> str:
    """Sizes and strides as they are written: ``16x16``."""
    return "x".join(map(str, values))
