"""Multi-scale contrastive losses, projection heads and deep supervision for any segmentation network."""

from mmgl_losses import functional, plugins
from mmgl_losses.contrast import PairTerms, pair_logsumexp
from mmgl_losses.losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.losses.diagnostics import Diagnostics
from mmgl_losses.networks.attach import attach_heads
from mmgl_losses.networks.heads import GlobalHead, LocalHead, SegmentationHead
from mmgl_losses.networks.selftraining import MeanTeacher, copy_paste, pseudo_labels
from mmgl_losses.networks.stages import Stages, discover_stages
from mmgl_losses.networks.taps import FeatureTaps, TappedModel
from mmgl_losses.networks.unet import UNet

__version__ = "0.1.0"
__all__ = [
    "DeepSupervisionDice",
    "Diagnostics",
    "FeatureTaps",
    "GlobalHead",
    "LocalHead",
    "MeanTeacher",
    "MultiScaleGlobalContrast",
    "MultiScaleLocalSupCon",
    "PairTerms",
    "SegmentationHead",
    "Stages",
    "TappedModel",
    "UNet",
    "attach_heads",
    "copy_paste",
    "discover_stages",
    "functional",
    "pair_logsumexp",
    "plugins",
    "pseudo_labels",
]
