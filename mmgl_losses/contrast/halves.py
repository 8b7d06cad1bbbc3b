"""The global loss of embeddings that are two halves, rows i and i + B one image: few rows, few operations.

With some dozen embeddings the time of a loss goes to dispatching operations, not to what they compute. Row i has one
positive, i' = B rows further, so the formulas by name differ only in who is in the denominator,

    l_i = log q_i - s_ii',   q_i = sum_k e_ik,   e_ij = exp(s_ij), or 0 where j is not in the denominator of i,

nothing is sorted, no mask is formed, and all levels are one operation with its gradient written out. As e is symmetric,

    dL / dz_i = (sum_j e_ij (1 / q_i + 1 / q_j) z_j - 2 z_i') / 2Bτ,

which then loses what is along z_i and is divided by the length of the embedding.
No maximum and no shift: `fits` lets only those through whose exponentials and sums are normal numbers without one.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS = 1 << 20  # pairs: 4 MiB in float32
RANGE = 80.0  # exp of plus or minus this, and sums up to it, are normal numbers in float32


def fits(rows: int, levels: int, temperature: float) -> bool:
    """Whether embeddings can go this way; a matter of numbers and of the temperature alone."""
    if rows < 4 or torch.compiler.is_compiling():
        return False  # compiled code has few operations to dispatch in any case
    return levels * rows**2 <= ELEMENTS and 1 / temperature + math.log(rows) <= RANGE


def loss(
    levels: Sequence[Tensor], weights: Sequence[float], temperature: float, *, itself: bool, positive: bool
) -> Tensor:
    """The weighted sum over levels of the mean over embeddings; float32 or better.

    Args:
        levels: each (2B, D), B at least 2, of any length; an embedding that is 0 has no direction and no gradient.
        weights: one for each level.
        temperature: positive.
        itself: the denominator holds the product of an embedding with itself.
        positive: it holds that with the positive.
    """
    return _Loss.apply(weights, temperature, itself, positive, *levels)[0]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        weights: Sequence[float], temperature: float, itself: bool, positive: bool, *levels: Tensor
    ) -> tuple[Tensor, ...]:
        x = torch.stack(levels)
        x = x if x.dtype == torch.float64 else x.float()
        half = x.shape[1] // 2
        # As `sampling.normalise`: neither huge nor tiny elements are squared, and 0 stays 0.
        largest = torch.linalg.vector_norm(x, torch.inf, 2, keepdim=True)
        largest.masked_fill_(largest == 0, torch.inf)
        z = x / largest
        length = torch.linalg.vector_norm(z, dim=2, keepdim=True).clamp_(min=1.0)  # the largest element is 1
        z.div_(length)
        with torch.autocast(x.device.type, enabled=False):
            logits = torch.baddbmm(x.new_empty(1, 1, 1), z, z.mT, beta=0, alpha=1 / temperature)
        own, partners = logits.diagonal(0, 1, 2), (logits.diagonal(half, 1, 2), logits.diagonal(-half, 1, 2))
        met = partners[0].sum(1)  # the positives of one half, which are those of the other
        for diagonal in (() if itself else (own,)) + (() if positive else partners):
            diagonal.fill_(-torch.inf)
        exponentials = logits.exp_()
        sums = exponentials.sum(2)
        shares = torch.stack([met.new_full((), weight / (2 * half)) for weight in weights])
        loss = torch.dot(sums.log().sum(1).sub_(met, alpha=2), shares)
        return loss, z, largest, length, exponentials, sums, shares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.temperature, ctx.dtype = inputs[1], inputs[4].dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, largest, length, exponentials, sums, shares = ctx.saved_tensors
        inverse, scale = sums.reciprocal(), 1 / ctx.temperature
        pull = (inverse[:, :, None] + inverse[:, None, :]).mul_(exponentials)
        partners = z.roll(z.shape[1] // 2, 1)
        with torch.autocast(z.device.type, enabled=False):
            force = torch.baddbmm(partners, pull, z, beta=-2 * scale, alpha=scale)
        force.mul_((shares * grad)[:, None, None])
        force.addcmul_(z, (force * z).sum(2, keepdim=True), value=-1)
        return None, None, None, None, *force.div_(length).div_(largest).to(ctx.dtype).unbind()


_Loss.forward.__signature__ = inspect.signature(_Loss.forward)  # else `apply` works it out at each call
