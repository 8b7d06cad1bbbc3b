"""What networks with several outputs return, given to the loss as it is: it works, or is refused with what to do."""

import pytest
import torch

from mmgl_losses import DeepSupervisionDice
from mmgl_losses.functional import soft_dice
from tests.networks.zoo import ZOO


def output_of(name):
    entry = ZOO[name]
    torch.manual_seed(0)
    labels = torch.randint(3, (2, *entry.size))
    return entry.make()(entry.image()), labels


def by_hand(levels, labels, weights):
    return sum(weight * soft_dice(level, labels) for level, weight in zip(levels, weights, strict=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nnU-Net PlainConvUNet, deep supervision", 3),
        ("nnU-Net ResidualEncoderUNet, 3-D, anisotropic", 2),
        ("MONAI SegResNetDS, deep supervision", 2),
    ],
)
def test_lists_from_fine_to_coarse_are_refused_and_work_reversed(name, count):
    output, labels = output_of(name)
    weights = (0.2, 0.3, 0.5)[-count:]
    loss = DeepSupervisionDice(weights=weights)
    assert len(output) == count
    with pytest.raises(ValueError, match=r"ordered fine to coarse: reverse them, `logits\[::-1\]`, and give `weights`"):
        loss(output, labels)
    torch.testing.assert_close(loss(output[::-1], labels), by_hand(output[::-1], labels, weights))


def test_the_stacked_output_of_dynunet():
    output, labels = output_of("MONAI DynUNet, deep supervision")
    assert output.shape == (2, 2, 3, 32, 32)
    with pytest.raises(TypeError, match=r"stacked along an axis a mapping from `.unbind\(axis\)`, with `weights` of"):
        DeepSupervisionDice(weights=(0.4, 0.6))(output, labels)
    with pytest.raises(ValueError, match=r"Expected `labels` of shape \(2, H, W, D\)"):  # one level it is not
        DeepSupervisionDice(weights=(1.0,))([output], labels)
    with pytest.raises(ValueError, match="Give `weights` as a mapping"):  # sizes do not tell which is which
        DeepSupervisionDice(weights=(0.4, 0.6))(output.unbind(1), labels)
    weights = {"own": 0.6, "coarser": 0.4}
    levels = dict(zip(weights, output.unbind(1), strict=True))
    got = DeepSupervisionDice(weights=weights)(levels, labels)
    torch.testing.assert_close(got, by_hand(levels.values(), labels, weights.values()))


def test_the_list_of_basic_unet_plus_plus():
    output, labels = output_of("MONAI BasicUNetPlusPlus, deep supervision")
    with pytest.raises(ValueError, match="Give `weights` as a mapping"):
        DeepSupervisionDice(weights=(0.1, 0.2, 0.3, 0.4))(output, labels)
    weights = {"1": 0.1, "2": 0.2, "3": 0.3, "4": 0.4}
    got = DeepSupervisionDice(weights=weights)(dict(zip(weights, output, strict=True)), labels)
    torch.testing.assert_close(got, by_hand(output, labels, weights.values()))
    single, labels = output_of("MONAI BasicUNetPlusPlus")
    torch.testing.assert_close(DeepSupervisionDice(weights=(1.0,))(single, labels), soft_dice(single[0], labels))


def test_a_dictionary_of_two_heads():
    output, labels = output_of("lists of modules, a dictionary out")  # as torchvision's: "out" and "aux"
    with pytest.raises(ValueError, match="Give `weights` as a mapping"):
        DeepSupervisionDice(weights=(0.3, 0.7))(output, labels)
    with pytest.raises(ValueError, match=r"got 2\. .* take the levels out of 'out', 'aux'"):
        DeepSupervisionDice(weights=(1.0,))(output, labels)
    weights = {"out": 1.0, "aux": 0.4}
    got = DeepSupervisionDice(weights=weights)(output, labels)
    torch.testing.assert_close(got, by_hand([output["out"], output["aux"]], labels, [1.0, 0.4]))


def test_an_object_with_logits():
    class Output:
        logits = torch.randn(2, 3, 8, 8)

    labels = torch.randint(3, (2, 8, 8))
    with pytest.raises(TypeError, match=r"got Output\. Take the tensors out of it, such as `\[output.logits\]`"):
        DeepSupervisionDice(weights=(1.0,))(Output(), labels)
    DeepSupervisionDice(weights=(1.0,))([Output().logits], labels)
