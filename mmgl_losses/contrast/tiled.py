"""The primitive in strips of rows: exact, memory linear in the number of points, plain torch on any device.

With E_ij = w_j exp(s_ij), p_i and q_i its sums over P(i) and N(i), and upstream gradients g⁺, g⁻ of log p and log q,

    W_ij = E_ij · (j in P(i) ? g⁺_i / p_i : g⁻_i / q_i),   d anchors = W keys,   d keys = Wᵀ anchors,

and where keys = anchors both at once: (W + Wᵀ) anchors, from one strip of E above the diagonal, which also
credits its columns. Ids are sorted, so a strip's columns fall into segments that are all positive, all negative,
or mixed, and only mixed segments need a mask. No negative is ever found by subtraction.

Where a limit of the logits is known and their range fits the type, exp is taken after one constant shift;
otherwise each row has its own maximum, and a strip spans all columns.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.pairs import Pairs

ELEMENTS = 1 << 21  # of one strip: 8 MiB in float32, which stays in the caches that matter
LOG2_E = 1 / math.log(2)
ROWS = (128, 512)  # least and most rows of a strip


class Strip(NamedTuple):
    """Rows [top, end) against columns [first, last): `mirrored` when it also stands for its transpose."""

    top: int
    end: int
    first: int
    last: int
    mirrored: bool
    segments: tuple[tuple[int, int, str], ...]  # (from, to, "positive" | "negative" | "mixed")


def strips(lo: list[int], hi: list[int], count: int, *, own: bool, mirrored: bool) -> Iterator[Strip]:
    """Cover the pairs of one group, each once (with its mirror image where `mirrored`)."""
    rows = len(lo)
    height = min(max(ELEMENTS // max(count, 1), ROWS[0]), ROWS[1])
    top = 0
    while top < rows and count:
        end = min(top + height, rows)
        if own and top < count:
            end = min(end, count)  # rows that are no keys follow, sorted anew
        if top + height // 4 < hi[top] < end:
            end = hi[top]  # end with a large run of one id, so that no segment is mixed
        elif top < lo[end - 1] < end and hi[end - 1] - lo[end - 1] > height:
            end = lo[end - 1]  # leave a large run to the strips after
        mirror = mirrored and top < count
        first = top if mirror else 0
        # The ranges of ascending ids ascend: what is left or right of all of them is negative, what is in all of
        # them positive, the rest mixed.
        edges = [first, lo[top], lo[end - 1], hi[top], hi[end - 1], count]
        kinds = ["negative", "mixed", "positive", "mixed", "negative"]
        if lo[end - 1] > hi[top]:  # nothing is in all of them
            edges, kinds = [first, lo[top], hi[end - 1], count], ["negative", "mixed", "negative"]
        edges = [max(edge, first) for edge in edges]
        segments = tuple((a, b, kind) for (a, b), kind in zip(pairwise(edges), kinds, strict=True) if a < b)
        yield Strip(top, end, first, count, mirror, segments)
        top = end


class Group(NamedTuple):
    """One group as the strips need it; `keys` is `anchors` itself where the anchors are the keys."""

    anchors: Tensor  # (N, D)
    keys: Tensor  # (M, D)
    lo: Tensor  # (N,)
    hi: Tensor  # (N,)
    itself: Tensor | None  # (N,)
    log_weights: Tensor | None  # (M,)
    strips: list[Strip]

    def logits(self, strip: Strip) -> Tensor:
        """Logits of the strip, without the weights of the keys."""
        return self.anchors[strip.top : strip.end] @ self.keys[strip.first : strip.last].T

    def positive(self, strip: Strip, a: int, b: int) -> Tensor:
        """Which of columns [a, b) are positives of each row, the row's own key included."""
        column = torch.arange(a, b, device=self.lo.device)
        rows = slice(strip.top, strip.end)
        return (column >= self.lo[rows, None]) & (column < self.hi[rows, None])

    def clear_own(self, strip: Strip, values: Tensor, fill: float = 0.0) -> None:
        """Take each row's own key out of `values`, which holds the strip."""
        if self.itself is not None:
            column = self.itself[strip.top : strip.end] - strip.first
            row = ((column >= 0) & (column < values.shape[1])).nonzero().squeeze(1)
            values[row, column[row]] = fill


def _scale(shift: float | None) -> float:
    """The factor of the logits: exp2 is several times faster than exp, so a shift goes with units of log 2."""
    return 1.0 if shift is None else LOG2_E


