"""What the axes of a tensor are, followed through the operations that made it.

A tensor's layout says of each axis which axes of the example lie on it, and how far apart neighbours are there. The
image of a network starts with one part an axis: batch, channels, rows, columns. A convolution of stride 2 doubles the
stride of rows and columns, a reshape to tokens puts both on one axis, a window partition splits each in two, and
putting them together again restores them. So a map is known as one whether its channels are on the second axis or on
the last, and tokens know of how many rows and columns they are.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

CHANNELS = -1  # the source of what a convolution or a linear layer made: no axis of the example
OTHER = -2  # the source of an axis with more or less on it than its parts say, such as tokens behind a class token


class Part(NamedTuple):
    """`size` elements along one axis of the example, `stride` of its elements apart.

    `inside`: an axis whose parts do not account for all of it, while it shares an axis with others.
    """

    source: int
    size: int
    stride: Fraction = Fraction(1)
    inside: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor; its parts are ordered from the one that changes slowest.

    `pieces`: the axes that were put one behind the other on it, such as a class token and tokens, or tokens of several
    levels; a cut at their ends gives them back.
    """

    size: int
    parts: tuple[Part, ...] = ()
    pieces: tuple["Axis", ...] = ()

    @property
    def whole(self) -> bool:
        """The parts account for every element: no class token, no padding in between."""
        return math.prod(part.size for part in self.parts) == self.size

    @property
    def spatial(self) -> bool:
        """Places of the example lie along it."""
        inner = (*self.pieces, *(axis for part in self.parts for axis in part.inside))
        return any(part.source > 0 for part in self.parts) or any(axis.spatial for axis in inner)

    def cut(self, start: int, size: int) -> "Axis | None":
        """The pieces from `start` on that are `size` elements; None where there is no end of a piece."""
        ends = [0, *itertools.accumulate(piece.size for piece in self.pieces)]
        if not self.pieces or start not in ends or start + size not in ends:
            return None
        found = self.pieces[ends.index(start) : ends.index(start + size)]
        return found[0] if len(found) == 1 else Axis(size, pieces=found)

    def resized(self, size: int, factor: Fraction = Fraction(1)) -> "Axis":
        """The axis after cutting, padding or taking every `factor`-th element."""
        if len(self.parts) == 1:
            return Axis(size, (self.parts[0]._replace(size=size, stride=self.parts[0].stride * factor),))
        return Axis(size, self.parts if factor == 1 else ())


Layout = tuple[Axis, ...]


