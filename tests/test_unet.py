"""The reference network: its names, sizes and numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgl_losses.networks.unet import UNet

SMALL = (2, 3, 4, 5, 6)


def by_hand(net, x):
    """The same network, written out for even sizes."""

    def block(x, layers):
        for conv in (layers[0], layers[3]):
            x = F.leaky_relu(F.instance_norm(F.conv2d(x, conv.weight, conv.bias, padding=1)), 0.01)
        return x

    skips = []
    for layers in net.encoder.blocks:
        skips.append(block(x, layers))
        x = F.max_pool2d(skips[-1], 2)
    up = net.encoder.up
    x = F.conv_transpose2d(block(x, net.encoder.bottleneck), up.weight, up.bias, stride=2)
    features = [*skips, x]
    for i, layers in enumerate(net.decoder.blocks):
        if i:
            up = net.decoder.ups[i - 1]
            x = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
        x = block(torch.cat([skips[-1 - i], x], 1), layers)
    return features, F.conv2d(x, net.classifier.weight, net.classifier.bias)


def test_is_the_network_written_out():
    net, x = UNet(2, 3, channels=SMALL).double(), torch.randn(2, 2, 32, 48, dtype=torch.float64)
    features, logits = by_hand(net, x)
    torch.testing.assert_close(net(x), logits, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(net.encoder(x), features, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_names_and_sizes_are_the_papers():
    with torch.device("meta"):
        net = UNet(1, 8)
    shapes = {}
    for name, module in net.named_modules():
        if name:
            module.register_forward_hook(
                lambda m, a, out, name=name: (
                    shapes.update({name: tuple(out.shape[1:])}) if torch.is_tensor(out) else None
                )
            )
    net(torch.empty(1, 1, 160, 160, device="meta"))
    expected = {
        "encoder.pools.2": (256, 20, 20),
        "encoder.pools.3": (512, 10, 10),
        "encoder.bottleneck": (1024, 10, 10),
        "encoder.up": (512, 20, 20),
        "decoder.blocks.0": (512, 20, 20),
        "decoder.blocks.1": (256, 40, 40),
        "decoder.blocks.2": (128, 80, 80),
        "decoder.blocks.3": (64, 160, 160),
        "decoder.ups.2": (64, 160, 160),
        "classifier": (8, 160, 160),
    }
    assert {name: shapes[name] for name in expected} == expected
    # counted by hand: two 3x3 convolutions per block, 2x2 transposed convolutions, 1x1 classifier, with biases
    pairs = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 512), (512, 256), (256, 128), (128, 64)]
    blocks = sum(9 * (a * b + b * b) + 2 * b for a, b in pairs)
    ups = sum(4 * a * b + b for a, b in [(1024, 512), (512, 256), (256, 128), (128, 64)])
    assert sum(p.numel() for p in net.parameters()) == blocks + ups + 64 * 8 + 8


@settings(max_examples=15)
@given(st.lists(st.integers(8, 21), min_size=2, max_size=2))
def test_any_size_in_is_the_size_out(size):
    net = UNet(1, 3, channels=SMALL[:4])
    assert net(torch.randn(1, 1, size[0], size[1] + 8)).shape == (1, 3, size[0], size[1] + 8)


def test_an_element_lost_on_the_way_down_is_a_zero_at_the_end():
    net, seen = UNet(1, 3, channels=SMALL[:3]), {}
    net.decoder.ups[0].register_forward_hook(lambda m, args, out: seen.update(up=out))
    net.decoder.blocks[1].register_forward_hook(lambda m, args, out: seen.update(joined=args[0]))
    net(torch.randn(1, 1, 9, 14))
    assert seen["up"].shape == (1, 2, 8, 14)
    assert torch.equal(seen["joined"][:, 2:, :8], seen["up"])
    assert not seen["joined"][:, 2:, 8:].any()


@pytest.mark.parametrize("norm", ["instance", "batch", None])
def test_volumes(norm):
    net = UNet(1, 3, channels=SMALL[:3], spatial_dims=3, norm=norm)
    x = torch.randn(2, 1, 9, 8, 11)
    assert net(x).shape == (2, 3, 9, 8, 11)
    assert [tuple(f.shape[1:]) for f in net.encoder(x)] == [(2, 9, 8, 11), (3, 4, 4, 5), (3, 4, 4, 4)]


def test_norm_without_parameters_is_the_default():
    plain = [name for name, _ in UNet(channels=SMALL, norm=None).named_parameters() if name.startswith("classifier")]
    assert plain == ["classifier.weight", "classifier.bias"]
    count = {
        norm: sum(p.numel() for p in UNet(channels=SMALL, norm=norm).parameters())
        for norm in ("instance", "batch", None)
    }
    assert count["instance"] == count[None] < count["batch"]


def test_every_parameter_learns():
    net = UNet(1, 3, channels=SMALL[:4])
    net(torch.randn(2, 1, 17, 18)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.encoder.up.weight.grad.abs().max() > 0


def test_compiles_whole():
    net, x = UNet(1, 3, channels=SMALL[:3]), torch.randn(1, 1, 9, 12)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))


def test_one_element_at_the_bottom_works_without_instance_norm():
    assert UNet(channels=SMALL, norm=None)(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 16, 16)
