"""The primitive with every pair at once: the oracle of the other engines, and the engine of small problems.

Every step is a differentiable operation of torch, the gradient's steps too, so derivatives of any order are right.

Masks are numbers, 1 or 0, and pairs that do not count are pushed below any logit: on a CPU a product with a mask is
several times as fast as a selection by it. Logits are in units of log 2, as exp2 is faster than exp, and never slow.
"""

import math

import torch
from torch import Tensor

from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream

NORMALISES: bool = False
# Where the rows are few, time goes to starting operations, and this engine starts the fewest.
FEW_PAIRS = 1 << 15
FEW_ROWS, PAIRS = 256, 1 << 20
PAIRS_GPU = 1 << 18
LOG2_E = 1 / math.log(2)


def refuses(problem: Problem) -> None:
    """It takes everything."""


def suits(problem: Problem) -> bool:
    """Few pairs, or none."""
    if problem.anchors.device.type != "cpu":
        return problem.pairs <= PAIRS_GPU
    few = problem.ids.shape[1] <= FEW_ROWS and problem.others.shape[1] <= FEW_ROWS
    return problem.pairs <= (PAIRS if few else FEW_PAIRS)


def forward(problem: Problem) -> Results:
    """Log-sum-exps, sum of positive logits, and counts."""
    logits, positive, counted = _logits(problem), *_masks(problem)
    total = (logits * positive).sum(-1) / LOG2_E
    logits = _weighted(problem, logits)
    (positives, n_positives), (negatives, n_negatives) = (
        _logsumexp(logits, kind) for kind in (positive, counted - positive)
    )
    return Results(positives, negatives, total, n_positives, n_negatives)


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    r"""Gradients of anchors and keys: d anchors = W keys, d keys = Wᵀ anchors.

    With upstream gradients g⁺, g⁻ of the log-sum-exps p, q and o of the sum of positive logits,

    .. math:: W_{ij} = [j \in P(i)] (w_j e^{s_{ij} - p_i} g^+_i + o_i) + [j \in N(i)] w_j e^{s_{ij} - q_i} g^-_i
    """
    positive, counted = _masks(problem)
    negative = counted - positive

    def spread(of_positives: Tensor, of_negatives: Tensor) -> Tensor:
        """A number of each anchor at its positives, another at its negatives, 0 elsewhere."""
        return positive * of_positives[..., None] + negative * of_negatives[..., None]

    huge = _huge(counted)
    lse = spread(*(x.clamp(max=huge) * LOG2_E for x in upstream.logsumexps))
    exponents = _weighted(problem, _logits(problem)) - lse + (counted - 1) * huge
    weights = exponents.exp2() * spread(*upstream.gradients)
    if upstream.positive_sum is not None:
        weights = weights + positive * upstream.positive_sum[..., None]
    if problem.keys is None:
        return (weights + weights.mT) @ (problem.scale * problem.anchors), None
    return (
        weights @ (problem.scale * problem.keys) if needed[0] else None,
        weights.mT @ (problem.scale * problem.anchors) if needed[1] else None,
    )


def _logsumexp(logits: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp over the pairs of a kind (1 or 0), -inf where there are none; and how many there are."""
    number = kind.sum(-1)
    logits = logits + (kind - 1) * _huge(kind)
    largest = logits.detach().amax(-1, keepdim=True)
    sums = (logits - largest).exp2().sum(-1)
    lse = (sums.log2() + largest.squeeze(-1)) / LOG2_E
    return lse.masked_fill(number == 0, -torch.inf), number.long()


def _huge(like: Tensor) -> float:
    """Beyond any logit, and so far below infinity that some of it can be added up."""
    return torch.finfo(like.dtype).max / 8


def _logits(problem: Problem) -> Tensor:
    return (problem.scale * LOG2_E * problem.anchors) @ problem.others.mT


def _weighted(problem: Problem, logits: Tensor) -> Tensor:
    weights = problem.key_log_weights
    return logits if weights is None else logits + LOG2_E * weights[:, None, :]


def _masks(problem: Problem) -> tuple[Tensor, Tensor]:
    """1 for the positives of each anchor, and 1 for its positives and negatives; (G, N, M), or broadcast to it."""
    ids, key_ids, dtype = problem.ids[..., None], problem.other_ids[:, None, :], problem.anchors.dtype
    same = ids == key_ids if problem.tolerance is None else (ids - key_ids).abs() <= problem.tolerance
    column = torch.arange(key_ids.shape[2], device=ids.device)
    counted = None
    if problem.own:
        counted = column != column[:, None]
    elif problem.self_index is not None:
        counted = column != problem.self_index[..., None]
    for mask in (
        None if problem.key_mask is None else problem.key_mask[:, None, :],
        None if problem.anchor_mask is None else problem.anchor_mask[..., None],
    ):
        if mask is not None:
            counted = mask if counted is None else counted & mask
    if counted is None:
        return same.to(dtype), torch.ones_like(same, dtype=dtype)
    return (same & counted).to(dtype), counted.to(dtype)
