"""The heart as signed distances at points: seven structures that never overlap, and what touches them."""

from dataclasses import dataclass

import numpy as np

from .patient import Patient
from .shapes import Array, Points, along, curve, cut, ellipsoid, local, tube, union
from .vessels import APICAL, BASE, FORWARD, OUTWARD, PULMONARY, SEPTAL, TRICUSPID, UPPER, Curve, Vessels, unit

HEART = 40.0
"""Millimetres from which a part of the heart still shapes the pericardium."""

LONG_AXES = np.stack([SEPTAL, UPPER, APICAL])
PAPILLARY = (
    curve([(-12, 10, 26, 2), (-14, 11, 38, 4.5), (-15, 12, 52, 5)]),
    curve([(4, -14, 26, 2), (4, -16, 38, 4.5), (4, -17, 52, 5)]),
)


@dataclass(frozen=True)
class Heart:
    """Signed distances (mm) of one patient's heart at some points."""

    left_ventricle: Array
    right_ventricle: Array
    left_atrium: Array
    right_atrium: Array
    myocardium: Array
    ascending_aorta: Array
    pulmonary_artery: Array
    aorta: Array  # all of it; the arch and the descending part are background
    pulmonary: Array  # with its branches in the lungs, which are background
    veins: Array  # pulmonary veins
    superior_cava: Array
    inferior_cava: Array
    coronaries: Array
    papillary: Array  # inside the left ventricle, and part of it
    wall: Array  # the chambers and their walls
    envelope: Array  # the pericardium, and the fat inside it


def _beyond(points: Points, path: Curve) -> Array:
    """The plane across the end of a path, positive beyond it."""
    return along(points, path[-1, :3], unit(*(path[-1, :3] - path[-2, :3])))


def heart(patient: Patient, vessels: Vessels, points: Points) -> Heart:
    """The distances of everything that belongs to the heart of `patient` at `points` of the body."""
    form, scale = patient.proportions, np.float32(patient.size)
    p = Points(*(c / scale for c in local(points, patient.shift, patient.rotation.T)))
    long = local(p, BASE, LONG_AXES)
    depth = long.z  # towards the apex, from the plane of the valves

    # The left ventricle: two ellipsoids, cut at the plane of the valves.
    radius, length, thick = 23.0 * form.ventricle, 66.0 * form.ventricle_length, form.wall
    outside = ellipsoid(long, (0, 0, 14), (radius + thick, radius + thick, length + 0.7 * thick))
    left_ventricle = np.maximum(ellipsoid(long, (0, 0, 14), (radius, radius, length)), -depth)
    ventricle = np.maximum(outside, -depth)
    myocardium = cut(ventricle, left_ventricle)

    # The great arteries; the label of a vessel ends at a plane across it, its blood does not.
    rising = np.maximum(tube(p, vessels.rise, reach=HEART), depth + 0.5)
    ascending = np.maximum(rising, _beyond(p, vessels.rise))
    aorta = union(rising, tube(p, vessels.arch, reach=20.0))
    branches = (np.maximum(tube(p, path), _beyond(p, path)) for path in vessels.branches)
    artery = union(tube(p, vessels.trunk), *branches, smooth=4.0)
    artery = cut(np.maximum(artery, -along(p, PULMONARY, OUTWARD)), aorta, gap=1.5)

    # The right ventricle: a crescent around the septum, from the tricuspid plane up to the pulmonary valve.
    full = form.right_ventricle
    crescent = ellipsoid(long, (27.0, -3.0, 29.0), (34.0 * full, 37.0 * full, 51.0))
    crescent = np.maximum(crescent, -along(p, TRICUSPID, FORWARD))
    outflow = np.maximum(tube(p, vessels.outflow, reach=HEART), along(p, PULMONARY, OUTWARD))
    right_ventricle = cut(union(crescent, outflow, smooth=8.0), outside, artery)
    right_ventricle = cut(right_ventricle, aorta, gap=2.5)

    # The atria: a hall, a passage to the valve, an appendage.
    a = form.left_atrium
    hall = ellipsoid(p, (-2.0, -40.0, 15.0), (31.0 * a, 19.0 * a, 25.0 * a))
    hall = np.maximum(union(hall, tube(p, vessels.mitral, reach=HEART), smooth=8.0), depth + 0.5)
    left_atrium = union(hall, cut(tube(p, vessels.left_appendage, reach=HEART), ventricle, gap=2.5), smooth=4.0)
    left_atrium = cut(cut(left_atrium, aorta, artery, gap=2.0), left_ventricle, myocardium)
    b = form.right_atrium
    hall = ellipsoid(p, (31.0, 3.0, 0.0), (20.0 * b, 25.0 * b, 30.0 * b))
    hall = np.maximum(union(hall, tube(p, vessels.tricuspid, reach=HEART), smooth=8.0), along(p, TRICUSPID, FORWARD))
    right_atrium = union(hall, cut(tube(p, vessels.right_appendage, reach=HEART), crescent), smooth=4.0)
    right_atrium = cut(cut(right_atrium, outside, left_atrium, gap=2.5), aorta, artery, gap=2.0)
    right_atrium = cut(right_atrium, right_ventricle)

    wall = union(ventricle, right_ventricle - 3.0, left_atrium - 2.0, right_atrium - 2.0, rising - 1.5, artery - 1.5)
    envelope = union(outside, right_ventricle - 2.0, right_atrium, left_atrium, rising, smooth=22.0) - form.fat
    distances = {
        "left_ventricle": left_ventricle,
        "right_ventricle": right_ventricle,
        "left_atrium": left_atrium,
        "right_atrium": right_atrium,
        "myocardium": myocardium,
        "ascending_aorta": ascending,
        "pulmonary_artery": artery,
        "aorta": aorta,
        "pulmonary": union(artery, *(tube(p, path) for path in vessels.lungs)),
        "veins": union(*(tube(p, path) for path in vessels.veins)),
        "superior_cava": tube(p, vessels.superior_cava),
        "inferior_cava": tube(p, vessels.inferior_cava),
        "coronaries": union(*(tube(p, path, reach=5.0) for path in vessels.coronaries)),
        "papillary": union(*(tube(long, path) for path in PAPILLARY)),
        "wall": wall,
        "envelope": envelope,
    }
    return Heart(**{name: distance * scale for name, distance in distances.items()})
