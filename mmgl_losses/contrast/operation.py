"""The contrast as one operation to autograd and to the compiler: sort, compute, sort back, in any implementation."""

from typing import Any

import torch
from torch import Tensor

from mmgl_losses.contrast import fused, sums, tiled
from mmgl_losses.contrast.pairs import Layout, unsort

IMPLEMENTATIONS: dict[str, Any] = {"tiled": tiled, "fused": fused}


@torch.library.custom_op("mmgl_losses::contrast", mutates_args=())
def _forward(
    anchors: Tensor, keys: Tensor | None, anchor_mask: Tensor | None,
    order: Tensor, key_order: Tensor | None, first: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor,
    itself: Tensor | None, log_weights: Tensor | None, limit: Tensor | None, symmetric: bool, ranges: bool,
    impl: str, precision: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    layout = Layout(order, key_order, first, lo, hi, count, itself, log_weights, limit, symmetric, ranges)
    with torch.autocast(anchors.device.type, enabled=False):
        pairs = layout.pairs(anchors, keys)
        positives, negatives = IMPLEMENTATIONS[impl].logsumexp(pairs, precision)
        total = sums.positive_sum(pairs, layout)
        results = [unsort(x, order) for x in (positives, negatives, total, *pairs.counts())]
        if anchor_mask is not None:
            results = [x.masked_fill_(~anchor_mask, 0) for x in results]
        # Counts, not -inf, say what is empty.
        empty = results[3] == 0
        results[0].masked_fill_(empty, -torch.inf)
        results[1].masked_fill_(results[4] == 0, -torch.inf)
        results[2].masked_fill_(empty, 0.0)
    positives, negatives, total, n_positives, n_negatives = results
    return positives, negatives, total, n_positives, n_negatives


@_forward.register_fake
def _(anchors, keys, anchor_mask, order, *_):
    return *(anchors.new_empty(order.shape) for _ in range(3)), *(torch.empty_like(order) for _ in range(2))


@torch.library.custom_op("mmgl_losses::contrast_backward", mutates_args=())
def _backward(
    anchors: Tensor, keys: Tensor | None,
    order: Tensor, key_order: Tensor | None, first: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor,
    itself: Tensor | None, log_weights: Tensor | None, limit: Tensor | None, symmetric: bool, ranges: bool,
    impl: str, precision: torch.dtype,
    positives: Tensor, negatives: Tensor, n_positives: Tensor, n_negatives: Tensor,
    grad_positives: Tensor | None, grad_negatives: Tensor | None, grad_total: Tensor | None,
    needs_anchors: bool, needs_keys: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    layout = Layout(order, key_order, first, lo, hi, count, itself, log_weights, limit, symmetric, ranges)
    needed = needs_anchors, needs_keys
    with torch.autocast(anchors.device.type, enabled=False):
        pairs = layout.pairs(anchors, keys)
        results: list[Tensor] = []
        upstream: list[Tensor] = []
        for lse, number, grad in (
            (positives, n_positives, grad_positives),
            (negatives, n_negatives, grad_negatives),
        ):
            empty = number == 0
            results.append(lse.masked_fill(empty, torch.inf).gather(1, order))
            # `masked_fill` keeps any gradient, even NaN, away from empty rows.
            upstream.append((torch.zeros_like(lse) if grad is None else grad.masked_fill(empty, 0.0)).gather(1, order))
        grads = IMPLEMENTATIONS[impl].gradients(pairs, precision, results, upstream, needed)
        if grad_total is not None:
            more = sums.backward(pairs, layout, grad_total.masked_fill(n_positives == 0, 0.0).gather(1, order), needed)
            grads = [x if y is None else y if x is None else x.add_(y) for x, y in zip(grads, more, strict=True)]
    nothing = anchors.new_empty(0)
    first_grad, second_grad = grads
    return (
        nothing if first_grad is None else unsort(first_grad, order),
        nothing.clone() if second_grad is None or key_order is None else unsort(second_grad, key_order),
    )


@_backward.register_fake
def _(anchors, keys, *rest):
    *_, needs_anchors, needs_keys = rest
    return (
        torch.empty_like(anchors) if needs_anchors else anchors.new_empty(0),
        anchors.new_empty(0) if keys is None or not needs_keys else torch.empty_like(keys),
    )


def _setup_context(ctx, inputs, output) -> None:
    anchors, keys, _, *arranged, ctx.symmetric, ctx.ranges, ctx.impl, ctx.precision = inputs
    positives, negatives, _, n_positives, n_negatives = output
    ctx.mark_non_differentiable(n_positives, n_negatives)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(anchors, keys, *arranged, positives, negatives, n_positives, n_negatives)


def _autograd(ctx, grad_positives, grad_negatives, grad_total, *_):
    *tensors, positives, negatives, n_positives, n_negatives = ctx.saved_tensors
    needed = ctx.needs_input_grad[0], tensors[1] is not None and ctx.needs_input_grad[1]
    grads = _backward(
        *tensors, ctx.symmetric, ctx.ranges, ctx.impl, ctx.precision,
        positives, negatives, n_positives, n_negatives, grad_positives, grad_negatives, grad_total, *needed,
    )  # fmt: skip
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *[None] * 14


_forward.register_autograd(_autograd, setup_context=_setup_context)


def contrast(
    anchors: Tensor,
    keys: Tensor | None,
    anchor_mask: Tensor | None,
    layout: Layout,
    *,
    impl: str,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp over positives and negatives, sum of positive logits, numbers of both; each (G, N), as given.

    Products of anchors (G, N, D) and keys (G, M, D), both in the caller's order, are logits; masked rows are zeros.
    """
    return _forward(anchors, keys, anchor_mask, *layout, impl, precision)