class Map(NamedTuple):
    """A tensor that is a map: where its channels are, and which places of the example lie on the other axes.

    `axes` are those of the places; `counts` says how many parts lie on each: one in a map (B, C, H, W), two in tokens
    (B, N, C). `stacked`: the axes of the example that lie on the batch axis: slices of a volume, views of a patient.
    """

    channels: int
    channel_axis: int
    axes: tuple[int, ...]
    places: tuple[Part, ...]
    counts: tuple[int, ...]
    stacked: tuple[Part, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """Elements along each spatial axis of the example."""
        return tuple(part.size for part in self.places)

    @property
    def fineness(self) -> Fraction:
        """Elements of the image for each place."""
        return math.prod((part.stride for part in self.places + self.stacked), start=Fraction(1))

    @property
    def stride(self) -> dict[int, Fraction]:
        """For each spatial axis of the example, the distance of two neighbours."""
        return {part.source: part.stride for part in self.places + self.stacked}

    @property
    def plain(self) -> bool:
        """It is (B, C, *spatial) as it stands."""
        return (
            self.channel_axis == 1 and len(self.axes) == len(self.places) and self.order == tuple(range(len(self.axes)))
        )

    @property
    def order(self) -> tuple[int, ...]:
        """The places in the order of the example's axes."""
        return tuple(sorted(range(len(self.places)), key=lambda i: self.places[i].source))

    @property
    def grids(self) -> tuple[tuple[Part, ...], ...]:
        """For each axis of places, its parts."""
        left = list(self.places)
        return tuple(tuple(left.pop(0) for _ in range(count)) for count in self.counts)


def channel_axis(size: int) -> Axis:
    """An axis of new channels."""
    return Axis(size, (Part(CHANNELS, size),))


def as_map(layout: Layout | None) -> Map | None:
    """The map that a tensor is, or None: attention, windows, heads and vectors are none."""
    if layout is None or len(layout) < 3:
        return None
    batch = [part.source for part in layout[0].parts]
    if batch.count(0) != 1 or min(batch) < 0 or not layout[0].whole:
        return None
    channels, axes, places, counts = [], [], [], []
    for i, axis in enumerate(layout[1:], 1):
        if not axis.parts or not axis.whole:
            return None
        sources = {part.source for part in axis.parts}
        if sources == {CHANNELS}:
            channels.append(i)
        elif min(sources) > 0:
            axes.append(i)
            counts.append(len(axis.parts))
            places += axis.parts
        else:
            return None
    sources = [*batch, *(part.source for part in places)]
    if len(channels) != 1 or not places or len(set(sources)) != len(sources):
        return None
    stacked = tuple(part for part in layout[0].parts if part.source > 0)
    return Map(layout[channels[0]].size, channels[0], tuple(axes), tuple(places), tuple(counts), stacked)


def regroup(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a reshape: parts are split and joined as the sizes ask for; None where they do not fit."""
    parts = _split_to(layout, shape)
    if parts is None:
        return None
    axes, left = [], list(parts)
    for i, size in enumerate(shape):
        own: list[Part] = []
        # Parts of one element have no place of their own: they go to the first axis that has room for them.
        while left and (
            math.prod(p.size for p in own) < size or (left[0].size == 1 and (not own or i == len(shape) - 1))
        ):
            own.append(left.pop(0))
        kept = own[0].inside if [p.source for p in own] == [OTHER] else (Axis(size, _joined(own)),)
        axes.append(kept[0] if kept else Axis(size))
    return tuple(axes) if not left else None


def _split_to(layout: Layout, shape: Sequence[int]) -> list[Part] | None:
    """The parts of all axes, cut wherever an axis of the new shape ends; an axis with a remainder must stay whole."""
    parts: list[Part] = []
    for axis in layout:
        known = bool(axis.parts) and axis.whole
        parts += axis.parts if known else [Part(OTHER, axis.size, inside=(axis,))] if axis.size > 1 else []
    cut, target, sizes = [], 1, iter(shape)
    for part in parts:
        rest = part
        while rest.size > 1:
            while target == 1:
                target = next(sizes, 0)
            if target == 0:
                return None
            taken = min(rest.size, target)
            if rest.size % taken or target % taken:
                return None
            inner = rest.size // taken
            whole = taken == part.size
            cut.append(rest._replace(size=taken, stride=rest.stride * inner, inside=part.inside if whole else ()))
            rest, target = rest._replace(size=inner), target // taken
        if part.size == 1:
            cut.append(part)
    return cut


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours that continue one another become one part again."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if (last is not None and last.source == part.source == CHANNELS) or (
            last is not None and last.source == part.source and last.stride == part.stride * part.size
        ):
            found[-1] = last._replace(size=last.size * part.size, stride=part.stride)
        elif last is not None and last.source > 0 and part.source == CHANNELS and _alone(parts):
            # From channels to places, as a pixel shuffle by hand does it: the places come closer together.
            found[-1] = last._replace(size=last.size * part.size, stride=last.stride / part.size)
        else:
            found.append(part)
    # Places that went into the channels, as in a merging of patches, are channels: the next layer mixes them.
    return tuple(found)


def _alone(parts: Sequence[Part]) -> bool:
    return len({part.source for part in parts if part.source > 0}) == 1 and parts[0].source > 0


def snap(stride: Fraction, before: int, after: int, known: Sequence[Fraction]) -> Fraction:
    """The stride after resampling `before` elements to `after`.

    Odd sizes lose a fraction of an element on the way down, so sizes alone give strides such as 26/25. A level that
    exists is taken where it explains the sizes to within one element of the coarser of both maps.
    """

    def off(candidate: Fraction) -> Fraction:
        return abs(before * stride / candidate - after) / max(Fraction(1), stride / candidate)

    whole = [stride / r for r in {round(after / before)} if r] + [stride * r for r in {round(before / after)} if r]
    close = [candidate for candidate in (*known, *whole) if off(candidate) < 1]
    if before == after:
        return stride
    close = [candidate for candidate in close if (candidate < stride) == (after > before) and candidate != stride]
    return min(close, key=lambda c: (off(c), c.denominator)) if close else stride * before / after
