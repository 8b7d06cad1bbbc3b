"""The primitive for few points of few ids: all pairs of some groups at once, without masks.

Ids become one-hot: A (G, N, C) of the anchors, K (G, N, C) of the keys. Then E K holds the sum of E over each id,
the anchor's own for p and the others, one by one, for q; and with M_ic = g⁺_i / p_i where c is the anchor's id and
g⁻_i / q_i elsewhere, W + Wᵀ = E ∘ (M Kᵀ + K Mᵀ). No negative is found by subtraction: each term is one product with 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.pairs import Pairs
from mmgl_losses.contrast.tiled.shift import LOG2_E

POINTS = 640  # with more, half of the pairs are left out more cheaply than masks
IDS = 32  # a product with one-hot ids costs less than one with the features
ELEMENTS = 1 << 18  # of the groups that go through at once: 1 MiB in float32


class OneHot(NamedTuple):
    """The ids of a contrast, one-hot in the type of its features."""

    anchors: Tensor  # (G, N, C); zeros where an anchor has no key of its id
    keys: Tensor  # (G, N, C); zeros where a key takes no part


def one_hot(pairs: Pairs) -> OneHot | None:
    """The ids, or None where there are too many points or ids, or the pairs are of another kind."""
    n = pairs.lo.shape[1]
    if not pairs.symmetric or pairs.log_weights is not None or not 0 < n <= POINTS:
        return None
    place = torch.arange(n, device=pairs.lo.device)
    part = place < pairs.count[:, None]
    rank = ((pairs.lo == place) & part).cumsum(1) - 1
    ids = int(rank.max()) + 1
    if ids > IDS:
        return None
    own = torch.where(pairs.lo < pairs.hi, rank.gather(1, pairs.lo.clamp(max=n - 1)), -1)
    anchors = (own[..., None] == torch.arange(ids, device=own.device)).to(pairs.anchors.dtype)
    return OneHot(anchors, anchors * part[..., None])


def forward(pairs: Pairs, ids: OneHot, shift: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, (G, N) each."""
    sums = torch.empty_like(ids.keys.mT)
    for some, values in _exponentials(pairs, shift):
        torch.bmm(ids.keys[some].mT, values, out=sums[some])  # E is its own transpose, and this product the faster one
    positives, negatives = ((sums * mask.mT).sum(1).log_().add_(shift) for mask in (ids.anchors, 1 - ids.anchors))
    return positives, negatives


def backward(pairs: Pairs, ids: OneHot, shift: float, positive: Tensor, negative: Tensor) -> Tensor:
    """The gradient of the anchors from the factors of E in its positives and negatives."""
    grad = torch.empty_like(pairs.anchors)
    rows = torch.where(ids.anchors > 0, positive[..., None], negative[..., None])
    left, right = torch.cat([rows, ids.keys], 2), torch.cat([ids.keys, rows], 2).mT
    buffer = _buffer(pairs)
    for some, values in _exponentials(pairs, shift):
        weights = torch.bmm(left[some], right[some], out=buffer[: len(values)]).mul_(values)
        torch.bmm(weights, pairs.anchors[some], out=grad[some])
    return grad


def _exponentials(pairs: Pairs, shift: float) -> Iterator[tuple[slice, Tensor]]:
    """Some groups at a time, and their E = exp(s - shift) of all pairs, each anchor's own key 0."""
    scaled = pairs.anchors * LOG2_E**0.5
    buffer = _buffer(pairs)
    for first in range(0, len(scaled), len(buffer)):
        some = slice(first, min(first + len(buffer), len(scaled)))
        values = torch.bmm(scaled[some], scaled[some].mT, out=buffer[: some.stop - first])
        if shift:
            values -= shift * LOG2_E
        values = values.exp2_()
        values.diagonal(dim1=1, dim2=2).zero_()
        yield some, values


def _buffer(pairs: Pairs) -> Tensor:
    """Room for the pairs of the groups that go through at once: taken once, as new memory costs time."""
    groups, n = pairs.lo.shape
    return pairs.anchors.new_empty(min(groups, max(1, ELEMENTS // n**2)), n, n)
