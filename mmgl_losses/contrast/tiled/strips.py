"""The primitive for points of few classes that are compared with one another: nothing is sorted, no mask is formed.

With one-hot classes A (G, C, N) of the anchors and K (G, C, N) of the keys, K E holds the sums of E_ij = exp(s_ij)
over each class: the anchor's own for p, the others for q, so no negative is found by subtraction. With the upstream
gradients g⁺, g⁻ of log p and log q and o of the sum of positive logits, and M_ci = g⁺_i / p_i where c is the anchor's
own class and g⁻_i / q_i elsewhere,

    W + Wᵀ = E ∘ (Mᵀ K + Kᵀ M) + (oA)ᵀ K + Kᵀ (oA),   d anchors = (W + Wᵀ) anchors.

The last two terms are part of W, not a product of their own: where forces cancel, they cancel pair by pair.

E is symmetric, so each strip of rows is formed from the diagonal on, in blocks of some columns: that meets every pair
once. Anchors come first, then the points that are only keys, which need no pairs among themselves. Points that are
neither are left out.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmgl_losses.contrast.problem import Problem, Results, Upstream
from mmgl_losses.contrast.ranges import flat, rows
from mmgl_losses.contrast.tiled.shift import LOG2_E, constant_shift, factors

CLASSES = 32  # products with one-hot classes cost less than those with the features
ELEMENTS, ROWS = 1 << 20, 512  # most of a block: 4 MiB in float32; smaller blocks are more operations
ELEMENTS_GPU, ROWS_GPU = 1 << 24, 2048  # larger, as launches are slow there; not measured on a GPU
STRIPS = 3  # least of a group: with a single strip, half of the pairs would be formed twice


class Block(NamedTuple):
    """E of rows [top, end) with points [first, last) of some groups; 0 where a row meets itself."""

    groups: slice
    top: int
    end: int
    first: int
    last: int
    values: Tensor  # (g, end - top, last - first)

    @property
    def beyond(self) -> int:
        """The first point that is not a row of this strip: from here on the block also counts as its mirror image."""
        return max(self.first, self.end)


class Points(NamedTuple):
    """The points that take part, anchors first, and the shift of their exponentials."""

    features: Tensor  # (G, U, D): their products are logits in units of log 2
    keys: Tensor  # (G, C, U): one-hot classes; zeros for what is no key
    own: Tensor  # (G, C, R): one-hot classes of the first R points, which hold all anchors
    order: Tensor | None  # (G, U): their places among the points given; None: as given
    shift: float

    def back(self, values: Tensor, n: int) -> Tensor:
        """Values (G, R) or rows (G, U, D) at their places among the `n` points given, zeros at the others."""
        if self.order is None:
            return values
        order = self.order[:, : values.shape[1]]
        if values.ndim == 2:
            return values.new_zeros(len(values), n).scatter_(1, order, values)
        out = values.new_zeros(len(values) * n, values.shape[2])
        return out.index_copy_(0, flat(order, n), values.flatten(0, 1)).view(len(values), n, -1)


def arrange(problem: Problem) -> Points | None:
    """The points of a problem; None where it is not one of few ids, or no constant shift serves all exponentials."""
    if not problem.own or problem.tolerance is not None or problem.key_log_weights is not None:
        return None
    shift = constant_shift(problem.limit, problem.ids.shape[1], problem.anchors.dtype)
    if shift is None:
        return None
    classes, count = _numbered(problem.ids)
    if not 0 < count <= CLASSES:
        return None
    features = problem.anchors * (LOG2_E * problem.scale) ** 0.5
    order, first = None, classes.shape[1]
    if problem.anchor_mask is not None or problem.key_mask is not None:
        order, first = _order(classes, problem.anchor_mask, problem.key_mask)
        features, classes = rows(features, order), classes.gather(1, order)
    number = torch.arange(count, device=classes.device)[:, None]
    keys = own = (classes[:, None] == number).to(features.dtype)
    if problem.key_mask is not None and order is not None:
        keys = own * problem.key_mask.gather(1, order)[:, None]
    return Points(features, keys, own[:, :, :first], order, shift)


def _numbered(ids: Tensor) -> tuple[Tensor, int]:
    """Ids as classes from 0 on, and how many classes there are at most."""
    if not ids.is_floating_point():
        least, most = ids.aminmax()
        count = int(most - least) + 1
        if 0 < count <= CLASSES:
            return ids - least, count
    values, classes = ids.unique(return_inverse=True)
    return classes, len(values)


def _order(classes: Tensor, anchor_mask: Tensor | None, key_mask: Tensor | None) -> tuple[Tensor, int]:
    """The order of the points, anchors first and keys next, and how many of the first hold all anchors."""
    kind = torch.zeros_like(classes, dtype=torch.uint8)
    if anchor_mask is not None:
        kind += ~anchor_mask
        if key_mask is not None:
            kind += ~(anchor_mask | key_mask)
    first, part = (int((kind <= last).sum(1).max()) for last in (0, 1))
    return kind.argsort(dim=1, stable=True)[:, :part], first


def forward(points: Points, problem: Problem) -> Results:
    """The results of a problem whose points are arranged."""
    features, keys, own, _, shift = points
    n = own.shape[2]
    sums = torch.zeros_like(own)
    for block in _blocks(points):
        some, top, end, first, last, values = block
        sums[some, :, top:end] += torch.bmm(keys[some, :, first:last], values.mT)
        if block.beyond < min(last, n):
            mirrored = values[:, :, block.beyond - first : n - first]
            sums[some, :, block.beyond : last] += torch.bmm(keys[some, :, top:end], mirrored)
    positives, negatives = ((sums * mask).sum(1).log_().add_(shift) for mask in (own, 1 - own))
    key, number = (own * keys[:, :, :n]).sum(1), keys.sum(2)
    n_positives = torch.bmm(number[:, None], own).squeeze(1)
    n_negatives = number.sum(1, keepdim=True) - n_positives
    others = torch.bmm(own.mT, torch.bmm(keys, features)) - features[:, :n] * key[..., None]
    total = (others * features[:, :n]).sum(2).div_(LOG2_E)
    results = positives, negatives, total, (n_positives - key).long(), n_negatives.long()
    return Results(*(points.back(x, problem.ids.shape[1]) for x in results)).masked(problem.anchor_mask)


def backward(points: Points, problem: Problem, upstream: Upstream) -> Tensor:
    """The gradient of the anchors, (G, N, D)."""
    features, keys, own, order, shift = points
    if not own.numel():
        return torch.zeros_like(problem.anchors)
    if order is not None:
        upstream = upstream.at(order[:, : own.shape[2]])
    positive, negative, size = factors(upstream, shift)
    total = None if upstream.positive_sum is None else upstream.positive_sum / size
    left, right = _both(torch.where(own > 0, positive[:, None], negative[:, None]), keys)
    sums = None if total is None else _both(own * total[:, None], keys)
    grad = torch.zeros_like(features)
    buffer = features.new_empty(0)
    for block in _blocks(points):
        some, top, end, first, last, values = block
        if buffer.numel() < values.numel():
            buffer = torch.empty_like(values).view(-1)
        weights = buffer[: values.numel()].view_as(values)
        torch.bmm(left[some, :, top:end].mT, right[some, :, first:last], out=weights)
        weights *= values
        if sums is not None:
            weights.baddbmm_(sums[0][some, :, top:end].mT, sums[1][some, :, first:last])
            _clear(weights, top - first)
        grad[some, top:end].baddbmm_(weights, features[some, first:last])
        if block.beyond < last:
            mirrored = weights[:, :, block.beyond - first :]
            grad[some, block.beyond : last].baddbmm_(mirrored.mT, features[some, top:end])
    grad.mul_(size * (problem.scale / LOG2_E) ** 0.5)
    return points.back(grad, problem.ids.shape[1])


def _both(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors whose product is `values`ᵀ K + Kᵀ `values`; values are 0 for points that are only keys."""
    values = pad(values, (0, keys.shape[2] - values.shape[2]))
    return torch.cat([values, keys], 1), torch.cat([keys, values], 1)


