"""The losses: one file each, and one row here, which makes it known by name."""

from torch import nn

from mmgl_losses.losses.dice import DeepSupervisionDice
from mmgl_losses.losses.global_contrast import MultiScaleGlobalContrast
from mmgl_losses.losses.local_supcon import MultiScaleLocalSupCon

LOSSES: dict[str, type[nn.Module]] = {
    "MultiScaleGlobalContrast": MultiScaleGlobalContrast,
    "MultiScaleLocalSupCon": MultiScaleLocalSupCon,
    "DeepSupervisionDice": DeepSupervisionDice,
}
