"""The three losses as modules: configuration and a weighted sum over levels, nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgl_losses import checks, diagnostics
from mmgl_losses.diagnostics import Diagnostics
from mmgl_losses.dice import soft_dice
from mmgl_losses.formulas import GLOBAL_FORMULAS, LOCAL_FORMULAS, Formula, resolve
from mmgl_losses.functional import (
    BACKGROUND,
    PAIRS,
    SAMPLING,
    global_loss,
    global_terms,
    local_supcon,
    local_terms,
)
from mmgl_losses.multiscale import Levels, MultiScale, Weights, weighted_sum


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

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        weights: Weights = (0.2, 0.2, 0.6),
        formula: str | Formula = "nt_xent",
        tolerance: float | None = None,
        impl: str = "auto",
        gather: bool = False,
    ) -> None:
        checks.fixed_temperature(temperature)
        resolve(formula, GLOBAL_FORMULAS)
        checks.implementation(impl)
        if tolerance is not None:
            checks.number("tolerance", tolerance, least=0.0)
        checks.flag("gather", gather)
        options = {
            "temperature": temperature,
            "formula": formula,
            "tolerance": tolerance,
            "impl": impl,
            "gather": gather,
        }
        super().__init__(weights, options)

    def forward(
        self,
        embeddings: Levels,
        instances: Tensor | None = None,
        *,
        keys: Levels | None = None,
        key_instances: Tensor | None = None,
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
        # Levels of one shape share one call of the primitive: the fixed cost of an operation outweighs such few rows.
        alike: dict[Any, list[tuple[Tensor, Tensor | None, float]]] = {}
        for name, level, others, weight in self._paired(embeddings, keys):
            checks.embeddings(level, instances, others, key_instances, name)
            kind = (level.shape, level.dtype, others if others is None else (others.shape, others.dtype))
            alike.setdefault(kind, []).append((level, others, weight))
        losses = []
        for group in alike.values():
            levels, others, weights = zip(*group, strict=True)
            others = None if keys is None else others
            options = {"weights": weights, "keys": others, "key_instances": key_instances, **self.options}
            losses.append(global_loss(levels, instances, **options))
        return sum(losses[1:], losses[0])

    def diagnose(
        self,
        embeddings: Levels,
        instances: Tensor | None = None,
        *,
        keys: Levels | None = None,
        key_instances: Tensor | None = None,
    ) -> Diagnostics:
        """What the loss sees: valid anchors, positives, distance from the floor. Arguments as `forward`."""
        options = {name: value for name, value in self.options.items() if name not in ("formula", "gather")}
        formula = resolve(self.options["formula"], GLOBAL_FORMULAS)
        with torch.no_grad():
            levels = []
            for name, level, others, weight in self._paired(embeddings, keys):
                checks.embeddings(level, instances, others, key_instances, name)
                others = None if others is None else others[None]
                terms = global_terms(level[None], instances, keys=others, key_instances=key_instances, **options)
                levels.append((name, terms, terms.n_positives, weight))
            return diagnostics.contrast(
                levels,
                formula,
                self.options["temperature"],
                by_class=False,
            )

    def _paired(self, embeddings: Levels, keys: Levels | None) -> Iterator[tuple[str, Tensor, Tensor | None, float]]:
        levels = self.levels("embeddings", embeddings, spatial=False)
        checks.equal_rows("embeddings", [level for _, level, weight in levels if weight])
        others = (
            [None] * len(levels) if keys is None else [key for _, key, _ in self.levels("keys", keys, spatial=False)]
        )
        for (name, level, weight), key in zip(levels, others, strict=True):
            if weight:
                yield name, level, key, weight


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
        sampling: ``"grid"``, or ``"foreground"``: no small structure is lost between the points of the grid.
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

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        weights: Weights = (0.2, 0.2, 0.6),
        formula: str | Formula = "supcon",
        pairs: str = "image",
        background: str = "anchor",
        background_index: int = 0,
        ignore_index: int | None = None,
        stride: int = 1,
        sampling: str = "grid",
        impl: str = "auto",
        gather: bool = False,
    ) -> None:
        checks.fixed_temperature(temperature)
        resolve(formula, LOCAL_FORMULAS)
        checks.implementation(impl)
        checks.one_of("pairs", pairs, PAIRS)
        checks.one_of("background", background, BACKGROUND)
        checks.one_of("sampling", sampling, SAMPLING)
        checks.integer("background_index", background_index)
        if ignore_index is not None:
            checks.integer("ignore_index", ignore_index)
        checks.integer("stride", stride, least=1)
        checks.flag("gather", gather)
        options = {
            "temperature": temperature,
            "formula": formula,
            "pairs": pairs,
            "background": background,
            "background_index": background_index,
            "ignore_index": ignore_index,
            "stride": stride,
            "sampling": sampling,
            "impl": impl,
            "gather": gather,
        }
        super().__init__(weights, options)

    def forward(self, features: Levels, labels: Tensor, instances: Tensor | Sequence[int] | None = None) -> Tensor:
        """The weighted sum over the levels.

        Args:
            features: one (B, D, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.
            instances: (B,), for ``pairs="augmentations"``: which rows are one image. Default: two halves.

        Returns:
            Scalar.
        """
        levels = self.levels("features", features, spatial=True)
        return weighted_sum(levels, lambda level: local_supcon(level, labels, instances, **self.options))

    def diagnose(
        self, features: Levels, labels: Tensor, instances: Tensor | Sequence[int] | None = None
    ) -> Diagnostics:
        """What the loss sees: valid anchors of each class, positives, distance from the floor."""
        options = {name: value for name, value in self.options.items() if name not in ("formula", "gather")}
        formula = resolve(self.options["formula"], LOCAL_FORMULAS)
        with torch.no_grad():
            return diagnostics.contrast(
                (
                    (name, *local_terms(level, labels, instances, **options), weight)
                    for name, level, weight in self.levels("features", features, spatial=True)
                    if weight
                ),
                formula,
                self.options["temperature"],
            )


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
        flags = {"include_background": include_background, "batch": batch, "squared": squared, "gather": gather}
        for name, value in flags.items():
            checks.flag(name, value)
        checks.number("smooth", smooth, least=0.0)
        checks.number("cross_entropy", cross_entropy, least=0.0, most=1.0)
        if ignore_index is not None:
            checks.integer("ignore_index", ignore_index)
        options = {
            "include_background": include_background,
            "batch": batch,
            "squared": squared,
            "smooth": smooth,
            "ignore_index": ignore_index,
            "cross_entropy": cross_entropy,
            "gather": gather,
        }
        super().__init__(weights, options)

    def forward(self, logits: Levels, labels: Tensor) -> Tensor:
        """The weighted sum over the levels.

        Args:
            logits: one (B, C, *spatial) for each weight, coarse to fine; a sequence or mapping.
            labels: (B, *spatial), integers, usually at the size of the image.

        Returns:
            Scalar.
        """
        levels = self.levels("logits", logits, spatial=True)
        return weighted_sum(levels, lambda level: soft_dice(level, labels, **self.options))

    def diagnose(self, logits: Levels, labels: Tensor) -> Diagnostics:
        """Soft Dice of each class at each level, and which classes the batch lacks."""
        with torch.no_grad():
            levels = self.levels("logits", logits, spatial=True)
            own = {**self.options, "gather": False}
            return diagnostics.dice([level for level in levels if level[2]], labels, own)
