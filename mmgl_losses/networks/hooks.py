"""One hook that takes one feature, and the way from a name to the module it hangs on."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmgl_losses import checks
from mmgl_losses.networks.axes import Map, Part
from mmgl_losses.networks.recorder import tensors

Selector = int | str | Callable[[Any], Tensor]
Size = tuple[int, ...]

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class Tap:
    """A forward hook that keeps what its module returns, between `start` and `stop`.

    It is an object, not a closure, so that it is copied and pickled with the module it hangs on.
    """

    def __init__(self, name: str, selector: Selector | None, call: int | None = None) -> None:
        self.name = name
        self.selector = selector
        self.call = call
        self.open = False
        self.stop()

    def start(self, image: Size = ()) -> None:
        """Keep what comes from now on, in this pass on an `image` of this shape."""
        self.open = True
        if isinstance(self.selector, Arranged):
            self.selector.image = image
        self.task = _graph_task()

    def stop(self) -> None:
        """Keep nothing more, and forget."""
        self.open = False
        self.clear()

    def clear(self) -> None:
        """Forget."""
        self.calls = 0
        self.feature: Tensor | None = None
        self.version = 0
        self.grad_mode = True
        self.rest = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Keep what the selector takes from the output."""
        # A checkpointed module runs again in the backward pass, which is not the pass being watched.
        if not self.open or self.task != _graph_task():
            return
        self.calls += 1
        if self.call is not None and self.calls != self.call + 1:
            return
        self.feature = one_tensor(self.name, select(self.name, output, self.selector), self.selector is not None)
        self.version = _version(self.feature)
        self.grad_mode = torch.is_grad_enabled()
        # What a selector leaves may be frozen while the rest of the output is trained.
        self.rest = self.selector is not None and any(other.requires_grad for other in tensors(output))

    def take(self, net: nn.Module, path: str, *, hung: bool) -> Tensor:
        """The feature, checked; the tap forgets it. `hung`: it should still be on its module."""
        calls, feature, before, grad_mode, rest = self.calls, self.feature, self.version, self.grad_mode, self.rest
        self.clear()
        if hung and not calls and self not in net.get_submodule(path)._forward_hooks.values():
            _replaced(self.name)
        ran_once(self.name, calls, self.call)
        assert feature is not None
        if _version(feature) != before:
            refuse_overwritten(self.name)
        detached = torch.is_grad_enabled() and not (feature.requires_grad or rest) and feature.is_floating_point()
        if detached and _trained(net, path, around=not grad_mode):
            _attached(self.name)
        return feature


def _graph_task() -> int:
    """Which backward pass this code runs in; -1 outside of any."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, where that is counted: not in inference mode or when compiled."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


class Arranged:
    """A selector that gives (B, C, *spatial), whatever the order of the axes: channels-last maps, and tokens."""

    def __init__(self, name: str, selector: Selector | None, found: Map, example: Size) -> None:
        self.name = name
        self.selector = selector
        self.channel_axis = found.channel_axis
        self.grids = found.grids
        self.order = found.order
        self.example = example
        self.image: Size = ()

    def __call__(self, output: Any) -> Tensor:
        """What the selector takes, its channels on the second axis and its places on axes of their own."""
        feature = one_tensor(self.name, select(self.name, output, self.selector), self.selector is not None)
        feature = feature.movedim(self.channel_axis, 1)
        for axis, grid in reversed(list(enumerate(self.grids, 2))):
            if len(grid) > 1:
                feature = feature.unflatten(axis, self._grid(feature.shape[axis], grid))
        return feature.permute(0, 1, *(2 + place for place in self.order))

    def _grid(self, tokens: int, grid: tuple[Part, ...]) -> Size:
        """Rows and columns of so many tokens: those of the example, as many times as the image has those of its own."""
        image = self.image if len(self.image) == len(self.example) else self.example
        pairs = [(part.size * image[part.source], self.example[part.source]) for part in grid]
        floor, ceiling = ([new // old for new, old in pairs], [-(-new // old) for new, old in pairs])
        found = {sizes for sizes in itertools.product(*zip(floor, ceiling, strict=True)) if math.prod(sizes) == tokens}
        if len(found) == 1:
            return found.pop()
        expected = f"the {tokens} tokens of {self.name!r} to be a grid as fine as the example's, {tuple(floor)}"
        cure = "Tokens do not say how many rows they are: attach heads with an example of the images' shape."
        raise ValueError(checks.message(expected, f"{len(found)} that fit" if found else "a number that is none", cure))


class Hooks:
    """Hooks that go when nothing needs them any more: with the model that hung them, if it is dropped."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self.handles = handles

    def remove(self) -> None:
        """Take them off; a second time does nothing."""
        while self.handles:
            self.handles.pop().remove()

    def __del__(self) -> None:
        self.remove()


