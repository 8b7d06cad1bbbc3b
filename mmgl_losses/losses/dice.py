"""Deep supervision: soft Dice, without one-hot targets and without resizing anything but by indexing."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks
from mmgl_losses.checks import message
from mmgl_losses.distributed import total, world
from mmgl_losses.losses.diagnostics import Diagnostics, LevelDiagnostics
from mmgl_losses.losses.levels import Levels, MultiScale, Weights, check_labels, settle, weighted_sum
from mmgl_losses.sampling import resample


@dataclass(frozen=True, kw_only=True)
class DiceOptions:
    """The options of soft Dice, which `soft_dice` describes. They are checked here and nowhere else."""

    include_background: bool = True
    batch: bool = True
    squared: bool = False
    smooth: float = 1e-5
    ignore_index: int | None = None
    cross_entropy: float = 0.0
    gather: bool = False

    def __post_init__(self) -> None:
        for name in ("include_background", "batch", "squared", "gather"):
            checks.flag(name, getattr(self, name))
        settle(self, smooth=checks.number("smooth", self.smooth, least=0.0))
        settle(self, cross_entropy=checks.number("cross_entropy", self.cross_entropy, least=0.0, most=1.0))
        if self.ignore_index is not None:
            settle(self, ignore_index=checks.integer("ignore_index", self.ignore_index))


def soft_dice(
    logits: Tensor,
    labels: Tensor,
    *,
    include_background: bool = True,
    batch: bool = True,
    squared: bool = False,
    smooth: float = 1e-5,
    ignore_index: int | None = None,
    cross_entropy: float = 0.0,
    gather: bool = False,
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
        logits: (B, C, *spatial), C at least 2.
        labels: (B, *spatial) at any size: each point of the logits takes the label at its own place.
        include_background: count class 0 too. Without it, one class can flood the background unpunished in its
            own sums, and training gets stuck.
        batch: pool the sums over the batch, instead of a coefficient for each sample.
        squared: squared probabilities in the denominator.
        smooth: eps, at least 0.
        ignore_index: points of this label take no part, whatever their logits hold.
        cross_entropy: the share c of cross-entropy in the loss, ``(1 - c) · Dice + c · CE``.
        gather: over all processes, with the exact gradient (see `mmgl_losses.distributed`): with `batch` the sums of
            each class are pooled before the ratio, otherwise the mean over samples is that over all of them.

    Returns:
        Scalar, in [0, 1] without cross-entropy; a zero with a graph where all points are ignored. With `gather`, the
        mean of it over the processes is the loss of all of them.

    Raises:
        TypeError: labels that are not integers, logits that are not floating point.
        ValueError: shapes that do not fit, fewer than two channels, a label that is no class, a bad option.

    Example:
        >>> labels = torch.tensor([[0, 1, 1, 2]])
        >>> soft_dice(20 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float(), labels)
        tensor(0.)
    """
    options = DiceOptions(
        include_background=include_background, batch=batch, squared=squared, smooth=smooth,
        ignore_index=ignore_index, cross_entropy=cross_entropy, gather=gather,
    )  # fmt: skip
    return _losses({"logits": logits}, labels, options)[0]


