"""Volumes on disk and in memory: RAS arrays of intensities in [0, 1] and class indices, and the way back.

Files come in any orientation. Everything here works on RAS arrays (axis 0 to the right, 1 to the front, 2 up)
so that axis 0 is sagittal, 1 coronal and 2 transaxial, whatever the file says.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError, SpatialImage

from examples.mmwhs.data.description import UNKNOWN, Case, Description
from examples.mmwhs.messages import message, number

RAS = np.array([[0, 1], [1, 1], [2, 1]])
DENSEST = 1032  # deflate makes at most so many bytes of one
PIECE = 2**20
NEARLY = 1e-3  # a label value may be off by so much


@dataclass(frozen=True)
class Volume:
    """A volume brought to RAS.

    Args:
        image: (X, Y, Z) float32 in [0, 1].
        label: (X, Y, Z) uint8 class indices, 0 the background; None without a label file.
        affine: (4, 4), from voxels to millimetres.
        spacing: (3,) millimetres.
    """

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    spacing: np.ndarray


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Any way in which a file can fail to be read becomes one sentence that names it."""
    broken = (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
        MemoryError,
    )
    try:
        with np.errstate(all="ignore"):
            yield
    except broken as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        cure = "The file is damaged or not NIfTI: get it again."
        raise ValueError(message(f"a readable NIfTI volume in {path}", f"{reason!r}", cure)) from error


@dataclass(frozen=True)
class _Grid:
    """A 3-D file as it was opened, and how its RAS array lies in space; no voxel is read yet."""

    path: Path
    file: nib.Nifti1Image
    shape: tuple[int, ...]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        return voxel_sizes(self.affine)

    def layers(self) -> Iterator[np.ndarray]:
        """The voxels of the file, (X, Y) for each index of its third axis; a compressed one is read and checked first.

        With a scale factor they are float64, whatever the file holds: only a layer is ever that large.
        """
        file = self.file
        if self.path.suffix.lower() == ".gz":
            file = type(file).from_stream(_unpacked(self.path, _size(file)))
        return (np.asarray(file.dataobj[:, :, z]).reshape(file.shape[:2], order="F") for z in range(file.shape[2]))

    def turn(self, array: np.ndarray) -> np.ndarray:
        """The array of the file in RAS; a view."""
        return apply_orientation(array, io_orientation(self.file.affine))


def _size(file: nib.Nifti1Image) -> int:
    """How many bytes a file has, uncompressed, by its header."""
    offset = file.dataobj.offset  # pyright: ignore[reportAttributeAccessIssue]
    return int(offset) + math.prod(map(int, file.shape)) * np.dtype(file.get_data_dtype()).itemsize


def _unpacked(path: Path, size: int) -> io.BytesIO:
    """The first `size` bytes of a compressed file; memory is taken as they come, and all of the file is checked."""
    content = io.BytesIO()
    with gzip.open(path) as stream:
        while content.tell() < size and (piece := stream.read(min(PIECE, size - content.tell()))):
            content.write(piece)
        if content.tell() < size:
            raise EOFError(f"{content.tell()} bytes for the {size} of its header")
        while stream.read(PIECE):  # the checksum is at the end
            pass
    content.seek(0)
    return content


def open_grid(path: Path) -> _Grid:
    """Opens a 3-D volume and reads its header."""
    with _reading(path):
        file = nib.load(path)
        if not isinstance(file, nib.Nifti1Image) or not path.name.lower().endswith((".nii", ".nii.gz")):
            raise ImageFileError(f"a {type(file).__name__}")
        packed = path.suffix.lower() == ".gz"
        room = path.stat().st_size * (DENSEST if packed else 1)
        if _size(file) > room:  # before memory is taken for it
            raise ImageFileError(f"{room} bytes {'at most ' if packed else ''}for the {_size(file)} of its header")
        shape = (*file.shape[:3], *(size for size in file.shape[3:] if size != 1))
        affine, kind = np.asarray(file.affine, dtype=float), np.dtype(file.get_data_dtype()).kind
    if len(shape) != 3 or min(shape) < 1:
        cure = f"It holds {shape[3]} volumes: save the one to use as a file of its own." if len(shape) == 4 else ""
        raise ValueError(message(f"a 3-D volume in {path}", f"shape {shape}", cure))
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.isnan(io_orientation(affine)).any():
        cure = "Its header does not say how it lies in space."
        raise ValueError(message(f"an affine that can be inverted in {path}", affine.tolist(), cure))
    if kind not in "iuf":
        cure = "Save one channel, or the magnitude, as a file of its own."
        raise ValueError(message(f"a real number for each voxel in {path}", f"type {file.get_data_dtype()}", cure))
    turn = io_orientation(affine)
    turned = tuple(shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    return _Grid(path, file, turned, affine @ inv_ornt_aff(turn, shape))


def load_volume(case: Case, description: Description, *, percentiles: tuple[float, float] = (1.0, 99.0)) -> Volume:
    """Reads a case: RAS, intensities clipped at `percentiles` and scaled to [0, 1], labels as class indices.

    Where both percentiles are one value (a volume that is nearly all background) the whole range is kept; a
    constant volume becomes zeros.

    Raises:
        ValueError: a file cannot be read, image and label do not lie on one grid, an intensity is not finite,
            or a label value is not in `description`.
    """
    low, high = (number("percentiles", value, least=0.0, most=100.0) for value in percentiles)
    if low >= high:
        raise ValueError(message("`percentiles` in ascending order", percentiles))
    image = open_grid(case.image)
    label = None
    if case.label is not None:
        stored = open_grid(case.label)
        _same_grid(image, stored)
        label = _class_indices(stored, description)
    return Volume(_normalised(image, low, high), label, image.affine, image.spacing)


def _same_grid(image: _Grid, label: _Grid) -> None:
    """Both RAS grids have one shape, and no corner of the volume moves by more than a tenth of a voxel."""
    expected = f"{label.path} on the grid of {image.path}"
    if image.shape != label.shape:
        raise ValueError(message(f"{expected}, shape {image.shape}", f"shape {label.shape}"))
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in image.shape]), axis=-1).reshape(-1, 3)
    apart = np.abs(apply_affine(image.affine, corners) - apply_affine(label.affine, corners)).max()
    if apart > 0.1 * image.spacing.min():
        cure = "Resample the label to the image's grid by nearest neighbour."
        raise ValueError(message(expected, f"corners up to {apart:.3g} mm apart", cure))


