"""Dice, IoU and pixel accuracy, pooled over all test slices as in the paper; and Dice and distances volume by volume.

Results are keyed by label value, so that no name of a structure can hide another.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from examples.mmwhs.data.description import PLANES, Description
from examples.mmwhs.data.slices import labels_from_probabilities, volume_to_slices
from examples.mmwhs.data.splits import Split
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.data.volumes import load_volume

BATCH = 32
SHOWN = 3  # volumes in an overlay figure
DISTANCES = ("hd95", "assd")


def scores(matrix: Tensor) -> dict[str, Any]:
    """Dice and IoU of every structure and their means, and the accuracy of all pixels, of a confusion matrix.

    Args:
        matrix: (C, C) counts by true (row) and predicted (column) class; class 0 is the background.

    Returns:
        ``{"dice": {"mean": m, "each": [...]}, "iou": {...}, "accuracy": a}``. A structure that is neither there nor
        predicted has no score (None) and no part in the mean.
    """
    counts = matrix.double().cpu()
    hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    dice = (2 * hit / (truth + predicted))[1:].tolist()
    iou = (hit / (truth + predicted - hit))[1:].tolist()
    accuracy = hit.sum().item() / counts.sum().item()
    return {"dice": _summary(dice), "iou": _summary(iou), "accuracy": accuracy}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    each = [None if np.isnan(value) else value for value in values]
    return {"mean": mean(each), "each": each}


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what there is."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def spread(values: Iterable[float | None]) -> float | None:
    """The standard deviation (n - 1) of what there is."""
    there = [value for value in values if value is not None]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


def distances(truth: np.ndarray, predicted: np.ndarray, classes: int, spacing: Sequence[float]) -> dict[str, Any]:
    """Distances in mm between the surfaces of every structure, true and predicted, by MONAI.

    ``hd95`` is the 95th percentile of the Hausdorff distance, the larger of both directions; ``assd`` the average
    symmetric surface distance. A structure that is missing on either side has none (None).

    Args:
        truth: (X, Y, Z) class indices.
        predicted: (X, Y, Z) class indices.
        classes: Their number, background included.
        spacing: Of the voxels in mm.
    """
    from monai.metrics.utils import get_edge_surface_distance

    found: dict[str, list[float | None]] = {name: [] for name in DISTANCES}
    for index in range(1, classes):
        here, there = truth == index, predicted == index
        values: list[float | None] = [None, None]
        if here.any() and there.any():
            box = tuple(slice(max(0, i.min() - 1), i.max() + 2) for i in np.nonzero(here | there))
            ours, theirs = (torch.from_numpy(np.ascontiguousarray(a[box])) for a in (there, here))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MONAI warns of its own deprecations
                _, both, _ = get_edge_surface_distance(
                    ours.float(), theirs.float(), spacing=[float(s) for s in spacing], symmetric=True
                )
            values = [max(each.quantile(0.95).item() for each in both), torch.cat(both).mean().item()]
        for name, value in zip(DISTANCES, values, strict=True):
            found[name].append(value)
    return found


@torch.no_grad()
def probabilities(net: nn.Module, images: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """Class probabilities of slices (n, S, S), uint8 with 255 for 1 or float in [0, 1]: in batches (b, C, S, S)."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    for i in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(images[i : i + BATCH], dtype=np.float32)) / scale
        yield net(batch[:, None].to(device)).float().softmax(dim=1).cpu()


@torch.no_grad()
def segment_volume(net: nn.Module, image: np.ndarray, patch: Sequence[int], device: torch.device) -> np.ndarray:
    """Class indices (X, Y, Z) of a volume in [0, 1], by a network of three dimensions in MONAI's sliding window."""
    from monai.inferers.utils import sliding_window_inference

    whole = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    result = sliding_window_inference(
        whole, tuple(patch), 2, net, overlap=0.5, mode="gaussian", sw_device=device, device=torch.device("cpu")
    )
    assert isinstance(result, Tensor)
    return result[0].argmax(0).to(torch.uint8).numpy()


