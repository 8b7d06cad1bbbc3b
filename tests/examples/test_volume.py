"""Full 3-D: patches that cover a volume, image and label moved alike, and the same stages on them."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.mmwhs.data.augment import Augment, Settings
from examples.mmwhs.data.store import cut_out, patches
from examples.mmwhs.train import config, methods
from examples.mmwhs.train.evaluate import segment_volume
from examples.mmwhs.train.predict import predict, restore
from examples.mmwhs.train.run import run
from tests.examples.tiny import SHORT, settings, write_tree


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.sampled_from([4, 8, 16])] * 3),
)
def test_patches_cover_every_voxel_and_hold_what_is_there(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    volume = 1 + np.arange(np.prod(shape)).reshape(shape)
    seen = set()
    for corner in patches(shape, patch):
        part = cut_out(volume, corner, patch)
        assert part.shape == patch
        seen |= set(part.ravel().tolist())
        inside = [(c, s) for c, s, n in zip(corner, patch, shape, strict=True) if n >= s]
        assert all(c >= 0 for c, _ in inside)
    assert seen - {0} == set(volume.ravel().tolist())


def test_image_and_label_move_alike_and_angles_are_of_voxels() -> None:
    torch.manual_seed(0)
    label = torch.zeros(4, 16, 32, 16, dtype=torch.long)
    label[:, 5:11, 10:22, 5:11] = 1
    move = Augment(Settings(rotation=40.0, zoom=(0.9, 1.1), shift=0.05))
    image, moved = move(label[:, None].float(), label)
    assert moved is not None
    assert not torch.equal(moved, label)
    assert ((image[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.99
    only = Augment(Settings(rotation=40.0))
    _, turned = only(label[:, None].float(), label)
    assert turned is not None
    kept = turned.sum((1, 2, 3)) / label.sum((1, 2, 3))
    assert (kept - 1).abs().max() < 0.1  # a turn keeps volumes, whatever the sides of a patch
    assert torch.equal(Augment("none")(image, label)[0], image)


def test_the_sliding_window_is_the_network_where_one_patch_is_all() -> None:
    net = torch.nn.Conv3d(1, 3, 1)
    image = np.random.default_rng(0).random((8, 16, 8), np.float32)
    found = segment_volume(net, image, (8, 16, 8), torch.device("cpu"))
    with torch.no_grad():
        wanted = net(torch.from_numpy(image)[None, None])[0].argmax(0)
    np.testing.assert_array_equal(found, wanted.numpy())


def test_all_stages_run_on_volumes_and_predict_segments_one(tmp_path: Path) -> None:
    data = write_tree(tmp_path / "tiny", volumes=5)
    scale = replace(SHORT, slice_size=None, patch=[16, 16, 16])
    chosen = replace(settings(data), scale=scale, method=methods.load(config.Method, "mmgl"))
    lines: list[str] = []
    metrics = run(chosen, tmp_path / "run", say=lines.append)
    assert any(" patches of " in line for line in lines)
    assert not any(" slices of " in line for line in lines)
    assert (
        metrics["stages"]["global"]["slices"] == 2 * 2 * metrics["stages"]["global"]["patients"]
    )  # 18 x 20 x 12 voxels
    assert metrics["stages"]["local"]["patients"] == 2
    assert set(metrics["per_volume"]) == {"dice", "hd95", "assd"}
    image = next((data / "imagesTr").iterdir())
    (out,) = predict(tmp_path / "run" / "model.pt", image, tmp_path / "label.nii.gz")
    assert nib.load(out).shape == nib.load(image).shape
    net, _, values = restore(tmp_path / "run" / "model.pt")
    assert values["patch"] == [16, 16, 16]
    assert net(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    with pytest.raises(ValueError, match="a network of slices for probabilities"):
        predict(tmp_path / "run" / "model.pt", image, tmp_path / "x.nii.gz", with_probabilities=True)
    with pytest.raises(ValueError, match="sides of `patch` in multiples of 16"):
        replace(scale, patch=[16, 16, 24])
