"""One forward pass that leaves no trace: what sizes the heads and finds the stages."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.parameter import is_lazy

from mmgl_losses import checks

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


@dataclass(eq=False)
class Call:
    """One call of a module: what went in and out, and when; `passed_on`: it returned a tensor as it was given."""

    name: str
    module: nn.Module
    inputs: list[Tensor]
    start: int
    end: int = -1
    output: Any = None
    version: int = 0
    passed_on: bool = False

    @property
    def overwritten(self) -> bool:
        """The output tensor was changed in place after the call."""
        return isinstance(self.output, Tensor) and version(self.output) != self.version


@dataclass(frozen=True)
class Trace:
    """The calls of one pass in the order in which they ended, and the names of the network's modules.

    The tensors are fake where the network could run on fake ones: they have shapes and no data.
    """

    calls: list[Call]
    inputs: list[Tensor]
    output: Any


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in nested sequences, mappings and objects with attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors(vars(value))


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, where that is counted: not in inference mode or when compiled."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def dry_run(net: nn.Module, example: object) -> Trace:
    """Watch ``net(example)`` in eval mode, without gradients, and leave everything as it was.

    The pass runs on a copy made of fake tensors, which have no data, so it costs no memory and touches nothing.
    A network that cannot do that (its flow depends on values, or it leaves torch) runs once for real; its modes,
    buffers and torch's random state are then put back.

    Args:
        net: any network.
        example: what it is called with: a tensor, a tuple of arguments, or a mapping of named arguments.
    """
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    args = () if kwargs else example if isinstance(example, tuple) else (example,)
    with _uncompiled(net), _random_state(net), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the network has to say, it says in a pass of the user's own
        try:
            return _run_fake(net, args, kwargs)
        except Exception:  # whatever a network does to fake tensors: the real pass speaks for itself
            return _run_real(net, args, kwargs)


def _uncompiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Compiled parts run as plain Python, where hooks see everything; asking for that imports the compiler."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in net.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _random_state(net: nn.Module) -> AbstractContextManager[None]:
    devices = {p.device for p in net.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    return torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind)


def _run_fake(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        net, args, kwargs = copy.deepcopy((net, args, kwargs))
    for module in net.modules():
        module.training = False
        for hooks in _HOOKS:  # the user's hooks are not for fake tensors
            getattr(module, hooks).clear()
    with mode:
        return _watch(net, args, kwargs)


def _run_real(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    modes = [(module, module.training) for module in net.modules()]
    buffers = [
        (module, key, buffer, buffer.clone(), version(buffer))
        for module in net.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    try:
        for module, _ in modes:
            module.training = False
        return _watch(net, args, kwargs)
    finally:
        for module, training in modes:
            module.training = training
        for module, key, buffer, kept, before in buffers:
            module._buffers[key] = buffer
            if version(buffer) != before:
                buffer.copy_(kept)


def _watch(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    names = {module: name for name, module in net.named_modules()}
    clock, running, ended, handles = count(), [], [], []
    given: dict[Call, dict[int, int]] = {}  # the versions of what went into a call

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(Call(names[module], module, list(tensors((args, kwargs))), next(clock)))
        given[running[-1]] = {id(tensor): version(tensor) for tensor in running[-1].inputs}

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        call = running.pop()
        while call.module is not module:  # a call that raised, in a network that went on
            call = running.pop()
        call.end, call.output = next(clock), output
        call.version = version(output) if isinstance(output, Tensor) else 0
        call.passed_on = given[call].get(id(output)) == call.version
        ended.append(call)

    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        output = net(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(ended, list(tensors((args, kwargs))), output)


def network(name: str, value: object) -> nn.Module:
    """`value` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(checks.message(f"`{name}` to be a torch.nn.Module", type(value).__name__))
    return value
