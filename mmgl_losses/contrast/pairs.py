"""The sorted form of a contrast: keys in the order of their ids, positives of each anchor as one range.

Implementations of the primitive see `Pairs` only, so none of them knows labels, masks of keys or temperatures.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """G independent groups of N anchors and M keys, both sorted by id, keys that take no part last.

    With "logit" ``anchors[g, i] @ keys[g, j]``, the keys ``lo[g, i] <= j < hi[g, i]`` are the positives of anchor i
    and the others below ``count[g]`` its negatives; ``itself[g, i]`` belongs to neither.
    """

    anchors: Tensor  # (G, N, D), float32 or float64, scaled so that products are logits
    keys: Tensor | None  # (G, M, D); None: the anchors are the keys, and row i is its own key i
    lo: Tensor  # (G, N) int64
    hi: Tensor  # (G, N) int64
    count: Tensor  # (G,) int64: keys that take part  # pyright: ignore[reportIncompatibleMethodOverride]
    itself: Tensor | None  # (G, N) int64: the anchor's own key, -1 for none; None with `keys`: none for all
    log_weights: Tensor | None  # (G, M)
    limit: Tensor | None  # 0-d: no logit is larger than this in magnitude; None: nothing is known
    symmetric: bool  # the anchors are the keys, and i is a positive of j where j is one of i

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


class Layout(NamedTuple):
    """How a contrast is sorted: all of `Pairs` but the features, and the way back to the caller's order."""

    order: Tensor  # (G, N) int64: which of the caller's anchors stands at each place
    key_order: Tensor | None  # (G, M) int64; None: the anchors are the keys
    first: Tensor | None  # (G, M) int64: the first key of each key's id; None: lo, or not needed for ranges of ids
    lo: Tensor
    hi: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    itself: Tensor | None
    log_weights: Tensor | None
    limit: Tensor | None
    symmetric: bool
    ranges: bool  # positives are ranges of ids, not single ids

    def pairs(self, anchors: Tensor, keys: Tensor | None) -> Pairs:
        """The sorted form of features (G, N, D) and (G, M, D), which are scaled so that products are logits."""
        return Pairs(
            rows(anchors, self.order),
            None if keys is None or self.key_order is None else rows(keys, self.key_order),
            self.lo, self.hi, self.count, self.itself, self.log_weights, self.limit, self.symmetric,
        )  # fmt: skip


def layout(
    ids: Tensor,
    *,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    limit: Tensor | None = None,
) -> Layout:
    """Sort a contrast of G groups: ids (G, N), key_ids (G, M) and so on, in types that `comparable` gave them."""
    own = key_ids is None
    other = ids if key_ids is None else key_ids
    key_order = _order(other, key_mask)
    other = other.gather(1, key_order)
    if key_mask is None:
        count = other.new_full((), other.shape[1], dtype=torch.int64).expand(other.shape[0])
    else:
        count = key_mask.sum(1)
        other = _fill_tail(other, count)
    order = key_order if own else _order(ids, None)
    ids = other if own and key_mask is None else ids.gather(1, order)
    low, high = (ids, ids) if not tolerance else (ids - tolerance, ids + tolerance)
    lo, hi = torch.searchsorted(other, low), torch.searchsorted(other, high, right=True)
    last = count[:, None]
    if key_mask is not None:
        lo, hi = lo.minimum(last), hi.minimum(last)
    itself = None
    if self_index is not None and not own:
        chosen = self_index.gather(1, order)
        place = unsort(torch.arange(other.shape[1], device=other.device).expand_as(other), key_order)
        itself = torch.where(chosen >= 0, place.gather(1, chosen.clamp(min=0)), -1)
        itself = torch.where(itself < last, itself, -1)
    return Layout(
        order=order,
        key_order=None if own else key_order,
        first=None if own or tolerance is not None else torch.searchsorted(other, other),
        lo=lo,
        hi=hi,
        count=count,
        itself=itself,
        log_weights=None if key_log_weights is None else key_log_weights.gather(1, key_order),
        limit=limit,
        symmetric=own and tolerance is None,
        ranges=tolerance is not None,
    )


def comparable(ids: Tensor, key_ids: Tensor | None, tolerance: float | None) -> tuple[Tensor, Tensor | None]:
    """Both ids in one type that sorts and, with a tolerance, subtracts exactly enough."""
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


def _order(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The permutation that sorts by id, rows outside `mask` last."""
    order = ids.argsort(dim=1, stable=True)
    if mask is None:
        return order
    outside = (~mask).gather(1, order).byte()
    return order.gather(1, outside.argsort(dim=1, stable=True))


def _fill_tail(ids: Tensor, count: Tensor) -> Tensor:
    """Sorted ids whose tail, which takes no part, holds the largest value, so that the whole row is sorted."""
    largest = torch.inf if ids.is_floating_point() else torch.iinfo(ids.dtype).max
    column = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(column < count[:, None], ids, largest)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x[g, index[g, i]] for x (G, M, D) and index (G, N)."""
    groups, m, width = x.shape
    return x.reshape(-1, width).index_select(0, flat(index, m)).view(groups, index.shape[1], width)


def flat(index: Tensor, m: int) -> Tensor:
    """Row numbers (G, N) of groups of `m` rows each, as numbers of the rows of all groups."""
    offset = torch.arange(index.shape[0], device=index.device)[:, None] * m
    return (index + offset).flatten()


def unsort(values: Tensor, order: Tensor) -> Tensor:
    """Sorted values (G, N) or rows (G, N, D) in the caller's order."""
    if values.ndim == 2:
        return torch.empty_like(values).scatter_(1, order, values)
    groups, n, width = values.shape
    out = torch.empty_like(values).view(-1, width)
    return out.index_copy_(0, flat(order, n), values.reshape(-1, width)).view(groups, n, width)
