"""The sum of each anchor's positive logits, and its gradient: O(n d), as no pair is formed.

It is the anchor's product with the sum of its positives: a sum of keys over a run of one id or, where positives are
ranges of ids, a difference of running sums in float64.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmgl_losses.contrast.pairs import Layout, Pairs, flat, rows


def positive_sum(pairs: Pairs, layout: Layout) -> Tensor:
    """The sum of each anchor's logits with its positives, (G, N), sorted."""
    return (pairs.anchors * _without_own(pairs, _over_keys(pairs, layout))).sum(-1)


def backward(
    pairs: Pairs, layout: Layout, grad: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the anchors and of the keys, sorted, from that of `positive_sum`; None where not needed."""
    own = pairs.own()
    weighted = pairs.anchors * grad[..., None]
    anchors = keys = None
    if needed[0]:
        anchors = _without_own(pairs, _over_keys(pairs, layout)).mul_(grad[..., None])
    if pairs.keys is None or needed[1]:
        keys = _over_anchors(pairs, layout, weighted)
        if own is not None:
            place, positive = own
            share = weighted * positive[..., None]
            if pairs.keys is None:
                keys -= share
            else:
                m, width = keys.shape[1:]
                keys.view(-1, width).index_add_(0, flat(place.clamp(min=0), m), share.view(-1, width), alpha=-1)
    if pairs.keys is None and anchors is not None and keys is not None:
        return anchors.add_(keys), None
    return anchors, keys


def _without_own(pairs: Pairs, total: Tensor) -> Tensor:
    own = pairs.own()
    if own is None:
        return total
    place, positive = own
    key = pairs.anchors if pairs.keys is None else rows(pairs.keys, place.clamp(min=0))
    return total.sub_(key * positive[..., None])


def _over_keys(pairs: Pairs, layout: Layout) -> Tensor:
    """For each anchor the sum of the keys lo <= j < hi, (G, N, D)."""
    keys = pairs.anchors if pairs.keys is None else pairs.keys
    m = keys.shape[1]
    part = torch.arange(m, device=keys.device) < pairs.count[:, None]
    if layout.ranges:
        running = pad(torch.where(part[..., None], keys, 0.0).double().cumsum(1), (0, 0, 1, 0))
        return (rows(running, pairs.hi) - rows(running, pairs.lo)).to(keys.dtype)
    first = pairs.lo if layout.first is None else layout.first
    return _by_id(keys, torch.where(part, first, m + 1), torch.where(pairs.hi > pairs.lo, pairs.lo, m), m)


def _over_anchors(pairs: Pairs, layout: Layout, values: Tensor) -> Tensor:
    """For each key j the sum of the values (G, N, D) of the anchors with lo <= j < hi, (G, M, D)."""
    groups, n, width = values.shape
    m = n if pairs.keys is None else pairs.keys.shape[1]
    if layout.ranges:
        steps = torch.zeros(groups * (m + 1), width, dtype=torch.float64, device=values.device)
        wide = values.reshape(-1, width).double()
        steps.index_add_(0, flat(pairs.lo, m + 1), wide).index_add_(0, flat(pairs.hi, m + 1), wide, alpha=-1)
        return steps.view(groups, m + 1, width).cumsum(1)[:, :m].to(values.dtype).contiguous()
    first = pairs.lo if layout.first is None else layout.first
    part = torch.arange(m, device=values.device) < pairs.count[:, None]
    return _by_id(values, torch.where(pairs.hi > pairs.lo, pairs.lo, m + 1), torch.where(part, first, m), m)


def _by_id(values: Tensor, bins: Tensor, wanted: Tensor, m: int) -> Tensor:
    """Sums of rows (G, K, D) over the bins that `bins` (G, K) names, read at `wanted` (G, L).

    Bins are the first keys of ids, 0 to m - 1. What wants nothing reads bin m, and what counts nowhere goes to m + 1.
    """
    groups, _, width = values.shape
    sums = values.new_zeros(groups * (m + 2), width)
    sums.index_add_(0, flat(bins, m + 2), values.reshape(-1, width))
    return rows(sums.view(groups, m + 2, width), wanted)
