"""A problem with its keys sorted by id, where the positives of each anchor are one range of keys.

Engines that work in tiles take this form, so none of them knows labels, masks of keys or tolerances. What needs no
pairs is computed here for them: counts, and sums of positive logits by sums over runs of one id.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmgl_losses.contrast.problem import Gradients, Problem


@dataclass(frozen=True)
class Sorted:
    """G groups of N anchors and M keys, both sorted by id, keys that take no part last.

    The keys ``lo[g, i] <= j < hi[g, i]`` are the positives of anchor i, the others below ``count[g]`` its negatives;
    ``itself[g, i]`` belongs to neither.
    """

    anchors: Tensor  #: (G, N, D)
    keys: Tensor | None  #: (G, M, D); None: the anchors are the keys, and row i is its own key i
    lo: Tensor  #: (G, N) int64
    hi: Tensor  #: (G, N) int64
    count: Tensor  #: (G,) int64: keys that take part
    itself: Tensor | None  #: (G, N) int64: the anchor's own key, -1 for none; None with `keys`: none for all
    log_weights: Tensor | None  #: (G, M)
    limit: Tensor | None  #: as in `Problem`
    scale: float  #: as in `Problem`
    ranges: bool  #: positives are ranges of ids, not single ids
    first: Tensor | None  #: (G, M) int64: the first key of each key's id; None: `lo`, or not needed for ranges of ids
    order: Tensor  #: (G, N) int64: which of the anchors given stands at each place
    key_order: Tensor | None  #: (G, M) int64, of the keys; None: the anchors are the keys

    @property
    def symmetric(self) -> bool:
        """The anchors are the keys, and i is a positive of j where j is one of i."""
        return self.keys is None and not self.ranges

    @property
    def others(self) -> Tensor:
        """The keys, which may be the anchors."""
        return self.anchors if self.keys is None else self.keys

    def given(self, anchors: Tensor | None, keys: Tensor | None) -> Gradients:
        """Gradients of sorted anchors and keys in the order in which those were given."""
        first = None if anchors is None else unsort(anchors, self.order)
        return first, None if keys is None or self.key_order is None else unsort(keys, self.key_order)

    def own(self) -> tuple[Tensor, Tensor] | None:
        """The place of each anchor's own key, and whether it is in the range of positives; None if none has one."""
        if self.keys is not None and self.itself is None:
            return None
        place = torch.arange(self.lo.shape[1], device=self.lo.device) if self.itself is None else self.itself
        return place, (place >= self.lo) & (place < self.hi)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Number of positives and negatives of each anchor, int64 (G, N)."""
        positives = self.hi - self.lo
        negatives = self.count[:, None] - positives
        own = self.own()
        if own is not None:
            place, positive = own
            takes_part = (place >= 0) & (place < self.count[:, None])
            positives, negatives = positives - positive.long(), negatives - (takes_part & ~positive).long()
        return positives, negatives

    def positive_sum(self) -> Tensor:
        """The sum of each anchor's logits with its positives, (G, N): its product with the sum of these keys."""
        return (self.anchors * self._positives()).sum(-1) * self.scale

    def positive_sum_backward(self, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
        """Gradients of the anchors and of the keys from that of `positive_sum`; None where not needed."""
        own = self.own()
        grad = grad * self.scale
        weighted = self.anchors * grad[..., None]
        anchors = keys = None
        if needed[0]:
            anchors = self._positives().mul_(grad[..., None])
        if self.keys is None or needed[1]:
            keys = self._over_anchors(weighted)
            if own is not None:
                place, positive = own
                share = weighted * positive[..., None]
                if self.keys is None:
                    keys -= share
                else:
                    m, width = keys.shape[1:]
                    keys.view(-1, width).index_add_(0, flat(place.clamp(min=0), m), share.view(-1, width), alpha=-1)
        if self.keys is None and anchors is not None and keys is not None:
            return anchors.add_(keys), None
        return anchors, keys

    def _positives(self) -> Tensor:
        """The sum of the positives of each anchor, (G, N, D)."""
        total, own = self._over_keys(), self.own()
        if own is None:
            return total
        place, positive = own
        key = self.anchors if self.keys is None else rows(self.keys, place.clamp(min=0))
        return total.sub_(key * positive[..., None])

    def _over_keys(self) -> Tensor:
        """For each anchor the sum of the keys lo <= j < hi, (G, N, D)."""
        keys = self.others
        m = keys.shape[1]
        part = torch.arange(m, device=keys.device) < self.count[:, None]
        if self.ranges:  # differences of running sums, in float64: they cancel
            running = pad(torch.where(part[..., None], keys, 0.0).double().cumsum(1), (0, 0, 1, 0))
            return (rows(running, self.hi) - rows(running, self.lo)).to(keys.dtype)
        first = self.lo if self.first is None else self.first
        return _by_id(keys, torch.where(part, first, m + 1), torch.where(self.hi > self.lo, self.lo, m), m)

    def _over_anchors(self, values: Tensor) -> Tensor:
        """For each key j the sum of the values (G, N, D) of the anchors with lo <= j < hi, (G, M, D)."""
        groups, _, width = values.shape
        m = self.others.shape[1]
        if self.ranges:
            steps = torch.zeros(groups * (m + 1), width, dtype=torch.float64, device=values.device)
            wide = values.reshape(-1, width).double()
            steps.index_add_(0, flat(self.lo, m + 1), wide).index_add_(0, flat(self.hi, m + 1), wide, alpha=-1)
            return steps.view(groups, m + 1, width).cumsum(1)[:, :m].to(values.dtype).contiguous()
        first = self.lo if self.first is None else self.first
        part = torch.arange(m, device=values.device) < self.count[:, None]
        return _by_id(values, torch.where(self.hi > self.lo, self.lo, m + 1), torch.where(part, first, m), m)


def sort(problem: Problem) -> Sorted:
    """Sort anchors and keys by id."""
    other = problem.other_ids
    key_order = order_by_id(other, problem.key_mask)
    other = other.gather(1, key_order)
    if problem.key_mask is None:
        count = other.new_full((), other.shape[1], dtype=torch.int64).expand(other.shape[0])
    else:
        count = problem.key_mask.sum(1)
        other = fill_tail(other, count)
    order = key_order if problem.own else order_by_id(problem.ids, None)
    ids = other if problem.own and problem.key_mask is None else problem.ids.gather(1, order)
    low, high = (ids - problem.tolerance, ids + problem.tolerance) if problem.tolerance else (ids, ids)
    lo, hi = torch.searchsorted(other, low), torch.searchsorted(other, high, right=True)
    last = count[:, None]
    if problem.key_mask is not None:
        lo, hi = lo.minimum(last), hi.minimum(last)
    itself = None
    if problem.self_index is not None:
        chosen = problem.self_index.gather(1, order)
        place = unsort(torch.arange(other.shape[1], device=other.device).expand_as(other), key_order)
        itself = torch.where(chosen >= 0, place.gather(1, chosen.clamp(min=0)), -1)
        itself = torch.where(itself < last, itself, -1)
    ranges = problem.tolerance is not None
    weights = problem.key_log_weights
    return Sorted(
        anchors=rows(problem.anchors, order),
        keys=None if problem.keys is None else rows(problem.keys, key_order),
        lo=lo,
        hi=hi,
        count=count,
        itself=itself,
        log_weights=None if weights is None else weights.gather(1, key_order),
        limit=problem.limit,
        scale=problem.scale,
        ranges=ranges,
        first=None if problem.own or ranges else torch.searchsorted(other, other),
        order=order,
        key_order=None if problem.own else key_order,
    )


def order_by_id(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The permutation that sorts by id, rows outside `mask` last."""
    order = ids.argsort(dim=1, stable=True)
    if mask is None:
        return order
    outside = (~mask).gather(1, order).byte()
    return order.gather(1, outside.argsort(dim=1, stable=True))


def fill_tail(ids: Tensor, count: Tensor) -> Tensor:
    """Sorted ids whose tail, which takes no part, holds the largest value, so that the whole row is sorted."""
    largest = torch.inf if ids.is_floating_point() else torch.iinfo(ids.dtype).max
    column = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(column < count[:, None], ids, largest)


def _by_id(values: Tensor, bins: Tensor, wanted: Tensor, m: int) -> Tensor:
    """Sums of rows (G, K, D) over the bins that `bins` (G, K) names, read at `wanted` (G, L).

    Bins are the first keys of ids, 0 to m - 1. What wants nothing reads bin m, and what counts nowhere goes to m + 1.
    """
    groups, _, width = values.shape
    sums = values.new_zeros(groups * (m + 2), width)
    sums.index_add_(0, flat(bins, m + 2), values.reshape(-1, width))
    return rows(sums.view(groups, m + 2, width), wanted)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x[g, index[g, i]] for x (G, M, D) and index (G, N)."""
    groups, m, width = x.shape
    return x.reshape(-1, width).index_select(0, flat(index, m)).view(groups, index.shape[1], width)


def flat(index: Tensor, m: int) -> Tensor:
    """Row numbers (G, N) of groups of `m` rows each, as numbers of the rows of all groups."""
    offset = torch.arange(index.shape[0], device=index.device)[:, None] * m
    return (index + offset).flatten()


def unsort(values: Tensor, order: Tensor) -> Tensor:
    """Sorted values (G, N) or rows (G, N, D) in the order given."""
    if values.ndim == 2:
        return torch.empty_like(values).scatter_(1, order, values)
    groups, n, width = values.shape
    out = torch.empty_like(values).view(-1, width)
    return out.index_copy_(0, flat(order, n), values.reshape(-1, width)).view(groups, n, width)
