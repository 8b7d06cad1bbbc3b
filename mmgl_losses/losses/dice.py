"""Deep supervision: soft Dice, without one-hot targets and without resizing anything but by indexing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks
from mmgl_losses.checks import message
from mmgl_losses.contrast import widened
from mmgl_losses.distributed import total, world
from mmgl_losses.losses.diagnostics import Diagnostics, LevelDiagnostics
from mmgl_losses.losses.levels import (
    Levels,
    MultiScale,
    Reduced,
    Reduction,
    Unreduced,
    Weights,
    check_labels,
    settle,
    vector,
    weighted_sum,
)
from mmgl_losses.losses.overlap import (
    Regions,
    Sums,
    check_channels,
    check_class_weights,
    check_classes,
    check_regions,
    like_probabilities,
    of_classes,
    of_regions,
    warn_of_probabilities,
)
from mmgl_losses.sampling import resample


@dataclass(frozen=True, kw_only=True)
class DiceOptions:
    """The options of soft Dice, which `soft_dice` describes. They are checked here and nowhere else."""

    include_background: bool = True
    regions: Regions | None = None
    class_weights: Sequence[float] | None = None
    batch: bool = True
    squared: bool = False
    smooth: float = 1e-5
    ignore_index: int | None = None
    cross_entropy: float = 0.0
    gather: bool = False
    reduction: Reduction = "mean"

    @property
    def first(self) -> int:
        """The first channel that counts."""
        return 0 if self.include_background else 1

    @property
    def label_sets(self) -> tuple[tuple[int, ...], ...]:
        """The labels of each region, as checked."""
        return cast("tuple[tuple[int, ...], ...]", self.regions or ())

    def __post_init__(self) -> None:
        for name in ("include_background", "batch", "squared", "gather"):
            checks.flag(name, getattr(self, name))
        settle(self, smooth=checks.number("smooth", self.smooth, least=0.0))
        settle(self, cross_entropy=checks.number("cross_entropy", self.cross_entropy, least=0.0, most=1.0))
        if self.ignore_index is not None:
            settle(self, ignore_index=checks.integer("ignore_index", self.ignore_index))
        if self.class_weights is not None:
            settle(self, class_weights=check_class_weights(self.class_weights))
        if self.regions is not None:
            settle(self, regions=check_regions(self.regions, self.ignore_index))
            if not self.include_background:
                cure = "No region is the background: leave `include_background` out."
                raise ValueError(message("include_background=True with `regions`", False, cure))
        checks.one_of("reduction", self.reduction, get_args(Reduction))
        for name in ("class_weights", "cross_entropy", "gather"):
            if self.reduction == "none" and getattr(self, name):
                raise ValueError(message("a mean of the losses, reduction='mean'", f"reduction='none' with `{name}`"))


def soft_dice(
    logits: Tensor,
    labels: Tensor,
    *,
    include_background: bool = True,
    regions: Regions | None = None,
    class_weights: Sequence[float] | None = None,
    batch: bool = True,
    squared: bool = False,
    smooth: float = 1e-5,
    ignore_index: int | None = None,
    cross_entropy: float = 0.0,
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the mean soft Dice coefficient of the classes.

    .. math::
        L = 1 - \frac{1}{|C|} \sum_{c}
            \frac{2 \sum_x p_{cx} t_{cx} + \epsilon}{\sum_x p_{cx} + \sum_x t_{cx} + \epsilon}

    with p the softmax of the logits and t the labels, one-hot (Milletari et al. 2016; the sums over pixels and, with
    `batch`, over the samples)::

        p, t = logits.softmax(1), F.one_hot(labels).movedim(-1, 1)
        axes = (0, 2, 3)
        loss = 1 - ((2 * (p * t).sum(axes) + eps) / (p.sum(axes) + t.sum(axes) + eps)).mean()

    A class that the labels lack has a coefficient of eps / (sum p + eps): near 0 while it is predicted anywhere,
    1 once it is not; pooling over the batch makes such classes rare.

    Args:
        logits: (B, C, *spatial), C at least 2; with `regions`, one channel for each.
        labels: (B, *spatial) at any size: each point of the logits takes the label at its own place.
        include_background: count class 0 too. Without it, training can get stuck with one class that spreads over the
            background.
        regions: the labels that make up each region, such as ``((1, 2, 3), (2, 3), (3,))``, for regions that overlap
            (BraTS; nnU-Net's region-based training). Each channel is then a region by itself, with p its sigmoid and
            cross-entropy the binary one; a label in none is background. ``((1,),)`` is one structure in one channel.
        class_weights: one number of at least 0 for each channel: the mean over the classes is weighted, and so is
            cross-entropy, as by ``F.cross_entropy(weight=)``.
        batch: pool the sums over the batch, instead of a coefficient for each sample.
        squared: squared probabilities in the denominator.
        smooth: eps, at least 0.
        ignore_index: points of this label take no part, whatever their logits hold.
        cross_entropy: the share c of cross-entropy in the loss, ``(1 - c) · Dice + c · CE``.
        gather: over all processes, with the exact gradient (see `mmgl_losses.distributed`): with `batch` the sums of
            each class are pooled before the ratio, otherwise the mean over samples is that over all of them.
        reduction: ``"none"`` returns what the mean is of, without `class_weights`, `cross_entropy` and `gather`.

    Returns:
        Scalar, in [0, 1] without cross-entropy; zero, with zero gradients, if all points are ignored. With `gather`,
        the mean of it over the processes is the loss of all of them. With ``reduction="none"``, one for each class that
        counts, (C,), or (B, C) without `batch`: 0 for a sample whose points are all ignored.

    Raises:
        TypeError: logits or labels of a wrong type.
        ValueError: shapes that do not fit, fewer than two channels, a label that is no class, a bad option.

    Example:
        >>> labels = torch.tensor([[0, 1, 1, 2]])
        >>> soft_dice(20 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float(), labels)
        tensor(0.)
    """
    options = DiceOptions(
        include_background=include_background, regions=regions, class_weights=class_weights, batch=batch,
        squared=squared, smooth=smooth, ignore_index=ignore_index, cross_entropy=cross_entropy, gather=gather,
        reduction=reduction,
    )  # fmt: skip
    return _losses({"logits": logits}, labels, options)[0]