def select(name: str, output: Any, selector: Selector | None) -> object:
    """What a selector takes from the output of a module."""
    if selector is None:
        return output
    if callable(selector):
        return selector(output)
    try:
        if isinstance(selector, str) and not isinstance(output, Mapping):
            return getattr(output, selector)
        return output[selector]
    except (LookupError, TypeError, AttributeError):
        _selectable(name, output, selector)


def _trained(net: nn.Module, path: str, *, around: bool) -> bool:
    """The module has parameters to train; `around`: or, having none at all, the nearest one around it has."""
    parameters = list(net.get_submodule(path).parameters())
    while around and not parameters and path:
        path = path.rpartition(".")[0]
        parameters = list(net.get_submodule(path).parameters())
    return any(parameter.requires_grad for parameter in parameters)


def _plain(name: str) -> str:
    """A name without what DDP, compile and other wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def resolve(net: nn.Module, name: str) -> str:
    """The path of a module in `net`, whatever wraps either; refuses unknown names and compiled surroundings."""
    paths = [path for path, _ in net.named_modules(remove_duplicate=False)]
    path = name
    if name not in paths:
        by_plain = {_plain(path): path for path in reversed(paths)}
        plain = _plain(name) if isinstance(name, str) else name
        checks.known_names("a module of the network", [plain], by_plain)
        path = by_plain[plain]
    module, parts = net, path.split(".") if path else []
    for i in range(len(parts) + 1):
        module = net.get_submodule(".".join(parts[:i]))
        inside = "_orig_mod" in module._modules and i < len(parts)
        if inside or getattr(module, "_compiled_call_impl", None) is not None:
            _not_compiled(name, repr(".".join(parts[:i])) if i else "the network")
        if isinstance(module, torch.jit.ScriptModule):
            _not_scripted(name, repr(".".join(parts[:i])) if i else "the network")
    return path


def hook(net: nn.Module, paths: Mapping[str, str], taps: Mapping[str, Tap]) -> list[RemovableHandle]:
    """Hang each tap on the module its name leads to."""
    return [net.get_submodule(path).register_forward_hook(taps[name]) for name, path in paths.items()]


def tap_names(value: object) -> Mapping[str, Any]:
    """Names of modules, or a mapping from them to selectors, as a mapping to selectors or None."""
    expected = "`names` to be names of modules, or a mapping from names to selectors"
    if isinstance(value, (str, nn.Module)) or not isinstance(value, Iterable):
        raise TypeError(checks.message(expected, checks.typed(value), "Put a single name in a list."))
    named = value if isinstance(value, Mapping) else dict.fromkeys(value)
    if not named:
        raise ValueError(checks.message(expected, "none"))
    check_selectors({name: selector for name, selector in named.items() if selector is not None}, named)
    return named


def check_selectors(value: object, names: Collection[str]) -> Mapping[str, Any]:
    """A mapping from tapped names to an index, a key, an attribute's name or a function."""
    selectors = _of_taps("selectors", "selectors", value, names)
    for name, selector in selectors.items():
        if isinstance(selector, bool) or not (isinstance(selector, (int, str)) or callable(selector)):
            expected = f"the selector of {name!r} to be an index, a key, an attribute's name or a function"
            raise TypeError(checks.message(expected, checks.typed(selector)))
    return selectors


def check_calls(value: object, names: Collection[str]) -> Mapping[str, int]:
    """A mapping from tapped names to the number of a call, from 0."""
    calls = _of_taps("calls", "numbers of calls", value, names)
    return {name: checks.integer(f"calls[{name!r}]", call, least=0) for name, call in calls.items()}


