"""Volumes without labels: they are found, serve what needs no label, decide nothing else, and never leak."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from examples.mmwhs.data.datasets import Dataset, open_dataset
from examples.mmwhs.data.splits import LeakError, guard, make_split
from examples.mmwhs.data.store import SliceStore, training_slices
from examples.mmwhs.options import parser, reading_of
from examples.mmwhs.train import config
from examples.mmwhs.train.setup import Setup
from tests.examples.tiny import settings, stored, volume, write_tree


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tiny")


def add(folder: Path, *names: str, seed: int = 99) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        nib.save(stored(volume(rng)[0], "RAS"), folder / f"{name}.nii.gz")
    return folder


def seen(dataset: Dataset, cache: Path, *, labels: bool) -> set[str]:
    """The cases that a stage gets."""
    split = make_split(dataset, labelled=1, seed=0)
    slices = training_slices(SliceStore(dataset, cache, size=16), split, "stage", ("transaxial",), labels=labels)
    return {case.id for case in slices.cases}


def without_labels(data: Path, *numbers: int, plain: bool) -> None:
    content = json.loads((data / "dataset.json").read_text())
    for number in numbers:
        entry = content["training"][number]
        content["training"][number] = entry["image"] if plain else {"image": entry["image"]}
    (data / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("plain", [True, False])
def test_entries_without_a_label(data: Path, tmp_path: Path, plain: bool) -> None:
    without_labels(data, 0, 4, plain=plain)
    dataset = open_dataset(data)
    bare = {"tiny_00", "tiny_04"}
    assert dataset.unlabelled == bare
    split = make_split(dataset, labelled=1.0, seed=0)
    assert bare <= set(split.train)
    assert not bare & {*split.labelled, *split.validation, *split.test}
    assert bare < seen(dataset, tmp_path / "c", labels=False)
    assert not bare & seen(dataset, tmp_path / "c", labels=True)


def test_images_ts_serve_unless_labels_are_kept_for_them(data: Path, tmp_path: Path) -> None:
    before = make_split(open_dataset(data), labelled=2, seed=3)
    add(data / "imagesTs", "tiny_50", "tiny_51")
    (data / "imagesTs" / "._tiny_50.nii.gz").write_bytes(b"of a Mac")
    dataset = open_dataset(data)
    assert dataset.unlabelled == {"tiny_50", "tiny_51"}
    assert {"tiny_50", "tiny_51"} < seen(dataset, tmp_path / "c", labels=False)
    after = make_split(dataset, labelled=2, seed=3)
    for part in ("validation", "test", "labelled"):  # what has labels is split as it was
        assert getattr(after, part) == getattr(before, part)
    (data / "labelsTs").mkdir()
    assert not open_dataset(data).unlabelled


def test_images_alone_of_an_mmwhs_tree(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path / "ct_train", f"ct_train_100{number}_image", f"ct_train_100{number}_label", seed=number)
    add(tmp_path / "ct_test", "ct_test_2001_image")
    dataset = open_dataset(tmp_path)
    assert dataset.unlabelled == {"ct_test_2001"}
    assert "ct_test_2001" in make_split(dataset, labelled=1, seed=0).train


def test_a_folder_of_further_volumes(data: Path, tmp_path: Path) -> None:
    before = open_dataset(data)
    more = add(tmp_path / "more", "other_1", "tiny_00")  # a name that is taken gets its folder's, too
    add(tmp_path / "more" / "deep", "tiny_00", seed=5)
    args = parser().parse_args(["check", "--data", str(data), "--unlabelled", str(more)])
    reading = reading_of(args["check"])
    assert reading.unlabelled == [str(more.resolve())]
    dataset = open_dataset(data, unlabelled=reading.unlabelled)
    assert dataset.unlabelled == {"other_1", "more_tiny_00", "deep_tiny_00"}
    assert dataset.description == before.description
    assert dataset.unlabelled < seen(dataset, tmp_path / "c", labels=False)
    assert any("3 volumes have no label" in note for note in dataset.notes)
    for wrong, reason in ((tmp_path / "none", "an existing folder"), (tmp_path / "empty", "none")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=reason):
            open_dataset(data, unlabelled=[str(wrong)])
    with pytest.raises(ValueError, match="every unlabelled volume once"):
        open_dataset(data, unlabelled=[str(more), str(more)])


def test_they_do_not_decide_how_the_others_are_sliced(data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number in range(20):
        array = np.random.default_rng(number).normal(size=(60, 60, 4)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 9.0, 1.0])), more / f"thick_{number}.nii.gz")
    dataset = open_dataset(data, unlabelled=[str(more)])
    assert dataset.description == open_dataset(data).description
    assert any("would be sliced in other planes" in note for note in dataset.notes)


def test_the_other_scan_of_a_test_patient_is_not_trained_on(data: Path, tmp_path: Path) -> None:
    rule = r"^(?:again_)?(tiny_\d+)"
    test = make_split(open_dataset(data, patients=rule), labelled=1, seed=0).test[0]
    more = add(tmp_path / "more", f"again_{test}", "again_tiny_77")
    dataset = open_dataset(data, patients=rule, unlabelled=[str(more)])
    split = make_split(dataset, labelled=1, seed=0)
    assert test in split.test
    trained = seen(dataset, tmp_path / "c", labels=False)
    assert "again_tiny_77" in trained
    assert f"again_{test}" not in trained
    with pytest.raises(LeakError):
        guard(split, [dataset.cases_of([test])[0].patient], "stage", labels=False)
    assert any("several of one" in note for note in open_dataset(data, unlabelled=[str(add(more, f"{test}_b"))]).notes)


def test_a_split_file_need_not_name_them_and_may_know_their_patients(data: Path, tmp_path: Path) -> None:
    names = [f"tiny_{number:02d}" for number in range(9)]
    (data / "splits.json").write_text(json.dumps({"train": names[:5], "val": names[5:7], "test": names[7:]}))
    more = add(tmp_path / "more", "tiny_08_late", "stranger")
    dataset = open_dataset(data, unlabelled=[str(more)])
    split = make_split(dataset, labelled=1, seed=0)
    assert set(split.train) == {*names[:5], "stranger"}
    trained = seen(dataset, tmp_path / "c", labels=False)
    assert "tiny_08_late" not in trained
    assert "stranger" in trained


def test_the_same_voxels_under_another_name_are_refused(data: Path, tmp_path: Path) -> None:
    test = make_split(open_dataset(data), labelled=1, seed=0).test[0]
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(data / "imagesTr" / f"{test}.nii.gz", more / "new.nii.gz")
    reading = config.Reading(unlabelled=[str(more)])
    with pytest.raises(LeakError, match=f"the same voxels in .*new .train.*{test}|{test}.*new .train"):
        Setup.of(settings(data, reading=reading), tmp_path / "c")


def test_they_are_in_the_identity_of_what_needs_no_label_and_of_that_alone(data: Path, tmp_path: Path) -> None:
    more = add(tmp_path / "more", "other")
    reading = config.Reading(unlabelled=[str(more)])
    plain = Setup.of(settings(data, "mmgl"), tmp_path / "c").keys()
    with_more = Setup.of(settings(data, "mmgl", reading=reading), tmp_path / "c").keys()
    assert not set(plain) & set(with_more)  # the first stage needs no label, and the others follow it
    one, other = (Setup.of(settings(data, "random_ds_selftrain", reading=r), tmp_path / "c").keys()
                  for r in (config.Reading(), reading))  # fmt: skip
    assert one[0] == other[0]
    assert one[1] != other[1]
    seen = Setup.of(settings(data, "random_ds_selftrain", reading=reading), tmp_path / "c").seen()
    assert "image of other" in seen
    assert "label of other" not in seen
