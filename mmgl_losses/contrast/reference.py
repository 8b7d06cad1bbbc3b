"""The primitive written plainly: every pair at once, gradients by autograd. The oracle of the other two."""

import torch
from torch import Tensor

from mmgl_losses.contrast.pairs import Pairs


def pair_logsumexp(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    keys = pairs.anchors if pairs.keys is None else pairs.keys
    logits = pairs.anchors @ keys.mT
    if pairs.log_weights is not None:
        logits = logits + pairs.log_weights[:, None, :]
    column = torch.arange(keys.shape[1], device=keys.device)
    positive = (column >= pairs.lo[..., None]) & (column < pairs.hi[..., None])
    takes_part = column < pairs.count[:, None, None]
    if pairs.keys is None:
        takes_part = takes_part & (column != torch.arange(keys.shape[1], device=keys.device)[:, None])
    elif pairs.itself is not None:
        takes_part = takes_part & (column != pairs.itself[..., None])
    return _logsumexp(logits, positive & takes_part), _logsumexp(logits, ~positive & takes_part)


def _logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    empty = ~mask.any(-1)
    logits = logits.masked_fill(~mask, -torch.inf).masked_fill(empty[..., None], 0.0)
    return logits.logsumexp(-1).masked_fill(empty, -torch.inf)
