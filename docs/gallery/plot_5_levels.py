"""
Small structures on coarse levels
=================================

Deep supervision and local contrast compare each point of a coarse level with the label at its place. A structure of a
few pixels may get no point there at all.
"""

# %%
# The labels of a slice as four levels of a decoder see them. Each point has the label at its own place:

import matplotlib.pyplot as plt
import torch

from mmgl_losses.sampling import resample

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


def show(axis, labels, title):
    """Labels, each in its colour."""
    axis.imshow(labels, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    axis.set(title=title, xticks=[], yticks=[])


fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), layout="constrained")
for axis, size in zip(axes, (6, 12, 24, 96), strict=True):
    show(axis, resample(labels, (size, size)), f"{size} x {size}")
plt.show()

# %%
# How well could each level do at best? Enlarge its labels again and compute their Dice with the true ones. This is why
# coarse levels get small weights, and why a structure can be missing from them.

sizes = (6, 12, 24, 48)
fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
width = 0.2
for i, size in enumerate(sizes):
    again = resample(resample(labels, (size, size)), (96, 96))
    both = [(again == c) & (labels == c) for c in range(1, 7)]
    best = [
        2 * int(found.sum()) / int((again == c).sum() + (labels == c).sum())
        for c, found in enumerate(both, 1)
    ]
    places = [bar + (i - 1.5) * width for bar in range(6)]
    axis.bar(places, best, width, label=f"{size} x {size}", color=f"C{i}")
names = [f"{name}\n{int((labels == c).sum())} px" for c, name in enumerate(STRUCTURES, 1)]
axis.set_xticks(range(6), names)
axis.set_ylabel("Dice at best")
axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18))
plt.show()

# %%
# For the contrast there is a remedy. ``sampling="foreground"`` takes from each cell of the stride the label that is
# rarest in the image, instead of the point in the middle. So the aorta is kept. At such a coarse level, another
# structure may lose all its cells to rarer neighbours, but here none does.

from mmgl_losses.sampling import foreground_places

grid = resample(labels, (6, 6))
kept = labels.flatten()[foreground_places(labels[None], (6, 6), excluded=(0,))[0]].view(6, 6)
fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
show(axes[0], labels, "labels")
show(axes[1], grid, f'"grid": {len(grid.unique()) - 1} structures')
show(axes[2], kept, f'"foreground": {len(kept.unique()) - 1} structures')
plt.show()
