"""What makes one patient differ from the next: size, pose, proportions, habitus, and the phase of the contrast."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .shapes import Field


def _normal(rng: np.random.Generator, mean: float, sd: float) -> float:
    """A normal draw, cut at two standard deviations so that no patient is impossible."""
    return mean + sd * float(np.clip(rng.standard_normal(), -2.0, 2.0))


def _rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """The rotation by `z`, then `y`, then `x` degrees about the axes of the body."""
    matrix = np.eye(3)
    for axis, degrees in ((2, z), (1, y), (0, x)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        i, j = (k for k in range(3) if k != axis)
        turn[i, i] = turn[j, j] = c
        turn[i, j], turn[j, i] = (-s, s) if axis != 1 else (s, -s)
        matrix = turn @ matrix
    return matrix


@dataclass(frozen=True)
class Proportions:
    """The shape of the heart, beside an average one (factors) or in millimetres."""

    ventricle: float  # left, its width
    ventricle_length: float
    wall: float  # mm
    right_ventricle: float
    left_atrium: float
    right_atrium: float
    aorta: float  # mm, radius
    pulmonary: float  # mm, radius
    fat: float  # mm around the heart


@dataclass(frozen=True)
class Habitus:
    """The chest, in millimetres."""

    width: float  # half of the inside of the thorax
    depth: float
    fat: float  # below the skin
    diaphragm: float  # height of the left dome
    rib_phase: float
    spine_phase: float


@dataclass(frozen=True)
class Contrast:
    """Hounsfield units."""

    left: float  # left atrium, left ventricle, aorta
    right: float  # right atrium and ventricle
    lungs: float  # pulmonary artery
    cava: float  # superior vena cava
    myocardium: float
    liver: float
    lung: float  # the air of the lung
    mixing: float  # unopacified blood that streams into the right atrium
    noise: float
    streaks: float


@dataclass(frozen=True)
class Patient:
    """One patient, the same for every size of volume."""

    size: float
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    jitter: NDArray[np.float64]  # (12, 3) mm, where a vessel's end lies beside an average one's
    proportions: Proportions
    habitus: Habitus
    contrast: Contrast
    bends: tuple[tuple[Field, ...], ...]  # smooth displacements of space, coarse and fine, three components each
    texture: Field  # how unevenly blood and contrast have mixed
    trabeculae: Field  # how rough the ventricles are inside
    bias: Field
    filaments: tuple[Field, Field]
    margins: NDArray[np.float64]  # (6,) in [0, 1], how generously the field of view was planned
    table: NDArray[np.float64]  # (3,) mm, where the scanner has its origin
    resolution: float  # mm, width of an edge
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Patient":
        """Draw a patient; the order of the draws is part of what a seed means."""
        size = _normal(rng, 1.0, 0.07)
        proportions = Proportions(
            ventricle=_normal(rng, 1.0, 0.12),
            ventricle_length=_normal(rng, 1.0, 0.08),
            wall=_normal(rng, 10.0, 1.6),
            right_ventricle=_normal(rng, 1.0, 0.10),
            left_atrium=_normal(rng, 1.0, 0.12),
            right_atrium=_normal(rng, 1.0, 0.12),
            aorta=_normal(rng, 15.0, 1.6),
            pulmonary=_normal(rng, 13.0, 1.2),
            fat=float(rng.uniform(2.0, 10.0)),
        )
        habitus = Habitus(
            width=_normal(rng, 132.0, 8.0),
            depth=_normal(rng, 82.0, 5.0),
            fat=float(rng.uniform(6.0, 35.0)),
            diaphragm=_normal(rng, -38.0, 6.0),
            rib_phase=float(rng.uniform()),
            spine_phase=float(rng.uniform()),
        )
        left = float(rng.uniform(230.0, 520.0))
        right = left * float(rng.choice([0.35, 0.75, 1.1])) * float(rng.uniform(0.75, 1.25))
        right = max(right, 70.0)
        contrast = Contrast(
            left=left,
            right=right,
            lungs=float(rng.uniform(0.4, 1.0)) * (left - right) + right,
            cava=min(right * float(rng.uniform(0.9, 2.0)), 1100.0),
            myocardium=60.0 + 0.11 * left + _normal(rng, 0.0, 10.0),
            liver=float(rng.uniform(55.0, 130.0)),
            lung=float(rng.uniform(-890.0, -780.0)),
            mixing=float(rng.uniform(0.0, 0.6)),
            noise=float(rng.uniform(14.0, 45.0)),
            streaks=float(rng.uniform(0.0, 0.12)),
        )
        return cls(
            size=size,
            rotation=_rotation(_normal(rng, 0.0, 9.0), _normal(rng, 0.0, 9.0), _normal(rng, 0.0, 10.0)),
            shift=np.array([_normal(rng, 0.0, 5.0) for _ in range(3)]),
            jitter=np.clip(rng.standard_normal((12, 3)), -2.0, 2.0) * 3.0,
            proportions=proportions,
            habitus=habitus,
            contrast=contrast,
            bends=(
                tuple(Field.draw(rng, spacing=52.0, sd=4.5) for _ in range(3)),
                tuple(Field.draw(rng, spacing=20.0, sd=1.4) for _ in range(3)),
            ),
            texture=Field.draw(rng, spacing=14.0, sd=1.0),
            trabeculae=Field.draw(rng, spacing=7.0, sd=1.0),
            bias=Field.draw(rng, spacing=70.0, sd=1.0),
            filaments=(
                Field.draw(rng, spacing=16.0, sd=1.0),
                Field.draw(rng, spacing=16.0, sd=1.0),
            ),
            margins=rng.uniform(size=6),
            table=rng.uniform(-150.0, 150.0, size=3),
            resolution=float(rng.uniform(1.0, 1.8)),
            phase=float(rng.uniform(0.0, 2 * np.pi)),
        )
