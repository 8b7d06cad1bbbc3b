"""The chest around the heart: wall, bones, lungs, airways, abdomen, painted in Hounsfield units."""

import numpy as np

from .heart import Heart
from .patient import Patient
from .shapes import Array, Points, along, curve, cut, ellipsoid, tube, union

FAT, MUSCLE, CORTEX, MARROW, GAS = -95.0, 55.0, 620.0, 190.0, -985.0
AIRWAYS = (
    curve([(2, -34, 150, 9), (3, -40, 110, 9), (1, -43, 86, 9)]),
    curve([(1, -43, 86, 8), (22, -45, 68, 7), (42, -47, 46, 5), (55, -50, 20, 3)]),
    curve([(1, -43, 86, 8), (-22, -48, 64, 6.5), (-44, -53, 48, 5), (-56, -56, 20, 3)]),
)
GULLET = curve([(-2, -58, 150, 6.5), (-6, -64, 60, 6.5), (-6, -65, 0, 6.5), (-14, -55, -60, 7), (-30, -30, -100, 9)])


class Canvas:
    """Hounsfield units under construction: later paint covers earlier paint, with edges `edge` mm wide."""

    def __init__(self, values: Array, edge: float) -> None:
        self.values = values
        self.sharpness = 1.0 / edge

    def paint(self, distance: Array, value: Array | float) -> None:
        """Fill the inside of a distance with a value; a voxel on the surface gets half of it."""
        cover = np.clip(0.5 - distance * self.sharpness, 0.0, 1.0)
        if cover.any():
            self.values += cover * (value - self.values)

    def bone(self, distance: Array, shell: float) -> None:
        """Bright cortex of some millimetres around marrow."""
        self.paint(distance, CORTEX)
        self.paint(distance + shell, MARROW)


def _wave(position: Array, period: float, phase: float) -> Array:
    """Millimetres to the nearest multiple of a period."""
    turns = position * (1.0 / period) + phase
    return np.abs(turns - np.round(turns)) * period


def paint_chest(canvas: Canvas, patient: Patient, p: Points, heart: Heart, knots: tuple[Array, Array]) -> None:
    """Paint everything but the heart; `knots` are the two fields whose common zeros are the vessels of the lungs."""
    body = patient.habitus
    front, back = -14.0 + body.depth, -92.0
    inside = ellipsoid((p.x, p.y), (0.0, -14.0), (body.width, body.depth))
    canvas.paint(inside - 12.0 - body.fat, FAT)
    canvas.paint(inside - 12.0, MUSCLE)
    canvas.paint(inside, FAT + 10.0)

    # The abdomen bulges into the chest below the domes of the diaphragm.
    low = body.diaphragm
    abdomen = union(
        ellipsoid(p, (66.0, -15.0, low - 68.0), (76.0, 82.0, 80.0)),
        ellipsoid(p, (-66.0, -15.0, low - 76.0), (72.0, 82.0, 76.0)),
        ellipsoid(p, (0.0, 5.0, low - 95.0), (70.0, 75.0, 80.0)),
        smooth=15.0,
    )
    spine = ellipsoid((p.x, p.y), (0.0, back), (19.0, 16.0))
    column = ellipsoid((p.x, p.y), (0.0, -20.0), (36.0, 54.0)) + 0.7 * np.maximum(20.0 - p.z, 0.0)
    gullet = tube(p, GULLET, reach=20.0)
    middle = union(column, heart.envelope, heart.aorta - 3.0, spine - 4.0, gullet - 3.0, smooth=8.0)
    lung = cut(np.maximum(inside + 2.0, -abdomen), middle)
    hilum = np.sqrt((np.abs(p.x) - 45.0) ** 2 + (p.y + 40.0) ** 2 + (p.z - 40.0) ** 2)
    air = patient.contrast.lung - 0.35 * (p.y + 40.0)
    canvas.paint(lung, air)
    twigs = np.hypot(*knots) * 9.0 - 3.6 * np.exp(hilum * (-1.0 / 60.0))
    canvas.paint(np.maximum(twigs, lung), 0.45 * patient.contrast.lungs)

    inner = np.maximum(abdomen, inside)
    canvas.paint(inner, MUSCLE)  # the diaphragm
    canvas.paint(inner + 3.0, FAT)
    liver = ellipsoid(p, (48.0, 0.0, low - 45.0), (95.0, 78.0, 62.0))
    canvas.paint(np.maximum(liver, inner + 3.0), patient.contrast.liver)
    stomach = ellipsoid(p, (-58.0, 5.0, low - 40.0), (34.0, 34.0, 30.0))
    canvas.paint(stomach, 45.0)
    canvas.paint(stomach + 4.0, 15.0)
    canvas.paint(np.maximum(stomach + 4.0, 12.0 - p.y), GAS)
    canvas.paint(ellipsoid(p, (-84.0, -60.0, low - 38.0), (22.0, 32.0, 30.0)), patient.contrast.liver + 20.0)

    canvas.paint(gullet, 40.0)
    airway = union(*(tube(p, path) for path in AIRWAYS))
    canvas.paint(airway - 1.5, 30.0)
    canvas.paint(airway, GAS)
    _bones(canvas, patient, p, inside, spine, front, back)


def _bones(canvas: Canvas, patient: Patient, p: Points, inside: Array, spine: Array, front: float, back: float) -> None:
    """Spine, ribs and breastbone."""
    body = patient.habitus
    disc = _wave(p.z, 24.0, body.spine_phase)
    canvas.paint(spine - 1.0, 80.0)
    vertebra = np.maximum(spine + np.maximum(disc - 5.0, 0.0) * 0.25, 3.0 - disc)
    canvas.bone(vertebra, 2.2)
    arch = np.abs(ellipsoid((p.x, p.y), (0.0, back - 25.0), (14.0, 13.0))) - 3.5
    spike = np.maximum(np.abs(p.x) - 3.5, np.abs(p.y - (back - 52.0)) - 16.0)
    canvas.bone(np.maximum(union(arch, spike), 9.0 - _wave(p.z, 24.0, body.spine_phase)), 2.0)
    canvas.paint(ellipsoid((p.x, p.y), (0.0, back - 25.0), (10.0, 9.0)), 30.0)

    slope = p.z + 0.45 * p.y  # ribs fall towards the front
    rib = np.sqrt(((inside - 5.0) * 1.4) ** 2 + _wave(slope, 25.0, body.rib_phase) ** 2) - 6.0
    cartilage = along(p, (0.0, front - 28.0, 0.0), (0.0, 1.0, 0.0))
    canvas.paint(np.maximum(rib, -cartilage), 110.0)
    canvas.bone(np.maximum(rib, cartilage), 1.8)
    canvas.bone(np.maximum(ellipsoid((p.x, p.y), (0.0, front + 6.0), (18.0, 6.0)), -45.0 - p.z), 1.6)
