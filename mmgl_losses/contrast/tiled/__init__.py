"""The primitive exactly, in little memory, in plain torch on any device.

With E_ij = w_j exp(s_ij), p_i and q_i its sums over P(i) and N(i), and upstream gradients g⁺, g⁻ of log p and log q and
o of the sum of positive logits,

    W_ij = j in P(i) ? E_ij g⁺_i / p_i + o_i : E_ij g⁻_i / q_i,   d anchors = W keys,   d keys = Wᵀ anchors,

and where keys = anchors both at once: (W + Wᵀ) anchors. As o is in W, forces that cancel do so pair by pair. Points of
few ids with one another go strip by strip (`strips`, which `contrast.classes` calls), all else tile by tile (`tiles`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgl_losses.contrast.pairs import Layout, Pairs
from mmgl_losses.contrast.tiled import tiles
from mmgl_losses.contrast.tiled.shift import constant_shift


def logsumexp(pairs: Pairs, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    return tiles.forward(pairs, _shift(pairs))


def gradients(
    pairs: Pairs,
    layout: Layout,
    precision: torch.dtype,
    logsumexps: Sequence[Tensor],
    grads: Sequence[Tensor],
    total: Tensor | None,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the anchors and of the keys from those of the three results, each where it is `needed`."""
    return tiles.backward(pairs, _shift(pairs), logsumexps, grads, total, needed)


def _shift(pairs: Pairs) -> float | None:
    keys = int(pairs.count.max()) if len(pairs.count) else 0
    return constant_shift(pairs.limit, keys, pairs.anchors.dtype, pairs.log_weights)
