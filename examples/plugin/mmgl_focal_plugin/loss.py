"""The focal local contrast: points inside a structure are soon easy, those along its border stay hard."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgl_losses import Diagnostics, MultiScaleLocalSupCon, PairTerms


class Focal:
    r"""A formula: the focal loss (Lin et al. 2017) of the share of its own class in an anchor's similarities.

    .. math:: -(1 - q_i)^\gamma \log q_i, \quad q_i = \frac{\sum_{P(i)} e^{s_{ip}}}{\sum_{P(i) \cup N(i)} e^{s_{ia}}}

    Args:
        gamma: at least 1; the larger, the less easy anchors count.
    """

    def __init__(self, gamma: float) -> None:
        if not gamma >= 1:
            raise ValueError(f"Expected `gamma` to be at least 1, got {gamma}.")
        self.gamma = gamma

    def __call__(self, terms: PairTerms) -> Tensor:
        """The loss of each anchor."""
        log_share = terms.positive_lse - torch.logaddexp(terms.positive_lse, terms.negative_lse)
        return -((-torch.expm1(log_share)) ** self.gamma) * log_share

    def __repr__(self) -> str:
        return f"Focal(gamma={self.gamma})"


class FocalLocalContrast(nn.Module):
    """`MultiScaleLocalSupCon` with the focal formula.

    Args:
        gamma: see `Focal`.
        weights: one for each level, coarse to fine.
        **options: any other option of `MultiScaleLocalSupCon` but ``formula``.
    """

    def __init__(
        self, *, gamma: float = 2.0, weights: Sequence[float] | Mapping[str, float] = (0.2, 0.2, 0.6), **options: Any
    ) -> None:
        super().__init__()
        self.contrast = MultiScaleLocalSupCon(formula=Focal(gamma), weights=weights, **options)

    def forward(self, features: Sequence[Tensor] | Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Levels (B, D, *spatial) and labels (B, *spatial) to a scalar."""
        return self.contrast(features, labels)

    def diagnose(self, features: Sequence[Tensor] | Mapping[str, Tensor], labels: Tensor) -> Diagnostics:
        """What the loss sees in a batch."""
        return self.contrast.diagnose(features, labels)
