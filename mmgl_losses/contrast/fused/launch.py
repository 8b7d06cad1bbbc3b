"""The order of launches: sums of pairs, what they end in, and gradients."""
# Triton types a kernel as the function it is written as, not as what takes a grid, tensors and options.
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.fused import backward_kernels as gradients
from mmgl_losses.contrast.fused import finish_kernels as ends
from mmgl_losses.contrast.fused import forward_kernels as sums
from mmgl_losses.contrast.fused import plan
from mmgl_losses.contrast.fused.arrange import LOG2_E, Pairs, Side
from mmgl_losses.contrast.problem import Gradients, Results, Upstream


class Parts(NamedTuple):
    """Sums over pairs, in the order of places."""

    parts: Tensor  #: (chunks, 3, G, N) log-sum-exps of `rows`, or (1, 3, G, N) sums of `credit`
    credit: bool  #: the second
    shifted: tuple[bool, ...]  #: with the shift, with maxima instead, or with what turns out to fit


def sum_pairs(pairs: Pairs, *, total: bool) -> list[Parts]:
    """Sums over positives and negatives, and of positive logits if their `total` is wanted.

    One for each way of summing that is launched: those that are not meant hold nothing.
    """
    few = max(pairs.problem.ids.shape[1], pairs.problem.others.shape[1]) <= plan.FEW
    plain = pairs.own and pairs.shifted[0] and not few
    credited = plain and not torch.are_deterministic_algorithms_enabled()
    found = [Parts(credit(pairs, total=total), True, (True,))] if credited else []
    left = pairs.shifted[credited:]
    return [*found, Parts(rows(pairs, left, total=total), False, left)] if left else found


