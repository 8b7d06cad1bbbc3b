"""The contrast as one operation: to autograd and `torch.func` a function, to the compiler a single node.

Run as it is, a problem goes to its engine directly. Under ``torch.compile`` and ``torch.export`` it is an operator, so
that they do not look inside, where engines sort, count ids and choose by size. Both share what is written here.

Higher and forward-mode derivatives: the reference engine is made of differentiable operations, its gradient included.
Any other engine has a gradient and no more, and says so to whoever asks; what ``"auto"`` gave to such an engine goes to
the reference there, where that suits.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from mmgl_losses import checks
from mmgl_losses.contrast import reference
from mmgl_losses.contrast.engines import engine
from mmgl_losses.contrast.problem import TENSORS, Gradients, Problem, Results, Upstream
from mmgl_losses.contrast.unit import through, unit

_FIELDS = (
    "Tensor anchors, Tensor? keys, Tensor ids, Tensor? key_ids, Tensor? self_index, Tensor? anchor_mask, "
    "Tensor? key_mask, Tensor? key_log_weights, Tensor? limit, float scale, float? tolerance, bool unit, "
    "ScalarType precision, str impl"
)
_RESULTS = "Tensor positives, Tensor negatives, Tensor n_positives, Tensor n_negatives"
_UPSTREAM = "Tensor? grad_positives, Tensor? grad_negatives, Tensor? grad_sum, bool needs_anchors, bool needs_keys"


def contrast(problem: Problem, impl: str) -> Results:
    """The results of a problem, in the order of its anchors, by the engine `impl`."""
    plain = type(problem.anchors) is Tensor or type(problem.anchors) is nn.Parameter
    if torch.compiler.is_compiling() or not plain:  # fake tensors come without the compiler too
        return Results(*_operator(*problem.normalised().values(), impl))
    forward_mode = forward_ad._current_level >= 0
    if forward_mode or not engine(impl, problem).NORMALISES:
        problem = problem.normalised()  # a step of its own, which saves the unit vectors for its gradient
    if forward_mode and differentiable(impl, problem):
        return reference.forward(problem) if problem.pairs else Results.nothing(problem)
    return Results(*_Contrast.apply(*problem.values(), impl))  # pyright: ignore[reportGeneralTypeIssues]


def differentiable(impl: str, problem: Problem) -> bool:
    """Whether the reference takes it where derivatives of the engine's own operations are wanted."""
    return reference.suits(problem) if impl == "auto" else engine(impl, problem) is reference


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    *fields, impl = arguments
    problem = Problem(*fields)
    solver = engine(impl, problem)
    if not problem.pairs:
        return tuple(Results.nothing(problem))
    with _full_precision(problem):
        return tuple(solver.forward(problem))


def _backward(*arguments: Any) -> Gradients:
    """Gradients of anchors and keys from the fields of a problem, its results, and their gradients."""
    fields, impl, results, grads, needed = _parts(arguments)
    problem = Problem(*fields)
    if not problem.pairs:
        sides = zip((problem.anchors, problem.keys), needed, strict=True)
        # A sum of nothing keeps the graph, for derivatives of this gradient.
        first, second = (torch.zeros_like(x) + x.flatten()[:0].sum() if x is not None and n else None for x, n in sides)
        return first, second
    upstream = _upstream(results, grads)
    solver = engine(impl, problem)
    with _full_precision(problem):
        if solver.NORMALISES or not problem.unit:
            return solver.backward(problem, upstream, needed)
        # Where derivatives of a gradient are wanted, and the reference takes over from an engine that normalises.
        sides = [None if x is None else unit(x) for x in (problem.anchors, problem.keys)]
        z, k = (None if side is None else side[0] for side in sides)
        found = solver.backward(replace(problem, anchors=z, keys=k, unit=False), upstream, needed)
        first, second = (
            None if side is None or gradient is None else through(*side, gradient)
            for side, gradient in zip(sides, found, strict=True)
        )
        return first, second


def _upstream(results: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Upstream:
    """The gradients of the results, kept away, even NaN, from rows that have no such pairs."""
    lse, empty = results[:2], [number == 0 for number in results[2:]]
    gradients = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(lse, grads, strict=False)]
    total = grads[2]
    if not all(checks.readable(none) and not none.any() for none in empty):
        lse = [x.masked_fill(none, torch.inf) for x, none in zip(lse, empty, strict=True)]
        gradients = [x.masked_fill(none, 0.0) for x, none in zip(gradients, empty, strict=True)]
        total = None if total is None else total.masked_fill(empty[0], 0.0)
    return Upstream(lse, gradients, total)


def _parts(arguments: Any) -> tuple[Any, str, Any, Any, tuple[bool, bool]]:
    """Fields of the problem, name of the engine, saved results, gradients of the results, which gradients to give."""
    *fields, impl, a, b, c, d, grad_positives, grad_negatives, grad_sum, needs_anchors, needs_keys = arguments
    return fields, impl, (a, b, c, d), (grad_positives, grad_negatives, grad_sum), (needs_anchors, needs_keys)


