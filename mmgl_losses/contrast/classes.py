"""The contrast of points with one another as one operation in plain torch: by classes where there are few of them.

How many ids there are is only known when it runs, so the choice between strips of few classes and tiles of sorted keys
is made inside, out of the compiler's sight.
"""

import torch
from torch import Tensor

from mmgl_losses.contrast import operation
from mmgl_losses.contrast.pairs import layout
from mmgl_losses.contrast.tiled import strips
from mmgl_losses.contrast.tiled.shift import constant_shift, factors


@torch.library.custom_op("mmgl_losses::class_contrast", mutates_args=())
def _forward(
    anchors: Tensor, ids: Tensor, anchor_mask: Tensor | None, key_mask: Tensor | None, limit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(anchors.device.type, enabled=False):
        arranged, shift = _points(anchors, ids, anchor_mask, key_mask, limit)
        if arranged is None:
            order = layout(ids, key_mask=key_mask, limit=limit)
            return operation.terms(anchors, None, anchor_mask, order, "tiled", anchors.dtype)
        results = strips.forward(arranged, shift)
        return operation.finished([arranged.back(x, ids.shape[1]) for x in results], anchor_mask)


@_forward.register_fake
def _(anchors, ids, *_):
    counts = (ids.new_empty(ids.shape, dtype=torch.int64) for _ in range(2))
    return *(anchors.new_empty(ids.shape) for _ in range(3)), *counts


@torch.library.custom_op("mmgl_losses::class_contrast_backward", mutates_args=())
def _backward(
    anchors: Tensor, ids: Tensor, anchor_mask: Tensor | None, key_mask: Tensor | None, limit: Tensor | None,
    positives: Tensor, negatives: Tensor, n_positives: Tensor, n_negatives: Tensor,
    grad_positives: Tensor | None, grad_negatives: Tensor | None, grad_total: Tensor | None,
) -> Tensor:  # fmt: skip
    grads = grad_positives, grad_negatives, grad_total
    with torch.autocast(anchors.device.type, enabled=False):
        above = operation.upstream((positives, negatives), (n_positives, n_negatives), grads)
        arranged, shift = _points(anchors, ids, anchor_mask, key_mask, limit)
        if arranged is None:
            order = layout(ids, key_mask=key_mask, limit=limit)
            grad, _ = operation.gradients(anchors, None, order, "tiled", anchors.dtype, above, (True, False))
            assert grad is not None
            return grad
        if not arranged.own.numel():
            return torch.zeros_like(anchors)
        if arranged.order is not None:
            above = above.at(arranged.order[:, : arranged.own.shape[2]])
        positive, negative, size = factors(above.grads, above.logsumexps, shift)
        total = None if above.total is None else above.total / size
        grad = strips.backward(arranged, shift, positive, negative, total)
        return arranged.back(grad.mul_(size), ids.shape[1])


@_backward.register_fake
def _(anchors, *_):
    return torch.empty_like(anchors)


def _points(
    anchors: Tensor, ids: Tensor, anchor_mask: Tensor | None, key_mask: Tensor | None, limit: Tensor | None
) -> tuple[strips.Points | None, float]:
    """The points and the shift of their exponentials; None where ids are too many or there is no such shift."""
    shift = constant_shift(limit, ids.shape[1], anchors.dtype)
    numbers, count = strips.numbered(ids) if shift is not None else (ids, 0)
    if shift is None or not 0 < count <= strips.CLASSES:
        return None, 0.0
    return strips.points(anchors, numbers, count, anchor_mask, key_mask), shift


def _setup_context(ctx, inputs, output) -> None:
    positives, negatives, _, n_positives, n_negatives = output
    ctx.mark_non_differentiable(n_positives, n_negatives)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, positives, negatives, n_positives, n_negatives)


def _autograd(ctx, grad_positives, grad_negatives, grad_total, *_):
    return _backward(*ctx.saved_tensors, grad_positives, grad_negatives, grad_total), None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def contrast(
    anchors: Tensor,
    ids: Tensor,
    *,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp over positives and negatives, sum of positive logits, numbers of both; each (G, N).

    Products of anchors (G, N, D) with one another are logits, masked rows zeros, and equal ids (G, N) positives.
    """
    return _forward(anchors, ids, anchor_mask, key_mask, limit)
