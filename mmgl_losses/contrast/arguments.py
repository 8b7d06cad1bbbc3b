"""From the arguments of the primitive to a `Problem`: checked, flattened to groups, widened and scaled, each once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.checks import message
from mmgl_losses.contrast import engines
from mmgl_losses.contrast.problem import Problem
from mmgl_losses.contrast.unit import normalise, widened


def problem(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    impl: str,
    precision: torch.dtype | None,
    **options: Any,
) -> tuple[Problem, torch.Size]:
    """The problem that the arguments of `pair_logsumexp` pose, and the shape (*groups, N) of its results."""
    engines.check_impl(impl)
    _check_precision(precision)
    temperature = check_temperature(temperature)
    _check(anchors, ids, options)
    for name in ("tolerance", "bound"):
        if options[name] is not None:
            options[name] = checks.number(name, options[name], least=0.0)
    dims, shape = anchors.ndim - 2, ids.shape
    # Autocast would round a product of features with the temperature to half precision.
    with torch.autocast(anchors.device.type, enabled=False):
        flat = {name: _flatten(value, dims) for name, value in options.items()}
        keys, anchor_mask, key_mask = flat.pop("keys"), flat["anchor_mask"], flat["key_mask"]
        wide = widened(_flatten(anchors, dims))
        if keys is None:
            used = None if key_mask is None or anchor_mask is None else key_mask | anchor_mask
            wide = select(wide, used)
        else:
            wide, keys = select(wide, anchor_mask), select(keys.to(wide.dtype), key_mask)
        if flat["key_log_weights"] is not None:
            flat["key_log_weights"] = flat["key_log_weights"].detach().to(wide.dtype)
        rounded = precision or anchors.dtype
        flat_ids = _flatten(ids, dims)
        return pose(wide, flat_ids, keys=keys, temperature=temperature, precision=rounded, **flat), shape


def pose(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    precision: torch.dtype,
    bound: float | None,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    unit: bool = False,
) -> Problem:
    """The problem of tensors that are checked: anchors (G, N, D) and keys (G, M, D) wide, rows without part zero.

    With `unit` it is that of their unit vectors, and they may be of half precision.
    """
    ids, key_ids = _comparable(ids, key_ids, tolerance)
    limit, scale, wide = None, 1.0, torch.promote_types(anchors.dtype, torch.float32)
    if isinstance(temperature, Tensor) or torch.compiler.is_compiling():
        # Outside of the operation it gets its gradient, or may be a symbol that changes without compiling anew.
        root = temperature**-0.5
        if unit:
            anchors, keys, unit = normalise(anchors), None if keys is None else normalise(keys), False
        anchors, keys = anchors * root, None if keys is None else keys * root
        if bound is not None:  # a division of tensors: nothing waits for a temperature on a device
            limit = (torch.full((), bound, dtype=wide) / temperature).detach()
    else:
        scale = 1 / temperature
        if bound is not None:
            limit = torch.full((), bound / temperature, dtype=wide)
    return Problem(
        anchors, keys, ids, key_ids, self_index, anchor_mask, key_mask, key_log_weights,
        limit, scale, tolerance, unit, precision,
    )  # fmt: skip


def select(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows that take part, zeros for the others, whatever those hold: NaN times 0 would still be NaN."""
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def check_temperature(value: object) -> float | Tensor:
    """A positive, finite number, or a 0-d floating-point tensor (which may be trained)."""
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            got = f"a tensor of shape {checks.shape(value)} and type {value.dtype}"
            raise ValueError(message("`temperature` to be a float or a 0-d floating-point tensor", got))
        if checks.readable(value):
            checks.number("temperature", value.item(), above=0.0)
        return checks.bare(value)
    return checks.number("temperature", value, above=0.0)


def check_ids(name: str, value: Tensor, tolerance: float | None = None, mask: Tensor | None = None) -> None:
    """Ids are numbers; rows outside of the mask may hold anything. Values are read where that costs no wait."""
    if value.is_complex():
        raise TypeError(message(f"`{name}` to be of a real type", value.dtype))
    if tolerance is not None and value.dtype == torch.int64 and checks.readable(value):
        largest = int(value.abs().max())  # differences are taken in float64, which holds integers up to 2^53
        if not 0 <= largest <= 1 << 53:
            cure = "Number them anew, from 0 on."
            raise ValueError(message(f"`{name}` of at most 2^53 beside `tolerance`", f"one of {largest}", cure))
    if value.is_floating_point() and checks.readable(value):
        lost = value.isnan() if mask is None else value.isnan() & mask
        if lost.any():
            cure = "NaN is no id: leave such rows out with a mask."
            raise ValueError(message(f"`{name}` that are numbers", f"{int(lost.sum())} NaN", cure))


def _check_precision(value: object) -> None:
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(message("`precision` to be None or a floating-point type, as torch.bfloat16", repr(value)))


