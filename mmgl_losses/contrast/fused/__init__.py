"""The primitive in Triton kernels: one operation to autograd and to the compiler.

Triton is imported with the first call, never before: only `forward`, `backward` and `launch` know it.
"""

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.contrast.pairs import Pairs

INSTALLED = find_spec("triton") is not None
WIDEST = 256  # features


def _launch(anchors: Tensor, dtype: torch.dtype) -> ModuleType:
    """The module that launches kernels, for a problem that they serve; one clear error for any other."""
    checks.fused(anchors, dtype, INSTALLED, WIDEST)
    from mmgl_losses.contrast.fused import launch

    if not anchors.is_cuda:
        from triton import knobs

        checks.kernels_run(anchors, knobs.runtime.interpret)
    return launch


@torch.library.custom_op("mmgl_losses::fused_logsumexp", mutates_args=())
def _forward(
    anchors: Tensor, keys: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor, itself: Tensor | None,
    log_weights: Tensor | None, limit: Tensor | None, symmetric: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = Pairs(anchors, keys, lo, hi, count, itself, log_weights, limit, symmetric)
    launch = _launch(anchors, dtype)
    with torch.cuda.device_of(anchors), torch.autocast(anchors.device.type, enabled=False):
        return launch.forward(pairs, dtype)


@_forward.register_fake
def _(anchors, keys, lo, *_):
    return anchors.new_empty(lo.shape), anchors.new_empty(lo.shape)


@torch.library.custom_op("mmgl_losses::fused_logsumexp_backward", mutates_args=())
def _backward(
    anchors: Tensor, keys: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor, itself: Tensor | None,
    log_weights: Tensor | None, limit: Tensor | None, symmetric: bool, dtype: torch.dtype,
    positives: Tensor, negatives: Tensor, grad_positives: Tensor, grad_negatives: Tensor,
    needs_anchors: bool, needs_keys: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = Pairs(anchors, keys, lo, hi, count, itself, log_weights, limit, symmetric)
    launch = _launch(anchors, dtype)
    with torch.cuda.device_of(anchors), torch.autocast(anchors.device.type, enabled=False):
        results, upstream = (positives, negatives), (grad_positives, grad_negatives)
        first, second = launch.backward(pairs, dtype, results, upstream, (needs_anchors, needs_keys))
    return anchors.new_empty(0) if first is None else first, anchors.new_empty(0) if second is None else second


@_backward.register_fake
def _(anchors, keys, *rest):
    *_, needs_anchors, needs_keys = rest
    return (
        anchors.new_empty(anchors.shape if needs_anchors else 0),
        anchors.new_empty(0 if keys is None or not needs_keys else keys.shape),
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.symmetric, ctx.dtype = inputs
    ctx.save_for_backward(*tensors, *output)


def _autograd(ctx, grad_positives: Tensor, grad_negatives: Tensor):
    *tensors, positives, negatives = ctx.saved_tensors
    needed = ctx.needs_input_grad[0], tensors[1] is not None and ctx.needs_input_grad[1]
    results, upstream = (positives, negatives), (grad_positives, grad_negatives)
    grads = _backward(*tensors, ctx.symmetric, ctx.dtype, *results, *upstream, *needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *[None] * 8


_forward.register_autograd(_autograd, setup_context=_setup_context)


def pair_logsumexp(pairs: Pairs, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); features are rounded to `dtype` to be multiplied."""
    values = (x.contiguous() if isinstance(x, Tensor) else x for x in pairs)
    return _forward(*values, pairs.anchors.dtype if dtype is None else dtype)
