"""Checks of networks, heads and what taps find."""

import importlib.util
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from mmgl_losses.checks.tensors import shape
from mmgl_losses.checks.values import known_names, message, typed


def activation(make: object) -> nn.Module:
    """An activation, from what makes one."""
    expected = "`activation` to make an activation, called with nothing"
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(message(expected, typed(make), "Pass the class: `nn.ReLU`, not `nn.ReLU()`."))
    made = make()
    if not isinstance(made, nn.Module):
        raise TypeError(message(expected, typed(made)))
    return made


def row_norm(make: object, channels: int) -> nn.Module:
    """A normalisation layer that can work on rows (N, channels), from what makes one."""
    expected = "`norm` to make a layer for rows (N, channels)"
    cure = "Use `nn.BatchNorm1d`, which is batch normalisation over all points, or `nn.LayerNorm`."
    calling = f"{expected}, called with the number of channels"
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(message(calling, typed(make), cure))
    module = make(channels)
    if not isinstance(module, nn.Module):
        raise TypeError(message(calling, typed(module), cure))
    spatial = nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
    if isinstance(module, spatial):
        raise TypeError(message(expected, type(module).__name__, cure))
    return module


def network(name: str, value: object) -> nn.Module:
    """`value` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(message(f"`{name}` to be a torch.nn.Module", type(value).__name__))
    return value


def tap_names(value: object) -> Mapping[str, Any]:
    """Names of modules, or a mapping from them to selectors, as a mapping to selectors or None."""
    expected = "`names` to be names of modules, or a mapping from names to selectors"
    if isinstance(value, str | nn.Module) or not isinstance(value, Iterable):
        raise TypeError(message(expected, typed(value), "Put a single name in a list."))
    named = value if isinstance(value, Mapping) else dict.fromkeys(value)
    if not named:
        raise ValueError(message(expected, "none"))
    selectors({name: selector for name, selector in named.items() if selector is not None}, named)
    return named


def selectors(value: object, names: Collection[str]) -> Mapping[str, Any]:
    """A mapping from tapped names to an index, a key, an attribute's name or a function."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(message("`selectors` to be a mapping from names to selectors", typed(value)))
    known_names("a tapped module in `selectors`", value, names)
    for name, selector in value.items():
        if isinstance(selector, bool) or not (isinstance(selector, int | str) or callable(selector)):
            expected = f"the selector of {name!r} to be an index, a key, an attribute's name or a function"
            raise TypeError(message(expected, typed(selector)))
    return value


def not_compiled(name: str, where: str) -> NoReturn:
    """Refuse a tap inside `where`, a module that was handed to ``torch.compile`` before."""
    got = f"it inside {where}, which is compiled already"
    cure = "Compiled code ignores taps attached later. Attach to the plain network first, then compile the result: "
    cure += "`torch.compile(attach_heads(net, ...))`."
    raise ValueError(message(f"the module {name!r} to be tapped before compilation", got, cure))


def ran_once(name: str, calls: int) -> None:
    """A tapped module ran exactly once in a pass."""
    if calls == 1:
        return
    if calls:
        got = f"{calls} calls"
        cure = "It is shared, or runs in a loop; tap a module around one of the calls, which runs once."
    else:
        got = "no call"
        cure = "The pass took another way (an option, training or eval mode), or the code was compiled before the tap."
    raise ValueError(message(f"the tapped module {name!r} to run once in a forward pass", got, cure))


def feature(name: str, value: object, selected: bool) -> Tensor:
    """What a tap took is a tensor."""
    if isinstance(value, Tensor):
        return value
    got = type(value).__name__
    if isinstance(value, Mapping):
        got += f" with the keys {', '.join(map(repr, value))}"
    elif isinstance(value, tuple | list):
        got += f" of {len(value)}"
    what = f"the selector of {name!r} to give a tensor" if selected else f"the module {name!r} to return a tensor"
    cure = "Pick one by a selector, an index, a key, an attribute's name or a function: "
    cure += f"`selectors={{{name!r}: ...}}` of attach_heads, `{{{name!r}: ...}}` of FeatureTaps."
    raise TypeError(message(what, got, cure))


