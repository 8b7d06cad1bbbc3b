"""From distances to a CT image: contrast, edges, noise, bias and streaks; and to the labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .chest import FAT, GAS, Canvas, paint_chest
from .heart import Heart, heart
from .patient import Patient
from .shapes import Array, Points, union
from .vessels import Vessels

VALUES = {
    "left_ventricle": 500,
    "right_ventricle": 600,
    "left_atrium": 420,
    "right_atrium": 550,
    "myocardium": 205,
    "ascending_aorta": 820,
    "pulmonary_artery": 850,
}
"""The values of MM-WHS in a label file."""

BLOCK = 32
"""Voxels along an edge of a block: small enough for the arrays of one block to stay in the cache."""


@dataclass(frozen=True)
class Grid:
    """A box of the body cut into voxels."""

    low: NDArray[np.float64]  # mm, a corner of the box
    spacing: NDArray[np.float64]  # mm
    shape: tuple[int, int, int]

    @property
    def axes(self) -> tuple[NDArray[np.float64], ...]:
        """The coordinates of the voxels' centres along each axis."""
        return tuple(
            low + (np.arange(n) + 0.5) * step for low, n, step in zip(self.low, self.shape, self.spacing, strict=True)
        )

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """The grid in pieces."""
        starts = (range(0, n, BLOCK) for n in self.shape)
        for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3).tolist():
            yield tuple(slice(i, i + BLOCK) for i in corner)  # type: ignore[misc]


class Scanner:
    """One patient on the table; `scan` it on any grid."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.vessels = Vessels.of(patient)

    def look(self, axes: tuple[NDArray[np.float64], ...]) -> tuple[Points, Heart]:
        """The points of the unbent body under a grid, and the heart there."""
        points = []
        for dim, (coarse, fine) in enumerate(zip(*self.patient.bends, strict=True)):
            line = axes[dim].astype(np.float32).reshape([-1 if d == dim else 1 for d in range(3)])
            points.append(coarse(axes) + fine(axes) + line)
        body = Points(*points)
        return body, heart(self.patient, self.vessels, body)

    def plan(self, shape: tuple[int, int, int]) -> Grid:
        """The field of view: square in the transaxial plane, around the heart, the margins as the patient's."""
        step = 5.0
        axes = (np.arange(-125.0, 100.0, step), np.arange(-100.0, 100.0, step), np.arange(-100.0, 125.0, step))
        _, found = self.look(axes)
        labelled = union(*(getattr(found, name) for name in VALUES)) < 0
        where = np.argwhere(labelled)
        low = np.array([axis[i] for axis, i in zip(axes, where.min(0), strict=True)])
        high = np.array([axis[i] for axis, i in zip(axes, where.max(0), strict=True)])
        m = self.patient.margins
        extent = high - low + 2 * (16.0 + 18.0 * np.array([m[0], m[0], m[1]]))
        extent[:2] = extent[:2].max()
        slack = extent - (high - low) - 2 * 16.0
        centre = (low + high) / 2 + (m[3:] - 0.5) * slack
        return Grid(centre - extent / 2, extent / np.array(shape), shape)

    def scan(self, grid: Grid, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Image and label on a grid, axes to the right, anterior and superior."""
        image, label = np.empty(grid.shape, np.int16), np.zeros(grid.shape, np.int16)
        edge = float(np.hypot(self.patient.resolution, 0.8 * grid.spacing.mean()))
        for block in grid.blocks():
            axes = tuple(axis[part] for axis, part in zip(grid.axes, block, strict=True))
            points, found = self.look(axes)
            canvas = Canvas(np.full(points.x.shape, GAS - 10.0, np.float32), edge)
            filaments = self.patient.filaments
            paint_chest(canvas, self.patient, points, found, (filaments[0](axes), filaments[1](axes)))
            paint_heart(canvas, self.patient, points, found, self.patient.texture(axes), self.patient.trabeculae(axes))
            canvas.values += 9.0 * self.patient.bias(axes) + streaks(self.patient, points)
            image[block] = np.clip(np.rint(canvas.values), -1024, 3071)
            for name, value in VALUES.items():
                label[block][getattr(found, name) < 0] = value
        add_noise(image, self.patient.contrast.noise, 0.45 / grid.spacing[0], rng)
        return image, label


def paint_heart(canvas: Canvas, patient: Patient, points: Points, heart: Heart, texture: Array, rough: Array) -> None:
    """Paint the heart and the vessels; `texture` varies the blood, `rough` (mm) the inner surface of the ventricles."""
    contrast = patient.contrast
    muscle = contrast.myocardium + 5.0 * texture
    left = contrast.left + 0.03 * contrast.left * texture
    right = contrast.right * (1.0 + 0.06 * texture)
    stream = np.clip(0.5 - 0.03 * points.z + 0.6 * texture, 0.0, 1.0)  # blood without contrast, from below
    atrium = contrast.right + contrast.mixing * stream * (60.0 - contrast.right)
    canvas.paint(np.abs(heart.envelope) - 0.6, 25.0)
    canvas.paint(heart.envelope, FAT + 4.0 * texture)
    canvas.paint(heart.veins - 1.0, 40.0)
    canvas.paint(heart.wall, muscle)
    canvas.paint(heart.inferior_cava, atrium + 0.3 * (contrast.liver - atrium))
    canvas.paint(heart.superior_cava - 1.0, 40.0)
    canvas.paint(heart.superior_cava, contrast.cava * (1.0 + 0.1 * texture))
    canvas.paint(heart.pulmonary, contrast.lungs * (1.0 + 0.03 * texture))
    canvas.paint(heart.veins, left)
    canvas.paint(heart.aorta - 1.5, 45.0)
    canvas.paint(heart.aorta, left)
    canvas.paint(heart.coronaries, left)
    canvas.paint(heart.right_atrium, atrium)
    canvas.paint(heart.right_ventricle + 1.2 * np.maximum(rough, 0.0), right)
    canvas.paint(heart.left_atrium, left)
    canvas.paint(heart.left_ventricle + 0.8 * np.maximum(rough, 0.0), left)
    canvas.paint(np.maximum(heart.papillary, heart.left_ventricle), muscle)


def streaks(patient: Patient, points: Points) -> Array:
    """Rays around dense contrast in the superior vena cava."""
    contrast = patient.contrast
    x, y = points.x - 30.0, points.y
    fade = np.exp(np.sqrt(x * x + y * y) * (-1.0 / 40.0)) * np.clip((points.z + 10.0) * 0.05, 0.0, 1.0)
    rays = np.cos(7.0 * np.arctan2(y, x) + patient.phase + 0.12 * points.z)
    return (contrast.streaks * contrast.cava) * fade * rays


def add_noise(image: NDArray[np.int16], sd: float, grain: float, rng: np.random.Generator) -> None:
    """Add noise of a standard deviation to an image in place; `grain` voxels wide in the transaxial plane."""
    for k in range(image.shape[2]):
        noise = rng.standard_normal(image.shape[:2], dtype=np.float32)
        if grain > 0.25:
            noise = gaussian_filter(noise, grain, mode="wrap")
            noise /= max(float(noise.std()), 1e-6)
        image[:, :, k] = np.clip(np.rint(image[:, :, k] + sd * noise), -1024, 3071)
