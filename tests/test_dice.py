"""Soft Dice against loops, its laws, and peers."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmgl_losses import DeepSupervisionDice
from mmgl_losses.functional import soft_dice
from tests import oracles
from tests.strategies import matrices

options = st.fixed_dictionaries(
    {
        "include_background": st.booleans(),
        "batch": st.booleans(),
        "squared": st.booleans(),
        "smooth": st.sampled_from([1e-5, 1.0]),
        "ignore_index": st.sampled_from([None, 2, 255]),
        "class_weights": st.sampled_from([None, (1.0, 0.5, 0.25), (0.0, 2.0, 1.0)]),
    }
)
regions = st.sampled_from([((1, 2), (2,)), ((1,),), ((2,), (1, 2), (1,))])


@st.composite
def maps(draw, ignore):
    """Logits (B, C, n) and labels (B, n)."""
    batch, classes, n = draw(st.integers(1, 3)), 3, draw(st.integers(1, 5))
    logits = draw(matrices(batch * classes, n)).reshape(batch, classes, n)
    kinds = [0, 1, 2] + ([] if ignore is None else [ignore])
    labels = draw(st.lists(st.sampled_from(kinds), min_size=batch * n, max_size=batch * n))
    return logits, torch.tensor(labels).reshape(batch, n)


@given(data=st.data(), option=options)
def test_matches_loops(data, option):
    logits, labels = data.draw(maps(option["ignore_index"]))
    logits.requires_grad_()
    got = soft_dice(logits, labels, **option)
    if option["ignore_index"] is not None and (labels == option["ignore_index"]).all():
        assert got == 0
        assert (torch.autograd.grad(got, logits)[0] == 0).all()
        return
    wanted = oracles.soft_dice(logits, labels, **option)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(wanted, logits))


@given(data=st.data(), option=options, regions=regions, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_regions_match_loops(data, option, regions, share):
    """One channel each, points in several regions or in none; binary cross-entropy."""
    ignore = 255 if option["ignore_index"] == 2 else option["ignore_index"]
    logits, labels = data.draw(maps(ignore))
    logits = logits[:, : len(regions)].clone().requires_grad_()
    weights = option["class_weights"] and (option["class_weights"][1:] * 2)[: len(regions)]
    option = option | {"ignore_index": ignore, "include_background": True, "class_weights": weights}
    got = soft_dice(logits, labels, regions=regions, cross_entropy=share, **option)
    if ignore is not None and (labels == ignore).all():
        assert got == 0
        return
    entropy = oracles.binary_cross_entropy(logits, labels, regions=regions, class_weights=weights, ignore_index=ignore)
    wanted = (1 - share) * oracles.soft_dice(logits, labels, regions=regions, **option) + share * entropy
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(wanted, logits))


@given(data=st.data(), option=options, regions=st.one_of(st.none(), regions))
def test_the_loss_of_each_class_matches_loops(data, option, regions):
    logits, labels = data.draw(maps(option["ignore_index"]))
    if regions is not None:
        logits, option = logits[:, : len(regions)], option | {"include_background": True}
        if option["ignore_index"] is not None:
            labels, option["ignore_index"] = torch.where(labels == option["ignore_index"], 255, labels), 255
    option = option | {"class_weights": None, "regions": regions}
    got = soft_dice(logits, labels, reduction="none", **option)
    everything = soft_dice(logits, labels, **option)
    if option["batch"] and option["ignore_index"] is not None and (labels == option["ignore_index"]).all():
        assert (got == 0).all()
        return
    torch.testing.assert_close(got, oracles.soft_dice(logits, labels, reduction="none", **option))
    kept = torch.ones_like(labels) if option["ignore_index"] is None else labels != option["ignore_index"]
    counted = 1 if option["batch"] else kept.any(1).sum().clamp(min=1)
    torch.testing.assert_close(got.view(-1, got.shape[-1]).mean(1).sum() / counted, everything)


def test_regions_of_single_labels_are_theirs():
    """A region may be given as the label it is made of, and its channel is one class against the rest."""
    logits, labels = torch.randn(2, 2, 6, 6), torch.randint(3, (2, 6, 6))
    torch.testing.assert_close(
        soft_dice(logits, labels, regions=(1, 2)), soft_dice(logits, labels, regions=((1,), [2]))
    )
    against = torch.stack([torch.zeros(2, 6, 6), logits[:, 0]], 1)  # sigmoid(x) = softmax of (0, x)
    wanted = soft_dice(against, (labels == 1).long(), include_background=False)
    torch.testing.assert_close(soft_dice(logits[:, :1], torch.where(labels == 1, 1, 0), regions=(1,)), wanted)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_weights_and_regions_agree_with_monai(batch, squared):
    from monai.losses import DiceLoss

    weights, regions = (0.5, 2.0, 1.0), ((1, 2, 3), (2, 3), (3,))
    common = {"squared_pred": squared, "batch": batch, "smooth_nr": 1e-5, "smooth_dr": 1e-5, "weight": weights}
    logits, labels = torch.randn(2, 3, 9, 8), torch.randint(3, (2, 9, 8))
    mine = {"batch": batch, "squared": squared, "class_weights": weights}
    peer = DiceLoss(to_onehot_y=True, softmax=True, **common)  # its weighted mean is divided by the number of classes
    torch.testing.assert_close(soft_dice(logits, labels, **mine), peer(logits, labels[:, None]) * 3 / sum(weights))
    labels = torch.randint(4, (2, 9, 8))
    hot = torch.stack([torch.isin(labels, torch.tensor(region)) for region in regions], 1).float()
    got, peer = soft_dice(logits, labels, regions=regions, **mine), DiceLoss(sigmoid=True, **common)
    torch.testing.assert_close(got, peer(logits, hot) * 3 / sum(weights))
    none = DiceLoss(to_onehot_y=True, softmax=True, reduction="none", **{**common, "weight": None})
    labels = labels.clamp(max=2)
    got = soft_dice(logits, labels, batch=batch, squared=squared, reduction="none")
    torch.testing.assert_close(got, none(logits, labels[:, None]).flatten(0 if batch else 1))


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_a_sample_that_is_all_ignored_is_as_if_left_out(smooth):
    """Without pooling over the batch the mean is over samples: two of these three."""
    logits, labels = torch.randn(3, 3, 7, dtype=torch.float64), torch.randint(3, (3, 7))
    labels[1] = 255
    options = {"batch": False, "ignore_index": 255, "smooth": smooth}
    wanted = sum(soft_dice(logits[[i]], labels[[i]], **options) for i in (0, 2)) / 2
    torch.testing.assert_close(soft_dice(logits, labels, **options), wanted)


@given(
    data=st.data(),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    ignore=st.sampled_from([None, 2]),
    weights=st.sampled_from([None, (1.0, 0.125, 3.0)]),
)
def test_cross_entropy_is_torch_s(data, share, ignore, weights):
    logits, labels = data.draw(maps(None))
    got = soft_dice(logits, labels, cross_entropy=share, ignore_index=ignore, class_weights=weights)
    if ignore is not None and (labels == ignore).all():
        assert got == 0
        return
    torchs = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    entropy = F.cross_entropy(logits, labels, torchs, ignore_index=-100 if ignore is None else ignore)
    dice = soft_dice(logits, labels, ignore_index=ignore, class_weights=weights)
    torch.testing.assert_close(got, (1 - share) * dice + share * entropy)


@given(data=st.data(), shift=st.sampled_from([-3.0, 5.0]))
def test_laws(data, shift):
    logits, labels = data.draw(maps(None))
    value = soft_dice(logits, labels)
    assert 0 <= value <= 1
    torch.testing.assert_close(soft_dice(logits + shift * torch.arange(logits.shape[2]), labels), value)
    order = torch.tensor(data.draw(st.permutations(range(3))))
    renamed = torch.argsort(order)[labels]
    torch.testing.assert_close(soft_dice(logits[:, order], renamed), value)
    x = logits.clone().requires_grad_()
    gradient = torch.autograd.grad(soft_dice(x, labels), x)[0]
    torch.testing.assert_close(gradient.sum(1), torch.zeros_like(gradient[:, 0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(soft_dice(logits.flip(2), labels.flip(1)), value)
    tiled = soft_dice(torch.cat([logits, logits], 2), torch.cat([labels, labels], 1), smooth=0.0)
    torch.testing.assert_close(tiled, soft_dice(logits, labels, smooth=0.0))


@given(data=st.data(), pixel=st.integers(0, 4), amount=st.floats(0, 3))
def test_more_of_the_right_class_is_never_worse(data, pixel, amount):
    logits, labels = data.draw(maps(None))
    pixel = pixel % labels.shape[1]
    better = logits.clone()
    better[0, labels[0, pixel], pixel] += amount
    assert soft_dice(better, labels) <= soft_dice(logits, labels) + 1e-12


def test_perfect_and_disjoint():
    labels = torch.tensor([[0, 1, 1, 2, 0, 2]])
    sure = 60.0 * F.one_hot(labels, 3).movedim(-1, 1).double()
    assert soft_dice(sure, labels) < 1e-9
    assert soft_dice(sure.roll(1, 1), labels, smooth=0.0) > 1 - 1e-9


def test_equals_one_minus_f1_on_hard_masks():
    from torchmetrics.segmentation import DiceScore

    labels = torch.randint(4, (3, 20, 20))
    guess = torch.where(torch.rand(3, 20, 20) > 0.3, labels, torch.randint(4, (3, 20, 20)))
    metric = DiceScore(num_classes=4, average="macro", input_format="index", aggregation_level="global")
    expected = 1 - metric(guess, labels)
    got = soft_dice(100.0 * F.one_hot(guess, 4).movedim(-1, 1).float(), labels, smooth=0.0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_agrees_with_monai(batch, squared, include_background):
    from monai.losses import DiceLoss

    logits, labels = torch.randn(2, 4, 9, 8), torch.randint(4, (2, 9, 8))
    peer = DiceLoss(
        include_background=include_background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=squared,
        batch=batch,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    got = soft_dice(logits, labels, include_background=include_background, batch=batch, squared=squared)
    torch.testing.assert_close(got, peer(logits, labels[:, None]))


def test_ignored_pixels_may_hold_nan():
    logits, labels = torch.randn(2, 3, 6, requires_grad=True), torch.randint(3, (2, 6))
    labels[0, :3] = 255
    poisoned = torch.where((labels == 255)[:, None], torch.nan, logits)
    loss = soft_dice(poisoned, labels, ignore_index=255, cross_entropy=0.5)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[0, :, :3] == 0).all()


@pytest.mark.parametrize("sizes", [((10,), (7,)), ((9, 12), (18, 24)), ((3, 4, 5), (6, 8, 10))])
def test_labels_come_to_the_level_by_index(sizes):
    level, full = sizes
    logits, labels = torch.randn(2, 3, *level), torch.randint(3, (2, *full))
    small = labels
    for axis, (m, n) in enumerate(zip(level, full, strict=True), start=1):
        small = small.index_select(axis, torch.tensor(oracles.places(n, m)))
    torch.testing.assert_close(soft_dice(logits, labels), soft_dice(logits, small))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    logits, labels = (torch.randn(1, 3, 300, 300) * 5).to(dtype), torch.randint(3, (1, 300, 300))
    got = soft_dice(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), soft_dice(logits.double(), labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sure", [1, 100])
def test_probabilities_are_named(dtype, sure):
    """They have a loss like any numbers, but a gradient that hardly teaches."""
    logits, labels = (torch.randn(2, 3, 8, 8) * sure).to(dtype), torch.randint(3, (2, 8, 8))
    loss, said = DeepSupervisionDice(weights={"coarse": 0.4, "fine": 0.6}), r"like logits: \S*fine'\]\."
    both = {"coarse": logits, "fine": logits.softmax(1).requires_grad_()}
    with pytest.warns(UserWarning, match=r"`logits\['fine'\]` look like probabilities"):
        loss(both, labels).backward()
    with pytest.warns(UserWarning, match="before softmax"):
        assert re.search(said, loss.diagnose(both, labels).sentence)
    assert "probabilities" not in loss.diagnose({"coarse": logits, "fine": logits}, labels).sentence
    binary = DeepSupervisionDice(weights=(1.0,), regions=((1, 2), (2,), (1,)))
    sure_somewhere = torch.cat([logits, 5 * torch.ones_like(logits), -5 * torch.ones_like(logits)], 2).sigmoid()
    assert "probabilities" in binary.diagnose([sure_somewhere], labels.repeat(1, 3, 1)).sentence
    assert "probabilities" not in binary.diagnose([logits], labels).sentence


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 3, 4), torch.rand(1, 3, 4) / 9, F.softmax(torch.randn(1, 3, 4), 1) - 1]
)
def test_small_logits_are_no_probabilities(logits):
    found = DeepSupervisionDice(weights=(1.0,)).diagnose([logits], torch.tensor([[0, 1, 2, 1]]))
    assert "probabilities" not in found.sentence
