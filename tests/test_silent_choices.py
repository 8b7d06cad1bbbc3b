"""What people do around a loss: what is certain is taken, what is doubtful is said once, what has no effect is refused."""

import re
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, RandFlipd, ScaleIntensityd
from torch import nn

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.functional import global_contrast, local_supcon, pair_terms, soft_dice
from mmgl_losses.losses.points import sampled

X, Y, E = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 16, 16)), torch.randn(4, 5)


def test_labels_that_mean_no_label_are_pointed_out():
    for value in (255, -1, -100):
        labels = Y.clone()
        labels[0, 0] = value
        with pytest.warns(
            UserWarning, match=f"`labels` hold {value}, which usually marks.*pass `ignore_index={value}`"
        ):
            local_supcon(X, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            local_supcon(X, labels, ignore_index=value)
            local_supcon(X, Y)


def test_keys_that_hold_the_batch_are_pointed_out():
    ids = torch.tensor([0, 0, 1, 1])
    queue, key_ids = torch.cat([torch.randn(6, 5), E]), torch.cat([torch.arange(6) + 7, ids])
    with pytest.warns(UserWarning, match="`keys` hold rows of `embeddings` themselves"):
        global_contrast(E, ids, keys=queue, key_instances=key_ids)
    with pytest.warns(UserWarning, match="Add a batch to the queue after its loss"):
        MultiScaleGlobalContrast(weights=(1.0,))([E], ids, keys=[queue], key_instances=key_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        global_contrast(E, ids, keys=queue[:6], key_instances=key_ids[:6])


@pytest.mark.parametrize("make", [np.float32, np.float64, torch.tensor])
def test_numbers_of_numpy_and_tensors_are_numbers(make):
    torch.testing.assert_close(global_contrast(E, temperature=make(0.25)), global_contrast(E, temperature=0.25))
    assert MultiScaleLocalSupCon(weights=[make(0.5)])([X], Y) == MultiScaleLocalSupCon(weights=[0.5])([X], Y)
    assert soft_dice(X, Y, smooth=make(0.5), cross_entropy=make(0.25)) == soft_dice(
        X, Y, smooth=0.5, cross_entropy=0.25
    )
    terms = pair_terms(E, torch.arange(4), temperature=make(0.5), tolerance=make(1.0), bound=make(20.0))
    assert terms.n_positives.tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize("make", [np.int64, np.int32, torch.tensor])
def test_whole_numbers_likewise(make):
    wanted = local_supcon(X, Y, ignore_index=2, stride=2)
    assert local_supcon(X, Y, ignore_index=make(2), stride=make(2)) == wanted
    assert soft_dice(X, Y, ignore_index=make(2)) == soft_dice(X, Y, ignore_index=2)


def test_weights_and_instances_as_people_have_them():
    wanted = DeepSupervisionDice(weights=(0.25, 0.75))
    levels = [X[..., ::2, ::2], X]
    for weights in (np.array([0.25, 0.75]), torch.tensor([0.25, 0.75]), [0.25, 0.75]):
        assert DeepSupervisionDice(weights=weights)(levels, Y) == wanted(levels, Y)
        assert DeepSupervisionDice(weights=weights).weights == (0.25, 0.75)
    wanted = global_contrast(E, torch.tensor([0, 1, 0, 1]))
    for instances in ([0, 1, 0, 1], (0, 1, 0, 1), np.array([0, 1, 0, 1]), [np.int64(0), torch.tensor(1), 0, 1]):
        assert global_contrast(E, instances) == wanted
    wanted = local_supcon(X, Y, torch.tensor([5, 5]), pairs="augmentations")
    for instances in ([5, 5], np.array([5, 5]), [np.int64(5), torch.tensor(5)]):
        assert local_supcon(X, Y, instances, pairs="augmentations") == wanted


@pytest.mark.parametrize("kind", [MultiScaleGlobalContrast, MultiScaleLocalSupCon])
def test_a_temperature_that_is_not_trained_is_a_number(kind):
    for temperature in (torch.tensor(0.25), np.array(0.25), np.float32(0.25)):
        assert kind(weights=(1.0,), temperature=temperature).options.temperature == 0.25


@pytest.mark.parametrize("float_labels", [False, True])
def test_labels_with_their_channels_last(float_labels):
    classes, one = torch.nn.functional.one_hot(Y), Y[..., None]
    for labels, cure, mended in (
        (classes, "argmax(-1)", classes.argmax(-1)),
        (one, f"squeeze(-1){'.long()' * float_labels}", one.squeeze(-1)),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(f"with `labels.{cure}`.")):
            local_supcon(X, labels.float() if float_labels else labels)
        assert torch.equal(mended, Y)


def test_labels_between_classes_are_not_cut_down():
    mixed = torch.nn.functional.interpolate(Y[:, None].float(), scale_factor=2, mode="bilinear")
    for labels in (mixed, mixed[:, 0]):
        with pytest.raises(
            TypeError, match=r"torch.float32 that holds .*\. Labels are class indices; resample .*nearest"
        ):
            local_supcon(X, labels)


@pytest.mark.parametrize("kind", [MetaTensor, type("Marked", (torch.Tensor,), {})])
def test_tensors_that_carry_more_are_the_tensors_they_are(kind):
    x, y, e, i = (
        t.as_subclass(kind) if kind is not MetaTensor else MetaTensor(t) for t in (X, Y, E, torch.arange(4) % 2)
    )
    for function, plain, dressed in (
        (local_supcon, (X, Y), (x, y)),
        (soft_dice, (X, Y), (x, y)),
        (global_contrast, (E, torch.arange(4) % 2), (e, i)),
        (lambda a, b: pair_terms(a, b, temperature=0.5).negative_lse.sum(), (E, torch.arange(4) % 2), (e, i)),
        (lambda a, b: MultiScaleLocalSupCon(weights=(1.0,))([a], b), (X, Y), (x, y)),
        (lambda a, b: MultiScaleGlobalContrast(weights=(1.0,))([a], b), (E, torch.arange(4) % 2), (e, i)),
        (lambda a, b: DeepSupervisionDice(weights=(1.0,))([a], b), (X, Y), (x, y)),
    ):
        value = function(dressed[0].clone().requires_grad_(), dressed[1])
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, function(*plain))
        leaf = dressed[0].clone().requires_grad_()
        function(leaf, dressed[1]).backward()
        other = plain[0].clone().requires_grad_()
        function(other, plain[1]).backward()
        torch.testing.assert_close(torch.Tensor(leaf.grad), other.grad)
    with pytest.raises(ValueError, match="Expected `labels` in 0 ... 2, got"):
        soft_dice(x, y + 7)


def test_a_loader_of_monai_trains_all_three():
    keys = ["image", "label"]
    items = [{"image": torch.rand(16, 16), "label": torch.randint(3, (16, 16))} for _ in range(4)]
    transforms = Compose([
        EnsureChannelFirstd(keys, channel_dim="no_channel"), ScaleIntensityd("image"), RandFlipd(keys, prob=0.5),
        EnsureTyped(keys),
    ])  # fmt: skip
    body, pooled = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)
    losses = (
        MultiScaleLocalSupCon(weights=(1.0,)),
        DeepSupervisionDice(weights=(1.0,)),
        MultiScaleGlobalContrast(weights=(1.0,)),
    )
    for batch in DataLoader(Dataset(items, transforms), batch_size=4):
        image, label = batch["image"], batch["label"].squeeze(1).long()
        assert isinstance(image, MetaTensor)
        features = body(image)
        total = losses[0]([features], label) + losses[1]([features], label) + losses[2]([pooled(features.mean((2, 3)))])
        total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in (*body.parameters(), pooled.weight))


@pytest.mark.parametrize("place", [(77, 81), (0, 0), (157, 157), (90, 33)])
def test_foreground_sampling_loses_no_structure_at_a_coarser_level(place):
    """3 x 3 pixels, at features of a quarter of the size: a point with their label is there, with the feature that holds it."""
    labels = torch.zeros(1, 160, 160, dtype=torch.int64)
    rows, columns = (slice(p, p + 3) for p in place)
    labels[0, rows, columns] = 1
    features = torch.arange(1600.0).view(1, 1, 40, 40).expand(1, 2, 40, 40)
    z, y = sampled(features, labels, stride=4, sampling="foreground", excluded=(0,))
    assert z.shape == (1, 100, 2)
    assert (y == 1).any()
    at = z[0, y[0] == 1, 0].long()
    held = {(r // 4) * 40 + c // 4 for r in range(place[0], place[0] + 3) for c in range(place[1], place[1] + 3)}
    assert set(at.tolist()) <= held


def test_foreground_sampling_where_labels_are_coarser_than_features():
    labels = torch.tensor([[[0, 1], [2, 3]]])
    loss = local_supcon(torch.randn(1, 4, 8, 8), labels, sampling="foreground", stride=2)
    assert loss.isfinite()
    assert loss > 0
