"""One hook that takes one feature, and the way from a name to the module it hangs on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmgl_losses import checks
from mmgl_losses.dryrun import version

Selector = int | str | Callable[[Any], Tensor]

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class Tap:
    """A forward hook that keeps what its module returns, between `start` and `stop`.

    It is an object, not a closure, so that it is copied and pickled with the module it hangs on.
    """

    def __init__(self, name: str, selector: Selector | None) -> None:
        self.name = name
        self.selector = selector
        self.open = False
        self.stop()

    def start(self) -> None:
        """Keep what comes from now on, in this pass."""
        self.open = True
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

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Keep what the selector takes from the output."""
        # A checkpointed module runs again in the backward pass, which is not the pass being watched.
        if not self.open or self.task != _graph_task():
            return
        self.calls += 1
        self.feature = checks.feature(self.name, select(self.name, output, self.selector), self.selector is not None)
        self.version = version(self.feature)
        self.grad_mode = torch.is_grad_enabled()

    def take(self, net: nn.Module, path: str) -> Tensor:
        """The feature, checked; the tap forgets it."""
        calls, feature, before, grad_mode = self.calls, self.feature, self.version, self.grad_mode
        self.clear()
        checks.ran_once(self.name, calls)
        assert feature is not None
        if version(feature) != before:
            checks.untouched(self.name)
        detached = torch.is_grad_enabled() and not feature.requires_grad and feature.is_floating_point()
        if detached and _trained(net, path, around=not grad_mode):
            checks.attached(self.name)
        return feature


def _graph_task() -> int:
    """Which backward pass this code runs in; -1 outside of any."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


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
        checks.selectable(name, output, selector)


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
            checks.not_compiled(name, repr(".".join(parts[:i])) if i else "the network")
    return path


def hook(net: nn.Module, paths: Mapping[str, str], taps: Mapping[str, Tap]) -> list[RemovableHandle]:
    """Hang each tap on the module its name leads to."""
    return [net.get_submodule(path).register_forward_hook(taps[name]) for name, path in paths.items()]