def evaluate(
    net: nn.Module, store: SliceStore, split: Split, part: Literal["test", "validation"], *, device: torch.device
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores a network on the test patients, or those for validation, and keeps a slice of a few of them to look at.

    Returns:
        The metrics as plain values: ``pooled`` over the slices at the size of training, and ``volumes``, each on
        its own grid, with their mean and standard deviation; and the arrays of an overlay figure.
    """
    dataset, description = store.dataset, store.dataset.description
    classes = len(description.classes) + 1
    cases = dataset.cases_of(getattr(split, part), labels=True)
    shown = {cases[i].id for i in np.linspace(0, len(cases) - 1, min(SHOWN, len(cases))).round().astype(int)}
    pooled = MulticlassConfusionMatrix(classes, sync_on_compute=False)
    volumes: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}
    net = net.eval().to(device)
    for case in cases:
        images, labels = store.slices(case, store.main_plane)
        volume = load_volume(case, description, percentiles=store.percentiles)
        if store.patch:
            predicted = segment_volume(net, images[0] / np.float32(255), store.patch, device)
            pooled.update(torch.from_numpy(predicted).long(), torch.from_numpy(labels[0]).long())
        else:
            result = list(probabilities(net, images, device))
            pooled.update(torch.cat([batch.argmax(dim=1) for batch in result]), torch.from_numpy(labels).long())
            predicted = labels_from_probabilities(
                result, volume.image.shape, description.main_plane, crop=description.crop
            )
        assert volume.label is not None
        volumes[case.id] = _scores_of(volume.label, predicted, description, volume.spacing.tolist())
        if case.id in shown:
            stacks = [volume_to_slices(a, description.main_plane) for a in (volume.image, volume.label, predicted)]
            picture = _picture(stacks, classes, description.main_plane, volume.spacing.tolist())
            pictures |= {f"{case.id}/{key}": value for key, value in picture.items()}
    return {"pooled": _by_value(scores(pooled.compute()), description), **over(volumes)}, pictures


def _scores_of(
    truth: np.ndarray, ours: np.ndarray, description: Description, spacing: Sequence[float]
) -> dict[str, Any]:
    """Dice and distances of every structure of a volume on its own grid, by label value."""
    classes = len(description.classes) + 1
    pairs = truth.astype(np.int64).ravel() * classes + ours.ravel()
    matrix = torch.from_numpy(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))
    found = {"dice": scores(matrix)["dice"]["each"], **distances(truth, ours, classes, spacing)}
    return {name: dict(zip(description.structures, each, strict=True)) for name, each in found.items()}


def _picture(stacks: Sequence[np.ndarray], classes: int, plane: str, spacing: Sequence[float]) -> dict[str, np.ndarray]:
    """Image, truth and prediction of the slice that shows most structures."""
    flat = stacks[1].reshape(len(stacks[1]), -1)
    present = sum((flat == index).any(axis=1).astype(int) for index in range(1, classes))
    best = int(np.lexsort((np.count_nonzero(flat, axis=1), present))[-1])
    picture = dict(zip(("image", "truth", "prediction"), (stack[best].copy() for stack in stacks), strict=True))
    across = [value for other, value in zip(PLANES, spacing, strict=True) if other != plane]
    return picture | {"spacing": np.asarray(across), "slice": np.asarray(best)}


def _by_value(result: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Scores by label value."""
    named = {
        key: {"mean": result[key]["mean"], "each": dict(zip(description.structures, result[key]["each"], strict=True))}
        for key in ("dice", "iou")
    }
    return {**named, "accuracy": result["accuracy"]}


def over(volumes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any]:
    """Mean and standard deviation over the volumes, of every structure and of each volume's mean, for every score."""
    summary: dict[str, Any] = {}
    for name in next(iter(volumes.values())):
        rows = [each[name] for each in volumes.values()]
        means = [mean(row.values()) for row in rows]
        each = {value: [row[value] for row in rows] for value in rows[0]}
        summary[name] = {
            "mean": {"mean": mean(means), "sd": spread(means)},
            "each": {value: {"mean": mean(column), "sd": spread(column)} for value, column in each.items()},
        }
    return {"per_volume": summary, "volumes": dict(volumes)}
