"""Networks of nnU-Net."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tests.networks.entry import Entry, names


def nnunet(
    name: str, dims: int, strides: Sequence[Any], blocks: int, deep_supervision: bool = False
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from dynamic_network_architectures.architectures import unet

        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        return getattr(unet, name)(
            1, len(strides), (4, 8, 12, 16, 20, 24)[: len(strides)], conv, 3, strides, blocks, 3, 1,
            conv_bias=True, norm_op=norm, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
            deep_supervision=deep_supervision,
        )  # fmt: skip

    return make


ANISOTROPIC = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
NNUNET = {
    "nnU-Net PlainConvUNet": Entry(
        nnunet("PlainConvUNet", 2, [1, 2, 2, 2], 2),
        names("encoder.stages.{}", 4),
        names("decoder.stages.{}", 3),
        ("decoder.seg_layers.2",),
    ),
    "nnU-Net PlainConvUNet, deep supervision": Entry(
        nnunet("PlainConvUNet", 2, [1, 2, 2, 2], 2, True),
        names("encoder.stages.{}", 4),
        names("decoder.stages.{}", 3),
        names("decoder.seg_layers.{}", 3),
        logits=lambda output: output[0],
    ),
    "nnU-Net PlainConvUNet, 3-D, anisotropic": Entry(
        nnunet("PlainConvUNet", 3, ANISOTROPIC, 2),
        names("encoder.stages.{}", 3),
        names("decoder.stages.{}", 2),
        ("decoder.seg_layers.1",),
        (8, 16, 16),
    ),
    "nnU-Net ResidualEncoderUNet, six stages": Entry(
        nnunet("ResidualEncoderUNet", 2, [1, 2, 2, 2, 2, 2], 1),
        names("encoder.stages.{}", 6),
        names("decoder.stages.{}", 5),
        ("decoder.seg_layers.4",),
        (64, 64),
    ),
    "nnU-Net ResidualEncoderUNet, 3-D, anisotropic": Entry(
        nnunet("ResidualEncoderUNet", 3, ANISOTROPIC, 1, True),
        names("encoder.stages.{}", 3),
        names("decoder.stages.{}", 2),
        names("decoder.seg_layers.{}", 2),
        (8, 16, 16),
        logits=lambda output: output[0],
    ),
}
