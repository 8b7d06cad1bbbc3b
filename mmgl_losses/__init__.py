"""Multi-scale contrastive losses, projection heads and deep supervision for any segmentation network.

Losses
    MultiScaleGlobalContrast    contrast of whole images, at several levels of an encoder
    MultiScaleLocalSupCon       supervised contrast of points, at several levels of a decoder
    DeepSupervisionDice         soft Dice and cross-entropy, at several levels of a decoder
    halving                     weights that halve with each coarser level, as in nnU-Net
    Diagnostics                 what ``diagnose`` of a loss returns: is it learning?

Networks
    discover_stages, Stages     finds where heads can go on a network; prints a table
    attach_heads                puts heads on named modules of any network
    TappedModel                 a network with heads; returns (output, {name: embedding})
    FeatureTaps                 reads the outputs of named modules in a forward pass
    GlobalHead                  one embedding for each image
    LocalHead                   one embedding for every n-th point
    SegmentationHead            logits of a coarser level
    load_matching, Loaded       loads the weights that fit, and reports the rest
    UNet                        the network of the paper (not part of ``import *``)

Unlabelled images
    MeanTeacher                 a moving average of a model, which labels images that have no labels
    pseudo_labels               the labels that a teacher is sure of
    copy_paste                  mixes labelled and unlabelled images, each pixel with its own label

Parts
    functional                  the losses as functions
    pair_logsumexp, PairTerms   the sums over pairs that every contrast is made of; the input of a formula
    plugins                     losses and heads by name

Import separately: `mmgl_losses.lightning` (pre-training and callbacks for Lightning), `mmgl_losses.sampling` (which
points a level has) and `mmgl_losses.testing` (checks for losses and heads of your own).
"""

from mmgl_losses import functional, plugins
from mmgl_losses.contrast import PairTerms, pair_logsumexp
from mmgl_losses.losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.losses.diagnostics import Diagnostics
from mmgl_losses.losses.levels import halving
from mmgl_losses.networks.attach import attach_heads
from mmgl_losses.networks.heads import GlobalHead, LocalHead, SegmentationHead
from mmgl_losses.networks.load import Loaded, load_matching
from mmgl_losses.networks.selftraining import MeanTeacher, copy_paste, pseudo_labels
from mmgl_losses.networks.stages import Stages, discover_stages
from mmgl_losses.networks.taps import FeatureTaps, TappedModel
from mmgl_losses.networks.unet import UNet as UNet  # not in `__all__`: many have a UNet of their own

__version__ = "0.1.0"
__all__ = [
    "DeepSupervisionDice",
    "Diagnostics",
    "FeatureTaps",
    "GlobalHead",
    "Loaded",
    "LocalHead",
    "MeanTeacher",
    "MultiScaleGlobalContrast",
    "MultiScaleLocalSupCon",
    "PairTerms",
    "SegmentationHead",
    "Stages",
    "TappedModel",
    "attach_heads",
    "copy_paste",
    "discover_stages",
    "functional",
    "halving",
    "load_matching",
    "pair_logsumexp",
    "plugins",
    "pseudo_labels",
]
