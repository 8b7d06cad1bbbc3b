"""The primitive tile by tile: memory linear in the number of points.

E_ij = exp(s_ij) is never held whole. It is formed in tiles, some rows against some columns, and each tile is used and
forgotten.

- Where the anchors are the keys, E is symmetric. Only tiles on and above the diagonal are formed; a tile above it also
  serves as its mirror image below, so each pair is computed once.
- Keys are sorted by id. The columns of a tile therefore fall into segments that hold only positives, only negatives, or
  both. Only the last kind needs a mask.
- Positives and negatives are summed apart. Taking the positives off the total would lose digits.
- Where the range of the logits is known, one constant shift keeps every exp in range. Otherwise a tile spans all
  columns, and each row is shifted by its own maximum.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.problem import Gradients, Upstream
from mmgl_losses.contrast.ranges import Sorted
from mmgl_losses.contrast.tiled.shift import LOG2_E, factors

ROWS, COLUMNS = 256, 4096  # of a tile: 4 MiB in float32, which stays in the caches that matter


class Tile(NamedTuple):
    """Rows [top, end) against columns [first, last); a `mirrored` tile also stands for its transpose."""

    top: int
    end: int
    first: int
    last: int
    mirrored: bool
    segments: tuple[tuple[int, int, str], ...]  # (from, to, "positive" | "negative" | "mixed")

    @property
    def beyond(self) -> int:
        """The first column that is not a row of this tile too; the pairs of those before it are met from both sides."""
        return max(self.first, self.end)


def tiles(lo: list[int], hi: list[int], count: int, *, own: bool, mirrored: bool, whole: bool) -> Iterator[Tile]:
    """Tiles that cover all pairs of a group, each pair once.

    Args:
        lo: first positive of each row, ascending.
        hi: one past the last positive of each row, ascending.
        count: number of keys.
        own: the rows are the keys; rows from `count` on are anchors that are no keys, sorted by themselves.
        mirrored: a tile counts for its mirror image too.
        whole: each tile spans all columns.
    """
    rows, width = len(lo), count if whole else min(count, COLUMNS)
    height = max(1, min(ROWS, ROWS * COLUMNS // max(count, 1))) if whole else ROWS
    top = 0
    while top < rows and count:
        end = min(top + height, rows)
        if own and top < count:
            end = min(end, count)  # a tile must not mix rows that are keys with rows that are not
        if top + height // 4 < hi[top] < end:
            end = hi[top]  # many rows of one id: end the tile with them, so that no segment is mixed
        elif top < lo[end - 1] < end and hi[end - 1] - lo[end - 1] > height:
            end = lo[end - 1]  # many rows of one id begin in this tile: leave them to the next
        mirror = mirrored and top < count
        # lo and hi ascend. Columns outside of every row's range are negatives, columns inside of all ranges are
        # positives, and the columns between are mixed.
        edges = [0, lo[top], lo[end - 1], hi[top], hi[end - 1], count]
        kinds = ["negative", "mixed", "positive", "mixed", "negative"]
        if lo[end - 1] > hi[top]:  # no column is inside of all ranges
            edges, kinds = [0, lo[top], hi[end - 1], count], ["negative", "mixed", "negative"]
        for first in range(top if mirror else 0, count, width):
            last = min(first + width, count)
            cuts = pairwise(min(max(edge, first), last) for edge in edges)
            segments = tuple((a, b, kind) for (a, b), kind in zip(cuts, kinds, strict=True) if a < b)
            yield Tile(top, end, first, last, mirror, segments)
        top = end


class Group(NamedTuple):
    """One group as its tiles need it, with two buffers that all tiles reuse: allocating for each would cost time."""

    anchors: Tensor  # (N, D)
    keys: Tensor  # (M, D); `anchors` itself where the anchors are the keys
    lo: Tensor  # (N,)
    hi: Tensor  # (N,)
    itself: Tensor | None  # (N,)
    log_weights: Tensor | None  # (M,)
    tiles: list[Tile]
    buffers: Tensor  # (2, elements of the largest tile)

    def logits(self, tile: Tile) -> Tensor:
        """Logits of the tile, without the weights of the keys, in the first buffer."""
        rows, columns = self.anchors[tile.top : tile.end], self.keys[tile.first : tile.last]
        return torch.mm(rows, columns.T, out=self.matrix(0, len(rows), len(columns)))

    def matrix(self, number: int, height: int, width: int) -> Tensor:
        """A buffer as a matrix that is not initialised."""
        return self.buffers[number, : height * width].view(height, width)

    def positive(self, tile: Tile, a: int, b: int) -> Tensor:
        """Which of the columns [a, b) are positives of each row, its own key included."""
        column = torch.arange(a, b, device=self.lo.device)
        rows = slice(tile.top, tile.end)
        return (column >= self.lo[rows, None]) & (column < self.hi[rows, None])

    def clear_own(self, tile: Tile, values: Tensor, fill: float = 0.0) -> None:
        """Write `fill` where a row of the tile meets its own key."""
        if self.keys is self.anchors:
            if tile.first < tile.end and tile.top < tile.last:
                values.diagonal(tile.top - tile.first).fill_(fill)
        elif self.itself is not None:
            column = self.itself[tile.top : tile.end] - tile.first
            row = ((column >= 0) & (column < values.shape[1])).nonzero().squeeze(1)
            values[row, column[row]] = fill


def _factor(pairs: Sorted, shift: float | None) -> float:
    """What turns products into logits; with a shift these are in units of log 2, because exp2 is faster than exp."""
    return pairs.scale if shift is None else pairs.scale * LOG2_E


def _groups(pairs: Sorted, shift: float | None) -> Iterator[Group]:
    """The groups one by one, features multiplied so that products are logits; mirrored where there is a shift."""
    own, factor = pairs.keys is None, _factor(pairs, shift)
    anchors = pairs.anchors * (factor**0.5 if own else factor)
    buffers = anchors.new_empty(2, 0)
    for g, (lo, hi, count) in enumerate(zip(pairs.lo.tolist(), pairs.hi.tolist(), pairs.count.tolist(), strict=True)):
        cover = list(tiles(lo, hi, count, own=own, mirrored=pairs.symmetric and shift is not None, whole=shift is None))
        most = max(((t.end - t.top) * (t.last - t.first) for t in cover), default=0)
        if most > buffers.shape[1]:
            buffers = anchors.new_empty(2, most)
        rows = anchors[g]
        yield Group(
            anchors=rows,
            keys=rows if pairs.keys is None else pairs.keys[g],
            lo=pairs.lo[g],
            hi=pairs.hi[g],
            itself=None if pairs.itself is None else pairs.itself[g],
            log_weights=None if pairs.log_weights is None else pairs.log_weights[g],
            tiles=cover,
            buffers=buffers,
        )


def forward(pairs: Sorted, shift: float | None) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    start = -torch.inf if shift is None else 0.0
    positives = torch.full_like(pairs.lo, start, dtype=pairs.anchors.dtype)
    negatives = positives.clone()
    for g, group in enumerate(_groups(pairs, shift)):
        for tile in group.tiles:
            if shift is None:
                rows = slice(tile.top, tile.end)
                positives[g, rows], negatives[g, rows] = _row_logsumexp(group, tile)
            else:
                _credit_sums(group, tile, shift, positives[g], negatives[g])
    if shift is None:
        return positives, negatives
    return positives.log_().add_(shift), negatives.log_().add_(shift)


def _row_logsumexp(group: Group, tile: Tile) -> tuple[Tensor, Tensor]:
    logits = group.logits(tile)
    if group.log_weights is not None:
        logits += group.log_weights[tile.first : tile.last]
    group.clear_own(tile, logits, -torch.inf)
    mask = group.positive(tile, tile.first, tile.last)
    return logits.masked_fill(~mask, -torch.inf).logsumexp(1), logits.masked_fill_(mask, -torch.inf).logsumexp(1)


def _exponentials(group: Group, tile: Tile, shift: float) -> Tensor:
    """exp(s - shift) of the tile, with 0 for each row's own key."""
    values = group.logits(tile)
    if shift:
        values -= shift * LOG2_E
    values = values.exp2_()
    group.clear_own(tile, values)
    return values


