"""A local contrast that dwells on hard points, and a head with a bottleneck: a plug-in of mmgl-losses."""

from pathlib import Path

from mmgl_focal_plugin.head import BottleneckHead as BottleneckHead
from mmgl_focal_plugin.loss import Focal as Focal
from mmgl_focal_plugin.loss import FocalLocalContrast as FocalLocalContrast

METHODS = Path(__file__).parent / "methods"  # configurations for the example pipeline of mmgl-losses
