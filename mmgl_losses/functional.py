"""The losses as functions: the terms of a contrast, a formula, a mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgl_losses import checks, distributed
from mmgl_losses.contrast import PairOptions, PairTerms, halves, pair_logsumexp, pair_terms
from mmgl_losses.dice import soft_dice
from mmgl_losses.formulas import DENOMINATORS, GLOBAL_FORMULAS, LOCAL_FORMULAS, Formula, group_means, mean_loss, resolve
from mmgl_losses.sampling import foreground_places, normalise, points, resample, strided

__all__ = ["global_contrast", "local_supcon", "pair_logsumexp", "pair_terms", "soft_dice"]

PAIRS = ("image", "augmentations", "batch")
BACKGROUND = ("anchor", "key", "ignore")
SAMPLING = ("grid", "foreground")


def global_contrast(
    embeddings: Tensor,
    instances: Tensor | None = None,
    *,
    keys: Tensor | None = None,
    key_instances: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    formula: str | Formula = "nt_xent",
    tolerance: float | None = None,
    impl: str = "auto",
    gather: bool = False,
) -> Tensor:
    r"""Contrast of whole images: augmentations of one image attract, those of other images repel.

    .. math::
        L = \frac{1}{|A|} \sum_i -\frac{1}{|P(i)|} \sum_{p \in P(i)}
            \log \frac{\exp(s_{ip})}{\sum_{k \ne i} \exp(s_{ik})},
        \quad s_{ij} = \cos(z_i, z_j) / \tau

    for ``formula="nt_xent"`` (Chen et al. 2020); in plain torch, for two augmentations of B images::

        z = F.normalize(embeddings, dim=1)
        logits = (z @ z.T / temperature).fill_diagonal_(-inf)
        loss = F.cross_entropy(logits, (torch.arange(2 * B) + B) % (2 * B))

    Args:
        embeddings: (A·B, D), floating point; normalised here.
        instances: (A·B,): which rows are augmentations of one image. Default: two halves, ``cat([first, second])``.
        keys: (K, D): what the embeddings are compared with (a queue, a momentum encoder's output) instead of one
            another; then an image's positives are the keys of its instance.
        key_instances: (K,); needed with `keys`.
        temperature: positive float or 0-d tensor.
        formula: ``"nt_xent"``, ``"decoupled"`` (negatives alone in the denominator), ``"mmgl"`` (section 3.1 of the
            paper as printed) or a callable from `PairTerms` to losses.
        tolerance: positives are the rows with ``|instance_i - instance_j| <= tolerance``; with positions of slices
            as instances this is positional contrast (Zeng et al. 2021).
        impl: of `pair_logsumexp`.
        gather: compare with the rows of every process, with the exact gradient (see `mmgl_losses.distributed`). Given
            `instances` are then one numbering for all processes; the default takes care of that. `keys` are gathered
            too. Alone in its process group, or without one, a process computes what it would without.

    Returns:
        Scalar: the mean over the anchors that have a positive (and, where the formula needs one, a negative); a
        zero with a graph where there is none. With `gather`, the mean of it over the processes is that of all anchors.

    Raises:
        TypeError: a tensor of a wrong type.
        ValueError: shapes that do not fit, an odd batch without `instances`, a bad temperature, an unknown formula.

    Example:
        >>> perfect = torch.eye(4).repeat(2, 1)
        >>> round(global_contrast(perfect, temperature=0.07).item(), 5)
        0.0
    """
    checks.embeddings(embeddings, instances, keys, key_instances)
    return global_loss(
        [embeddings],
        instances,
        weights=[1.0],
        keys=None if keys is None else [keys],
        key_instances=key_instances,
        temperature=temperature,
        formula=formula,
        tolerance=tolerance,
        impl=impl,
        gather=gather,
    )


def local_supcon(
    features: Tensor,
    labels: Tensor,
    instances: Tensor | Sequence[int] | None = None,
    *,
    temperature: float | Tensor = 0.07,
    formula: str | Formula = "supcon",
    pairs: str = "image",
    background: str = "anchor",
    background_index: int = 0,
    ignore_index: int | None = None,
    stride: int = 1,
    sampling: str = "grid",
    impl: str = "auto",
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
            that is rarest in the image, so that no small structure is lost between the points of the grid.
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
    terms, _ = local_terms(
        features,
        labels,
        instances,
        temperature=temperature,
        pairs=pairs,
        background=background,
        background_index=background_index,
        ignore_index=ignore_index,
        stride=stride,
        sampling=sampling,
        impl=impl,
        gather=gather,
    )
    return mean_loss(terms, resolve(formula, LOCAL_FORMULAS), gather=gather, shared=pairs == "batch")


def global_loss(
    levels: Sequence[Tensor],
    instances: Tensor | None = None,
    *,
    weights: Sequence[float],
    keys: Sequence[Tensor] | None = None,
    key_instances: Tensor | None = None,
    temperature: float | Tensor,
    formula: str | Formula,
    tolerance: float | None = None,
    impl: str = "auto",
    gather: bool = False,
) -> Tensor:
    """The weighted sum of `global_contrast` over levels of one shape, (A·B, D) each, with keys (K, D) each."""
    function = resolve(formula, GLOBAL_FORMULAS)
    checks.flag("gather", gather)
    checks.temperature(temperature)
    usual = instances is None and tolerance is None and impl == "auto" and (not gather or distributed.world() == 1)
    if usual and isinstance(formula, str) and not isinstance(temperature, Tensor):
        held = DENOMINATORS[formula]
        if halves.fits(len(levels[0]), len(levels), temperature):
            return halves.loss(levels, weights, temperature, itself="itself" in held, positive="positive" in held)
    terms = global_terms(
        torch.stack([*levels]),
        instances,
        keys=None if keys is None else torch.stack([*keys]),
        key_instances=key_instances,
        temperature=temperature,
        tolerance=tolerance,
        impl=impl,
        gather=gather,
    )
    means, _ = group_means(terms, function, gather=gather)
    return torch.dot(means, torch.stack([means.new_full((), weight) for weight in weights]))


def global_terms(
    embeddings: Tensor,
    instances: Tensor | None = None,
    *,
    keys: Tensor | None = None,
    key_instances: Tensor | None = None,
    temperature: float | Tensor,
    tolerance: float | None = None,
    impl: str = "auto",
    gather: bool = False,
) -> PairTerms:
    """Terms of each embedding of L levels, (L, A·B); arguments as `global_loss`."""
    z, half = normalise(embeddings), embeddings.shape[1] // 2
    if instances is None:
        checks.numbered(tolerance, gather)
        numbers = distributed.own_numbers(half, z.device) if gather else torch.arange(half, device=z.device)
        instances = numbers.repeat(2)
    ids = instances.expand(len(z), -1)
    options: PairOptions = {}
    if keys is not None and key_instances is not None:
        keys, key_ids = normalise(keys), key_instances.expand(len(z), -1)
        options = _gathered(keys, key_ids) if gather else {"keys": keys, "key_ids": key_ids}
    elif gather:
        options = _gathered(z, ids, anchors=True)
    options["tolerance"], options["bound"] = tolerance, 1.0
    return pair_terms(
        z,
        ids,
        temperature=temperature,
        impl=_known(impl, gather),
        precision=embeddings.dtype,
        **options,
    )


def local_terms(
    features: Tensor,
    labels: Tensor,
    instances: Tensor | Sequence[int] | None = None,
    *,
    temperature: float | Tensor,
    pairs: str = "image",
    background: str = "anchor",
    background_index: int = 0,
    ignore_index: int | None = None,
    stride: int = 1,
    sampling: str = "grid",
    impl: str = "auto",
    gather: bool = False,
) -> tuple[PairTerms, Tensor]:
    """Terms of each point (groups, n), and the labels (groups, n); arguments as `local_supcon`."""
    checks.one_of("pairs", pairs, PAIRS)
    checks.one_of("background", background, BACKGROUND)
    checks.one_of("sampling", sampling, SAMPLING)
    checks.flag("gather", gather)
    checks.integer("stride", stride, least=1)
    checks.integer("background_index", background_index)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index)
    if instances is not None and pairs != "augmentations":
        checks.unused("instances", f"pairs={pairs!r}", "Pass `pairs='augmentations'`, or leave them out.")
    checks.feature_map("features", features)
    # In a narrow type, an index that it cannot hold would wrap around and match another class.
    labels = checks.label_map(labels, features).long()
    size = [strided(n, stride) for n in features.shape[2:]]
    if sampling == "foreground":
        labels = resample(labels, features.shape[2:])
        excluded = [i for i in (ignore_index, background_index) if i is not None]
        chosen = foreground_places(labels, size, excluded)
        z = points(features).gather(1, chosen[..., None].expand(-1, -1, features.shape[1]))
        y = labels.flatten(1).gather(1, chosen)
    else:
        z, y = points(resample(features, size)), resample(labels, size).flatten(1)
    if pairs == "batch":
        z, y = z.flatten(0, 1)[None], y.flatten()[None]
    elif pairs == "augmentations":
        rows = checks.augmentations(instances, features.shape[0])
        order = torch.tensor(rows, dtype=torch.int64, device=z.device).view(len(rows), len(z) // max(len(rows), 1))
        z, y = z[order].flatten(1, 2), y[order].flatten(1)
    part = None if ignore_index is None else y != ignore_index
    anchor_mask = key_mask = part
    if background != "anchor":
        foreground = y != background_index
        anchor_mask = foreground if part is None else foreground & part
        key_mask = part if background == "key" else anchor_mask
    if key_mask is not None:
        # Before anything is computed from them: points that take no part may hold NaN. (Every anchor is a key.)
        z = torch.where(key_mask[..., None], z, 0.0)
    z = normalise(z)
    gather = gather and pairs == "batch"
    options: PairOptions = _gathered(z, y, key_mask, anchors=True) if gather else {"key_mask": key_mask}
    options["anchor_mask"], options["bound"] = anchor_mask, 1.0
    terms = pair_terms(
        z,
        y,
        temperature=temperature,
        impl=_known(impl, gather),
        precision=features.dtype,
        **options,
    )
    return terms, y


def _gathered(keys: Tensor, ids: Tensor, mask: Tensor | None = None, *, anchors: bool = False) -> PairOptions:
    """The keys (G, n, D) of all processes, with their ids and mask (G, n); `anchors`: the first n are the anchors."""
    if distributed.world() == 1:
        return {"key_mask": mask} if anchors else {"keys": keys, "key_ids": ids}
    ids = ids if ids.is_floating_point() else ids.long()  # one type in all processes
    values = [keys, ids] if mask is None else [keys, ids, mask]
    keys, ids, *masks = (rows.movedim(0, 1) for rows in distributed.gather(*(value.movedim(1, 0) for value in values)))
    options: PairOptions = {"keys": keys, "key_ids": ids, "key_mask": masks[0] if masks else None}
    if anchors:
        options["self_index"] = torch.arange(values[0].shape[1], device=keys.device).expand(len(keys), -1)
    return options


def _known(impl: str, gather: bool) -> str:
    """The implementation, where the number of gathered keys is only known when compiled code runs."""
    return "tiled" if impl == "auto" and gather and torch.compiler.is_compiling() else impl
