"""A conformance kit: what an author runs on a loss, a head or a formula of their own.

Each check reads out a table of laws that everything in this package keeps. It passes in silence, or raises one
`ConformanceError` that lists every law that does not hold, in a sentence each. Only torch is needed.
"""

from mmgl_losses.testing.formulas import check_formula as check_formula
from mmgl_losses.testing.heads import check_head as check_head
from mmgl_losses.testing.laws import ConformanceError as ConformanceError
from mmgl_losses.testing.laws import Failure as Failure
from mmgl_losses.testing.losses import check_loss as check_loss
