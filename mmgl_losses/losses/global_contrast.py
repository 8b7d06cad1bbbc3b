"""The global loss: contrast of whole images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks, contrast, distributed
from mmgl_losses.contrast import PairTerms
from mmgl_losses.losses import diagnostics
from mmgl_losses.losses.formulas import (
    GLOBAL_FORMULAS,
    Formula,
    GlobalFormula,
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
    fixed_temperature,
    settle,
    vector,
    weighted_sum,
)
from mmgl_losses.losses.rows import check_rows, ids_of, keys_of, stacked


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options of the global loss, which `global_contrast` describes. They are checked here and nowhere else."""

    temperature: float | Tensor = 0.07
    formula: GlobalFormula | Formula = "nt_xent"
    tolerance: float | None = None
    impl: contrast.Impl = "auto"
    gather: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        settle(self, temperature=contrast.check_temperature(self.temperature))
        check_formula(self.formula, GLOBAL_FORMULAS)
        if self.tolerance is not None:
            settle(self, tolerance=checks.number("tolerance", self.tolerance, least=0.0))
        contrast.check_impl(self.impl)
        checks.flag("gather", self.gather)
        checks.one_of("reduction", self.reduction, get_args(Reduction))


def global_contrast(
    embeddings: Tensor,
    instances: Instances = None,
    *,
    keys: Tensor | None = None,
    key_instances: Instances = None,
    temperature: float | Tensor = 0.07,
    formula: GlobalFormula | Formula = "nt_xent",
    tolerance: float | None = None,
    impl: contrast.Impl = "auto",
    gather: bool = False,
    reduction: Reduction = "mean",
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
        reduction: ``"none"`` returns the loss of each row, of which ``"mean"`` is the mean.

    Returns:
        Scalar: the mean over the anchors that have a positive (and, where the formula needs one, a negative);
        zero, with zero gradients, if there is none. With `gather`, the mean of it over the
        processes is that of all anchors.

        With ``reduction="none"`` (A·B,), in the order of the rows: NaN for an anchor that has no such positive or
        negative, so that `torch.nanmean` is the mean; infinite where a vector that it is compared with is not finite.

    Raises:
        TypeError: a tensor of a wrong type.
        ValueError: shapes that do not fit, an odd batch without `instances`, a bad temperature, an unknown formula.

    Example:
        >>> perfect = torch.eye(4).repeat(2, 1)
        >>> round(global_contrast(perfect, temperature=0.07).item(), 5)
        0.0
    """
    options = GlobalOptions(
        temperature=temperature, formula=formula, tolerance=tolerance, impl=impl, gather=gather, reduction=reduction
    )
    others = None if keys is None else {"keys": keys}
    return _losses({"embeddings": embeddings}, instances, others, key_instances, options).squeeze(0)


class MultiScaleGlobalContrast(MultiScale[Reduced]):
    r"""Contrast of whole images at several levels of the encoder: stage one of MMGL.

    .. math:: L_g^M = \sum_{e \in E} \lambda_g^e L_g^e

    with each level's loss as in `functional.global_contrast` (Zhao et al. 2022, section 3.1).

    Args:
        temperature: positive float.
        weights: one for each level, shallow to deep; or a mapping from the levels' names. The paper's
            (0.2, 0.2, 0.6) by default.
        formula: ``"nt_xent"`` (default), ``"decoupled"``, ``"mmgl"`` (as printed in the paper) or a callable on
            `PairTerms`.
        tolerance: positives are the rows with ``|instance_i - instance_j| <= tolerance`` (positional contrast).
        impl: of `pair_logsumexp`.
        gather: compare with the rows of every process, with the exact gradient; see `functional.global_contrast`.
        reduction: ``"none"`` returns the loss of each row at each level, times the weight of the level.

    Raises:
        TypeError, ValueError: a configuration that cannot work.

    Example:
        >>> loss = MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6))
        >>> loss([torch.randn(8, 128) for _ in range(3)]).shape
        torch.Size([])
    """

    spatial = False
    options: GlobalOptions

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        weights: Weights = (0.2, 0.2, 0.6),
        formula: GlobalFormula | Formula = "nt_xent",
        tolerance: float | None = None,
        impl: contrast.Impl = "auto",
        gather: bool = False,
        reduction: Reduced = "mean",  # pyright: ignore[reportArgumentType]
    ) -> None:
        options = GlobalOptions(
            temperature=fixed_temperature(temperature), formula=formula, tolerance=tolerance, impl=impl,
            gather=gather, reduction=reduction,
        )  # fmt: skip
        super().__init__(weights, options)

    @override
    def forward(
        self,
        embeddings: Levels,
        instances: Instances = None,
        *,
        keys: Levels | None = None,
        key_instances: Instances = None,
    ) -> Tensor | Unreduced:
        """The weighted sum over the levels.

        Args:
            embeddings: one (A·B, D) for each weight, augmentations stacked along the batch; a sequence or mapping.
            instances: (A·B,): which rows are one image. Default: two halves.
            keys: one (K, D) for each level, to compare with instead of with one another (MoCo's queue).
            key_instances: (K,); needed with `keys`.

        Returns:
            Scalar. With ``reduction="none"`` a dictionary of what `functional.global_contrast` returns, times the
            weight, by the names of the levels, or by their numbers in a sequence; levels of weight 0 are not in it.
        """
        levels, weights = self.levels("embeddings", embeddings)
        others = None if keys is None else self.levels("keys", keys)[0]
        losses = _losses(levels, instances, others, key_instances, self.options)
        if self.options.reduction == "none":
            return self.by_level(embeddings, losses * vector(weights, losses)[:, None])
        return weighted_sum(losses, weights)

    if TYPE_CHECKING:

        @overload
        def __call__(
            self: "MultiScaleGlobalContrast[Literal['mean']]",
            embeddings: Levels,
            instances: Instances = None,
            *,
            keys: Levels | None = None,
            key_instances: Instances = None,
        ) -> Tensor: ...

        @overload
        def __call__(
            self: "MultiScaleGlobalContrast[Literal['none']]",
            embeddings: Levels,
            instances: Instances = None,
            *,
            keys: Levels | None = None,
            key_instances: Instances = None,
        ) -> Unreduced: ...

        def __call__(self, *inputs: Any, **named: Any) -> Tensor | Unreduced:
            """As `forward`."""
            ...

    def diagnose(
        self,
        embeddings: Levels,
        instances: Instances = None,
        *,
        keys: Levels | None = None,
        key_instances: Instances = None,
    ) -> diagnostics.Diagnostics:
        """What the loss sees: valid anchors, positives, distance from the floor. Arguments as `forward`."""
        options = replace(self.options, gather=False)
        levels, weights = self.levels("embeddings", embeddings)
        others = None if keys is None else self.levels("keys", keys)[0]
        with torch.no_grad():
            terms = contrast.terms(_problem(levels, instances, others, key_instances, options), options.impl)
            seen = [diagnostics.Seen(PairTerms(*found), None) for found in zip(*terms, strict=True)]
            return diagnostics.contrast(levels, weights, seen, options, GLOBAL_FORMULAS)


def _losses(
    levels: Mapping[str, Tensor],
    instances: Instances,
    keys: Mapping[str, Tensor] | None,
    key_instances: Instances,
    options: GlobalOptions,
) -> Tensor:
    """The mean over the anchors of each of L levels, (L,), or without reduction the loss of each, (L, A·B)."""
    problem = _problem(levels, instances, keys, key_instances, options)
    formula = resolve(options.formula, GLOBAL_FORMULAS)
    if options.reduction == "none":
        return unreduced(problem, formula, options.impl)
    return loss_of(problem, formula, options.impl, gather=options.gather, average=False)


def _problem(
    levels: Mapping[str, Tensor],
    instances: Instances,
    keys: Mapping[str, Tensor] | None,
    key_instances: Instances,
    options: GlobalOptions,
) -> contrast.Problem:
    """The contrast of the embeddings (L, A·B) of L levels, which are the groups of one problem."""
    embeddings = check_rows(levels)
    x = stacked(embeddings)
    others = keys is not None or key_instances is not None
    everywhere = options.gather and distributed.world() > 1
    # An engine may take half precision as it is; keys of another type, or of other processes, meet float32.
    z = contrast.widened(x) if others or everywhere else x
    ids = ids_of(instances, keys, x, tolerance=options.tolerance, everywhere=options.gather)
    k = key_ids = self_index = None
    if others:
        k, key_ids = keys_of(keys, key_instances, embeddings, options.tolerance)
        k = k.to(z.dtype)
    if everywhere:
        if k is None or key_ids is None:
            k, key_ids = z, ids
            self_index = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
        k, key_ids, _ = distributed.gather_points(k, key_ids)
    return contrast.pose(
        z,
        ids,
        keys=k,
        key_ids=key_ids,
        self_index=self_index,
        temperature=options.temperature,
        tolerance=options.tolerance,
        bound=1.0,
        precision=x.dtype,
        unit=True,
    )