def _full_precision(problem: Problem) -> AbstractContextManager[Any]:
    """Autocast would multiply in half precision."""
    kind = problem.anchors.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    positives, negatives, _, n_positives, n_negatives = output
    ctx.plain = inputs[TENSORS:]
    ctx.mark_non_differentiable(n_positives, n_negatives)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:TENSORS], positives, negatives, n_positives, n_negatives)


def _saved(ctx: Any, grads: Any) -> tuple[Any, ...]:
    """The arguments of `_backward`."""
    tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad[0], tensors[1] is not None and ctx.needs_input_grad[1]
    return *tensors[:TENSORS], *ctx.plain, *tensors[TENSORS:], *grads[:3], *needed


def _none_for_the_rest(ctx: Any, gradients: Gradients) -> tuple[Tensor | None, ...]:
    return *gradients, *[None] * (len(ctx.needs_input_grad) - 2)


_forward.__signature__ = inspect.signature(_forward)  # else `apply` works it out at each call
_backward.__signature__ = inspect.signature(_backward)


class _Contrast(Function):
    """The problem's fields and the name of an engine -> the results."""

    forward = staticmethod(_forward)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        arguments, compute = _saved(ctx, grads), _backward
        fields, impl, *_ = _parts(arguments)
        if torch.is_grad_enabled():  # as by `create_graph`: the gradient is to be differentiated in its turn
            if differentiable(impl, Problem(*fields)):
                arguments = *fields, "reference", *arguments[len(fields) + 1 :]
            else:
                compute = _Gradient.apply
        return _none_for_the_rest(ctx, compute(*arguments))  # pyright: ignore[reportArgumentType]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        refuse("forward-mode derivatives", ctx.plain[-1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _in_groups(_Contrast, info.batch_size, in_dims, arguments)


class _Gradient(Function):
    """`_backward` of an engine whose gradient cannot be differentiated."""

    forward = staticmethod(_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.impl = _parts(inputs)[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        refuse("second derivatives", ctx.impl)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        refuse("second derivatives", ctx.impl)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _in_groups(_Gradient, info.batch_size, in_dims, arguments)


def _in_groups(function: Any, batch: int, in_dims: Any, arguments: Any) -> Any:
    """A function of problems under vmap: the mapped axis becomes more groups."""

    def grouped(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        if dim is not None:
            x = x.movedim(dim, 0)
        if x.ndim == (0 if dim is None else 1):  # the limit of the logits
            return x if dim is None else x.amax()
        return (x.expand(batch, *x.shape) if dim is None else x).flatten(0, 1)

    outputs = function.apply(*map(grouped, arguments, in_dims))
    return (
        tuple(x if x is None else x.unflatten(0, (batch, -1)) for x in outputs),
        tuple(None if x is None else 0 for x in outputs),
    )


def refuse(what: str, impl: str) -> NoReturn:
    """Say which engine has no such derivatives, and which has."""
    engine = "the engine that impl='auto' chose" if impl == "auto" else f"impl={impl!r}"
    cure = "It forms all pairs: use it for few points."
    raise NotImplementedError(checks.message(f"impl='reference' for {what}", engine, cure))


def _give(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`_backward` as an operator gives it: an empty tensor stands for None."""
    none = arguments[0].new_empty(0)
    first, second = _backward(*arguments)
    return none if first is None else first, none.clone() if second is None else second


_schema = f"({_FIELDS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
_operator = torch.library.custom_op("mmgl_losses::contrast", _forward, mutates_args=(), schema=_schema)
_schema = f"({_FIELDS}, {_RESULTS}, {_UPSTREAM}) -> (Tensor, Tensor)"
_operator_backward = torch.library.custom_op("mmgl_losses::contrast_backward", _give, mutates_args=(), schema=_schema)


@_operator.register_fake
def _(anchors, keys, ids, *_):
    counts = (ids.new_empty(ids.shape, dtype=torch.int64) for _ in range(2))
    return *(anchors.new_empty(ids.shape) for _ in range(3)), *counts


@_operator_backward.register_fake
def _(anchors, keys, *rest):
    *_, needs_anchors, needs_keys = rest
    return (
        torch.empty_like(anchors) if needs_anchors else anchors.new_empty(0),
        anchors.new_empty(0) if keys is None or not needs_keys else torch.empty_like(keys),
    )


def _autograd(ctx: Any, *grads: Any) -> Any:
    arguments = _saved(ctx, grads)
    pairs = zip(_operator_backward(*arguments), arguments[-2:], strict=True)
    return _none_for_the_rest(ctx, tuple(grad if needed else None for grad, needed in pairs))  # pyright: ignore


_operator.register_autograd(_autograd, setup_context=_setup_context)
_operator_backward.register_autograd(
    lambda ctx, *grads: refuse("second derivatives", ctx.impl),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "impl", _parts(inputs)[1]),
)
