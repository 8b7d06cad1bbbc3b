"""Weights in a network that differs in places: what fits is loaded, the rest stays, and all of it is said."""

import pytest
import torch
from torch import nn

from mmgl_losses import GlobalHead, UNet, attach_heads, load_matching

CHANNELS = (3, 4, 5)


def test_another_number_of_classes():
    old, new = UNet(1, 3, channels=CHANNELS), UNet(1, 7, channels=CHANNELS)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    loaded = load_matching(new, old.state_dict())
    assert loaded.other_shape == {"classifier.weight": ((3, 3, 1, 1), (7, 3, 1, 1)), "classifier.bias": ((3,), (7,))}
    assert (loaded.not_given, loaded.not_used) == ((), ())
    for name, value in new.state_dict().items():
        wanted = before if name.startswith("classifier") else old.state_dict()
        assert torch.equal(value, wanted[name]), name
        assert (name in loaded.loaded) == (not name.startswith("classifier"))
    assert str(loaded).splitlines() == [
        f"Loaded {len(before) - 2} of the {len(before)} tensors of the network.",
        "Left as they were, of another shape in the weights: classifier.weight (3, 3, 1, 1) -> (7, 3, 1, 1), "
        "classifier.bias (3,) -> (7,).",
    ]


def test_what_only_one_side_has():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    given = {**nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(), "old.head": torch.ones(3)}
    given["1.running_mean"] = torch.tensor([5.0, 6.0])
    loaded = load_matching(net, given)
    assert loaded.not_given == ("2.weight", "2.bias")
    assert loaded.not_used == ("old.head",)
    assert net[1].running_mean.tolist() == [5.0, 6.0]
    assert "Left as they were, not in the weights: 2.weight, 2.bias." in str(loaded)
    assert "Not used, not in the network: old.head." in str(loaded)


def test_a_long_list_is_counted():
    given = {"weight": torch.ones(2, 2), **{f"x.{i}": torch.ones(1) for i in range(11)}}
    assert str(load_matching(nn.Linear(2, 2), given)).endswith("x.7 and 3 more.")


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (
            lambda net: {f"module.{k}": v for k, v in net.state_dict().items()},
            "they begin with 'module.', .*removeprefix",
        ),
        (lambda net: net.encoder.state_dict(), "no name begins with 'encoder.'. They are those of `net.encoder`"),
        (
            lambda net: nn.Linear(5, 5).state_dict(),
            "names such as 'weight' beside 'encoder.blocks.0",
        ),  # not of any part
        (lambda net: {"w": torch.ones(1)}, "names such as 'w' beside 'encoder.blocks.0"),
        (lambda net: {}, "got an empty mapping"),
        (lambda net: UNet(1, 4, channels=(6, 7, 8)).state_dict(), "has another shape there"),
    ],
)
def test_nothing_that_fits_is_an_error(of, text):
    net = UNet(1, 3, channels=CHANNELS)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        load_matching(net, of(net))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_without_parameters_is_an_error():
    with pytest.raises(ValueError, match="got a network without parameters"):
        load_matching(nn.ReLU(), {"w": torch.ones(1)})


def test_counters_alone_do_not_count():
    net = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="at least one parameter"):
        load_matching(net, {"0.num_batches_tracked": torch.tensor(3)})


def test_from_stage_to_stage():
    """What pre-training leaves is the state_dict of the network itself."""
    example = torch.rand(2, 1, 8, 8)
    tapped = attach_heads(UNet(1, 3, channels=CHANNELS), example, {"encoder.bottleneck": GlobalHead})
    assert not load_matching(UNet(1, 5, channels=CHANNELS), tapped.net.state_dict()).not_given
    with pytest.raises(ValueError, match="'net.'.*removeprefix"):
        load_matching(UNet(1, 5, channels=CHANNELS), tapped.state_dict())