class DeepSupervisionDice(MultiScale):
    r"""Soft Dice at several levels of the decoder: stage three of MMGL.

    .. math:: L_{seg}^M = \sum_{d \in D} \lambda_{dice}^d L_{dice}^d

    with each level's loss as in `functional.soft_dice` (Zhao et al. 2022, section 3.3). Labels are brought to each
    level by indexing; nothing is resized to full size.

    Args:
        weights: one for each level, coarse to fine; or a mapping from the levels' names. Default: the portfolio
            that was best in the paper at the fewest labels.
        include_background: count class 0 too.
        batch: pool the sums over the batch.
        squared: squared probabilities in the denominator.
        smooth: added to numerator and denominator.
        ignore_index: points of this label take no part.
        cross_entropy: the share c of cross-entropy, ``(1 - c) · Dice + c · CE`` at each level.
        gather: over all processes, with the exact gradient; see `functional.soft_dice`.

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
        batch: bool = True,
        squared: bool = False,
        smooth: float = 1e-5,
        ignore_index: int | None = None,
        cross_entropy: float = 0.0,
        gather: bool = False,
    ) -> None:
        options = DiceOptions(
            include_background=include_background, batch=batch, squared=squared, smooth=smooth,
            ignore_index=ignore_index, cross_entropy=cross_entropy, gather=gather,
        )  # fmt: skip
        super().__init__(weights, options)

    @override
    def forward(self, logits: Levels, labels: Tensor) -> Tensor:
        """The weighted sum over the levels.

        Args:
            logits: one (B, C, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.

        Returns:
            Scalar.
        """
        levels, weights = self.levels("logits", logits)
        return weighted_sum(torch.stack(_losses(levels, labels, self.options)), weights)

    def diagnose(self, logits: Levels, labels: Tensor) -> Diagnostics:
        """Soft Dice of each class at each level, and which classes the batch lacks."""
        options = replace(self.options, gather=False)
        levels, weights = self.levels("logits", logits)
        with torch.no_grad():
            losses = _losses(levels, labels, options)
            return Diagnostics(
                tuple(
                    _diagnosed(*level, weight, loss, labels.long(), options)
                    for level, weight, loss in zip(levels.items(), weights, losses, strict=True)
                )
            )


def _losses(levels: dict[str, Tensor], labels: Tensor, options: DiceOptions) -> list[Tensor]:
    """The loss of each level; what the labels hold is looked at once for all of them."""
    pairs, seen = [], set()
    for name, level in levels.items():
        logits = checks.feature_map(name, level)
        y = check_labels(labels, logits, name)
        if logits.shape[1] not in seen:
            _check_classes(y, logits.shape[1], options.ignore_index)
            seen.add(logits.shape[1])
        pairs.append((logits, y))
    return [_loss(logits, y, options) for logits, y in pairs]


def _loss(logits: Tensor, labels: Tensor, options: DiceOptions) -> Tensor:
    classes, gather = logits.shape[1], options.gather
    wide = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
    y = resample(labels, logits.shape[2:]).flatten(1)
    keep = None if options.ignore_index is None else y != options.ignore_index
    if keep is not None:
        wide, y = torch.where(keep[:, None], wide, 0.0), torch.where(keep, y, 0)
    log_p = wide.log_softmax(1) if options.cross_entropy else None
    p = wide.softmax(1) if log_p is None else log_p.exp()

    def kept(values: Tensor) -> Tensor:
        return values if keep is None else values * keep.view(len(y), *[1] * (values.ndim - 2), y.shape[1])

    def by_class(values: Tensor) -> Tensor:
        return values.new_zeros(len(y), classes).scatter_add(1, y, kept(values))

    hit, true = by_class(p.gather(1, y[:, None]).squeeze(1)), by_class(torch.ones_like(wide[:, 0]))
    predicted = kept(p.square() if options.squared else p).sum(2)
    sums, counted = torch.stack([2 * hit, predicted + true]), true.sum(1) > 0
    if options.batch:
        sums, counted = sums.sum(1, keepdim=True), counted.any(0, keepdim=True)
        sums, counted = (total(sums), total(counted.long()) > 0) if gather else (sums, counted)
    numerator, denominator = (sums + options.smooth)[..., 0 if options.include_background else 1 :]
    empty = denominator == 0
    dice = torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator)).mean(1)
    losses, samples = torch.where(counted, 1 - dice, 0.0).sum(), counted.sum()
    if gather and not options.batch:
        losses, samples = losses * world(), total(samples)
    loss = losses / samples.clamp(min=1)
    if log_p is not None:
        points = y.new_tensor(y.numel()) if keep is None else keep.sum()
        likelihood = kept(log_p.gather(1, y[:, None]).squeeze(1)).sum()
        likelihood, points = (likelihood * world(), total(points)) if gather else (likelihood, points)
        share = options.cross_entropy
        loss = (1 - share) * loss - share * likelihood / points.clamp(min=1)
    return loss


def _check_classes(labels: Tensor, classes: int, ignore_index: int | None) -> None:
    """Every label is a class or `ignore_index`; the values are read on the CPU only, where that costs no wait."""
    if classes < 2:
        cure = "For one foreground structure use two channels, background and foreground."
        raise ValueError(message("logits of at least 2 channels", classes, cure))
    if not checks.readable(labels):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        values = labels[wrong].unique()[:5].tolist()
        cure = "Pass `ignore_index` for a label that is to be left out." if ignore_index is None else ""
        raise ValueError(message(f"`labels` in 0 ... {classes - 1}", values, cure))


def _diagnosed(
    name: str, logits: Tensor, weight: float, loss: Tensor, labels: Tensor, options: DiceOptions
) -> LevelDiagnostics:
    ignored, log_p, classes = options.ignore_index, logits.float().log_softmax(1), {}
    alone = replace(options, include_background=False, cross_entropy=0.0, ignore_index=-1)
    for kind in range(0 if options.include_background else 1, logits.shape[1]):
        # The class against the rest, as two channels: its own coefficient is the foreground's.
        one = log_p[:, kind : kind + 1]
        rest = torch.cat([log_p[:, :kind], log_p[:, kind + 1 :]], 1).logsumexp(1, keepdim=True)
        binary = (labels == kind).long()
        if ignored is not None:
            binary = torch.where(labels == ignored, -1, binary)
        classes[kind] = _loss(torch.cat([rest, one], 1), binary, alone).item()
    present, counts = labels[labels != ignored].unique(return_counts=True)
    return LevelDiagnostics(
        name=name,
        weight=weight,
        loss=loss.item(),
        floor=0.0,
        chance=_loss(torch.zeros_like(logits), labels, options).item(),
        valid=dict(zip(present.tolist(), counts.tolist(), strict=True)),
        positives=0.0,
        classes=classes,
        not_finite=int((~logits.isfinite()).any(1).sum()),
    )