def _groups(pairs: Pairs, shift: float | None) -> Iterator[Group]:
    """The groups one by one, with logits multiplied by `_scale`; strips are mirrored where a shift allows it."""
    own = pairs.keys is None
    mirrored = pairs.symmetric and shift is not None
    anchors, scale = pairs.anchors, _scale(shift)
    if scale != 1.0:
        anchors = anchors * (scale**0.5 if own else scale)
    keys = anchors if pairs.keys is None else pairs.keys
    itself = pairs.itself
    if own:
        itself = torch.arange(anchors.shape[1], device=anchors.device).expand_as(pairs.lo)
    for g, (lo, hi, count) in enumerate(zip(pairs.lo.tolist(), pairs.hi.tolist(), pairs.count.tolist(), strict=True)):
        yield Group(
            anchors=anchors[g],
            keys=keys[g],
            lo=pairs.lo[g],
            hi=pairs.hi[g],
            itself=None if itself is None else itself[g],
            log_weights=None if pairs.log_weights is None else pairs.log_weights[g],
            strips=list(strips(lo, hi, count, own=own, mirrored=mirrored)),
        )


def _shift(pairs: Pairs) -> float | None:
    """The constant c with which every exp(s - c) and their sums are normal numbers, or None where there is none.

    Normal for all pairs: c <= -log(tiny) - limit; no overflow of a sum: c >= limit + log(n) - log(max).
    """
    if pairs.limit is None:
        return None
    info = torch.finfo(pairs.anchors.dtype)
    reach = pairs.limit.item()
    if pairs.log_weights is not None:
        reach += pairs.log_weights.abs().max().item()
    least = max(0.0, reach + math.log(max(int(pairs.count.max()), 1)) - math.log(info.max) + 0.1)
    return least if least <= -math.log(info.tiny) - reach else None


