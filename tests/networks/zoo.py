"""Real networks, small, and the stages a person would choose in each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgl_losses.unet import UNet


@dataclass(frozen=True)
class Entry:
    make: Callable[[], nn.Module]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    output: tuple[str, ...]
    size: tuple[int, ...] = (32, 32)

    def image(self) -> Tensor:
        return torch.randn(2, 1, *self.size)


class Functional(nn.Module):
    """Pooling, interpolation and joining are functions; activations work in place."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2, self.e3, self.bottom = (
            self.block(1, 4),
            self.block(4, 8),
            self.block(8, 12),
            self.block(12, 16),
        )
        self.d3, self.d2, self.d1 = self.block(28, 12), self.block(20, 8), self.block(12, 4)
        self.out = nn.Conv2d(4, 3, 1)

    @staticmethod
    def block(channels, out):
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))

    def forward(self, x):
        def join(x, skip):
            return torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear"), skip], 1)

        a = self.e1(x)
        b = self.e2(F.max_pool2d(a, 2))
        c = self.e3(F.max_pool2d(b, 2))
        x = self.d3(join(self.bottom(F.max_pool2d(c, 2)), c))
        return self.out(self.d1(join(self.d2(join(x, b)), a)))


class Flat(nn.Module):
    """No blocks at all: layers in a row, one shared activation, squeeze and excitation, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.conv3 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.up1, self.join1 = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.act, self.out, self.sigmoid = nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid()

    def forward(self, x):
        a = self.act(self.norm1(self.conv1(x)))
        b = self.act(self.norm2(self.conv2(a)))
        b = b * self.squeeze(b)
        x = self.act(self.conv3(b))
        x = self.act(self.join2(torch.cat([self.up2(x), b], 1)))
        x = self.act(self.join1(torch.cat([self.up1(x), a], 1)))
        return self.sigmoid(self.out(x))


class TwoPart(nn.Module):
    """An encoder that returns one tensor, a decoder whose blocks first narrow and then enlarge what they get."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.down(1, 4), self.down(4, 8), self.down(8, 16))
        self.decoder = nn.Sequential(self.up(16, 8), self.up(8, 4), self.up(4, 4))
        self.head = nn.Conv2d(4, 2, 1)

    @staticmethod
    def down(channels, out):
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)
        )

    @staticmethod
    def up(channels, out):
        return nn.Sequential(
            nn.Conv2d(channels, out, 1), nn.Upsample(scale_factor=2), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()
        )

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)))


def monai(name, *args, **options):
    def make():
        from monai.networks import nets

        return getattr(nets, name)(*args, **options)

    return make


def nnunet(name, dims, strides, blocks, deep_supervision):
    def make():
        from dynamic_network_architectures.architectures import unet

        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        net = getattr(unet, name)(
            1, len(strides), (4, 8, 12, 16)[: len(strides)], conv, 3, strides, blocks, 3, 1,
            conv_bias=True, norm_op=norm, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=deep_supervision,
        )  # fmt: skip
        return net

    return make


def names(pattern, count):
    return tuple(pattern.format(i) for i in range(count))


UP, DOWN = ("model.1.submodule.1.submodule", "model.1.submodule"), ("model.0", "model.1.submodule.0")
ZOO = {
    "UNet": Entry(
        lambda: UNet(1, 3, channels=(4, 6, 8, 10, 12)),
        (*names("encoder.blocks.{}", 4), "encoder.bottleneck"),
        names("decoder.blocks.{}", 4),
        ("classifier",),
    ),
    "UNet, 3-D, shallow, as many classes as channels": Entry(
        lambda: UNet(1, 4, channels=(4, 6, 8), spatial_dims=3),
        (*names("encoder.blocks.{}", 2), "encoder.bottleneck"),
        names("decoder.blocks.{}", 2),
        ("classifier",),
        (16, 17, 19),
    ),
    "functional": Entry(Functional, ("e1", "e2", "e3", "bottom"), ("d3", "d2", "d1"), ("out",)),
    "flat": Entry(Flat, ("norm1", "norm2", "conv3"), ("join2", "join1"), ("out", "sigmoid")),
    "two parts": Entry(TwoPart, names("encoder.{}", 3), names("decoder.{}", 3), ("head",)),
    "MONAI UNet": Entry(
        monai("UNet", 2, 1, 3, (4, 8, 12, 16), (2, 2, 2), num_res_units=1),
        (*DOWN, "model.1.submodule.1.submodule.1.submodule"),
        ("model.1.submodule.1.submodule.2", "model.1.submodule.2"),
        ("model.2",),
    ),
    "MONAI DynUNet": Entry(
        monai("DynUNet", 2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 12, 16], deep_supervision=True),
        ("input_block", "downsamples.0", "downsamples.1", "bottleneck"),
        names("upsamples.{}", 3),
        ("deep_supervision_heads.0", "output_block"),
    ),
    "MONAI SegResNet": Entry(
        monai("SegResNet", 2, 8, 1, 3), names("down_layers.{}", 4), names("up_layers.{}", 3), ("conv_final",)
    ),
    "MONAI AttentionUnet": Entry(
        monai("AttentionUnet", 2, 1, 3, (4, 8, 12), (2, 2)),
        (*DOWN, "model.1.submodule.1.submodule"),
        ("model.1.submodule.1.merge", "model.1.merge"),
        ("model.2",),
    ),
    "MONAI BasicUNet": Entry(
        monai("BasicUNet", 2, 1, 3, (4, 4, 8, 12, 16, 4)),
        ("conv_0", "down_1", "down_2", "down_3", "down_4"),
        ("upcat_4", "upcat_3", "upcat_2", "upcat_1"),
        ("final_conv",),
    ),
    "MONAI UNETR": Entry(
        monai("UNETR", 1, 3, (32, 32), feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2, spatial_dims=2),
        ("encoder1", "encoder2", "encoder3", "encoder4"),
        ("decoder5", "decoder4", "decoder3", "decoder2"),
        ("out",),
    ),
    "MONAI SwinUNETR": Entry(
        monai("SwinUNETR", 1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2),
        ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10"),
        ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"),
        ("out",),
        (64, 64),
    ),
    "nnU-Net PlainConvUNet": Entry(
        nnunet("PlainConvUNet", 2, [1, 2, 2, 2], 2, False),
        names("encoder.stages.{}", 4),
        names("decoder.stages.{}", 3),
        ("decoder.seg_layers.2",),
    ),
    "nnU-Net PlainConvUNet, deep supervision": Entry(
        nnunet("PlainConvUNet", 2, [1, 2, 2, 2], 2, True),
        names("encoder.stages.{}", 4),
        names("decoder.stages.{}", 3),
        names("decoder.seg_layers.{}", 3),
    ),
    "nnU-Net ResidualEncoderUNet, 3-D, anisotropic": Entry(
        nnunet("ResidualEncoderUNet", 3, [(1, 1, 1), (1, 2, 2), (2, 2, 2)], 1, True),
        names("encoder.stages.{}", 3),
        names("decoder.stages.{}", 2),
        names("decoder.seg_layers.{}", 2),
        (8, 16, 16),
    ),
}
