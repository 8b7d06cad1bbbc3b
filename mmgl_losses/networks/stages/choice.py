"""Which module stands for a level: the one whose output the next level, a skip or the head takes."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from mmgl_losses.networks.recorder import Call, Trace
from mmgl_losses.networks.stages.heads import Heads
from mmgl_losses.networks.stages.path import Graph, Level, Path, closure, depth


@dataclass(frozen=True)
class Choice:
    """A level and its module; `why` says what stands in the way where there is none, or only an earlier one."""

    role: str
    node: int
    call: Call | None = None
    why: str = ""


class Chooser:
    """Finds the last map of each level, and the module that returns it."""

    def __init__(self, trace: Trace, heads: Heads, graph: Graph, path: Path, scripted: Collection[str] = ()) -> None:
        self.trace, self.nodes, self.heads = trace, trace.nodes, heads
        self.graph, self.path, self.scripted = graph, path, scripted
        self.runs = Counter(call.name for call in trace.calls)
        self.consumers: dict[int, list[int]] = {}
        for node in trace.nodes:
            for i in node.carriers:
                self.consumers.setdefault(i, []).append(node.index)
        self.normalised: dict[int, list[int]] = {}
        self.returning: dict[int, list[Call]] = {}
        for call in trace.calls:
            for i in call.returned:
                self.returning.setdefault(i, []).append(call)

    def choose(self) -> list[Choice]:
        """The stages from the first to the last, and the modules that make the output."""
        if self.path.bottom is None:
            return []
        bottom = self.graph.levels[self.path.bottom]
        assert bottom is not None
        skips = self._skips()
        extra = [level for level in skips if level not in self.path.down and depth(level) < depth(bottom)]
        # A skip that takes what is only pooled stands for the level that was pooled.
        pooled = [
            max((found for found in self.path.down if depth(found) < depth(level)), key=depth, default=None)
            for level in extra
        ]
        down = sorted(
            [level for level in {*self.path.down, *extra} if level in skips or level not in pooled], key=depth
        )
        self.bottom, self.levels = bottom, {*down, bottom, *self.path.up}
        self.lasts = [
            max((i for i in stage if self.graph.levels[i] == level and self._map(i)), default=-1)
            for stage, levels in ((self.path.before, [*down, bottom]), (self.path.after, self.path.up))
            for level in levels
        ]
        ends = [("encoder", self._down_end(level, skips.get(level, []))) for level in down]
        ends.append(("encoder", self._bottom_end(bottom)))
        ends += [("decoder", self._up_end(level)) for level in self.path.up]
        nodes = [node for _, node in ends]
        found = [self._named(role, node, [other for other in nodes if other != node]) for role, node in ends]
        return found + [Choice("output", layer, call) for layer, call in self._outputs(nodes)]

    # The last map of a level --------------------------------------------------------------------------------------

    def _skips(self) -> dict[Level, list[int]]:
        """For each level, the maps from elsewhere that the way up joins, by addition, concatenation or a product."""
        found: dict[Level, list[int]] = {}
        for i in sorted(self.path.after):
            carriers = self.graph.inputs(i)
            if not any(j in self.path.after or j in self.path.before for j in carriers) or len(carriers) < 2:
                continue
            if not any(j in self.path.after or self.graph.levels[j] != self.graph.levels[i] for j in carriers):
                continue
            for j in carriers:
                level = self.graph.levels[j]
                if j in self.path.after or level is None or level != self.graph.levels[i] or not self._made(j):
                    continue
                found.setdefault(level, []).extend(self._joined(j))
        return found

    def _joined(self, index: int) -> list[int]:
        """A map, or the maps that were put side by side in it."""
        if not self.nodes[index].joined:
            return [index]
        return [found for i in self.graph.inputs(index) for found in self._joined(i)]

    def _made(self, index: int) -> bool:
        """A layer lies behind the node: it is not the image itself."""
        seen = closure([index], lambda i: [] if self.nodes[i].weighted else self.nodes[i].inputs)
        return any(self.nodes[i].weighted for i in seen)

    def _down_end(self, level: Level, skips: list[int]) -> int:
        """What a skip takes, before it is projected; without a skip, what the next level takes."""
        before = self.path.before
        sources = {found: skip for skip in skips if (found := self._source(skip, level)) is not None}
        if sources:
            source = max(sources)
            self.normalised[source] = self._normalised(source, sources[source])
            return source
        if skips:
            return max(skips)
        last = self._left([i for i in before if self.graph.levels[i] == level and self._map(i)])
        # A decoder of tokens takes the levels one behind the other: no skip, but a lateral path.
        for i in sorted(self.graph.useful - before - self.path.after):
            if self.nodes[i].weighted and self.graph.levels[i] == level and self._source(i, level) == last:
                self.normalised[last] = self._normalised(last, i)
                break
        return last

    def _normalised(self, source: int, skip: int) -> list[int]:
        """The nodes between a map and the layer of its lateral path: normalisations and reshapes."""
        toward, found, todo = closure([skip], self.graph.inputs), [], [source]
        while todo:
            ways = [i for i in self.consumers.get(todo.pop(), ()) if i in toward and i not in self.path.before]
            todo = [i for i in ways if not self.nodes[i].weighted and len(self.nodes[i].carriers) == 1][:1]
            found += todo
        return found

    def _source(self, skip: int, level: Level) -> int | None:
        """The map on the way down that a skip takes, itself or behind one layer: the projection of a lateral path."""
        todo, found, seen, layers = [skip], [], set(), 0
        while todo:
            index = todo.pop()
            if index in seen or self.graph.levels[index] != level:
                continue
            seen.add(index)
            if index in self.path.before and self._map(index):
                found.append(index)
                continue
            layers += self.nodes[index].weighted
            todo += self.graph.inputs(index)
        return max(found, default=None) if layers <= 1 else None

    def _bottom_end(self, level: Level) -> int:
        floor = [i for i in self.path.before if self.graph.levels[i] == level and self._map(i)]
        return self._left(floor)

    def _up_end(self, level: Level) -> int:
        # What follows on this level from the way up; a branch that comes from below beside it is another.
        own = {i for i in self.path.after if self.graph.levels[i] == level}
        start = [i for i in self.path.way if i in own]
        return self._left(
            [i for i in closure(start, lambda i: own.intersection(self.consumers.get(i, ()))) if self._map(i)]
        )

    def _places(self, index: int) -> bool:
        return any(axis.spatial for axis in self.nodes[index].layout)

    def _map(self, index: int) -> bool:
        return self.nodes[index].map is not None

    def _left(self, own: list[int]) -> int:
        """The last map of a level, less what belongs to the next one.

        A layer that narrows the map before it is enlarged, or the first layer of a strided block, is on this level but
        in the module of the next one; the layers of a head are in the module of the head.
        """
        own = sorted(own)
        floor = own[0] in self.path.before and self.graph.levels[own[0]] == self.bottom
        next_ones: set[int] = set()
        for call in self.trace.calls:
            held = [i for i in own if call.holds(i)]
            if call.name and held and call.start > own[0] and self._belongs_to_next(call, own, held, floor=floor):
                next_ones.update(held)
        node = self._unprojected([i for i in own if i not in next_ones] or own)
        before = node
        while not self.returning.get(before) and self._bare(before):  # a reshape, or an activation as a function
            (before,) = self.nodes[before].carriers
            node = before if before in own else node
        return node

    def _bare(self, index: int) -> bool:
        """The node has no weights and comes from one other on its level."""
        node = self.nodes[index]
        return (
            not node.weighted
            and len(node.carriers) == 1
            and self.graph.levels[node.carriers[0]] == self.graph.levels[index]
        )

    def _belongs_to_next(self, call: Call, own: list[int], held: list[int], *, floor: bool) -> bool:
        """The call begins on this level and goes on to the next one, or to a head, from one map that a module made."""
        level, way = self.graph.levels[own[0]], self.path.before | self.path.after
        head = any(call.holds(i) and self._places(i) for i in self.heads.layers)
        goes_on = any(self.graph.levels[i] in self.levels - {level} for i in way if call.start <= i < call.end)
        if not goes_on and not head:
            return False
        nodes = [i for i in range(call.start, call.end) if i in way and self.graph.levels[i] == level]
        if not any(self.nodes[i].weighted or self.nodes[i].normalised for i in nodes) and not (head and not goes_on):
            return False
        if floor and goes_on and any(self.nodes[i].joined for i in nodes):
            return False  # a pyramid at the bottom, in the module of the decoder, is the bottleneck
        if any(call.holds(i) and i not in call.returned for i in self.lasts if i not in own):
            return False  # other stages end in there
        leaving = (i for i in range(call.start, call.end) if self.graph.levels[i] == level and self._leaves(i, call))
        if not floor and any(leaving):
            return False  # it gives this level to the decoder, and the next level beside it
        inputs = {i for node in nodes for i in self.graph.inputs(node) if i < call.start}
        entering = [i for i in inputs if self.graph.levels[i] is not None]
        return len(entering) == 1 and entering[0] in own and self._stands(entering[0], own[0])

    def _leaves(self, node: int, call: Call) -> bool:
        """The node is taken behind the call by what leads to an end."""
        useful = self.graph.useful
        return node in useful and any(i >= call.end and i in useful for i in self.consumers.get(node, ()))

    def _stands(self, node: int, first: int) -> bool:
        """A module with weights returns the node, or layers on this level made it."""
        calls = [call for call in self.returning.get(node, ()) if call.output == node and call.holds(node)]
        if any(next(call.module.parameters(), None) is not None for call in calls):
            return True
        if len(self.nodes[node].carriers) > 1:  # two maps meet
            return any(i >= first and self._stands(i, first) for i in self.nodes[node].carriers)
        way = self.path.before | self.path.after
        return any(self.nodes[i].weighted for i in range(first, node + 1) if i in way)

    def _unprojected(self, own: list[int]) -> int:
        """The last map, or the one before the projection that ends in it, if that is no part of the same block."""
        last = self._unjoined(own)
        layer = self._layer(last)
        mixed = [i for i in own if self.nodes[i].mixes and i < layer]
        before = self._before(layer, set(own))
        if self.nodes[layer].mixes or not mixed or before is None or before < mixed[-1]:
            return last
        leaving = self._leaving(last)
        together = [call for call in self.trace.calls if call.name and call.holds(before) and call.holds(layer)]
        # What is narrowed before a pooling or a head is narrowed for good.
        return last if leaving not in self.path.after or any(not c.holds(leaving) for c in together) else before

    def _layer(self, node: int) -> int:
        """The layer that made a map, through what has no weights; where several maps meet, none."""
        while not self.nodes[node].weighted and len(self.nodes[node].carriers) == 1:
            node = self.nodes[node].carriers[0]
        return node

    def _before(self, layer: int, own: set[int]) -> int | None:
        """The map that a layer is given, through reshapes."""
        todo, found = list(self.nodes[layer].carriers), None
        while len(todo) == 1:
            found = todo[0] if todo[0] in own else found
            node = self.nodes[todo[0]]
            if node.normalised or node.rectified or self.returning.get(todo[0]) or not self._bare(todo[0]):
                break
            todo = list(self.nodes[todo[0]].carriers)
        return found

    def _unjoined(self, own: list[int]) -> int:
        """The last map; where a module puts its own input beside it, as a skip connection, the map alone."""
        node = self.nodes[own[-1]]
        if node.joined and len(node.carriers) == 2:
            given, made = sorted(node.carriers)
            calls = [call for call in self.returning.get(own[-1], ()) if call.output == own[-1]]
            wide = self.nodes[made].map is not None and self.nodes[made].shape[1] >= self.nodes[given].shape[1]
            if wide and made in own and any(given < call.start <= made for call in calls):
                return made
        return own[-1]

    def _leaving(self, node: int) -> int:
        """The first node on another level, or of a head, that follows from this one."""
        level, heads = self.graph.levels[node], set(self.heads.layers)
        after = closure([node], lambda i: self.consumers.get(i, ()))
        others = (i for i in after if i in heads or self.graph.levels[i] != level)
        return min(others, default=len(self.nodes))

    # The module of a map ------------------------------------------------------------------------------------------

    def _named(self, role: str, node: int, others: Collection[int]) -> Choice:
        """The largest module that returns the node and holds no other stage; if there is none, one shortly before."""
        why = ""
        level = self.graph.levels[node]
        stage = self.path.before if node in self.path.before else self.path.after
        todo, seen = [(node, False)], set()
        ahead = list(self.normalised.get(node, ()))
        while todo:
            todo.sort()
            index, crossed = todo.pop()
            if index != node and ahead:  # what a skip takes may be the map after a normalisation
                todo.append((index, crossed))
                index, crossed = ahead.pop(0), False
            if index in seen:
                continue
            seen.add(index)
            calls = [call for call in self.returning.get(index, ()) if call.holds(index)]
            calls = [call for call in calls if call.name and not any(call.holds(other) for other in others)]
            usable = [call for call in calls if not self.obstacle(call)]
            if usable:
                call = usable[0]
                return Choice(role, index, call, (why or "no module returns it") if crossed else "")
            if calls and not why:
                call = calls[0]
                why = f"{call.name!r} {self.obstacle(call)}"
            # Behind a layer, or where two maps meet, it is another map.
            crossed = crossed or self.nodes[index].weighted or len(self.nodes[index].carriers) > 1
            ways = [
                i
                for i in self.nodes[index].carriers
                if self.graph.levels[i] == level and (i in stage or i not in self.path.before | self.path.after)
            ]
            if self.nodes[index].joined:  # the widest of what is put side by side is most of it
                ways = sorted(ways, key=lambda i: (found.channels if (found := self.nodes[i].map) else 0, i))[-1:]
            todo += [(i, crossed) for i in ways]
        if not why and self.scripted:
            why = f"no module returns it; {', '.join(map(repr, self.scripted))} is scripted, which has no hooks"
        return Choice(role, node, None, why or "no module returns it")

    def obstacle(self, call: Call) -> str:
        """Why the output of a call cannot be tapped; empty if it can."""
        if call.output is None:
            return f"returns {call.kind}, from which a selector can take it"
        if self.runs[call.name] > 1:
            return f"runs {self.runs[call.name]} times, of which `calls` can take one"
        if self.trace.overwritten(call.output, call.end):
            return "is overwritten in place after it returned"
        if not call.floating:
            return "returns no floating-point numbers"
        if not self._map(call.output):
            pieces = any(axis.pieces for axis in self.nodes[call.output].layout)
            return "returns tokens behind others, which a selector can take off" if pieces else "returns no map"
        return ""

    def _outputs(self, stages: Collection[int]) -> list[tuple[int, Call]]:
        """For each head the largest module around it that holds no stage."""
        found: dict[str, tuple[int, Call]] = {}
        for layer in sorted(self.heads.layers):
            if not self._places(layer):
                continue
            calls = [call for call in self.trace.calls if call.name and call.holds(layer)]
            calls = [call for call in calls if not any(call.holds(stage) for stage in stages)]
            if calls:
                call = calls[0]
                found.setdefault(call.name, (layer, call))
        return list(found.values())
