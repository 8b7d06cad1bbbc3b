"""The local loss: supervised contrast of points."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks, contrast, distributed
from mmgl_losses.checks import message
from mmgl_losses.losses import diagnostics
from mmgl_losses.losses.formulas import LOCAL_FORMULAS, Formula, LocalFormula, check_formula, loss_of, resolve
from mmgl_losses.losses.levels import (
    Instances,
    Levels,
    MultiScale,
    Weights,
    check_labels,
    fixed_temperature,
    rows_of_images,
    settle,
)
from mmgl_losses.sampling import foreground_places, points, resample, strided

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

    Returns:
        Scalar; a zero with a graph where no point has a positive. With `gather`, the mean of it over the processes is
        the loss of all of them.

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
        impl=impl, gather=gather,
    )  # fmt: skip
    return _loss({"features": features}, [1.0], labels, instances, options)


class MultiScaleLocalSupCon(MultiScale):
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
    ) -> None:
        temperature = fixed_temperature(temperature)
        options = LocalOptions(
            temperature=temperature, formula=formula, pairs=pairs, background=background,
            background_index=background_index, ignore_index=ignore_index, stride=stride, sampling=sampling,
            impl=impl, gather=gather,
        )  # fmt: skip
        super().__init__(weights, options)

    @override
    def forward(self, features: Levels, labels: Tensor, instances: Instances = None) -> Tensor:
        """The weighted sum over the levels.

        Args:
            features: one (B, D, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.
            instances: (B,), for ``pairs="augmentations"``: which rows are one image. Default: two halves.

        Returns:
            Scalar.
        """
        levels, weights = self.levels("features", features)
        return _loss(levels, weights, labels, instances, self.options)

    if TYPE_CHECKING:

        def __call__(self, features: Levels, labels: Tensor, instances: Instances = None) -> Tensor:
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
        if i == 0:  # what the labels hold is the same for all levels
            _warn_of_unlabelled(whole, options)
        yield _problem(features, whole, instances, options)


def _problem(
    features: Tensor, labels: Tensor, instances: Instances, options: LocalOptions
) -> tuple[contrast.Problem, Tensor]:
    """The contrast of one level, and the labels of its points."""
    z, y = _sampled(features, labels, options)
    if options.pairs == "batch":
        z, y = rearrange(z, "b n d -> 1 (b n) d"), rearrange(y, "b n -> 1 (b n)")
    elif options.pairs == "augmentations":
        rows = rows_of_images(instances, len(z))
        order = torch.tensor(rows, dtype=torch.int64, device=z.device).view(len(rows), len(z) // max(len(rows), 1))
        z, y = rearrange(z[order], "i a n d -> i (a n) d"), rearrange(y[order], "i a n -> i (a n)")
    anchor_mask, key_mask = _masks(y, options)
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


def _sampled(features: Tensor, labels: Tensor, options: LocalOptions) -> tuple[Tensor, Tensor]:
    """Every `stride`-th point (B, n, D) and the label (B, n) at its place."""
    spatial = features.shape[2:]
    size = [strided(n, options.stride) for n in spatial]
    if options.sampling == "grid":
        return points(resample(features, size)), resample(labels, size).flatten(1)
    # Chosen among all labels there are: a structure between the points of the features would be lost before.
    labels = resample(labels, [max(full, n) for full, n in zip(labels.shape[1:], spatial, strict=True)])
    excluded = [i for i in (options.ignore_index, options.background_index) if i is not None]
    chosen = foreground_places(labels, size, excluded)
    y, place, rest = labels.flatten(1).gather(1, chosen), torch.zeros_like(chosen), chosen
    step = 1
    for full, n in reversed([*zip(labels.shape[1:], spatial, strict=True)]):  # the point that holds each chosen label
        place, rest, step = place + rest % full * n // full * step, rest // full, step * n
    return points(features).gather(1, place[..., None].expand(-1, -1, features.shape[1])), y


def _warn_of_unlabelled(labels: Tensor, options: LocalOptions) -> None:
    """Labels that usually mean "no label", where nothing says so: their points would be one more class."""
    if options.ignore_index is not None or not checks.readable(labels):
        return
    least, most = (int(x) for x in labels.aminmax())
    if least < 0 or most == 255:
        value = least if least < 0 else most
        warnings.warn(
            f"`labels` hold {value}, which usually marks points without a label, and here is one more class. If it is "
            f"none, pass `ignore_index={value}`.",
            stacklevel=2,
        )


def _masks(y: Tensor, options: LocalOptions) -> tuple[Tensor | None, Tensor | None]:
    """Which points of labels y are anchors and which are keys; None: all. Every anchor is a key."""
    part = None if options.ignore_index is None else y != options.ignore_index
    if options.background == "anchor":
        return part, part
    foreground = y != options.background_index
    anchors = foreground if part is None else foreground & part
    return anchors, part if options.background == "key" else anchors
