"""Every check of what a user passes in, and so every message a user can get.

A message says what was expected, what was given and, where it is not obvious, what to do.
A wrong type is a ``TypeError``, a wrong value a ``ValueError``.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Levels = Sequence[T] | Mapping[str, T]


def message(expected: str, got: object, cure: str = "") -> str:
    """``Expected <expected>, got <got>. <cure>``: the one shape of every message."""
    return f"Expected {expected}, got {got}.{' ' + cure if cure else ''}"


def shape(tensor: Tensor) -> str:
    """The shape of a tensor as users write it: ``(4, 160, 160)``."""
    return str(tuple(tensor.shape))


def one_of(name: str, value: object, options: Collection[str]) -> None:
    """`value` is one of `options`."""
    if value not in options:
        close = get_close_matches(str(value), list(options), n=1)
        cure = f"Did you mean {close[0]!r}?" if close else ""
        raise ValueError(message(f"`{name}` to be one of {', '.join(map(repr, options))}", repr(value), cure))


def number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> float:
    """`value` is a finite real number in the range, as a float."""
    wanted = "a finite number"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if least > -math.inf:
        wanted += f" of at least {least:g}"
    if most < math.inf:
        wanted += (
            f" and at most {most:g}" if least > -math.inf or above > -math.inf else f" of at most {most:g}"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message(f"`{name}` to be {wanted}", f"{value!r} of type {type(value).__name__}"))
    if not (math.isfinite(value) and least <= value <= most and value > above):
        raise ValueError(message(f"`{name}` to be {wanted}", repr(value)))
    return float(value)


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """`value` is an integer (not a bool) of at least `least`."""
    wanted = "an integer" + (f" of at least {least}" if least is not None else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(f"`{name}` to be {wanted}", f"{value!r} of type {type(value).__name__}"))
    if least is not None and value < least:
        raise ValueError(message(f"`{name}` to be {wanted}", value))
    return value


def flag(name: str, value: object) -> bool:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be True or False", f"{value!r} of type {type(value).__name__}"))
    return value


def temperature(value: object) -> None:
    """A positive, finite float, or a 0-d floating-point tensor (which may be trained)."""
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            got = f"a tensor of shape {shape(value)} and type {value.dtype}"
            raise ValueError(message("`temperature` to be a float or a 0-d floating-point tensor", got))
        return  # its value stays on its device; reading it would wait for the device
    number("temperature", value, above=0.0)


def tensor(name: str, value: object) -> Tensor:
    """`value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(message(f"`{name}` to be a tensor", type(value).__name__))
    if value.layout != torch.strided:
        raise TypeError(message(f"`{name}` to be a dense tensor", value.layout, "Call `.to_dense()` first."))
    return value


def floating(name: str, value: object) -> Tensor:
    """`value` is a floating-point tensor."""
    checked = tensor(name, value)
    if not checked.is_floating_point():
        raise TypeError(message(f"`{name}` to be a floating-point tensor", f"type {checked.dtype}"))
    return checked


def integral(name: str, value: object, cure: str = "") -> Tensor:
    """`value` is a tensor of whole numbers (bool is not)."""
    checked = tensor(name, value)
    if checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool:
        raise TypeError(message(f"`{name}` to be an integer tensor", f"type {checked.dtype}", cure))
    return checked


def same_device(name: str, value: Tensor, other: str, reference: Tensor) -> None:
    """Two tensors are on one device."""
    if value.device != reference.device:
        got = f"`{name}` on {value.device}"
        raise ValueError(message(f"`{name}` on the device of `{other}` ({reference.device})", got))


def of_shape(name: str, value: Tensor, wanted: Sequence[int], cure: str = "") -> None:
    """`value` has exactly the shape `wanted`."""
    if tuple(value.shape) != tuple(wanted):
        raise ValueError(message(f"`{name}` of shape {tuple(wanted)}", shape(value), cure))


def feature_map(name: str, value: object) -> Tensor:
    """A floating-point tensor (B, C, *spatial) with at least one spatial dimension."""
    checked = floating(name, value)
    if checked.ndim < 3:
        raise ValueError(message(f"`{name}` of shape (B, C, *spatial)", shape(checked)))
    return checked


def label_map(labels: object, features: Tensor, name: str = "features") -> Tensor:
    """Integer labels (B, *spatial) for features (B, C, *spatial_of_a_level)."""
    cure = "Labels are class indices; convert them with `.long()`."
    checked = integral("labels", labels, cure)
    batch, dims = features.shape[0], features.ndim - 2
    if checked.ndim != dims + 1 or checked.shape[0] != batch:
        squeezed = checked.ndim == dims + 2 and checked.shape[1] == 1
        cure = "Remove the channel axis with `labels.squeeze(1)`." if squeezed else ""
        spatial = "".join(f", {'HWD'[i] if dims <= 3 else f'S{i}'}" for i in range(dims))
        expected = f"`labels` of shape ({batch}{spatial}) for `{name}` of shape {shape(features)}"
        raise ValueError(message(expected, shape(checked), cure))
    same_device("labels", checked, name, features)
    return checked


def levels(name: str, values: object, weights: Levels[float]) -> list[tuple[str, object, float]]:
    """Pair every level with its weight, as (name for messages, level, weight).

    `values` is a sequence or a mapping; a mapping of weights needs a mapping of levels with the same keys.
    """
    if isinstance(values, Tensor):
        cure = f"Wrap a single level in a list: `[{name}]`."
        if values.ndim >= 4:
            cure += " For outputs stacked along an axis, pass a mapping made from `.unbind(axis)`, one key a level."
        raise TypeError(
            message(f"`{name}` to be a sequence or mapping of tensors, one per level", "a tensor", cure)
        )
    if isinstance(weights, Mapping):
        if not isinstance(values, Mapping) or set(values) != set(weights):
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            expected = f"`{name}` to be a mapping with the keys of `weights`, {sorted(weights)}"
            raise ValueError(message(expected, got))
        return [(f"{name}[{key!r}]", values[key], weights[key]) for key in weights]
    if not isinstance(values, Mapping | Sequence):
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        raise TypeError(message(expected, type(values).__name__))
    items = list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))
    if len(items) != len(weights):
        expected = f"{len(weights)} levels in `{name}`, one per weight of {tuple(weights)}"
        raise ValueError(message(expected, len(items), "Give as many weights as levels."))
    return [(f"{name}[{key!r}]", value, weight) for (key, value), weight in zip(items, weights, strict=True)]


def coarse_to_fine(name: str, sizes: Sequence[Sequence[int]]) -> None:
    """Levels grow strictly from one to the next, so that a sequence of weights cannot meet the wrong level."""
    points = [math.prod(size) for size in sizes]
    if all(a < b for a, b in zip(points, points[1:], strict=False)):
        return
    cure = "Give `weights` as a mapping from the levels' names, so that each level meets its own weight."
    if all(a > b for a, b in zip(points, points[1:], strict=False)):
        cure = f"They are ordered fine to coarse: reverse them, `{name}[::-1]`."
    raise ValueError(message(f"`{name}` ordered from coarse to fine", [tuple(size) for size in sizes], cure))


def level_weights(weights: object) -> tuple[float, ...] | dict[str, float]:
    """A non-empty sequence, or mapping, of finite weights of at least 0, not all 0."""
    expected = "`weights` to be a non-empty sequence or mapping of numbers, one per level"
    if not isinstance(weights, Mapping | Sequence) or isinstance(weights, str):
        raise TypeError(message(expected, f"{weights!r} of type {type(weights).__name__}"))
    items = list(weights.items() if isinstance(weights, Mapping) else enumerate(weights))
    if not items:
        raise ValueError(message(expected, repr(weights)))
    checked = {key: number(f"weights[{key!r}]", value, least=0.0) for key, value in items}
    if not any(checked.values()):
        raise ValueError(message("at least one of `weights` above 0", repr(weights)))
    return checked if isinstance(weights, Mapping) else tuple(checked.values())


def known_names(kind: str, names: Collection[str], existing: Collection[str]) -> None:
    """Every name exists; the message names the closest ones."""
    for name in names:
        if name not in existing:
            close = get_close_matches(str(name), list(existing), n=3, cutoff=0.5)
            cure = f"Close matches: {', '.join(map(repr, close))}." if close else ""
            raise ValueError(message(f"the name of {kind}", repr(name), cure))
