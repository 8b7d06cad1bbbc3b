"""Checks of tensors: type, shape, device, and whether they fit one another."""

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from mmgl_losses.checks.values import message, typed


def shape(tensor: Tensor) -> str:
    """The shape of a tensor as users write it: ``(4, 160, 160)``."""
    return str(tuple(tensor.shape))


def readable(value: Tensor) -> bool:
    """Reading the values waits for no device and breaks no graph: a plain tensor on the CPU."""
    plain = type(value) is Tensor or type(value) is nn.Parameter
    return plain and value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel() > 0


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


def losses(value: object, anchors: Tensor) -> None:
    """What a formula made of the terms: a loss for each anchor."""
    cure = "A formula leaves the mean to the library."
    wanted = f"`formula` to give a floating-point tensor of shape {shape(anchors)}, a loss for each anchor"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"type {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(message(wanted, got, cure))
    if value.shape != anchors.shape:
        raise ValueError(message(wanted, shape(value), cure))


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


def too_many_axes(name: str, value: Tensor, axes: int) -> NoReturn:
    """Say that a tensor has fewer axes than sizes were given."""
    raise ValueError(message(f"`{name}` of at least {axes} axes, one for each size", f"shape {shape(value)}"))


def feature_map(name: str, value: object) -> Tensor:
    """A floating-point tensor (B, C, *spatial) with at least one spatial dimension."""
    checked = floating(name, value)
    if checked.ndim < 3:
        raise ValueError(message(f"`{name}` of shape (B, C, *spatial)", shape(checked)))
    if not math.prod(checked.shape[1:]):
        raise ValueError(message(f"`{name}` of at least one channel and one point", f"shape {shape(checked)}"))
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
    ratios = [full / size for full, size in zip(checked.shape[1:], features.shape[2:], strict=True)]
    if min(ratios) == 0:
        raise ValueError(message("`labels` of at least one point along each axis", shape(checked)))
    if min(ratios) < 1 / 1.5 and max(ratios) > 1.5:
        expected = f"`labels` that are finer, or coarser, than `{name}` of shape {shape(features)} along all axes"
        raise ValueError(message(expected, shape(checked), "Are its axes in another order?"))
    same_device("labels", checked, name, features)
    return checked


def class_labels(labels: Tensor, classes: int, ignore_index: int | None) -> None:
    """Every label is a class or `ignore_index`; the values are read on the CPU only, where that costs no wait."""
    if classes < 2:
        cure = "For one foreground structure use two channels, background and foreground."
        raise ValueError(message("logits of at least 2 channels", classes, cure))
    if not readable(labels):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        values = labels[wrong].unique()[:5].tolist()
        cure = "Pass `ignore_index` for a label that is to be left out." if ignore_index is None else ""
        raise ValueError(message(f"`labels` in 0 ... {classes - 1}", values, cure))


def embeddings(value: object, instances: object, keys: object, key_instances: object, name: str = "embeddings") -> None:
    """Embeddings (A·B, D) with their instances, and keys (K, D) with theirs."""
    checked = floating(name, value)
    if checked.ndim != 2:
        cure = "Pool the spatial axes first, as `GlobalHead` does." if checked.ndim > 2 else ""
        raise ValueError(message(f"`{name}` of shape (A*B, D)", shape(checked), cure))
    if not checked.shape[1]:
        raise ValueError(message(f"`{name}` of at least one number each", f"shape {shape(checked)}"))
    if instances is None and keys is not None:
        raise ValueError(message("`instances` beside `keys`", "None", "Say which rows and which keys are one image."))
    if instances is None and checked.shape[0] % 2:
        cure = "Stack two augmentations, `torch.cat([first, second])`, or give `instances`."
        raise ValueError(message(f"an even number of rows in `{name}`", checked.shape[0], cure))
    if instances is not None:
        rows = tensor("instances", instances)
        of_shape("instances", rows, checked.shape[:1])
        same_device("instances", rows, name, checked)
    if (keys is None) != (key_instances is None):
        given = "keys" if keys is not None else "key_instances"
        raise ValueError(message("`keys` and `key_instances` together", f"`{given}` alone"))
    if keys is not None:
        others = floating("keys", keys)
        if others.ndim != 2 or others.shape[1] != checked.shape[1]:
            raise ValueError(message(f"`keys` of shape (K, {checked.shape[1]})", shape(others)))
        same_device("keys", others, name, checked)
        rows = tensor("key_instances", key_instances)
        of_shape("key_instances", rows, others.shape[:1])
        same_device("key_instances", rows, name, checked)


def numbered(tolerance: object, gather: bool) -> None:
    """Instances are given where their order counts: numbers made up in each process have none."""
    if gather and tolerance is not None:
        cure = "Number the images of all processes in their order."
        raise ValueError(message("`instances` beside `tolerance` and gather=True", "None", cure))


def augmentations(instances: Tensor | Sequence[int] | None, batch: int) -> list[list[int]]:
    """The rows of each image, for images that occur equally often; two halves where nothing is given."""
    if instances is None:
        if batch % 2:
            cure = "Stack two augmentations along the batch, or give `instances`."
            raise ValueError(message("an even batch", batch, cure))
        return [[i, i + batch // 2] for i in range(batch // 2)]
    expected = f"`instances` to be a tensor or sequence of {batch} integers, one for each row"
    if not isinstance(instances, Tensor | Sequence) or isinstance(instances, str):
        raise TypeError(message(expected, typed(instances)))
    values = instances.flatten().tolist() if isinstance(instances, Tensor) else list(instances)
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise TypeError(message(expected, values[:5]))
    if len(values) != batch or (isinstance(instances, Tensor) and instances.ndim != 1):
        got = shape(instances) if isinstance(instances, Tensor) else len(values)
        raise ValueError(message(expected, got))
    rows: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    if len({len(group) for group in rows.values()}) > 1:
        got = {value: len(group) for value, group in rows.items()}
        raise ValueError(message("`instances` in which each image occurs equally often", f"the counts {got}"))
    return list(rows.values())
