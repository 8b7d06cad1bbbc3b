"""Stages of networks made for one difficulty each, what the report says, and that nothing is touched."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgl_losses
from mmgl_losses.networks.attach import attach_heads
from mmgl_losses.networks.heads import GlobalHead, LocalHead
from mmgl_losses.networks.stages import Stages, discover_stages
from mmgl_losses.networks.stages.table import Row
from mmgl_losses.networks.unet import UNet


def conv(channels, out, stride=1, kernel=3):
    return nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2)


def block(channels, out, stride=1):
    return nn.Sequential(conv(channels, out, stride), nn.ReLU(), conv(out, out), nn.ReLU())


class Stack(nn.Sequential):
    """A network from named parts in a row."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def image(size=32):
    return torch.randn(2, 1, size, size)


def roles(stages, role):
    return [row.name for row in stages.rows if row.role == role]


def test_the_printed_report():
    stages = discover_stages(UNet(1, 3, channels=(4, 6, 8)), image())
    assert str(stages) == (
        "role     name                channels  size   stride  module\n"
        "encoder  encoder.blocks.0           4  32x32  1x1     Sequential\n"
        "encoder  encoder.blocks.1           6  16x16  2x2     Sequential\n"
        "encoder  encoder.bottleneck         8  8x8    4x4     Sequential\n"
        "decoder  decoder.blocks.0           6  16x16  2x2     Sequential\n"
        "decoder  decoder.blocks.1           4  32x32  1x1     Sequential\n"
        "output   classifier                 3  32x32  1x1     Conv2d\n"
        "\n"
        "# global contrast, on the encoder\n"
        "tapped = attach_heads(net, example, {\n"
        '    "encoder.blocks.0": GlobalHead,\n'
        '    "encoder.blocks.1": GlobalHead,\n'
        '    "encoder.bottleneck": GlobalHead,\n'
        "})\n"
        "loss = MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6))\n"
        "\n"
        "# local contrast, on the decoder\n"
        "tapped = attach_heads(net, example, {\n"
        '    "decoder.blocks.0": LocalHead,\n'
        '    "decoder.blocks.1": LocalHead,\n'
        "})\n"
        "loss = MultiScaleLocalSupCon(weights=(0.25, 0.75))"
    )


@pytest.mark.parametrize("channels", [(4, 6), (4, 6, 8), (4, 6, 8, 8), (4, 6, 8, 8, 8)])
def test_the_printed_calls_run(channels):
    """The loss has as many weights as the network has heads there."""
    net, example = UNet(1, 3, channels=channels), image()
    contrast, local = str(discover_stages(net, example)).split("\n\n")[1:]
    for call, rest in ((contrast, ()), (local, (torch.randint(3, (2, 32, 32)),))):
        scope = {**vars(mmgl_losses), "net": net, "example": example}
        exec(call, scope)
        _, embeddings = scope["tapped"](example)
        assert scope["loss"](embeddings, *rest).isfinite()
        assert sum(scope["loss"].weights) == pytest.approx(1)
        scope["tapped"].close()


def test_an_encoder_alone():
    net = Stack(stem=conv(1, 4), stage1=block(4, 8, 2), stage2=block(8, 12, 2), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(12, 5))  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.encoder == ("stem", "stage1", "stage2")
    assert stages.decoder == ()
    assert "No decoder" in str(stages)
    assert "LocalHead" not in str(stages)


def test_a_segmentation_network_that_only_interpolates():
    class Dilated(Stack):
        def forward(self, x):
            return F.interpolate(super().forward(x), size=x.shape[2:], mode="bilinear")

    stages = discover_stages(
        Dilated(stage1=block(1, 8, 2), stage2=block(8, 12, 2), classifier=conv(12, 5, kernel=1)), image()
    )
    assert stages.encoder == ("stage1", "stage2")
    assert roles(stages, "output") == ["classifier"]
    assert "No decoder" in str(stages)


