"""Dice, IoU and pixel accuracy: pooled over all test slices, as in the paper, and volume by volume."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from examples.mmwhs.data.datasets import Case, Description, load_volume
from examples.mmwhs.data.slices import SliceStore, labels_from_probabilities, volume_to_slices
from examples.mmwhs.data.splits import Split

BATCH = 32
SHOWN = 3  # volumes in an overlay figure


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


def _summary(values: list[float]) -> dict[str, Any]:
    each = [None if np.isnan(value) else value for value in values]
    return {"mean": _mean(each), "each": each}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _spread(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.std(there, ddof=1)) if len(there) > 1 else None


@torch.no_grad()
def probabilities(net: nn.Module, images: np.ndarray, device: torch.device) -> Tensor:
    """Class probabilities (n, C, S, S) of slices (n, S, S), uint8 with 255 for 1 or float in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    parts = []
    for i in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(images[i : i + BATCH], dtype=np.float32)) / scale
        parts.append(net(batch[:, None].to(device)).float().softmax(dim=1).cpu())
    return torch.cat(parts)


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
    cases = dataset.cases_of(getattr(split, part))
    shown = {cases[i].id for i in np.linspace(0, len(cases) - 1, min(SHOWN, len(cases))).round().astype(int)}
    pooled = MulticlassConfusionMatrix(classes, sync_on_compute=False)
    volumes: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}
    net = net.eval().to(device)
    for case in cases:
        images, labels = store.slices(case, description.main_plane)
        result = probabilities(net, images, device)
        pooled.update(result.argmax(dim=1), torch.from_numpy(labels).long())
        volumes[case.id], picture = _volume(case, description, store, result)
        if case.id in shown:
            pictures |= {f"{case.id}/{key}": value for key, value in picture.items()}
    return {"pooled": _named(scores(pooled.compute()), description), **_over(volumes, description)}, pictures


def _volume(
    case: Case, description: Description, store: SliceStore, result: Tensor
) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """The Dice of every structure of a volume on its own grid, and the slice that shows most of them."""
    volume = load_volume(case, description, percentiles=store.percentiles)
    assert volume.label is not None
    predicted = labels_from_probabilities(result, volume.image.shape, description.main_plane, crop=description.crop)
    classes = len(description.classes) + 1
    matrix = MulticlassConfusionMatrix(classes, sync_on_compute=False)
    truth, ours = (torch.from_numpy(np.ascontiguousarray(labels)) for labels in (volume.label, predicted))
    matrix.update(ours.long(), truth.long())
    each = scores(matrix.compute())["dice"]["each"]
    stacks = [volume_to_slices(array, description.main_plane) for array in (volume.image, volume.label, predicted)]
    flat = stacks[1].reshape(len(stacks[1]), -1)
    present = sum((flat == index).any(axis=1).astype(int) for index in range(1, classes))
    best = int(np.lexsort((np.count_nonzero(flat, axis=1), present))[-1])
    spacing = [value for plane, value in zip(_axes(description.main_plane), volume.spacing, strict=True) if plane]
    picture = dict(zip(("image", "truth", "prediction"), (stack[best].copy() for stack in stacks), strict=True))
    picture |= {"spacing": np.asarray(spacing), "slice": np.asarray(best)}
    return dict(zip(description.classes, each, strict=True)), picture


def _axes(plane: str) -> list[bool]:
    """Which axes of a RAS volume lie in a plane."""
    return [plane != other for other in ("sagittal", "coronal", "transaxial")]


def _named(result: dict[str, Any], description: Description) -> dict[str, Any]:
    """Scores with the names of the structures."""
    named = {
        key: {"mean": result[key]["mean"], **dict(zip(description.classes, result[key]["each"], strict=True))}
        for key in ("dice", "iou")
    }
    return {**named, "accuracy": result["accuracy"]}


def _over(volumes: dict[str, dict[str, float | None]], description: Description) -> dict[str, Any]:
    """Mean and standard deviation over the volumes, of every structure and of each volume's mean."""
    columns = {name: [each[name] for each in volumes.values()] for name in description.classes}
    columns = {"mean": [_mean(list(each.values())) for each in volumes.values()], **columns}
    summary = {name: {"mean": _mean(values), "sd": _spread(values)} for name, values in columns.items()}
    return {"per_volume": summary, "volumes": volumes}
