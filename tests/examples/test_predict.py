"""Predicting from an exported network: orientation, values, and files that are not what they should be."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.data.datasets import open_dataset
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.train import predict as module
from examples.mmwhs.train.predict import export, predict
from mmgl_losses import UNet
from tests.examples.tiny import VALUES, stored, volume, write_tree

ARCHITECTURE = {"in_channels": 1, "out_channels": 3, "channels": (4, 4, 4, 4, 4)}


class Threshold(torch.nn.Module):
    """Dark, middle and bright: class 2, 0 and 1. A network that is known to be right."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 50 * torch.cat([0.25 - (x - 0.5).abs(), x - 0.75, 0.25 - x], dim=1) * self.one


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model.pt whose network classifies by intensity."""
    monkeypatch.setattr(module, "UNet", Threshold)
    return exported(tmp_path, Threshold())


def exported(folder: Path, net: torch.nn.Module) -> Path:
    store = SliceStore(open_dataset(write_tree(folder / "data", 3)), folder / "cache", size=32)
    export(folder / "model.pt", net, ARCHITECTURE, store)
    return folder / "model.pt"


def painted(codes: str) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A volume whose intensities tell its labels, and the labels, both stored in an orientation."""
    _, label = volume(np.random.default_rng(5))
    label[:3, -2:, :2] = VALUES[0]  # a corner that no mirroring or turning keeps
    label[:, :, 9:] *= label[:, :, 9:] == VALUES[0]
    image = np.full(label.shape, 50, np.float32)
    image[label == VALUES[0]], image[label == VALUES[1]] = 100, 0
    return stored(image, codes), stored(label, codes)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_labels_come_back_on_the_grid_of_the_image(codes: str, model: Path, tmp_path: Path) -> None:
    image, truth = painted(codes)
    nib.save(image, tmp_path / "image.nii.gz")
    (out,) = predict(model, tmp_path / "image.nii.gz", tmp_path / "new" / "label.nii.gz")
    result = nib.load(out)
    assert result.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine)
    assert nib.aff2axcodes(result.affine) == tuple(codes)
    array, wanted = np.asanyarray(result.dataobj), np.asanyarray(truth.dataobj)
    assert np.issubdtype(array.dtype, np.integer)
    assert set(np.unique(array)) == {0, *VALUES}
    overlap = 2 * ((array == wanted) & (wanted > 0)).sum() / ((array > 0).sum() + (wanted > 0).sum())
    assert overlap > 0.9  # resizing takes some of the edges; a wrong axis takes far more


