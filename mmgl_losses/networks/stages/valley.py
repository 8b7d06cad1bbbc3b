"""The way down and up again through the sizes of feature maps, and which modules stand for it."""

import math
from dataclasses import dataclass

from mmgl_losses.networks.trace import Call

Size = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mark:
    """A feature map of this size existed at this time; `call` returned it, or None: no module did.

    `usable`: the call can be tapped. `weights`: how many layers with a matrix of weights it has.
    """

    time: float
    size: Size
    channels: int
    call: Call | None = None
    usable: bool = False
    weights: int = 0

    def holds(self, other: "Mark") -> bool:
        """The other map was made inside this mark's module."""
        return self.call is not None and self.call.start < other.time < self.call.end

    def follows(self, other: "Mark") -> bool:
        """The module was given what the other returned, and nothing else."""
        if self.call is None or other.call is None or len(self.call.inputs) != 1:
            return False
        return other.time < self.call.start and self.call.inputs[0] is other.call.output

    def joins(self, inner: "Mark") -> bool:
        """The module returns its input beside what it made of it: a skip connection that concatenates."""
        inputs = [] if self.call is None else self.call.inputs
        beside = any(x.ndim > 1 and x.shape[1] + inner.channels == self.channels for x in inputs)
        return beside and same_level(self.size, inner.size)


def same_level(a: Size, b: Size) -> bool:
    """Neither is a resolution finer than the other; unpadded convolutions take off a little."""
    return not _finer(a, b) and not _finer(b, a)


