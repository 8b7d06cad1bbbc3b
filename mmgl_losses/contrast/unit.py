"""Unit vectors, and the gradient through them."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from mmgl_losses import checks


def widened(x: Tensor) -> Tensor:
    """float32 for half precision: products of features are summed in no less."""
    return x if x.dtype == torch.float64 else x.float()


def normalise(x: Tensor) -> Tensor:
    """Unit vectors along the last axis, in float32 or better, whatever the length of `x`.

    Each vector is first divided by its largest element, so that huge ones do not overflow nor tiny ones vanish.
    A zero vector stays zero, with a zero gradient: it has no direction.

    Args:
        x: (..., D), floating point.

    Returns:
        (..., D), float32 for half precision and float32, float64 for float64.

    Example:
        >>> normalise(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = widened(checks.floating("x", x))
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return unit(x)[0]
    return _Unit.apply(x)[0]  # pyright: ignore[reportIndexIssue]


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and lengths (..., 1) of x; a zero vector is divided by infinity."""
    largest = x.detach().abs().amax(-1, keepdim=True)  # ten times as fast as torch's infinity norm
    largest = largest.masked_fill(largest == 0, torch.inf)
    scaled = x / largest
    length = torch.linalg.vector_norm(scaled, 2, -1, keepdim=True).clamp(min=1.0)  # of its largest element alone: 1
    return scaled / length, length * largest


unit.__signature__ = inspect.signature(unit)  # else `apply` works it out at each call


def through(z: Tensor, length: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the points from that of their unit vectors: dx = (dz - z <z, dz>) / |x|."""
    return (gradient - z * (z * gradient).sum(-1, keepdim=True)) / length


class _Unit(Function):
    """`unit` with its gradient in few operations."""

    generate_vmap_rule = True
    forward = staticmethod(unit)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        (z, length), (along, outward) = ctx.saved_tensors, grads
        found = None if along is None else through(z, length, along)
        if outward is not None:  # of second derivatives: d|x| = <z, dx>
            found = outward * z if found is None else found + outward * z
        return found
