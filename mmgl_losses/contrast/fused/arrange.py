"""From a problem to what the kernels of pairs read: operands, ranges, and the range of the exponentials.

Nothing here waits for the device: where the range of the logits is known on the device alone, both ways of summing are
launched, and the one that is not meant leaves at once.
"""
# Triton types a kernel as the function it is written as, not as what takes a grid, tensors and options.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.fused import arrange_kernels as kernels
from mmgl_losses.contrast.fused import plan
from mmgl_losses.contrast.problem import Problem
from mmgl_losses.contrast.ranges import fill_tail, order_by_id

LOG2_E = 1 / math.log(2)
BLOCK, STEP = 32, 64  # points of a program, and ids that it compares them with at once; 128 would spill registers


class Side(NamedTuple):
    """The anchors or the keys in the order of their places: sorted by id, points that take no part last."""

    points: Tensor  #: (G, N, D) as given, in their own order
    operand: Tensor  #: (G, rows, width) rounded, scaled, with zeros up to whole tiles
    factor: float  #: that scale
    order: Tensor  #: (G, N) int32: the point of each place
    place: Tensor  #: (G, N) int32: the place of each point
    lo: Tensor  #: (G, N) int32: the places lo <= y < hi of the other side are positives
    hi: Tensor


class Pairs(NamedTuple):
    """A problem as kernels read it."""

    anchors: Side
    keys: Side  #: `anchors`, where these are the keys
    problem: Problem
    number: Tensor  #: (G,) int32: keys that take part
    itself: Tensor  #: (G, N) int32: the place of the anchor's own key; not read unless there are some among others
    shift: Tensor  #: 0-d float32: c of exp(s - c), over log 2; NaN where no constant fits
    shifted: tuple[bool, ...]  #: whether to launch what uses it, what uses maxima instead, or both
    weights: dict[bool, Tensor]  #: of the keys: w with a shift, log2 w with maxima
    ticket: Tensor  #: 0, to count programs by

    def of(self, problem: Problem) -> "Pairs":
        """The same, with the points of this problem, which is the same too."""
        anchors, keys = self.anchors._replace(points=problem.anchors), self.keys._replace(points=problem.others)
        return self._replace(anchors=anchors, keys=keys, problem=problem)

    @property
    def own(self) -> bool:
        """The anchors are the keys."""
        return self.problem.own

    @property
    def self_kind(self) -> str:
        """Which key is an anchor itself: "same" row, "given" as an index, or "none"."""
        return "same" if self.own else "none" if self.problem.self_index is None else "given"


def shift_of(problem: Problem) -> tuple[float | Tensor, tuple[bool, ...]]:
    """The shift c with which every exp(s - c) and every sum of them is a normal number; see `Pairs`.

    Normal for all pairs: c <= -log(tiny) - limit; no overflow of a sum: c >= limit + log(M) - log(max).
    """
    if problem.limit is None:
        return math.nan, (False,)
    info, keys, log_weights = torch.finfo(torch.float32), problem.others.shape[1], problem.key_log_weights
    slack = 0.1 - math.log(info.max) + math.log(max(keys, 1))
    rounding = 1 + 2 * torch.finfo(problem.precision).eps
    if log_weights is None and problem.limit.device.type == "cpu":
        reach = problem.limit.item() * rounding
        shift = max(0.0, reach + slack)
        fits = shift <= -math.log(info.tiny) - reach
        return shift * LOG2_E if fits else math.nan, (fits,)
    reach = problem.limit.to(problem.anchors.device, torch.float32, non_blocking=True) * rounding
    if log_weights is not None:
        reach = reach + log_weights.abs().max()
    shift = (reach + slack).clamp(min=0.0)
    fits = shift <= -math.log(info.tiny) - reach
    return torch.where(fits, shift * LOG2_E, math.nan), (True, False)


class Order(NamedTuple):
    """A side sorted by torch, for many points."""

    ids: Tensor  #: (G, N) ascending
    order: Tensor  #: (G, N) int32
    number: Tensor  #: (G,) int32


def sort(ids: Tensor, mask: Tensor | None) -> Order:
    """Ids in order, those outside of the mask last."""
    if mask is None:
        found, order = ids.sort(dim=1, stable=True)
        return Order(found, order.int(), order.new_full((len(ids),), ids.shape[1], dtype=torch.int32))
    order, count = order_by_id(ids, mask), mask.sum(1)
    return Order(fill_tail(ids.gather(1, order), count), order.int(), count.int())


