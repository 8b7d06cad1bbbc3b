"""The primitive of every contrastive loss here: log-sum-exp over positive and over negative pairs."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.contrast import arguments, operation
from mmgl_losses.contrast.arguments import check_ids as check_ids
from mmgl_losses.contrast.arguments import check_temperature as check_temperature
from mmgl_losses.contrast.arguments import pose as pose
from mmgl_losses.contrast.arguments import select as select
from mmgl_losses.contrast.engines import Impl as Impl
from mmgl_losses.contrast.engines import check_impl as check_impl
from mmgl_losses.contrast.means import mean_losses as mean_losses
from mmgl_losses.contrast.problem import Problem as Problem
from mmgl_losses.contrast.unit import widened as widened

__all__ = ["PairLogSumExp", "PairTerms", "pair_logsumexp", "pair_terms"]


class PairLogSumExp(NamedTuple):
    """What `pair_logsumexp` returns, each (*groups, N)."""

    positives: Tensor  #: log-sum-exp over the positives, -inf where there are none
    negatives: Tensor  #: log-sum-exp over the negatives, -inf where there are none
    n_positives: Tensor  #: int64
    n_negatives: Tensor  #: int64


class PairTerms(NamedTuple):
    """What a formula gets for each anchor, each (*groups, N).

    A formula is any callable from these terms to losses of the same shape.
    """

    positive_lse: Tensor  #: log-sum-exp over the positives
    negative_lse: Tensor  #: log-sum-exp over the negatives
    positive_sum: Tensor  #: sum of the logits of the positives (without weights of the keys)
    self_logit: Tensor  #: logit of the anchor with itself
    n_positives: Tensor  #: number of positives, int64
    n_negatives: Tensor  #: number of negatives, int64


def pair_logsumexp(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    bound: float | None = None,
    impl: Impl = "auto",
    precision: torch.dtype | None = None,
) -> PairLogSumExp:
    r"""Log-sum-exp of each anchor's logits, over the keys of its own id and over the others.

    .. math::
        \mathrm{positives}_i = \log \sum_{j \in P(i)} w_j \exp(s_{ij}), \quad
        \mathrm{negatives}_i = \log \sum_{j \in N(i)} w_j \exp(s_{ij})

    .. math:: s_{ij} = \mathrm{anchors}_i \cdot \mathrm{keys}_j / \tau

    with P(i) the keys of the same id, the anchor's own key left out, and N(i) the keys of other ids. In plain
    torch, for one group, with the anchors as keys::

        logits = anchors @ anchors.T / temperature
        same = ids[:, None] == ids
        positives = logits.masked_fill(~same | eye, -inf).logsumexp(1)
        negatives = logits.masked_fill(same, -inf).logsumexp(1)

    Args:
        anchors: (*groups, N, D), floating point. Leading dimensions are independent groups.
        ids: (*groups, N), of any real type: equal ids are positives of one another.
        temperature: positive float, or a 0-d tensor, which then has a gradient.
        keys: (*groups, M, D); the anchors where not given.
        key_ids: (*groups, M); needed with `keys`.
        self_index: (*groups, N) int64, with `keys` only: which key is the anchor itself, -1 for none (default).
        anchor_mask: (*groups, N) bool: anchors that count. The others return -inf and 0, and may hold anything.
        key_mask: (*groups, M) bool: keys that count. The others may hold anything, NaN included; where the
            anchors are the keys, a row may hold anything when both masks leave it out.
        key_log_weights: (*groups, M), finite: log w; a constant (it gets no gradient).
        tolerance: positives are the keys with ``|id_i - id_j| <= tolerance``; equal ids where not given.
        bound: a promise that ``|anchor · key| <= bound`` (1 for unit vectors). With it, one constant shift keeps
            exp in range down to small temperatures, instead of a maximum for each row.
        impl: ``"reference"`` forms all pairs (memory N·M); ``"tiled"`` is exact with memory linear in N and M;
            ``"native"`` is that in C++ on the CPU, where it was built; ``"fused"`` in Triton kernels, for CUDA, where
            they have not been run yet; ``"auto"`` picks ``"native"``, or one of the first two by size.
        precision: the type in which ``"fused"`` multiplies features, the anchors' own by default: in ``bfloat16`` and
            ``float16`` tensor cores are fastest. Features are scaled first and rounded once; sums are float32.

    Returns:
        `PairLogSumExp`; the log-sum-exps in float32 (float64 for float64), whatever autocast says.

    Raises:
        TypeError: a tensor of a wrong type.
        ValueError: shapes that do not fit, a bad temperature, bound or tolerance, an unknown `impl`.

    Example:
        >>> anchors = torch.eye(3)
        >>> result = pair_logsumexp(anchors, torch.tensor([0, 0, 1]), temperature=1.0)
        >>> result.positives.round(decimals=4)
        tensor([0., 0., -inf])
        >>> result.n_negatives
        tensor([1, 1, 2])
    """
    problem, shape = arguments.problem(
        anchors,
        ids,
        temperature=temperature,
        keys=keys,
        key_ids=key_ids,
        self_index=self_index,
        anchor_mask=anchor_mask,
        key_mask=key_mask,
        key_log_weights=key_log_weights,
        tolerance=tolerance,
        bound=bound,
        impl=impl,
        precision=precision,
    )
    positives, negatives, _, *counts = (x.view(shape) for x in operation.contrast(problem, impl))
    return PairLogSumExp(positives, negatives, *counts)


def pair_terms(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    bound: float | None = None,
    impl: Impl = "auto",
    precision: torch.dtype | None = None,
) -> PairTerms:
    r"""What a formula gets for each anchor: the results of `pair_logsumexp`, and two numbers that need no pairs.

    .. math::
        \mathrm{positive\_sum}_i = \sum_{j \in P(i)} s_{ij}
            = \mathrm{anchors}_i \cdot \Big(\sum_{j \in P(i)} \mathrm{keys}_j\Big) / \tau

    .. math:: \mathrm{self\_logit}_i = \mathrm{anchors}_i \cdot \mathrm{anchors}_i / \tau

    Args:
        anchors: (*groups, N, D), floating point.
        ids: (*groups, N), of any real type.
        temperature: positive float, or a 0-d tensor.
        keys: this and all below as in `pair_logsumexp`.
        key_ids: with `keys`.
        self_index: which key is the anchor itself.
        anchor_mask: anchors that count.
        key_mask: keys that count.
        key_log_weights: log w.
        tolerance: of positives.
        bound: on ``|anchor · key|``.
        impl: the engine.
        precision: of ``"fused"``.

    Returns:
        `PairTerms`, each (*groups, N).

    Example:
        >>> pair_terms(torch.eye(3), torch.tensor([0, 0, 1]), temperature=0.5).self_logit
        tensor([2., 2., 2.])
    """
    problem, shape = arguments.problem(
        anchors,
        ids,
        temperature=temperature,
        keys=keys,
        key_ids=key_ids,
        self_index=self_index,
        anchor_mask=anchor_mask,
        key_mask=key_mask,
        key_log_weights=key_log_weights,
        tolerance=tolerance,
        bound=bound,
        impl=impl,
        precision=precision,
    )
    return PairTerms(*(x.view(shape) for x in terms(problem, impl)))


def terms(problem: Problem, impl: str) -> PairTerms:
    """The terms (G, N) of a problem that is checked."""
    problem = problem.widened()
    positives, negatives, total, *counts = operation.contrast(problem, impl)
    nothing = total * 0 if problem.unit and checks.readable(total) else None
    if nothing is not None and total.all() and not nothing.any():  # the usual case: finite rows, each with a direction
        itself = nothing + problem.scale
    elif problem.unit:  # a constant; what has no direction or is not finite has 0 or NaN, as the sum has it there
        largest = problem.anchors.abs().amax(-1)
        itself = total.masked_fill((largest > 0) & (largest < torch.inf), problem.scale)
    else:
        itself = (problem.anchors * problem.anchors).sum(-1) * problem.scale
    return PairTerms(positives, negatives, total, itself, *counts)
