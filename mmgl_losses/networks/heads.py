"""Projection and segmentation heads: the small networks put on top of the features of a large one."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mmgl_losses import checks, sampling

Norm = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


class _TwoLinear(nn.Module):
    """Two linear maps of the channels, with whatever is wanted between them."""

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, activation: Activation | None, norm: Norm | None
    ) -> None:
        super().__init__()
        self.in_channels = checks.integer("in_channels", in_channels, least=1)
        self.hidden_channels = checks.integer("hidden_channels", hidden, least=1)
        self.out_channels = checks.integer("out_channels", out_channels, least=1)
        # What can be refused comes before what draws random numbers.
        between = None if norm is None else _row_norm(norm, hidden)
        after = None if activation is None else _make_activation(activation)
        self.first = nn.Linear(in_channels, hidden)
        self.norm = between
        self.activation = after
        self.second = nn.Linear(hidden, out_channels)

    def project(self, rows: Tensor) -> Tensor:
        """(..., in_channels) -> (..., out_channels), layer by layer."""
        rows = self.first(rows)
        if self.norm is not None:
            rows = self.norm(rows.flatten(0, -2)).view(rows.shape)
        if self.activation is not None:
            rows = self.activation(rows)
        return self.second(rows)

    def project_at_once(self, rows: Tensor) -> Tensor:
        """The same for many rows: two linear maps with nothing between them are one, where that is less work."""
        less_work = self.in_channels * self.out_channels < self.hidden_channels * (self.in_channels + self.out_channels)
        between = self.norm is not None or self.activation is not None
        if between or not less_work or not (_bare(self.first) and _bare(self.second)):
            return self.project(rows)
        # The second layer maps the columns of the first one's matrix, and its bias.
        weight = F.linear(self.first.weight.mT, self.second.weight).mT
        return F.linear(rows, weight, F.linear(self.first.bias, self.second.weight, self.second.bias))


class GlobalHead(_TwoLinear):
    r"""One embedding of a feature map: the mean over space, then two linear layers.

    The paper's head of the global stage (section 4.1): "an average pooling layer followed by two linear layers
    to output one 128-dimensional embedding". Both layers have a bias, and nothing lies between them by default,
    as in the code base the paper builds on. The embedding is not normalised: the losses do that.

    .. math:: z = W_2 \, (W_1 \, \mathrm{mean}_p \, x_p + b_1) + b_2

    Args:
        in_channels: channels of the feature map.
        out_channels: length of the embedding.
        hidden_channels: channels between the two layers; `in_channels` by default.
        activation: makes the activation between the layers, such as ``nn.ReLU``.
        norm: makes the normalisation after the first layer from `hidden_channels`, such as ``nn.BatchNorm1d``
            or ``nn.LayerNorm``; it is given rows (B, hidden_channels).

    Shape:
        ``(B, in_channels, *spatial) -> (B, out_channels)``, for any number and size of spatial axes.

    Raises:
        TypeError: the input is not a floating-point tensor.
        ValueError: the input has no spatial axis, or other channels than `in_channels`.

    Example:
        >>> import torch
        >>> GlobalHead(256)(torch.zeros(2, 256, 10, 12)).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 128,
        *,
        hidden_channels: int | None = None,
        activation: Activation | None = None,
        norm: Norm | None = None,
    ) -> None:
        hidden = in_channels if hidden_channels is None else hidden_channels
        super().__init__(in_channels, hidden, out_channels, activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels)."""
        _feature_map("x", x, self.in_channels)
        return self.project(x.flatten(2).mean(2))


class LocalHead(_TwoLinear):
    r"""One embedding for every `stride`-th point of a feature map: two 1x1 convolutions.

    The paper's head of the local stage (section 4.1): "two 1 x 1 convolutional layers", feature maps
    "downsampled with fixed stride 4". Points are first selected, by `sampling.places`, and then mapped. A 1x1
    convolution sees one point at a time, so this gives the same numbers, for 1/16 of the work at stride 4 in 2-D.
    (A `norm` over several points, such as batch normalisation, sees only the selected ones.)
    Both layers have a bias, and nothing lies between them by default. Then the two are one linear map, and it is
    computed as one where that is less work: :math:`W_2 W_1` is multiplied once, not each point by both. Layers that
    were replaced, or that have hooks, are called one after the other.

    .. math:: z_p = W_2 \, (W_1 \, x_p + b_1) + b_2

    Args:
        in_channels: channels of the feature map.
        out_channels: length of an embedding.
        stride: keep every n-th point along each axis; 1 keeps all.
        hidden_channels: channels between the two layers.
        activation: makes the activation between the layers, such as ``nn.ReLU``.
        norm: makes the normalisation after the first layer from `hidden_channels`, such as ``nn.BatchNorm1d``
            or ``nn.LayerNorm``; it is given rows (points, hidden_channels).

    Shape:
        ``(B, in_channels, *spatial) -> (B, out_channels, *ceil(spatial / stride))``, in 2-D, 3-D, or any other.

    Raises:
        TypeError: the input is not a floating-point tensor.
        ValueError: the input has no spatial axis, or other channels than `in_channels`.

    Example:
        >>> import torch
        >>> LocalHead(64)(torch.zeros(2, 64, 160, 158)).shape
        torch.Size([2, 128, 40, 40])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 128,
        *,
        stride: int = 4,
        hidden_channels: int = 256,
        activation: Activation | None = None,
        norm: Norm | None = None,
    ) -> None:
        checks.integer("stride", stride, least=1)
        super().__init__(in_channels, hidden_channels, out_channels, activation, norm)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *ceil(spatial / stride))."""
        _feature_map("x", x, self.in_channels)
        return self.project_at_once(sampling.subsample(x, self.stride).movedim(1, -1)).movedim(-1, 1)

    def extra_repr(self) -> str:
        """The one option that the layers do not show."""
        return f"stride={self.stride}"


class SegmentationHead(nn.Module):
    """Logits of a coarser level, for deep supervision: one 1x1 convolution.

    Args:
        in_channels: channels of the feature map.
        out_channels: number of classes, background included.

    Shape:
        ``(B, in_channels, *spatial) -> (B, out_channels, *spatial)``, in 2-D, 3-D, or any other.

    Raises:
        TypeError: the input is not a floating-point tensor.
        ValueError: the input has no spatial axis, or other channels than `in_channels`.

    Example:
        >>> import torch
        >>> SegmentationHead(256, 8)(torch.zeros(2, 256, 40, 40)).shape
        torch.Size([2, 8, 40, 40])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = checks.integer("in_channels", in_channels, least=1)
        self.out_channels = checks.integer("out_channels", out_channels, least=1)
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        _feature_map("x", x, self.in_channels)
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


