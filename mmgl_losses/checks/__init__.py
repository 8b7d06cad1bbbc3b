"""Every check of what a user passes in, and so every message a user can get.

A message says what was expected, what was given and, where it is not obvious, what to do.
A wrong type is a ``TypeError``, a wrong value a ``ValueError``.
"""

from mmgl_losses.checks.primitive import IMPLEMENTATIONS as IMPLEMENTATIONS
from mmgl_losses.checks.primitive import contrast as contrast
from mmgl_losses.checks.primitive import fixed_temperature as fixed_temperature
from mmgl_losses.checks.primitive import fused as fused
from mmgl_losses.checks.primitive import implementation as implementation
from mmgl_losses.checks.primitive import kernels_run as kernels_run
from mmgl_losses.checks.primitive import precision as precision
from mmgl_losses.checks.primitive import temperature as temperature
from mmgl_losses.checks.tensors import augmentations as augmentations
from mmgl_losses.checks.tensors import class_labels as class_labels
from mmgl_losses.checks.tensors import embeddings as embeddings
from mmgl_losses.checks.tensors import feature_map as feature_map
from mmgl_losses.checks.tensors import floating as floating
from mmgl_losses.checks.tensors import integral as integral
from mmgl_losses.checks.tensors import label_map as label_map
from mmgl_losses.checks.tensors import losses as losses
from mmgl_losses.checks.tensors import numbered as numbered
from mmgl_losses.checks.tensors import of_shape as of_shape
from mmgl_losses.checks.tensors import readable as readable
from mmgl_losses.checks.tensors import same_device as same_device
from mmgl_losses.checks.tensors import shape as shape
from mmgl_losses.checks.tensors import tensor as tensor
from mmgl_losses.checks.tensors import too_many_axes as too_many_axes
from mmgl_losses.checks.values import choice as choice
from mmgl_losses.checks.values import flag as flag
from mmgl_losses.checks.values import integer as integer
from mmgl_losses.checks.values import known_names as known_names
from mmgl_losses.checks.values import message as message
from mmgl_losses.checks.values import name as name
from mmgl_losses.checks.values import number as number
from mmgl_losses.checks.values import one_of as one_of
from mmgl_losses.checks.values import typed as typed
from mmgl_losses.checks.values import unused as unused
from mmgl_losses.checks.weights import Levels as Levels
from mmgl_losses.checks.weights import coarse_to_fine as coarse_to_fine
from mmgl_losses.checks.weights import equal_rows as equal_rows
from mmgl_losses.checks.weights import level_weights as level_weights
from mmgl_losses.checks.weights import levels as levels
