"""Where to tap a network: its stages, found by following the data through one pass."""

from mmgl_losses.networks.stages.discover import Stages as Stages
from mmgl_losses.networks.stages.discover import discover_stages as discover_stages
from mmgl_losses.networks.stages.table import Row as Row
