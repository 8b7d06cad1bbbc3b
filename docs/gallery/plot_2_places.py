"""
The place of a point
====================

A feature map is smaller than the image, and a stride makes it smaller still. Each of its points needs the label at the
same place in the image. Heads and losses here share one rule: point *i* of *m* stands for the place *(i + 1/2) / m*.
"""

# %%
# Most code instead slices the features, ``features[..., ::4]``, and resizes the labels by nearest neighbour. The two
# disagree about the place, and nobody notices: the loss still falls. The picture shows where each of them takes its
# points along one axis. The image has 150 pixels, the level has 19 features, and the stride is 4.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from mmgl_losses.sampling import places, resample, strided

size, level, stride = 150, 19, 4
m = strided(level, stride)
pixels = torch.arange(size, dtype=torch.float32)

cell = size / level
ours_feature = (places(level, m) + 0.5) * cell
ours_label = places(size, m) + 0.5
their_feature = (torch.arange(level)[::stride] + 0.5) * cell
their_label = F.interpolate(pixels[None, None], size=len(their_feature))[0, 0] + 0.5

fig, axes = plt.subplots(2, 1, figsize=(7, 2.8), sharex=True, layout="constrained")
theirs = "features[::4], and labels resized by nearest neighbour"
for axis, feature, label, title in (
    (axes[0], their_feature, their_label, theirs),
    (axes[1], ours_feature, ours_label, "both by sampling.places"),
):
    outside = (feature - label).abs() > cell / 2 + 0.5
    for place in feature.tolist():
        axis.axvspan(place - cell / 2, place + cell / 2, color="#0072b2", alpha=0.25, lw=0)
    axis.scatter(label, torch.zeros(m), s=50, color="#d55e00", zorder=3)
    title = f"{title}: {int(outside.sum())} of {m} labels from outside their feature"
    axis.set_title(title, loc="left", fontsize=9)
    axis.set(yticks=[], ylim=(-1, 1))
    axis.spines["left"].set_visible(False)
axes[1].set_xlabel("pixel: what a feature covers (blue), and where its label is taken (orange)")
plt.show()

# %%
# The same on a synthetic heart, for a level of 13 x 13 features with stride 2. The pictures show the label that each
# sampled point gets. A cross marks a label that does not occur anywhere in the part of the image that the feature
# covers.

STRUCTURES = {  # centre, radii and brightness; each is painted over those before it
    "RV": (-0.12, -0.3, 0.42, 0.24, 0.6),
    "MYO": (0.22, -0.12, 0.3, 0.34, 0.45),
    "LV": (0.22, -0.1, 0.19, 0.22, 0.85),
    "RA": (-0.42, 0.05, 0.2, 0.27, 0.65),
    "LA": (0.08, 0.42, 0.36, 0.17, 0.8),
    "aorta": (-0.03, 0.08, 0.11, 0.12, 0.9),
}
y, x = torch.meshgrid(*[torch.linspace(-1, 1, 96)] * 2, indexing="ij")
labels = torch.zeros(96, 96, dtype=torch.long)
for label, (centre_x, centre_y, radius_x, radius_y, _) in enumerate(STRUCTURES.values(), 1):
    inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1
    labels[inside] = label
labels = labels[:94, :94]
size, level, stride = 94, 13, 2
m, cell = strided(level, stride), size / level


def show(axis, labels, title):
    """Labels, each in its colour."""
    axis.imshow(labels, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    axis.set(title=title, xticks=[], yticks=[])


def wrong(features: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Where a label does not occur in what its feature covers; `features` are indices along an axis."""
    low, high = (
        (features * cell).floor().long().tolist(),
        ((features + 1) * cell).ceil().long().tolist(),
    )
    spans = [slice(a, b) for a, b in zip(low, high, strict=True)]
    found = [[bool((labels[rows, columns] == given[i, j]).any()) for j, columns in enumerate(spans)]
             for i, rows in enumerate(spans)]  # fmt: skip
    return ~torch.tensor(found)


resized = F.interpolate(labels[None, None].float(), size=(m, m))[0, 0].long()
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
show(axes[0], labels, "labels")
for axis, features, given, title in (
    (axes[1], torch.arange(level)[::stride], resized, "sliced, resized"),
    (axes[2], places(level, m), resample(labels, (m, m)), "one rule"),
):
    crosses = wrong(features, given)
    show(axis, given, f"{title}: {int(crosses.sum())} of {m * m} wrong")
    y, x = crosses.nonzero(as_tuple=True)
    axis.scatter(x, y, marker="x", color="white", s=40)
plt.show()
