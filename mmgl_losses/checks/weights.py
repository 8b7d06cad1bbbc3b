"""Checks of the levels of a loss and their weights."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor

from mmgl_losses.checks.tensors import shape
from mmgl_losses.checks.values import message, number, typed

T = TypeVar("T")


Levels = Sequence[T] | Mapping[str, T]


def levels(name: str, values: object, weights: Levels[float]) -> list[tuple[str, Any, float]]:
    """Pair every level with its weight, as (name for messages, level, weight).

    `values` is a sequence or a mapping; a mapping of weights needs a mapping of levels with the same keys.
    """
    if isinstance(values, Tensor):
        cure = (
            f"Wrap a single level in a list, `[{name}]`; make levels that are stacked along an axis a mapping from "
            "`.unbind(axis)`, with `weights` of the same keys."
        )
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        raise TypeError(message(expected, f"a tensor of shape {shape(values)}", cure))
    if isinstance(weights, Mapping):
        if not isinstance(values, Mapping) or set(values) != set(weights):
            got = list(values) if isinstance(values, Mapping) else type(values).__name__
            expected = f"`{name}` to be a mapping with the keys of `weights`, {sorted(weights)}"
            raise ValueError(message(expected, got))
        return [(f"{name}[{key!r}]", values[key], weights[key]) for key in weights]
    if not isinstance(values, Mapping | Sequence):
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        cure = "Take the tensors out of it, such as `[output.logits]`." if hasattr(values, "logits") else ""
        raise TypeError(message(expected, type(values).__name__, cure))
    items = list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))
    if len(items) != len(weights):
        expected = f"{len(weights)} levels in `{name}`, one per weight of {tuple(weights)}"
        cure = "Give as many weights as levels."
        if isinstance(values, Mapping):
            cure = f"Give as many weights as levels, or take the levels out of {', '.join(map(repr, values))}."
        raise ValueError(message(expected, len(items), cure))
    return [(f"{name}[{key!r}]", value, weight) for (key, value), weight in zip(items, weights, strict=True)]


def coarse_to_fine(name: str, sizes: Sequence[Sequence[int]]) -> None:
    """Levels grow strictly, so that a sequence of weights cannot meet the wrong level."""
    points = [math.prod(size) for size in sizes]
    if all(a < b for a, b in pairwise(points)):
        return
    cure = "Give `weights` as a mapping from the levels' names, so that each level meets its own weight."
    if all(a > b for a, b in pairwise(points)):
        cure = (
            f"They are ordered fine to coarse: reverse them, `{name}[::-1]`, and give `weights` from coarse to fine; "
        )
        cure += "or give `weights` as a mapping from their names."
    raise ValueError(message(f"`{name}` ordered from coarse to fine", [tuple(size) for size in sizes], cure))


def equal_rows(name: str, values: Sequence[Tensor]) -> None:
    """Every level holds the same rows: one image is one row at all levels."""
    rows = [len(value) for value in values if isinstance(value, Tensor) and value.ndim]
    if len(set(rows)) > 1:
        raise ValueError(message(f"as many rows at each level of `{name}`", rows))


def level_weights(weights: object) -> tuple[float, ...] | dict[str, float]:
    """A non-empty sequence, or mapping, of finite weights of at least 0, not all 0."""
    expected = "`weights` to be a non-empty sequence or mapping of numbers, one per level"
    if not isinstance(weights, Mapping | Sequence) or isinstance(weights, str):
        raise TypeError(message(expected, typed(weights)))
    if not weights:
        raise ValueError(message(expected, repr(weights)))
    named = weights if isinstance(weights, Mapping) else dict(enumerate(weights))
    for key in weights if named is weights else ():
        if not isinstance(key, str):
            raise TypeError(message("the keys of `weights` to be the names of levels", typed(key)))
    checked = {key: number(f"weights[{key!r}]", value, least=0.0) for key, value in named.items()}
    if not any(checked.values()):
        raise ValueError(message("at least one of `weights` above 0", repr(weights)))
    return {str(key): value for key, value in checked.items()} if named is weights else tuple(checked.values())
