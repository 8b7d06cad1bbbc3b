"""Trees and volumes: what is recognised, what is refused, and that nothing is turned the wrong way round."""

import bz2
import gzip
import json
import math
import tracemalloc
from collections.abc import Mapping
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.mmwhs.data.datasets import Dataset, open_dataset
from examples.mmwhs.data.description import PLANES, Case, Description
from examples.mmwhs.data.volumes import load_volume, open_grid, to_original

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = (4, 5, 6)
HEART = Description("heart", ("LA", "LV"), (420, 500), fixes={421: 420})
ORIENTATIONS = [
    tuple("RLAPSI"[2 * axis + side] for axis, side in zip(order, sides, strict=True))
    for order in permutations(range(3))
    for sides in product((0, 1), repeat=3)
]


def save(path: Path, array: np.ndarray, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def counting(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """No two voxels are the same, so any turn shows."""
    return np.arange(math.prod(shape), dtype=np.int16).reshape(shape)


def a_case(folder: Path, image: np.ndarray, label: np.ndarray | None, *, at: Any = None, label_at: Any = None) -> Case:
    where = save(folder / "image.nii.gz", image, at)
    what = None if label is None else save(folder / "label.nii.gz", label, label_at)
    return Case("a", "a", where, what)


def mmwhs(root: Path, *cases: str, suffix: str = ".nii.gz") -> Path:
    for case in cases:
        for kind in ("image", "label"):
            save(root / f"{case[:2]}_train" / f"{case}_{kind}{suffix}", counting() % 2 * 500)
    return root


def msd(
    root: Path,
    names: tuple[str, ...] = ("a", "b", "c", "d"),
    *,
    splits: Mapping[str, object] | None = None,
    affine: np.ndarray | None = None,
    **changes: object,
) -> Path:
    for name in names:
        save(root / "imagesTr" / f"{name}.nii.gz", counting(), affine)
        save(root / "labelsTr" / f"{name}.nii.gz", (counting() % 3).astype(np.uint8), affine)
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    labels = {"0": "background", "1": "one", "2": "two"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": training, **changes}))
    if splits is not None:
        (root / "splits.json").write_text(json.dumps(splits))
    return root


# Trees


def test_an_mmwhs_tree_at_any_depth(tmp_path: Path) -> None:
    mmwhs(tmp_path / "MM-WHS 2017 Dataset", "ct_train_1102", "ct_train_1001", "mr_train_1001")
    save(tmp_path / "ct_test" / "ct_test_2001_image.nii.gz", counting())
    save(tmp_path / "ct_train" / "._ct_train_1003_image.nii.gz", counting())
    with pytest.raises(ValueError, match=r"one modality below .* got ct and mr\. Choose with --modality ct\."):
        open_dataset(tmp_path)
    data = open_dataset(tmp_path, modality="ct")
    labelled = [case for case in data.cases if case.label is not None]
    assert [case.id for case in labelled] == ["ct_train_1001", "ct_train_1102"]
    assert [case.id for case in data.cases if case.label is None] == ["ct_test_2001"]  # serves what needs no label
    assert data.patients == ("ct_test_2001", "ct_train_1001", "ct_train_1102")
    described = data.description
    assert dict(zip(described.classes, described.values, strict=True)) == {
        "LV": 500, "RV": 600, "LA": 420, "RA": 550, "MYO": 205, "AA": 820, "PA": 850,
    }  # fmt: skip
    assert described.classes == ("LV", "RV", "LA", "RA", "MYO", "AA", "PA")
    assert (described.planes, described.main_plane, described.slice_size) == (PLANES, "transaxial", 160)
    assert [case.id for case in open_dataset(tmp_path, modality="mr").cases] == ["mr_train_1001"]
    assert open_dataset(tmp_path, modality="mr").description.name == "mmwhs_mr"
    assert load_volume(labelled[0], described).label is not None


def test_the_only_modality_is_taken_and_plain_nii_is_read(tmp_path: Path) -> None:
    mmwhs(tmp_path, "mr_train_1020", suffix=".nii")
    assert [case.id for case in open_dataset(tmp_path).cases] == ["mr_train_1020"]
    with pytest.raises(ValueError, match=r"Expected `modality` to be one of 'mr', got 'ct'"):
        open_dataset(tmp_path, modality="ct")


def test_an_mmwhs_label_without_image_and_the_other_way_round(tmp_path: Path) -> None:
    mmwhs(tmp_path, "ct_train_1001", "ct_train_1002")
    (tmp_path / "ct_train" / "ct_train_1002_label.nii.gz").unlink()
    data = open_dataset(tmp_path)
    assert [case.label is None for case in data.cases] == [False, True]
    assert data.unlabelled == {"ct_train_1002"}
    assert any("1 volumes have no label" in note for note in data.notes)
    (tmp_path / "ct_train" / "ct_train_1001_image.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"Expected .*ct_train_1001_image.*beside.*ct_train_1001_label.*, got none\."):
        open_dataset(tmp_path)


def test_an_mmwhs_file_twice(tmp_path: Path) -> None:
    mmwhs(tmp_path, "ct_train_1001")
    mmwhs(tmp_path / "copy", "ct_train_1001")
    with pytest.raises(ValueError, match=r"Expected one image of ct_train_1001, got .*copy.* and "):
        open_dataset(tmp_path)


def test_a_folder_that_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a dataset\.json \(MSD, nnU-Net\) or files like ct_train_1001"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"Expected an existing data folder, got .*nowhere"):
        open_dataset(tmp_path / "nowhere")


def test_an_msd_tree(tmp_path: Path) -> None:
    data = open_dataset(msd(tmp_path, ("b", "a"), name="liver", licence="CC0", reference="somebody"))
    assert [case.id for case in data.cases] == list(data.patients) == ["a", "b"]
    described = data.description
    assert (described.name, described.classes, described.values) == ("liver", ("one", "two"), (1, 2))
    assert described.note == "somebody; CC0"
    assert (described.planes, described.slice_size, data.given_split) == (PLANES, 16, None)


def test_label_values_keep_their_names_in_any_order(tmp_path: Path) -> None:
    data = open_dataset(msd(tmp_path, labels={"2": "two", "0": "background", "1": "one"}))
    assert (data.description.classes, data.description.values) == (("one", "two"), (1, 2))


def test_thick_slices_are_cut_in_their_own_plane_only(tmp_path: Path) -> None:
    data = open_dataset(msd(tmp_path, affine=np.diag([1.0, 5.0, 1.0, 1.0])))
    assert (data.description.planes, data.description.main_plane) == (("coronal",), "coronal")
    # the file's first axis runs from front to back: in RAS it is the second
    turned = np.array([[0, 0, 1.0, 0], [-5, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert open_dataset(msd(tmp_path, affine=turned)).description.planes == ("coronal",)


@pytest.mark.parametrize(("name", "planes", "size"), [("Hippocampus", PLANES, 64), ("acdc", ("transaxial",), 96)])
def test_sets_that_are_known_by_name(tmp_path: Path, name: str, planes: tuple[str, ...], size: int) -> None:
    described = open_dataset(msd(tmp_path, name=name)).description
    assert (described.planes, described.slice_size, described.main_plane) == (planes, size, "transaxial")
    assert "CC BY" in described.note


@pytest.mark.parametrize("path", ["../other/a.nii.gz", "/etc/a.nii.gz", "imagesTr/../../a.nii.gz", "..\\a.nii.gz"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_path_that_leaves_the_folder(tmp_path: Path, path: str, key: str) -> None:
    save(tmp_path / "other" / "a.nii.gz", counting())
    save(tmp_path / "a.nii.gz", counting())
    root = msd(tmp_path / "set")
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", key: path}
    msd(root, training=[entry])
    with pytest.raises(ValueError, match=r"Expected paths inside of the data folder in .*dataset\.json, got "):
        open_dataset(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": ["one"]}, r"`labels` \(a mapping\) and `training` \(a list of cases\)"),
        ({"training": []}, r"`training` \(a list of cases\)"),
        ({"labels": {"background": 0}}, r"`labels` like .* got 'background': 0"),
        ({"labels": {"0": "background"}}, r"1 to 254 structures .* got 0"),
        ({"training": [{"label": "imagesTr/a.nii.gz"}]}, r"`image` and `label` in every case"),
        ({"training": [7]}, r"`image` and `label` in every case"),
        ({"training": [{"image": "imagesTr/x.nii.gz", "label": "l"}]}, r"imagesTr/x\.nii\.gz.* got no such file"),
    ],
)
def test_a_dataset_json_that_is_wrong(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_dataset(msd(tmp_path, **changes))


@pytest.mark.parametrize("what", ["imagesTr/a.nii.gz", "labelsTr/b.nii.gz", "labelsTr", "dataset.json", "splits.json"])
def test_a_link_that_leaves_the_folder(tmp_path: Path, what: str) -> None:
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    root = msd(tmp_path / "data", splits=splits)
    assert open_dataset(root).given_split is not None
    (root / what).rename(tmp_path / "elsewhere.nii.gz")
    (root / what).symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(
        ValueError, match=r"Expected .* to lie in the data folder .*data, got a link to .*elsewhere\.nii"
    ):
        open_dataset(root)


def test_a_link_that_stays_in_the_folder_and_a_link_to_the_folder(tmp_path: Path) -> None:
    root = msd(tmp_path / "data")
    (root / "imagesTr" / "a.nii.gz").rename(root / "a.nii.gz")
    (root / "imagesTr" / "a.nii.gz").symlink_to("../a.nii.gz")
    (tmp_path / "link").symlink_to(root)
    assert len(open_dataset(tmp_path / "link").cases) == 4


def test_a_link_that_leaves_an_mmwhs_tree(tmp_path: Path) -> None:
    root = mmwhs(tmp_path / "data", "ct_train_1001", "ct_train_1002")
    path = root / "ct_train" / "ct_train_1002_label.nii.gz"
    path.rename(tmp_path / "label.nii.gz")
    path.symlink_to(tmp_path / "label.nii.gz")
    with pytest.raises(ValueError, match=r"ct_train_1002_label\.nii\.gz to lie in the data folder .* got a link to"):
        open_dataset(root)


def test_a_dataset_json_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"Expected JSON in .*dataset\.json"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r"Expected a JSON object in .*dataset\.json, got list"):
        open_dataset(tmp_path)


def test_a_case_or_a_label_twice(tmp_path: Path) -> None:
    a = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    with pytest.raises(ValueError, match=r"Expected every case once in .*imagesTr/a\.nii\.gz and "):
        open_dataset(msd(tmp_path, training=[a, a]))
    with pytest.raises(ValueError, match=r"Expected one case with the label .*labelsTr/a\.nii\.gz.* got a and b"):
        open_dataset(msd(tmp_path, training=[a, {**a, "image": "imagesTr/b.nii.gz"}]))


# splits.json


def test_a_given_split_names_patients_by_what_begins_a_case(tmp_path: Path) -> None:
    names = ("p1_frame1", "p1_frame2", "p10_frame1", "p2", "p1_b_1")
    splits = {"note": "x", "train": ["p1", "p1_b"], "val": ["p10"], "test": ["p2"], "labelled_1": ["p1"]}
    data = open_dataset(msd(tmp_path, names, splits=splits))
    patients = {case.id: case.patient for case in data.cases}
    assert patients == {"p1_frame1": "p1", "p1_frame2": "p1", "p10_frame1": "p10", "p2": "p2", "p1_b_1": "p1_b"}
    assert data.given_split == {"train": ("p1", "p1_b"), "val": ("p10",), "test": ("p2",), "labelled_1": ("p1",)}


def test_a_patient_ends_where_a_word_does(tmp_path: Path) -> None:
    splits = {"train": ["p1"], "val": ["p2"], "test": ["p3"]}
    with pytest.raises(ValueError, match=r"whose name begins 'p10', got none"):
        open_dataset(msd(tmp_path, ("p1", "p10", "p2", "p3"), splits=splits))


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"train": ["a", "b"], "val": ["c"]}, r"no `test`"),
        ({"train": ["a", "b"], "val": ["b", "c"], "test": ["d"]}, r"no patient in both `train` and `val` .* \['b'\]"),
        ({"train": ["a", "a"], "val": ["c"], "test": ["d"]}, r"patients in `train` of .* each once"),
        ({"train": ["a"], "val": ["c"], "test": ["d"]}, r"whose name begins 'b', got none"),
        ({"train": ["a", "b", "e"], "val": ["c"], "test": ["d"]}, r"cases of every patient .* got none of e"),
        ({"train": ["a", "b"], "val": ["c"], "test": []}, r"one or more patients in `test`"),
        ({"train": "ab", "val": ["c"], "test": ["d"]}, r"`train` to be a list of patients"),
        ({"train": ["a", "b"], "val": ["c"], "test": ["d"], "labelled_1": ["c"]}, r"`labelled_1` to be 1 patients"),
        ({"train": ["a", "b"], "val": ["c"], "test": ["d"], "labelled_2": ["a"]}, r"`labelled_2` to be 2 patients"),
    ],
)
def test_a_given_split_that_is_wrong(tmp_path: Path, splits: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_dataset(msd(tmp_path, splits=splits))


# Volumes


@pytest.mark.parametrize("axes", ORIENTATIONS, ids="".join)
def test_every_orientation_comes_to_ras_and_goes_back(tmp_path: Path, axes: tuple[str, ...]) -> None:
    ras = counting()
    labels = (ras % 3).astype(np.uint8)  # class indices; values 0, 420, 500 in the file
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-7, 11, 5)
    # the file, by indexing alone: axis i of the file runs along axis `along[i]` of the RAS array
    along = ["RLAPSI".index(axis) // 2 for axis in axes]
    stored, turned, lut = ras.transpose(along), np.eye(4), np.array([0, 420, 500], np.int16)
    stored_labels = labels.transpose(along)
    turned[:3, :3] = affine[:3, along]
    turned[:3, 3] = affine[:3, 3]
    for i, axis in enumerate(axes):
        if axis in "LPI":
            stored, stored_labels = np.flip(stored, i), np.flip(stored_labels, i)
            turned[:3, 3] += turned[:3, i] * (stored.shape[i] - 1)
            turned[:3, i] *= -1
    assert nib.aff2axcodes(turned) == axes
    case = a_case(tmp_path, stored, lut[stored_labels], at=turned, label_at=turned)

    assert open_grid(case.image).shape == SHAPE
    volume = load_volume(case, HEART, percentiles=(0, 100))
    np.testing.assert_array_equal(np.rint(volume.image * ras.max()), ras)
    np.testing.assert_array_equal(volume.label, labels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing, (1, 2, 3), atol=1e-5)

    original = nib.load(case.image)
    back = to_original(volume.label, original, HEART)
    assert back.get_data_dtype() == np.int16
    nib.save(back, tmp_path / "back.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), nib.load(case.label).dataobj)
    np.testing.assert_array_equal(back.affine, original.affine)


def test_a_label_file_may_be_turned_another_way_than_its_image(tmp_path: Path) -> None:
    labels = (counting() % 3).astype(np.uint8)
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    case = a_case(tmp_path, counting(), np.array([0, 420, 500], np.int16)[labels[::-1]], label_at=flipped)
    np.testing.assert_array_equal(load_volume(case, HEART).label, labels)


def test_labels_of_another_shape_or_class_do_not_go_back(tmp_path: Path) -> None:
    original = nib.Nifti1Image(counting(), np.eye(4))
    with pytest.raises(ValueError, match=r"Expected labels for a volume of shape \(4, 5, 6\), got \(4, 5, 5\)"):
        to_original(np.zeros((4, 5, 5), np.uint8), original, HEART)
    with pytest.raises(ValueError, match=r"Expected class indices from 0 to 2, got 3 to 3"):
        to_original(np.full(SHAPE, 3, np.uint8), original, HEART)


def test_the_way_back_keeps_the_geometry_and_leaves_the_window_of_the_image(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counting().astype(np.float32), np.diag([2.0, 2, 2, 1]))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    image.header["cal_max"] = 1000
    back = to_original(np.ones(SHAPE, np.uint8), image, HEART)
    assert (back.header["qform_code"], back.header["sform_code"], back.header["cal_max"]) == (1, 2, 0)
    assert set(np.unique(back.get_fdata())) == {420}


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_label_values_become_classes_in_any_type(tmp_path: Path, dtype: type) -> None:
    values = np.array([0, 420, 500, 421], dtype)[counting() % 4]
    label = load_volume(a_case(tmp_path, counting(), values), HEART).label
    np.testing.assert_array_equal(label, np.array([0, 1, 2, 1])[counting() % 4])
    assert label is not None
    assert label.dtype == np.uint8


@pytest.mark.parametrize("value", [205, 501, 422, -1, 1, 500.5, 32767, math.nan, 1e30, -1e30])
def test_a_label_value_that_is_not_described(tmp_path: Path, value: float) -> None:
    values = np.array([0, 420], np.float32)[counting() % 2]
    values[1, 2, 3] = value
    case = a_case(tmp_path, counting(), values)
    shown = f"{np.float32(value):g}".replace("+", r"\+")
    with pytest.raises(ValueError, match=rf"label values 0, 420, 500, 421 in .*label\.nii\.gz, got {shown}\."):
        load_volume(case, HEART)


def test_421_is_no_known_fault_elsewhere(tmp_path: Path) -> None:
    case = a_case(tmp_path, counting(), np.full(SHAPE, 421, np.int16))
    with pytest.raises(ValueError, match="got 421"):
        load_volume(case, Description("other", ("LA",), (420,)))


@pytest.mark.parametrize(
    ("shape", "affine", "reason"),
    [
        (
            (4, 5, 7),
            np.eye(4),
            r"label\.nii\.gz on the grid of .*image\.nii\.gz, shape \(4, 5, 6\), got shape \(4, 5, 7\)",
        ),
        (
            SHAPE,
            np.diag([1, 1, 1.1, 1]),
            r"label\.nii\.gz on the grid of .*image\.nii\.gz, got corners up to 0\.5 mm apart",
        ),
        (SHAPE, np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), r"corners up to 0\.5 mm"),
    ],
)
def test_an_image_and_a_label_on_other_grids(tmp_path: Path, shape: tuple, affine: np.ndarray, reason: str) -> None:
    case = a_case(tmp_path, counting(), np.zeros(shape, np.int16), label_at=affine)
    with pytest.raises(ValueError, match=reason):
        load_volume(case, HEART)


def test_rounding_in_a_header_is_no_other_grid(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 1e-3
    case = a_case(tmp_path, counting(), np.zeros(SHAPE, np.int16), label_at=affine)
    assert load_volume(case, HEART).label is not None


@given(low=st.floats(0, 45), high=st.floats(55, 100))
def test_intensities_are_clipped_at_percentiles_then_scaled(tmp_path_factory, low: float, high: float) -> None:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) ** 3 * 1e5
    case = a_case(tmp_path_factory.mktemp("p"), array, None)
    volume = load_volume(case, HEART, percentiles=(low, high))
    bottom, top = np.percentile(array.astype(float), [low, high])
    wanted = np.clip((array.astype(float) - bottom) / (top - bottom), 0, 1)
    np.testing.assert_allclose(volume.image, wanted, atol=1e-5)
    assert volume.image.dtype == np.float32
    assert volume.image.min() == 0
    assert volume.image.max() == 1


def test_one_outlier_does_not_flatten_the_rest(tmp_path: Path) -> None:
    array = counting((10, 10, 10)).astype(np.float32)
    array[0, 0, 0] = 1.7e6
    image = load_volume(a_case(tmp_path, array, None), HEART).image
    assert image.std() > 0.25
    assert load_volume(a_case(tmp_path, array, None), HEART, percentiles=(0, 100)).image.std() < 0.05


def test_a_constant_volume_is_zero_and_a_nearly_constant_one_keeps_its_range(tmp_path: Path) -> None:
    array = np.full((10, 10, 10), 7, np.int16)
    assert not load_volume(a_case(tmp_path, array, None), HEART).image.any()
    array[1, 2, 3] = 9
    image = load_volume(a_case(tmp_path, array, None), HEART).image
    assert (image[1, 2, 3], image.sum()) == (1, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_intensities_that_are_not_finite(tmp_path: Path, value: float) -> None:
    array = counting().astype(np.float32)
    array[0, 0, :2] = value
    with pytest.raises(
        ValueError,
        match=r"finite intensities in .*image\.nii\.gz, got 2 of 120 voxels that are NaN or infinite. .*nan_to_num",
    ):
        load_volume(a_case(tmp_path, array, None), HEART)


@pytest.mark.parametrize("percentiles", [(99, 1), (50, 50), (-1, 99), (1, 101), (math.nan, 99)])
def test_percentiles_that_are_none(tmp_path: Path, percentiles: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="`percentiles`"):
        load_volume(a_case(tmp_path, counting(), None), HEART, percentiles=percentiles)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2)])
def test_a_volume_that_is_not_3d(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected a 3-D volume in .*image\.nii\.gz, got shape"):
        load_volume(a_case(tmp_path, counting(shape), None), HEART)


def test_a_scaled_image_is_read_with_its_scale(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counting().astype(np.float32) * 0.01 - 3, np.eye(4))
    image.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "image.nii.gz")
    volume = load_volume(Case("a", "a", tmp_path / "image.nii.gz", None), HEART, percentiles=(0, 100))
    np.testing.assert_allclose(volume.image, counting() / counting().max(), atol=0.005)


@pytest.mark.parametrize(
    ("name", "dtype", "most"), [("a.nii", np.int16, 11), ("a.nii.gz", np.int16, 11), ("a.nii.gz", np.float64, 15)]
)
def test_reading_takes_little_more_memory_than_what_it_gives(tmp_path: Path, name: str, dtype: type, most: int) -> None:
    """Bytes a voxel: 4 of the image and 4 of the copy that percentiles need, or 8 of a file that grows by 9; and some."""
    noise = np.random.default_rng(0).integers(0, 2000, (128, 128, 64))
    image = nib.Nifti1Image(noise.astype(dtype), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / name)
    tracemalloc.start()
    volume = load_volume(Case("a", "a", tmp_path / name, None), HEART, percentiles=(0, 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(volume.image, (noise - noise.min()) / np.ptp(noise), atol=1e-6)
    assert peak < most * noise.size


# Damaged files


def raw(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.int16)
    return save(tmp_path / "whole.nii", noise).read_bytes()


def damaged(tmp_path: Path, name: str, content: bytes) -> Case:
    (tmp_path / name).write_bytes(content)
    return Case("a", "a", tmp_path / name, None)


def field(content: bytes, offset: int, new: bytes) -> bytes:
    return content[:offset] + new + content[offset + len(new) :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cut.nii.gz", lambda whole: gzip.compress(whole)[:4000]),
        ("head_only.nii.gz", lambda whole: gzip.compress(whole)[:100]),
        ("cut.nii", lambda whole: whole[:4000]),
        ("short.nii.gz", lambda whole: gzip.compress(whole[:4000])),
        ("empty.nii.gz", lambda whole: b""),
        ("empty.nii", lambda whole: b""),
        ("text.nii.gz", lambda whole: b"<html>not found</html>"),
        ("not_gzip.nii.gz", lambda whole: whole),
        ("flipped.nii.gz", lambda whole: field(gzip.compress(whole), 2000, b"\xff" * 64)),
        ("checksum.nii.gz", lambda whole: field(gzip.compress(whole), len(gzip.compress(whole)) - 8, bytes(4))),
        ("magic.nii.gz", lambda whole: gzip.compress(field(whole, 344, b"xxxx"))),
        ("other.nii.bz2", lambda whole: bz2.compress(whole)),
        ("large.nii", lambda whole: field(whole, 42, (30000).to_bytes(2, "little"))),
        ("large.nii.gz", lambda whole: gzip.compress(field(whole, 42, (30000).to_bytes(2, "little") * 3))),
        ("negative.nii", lambda whole: field(whole, 42, b"\xff\xff")),
        ("type.nii", lambda whole: field(whole, 70, b"\x77\x77")),
        ("magic.nii", lambda whole: field(whole, 344, b"xxxx")),
        ("far.nii", lambda whole: field(whole, 108, np.float32(1e9).tobytes())),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path: Path, name: str, damage) -> None:
    case = damaged(tmp_path, name, damage(raw(tmp_path)))
    with pytest.raises(ValueError, match=rf"^Expected .* in .*{name}, got .*") as raised:
        load_volume(case, HEART)
    assert "\n" not in str(raised.value)


@given(bit=st.integers(0, 8 * 7000))
def test_any_bit_of_a_compressed_file_may_be_wrong(tmp_path_factory, bit: int) -> None:
    """It is noticed, or changes no voxel."""
    folder = tmp_path_factory.mktemp("b")
    packed = bytearray(gzip.compress(raw(folder), mtime=0))
    wanted = load_volume(damaged(folder, "whole.nii.gz", bytes(packed)), HEART).image
    packed[bit // 8 % len(packed)] ^= 1 << bit % 8
    refused = None
    try:
        np.testing.assert_array_equal(load_volume(damaged(folder, "a.nii.gz", bytes(packed)), HEART).image, wanted)
    except ValueError as error:
        refused = str(error)
    assert refused is None or (refused.startswith("Expected ") and "a.nii.gz" in refused)


@pytest.mark.parametrize("name", ["lies.nii", "lies.nii.gz", "may_be_true.nii.gz"])
def test_no_memory_is_taken_for_what_a_header_claims(tmp_path: Path, name: str) -> None:
    """1000³ voxels: two gigabytes."""
    content = field(raw(tmp_path), 42, (1000).to_bytes(2, "little") * 3)
    if name == "may_be_true.nii.gz":  # 2 MB may be two gigabytes of one value
        content += np.random.default_rng(0).bytes(2**21)
    case = damaged(tmp_path, name, gzip.compress(content, compresslevel=1) if name.endswith("gz") else content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"NIfTI volume in .*{name}, got .* bytes .*for the 2000000352 of its header"):
        load_volume(case, HEART)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 2**20


@given(offset=st.integers(0, 351), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(tmp_path_factory, offset: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("b")
    whole = raw(folder)
    case = damaged(folder, "a.nii", field(whole, offset, bytes([value])))
    refused = None
    try:
        assert np.isfinite(load_volume(case, HEART).image).all()
    except ValueError as error:
        refused = str(error)
    assert refused is None or (refused.startswith("Expected ") and "a.nii" in refused)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a readable NIfTI volume in .*gone\.nii"):
        load_volume(Case("a", "a", tmp_path / "gone.nii", None), HEART)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_affine_that_is_not_finite(tmp_path: Path, value: float) -> None:
    content = field(raw(tmp_path), 254, (1).to_bytes(2, "little"))  # sform_code
    case = damaged(tmp_path, "lost.nii", field(content, 280, np.float32(value).tobytes()))  # srow_x[0]
    with pytest.raises(ValueError, match=r"in .*lost\.nii, got"):
        load_volume(case, HEART)


def test_an_affine_that_says_nothing(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counting(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = (1, 0, 0, 0)
    image.header["srow_z"] = (0, 0, 1, 0)
    content = bytearray(image.to_bytes())
    with pytest.raises(ValueError, match=r"Expected an affine that can be inverted in .*flat\.nii"):
        load_volume(damaged(tmp_path, "flat.nii", bytes(content)), HEART)


# The real sets, where they lie beside the repository; elsewhere a generated tree of the same layout


def real_or_like(name: str, tmp_path: Path) -> tuple[Dataset, bool]:
    present = (REAL / name / "dataset.json").is_file()
    return open_dataset(REAL / name if present else msd(tmp_path, name=name)), present


@pytest.mark.parametrize(("name", "cases", "classes"), [("hippocampus", 260, 2), ("acdc", 200, 3)])
def test_real_volumes_keep_their_labels_there_and_back(tmp_path: Path, name: str, cases: int, classes: int) -> None:
    data, present = real_or_like(name, tmp_path)
    if present:
        assert (len(data.cases), len(data.description.classes)) == (cases, classes)
    for case in data.cases[:: max(1, len(data.cases) // 3)]:
        volume = load_volume(case, data.description)
        assert volume.label is not None
        assert volume.image.shape == volume.label.shape
        assert 0.05 < volume.image.mean() < 0.95
        back = to_original(volume.label, nib.load(case.image), data.description)
        np.testing.assert_array_equal(back.get_fdata(), nib.load(case.label).get_fdata())
