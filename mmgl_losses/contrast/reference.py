"""The primitive written plainly, with every pair at once: the oracle, and the engine of small problems.

Every step is a differentiable operation of torch, its gradient included: derivatives of any order are right here.
"""

import torch
from torch import Tensor

from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream

# Up to so many pairs this is the engine to take: it runs few operations, and none waits for a device.
PAIRS, PAIRS_GPU = 1 << 15, 1 << 18


def refuses(problem: Problem) -> None:
    """It takes everything."""


def suits(problem: Problem) -> bool:
    """Few pairs, or none."""
    return problem.pairs <= (PAIRS if problem.anchors.device.type == "cpu" else PAIRS_GPU)


def forward(problem: Problem) -> Results:
    """Log-sum-exps, sum of positive logits, and counts."""
    logits, (positive, negative) = _logits(problem), _kinds(problem)
    total = torch.where(positive, logits, 0.0).sum(-1)
    logits = _weighted(problem, logits)
    found = []
    for kind, number in zip((positive, negative), counts := (positive.sum(-1), negative.sum(-1)), strict=True):
        # A fill of -inf would give the derivative NaN where there is nothing at all.
        filled = torch.where(kind, logits, torch.finfo(logits.dtype).min)
        found.append(filled.logsumexp(-1).masked_fill(number == 0, -torch.inf))
    return Results(found[0], found[1], total, *counts)


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    r"""Gradients of anchors and keys: d anchors = W keys, d keys = Wᵀ anchors.

    With upstream gradients g⁺, g⁻ of the log-sum-exps p, q and o of the sum of positive logits,

    .. math:: W_{ij} = [j \in P(i)] (w_j e^{s_{ij} - p_i} g^+_i + o_i) + [j \in N(i)] w_j e^{s_{ij} - q_i} g^-_i
    """
    (positives, negatives), (up, down), total = upstream
    positive, negative = _kinds(problem)
    logits = _weighted(problem, _logits(problem))
    # Of the pairs that do not count, the exponent is -inf before exp is taken, so that none overflows.
    lse = torch.where(positive, positives[..., None], negatives[..., None])
    shares = torch.where(positive | negative, logits - lse, -torch.inf).exp()
    weights = shares * torch.where(positive, up[..., None], down[..., None])
    if total is not None:
        weights = weights + positive * total[..., None]
    weights = weights * problem.scale
    if problem.keys is None:
        return (weights + weights.mT) @ problem.anchors, None
    return weights @ problem.keys if needed[0] else None, weights.mT @ problem.anchors if needed[1] else None


def _logits(problem: Problem) -> Tensor:
    return problem.scale * problem.anchors @ problem.others.mT


def _weighted(problem: Problem, logits: Tensor) -> Tensor:
    weights = problem.key_log_weights
    return logits if weights is None else logits + weights[:, None, :]


def _kinds(problem: Problem) -> tuple[Tensor, Tensor]:
    """Which keys are positives and which are negatives of each anchor, (G, N, M) bool each."""
    ids, key_ids = problem.ids[..., None], problem.other_ids[:, None, :]
    same = ids == key_ids if problem.tolerance is None else (ids - key_ids).abs() <= problem.tolerance
    column = torch.arange(key_ids.shape[2], device=ids.device)
    counts = None
    if problem.own:
        counts = column != column[:, None]
    elif problem.self_index is not None:
        counts = column != problem.self_index[..., None]
    if problem.key_mask is not None:
        counts = problem.key_mask[:, None, :] if counts is None else counts & problem.key_mask[:, None, :]
    if problem.anchor_mask is not None:
        counts = problem.anchor_mask[..., None] if counts is None else counts & problem.anchor_mask[..., None]
    return (same, ~same) if counts is None else (same & counts, ~same & counts)
