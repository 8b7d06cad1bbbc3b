"""Soft Dice, without one-hot targets and without resizing anything but by indexing."""

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.distributed import total, world
from mmgl_losses.sampling import resample


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
    checks.feature_map("logits", logits)
    labels = checks.label_map(labels, logits, "logits").long()
    flags = {"include_background": include_background, "batch": batch, "squared": squared, "gather": gather}
    for name, value in flags.items():
        checks.flag(name, value)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    checks.number("smooth", smooth, least=0.0)
    checks.number("cross_entropy", cross_entropy, least=0.0, most=1.0)
    classes = logits.shape[1]
    checks.class_labels(labels, classes, ignore_index)

    wide = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
    y = resample(labels, logits.shape[2:]).flatten(1)
    keep = None if ignore_index is None else y != ignore_index
    if keep is not None:
        wide, y = torch.where(keep[:, None], wide, 0.0), torch.where(keep, y, 0)
    log_p = wide.log_softmax(1) if cross_entropy else None
    p = wide.softmax(1) if log_p is None else log_p.exp()

    def kept(values: Tensor) -> Tensor:
        return values if keep is None else values * keep.view(len(y), *[1] * (values.ndim - 2), y.shape[1])

    def by_class(values: Tensor) -> Tensor:
        return values.new_zeros(len(y), classes).scatter_add(1, y, kept(values))

    hit, true = by_class(p.gather(1, y[:, None]).squeeze(1)), by_class(torch.ones_like(wide[:, 0]))
    predicted = kept(p.square() if squared else p).sum(2)
    sums = torch.stack([2 * hit + smooth, predicted + true + smooth])
    points = y.new_tensor(y.numel()) if keep is None else keep.sum()
    counted = true.sum(1) > 0
    if batch:
        sums, counted = (sums - smooth).sum(1, keepdim=True), counted.any(0, keepdim=True)
        sums, counted = (total(sums), total(counted.long()) > 0) if gather else (sums, counted)
        sums = sums + smooth
    numerator, denominator = sums[..., 0 if include_background else 1 :]
    empty = denominator == 0
    dice = torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator)).mean(1)
    losses, samples = torch.where(counted, 1 - dice, 0.0).sum(), counted.sum()
    if gather and not batch:
        losses, samples = losses * world(), total(samples)
    loss = losses / samples.clamp(min=1)
    if log_p is not None:
        likelihood = kept(log_p.gather(1, y[:, None]).squeeze(1)).sum()
        likelihood, points = (likelihood * world(), total(points)) if gather else (likelihood, points)
        loss = (1 - cross_entropy) * loss - cross_entropy * likelihood / points.clamp(min=1)
    return loss