def search(ends: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """How many of the ends are below each value or, with `right`, at most it."""
    return torch.searchsorted(ends, values, right=right, out_int32=True)


def ranges_of_anchors(anchors: Order, keys: Order, problem: Problem) -> tuple[Tensor, Tensor]:
    """The places of each anchor's positives.

    Where the anchors are the keys, kernels read off one of two points what holds for both, so the ends of ranges of
    ids, which rounding may have moved, follow from their beginnings there.
    """
    reach, last = problem.tolerance or 0.0, keys.number[:, None]
    low, high = (anchors.ids - reach, anchors.ids + reach) if reach else (anchors.ids, anchors.ids)
    lo = search(keys.ids, low, right=False)
    if problem.own and reach:
        place = torch.arange(lo.shape[1], device=lo.device, dtype=torch.int32)
        begin = lo.where(place < last, lo.shape[1])
        hi = search(begin, place.expand_as(lo).contiguous(), right=True)
    else:
        hi = search(keys.ids, high, right=True)
    if problem.key_mask is None:
        return lo, hi
    return lo.minimum(last), hi.minimum(last)


def ranges_of_keys(lo: Tensor, hi: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """The same of the keys: of which anchors, which are sorted too, each is a positive."""
    place = torch.arange(keys, device=lo.device, dtype=torch.int32).expand(len(lo), -1).contiguous()
    return search(hi, place, right=True), search(lo, place, right=True)


def arrange(problem: Problem) -> Pairs:
    """Sort, normalise, scale and round both sides, and find the ranges of positives."""
    device, dtype, (groups, n) = problem.anchors.device, problem.precision, problem.ids.shape
    m, width = problem.others.shape[1], problem.anchors.shape[2]
    shift, shifted = shift_of(problem)
    ticket = torch.empty((), dtype=torch.int32, device=device)
    p_shift = shift if isinstance(shift, Tensor) else torch.empty((), device=device)
    count = torch.empty((groups,), dtype=torch.int32, device=device)
    counted = max(n, m) <= plan.FEW
    all_ids = [ids if ids.stride(1) == 1 else ids.contiguous() for ids in (problem.ids, problem.other_ids)]
    by_id: list[Order] = []
    if not counted:
        keys_order = sort(problem.other_ids, problem.key_mask)
        by_id = [keys_order if problem.own else sort(problem.ids, None), keys_order]
        count = keys_order.number
    tolerance = problem.tolerance
    p_tolerance = count if tolerance is None else torch.full((), tolerance, dtype=torch.float64, device=device)
    log2_scale = problem.scale * LOG2_E

    def side(kind: str, key_side: Side | None, found: tuple[Tensor, Tensor] | None) -> tuple[Side, Tensor]:
        """Launch the kernel on one side; what it is, and each anchor's own key."""
        of_keys = kind == "keys"
        points = problem.keys if of_keys and problem.keys is not None else problem.anchors
        size = m if of_keys else n
        ids, other = (all_ids[1], all_ids[0]) if of_keys else all_ids
        part = problem.key_mask if kind != "anchors" else None
        other_part = problem.key_mask if kind != "keys" else None
        factor = {"same": log2_scale**0.5, "anchors": log2_scale, "keys": 1.0}[kind]
        whole = max(BLOCK, plan.padding(dtype, width, device))
        rows = plan.ceil(size, whole) * whole
        operand = torch.empty((groups, rows, plan.padded_width(width)), dtype=dtype, device=device)
        order, place, lo, hi, itself = (torch.empty((groups, size), dtype=torch.int32, device=device) for _ in range(5))
        if found is not None:
            order, (lo, hi) = by_id[of_keys].order, found
        chosen = problem.self_index if kind == "anchors" else None
        others = torch.empty_like(count) if of_keys else count  # on the other side, that take part
        tiles = rows // BLOCK
        kernels.arrange[(groups * tiles,)](
            points, ids, ids if part is None else part.contiguous(), other,
            other if other_part is None else other_part.contiguous(), p_tolerance,
            ids if chosen is None else chosen.contiguous(), place if key_side is None else key_side.place,
            operand, order, place, lo, hi, others, itself, p_shift, ticket,
            size, n if of_keys else m, rows, tiles, ids.stride(0), other.stride(0), *points.stride(), factor,
            shift if isinstance(shift, float) else 0.0,
            BLOCK=BLOCK, STEP=STEP, D=operand.shape[2], WIDTH=width, SIDE=kind, UNIT=problem.unit,
            SORTED=found is not None, MASKED=part is not None, OTHER_MASKED=other_part is not None,
            RANGES=tolerance is not None, SELF="none" if chosen is None else "given",
            SHIFT=isinstance(shift, float) and not of_keys, num_warps=4,
        )  # fmt: skip
        return Side(points, operand, factor, order, place, lo, hi), itself

    found = of_keys = None
    if by_id:
        found = ranges_of_anchors(by_id[0], by_id[1], problem)
        of_keys = None if problem.own else ranges_of_keys(*found, m)
    keys = None if problem.own else side("keys", None, of_keys)[0]
    anchors, itself = side("same" if problem.own else "anchors", keys, found)
    keys = anchors if keys is None else keys
    weights = dict.fromkeys((True, False), p_shift)  # not read
    if problem.key_log_weights is not None:
        sorted_weights = problem.key_log_weights.gather(1, keys.order.long()).float()
        weights = {True: sorted_weights.exp(), False: sorted_weights * LOG2_E}
    return Pairs(anchors, keys, problem, count, itself, p_shift, shifted, weights, ticket)
