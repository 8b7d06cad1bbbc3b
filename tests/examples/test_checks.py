"""Found before the first step: what would end a run after hours, or make it worthless."""

import errno
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.data.splits import Split
from examples.mmwhs.study import probe
from examples.mmwhs.train import check, config, methods
from examples.mmwhs.train import run as module
from examples.mmwhs.train.run import run
from examples.mmwhs.train.setup import Setup
from tests.examples.tiny import SHORT, VALUES, command, short, write_tree


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tiny", volumes=5)


def broken_label(data: Path, split: Split) -> None:
    path = data / "labelsTr" / f"{split.test[0]}.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(label.dataobj) + 90, label.affine), path)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("label", r"label values 0, 3, 7 in .*labelsTr.*, got 90, 93, 97"),
        ("formula", r"stage 'local' to be built and stepped, got .*formula"),
        ("head", r"stage 'finetune' to be built and stepped, got .*SegmentationHaed"),
        ("tap", r"stage 'local' to be built and stepped, got .*decoder\.blocks\.9"),
        ("accelerator", r"a machine for --accelerator gpu --devices 1"),
        ("devices", r"a machine for --accelerator cpu --devices 0"),
        ("disk", r"MB on the disk for .*run, got 0\.0 MB"),
    ],
)
def test_what_would_end_a_run_after_hours_is_said_before(
    what: str, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "formula": ["stages.local.loss.options.formula=suppcon"],
        "head": ["stages.finetune.head.name=SegmentationHaed"],
        "tap": ["stages.local.taps=[decoder.blocks.1,decoder.blocks.2,decoder.blocks.9]"],
    }
    chosen = replace(short(data, "mmgl"), method=methods.load(config.Method, "mmgl", changes.get(what, [])))
    if what == "accelerator":
        chosen = replace(chosen, compute=config.Compute(accelerator="gpu"))
    elif what == "devices":
        chosen = replace(chosen, compute=config.Compute(accelerator="cpu", devices=0))
    elif what == "label":
        broken_label(data, Setup.of(chosen, tmp_path / "cache").split)
    elif what == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # pyright: ignore
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=said):
        run(chosen, tmp_path / "run")


def test_check_is_a_command_that_opens_every_file_and_trains_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(data, tmp_path / "out", "--method", "mmgl", what="check")
    assert main(words) == 0
    assert "stage 3, finetune (finetune): 6 steps of 6" in capsys.readouterr().out
    split = Setup.of(short(data, "mmgl"), tmp_path / "cache").split
    unlabelled = next(patient for patient in split.train if patient not in split.labelled)
    for patient in (unlabelled, split.test[0]):
        (data / "labelsTr" / f"{patient}.nii.gz").write_bytes(b"")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(f"labelsTr/{patient}.nii.gz" in said for patient in (unlabelled, split.test[0]))
    assert not (tmp_path / "out").exists()


def test_every_method_of_a_demo_is_checked_before_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(data, tmp_path / "out", "--methods", "random", "mmgl", what="demo")
    assert main([*words, "--set", "stages.local.loss.options.formula=suppcon"]) == 2
    assert "stage 'local' to be built and stepped" in capsys.readouterr().err
    assert not (tmp_path / "out" / "random").exists()


def test_a_table_is_checked_before_any_of_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(data, tmp_path / "out", "--seeds", 0, "--methods", "random", "mmgl", what="table")
    assert main([*words, "--set", "stages.local.loss.options.formula=suppcon"]) == 2
    assert "stage 'local' to be built and stepped" in capsys.readouterr().err
    assert not (tmp_path / "out" / "stages").exists()


