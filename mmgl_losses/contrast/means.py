"""The mean loss of a problem as one operation, by an engine that has the formula in itself.

Between the terms of the anchors and their mean lie dozens of small operations, which on a GPU take longer to start than
the pairs of a few thousand points take. An engine that evaluates the formula where its sums lie starts none of them.
"""

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from mmgl_losses.contrast import fused
from mmgl_losses.contrast.engines import engine
from mmgl_losses.contrast.operation import refuse
from mmgl_losses.contrast.problem import Problem


def mean_losses(
    problem: Problem, formula: str, *, negatives: bool, average: bool, weight: float, impl: str
) -> Tensor | None:
    """The mean of a formula over the anchors of each group, if the engine has it: otherwise None.

    Args:
        problem: features of any type with `unit`; the rest as for `terms`.
        formula: one of the functions of `losses.formulas` by its name.
        negatives: anchors without negatives do not count.
        average: the mean over the groups with an anchor that counts, as a scalar; otherwise one number a group.
        weight: what the result is multiplied by.
        impl: the engine.
    """
    plain = type(problem.anchors) is Tensor or type(problem.anchors) is nn.Parameter
    if torch.compiler.is_compiling() or not plain or forward_ad._current_level >= 0 or _transformed():
        return None
    if engine(impl, problem) is not fused or not fused.takes(problem, formula):
        return None
    return _Means.apply(problem.anchors, problem.keys, problem, formula, negatives, average, weight)  # pyright: ignore


def _transformed() -> bool:
    """Inside `torch.func`, which sees the terms."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]


class _Means(Function):
    """The anchors and the keys of a problem -> the mean losses."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        keys: Tensor | None,
        problem: Problem,
        formula: str,
        negatives: bool,
        average: bool,
        weight: float,
    ) -> Tensor:
        loss, ctx.saved = fused.losses(problem, formula, negatives=negatives, average=average, weight=weight)
        ctx.save_for_backward(anchors, keys)
        ctx.problem = replace(problem, anchors=anchors[:0], keys=None if keys is None else keys[:0])  # others are saved
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        anchors, keys = ctx.saved_tensors
        found = _Gradients.apply(*grads, anchors, keys, ctx.problem, ctx.saved, ctx.needs_input_grad[:2])
        return *found, None, None, None, None, None  # pyright: ignore[reportGeneralTypeIssues]


class _Gradients(Function):
    """The gradient of `_Means`, which cannot be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        upstream: Tensor,
        anchors: Tensor,
        keys: Tensor | None,
        problem: Problem,
        saved: Any,
        needed: tuple[bool, bool],
    ) -> Any:
        problem = replace(problem, anchors=anchors, keys=keys)
        return fused.losses_backward(problem, saved, upstream, needed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        refuse("second derivatives", "fused")