class DeepSupervisionDice(MultiScale[Reduced]):
    r"""Soft Dice at several levels of the decoder: stage three of MMGL.

    .. math:: L_{seg}^M = \sum_{d \in D} \lambda_{dice}^d L_{dice}^d

    with each level's loss as in `functional.soft_dice` (Zhao et al. 2022, section 3.3). Labels are brought to each
    level by indexing; nothing is resized to full size.

    Args:
        weights: one for each level, coarse to fine; or a mapping from the levels' names. Default: the portfolio
            that was best in the paper at the fewest labels.
        include_background: count class 0 too.
        regions: the labels that make up each region, for regions that overlap; one channel, a sigmoid, for each.
        class_weights: one number for each channel, for the means over the classes.
        batch: pool the sums over the batch.
        squared: squared probabilities in the denominator.
        smooth: added to numerator and denominator.
        ignore_index: points of this label take no part.
        cross_entropy: the share c of cross-entropy, ``(1 - c) · Dice + c · CE`` at each level.
        gather: over all processes, with the exact gradient; see `functional.soft_dice`.
        reduction: ``"none"`` returns the loss of each class at each level, times the weight of the level.

    Raises:
        TypeError, ValueError: a configuration that cannot work.

    Example:
        >>> loss = DeepSupervisionDice(weights=(0.3, 0.7), cross_entropy=0.5)
        >>> logits = [torch.randn(2, 4, 20, 20), torch.randn(2, 4, 40, 40)]
        >>> loss(logits, torch.randint(4, (2, 40, 40))).shape
        torch.Size([])
    """

    options: DiceOptions

    def __init__(
        self,
        *,
        weights: Weights = (0.2, 0.3, 0.5),
        include_background: bool = True,
        regions: Regions | None = None,
        class_weights: Sequence[float] | None = None,
        batch: bool = True,
        squared: bool = False,
        smooth: float = 1e-5,
        ignore_index: int | None = None,
        cross_entropy: float = 0.0,
        gather: bool = False,
        reduction: Reduced = "mean",  # pyright: ignore[reportArgumentType]
    ) -> None:
        options = DiceOptions(
            include_background=include_background, regions=regions, class_weights=class_weights, batch=batch,
            squared=squared, smooth=smooth, ignore_index=ignore_index, cross_entropy=cross_entropy, gather=gather,
            reduction=reduction,
        )  # fmt: skip
        super().__init__(weights, options)

    @override
    def forward(self, logits: Levels, labels: Tensor) -> Tensor | Unreduced:
        """The weighted sum over the levels.

        Args:
            logits: one (B, C, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.

        Returns:
            Scalar. With ``reduction="none"`` a dictionary of what `functional.soft_dice` returns, times the weight, by
            the names of the levels, or by their numbers in a sequence; levels of weight 0 are not in it.
        """
        levels, weights = self.levels("logits", logits)
        losses = _losses(levels, labels, self.options)
        if self.options.reduction == "none":
            return self.by_level(logits, [x * weight for x, weight in zip(losses, weights, strict=True)])
        return weighted_sum(torch.stack(losses), weights)

    if TYPE_CHECKING:

        @overload
        def __call__(self: "DeepSupervisionDice[Literal['mean']]", logits: Levels, labels: Tensor) -> Tensor: ...

        @overload
        def __call__(self: "DeepSupervisionDice[Literal['none']]", logits: Levels, labels: Tensor) -> Unreduced: ...

        def __call__(self, *inputs: Any, **named: Any) -> Tensor | Unreduced:
            """As `forward`."""
            ...

    def diagnose(self, logits: Levels, labels: Tensor) -> Diagnostics:
        """Soft Dice of each class at each level, which classes the batch lacks, and whether logits are any."""
        options = replace(self.options, gather=False, reduction="mean")
        levels, weights = self.levels("logits", logits)
        with torch.no_grad():
            losses = _losses(levels, labels, options)
            each, y = zip(levels.items(), weights, losses, strict=True), labels.long()
            return Diagnostics(tuple(_diagnosed(*level, weight, loss, y, options) for level, weight, loss in each))