def _check(anchors: object, ids: object, options: Mapping[str, Any]) -> None:
    """Types, shapes that fit one another, one device."""
    checked = checks.floating("anchors", anchors)
    if checked.ndim < 2:
        raise ValueError(message("`anchors` of shape (*groups, N, D)", checks.shape(checked)))
    if not checked.shape[-1]:
        raise ValueError(message("`anchors` of at least one number each", f"shape {checks.shape(checked)}"))
    keys, key_ids, self_index = (options[name] for name in ("keys", "key_ids", "self_index"))
    groups, n = checked.shape[:-2], checked.shape[-2]
    m = n if keys is None else _check_keys(checked, keys)
    given = "is needed with" if keys is not None and key_ids is None else "goes with"
    if (keys is None) != (key_ids is None) or (keys is None and self_index is not None):
        name = "self_index" if self_index is not None and key_ids is None else "key_ids"
        got = "`keys` alone" if given == "is needed with" else f"`{name}` alone"
        raise ValueError(message(f"`{name}` and `keys` together, as `{name}` {given} `keys`", got))
    for name, value, length, kind in (
        ("ids", ids, n, None),
        ("key_ids", key_ids, m, None),
        ("self_index", self_index, n, torch.int64),
        ("anchor_mask", options["anchor_mask"], n, torch.bool),
        ("key_mask", options["key_mask"], m, torch.bool),
        ("key_log_weights", options["key_log_weights"], m, "floating-point"),
    ):
        if value is None and name != "ids":
            continue
        entry = checks.tensor(name, value)
        checks.of_shape(name, entry, (*groups, length))
        checks.same_device(name, entry, "anchors", checked)
        fits = entry.is_floating_point() if kind == "floating-point" else kind is None or entry.dtype == kind
        if not fits:
            raise TypeError(message(f"`{name}` to be of a {str(kind).removeprefix('torch.')} type", entry.dtype))
    weights = options["key_log_weights"]
    if isinstance(weights, Tensor) and weights.requires_grad:
        cure = "They are constants; call `.detach()`."
        raise ValueError(message("`key_log_weights` that need no gradient", "requires_grad=True", cure))
    _check_values(checks.tensor("ids", ids), options, keys=m)


def _check_keys(anchors: Tensor, keys: object) -> int:
    """How many keys there are, which fit the anchors."""
    others = checks.floating("keys", keys)
    groups, width = anchors.shape[:-2], anchors.shape[-1]
    if others.ndim != anchors.ndim or others.shape[:-2] != groups or others.shape[-1] != width:
        wanted = ", ".join(map(str, (*groups, "M", width)))
        expected = f"`keys` of shape ({wanted}) for `anchors` of shape {checks.shape(anchors)}"
        raise ValueError(message(expected, checks.shape(others)))
    checks.same_device("keys", others, "anchors", anchors)
    return others.shape[-2]


def _check_values(ids: Tensor, options: Mapping[str, Any], *, keys: int) -> None:
    """Values that would quietly give a wrong number; read on the CPU only, where that costs no wait."""
    anchor_mask, key_mask, weights = (options[name] for name in ("anchor_mask", "key_mask", "key_log_weights"))
    mask = anchor_mask
    if options["key_ids"] is None:  # a row is an anchor and a key, and takes part if it is either
        mask = None if anchor_mask is None or key_mask is None else anchor_mask | key_mask
    check_ids("ids", ids, options["tolerance"], mask)
    if options["key_ids"] is not None:
        check_ids("key_ids", options["key_ids"], options["tolerance"], key_mask)
    index = options["self_index"]
    if index is not None and checks.readable(index):
        least, most = int(index.min()), int(index.max())
        if least < -1 or most >= keys:
            cure = "-1 stands for anchors that are no key."
            raise ValueError(message(f"`self_index` in -1 ... {keys - 1}", least if least < -1 else most, cure))
    if weights is not None and checks.readable(weights):
        used = weights if key_mask is None else weights[key_mask]
        if not used.isfinite().all():
            cure = "Leave keys of weight 0 out with `key_mask`."
            raise ValueError(message("finite `key_log_weights`", used[~used.isfinite()][0].item(), cure))


def _comparable(ids: Tensor, key_ids: Tensor | None, tolerance: float | None) -> tuple[Tensor, Tensor | None]:
    """Both ids in one type that sorts: float64 with a tolerance, so that differences are exact enough."""
    wide = ids.dtype if key_ids is None else torch.promote_types(ids.dtype, key_ids.dtype)
    if tolerance is not None:
        wide = torch.float64
    elif not wide.is_floating_point:
        return ids.long(), None if key_ids is None else key_ids.long()
    wide = torch.promote_types(wide, torch.float32)
    return _sortable(ids.to(wide)), None if key_ids is None else _sortable(key_ids.to(wide))


def _sortable(ids: Tensor) -> Tensor:
    """An id that is NaN can only be one that takes no part; it must not upset the order of the others."""
    return torch.where(ids.isnan(), torch.inf, ids)


def _flatten(value: Any, dims: int) -> Any:
    """A tensor with its `dims` leading group dimensions made one; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = checks.bare(value)
    return value.unsqueeze(0) if dims == 0 else value.flatten(0, dims - 1)
