"""What the losses share: levels, how weights meet them, and labels for them."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise, permutations
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from mmgl_losses import checks
from mmgl_losses.checks import message, typed


class Array(Protocol):
    """An array of numpy, or what is like one."""

    def tolist(self) -> Any:
        """Its numbers, as Python's."""
        ...


Levels: TypeAlias = Sequence[Tensor] | Mapping[str, Tensor]
Weights: TypeAlias = Sequence[float] | Mapping[str, float]
Instances: TypeAlias = Tensor | Array | Sequence[float] | None
Unreduced: TypeAlias = dict[str | int, Tensor]  # by the names of the levels, or their numbers in a sequence
Reduction = Literal["mean", "none"]
# What a call returns is known from what the loss was made with.
Reduced = TypeVar("Reduced", bound=Reduction, default=Literal["mean"])


class MultiScale(nn.Module, Generic[Reduced]):
    """A loss over several levels: weights, and options that are checked. It has no parameters and no buffers."""

    spatial: ClassVar[bool] = True  #: levels have sizes, which show whether they are in order

    def __init__(self, weights: Weights, options: Any) -> None:
        super().__init__()
        self.weights = check_weights(weights)
        self.options = options

    def levels(self, name: str, values: Levels) -> tuple[dict[str, Tensor], list[float]]:
        """The levels that count, by a name for messages, and their weights.

        A level of weight 0 is not looked at, so nothing in it can leak.
        """
        paired = [(f"{name}[{key!r}]", level, weight) for key, level, weight in _paired(name, values, self.weights)]
        if self.spatial and not isinstance(self.weights, Mapping):
            _check_order(name, [checks.feature_map(key, level).shape[2:] for key, level, _ in paired])
        counting = [(key, level, weight) for key, level, weight in paired if weight]
        return {key: level for key, level, _ in counting}, [weight for *_, weight in counting]

    def by_level(self, values: Levels, losses: Iterable[Tensor]) -> Unreduced:
        """Losses of the levels that count, under the keys that these have in `values`."""
        keys = [key for key, _, weight in _paired("", values, self.weights) if weight]
        return dict(zip(keys, losses, strict=True))

    def extra_repr(self) -> str:
        """The configuration, as it was given."""
        given = {"weights": self.weights} | {f.name: getattr(self.options, f.name) for f in fields(self.options)}
        return ", ".join(f"{key}={value!r}" for key, value in given.items())


def settle(options: object, **values: object) -> None:
    """Write into frozen options what their checks made of them: Python's numbers in place of numpy's."""
    for name, value in values.items():
        if getattr(options, name) is not value:
            object.__setattr__(options, name, value)


def halving(levels: int, *, coarsest: bool = True) -> tuple[float, ...]:
    r"""Weights of deep supervision that halve from each level to the next coarser one, from coarse to fine.

    .. math:: w_l = 2^l / \sum_{k=0}^{L-1} 2^k, \quad l = 0 \ldots L - 1

    Args:
        levels: L, at least 1.
        coarsest: False gives the coarsest of at least two levels 0, as nnU-Net does (Isensee et al. 2021).

    Returns:
        L numbers with the sum 1.

    Raises:
        TypeError, ValueError: `levels` is no such number.

    Example:
        >>> [round(weight, 3) for weight in halving(3)]
        [0.143, 0.286, 0.571]
        >>> [round(weight, 3) for weight in halving(3, coarsest=False)]
        [0.0, 0.333, 0.667]
    """
    left_out = 0 if checks.flag("coarsest", coarsest) else 1
    counting = checks.integer("levels", levels, least=1 + left_out) - left_out
    return (*[0.0] * left_out, *(2**level / (2**counting - 1) for level in range(counting)))


def vector(numbers: Sequence[float], like: Tensor) -> Tensor:
    """The numbers as a tensor beside `like`; written there by the device, as a copy of them would wait for it."""
    if like.device.type == "cpu":
        return like.new_tensor(numbers)
    return torch.stack([like.new_full((), number) for number in numbers])


