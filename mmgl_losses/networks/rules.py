"""What each operation of torch does to axes: one rule for each kind, and a general one for all others."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from mmgl_losses.networks.axes import Axis, Layout, channel_axis, regroup
from mmgl_losses.networks.operation import CUTS, ENCODERS, PRODUCTS, REDUCTIONS, VIEWS, Operation, place_of


def layouts(op: Operation) -> list[Layout | None]:
    """The layouts of the results; sets what kind of operation it is, and its carriers."""
    rule = _RULES.get(op.name) or next((rule for key, rule in _FAMILIES if key in op.name), None)
    found, carriers = [], None
    for result in op.results:
        layout = rule(op, result) if rule is not None else None
        found.append(_general(op, result) if layout is None else layout)
        carriers = op.carriers if carriers is None else carriers  # what comes second is indices, or statistics
    op.carriers = carriers or []
    return found


def _general(op: Operation, result: Tensor) -> Layout | None:
    """Every axis as that of an argument which has the same size there, counted from the last, as broadcasting does."""
    op.carriers = _tensors(op.args)
    axes: list[Axis] = []
    for place in range(-result.ndim, 0):
        size, best = result.shape[place], Axis(result.shape[place])
        for tensor in op.carriers:
            if tensor.ndim < -place or tensor.shape[place] != size or op.layout(tensor) is None:
                continue
            axis = op.axis(tensor, place)
            if not best.parts or (axis.spatial and not best.spatial) or _simpler(axis, best):
                best = axis if axis.parts else best
        axes.append(best)
    if any(axis.spatial for axis in axes):  # a vector that gates a map leads nowhere by itself
        op.carriers = [t for t in op.carriers if any(axis.spatial for axis in op.layout(t) or ())]
    return tuple(axes)


def _simpler(axis: Axis, other: Axis) -> bool:
    a, b = place_of(axis), place_of(other)
    return a is not None and b is not None and a.source == b.source and a.stride.denominator < b.stride.denominator


def _tensors(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [t for item in args for t in _tensors(item)] if isinstance(args, (list, tuple)) else []


def _view(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None or tuple(result.shape) == tuple(op.args[0].shape):
        return layout
    op.carriers = [op.args[0]]
    return regroup(layout, result.shape) or _kept(layout, result)


def _kept(layout: Layout, result: Tensor) -> Layout:
    """Where the whole cannot be regrouped: the leading and the trailing axes that stay as they are."""
    axes: list[Axis] = [Axis(size) for size in result.shape]
    for step in (range(len(axes)), range(-1, -len(axes) - 1, -1)):
        for i in step:
            if not -len(layout) <= i < len(layout) or layout[i].size != result.shape[i]:
                break
            axes[i] = layout[i]
    return tuple(axes)


def _permute(op: Operation, result: Tensor) -> Layout | None:
    layout, n = op.layout(op.args[0]), op.args[0].ndim
    if layout is None:
        return None
    if op.name == "permute":
        order = list(op.args[1])
    else:
        order, (i, j) = list(range(n)), (op.args[1:3] if op.name in ("transpose", "swapaxes") else (0, -1))
        if n > 1:
            order[i], order[j] = order[j], order[i]
    return tuple(layout[i] for i in order)


def _unsqueeze(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None:
        return None
    place = op.args[1] % result.ndim
    return (*layout[:place], Axis(1), *layout[place:])


def _squeeze(op: Operation, result: Tensor) -> Layout | None:
    layout, n = op.layout(op.args[0]), op.args[0].ndim
    if layout is None:
        return None
    given = op.argument(1, "dim")
    places = range(n) if given is None else [given] if isinstance(given, int) else given
    gone = {place % n for place in places if op.args[0].shape[place] == 1}
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


def _expand(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None:
        return None
    lead = result.ndim - len(layout)
    kept = [a if a.size == size else Axis(size) for a, size in zip(layout, result.shape[lead:], strict=True)]
    return (*(Axis(size) for size in result.shape[:lead]), *kept)


def _select(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None:
        return None
    place = op.argument(1, "dim", 0) % len(layout)
    return layout[:place] + layout[place + 1 :]


def _cut(op: Operation, result: Tensor) -> Layout | None:
    """Slices, splits, joins and padding: other sizes along the same axes; every second element doubles a stride."""
    tensors = [t for t in _tensors(op.args) if op.layout(t) is not None]
    if not tensors or tensors[0].ndim != result.ndim:
        return None
    step = Fraction(op.argument(4, "step", 1)) if op.name == "slice" else Fraction(1)
    place = op.argument(2 if "split" in op.name or op.name == "chunk" else 1, "dim", 0)
    place = place % result.ndim if "pad" not in op.name else -1
    best = max(tensors, key=lambda t: sum(axis.spatial for axis in op.layout(t) or ()))
    axes = []
    for i, size in enumerate(result.shape):
        axis = op.axis(best, i)
        piece = axis.cut(_start(op, result, place), size) if i == place and op.name != "cat" and step == 1 else None
        moved = axis.size != size or (i == place and step != 1)
        axes.append(piece or (axis.resized(size, step if i == place else Fraction(1)) if moved else axis))
    if op.name == "cat":
        op.carriers = [t for t in tensors if any(a.spatial for a in op.layout(t) or ())] or tensors
        pieces = [piece for t in _tensors(op.args) for piece in op.axis(t, place).pieces or (op.axis(t, place),)]
        if len(pieces) > 1 and any(piece.spatial for piece in pieces):
            axes[place] = replace(axes[place], pieces=tuple(pieces))
    return tuple(axes)


def _start(op: Operation, result: Tensor, place: int) -> int:
    """Where a cut begins."""
    if op.name in ("slice", "narrow"):
        start = op.argument(2, "start", 0) or 0
        return int(start) if start >= 0 else op.args[0].shape[place] + int(start)
    before = itertools.takewhile(lambda other: other is not result, op.results)
    return sum(other.shape[place] for other in before)


def _picked(op: Operation, result: Tensor) -> Layout | None:
    """Elements that are picked or repeated along an axis: other images of the batch, other channels."""
    layout = op.layout(op.args[0])
    if layout is None or len(layout) != result.ndim:
        return None
    op.carriers = [op.args[0]]
    pairs = zip(layout, result.shape, strict=True)
    return tuple(
        axis if axis.size == size else Axis(size) if axis.spatial else axis.resized(size) for axis, size in pairs
    )


def _stack(op: Operation, result: Tensor) -> Layout | None:
    layout = next((found for t in _tensors(op.args) if (found := op.layout(t)) is not None), None)
    if layout is None:
        return None
    place = op.argument(1, "dim", 0) % result.ndim
    return (*layout[:place], Axis(result.shape[place]), *layout[place:])


def _reduce(op: Operation, result: Tensor) -> Layout | None:
    tensor = op.args[0]
    layout = op.layout(tensor)
    if layout is None or not isinstance(tensor, Tensor):
        return None
    given = op.argument(2 if "norm" in op.name else 1, "dim")
    if isinstance(given, Tensor):  # the larger of two tensors
        return None
    places = range(tensor.ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {place % tensor.ndim for place in places}
    if result.ndim == tensor.ndim:
        return tuple(Axis(1) if i in gone else axis for i, axis in enumerate(layout))
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


def _convolve(op: Operation, result: Tensor) -> Layout | None:
    image, kernel = op.args[0], op.args[1]
    op.weighted, op.carriers = True, [image]
    strides, transposed = op.argument(3, "stride", [1]), bool(op.argument(6, "transposed", False))
    batch, _, *places = op.image(image)
    axes = [batch, channel_axis(result.shape[1])]
    for i, axis in enumerate(places):
        step = Fraction(strides[min(i, len(strides) - 1)])
        axes.append(op.scaled(axis, result.shape[i + 2], 1 / step if transposed else step))
    op.mixes = max(kernel.shape[2:], default=1) > 1 and any(axis.spatial for axis in axes)
    return tuple(axes)


def _multiply(op: Operation, result: Tensor) -> Layout | None:
    first = PRODUCTS[op.name]
    a, b = op.args[first], op.args[first + 1]
    known_a, known_b = op.layout(a), op.layout(b)
    if known_a is not None and known_b is None:
        op.weighted, op.carriers = True, [a]
        op.mixes = known_a[-1].spatial
        return (*known_a[:-1], channel_axis(result.shape[-1])) if result.ndim == len(known_a) else None
    if known_a is None and known_b is not None and len(known_b) > 1:
        op.weighted, op.carriers = True, [b]
        op.mixes = known_b[-2].spatial
        return (*known_b[:-2], channel_axis(result.shape[-2]), known_b[-1]) if result.ndim == len(known_b) else None
    if known_a is None or known_b is None or len(known_a) < 2 or len(known_b) < 2:
        return None
    # Two tensors that both descend from the image: attention. The places come with the rows or with the columns.
    op.product = op.mixes = True
    rows, columns = known_a[-2].spatial, known_b[-1].spatial
    op.carriers = [a] if rows else [b] if columns else [a, b]
    lead = [x if x.parts else y for x, y in zip(known_a[:-2], known_b[:-2], strict=False)]
    return (*lead, known_a[-2], known_b[-1]) if result.ndim == len(lead) + 2 else None


def _attend(op: Operation, result: Tensor) -> Layout | None:
    query = op.layout(op.args[0])
    op.weighted, op.product, op.mixes = op.name in ENCODERS, op.name not in ENCODERS, True
    op.carriers = [op.args[0]]
    if query is None or result.ndim != len(query):
        return None
    return (*query[:-1], channel_axis(result.shape[-1]) if op.name in ENCODERS else op.axis(op.args[2], -1))


def _pool(op: Operation, result: Tensor) -> Layout | None:
    dims = int(op.name.partition("pool")[2][0])
    kernel, stride = op.args[1], op.argument(2, "stride")
    op.carriers = [op.args[0]]
    steps = [None] * dims if "adaptive" in op.name or "fractional" in op.name else list(stride or kernel)
    return _resampled(op, result, dims, [Fraction(s) if s else None for s in (steps * dims)[:dims]])


def _resample(op: Operation, result: Tensor) -> Layout | None:
    dims = next((int(c) for c in op.name if c in "123"), result.ndim - 2)
    return _resampled(op, result, dims, [None] * dims)


def _resampled(op: Operation, result: Tensor, dims: int, steps: Sequence[Fraction | None]) -> Layout | None:
    image = op.args[0]
    op.carriers = [image]
    if op.layout(image) is None:
        return None
    axes = list(op.image(image))
    for i, step in zip(range(result.ndim - dims, result.ndim), steps, strict=True):
        point = result.shape[i] == 1 and axes[i].size > 4  # pooled to a point: a summary, no coarser map
        axes[i] = Axis(1) if point else op.scaled(axes[i], result.shape[i], step)
    return tuple(axes)


def _shuffle(op: Operation, result: Tensor) -> Layout | None:
    layout, r = op.layout(op.args[0]), Fraction(op.args[1])
    if layout is None:
        return None
    op.carriers, factor = [op.args[0]], 1 / r if op.name == "pixel_shuffle" else r
    places = [op.scaled(axis, size, factor) for axis, size in zip(layout[-2:], result.shape[-2:], strict=True)]
    return (*layout[:-3], channel_axis(result.shape[-3]), *places)


def _unfold(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None or len(layout) != 4:
        return None
    _, kernel, dilation, padding, stride = op.args[:5]
    window = zip(layout[2:], kernel, dilation, padding, stride, strict=True)
    sides = [(a.size + 2 * p - d * (k - 1) - 1) // s + 1 for a, k, d, p, s in window]
    places = [op.scaled(axis, size, Fraction(s)) for axis, size, s in zip(layout[2:], sides, stride, strict=True)]
    return (layout[0], channel_axis(result.shape[1]), Axis(math.prod(sides), (*places[0].parts, *places[1].parts)))


def _fold(op: Operation, result: Tensor) -> Layout | None:
    layout = op.layout(op.args[0])
    if layout is None or len(layout) != 3 or len(layout[2].parts) != 2:
        return None
    parts = zip(layout[2].parts, result.shape[2:], op.args[5], strict=True)
    places = [op.scaled(Axis(part.size, (part,)), size, Fraction(1, step)) for part, size, step in parts]
    return (layout[0], channel_axis(result.shape[1]), *places)


Rule = Callable[[Operation, Tensor], Layout | None]
_RULES: dict[str, Rule] = {
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "swapaxes"), _permute),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(PRODUCTS, _multiply),
    **dict.fromkeys(ENCODERS, _attend),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(CUTS, _cut),
    **dict.fromkeys(("index", "index_select", "repeat", "repeat_interleave"), _picked),
    **dict.fromkeys(("convolution", "_convolution"), _convolve),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffle),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "stack": _stack,
    "im2col": _unfold,
    "col2im": _fold,
}  # fmt: skip
_FAMILIES: list[tuple[str, Rule]] = [
    ("scaled_dot_product", _attend),
    ("attention", _attend),
    ("unpool", _resample),
    ("pool", _pool),
    ("upsample", _resample),
    ("grid_sampler", _resample),
    ("reflection_pad", _cut),
    ("replication_pad", _cut),
]