def test_features_returned_are_no_heads():
    stages = discover_stages(UNet(1, 3, channels=(4, 6, 8, 10)).encoder, image())
    assert stages.encoder == ("blocks.0", "blocks.1", "blocks.2", "bottleneck")
    assert stages.decoder == ("up",)


def test_nothing_to_find():
    for net, x in [
        (nn.Sequential(nn.Flatten(), nn.Linear(1024, 3)), image()),
        (nn.Linear(5, 3), torch.randn(2, 5)),
        (nn.Embedding(5, 3), torch.zeros(2, 5, dtype=torch.int64)),
    ]:
        stages = discover_stages(net, x)
        assert (stages.encoder, stages.decoder, stages.rows) == ((), (), ())
        assert str(stages).startswith("No stages")


def test_a_decoder_alone():
    stages = discover_stages(
        Stack(up1=nn.ConvTranspose2d(1, 8, 2, 2), up2=nn.ConvTranspose2d(8, 4, 2, 2), out=conv(4, 2)), image(8)
    )
    assert (stages.encoder, stages.decoder) == (("up1",), ("up2",))
    assert [row.stride for row in stages.rows] == [(Fraction(1, 2),) * 2, (Fraction(1, 4),) * 2, (Fraction(1, 4),) * 2]


class Tokens(nn.Module):
    """Channels on the last axis inside: linear layers and layer norms, with a size that could be a map."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.linear, self.drop = nn.LayerNorm(channels), nn.Linear(channels, channels), nn.Dropout()
        self.wrap = nn.Sequential(nn.Linear(channels, channels), nn.GELU())

    def forward(self, x):
        x = x.movedim(1, -1)
        return (x + self.wrap(self.drop(self.linear(self.norm(x))))).movedim(-1, 1)


def test_channels_on_the_last_axis_are_no_sizes():
    # 32 x 32 maps of 16 and 16 x 16 of 32 channels: as (B, C, H, W) both could be maps of other sizes.
    net = Stack(stem=conv(1, 16), a=Tokens(16), down=conv(16, 32, 2), b=Tokens(32), up=nn.ConvTranspose2d(32, 4, 2, 2), mix=block(4, 4), out=conv(4, 2))  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.encoder == ("a", "b")
    assert stages.decoder == ("mix",)


def test_summaries_and_padding_are_no_sizes():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.bins = nn.ModuleList(
                nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(8, 2, kernel=1)) for n in (1, 2, 3, 6)
            )
            self.merge = conv(16, 8)

        def forward(self, x):
            pooled = [F.interpolate(b(x), size=x.shape[2:]) for b in self.bins]
            return self.merge(torch.cat([x, *pooled], 1))

    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(8, 4, kernel=1), conv(4, 8, kernel=1)

        def forward(self, x):
            return x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    net = Stack(pad=nn.ZeroPad2d(1), stem=nn.Conv2d(1, 8, 3), squeeze=Squeeze(), down=block(8, 8, 2), pyramid=Pyramid(), up=nn.Upsample(scale_factor=2), mix=block(8, 8), out=conv(8, 2))  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.encoder == ("squeeze", "pyramid")
    assert stages.decoder == ("mix",)


@pytest.mark.parametrize("functional", [True, False])
def test_padding_before_a_convolution_is_no_size(functional):
    class Padded(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.expand, self.pad = conv(channels, channels, kernel=1), nn.ZeroPad2d(2)
            self.deep = nn.Conv2d(channels, channels, 5)

        def forward(self, x):
            x = self.expand(x)
            return self.deep(F.pad(x, (2, 2, 2, 2)) if functional else self.pad(x))

    def stage(channels, out):
        return nn.Sequential(conv(channels, out, 2), Padded(out), Padded(out))

    net = Stack(stage1=stage(1, 4), stage2=stage(4, 8), stage3=stage(8, 8), up=nn.Upsample(scale_factor=2), mix=block(8, 8), out=conv(8, 2))  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.encoder == ("stage1", "stage2", "stage3")
    assert stages.decoder == ("mix",)


def test_a_side_path_to_a_coarser_size_is_no_stage():
    class Reduced(nn.Module):
        """Attention whose keys and values come from a coarser map, as in SegFormer (but in its last stage)."""

        def __init__(self, channels):
            super().__init__()
            self.norm, self.reduce = nn.LayerNorm(channels), conv(channels, channels, 2)
            self.query, self.mix = nn.Linear(channels, channels), conv(channels, channels)

        def forward(self, x):
            keys = self.reduce(x).flatten(2)
            query = self.query(self.norm(x.flatten(2).transpose(1, 2)))
            return self.mix(x + ((query @ keys).softmax(2) @ keys.transpose(1, 2)).transpose(1, 2).view_as(x))

    class Pyramid(Stack):
        def forward(self, x):
            a = self.stage1(x)
            b = self.stage2(a)
            c = self.stage3(b)
            pooled = F.interpolate(self.pool(c), size=a.shape[2:])  # to a size that is a stage of its own
            return self.out(self.fuse(torch.cat([a, F.interpolate(self.narrow(c), size=a.shape[2:]), pooled], 1)))

    def stage(channels, out):
        return nn.Sequential(conv(channels, out, 2), Reduced(out))

    net = Pyramid(
        stage1=stage(1, 4), stage2=stage(4, 8), stage3=block(8, 8, 2), pool=nn.AdaptiveAvgPool2d(4),
        narrow=conv(8, 4, kernel=1), fuse=conv(16, 8), out=conv(8, 2),
    )  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.encoder == ("stage1", "stage2", "stage3")
    assert stages.decoder == ("fuse",)


def test_what_cannot_be_tapped_is_not_offered():
    class Awkward(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.again, self.down, self.c, self.drop = (
                conv(1, 4),
                conv(4, 4),
                conv(4, 8, 2),
                conv(8, 8),
                nn.Dropout(),
            )
            self.over = nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.again(self.again(self.a(x)))  # runs twice
            x = self.c(self.down(x)).add_(1)  # overwritten
            return self.drop(x).mean((2, 3))  # returns what it was given

    net = Awkward()
    stages = discover_stages(net, image())
    assert stages.encoder == ("a", "down")
    attach_heads(net, image(), dict.fromkeys(stages.encoder, GlobalHead))(image())


def test_dropout_that_overwrites_in_training_is_tapped_itself():
    net = Stack(
        a=block(1, 4), down=block(4, 8, 2), up=nn.Upsample(scale_factor=2), mix=block(8, 8), drop=nn.Dropout2d(inplace=True),
        out=conv(8, 2),
    )  # fmt: skip
    stages = discover_stages(net, image())
    assert stages.decoder == ("drop",)
    attach_heads(net, image(), dict.fromkeys(stages.decoder, LocalHead))(image())


def test_a_join_of_input_and_output_is_no_bottleneck():
    class Skip(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.cat([x, self.inner(x)], 1)

    net = Stack(
        down1=block(1, 4),
        level1=Skip(Stack(down=block(4, 8, 2), level2=Skip(block(8, 8)), up=nn.ConvTranspose2d(16, 4, 2, 2))),
        mix=block(8, 4),
        out=conv(4, 3),
    )
    stages = discover_stages(net, image())
    assert stages.encoder == ("down1", "level1.inner.level2.inner")
    assert stages.decoder == ("mix",)


def test_unpadded_convolutions_stay_on_their_level():
    def valid(channels, out):
        return nn.Sequential(nn.Conv2d(channels, out, 3), nn.ReLU(), nn.Conv2d(out, out, 3), nn.ReLU())

    class Valid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = valid(1, 4), valid(4, 8), valid(8, 16)
            self.up2, self.d2 = nn.ConvTranspose2d(16, 8, 2, 2), valid(16, 8)
            self.up1, self.d1, self.out = nn.ConvTranspose2d(8, 4, 2, 2), valid(8, 4), conv(4, 2, kernel=1)

        def forward(self, x):
            def join(x, skip):
                return torch.cat([x, skip[:, :, : x.shape[2], : x.shape[3]]], 1)

            a = self.a(x)
            b = self.b(F.max_pool2d(a, 2))
            x = self.d2(join(self.up2(self.c(F.max_pool2d(b, 2))), b))
            return self.out(self.d1(join(self.up1(x), a)))

    stages = discover_stages(Valid(), image(188))
    assert stages.encoder == ("a", "b", "c")
    assert stages.decoder == ("d2", "d1")


@pytest.mark.parametrize("size", [33, 37, 50])
def test_odd_sizes(size):
    stages = discover_stages(UNet(1, 3, channels=(4, 6, 8, 10)), image(size))
    assert stages.encoder == ("encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2", "encoder.bottleneck")
    assert stages.decoder == ("decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2")


def test_the_network_does_not_notice():
    class Stubborn(UNet):
        def forward(self, x):
            if torch.rand(()).item() > 2:  # depends on a value, so the pass is a real one
                return x
            return super().forward(x)

    for net in (UNet(1, 3, channels=(4, 6, 8), norm="batch"), Stubborn(1, 3, channels=(4, 6, 8), norm="batch")):
        x, before = image(), {name: value.clone() for name, value in net.state_dict().items()}
        random = torch.get_rng_state()
        stages = discover_stages(net, x)
        assert len(stages.encoder) == 3
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert all(module.training for module in net.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_parts_are_seen_through():
    net = UNet(1, 3, channels=(4, 6, 8))
    plain = discover_stages(net, image())
    net.compile(backend="eager")
    net(image())
    assert discover_stages(net, image()) == plain
    whole = discover_stages(torch.compile(UNet(1, 3, channels=(4, 6, 8)), backend="eager"), image())
    assert [name.removeprefix("_orig_mod.") for name in whole.encoder] == list(plain.encoder)


def test_errors_of_the_network_come_through():
    """What a network has to say about its input, it says itself."""
    with pytest.raises(RuntimeError, match="channels"):
        discover_stages(nn.Sequential(conv(3, 4)), image())


# The picture ------------------------------------------------------------------------------------------------------


def figure_axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def boxes(ax):
    from matplotlib.patches import FancyBboxPatch

    return [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]


def test_the_picture_shows_every_stage_where_it_belongs():
    stages = discover_stages(UNet(1, 3, channels=(4, 6, 8, 10)), image())
    ax = stages.plot(figure_axes())
    centres = [(box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2) for box in boxes(ax)]
    assert centres == [pytest.approx((i, depth)) for i, depth in enumerate([0, 1, 2, 3, 2, 1, 0, 0])]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # strides go down
    assert [text.get_text() for text in ax.texts] == ["4", "6", "8", "10", "8", "6", "4", "3"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [row.name for row in stages.rows]
    dots = [int(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [1, 2, 3, 4, 5, 6]  # the last three of each, as in the printed calls
    assert len({box.get_facecolor() for box in boxes(ax)}) == 3


def test_the_picture_of_long_names_and_uneven_strides():
    rows = (
        Row("a" * 20 + ".submodule.1.submodule", "encoder", 4, (8, 16, 16), (1, 1, 1), "Conv3d"),
        Row("b", "encoder", 8, (8, 8, 8), (1, 2, 2), "Conv3d"),
    )
    ax = Stages(tuple(row.name for row in rows), (), rows).plot(figure_axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["…submodule.1.submodule", "b"]
    assert "1x2x2" in [text.get_text() for text in ax.texts]


def test_what_cannot_be_drawn(monkeypatch):
    with pytest.raises(ValueError, match="Expected at least one stage to draw, got none"):
        Stages((), (), ()).plot()
    stages = discover_stages(UNet(1, 3, channels=(4, 6, 8)), image())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mmgl-losses\[plot\]"'):
        stages.plot()
