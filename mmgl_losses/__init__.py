"""Multi-scale contrastive losses, projection heads and deep supervision for any segmentation network."""

from mmgl_losses import functional as functional
from mmgl_losses import plugins as plugins
from mmgl_losses.contrast import PairTerms as PairTerms
from mmgl_losses.contrast import pair_logsumexp as pair_logsumexp
from mmgl_losses.diagnostics import Diagnostics as Diagnostics
from mmgl_losses.losses import DeepSupervisionDice as DeepSupervisionDice
from mmgl_losses.losses import MultiScaleGlobalContrast as MultiScaleGlobalContrast
from mmgl_losses.losses import MultiScaleLocalSupCon as MultiScaleLocalSupCon
from mmgl_losses.networks.attach import attach_heads as attach_heads
from mmgl_losses.networks.heads import GlobalHead as GlobalHead
from mmgl_losses.networks.heads import LocalHead as LocalHead
from mmgl_losses.networks.heads import SegmentationHead as SegmentationHead
from mmgl_losses.networks.stages import Stages as Stages
from mmgl_losses.networks.stages import discover_stages as discover_stages
from mmgl_losses.networks.taps import FeatureTaps as FeatureTaps
from mmgl_losses.networks.taps import TappedModel as TappedModel
from mmgl_losses.networks.unet import UNet as UNet

__version__ = "0.1.0"
