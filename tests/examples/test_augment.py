"""Augmentation moves image and label together, and repeats itself from a seed."""

import pytest
import torch

from examples.mmwhs.data.augment import AUGMENTATIONS, Augment, Settings

SIZE = 48
GEOMETRY = {
    "affine": Settings(rotation=20.0, zoom=(0.8, 1.1), shift=0.05),
    "elastic": Settings(elastic=1.0),
    "flip": Settings(flip=0.5),
    "all": Settings(rotation=20.0, zoom=(0.8, 1.1), shift=0.05, elastic=0.5, flip=0.5),
}


@pytest.fixture
def labels() -> torch.Tensor:
    """Two blocks that no mirror or turn maps onto themselves."""
    labels = torch.zeros(64, SIZE, SIZE, dtype=torch.int64)
    labels[:, 8:20, 8:20] = 1
    labels[:, 20:42, 32:40] = 2
    return labels


def centre(mass: torch.Tensor) -> torch.Tensor:
    """The centre of mass of each map, in pixels."""
    at = torch.arange(SIZE, dtype=torch.float32)
    total = mass.sum((1, 2))
    return torch.stack([(mass * at[:, None]).sum((1, 2)) / total, (mass * at).sum((1, 2)) / total], dim=1)


@pytest.mark.parametrize("settings", GEOMETRY.values(), ids=GEOMETRY)
def test_a_label_painted_as_the_image_stays_the_label(settings: Settings, labels: torch.Tensor) -> None:
    for structure in (1, 2):
        image = (labels == structure).float()
        moved, after = Augment(settings)(image[:, None], labels)
        assert after is not None
        assert after.dtype == labels.dtype
        assert set(after.unique().tolist()) == {0, 1, 2}
        mask = (after == structure).float()
        assert not torch.equal(after, labels)
        assert (moved[:, 0] - mask).abs().mean() < 0.02  # of edges alone
        apart = centre(moved[:, 0]) - centre(mask)
        assert apart.abs().max() < 0.6  # rounding, which evens out
        assert apart.mean(0).abs().max() < 0.1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_repeats_it_and_images_differ(name: str, labels: torch.Tensor) -> None:
    images = torch.rand(1, 1, SIZE, SIZE).expand(64, 1, SIZE, SIZE)
    before = images.clone()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(Augment(name)(images, labels))
    assert torch.equal(images, before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    once, again = results[0][0], Augment(name)(images, labels)[0]
    if name == "none":
        assert torch.equal(once, images)
    else:
        assert not torch.equal(once, again)
        assert not torch.equal(once[0], once[1])
        assert once.isfinite().all()


def test_without_labels_the_image_is_the_same(labels: torch.Tensor) -> None:
    images = torch.rand(64, 1, SIZE, SIZE)
    torch.manual_seed(1)
    alone, none = Augment("contrast")(images)
    torch.manual_seed(1)
    together, _ = Augment("contrast")(images, labels)
    assert none is None
    assert torch.equal(alone, together)


def test_intensity_leaves_the_geometry(labels: torch.Tensor) -> None:
    ramp = torch.linspace(0.3, 0.7, SIZE).expand(64, 1, SIZE, SIZE)
    bright, after = Augment(Settings(brightness=(1.1, 1.2), contrast=(0.8, 1.2), gamma=(0.7, 1.4)))(ramp, labels)
    assert torch.equal(after, labels)
    assert not torch.equal(bright, ramp)
    assert (bright.diff(dim=-1) >= 0).all()  # order of intensities kept


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="Did you mean 'contrast'"):
        Augment("contrasts")
