"""What people do with their own data: nothing of theirs is lost, nothing old is served as new, nobody sits on two sides.

What is said before the first step is in `test_checks`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.data.contents import Contents
from examples.mmwhs.data.datasets import Reading, open_dataset
from examples.mmwhs.data.description import PLANES, Case, Description
from examples.mmwhs.data.patients import suspected
from examples.mmwhs.data.splits import LeakError, Split, make_split
from examples.mmwhs.data.volumes import load_volume, to_original
from examples.mmwhs.train import methods
from examples.mmwhs.train import run as module
from examples.mmwhs.train.run import run
from examples.mmwhs.train.setup import Setup
from tests.examples.test_datasets import REAL, counting, msd, save
from tests.examples.tiny import command, short, write_tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tiny", volumes=5)


# 1. Nothing of somebody else's is written to, or swept


@pytest.mark.parametrize("what", ["run", "demo", "table", "ablation"])
@pytest.mark.parametrize(
    "name", ["report.html", ".0a1b.part-thesis.tex", f".{'0a' * 16}.part-mine", ".lock", "notes/x"]
)
def test_a_folder_of_somebody_else_is_left_as_it_is(
    what: str, name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    words = [word for word in command(data, tmp_path / "out", what=what)]
    assert main(words) == 2
    assert f"to be new, empty or made by `{'table' if what == 'ablation' else what}`" in capsys.readouterr().err
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "mine"


def test_a_folder_of_another_command_is_refused(tmp_path: Path) -> None:
    files.own(tmp_path / "out", "table")
    with pytest.raises(ValueError, match="got one made by 'examples.mmwhs table'"):
        files.own(tmp_path / "out", "run")
    (tmp_path / "out" / files.MARK).write_text("{}")
    with pytest.raises(ValueError, match="got one made by None"):
        files.own(tmp_path / "out", "run")


# 2. What a run has seen is in its identity


def negate(path: Path) -> None:
    """Other voxels under the same name, size and date."""
    before, image = path.stat(), nib.load(path)
    nib.save(nib.Nifti1Image(-np.asanyarray(image.dataobj), image.affine), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".aside"))
    other.rename(one)
    one.with_suffix(".aside").rename(other)


def test_other_data_under_the_same_names_are_named_and_refused(data: Path, tmp_path: Path) -> None:
    chosen = short(data)
    run(chosen, tmp_path / "run")
    split = Split.load(tmp_path / "run" / "split.json")
    (test,), (one, two) = split.test, split.labelled

    def changed(change: Any) -> str:
        kept = tmp_path / "kept"
        shutil.copytree(data, kept, copy_function=shutil.copy2)
        change()
        with pytest.raises(ValueError, match=r"Expected .*run to be a folder of this run, got other contents: ") as e:
            run(chosen, tmp_path / "run")
        shutil.rmtree(data)
        kept.rename(data)
        run(chosen, tmp_path / "run")  # as it was
        return str(e.value)

    labels, images = data / "labelsTr", data / "imagesTr"
    said = changed(lambda: swap(labels / f"{one}.nii.gz", labels / f"{two}.nii.gz"))
    assert all(f"label of {patient}" in said for patient in (one, two))
    assert f"image of {test}" in changed(lambda: negate(images / f"{test}.nii.gz"))
    source = data / "dataset.json"
    said = changed(lambda: source.write_text(source.read_text().replace('"ball"', '"cube"')))
    assert "structure 3 is 'ball' there and 'cube' here" in said


def test_a_digest_is_made_once_and_is_of_what_is_behind_the_compression(data: Path, tmp_path: Path) -> None:
    path = data / "imagesTr" / "tiny_00.nii.gz"
    first = Contents(tmp_path)
    digest = first.of(path)
    first.keep()
    packed = Contents(tmp_path)
    packed.of(path)
    assert not packed.new  # remembered
    image = nib.load(path)
    nib.save(image, tmp_path / "plain.nii")
    assert packed.of(tmp_path / "plain.nii") == digest
    negate(path)
    assert Contents(tmp_path).of(path) != digest


def test_what_a_stage_sees_decides_its_key_and_nothing_else(data: Path, tmp_path: Path) -> None:
    def keys() -> list[str]:
        setup = Setup.of(short(data, "mmgl"), tmp_path / "cache")
        return [*setup.keys(), setup.key()]

    before = keys()
    split = Setup.of(short(data, "mmgl"), tmp_path / "cache").split
    negate(data / "imagesTr" / f"{split.test[0]}.nii.gz")
    after = keys()
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, True, False]
    negate(data / "imagesTr" / f"{split.labelled[0]}.nii.gz")
    assert not set(keys()) & set(after)


# 3. Nobody on two sides


@pytest.mark.parametrize(
    ("names", "starts"),
    [
        (["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame09", "patient003_frame01",
          "patient003_frame02"], {"patient001_frame", "patient002_frame", "patient003_frame"}),
        (["p01a", "p01b", "p02a", "p02b", "p03a", "p03b"], {"p01", "p02", "p03"}),
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w"],
         {"sub-01_ses", "sub-02_ses"}),
        (["p01_a", "p01_b", "p02_a", "p03_a", "p04_a", "p05_a"], {"p01"}),
        (["p01", "p02", "p02_b", "p03", "p04"], {"p02"}),
        ([f"hippocampus_{i:03}" for i in range(20)], set()),
        ([f"tg4510_tp3_{i}_2013052{i % 4}_{'WU'[i % 2]}T" for i in range(1, 20)], set()),
        (["liver", "spleen", "colon"], set()),
        ([str(i) for i in range(30)], set()),
    ],
)  # fmt: skip
def test_names_that_suggest_several_scans_of_one(names: list[str], starts: set[str]) -> None:
    assert set(suspected(names)) == starts


def frames(root: Path, **changes: object) -> Path:
    """Six patients with two frames each."""
    names = tuple(f"patient{i:03}_frame{j:02}" for i in range(1, 7) for j in (1, 9))
    msd(root, names, **changes)
    for number, name in enumerate(names):
        save(root / "imagesTr" / f"{name}.nii.gz", counting() + number)
    return root


def sides(data: Any) -> Split:
    return make_split(data, labelled=1, seed=0)


def test_two_frames_of_a_patient_are_on_one_side(tmp_path: Path) -> None:
    known = open_dataset(frames(tmp_path / "known", name="ACDC"))  # by the set's name
    assert len(known.patients) == 6
    assert not known.notes
    unknown = open_dataset(frames(tmp_path / "unknown"))
    assert len(unknown.patients) == 12
    assert unknown.notes[0].startswith("WARNING: every volume counts as a patient, but names suggest several of one: ")
    rule = re.search(r"--patients '(.*)'\.", unknown.notes[0])
    assert rule is not None
    ruled = open_dataset(tmp_path / "unknown", patients=rule[1])  # as the warning says
    assert ruled.patients == known.patients
    assert len(ruled.cases_of(sides(ruled).train)) == 2 * len(sides(ruled).train)
    assert not ruled.notes
    with pytest.raises(
        ValueError, match=r"a patient by 'x\(\.\)' in every case's name, got none in patient001_frame01"
    ):
        open_dataset(tmp_path / "unknown", patients="x(.)")
    with pytest.raises(ValueError, match="`patients` to be a regular expression"):
        open_dataset(tmp_path / "unknown", patients="(")


def test_folds_of_nnunet_are_honoured_and_may_not_cut_a_patient_in_two(tmp_path: Path) -> None:
    root = frames(tmp_path / "set")
    cases = [case.id for case in open_dataset(root).cases]
    folds = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[1:], "val": cases[:1]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    data = open_dataset(root, patients=r"(patient\d+)")
    split = sides(data)
    assert split.test == ("patient001",)
    assert {*split.train, *split.validation} == set(data.patients[1:])
    assert any("splits_final.json" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"no patient in both `train` and `test` of .*, got \['patient001'\]"):
        open_dataset(root, patients=r"(patient\d+)", split="1")
    with pytest.raises(ValueError, match=r"a fold from 0 to 1 in .*, got 2"):
        open_dataset(root, split="2")
    (root / "splits_final.json").write_text(json.dumps([{k: [f"{c}.nii.gz" for c in v] for k, v in folds[0].items()}]))
    assert sides(open_dataset(root, patients=r"(patient\d+)")).test == ("patient001",)
    for content, said in (
        ([], "a split, or a list of folds, in .*, got nothing"),
        (
            {"train": cases[:4], "val": cases[4:6], "test": cases[6:]},
            "got one split and not folds, of which to take number 1",
        ),
        ([folds[0], {"train": ["x"], "val": ["y"]}], r"got none of x, y\. Cases are called patient001_frame01, "),
    ):
        (root / "splits_final.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=said):
            open_dataset(root, split="1" if content else "0")
    (root / "splits_final.json").write_text(json.dumps([{"train": cases[:2], "val": cases[2:]}]))
    with pytest.raises(ValueError, match="2 patients with labels in `train` of a fold of .*, got 1"):
        sides(open_dataset(root, patients=r"(patient\d+)"))
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(folds[:1]))
    assert sides(open_dataset(root, patients=r"(patient\d+)", split=f"{elsewhere}:0")).test == ("patient001",)
    (root / "splits_final.json").write_text(json.dumps([{"train": cases[4:], "val": cases[:2]}]))
    with pytest.raises(ValueError, match="every patient in a part of .*, got no patient002_frame01"):
        open_dataset(root)


def test_one_image_under_two_names_is_on_one_side(data: Path, tmp_path: Path) -> None:
    split = Setup.of(short(data), tmp_path / "cache").split
    test, trained = split.test[0], split.labelled[0]
    image = nib.load(data / "imagesTr" / f"{test}.nii.gz")
    image.header["descrip"] = b"a copy"
    nib.save(image, data / "imagesTr" / f"{trained}.nii.gz")
    with pytest.raises(LeakError, match=rf"the same voxels in .*{test} \(test\).*--patients"):
        run(short(data), tmp_path / "run")


def test_the_split_is_printed_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("\n".join(lines)))
    with pytest.raises(pytest.fail.Exception) as raised:
        run(short(data, "mmgl"), tmp_path / "run", say=lines.append)
    said = str(raised.value)
    split = Split.load(tmp_path / "run" / "split.json")
    for part in ("train", "validation", "test", "labelled"):
        assert f"{part}: {len(getattr(split, part))} patients" in said
        assert f"({', '.join(getattr(split, part))})" in said
    assert "5 cases of 5 patients" in said
    assert "stage 1, global (global): 2 steps of 4, sagittal, coronal, transaxial, all training patients" in said
    assert all(line in (tmp_path / "run" / "log.txt").read_text() for line in lines)


@pytest.mark.skipif(not (REAL / "mouse").is_dir(), reason="the set of mice is not beside the repository")
def test_the_mice_are_read_as_they_lie_there() -> None:
    mice = open_dataset(REAL / "mouse")
    assert (len(mice.patients), len(mice.description.classes)) == (25, 20)
    assert mice.description.planes == PLANES
    assert mice.notes == ()
    assert load_volume(mice.cases[0], mice.description).label is not None


# 4. Names chosen by users


@pytest.mark.parametrize("labels", [{"1": "x", "2": "x"}, {"1": "mean", "2": "mean"}])
def test_two_structures_of_one_name_are_refused(labels: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every structure of .* to have its own name, got '(x|mean)' twice in 1: "):
        open_dataset(msd(tmp_path, labels={"0": "background", **labels}))


def test_a_new_line_in_a_name_is_a_space(tmp_path: Path) -> None:
    data = open_dataset(msd(tmp_path, labels={"0": "background", "1": " left\n ventricle ", "2": "b"}))
    assert data.description.structures["1"] == "left ventricle"


def test_two_methods_of_one_title_or_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(f"{{extends: random, title: {folder}}}")
    with pytest.raises(ValueError, match="every method once, got 'x' twice"):
        methods.load_all([tmp_path / "a" / "x.yaml", tmp_path / "b" / "x.yaml"])
    (tmp_path / "y.yaml").write_text("{extends: random, title: Random}")
    with pytest.raises(ValueError, match=r"own title, got \['Random'\] of \['random', 'y'\]"):
        methods.load_all(["random", tmp_path / "y.yaml"])
    assert main(["demo", "--methods", "random", str(tmp_path / "y.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


# 7. Most decide, and who differs is named


def test_one_odd_volume_decides_for_nobody_else(tmp_path: Path) -> None:
    root = msd(tmp_path, tuple("abcdefg"))
    save(root / "imagesTr" / "a.nii.gz", counting((40, 5, 6)), np.diag([1.0, 1.0, 9.0, 1.0]))  # the first
    data = open_dataset(root)
    assert (data.description.planes, data.description.slice_size) == (PLANES, 16)
    assert any(note.startswith("a would be sliced in other planes") for note in data.notes)
    assert any(note.startswith("a are unlike") or note.startswith("a is unlike") for note in data.notes)
    chosen = open_dataset(root, planes=["coronal", "sagittal"]).description
    assert (chosen.planes, chosen.main_plane) == (("sagittal", "coronal"), "coronal")
    with pytest.raises(ValueError, match="Did you mean 'coronal'"):
        open_dataset(root, planes=["corona"])


# 8. One sentence, and a status of its own


def test_names_are_neither_markup_nor_formulas(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a[b] [red]c[:red] $x^$ :smile: ä"
    data = data.rename(tmp_path / name)
    source = data / "dataset.json"
    source.write_text(source.read_text().replace('"ball"', json.dumps(name)))
    words = command(data, tmp_path / f"{name} out")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert str(data) in said.replace("\n", "")
    assert f"  {name}" in said
    (data / "imagesTr" / "tiny_00.nii.gz").write_bytes(b"")
    assert main([*words[:-1], "cpu"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--data", "x", "--labelled", "many"], "labelled"),
        (["run"], "data"),
        (["table", "--data", "x", "--seeds", "1..x"], "`seeds` like 3 or 0..4"),
        (["nothing"], "nothing"),
        (["run", "--data", "x", "--config", "none.yaml"], "none.yaml of --config, got no such file"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert len(lines[0]) < 500


@pytest.mark.parametrize(("what", "number"), [("run", signal.SIGTERM), ("table", signal.SIGINT)])
def test_a_signal_ends_with_its_own_status_and_says_how_to_go_on(
    what: str, number: signal.Signals, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(data, out, "--set", "scale.schedules.finetune.steps=60000", what=what)
    words += ["--methods", "random", "random_ds", "--seeds", "0", "--jobs", "2"] if what == "table" else []
    with subprocess.Popen(
        [sys.executable, "-m", "examples.mmwhs", *words], cwd=ROOT, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which whoever runs the tests may ignore, as nohup does
    ) as child:  # fmt: skip
        end = time.monotonic() + 240
        while not list(out.rglob("last.ckpt")):
            assert time.monotonic() < end
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert f"stopped by {number.name}. The same command goes on from here." in said.decode()
    assert "Traceback" not in said.decode()


# 9. Nearly right files


def test_a_scale_factor_may_leave_a_label_a_little_off(tmp_path: Path) -> None:
    values = (counting() % 3).astype(np.float64)
    label = nib.Nifti1Image(values + 4e-8 * (values > 0), np.eye(4))
    label.set_data_dtype(np.float64)
    image, path = save(tmp_path / "i.nii.gz", counting()), tmp_path / "l.nii.gz"
    nib.save(label, path)
    described = Description("x", ("a", "b"), (1, 2))
    np.testing.assert_array_equal(load_volume(Case("a", "a", image, path), described).label, values)
    raw = bytearray(save(tmp_path / "l.nii", (100 * values).astype(np.uint8)).read_bytes())
    raw[112:116] = np.float32(0.01).tobytes()  # scl_slope: 100 of these are .99999998
    (tmp_path / "l.nii").write_bytes(raw)
    np.testing.assert_array_equal(load_volume(Case("a", "a", image, tmp_path / "l.nii"), described).label, values)
    for off in (0.01, 0.4):
        nib.save(nib.Nifti1Image(values + off, np.eye(4)), path)
        with pytest.raises(ValueError, match=rf"label values 0, 1, 2 in .*, got {off:g}, {1 + off:g}, {2 + off:g}"):
            load_volume(Case("a", "a", image, path), described)


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_a_fourth_axis_of_one_is_none(more: tuple[int, ...], tmp_path: Path) -> None:
    label = (counting() % 3).astype(np.uint8)
    image = save(tmp_path / "i.nii.gz", counting().reshape(*counting().shape, *more))
    path = save(tmp_path / "l.nii.gz", label.reshape(*label.shape, *more))
    described = Description("x", ("a", "b"), (1, 2))
    volume = load_volume(Case("a", "a", image, path), described)
    np.testing.assert_array_equal(volume.label, label)
    np.testing.assert_array_equal(to_original(label, nib.load(image), described).dataobj, label)
    with pytest.raises(ValueError, match=r"got shape \(4, 5, 6, 2\)\. It holds 2 volumes: save the one to use"):
        load_volume(Case("a", "a", save(tmp_path / "i.nii.gz", counting((4, 5, 6, 2))), None), described)


def nnunet(root: Path, channels: dict[str, str], **changes: object) -> Path:
    for number, name in enumerate(("a_1", "b_1", "c_1", "d_1")):
        for key in channels:
            save(root / "imagesTr" / f"{name}_{int(key):04}.nii.gz", counting() + 10 * number + int(key))
        save(root / "labelsTr" / f"{name}.nii.gz", (counting() % 3).astype(np.uint8))
    content = {"channel_names": channels, "labels": {"background": 0, "LV": 1, "RV": 2}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**content, "numTraining": 4, **changes}), encoding="utf-8-sig")
    return root


def test_a_raw_data_set_of_nnunet(tmp_path: Path) -> None:
    data = open_dataset(nnunet(tmp_path / "one", {"0": "CT"}))
    assert [case.id for case in data.cases] == ["a_1", "b_1", "c_1", "d_1"]
    assert data.description.structures == {"1": "LV", "2": "RV"}
    assert all(load_volume(case, data.description).label is not None for case in data.cases)
    root = nnunet(tmp_path / "two", {"0": "T1", "1": "T2"})
    with pytest.raises(ValueError, match=r"one channel in .*, got 2\. Choose with --modality, .*: 0 T1, 1 T2\."):
        open_dataset(root)
    for modality in ("T2", "1"):
        chosen = open_dataset(root, **asdict(Reading(modality=modality)))
        assert [case.image.name for case in chosen.cases] == [f"{name}_1_0001.nii.gz" for name in "abcd"]
        assert [case.id for case in chosen.cases] == ["a_1", "b_1", "c_1", "d_1"]
    with pytest.raises(ValueError, match="Regions and labels to ignore are not read"):
        open_dataset(nnunet(tmp_path / "three", {"0": "CT"}, labels={"background": 0, "whole": [1, 2]}))


def test_equal_names_in_different_folders(tmp_path: Path) -> None:
    entries = []
    for number, patient in enumerate("abcd"):
        for kind, array in (("image", counting() + number), ("label", (counting() % 3).astype(np.uint8))):
            save(tmp_path / "all" / patient / "scan" / f"{kind}.nii.gz", array)
        entries.append({kind: f"all/{patient}/scan/{kind}.nii.gz" for kind in ("image", "label")})
    labels = {"0": "background", "1": "one", "2": "two"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    assert [case.id for case in open_dataset(tmp_path).cases] == list("abcd")


# Volumes without a label


def test_volumes_without_labels_serve_the_stages_that_need_none(data: Path, tmp_path: Path) -> None:
    for number in range(5, 8):
        rng = np.random.default_rng(number)
        save(data / "imagesTr" / f"extra_{number}.nii.gz", rng.normal(100, 9, (18, 20, 12)).astype(np.float32))
    source = data / "dataset.json"
    content = json.loads(source.read_text())
    content["training"] += ["imagesTr/extra_5.nii.gz", {"image": "imagesTr/extra_6.nii.gz"},
                            {"image": "imagesTr/extra_7.nii.gz", "label": None}]  # fmt: skip
    source.write_text(json.dumps(content))
    metrics = run(short(data, "mmgl"), tmp_path / "run")
    split = Split.load(tmp_path / "run" / "split.json")
    extra = {"extra_5", "extra_6", "extra_7"}
    assert extra <= set(split.train)
    assert not extra & {*split.labelled, *split.validation, *split.test}
    stages = metrics["stages"]
    assert stages["global"]["patients"] == len(split.train)
    assert stages["local"]["patients"] == stages["finetune"]["patients"] == 2
    for seed in range(6):
        assert not extra & set(make_split(open_dataset(data), labelled=1.0, seed=seed).labelled)


# 10. No name of a person in a label


def test_what_the_header_of_an_image_says_does_not_go_into_its_label(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counting(), np.diag([2.0, 2, 2, 1]))
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, 1970"))
    described = Description("x", ("a",), (1,))
    nib.save(to_original(np.ones((4, 5, 6), np.uint8), image, described), tmp_path / "label.nii")
    assert b"Jane" not in (tmp_path / "label.nii").read_bytes()
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii").affine, image.affine)
