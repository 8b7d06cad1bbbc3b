"""The sorted form of a contrast: keys in the order of their ids, positives of each anchor as one range.

Implementations of the primitive see this form only, so none of them knows labels, masks of keys or temperatures.
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

    def counts(self) -> tuple[Tensor, Tensor]:
        """Number of positives and negatives of each anchor, int64 (G, N)."""
        positives = self.hi - self.lo
        negatives = self.count[:, None] - positives
        if self.keys is None or self.itself is not None:
            own = torch.arange(self.lo.shape[1], device=self.lo.device) if self.itself is None else self.itself
            takes_part = (own >= 0) & (own < self.count[:, None])
            positive = takes_part & (own >= self.lo) & (own < self.hi)
            positives, negatives = positives - positive.long(), negatives - (takes_part & ~positive).long()
        return positives, negatives


class Sorted(NamedTuple):
    """`Pairs` and what leads back to the caller's order."""

    pairs: Pairs
    restore: Tensor  # (G, N) int64: where the caller's anchor i stands
    first: Tensor  # (G, M) int64: for each key the first key of its id
    prefix: bool  # positives are ranges of ids, not single ids

    def unsort(self, values: Tensor) -> Tensor:
        """Values (G, N) of the sorted anchors, in the caller's order."""
        return values.gather(1, self.restore)


def build(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    bound: float | None = None,
) -> Sorted:
    """Sort a contrast of G groups: anchors (G, N, D), ids (G, N), keys (G, M, D) and so on."""
    own = keys is None or key_ids is None
    if keys is None or key_ids is None:
        # Half of the scale on either side keeps the product symmetric, and gives the temperature its gradient.
        used = None if key_mask is None or anchor_mask is None else key_mask | anchor_mask
        anchors = _select(anchors, used) * (temperature**-0.5)
        key_ids = ids
    else:
        anchors = _select(anchors, anchor_mask) / temperature
        keys = _select(keys.to(anchors.dtype), key_mask)
    ids, key_ids = _comparable(ids, key_ids, tolerance)

    key_order = _order(key_ids, key_mask)
    key_ids = key_ids.gather(1, key_order)
    count = key_mask.sum(1) if key_mask is not None else key_ids.new_full((), key_ids.shape[1]).long()
    count = count.expand(key_ids.shape[0])
    key_ids = _fill_tail(key_ids, count)
    order = key_order if own else _order(ids, None)
    ids = ids.gather(1, order)
    reach = 0.0 if tolerance is None else tolerance
    last = count[:, None]
    lo = torch.searchsorted(key_ids, ids - reach if reach else ids).minimum(last)
    hi = torch.searchsorted(key_ids, ids + reach if reach else ids, right=True).minimum(last)

    itself = None
    if keys is not None:
        keys = _rows(keys, key_order)
        if self_index is not None:
            position = _inverse(key_order)
            chosen = self_index.gather(1, order)
            itself = torch.where(chosen >= 0, position.gather(1, chosen.clamp(min=0)), -1)
            itself = torch.where(itself < last, itself, -1)
    limit = None
    if bound is not None:
        # `as_tensor` keeps a temperature that is a tensor on its device: nothing waits for its value.
        limit = torch.as_tensor(bound / temperature, dtype=anchors.dtype).detach()
    pairs = Pairs(
        anchors=_rows(anchors, order),
        keys=keys,
        lo=lo,
        hi=hi,
        count=count,
        itself=itself,
        log_weights=None if key_log_weights is None else key_log_weights.to(anchors.dtype).gather(1, key_order),
        limit=limit,
        symmetric=own and tolerance is None,
    )
    return Sorted(pairs, _inverse(order), torch.searchsorted(key_ids, key_ids), tolerance is not None)


def positive_sum(problem: Sorted) -> Tensor:
    """The sum of each anchor's logits with its positives, (G, N), sorted; O(n d): no pair is formed.

    Sums of keys over runs of one id or, where positives are ranges of ids, differences of running sums in float64.
    """
    pairs = problem.pairs
    anchors, lo, hi = pairs.anchors, pairs.lo, pairs.hi
    keys = anchors if pairs.keys is None else pairs.keys
    column = torch.arange(keys.shape[1], device=keys.device)
    keys_in = torch.where((column < pairs.count[:, None])[..., None], keys, 0.0)
    if problem.prefix:
        running = torch.nn.functional.pad(keys_in.double().cumsum(1), (0, 0, 1, 0))
        total = (_rows(running, hi) - _rows(running, lo)).to(anchors.dtype)
    else:
        sums = torch.zeros_like(keys).scatter_add(1, problem.first[..., None].expand_as(keys), keys_in)
        total = _rows(sums, lo.clamp(max=max(keys.shape[1] - 1, 0)))
        total = torch.where((hi > lo)[..., None], total, 0.0)
    if pairs.keys is None:
        own = anchors
        position = torch.arange(anchors.shape[1], device=keys.device).expand_as(lo)
    elif pairs.itself is not None:
        own = _rows(keys, pairs.itself.clamp(min=0))
        position = pairs.itself
    else:
        return (anchors * total).sum(-1)
    inside = (position >= lo) & (position < hi)
    return (anchors * (total - torch.where(inside[..., None], own, 0.0))).sum(-1)


def _select(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows that take part, zeros for the others, whatever those hold: NaN times 0 would still be NaN."""
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def _comparable(ids: Tensor, key_ids: Tensor, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """Both ids in one type that sorts and, with a tolerance, subtracts exactly enough."""
    wide = torch.promote_types(ids.dtype, key_ids.dtype)
    if tolerance is not None:
        wide = torch.float64
    elif not wide.is_floating_point:
        return ids.long(), key_ids.long()
    wide = torch.promote_types(wide, torch.float32)
    # An id that is NaN can only be one that takes no part; it must not upset the order of the others.
    ids, key_ids = ids.to(wide), key_ids.to(wide)
    return torch.where(ids.isnan(), torch.inf, ids), torch.where(key_ids.isnan(), torch.inf, key_ids)


def _order(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The permutation that sorts by id, rows outside `mask` last."""
    order = ids.argsort(dim=1, stable=True)
    if mask is None:
        return order
    outside = (~mask).gather(1, order).byte()
    return order.gather(1, outside.argsort(dim=1, stable=True))


def _fill_tail(ids: Tensor, count: Tensor) -> Tensor:
    """Sorted ids whose tail, which takes no part, holds the largest value, so that the whole row is sorted."""
    info = torch.finfo(ids.dtype) if ids.is_floating_point() else torch.iinfo(ids.dtype)
    largest = float("inf") if ids.is_floating_point() else info.max
    column = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(column < count[:, None], ids, largest)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[g, index[g, i]] for x (G, M, D) and index (G, N)."""
    groups, rows, width = x.shape
    offset = torch.arange(groups, device=x.device)[:, None] * rows
    return x.reshape(-1, width).index_select(0, (index + offset).reshape(-1)).view(groups, index.shape[1], width)
