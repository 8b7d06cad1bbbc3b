"""The way down to the bottleneck and up again, on the graph of what led to what.

A level is a stride. The way runs over maps that follow from one another, strictly down and then strictly up, through
as many levels as there are. A level counts on the way down where a layer brings places together (a kernel, attention)
and on the way up where any layer has weights: a pooled map that is only projected is a summary, not a level.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from mmgl_losses.networks.recorder import Call, Trace
from mmgl_losses.networks.stages.heads import Heads

Level = tuple[Fraction, ...]


@dataclass(frozen=True)
class _Chain:
    """The best way to (or from) a node: levels before its own, whether that counts too, and the neighbour on it.

    `joins`: how often maps from elsewhere come in on it.
    """

    before: int
    own: bool
    neighbour: int | None = None
    joins: int = 0

    @property
    def count(self) -> int:
        return self.before + self.own


@dataclass(eq=False)
class Path:
    """The bottleneck and what belongs to it.

    Attributes:
        bottom: the last node at the coarsest level; None where there is no map.
        down, up: the levels of the way down, without the coarsest one, and of the way up.
        before, after: the nodes that lead to the bottleneck, itself among them, and those that follow from it and
            are finer.
        way: the nodes on the way up.
    """

    bottom: int | None
    down: list[Level] = field(default_factory=list)
    up: list[Level] = field(default_factory=list)
    before: set[int] = field(default_factory=set)
    after: set[int] = field(default_factory=set)
    way: list[int] = field(default_factory=list)


class Graph:
    """The maps of a pass with their levels and what leads to what; modules may be closed, which hides their inside."""

    def __init__(self, trace: Trace, heads: Heads) -> None:
        self.nodes = trace.nodes
        self.heads = heads
        self.closed: list[Call] = []
        self.sources = _sources(trace, heads)
        self.levels = [self._level(i) for i in range(len(trace.nodes))]
        self.useful = self._useful()

    def _level(self, index: int) -> Level | None:
        """The strides of a node along the spatial axes of the output; those of the latest map where it is no map."""
        found = self.nodes[index].map or self.nodes[index].last
        if found is None or not all(source in found.stride for source in self.sources):
            return None
        if not any(axis.spatial for axis in self.nodes[index].layout) and self.nodes[index].map is None:
            return None  # a vector
        return tuple(found.stride[source] for source in self.sources)

    def _useful(self) -> set[int]:
        """Nodes from which an end can be reached."""
        return closure(self.heads.ends, lambda i: self.nodes[i].inputs) - self.heads.nodes

    def inputs(self, index: int) -> list[int]:
        """The nodes that carry their places to this one; a closed module stands between its inputs and its output."""
        hidden = [call for call in self.closed if call.holds(index)]
        if not hidden:
            return [i for i in self.nodes[index].carriers if i in self.useful]
        outer = hidden[0]
        if index not in outer.returned:
            return []
        inside = closure([index], lambda i: [j for j in self.nodes[i].carriers if outer.holds(j)])
        entering = {j for i in inside for j in self.nodes[i].carriers if not outer.holds(j)}
        return sorted(i for i in entering if i in self.useful)

    def alive(self) -> list[int]:
        """Nodes with a level that lead to an end and are in no closed module."""
        closed = self.closed
        return [
            i
            for i in sorted(self.useful)
            if self.levels[i] is not None and not any(call.holds(i) and i not in call.returned for call in closed)
        ]

    def edges(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """For each living node, the living nodes that carry to it, and those it carries to."""
        alive = self.alive()
        known = set(alive)
        back = {i: [j for j in self.inputs(i) if j in known] for i in alive}
        forth: dict[int, list[int]] = {i: [] for i in alive}
        for i, carriers in back.items():
            for j in carriers:
                forth[j].append(i)
        return back, forth

    def substance(self, index: int, up: bool) -> bool:
        """The node lets its level count."""
        return any(self._counts(i, up) for i in self._same(index))

    def _counts(self, index: int, up: bool) -> bool:
        node = self.nodes[index]
        if up:  # a map from elsewhere that joins is made by layers, too
            return node.weighted or sum(self.levels[i] == self.levels[index] for i in node.carriers) > 1
        return node.mixes and not (node.map is not None and node.map.channels == 1)  # one channel: attention

    def _same(self, index: int) -> Iterable[int]:
        """The node; for what a closed module returns, all nodes of its level in there."""
        call = next((call for call in self.closed if index in call.returned and call.holds(index)), None)
        if call is None:
            return [index]
        return [i for i in range(call.start, call.end) if self.levels[i] == self.levels[index]]


def closure(start: Iterable[int], following) -> set[int]:
    """Everything that can be reached, the start included."""
    seen, todo = set(), list(start)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(following(node))
    return seen


def depth(level: Level) -> Fraction:
    """How coarse a level is: elements of the image for each of its own."""
    return math.prod(level, start=Fraction(1))


def find_path(graph: Graph, calls: Sequence[Call]) -> Path:
    """The way through as many levels as there are, with as many modules closed as that allows.

    A block that is a small U-Net itself is closed, since the way is as long without its inside.
    """
    best, path = _way(graph)
    for call in calls:
        if any(outer.start <= call.start and call.end <= outer.end for outer in graph.closed):
            continue
        if _valley(graph, call):
            graph.closed.append(call)
            count, other = _way(graph)
            if count < best:
                graph.closed.pop()
            else:
                path = other
    return path


def _valley(graph: Graph, call: Call) -> bool:
    """The module goes down inside, and comes up again before it returns."""
    if not call.name or not call.returned:
        return False
    own = [i for i in range(call.start, call.end) if i in graph.useful]
    around = {i for i in call.returned if call.holds(i)} | {j for i in own for j in graph.inputs(i) if j < call.start}
    inside = [depth(level) for i in own if (level := graph.levels[i])]
    ends = [depth(level) for i in around if (level := graph.levels[i])]
    return bool(inside and ends) and max(inside) > max(ends)


def _way(graph: Graph) -> tuple[int, Path]:
    back, forth = graph.edges()
    down = _chains(graph, sorted(back), back, up=False)
    up = _chains(graph, sorted(back, reverse=True), forth, up=True)
    candidates = [i for i in down if down[i].own and graph.nodes[i].map is not None]
    if not candidates:
        return 0, Path(None)

    def passed(i: int) -> int:
        return down[i].count + up[i].before

    def joins(i: int) -> int:
        """How many maps come in on the way up, above the level of the node."""
        j: int | None = i
        while j is not None and graph.levels[j] == graph.levels[i]:
            j = up[j].neighbour
        return 0 if j is None else up[j].joins

    layers: dict[int, int] = {}  # as many as lie on the longest way to a node: a side branch has fewer
    for i in sorted(back):
        layers[i] = graph.nodes[i].weighted + max((layers[j] for j in back[i]), default=0)
    bottom = max(candidates, key=lambda i: (passed(i), up[i].before, joins(i), layers[i], i))
    level = graph.levels[bottom]
    before = closure([bottom], lambda i: back[i])
    after = closure([bottom], lambda i: [j for j in forth[i] if depth(graph.levels[j]) <= depth(level)])  # type: ignore[arg-type]
    after = {i for i in after if graph.levels[i] != level}
    ways = [_levels(graph, bottom, down, up=False), _levels(graph, bottom, up, up=True)]
    way = [bottom]
    while (following := up[way[-1]].neighbour) is not None:
        way.append(following)
    path = Path(bottom, *([found for found in way if found != level] for way in ways), before, after, way)  # type: ignore[misc]
    return passed(bottom), path


def _chains(graph: Graph, order: list[int], edges: dict[int, list[int]], *, up: bool) -> dict[int, _Chain]:
    """For each node the best way over `edges`, each step to the same level or to a finer one."""
    chains: dict[int, _Chain] = {}
    for i in order:
        own, level = graph.substance(i, up), graph.levels[i]
        joins = len(graph.nodes[i].carriers) > 1
        best = _Chain(0, own, joins=joins)
        for j in edges[i]:
            other = chains[j]
            if graph.levels[j] == level:
                found = _Chain(other.before, other.own or own, j, other.joins + joins)
            elif depth(graph.levels[j]) < depth(level):  # type: ignore[arg-type]
                found = _Chain(other.count, own, j, other.joins + joins)
            else:
                continue
            # Of as many levels, a way up has those above its start; a way down has that of its end, where a layer is.
            if (found.count, found.own != up, found.joins) >= (best.count, best.own != up, best.joins):
                best = found
        chains[i] = best
    return chains


def _levels(graph: Graph, start: int, chains: dict[int, _Chain], *, up: bool) -> list[Level]:
    """The levels that count on the way from a node, from the finest one on the way down, to it on the way up."""
    found: list[Level] = []
    index: int | None = start
    while index is not None:
        level = graph.levels[index]
        if chains[index].own and level is not None and level not in found:
            found.append(level)
        index = chains[index].neighbour
    return found if up else found[::-1]


def _sources(trace: Trace, heads: Heads) -> tuple[int, ...]:
    """The spatial axes of the example that the ends have: a 3-D stem before a 2-D network has more."""
    found = [trace.nodes[i].map or trace.nodes[i].last for i in heads.ends]
    places = [frozenset(found.stride) for found in found if found is not None]
    return tuple(sorted(min(places, key=len))) if places else ()
