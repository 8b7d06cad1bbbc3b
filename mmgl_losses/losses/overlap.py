"""What predictions and labels have in common, in sums: class by class, or region by region where those overlap."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.checks import message, typed
from mmgl_losses.losses.levels import above_zero

Regions: TypeAlias = Sequence[int | Sequence[int]]


class Sums(NamedTuple):
    """What a loss is made of; p is a probability, t what is true."""

    hit: Tensor  #: (B, C): sum of p · t
    predicted: Tensor  #: (B, C): sum of p, or of its square
    true: Tensor  #: (B, C): sum of t
    counted: Tensor  #: (B,): the sample has a point that counts
    likelihood: Tensor | None  #: scalar: sum of w · log p of what is true, where cross-entropy is wanted
    points: Tensor | None  #: scalar: sum of w


def check_channels(
    name: str, channels: int, regions: Sequence[object] | None, class_weights: Sequence[float] | None, first: int
) -> None:
    """As many channels as the options speak of, of which some count."""
    if regions is not None and channels != len(regions):
        raise ValueError(message(f"`{name}` of {len(regions)} channels, one for each of `regions`", channels))
    if regions is None and channels < 2:
        cure = "For one foreground structure use two channels, background and foreground, or `regions=((1,),)`."
        raise ValueError(message("logits of at least 2 channels", channels, cure))
    if class_weights is not None:
        if channels != len(class_weights):
            expected = f"`{name}` of {len(class_weights)} channels, one for each of `class_weights`"
            raise ValueError(message(expected, channels))
        if not any(class_weights[first:]):
            raise ValueError(message("one of `class_weights` above 0 beside the background's", class_weights))


def check_classes(
    labels: Tensor, channels: int, regions: tuple[tuple[int, ...], ...] | None, ignore_index: int | None
) -> None:
    """Every label is a class or `ignore_index`; the values are read on the CPU only, where that costs no wait."""
    if not checks.readable(labels):
        return
    if regions is None:
        wrong, known = (labels < 0) | (labels >= channels), f"0 ... {channels - 1}"
    else:  # what is in no region is background, but for what usually marks points without a label
        unlabelled = not any(255 in region for region in regions)
        wrong, known = (labels < 0) | ((labels == 255) & unlabelled), "0 ... 254, or in one of `regions`"
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        values = labels[wrong].unique()[:5].tolist()
        cure = "" if ignore_index is not None else "Pass `ignore_index` for a label that is to be left out."
        raise ValueError(message(f"`labels` in {known}", values, cure))


def like_probabilities(logits: Tensor, *, regions: bool) -> bool:
    """Whether (B, C, *spatial) looks like the output of a softmax, or, with regions, of a sigmoid."""
    values = logits.detach().float()
    if not values.numel():
        return False
    least, most = (x.item() for x in values.aminmax())
    if not 0 <= least <= most <= 1:
        return False
    if regions:
        return least < 0.1 and most > 0.9
    return bool(((values.sum(1) - 1).abs() < 0.02).all())


def warn_of_probabilities(logits: Tensor, name: str) -> None:
    """Looks at a few points, where that waits for nothing: numbers that add up to 1 in all of them are no chance."""
    if checks.readable(logits) and like_probabilities(logits.flatten(2)[..., :64], regions=False):
        warnings.warn(
            f"`{name}` look like probabilities, and not like logits. Pass what the network gives before softmax: this "
            "loss takes the softmax itself, and of probabilities it has a value but hardly a gradient.",
            stacklevel=2,
        )


def of_classes(
    logits: Tensor, y: Tensor, keep: Tensor | None, *, squared: bool, entropy: bool, weights: Tensor | None
) -> Sums:
    """Each point is of one class, so nothing is one-hot.

    Args:
        logits: (B, C, n).
        y: (B, n), the class of each point.
        keep: (B, n) bool: points that count; None: all.
        squared: squared probabilities in `predicted`.
        entropy: the likelihood is wanted.
        weights: (C,), of the likelihood.
    """
    log_p = logits.log_softmax(1) if entropy else None
    p = logits.softmax(1) if log_p is None else log_p.exp()

    def by_class(values: Tensor) -> Tensor:
        return values.new_zeros(len(y), logits.shape[1]).scatter_add(1, y, _kept(values, keep))

    hit, true = by_class(p.gather(1, y[:, None]).squeeze(1)), by_class(torch.ones_like(logits[:, 0]))
    predicted = _kept(p.square() if squared else p, keep).sum(2)
    likelihood = points = None
    if log_p is not None:
        own = log_p.gather(1, y[:, None]).squeeze(1)
        likelihood, points = _likelihood(own, None if weights is None else weights[y], keep)
    return Sums(hit, predicted, true, true.sum(1) > 0, likelihood, points)


def of_regions(
    logits: Tensor,
    y: Tensor,
    keep: Tensor | None,
    regions: Sequence[Sequence[int]],
    *,
    squared: bool,
    entropy: bool,
    weights: Tensor | None,
) -> Sums:
    """Each point is in some of the regions, or in none; one channel of logits for each. Otherwise as `of_classes`."""
    t = torch.stack([torch.stack([y == label for label in region]).any(0) for region in regions], 1)
    p = logits.sigmoid()
    hit, true = _kept(torch.where(t, p, 0.0), keep).sum(2), _kept(t.to(p.dtype), keep).sum(2)
    predicted = _kept(p.square() if squared else p, keep).sum(2)
    counted = y.new_ones(len(y), dtype=torch.bool) if keep is None else keep.any(1)
    likelihood = points = None
    if entropy:
        own = F.logsigmoid(logits * (2.0 * t - 1.0))  # log p where it is true, log(1 - p) elsewhere
        likelihood, points = _likelihood(own, None if weights is None else weights[:, None].expand_as(own), keep)
    return Sums(hit, predicted, true, counted, likelihood, points)


def _likelihood(own: Tensor, weights: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of w · log p over the points that count, and the sum of w."""
    share = torch.ones_like(own) if weights is None else weights
    return _kept(own * share, keep).sum(), _kept(share, keep).sum()


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    """Values (B, n) or (B, C, n) where points (B, n) count, 0 elsewhere."""
    return values if keep is None else values * keep.view(len(keep), *[1] * (values.ndim - 2), keep.shape[1])


def check_class_weights(value: object) -> tuple[float, ...]:
    """Finite weights of at least 0, not all 0."""
    if hasattr(value, "tolist"):  # of numpy or torch
        value = value.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(message("`class_weights` to be a sequence of numbers, one for each channel", typed(value)))
    return tuple(above_zero("class_weights", dict(enumerate(value)), value).values())


def check_regions(value: object, ignore_index: int | None) -> tuple[tuple[int, ...], ...]:
    """The labels of each region: at least one, none of them 0 or `ignore_index`."""
    expected = "`regions` to be a sequence with the labels of each region, such as ((1, 2, 3), (2, 3), (3,))"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(message(expected, typed(value)))
    regions = []
    for i, region in enumerate(value):
        labels = region if isinstance(region, Sequence) and not isinstance(region, str) else [region]
        regions.append(tuple(checks.integer(f"regions[{i}]", label, least=1) for label in labels))
    if not regions or not all(regions):
        raise ValueError(message(expected, repr(value)))
    if any(ignore_index in region for region in regions):
        raise ValueError(message(f"`regions` without ignore_index={ignore_index}", repr(value)))
    return tuple(regions)