def test_a_full_disk_is_one_sentence_and_what_is_prepared_counts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five volumes of 18 x 20 x 12 voxels, image and label, in slices of 32 x 32: half a megabyte."""
    slices = 5 * 2 * (18 + 20 + 12) * 32 * 32
    for free, wanted in ((slices, True), (slices + 10 * 2**20, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=free: shutil._ntuple_diskusage(n, n, n))  # pyright: ignore
        setup = Setup.of(short(data), tmp_path / "cache")
        if wanted:
            with pytest.raises(ValueError, match=r"Expected 0\.\d MB on the disk for .*, got 0\.5 MB"):
                check.fits(setup, tmp_path, setup.dataset.cases)
        else:
            check.fits(setup, tmp_path, setup.dataset.cases)
    setup = Setup.of(short(data), tmp_path / "cache")
    before = sum(setup.store.bytes_of(case) for case in setup.dataset.cases)
    check.opens(setup, setup.dataset.cases)
    assert before == slices
    assert sum(setup.store.bytes_of(case) for case in setup.dataset.cases) == 0
    written = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.npz"))
    assert slices < written < slices + 5 * 4096

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    setup = Setup.of(short(data), tmp_path / "other")
    with pytest.raises(files.FullError) as raised:
        check.opens(setup, setup.dataset.cases)
    assert len(str(raised.value).splitlines()) == 1


# What can be known of a configuration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("scale.slice_size=0", "`slice_size` to be an integer of at least 1, got 0"),
        ("scale.validation_slices=0", "`validation_slices` to be an integer of at least 1, got 0"),
        ("scale.kept=worst", r"a scale, got kept: worst where one of \['best', 'last'\] is expected"),
        ("scale.slice_size=2.5", "a scale, got slice_size: 2.5 where int or null is expected"),
        ("scale.foo=1", "a scale, got no key 'foo' is known"),
        ("scale.schedules.finetune.steps=many", "a scale, got schedules.steps: many where int is expected"),
        ("scale.schedules.new.steps=2", "a scale, got schedules: no value of every, batch_size, learning_rate"),
        ("stages.finetune.foo=1", "a method, got stages: no key 'foo' is known"),
        ("stages.finetune.labelled=all", "a method, got stages.labelled: all where int or float or null is expected"),
        ("stages.finetune.teaching={a: 1}", "a method, got stages.teaching: no key 'a' is known"),
        ("stages.finetune.copies=0", "Expected `copies of stage 'finetune'` to be an integer of at least 1, got 0"),
        ("stages.finetune.labelled=99", "`labelled` of at most 3, the training patients, got 99"),
        ("stages.finetune.inherits=[encoder, head]", "stage 'finetune' to be built and stepped, got .*`head`"),
        (
            "stages.finetune.loss.options={reduction: none, cross_entropy: 0.0}",
            r"DeepSupervisionDice, to return one number, got dict\. Leave `reduction` out",
        ),
        ("scale.channels=[4, 0]", r"`channels\[1\]` to be an integer of at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(
    change: str, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path / "out", "--set", change, "--method", "random", what="check")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert "class" not in line
    assert "value." not in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workers", "-1"), "`workers` to be an integer of at least 0, got -1"),
        (("--devices", "4"), "`batch_size` of stage 'local' to be a multiple of 4 processes, got 3"),
        (("--rotation", "nan"), "rotation: nan where float or null is expected. See --help."),
        (("--labelled", "many"), "labelled: many where int or float is expected. See --help."),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(
    words: tuple[str, ...], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(command(data, tmp_path / "out", *words, what="check"))
    except SystemExit as error:
        code = error.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_batch_of_one_is_tried_as_one(data: Path, tmp_path: Path) -> None:
    """Batch norm has nothing to normalise over where slices of 16 pixels end in one."""
    finetune = replace(SHORT.schedules["finetune"], batch_size=1)
    scale = replace(SHORT, slice_size=16, schedules={"finetune": finetune})
    with pytest.raises(ValueError, match=r"stage 'finetune' to be built and stepped, got .*more than 1 value"):
        run(replace(short(data), scale=scale), tmp_path / "run")


# What can be known of labels


def without(data: Path, *values: int) -> None:
    """Takes structures out of all labels."""
    for path in (data / "labelsTr").iterdir():
        label = nib.load(path)
        array = np.asanyarray(label.dataobj)
        nib.save(nib.Nifti1Image(np.where(np.isin(array, values), 0, array).astype(np.uint8), label.affine), path)


def test_a_structure_that_nobody_shows_is_said(data: Path, tmp_path: Path) -> None:
    without(data, VALUES[1])
    lines: list[str] = []
    metrics = run(short(data), tmp_path / "run", say=lines.append)
    assert [line for line in lines if line.startswith("WARNING")] == [
        "WARNING: no labelled patient shows box: no network can learn it.",
        "WARNING: no validation patient shows box: it has no part in choosing weights.",
        "WARNING: no test patient shows box: it has no score.",
    ]
    assert metrics["pooled"]["dice"]["each"][str(VALUES[1])] is None


@pytest.mark.parametrize("what", ["run", "demo", "table"])
def test_labelled_patients_without_a_label_are_refused(
    what: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without(data, *VALUES)
    more = {"run": ["--method", "random"], "demo": ["--methods", "random"], "table": ["--methods", "random"]}[what]
    assert main(command(data, tmp_path / "out", *more, what=what)) == 2
    labelled = Setup.of(short(data), tmp_path / "cache").split.labelled
    said = f"Expected labels of a structure in the labelled patients, got none in {', '.join(labelled)}. Look at"
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.ckpt"))


def test_a_network_of_any_depth_is_probed(data: Path, tmp_path: Path) -> None:
    """A table does so after its last stage."""
    run(replace(short(data), scale=replace(SHORT, channels=[4, 8])), tmp_path / "run")
    found = probe.probe(tmp_path / "run")
    assert list(found["finetune"]) == ["encoder.blocks.0", "encoder.bottleneck", "decoder.blocks.0"]
