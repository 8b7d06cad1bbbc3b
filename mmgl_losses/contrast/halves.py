"""All terms where the ids are known to be two halves, 0 ... B - 1 and again 0 ... B - 1: few rows, few operations.

With some dozen embeddings the time of a loss goes to dispatching operations, not to what they compute. Anchor i has one
positive, B rows further, so the positives are two diagonals of the logits and need no sum, nothing is sorted and no
mask is formed; and the gradient is written out. With E_ij = exp(s_ij) over negatives, q_i its sums, and the upstream
gradients g⁻ of log q, g⁺ of the positive's logit (as a log-sum-exp and as a sum), o of the anchor's own logit,

    W_ij = E_ij g⁻_i / q_i + [j = i ± B] g⁺_i + [j = i] o_i,   d anchors = (W + Wᵀ) anchors / τ.

No maximum and no shift: `fits` lets only those through whose exponentials and sums are normal numbers without one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS = 1 << 20  # pairs: 4 MiB in float32
RANGE = 80.0  # exp of plus or minus this, and sums up to it, are normal numbers in float32


def fits(anchors: Tensor, temperature: float) -> bool:
    """Whether unit vectors (G, 2B, D) can go this way; a matter of shapes and of the temperature alone."""
    if anchors.shape[1] < 4 or torch.compiler.is_compiling():
        return False  # compiled code has few operations to dispatch in any case
    return len(anchors) * anchors.shape[1] ** 2 <= ELEMENTS and 1 / temperature + math.log(anchors.shape[1]) <= RANGE


def pair_terms(anchors: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """The terms of `PairTerms` of unit vectors (G, 2B, D), B at least 2, each (G, 2B)."""
    positives, negatives, own, _ = _Terms.apply(anchors, temperature)
    n_positives = torch.full(anchors.shape[:2], 1, device=anchors.device)
    n_negatives = torch.full(anchors.shape[:2], anchors.shape[1] - 2, device=anchors.device)
    return positives, negatives, positives, own, n_positives, n_negatives


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(anchors: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(anchors.device.type, enabled=False):
            logits = torch.baddbmm(anchors.new_empty(1, 1, 1), anchors, anchors.mT, beta=0, alpha=1 / temperature)
        first, second, itself = _diagonals(logits)
        positives, own = torch.cat([first, second], 1), itself.clone()
        for diagonal in (first, second, itself):
            diagonal.fill_(-torch.inf)
        exponentials = logits.exp_()
        return positives, exponentials.sum(2).log_(), own, exponentials

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        anchors, ctx.temperature = inputs
        _, negatives, _, exponentials = output
        ctx.mark_non_differentiable(exponentials)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(anchors, negatives, exponentials)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        positives, negatives, own, _ = grads
        anchors, logs, exponentials = ctx.saved_tensors
        # Shares first: exp(-logs) reaches exp(-80), and times a small gradient it would lose its digits.
        weights = exponentials * (-logs).exp()[..., None]
        weights = weights.mul_(negatives[..., None]) if negatives is not None else weights.zero_()
        first, second, itself = _diagonals(weights)
        if positives is not None:
            first.copy_(positives[:, : first.shape[1]])
            second.copy_(positives[:, first.shape[1] :])
        if own is not None:
            itself.copy_(own)
        with torch.autocast(anchors.device.type, enabled=False):
            both = weights + weights.mT
            return torch.baddbmm(anchors, both, anchors, beta=0, alpha=1 / ctx.temperature), None


def _diagonals(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (G, 2B, 2B): where the first half meets its positives, the second half, and each row itself."""
    half = matrices.shape[1] // 2
    return matrices.diagonal(half, 1, 2), matrices.diagonal(-half, 1, 2), matrices.diagonal(0, 1, 2)
