"""One slice of the phantom, for the pictures."""

from functools import cache

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from examples.mmwhs.data.phantom.write import make_volume

NAMES = ("background", "LV", "RV", "LA", "RA", "MYO", "AA", "PA")
VALUES = (0, 500, 600, 420, 550, 205, 820, 850)
COLOURS = ListedColormap(
    ["#30343b", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#999999"]
)

plt.rcParams.update(
    {"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


@cache
def heart(level: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (96, 96) in [0, 1] and labels (96, 96) of a transaxial slice, the front at the top."""
    image, label, _ = make_volume(0)
    image = np.clip((image[:, :, level].T + 160) / 600, 0, 1)
    order = np.argsort(VALUES)
    labels = order[np.searchsorted(np.sort(VALUES), label[:, :, level].T)]
    return torch.tensor(image, dtype=torch.float32), torch.tensor(labels)


def show(axis: plt.Axes, labels: torch.Tensor, title: str = "") -> None:
    """Labels in the colours of their structures."""
    axis.imshow(
        labels.numpy(), cmap=COLOURS, vmin=0, vmax=len(NAMES) - 1, interpolation="nearest"
    )
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
