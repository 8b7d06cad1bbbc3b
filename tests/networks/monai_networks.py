"""Networks of MONAI."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.networks.entry import Entry, names


def monai(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(*args, **options)

    return make


def dints() -> nn.Module:
    from monai.networks.nets import DiNTS, TopologySearch

    space = TopologySearch(channel_mul=0.25, num_blocks=3, num_depths=3, spatial_dims=2)
    return DiNTS(space, 1, 3, spatial_dims=2)


def vae() -> Callable[[], nn.Module]:
    return monai("SegResNetVAE", (32, 32), spatial_dims=2, init_filters=8, in_channels=1, out_channels=3)


UP, DOWN = ("model.1.submodule.1.submodule", "model.1.submodule"), ("model.0", "model.1.submodule.0")
VALLEY = ("conv_0_0", "conv_1_0", "conv_2_0", "conv_3_0", "conv_4_0"), ("upcat_3_1", "upcat_2_2", "upcat_1_3", "upcat_0_4")  # fmt: skip
MONAI = {
    "MONAI UNet": Entry(
        monai("UNet", 2, 1, 3, (4, 8, 12, 16), (2, 2, 2), num_res_units=1),
        (*DOWN, "model.1.submodule.1.submodule.1.submodule"),
        ("model.1.submodule.1.submodule.2", "model.1.submodule.2"),
        ("model.2",),
    ),
    "MONAI UNet, 3-D, no residual units": Entry(
        monai("UNet", 3, 1, 3, (4, 8, 16), (2, 2)), "2:4 4:16", "2:4", size=(16, 16, 24)
    ),
    "MONAI BasicUNet": Entry(
        monai("BasicUNet", 2, 1, 3, (4, 4, 8, 12, 16, 4)),
        ("conv_0", "down_1", "down_2", "down_3", "down_4"),
        ("upcat_4", "upcat_3", "upcat_2", "upcat_1"),
        ("final_conv",),
    ),
    "MONAI BasicUNet, 3-D": Entry(
        monai("BasicUNet", 3, 1, 3, (4, 4, 8, 12, 16, 4)),
        ("conv_0", "down_1", "down_2", "down_3", "down_4"),
        ("upcat_4", "upcat_3", "upcat_2", "upcat_1"),
        ("final_conv",),
        (32, 32, 32),
    ),
    "MONAI BasicUNetPlusPlus": Entry(
        monai("BasicUNetPlusPlus", 2, 1, 3, (4, 8, 12, 16, 20, 6)), *VALLEY, logits=lambda output: output[0]
    ),
    "MONAI BasicUNetPlusPlus, deep supervision": Entry(
        monai("BasicUNetPlusPlus", 2, 1, 3, (4, 8, 12, 16, 20, 6), deep_supervision=True),
        *VALLEY,
        logits=lambda output: output[-1],
    ),
    "MONAI DynUNet": Entry(
        monai("DynUNet", 2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 12, 16]),
        ("input_block", "downsamples.0", "downsamples.1", "bottleneck"),
        names("upsamples.{}", 3),
        ("output_block",),
    ),
    "MONAI DynUNet, deep supervision": Entry(
        monai("DynUNet", 2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 12, 16], deep_supervision=True),
        ("input_block", "downsamples.0", "downsamples.1", "bottleneck"),
        names("upsamples.{}", 3),
        ("output_block",),
        logits=lambda output: output[:, 0],
        revised="The head of the coarser level was expected too; in eval mode its output is not returned.",
    ),
    "MONAI DynUNet, 3-D, anisotropic, residual": Entry(
        monai(
            "DynUNet",
            3,
            1,
            3,
            [[1, 3, 3], 3, 3],
            [1, [1, 2, 2], 2],
            [[1, 2, 2], 2],
            filters=[4, 8, 12],
            res_block=True,
        ),
        "1:4 1x2x2:8 2x4x4:12",
        "1x2x2:8 1:4",
        ("output_block",),
        (8, 16, 16),
    ),
    "MONAI SegResNet": Entry(
        monai("SegResNet", 2, 8, 1, 3), names("down_layers.{}", 4), names("up_layers.{}", 3), ("conv_final",)
    ),
    "MONAI SegResNet, 3-D": Entry(
        monai("SegResNet", 3, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        names("down_layers.{}", 3),
        names("up_layers.{}", 2),
        ("conv_final",),
        (16, 16, 16),
    ),
    "MONAI SegResNetVAE": Entry(
        vae(),
        names("down_layers.{}", 4),
        names("up_layers.{}", 3),
        ("conv_final",),
        logits=lambda output: output[0],
        calls=dict.fromkeys(names("up_layers.{}", 3), 0),
    ),
    "MONAI SegResNetDS, deep supervision": Entry(
        monai("SegResNetDS", 2, 8, 1, 3, blocks_down=(1, 2, 2), dsdepth=2),
        "1:8 2:16 4:32",
        names("up_layers.{}.blocks", 2),
        ("up_layers.1.head",),
        logits=lambda output: output[0],
        revised="The head of the coarser level was expected too; in eval mode its output is not returned.",
    ),
    "MONAI AttentionUnet": Entry(
        monai("AttentionUnet", 2, 1, 3, (4, 8, 12), (2, 2)),
        (*DOWN, "model.1.submodule.1.submodule"),
        ("model.1.submodule.1.merge", "model.1.merge"),
        ("model.2",),
    ),
    "MONAI UNETR": Entry(
        monai("UNETR", 1, 3, (32, 32), feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2, spatial_dims=2),
        ("encoder1", "encoder2", "encoder3", "encoder4", "vit.norm"),
        ("decoder5", "decoder4", "decoder3", "decoder2"),
        ("out",),
        revised="The blocks beside the transformer were expected alone; its tokens are maps, and the bottleneck.",
    ),
    "MONAI UNETR, 3-D": Entry(
        monai("UNETR", 1, 3, (32, 32, 32), feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2),
        ("encoder1", "encoder2", "encoder3", "encoder4", "vit.norm"),
        ("decoder5", "decoder4", "decoder3", "decoder2"),
        ("out",),
        (32, 32, 32),
        revised="The blocks beside the transformer were expected alone; its tokens are maps, and the bottleneck.",
    ),
    "MONAI SwinUNETR": Entry(
        monai("SwinUNETR", 1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2),
        ("encoder1", "encoder2", "encoder3", "encoder4", "swinViT.layers3.0", "encoder10"),
        ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"),
        ("out",),
        (64, 64),
        revised="The level at stride 16 had been left out: the decoder joins the backbone's own map there.",
    ),
    "MONAI SwinUNETR, 3-D, version 2": Entry(
        monai("SwinUNETR", 1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), use_v2=True),
        ("encoder1", "encoder2", "encoder3", "encoder4", "swinViT.layers3.0", "encoder10"),
        ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"),
        ("out",),
        (64, 64, 64),
        revised="The level at stride 16 had been left out: the decoder joins the backbone's own map there.",
    ),
    "MONAI VNet": Entry(
        monai("VNet", 2, 1, 3, dropout_dim=2),
        ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"),
        ("up_tr256", "up_tr128", "up_tr64", "up_tr32"),
        ("out_tr",),
    ),
    "MONAI FlexibleUNet, resnet10": Entry(
        monai("FlexibleUNet", 1, 3, "resnet10"),
        "2:64 4:64 8:128 16:256 32:512",
        "16:256 8:128 4:64 2:32 1:16",
        size=(64, 64),
    ),
    "MONAI FlexibleUNet, efficientnet-b0": Entry(
        monai("FlexibleUNet", 1, 3, "efficientnet-b0"),
        "2:16 4:24 8:40 16:112 32:320",
        "16:256 8:128 4:64 2:32 1:16",
        size=(64, 64),
    ),
    "MONAI HighResNet": Entry(monai("HighResNet", 2, 1, 3), "1:80", ""),
    "MONAI DiNTS": Entry(
        dints,
        "1:8 2:16 4:32 8:64",
        "4:32 2:16 1:8",
        revised="The full resolution inside the stem had been overlooked.",
    ),
    "MONAI AHNet": Entry(
        monai("AHNet", (1, 1, 1, 1), 2, 1, 3, psp_block_num=2),
        "2:64 4:256 8:512 16:1024 32:2048",
        "16:1084 8:572 4:124 2:124",
        ("final",),
        (64, 64),
    ),
    "MONAI RegUNet": Entry(
        monai("RegUNet", 2, 1, 4, 2, out_channels=3, extract_levels=(0, 1, 2)), "1:4 2:8 4:16", "2:8 1:4"
    ),
    "MONAI HoVerNet": Entry(
        monai("HoVerNet", "FAST", 3, out_classes=5, decoder_padding=True),
        "1:256 2:512 4:1024 8:2048",
        "4:512 2:256 1:64",
        size=(256, 256),
        channels=3,
        logits=lambda output: output["type_prediction"],
    ),
}
