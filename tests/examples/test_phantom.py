"""The phantom: files as those of MM-WHS, and an anatomy a radiologist would accept, measured in RAS."""

from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from examples.mmwhs.data.phantom import make_volume, shapes, write_phantom
from examples.mmwhs.data.phantom.imaging import Scanner
from examples.mmwhs.data.phantom.patient import Patient

SHAPE = (48, 48, 36)
PATIENTS = range(4)
VALUES = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "Myo": 205, "AA": 820, "PA": 850}
CUBE = np.ones((3, 3, 3), bool)
FACES = ndimage.generate_binary_structure(3, 1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    write_phantom(out, volumes=len(PATIENTS), shape=SHAPE, seed=3)
    return out / "ct_train"


@pytest.fixture(scope="module", params=PATIENTS)
def patient(request: pytest.FixtureRequest, tree: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and spacing of a patient, in RAS."""
    image, label = (
        nib.as_closest_canonical(nib.load(tree / f"ct_train_{1001 + request.param}_{kind}.nii.gz"))
        for kind in ("image", "label")
    )
    spacing = np.array(image.header.get_zooms())
    return np.asarray(image.dataobj), np.asarray(label.dataobj), spacing


def centre(label: np.ndarray, name: str, spacing: np.ndarray) -> np.ndarray:
    """Millimetres to the right, anterior, superior."""
    return np.array(ndimage.center_of_mass(label == VALUES[name])) * spacing


def around(mask: np.ndarray, structure: np.ndarray = CUBE) -> np.ndarray:
    return ndimage.binary_dilation(mask, structure) & ~mask


# files


def test_names_are_those_of_mmwhs(tmp_path: Path) -> None:
    paths = write_phantom(tmp_path, volumes=2, shape=(16, 18, 20))
    assert paths == [tmp_path / "ct_train" / f"ct_train_{n}_image.nii.gz" for n in (1001, 1002)]
    assert sorted(p.name for p in (tmp_path / "ct_train").iterdir()) == [
        f"ct_train_{n}_{kind}.nii.gz" for n in (1001, 1002) for kind in ("image", "label")
    ]


def test_image_and_label_lie_on_one_grid_of_anisotropic_voxels(tree: Path) -> None:
    for n in PATIENTS:
        image = nib.load(tree / f"ct_train_{1001 + n}_image.nii.gz")
        label = nib.load(tree / f"ct_train_{1001 + n}_label.nii.gz")
        assert image.get_data_dtype() == label.get_data_dtype() == np.int16
        assert image.shape == label.shape
        assert sorted(image.shape) == sorted(SHAPE)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.header.get_qform(coded=False), image.affine, atol=1e-3)
        x, y, z = nib.as_closest_canonical(image).header.get_zooms()
        assert x == pytest.approx(y, rel=1e-5)
        assert abs(z / x - 1) > 0.05


def test_directions_and_spacings_differ_between_files(tree: Path) -> None:
    files = [nib.load(path) for path in sorted(tree.glob("*_image.nii.gz"))]
    assert len({nib.aff2axcodes(f.affine) for f in files}) == len(files)
    assert len({tuple(sorted(f.header.get_zooms())) for f in files}) == len(files)


def test_a_seed_fixes_every_byte_and_a_patient_whatever_the_number(tmp_path: Path) -> None:
    for name, volumes, seed in (("a", 2, 1), ("b", 1, 1), ("c", 1, 2)):
        write_phantom(tmp_path / name, volumes=volumes, shape=(20, 20, 16), seed=seed)
    for kind in ("image", "label"):
        a, b, c = ((tmp_path / name / "ct_train" / f"ct_train_1001_{kind}.nii.gz").read_bytes() for name in "abc")
        assert a == b
        assert a != c
        assert a[4:8] == bytes(4)  # gzip: no time
        assert not a[3] & 8  # gzip: no name


def test_seeds_and_patients_do_not_repeat_one_another() -> None:
    pairs = ((0, 0), (0, 8), (8, 0), (1, 7), (7, 1))  # all stored in the same orientation
    labels = [make_volume(index, shape=(16, 16, 16), seed=seed)[1] for index, seed in pairs]
    for i, one in enumerate(labels):
        assert all((one != other).any() for other in labels[:i])


def test_volumes_are_replaced_where_it_is_asked_for_and_ours_alone(tmp_path: Path) -> None:
    (path,) = write_phantom(tmp_path / "p", volumes=1, shape=(16, 16, 16), seed=0)
    before = path.read_bytes()
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"no phantom in .*p, got one\..*--overwrite"):
        write_phantom(tmp_path / "p", volumes=1, shape=(16, 16, 16), seed=0)
    write_phantom(tmp_path / "p", volumes=1, shape=(16, 16, 16), seed=0, overwrite=True)
    assert path.read_bytes() == before
    other = path.with_name("ct_train_1002_image.nii.gz")
    other.write_bytes(b"of another phantom, or real")
    with pytest.raises(
        ValueError, match=r"nothing but the 1 volumes to replace in .*, got ct_train_1002_image\.nii\.gz"
    ):
        write_phantom(tmp_path / "p", volumes=1, shape=(16, 16, 16), seed=0, overwrite=True)
    assert (path.read_bytes(), other.read_bytes()) == (before, b"of another phantom, or real")
    real = tmp_path / "real" / "ct_train" / path.name  # somebody's MM-WHS
    real.parent.mkdir(parents=True)
    real.write_bytes(b"real")
    for overwrite in (False, True):
        with pytest.raises(
            ValueError, match=r"real to be new, empty or made by `phantom`, got a folder with other files"
        ):
            write_phantom(tmp_path / "real", volumes=1, shape=(16, 16, 16), seed=0, overwrite=overwrite)
    assert [path for path in (tmp_path / "real").rglob("*") if path.is_file()] == [real]
    assert real.read_bytes() == b"real"


def test_another_shape_samples_the_same_patient() -> None:
    volumes = {}
    for shape in ((20, 20, 16), (40, 40, 32)):
        _, label, affine = make_volume(2, shape=shape, seed=5)
        voxel = abs(np.linalg.det(affine[:3, :3]))
        volumes[shape] = np.array([(label == value).sum() * voxel for value in VALUES.values()])
        corner = affine @ [-0.5, -0.5, -0.5, 1.0]
        volumes[shape, "corner"] = corner
    np.testing.assert_allclose(volumes[20, 20, 16], volumes[40, 40, 32], rtol=0.15)
    np.testing.assert_allclose(volumes[(20, 20, 16), "corner"], volumes[(40, 40, 32), "corner"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"volumes": 0}, ValueError, "`volumes` to be an integer of at least 1, got 0"),
        ({"volumes": 2.0}, TypeError, "`volumes` to be an integer of at least 1, got 2.0"),
        ({"volumes": 1000}, ValueError, "`volumes` to be at most 999, got 1000"),
        ({"seed": -1}, ValueError, "`seed` to be an integer of at least 0, got -1"),
        ({"shape": (96, 96)}, ValueError, r"three integers of at least 16, .* got \(96, 96\)"),
        ({"shape": 96}, TypeError, "three integers of at least 16, .* got 96 of type int"),
        ({"shape": (96, 8, 96)}, ValueError, r"`shape\[1\]` to be an integer of at least 16, got 8"),
        ({"shape": (96, 96.0, 96)}, TypeError, r"`shape\[1\]` to be an integer of at least 16, got 96.0"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        write_phantom(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# anatomy


def test_every_structure_is_one_piece_inside_the_volume(patient: tuple[np.ndarray, ...]) -> None:
    _, label, _ = patient
    assert set(np.unique(label)) == {0, *VALUES.values()}
    for name, value in VALUES.items():
        pieces, _ = ndimage.label(label == value, CUBE)
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() >= 0.97 * sizes.sum(), name
        assert sizes.sum() > 150, name
    assert not label[[0, -1]].any()
    assert not label[:, [0, -1]].any()
    assert not label[:, :, [0, -1]].any()


def test_sizes_are_those_of_hearts(patient: tuple[np.ndarray, ...]) -> None:
    _, label, spacing = patient
    millilitres = {name: (label == value).sum() * spacing.prod() / 1000 for name, value in VALUES.items()}
    for name, (low, high) in {
        "LV": (40, 220), "RV": (70, 350), "LA": (30, 190), "RA": (25, 190),
        "Myo": (55, 240), "AA": (20, 130), "PA": (18, 130),
    }.items():  # fmt: skip
        assert low < millilitres[name] < high, name


def test_myocardium_encloses_the_left_ventricle_but_for_its_valves(patient: tuple[np.ndarray, ...]) -> None:
    _, label, spacing = patient
    ventricle = label == VALUES["LV"]
    shell = around(ventricle, FACES)
    assert (label[shell] == VALUES["Myo"]).mean() > 0.75
    assert not (label[shell] == VALUES["RV"]).any()
    assert not (label[shell] == VALUES["RA"]).any()
    # the valves are at one end; towards the other there is nothing else
    where, middle = np.argwhere(shell) * spacing, centre(label, "LV", spacing)
    valves = where[np.isin(label[shell], [VALUES["LA"], VALUES["AA"]])].mean(0)
    beyond = (where - middle) @ (middle - valves) > 0
    assert beyond.mean() > 0.3
    assert (label[shell][beyond] == VALUES["Myo"]).all()


@pytest.mark.parametrize(
    ("one", "other"), [("LV", "LA"), ("LV", "AA"), ("RV", "RA"), ("RV", "PA"), ("RV", "Myo"), ("LV", "Myo")]
)
def test_what_a_valve_or_the_septum_joins_touches(patient: tuple[np.ndarray, ...], one: str, other: str) -> None:
    _, label, _ = patient
    assert (label[around(label == VALUES[one])] == VALUES[other]).sum() >= 4


def test_a_block_sees_the_same_patient_as_the_whole() -> None:
    axes = (np.arange(-100.0, 60.0, 5.0), np.arange(-100.0, 70.0, 5.0), np.arange(-60.0, 100.0, 5.0))
    scanner = Scanner(Patient.draw(np.random.default_rng(4)))
    _, whole = scanner.look(axes)
    corners = np.random.default_rng(0).integers(0, 28, size=(80, 3)).tolist()
    for part in (tuple(slice(i, i + 4) for i in corner) for corner in corners):
        _, block = scanner.look(tuple(axis[s] for axis, s in zip(axes, part, strict=True)))
        for name, distance in vars(block).items():
            expected = vars(whole)[name][part]
            edge = np.abs(expected) < 4.0  # as far from a surface as paint reaches
            np.testing.assert_allclose(distance[edge], expected[edge], atol=1e-3, err_msg=name)


def test_walls_part_what_no_valve_joins() -> None:
    axes = (np.arange(-60.0, 45.0, 2.5), np.arange(-60.0, 50.0, 2.5), np.arange(-30.0, 80.0, 2.5))
    for seed in range(2):
        _, found = Scanner(Patient.draw(np.random.default_rng(seed))).look(axes)
        for one, other, wall in (
            (found.left_ventricle, found.right_ventricle, 5.0),
            (found.left_atrium, found.right_atrium, 2.0),
            (found.left_atrium, found.aorta, 1.6),
            (found.right_ventricle, found.aorta, 2.0),
            (found.pulmonary_artery, found.aorta, 1.2),
        ):
            assert (one < 0).any()
            assert other[one < 0].min() > wall


@pytest.mark.parametrize(
    ("one", "direction", "other"),
    [
        ("AA", "superior", "LV"),
        ("AA", "superior", "LA"),
        ("AA", "right", "LV"),
        ("PA", "superior", "RV"),
        ("PA", "left", "AA"),
        ("LA", "posterior", "LV"),
        ("LA", "superior", "LV"),
        ("LA", "posterior", "AA"),
        ("RA", "right", "LA"),
        ("RA", "right", "RV"),
        ("RA", "anterior", "LA"),
        ("RV", "anterior", "LV"),
        ("RV", "right", "LV"),
        ("LV", "left", "AA"),
    ],
)
def test_a_structure_lies_where_it_should(
    patient: tuple[np.ndarray, ...], one: str, direction: str, other: str
) -> None:
    _, label, spacing = patient
    axis = {"right": 0, "left": 0, "anterior": 1, "posterior": 1, "superior": 2}[direction]
    sign = -1 if direction in ("left", "posterior") else 1
    offset = centre(label, one, spacing) - centre(label, other, spacing)
    assert sign * offset[axis] > 3.0


def test_the_apex_points_to_the_left_the_front_and_below(patient: tuple[np.ndarray, ...]) -> None:
    _, label, spacing = patient
    muscle = np.argwhere(label == VALUES["Myo"]) * spacing
    base = centre(label, "LA", spacing)
    apex = muscle[np.argmax(np.linalg.norm(muscle - base, axis=1))]
    left, front, below = (apex - base) * [-1, 1, -1]
    assert left > 15
    assert front > 15
    assert below > 15


def test_tissues_have_their_intensities_and_patients_their_contrast(tree: Path) -> None:
    blood = []
    for n in PATIENTS:
        image, label = (
            np.asarray(nib.load(tree / f"ct_train_{1001 + n}_{kind}.nii.gz").dataobj) for kind in ("image", "label")
        )
        inner = {name: np.median(image[ndimage.binary_erosion(label == value)]) for name, value in VALUES.items()}
        assert 60 < inner["Myo"] < 190
        assert inner["LV"] - inner["Myo"] > 80
        assert abs(inner["LV"] - inner["LA"]) < 60
        assert (image < -700).mean() > 0.05  # lungs
        assert (image[label == 0] > inner["Myo"] + 60).mean() > 0.01  # bright and yet background
        assert image.min() >= -1024
        blood.append((inner["LV"], inner["RV"]))
    left, ratio = np.array(blood)[:, 0], np.divide(*np.array(blood).T[::-1])
    assert np.ptp(left) > 100
    assert np.ptp(ratio) > 0.3


# shapes


def grid(step: float = 1.5) -> shapes.Points:
    axis = np.arange(-24, 24, step, dtype=np.float32)
    return shapes.Points(*np.meshgrid(axis, axis, axis, indexing="ij"))


def test_a_tube_is_as_far_as_the_nearest_point_of_its_path() -> None:
    points = grid(4.0)
    path = np.array([[-10.0, 0, 0, 3], [0, 5, 2, 4], [12, 5, -8, 2]])
    dense = np.concatenate([np.linspace(a, b, 80) for a, b in pairwise(path)])
    where = np.stack([p.ravel() for p in points], -1)
    expected = (np.linalg.norm(where[:, None] - dense[None, :, :3], axis=-1) - dense[:, 3]).min(1)
    found = shapes.tube(points, path, reach=12.0).ravel()
    near = expected < 5
    # a radius that varies moves the nearest point a little; the projection is the usual approximation
    np.testing.assert_allclose(found[near], expected[near], atol=0.35)
    assert (found[expected > 12] > 5).all()


def test_an_ellipsoid_with_equal_radii_is_a_sphere() -> None:
    points = grid()
    found = shapes.ellipsoid(points, (1, 2, 3), (9, 9, 9))
    expected = np.sqrt((points.x - 1) ** 2 + (points.y - 2) ** 2 + (points.z - 3) ** 2) - 9
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_field_depends_on_where_not_on_the_grid() -> None:
    field = shapes.Field.draw(np.random.default_rng(0), spacing=20.0, sd=3.0)
    axis = np.arange(-100.0, 100.0, 4.0)
    whole = field((axis, axis, axis))
    np.testing.assert_array_equal(field((axis[7:19], axis[3:9], axis[30:])), whole[7:19, 3:9, 30:])
    assert 2.0 < whole.std() < 4.0
    assert np.abs(np.diff(whole, axis=0)).max() < 4.0  # smooth: about sd / spacing a millimetre


def test_a_patient_bends_space_without_folding_it() -> None:
    axis = np.arange(-80.0, 80.0, 4.0)
    for seed in range(3):
        patient = Patient.draw(np.random.default_rng(seed))
        moved = [
            coarse((axis, axis, axis)) + fine((axis, axis, axis)) for coarse, fine in zip(*patient.bends, strict=True)
        ]
        jacobian = np.stack([np.stack(np.gradient(m, 4.0), -1) for m in moved], -2) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0.1
        np.testing.assert_allclose(patient.rotation @ patient.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(patient.rotation) == pytest.approx(1.0)
