"""The prepared slices, or whole volumes, of a data set: cached on disk, and the only door to them for training.

Images are kept as uint8, so an intensity in [0, 1] is off by at most 1/510.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from examples.mmwhs import files
from examples.mmwhs.data.contents import Contents
from examples.mmwhs.data.datasets import Dataset
from examples.mmwhs.data.description import PLANES, Case
from examples.mmwhs.data.slices import cut, resize_images, resize_labels, volume_to_slices
from examples.mmwhs.data.splits import Split, guard
from examples.mmwhs.data.volumes import Volume, load_volume, open_grid
from examples.mmwhs.messages import integer, message, one_of

FORMAT = 2  # raise it when what is written for a slice changes
VOLUME = "volume"  # stands for a plane where volumes are not sliced


class SliceStore:
    """The slices of every case of a data set, resized when they are first asked for and cached.

    One file a case, written aside and renamed, so that a killed run leaves no half of one. Its name holds a
    digest of all it depends on (what the files hold, label values, planes, slice size, percentiles), so
    a stale one is never found; a damaged one is built again.

    Args:
        dataset: the data set.
        cache: the folder of the cached files, made if need be.
        size: S, the size of a slice.
        percentiles: at which intensities are clipped.
        patch: the sides of patches of whole volumes, which then stand in place of slices.
    """

    def __init__(
        self,
        dataset: Dataset,
        cache: str | Path,
        *,
        size: int,
        percentiles: tuple[float, float] = (1.0, 99.0),
        patch: Sequence[int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.cache = Path(cache)
        self.size = integer("size", size, least=1)
        self.percentiles = percentiles
        self.patch = None if patch is None else tuple(patch)
        self.contents = Contents(self.cache)

    @property
    def planes(self) -> tuple[str, ...]:
        """What volumes are cut into."""
        return (VOLUME,) if self.patch else self.dataset.description.planes

    @property
    def main_plane(self) -> str:
        """The plane in which networks are evaluated."""
        return VOLUME if self.patch else self.dataset.description.main_plane

    @property
    def unit(self) -> str:
        """What batches are of, in words."""
        return "patches" if self.patch else "slices"

    def slices(self, case: Case, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a plane, uint8 (n, S, S) each; of a volume (1, X, Y, Z)."""
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
        identity = {
            "format": FORMAT,
            "files": self.contents.case(case),
            "labels": (described.values, sorted(described.fixes.items())),
            "slices": (self.planes, self.size, described.crop, self.percentiles),
        }
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        return self.cache / f"{case.id}-{digest}.npz"

    def bytes_of(self, case: Case) -> int:
        """How many bytes the slices of a case will take on disk; none, if they are there."""
        if self.path(case).is_file():
            return 0
        shape, kinds = open_grid(case.image).shape, 2 - (case.label is None)
        if self.patch:
            return kinds * math.prod(shape)
        return kinds * self.size**2 * sum(shape[PLANES.index(plane)] for plane in self.planes)

    def _read(self, case: Case, kind: str, plane: str) -> np.ndarray:
        one_of("plane", plane, self.planes)
        path = self.path(case)
        for attempt in range(2):
            if attempt or not path.is_file():
                self._build(case, path)
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    array = stored[f"{kind}_{plane}"]
                if array.dtype == np.uint8 and (self.patch or array.shape[1:] == (self.size, self.size)):
                    return array
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                continue  # damaged: build it again
        raise ValueError(message(f"cached slices of {case.id!r} in {path}", "a file that cannot be read back"))

    def _build(self, case: Case, path: Path) -> None:
        volume = load_volume(case, self.dataset.description, percentiles=self.percentiles)
        arrays = {}
        for plane in self.planes:
            images, labels = self._prepared(case, volume, plane)
            arrays[f"image_{plane}"] = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
            if labels is not None:
                arrays[f"label_{plane}"] = labels
        files.replace(path, lambda aside: np.savez(aside, allow_pickle=False, **arrays))
        self.contents.keep()

    def _prepared(self, case: Case, volume: Volume, plane: str) -> tuple[np.ndarray, np.ndarray | None]:
        if plane == VOLUME:
            return volume.image[None], None if volume.label is None else volume.label[None]
        crop = self.dataset.description.crop
        images = resize_images(cut(volume_to_slices(volume.image, plane), crop), self.size)
        if volume.label is None:
            return images, None
        labels = cut(volume_to_slices(volume.label, plane), crop)
        if lost := int((volume.label > 0).sum() - (labels > 0).sum()):
            expected = f"the labels of {case.id!r} in the central {crop:g} of its {plane} slices"
            raise ValueError(message(expected, f"{lost} labelled voxels outside", "Crop less."))
        return images, resize_labels(labels, self.size)


