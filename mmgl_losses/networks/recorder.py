"""What leads to what in one pass: each operation on what descends from the example, written down as it runs.

Tensors are not kept: of each one the shape and the axes are written down, and it is recognised as long as the
network itself holds it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from mmgl_losses.networks.axes import Axis, Layout, Map, Part, as_map, snap
from mmgl_losses.networks.operation import NORMS, RECTIFIERS, Operation
from mmgl_losses.networks.rules import layouts


@dataclass(frozen=True, eq=False)
class Node:
    """A tensor that descends from the example, as one operation left it.

    Attributes:
        carriers: the nodes whose places it has.
        sides: the other nodes that went into it, such as gates, and keys of attention.
        weighted, mixes, product: as in `Operation`.
        normalised, rectified, joined: made by a normalisation; by an activation of the kind that follows hidden layers;
            by a concatenation.
        storage: equal for tensors that share their memory.
        last: the latest map on the way to it, itself if it is one.
    """

    index: int
    shape: tuple[int, ...]
    layout: Layout
    carriers: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()
    weighted: bool = False
    mixes: bool = False
    product: bool = False
    normalised: bool = False
    rectified: bool = False
    joined: bool = False
    storage: int = -1
    map: Map | None = None
    last: Map | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """All nodes that went into it."""
        return self.carriers + self.sides


@dataclass(eq=False)
class Call:
    """One call of a module: the nodes from `start` up to `end` were made in it.

    Attributes:
        output: the node it returned; None where it returned something else than one tensor, which `kind` names.
        returned: all nodes in what it returned.
        floating: it returned floating-point numbers.
        seen: what the caller of `trace.record` looked for in it.
    """

    name: str
    module: nn.Module
    start: int
    end: int = -1
    output: int | None = None
    returned: tuple[int, ...] = ()
    kind: str = "nothing"
    floating: bool = True
    seen: Any = None

    def holds(self, node: int) -> bool:
        """The node was made in this call."""
        return self.start <= node < self.end


@dataclass(eq=False)
class Trace:
    """What one pass left: nodes in the order in which they were made, calls in that in which they began.

    Attributes:
        image: the shape of the example's image, the largest if there are several.
        outputs: the nodes of the tensors that the network returned.
        writes: what was written in place: the memory, and the node from which on it holds something else.
    """

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    image: tuple[int, ...] = ()
    outputs: list[int] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)

    def overwritten(self, node: int, after: int) -> bool:
        """The memory of the node was written to when there were `after` nodes, or later."""
        return any(storage == self.nodes[node].storage and index >= after for storage, index in self.writes)


class Recorder(TorchDispatchMode):
    """Writes down each operation on what descends from the example."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self._known = WeakTensorKeyDictionary()  # tensors that are alive, and their nodes
        self._written: dict[int, list[int]] = {}  # memory, and the nodes that were written into it
        self._memories: dict[int, int] = {}  # the node that was last in a memory
        self._levels: dict[int, list[Fraction]] = {}
        self._batch = 0

    def begin(self, tensors: Sequence[Tensor]) -> None:
        """Start from the tensors of the example; those with spatial axes are images."""
        images, main = images_among(tensors)
        self._batch = len(main) if main is not None else 0
        self.trace.image = tuple(main.shape) if main is not None else ()
        for tensor in tensors:
            axes = [Axis(size) for size in tensor.shape]
            if main is not None and any(tensor is image for image in images):
                wholes = main.shape if main.ndim == tensor.ndim else tensor.shape
                strides = [snap(Fraction(1), whole, size, ()) for whole, size in zip(wholes, tensor.shape, strict=True)]
                strides[:2] = [Fraction(1)] * 2
                parts = [
                    Part(i, size, stride) for i, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True))
                ]
                axes = [Axis(part.size, (part,)) for part in parts]
            self._add(tensor, tuple(axes))

    def node(self, tensor: object) -> int | None:
        """The node of a tensor; None where it does not descend from the example."""
        if not isinstance(tensor, Tensor):
            return None
        nodes = self._sources(tensor)
        return nodes[-1] if nodes else None

    def rewritten(self, tensor: Tensor) -> None:
        """The memory of a tensor counts as written to from here on."""
        node = self.node(tensor)
        if node is not None:
            self._add(tensor, self.trace.nodes[node].layout, (node,), storage=self.trace.nodes[node].storage)
            self.trace.writes.append((self.trace.nodes[node].storage, len(self.trace.nodes) - 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and write down what came of it."""
        kwargs = kwargs or {}
        before = {id(tensor): self._sources(tensor) for tensor in tensors((args, kwargs))}
        out = func(*args, **kwargs)
        results = list(tensors(out))
        if not any(before.values()):
            for tensor in results:
                if id(tensor) not in before:  # new memory, perhaps where other memory was before
                    self._written.pop(_memory(tensor), None)
                    self._memories.pop(_memory(tensor), None)
            return out
        changed = [
            value
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for value in tensors(args[i] if i < len(args) else kwargs.get(argument.name))
        ]
        self._note(func.overloadpacket.__name__, args, kwargs, results or changed, changed, before)
        return out

    def _note(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        results: list[Tensor],
        changed: list[Tensor],
        before: dict[int, list[int]],
    ) -> None:
        name = name.removesuffix("_") or name
        # A tensor that was changed in place is among the arguments as it was before.
        known = {key: self._layout(nodes) for key, nodes in before.items()}
        op = Operation(name, args, kwargs, results, lambda tensor: known.get(id(tensor)), self._levels)
        op.before = lambda tensor: self.trace.nodes[before[id(tensor)][-1]].last if before.get(id(tensor)) else None
        op.batch = self._batch
        try:
            found = layouts(op)
        except (ArithmeticError, LookupError, TypeError, ValueError):  # called in a way that its rule does not know
            found = [tuple(Axis(size) for size in tensor.shape) for tensor in results]
        carriers = dict.fromkeys(node for tensor in op.carriers for node in before.get(id(tensor), ()))
        everything = dict.fromkeys(node for nodes in before.values() for node in nodes)
        carriers = carriers or everything
        sides = [node for node in everything if node not in carriers]
        storages = {
            _memory(t): self.trace.nodes[before[id(t)][-1]].storage for t in tensors((args, kwargs)) if before[id(t)]
        }
        for tensor, layout in zip(results, found, strict=True):
            layout = layout if layout is not None and len(layout) == tensor.ndim else tuple(map(Axis, tensor.shape))
            memory = _memory(tensor)
            fresh = memory not in storages and not any(tensor is other for other in changed)
            if fresh:
                self._written.pop(memory, None)
            node = self._add(
                tensor, layout, tuple(carriers), tuple(sides), op, -1 if fresh else storages.get(memory, -1)
            )
            if any(tensor is other for other in changed):
                self._written.setdefault(memory, []).append(node.index)
                self.trace.writes.append((node.storage, node.index))

    def _add(
        self,
        tensor: Tensor,
        layout: Layout,
        carriers: tuple[int, ...] = (),
        sides: tuple[int, ...] = (),
        op: Operation | None = None,
        storage: int = -1,
    ) -> Node:
        index = len(self.trace.nodes)
        found = as_map(layout)
        last = found or next((self.trace.nodes[i].last for i in carriers if self.trace.nodes[i].last), None)
        kinds = {} if op is None else {
            "weighted": op.weighted, "mixes": op.mixes, "product": op.product,
            "normalised": op.name in NORMS, "rectified": op.name in RECTIFIERS, "joined": op.name == "cat",
        }  # fmt: skip
        storage = index if storage < 0 else storage
        node = Node(index, tuple(tensor.shape), layout, carriers, sides, **kinds, storage=storage, map=found, last=last)
        self.trace.nodes.append(node)
        self._known[tensor] = index
        self._memories[_memory(tensor)] = index
        return node

    def _sources(self, tensor: Tensor) -> list[int]:
        """The node of a tensor, and what was written into its memory since, by way of other views."""
        own = self._known.get(tensor)
        if own is None:  # a subclass of tensors wraps results in objects of its own, on the same memory
            other = self._memories.get(_memory(tensor))
            own = other if other is not None and self.trace.nodes[other].shape == tuple(tensor.shape) else None
        later = [node for node in self._written.get(_memory(tensor), ()) if own is None or node > own]
        return later if own is None else [own, *later]

    def _layout(self, nodes: list[int]) -> Layout | None:
        return self.trace.nodes[nodes[0]].layout if nodes else None


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those of torch.func, have no memory to name
        return id(tensor)


def images_among(tensors: Iterable[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """The tensors with spatial axes, and the largest of them."""
    images = [t for t in tensors if t.ndim >= 3 and t.is_floating_point()]
    main = images[0] if images else None
    for image in images:  # the compiler does not know `max` with a key
        if main is not None and (image.ndim, image.numel()) > (main.ndim, main.numel()):
            main = image
    return images, main


def tensors(value: object, within: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Every tensor in nested sequences, mappings and objects with attributes; `within`: the objects around it."""
    if isinstance(value, Tensor):
        yield value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif not isinstance(value, (nn.Module, type)) and id(value) not in within:
        within |= {id(value)}
        items = _attributes(value)
    for item in items:
        yield from tensors(item, within)


def _attributes(value: object) -> list[object]:
    """What an object holds, in slots and otherwise."""
    slots = [kind.__dict__.get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    held = [getattr(value, name) for name in names if hasattr(value, name)]
    return held + list(getattr(value, "__dict__", {}).values())
