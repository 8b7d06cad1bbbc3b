"""One operation of torch as it is recorded, and the names of operations by kind.

Names are those of ATen's operations, without an underscore at the end: an operation in place does the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

from mmgl_losses.networks.axes import Axis, Layout, Map, Part, snap


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _names("view _unsafe_view reshape _reshape_alias flatten unflatten")
REDUCTIONS = _names(
    "mean sum amax amin max min std var var_mean prod logsumexp argmax norm linalg_vector_norm any all median"
)
PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "matmul": 0, "mv": 0, "linear": 0}  # where the factors begin
ENCODERS = _names("_native_multi_head_attention _transformer_encoder_layer_fwd")
CUTS = _names("slice split split_with_sizes unsafe_split chunk narrow cat constant_pad_nd")
NORMS = _names(
    "native_batch_norm native_group_norm native_layer_norm batch_norm cudnn_batch_norm miopen_batch_norm rms_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update _fused_rms_norm"
)
RECTIFIERS = _names(
    "relu leaky_relu gelu silu elu hardswish hardtanh relu6 mish _prelu_kernel celu clamp_min threshold"
)


@dataclass
class Operation:
    """One operation: its name, arguments, results, and what is known of tensors.

    Attributes:
        layout: gives the layout of a tensor among the arguments; None where it does not descend from the example.
        levels: the strides seen so far along each axis of the example.
        before: gives the latest map on the way to a tensor among the arguments.
        batch: size of the example's batch.
        weighted: it multiplies what descends from the example by a matrix that does not.
        mixes: it brings different places together in a way that is learnt: a kernel, a merging of patches, attention.
        product: it multiplies two tensors that both descend from the example.
    """

    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    results: list[Tensor]
    layout: Callable[[Any], Layout | None]
    levels: dict[int, list[Fraction]]
    before: Callable[[Any], Map | None] = lambda tensor: None
    batch: int = 0
    weighted: bool = False
    mixes: bool = False
    product: bool = False
    carriers: list[Tensor] = field(default_factory=list)  # the arguments whose places the results have

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def axis(self, tensor: Any, place: int) -> Axis:
        """An axis of an argument; without parts where nothing is known."""
        layout = self.layout(tensor)
        return layout[place] if layout is not None else Axis(tensor.shape[place])

    def image(self, tensor: Any) -> Layout:
        """The layout of what a convolution or pooling is given, (B, C, *spatial) by definition.

        Where the places were lost on the way, sizes that fit the latest map before it bring them back.
        """
        axes = list(self.layout(tensor) or map(Axis, tensor.shape))
        last = self.before(tensor)
        lost = [axis for axis in axes[2:] if not axis.parts]
        if last is None or len(last.places) != tensor.ndim - 2 or not lost or min(a.size for a in lost) == 1:
            return tuple(axes)  # nothing is lost, or it was pooled to a point
        if not axes[0].parts and tensor.shape[0] == self.batch:
            axes[0] = Axis(self.batch, (Part(0, self.batch),))
        for i, part in enumerate(last.places, 2):
            axes[i] = self.scaled(Axis(part.size, (part,)), tensor.shape[i])
        return tuple(axes)

    def scaled(self, axis: Axis, size: int, factor: Fraction | None = None) -> Axis:
        """A spatial axis at another stride; `factor` None: as the sizes say."""
        part = place_of(axis)
        if part is None:
            return axis if axis.size == size and factor in (None, 1) else Axis(size)
        known = self.levels.setdefault(part.source, [Fraction(1)])
        stride = snap(part.stride, part.size, size, known) if factor is None else part.stride * factor
        if stride not in known:
            known.append(stride)
        return Axis(size, (Part(part.source, size, stride),))


def place_of(axis: Axis) -> Part | None:
    """The one part of an axis along which places lie; None where there are several, or none."""
    return axis.parts[0] if len(axis.parts) == 1 and axis.parts[0].source > 0 else None
