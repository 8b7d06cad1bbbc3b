"""The local loss: supervised contrast of points."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks, contrast, distributed
from mmgl_losses.checks import message
from mmgl_losses.losses import diagnostics
from mmgl_losses.losses.formulas import (
    LOCAL_FORMULAS,
    Formula,
    LocalFormula,
    check_formula,
    loss_of,
    resolve,
    unreduced,
)
from mmgl_losses.losses.levels import (
    Instances,
    Levels,
    MultiScale,
    Reduced,
    Reduction,
    Unreduced,
    Weights,
    check_labels,
    fixed_temperature,
    settle,
    warn_of_unlabelled,
)
from mmgl_losses.losses.points import compared, in_order, masks, sampled
from mmgl_losses.sampling import strided

Pairs = Literal["image", "augmentations", "batch"]
Background = Literal["anchor", "key", "ignore"]
Sampling = Literal["grid", "foreground"]


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """The options of the local loss, which `local_supcon` describes. They are checked here and nowhere else."""

    temperature: float | Tensor = 0.07
    formula: LocalFormula | Formula = "supcon"
    pairs: Pairs = "image"
    background: Background = "anchor"
    background_index: int = 0
    ignore_index: int | None = None
    stride: int = 1
    sampling: Sampling = "grid"
    impl: contrast.Impl = "auto"
    gather: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        settle(self, temperature=contrast.check_temperature(self.temperature))
        check_formula(self.formula, LOCAL_FORMULAS)
        checks.one_of("pairs", self.pairs, get_args(Pairs))
        checks.one_of("background", self.background, get_args(Background))
        settle(self, background_index=checks.integer("background_index", self.background_index))
        if self.ignore_index is not None:
            settle(self, ignore_index=checks.integer("ignore_index", self.ignore_index))
        settle(self, stride=checks.integer("stride", self.stride, least=1))
        checks.one_of("sampling", self.sampling, get_args(Sampling))
        contrast.check_impl(self.impl)
        checks.flag("gather", self.gather)
        checks.one_of("reduction", self.reduction, get_args(Reduction))
        if self.background_index > 0 and self.background == "anchor" and self.sampling == "grid":
            cure = (
                "Points of the background count as any other there. Say background='key' or 'ignore', or leave it out."
            )
            got = f"background_index={self.background_index}"
            raise ValueError(message("no `background_index` with background='anchor'", got, cure))


def local_supcon(
    features: Tensor,
    labels: Tensor,
    instances: Instances = None,
    *,
    temperature: float | Tensor = 0.07,
    formula: LocalFormula | Formula = "supcon",
    pairs: Pairs = "image",
    background: Background = "anchor",
    background_index: int = 0,
    ignore_index: int | None = None,
    stride: int = 1,
    sampling: Sampling = "grid",
    impl: contrast.Impl = "auto",
    gather: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Supervised contrast of points: points of one label attract, points of other labels repel.

    .. math::
        L = \frac{1}{|\Omega|} \sum_{i \in \Omega} -\frac{1}{|P(i)|} \sum_{p \in P(i)}
            \log \frac{\exp(s_{ip})}{\sum_{a \ne i} \exp(s_{ia})},
        \quad s_{ij} = \cos(f_i, f_j) / \tau

    for ``formula="supcon"`` (Khosla et al. 2020; over pixels: Hu et al. 2021), averaged over the valid points of
    an image and then over the images that have any. In plain torch, for one image with points z (n, D)::

        z = F.normalize(z, dim=1)
        logits = (z @ z.T / temperature).fill_diagonal_(-inf)
        positive = (y[:, None] == y) & ~eye
        losses = logits.logsumexp(1) - logits.where(positive, 0).sum(1) / positive.sum(1)
        loss = losses[positive.any(1)].mean()

    Args:
        features: (B, D, *spatial), floating point, 1-D, 2-D or 3-D; normalised here.
        labels: (B, *spatial) at any size, usually the image's: each point takes the label at its own place.
        instances: (B,), for ``pairs="augmentations"``: which rows are augmentations of one image, each image as
            often as any other. Default: two halves.
        temperature: positive float or 0-d tensor.
        formula: ``"supcon"``, ``"supcon_in"`` (the mean inside the log), ``"mmgl"`` (section 3.2 of the paper as
            printed) or a callable from `PairTerms` to losses.
        pairs: between points of one ``"image"`` (the paper), of the ``"augmentations"`` of one image, or of the
            whole ``"batch"``.
        background: points of the background count as any other (``"anchor"``), only repel (``"key"``), or take no
            part (``"ignore"``).
        background_index: the label of the background.
        ignore_index: points of this label take no part, whatever their features hold.
        stride: keep every n-th point of each axis; for features that do not come from a `LocalHead`, which does it.
        sampling: which point of each stride's cell: on the ``"grid"``, or ``"foreground"``: the one with the label
            that is rarest in the image, so that no small structure is lost between the points of the grid; of two
            that lie in one cell only, the rarer one is kept.
        impl: of `pair_logsumexp`.
        gather: over all processes, with the exact gradient (see `mmgl_losses.distributed`): with ``pairs="batch"``
            points are compared with those of every process; otherwise no point travels, and the mean over images is
            that over the images of all processes (augmentations of one image belong on one process).
        reduction: ``"none"`` returns the loss of each point, of which ``"mean"`` is the mean.

    Returns:
        Scalar; zero, with zero gradients, if no point has a positive. With `gather`, the mean of it over the processes
        is the loss of all of them.

        With ``reduction="none"`` a map (B, *ceil(spatial / stride)) of the points of this process: NaN for a point
        that is no anchor or has no positive (or, where the formula needs one, no negative); infinite where a vector
        that it is compared with is not finite. ``losses.flatten(1).nanmean(1).nanmean()`` is the mean for
        ``pairs="image"``, and ``losses.nanmean()`` for ``"batch"``. The labels of the points are
        ``resample(labels, losses.shape[1:])`` of `mmgl_losses.sampling`; with ``sampling="foreground"`` a point
        stands for its cell, and is where `foreground_places` finds the rarest label.

    Raises:
        TypeError: labels that are not integers, features that are not floating point.
        ValueError: shapes that do not fit, a bad temperature or stride, an unknown option.

    Example:
        >>> features = torch.eye(2)[None, :, :, None].expand(1, 2, 2, 10)  # two rows of ten points
        >>> labels = torch.tensor([0, 1])[None, :, None].expand(1, 2, 10)
        >>> round(local_supcon(features, labels).exp().item(), 3)  # the floor is log |P|
        9.0
    """
    options = LocalOptions(
        temperature=temperature, formula=formula, pairs=pairs, background=background,
        background_index=background_index, ignore_index=ignore_index, stride=stride, sampling=sampling,
        impl=impl, gather=gather, reduction=reduction,
    )  # fmt: skip
    if reduction == "none":
        return _maps({"features": features}, [1.0], labels, instances, options)[0]
    return _loss({"features": features}, [1.0], labels, instances, options)


