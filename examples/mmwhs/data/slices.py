"""Slices of volumes: cut in three planes, resized to S x S whole or from their centre, cached, and served to training.

Images are kept as uint8, so an intensity in [0, 1] is off by at most 1/510. Labels are resized class by class,
so no resizing ever invents a class between two others.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from examples.mmwhs import files
from examples.mmwhs.data.datasets import PLANES, Case, Dataset, load_volume
from examples.mmwhs.data.splits import Split, guard
from examples.mmwhs.messages import integer, message, one_of

FORMAT = 1  # raise it when what is written for a slice changes
BATCH = 16  # slices resized at a time, which bounds the memory


def volume_to_slices(volume: np.ndarray, plane: str) -> np.ndarray:
    """(X, Y, Z) in RAS to the slices (n, H, W) of a plane; a view."""
    one_of("plane", plane, PLANES)
    return np.moveaxis(volume, PLANES.index(plane), 0)


def slices_to_volume(slices: np.ndarray, plane: str) -> np.ndarray:
    """The slices (n, H, W) of a plane to (X, Y, Z) in RAS, undoing :func:`volume_to_slices`; a view."""
    one_of("plane", plane, PLANES)
    return np.moveaxis(slices, 0, PLANES.index(plane))


def window(shape: tuple[int, ...], crop: float) -> tuple[slice, slice]:
    """Where the central square of slices (H, W) lies; it may reach beyond a shorter side. All of them for 1."""
    if crop == 1:
        return slice(0, shape[0]), slice(0, shape[1])
    side = max(1, round(crop * max(shape)))
    first = [(size - side) // 2 for size in shape]
    return slice(first[0], first[0] + side), slice(first[1], first[1] + side)


def cut(stack: np.ndarray, crop: float) -> np.ndarray:
    """The central squares of slices (n, H, W), zeros beyond their edges."""
    parts = window(stack.shape[1:], crop)
    beyond = [(max(0, -p.start), max(0, p.stop - size)) for p, size in zip(parts, stack.shape[1:], strict=True)]
    inside = tuple(slice(max(0, p.start), p.stop) for p in parts)
    return np.pad(stack[:, *inside], [(0, 0), *beyond])


def _linear(stack: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, C, H, W) to (n, C, *size), linear, with the low-pass that shrinking needs."""
    return interpolate(stack, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_images(stack: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) intensities to (n, S, S) float32, linear and antialiased."""
    out = np.empty((len(stack), size, size), dtype=np.float32)
    for i in range(0, len(stack), BATCH):
        part = torch.from_numpy(np.ascontiguousarray(stack[i : i + BATCH], dtype=np.float32))
        out[i : i + BATCH] = _linear(part[:, None], (size, size))[:, 0].numpy()
    return out


def resize_labels(stack: np.ndarray, size: int) -> np.ndarray:
    """(n, H, W) class indices to (n, S, S) uint8: the class with the largest share of each new pixel."""
    out = np.zeros((len(stack), size, size), dtype=np.uint8)
    for i in range(0, len(stack), BATCH):
        part = torch.from_numpy(np.ascontiguousarray(stack[i : i + BATCH], dtype=np.uint8))
        best = torch.zeros(len(part), size, size)
        for index in range(int(part.max()) + 1):
            here = part == index
            if not here.any():
                continue
            share = _linear(here.float()[:, None], (size, size))[:, 0]
            out[i : i + BATCH][(share > best).numpy()] = index
            best = torch.maximum(best, share)
    return out


def labels_from_probabilities(
    probabilities: Tensor | np.ndarray, shape: tuple[int, int, int], plane: str, *, crop: float = 1.0
) -> np.ndarray:
    """Class probabilities of every slice of a plane to class indices on the RAS grid of the volume.

    Probabilities are resized, and only then does the largest win.

    Args:
        probabilities: (n, C, S, S), the slices in order.
        shape: (X, Y, Z) of the volume in RAS.
        plane: the plane of the slices.
        crop: of the data set's description; what lies outside is background.

    Returns:
        (X, Y, Z) uint8.
    """
    stack = torch.as_tensor(probabilities)
    out = np.zeros(shape, dtype=np.uint8)
    slices = volume_to_slices(out, plane)
    if stack.ndim != 4 or len(stack) != len(slices):
        expected = f"`probabilities` of shape ({len(slices)}, C, S, S) for the {plane} slices of {tuple(shape)}"
        raise ValueError(message(expected, tuple(stack.shape)))
    for i in range(0, len(stack), BATCH):
        part = stack[i : i + BATCH].to("cpu", torch.float32)
        rows, columns = window(slices.shape[1:], crop)
        labels = _linear(part, (rows.stop - rows.start, columns.stop - columns.start)).argmax(dim=1).numpy()
        top, left = max(0, rows.start), max(0, columns.start)
        inside = slices[i : i + BATCH, top : rows.stop, left : columns.stop]
        inside[:] = labels[:, top - rows.start :, left - columns.start :][:, : inside.shape[1], : inside.shape[2]]
    return out


class SliceStore:
    """The slices of every case of a data set, resized when they are first asked for and cached.

    One file a case, written aside and renamed, so that a killed run leaves no half of one. Its name holds a
    digest of all it depends on (files with size and time, label values, planes, slice size, percentiles), so
    a stale one is never found; a damaged one is built again.

    Args:
        dataset: the data set.
        cache: the folder of the cached files, made if need be.
        size: S, the size of a slice.
        percentiles: at which intensities are clipped.
    """

    def __init__(
        self,
        dataset: Dataset,
        cache: str | Path,
        *,
        size: int,
        percentiles: tuple[float, float] = (1.0, 99.0),
    ) -> None:
        self.dataset = dataset
        self.cache = Path(cache)
        self.size = integer("size", size, least=1)
        self.percentiles = percentiles

    def slices(self, case: Case, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a plane, uint8 (n, S, S) each."""
        images, labels = self.images(case, plane), self.labels(case, plane)
        return images, labels

    def images(self, case: Case, plane: str) -> np.ndarray:
        """Images of a plane, uint8 (n, S, S), 255 for an intensity of 1."""
        return self._read(case, "image", plane)

    def labels(self, case: Case, plane: str) -> np.ndarray:
        """Class indices of a plane, uint8 (n, S, S)."""
        if case.label is None:
            raise ValueError(message(f"a label file for case {case.id!r}", "none"))
        return self._read(case, "label", plane)

    def path(self, case: Case) -> Path:
        """Where the slices of a case are cached."""
        described = self.dataset.description
        files = [path for path in (case.image, case.label) if path is not None]
        identity = {
            "format": FORMAT,
            "files": [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files],
            "labels": (described.classes, described.values, sorted(described.fixes.items())),
            "slices": (described.planes, self.size, described.crop, self.percentiles),
        }
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        return self.cache / f"{case.id}-{digest}.npz"

    def _read(self, case: Case, kind: str, plane: str) -> np.ndarray:
        one_of("plane", plane, self.dataset.description.planes)
        path = self.path(case)
        for attempt in range(2):
            if attempt or not path.is_file():
                self._build(case, path)
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    array = stored[f"{kind}_{plane}"]
                if array.dtype == np.uint8 and array.shape[1:] == (self.size, self.size):
                    return array
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                continue  # damaged: build it again
        raise ValueError(message(f"cached slices of {case.id!r} in {path}", "a file that cannot be read back"))

    def _build(self, case: Case, path: Path) -> None:
        description = self.dataset.description
        volume = load_volume(case, description, percentiles=self.percentiles)
        arrays = {}
        for plane in description.planes:
            images = resize_images(cut(volume_to_slices(volume.image, plane), description.crop), self.size)
            arrays[f"image_{plane}"] = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
            if volume.label is not None:
                labels = cut(volume_to_slices(volume.label, plane), description.crop)
                if lost := int((volume.label > 0).sum() - (labels > 0).sum()):
                    expected = f"the labels of {case.id!r} in the central {description.crop:g} of its {plane} slices"
                    raise ValueError(message(expected, f"{lost} labelled voxels outside", "Crop less."))
                arrays[f"label_{plane}"] = resize_labels(labels, self.size)
        files.replace(path, lambda aside: np.savez(aside, allow_pickle=False, **arrays))


class SliceDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Slices held in memory.

    An item is ``{"image": float32 (1, S, S) in [0, 1], "label": int64 (S, S), "plane": index in PLANES,
    "position": in (0, 1) along the volume, "case": index in `cases`, "slice": what people call it}``; ``label`` only
    with `labels`.

    Training gets its slices from :func:`training_slices`, which asks the guard first.

    Args:
        store: where slices come from.
        cases: whose slices.
        planes: in which planes.
        labels: with labels; without, they are not read.
        empty: keeps slices without foreground; False needs `labels`.
    """

    def __init__(
        self,
        store: SliceStore,
        cases: Sequence[Case],
        planes: Sequence[str],
        *,
        labels: bool,
        empty: bool = True,
    ) -> None:
        if not cases or not planes:
            raise ValueError(message("at least one case and one plane", f"{len(cases)} and {len(planes)}"))
        if not empty and not labels:
            raise ValueError(message("`labels=True` with `empty=False`", "labels=False"))
        self.cases = tuple(cases)
        self.planes = tuple(planes)
        images, targets, plane_of, case_of, positions, names = [], [], [], [], [], []
        for index, case in enumerate(self.cases):
            for plane in self.planes:
                stack = store.images(case, plane)
                keep = np.ones(len(stack), dtype=bool)
                if labels:
                    target = store.labels(case, plane)
                    keep = keep if empty else target.any(axis=(1, 2))
                    targets.append(target[keep])
                images.append(stack[keep])
                positions.append(((np.arange(len(stack)) + 0.5) / len(stack))[keep])
                plane_of.append(np.full(keep.sum(), PLANES.index(plane)))
                case_of.append(np.full(keep.sum(), index))
                names += [f"{case.id} {plane} {number}" for number in np.flatnonzero(keep)]
        self.images = np.concatenate(images)
        self.labels = np.concatenate(targets) if labels else None
        self.plane_of = np.concatenate(plane_of)
        self.case_of = np.concatenate(case_of)
        self.positions = np.concatenate(positions)
        self.names = names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": torch.from_numpy(self.images[index]).float().div_(255)[None]}
        if self.labels is not None:
            item["label"] = torch.from_numpy(self.labels[index]).long()
        item["plane"] = int(self.plane_of[index])
        item["position"] = float(self.positions[index])
        item["case"] = int(self.case_of[index])
        item["slice"] = self.names[index]
        return item


def training_slices(
    store: SliceStore,
    split: Split,
    stage: str,
    planes: Sequence[str],
    *,
    labels: bool,
    empty: bool = True,
    patients: Sequence[str] | None = None,
) -> SliceDataset:
    """The only door to training data: the slices a stage may see, or a :class:`LeakError`.

    Args:
        store: where slices come from.
        split: who may be trained on.
        stage: its name, for messages.
        planes: in which planes.
        labels: with labels: the labelled patients; without: all training patients.
        empty: keeps slices without foreground.
        patients: these patients instead, if the guard lets them pass.
    """
    if patients is None:
        patients = split.labelled if labels else split.train
    guard(split, patients, stage, labels=labels)
    return SliceDataset(store, _cases(store, patients), planes, labels=labels, empty=empty)


def evaluation_slices(store: SliceStore, split: Split, part: Literal["validation", "test"]) -> SliceDataset:
    """Every slice of the main plane of the validation or test patients, with labels, in order."""
    one_of("part", part, ("validation", "test"))
    plane = store.dataset.description.main_plane
    return SliceDataset(store, _cases(store, getattr(split, part)), (plane,), labels=True)


def _cases(store: SliceStore, patients: Sequence[str]) -> tuple[Case, ...]:
    absent = sorted(set(patients) - set(store.dataset.patients))
    if absent:
        raise ValueError(message(f"the patients of the split in {store.dataset.root}", f"no {absent}"))
    return store.dataset.cases_of(patients)