def _class_indices(grid: _Grid, description: Description) -> np.ndarray:
    """Label values to class indices; any other value than those of the description is an error."""
    classes = {value: index for index, value in enumerate(description.values, start=1)}
    classes |= {wrong: classes[right] for wrong, right in description.fixes.items()}
    table = np.full(max(classes) + 2, UNKNOWN, dtype=np.uint8)  # its last entry stays unknown
    table[[0, *classes]] = [0, *classes.values()]
    unknown: set[float] = set()
    with _reading(grid.path):
        layers = grid.layers()
        indices = np.empty(grid.file.shape[:3], dtype=np.uint8, order="F")  # as files are
        for z, values in enumerate(layers):
            whole = np.rint(values).astype(np.int64)  # what is not a number is not a label value either
            close = np.abs(whole - values.astype(float)) <= NEARLY  # a scale factor may leave 3.00000004
            index = table[np.clip(whole, -1, max(classes) + 1)]
            indices[..., z] = np.where(close, index, UNKNOWN)
            if (here := indices[..., z] == UNKNOWN).any():
                unknown |= set(values[here].tolist())
    if unknown:
        got = ", ".join(f"{value:.7g}" for value in sorted(unknown)[:8]) + (", ..." if len(unknown) > 8 else "")
        raise ValueError(message(f"label values 0, {', '.join(map(str, classes))} in {grid.path}", got))
    return grid.turn(indices)


def _normalised(grid: _Grid, low: float, high: float) -> np.ndarray:
    with _reading(grid.path):
        layers = grid.layers()
        image = np.empty(grid.file.shape[:3], dtype=np.float32, order="F")
        for z, values in enumerate(layers):
            image[..., z] = values
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        cure = "Give them the value of the background in a copy, numpy.nan_to_num(voxels, nan=...), and use that."
        got = f"{count} of {image.size} voxels that are NaN or infinite"
        raise ValueError(message(f"finite intensities in {grid.path}", got, cure))
    bottom, top = map(float, np.percentile(image.ravel(order="K"), (low, high)))
    if bottom == top:
        bottom, top = float(image.min()), float(image.max())
    if bottom == top:
        return grid.turn(np.zeros_like(image))
    np.clip(image, bottom, top, out=image)
    image -= np.float32(bottom)
    image /= np.float32(top) - np.float32(bottom)
    return grid.turn(image)


def to_original(labels: np.ndarray, original: SpatialImage, description: Description) -> nib.Nifti1Image:
    """Class indices on the RAS grid become the file that `original` would have as its label.

    The exact inverse of :func:`load_volume` for the grid: the orientation, affine and geometry of `original`,
    and the label values of `description`, as int16. Nothing else of the header goes over: it may name people.

    Args:
        labels: (X, Y, Z) class indices in RAS.
        original: the image as it was opened, in its own orientation.
        description: names and values of the classes.
    """
    to_file = ornt_transform(RAS, io_orientation(original.affine))
    table = np.array((0, *description.values), dtype=np.int16)
    if labels.size and not 0 <= labels.min() <= labels.max() < len(table):
        raise ValueError(message(f"class indices from 0 to {len(table) - 1}", f"{labels.min()} to {labels.max()}"))
    values = apply_orientation(table[labels], to_file)
    if values.shape != original.shape[:3]:
        raise ValueError(message(f"labels for a volume of shape {original.shape}", values.shape))
    result = nib.Nifti1Image(values, original.affine)
    if isinstance(original, nib.Nifti1Image):
        for of, to in ((original.get_qform, result.set_qform), (original.get_sform, result.set_sform)):
            affine, code = of(coded=True)
            if affine is not None:
                to(affine, code=int(code))
        result.header.set_xyzt_units(original.header.get_xyzt_units()[0])
    result.set_data_dtype(np.int16)
    return result
