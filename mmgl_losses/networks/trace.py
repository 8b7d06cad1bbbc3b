"""One forward pass, recorded, after which the network is as it was.

The pass is a real one, in eval mode and without gradients, on a copy of the example.
"""

import copy
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmgl_losses import checks
from mmgl_losses.networks.recorder import Call, Recorder, Trace, tensors

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
_DROPOUT = nn.modules.dropout._DropoutNd


Look = Callable[[Call, Any, Recorder], Any]


def record(net: nn.Module, example: object, kwargs: Mapping[str, Any] | None = None, look: Look | None = None) -> Trace:
    """Run ``net(example)`` once and write down what happened; the network stays as it was.

    It runs in eval mode and without gradients, and without the hooks that are on the network already. A network that
    takes its own features by hooks fails so, and runs again with them. Modes, buffers, attributes of the modules (with
    what is in lists, sets and dictionaries among them) and the random state are put back. A network with lazy modules
    runs as a copy. On the device ``meta``, nothing is computed at all.

    Args:
        net: any network.
        example: what it is called with: a tensor, a tuple or list of arguments, or a mapping of named arguments.
        kwargs: named arguments beside it.
        look: is called after each call of a module with what it returned; what it gives is kept as `Call.seen`.
    """
    args, named = arguments(example, kwargs)
    if any(is_lazy(value) for value in (*net.parameters(), *net.buffers())):
        net = copy.deepcopy(net)  # a pass would settle their shapes
    try:
        return _record(net, args, named, look, hooks=False)
    except Exception:  # whatever a network says without its hooks: with them, it speaks for itself
        return _record(net, args, named, look, hooks=True)


def _record(net: nn.Module, args: Any, named: Any, look: Look | None, *, hooks: bool) -> Trace:
    recorder = Recorder()
    with ExitStack() as stack:
        stack.enter_context(_uncompiled(net))
        stack.enter_context(_random_state(net))
        stack.enter_context(_unchanged(net, hooks=hooks))
        stack.enter_context(torch.inference_mode(False))  # what the network caches must serve training later
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # what the network has to say, it says in a pass of the user's own
        args, named = _copied(args), _copied(named)
        recorder.begin(list(tensors((args, named))))
        _write_down_calls(net, recorder, look)
        with recorder:
            output = net(*args, **named)
        nodes = [recorder.node(tensor) for tensor in tensors(output)]
        recorder.trace.calls = sorted(reversed(recorder.trace.calls), key=lambda call: (call.start, -call.end))
        recorder.trace.outputs = list(dict.fromkeys(node for node in nodes if node is not None))
    return recorder.trace


def arguments(example: object, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments that an example stands for."""
    named = {} if kwargs is None else {**_mapping(kwargs)}
    if isinstance(example, Mapping):
        return (), {**example, **named}
    return (tuple(example) if isinstance(example, (list, tuple)) else (example,)), named


def _mapping(kwargs: object) -> Mapping[str, Any]:
    """`kwargs` is a mapping from names."""
    if not isinstance(kwargs, Mapping):
        raise TypeError(checks.message("`kwargs` to be a mapping of named arguments", checks.typed(kwargs)))
    return kwargs


def _copied(value: Any) -> Any:
    """The same with copies of tensors, which a network may write to."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(map(_copied, value))
    return [_copied(item) for item in value] if type(value) is list else value


def _write_down_calls(net: nn.Module, recorder: Recorder, look: Look | None) -> None:
    """Write down the calls of modules, by hooks; they go when `_unchanged` puts everything back."""
    names = {module: name for name, module in net.named_modules()}
    trace, running = recorder.trace, []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(Call(names[module], module, len(trace.nodes)))

    def after(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        call = running.pop()
        while call.module is not module:  # a call that raised, in a network that went on
            call = running.pop()
        if isinstance(module, _DROPOUT) and module.inplace and isinstance(output, Tensor):
            recorder.rewritten(output)  # as it will be in training
        nodes = [recorder.node(tensor) for tensor in tensors(output)]
        call.end, call.kind = len(trace.nodes), type(output).__name__
        call.returned = tuple(node for node in nodes if node is not None)
        if isinstance(module, _DROPOUT) and not module.inplace:
            call.kind, call.returned = "what it is given", ()  # in training it is another map, with holes
        elif isinstance(output, Tensor):
            call.output, call.floating = recorder.node(output), output.is_floating_point()
        trace.calls.append(call)
        if look is not None:
            call.seen = look(call, output, recorder)

    for module in names:
        if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


@contextmanager
def _unchanged(net: nn.Module, *, hooks: bool) -> Iterator[None]:
    """In eval mode inside, `hooks`: with the network's hooks; afterwards all is what it was."""
    modules = list(net.modules())
    modes = [module.training for module in modules]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in net.buffers() if not buffer.is_inference()]
    states = [
        (vars(module), dict(vars(module))) for module in modules if not isinstance(module, torch.jit.ScriptModule)
    ]
    contents = [(value, copy.copy(value)) for _, kept in states for value in _containers(kept.values())]
    try:
        for module in modules:
            module.training = False
            for name in () if hooks or isinstance(module, torch.jit.ScriptModule) else _HOOKS:
                getattr(module, name).clear()
        yield
    finally:
        for attributes, kept in states:
            attributes.clear()
            attributes.update(kept)
        for value, kept in contents:
            value.clear()
            value.extend(kept) if isinstance(value, list) else value.update(kept)
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        with torch.no_grad():
            for buffer, kept, version in buffers:
                if buffer._version != version:
                    buffer.copy_(kept)


def _containers(values: Iterable[object]) -> Iterator[Any]:
    """Every list, set and dictionary among values, and in those."""
    seen, todo = set(), list(values)
    while todo:
        value = todo.pop()
        if type(value) in (dict, OrderedDict, list, set) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value  # pyright: ignore[reportOperatorIssue]
            yield value


def _uncompiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Compiled parts run as plain Python, where hooks see everything; asking for that imports the compiler."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in net.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _random_state(net: nn.Module) -> Iterator[None]:
    """The random states of torch, Python and, where it is in use, NumPy are what they were."""
    devices = {p.device for p in net.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    numpy, python = sys.modules.get("numpy"), random.getstate()
    state = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)


def network(name: str, value: object) -> nn.Module:
    """`value` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(checks.message(f"`{name}` to be a torch.nn.Module", type(value).__name__))
    return value
