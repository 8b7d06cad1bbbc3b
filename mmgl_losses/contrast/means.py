"""The mean loss of a problem as one operation, by an engine that has the formula in itself.

Between the terms of the anchors and their mean lie dozens of small operations. They take longer to start than the
pairs of a few hundred points take on a CPU, or of a few thousand on a GPU. An engine that evaluates the formula where
its sums lie starts none of them.
"""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from mmgl_losses.contrast import fused, native
from mmgl_losses.contrast.engines import engine
from mmgl_losses.contrast.operation import differentiable, refuse
from mmgl_losses.contrast.problem import Engine, Gradients, Problem

FromTerms: TypeAlias = Callable[[Problem, str], Tensor]


class MeanEngine(Engine, Protocol):
    """An engine with formulas in itself. Features may be of any floating-point type."""

    def takes(self, problem: Problem, formula: str) -> bool:
        """Whether `losses` has the formula for this problem."""
        ...

    def losses(
        self, problem: Problem, formula: str, *, negatives: bool, average: bool, weight: float
    ) -> tuple[Tensor, Any]:
        """The loss, as of `mean_losses`, and what its gradient needs."""
        ...

    def losses_backward(self, problem: Problem, saved: Any, upstream: Tensor, needed: tuple[bool, bool]) -> Gradients:
        """Gradients of anchors and keys from that of the loss, each where it is `needed`."""
        ...


MEAN_ENGINES: tuple[MeanEngine, ...] = (native, fused)


def mean_losses(
    problem: Problem, formula: str, from_terms: FromTerms, *, negatives: bool, average: bool, weight: float, impl: str
) -> Tensor:
    """The mean of a formula over the anchors of each group: in the engine, or from the terms where it cannot do that.

    Args:
        problem: features of any type with `unit`; the rest as for `terms`.
        formula: one of the functions of `losses.formulas` by its name.
        from_terms: computes the same of a problem by an engine from the terms.
        negatives: anchors without negatives do not count.
        average: the mean over the groups with an anchor that counts, as a scalar; otherwise one number a group.
        weight: what the result is multiplied by.
        impl: the engine.
    """
    plain = type(problem.anchors) is Tensor or type(problem.anchors) is nn.Parameter
    if torch.compiler.is_compiling() or not plain or forward_ad._current_level >= 0 or _transformed():
        return from_terms(problem, impl)
    found = engine(impl, problem)
    solver = next((known for known in MEAN_ENGINES if known is found and known.takes(problem, formula)), None)
    if solver is None:
        return from_terms(problem, impl)
    given = solver, problem, {"negatives": negatives, "average": average, "weight": weight}
    return _Means.apply(problem.anchors, problem.keys, *given, formula, from_terms, impl)  # pyright: ignore


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
        solver: MeanEngine,
        problem: Problem,
        options: dict[str, Any],
        formula: str,
        from_terms: FromTerms,
        impl: str,
    ) -> Tensor:
        loss, ctx.saved = solver.losses(problem, formula, **options)
        ctx.save_for_backward(anchors, keys)
        ctx.fields = problem.values()[2:]  # the first two are saved
        ctx.solver, ctx.from_terms, ctx.impl = solver, from_terms, impl
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        anchors, keys = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        problem = Problem(anchors, keys, *ctx.fields)
        if not torch.is_grad_enabled():
            found = ctx.solver.losses_backward(problem, ctx.saved, *grads, needed)
        elif differentiable(ctx.impl, problem):  # as by `create_graph`: the gradient is differentiated in its turn
            sides = [side for side, need in zip((anchors, keys), needed, strict=True) if need]
            loss = ctx.from_terms(problem, "reference")
            some = iter(torch.autograd.grad(loss, sides, grads, create_graph=True))
            found = tuple(next(some) if need else None for need in needed)
        else:
            found = _Gradients.apply(*grads, anchors, keys, problem, ctx)  # pyright: ignore[reportGeneralTypeIssues]
        return *found, None, None, None, None, None, None  # pyright: ignore[reportGeneralTypeIssues]


class _Gradients(Function):
    """The gradient of `_Means`, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, upstream: Tensor, anchors: Tensor, keys: Tensor | None, problem: Problem, means: Any) -> Any:
        ctx.impl = means.impl
        return means.solver.losses_backward(problem, means.saved, upstream, means.needs_input_grad[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        refuse("second derivatives", ctx.impl)
