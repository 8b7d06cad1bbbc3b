"""What the losses share: weights of levels, and how they meet the levels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgl_losses import checks

Levels = Sequence[Tensor] | Mapping[str, Tensor]
Weights = Sequence[float] | Mapping[str, float]


def weighted_sum(levels: list[tuple[str, Tensor, float]], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of weight · loss(level); a level of weight 0 is not looked at, so nothing in it can leak."""
    return torch.stack([weight * loss(level) for _, level, weight in levels if weight]).sum()


class MultiScale(nn.Module):
    """What the three share: weights of levels, and how they meet the levels."""

    def __init__(self, weights: Weights, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights = checks.level_weights(weights)
        self.options = dict(options)

    def levels(self, name: str, values: Levels, *, spatial: bool) -> list[tuple[str, Tensor, float]]:
        """The levels with their names and weights; spatial ones in the order of their sizes."""
        levels = checks.levels(name, values, self.weights)
        if spatial and not isinstance(self.weights, Mapping):
            checks.coarse_to_fine(name, [checks.feature_map(key, level).shape[2:] for key, level, _ in levels])
        return levels

    def extra_repr(self) -> str:
        """The configuration, as it was given."""
        given = {"weights": self.weights, **self.options}
        return ", ".join(f"{key}={value!r}" for key, value in given.items())
