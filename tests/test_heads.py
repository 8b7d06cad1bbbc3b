"""Heads against plain convolutions and pooling, and the laws they obey."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from mmgl_losses import sampling
from mmgl_losses.networks.heads import GlobalHead, LocalHead, SegmentationHead

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def feature_map(size, batch=2, channels=3):
    return torch.randn(batch, channels, *size, dtype=torch.float64)


def conv(x, linear):
    """A linear layer as the 1x1 convolution it stands for."""
    kernel = linear.weight[(...,) + (None,) * (x.ndim - 2)]
    return {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim](x, kernel, linear.bias)


@given(SIZES)
def test_global_head_is_pooling_and_two_layers(size):
    x, head = feature_map(size), GlobalHead(3, 5, hidden_channels=4).double()
    pooled = x.mean(dim=tuple(range(2, x.ndim)))
    expected = pooled @ head.first.weight.T + head.first.bias
    expected = expected @ head.second.weight.T + head.second.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=1e-12)


@given(SIZES, st.integers(1, 5), st.sampled_from([1, 4]))
def test_local_head_is_two_convolutions_then_sampling(size, stride, hidden):
    """With so few channels between the layers that one after the other is less work, and with more."""
    x, head = feature_map(size).requires_grad_(), LocalHead(3, 5, stride=stride, hidden_channels=hidden).double()
    expected = sampling.subsample(conv(conv(x, head.first), head.second), stride)
    actual = head(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    inputs, direction = [x, *head.parameters()], torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, inputs, direction) for out in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def lora(head):
    """A layer of somebody else's in the place of ours."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Doubled(head.second.in_features, head.second.out_features)
    layer.load_state_dict(head.second.state_dict())
    head.second = layer


def patched(head):
    """A method put in the place of the layer's, as libraries that move weights in and out do."""
    own = head.second.forward
    head.second.forward = lambda x: 2 * own(x)


def hooked(head):
    head.second.register_forward_hook(lambda layer, args, out: 2 * out)


def hooked_before(head):
    head.second.register_forward_pre_hook(lambda layer, args: (2 * args[0] + solve(layer),))


def parametrised(head):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    for name in ("weight", "bias"):
        parametrize.register_parametrization(head.second, name, Doubled())


def solve(layer):
    """What the input has to be moved by for the bias to be doubled, too."""
    return torch.linalg.lstsq(layer.weight, layer.bias).solution


@pytest.mark.parametrize("change", [lora, patched, hooked, hooked_before, parametrised])
def test_what_is_done_to_a_layer_of_a_local_head_is_done(change):
    x, head = feature_map((6, 5), channels=7), LocalHead(7, 5, stride=2, hidden_channels=9).double()
    before = head(x)
    change(head.double())
    torch.testing.assert_close(head.double()(x), 2 * before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_hooks_of_layers_of_a_local_head_are_called(kind):
    head, seen = LocalHead(3, 5), []
    for layer in (head.first, head.second):
        if kind == "forward":
            layer.register_forward_hook(lambda layer, args, out: seen.append(layer))
        else:
            layer.register_full_backward_hook(lambda layer, given, got: seen.append(layer))
    head(feature_map((6, 5)).float().requires_grad_()).sum().backward()
    assert {id(layer) for layer in seen} == {id(head.first), id(head.second)}


@given(SIZES)
def test_segmentation_head_is_one_convolution(size):
    x, head = feature_map(size), SegmentationHead(3, 4).double()
    torch.testing.assert_close(head(x), conv(x, head.linear), rtol=1e-12, atol=1e-12)


@given(SIZES, st.integers(1, 3), st.randoms(use_true_random=False))
def test_global_head_ignores_the_order_and_repetition_of_points(size, tiles, random):
    x, head = feature_map(size), GlobalHead(3, 5).double()
    points = x.flatten(2)
    order = list(range(points.shape[2]))
    random.shuffle(order)
    permuted = points[:, :, order].view_as(x)
    torch.testing.assert_close(head(permuted), head(x), rtol=1e-10, atol=1e-12)
    tiled = x.repeat(1, 1, *[tiles] * len(size))
    torch.testing.assert_close(head(tiled), head(x), rtol=1e-10, atol=1e-12)


@given(SIZES, st.randoms(use_true_random=False))
def test_local_head_commutes_with_permutations_and_crops(size, random):
    x, head = feature_map(size), LocalHead(3, 5, stride=1).double()
    order = list(range(x.shape[2]))
    random.shuffle(order)
    torch.testing.assert_close(head(x[:, :, order]), head(x)[:, :, order], rtol=1e-12, atol=1e-12)
    end = random.randint(1, x.shape[2])
    torch.testing.assert_close(head(x[:, :, :end]), head(x)[:, :, :end], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [GlobalHead, LocalHead, partial(SegmentationHead, out_channels=4)])
@pytest.mark.parametrize("size", [(9, 7), (5, 6, 7)])
def test_images_do_not_meet(make, size):
    x, head = feature_map(size), make(3).double()
    torch.testing.assert_close(head(x)[:1], head(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [GlobalHead, LocalHead, partial(SegmentationHead, out_channels=4)])
@pytest.mark.parametrize(("size", "layout"), [((9, 7), torch.channels_last), ((5, 6, 7), torch.channels_last_3d)])
def test_memory_layout_changes_nothing(make, size, layout):
    x, head = feature_map(size), make(3).double()
    torch.testing.assert_close(head(x.contiguous(memory_format=layout)), head(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [GlobalHead, LocalHead, partial(SegmentationHead, out_channels=4)])
def test_half_precision_stays_and_is_near(make, dtype):
    head, x = make(8), torch.randn(1, 8, 9, 7)
    low = head.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), head.float()(x), rtol=0.05, atol=0.05)


def test_gradients_reach_only_the_points_taken():
    x = torch.randn(1, 3, 10, 10, requires_grad=True)
    LocalHead(3, 5, stride=4)(x).sum().backward()
    touched = (x.grad != 0).any(1)[0]
    rows = sampling.places(10, 3)
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[rows[:, None], rows] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm, partial(nn.GroupNorm, 2), None])
@pytest.mark.parametrize("head", [GlobalHead, LocalHead])
def test_norm_and_activation_act_on_channels(head, norm):
    made = head(3, 5, hidden_channels=4, norm=norm, activation=nn.ReLU)
    for size in [(9, 7), (5, 6, 7)]:
        out = made(torch.randn(4, 3, *size))
        assert out.shape[:2] == (4, 5)


def test_batch_norm_in_a_local_head_is_batch_norm_of_the_map():
    head = LocalHead(3, 5, stride=2, hidden_channels=4, norm=nn.BatchNorm1d, activation=nn.ReLU).double()
    x = feature_map((9, 7))
    hidden = conv(sampling.subsample(x, 2), head.first)
    expected = conv(F.relu(F.batch_norm(hidden, None, None, training=True)), head.second)
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)


def test_seeded_state_dict_round_trip():
    torch.manual_seed(3)
    a = LocalHead(3)
    torch.manual_seed(3)
    b = LocalHead(3)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    c = LocalHead(3)
    c.load_state_dict(a.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(a(x), c(x))


def test_repr_shows_the_options():
    assert "stride=2" in repr(LocalHead(3, stride=2))
    assert "in_features=3" in repr(GlobalHead(3))