def patches(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, ...]]:
    """Corners of patches that cover a volume, half of one overlapping the next; a shorter side has one, below 0."""
    corners: list[list[int]] = []
    for size, side in zip(shape, patch, strict=True):
        steps = 0 if size <= side else -(-(size - side) // max(1, side // 2))
        first, last = ((size - side) // 2,) * 2 if not steps else (0, size - side)
        corners.append([first + round(i * (last - first) / max(1, steps)) for i in range(steps + 1)])
    return [(x, y, z) for x in corners[0] for y in corners[1] for z in corners[2]]


def cut_out(volume: np.ndarray, corner: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """The patch of a volume (X, Y, Z) at a corner, zeros beyond its edges."""
    inside = tuple(slice(max(0, c), c + side) for c, side in zip(corner, patch, strict=True))
    part = volume[inside]
    before = [max(0, -c) for c in corner]
    return np.pad(part, [(b, side - n - b) for b, n, side in zip(before, part.shape, patch, strict=True)])


class SliceDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Slices, or patches of volumes, held in memory.

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
        self.store = store
        self.cases = tuple(cases)
        self.planes = tuple(planes)
        images, targets, plane_of, case_of, positions, names = [], [], [], [], [], []
        for index, case in enumerate(self.cases):
            for plane in self.planes:
                stack, target = store.images(case, plane), store.labels(case, plane) if labels else None
                where = range(len(stack))
                if store.patch:
                    where = patches(stack.shape[1:], store.patch)
                    stack, target = (
                        None if a is None else np.stack([cut_out(a[0], corner, store.patch) for corner in where])
                        for a in (stack, target)
                    )
                assert stack is not None
                keep = np.ones(len(stack), dtype=bool)
                if target is not None:
                    keep = keep if empty else target.any(axis=tuple(range(1, target.ndim)))
                    targets.append(target[keep])
                images.append(stack[keep])
                positions.append(((np.arange(len(stack)) + 0.5) / len(stack))[keep])
                plane_of.append(np.full(keep.sum(), 0 if plane == VOLUME else PLANES.index(plane)))
                case_of.append(np.full(keep.sum(), index))
                names += [f"{case.id} {plane} {where[number]}" for number in np.flatnonzero(keep)]
        self.images = np.concatenate(images)
        self.labels = np.concatenate(targets) if labels else None
        self.plane_of = np.concatenate(plane_of)
        self.case_of = np.concatenate(case_of)
        self.positions = np.concatenate(positions)
        self.names = names

    def shows(self) -> np.ndarray:
        """(n, structures): whether a slice shows a structure; of a data set with labels."""
        assert self.labels is not None
        flat = self.labels.reshape(len(self.labels), -1)
        kinds = range(1, len(self.store.dataset.description.classes) + 1)
        return np.stack([(flat == index).any(axis=1) for index in kinds], axis=1)

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
    return SliceDataset(store, cases_of(store, patients, labels=labels), planes, labels=labels, empty=empty)


def evaluation_slices(store: SliceStore, split: Split, part: Literal["validation", "test"]) -> SliceDataset:
    """Every slice of the main plane of the validation or test patients, with labels, in order."""
    one_of("part", part, ("validation", "test"))
    return SliceDataset(store, cases_of(store, getattr(split, part), labels=True), (store.main_plane,), labels=True)


def cases_of(store: SliceStore, patients: Sequence[str], *, labels: bool) -> tuple[Case, ...]:
    """The cases of patients that the data set has to have."""
    absent = sorted(set(patients) - set(store.dataset.patients))
    if absent:
        raise ValueError(message(f"the patients of the split in {store.dataset.root}", f"no {absent}"))
    return store.dataset.cases_of(patients, labels=labels)