def selectable(name: str, value: object, selector: object) -> NoReturn:
    """Say that a selector does not fit what the module returned."""
    got = type(value).__name__
    if isinstance(value, Mapping):
        got += f" with the keys {', '.join(map(repr, value))}"
    elif isinstance(value, tuple | list):
        got += f" of {len(value)}"
    raise ValueError(message(f"the output of {name!r} to have {selector!r}", got))


def attached(name: str) -> NoReturn:
    """Say that a feature does not reach the network's parameters."""
    cure = "It was made under no_grad or detached: activation checkpointing with use_reentrant=True does that; set "
    cure += "use_reentrant=False, or tap the checkpointed module itself. If the network is meant to stay fixed, "
    cure += "freeze it with `requires_grad_(False)`."
    raise ValueError(message(f"the feature of {name!r} to carry a gradient", "requires_grad=False", cure))


def untouched(name: str) -> NoReturn:
    """Say that a feature was overwritten after it was taken."""
    cure = "Tap the module that overwrites it (an activation with inplace=True follows), or take a copy with the "
    cure += "selector `torch.clone`."
    raise ValueError(message(f"the feature of {name!r} to stay as it was", "it overwritten in place", cure))


def reaches(count: int) -> None:
    """A loss reaches at least one parameter of the model."""
    if not count:
        cure = "Compute it from the output of this model with gradients on, and before wrapping in DDP or FSDP."
        raise ValueError(message("a loss that depends on parameters of this model", "one that does not", cure))


def walkable(node: str) -> None:
    """Refuse a graph whose parameters are hidden."""
    if node == "CheckpointFunctionBackward":
        cure = "Set use_reentrant=False in torch.utils.checkpoint."
        raise ValueError(message("a graph that shows the parameters", "reentrant activation checkpointing", cure))


def heads(value: object) -> Mapping[str, object]:
    """A non-empty mapping from names of modules to modules or what makes them."""
    expected = "`heads` to be a non-empty mapping from names of modules to heads"
    cure = "Write `{name: GlobalHead for name in names}`."
    if not isinstance(value, Mapping):
        raise TypeError(message(expected, type(value).__name__, cure))
    if not value:
        raise ValueError(message(expected, "an empty one", cure))
    for name, item in value.items():
        if not isinstance(item, nn.Module) and not callable(item):
            expected = f"`heads[{name!r}]` to be a module, or to make one from a number of channels"
            raise TypeError(message(expected, type(item).__name__))
    return value


def head(name: str, value: object) -> nn.Module:
    """What makes a head made a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(message(f"`heads[{name!r}]` to make a torch.nn.Module", type(value).__name__))
    return value


def has_channels(name: str, value: Tensor) -> int:
    """The channels of a feature (B, C, ...)."""
    if value.ndim < 2:
        raise ValueError(message(f"the feature of {name!r} of shape (B, C, ...)", shape(value)))
    return value.shape[1]


def not_a_replica(module: nn.Module) -> None:
    """Refuse ``nn.DataParallel``, whose threads would share the taps."""
    if getattr(module, "_is_replica", False):
        expected = "a tapped model in one thread"
        raise ValueError(message(expected, "torch.nn.DataParallel", "Use DistributedDataParallel."))


def drawable(rows: int) -> None:
    """There is something to draw, and something to draw with."""
    if not rows:
        raise ValueError(message("at least one stage to draw", "none"))
    if importlib.util.find_spec("matplotlib") is None:
        cure = 'Install it with `pip install matplotlib`, or with the extra `pip install "mmgl-losses[examples]"`.'
        raise ModuleNotFoundError(message("matplotlib, to draw stages", "no such package", cure), name="matplotlib")
