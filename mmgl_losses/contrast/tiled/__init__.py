"""The primitive exactly, in memory linear in the number of points, in plain torch on any device.

With E_ij = w_j exp(s_ij), p_i and q_i its sums over P(i) and N(i), and upstream gradients g⁺, g⁻ of log p and log q and
o of the sum of positive logits,

    W_ij = j in P(i) ? E_ij g⁺_i / p_i + o_i : E_ij g⁻_i / q_i,   d anchors = W keys,   d keys = Wᵀ anchors,

and where keys = anchors both at once: (W + Wᵀ) anchors. As o is in W, forces that cancel do so pair by pair. Points of
few ids with one another go strip by strip (`strips`), all else tile by tile (`tiles`).
"""

from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream
from mmgl_losses.contrast.ranges import Sorted, sort, unsort
from mmgl_losses.contrast.tiled import strips, tiles
from mmgl_losses.contrast.tiled.shift import constant_shift

NORMALISES: bool = False


def refuses(problem: Problem) -> None:
    """It takes everything."""


def suits(problem: Problem) -> bool:
    """Always."""
    return True


def forward(problem: Problem) -> Results:
    """Log-sum-exps, sum of positive logits, and counts."""
    points = strips.arrange(problem)
    if points is not None:
        return strips.forward(points, problem)
    pairs = sort(problem)
    results = *tiles.forward(pairs, _shift(pairs)), pairs.positive_sum(), *pairs.counts()
    return Results(*(unsort(x, pairs.order) for x in results)).masked(problem.anchor_mask)


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, each where it is `needed`."""
    points = strips.arrange(problem)
    if points is not None:
        return strips.backward(points, problem, upstream), None
    pairs = sort(problem)
    anchors, keys = tiles.backward(pairs, _shift(pairs), upstream.at(pairs.order), needed)
    return pairs.given(anchors, keys)


def _shift(pairs: Sorted) -> float | None:
    keys = int(pairs.count.max()) if len(pairs.count) else 0
    return constant_shift(pairs.limit, keys, pairs.anchors.dtype, pairs.log_weights)