def _finer(a: Size, b: Size) -> bool:
    return math.prod(a) > 1.4 * math.prod(b)


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbours in time of the same size, and how much they count on a way."""

    marks: list[Mark]
    weight: int

    @property
    def end(self) -> Mark:
        """The last of them."""
        return self.marks[-1]


def find_valley(marks: list[Mark]) -> tuple[list[Mark], list[Mark]]:
    """The marks of the stages on the way down (the bottom included) and on the way up.

    The way goes strictly down and then strictly up, through as many sizes as there are; a size with a module of
    several layers counts for more than one with a single layer, which may be a side path. Modules are closed from the
    outside in, which hides what is inside, wherever the way loses nothing. For each size, the last usable closed
    module is taken that is no mere projection of one before it. What runs after the bottom and is given nothing but
    maps from before it is on no way up: a lateral layer. Sizes that the way up leaves out, since
    they ran in another order, are added.

    Args:
        marks: in the order of time.
    """
    while True:
        (down, up), visible = _close(marks)
        laterals = _laterals(marks, down[-1]) if down and up else []
        if not laterals:
            break
        marks = [mark for mark in marks if mark not in laterals]
    late = [mark for mark in visible if down and mark.time > down[-1].end.time]
    down, up = _usable(down, visible), _usable(up, visible)
    ends = [_solid(run) if up or run is not down[-1] else run[-1] for run in down]
    return ends, _filled([_unprojected(run) for run in up], late, ends[-1].size if ends else ())


def _close(marks: list[Mark]) -> tuple[tuple[list[Run], list[Run]], list[Mark]]:
    """The way with as many modules closed as it allows, and the marks on the outside that are no opened modules."""
    visible, opened = marks, set()
    weight, *way = _way(visible)
    hidden: set[Mark] = set()
    for mark in sorted(marks, key=lambda mark: mark.call.start if mark.call else mark.time):
        inner = [] if mark in hidden else [other for other in visible if mark.holds(other)]
        if not inner:
            continue
        if all(same_level(mark.size, other.size) for other in inner) and not mark.joins(inner[-1]):
            visible = [other for other in visible if not mark.holds(other)]  # no run changes
            hidden.update(inner)
            continue
        outside = [other for other in visible if not mark.holds(other)]
        other_weight, *other = _way(outside)
        as_long = sum(map(len, other)) >= sum(map(len, way))
        if as_long and other_weight >= weight and not mark.joins(inner[-1]):
            visible, weight, way = outside, other_weight, other
            hidden.update(inner)
        else:
            opened.add(mark)
    _, *way = _way(visible)
    return (way[0], way[1]), [mark for mark in visible if mark not in opened]


def _laterals(marks: list[Mark], bottom: Run) -> list[Mark]:
    """What ran after the bottom on nothing but maps from before it, and all inside that."""
    start = bottom.marks[0].time
    finer = [mark for mark in marks if mark.time < start and _finer(mark.size, bottom.end.size)]
    early = {id(mark.call.output) for mark in finer if mark.call is not None}
    outer = []
    for mark in marks:
        call = mark.call
        if call is not None and call.start > start and call.inputs and all(id(x) in early for x in call.inputs):
            early.add(id(call.output))
            outer.append(mark)
    return [mark for mark in marks if mark in outer or any(lateral.holds(mark) for lateral in outer)]


def _usable(runs: list[Run], visible: list[Mark]) -> list[list[Mark]]:
    found = [[mark for mark in run.marks if mark.usable and mark in visible] for run in runs]
    return [run for run in found if run]


def _solid(run: list[Mark]) -> Mark:
    """The last of several layers, if there is one: on the way down a lateral layer may follow it."""
    return next((mark for mark in reversed(run) if mark.weights > 1), run[-1])


def _unprojected(run: list[Mark]) -> Mark:
    """The last of the run, which joins what came before, unless it only projects the last of several layers."""
    solid, end = _solid(run), run[-1]
    while end is not solid:
        before = [mark for mark in run if end.follows(mark)]
        if not before:
            return run[-1]
        end = before[-1]
    return solid


def _filled(up: list[Mark], late: list[Mark], bottom: Size) -> list[Mark]:
    """The way up, with what ran at a size that is missing between the bottom and its end, in whatever order."""
    found = list(up)
    for mark in reversed(late):
        between = up and _finer(mark.size, bottom) and _finer(up[-1].size, mark.size)
        if between and mark.usable and mark.weights and not any(same_level(mark.size, other.size) for other in found):
            found.append(mark)
    return sorted(found, key=lambda mark: math.prod(mark.size))


def _way(marks: list[Mark]) -> tuple[int, list[Run], list[Run]]:
    """The heaviest way through the runs, and its weight; of several, the latest."""
    runs = _runs(marks)
    if not runs:
        return 0, [], []
    down, up = _descend(runs), _descend(runs[::-1])

    def weight(run: Run) -> int:
        return down[run][0] + up[run][0] - run.weight

    bottom = max(runs, key=lambda run: (weight(run), run.end.time))
    before, after = _follow(down, bottom), _follow(up, bottom)
    return weight(bottom), [*reversed(before), bottom], after


def _runs(marks: list[Mark]) -> list[Run]:
    grouped: list[list[Mark]] = []
    for mark in marks:
        if grouped and same_level(grouped[-1][-1].size, mark.size):
            grouped[-1].append(mark)
        else:
            grouped.append([mark])
    starts = [-math.inf, *(group[-1].time for group in grouped)]
    return [Run(group, _weight(group, start)) for group, start in zip(grouped, starts, strict=False)]


def _weight(marks: list[Mark], start: float) -> int:
    """Three with a module of several layers that makes this size only, else one."""
    solid = any(mark.weights > 1 and mark.call is not None and mark.call.start > start for mark in marks)
    return 3 if solid else 1


def _descend(runs: list[Run]) -> dict[Run, tuple[int, Run | None]]:
    """For each run, the heaviest way that comes down to it, and the run before it on that way."""
    ways: dict[Run, tuple[int, Run | None]] = {}
    for run in runs:
        finer = [other for other in ways if _finer(other.end.size, run.end.size)]
        best = max(finer, key=lambda other: (ways[other][0], other.end.time), default=None)
        ways[run] = (run.weight + (ways[best][0] if best else 0), best)
    return ways


def _follow(ways: dict[Run, tuple[int, Run | None]], run: Run) -> list[Run]:
    path = []
    while (following := ways[run][1]) is not None:
        path.append(following)
        run = following
    return path
