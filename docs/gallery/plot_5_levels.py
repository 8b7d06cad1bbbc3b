"""
Small structures on coarse levels
=================================

Deep supervision and local contrast compare coarse levels with the labels at their places. A structure of a few pixels
may have no place there at all.
"""

# %%
# The labels of a slice as four levels of a decoder see them, each point holding the label at its own place:

import matplotlib.pyplot as plt
from scene import NAMES, heart, show

from mmgl_losses.sampling import resample

labels = heart()[1]
fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), layout="constrained")
for axis, size in zip(axes, (6, 12, 24, 96), strict=True):
    show(axis, resample(labels, (size, size)), f"{size} x {size}")
plt.show()

# %%
# How well each level could do at best: the Dice of its labels, blown up again, with the true ones. This is why coarse
# levels get small weights, and why a structure can be missing from them.

sizes = (6, 12, 24, 48)
present = [c for c in range(1, 8) if (labels == c).any()]
fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
width = 0.2
for i, size in enumerate(sizes):
    again = resample(resample(labels, (size, size)), (96, 96))
    both = [int(((again == c) & (labels == c)).sum()) for c in present]
    best = [
        2 * n / int((again == c).sum() + (labels == c).sum())
        for n, c in zip(both, present, strict=True)
    ]
    axis.bar(
        [x + (i - 1.5) * width for x in range(len(present))],
        best,
        width,
        label=f"{size} x {size}",
        color=f"C{i}",
    )
axis.set_xticks(
    range(len(present)), [f"{NAMES[c]}\n{int((labels == c).sum())} px" for c in present]
)
axis.set_ylabel("Dice at best")
axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18))
plt.show()

# %%
# For the contrast there is a way out: ``sampling="foreground"`` takes, in each cell of the stride, the label that is
# rarest in the image, instead of the point in the middle. The aorta is kept; at so coarse a level a structure can
# still lose all its cells to rarer neighbours.

from mmgl_losses.sampling import foreground_places

grid = resample(labels, (6, 6))
kept = labels.flatten()[foreground_places(labels[None], (6, 6), excluded=(0,))[0]].view(6, 6)
fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
show(axes[0], labels, "labels")
show(axes[1], grid, f'"grid": {len(grid.unique()) - 1} structures')
show(axes[2], kept, f'"foreground": {len(kept.unique()) - 1} structures')
plt.show()