def test_the_trained_network_is_the_one_that_predicts(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = UNet(**ARCHITECTURE).eval()
    restored, description, _ = module.restore(exported(tmp_path, net))
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(restored(x), net(x))
    assert not restored.training
    assert (description.classes, description.values) == (("ball", "box"), VALUES)


def test_nothing_is_overwritten_unasked(model: Path, tmp_path: Path) -> None:
    image, _ = painted("RAS")
    nib.save(image, tmp_path / "image.nii.gz")
    before = (tmp_path / "image.nii.gz").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no file at"):
            predict(model, tmp_path / "image.nii.gz", tmp_path / "image.nii.gz", overwrite=overwrite)
    assert (tmp_path / "image.nii.gz").read_bytes() == before
    (tmp_path / "label.nii.gz").write_text("old")
    with pytest.raises(ValueError, match="no file at"):
        predict(model, tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    predict(model, tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", overwrite=True)
    assert nib.load(tmp_path / "label.nii.gz").shape == image.shape


def test_folders_and_several_volumes_go_into_a_folder(model: Path, tmp_path: Path) -> None:
    for folder, name in (("one", "a"), ("one", "b"), ("two", "c")):
        (tmp_path / folder).mkdir(exist_ok=True)
        nib.save(painted("LPS")[0], tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "one" / "notes.txt").write_text("no volume")
    lines: list[str] = []
    given = [tmp_path / "one", tmp_path / "two" / "c.nii.gz"]
    written = predict(model, given, tmp_path / "out", with_probabilities=True, say=lines.append)
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert lines[-1] == f"3 of 3: wrote {tmp_path / 'out' / 'c.nii.gz'}"
    with np.load(tmp_path / "out" / "a_probabilities.npz") as stored:
        shares = stored["probabilities"].astype(float)
    assert shares.shape == (12, 3, 32, 32)
    np.testing.assert_allclose(shares.sum(1), 1, atol=2e-3)
    with pytest.raises(
        ValueError, match=r"no file at .*a\.nii\.gz, got one\. Choose another name, or give --overwrite"
    ):
        predict(model, given, tmp_path / "out")
    with pytest.raises(ValueError, match="a folder for the labels of 2 volumes"):
        predict(model, tmp_path / "one", tmp_path / "x.nii.gz")
    (tmp_path / "two" / "a.nii.gz").write_bytes((tmp_path / "one" / "a.nii.gz").read_bytes())
    with pytest.raises(ValueError, match="volumes of different names"):
        predict(model, [tmp_path / "one", tmp_path / "two"], tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="NIfTI volumes in .*empty, got none"):
        predict(model, tmp_path / "empty", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_volume_that_cannot_be_used_takes_no_other_with_it(model: Path, tmp_path: Path) -> None:
    """What a header says is known before the first volume; what voxels say, when it is their turn."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        nib.save(painted("LPS")[0], folder / f"{name}.nii.gz")
    (folder / "._a.nii.gz").write_bytes(b"what macOS leaves beside a file")
    broken = np.asanyarray(painted("LPS")[0].dataobj).copy()
    broken[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(broken, np.eye(4)), folder / "b.nii.gz")
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"finite intensities in .*b\.nii\.gz, got 1 of \d+ voxels .*nan_to_num"):
        predict(model, folder, tmp_path / "out", say=lines.append)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["a.nii.gz", "c.nii.gz"]
    assert f"2 of 3: failed: {folder / 'b.nii.gz'}" in lines
    nib.save(nib.Nifti1Image(np.stack([broken] * 2, axis=-1), np.eye(4)), folder / "b.nii.gz")
    with pytest.raises(ValueError, match="It holds 2 volumes"):
        predict(model, folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_field_of_view_unlike_training_is_said(model: Path, tmp_path: Path) -> None:
    image = painted("RAS")[0]
    for factor, warned in ((1.0, False), (1.3, False), (2.0, True), (0.4, True)):
        lines: list[str] = []
        affine = image.affine @ np.diag([factor, factor, factor, 1.0])
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), tmp_path / "image.nii.gz")
        predict(model, tmp_path / "image.nii.gz", tmp_path / "x.nii.gz", overwrite=True, say=lines.append)
        assert any("WARNING" in line and "field of view" in line for line in lines) == warned


def test_a_killed_write_leaves_no_half_of_a_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nib.save(painted("RAS")[0], tmp_path / "image.nii.gz")

    def half(_: object, path: Path) -> None:
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module.nib, "save", half)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path / "image.nii.gz", tmp_path / "out" / "label.nii.gz")
    assert not list((tmp_path / "out").iterdir())


class Evil:
    """What a pickle can hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code in a checkpoint was run",))


@pytest.mark.parametrize("what", ["none", "text", "empty", "pickle", "other"])
def test_what_is_no_model_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if what == "text":
        path.write_text("not a checkpoint")
    elif what == "empty":
        path.touch()
    elif what == "pickle":
        torch.save({"format": Evil()}, path)
    elif what == "other":
        torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"model.pt of a finished run"):
        module.restore(path)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {}},
        {"architecture": {**ARCHITECTURE, "channels": (10**6,) * 5}},
        {"architecture": {**ARCHITECTURE, "weights": "/etc/passwd"}},
        {"architecture": None},
        {"state_dict": {}},
        {"state_dict": None},
        {"data": None},
        {"data": {"name": "x", "classes": 1, "values": [], "main_plane": "coronal", "crop": 1.0}},
        {"data": {"name": "x", "classes": ["a"], "values": [1], "main_plane": "../coronal", "crop": 1.0}},
        {"data": {"name": "x", "classes": ["a"], "values": [1], "main_plane": "coronal", "crop": float("nan")}},
        {"slice_size": 0},
        {"slice_size": "160"},
        {"percentiles": [99, 1]},
        {"percentiles": [1]},
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    """With channels of a million, before any memory is taken for them."""
    path = exported(tmp_path, UNet(**ARCHITECTURE))
    files.save(path, {**files.load(path), **change})
    with pytest.raises(
        ValueError, match=r"^Expected .*model.pt of a finished run, got parts that do not fit \([^\n]+\)\.$"
    ):
        module.restore(path)


def test_the_command_line_says_it_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.nii.gz"
    arguments = ["predict", "--checkpoint", str(tmp_path / "model.pt"), str(image), "-o", str(tmp_path / "x.nii.gz")]
    assert main(arguments) == 2
    assert "image.nii.gz, got no file" in capsys.readouterr().err
    nib.save(painted("RAS")[0], image)
    assert main(arguments) == 2
    assert "model.pt of a finished run, got no file" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "x.png")]) == 2
    assert ".nii or .nii.gz" in capsys.readouterr().err


def test_the_command_line_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path, UNet(**ARCHITECTURE))
    image = tmp_path / "image.nii.gz"
    shutil.copy(tmp_path / "data" / "imagesTr" / "tiny_01.nii.gz", image)
    assert main(["predict", "--checkpoint", str(path), str(image), "-o", str(tmp_path / "x.nii.gz")]) == 0
    assert nib.load(tmp_path / "x.nii.gz").shape == nib.load(image).shape
    assert "x.nii.gz" in capsys.readouterr().out