def _blocks(points: Points) -> Iterator[Block]:
    """Blocks that hold every pair of an anchor with a point once."""
    features, (groups, _, n) = points.features, points.own.shape
    size = features.shape[1]
    if not groups * n:
        return
    elements, most = (ELEMENTS, ROWS) if features.device.type == "cpu" else (ELEMENTS_GPU, ROWS_GPU)
    height = min(most, -(-n // STRIPS))
    width = min(size, max(1, elements // height))
    together = min(groups, max(1, elements // (height * width)))
    buffer = features.new_empty(together * height * width)  # that all blocks reuse
    for group in range(0, groups, together):
        some = slice(group, min(group + together, groups))
        for top in range(0, n, height):
            end = min(top + height, n)
            for first in range(top, size, width):
                left, right = features[some, top:end], features[some, first : first + width]
                shape = len(left), left.shape[1], right.shape[1]
                values = torch.bmm(left, right.mT, out=buffer[: math.prod(shape)].view(shape))
                if points.shift:
                    values -= points.shift * LOG2_E
                _clear(values.exp2_(), top - first)
                yield Block(some, top, end, first, first + shape[2], values)


def _clear(values: Tensor, offset: int) -> None:
    """Write 0 where a row meets itself, if this block holds such places."""
    if -offset < values.shape[1]:
        values.diagonal(offset, 1, 2).zero_()