# One row for each head: the name that `plugins.create("head", name)` knows it by.
HEADS: dict[str, type[nn.Module]] = {
    "GlobalHead": GlobalHead,
    "LocalHead": LocalHead,
    "SegmentationHead": SegmentationHead,
}


def _feature_map(name: str, value: object, wanted: int) -> Tensor:
    """A feature map (B, C, *spatial) with exactly the channels a head was made for."""
    checked = checks.feature_map(name, value)
    if checked.shape[1] != wanted:
        expected = f"`{name}` of shape (B, {wanted}, *spatial)"
        cure = "The channel axis is the second; make the head with as many `in_channels` as the features have."
        raise ValueError(checks.message(expected, checks.shape(checked), cure))
    return checked


def _bare(layer: nn.Module) -> bool:
    """Whether a layer is its weight and its bias alone: nothing replaced, hooked, sharded, pruned or offloaded."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is nn.Linear and not any(hooks) and "forward" not in layer.__dict__


def _make_activation(make: object) -> nn.Module:
    """An activation, from what makes one."""
    expected = "`activation` to make an activation, called with nothing"
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(checks.message(expected, checks.typed(make), "Pass the class: `nn.ReLU`, not `nn.ReLU()`."))
    made = make()
    if not isinstance(made, nn.Module):
        raise TypeError(checks.message(expected, checks.typed(made)))
    return made


def _row_norm(make: object, channels: int) -> nn.Module:
    """A normalisation layer that can work on rows (N, channels), from what makes one."""
    expected = "`norm` to make a layer for rows (N, channels)"
    cure = "Use `nn.BatchNorm1d`, which is batch normalisation over all points, or `nn.LayerNorm`."
    calling = f"{expected}, called with the number of channels"
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(checks.message(calling, checks.typed(make), cure))
    module = make(channels)
    if not isinstance(module, nn.Module):
        raise TypeError(checks.message(calling, checks.typed(module), cure))
    spatial = nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
    if isinstance(module, spatial):
        raise TypeError(checks.message(expected, type(module).__name__, cure))
    return module
