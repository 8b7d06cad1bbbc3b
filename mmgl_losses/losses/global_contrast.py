"""The global loss: contrast of whole images."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from mmgl_losses import checks, contrast, distributed
from mmgl_losses.checks import message
from mmgl_losses.contrast import PairTerms
from mmgl_losses.losses import diagnostics
from mmgl_losses.losses.formulas import GLOBAL_FORMULAS, Formula, GlobalFormula, check_formula, loss_of, resolve
from mmgl_losses.losses.levels import (
    Instances,
    Levels,
    MultiScale,
    Weights,
    as_tensor,
    fixed_temperature,
    settle,
    weighted_sum,
)


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options of the global loss, which `global_contrast` describes. They are checked here and nowhere else."""

    temperature: float | Tensor = 0.07
    formula: GlobalFormula | Formula = "nt_xent"
    tolerance: float | None = None
    impl: contrast.Impl = "auto"
    gather: bool = False

    def __post_init__(self) -> None:
        settle(self, temperature=contrast.check_temperature(self.temperature))
        check_formula(self.formula, GLOBAL_FORMULAS)
        if self.tolerance is not None:
            settle(self, tolerance=checks.number("tolerance", self.tolerance, least=0.0))
        contrast.check_impl(self.impl)
        checks.flag("gather", self.gather)


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
    options = GlobalOptions(temperature=temperature, formula=formula, tolerance=tolerance, impl=impl, gather=gather)
    others = None if keys is None else {"keys": keys}
    return _means({"embeddings": embeddings}, instances, others, key_instances, options).squeeze(0)


class MultiScaleGlobalContrast(MultiScale):
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
    ) -> None:
        temperature = fixed_temperature(temperature)
        options = GlobalOptions(temperature=temperature, formula=formula, tolerance=tolerance, impl=impl, gather=gather)
        super().__init__(weights, options)

    @override
    def forward(
        self,
        embeddings: Levels,
        instances: Instances = None,
        *,
        keys: Levels | None = None,
        key_instances: Instances = None,
    ) -> Tensor:
        """The weighted sum over the levels.

        Args:
            embeddings: one (A·B, D) for each weight, augmentations stacked along the batch; a sequence or mapping.
            instances: (A·B,): which rows are one image. Default: two halves.
            keys: one (K, D) for each level, to compare with instead of with one another (MoCo's queue).
            key_instances: (K,); needed with `keys`.

        Returns:
            Scalar.
        """
        levels, weights = self.levels("embeddings", embeddings)
        others = None if keys is None else self.levels("keys", keys)[0]
        means = _means(levels, instances, others, key_instances, self.options)
        return weighted_sum(means, weights)

    if TYPE_CHECKING:

        def __call__(
            self,
            embeddings: Levels,
            instances: Instances = None,
            *,
            keys: Levels | None = None,
            key_instances: Instances = None,
        ) -> Tensor:
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


def _means(
    levels: Mapping[str, Tensor],
    instances: Instances,
    keys: Mapping[str, Tensor] | None,
    key_instances: Instances,
    options: GlobalOptions,
) -> Tensor:
    """The mean over the anchors of each of L levels, (L,)."""
    problem = _problem(levels, instances, keys, key_instances, options)
    formula = resolve(options.formula, GLOBAL_FORMULAS)
    return loss_of(problem, formula, options.impl, gather=options.gather, average=False)


def _problem(
    levels: Mapping[str, Tensor],
    instances: Instances,
    keys: Mapping[str, Tensor] | None,
    key_instances: Instances,
    options: GlobalOptions,
) -> contrast.Problem:
    """The contrast of the embeddings (L, A·B) of L levels, which are the groups of one problem."""
    embeddings = _checked(levels)
    x = _stacked(embeddings)
    others = keys is not None or key_instances is not None
    everywhere = options.gather and distributed.world() > 1
    # An engine may take half precision as it is; keys of another type, or of other processes, meet float32.
    z, ids = contrast.widened(x) if others or everywhere else x, _ids(instances, keys, x, options)
    k = key_ids = self_index = None
    if others:
        k, key_ids = _others(keys, key_instances, embeddings, options.tolerance)
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


