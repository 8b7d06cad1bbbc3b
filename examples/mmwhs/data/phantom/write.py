"""Volumes on disk, named, stored and labelled as those of MM-WHS."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from examples.mmwhs import files
from examples.mmwhs.messages import integer, message

from .imaging import Scanner
from .patient import Patient

ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "PIR", "LPI", "ASL", "LSA")
"""The directions in which files store their axes; patients take turns."""

SHAPE = (96, 96, 72)


def write_phantom(
    out: str | Path,
    *,
    volumes: int = 20,
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write synthetic cardiac CT volumes with labels as an MM-WHS tree, and return the paths of the images.

    The files are ``OUT/ct_train/ct_train_1001_image.nii.gz`` (int16, Hounsfield units), ``..._label.nii.gz`` (int16,
    the label values of MM-WHS) and so on.

    Args:
        out: The folder to write to; it is made if need be.
        volumes: How many patients, at most 999. Patient k is the same whatever their number.
        shape: Voxels to the right, anterior and superior. The anatomy is in millimetres: another shape samples the
            same patients in the same field of view at another spacing.
        seed: The same seed writes the same bytes.
        overwrite: Whether `out` may hold a phantom already, of as many volumes or fewer, which are replaced.

    Raises:
        TypeError, ValueError: `volumes`, `shape` or `seed` is not what it has to be, or `out` holds something else.
    """
    integer("seed", seed, least=0)
    if integer("volumes", volumes, least=1) > 999:
        raise ValueError(message("`volumes` to be at most 999", volumes, "Names have four digits."))
    size = _shape(shape)
    folder = files.own(Path(out), "phantom") / "ct_train"
    if folder.exists() and not overwrite:
        raise ValueError(message(f"no phantom in {out}", "one", "Choose another folder, or give --overwrite."))
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)  # what a killed process has left
    names = [f"ct_train_{1001 + index}" for index in range(volumes)]
    if others := sorted(p.name for p in folder.glob("*") if p.name[: len(names[0])] not in names):
        cure = "Choose another folder, or remove that."
        raise ValueError(message(f"nothing but the {volumes} volumes to replace in {folder}", others[0], cure))
    images = []
    for index, name in enumerate(names):
        image, label, affine = make_volume(index, shape=size, seed=seed)
        images.append(_save(folder / f"{name}_image.nii.gz", image, affine))
        _save(folder / f"{name}_label.nii.gz", label, affine)
    return images


def make_volume(
    index: int, *, shape: tuple[int, int, int] = SHAPE, seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.float64]]:
    """Image, label and affine of patient `index` (from 0), in the orientation in which the patient is stored."""
    anatomy, noise = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(2))
    patient = Patient.draw(anatomy)
    scanner = Scanner(patient)
    grid = scanner.plan(shape)
    image, label = scanner.scan(grid, noise)
    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = grid.low + grid.spacing / 2 + patient.table
    stored = ORIENTATIONS[(seed + index) % len(ORIENTATIONS)]
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(stored))
    return (
        apply_orientation(image, turn),
        apply_orientation(label, turn),
        affine @ inv_ornt_aff(turn, shape),
    )


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    expected = "`shape` to be three integers of at least 16, voxels to the right, anterior and superior"
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(message(expected, f"{shape!r} of type {type(shape).__name__}"))
    if len(shape) != 3:
        raise ValueError(message(expected, repr(shape)))
    for axis, size in enumerate(shape):
        integer(f"shape[{axis}]", size, least=16)
    return shape[0], shape[1], shape[2]


def _save(path: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """Write a compressed NIfTI file without time or name in its header."""
    volume = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    volume.header.set_xyzt_units("mm")
    packed = gzip.compress(volume.to_bytes(), compresslevel=1, mtime=0)
    files.replace(path, lambda aside: aside.write_bytes(packed))
    return path
