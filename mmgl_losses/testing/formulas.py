"""What is expected of a formula, whatever it says."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmgl_losses.contrast import PairTerms, pair_terms
from mmgl_losses.contrast.unit import normalise
from mmgl_losses.losses.formulas import HARMLESS, Formula, needs_negatives
from mmgl_losses.testing.laws import Laws, differs, noise, not_finite

REAL = ("positive_lse", "negative_lse", "positive_sum", "self_logit")


@dataclass(frozen=True)
class FormulaCase:
    """A formula, and the terms of two groups of twelve anchors in three classes."""

    formula: Formula
    compiled: bool

    def terms(self, temperature: float = 0.07, dtype: torch.dtype = torch.float32) -> PairTerms:
        """Ordinary terms, (2, 12): every anchor has positives and negatives."""
        z = normalise(noise(2, 12, 8, dtype=dtype))
        return pair_terms(z, torch.arange(12).expand(2, -1) % 3, temperature=temperature, impl="reference")

    @cached_property
    def losses(self) -> Tensor:
        """What the formula makes of them."""
        return self.formula(self.terms())

    def slopes(self, terms: PairTerms) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, and the derivative of their sum by each term that is not a count."""
        leaves = {name: getattr(terms, name).detach().clone().requires_grad_() for name in REAL}
        losses = self.formula(terms._replace(**leaves))
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        zero = torch.zeros_like(terms.self_logit)
        return losses, {name: zero if g is None else g for name, g in zip(leaves, found, strict=True)}

    def survives(self, terms: PairTerms) -> str | None:
        """What is not finite about the losses of these terms and their derivatives."""
        losses, slopes = self.slopes(terms)
        bad = [not_finite(f"a derivative by `{name}`", slope) for name, slope in slopes.items()]
        return not_finite("losses", losses) or next((words for words in bad if words), None)


LAWS: Laws[FormulaCase] = Laws()


@LAWS.add("shape", "one floating-point loss for each anchor", first=True)
def _shape(case: FormulaCase) -> str | None:
    losses, wanted = case.losses, case.terms().self_logit
    if not isinstance(losses, Tensor):
        return f"a {type(losses).__name__}"
    good = losses.is_floating_point() and losses.shape == wanted.shape
    return None if good else f"{losses.dtype} of shape {tuple(losses.shape)} of terms {tuple(wanted.shape)}"


@LAWS.add("finite", "finite losses and derivatives of ordinary terms", first=True)
def _finite(case: FormulaCase) -> str | None:
    return case.survives(case.terms())


@LAWS.add("anchors apart", "each anchor's loss to depend on its own terms alone")
def _anchors(case: FormulaCase) -> str | None:
    alone = [case.formula(PairTerms(*(term[:, i : i + 1] for term in case.terms()))) for i in range(12)]
    return differs(torch.cat(alone, 1), case.losses, relative=1e-5)


@LAWS.add("attraction", "losses that do not rise, and somewhere fall, as an anchor's positives come nearer")
def _attraction(case: FormulaCase) -> str | None:
    terms = case.terms()
    _, slopes = case.slopes(terms)
    return _sign(-(slopes["positive_lse"] + terms.n_positives * slopes["positive_sum"]))


@LAWS.add("repulsion", "losses that do not fall, and somewhere rise, as an anchor's negatives come nearer")
def _repulsion(case: FormulaCase) -> str | None:
    return _sign(case.slopes(case.terms())[1]["negative_lse"])


def _sign(slopes: Tensor) -> str | None:
    if (slopes < -1e-6).any():
        return f"the opposite at {int((slopes < -1e-6).sum())} of {slopes.numel()} anchors"
    return None if (slopes > 1e-6).any() else "no change at any"


@LAWS.add("temperature", "finite losses and derivatives at a temperature of 0.005, where exp overflows")
def _temperature(case: FormulaCase) -> str | None:
    return case.survives(case.terms(temperature=0.005))


@LAWS.add("placeholders", "finite losses and derivatives of the zeros and ones in place of anchors that do not count")
def _placeholders(case: FormulaCase) -> str | None:
    return case.survives(PairTerms(*(torch.full_like(t, h) for t, h in zip(case.terms(), HARMLESS, strict=True))))


@LAWS.add(
    "no negatives",
    "finite losses and derivatives without negatives, as `needs_negatives` is False",
    applies=lambda case: not needs_negatives(case.formula),
)
def _no_negatives(case: FormulaCase) -> str | None:
    terms = case.terms()
    none = torch.full_like(terms.negative_lse, -torch.inf)
    return case.survives(terms._replace(negative_lse=none, n_negatives=torch.zeros_like(terms.n_negatives)))


@LAWS.add("float64", "the losses of float64 terms to be those of float32, in float64")
def _float64(case: FormulaCase) -> str | None:
    losses = case.formula(case.terms(dtype=torch.float64))
    return f"{losses.dtype}" if losses.dtype != torch.float64 else differs(case.losses, losses, relative=1e-5)


@LAWS.add("arguments", "the terms to be left as they are")
def _arguments(case: FormulaCase) -> str | None:
    terms = case.terms()
    case.formula(terms)
    changed = [name for name, a, b in zip(terms._fields, terms, case.terms(), strict=True) if not a.equal(b)]
    return f"other numbers in `{changed[0]}`" if changed else None


@LAWS.add("repeatable", "the same losses of the same terms a second time")
def _repeatable(case: FormulaCase) -> str | None:
    return differs(case.formula(case.terms()), case.formula(case.terms()), relative=1e-6)


@LAWS.add("compile", "torch.compile(fullgraph=True) to give the same losses", applies=lambda case: case.compiled)
def _compile(case: FormulaCase) -> str | None:
    torch.compiler.reset()
    formula: Callable[[PairTerms], Tensor] = torch.compile(case.formula, fullgraph=True, backend="aot_eager")
    return differs(formula(case.terms()), case.losses, relative=1e-4)


def check_formula(formula: Formula, *, compile: bool = False, skip: Collection[str] = ()) -> tuple[str, ...]:
    """Check that a formula on `PairTerms` keeps the laws that the named formulas keep.

    Args:
        formula: a callable from `PairTerms` to losses. Where its attribute ``needs_negatives`` is False, it has to
            do without negatives.
        compile: whether ``torch.compile(fullgraph=True)`` has to work; this takes seconds.
        skip: names of laws that the formula is meant to break.

    Returns:
        The names of the laws that were checked.

    Raises:
        ConformanceError: a law does not hold; it lists all that do not.
        ValueError: an unknown law.

    Example:
        >>> laws = check_formula(lambda terms: terms.negative_lse - terms.positive_lse)
        >>> "attraction" in laws
        True
    """
    return LAWS.check(formula, [("", FormulaCase(formula, compile))], skip)
