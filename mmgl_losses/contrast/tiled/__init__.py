"""The primitive exactly, in little memory, in plain torch on any device.

With E_ij = w_j exp(s_ij), p_i and q_i its sums over P(i) and N(i), and upstream gradients g⁺, g⁻ of log p and log q,

    W_ij = E_ij · (j in P(i) ? g⁺_i / p_i : g⁻_i / q_i),   d anchors = W keys,   d keys = Wᵀ anchors,

and where keys = anchors both at once: (W + Wᵀ) anchors. Few points of few ids go through at once (`batched`),
everything else tile by tile (`tiles`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgl_losses.contrast.pairs import Pairs
from mmgl_losses.contrast.tiled import batched, tiles
from mmgl_losses.contrast.tiled.shift import constant_shift, factors


def logsumexp(pairs: Pairs, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    shift = constant_shift(pairs)
    ids = batched.one_hot(pairs) if shift is not None else None
    if shift is None or ids is None:
        return tiles.forward(pairs, shift)
    return batched.forward(pairs, ids, shift)


def gradients(
    pairs: Pairs,
    precision: torch.dtype,
    logsumexps: Sequence[Tensor],
    grads: Sequence[Tensor],
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the anchors and of the keys from those of the two results, each where it is `needed`."""
    shift = constant_shift(pairs)
    ids = batched.one_hot(pairs) if shift is not None else None
    if shift is None or ids is None:
        return tiles.backward(pairs, shift, logsumexps, grads, needed)
    positive, negative, size = factors(grads, logsumexps, shift)
    return batched.backward(pairs, ids, shift, positive, negative).mul_(size), None
