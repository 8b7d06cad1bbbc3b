"""
Put it on your network
======================

Your network stays as it is. You find its stages, put heads on some of them, and compute a loss from what the heads
return.

`Open this page in Colab
<https://colab.research.google.com/github/mmgl-losses/mmgl-losses/blob/main/examples/notebooks/your_network.ipynb>`_.
"""

# %%
# A network
# ---------
#
# Any ``nn.Module`` will do: MONAI, nnU-Net, smp, or your own. This one is written by hand, and nothing in it is
# called encoder or decoder.

import matplotlib.pyplot as plt
import torch
from torch import nn

from mmgl_losses import discover_stages


class Mine(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.up_a = nn.ConvTranspose2d(64, 32, 2, 2)
        self.join_a = nn.Sequential(nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU())
        self.up_stem = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join_stem = nn.Sequential(nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU())
        self.classify = nn.Conv2d(16, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        a = self.a(stem)
        x = self.join_a(torch.cat([self.up_a(self.b(a)), a], 1))
        x = self.join_stem(torch.cat([self.up_stem(x), stem], 1))
        return self.classify(x)


torch.manual_seed(0)
net = Mine()

# %%
# Where to tap it
# ---------------
#
# ``discover_stages`` watches one forward pass, and leaves the network as it was. Print what it found: a table, and two
# calls that put heads on the network, ready to paste.

images = torch.rand(4, 1, 64, 64)
stages = discover_stages(net, images)
print(stages)

# %%
# The same as a picture. Depth runs to the right, and the stride downwards. Dots mark the stages that the calls above
# tap.

stages.plot()
plt.show()

# %%
# Heads on it
# -----------
#
# A tapped model returns the output of the network, and the outputs of the heads by the names of their stages.

from functools import partial

from mmgl_losses import LocalHead, MultiScaleLocalSupCon, attach_heads

labels = torch.randint(4, (4, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
taps = {name: partial(LocalHead, stride=2) for name in stages.decoder}
tapped = attach_heads(net, images, taps)
output, features = tapped(images)
for name, feature in features.items():
    print(f"{name}: {tuple(feature.shape)}")

# %%
# Labels stay at the size of the image. The loss takes the label of each feature from the same place in the image.

loss = MultiScaleLocalSupCon(weights=(0.4, 0.6))
print(loss(features, labels))

# %%
# Train
# -----
#
# Make the optimiser once, with the parameters of both network and heads. Here the network learns a single batch by
# heart.

optimiser = torch.optim.Adam(tapped.parameters(), lr=3e-3)
curve = []
for _ in range(40):
    _, features = tapped(images)
    value = loss(features, labels)
    optimiser.zero_grad()
    value.backward()
    optimiser.step()
    curve.append(value.item())
print(f"from {curve[0]:.2f} to {curve[-1]:.2f}")
print(loss.diagnose(features, labels).sentence)

# %%
# Your network again
# ------------------
#
# ``close`` takes the heads off. What is left is your network, and its weights have their old names.

tapped.close()
print(sorted(net.state_dict()) == sorted(Mine().state_dict()))

# %%
# A module that runs twice in a pass, or returns a tuple, cannot be tapped as it is. ``print(stages)`` lists such
# modules with the reason. For networks that return several outputs, and for smp, torchvision and Hugging Face, see
# `the guide for networks <https://mmgl-losses.github.io/mmgl-losses/networks_howto.html>`_.
