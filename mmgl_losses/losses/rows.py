"""The rows of the global loss: embeddings of several levels, which image each is of, and the keys beside them."""

import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgl_losses import checks, contrast, distributed
from mmgl_losses.checks import message
from mmgl_losses.losses.levels import as_tensor


def check_rows(levels: Mapping[str, Tensor]) -> list[Tensor]:
    """Embeddings (A·B, D) of each level, with as many rows at each."""
    found = []
    for name, level in levels.items():
        checked = checks.floating(name, level)
        if checked.ndim != 2:
            cure = "Pool the spatial axes first, as `GlobalHead` does." if checked.ndim > 2 else ""
            raise ValueError(message(f"`{name}` of shape (A*B, D)", checks.shape(checked), cure))
        if not checked.shape[1]:
            raise ValueError(message(f"`{name}` of at least one number each", f"shape {checks.shape(checked)}"))
        checks.same_device(name, checked, next(iter(levels)), found[0] if found else checked)
        found.append(checked)
    rows = [len(level) for level in found]
    if any(number != rows[0] for number in rows):
        raise ValueError(message("as many rows at each level of `embeddings`", rows))
    return found


def stacked(levels: Sequence[Tensor]) -> Tensor:
    """Levels (rows, D) as one (L, rows, D): zeros behind shorter vectors change no product."""
    if len(levels) == 1:
        return levels[0].unsqueeze(0)
    width = max(level.shape[1] for level in levels)
    return torch.stack([F.pad(x, (0, width - x.shape[1])) if x.shape[1] != width else x for x in levels])


def ids_of(instances: object, keys: object, x: Tensor, *, tolerance: float | None, everywhere: bool) -> Tensor:
    """Which image each row of x (L, A·B, D) is of, (L, A·B): as given, or two halves; unlike in any other process."""
    rows = x.shape[1]
    if instances is not None:
        given = as_tensor("instances", instances, x)
        checks.of_shape("instances", given, (rows,))
        checks.same_device("instances", given, "embeddings", x)
        contrast.check_ids("instances", given, tolerance)
        return given.expand(len(x), -1)
    if keys is not None:
        raise ValueError(message("`instances` beside `keys`", "None", "Say which rows and which keys are one image."))
    if rows % 2:
        cure = "Stack two augmentations, `torch.cat([first, second])`, or give `instances`."
        raise ValueError(message("an even number of rows in `embeddings`", rows, cure))
    if tolerance is not None:
        cure = "Say where each row is, as by the number of its slice: neighbours in the batch are not neighbours."
        raise ValueError(message("`instances` beside `tolerance`", "None", cure))
    half = rows // 2
    numbers = distributed.own_numbers(half, x.device) if everywhere else torch.arange(half, device=x.device)
    return torch.cat([numbers, numbers]).expand(len(x), -1)


def keys_of(
    keys: Mapping[str, Tensor] | None, key_instances: object, x: Sequence[Tensor], tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Keys (L, K, D) for embeddings of L levels, and their instances (L, K)."""
    if keys is None or key_instances is None:
        given = "keys" if keys is not None else "key_instances"
        raise ValueError(message("`keys` and `key_instances` together", f"`{given}` alone"))
    found = []
    for (name, level), embeddings in zip(keys.items(), x, strict=True):
        checked = checks.floating(name, level)
        if checked.ndim != 2 or checked.shape[1] != embeddings.shape[1]:
            raise ValueError(message(f"`{name}` of shape (K, {embeddings.shape[1]})", checks.shape(checked)))
        checks.same_device(name, checked, "embeddings", embeddings)
        found.append(checked)
    ids = as_tensor("key_instances", key_instances, x[0])
    for level in found:
        checks.of_shape("key_instances", ids, level.shape[:1])
    checks.same_device("key_instances", ids, "embeddings", x[0])
    contrast.check_ids("key_instances", ids, tolerance)
    _warn_of_itself(found[0], x[0])
    return stacked(found), ids.expand(len(found), -1)


def _warn_of_itself(keys: Tensor, embeddings: Tensor) -> None:
    """Keys that hold the embeddings themselves: each would be its own positive, as near as can be."""
    if not (checks.readable(keys) and checks.readable(embeddings)):
        return
    candidates = torch.isin(embeddings[:, 0], keys[:, 0]).nonzero().squeeze(1)[:8]
    if any((keys == row).all(1).any() for row in embeddings[candidates]):
        warnings.warn(
            "`keys` hold rows of `embeddings` themselves, and each is its own positive. Add a batch to the queue after "
            "its loss, or use `pair_terms` with `self_index`.",
            stacklevel=2,
        )
