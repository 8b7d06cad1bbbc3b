"""Where to tap a network: its stages, found by watching one pass."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmgl_losses.networks.stages.plot import draw
from mmgl_losses.networks.stages.table import Row, table
from mmgl_losses.networks.stages.valley import Mark, find_valley, same_level
from mmgl_losses.networks.trace import Call, Trace, dry_run, network, tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POOLING = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
_DROPOUT = nn.modules.dropout._DropoutNd
_PADDING = (
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)


@dataclass(frozen=True)
class Stages:
    """The tap points of a network; ``print`` shows them as a table with the call that attaches heads to them.

    Attributes:
        encoder: names of modules, shallow to deep, the bottleneck last.
        decoder: names of modules, coarse to fine; empty where nothing runs at a finer size after the coarsest.
        rows: what the names stand for, and the modules that make the output (role ``"output"``), which are no stages.
    """

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The table, and the call to paste."""
        parts = [table(self.rows)] if self.rows else []
        if not self.rows:
            parts.append("No stages: no module that runs once returns a feature map of the kind of the input.")
        elif not self.encoder:
            parts.append("No encoder: no module returns a feature map before the coarsest one.")
        elif not self.decoder:
            parts.append("No decoder: no module runs at a finer size after the coarsest one. Tap the encoder.")
        for names, head, comment in (
            (self.encoder, "GlobalHead", "global contrast, on the encoder"),
            (self.decoder, "LocalHead", "local contrast, on the decoder"),
        ):
            if names:
                entries = "".join(f'    "{name}": {head},\n' for name in names[-3:])
                parts.append(f"# {comment}\ntapped = attach_heads(net, example, {{\n{entries}}})")
        return "\n\n".join(parts)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the stages: depth to the right, stride downwards, the channels in the boxes, a dot on what is tapped.

        Dots are on the stages of the calls that ``print`` shows: the last three of the encoder and of the decoder.

        Args:
            ax: axes of matplotlib to draw on; new ones, in a figure of a fitting size, by default.

        Returns:
            The axes; ``ax.figure.savefig("stages.png")`` keeps the picture.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: there are no stages.
        """
        return draw(self.rows, {*self.encoder[-3:], *self.decoder[-3:]}, ax)


def discover_stages(net: nn.Module, example: object) -> Stages:
    """Find the modules at the end of each resolution, on the way down and on the way up again.

    One pass over `example` is watched, on fake tensors where the network allows (`trace.dry_run`); the
    network is left as it was. Sizes tell the stages: the longest way down and up again through the feature maps. For
    each size on it, the last module that ends there is taken, as large a module as does not hide another stage.
    Every name can be tapped as it is: the module runs once, returns one tensor, and nothing overwrites it. Modules
    that make the output are no stages.

    Args:
        net: any network.
        example: what the network is called with: a tensor, a tuple of arguments or a mapping of named arguments. An
            image of the size of training is best.

    Returns:
        The stages, with names for `attach_heads`.

    Raises:
        TypeError: `net` is no module.

    Example:
        >>> import torch
        >>> from mmgl_losses.networks.unet import UNet
        >>> stages = discover_stages(UNet(channels=(4, 8, 16)), torch.zeros(2, 1, 32, 32))
        >>> stages.encoder
        ('encoder.blocks.0', 'encoder.blocks.1', 'encoder.bottleneck')
        >>> stages.decoder
        ('decoder.blocks.0', 'decoder.blocks.1')
    """
    network("net", net)
    trace = dry_run(net, example)
    images = [tensor for tensor in trace.inputs if tensor.ndim >= 3 and tensor.is_floating_point()]
    if not images:
        return Stages((), (), ())
    image = max(images, key=lambda tensor: (tensor.ndim, tensor.numel()))
    marks = _marks(trace, image)
    heads = _heads(trace, marks, image)
    down, up = find_valley([mark for mark in marks if mark not in heads])
    ends = [mark for mark in heads if not any(_before(mark, stage) for stage in (*down, *up))]
    ends = [mark for mark in ends if not any(other.holds(mark) for other in ends)]
    rows = [
        _row(role, mark, image)
        for role, stages in (("encoder", down), ("decoder", up), ("output", ends))
        for mark in stages
    ]
    names = {role: tuple(row.name for row in rows if row.role == role) for role in ("encoder", "decoder")}
    return Stages(names["encoder"], names["decoder"], tuple(rows))


def _marks(trace: Trace, image: Tensor) -> list[Mark]:
    """The feature maps of the pass in time: outputs of modules, and what goes into convolutions from no module."""
    times = Counter(call.name for call in trace.calls)
    dropped = {}  # what dropout overwrites in training, and when
    for call in trace.calls:
        if isinstance(call.module, _DROPOUT) and call.module.inplace:
            dropped.update((id(tensor), call.end) for tensor in call.inputs)
    first = {}  # when the outermost module that was given a tensor began
    for call in sorted(trace.calls, key=lambda call: call.start):
        for tensor in call.inputs:
            first.setdefault(id(tensor), call.start)
    last_axis: dict[tuple[int, ...], bool] = {}  # per shape: the last output of it has its channels on the last axis
    marks = []
    for call in trace.calls:
        weight = getattr(call.module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == image.ndim:
            for tensor in call.inputs:
                if _is_map(tensor, image) and _halved(tensor, image):
                    marks.append(Mark(first[id(tensor)] - 0.5, tuple(tensor.shape[2:]), tensor.shape[1]))
        output = call.output
        if not isinstance(output, Tensor):
            continue
        channels_last = last_axis[tuple(output.shape)] = _channels_last(call, last_axis)
        padding = isinstance(call.module, _PADDING)
        if call.name and _is_map(output, image) and not channels_last and not padding:
            usable = times[call.name] == 1 and not call.overwritten and output.is_floating_point()
            if isinstance(call.module, _DROPOUT):
                usable = usable and call.module.inplace
            else:
                usable = usable and not call.passed_on and call.end >= dropped.get(id(output), 0)
            marks.append(Mark(call.end, tuple(output.shape[2:]), output.shape[1], call, usable, _weights(call)))
    marks.sort(key=lambda mark: mark.time)
    return _without_summaries(marks, image)


def _without_summaries(marks: list[Mark], image: Tensor) -> list[Mark]:
    """Leave out sizes of summaries: squeeze and excitation, pyramid pooling, maps of attention (one channel)."""
    sizes = {tuple(image.shape[2:])}
    weighted = [mark for mark in marks if mark.weights]
    summaries = {mark.size for mark in weighted} - {mark.size for mark in weighted if mark.channels > 1}  # attention
    kept = []
    for mark in marks:
        point = math.prod(mark.size) == 1 and min(map(math.prod, sizes)) > 4 ** len(mark.size)
        if mark.size not in sizes and (point or (mark.call and isinstance(mark.call.module, _POOLING))):
            summaries.add(mark.size)
        if mark.size not in summaries:
            sizes.add(mark.size)
            kept.append(mark)
    return kept


def _is_map(tensor: Tensor, image: Tensor) -> bool:
    """(B, C, *spatial) as the image, and no larger."""
    if tensor.ndim != image.ndim or tensor.shape[0] != image.shape[0]:
        return False
    return all(0 < part <= whole for whole, part in zip(image.shape[2:], tensor.shape[2:], strict=True))


def _halved(tensor: Tensor, image: Tensor) -> bool:
    """Sizes that come from halving; others that go into convolutions were padded for them."""
    halvings = [whole / part for whole, part in zip(image.shape[2:], tensor.shape[2:], strict=True)]
    return all(abs(math.log2(ratio) - round(math.log2(ratio))) < 0.1 for ratio in halvings)


def _channels_last(call: Call, last_axis: dict[tuple[int, ...], bool]) -> bool:
    """The output is (B, *spatial, C): a linear layer made it, or what has the shape of such an output."""
    module, shape = call.module, call.output.shape
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):  # some subclasses normalise the second axis
        own = type(module) in (nn.LayerNorm, nn.RMSNorm)
        return own or module.normalized_shape[-1] == shape[-1] != shape[1]
    if isinstance(module, nn.Linear):
        return True
    layer = next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None
    return not layer and last_axis.get(tuple(shape), False)


def _heads(trace: Trace, marks: list[Mark], image: Tensor) -> list[Mark]:
    """The marks of what makes the network's output: the classifier, heads of deep supervision, all after the bottom."""
    outputs = [tensor for tensor in tensors(trace.output) if _is_map(tensor, image)]
    channels = {tensor.shape[1] for tensor in outputs}
    features = len(channels) != 1 and len({tensor.shape[2:] for tensor in outputs}) != 1
    if features or not marks:  # features are returned, or nothing that has a place
        return []
    _, up = find_valley(marks)
    coarsest = min(marks, key=lambda mark: math.prod(mark.size)).size
    bottom = min(mark.time for mark in marks if same_level(mark.size, coarsest))
    late = [mark for mark in marks if mark.call is not None and mark.time >= bottom]
    wide = [mark for mark in late if mark.channels in channels]
    small = [mark for mark in wide if mark.weights <= 1]
    given = {id(tensor) for mark in small if mark.call for tensor in mark.call.inputs}
    around = [mark for mark in wide if any(mark.holds(head) and mark.size == head.size for head in small)]
    around = [mark for mark in around if mark.call and id(mark.call.output) not in given]
    returned = {id(tensor) for tensor in outputs} if up else set()
    returned |= {id(mark.call.output) for mark in (*small, *around) if mark.call and mark.weights}
    heads = [
        mark
        for mark in late
        if (mark.call and id(mark.call.output) in returned) or mark in small or any(h.holds(mark) for h in small)
    ]
    return heads + _closed_heads([mark for mark in marks if mark not in heads], around)


def _closed_heads(marks: list[Mark], around: list[Mark]) -> list[Mark]:
    """What is inside modules that end in a head, where no stage is lost with it."""
    inside, levels = [], _levels(marks)
    for head in sorted(around, key=lambda mark: -mark.time):
        held = [mark for mark in marks if head.holds(mark)]
        without = [mark for mark in marks if mark is not head and not head.holds(mark)]
        if held and _levels(without) >= levels:
            inside, marks = inside + held, without
    return inside


def _levels(marks: list[Mark]) -> int:
    return sum(map(len, find_valley(marks)))


def _before(head: Mark, stage: Mark) -> bool:
    """What was taken for a head feeds a stage, or holds one."""
    return head.holds(stage) or (same_level(head.size, stage.size) and head.time < stage.time)


def _weights(call: Call) -> int:
    """The number of layers with a matrix of weights."""
    return sum(parameter.ndim > 1 for parameter in call.module.parameters())


def _row(role: str, mark: Mark, image: Tensor) -> Row:
    assert mark.call is not None
    stride = tuple(round(whole / part) for whole, part in zip(image.shape[2:], mark.size, strict=True))
    return Row(mark.call.name, role, mark.channels, mark.size, stride, type(mark.call.module).__name__)
