"""The form of every error message, and the checks that several modules share.

A message says what was expected, what was given and, where it is not obvious, what to do. A wrong type is a
``TypeError``, a wrong value a ``ValueError``. A check that has one caller stands beside that caller.

Compiled code runs through these functions, so nothing here formats a message before it is needed, and nothing reads a
tensor's values where that would wait for a device.
"""

import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor, nn


def message(expected: str, got: object, cure: str = "") -> str:
    """``Expected <expected>, got <got>. <cure>``: the one form of every message."""
    return f"Expected {expected}, got {got}.{' ' + cure if cure else ''}"


def typed(value: object) -> str:
    """A value of a wrong type in a message, on one line: ``'0.1' of type str``; of a tensor its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {shape(value)}"
    shown = repr(value)
    return f"{shown} of type {type(value).__name__}" if len(shown) < 80 and "\n" not in shown else type(value).__name__


def one_of(name: str, value: object, options: Collection[str]) -> None:
    """`value` is one of `options`."""
    if isinstance(value, str) and value in options:
        return
    wanted = f"`{name}` to be one of {', '.join(map(repr, options))}"
    if not isinstance(value, str):
        raise TypeError(message(wanted, typed(value)))
    close = get_close_matches(value, list(options), n=1)
    raise ValueError(message(wanted, repr(value), f"Did you mean {close[0]!r}?" if close else ""))


def choice(name: str, value: object, options: Collection[int]) -> None:
    """`value` is one of the integers `options`."""
    wanted = f"`{name}` to be one of {', '.join(map(repr, options))}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message(wanted, typed(value)))
    if value not in options:
        raise ValueError(message(wanted, repr(value)))


def _plain(value: object) -> object:
    """A number of numpy, or a tensor or array of no axes, as a number of Python; anything else as it is."""
    if isinstance(value, (int, float)):  # of compiled code it may be a symbol, which is asked for nothing else
        return value
    if getattr(value, "ndim", None) != 0 or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return value
    return value.item()  # pyright: ignore[reportAttributeAccessIssue]


def number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> float:
    """`value` is a finite real number in the range, as a Python number; one of numpy or a 0-d tensor will do.

    Only comparisons: a number that changes between calls of compiled code is a symbol, which `math.isfinite` refuses.
    """
    value = _plain(value)
    real = isinstance(value, (int, float, Real))
    if real and not isinstance(value, bool):
        checked = value if isinstance(value, (int, float)) else float(value)  # pyright: ignore[reportArgumentType]
        if -math.inf < checked < math.inf and least <= checked <= most and checked > above:
            return checked
    wanted = "a finite number"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if least > -math.inf:
        wanted += f" of at least {least:g}"
    if most < math.inf:
        wanted += f" and at most {most:g}" if least > -math.inf or above > -math.inf else f" of at most {most:g}"
    if not real or isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be {wanted}", typed(value)))
    raise ValueError(message(f"`{name}` to be {wanted}", repr(value)))


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """`value` is an integer (not a bool) of at least `least`, as a Python int; one of numpy or a 0-d tensor will do."""
    value = _plain(value)
    whole = isinstance(value, (int, Integral))
    if whole and not isinstance(value, bool):
        checked = value if isinstance(value, int) else int(value)  # pyright: ignore[reportArgumentType]
        if least is None or checked >= least:
            return checked
    wanted = "an integer" + (f" of at least {least}" if least is not None else "")
    if not whole or isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be {wanted}", typed(value)))
    raise ValueError(message(f"`{name}` to be {wanted}", value))


def flag(name: str, value: object) -> bool:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be True or False", typed(value)))
    return value


def name(what: str, value: object) -> str:
    """`value` is a string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(message(f"{what} to be a string", typed(value)))
    if not value:
        raise ValueError(message(f"{what} not to be empty", repr(value)))
    return value


def known_names(kind: str, names: Collection[str], existing: Collection[str]) -> None:
    """Every name exists; the message names the closest ones."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(message(f"the name of {kind}", typed(name)))
        if name not in existing:
            close = get_close_matches(name, list(existing), n=3, cutoff=0.5)
            cure = f"Close matches: {', '.join(map(repr, close))}." if close else ""
            raise ValueError(message(f"the name of {kind}", repr(name), cure))


def shape(tensor: Tensor) -> str:
    """The shape of a tensor as users write it: ``(4, 160, 160)``."""
    return str(tuple(tensor.shape))


def readable(value: Tensor) -> bool:
    """Reading the values waits for no device and breaks no graph: a plain tensor on the CPU that holds some."""
    plain = type(value) is Tensor or type(value) is nn.Parameter
    if not plain or value.device.type != "cpu" or torch.compiler.is_compiling() or value.numel() == 0:
        return False
    # Inside vmap there is no one value.
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]


def tensor(name: str, value: object) -> Tensor:
    """`value` is a dense tensor. One that only carries more with it, as MONAI's MetaTensor, comes back without that."""
    if not isinstance(value, Tensor):
        raise TypeError(message(f"`{name}` to be a tensor", type(value).__name__))
    if value.layout != torch.strided:
        raise TypeError(message(f"`{name}` to be a dense tensor", value.layout, "Call `.to_dense()` first."))
    return bare(value)


def bare(value: Tensor) -> Tensor:
    """A tensor whose class only carries more with it, without that; one that computes in its own way, as it is."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:  # pyright: ignore
        return value
    with torch._C.DisableTorchFunctionSubclass():  # else the class would dress the result again
        return value.as_subclass(Tensor)


def floating(name: str, value: object) -> Tensor:
    """`value` is a floating-point tensor."""
    checked = tensor(name, value)
    if not checked.is_floating_point():
        raise TypeError(message(f"`{name}` to be a floating-point tensor", f"type {checked.dtype}"))
    return checked


def of_shape(name: str, value: Tensor, wanted: Sequence[int], cure: str = "") -> None:
    """`value` has exactly the shape `wanted`."""
    if value.shape != tuple(wanted):
        raise ValueError(message(f"`{name}` of shape {tuple(wanted)}", shape(value), cure))


def same_device(name: str, value: Tensor, other: str, reference: Tensor) -> None:
    """Two tensors are on one device."""
    if value.device != reference.device:
        got = f"`{name}` on {value.device}"
        raise ValueError(message(f"`{name}` on the device of `{other}` ({reference.device})", got))


def feature_map(name: str, value: object) -> Tensor:
    """`value` is a floating-point tensor (B, C, *spatial) with at least one spatial dimension."""
    checked = floating(name, value)
    if checked.ndim < 3:
        raise ValueError(message(f"`{name}` of shape (B, C, *spatial)", shape(checked)))
    if not math.prod(checked.shape[1:]):
        raise ValueError(message(f"`{name}` of at least one channel and one point", f"shape {shape(checked)}"))
    return checked
