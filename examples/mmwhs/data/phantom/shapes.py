"""Signed distances in millimetres (negative inside) and smooth random fields, evaluated at points.

Points are three float32 arrays of one shape, the x, y and z of every voxel. Distances are exact or close to it
near the surface, which is all that labels (the sign) and soft edges (a ramp around zero) need.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = Sequence[float] | NDArray[np.float64]

FAR = 100.0
"""The distance of whatever is too far from a tube to matter."""


@dataclass(frozen=True)
class Points:
    """The coordinates of a block of voxels in millimetres, and the box they lie in."""

    x: Array
    y: Array
    z: Array

    def __iter__(self) -> Iterator[Array]:
        return iter((self.x, self.y, self.z))

    @cached_property
    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest coordinates."""
        return np.array([p.min() for p in self]), np.array([p.max() for p in self])


def along(points: Points, origin: Vector, direction: Vector) -> Array:
    """Millimetres from `origin` along the unit vector `direction`: a plane, negative behind it."""
    a, b, c = (float(v) for v in direction)
    offset = a * float(origin[0]) + b * float(origin[1]) + c * float(origin[2])
    return points.x * a + points.y * b + points.z * c - offset


def local(points: Points, origin: Vector, axes: NDArray[np.float64]) -> Points:
    """The points seen from `origin` along the three rows of `axes`."""
    return Points(*(along(points, origin, axis) for axis in axes))


def ellipsoid(points: Iterable[Array], centre: Vector, radii: Vector) -> Array:
    """An ellipsoid (or, of two coordinates, a cylinder) along the axes: k0 (k0 - 1) / k1, k0 = |p/r|, k1 = |p/r²|."""
    k0, k1 = np.float32(0.0), np.float32(1e-12)
    for p, c, r in zip(points, centre, radii, strict=True):
        scaled = (p - float(c)) * (1.0 / float(r))
        k0 = k0 + scaled * scaled
        scaled *= 1.0 / float(r)
        k1 = k1 + scaled * scaled
    k0 = np.sqrt(k0)
    return k0 * (k0 - 1.0) / np.sqrt(k1)


def curve(nodes: Sequence[Vector], *, steps: int = 3) -> NDArray[np.float64]:
    """A Catmull-Rom curve through `nodes` (n, d), as (steps (n - 1) + 1, d) points; d may hold a radius too."""
    p = np.asarray(nodes, dtype=np.float64)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    spans = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([spans.swapaxes(0, 1).reshape(-1, p.shape[1]), p[-2:-1]])


def tube(points: Points, path: NDArray[np.float64], *, reach: float = 12.0) -> Array:
    """A tube around a polyline `path` (n, 4) of x, y, z and radius; exact within `reach`, at least that beyond."""
    low, high = points.box
    slack = np.maximum(path[:-1, 3:], path[1:, 3:]) + reach
    near = (np.minimum(path[:-1, :3], path[1:, :3]) - slack <= high) & (
        np.maximum(path[:-1, :3], path[1:, :3]) + slack >= low
    )
    best = np.full(points.x.shape, FAR, np.float32)
    for i in np.flatnonzero(near.all(axis=1)):
        (ax, ay, az, r), (dx, dy, dz, dr) = path[i].tolist(), (path[i + 1] - path[i]).tolist()
        px, py, pz = points.x - ax, points.y - ay, points.z - az
        t = (px * dx + py * dy + pz * dz) * (1.0 / (dx * dx + dy * dy + dz * dz))
        np.clip(t, 0.0, 1.0, out=t)
        px -= t * dx
        py -= t * dy
        pz -= t * dz
        np.minimum(best, np.sqrt(px * px + py * py + pz * pz) - (r + t * dr), out=best)
    return best


def union(*distances: Array, smooth: float = 0.0) -> Array:
    """The union; `smooth` millimetres of fillet where two surfaces meet."""
    result = distances[0]
    for other in distances[1:]:
        if smooth:
            overlap = np.maximum(smooth - np.abs(result - other), 0.0)
            result = np.minimum(result, other) - overlap * overlap * (0.25 / smooth)
        else:
            result = np.minimum(result, other)
    return result


def cut(distance: Array, *others: Array, gap: float = 0.0) -> Array:
    """`distance` without the `others`, at least `gap` millimetres away from them."""
    for other in others:
        distance = np.maximum(distance, gap - other)
    return distance


@dataclass(frozen=True)
class Field:
    """A smooth random field over space: cubic B-splines on knots `spacing` millimetres apart.

    It is a function of millimetres, so any grid samples the same field. The last axes of `coefficients`
    (..., K, K, K) are the knots; they are centred on the origin, and the field is constant beyond them.
    """

    coefficients: Array
    spacing: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, spacing: float, sd: float, extent: float = 360.0) -> "Field":
        """A field of zero mean and standard deviation of about `sd` over a cube of `extent` millimetres."""
        knots = int(np.ceil(extent / spacing)) + 4
        mean_square = 0.479**3  # of the sum of squared weights of a cubic B-spline along an axis
        values = rng.standard_normal((knots, knots, knots), dtype=np.float32)
        return cls(values * np.float32(sd / np.sqrt(mean_square)), spacing)

    def __call__(self, axes: Sequence[NDArray[np.float64]]) -> Array:
        """The field on the grid that the three coordinate vectors span; four terms an axis, no BLAS."""
        out = self.coefficients
        for dim, axis in enumerate(axes):
            knots = out.shape[dim]
            position = np.clip(axis / self.spacing + (knots - 1) / 2, 1.0, knots - 2.001)
            first = np.floor(position).astype(np.intp)
            t = position - first
            weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
            shape = [-1 if d == dim else 1 for d in range(3)]
            terms = [
                np.take(out, first + k - 1, axis=dim) * (w / 6).astype(np.float32).reshape(shape)
                for k, w in enumerate(weights)
            ]
            out = terms[0] + terms[1] + terms[2] + terms[3]
        return out
