"""The formulas, a few lines each over the terms of the primitive, and their mean over anchors.

P(i) are the positives of anchor i, N(i) its negatives, s the cosines over the temperature. A formula is one function
and one row in a table; what it is called there is what ``formula=`` takes.
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mmgl_losses import checks, contrast
from mmgl_losses.checks import message
from mmgl_losses.contrast import PairTerms, Problem
from mmgl_losses.distributed import total, world

Formula: TypeAlias = Callable[[PairTerms], Tensor]


def without_negatives(formula: Formula) -> Formula:
    """Decorates a formula that has a value where an anchor has no negatives. Other formulas skip such anchors."""
    formula.needs_negatives = False  # pyright: ignore[reportFunctionMemberAccess]
    return formula


@without_negatives
def supcon(terms: PairTerms) -> Tensor:
    """-mean_P s_ip + log sum_{a != i} exp(s_ia): Khosla et al. 2020, eq. 2 (L_out); with one positive, NT-Xent."""
    return torch.logaddexp(terms.positive_lse, terms.negative_lse) - terms.positive_sum / terms.n_positives


@without_negatives
def supcon_in(terms: PairTerms) -> Tensor:
    """-log mean_P exp(s_ip) + log sum_{a != i} exp(s_ia): Khosla et al. 2020, eq. 3 (L_in)."""
    mean_inside = terms.positive_lse - terms.n_positives.to(terms.positive_lse.dtype).log()
    return torch.logaddexp(terms.positive_lse, terms.negative_lse) - mean_inside


def decoupled(terms: PairTerms) -> Tensor:
    """-mean_P s_ip + log sum_N exp(s_in): Yeh et al. 2022, negatives alone in the denominator."""
    return terms.negative_lse - terms.positive_sum / terms.n_positives


@without_negatives
def mmgl_global(terms: PairTerms) -> Tensor:
    """-mean_P s_ip + log(exp(s_ii) + sum_N exp(s_in)): Zhao et al. 2022, section 3.1, as printed.

    The printed denominator runs over all of I but the positive, so the anchor's product with itself stays in it.
    """
    return torch.logaddexp(terms.self_logit, terms.negative_lse) - terms.positive_sum / terms.n_positives


def mmgl_local(terms: PairTerms) -> Tensor:
    """-1/|P| log(sum_P exp(s_ip) / sum_N exp(s_in)): Zhao et al. 2022, section 3.2, as printed."""
    return (terms.negative_lse - terms.positive_lse) / terms.n_positives


# The names again, for editors and type checkers.
GlobalFormula = Literal["nt_xent", "decoupled", "mmgl"]
LocalFormula = Literal["supcon", "supcon_in", "mmgl"]
GLOBAL_FORMULAS: dict[str, Formula] = {"nt_xent": supcon, "decoupled": decoupled, "mmgl": mmgl_global}
LOCAL_FORMULAS: dict[str, Formula] = {"supcon": supcon, "supcon_in": supcon_in, "mmgl": mmgl_local}

OF_ENGINES = {
    found.__name__: found for found in (supcon, supcon_in, decoupled, mmgl_local, mmgl_global)
}  # that an engine may have

HARMLESS = (0.0, 0.0, 0.0, 0.0, 1, 1)  # the terms that a formula is given in place of an anchor that does not count


def check_formula(formula: object, named: Mapping[str, Formula]) -> None:
    """`formula` is a name in the table, or a callable."""
    if not callable(formula):
        checks.one_of("formula", formula, named)


def loss_of(
    problem: Problem,
    formula: Formula,
    impl: str,
    *,
    gather: bool = False,
    shared: bool = False,
    average: bool = True,
    weight: float = 1.0,
) -> Tensor:
    """The mean loss of a problem times a weight: in the engine where it has the formula, else from the terms.

    Arguments as of `mean_loss`; without `average` the means of the groups.
    """

    def from_terms(problem: Problem, impl: str) -> Tensor:
        terms = contrast.terms(problem, impl)
        if average:
            found = mean_loss(terms, formula, gather=gather, shared=shared)
        else:
            found = group_means(terms, formula, gather=gather)
        return found if weight == 1 else weight * found

    # A list, as the compiler of torch 2.8 knows no `next` with a default.
    names = [name for name, known in OF_ENGINES.items() if known is formula]
    if not names or (gather and world() > 1):
        return from_terms(problem, impl)
    negatives = needs_negatives(formula)
    return contrast.mean_losses(
        problem, names[0], from_terms, negatives=negatives, average=average, weight=weight, impl=impl
    )


def unreduced(problem: Problem, formula: Formula, impl: str, *, weight: float = 1.0) -> Tensor:
    """The loss of each anchor times a weight, (groups, N): NaN where there is none, because the anchor does not count.

    So that this is all that NaN says, the loss of an anchor that counts is infinite where it would be NaN.
    """
    losses, valid = _losses(contrast.terms(problem, impl), formula)
    losses = weight * losses.masked_fill(losses.isnan(), torch.inf)
    return losses if valid is None else losses.masked_fill(~valid, torch.nan)


def resolve(formula: str | Formula, named: Mapping[str, Formula]) -> Formula:
    """A formula by its name in the table, or a callable as it is."""
    return formula if callable(formula) else named[formula]


def needs_negatives(formula: Formula) -> bool:
    """Whether anchors without negatives do not count: a callable may say so by an attribute of this name."""
    return getattr(formula, "needs_negatives", True)


def valid_anchors(terms: PairTerms, formula: Formula) -> Tensor:
    """Anchors with a positive and, unless the formula says it needs none, a negative."""
    valid = terms.n_positives > 0
    return valid & (terms.n_negatives > 0) if needs_negatives(formula) else valid


def group_means(terms: PairTerms, formula: Formula, *, gather: bool = False) -> Tensor:
    """The mean over the valid anchors of each group, 0 where there are none; never NaN.

    Args:
        terms: each (*groups, N).
        formula: from terms to losses (*groups, N).
        gather: the same groups have anchors in every process: ``world * local sum / global count``.
    """
    losses, valid = _losses(terms, formula)
    return losses.mean(-1) if valid is None and not gather else _means(losses, valid, gather=gather)[0]


def mean_loss(terms: PairTerms, formula: Formula, *, gather: bool = False, shared: bool = False) -> Tensor:
    """The mean over the valid anchors of each group, then over the groups that have any; never NaN.

    Args:
        terms: each (*groups, N).
        formula: from terms to losses (*groups, N).
        gather: over the groups of all processes; the mean over processes of what they return is that mean.
        shared: with `gather`, the same groups have anchors in every process; otherwise each has groups of its own.
    """
    losses, valid = _losses(terms, formula)
    if valid is None and not gather:
        return losses.mean()  # groups are of one size
    means, count = _means(losses, valid, gather=gather and shared)
    groups = (count > 0).sum()
    if gather and not shared:
        means, groups = means * world(), total(groups)
    return means.sum() / groups.clamp(min=1)


def _losses(terms: PairTerms, formula: Formula) -> tuple[Tensor, Tensor | None]:
    """The loss of each anchor, 0 where it is not valid, and which are valid; None where that is known to be all.

    The formula sees harmless numbers in place of anchors that are not valid, so neither its value nor its gradient
    there can leak: ``0 * inf`` and ``0 * NaN`` would.
    """
    valid = valid_anchors(terms, formula)
    if checks.readable(valid) and valid.all():  # the usual case, in fewer operations
        losses = formula(terms)
        _check_losses(losses, valid)
        return losses, None
    invalid = ~valid
    losses = formula(PairTerms(*(x.masked_fill(invalid, fill) for x, fill in zip(terms, HARMLESS, strict=True))))
    _check_losses(losses, valid)
    return losses.masked_fill(invalid, 0.0), valid


def _means(losses: Tensor, valid: Tensor | None, *, gather: bool) -> tuple[Tensor, Tensor]:
    """The mean of each group, and the number of its valid anchors, with `gather` over all processes."""
    sums = losses.sum(-1)
    count = torch.full(sums.shape, losses.shape[-1], device=sums.device) if valid is None else valid.sum(-1)
    if gather:
        sums, count = sums * world(), total(count)
    return sums / count.clamp(min=1), count


def _check_losses(value: object, anchors: Tensor) -> None:
    """What a formula made of the terms is a loss for each anchor."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.shape == anchors.shape:
        return
    cure = "A formula leaves the mean to the library."
    wanted = f"`formula` to give a floating-point tensor of shape {checks.shape(anchors)}, a loss for each anchor"
    if isinstance(value, Tensor) and value.is_floating_point():
        raise ValueError(message(wanted, checks.shape(value), cure))
    raise TypeError(message(wanted, f"type {value.dtype}" if isinstance(value, Tensor) else type(value).__name__, cure))
