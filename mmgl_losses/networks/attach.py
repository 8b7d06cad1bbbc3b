"""Heads on the features of any network, each with as many channels as its feature has."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmgl_losses import checks
from mmgl_losses.networks.axes import CHANNELS
from mmgl_losses.networks.hooks import (
    Arranged,
    Selector,
    check_calls,
    check_selectors,
    one_tensor,
    ran_once,
    refuse_overwritten,
    resolve,
    select,
)
from mmgl_losses.networks.recorder import Call, Node, Recorder
from mmgl_losses.networks.taps import TappedModel, check_heads
from mmgl_losses.networks.trace import network, record

HeadFactory = Callable[[int], nn.Module]


def attach_heads(
    net: nn.Module,
    example: object,
    heads: Mapping[str, HeadFactory | nn.Module],
    *,
    kwargs: Mapping[str, Any] | None = None,
    output: bool = True,
    selectors: Mapping[str, Selector] | None = None,
    calls: Mapping[str, int] | None = None,
) -> TappedModel:
    """Put a head on each named module, with as many input channels as that module returns.

    One pass over `example` finds the number of channels, and on which axis they are. A head always gets
    (B, C, *spatial), even if the module returns channels last, or tokens. The network's weights, buffers and modes and
    the random state stay as they are. New heads are moved to the device and the type of their feature.

    Args:
        net: any network that is not compiled yet.
        example: what the network is called with: a tensor, a tuple or list of arguments, or a mapping of
            named arguments.
        heads: for each name of a module as in ``net.named_modules()``, what makes its head from the number of
            channels (a class, a function), or a ready module.
        kwargs: named arguments beside `example`.
        output: False leaves the network's output out of what the model returns.
        selectors: for modules that return more than a tensor, what to take: an index, a key, an attribute's name or
            a function of the output.
        calls: for modules that run more than once in a pass, or once more in training, which call to take, from 0.

    Returns:
        The model, which returns ``(output, {name: head(feature)})``.

    Raises:
        ValueError: an unknown name, a module in compiled code, one that does not run once, is overwritten, or returns
            no map: attention, windows, tokens with a class token among them.
        TypeError: a module returned no tensor, or something that is no head.

    Example:
        >>> import torch
        >>> from mmgl_losses.networks.heads import GlobalHead
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> tapped = attach_heads(net, torch.zeros(2, 1, 8, 8), {"1": GlobalHead})
        >>> output, embeddings = tapped(torch.zeros(2, 1, 8, 8))
        >>> embeddings["1"].shape
        torch.Size([2, 128])
    """
    network("net", net)
    paths = {name: resolve(net, name) for name in check_heads(heads)}
    selectors, calls = check_selectors(selectors, heads), check_calls(calls, heads)
    checks.flag("output", output)
    first_names = {module: name for name, module in net.named_modules()}
    tapped = {name: first_names[net.get_submodule(path)] for name, path in paths.items()}

    def look(call: Call, returned: Any, recorder: Recorder) -> dict[str, _Feature]:
        seen = {}
        for name, module in tapped.items():
            if module == call.name:
                feature = one_tensor(name, select(name, returned, selectors.get(name)), name in selectors)
                own = next(iter(p.dtype for p in call.module.parameters() if p.is_floating_point()), None)
                seen[name] = _Feature(call, recorder.node(feature), feature.shape, feature.dtype, feature.device, own)
        return seen

    trace = record(net, example, kwargs, look)
    arranged: dict[str, Selector] = dict(selectors)
    built = {}
    for name, head in heads.items():
        found = [call.seen[name] for call in trace.calls if name in call.seen]
        ran_once(name, len(found), calls.get(name))
        feature = found[calls.get(name, 0)]
        node = None if feature.node is None else trace.nodes[feature.node]
        if node is not None and trace.overwritten(node.index, feature.call.end):
            refuse_overwritten(name)
        channels = _channels(name, feature.shape, node)
        if node is not None and node.map is not None and not node.map.plain:
            arranged[name] = Arranged(name, selectors.get(name), node.map, trace.image)
        if not isinstance(head, nn.Module):
            head = _made(name, head, channels).to(feature.device, feature.kind)
        built[name] = head
    return TappedModel(net, built, output=output, selectors=arranged, calls=calls)


@dataclass(frozen=True)
class _Feature:
    """What a tapped module returned in the pass."""

    call: Call
    node: int | None
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    own: torch.dtype | None  # of the module's parameters

    @property
    def kind(self) -> torch.dtype | None:
        """The type for a head: under autocast, that of the parameters."""
        if self.own is not None and torch.is_autocast_enabled(self.device.type):
            return self.own
        return self.dtype if self.dtype.is_floating_point else None


def _channels(name: str, size: torch.Size, node: Node | None) -> int:
    """The channels of a feature, as far as its axes are known; refuses what is known to be no map."""
    if len(size) < 2:
        raise ValueError(checks.message(f"the feature of {name!r} of shape (B, C, ...)", tuple(size)))
    if node is None or len(size) == 2:
        return size[1]
    if node.map is not None:
        return node.map.channels
    batch, second, *rest = node.layout
    if batch.spatial or second.spatial or any(part.source == CHANNELS for axis in rest for part in axis.parts):
        got = f"shape {tuple(size)}, which is none: attention, windows, or tokens that are not one for each place"
        cure = "Tap a module around it, or take the map out with a selector, such as `lambda x: x[:, 1:]` for tokens "
        cure += "behind a class token."
        raise ValueError(checks.message(f"the feature of {name!r} to be a map, or tokens of one", got, cure))
    return size[1]


def _made(name: str, factory: HeadFactory, channels: int) -> nn.Module:
    """The head that `factory` makes of a number of channels."""
    try:
        inspect.signature(factory).bind(channels)
    except ValueError:  # of some callables no signature is known
        pass
    except TypeError as error:
        cure = "Give the rest with `functools.partial`, such as `partial(SegmentationHead, out_channels=4)`."
        expected = f"`heads[{name!r}]` to make a head from the number of channels alone"
        raise TypeError(checks.message(expected, f"one that says: {error}", cure)) from None
    value = factory(channels)
    if not isinstance(value, nn.Module):
        raise TypeError(checks.message(f"`heads[{name!r}]` to make a torch.nn.Module", type(value).__name__))
    return value
