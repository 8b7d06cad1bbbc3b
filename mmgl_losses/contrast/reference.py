"""The primitive written plainly: every pair at once, gradients by autograd. The oracle of the other implementations."""

import torch
from torch import Tensor


def contrast(
    anchors: Tensor,
    keys: Tensor | None,
    ids: Tensor,
    key_ids: Tensor | None,
    *,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp over positives and negatives, sum of positive logits, numbers of both; each (G, N).

    Products of anchors (G, N, D) and keys (G, M, D) are logits; masked rows are zeros.
    """
    other = anchors if keys is None else keys
    logits = anchors @ other.mT
    column = torch.arange(other.shape[1], device=ids.device)
    pairs = torch.ones_like(logits, dtype=torch.bool)
    if key_mask is not None:
        pairs = pairs & key_mask[:, None, :]
    if anchor_mask is not None:
        pairs = pairs & anchor_mask[..., None]
    if keys is None:
        pairs = pairs & (column != column[:, None])
    elif self_index is not None:
        pairs = pairs & (column != self_index[..., None])
    key_ids = ids if key_ids is None else key_ids
    if tolerance is None:
        same = ids[..., None] == key_ids[:, None, :]
    else:
        same = (ids[..., None] - key_ids[:, None, :]).abs() <= tolerance
    positive, negative = pairs & same, pairs & ~same
    total = logits.masked_fill(~positive, 0.0).sum(-1)
    if key_log_weights is not None:
        logits = logits + key_log_weights[:, None, :]
    lse = _logsumexp(logits, positive), _logsumexp(logits, negative)
    return *lse, total, positive.sum(-1), negative.sum(-1)


def _logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    empty = ~mask.any(-1)
    logits = logits.masked_fill(~mask, -torch.inf).masked_fill(empty[..., None], 0.0)
    return logits.logsumexp(-1).masked_fill(empty, -torch.inf)