def _credit_sums(group: Group, tile: Tile, shift: float, positives: Tensor, negatives: Tensor) -> None:
    values = _exponentials(group, tile, shift)
    for a, b, kind in tile.segments:
        part = values[:, a - tile.first : b - tile.first]
        if kind == "mixed":
            mask = group.positive(tile, a, b)
            shares = [(positives, part * mask), (negatives, part * ~mask)]
        else:
            shares = [(positives if kind == "positive" else negatives, part)]
        for sums, share in shares:
            weighted = share.sum(1) if group.log_weights is None else share @ group.log_weights[a:b].exp()
            sums[tile.top : tile.end] += weighted
            mirror = max(a, tile.beyond)
            if tile.mirrored and mirror < b:
                beyond = share[:, mirror - a :]
                if group.log_weights is None:
                    sums[mirror:b] += beyond.sum(0)
                else:
                    sums[mirror:b] += group.log_weights[tile.top : tile.end].exp() @ beyond


def backward(pairs: Sorted, shift: float | None, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys from those of the three results, each where it is `needed`."""
    factor = _factor(pairs, shift)
    anchors = torch.zeros_like(pairs.anchors)
    keys = anchors if pairs.keys is None else torch.zeros_like(pairs.keys)
    (positives, negatives), (grad_positives, grad_negatives), total = upstream
    size = torch.ones((), dtype=anchors.dtype, device=anchors.device)
    if shift is not None:
        grad_positives, grad_negatives, size = factors(upstream, shift)
        total = None if total is None else total / size
    for g, group in enumerate(_groups(pairs, shift)):
        for tile in group.tiles:
            rows, columns = slice(tile.top, tile.end), slice(tile.first, tile.last)
            if shift is None:
                given = (x[g, rows] for x in (positives, negatives, grad_positives, grad_negatives))
                weights = _row_weights(group, tile, *given)
            else:
                weights = _weights(group, tile, shift, grad_positives[g], grad_negatives[g])
            if total is not None:
                _add_sums(group, tile, weights, total[g])
            if needed[0]:
                anchors[g, rows].addmm_(weights, group.keys[columns])
            if tile.mirrored:
                mirror = weights[:, tile.beyond - tile.first :]
                keys[g, tile.beyond : tile.last].addmm_(mirror.T, group.anchors[rows])
            elif pairs.keys is None or needed[1]:
                keys[g, columns].addmm_(weights.T, group.anchors[rows])
    size = size * pairs.scale
    if pairs.keys is None:
        return anchors.mul_(size / factor**0.5), None
    return anchors.mul_(size) if needed[0] else None, keys.mul_(size / factor) if needed[1] else None


def _weights(group: Group, tile: Tile, shift: float, positive: Tensor, negative: Tensor) -> Tensor:
    """W of the tile, or W + Wᵀ where it is mirrored, from the factors of E of each anchor (`shift.factors`)."""
    values = _exponentials(group, tile, shift)
    for a, b, kind in tile.segments:
        part = values[:, a - tile.first : b - tile.first]
        if kind == "mixed":
            mask = group.positive(tile, a, b)
            outer = _outer(group, tile, positive, a, b).clone()
            part *= torch.where(mask, outer, _outer(group, tile, negative, a, b))
        else:
            part *= _outer(group, tile, positive if kind == "positive" else negative, a, b)
    return values


def _add_sums(group: Group, tile: Tile, weights: Tensor, total: Tensor) -> None:
    """Add o of the row (and of the column where the tile is mirrored) to W for each pair of positives."""
    for a, b, kind in tile.segments:
        if kind == "negative":
            continue
        part, row = weights[:, a - tile.first : b - tile.first], total[tile.top : tile.end, None]
        share = torch.add(row, total[a:b], out=group.matrix(1, len(row), b - a)) if tile.mirrored else row
        part += share if kind == "positive" else share * group.positive(tile, a, b)
    group.clear_own(tile, weights)


def _outer(group: Group, tile: Tile, factor: Tensor, a: int, b: int) -> Tensor:
    """factor_i w_j, plus factor_j w_i where the tile is mirrored. May use the second buffer."""
    row, column = factor[tile.top : tile.end, None], factor[a:b]
    if group.log_weights is None:
        return torch.add(row, column, out=group.matrix(1, len(row), b - a)) if tile.mirrored else row
    weight = group.log_weights.exp()
    outer = row * weight[a:b]
    return outer + weight[tile.top : tile.end, None] * column if tile.mirrored else outer


def _row_weights(
    group: Group,
    tile: Tile,
    positives: Tensor,
    negatives: Tensor,
    grad_positives: Tensor,
    grad_negatives: Tensor,
) -> Tensor:
    """W of a tile that spans all columns, each row shifted by its own log-sum-exp."""
    logits = group.logits(tile)
    if group.log_weights is not None:
        logits += group.log_weights[tile.first : tile.last]
    mask = group.positive(tile, tile.first, tile.last)
    logits -= torch.where(mask, positives[:, None], negatives[:, None])
    group.clear_own(tile, logits, -torch.inf)
    return logits.exp_().mul_(torch.where(mask, grad_positives[:, None], grad_negatives[:, None]))