def credit(pairs: Pairs, *, total: bool) -> Tensor:
    """Sums of exponentials and of logits (1, 3, G, N), each pair of tiles formed once."""
    z, dtype, (groups, n) = pairs.anchors.operand, pairs.problem.precision, pairs.problem.ids.shape
    cut = plan.cut_for("credit", dtype, z.shape[2], z.device)
    tiles = plan.ceil(n, cut.x)
    chunk = max(4, plan.ceil(groups * tiles * tiles, 2 * plan.WAVES * plan.PROGRAMS))  # tiles of a program
    chunks = plan.ceil(tiles, chunk)
    found = torch.zeros((1, 3, groups, n), device=z.device)
    sums.credit[(groups * tiles * chunks,)](
        z, pairs.anchors.lo, pairs.anchors.hi, pairs.number, pairs.weights[True], pairs.shift, found,
        n, z.shape[1], tiles, chunks, chunk,
        BLOCK=cut.x, NARROW=plan.narrow(cut.x, dtype), D=z.shape[2], SUM=total, WEIGHTED=weighted(pairs),
        PRECISION=plan.precision(dtype), num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return found


def rows(pairs: Pairs, shifted: tuple[bool, ...], *, total: bool) -> Tensor:
    """Log-sum-exps and sums (chunks, 3, G, N), every pair formed on its own."""
    x, y, dtype = pairs.anchors.operand, pairs.keys.operand, pairs.problem.precision
    (groups, n), m = pairs.problem.ids.shape, pairs.problem.others.shape[1]
    cut = plan.cut_for("rows", dtype, x.shape[2], x.device)
    tiles = plan.ceil(n, cut.x)
    chunks = plan.chunks(groups * tiles, n, m, cut.y)
    found = torch.empty((chunks, 3, groups, n), device=x.device)
    for constant in shifted:
        sums.rows[(groups * tiles * chunks,)](
            x, y, pairs.anchors.lo, pairs.anchors.hi, pairs.itself, pairs.number, pairs.weights[constant], pairs.shift,
            found, n, m, x.shape[1], y.shape[1], tiles, chunks,
            BLOCK_X=cut.x, BLOCK_Y=cut.y, NARROW=plan.narrow(cut.y, dtype), D=x.shape[2], SUM=total,
            SELF=pairs.self_kind, WEIGHTED=weighted(pairs), SHIFTED=constant, PRECISION=plan.precision(dtype),
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return found


def weighted(pairs: Pairs) -> bool:
    """Keys have weights."""
    return pairs.problem.key_log_weights is not None


def read(pairs: Pairs, parts: Parts) -> tuple[tuple[int, int], list[Tensor], dict[str, object]]:
    """How many programs end the forward and how many in a group; what each end reads, and the options of reading."""
    groups, n = pairs.problem.ids.shape
    mask = pairs.problem.anchor_mask
    tensors = [
        parts.parts, pairs.anchors.lo, pairs.anchors.hi, pairs.itself, pairs.number, pairs.anchors.order,
        pairs.number if mask is None else mask.contiguous(), pairs.shift,
    ]  # fmt: skip
    blocks = plan.ceil(n, plan.VECTOR)
    options = {"BLOCK": plan.VECTOR, "SELF": pairs.self_kind, "MASKED": mask is not None, "CREDIT": parts.credit}
    return (groups * blocks, blocks), tensors, options


def results(pairs: Pairs) -> Results:
    """Log-sum-exps, sums of positive logits and counts, in the order of the anchors as given."""
    shape, device = pairs.problem.ids.shape, pairs.shift.device
    found = Results(
        *(torch.empty(shape, device=device) for _ in range(3)),
        *(torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2)),
    )
    for parts in sum_pairs(pairs, total=True):
        (programs, blocks), tensors, options = read(pairs, parts)
        both, shifted = len(parts.shifted) > 1, parts.shifted[0]
        ends.results[(programs,)](
            *tensors, *found, shape[1], len(parts.parts), blocks, **options, SHIFTED=shifted, BOTH=both
        )
    return found


class Factors(NamedTuple):
    """What multiplies the exponentials of each pair in the gradient, as `weigh` takes it."""

    factor: Tensor  #: (3, G, N), of positives, of negatives, and of the sum
    log: Tensor  #: (2, G, N) log-sum-exps over log 2; not read with a shift
    share: Tensor  #: (G + 1,) of each group, then of all: what the factors are worth
    upstream: Tensor  #: the same of each group (G,), or of all (): the gradient of a loss, once it is known


def losses(
    pairs: Pairs, name: str, *, negatives: bool, average: bool, weight: float, total: bool
) -> tuple[Tensor, tuple[Pairs, Factors]]:
    """The weighted mean loss of each group, or the average of those, by a formula; and what the backward needs."""
    (groups, n), device, (shifted,) = pairs.problem.ids.shape, pairs.shift.device, pairs.shifted
    (parts,) = sum_pairs(pairs, total=total)
    (programs, blocks), tensors, options = read(pairs, parts)
    loss = torch.empty(() if average else (groups,), device=device)
    factor, log = (torch.empty((k, groups, n), device=device) for k in (3, 2))
    partial, share = torch.empty((2, programs), device=device), torch.empty((groups + 1,), device=device)
    ends.losses[(programs,)](
        *tensors, factor, log, partial, pairs.ticket, loss, share, n, len(parts.parts), blocks, weight, **options,
        SHIFTED=shifted, NAME=name, NEGATIVES=negatives, AVERAGE=average, GAIN=plan.gain(pairs.problem.precision),
    )  # fmt: skip
    return loss, (pairs, Factors(factor, log, share, share))


def factors(pairs: Pairs, upstream: Upstream) -> dict[bool, Factors]:
    """From upstream gradients, by the way of summing."""
    (groups, n), device = pairs.problem.ids.shape, pairs.shift.device
    given = [x.float().contiguous() for x in (*upstream.gradients, upstream.positive_sum) if x is not None]
    largest = torch.stack([torch.linalg.vector_norm(x, torch.inf) for x in given]).amax()
    found, blocks = {}, plan.ceil(n, plan.VECTOR)
    for shifted in pairs.shifted:
        factor, log = (torch.empty((k, groups, n), device=device) for k in (3, 2))
        share = torch.empty((groups + 1,), device=device)
        gradients.factors[(groups * blocks,)](
            *given[:2], given[-1], *(x.contiguous() for x in upstream.logsumexps), pairs.anchors.order, pairs.shift,
            largest, factor, log, share, n, blocks,
            BLOCK=plan.VECTOR, GAIN=plan.gain(pairs.problem.precision), SUM=len(given) > 2, SHIFTED=shifted,
        )  # fmt: skip
        found[shifted] = Factors(factor, log, share, share)
    return found


def weigh(pairs: Pairs, found: dict[bool, Factors], needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, in their order and type, each where it is `needed`."""
    scale = pairs.problem.scale
    if pairs.own:
        return side(pairs, found, pairs.anchors, pairs.anchors, (scale / LOG2_E) ** 0.5, rows=True, columns=True), None
    first = second = None
    if needed[0]:
        first = side(pairs, found, pairs.anchors, pairs.keys, scale, rows=True, columns=False)
    if needed[1]:
        second = side(pairs, found, pairs.keys, pairs.anchors, 1 / LOG2_E, rows=False, columns=True)
    return first, second


def side(
    pairs: Pairs, found: dict[bool, Factors], x: Side, y: Side, scale: float, *, rows: bool, columns: bool
) -> Tensor:
    """The gradient of the points of a side x: as anchors (`rows`), as keys (`columns`), or both."""
    problem, dtype, width = pairs.problem, pairs.problem.precision, x.points.shape[2]
    (groups, n), m = problem.ids.shape, problem.others.shape[1]
    size, other = x.points.shape[1], y.points.shape[1]
    cut = plan.cut_for("weigh", dtype, width, x.points.device)
    tiles = plan.ceil(size, cut.x)
    chunks = plan.chunks(groups * tiles, size, other, cut.y)
    out = torch.empty_like(x.points)
    parts = torch.empty((chunks, groups, size, width), device=out.device)
    for shifted, given in found.items():
        upstream = given.upstream
        gradients.weigh[(groups * tiles * chunks,)](
            x.operand, y.operand, x.lo, x.hi, pairs.itself, given.factor, given.log, pairs.number,
            pairs.weights[shifted], pairs.shift, given.share, upstream, parts, x.points, x.order, out,
            n, m, x.operand.shape[1], y.operand.shape[1], tiles, chunks, scale / plan.gain(dtype),
            upstream.stride(0) if upstream.ndim else 0, *x.points.stride(), *out.stride(),
            BLOCK_X=cut.x, BLOCK_Y=cut.y, NARROW=plan.narrow(cut.y, dtype), D=x.operand.shape[2], WIDTH=width,
            ROWS=rows, COLUMNS=columns, SELF=pairs.self_kind, WEIGHTED=weighted(pairs), SHIFTED=shifted,
            UNIT=problem.unit, WHOLE=chunks == 1, PRECISION=plan.precision(dtype),
            num_warps=cut.warps, num_stages=cut.stages, maxnreg=plan.registers(shifted, out.device),
        )  # fmt: skip
    if chunks > 1:
        at_once = gradients.ROWS_AT_ONCE.value
        blocks = plan.ceil(size, at_once)
        gradients.add_up[(groups * blocks,)](
            parts, x.points, x.order, pairs.number, out, size, blocks, chunks, *x.points.stride(), *out.stride(),
            BLOCK=at_once, D=x.operand.shape[2], WIDTH=width, UNIT=problem.unit, COLUMNS=columns,
        )  # fmt: skip
    return out
