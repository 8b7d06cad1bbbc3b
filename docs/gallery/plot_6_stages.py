"""
Where a network is tapped
=========================

``discover_stages`` watches one pass of a network. For each resolution it finds the last module, on the way down and on
the way up again. ``plot`` draws what it found.
"""

# %%
# This is the network of the paper. Depth runs to the right, and the stride downwards. The numbers are channels. The
# names below are the ones to give to ``attach_heads``. Dots mark the stages that are tapped by default: the last three
# of the encoder for global contrast, and the last three of the decoder for local contrast.

import matplotlib.pyplot as plt
import torch
from torch import nn

from mmgl_losses import GlobalHead, UNet, attach_heads, discover_stages

images = torch.zeros(2, 1, 160, 160)
discover_stages(UNet(1, 8), images).plot()
plt.show()

# %%
# Nothing has to be called encoder or decoder. Here is a network in a single class. Its stem halves the size at once,
# and its decoder interpolates:


class Mine(nn.Module):
    """Strided convolutions down, interpolation and sums up."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(64, 96, 3, 2, 1), nn.ReLU())
        self.side = nn.ModuleList(nn.Conv2d(n, 24, 1) for n in (96, 64, 32, 16))
        self.smooth = nn.ModuleList(nn.Conv2d(24, 24, 3, 1, 1) for _ in range(3))
        self.classify = nn.Conv2d(24, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits at half the size of the image."""
        skips = [self.stem(x)]
        for block in (self.a, self.b, self.c):
            skips.append(block(skips[-1]))
        up = self.side[0](skips[3])
        for i in range(3):
            larger = nn.functional.interpolate(up, scale_factor=2.0)
            up = self.smooth[i](larger + self.side[i + 1](skips[2 - i]))
        return self.classify(up)


net = Mine()
stages = discover_stages(net, images)
stages.plot()
plt.show()

# %%
# The dashed box makes the output. It is not a stage, because features are taken before it. ``stages.encoder`` and
# ``stages.decoder`` hold the names. ``print`` shows the same as a table, with the calls to paste:

print(stages)
tapped = attach_heads(net, images, {name: GlobalHead for name in stages.encoder[-3:]})

# %%
# In 3-D, when slices are far apart, a network often reduces the size within the slices first. The stride then differs
# between axes, and is written below the box:

thick = nn.Sequential(
    nn.Conv3d(1, 8, 3, padding=1),
    nn.Conv3d(8, 16, 3, stride=(1, 2, 2), padding=1),
    nn.Conv3d(16, 32, 3, stride=2, padding=1),
    nn.ConvTranspose3d(32, 16, 2, stride=2),
    nn.ConvTranspose3d(16, 8, (1, 2, 2), stride=(1, 2, 2)),
    nn.Conv3d(8, 4, 1),
)
discover_stages(thick, torch.zeros(1, 1, 16, 64, 64)).plot()
plt.show()
