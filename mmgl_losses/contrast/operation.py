"""The contrast as one operation to autograd and to the compiler: sort, compute, sort back, in any implementation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast import fused, sums, tiled
from mmgl_losses.contrast.pairs import Layout, unsort

IMPLEMENTATIONS: dict[str, Any] = {"tiled": tiled, "fused": fused}
Terms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("mmgl_losses::contrast", mutates_args=())
def _forward(
    anchors: Tensor, keys: Tensor | None, anchor_mask: Tensor | None,
    order: Tensor, key_order: Tensor | None, first: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor,
    itself: Tensor | None, log_weights: Tensor | None, limit: Tensor | None, symmetric: bool, ranges: bool,
    impl: str, precision: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    layout = Layout(order, key_order, first, lo, hi, count, itself, log_weights, limit, symmetric, ranges)
    with torch.autocast(anchors.device.type, enabled=False):
        return terms(anchors, keys, anchor_mask, layout, impl, precision)


def terms(
    anchors: Tensor, keys: Tensor | None, anchor_mask: Tensor | None, layout: Layout, impl: str, precision: torch.dtype
) -> Terms:
    """What `contrast` returns, without autograd."""
    pairs = layout.pairs(anchors, keys)
    positives, negatives = IMPLEMENTATIONS[impl].logsumexp(pairs, precision)
    total = sums.positive_sum(pairs, layout)
    return finished([unsort(x, layout.order) for x in (positives, negatives, total, *pairs.counts())], anchor_mask)


def finished(results: Sequence[Tensor], mask: Tensor | None) -> Terms:
    """Results in the caller's order, with nothing for anchors that are masked or have no such pairs."""
    if mask is not None:
        results = [x.masked_fill_(~mask, 0) for x in results]
    positives, negatives, total, n_positives, n_negatives = results
    empty = n_positives == 0  # counts, not -inf, say what is empty
    positives.masked_fill_(empty, -torch.inf)
    negatives.masked_fill_(n_negatives == 0, -torch.inf)
    return positives, negatives, total.masked_fill_(empty, 0.0), n_positives, n_negatives


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
    numbers, grads = (n_positives, n_negatives), (grad_positives, grad_negatives, grad_total)
    with torch.autocast(anchors.device.type, enabled=False):
        first_grad, second_grad = gradients(
            anchors, keys, layout, impl, precision, upstream((positives, negatives), numbers, grads),
            (needs_anchors, needs_keys),
        )  # fmt: skip
    nothing = anchors.new_empty(0)
    return nothing if first_grad is None else first_grad, nothing.clone() if second_grad is None else second_grad


class Upstream(NamedTuple):
    """What comes from above, with nothing from anchors that are masked or have no such pairs, each (G, N)."""

    logsumexps: Sequence[Tensor]  #: of positives and negatives, inf where empty
    grads: Sequence[Tensor]  #: of these
    total: Tensor | None  #: of the sum of positive logits

    def at(self, order: Tensor) -> "Upstream":
        """The same, in the order (G, R) of some anchors."""
        logsumexps, grads = ([x.gather(1, order) for x in values] for values in (self.logsumexps, self.grads))
        return Upstream(logsumexps, grads, None if self.total is None else self.total.gather(1, order))


def upstream(logsumexps: Sequence[Tensor], numbers: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Upstream:
    """Results, numbers of positives and negatives, and gradients of results and sum, as `gradients` takes them."""
    empty = [number == 0 for number in numbers]
    *some, total = grads
    return Upstream(
        [lse.masked_fill(mask, torch.inf) for lse, mask in zip(logsumexps, empty, strict=True)],
        # `masked_fill` keeps any gradient, even NaN, away from empty rows.
        [
            torch.zeros_like(lse) if grad is None else grad.masked_fill(mask, 0.0)
            for lse, grad, mask in zip(logsumexps, some, empty, strict=True)
        ],
        None if total is None else total.masked_fill(empty[0], 0.0),
    )


def gradients(
    anchors: Tensor,
    keys: Tensor | None,
    layout: Layout,
    impl: str,
    precision: torch.dtype,
    above: Upstream,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of anchors and keys, in the caller's order, where they are `needed`."""
    pairs, above = layout.pairs(anchors, keys), above.at(layout.order)
    first, second = IMPLEMENTATIONS[impl].gradients(pairs, layout, precision, *above, needed)
    return (
        None if first is None else unsort(first, layout.order),
        None if second is None or layout.key_order is None else unsort(second, layout.key_order),
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