def forward(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    shift = _shift(pairs)
    positives = pairs.anchors.new_zeros(pairs.lo.shape)
    negatives = torch.zeros_like(positives)
    for g, group in enumerate(_groups(pairs, shift)):
        for strip in group.strips:
            if shift is None:
                rows = slice(strip.top, strip.end)
                positives[g, rows], negatives[g, rows] = _row_logsumexp(group, strip)
            else:
                _credit_sums(group, strip, shift, positives[g], negatives[g])
    if shift is None:
        empty = pairs.count == 0  # no strip has visited these groups
        positives[empty] = negatives[empty] = -torch.inf
        return positives, negatives
    return positives.log_().add_(shift), negatives.log_().add_(shift)


def _row_logsumexp(group: Group, strip: Strip) -> tuple[Tensor, Tensor]:
    logits = group.logits(strip)
    if group.log_weights is not None:
        logits += group.log_weights[strip.first : strip.last]
    group.clear_own(strip, logits, -torch.inf)
    mask = group.positive(strip, strip.first, strip.last)
    return logits.masked_fill(~mask, -torch.inf).logsumexp(1), logits.masked_fill_(mask, -torch.inf).logsumexp(1)


def _exponentials(group: Group, strip: Strip, shift: float) -> Tensor:
    """exp(s - shift) of the strip, each row's own key 0; the logits come in units of log 2."""
    values = group.logits(strip)
    if shift:
        values -= shift * LOG2_E
    values = values.exp2_()
    group.clear_own(strip, values)
    return values


def _credit_sums(group: Group, strip: Strip, shift: float, positives: Tensor, negatives: Tensor) -> None:
    values = _exponentials(group, strip, shift)
    for a, b, kind in strip.segments:
        part = values[:, a - strip.first : b - strip.first]
        if kind == "mixed":
            mask = group.positive(strip, a, b)
            shares = [(positives, part * mask), (negatives, part * ~mask)]
        else:
            shares = [(positives if kind == "positive" else negatives, part)]
        for sums, share in shares:
            weighted = share.sum(1) if group.log_weights is None else share @ group.log_weights[a:b].exp()
            sums[strip.top : strip.end] += weighted
            mirror = max(a, strip.end)  # columns before are rows of this strip: they have been credited as such
            if strip.mirrored and mirror < b:
                beyond = share[:, mirror - a :]
                if group.log_weights is None:
                    sums[mirror:b] += beyond.sum(0)
                else:
                    sums[mirror:b] += group.log_weights[strip.top : strip.end].exp() @ beyond


def backward(
    pairs: Pairs, positives: Tensor, negatives: Tensor, grad_positives: Tensor, grad_negatives: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the anchors and of the keys, from those of the two results."""
    shift = _shift(pairs)
    scale = _scale(shift)
    anchors = torch.zeros_like(pairs.anchors)
    keys = anchors if pairs.keys is None else torch.zeros_like(pairs.keys)
    size = torch.ones((), dtype=anchors.dtype, device=anchors.device)
    if shift is not None:
        # Factors of E = exp(s - shift), one a row. They reach exp(-88): small gradients would become denormal.
        size = torch.maximum(grad_positives.abs().max(), grad_negatives.abs().max())
        size = torch.where(size == 0, 1.0, size)
        grad_positives = _factor(grad_positives / size, positives, shift)
        grad_negatives = _factor(grad_negatives / size, negatives, shift)
    for g, group in enumerate(_groups(pairs, shift)):
        for strip in group.strips:
            rows, columns = slice(strip.top, strip.end), slice(strip.first, strip.last)
            if shift is None:
                grads = grad_positives[g, rows], grad_negatives[g, rows]
                weights = _row_weights(group, strip, positives[g, rows], negatives[g, rows], *grads)
            else:
                weights = _weights(group, strip, shift, grad_positives[g], grad_negatives[g])
            anchors[g, rows].addmm_(weights, group.keys[columns])
            if strip.mirrored:
                keys[g, strip.end : strip.last].addmm_(weights[:, strip.end - strip.top :].T, group.anchors[rows])
            else:
                keys[g, columns].addmm_(weights.T, group.anchors[rows])
    if pairs.keys is None:
        return anchors.mul_(size / scale**0.5), None
    return anchors.mul_(size), keys.mul_(size / scale)


def _factor(grad: Tensor, logsumexp: Tensor, shift: float) -> Tensor:
    return torch.where(logsumexp == -torch.inf, 0.0, grad * (shift - logsumexp).exp())


def _weights(group: Group, strip: Strip, shift: float, positive: Tensor, negative: Tensor) -> Tensor:
    """W of the strip, or W + Wᵀ where it is mirrored; `positive` and `negative` are the factors of E."""
    values = _exponentials(group, strip, shift)
    for a, b, kind in strip.segments:
        part = values[:, a - strip.first : b - strip.first]
        if kind == "mixed":
            mask = group.positive(strip, a, b)
            part *= torch.where(mask, _outer(group, strip, positive, a, b), _outer(group, strip, negative, a, b))
        else:
            part *= _outer(group, strip, positive if kind == "positive" else negative, a, b)
    return values


def _outer(group: Group, strip: Strip, factor: Tensor, a: int, b: int) -> Tensor:
    """factor_i w_j, and + factor_j w_i where the strip is mirrored."""
    rows = slice(strip.top, strip.end)
    if group.log_weights is None:
        return factor[rows, None] + factor[a:b] if strip.mirrored else factor[rows, None]
    weight = group.log_weights.exp()
    outer = factor[rows, None] * weight[a:b]
    return outer + weight[rows, None] * factor[a:b] if strip.mirrored else outer


def _row_weights(
    group: Group,
    strip: Strip,
    positives: Tensor,
    negatives: Tensor,
    grad_positives: Tensor,
    grad_negatives: Tensor,
) -> Tensor:
    """W of a strip that spans all columns, from the rows' own log-sum-exps."""
    logits = group.logits(strip)
    if group.log_weights is not None:
        logits += group.log_weights[strip.first : strip.last]
    mask = group.positive(strip, strip.first, strip.last)
    logits -= torch.where(mask, positives[:, None], negatives[:, None])
    group.clear_own(strip, logits, -torch.inf)
    return logits.exp_().mul_(torch.where(mask, grad_positives[:, None], grad_negatives[:, None]))


@torch.library.custom_op("mmgl_losses::pair_logsumexp", mutates_args=())
def _forward(
    anchors: Tensor, keys: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor, itself: Tensor | None,
    log_weights: Tensor | None, limit: Tensor | None, symmetric: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with torch.autocast(anchors.device.type, enabled=False):
        return forward(Pairs(anchors, keys, lo, hi, count, itself, log_weights, limit, symmetric))


@_forward.register_fake
def _(anchors, keys, lo, hi, count, itself, log_weights, limit, symmetric):
    return anchors.new_empty(lo.shape), anchors.new_empty(lo.shape)


@torch.library.custom_op("mmgl_losses::pair_logsumexp_backward", mutates_args=())
def _backward(
    anchors: Tensor, keys: Tensor | None, lo: Tensor, hi: Tensor, count: Tensor, itself: Tensor | None,
    log_weights: Tensor | None, limit: Tensor | None, symmetric: bool,
    positives: Tensor, negatives: Tensor, grad_positives: Tensor, grad_negatives: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = Pairs(anchors, keys, lo, hi, count, itself, log_weights, limit, symmetric)
    with torch.autocast(anchors.device.type, enabled=False):
        grad_anchors, grad_keys = backward(pairs, positives, negatives, grad_positives, grad_negatives)
    return grad_anchors, anchors.new_empty(0) if grad_keys is None else grad_keys


@_backward.register_fake
def _(anchors, keys, *_):
    return torch.empty_like(anchors), anchors.new_empty(0) if keys is None else torch.empty_like(keys)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.symmetric = inputs
    ctx.save_for_backward(*tensors, *output)


def _autograd(ctx, grad_positives: Tensor, grad_negatives: Tensor):
    *tensors, positives, negatives = ctx.saved_tensors
    grads = _backward(*tensors, ctx.symmetric, positives, negatives, grad_positives, grad_negatives)
    return grads[0], None if tensors[1] is None else grads[1], *[None] * 7


_forward.register_autograd(_autograd, setup_context=_setup_context)


def pair_logsumexp(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """`forward` with its gradient, as one operation to autograd and to the compiler."""
    return _forward(*pairs)
