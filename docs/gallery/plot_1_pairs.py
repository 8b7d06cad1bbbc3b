"""
Who attracts and who repels
===========================

A local contrast compares an anchor with other points: those of its own label attract it, the others repel it. Two
options say which points there are: ``background=`` and ``pairs=``.
"""

# %%
# Three images in a batch; the anchor is the white dot, in the left ventricle of the first one. Green points attract
# it, red points repel it, points without a dot take no part. The points are those that the loss really compares: every
# fourth along each axis, at the places that ``LocalHead`` and the loss share.

import matplotlib.pyplot as plt
import torch
from scene import heart

from mmgl_losses.sampling import resample

(image, labels), (other, other_labels) = heart(33), heart(28)
images = torch.stack(
    [image, image.flip(1), other]
)  # an image, its mirrored augmentation, another image
batch = torch.stack([labels, labels.flip(1), other_labels])
points = resample(batch, (24, 24))
ventricle = (points[0] == 1).nonzero()
anchor = (0, *ventricle[len(ventricle) // 2].tolist())


def roles(pairs: str, background: str) -> torch.Tensor:
    """1 attracts, -1 repels, 0 takes no part."""
    role = torch.where(points == points[anchor], 1, -1)
    if background == "ignore":
        role[points == 0] = 0
    role[{"image": 1, "augmentations": 2, "batch": 3}[pairs] :] = 0
    role[anchor] = 0
    return role


def picture(rows: list[tuple[str, str]]) -> None:
    _, axes = plt.subplots(
        len(rows), 3, figsize=(7, 2.4 * len(rows)), layout="constrained", squeeze=False
    )
    for row, (pairs, background) in zip(axes, rows, strict=True):
        role = roles(pairs, background)
        for i, axis in enumerate(row):
            axis.imshow(images[i].numpy(), cmap="gray")
            y, x = torch.meshgrid(
                torch.arange(24) * 4 + 2, torch.arange(24) * 4 + 2, indexing="ij"
            )
            for value, colour in ((1, "#2ca25f"), (-1, "#de2d26")):
                chosen = role[i] == value
                axis.scatter(x[chosen], y[chosen], s=7, color=colour, linewidths=0)
            if i == 0:
                axis.scatter(
                    anchor[2] * 4 + 2,
                    anchor[1] * 4 + 2,
                    s=45,
                    color="white",
                    edgecolors="black",
                    zorder=3,
                )
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f'pairs="{pairs}"\nbackground="{background}"')
    for axis, title in zip(
        axes[0], ("an image", "its augmentation", "another image"), strict=True
    ):
        axis.set_title(title)
    plt.show()


picture([("image", "anchor"), ("augmentations", "anchor"), ("batch", "anchor")])

# %%
# For an anchor in a structure, ``background="anchor"`` and ``"key"`` look the same: the background repels. They
# differ in what else is an anchor: with ``"key"`` no point of the background is one, so nothing pulls the background
# together. With ``"ignore"`` the background is not there at all.

picture([("image", "key"), ("image", "ignore")])

# %%
# How many anchors and pairs that makes at this level, counted by the loss itself:

from mmgl_losses import MultiScaleLocalSupCon

features = [torch.randn(3, 8, 24, 24)]
for background in ("anchor", "key", "ignore"):
    for pairs in ("image", "batch"):
        loss = MultiScaleLocalSupCon(weights=(1.0,), pairs=pairs, background=background)
        level = loss.diagnose(features, batch).levels[0]
        anchors = sum(level.valid.values())
        print(
            f"{pairs:>6} {background:>7}: {anchors:5} anchors, {level.positives:6.1f} positives each"
        )
