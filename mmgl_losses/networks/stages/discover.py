"""Where to tap a network: its stages, found by following the data through one pass."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmgl_losses.networks.recorder import Trace
from mmgl_losses.networks.stages.choice import Choice, Chooser
from mmgl_losses.networks.stages.heads import find_heads
from mmgl_losses.networks.stages.path import Graph, find_path
from mmgl_losses.networks.stages.plot import draw
from mmgl_losses.networks.stages.table import Row, table, times
from mmgl_losses.networks.trace import network, record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# As many weights as heads in the calls that are printed: the paper's three, or the last of them with the sum 1.
_WEIGHTS = {1: "(1.0,)", 2: "(0.25, 0.75)", 3: "(0.2, 0.2, 0.6)"}


@dataclass(frozen=True)
class Stages:
    """Where heads can go on a network. ``print`` shows a table, and the calls that attach heads and make the loss.

    Attributes:
        encoder: names of modules, shallow to deep, the bottleneck last.
        decoder: names of modules, coarse to fine; empty if no module runs at a finer size after the coarsest.
        rows: channels, size and stride of each stage, and the modules that make the output (role ``"output"``).
        untapped: stages that cannot be tapped as they are, or are tapped at an earlier module, and why.
    """

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    rows: tuple[Row, ...]
    untapped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, and the calls to paste."""
        parts = [table(self.rows)] if self.rows else []
        if not self.rows and not self.untapped:
            parts.append("No stages: no map (B, C, *spatial) was found on the way to what the network returns.")
        elif not self.encoder and not self.untapped:
            parts.append("No encoder: no module returns a feature map before the coarsest one.")
        elif not self.decoder and not any(line.startswith("decoder") for line in self.untapped):
            parts.append("No decoder: no layer runs at a finer size after the coarsest one. Tap the encoder.")
        if self.untapped:
            parts.append("\n".join(["Not tapped, or tapped earlier than it ends:", *self.untapped]))
        for names, head, loss, comment in (
            (self.encoder, "GlobalHead", "MultiScaleGlobalContrast", "global contrast, on the encoder"),
            (self.decoder, "LocalHead", "MultiScaleLocalSupCon", "local contrast, on the decoder"),
        ):
            if names:
                entries = "".join(f"    {json.dumps(name, ensure_ascii=False)}: {head},\n" for name in names[-3:])
                made = f"loss = {loss}(weights={_WEIGHTS[len(names[-3:])]})"
                parts.append(f"# {comment}\ntapped = attach_heads(net, example, {{\n{entries}}})\n{made}")
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


def discover_stages(net: nn.Module, example: object, *, kwargs: Mapping[str, Any] | None = None) -> Stages:
    """Find the modules at the end of each resolution, on the way down and on the way up again.

    It records one pass over `example`, and leaves the network as it was. The stages are found from which operation
    leads to which:

    - The level of a feature map is its total stride, from convolutions, pooling, interpolation, patches and reshapes.
    - A head is a last layer, with no other layer between it and the output.
    - The bottleneck is the coarsest level on the longest way down and up again. The decoder is what comes after it
      and leads to a head. The encoder is what the decoder joins, or what the next level is computed from.
    - A stage ends where the next level, a skip connection or a head uses its map. Its name is that of the largest
      module that returns the map and contains no other stage.

    Every name can be tapped as it is: the module runs once, returns one tensor, and nothing overwrites it. If a stage
    cannot be tapped, the report says why. Maps with channels on the last axis, and tokens, are found too.

    Args:
        net: any network.
        example: what the network is called with: a tensor, a tuple or list of arguments, or a mapping of named
            arguments. An image at the size of training is best. On the device ``meta`` nothing is
            computed.
        kwargs: named arguments beside `example`.

    Returns:
        The stages, with names for `attach_heads`.

    Raises:
        TypeError: `net` is no module, `kwargs` no mapping.

    Example:
        >>> import torch
        >>> from mmgl_losses.networks.unet import UNet
        >>> stages = discover_stages(UNet(channels=(4, 8, 16)), torch.zeros(2, 1, 32, 32))
        >>> stages.encoder
        ('encoder.blocks.0', 'encoder.blocks.1', 'encoder.bottleneck')
        >>> stages.decoder
        ('decoder.blocks.0', 'decoder.blocks.1')
    """
    trace = record(network("net", net), example, kwargs)
    heads = find_heads(trace)
    graph = Graph(trace, heads)
    path = find_path(graph, trace.calls)
    scripted = [name for name, module in net.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in scripted if not any(name.startswith(f"{other}.") for other in scripted)]
    choices = Chooser(trace, heads, graph, path, outermost).choose()
    rows = tuple(_row(trace, choice) for choice in choices if choice.call is not None)
    names = {role: tuple(row.name for row in rows if row.role == role) for role in ("encoder", "decoder")}
    untapped = tuple(_missing(trace, choice) for choice in choices if choice.why)
    return Stages(names["encoder"], names["decoder"], rows, untapped)


def _row(trace: Trace, choice: Choice) -> Row:
    assert choice.call is not None
    found = trace.nodes[choice.node].map or trace.nodes[choice.node].last
    channels = found.channels if found else 0
    stride = tuple(_number(part.stride) for part in found.places) if found else ()
    return Row(
        choice.call.name, choice.role, channels, found.size if found else (), stride, type(choice.call.module).__name__
    )


def _number(stride: Fraction) -> int | Fraction:
    return int(stride) if stride.denominator == 1 else stride


def _missing(trace: Trace, choice: Choice) -> str:
    found = trace.nodes[choice.node].map
    where = f"{choice.role}, stride {times(_number(p.stride) for p in found.places)}" if found else choice.role
    return f"{where}: {choice.why}" + (f"; {choice.call.name!r} is the last module before it" if choice.call else "")
