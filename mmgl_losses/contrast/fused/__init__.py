"""The primitive in Triton kernels; features are rounded to the wanted precision to be multiplied.

Triton is imported with the first call, never before: only `forward`, `backward` and `launch` know it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.contrast import sums
from mmgl_losses.contrast.pairs import Layout, Pairs

INSTALLED = find_spec("triton") is not None
WIDEST = 256  # features


def _launch(anchors: Tensor, dtype: torch.dtype) -> ModuleType:
    """The module that launches kernels, for a problem that they serve; one clear error for any other."""
    checks.fused(anchors, dtype, INSTALLED, WIDEST)
    from mmgl_losses.contrast.fused import launch

    if not anchors.is_cuda:
        from triton import knobs

        checks.kernels_run(anchors, knobs.runtime.interpret)
    return launch


def logsumexp(pairs: Pairs, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N); -inf where there are none."""
    launch = _launch(pairs.anchors, precision)
    with torch.cuda.device_of(pairs.anchors):
        return launch.forward(_contiguous(pairs), precision)


def gradients(
    pairs: Pairs,
    layout: Layout,
    precision: torch.dtype,
    logsumexps: Sequence[Tensor],
    grads: Sequence[Tensor],
    total: Tensor | None,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the anchors and of the keys from those of the three results, each where it is `needed`."""
    launch = _launch(pairs.anchors, precision)
    with torch.cuda.device_of(pairs.anchors):
        found = launch.backward(_contiguous(pairs), precision, logsumexps, grads, needed)
    if total is None:
        return found
    more = sums.backward(pairs, layout, total, needed)
    first, second = (x if y is None else y if x is None else x.add_(y) for x, y in zip(found, more, strict=True))
    return first, second


def _contiguous(pairs: Pairs) -> Pairs:
    return Pairs._make(x.contiguous() if isinstance(x, Tensor) else x for x in pairs)
