"""``python -m docs.where DATA STAGES``: where self-training helps, on the validation patients of ACDC.

DATA is the data set, STAGES the folder ``stages`` that the table of `docs/reproduction.md`, section 1, leaves in its
``--out``, with the weights of every stage. Prints the figures, and draws ``docs/images/acdc-where.png``.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from examples.mmwhs.data.datasets import open_dataset
from examples.mmwhs.data.splits import make_split
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.train.evaluate import probabilities, scores
from mmgl_losses import UNet

ROOT = Path(__file__).parent
PARTS = 5  # of a heart, from one end to the other
SEPTUM = (
    1,
    3,
)  # right and left ventricle: the line between their middles is the heart's direction
STRUCTURES = "right ventricle", "myocardium", "left ventricle"
DEGREES = 0, 15, 30, 60, 180
COLOURS = {"before": "#7a7a7a", "after": "#0b5c96"}


class Volume(NamedTuple):
    """What two networks make of a volume, as confusion matrices (PARTS, C, C), and how its heart lies."""

    before: Tensor
    after: Tensor
    turned: float  #: degrees from the labelled patient's direction


def direction(labels: np.ndarray) -> float:
    """Degrees of the line between the middles of both ventricles, from the mean of slices that show both."""
    ends = [
        [np.argwhere(slice_ == each).mean(0) for each in SEPTUM]
        for slice_ in labels
        if all((slice_ == each).any() for each in SEPTUM)
    ]
    y, x = np.mean([end - start for start, end in ends], 0)
    return float(np.degrees(np.arctan2(y, x)))


def matrices(predicted: Tensor, labels: np.ndarray, classes: int) -> Tensor:
    """The confusion matrix of each part of the slices that show a structure."""
    shown = np.flatnonzero(labels.any((1, 2)))
    found = torch.zeros(PARTS, classes, classes, dtype=torch.long)
    for i in range(len(labels)):
        where = (i - shown[0] + 0.5) / (shown[-1] - shown[0] + 1)
        part = int(np.clip(where * PARTS, 0, PARTS - 1))
        pairs = torch.from_numpy(labels[i]).long() * classes + predicted[i]
        found[part] += torch.bincount(pairs.flatten(), minlength=classes**2).view(
            classes, classes
        )
    return found


def compared(data: Path, stages: Path) -> dict[int, list[Volume]]:
    """Draw -> the volumes of the validation patients, before and after self-training."""
    dataset = open_dataset(data)
    store = SliceStore(dataset, stages.parent / "cache", size=64)
    classes, plane = len(dataset.description.classes) + 1, store.main_plane
    file = ROOT / "results" / "acdc-selftrain" / "results.jsonl"
    found = {}
    for run in map(json.loads, file.read_text().splitlines()):
        if run["name"] != "random_ds_selftrain" or len(run["labelled"]) != 1:
            continue
        nets = []
        for stage in ("finetune", "selftrain"):
            net = UNet(
                1, classes, channels=tuple(run["settings"]["scale"]["channels"]), norm="batch"
            )
            path = stages / run["stages"][stage]["key"] / "weights.pt"
            net.load_state_dict(torch.load(path, weights_only=True))
            nets.append(net.eval())
        split = make_split(dataset, labelled=1, seed=run["seed"])
        assert list(split.labelled) == run["labelled"], "another split than that of the results"
        own = [
            store.labels(case, plane) for case in dataset.cases_of(split.labelled, labels=True)
        ]
        usual = direction(np.concatenate(own))
        found[run["seed"]] = []
        for case in dataset.cases_of(split.validation, labels=True):
            images, labels = store.slices(case, plane)
            before, after = (
                torch.cat([*probabilities(net, images, torch.device("cpu"))]).argmax(1)
                for net in nets
            )
            turned = abs((direction(labels) - usual + 180) % 360 - 180)
            found[run["seed"]].append(
                Volume(
                    matrices(before, labels, classes), matrices(after, labels, classes), turned
                )
            )
    return found


def main() -> None:
    """The figures, and the picture."""
    found = compared(*map(Path, sys.argv[1:3]))
    volumes = [volume for draw in found.values() for volume in draw]
    print(f"{len(found)} draws, {len(volumes)} volumes")
    figure, axes = plt.subplots(
        1, len(STRUCTURES), figsize=(8, 2.6), sharey=True, layout="constrained"
    )
    for side, colour in COLOURS.items():
        parts = [
            scores(torch.stack([getattr(v, side)[i] for v in volumes]).sum(0))["dice"]
            for i in range(PARTS)
        ]
        print(f"{side} self-training, from base to apex:", [round(x["mean"], 3) for x in parts])
        for axis, (i, name) in zip(axes, enumerate(STRUCTURES), strict=True):
            each = [x["each"][i] for x in parts]
            print(f"    {name}:", [round(x, 3) for x in each])
            axis.plot(
                range(1, PARTS + 1),
                each,
                marker="o",
                color=colour,
                label=f"{side} self-training",
            )
            axis.set_title(name, fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set(xticks=(1, PARTS), xticklabels=("base", "apex"), ylim=(0, 1))
    axes[0].set_ylabel("Dice")
    axes[0].legend(frameon=False)
    figure.savefig(ROOT / "images" / "acdc-where.png", dpi=130)
    for low, high in pairwise(DEGREES):
        here = [v for v in volumes if low <= v.turned < high]
        before, after = (
            [scores(getattr(v, side).sum(0))["dice"]["mean"] for v in here] for side in COLOURS
        )
        print(
            f"turned by {low} to {high} degrees: {len(here)} volumes, {mean(before):.3f} -> {mean(after):.3f}"
        )


if __name__ == "__main__":
    main()