class MultiScaleLocalSupCon(MultiScale[Reduced]):
    r"""Supervised contrast of points at several levels of the decoder: stage two of MMGL.

    .. math:: L_l^M = \sum_{d \in D} \lambda_l^d L_l^d

    with each level's loss as in `functional.local_supcon` (Zhao et al. 2022, section 3.2). 2-D and 3-D.

    Args:
        temperature: positive float.
        weights: one for each level, coarse to fine; or a mapping from the levels' names.
        formula: ``"supcon"`` (default), ``"supcon_in"``, ``"mmgl"`` (as printed in the paper) or a callable on
            `PairTerms`.
        pairs: between points of one ``"image"``, of the ``"augmentations"`` of one image, or of the ``"batch"``.
        background: ``"anchor"``, ``"key"`` (only repels) or ``"ignore"``.
        background_index: the label of the background.
        ignore_index: points of this label take no part.
        stride: keep every n-th point; 1 for features of a `LocalHead`, which samples itself.
        sampling: ``"grid"``, or ``"foreground"``: the rarest label of each cell, so that small structures stay.
        impl: of `pair_logsumexp`.
        gather: over all processes, with the exact gradient; see `functional.local_supcon`.
        reduction: ``"none"`` returns the loss of each point at each level, times the weight of the level.

    Raises:
        TypeError, ValueError: a configuration that cannot work.

    Example:
        >>> loss = MultiScaleLocalSupCon(weights=(0.5, 0.5))
        >>> features = [torch.randn(2, 16, 10, 10), torch.randn(2, 16, 20, 20)]
        >>> loss(features, torch.randint(3, (2, 80, 80))).shape
        torch.Size([])
    """

    options: LocalOptions

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        weights: Weights = (0.2, 0.2, 0.6),
        formula: LocalFormula | Formula = "supcon",
        pairs: Pairs = "image",
        background: Background = "anchor",
        background_index: int = 0,
        ignore_index: int | None = None,
        stride: int = 1,
        sampling: Sampling = "grid",
        impl: contrast.Impl = "auto",
        gather: bool = False,
        reduction: Reduced = "mean",  # pyright: ignore[reportArgumentType]
    ) -> None:
        options = LocalOptions(
            temperature=fixed_temperature(temperature), formula=formula, pairs=pairs, background=background,
            background_index=background_index, ignore_index=ignore_index, stride=stride, sampling=sampling,
            impl=impl, gather=gather, reduction=reduction,
        )  # fmt: skip
        super().__init__(weights, options)

    @override
    def forward(self, features: Levels, labels: Tensor, instances: Instances = None) -> Tensor | Unreduced:
        """The weighted sum over the levels.

        Args:
            features: one (B, D, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.
            instances: (B,), for ``pairs="augmentations"``: which rows are one image. Default: two halves.

        Returns:
            Scalar. With ``reduction="none"`` a dictionary of the maps of `functional.local_supcon`, times the weight,
            by the names of the levels, or by their numbers in a sequence; levels of weight 0 are not in it.
        """
        levels, weights = self.levels("features", features)
        if self.options.reduction == "none":
            return self.by_level(features, _maps(levels, weights, labels, instances, self.options))
        return _loss(levels, weights, labels, instances, self.options)

    if TYPE_CHECKING:

        @overload
        def __call__(
            self: "MultiScaleLocalSupCon[Literal['mean']]",
            features: Levels,
            labels: Tensor,
            instances: Instances = None,
        ) -> Tensor: ...

        @overload
        def __call__(
            self: "MultiScaleLocalSupCon[Literal['none']]",
            features: Levels,
            labels: Tensor,
            instances: Instances = None,
        ) -> Unreduced: ...

        def __call__(self, *inputs: Any, **named: Any) -> Tensor | Unreduced:
            """As `forward`."""
            ...

    def diagnose(self, features: Levels, labels: Tensor, instances: Instances = None) -> diagnostics.Diagnostics:
        """What the loss sees: valid anchors of each class, positives, distance from the floor."""
        options = replace(self.options, gather=False)
        levels, weights = self.levels("features", features)
        with torch.no_grad():
            found = _problems(levels, labels, instances, options)
            seen = [diagnostics.Seen(contrast.terms(problem, options.impl), y) for problem, y in found]
            return diagnostics.contrast(levels, weights, seen, options, LOCAL_FORMULAS)


