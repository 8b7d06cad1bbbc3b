"""Slices: planes, resizing, the cache on disk, and the door to training data."""

import errno
import json
import os
import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from examples.mmwhs.data import slices as slices_module
from examples.mmwhs.data import store as module
from examples.mmwhs.data.datasets import Dataset, open_dataset
from examples.mmwhs.data.description import PLANES, Case, Description
from examples.mmwhs.data.slices import (
    BATCH,
    cut,
    labels_from_probabilities,
    resize_images,
    resize_labels,
    volume_to_slices,
)
from examples.mmwhs.data.splits import LeakError, Split
from examples.mmwhs.data.store import SliceDataset, SliceStore, evaluation_slices, training_slices
from examples.mmwhs.data.volumes import load_volume

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = (6, 7, 8)
SPLIT = Split(("p0", "p1"), ("p2",), ("p3",), ("p1",))


def write(folder: Path, index: int, value: int = 500) -> Case:
    """A volume whose intensities tell where they are, and a block of label in its middle."""
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) + index
    label = np.zeros(SHAPE, np.int16)
    label[2:4, 2:5, 3:6] = value
    paths = [folder / f"p{index}_{kind}.nii" for kind in ("image", "label")]
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Case(f"p{index}", f"p{index}", *paths)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    cases = tuple(write(tmp_path, i) for i in range(4))
    return Dataset(tmp_path, Description("x", ("LV", "RV"), (500, 600)), cases)


@pytest.fixture
def store(data: Dataset, tmp_path: Path) -> SliceStore:
    return SliceStore(data, tmp_path / "cache", size=8, percentiles=(0, 100))


# Planes and sizes


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_a_plane_are_a_view_of_the_volume(plane: str) -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    stack = volume_to_slices(volume, plane)
    axis = PLANES.index(plane)
    assert len(stack) == SHAPE[axis]
    np.testing.assert_array_equal(stack[2], volume.take(2, axis=axis))
    stack[2] = -1  # a view: what is written to a slice is in the volume
    assert (volume.take(2, axis=axis) == -1).all()
    assert (volume == -1).sum() == stack[2].size
    with pytest.raises(ValueError, match="Did you mean 'coronal'"):
        volume_to_slices(volume, "corona")


def halved(stack: np.ndarray, axis: int) -> np.ndarray:
    """Half the size by the triangle filter of an antialiased resize, weights 1 3 3 1, written out."""
    moved = np.moveaxis(stack, axis, -1)
    n = moved.shape[-1]
    out = np.empty((*moved.shape[:-1], n // 2))
    for i in range(n // 2):
        taps = {j: w for j, w in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True) if 0 <= j < n}
        out[..., i] = sum(w * moved[..., j] for j, w in taps.items()) / sum(taps.values())
    return np.moveaxis(out, -1, axis)


def test_shrinking_an_image_is_a_low_pass_and_not_a_pick() -> None:
    stack = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(resize_images(stack, 8), halved(halved(stack, 1), 2), atol=1e-6)
    stripes = np.tile(np.array([0, 1], np.float32), (1, 32, 16))
    assert np.abs(resize_images(stripes, 8) - 0.5).max() < 0.1


def test_growing_an_image_is_linear() -> None:
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32), (2, 7, 5))
    grown = resize_images(ramp, 10)
    np.testing.assert_allclose(grown[0, 3], np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4), atol=1e-6)
    assert grown.shape == (2, 10, 10)


@given(
    stack=arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 3, 7]),
    ),
    size=st.integers(1, 24),
)
def test_resizing_labels_never_invents_a_class(stack: np.ndarray, size: int) -> None:
    resized = resize_labels(stack, size)
    assert resized.shape == (len(stack), size, size)
    assert resized.dtype == np.uint8
    for before, after in zip(stack, resized, strict=True):
        assert set(np.unique(after)) <= set(np.unique(before))


