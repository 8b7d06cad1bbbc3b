"""The way down and up again through the sizes of feature maps, and which modules stand for it."""

import math
from dataclasses import dataclass

from mmgl_losses.dryrun import Call

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


def find_valley(marks: list[Mark]) -> tuple[list[Mark], list[Mark]]:
    """The marks of the stages on the way down (the bottom included) and on the way up.

    The way is the longest that goes strictly down and then strictly up. Modules are closed from the outside in, which
    hides what is inside, wherever the way stays as long and keeps as many sizes with more than a single layer. For
    each size, the last usable closed module is taken.
    """
    visible = marks
    score = _score(visible)
    opened: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: mark.call.start if mark.call else mark.time):
        inner = [other for other in visible if mark.holds(other)] if mark in visible else []
        if not inner:
            continue
        outside = [other for other in visible if not mark.holds(other)]
        after = _score(outside)
        if not mark.joins(inner[-1]) and after[0] >= score[0] and after[1] >= score[1]:
            visible, score = outside, after
        else:
            opened.append(mark)
    stages = []
    for part in _way(_runs(visible)):
        found = []
        for run in part:
            usable = [mark for mark in run if mark.usable and mark not in opened]
            found += usable[-1:]
        stages.append(found)
    return stages[0], stages[1]


def _runs(marks: list[Mark]) -> list[list[Mark]]:
    """Neighbours in time of the same size."""
    runs: list[list[Mark]] = []
    for mark in marks:
        if runs and same_level(runs[-1][-1].size, mark.size):
            runs[-1].append(mark)
        else:
            runs.append([mark])
    return runs


def _score(marks: list[Mark]) -> tuple[int, int]:
    """How long the way is, and how many sizes on it have a module of two layers that makes no other size."""
    runs = _runs(marks)
    down, up = _way(runs)
    before = dict(zip(map(id, runs), [-math.inf, *(run[-1].time for run in runs)], strict=False))
    solid = [
        any(mark.weights > 1 and mark.call is not None and mark.call.start > before[id(run)] for mark in run)
        for run in (*down, *up)
    ]
    return len(solid), sum(solid)


def _way(runs: list[list[Mark]]) -> tuple[list[list[Mark]], list[list[Mark]]]:
    """The longest way strictly down, then strictly up, through the runs; of several, the latest."""
    sizes = [run[-1].size for run in runs]
    n = len(runs)
    down, up = [1] * n, [1] * n
    for i in range(n):
        down[i] += max((down[j] for j in range(i) if _finer(sizes[j], sizes[i])), default=0)
    for i in reversed(range(n)):
        up[i] += max((up[j] for j in range(i + 1, n) if _finer(sizes[j], sizes[i])), default=0)
    if not n:
        return [], []
    bottom = max(range(n), key=lambda i: (down[i] + up[i], i))
    way_down = [bottom]
    while down[way_down[-1]] > 1:
        i = way_down[-1]
        way_down.append(max(j for j in range(i) if _finer(sizes[j], sizes[i]) and down[j] == down[i] - 1))
    rising = [0] * n  # the longest way up from the bottom that ends here
    rising[bottom] = 1
    for i in range(bottom + 1, n):
        rising[i] = max(
            (rising[j] + 1 for j in range(bottom, i) if rising[j] and _finer(sizes[i], sizes[j])), default=0
        )
    way_up, i = [], n
    for length in range(max(rising), 1, -1):
        above = sizes[i] if i < n else None
        i = max(j for j in range(i) if rising[j] == length and (above is None or _finer(above, sizes[j])))
        way_up.append(i)
    return [runs[i] for i in reversed(way_down)], [runs[i] for i in reversed(way_up)]