def _loss(
    levels: Mapping[str, Tensor], weights: Sequence[float], labels: Tensor, instances: Instances, options: LocalOptions
) -> Tensor:
    """The weighted sum of the losses of the levels."""
    formula, shared = resolve(options.formula, LOCAL_FORMULAS), options.pairs == "batch"
    losses = [
        loss_of(problem, formula, options.impl, gather=options.gather, shared=shared, weight=weight)
        for (problem, _), weight in zip(_problems(levels, labels, instances, options), weights, strict=True)
    ]
    return sum(losses[1:], losses[0])


def _maps(
    levels: Mapping[str, Tensor], weights: Sequence[float], labels: Tensor, instances: Instances, options: LocalOptions
) -> list[Tensor]:
    """The weighted losses of the points of each level, (B, *spatial), in the order of the batch."""
    formula, found = resolve(options.formula, LOCAL_FORMULAS), []
    problems = _problems(levels, labels, instances, options)
    for features, weight, (problem, _) in zip(levels.values(), weights, problems, strict=True):
        losses = unreduced(problem, formula, options.impl, weight=weight)
        losses = in_order(losses, len(features), options.pairs, instances)
        found.append(losses.reshape(len(features), *(strided(n, options.stride) for n in features.shape[2:])))
    return found


def _problems(
    levels: Mapping[str, Tensor], labels: Tensor, instances: Instances, options: LocalOptions
) -> Iterator[tuple[contrast.Problem, Tensor]]:
    """The contrast of the points (groups, n), and their labels (groups, n), level by level."""
    if instances is not None and options.pairs != "augmentations":
        cure = "Pass `pairs='augmentations'`, or leave them out."
        raise ValueError(message(f"no `instances` with pairs={options.pairs!r}", "`instances`", cure))
    for i, (name, level) in enumerate(levels.items()):
        features = checks.feature_map(name, level)
        whole = check_labels(labels, features, name)
        if i == 0 and options.ignore_index is None:  # what the labels hold is the same for all levels
            warn_of_unlabelled(whole)
        yield _problem(features, whole, instances, options)


def _problem(
    features: Tensor, labels: Tensor, instances: Instances, options: LocalOptions
) -> tuple[contrast.Problem, Tensor]:
    """The contrast of one level, and the labels of its points."""
    excluded = [i for i in (options.ignore_index, options.background_index) if i is not None]
    z, y = sampled(features, labels, stride=options.stride, sampling=options.sampling, excluded=excluded)
    z, y = compared(z, y, options.pairs, instances)
    anchor_mask, key_mask = masks(
        y,
        background=options.background,
        background_index=options.background_index,
        ignore_index=options.ignore_index,
    )
    # Rows are selected before anything is computed from them: points that take no part may hold NaN.
    z = contrast.select(z, key_mask)
    keys = key_ids = self_index = None
    if options.gather and options.pairs == "batch" and distributed.world() > 1:
        self_index = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
        z = contrast.widened(z)
        keys, key_ids, key_mask = distributed.gather_points(z, y, key_mask)
    problem = contrast.pose(
        z,
        y,
        keys=keys,
        key_ids=key_ids,
        self_index=self_index,
        anchor_mask=anchor_mask,
        key_mask=key_mask,
        temperature=options.temperature,
        bound=1.0,
        precision=features.dtype,
        unit=True,
    )
    return problem, y
