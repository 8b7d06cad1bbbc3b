"""A head with a bottleneck: fewer parameters than two full layers, and something that is not linear between them."""

from torch import Tensor, nn

from mmgl_losses.sampling import subsample


class BottleneckHead(nn.Module):
    """Embeddings of every `stride`-th point of a feature map, through a narrow layer with a normalisation.

    Args:
        in_channels: channels of the feature map; the first argument of every head, given by `attach_heads`.
        out_channels: length of an embedding.
        reduction: the narrow layer has ``in_channels / reduction`` channels, at least 4.
        stride: every how many elements along each axis a point is taken.

    Shape:
        (B, in_channels, *spatial) -> (B, out_channels, *ceil(spatial / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int = 128, *, reduction: int = 4, stride: int = 4) -> None:
        super().__init__()
        narrow = max(in_channels // reduction, 4)
        self.stride = stride
        self.project = nn.Sequential(
            nn.Linear(in_channels, narrow, bias=False), nn.LayerNorm(narrow), nn.GELU(), nn.Linear(narrow, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Samples first: a point's embedding depends on that point alone, so the numbers are the same."""
        return self.project(subsample(x, self.stride).movedim(1, -1)).movedim(-1, 1)
