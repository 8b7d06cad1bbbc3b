"""What a loss sees in a batch, in numbers and in one sentence: is it learning?"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmgl_losses.contrast import PairTerms
from mmgl_losses.dice import soft_dice
from mmgl_losses.formulas import Formula, mean_loss, valid_anchors


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

    @property
    def above_floor(self) -> float:
        """The loss minus its floor: what is left to learn."""
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
        progress = self.progress
        if math.isnan(progress):
            return "Nothing to learn from: no anchor of this batch counts."
        share = f"{progress:.0%} of the way from chance to the floor"
        if progress < -0.02:
            return "Not learning yet: worse than chance, as embeddings are that spread without regard to their ids."
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


def contrast(
    levels: Iterable[tuple[str, PairTerms, Tensor, float]],
    formula: Formula,
    temperature: float,
    *,
    by_class: bool = True,
) -> Diagnostics:
    """Diagnostics of a contrast from (name, terms, ids, weight) of each level."""
    found = []
    for name, terms, ids, weight in levels:
        valid = valid_anchors(terms, formula)
        kinds = ids[valid].unique().tolist() if by_class else []
        of_class = {kind: valid & (ids == kind) for kind in kinds} if by_class else {-1: valid}
        found.append(
            LevelDiagnostics(
                name=name,
                weight=weight,
                loss=mean_loss(terms, formula).item(),
                floor=mean_loss(_uniform(terms, 1 / temperature, -1 / temperature), formula).item(),
                chance=mean_loss(_uniform(terms, 1 / temperature, 1 / temperature), formula).item(),
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


def dice(levels: list[tuple[str, Tensor, float]], labels: Tensor, options: Mapping[str, Any]) -> Diagnostics:
    """Diagnostics of deep supervision from (name, logits, weight) of each level."""
    ignored = options["ignore_index"]
    labels = labels.long()
    present, counts = labels[labels != ignored].unique(return_counts=True)
    found = []
    for name, logits, weight in levels:
        log_p = logits.float().log_softmax(1)
        classes = {}
        for kind in range(0 if options["include_background"] else 1, logits.shape[1]):
            # The class against the rest, as two channels: its own coefficient is the foreground's.
            one = log_p[:, kind : kind + 1]
            rest = torch.cat([log_p[:, :kind], log_p[:, kind + 1 :]], 1).logsumexp(1, keepdim=True)
            binary = (labels == kind).long()
            if ignored is not None:
                binary = torch.where(labels == ignored, -1, binary)
            own = {**options, "include_background": False, "cross_entropy": 0.0, "ignore_index": -1}
            classes[kind] = soft_dice(torch.cat([rest, one], 1), binary, **own).item()
        found.append(
            LevelDiagnostics(
                name=name,
                weight=weight,
                loss=soft_dice(logits, labels, **options).item(),
                floor=0.0,
                chance=soft_dice(torch.zeros_like(logits), labels, **options).item(),
                valid=dict(zip(present.tolist(), counts.tolist(), strict=True)),
                positives=0.0,
                classes=classes,
                not_finite=int((~logits.isfinite()).any(1).sum()),
            )
        )
    return Diagnostics(tuple(found))