def test_a_boundary_between_0_and_7_has_nothing_in_between_and_stays_where_it_was() -> None:
    stack = np.zeros((1, 20, 20), np.uint8)
    stack[:, :, 10:] = 7
    for size in (7, 13, 20, 33, 64):
        resized = resize_labels(stack, size)
        assert set(np.unique(resized)) == {0, 7}
        edge = (resized[0, 0] == 7).argmax()
        assert abs(edge / size - 0.5) <= 0.5 / size
        assert (resized == resized[0, 0]).all()


def test_a_label_pixel_is_the_class_with_the_largest_share() -> None:
    stack = np.random.default_rng(1).integers(0, 4, (5, 16, 16)).astype(np.uint8)
    share = np.stack([halved(halved((stack == k).astype(float), 1), 2) for k in range(4)])
    ordered = np.sort(share, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(resize_labels(stack, 8)[clear], share.argmax(axis=0)[clear])
    np.testing.assert_array_equal(resize_labels(stack, 16), stack)


@pytest.mark.parametrize("n", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_a_stack_of_any_length_is_resized_slice_by_slice(n: int) -> None:
    stack = np.random.default_rng(2).integers(0, 3, (n, 6, 9)).astype(np.uint8)
    one_by_one = [resize_labels(each[None], 5)[0] for each in stack]
    np.testing.assert_array_equal(resize_labels(stack, 5), one_by_one)
    one_by_one = [resize_images(each[None], 5)[0] for each in stack]
    np.testing.assert_allclose(resize_images(stack, 5), one_by_one, atol=1e-6)


@pytest.mark.parametrize("plane", PLANES)
def test_probabilities_come_back_to_the_grid_of_the_volume(plane: str) -> None:
    shape = (20, 24, 19)
    labels = np.zeros(shape, np.uint8)
    labels[4:12, 6:20, 3:15] = 1
    labels[12:17, 8:18, 5:12] = 2
    small = resize_labels(volume_to_slices(labels, plane), 48)
    certain = torch.nn.functional.one_hot(torch.from_numpy(small).long(), 3).permute(0, 3, 1, 2).float()
    np.testing.assert_array_equal(labels_from_probabilities([certain], shape, plane), labels)
    for size in (1, 7):  # whatever the batches
        np.testing.assert_array_equal(labels_from_probabilities(certain.split(size), shape, plane), labels)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("crop", [0.5, 0.8, 0.99])
def test_a_cropped_slice_comes_back_to_its_place(plane: str, crop: float) -> None:
    """Sides both shorter and longer than the window, even and odd; what lies outside is background."""
    shape = (20, 25, 13)
    labels = np.zeros(shape, np.uint8)
    labels[7:13, 9:16, 5:9] = 1
    labels[9:12, 12:16, 6:8] = 2
    stack = cut(volume_to_slices(labels, plane), crop)
    sides = {size for axis, size in enumerate(shape) if axis != PLANES.index(plane)}
    assert stack.shape[1] == stack.shape[2] == round(crop * max(sides))
    small = resize_labels(stack, 4 * stack.shape[1])
    certain = torch.nn.functional.one_hot(torch.from_numpy(small).long(), 3).permute(0, 3, 1, 2).float()
    np.testing.assert_array_equal(labels_from_probabilities([certain], shape, plane, crop=crop), labels)
    all_one = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand_as(certain)
    everywhere = labels_from_probabilities([all_one], shape, plane, crop=crop)
    assert (everywhere > 0).sum() == cut(np.ones_like(volume_to_slices(labels, plane)), crop).sum()


def test_a_crop_that_loses_labels_is_refused(data: Dataset, tmp_path: Path) -> None:
    data = replace(data, description=replace(data.description, crop=0.1))
    with pytest.raises(
        ValueError, match=r"Expected the labels of .* in the central 0.1 of its \w+ slices, got \d+ labelled voxels"
    ):
        SliceStore(data, tmp_path / "cache", size=8).labels(data.cases[0], data.description.main_plane)


def test_probabilities_are_resized_before_the_largest_wins() -> None:
    probabilities = torch.tensor([[[[0.9, 0.45]], [[0.1, 0.55]]]]).expand(3, 2, 1, 2)
    grown = labels_from_probabilities([probabilities], (4, 8, 3), "transaxial")
    # class 0 falls from 0.9 to 0.45 on the way and leads for 8/9 of it: all but the last two of eight
    np.testing.assert_array_equal(grown, np.broadcast_to((np.arange(8) >= 6)[None, :, None], (4, 8, 3)))


def test_probabilities_are_taken_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the batches nor the resized probabilities are ever held whole, and pieces change nothing."""
    stack = torch.rand(9, 4, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(1)
    whole = labels_from_probabilities([stack], (32, 40, 9), "transaxial", crop=0.9)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def batches() -> Iterator[torch.Tensor]:
        for part in stack.split(2):
            alive.add(batch := part.clone())
            yield batch
            del batch
            assert len(alive) <= 1

    most = []
    resize = slices_module._linear
    monkeypatch.setattr(slices_module, "VALUES", 4 * 36 * 36)
    monkeypatch.setattr(slices_module, "_linear", lambda x, size: most.append(len(x)) or resize(x, size))
    np.testing.assert_array_equal(labels_from_probabilities(batches(), (32, 40, 9), "transaxial", crop=0.9), whole)
    assert most == [1] * 9


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ([torch.zeros(7, 2, 4, 4)], "7 slices"),
        ([], "0 slices"),
        ([torch.zeros(5, 2, 4, 4)] * 2, r"shape \(5, 2, 4, 4\) behind 5 of them"),
        ([torch.zeros(8, 4, 4)], r"shape \(8, 4, 4\) behind 0 of them"),
    ],
)
def test_probabilities_of_another_volume(given: list[torch.Tensor], got: str) -> None:
    expected = r"Expected probabilities \(n, C, S, S\) of the 8 transaxial slices of \(\d+, \d+, 8\), got "
    with pytest.raises(ValueError, match=expected + got):
        labels_from_probabilities(given, SHAPE, "transaxial")


# The store


@pytest.mark.parametrize("plane", PLANES)
def test_the_store_serves_what_resizing_says(store: SliceStore, data: Dataset, plane: str) -> None:
    volume = load_volume(data.cases[1], data.description, percentiles=(0, 100))
    images, labels = store.slices(data.cases[1], plane)
    assert images.dtype == labels.dtype == np.uint8
    wanted = resize_images(volume_to_slices(volume.image, plane), 8)
    assert np.abs(images / 255 - wanted).max() <= 1 / 510 + 1e-6
    assert volume.label is not None
    np.testing.assert_array_equal(labels, resize_labels(volume_to_slices(volume.label, plane), 8))
    assert set(np.unique(labels)) == {0, 1}


def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases whose volumes are read from now on."""
    read: list[str] = []

    def reading(case: Case, *args: Any, **kwargs: Any):
        read.append(case.id)
        return load_volume(case, *args, **kwargs)

    monkeypatch.setattr(module, "load_volume", reading)
    return read


def test_a_case_is_read_once_and_only_when_asked_for(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = built(monkeypatch)
    store = SliceStore(data, tmp_path / "cache", size=8)
    assert read == []
    for plane in PLANES:
        store.slices(data.cases[2], plane)
    SliceStore(data, tmp_path / "cache", size=8).slices(data.cases[2], "coronal")
    assert read == ["p2"]
    assert {path.name for path in store.cache.iterdir()} == {store.path(data.cases[2]).name, "contents.json"}


def test_a_cached_file_that_does_not_fit_is_never_found(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, case = tmp_path / "cache", data.cases[0]
    SliceStore(data, cache, size=8).slices(case, "coronal")
    read = built(monkeypatch)

    def fresh(changed: Dataset = data, **options: Any) -> np.ndarray:
        read.clear()
        store = SliceStore(changed, cache, **{"size": 8, **options})
        labels = store.slices(changed.cases[0], "coronal")[1]
        assert read == [case.id]
        return labels

    assert fresh(size=16).shape[1:] == (16, 16)
    fresh(percentiles=(2, 98))
    swapped = Description("x", ("RV", "LV"), (600, 500))
    assert set(np.unique(fresh(Dataset(data.root, swapped, data.cases)))) == {0, 2}
    fewer = Description("x", ("LV", "RV"), (500, 600), planes=("coronal",))
    fresh(Dataset(data.root, fewer, data.cases))
    assert case.label is not None
    before = case.label.stat()
    write(tmp_path, 0, value=600)
    os.utime(case.label, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same name, size and date
    assert set(np.unique(fresh())) == {0, 2}
    case.image.write_bytes(case.image.read_bytes() + b"longer")
    fresh()
    os.utime(case.image, ns=(0, 0))
    with pytest.raises(AssertionError):  # a date is no content
        fresh()
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    fresh()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"not a zip file",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:],
        lambda whole: whole.replace(b"image_", b"imagx_"),
        lambda whole: pickle.dumps({"image_coronal": 1}),
    ],
)
def test_a_damaged_cache_is_built_again(store: SliceStore, data: Dataset, damage) -> None:
    case = data.cases[0]
    wanted = [store.slices(case, plane) for plane in PLANES]
    path = store.path(case)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    for plane, pair in zip(PLANES, wanted, strict=True):
        np.testing.assert_array_equal(store.slices(case, plane), pair)


def test_a_cache_of_another_size_inside_is_built_again(store: SliceStore, data: Dataset) -> None:
    wanted = store.images(data.cases[0], "sagittal")
    np.savez(store.path(data.cases[0]), image_sagittal=np.zeros((6, 4, 4), np.uint8))
    np.testing.assert_array_equal(store.images(data.cases[0], "sagittal"), wanted)


def test_a_write_that_fails_leaves_nothing(store: SliceStore, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.np, "savez", full)
    with pytest.raises(ValueError, match=r"room on the disk for .*p0-.*\.npz, got 'No space left on device'"):
        store.images(data.cases[0], "coronal")
    assert list(store.cache.iterdir()) == []


def test_what_the_store_refuses(store: SliceStore, data: Dataset, tmp_path: Path) -> None:
    case = data.cases[0]
    with pytest.raises(ValueError, match="`plane` to be one of"):
        store.images(case, "axial")
    bare = Case("bare", "bare", case.image, None)
    assert store.images(bare, "coronal").shape == (7, 8, 8)
    with pytest.raises(ValueError, match="a label file for case 'bare', got none"):
        store.labels(bare, "coronal")
    with pytest.raises(ValueError, match="`size`"):
        SliceStore(data, tmp_path / "cache", size=0)


# The slices as training sees them


def test_an_item(store: SliceStore, data: Dataset) -> None:
    held = SliceDataset(store, data.cases[:2], ("coronal", "transaxial"), labels=True)
    assert len(held) == 2 * (7 + 8)
    item = held[15 + 7 + 3]  # second case, transaxial, fourth of eight
    images, labels = store.slices(data.cases[1], "transaxial")
    assert (item["plane"], item["case"], item["position"]) == (2, 1, 3.5 / 8)
    assert item["slice"] == "p1 transaxial 3"
    assert item["image"].dtype == torch.float32
    np.testing.assert_array_equal(item["image"][0].numpy(), images[3].astype(np.float32) / 255)
    assert item["label"].dtype == torch.int64
    np.testing.assert_array_equal(item["label"].numpy(), labels[3])
    assert {tuple(sorted(each)) for each in held} == {("case", "image", "label", "plane", "position", "slice")}
    batch = next(iter(torch.utils.data.DataLoader(held, batch_size=4)))
    assert batch["image"].shape == (4, 1, 8, 8)
    assert batch["position"].tolist() == [0.5 / 7, 1.5 / 7, 2.5 / 7, 3.5 / 7]


def test_without_labels_there_are_none(store: SliceStore, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "labels", lambda *_: pytest.fail("labels were read"))
    held = SliceDataset(store, data.cases[:1], PLANES, labels=False)
    assert held.labels is None
    assert all("label" not in item for item in held)
    assert len(held) == sum(SHAPE)


def test_slices_without_foreground_may_be_left_out(store: SliceStore, data: Dataset) -> None:
    held = SliceDataset(store, data.cases[:2], PLANES, labels=True, empty=False)
    assert all(item["label"].any() for item in held)
    assert len(held) == 2 * (2 + 3 + 3)
    assert [item["position"] for item in held][:2] == [2.5 / 6, 3.5 / 6]
    with pytest.raises(ValueError, match="`labels=True` with `empty=False`"):
        SliceDataset(store, data.cases, PLANES, labels=False, empty=False)
    with pytest.raises(ValueError, match="at least one case and one plane"):
        SliceDataset(store, (), PLANES, labels=True)


def patients(held: SliceDataset) -> set[str]:
    return {held.cases[item["case"]].patient for item in held}


def test_the_door_gives_a_stage_what_it_may_see(store: SliceStore) -> None:
    assert patients(training_slices(store, SPLIT, "global", PLANES, labels=False)) == {"p0", "p1"}
    held = training_slices(store, SPLIT, "local", ("coronal",), labels=True, empty=False)
    assert patients(held) == {"p1"}
    assert {item["plane"] for item in held} == {1}
    assert patients(training_slices(store, SPLIT, "global", PLANES, labels=False, patients=["p0"])) == {"p0"}


@pytest.mark.parametrize(
    ("asked", "labels", "reason"),
    [
        (["p0"], True, "not labelled"),
        (["p1", "p2"], True, "validation"),
        (["p2"], False, "validation"),
        (["p0", "p3"], False, "test"),
        (["p3"], True, "test"),
        (["p9"], False, "no part"),
    ],
)
def test_the_door_asks_the_guard_before_it_reads(
    store: SliceStore, asked: list[str], labels: bool, reason: str
) -> None:
    with pytest.raises(LeakError, match=rf"in stage 'pretraining'.*{reason}"):
        training_slices(store, SPLIT, "pretraining", PLANES, labels=labels, patients=asked)
    assert not store.cache.exists()


@pytest.mark.parametrize(("part", "patient"), [("validation", "p2"), ("test", "p3")])
def test_evaluation_sees_every_slice_of_the_main_plane(
    store: SliceStore, data: Dataset, part: Any, patient: str
) -> None:
    held = evaluation_slices(store, SPLIT, part)
    assert patients(held) == {patient}
    assert {item["plane"] for item in held} == {PLANES.index("transaxial")}
    assert len(held) == SHAPE[2]
    assert [item["position"] for item in held] == sorted(item["position"] for item in held)
    with pytest.raises(ValueError, match="`part`"):
        evaluation_slices(store, SPLIT, "train")  # pyright: ignore[reportArgumentType]


def test_a_split_of_another_data_set(store: SliceStore) -> None:
    other = Split(("p0", "q"), ("p2",), ("r",), ("p0",))
    with pytest.raises(ValueError, match=r"the patients of the split in .*, got no \['q'\]"):
        training_slices(store, other, "global", PLANES, labels=False)
    with pytest.raises(ValueError, match=r"got no \['r'\]"):
        evaluation_slices(store, other, "test")


# The real sets, where they lie beside the repository; elsewhere a generated tree of the same layout


@pytest.mark.parametrize(("name", "least"), [("hippocampus", 0.98), ("acdc", 0.88)])
def test_real_slices_keep_nearly_all_of_a_label_at_their_default_size(tmp_path: Path, name: str, least: float) -> None:
    root = REAL / name
    if not (root / "dataset.json").is_file():
        root = tmp_path
        case = write(tmp_path, 0, value=1)
        assert case.label is not None
        labels = {"0": "background", "1": "one"}
        training = [{"image": case.image.name, "label": case.label.name}]
        (root / "dataset.json").write_text(json.dumps({"name": name, "labels": labels, "training": training}))
    data = open_dataset(root)
    store = SliceStore(data, tmp_path / "cache", size=data.description.slice_size)
    case, plane = data.cases[0], data.description.main_plane
    images, labels = store.slices(case, plane)
    assert 0.05 < images.mean() / 255 < 0.95
    truth = load_volume(case, data.description).label
    assert truth is not None
    classes = len(data.description.classes) + 1
    certain = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).permute(0, 3, 1, 2)
    back = labels_from_probabilities([certain], truth.shape, plane, crop=data.description.crop)
    for k in range(1, classes):
        dice = 2 * ((back == k) & (truth == k)).sum() / ((back == k).sum() + (truth == k).sum())
        assert dice > least
