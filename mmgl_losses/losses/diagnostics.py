"""What a loss sees in a batch, in numbers and in one sentence: is it learning?"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mmgl_losses.contrast import PairTerms
from mmgl_losses.losses.formulas import Formula, mean_loss, resolve, valid_anchors


@dataclass(frozen=True)
class LevelDiagnostics:
    """One level of a loss."""

    name: str
    weight: float
    loss: float
    floor: float  #: the loss of perfect embeddings with these labels
    chance: float  #: the loss when all embeddings are equal (or, for Dice, all classes equally likely)
    valid: Mapping[int, int]  #: anchors that count, for each class (for all, under -1, where ids are instances)
    positives: float  #: mean number of positives of a valid anchor
    classes: Mapping[int, float]  #: the mean loss of each class
    not_finite: int = 0  #: anchors, or points of the logits, that hold NaN or infinity
    probabilities: bool = False  #: whether what came as logits looks like the output of a softmax or sigmoid

    @property
    def above_floor(self) -> float:
        """What is left to learn, the loss minus its floor."""
        return self.loss - self.floor

    @property
    def progress(self) -> float:
        """0 at chance, 1 at the floor; negative where the loss is worse than chance."""
        span = self.chance - self.floor
        return (self.chance - self.loss) / span if span > 0 else math.nan


@dataclass(frozen=True)
class Diagnostics:
    """All levels of a loss; printing it gives a table and a sentence."""

    levels: tuple[LevelDiagnostics, ...]

    @property
    def progress(self) -> float:
        """Progress of the levels, weighted as the loss weighs them; nan where no level has a valid anchor."""
        known = [level for level in self.levels if not math.isnan(level.progress)]
        weight = sum(level.weight for level in known)
        return sum(level.weight * level.progress for level in known) / weight if weight else math.nan

    @property
    def sentence(self) -> str:
        """Whether it is learning, in one sentence."""
        broken = [level for level in self.levels if not math.isfinite(level.loss)]
        if broken:
            names = ", ".join(f"{level.name} ({level.not_finite} of them)" for level in broken)
            return f"The loss is not finite: look for NaN or infinity in the vectors of {names} or their keys."
        if named := ", ".join(level.name for level in self.levels if level.probabilities):
            return f"These look like probabilities, not like logits: {named}. Pass what comes before softmax."
        progress = self.progress
        if math.isnan(progress):
            return "Nothing to learn from: no anchor of this batch counts."
        share = f"{progress:.0%} of the way from chance to the floor"
        if progress < -0.02:
            return "Not learning yet: worse than chance, as randomly spread embeddings are."
        if progress < 0.05:
            return f"Not learning yet: no better than chance ({share})."
        if progress < 0.95:
            return f"Learning: {share}."
        return f"Done: {share}, hardly anything is left."

    def __str__(self) -> str:
        width = max([24, *(len(level.name) for level in self.levels)])
        head = f"{'level':<{width}}{'weight':>8}{'loss':>10}{'floor':>10}{'chance':>10}{'anchors':>10}{'positives':>11}"
        rows = [
            f"{level.name:<{width}}{level.weight:>8.2f}{level.loss:>10.4f}{level.floor:>10.4f}{level.chance:>10.4f}"
            f"{sum(level.valid.values()):>10}{level.positives:>11.1f}"
            for level in self.levels
        ]
        return "\n".join([head, *rows, self.sentence])


class Seen(NamedTuple):
    """What a contrast saw at one level."""

    terms: PairTerms  #: each (groups, N), or (N,)
    ids: Tensor | None  #: of the same shape, where they are classes to tell apart; None: all anchors are one kind


def contrast(
    names: Iterable[str],
    weights: Iterable[float],
    seen: Iterable[Seen],
    options: Any,
    formulas: Mapping[str, Formula],
) -> Diagnostics:
    """Diagnostics of a contrast with the temperature and the formula of `options`."""
    formula, scale = resolve(options.formula, formulas), 1 / options.temperature
    found = []
    for name, weight, (terms, ids) in zip(names, weights, seen, strict=True):
        valid = valid_anchors(terms, formula)
        kinds = [] if ids is None else ids[valid].unique().tolist()
        of_class = {-1: valid} if ids is None else {kind: valid & (ids == kind) for kind in kinds}
        found.append(
            LevelDiagnostics(
                name=name,
                weight=weight,
                loss=mean_loss(terms, formula).item(),
                floor=mean_loss(_uniform(terms, scale, -scale), formula).item(),
                chance=mean_loss(_uniform(terms, scale, scale), formula).item(),
                valid={kind: int(mask.sum()) for kind, mask in of_class.items()},
                positives=terms.n_positives[valid].double().mean().item() if valid.any() else 0.0,
                classes={kind: _mean(terms, formula, mask) for kind, mask in of_class.items()},
                not_finite=int((~terms.self_logit[valid].isfinite()).sum()),
            )
        )
    return Diagnostics(tuple(found))


def _uniform(terms: PairTerms, positive: float, negative: float) -> PairTerms:
    """The terms if every positive had one logit and every negative another."""
    return PairTerms(
        positive_lse=positive + terms.n_positives.to(terms.self_logit.dtype).log(),
        negative_lse=negative + terms.n_negatives.to(terms.self_logit.dtype).log(),
        positive_sum=positive * terms.n_positives,
        self_logit=terms.self_logit,
        n_positives=terms.n_positives,
        n_negatives=terms.n_negatives,
    )


def _mean(terms: PairTerms, formula: Formula, mask: Tensor) -> float:
    return formula(PairTerms(*(term[mask] for term in terms))).mean().item()
