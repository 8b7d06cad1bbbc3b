"""The curves of one patient: vessels, appendages and valves, as nodes of an average heart put into the patient.

Coordinates are millimetres to the right, anterior and superior (RAS) of a point in the middle of the average heart.
The left ventricle has axes of its own: towards the septum, towards the anterior wall, towards the apex; its valves
lie in the plane through `BASE`. An end of a vessel that belongs to the chest does not move with the heart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .patient import Patient
from .shapes import Vector, curve

Curve = NDArray[np.float64]  # (n, 4): x, y, z, radius
Node = tuple[float, float, float, float]


def unit(*vector: float) -> NDArray[np.float64]:
    """The direction of a vector."""
    return np.asarray(vector) / np.linalg.norm(vector)


BASE = np.array([-22.0, -14.0, 6.0])
APICAL = unit(-0.60, 0.58, -0.55)
SEPTAL = unit(*(np.array([0.70, 0.72, 0.0]) - np.dot([0.70, 0.72, 0.0], APICAL) * APICAL))
UPPER = np.cross(SEPTAL, APICAL)
TRICUSPID, FORWARD = np.array([13.0, 13.0, -2.0]), unit(-0.75, 0.60, -0.28)
PULMONARY, OUTWARD = np.array([-27.0, 27.0, 41.0]), unit(-0.05, -0.60, 0.80)


def _node(point: Vector, radius: float) -> Node:
    x, y, z = point
    return float(x), float(y), float(z), radius


def _groove(septal: float, upper: float, apical: float, radius: float) -> Node:
    return _node(BASE + septal * SEPTAL + upper * UPPER + apical * APICAL, radius)


@dataclass(frozen=True)
class Vessels:
    """Every curve of a patient, in coordinates of the average heart."""

    rise: Curve  # the ascending aorta
    arch: Curve  # and what follows
    trunk: Curve  # pulmonary artery
    branches: tuple[Curve, Curve]
    lungs: tuple[Curve, Curve]  # the branches' continuation
    outflow: Curve  # right ventricle, below the pulmonary valve
    mitral: Curve
    left_appendage: Curve
    tricuspid: Curve
    right_appendage: Curve
    superior_cava: Curve
    inferior_cava: Curve
    veins: tuple[Curve, ...]  # pulmonary
    coronaries: tuple[Curve, ...]

    @classmethod
    def of(cls, patient: Patient) -> "Vessels":
        """The curves of `patient`."""
        form = patient.proportions
        wide, broad, full = form.aorta, form.pulmonary, form.right_ventricle

        def vessel(*nodes: Node, chest: tuple[Node, ...] = (), wander: int | None = None) -> Curve:
            placed = np.array(nodes, dtype=np.float64)
            if wander is not None:
                placed[:, :3] += np.linspace(0.0, 1.0, len(nodes))[:, None] * patient.jitter[wander]
            for x, y, z, radius in chest:
                inward = patient.rotation.T @ (np.array([x, y, z]) - patient.shift) / patient.size
                placed = np.concatenate([placed, [[*inward, radius / patient.size]]])
            return curve(placed)

        root = BASE + 9.0 * SEPTAL + 12.0 * UPPER
        rise = vessel(
            _node(root + 6.0 * APICAL, wide - 2.5),
            _node(root, wide - 2.5),
            (-11, 2, 30, wide + 1.5),
            (-4, 4, 43, wide - 1.0),
            (6, 5, 60, wide),
            (10, 4, 80, wide),
            wander=0,
        )
        arch = ((6, -10, 102, 13.5), (-10, -36, 106, 13), (-24, -60, 94, 12.5), (-28, -68, 70, 12))
        trunk = vessel(
            _node(PULMONARY - 6.0 * OUTWARD, broad),
            _node(PULMONARY, broad),
            (-28, 14, 54, broad + 1.0),
            (-22, -6, 66, broad),
            wander=1,
        )
        fork = _node(trunk[-1, :3], broad - 2.0)
        right = vessel(fork, (-4, -20, 67, broad - 2.5), (16, -23, 66, broad - 3.0), wander=2)
        left = vessel(fork, (-30, -24, 70, broad - 2.5), (-38, -36, 70, broad - 3.5), wander=3)
        mitral = BASE - 4.0 * SEPTAL - 8.0 * UPPER
        return cls(
            rise=rise,
            arch=vessel(_node(*_end(rise)), chest=(*arch, (-26, -68, 0, 11.5), (-18, -68, -120, 11)), wander=None),
            trunk=trunk,
            branches=(right, left),
            lungs=(
                vessel(_node(*_end(right)), chest=((38, -28, 58, 7.5), (62, -36, 40, 5), (85, -45, 15, 3))),
                vessel(_node(*_end(left)), chest=((-48, -46, 60, 7.5), (-62, -52, 35, 5), (-80, -58, 5, 3))),
            ),
            outflow=vessel(
                (-6, 37, -4, 17.0 * full),
                (-17, 38, 22, broad + 2.0),
                _node(PULMONARY, broad + 0.5),
                _node(PULMONARY + 6.0 * OUTWARD, broad),
            ),
            mitral=vessel((-9, -35, 12, 15), _node(mitral, 16.5), _node(mitral + 8.0 * APICAL, 16.0)),
            left_appendage=vessel((-22, -32, 26, 10), (-38, -22, 36, 8), (-42, -4, 42, 6), wander=4),
            tricuspid=vessel((28, 6, 0, 16), _node(TRICUSPID, 17.0), _node(TRICUSPID + 8.0 * FORWARD, 17.0)),
            right_appendage=vessel((26, 14, 20, 11), (20, 26, 28, 9), (8, 29, 34, 7), wander=5),
            superior_cava=vessel((30, 2, 18, 10), (32, -2, 50, 9.5), chest=((31, 2, 80, 9), (27, 6, 140, 9)), wander=6),
            inferior_cava=vessel(
                (28, -8, -16, 12), (27, -13, -34, 12.5), chest=((24, -22, -70, 12.5), (20, -30, -130, 12))
            ),
            veins=(
                vessel((16, -41, 26, 8), (34, -42, 32, 7.5), chest=((58, -38, 44, 5.5), (80, -30, 60, 3)), wander=7),
                vessel((18, -46, 6, 8), (34, -51, 2, 7.5), chest=((58, -60, -8, 5.5), (78, -70, -25, 3)), wander=8),
                vessel((-22, -42, 26, 8), (-38, -42, 34, 7), chest=((-62, -36, 46, 5), (-82, -28, 62, 3)), wander=9),
                vessel((-22, -47, 8, 8), (-38, -53, 4, 7), chest=((-62, -62, -6, 5), (-80, -70, -25, 3)), wander=10),
            ),
            coronaries=(
                vessel((-20, 4, 24, 2.2), _groove(2, 36, 4, 2.2), _groove(14, 33, 30, 1.9), _groove(12, 26, 62, 1.6)),
                vessel(_groove(2, 36, 4, 2.0), _groove(-26, 27, -2, 2.0), _groove(-36, 0, -4, 1.8)),
                vessel((-4, 12, 24, 2.2), (10, 32, 16, 2.2), (22, 32, -8, 2.0), (14, 12, -36, 1.8)),
            ),
        )


def _end(path: Curve) -> tuple[NDArray[np.float64], float]:
    return path[-1, :3], float(path[-1, 3])