def _losses(levels: dict[str, Tensor], labels: Tensor, options: DiceOptions) -> list[Tensor]:
    """The loss of each level, or without reduction the losses of its classes."""
    checked = _checked(levels, labels, options)
    if options.reduction == "mean":
        return [_loss(logits, y, options) for logits, y in checked]
    losses = [_coefficients(_sums(logits, y, options), options)[0] for logits, y in checked]
    return [x.squeeze(0) for x in losses] if options.batch else losses


def _checked(levels: dict[str, Tensor], labels: Tensor, options: DiceOptions) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of each level; what the labels hold is looked at once for all of them."""
    pairs, seen = [], set()
    for name, level in levels.items():
        y = check_labels(labels, logits := checks.feature_map(name, level), name)
        if logits.shape[1] not in seen:
            check_channels(name, logits.shape[1], options.regions, options.class_weights, options.first)
            check_classes(y, logits.shape[1], options.label_sets or None, options.ignore_index)
            seen.add(logits.shape[1])
        if options.regions is None:
            warn_of_probabilities(logits, name)
        pairs.append((logits, y))
    return pairs


def _loss(logits: Tensor, labels: Tensor, options: DiceOptions) -> Tensor:
    sums, gather, share = _sums(logits, labels, options), options.gather, options.cross_entropy
    ones, counted = _coefficients(sums, options)
    losses = ones.mean(1).sum()
    weights = None if options.class_weights is None else vector(options.class_weights, ones)
    if weights is not None:
        weights = weights[options.first :]
        losses = (ones * weights).sum() / weights.sum()
    samples = counted.sum()
    if gather and not options.batch:
        losses, samples = losses * world(), total(samples)
    loss = losses / samples.clamp(min=1)
    if sums.likelihood is not None and sums.points is not None:
        likelihood, points = sums.likelihood, sums.points
        likelihood, points = (likelihood * world(), total(points)) if gather else (likelihood, points)
        loss = (1 - share) * loss - share * likelihood / points.masked_fill(points == 0, 1)
    return loss


def _coefficients(sums: Sums, options: DiceOptions) -> tuple[Tensor, Tensor]:
    """One minus the coefficient of each class, (S, C), and which of the S samples count: one, pooled, with `batch`."""
    both, counted = torch.stack([2 * sums.hit, sums.predicted + sums.true]), sums.counted
    if options.batch:
        both, counted = both.sum(1, keepdim=True), counted.any(0, keepdim=True)
        if options.gather:
            both, counted = total(both), total(counted.long()) > 0
    numerator, denominator = (both + options.smooth)[..., options.first :]
    empty = denominator == 0
    dice = torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))
    return 1 - dice, counted  # of a sample that does not count all sums are 0, and so is this


def _sums(logits: Tensor, labels: Tensor, options: DiceOptions) -> Sums:
    """A level as sums; points of `ignore_index` are taken out before anything is computed."""
    wide = widened(logits).flatten(2)
    y = resample(labels, logits.shape[2:]).flatten(1)
    keep = None if options.ignore_index is None else y != options.ignore_index
    if keep is not None:
        wide, y = torch.where(keep[:, None], wide, 0.0), torch.where(keep, y, 0)
    counted = options.class_weights if options.cross_entropy else None
    weights = None if counted is None else vector(counted, wide)
    wanted = {"squared": options.squared, "entropy": options.cross_entropy > 0, "weights": weights}
    if options.regions is None:
        return of_classes(wide, y, keep, **wanted)
    return of_regions(wide, y, keep, options.label_sets, **wanted)


def _diagnosed(
    name: str, logits: Tensor, weight: float, loss: Tensor, labels: Tensor, options: DiceOptions
) -> LevelDiagnostics:
    alone = replace(options, class_weights=None, cross_entropy=0.0)
    ones, counted = _coefficients(_sums(logits, labels, alone), alone)
    classes = ones.sum(0) / counted.sum().clamp(min=1)
    present, counts = labels[labels != options.ignore_index].unique(return_counts=True)
    valid = dict(zip(present.tolist(), counts.tolist(), strict=True))
    if options.regions is not None:
        valid = {i: sum(valid.get(label, 0) for label in region) for i, region in enumerate(options.label_sets)}
    return LevelDiagnostics(
        name=name,
        weight=weight,
        loss=loss.item(),
        floor=0.0,
        chance=_loss(torch.zeros_like(logits), labels, options).item(),
        valid=valid,
        positives=0.0,
        classes=dict(enumerate(classes.tolist(), start=options.first)),
        not_finite=int((~logits.isfinite()).any(1).sum()),
        probabilities=like_probabilities(logits, regions=options.regions is not None),
    )
