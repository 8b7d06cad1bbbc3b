"""Checks of the arguments of the primitive."""

import torch
from torch import Tensor

from mmgl_losses.checks.tensors import floating, of_shape, readable, same_device, shape, tensor
from mmgl_losses.checks.values import message, number, one_of

IMPLEMENTATIONS = ("auto", "reference", "tiled", "fused")


def implementation(value: object) -> None:
    """`impl` is a known implementation of the primitive."""
    one_of("impl", value, IMPLEMENTATIONS)


def temperature(value: object) -> None:
    """A positive, finite float, or a 0-d floating-point tensor (which may be trained)."""
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            got = f"a tensor of shape {shape(value)} and type {value.dtype}"
            raise ValueError(message("`temperature` to be a float or a 0-d floating-point tensor", got))
        if not readable(value):
            return  # its value stays on its device; reading it would wait for the device
        value = value.item()
    number("temperature", value, above=0.0)


def fixed_temperature(value: object) -> None:
    """A positive, finite float: a loss module has no parameters, so it would never train a tensor."""
    if isinstance(value, Tensor):
        cure = "A loss module has no parameters; to train a temperature, give it to `functional`."
        raise TypeError(message("`temperature` to be a finite number above 0", "a tensor", cure))
    number("temperature", value, above=0.0)


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
    if not checked.shape[-1]:
        raise ValueError(message("`anchors` of at least one number each", f"shape {shape(checked)}"))
    groups, n = checked.shape[:-2], checked.shape[-2]
    m = n
    if keys is not None:
        others = floating("keys", keys)
        wanted = (*groups, "M", checked.shape[-1])
        if others.ndim != checked.ndim or others.shape[:-2] != groups or others.shape[-1] != checked.shape[-1]:
            expected = f"`keys` of shape ({', '.join(map(str, wanted))}) for `anchors` of shape {shape(checked)}"
            raise ValueError(message(expected, shape(others)))
        same_device("keys", others, "anchors", checked)
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
    _contrast_values(ids, key_ids, self_index, anchor_mask, key_mask, key_log_weights, keys=m)
    if tolerance is not None:
        number("tolerance", tolerance, least=0.0)
    if bound is not None:
        number("bound", bound, least=0.0)


def _contrast_values(
    ids: object,
    key_ids: object,
    self_index: object,
    anchor_mask: object,
    key_mask: object,
    key_log_weights: object,
    *,
    keys: int,
) -> None:
    """Values that would give a wrong number quietly; read on the CPU only, where that costs no wait."""
    masks: list[object] = [anchor_mask, key_mask]
    if key_ids is None:  # a row is an anchor and a key
        both = isinstance(anchor_mask, Tensor) and isinstance(key_mask, Tensor)
        masks[0] = anchor_mask.logical_or(key_mask) if both else None  # pyright: ignore
    for name, value, mask in (("ids", ids, masks[0]), ("key_ids", key_ids, masks[1])):
        if isinstance(value, Tensor) and value.is_floating_point() and readable(value):
            lost = value.isnan() & mask if isinstance(mask, Tensor) else value.isnan()
            if lost.any():
                cure = "NaN is no id: leave such rows out with a mask."
                raise ValueError(message(f"`{name}` that are numbers", f"{int(lost.sum())} NaN", cure))
    if isinstance(self_index, Tensor) and readable(self_index):
        least, most = int(self_index.min()), int(self_index.max())
        if least < -1 or most >= keys:
            cure = "-1 stands for anchors that are no key."
            raise ValueError(message(f"`self_index` in -1 ... {keys - 1}", least if least < -1 else most, cure))
    if isinstance(key_log_weights, Tensor) and readable(key_log_weights):
        used = key_log_weights[key_mask] if isinstance(key_mask, Tensor) else key_log_weights
        if not used.isfinite().all():
            cure = "Leave keys of weight 0 out with `key_mask`."
            raise ValueError(message("finite `key_log_weights`", used[~used.isfinite()][0].item(), cure))


def fused(anchors: Tensor, precision: torch.dtype, installed: bool, widest: int) -> None:
    """A problem for the fused implementation, and Triton to run it."""
    cure = "Use impl='tiled', or impl='auto'."
    if not installed:
        cure = "`pip install triton` (it comes with torch for CUDA), or use impl='auto'."
        raise ValueError(message("Triton to be installed for impl='fused'", "none", cure))
    if torch.float64 in (anchors.dtype, precision):
        raise ValueError(message("features in float32 or half precision for impl='fused'", torch.float64, cure))
    if anchors.shape[-1] > widest:
        expected = f"features of at most {widest} numbers for impl='fused'"
        raise ValueError(message(expected, anchors.shape[-1], cure))


def kernels_run(anchors: Tensor, interpreted: bool) -> None:
    """Tensors that are not on a GPU are for Triton's interpreter alone."""
    if not interpreted:
        expected = "tensors on a CUDA device for impl='fused'"
        raise ValueError(message(expected, f"them on {anchors.device}", "Use impl='tiled', or impl='auto'."))


def precision(value: object) -> None:
    """A floating-point type of torch, or None."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(message("`precision` to be None or a floating-point type, as torch.bfloat16", repr(value)))
