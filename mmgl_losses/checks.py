"""Every check of what a user passes in, and so every message a user can get.

A message says what was expected, what was given and, where it is not obvious, what to do.
A wrong type is a ``TypeError``, a wrong value a ``ValueError``.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

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
        wanted += f" and at most {most:g}" if least > -math.inf or above > -math.inf else f" of at most {most:g}"
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


IMPLEMENTATIONS = ("auto", "reference", "tiled")


def implementation(value: object) -> None:
    """`impl` is a known implementation of the primitive."""
    one_of("impl", value, IMPLEMENTATIONS)


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
        cure = (
            f"Wrap a single level in a list, `[{name}]`; make levels that are stacked along an axis a mapping from "
            "`.unbind(axis)`, with `weights` of the same keys."
        )
        expected = f"`{name}` to be a sequence or mapping of tensors, one per level"
        raise TypeError(message(expected, f"a tensor of shape {shape(values)}", cure))
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
    """Levels grow strictly, so that a sequence of weights cannot meet the wrong level."""
    points = [math.prod(size) for size in sizes]
    if all(a < b for a, b in pairwise(points)):
        return
    cure = "Give `weights` as a mapping from the levels' names, so that each level meets its own weight."
    if all(a > b for a, b in pairwise(points)):
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


def contrast(
    anchors: object,
    ids: object,
    *,
    keys: object = None,
    key_ids: object = None,
    self_index: object = None,
    anchor_mask: object = None,
    key_mask: object = None,
    key_log_weights: object = None,
    tolerance: object = None,
    bound: object = None,
) -> None:
    """The arguments of the primitive: types, shapes that fit one another, one device."""
    checked = floating("anchors", anchors)
    if checked.ndim < 2:
        raise ValueError(message("`anchors` of shape (*groups, N, D)", shape(checked)))
    groups, n = checked.shape[:-2], checked.shape[-2]
    m = n
    if keys is not None:
        others = floating("keys", keys)
        wanted = (*groups, "M", checked.shape[-1])
        if others.ndim != checked.ndim or others.shape[:-2] != groups or others.shape[-1] != checked.shape[-1]:
            expected = f"`keys` of shape ({', '.join(map(str, wanted))}) for `anchors` of shape {shape(checked)}"
            raise ValueError(message(expected, shape(others)))
        m = others.shape[-2]
    given = "is needed with" if keys is not None and key_ids is None else "goes with"
    if (keys is None) != (key_ids is None) or (keys is None and self_index is not None):
        name = "self_index" if self_index is not None and key_ids is None else "key_ids"
        got = "`keys` alone" if given == "is needed with" else f"`{name}` alone"
        raise ValueError(message(f"`{name}` and `keys` together, as `{name}` {given} `keys`", got))
    for name, value, length, kinds in (
        ("ids", ids, n, "real"),
        ("key_ids", key_ids, m, "real"),
        ("self_index", self_index, n, "int64"),
        ("anchor_mask", anchor_mask, n, "bool"),
        ("key_mask", key_mask, m, "bool"),
        ("key_log_weights", key_log_weights, m, "floating-point"),
    ):
        if value is None and name != "ids":
            continue
        entry = tensor(name, value)
        of_shape(name, entry, (*groups, length))
        same_device(name, entry, "anchors", checked)
        fits = {
            "real": not entry.is_complex(),
            "int64": entry.dtype == torch.int64,
            "bool": entry.dtype == torch.bool,
            "floating-point": entry.is_floating_point(),
        }
        if not fits[kinds]:
            raise TypeError(message(f"`{name}` to be of a {kinds} type", entry.dtype))
    if isinstance(key_log_weights, Tensor) and key_log_weights.requires_grad:
        cure = "They are constants; call `.detach()`."
        raise ValueError(message("`key_log_weights` that need no gradient", "requires_grad=True", cure))
    if tolerance is not None:
        number("tolerance", tolerance, least=0.0)
    if bound is not None:
        number("bound", bound, least=0.0)


def embeddings(value: object, instances: object, keys: object, key_instances: object, name: str = "embeddings") -> None:
    """Embeddings (A·B, D) with their instances, and keys (K, D) with theirs."""
    checked = floating(name, value)
    if checked.ndim != 2:
        cure = "Pool the spatial axes first, as `GlobalHead` does." if checked.ndim > 2 else ""
        raise ValueError(message(f"`{name}` of shape (A*B, D)", shape(checked), cure))
    if instances is None and keys is not None:
        raise ValueError(message("`instances` beside `keys`", "None", "Say which rows and which keys are one image."))
    if instances is None and checked.shape[0] % 2:
        cure = "Stack two augmentations, `torch.cat([first, second])`, or give `instances`."
        raise ValueError(message(f"an even number of rows in `{name}`", checked.shape[0], cure))
    if instances is not None:
        of_shape("instances", tensor("instances", instances), checked.shape[:1])
    if (keys is None) != (key_instances is None):
        given = "keys" if keys is not None else "key_instances"
        raise ValueError(message("`keys` and `key_instances` together", f"`{given}` alone"))
    if keys is not None:
        others = floating("keys", keys)
        if others.ndim != 2 or others.shape[1] != checked.shape[1]:
            raise ValueError(message(f"`keys` of shape (K, {checked.shape[1]})", shape(others)))
        of_shape("key_instances", tensor("key_instances", key_instances), others.shape[:1])


def augmentations(instances: Tensor | Sequence[int] | None, batch: int) -> list[list[int]]:
    """The rows of each image, for images that occur equally often; two halves where nothing is given."""
    if instances is None:
        if batch % 2:
            cure = "Stack two augmentations along the batch, or give `instances`."
            raise ValueError(message("an even batch", batch, cure))
        return [[i, i + batch // 2] for i in range(batch // 2)]
    values = instances.tolist() if isinstance(instances, Tensor) else list(instances)
    if not all(isinstance(value, int) for value in values) or len(values) != batch:
        raise ValueError(message(f"`instances` of shape ({batch},), integers", instances))
    rows: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    if len({len(group) for group in rows.values()}) > 1:
        got = {value: len(group) for value, group in rows.items()}
        raise ValueError(message("`instances` in which each image occurs equally often", f"the counts {got}"))
    return list(rows.values())


def class_labels(labels: Tensor, classes: int, ignore_index: int | None) -> None:
    """Every label is a class or `ignore_index`; the values are read on the CPU only, where that costs no wait."""
    if classes < 2:
        cure = "For one foreground structure use two channels, background and foreground."
        raise ValueError(message("logits of at least 2 channels", classes, cure))
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        values = labels[wrong].unique()[:5].tolist()
        cure = "Pass `ignore_index` for a label that is to be left out." if ignore_index is None else ""
        raise ValueError(message(f"`labels` in 0 ... {classes - 1}", values, cure))


def known_names(kind: str, names: Collection[str], existing: Collection[str]) -> None:
    """Every name exists; the message names the closest ones."""
    for name in names:
        if name not in existing:
            close = get_close_matches(str(name), list(existing), n=3, cutoff=0.5)
            cure = f"Close matches: {', '.join(map(repr, close))}." if close else ""
            raise ValueError(message(f"the name of {kind}", repr(name), cure))


def channels(name: str, value: object, wanted: int) -> Tensor:
    """A feature map (B, C, *spatial) with exactly the channels a head was made for."""
    checked = feature_map(name, value)
    if checked.shape[1] != wanted:
        expected = f"`{name}` of shape (B, {wanted}, *spatial)"
        cure = "The channel axis is the second; make the head with as many `in_channels` as the features have."
        raise ValueError(message(expected, shape(checked), cure))
    return checked


def row_norm(module: object) -> nn.Module:
    """A normalisation layer that can work on rows (N, channels)."""
    expected = "`norm` to make a layer for rows (N, channels)"
    cure = "Use `nn.BatchNorm1d`, which is batch normalisation over all points, or `nn.LayerNorm`."
    if not isinstance(module, nn.Module):
        raise TypeError(message(f"{expected}, called with the number of channels", type(module).__name__, cure))
    spatial = nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
    if isinstance(module, spatial):
        raise TypeError(message(expected, type(module).__name__, cure))
    return module


def channel_plan(name: str, value: object) -> tuple[int, ...]:
    """The channels of the levels of a U-Net: at least one level and the bottleneck."""
    expected = f"`{name}` to be a sequence of at least 2 integers, one per level and one for the bottleneck"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise ValueError(message(expected, repr(value)))
    return tuple(integer(f"{name}[{i}]", item, least=1) for i, item in enumerate(value))


def image(name: str, value: object, *, dims: int, factor: int, several: bool) -> Tensor:
    """An image (B, C, *spatial) that is still there after `factor` halvings; `several`: as more than one element."""
    checked = floating(name, value)
    if checked.ndim != dims + 2:
        axes = ", ".join("DHW"[-dims:])
        raise ValueError(message(f"`{name}` of shape (B, C, {axes})", shape(checked)))
    deepest = [size // factor for size in checked.shape[2:]]
    if min(deepest) < 1:
        expected = f"`{name}` with at least {factor} elements along each spatial axis"
        raise ValueError(message(expected, shape(checked), "Use larger images, or fewer levels of `channels`."))
    if several and math.prod(deepest) < 2:
        expected = f"`{name}` with at least {2 * factor} elements along one spatial axis"
        cure = "The bottleneck is one element, which instance normalisation cannot normalise. "
        cure += "Use larger images, fewer levels of `channels`, or another `norm`."
        raise ValueError(message(expected, shape(checked), cure))
    return checked


def network(name: str, value: object) -> nn.Module:
    """`value` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(message(f"`{name}` to be a torch.nn.Module", type(value).__name__))
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


def choice(name: str, value: object, options: Collection[object]) -> None:
    """`value` is one of `options`, which need not be strings."""
    if value not in options:
        raise ValueError(message(f"`{name}` to be one of {', '.join(map(repr, options))}", repr(value)))
