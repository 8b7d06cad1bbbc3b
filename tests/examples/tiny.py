"""A tiny data set in the layout of the Decathlon, stored in mixed orientations, and a scale to match."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from examples.mmwhs.train import config, methods

VALUES = (3, 7)  # of the structures "ball" and "box"
STORED = ("RAS", "LPS", "PIR", "LAS")
SHAPE = (18, 20, 12)

SCALE = config.Scale(
    channels=[4, 8, 8, 8, 8],
    slice_size=32,
    validation_slices=12,
    schedules={
        "global": config.Schedule(steps=4, every=2, batch_size=6, learning_rate=0.001),
        "local": config.Schedule(steps=4, every=2, batch_size=3, learning_rate=0.003),
        "places": config.Schedule(steps=4, every=2, batch_size=3, learning_rate=0.003),
        "finetune": config.Schedule(steps=24, every=6, batch_size=6, learning_rate=0.01),
        "selftrain": config.Schedule(steps=6, every=3, batch_size=3, learning_rate=0.001),
    },
)
SHORT = replace(SCALE, schedules={
    "global": config.Schedule(steps=2, every=1, batch_size=4, learning_rate=0.001),
    "local": config.Schedule(steps=2, every=1, batch_size=3, learning_rate=0.003),
    "finetune": config.Schedule(steps=6, every=2, batch_size=6, learning_rate=0.01),
})  # fmt: skip


def volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball and a dark box in noise: (X, Y, Z) intensities and label values, in RAS."""
    centre = np.array(SHAPE) * rng.uniform(0.35, 0.45, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    label = np.zeros(SHAPE, np.uint8)
    label[np.linalg.norm(grid - centre, axis=-1) < 4.5] = VALUES[0]
    corner = (np.array(SHAPE) * (0.65, 0.6, 0.5)).astype(int)
    label[corner[0] : corner[0] + 5, corner[1] : corner[1] + 6, corner[2] : corner[2] + 4] = VALUES[1]
    image = 100 + 60 * (label == VALUES[0]) - 60 * (label == VALUES[1]) + rng.normal(0, 8, SHAPE)
    return image.astype(np.float32), label


def write_tree(root: Path, volumes: int = 9) -> Path:
    """An MSD tree; file k is stored in the k-th orientation, in turn."""
    rng = np.random.default_rng(0)
    entries = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(volumes):
        image, label = volume(rng)
        entry = {"image": f"imagesTr/tiny_{index:02d}.nii.gz", "label": f"labelsTr/tiny_{index:02d}.nii.gz"}
        for array, name in zip((image, label), entry.values(), strict=True):
            nib.save(stored(array, STORED[index % len(STORED)]), root / name)
        entries.append(entry)
    labels = {"0": "background", str(VALUES[0]): "ball", str(VALUES[1]): "box"}
    (root / "dataset.json").write_text(json.dumps({"name": "tiny", "labels": labels, "training": entries}))
    return root


def stored(array: np.ndarray, codes: str) -> nib.Nifti1Image:
    """A RAS array as the NIfTI image that stores it in another orientation."""
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nib.Nifti1Image(apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape))


def settings(data: Path, method: str = "mmgl", **changes: object) -> config.Run:
    """The configuration of a tiny run."""
    values = {"labelled": 2, "compute": config.Compute(accelerator="cpu"), **changes}
    return config.Run(data=str(data), method=methods.load(config.Method, method), scale=SCALE, **values)


def short(data: Path, method: str = "random", **changes: Any) -> config.Run:
    """The same with fewer steps."""
    return replace(settings(data, method, **changes), scale=SHORT)


def command(data: Path, out: Path, *more: object, what: str = "run") -> list[str]:
    """The words of a command with that scale."""
    scale = data.parent / "scale.yaml"
    scale.write_text(yaml.safe_dump(asdict(SHORT)))
    words = [what, "--data", data, "--scale", scale, "--out", out, "--labelled", 2, "--accelerator", "cpu", *more]
    return list(map(str, words))
