"""A conformance kit: checks for a loss, a head or a formula of your own.

Each check goes through a table of laws that everything in this package obeys. It returns silently, or raises one
`ConformanceError` with a sentence for each law that does not hold. It needs only torch.
"""

from mmgl_losses.testing.formulas import check_formula as check_formula
from mmgl_losses.testing.heads import check_head as check_head
from mmgl_losses.testing.laws import ConformanceError as ConformanceError
from mmgl_losses.testing.laws import Failure as Failure
from mmgl_losses.testing.losses import check_loss as check_loss
