"""One constant shift for every exp, where the range of the logits is known and fits the type."""

import math

import torch
from torch import Tensor

from mmgl_losses.contrast.problem import Upstream

LOG2_E = 1 / math.log(2)  # exp2 is several times faster than exp, so with a shift logits are in units of log 2


def constant_shift(
    limit: Tensor | None, keys: int, dtype: torch.dtype, log_weights: Tensor | None = None
) -> float | None:
    """The constant c with which every exp(s - c) and their sums are normal numbers, or None where there is none.

    Normal for all pairs: c <= -log(tiny) - limit; no overflow of a sum: c >= limit + log(keys) - log(max).
    """
    if limit is None:
        return None
    info = torch.finfo(dtype)
    reach = limit.item()
    if log_weights is not None:
        reach += log_weights.abs().max().item()
    least = max(0.0, reach + math.log(max(keys, 1)) - math.log(info.max) + 0.1)
    return least if least <= -math.log(info.tiny) - reach else None


def factors(upstream: Upstream, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """What exp(s - shift) of positives and of negatives is multiplied by, (G, N) each, and their common size.

    Factors reach exp(-88): without the size taken out first, small gradients would become denormal.
    """
    up, down = upstream.gradients
    size = torch.maximum(up.abs().max(), down.abs().max())
    size = torch.where(size == 0, 1.0, size)
    pairs = zip(upstream.gradients, upstream.logsumexps, strict=True)
    positive, negative = (grad / size * (shift - lse).exp() for grad, lse in pairs)
    return positive, negative, size