def _of_taps(option: str, what: str, value: object, names: Collection[str]) -> Mapping[str, Any]:
    """An option that is a mapping from some of the tapped names; empty where it is not given."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(checks.message(f"`{option}` to be a mapping from names to {what}", checks.typed(value)))
    checks.known_names(f"a tapped module in `{option}`", value, names)
    return value


def ran_once(name: str, calls: int, call: int | None = None) -> None:
    """A tapped module ran exactly once in a pass, or often enough for the `call` to take."""
    if calls == 1 if call is None else calls > call:
        return
    if call is not None and calls:
        expected = f"the tapped module {name!r} to run {call + 1} times in a forward pass, for `calls[{name!r}]={call}`"
        raise ValueError(checks.message(expected, f"{calls} call" + "s" * (calls > 1), "Calls are counted from 0."))
    if calls:
        got = f"{calls} calls"
        cure = "It is shared, or runs in a loop, or once more in training. Tap a module around one of the calls, which "
        cure += f"runs once, or say which to take: `calls={{{name!r}: 0}}` is the first."
    else:
        got = "no call"
        cure = "The pass took another way (an option, training or eval mode), or the code was compiled before the tap."
    raise ValueError(checks.message(f"the tapped module {name!r} to run once in a forward pass", got, cure))


def one_tensor(name: str, value: object, selected: bool) -> Tensor:
    """What a tap took is a tensor."""
    if isinstance(value, Tensor):
        return value
    got = type(value).__name__
    if isinstance(value, Mapping):
        got += f" with the keys {', '.join(map(repr, value))}"
    elif isinstance(value, (tuple, list)):
        got += f" of {len(value)}"
    what = f"the selector of {name!r} to give a tensor" if selected else f"the module {name!r} to return a tensor"
    cure = "Pick one by a selector, an index, a key, an attribute's name or a function: "
    cure += f"`selectors={{{name!r}: ...}}` of attach_heads, `{{{name!r}: ...}}` of FeatureTaps."
    raise TypeError(checks.message(what, got, cure))


def refuse_overwritten(name: str) -> NoReturn:
    """Say that a feature was overwritten after it was taken."""
    cure = "Tap the module that overwrites it (an activation with inplace=True follows), or take a copy with the "
    cure += "selector `torch.clone`."
    raise ValueError(checks.message(f"the feature of {name!r} to stay as it was", "it overwritten in place", cure))


def _attached(name: str) -> NoReturn:
    """Say that a feature does not reach the network's parameters."""
    cure = "It was made under no_grad or detached: activation checkpointing with use_reentrant=True does that; set "
    cure += "use_reentrant=False, or tap the checkpointed module itself. If the network is meant to stay fixed, "
    cure += "freeze it with `requires_grad_(False)`."
    raise ValueError(checks.message(f"the feature of {name!r} to carry a gradient", "requires_grad=False", cure))


def _replaced(name: str) -> NoReturn:
    """Say that the module a tap hung on is no longer in the network."""
    cure = "Attach the heads after whatever replaces modules, such as `convert_sync_batchnorm`."
    raise ValueError(checks.message(f"the tapped module {name!r} to be the one that was tapped", "another one", cure))


def _selectable(name: str, value: object, selector: object) -> NoReturn:
    """Say that a selector does not fit what the module returned."""
    got = type(value).__name__
    if isinstance(value, Mapping):
        got += f" with the keys {', '.join(map(repr, value))}"
    elif isinstance(value, (tuple, list)):
        got += f" of {len(value)}"
    raise ValueError(checks.message(f"the output of {name!r} to have {selector!r}", got))


def _not_scripted(name: str, where: str) -> NoReturn:
    """Refuse a tap on or inside `where`, a module that TorchScript runs."""
    got = f"it in {where}, which is scripted"
    cure = (
        "TorchScript takes no hooks. Tap a module around it or behind it, or use the network as it is before scripting."
    )
    raise ValueError(checks.message(f"the module {name!r} to be one that Python runs", got, cure))


def _not_compiled(name: str, where: str) -> NoReturn:
    """Refuse a tap inside `where`, a module that was handed to ``torch.compile`` before."""
    got = f"it inside {where}, which is compiled already"
    cure = "Compiled code ignores taps attached later. Attach to the plain network first, then compile the result: "
    cure += "`torch.compile(attach_heads(net, ...))`."
    raise ValueError(checks.message(f"the module {name!r} to be tapped before compilation", got, cure))
