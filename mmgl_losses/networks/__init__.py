"""Networks: heads, features taken from inside any network, where to take them, and the U-Net of the paper."""

from mmgl_losses.networks.attach import attach_heads as attach_heads
from mmgl_losses.networks.heads import HEADS as HEADS
from mmgl_losses.networks.heads import GlobalHead as GlobalHead
from mmgl_losses.networks.heads import LocalHead as LocalHead
from mmgl_losses.networks.heads import SegmentationHead as SegmentationHead
from mmgl_losses.networks.load import Loaded as Loaded
from mmgl_losses.networks.load import load_matching as load_matching
from mmgl_losses.networks.selftraining import MeanTeacher as MeanTeacher
from mmgl_losses.networks.selftraining import copy_paste as copy_paste
from mmgl_losses.networks.selftraining import pseudo_labels as pseudo_labels
from mmgl_losses.networks.stages import Row as Row
from mmgl_losses.networks.stages import Stages as Stages
from mmgl_losses.networks.stages import discover_stages as discover_stages
from mmgl_losses.networks.taps import FeatureTaps as FeatureTaps
from mmgl_losses.networks.taps import TappedModel as TappedModel
from mmgl_losses.networks.unet import UNet as UNet