def _checked(levels: Mapping[str, Tensor]) -> list[Tensor]:
    """Embeddings (A·B, D) of each level, with as many rows at each."""
    found = []
    for name, level in levels.items():
        checked = checks.floating(name, level)
        if checked.ndim != 2:
            cure = "Pool the spatial axes first, as `GlobalHead` does." if checked.ndim > 2 else ""
            raise ValueError(message(f"`{name}` of shape (A*B, D)", checks.shape(checked), cure))
        if not checked.shape[1]:
            raise ValueError(message(f"`{name}` of at least one number each", f"shape {checks.shape(checked)}"))
        checks.same_device(name, checked, next(iter(levels)), found[0] if found else checked)
        found.append(checked)
    rows = [len(level) for level in found]
    if any(number != rows[0] for number in rows):
        raise ValueError(message("as many rows at each level of `embeddings`", rows))
    return found


def _stacked(levels: Sequence[Tensor]) -> Tensor:
    """Levels (rows, D) as one (L, rows, D): zeros behind shorter vectors change no product."""
    if len(levels) == 1:
        return levels[0].unsqueeze(0)
    width = max(level.shape[1] for level in levels)
    return torch.stack([F.pad(x, (0, width - x.shape[1])) if x.shape[1] != width else x for x in levels])


def _ids(instances: object, keys: object, x: Tensor, options: GlobalOptions) -> Tensor:
    """Which image each row of x (L, A·B, D) is of, (L, A·B): as given, or two halves."""
    rows = x.shape[1]
    if instances is not None:
        given = as_tensor("instances", instances, x)
        checks.of_shape("instances", given, (rows,))
        checks.same_device("instances", given, "embeddings", x)
        contrast.check_ids("instances", given, options.tolerance)
        return given.expand(len(x), -1)
    if keys is not None:
        raise ValueError(message("`instances` beside `keys`", "None", "Say which rows and which keys are one image."))
    if rows % 2:
        cure = "Stack two augmentations, `torch.cat([first, second])`, or give `instances`."
        raise ValueError(message("an even number of rows in `embeddings`", rows, cure))
    if options.tolerance is not None:
        cure = "Say where each row is, as by the number of its slice: neighbours in the batch are not neighbours."
        raise ValueError(message("`instances` beside `tolerance`", "None", cure))
    half = rows // 2
    numbers = distributed.own_numbers(half, x.device) if options.gather else torch.arange(half, device=x.device)
    return torch.cat([numbers, numbers]).expand(len(x), -1)


def _others(
    keys: Mapping[str, Tensor] | None, key_instances: object, x: Sequence[Tensor], tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Keys (L, K, D) for embeddings of L levels, and their instances (L, K)."""
    if keys is None or key_instances is None:
        given = "keys" if keys is not None else "key_instances"
        raise ValueError(message("`keys` and `key_instances` together", f"`{given}` alone"))
    found = []
    for (name, level), embeddings in zip(keys.items(), x, strict=True):
        checked = checks.floating(name, level)
        if checked.ndim != 2 or checked.shape[1] != embeddings.shape[1]:
            raise ValueError(message(f"`{name}` of shape (K, {embeddings.shape[1]})", checks.shape(checked)))
        checks.same_device(name, checked, "embeddings", embeddings)
        found.append(checked)
    ids = as_tensor("key_instances", key_instances, x[0])
    for level in found:
        checks.of_shape("key_instances", ids, level.shape[:1])
    checks.same_device("key_instances", ids, "embeddings", x[0])
    contrast.check_ids("key_instances", ids, tolerance)
    _warn_of_itself(found[0], x[0])
    return _stacked(found), ids.expand(len(found), -1)


def _warn_of_itself(keys: Tensor, embeddings: Tensor) -> None:
    """Keys that hold the embeddings themselves: each would be its own positive, as near as can be."""
    if not (checks.readable(keys) and checks.readable(embeddings)):
        return
    candidates = torch.isin(embeddings[:, 0], keys[:, 0]).nonzero().squeeze(1)[:8]
    if any((keys == row).all(1).any() for row in embeddings[candidates]):
        warnings.warn(
            "`keys` hold rows of `embeddings` themselves, and each is its own positive. Add a batch to the queue after "
            "its loss, or use `pair_terms` with `self_index`.",
            stacklevel=2,
        )