def weighted_sum(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The sum of weight · loss over L levels, (L,)."""
    return torch.dot(losses, vector(weights, losses))


def fixed_temperature(value: Any) -> Any:
    """The temperature of a loss module, which has no parameters, so that it would never train one."""
    if isinstance(value, Tensor) and value.requires_grad:
        cure = "A loss module has no parameters; to train a temperature, give it to `functional`."
        raise TypeError(message("`temperature` to be a finite number above 0", "a tensor", cure))
    return value.item() if isinstance(value, Tensor) and not value.ndim else value


def as_tensor(name: str, value: object, like: Tensor) -> Tensor:
    """A tensor as it is; a sequence of numbers, or an array of numpy, as one beside `like`."""
    if isinstance(value, Tensor):
        return checks.tensor(name, value)
    numbers = listed(value)
    if numbers and all(isinstance(item, (int, float)) for item in numbers):
        return torch.tensor(numbers, device=like.device)
    expected = f"`{name}` to be a tensor or a sequence of numbers, one for each row"
    named = bool(numbers) and all(isinstance(item, str) for item in numbers)
    raise TypeError(message(expected, typed(value), "Number the names from 0 on." if named else ""))


def listed(value: object) -> list[Any] | None:
    """A sequence of numbers as a list, with Python's numbers in place of those of numpy and of 0-d tensors."""
    items = value.tolist() if hasattr(value, "tolist") else value  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(items, Sequence) or isinstance(items, str):
        return None
    return [item.item() if getattr(item, "ndim", None) == 0 else item for item in items]


def rows_of_images(instances: Instances, batch: int) -> list[list[int]]:
    """The rows of each image, for images that occur equally often; two halves where nothing is given."""
    if instances is None:
        if batch % 2:
            cure = "Stack two augmentations along the batch, or give `instances`."
            raise ValueError(message("an even batch", batch, cure))
        return [[i, i + batch // 2] for i in range(batch // 2)]
    expected = f"`instances` to be a tensor or sequence of {batch} integers, one for each row"
    values = listed(instances.flatten() if isinstance(instances, Tensor) else instances)
    if values is None:
        raise TypeError(message(expected, typed(instances)))
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise TypeError(message(expected, values[:5]))
    if len(values) != batch or (isinstance(instances, Tensor) and instances.ndim != 1):
        raise ValueError(message(expected, checks.shape(instances) if isinstance(instances, Tensor) else len(values)))
    rows: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    if len({len(group) for group in rows.values()}) > 1:
        got = {value: len(group) for value, group in rows.items()}
        raise ValueError(message("`instances` in which each image occurs equally often", f"the counts {got}"))
    return list(rows.values())


def check_labels(labels: object, features: Tensor, name: str) -> Tensor:
    """Integer labels (B, *spatial), as int64, for features (B, C, *spatial_of_a_level) called `name`.

    In a narrow type, an index that it cannot hold would wrap around and match another class.
    """
    checked = checks.tensor("labels", labels)
    batch, dims = features.shape[0], features.ndim - 2
    whole = not (checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool)
    if not whole:
        got, cure = f"type {checked.dtype}", f"convert them with {_cure_of_labels(checked, features)}."
        one = checked.ndim == dims + 1 or 1 in (checked.shape[1], checked.shape[-1])  # not one for each class
        if one and checked.is_floating_point() and checks.readable(checked) and (checked % 1).any():
            got += f" that holds {checked[checked % 1 != 0][0].item():g}"
            cure = 'resample and augment them with the nearest neighbour, `mode="nearest"`.'
        raise TypeError(message("`labels` to be an integer tensor", got, f"Labels are class indices; {cure}"))
    if checked.ndim != dims + 1 or checked.shape[0] != batch:
        fits = checked.ndim == dims + 2 and checked.shape[0] == batch
        cure = f"Remove the channel axis with {_cure_of_labels(checked, features)}." if fits else ""
        spatial = "".join(f", {'HWD'[i] if dims <= 3 else f'S{i}'}" for i in range(dims))
        expected = f"`labels` of shape ({batch}{spatial}) for `{name}` of shape {checks.shape(features)}"
        raise ValueError(message(expected, checks.shape(checked), cure))
    if not all(checked.shape[1:]):
        raise ValueError(message("`labels` of at least one point along each axis", checks.shape(checked)))
    _check_axes(checked, features, name)
    checks.same_device("labels", checked, name, features)
    return checked.long()


def _cure_of_labels(labels: Tensor, features: Tensor) -> str:
    """The one line that makes labels (B, *spatial) of class indices of what was given."""
    if labels.ndim != features.ndim:
        return "`.long()`"
    first, last = (_misfit(sizes, features) for sizes in (labels.shape[2:], labels.shape[1:-1]))
    axis = -1 if last < first else 1
    if labels.shape[axis] > 1:  # one channel for each class
        return f"`labels.argmax({axis})`"
    return f"`labels.squeeze({axis}){'.long()' if labels.is_floating_point() else ''}`"


def _misfit(sizes: Sequence[int], features: Tensor) -> float:
    """How far apart the factors between both sizes are, over the axes."""
    factors = [math.log(max(full, 1) / size) for full, size in zip(sizes, features.shape[2:], strict=True)]
    return max(factors) - min(factors)


def _check_axes(labels: Tensor, features: Tensor, name: str) -> None:
    """The axes of the labels are those of the features: in no other order do their sizes fit clearly better."""
    if torch.compiler.is_compiling():
        return  # sizes may be symbols there, and each comparison would be a reason to compile anew

    given = _misfit(labels.shape[1:], features)
    orders = permutations(labels.shape[1:])
    if given > 0.15 and min(_misfit(sizes, features) for sizes in orders) < given / 2:
        expected = f"`labels` as large along each axis as `{name}` of shape {checks.shape(features)}, by one factor"
        raise ValueError(message(expected, checks.shape(labels), "Are its axes in another order?"))


def warn_of_unlabelled(labels: Tensor) -> None:
    """Labels that usually mean "no label", where nothing says so: their points would be one more class."""
    if not checks.readable(labels):
        return
    least, most = (int(x) for x in labels.aminmax())
    if least < 0 or most == 255:
        value = least if least < 0 else most
        warnings.warn(
            f"`labels` hold {value}, which usually marks points without a label, and here is one more class. If it is "
            f"none, pass `ignore_index={value}`.",
            stacklevel=2,
        )


def check_weights(weights: object) -> tuple[float, ...] | dict[str, float]:
    """A non-empty sequence, or mapping, of finite weights of at least 0, not all 0."""
    expected = "`weights` to be a non-empty sequence or mapping of numbers, one per level"
    if hasattr(weights, "tolist"):  # of numpy or torch
        weights = weights.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(weights, (Mapping, Sequence)) or isinstance(weights, str):
        raise TypeError(message(expected, typed(weights)))
    if not weights:
        raise ValueError(message(expected, repr(weights)))
    named = weights if isinstance(weights, Mapping) else dict(enumerate(weights))
    for key in weights if named is weights else ():
        if not isinstance(key, str):
            raise TypeError(message("the keys of `weights` to be the names of levels", typed(key)))
    checked = above_zero("weights", named, weights)
    return {str(key): value for key, value in checked.items()} if named is weights else tuple(checked.values())


def above_zero(name: str, values: Mapping[Any, object], given: object) -> dict[Any, float]:
    """Finite numbers of at least 0 by their keys, not all 0; `given` is what the user wrote."""
    checked = {key: checks.number(f"{name}[{key!r}]", value, least=0.0) for key, value in values.items()}
    if not any(checked.values()):
        raise ValueError(message(f"at least one of `{name}` above 0", repr(given)))
    return checked


def _paired(name: str, values: object, weights: Weights) -> list[tuple[str | int, Any, float]]:
    """Every level with its weight, as (its name or its number in a sequence, level, weight).

    `values` is a sequence or a mapping; a mapping of weights needs a mapping of levels with the same keys.
    """
    if isinstance(values, Tensor):
        cure = (
            f"Wrap a single level in a list, `[{name}]`; make levels that are stacked along an axis a mapping from "
            "`.unbind(axis)`, with `weights` of the same keys."
        )
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        raise TypeError(message(expected, f"a tensor of shape {checks.shape(values)}", cure))
    if isinstance(values, Sequence) and len(values) == 2 and isinstance(values[1], Mapping):
        cure = "Take it apart: `output, levels = tapped(images)`."
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        raise TypeError(message(expected, "the pair that a tapped model returns", cure))
    if isinstance(weights, Mapping):
        if not isinstance(values, Mapping) or set(values) != set(weights):
            got = list(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(message(f"`{name}` to be a mapping with the keys of `weights`, {sorted(weights)}", got))
        return [(key, values[key], weights[key]) for key in weights]
    if not isinstance(values, (Mapping, Sequence)):
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        cure = "Take the tensors out of it, such as `[output.logits]`." if hasattr(values, "logits") else ""
        raise TypeError(message(expected, type(values).__name__, cure))
    items = list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))
    if len(items) != len(weights):
        expected = (
            f"{len(weights)} level{'s' if len(weights) != 1 else ''} in `{name}`, one per weight of {tuple(weights)}"
        )
        cure = "Give as many weights as levels."
        if isinstance(values, Mapping):
            cure = f"Give as many weights as levels, or take the levels out of {', '.join(map(repr, values))}."
        raise ValueError(message(expected, len(items), cure))
    return [(key, value, weight) for (key, value), weight in zip(items, weights, strict=True)]


def _check_order(name: str, sizes: Sequence[Sequence[int]]) -> None:
    """Levels grow strictly, so that a sequence of weights cannot meet the wrong level."""
    points = [math.prod(size) for size in sizes]
    if all(a < b for a, b in pairwise(points)):
        return
    cure = "Give `weights` as a mapping from the levels' names, so that each level meets its own weight."
    if all(a > b for a, b in pairwise(points)):
        cure = (
            f"They are ordered fine to coarse: reverse them, `{name}[::-1]`, and give `weights` from coarse to fine; "
            "or give `weights` as a mapping from their names."
        )
    raise ValueError(message(f"`{name}` ordered from coarse to fine", [tuple(size) for size in sizes], cure))
