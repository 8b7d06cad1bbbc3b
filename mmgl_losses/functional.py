"""The losses as functions, without state."""

from mmgl_losses.contrast import pair_logsumexp, pair_terms
from mmgl_losses.losses.dice import soft_dice
from mmgl_losses.losses.global_contrast import global_contrast
from mmgl_losses.losses.local_supcon import local_supcon

__all__ = ["global_contrast", "local_supcon", "pair_logsumexp", "pair_terms", "soft_dice"]
