"""
Who attracts and who repels
===========================

A local contrast compares each point, the anchor, with other points. Those with its own label attract it, the others
repel it. Two options decide which points take part: ``pairs=`` and ``background=``.
"""

# %%
# A batch of three images. The anchor is the white dot, in the left ventricle of the first image. Green points attract
# it and red points repel it. Where there is no dot, nothing takes part. The dots are the points that the loss really
# compares: every fourth along each axis.

import matplotlib.pyplot as plt
import torch

from mmgl_losses.sampling import resample

torch.manual_seed(0)
STRUCTURES = {  # centre, radii and brightness; each is painted over those before it
    "RV": (-0.12, -0.3, 0.42, 0.24, 0.6),
    "MYO": (0.22, -0.12, 0.3, 0.34, 0.45),
    "LV": (0.22, -0.1, 0.19, 0.22, 0.85),
    "RA": (-0.42, 0.05, 0.2, 0.27, 0.65),
    "LA": (0.08, 0.42, 0.36, 0.17, 0.8),
    "aorta": (-0.03, 0.08, 0.11, 0.12, 0.9),
}
y, x = torch.meshgrid(*[torch.linspace(-1, 1, 96)] * 2, indexing="ij")


def heart(shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A made-up slice of a chest and its labels, (96, 96) each; `shift` makes another patient."""

    def inside(across: float, down: float, width: float, height: float) -> torch.Tensor:
        return ((x - across) / width) ** 2 + ((y - down) / height) ** 2 < 1

    image, labels = 0.35 * inside(0, 0, 0.98, 0.9), torch.zeros(96, 96, dtype=torch.long)
    image[inside(-0.62, 0.1, 0.3, 0.62) | inside(0.62, 0.1, 0.3, 0.62)] = 0.08  # the lungs
    for label, (across, down, width, height, brightness) in enumerate(STRUCTURES.values(), 1):
        where = inside(across + shift, down - shift, width, height + shift)
        image[where], labels[where] = brightness, label
    return image + 0.05 * torch.randn(96, 96), labels


(image, labels), (other, other_labels) = heart(0.0), heart(0.08)
# An image, its mirrored augmentation, another image.
images = torch.stack([image, image.flip(1), other])
batch = torch.stack([labels, labels.flip(1), other_labels])
points = resample(batch, (24, 24))
ventricle = (points[0] == 3).nonzero()
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
    size = (7, 2.4 * len(rows))
    _, axes = plt.subplots(len(rows), 3, figsize=size, layout="constrained", squeeze=False)
    pixels = torch.arange(24) * 4 + 2
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    for row, (pairs, background) in zip(axes, rows, strict=True):
        role = roles(pairs, background)
        for i, axis in enumerate(row):
            axis.imshow(images[i].numpy(), cmap="gray")
            for value, colour in ((1, "#2ca25f"), (-1, "#de2d26")):
                chosen = role[i] == value
                axis.scatter(x[chosen], y[chosen], s=7, color=colour, linewidths=0)
            axis.set(xticks=[], yticks=[])
        _, down, across = anchor
        row[0].scatter(
            x[down, across], y[down, across], s=45, color="white", edgecolors="black"
        )
        row[0].set_ylabel(f'pairs="{pairs}"\nbackground="{background}"')
    titles = ("an image", "its augmentation", "another image")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    plt.show()


picture([("image", "anchor"), ("augmentations", "anchor"), ("batch", "anchor")])

# %%
# For an anchor in a structure, ``background="anchor"`` and ``"key"`` look the same: the background repels. They differ
# for points of the background. With ``"key"`` these are no anchors, so nothing pulls the background together. With
# ``"ignore"`` the background takes no part at all.

picture([("image", "key"), ("image", "ignore")])

# %%
# The loss itself counts how many anchors there are, and how many positives each has:

from mmgl_losses import MultiScaleLocalSupCon

features = [torch.randn(3, 8, 24, 24)]
for background in ("anchor", "key", "ignore"):
    for pairs in ("image", "batch"):
        loss = MultiScaleLocalSupCon(weights=(1.0,), pairs=pairs, background=background)
        level = loss.diagnose(features, batch).levels[0]
        anchors, each = sum(level.valid.values()), level.positives
        print(f"{pairs:>6} {background:>7}: {anchors:5} anchors, {each:6.1f} positives each")
