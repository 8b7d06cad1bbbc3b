"""Networks of libraries by the names a person would tap; the names were written down before anything looked for them.

Class counts of 16, 32 and 64 are on purpose: a late layer may have as many channels as there are classes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from tests.networks.entry import Entry, names
from tests.networks.monai_networks import monai
from tests.networks.smp_networks import HEAD, LARGE, smp

RESNET = ("encoder.relu", *names("encoder.layer{}", 5)[1:])
BLOCKS = names("decoder.blocks.{}", 5)


def under(prefix: str, *rest: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in rest)


def unet(encoder: str, stages: tuple[str, ...], size: tuple[int, ...] = LARGE) -> Entry:
    """A U-Net of smp on another encoder."""
    return Entry(smp("Unet", encoder, in_channels=3), stages, BLOCKS, HEAD, size, 3)


MORE_SMP = {
    "smp Unet, 16 classes": Entry(smp("Unet", classes=16), RESNET, BLOCKS, HEAD, LARGE),
    "smp Unet, 32 classes, resnet34": Entry(smp("Unet", "resnet34", classes=32), RESNET, BLOCKS, HEAD, LARGE),
    "smp Unet++, 32 classes": Entry(
        smp("UnetPlusPlus", classes=32), RESNET, names("decoder.blocks.x_0_{}", 5), HEAD, LARGE
    ),
    "smp Linknet, 32 classes": Entry(smp("Linknet", classes=32), RESNET, BLOCKS, HEAD, LARGE),
    "smp MAnet, 64 classes": Entry(
        smp("MAnet", classes=64),
        (*RESNET[:-1], "decoder.center"),
        BLOCKS,
        HEAD,
        LARGE,
        revised="`encoder.layer4` was expected at the bottom; `decoder.center` follows it, as a pyramid does elsewhere.",
    ),
    "smp FPN, 16 classes": Entry(
        smp("FPN", classes=16),
        RESNET,
        under("decoder", "p4", "p3", "dropout"),
        HEAD,
        LARGE,
        revised="`decoder.merge` was expected; in training, the dropout behind it overwrites what it returns.",
    ),
    "smp Unet, vgg11_bn": unet("vgg11_bn", (*(f"encoder.features.{i}" for i in (2, 6, 13, 20, 27)), "decoder.center")),
    "smp Unet, densenet121": unet(
        "densenet121",
        under("encoder.features", "relu0", "transition1.relu", "transition2.relu", "transition3.relu", "norm5"),
    ),
    "smp Unet, mobilenet_v2": unet("mobilenet_v2", under("encoder.features", "1", "3", "6", "13", "18")),
    "smp Unet, xception": unet("xception", under("encoder", "relu2", "block1", "block2", "block11", "bn4")),
    "smp Unet, regnetx_002": unet("timm-regnetx_002", under("encoder.model", "stem", "s1", "s2", "s3", "s4")),
    "smp Unet, mobileone_s0": unet("mobileone_s0", names("encoder.stage{}", 5)),
    "smp Unet, se_resnet50": unet("se_resnet50", names("encoder.layer{}", 5)),
    "smp Unet, skresnet18": unet("timm-skresnet18", ("encoder.act1", *names("encoder.layer{}", 5)[1:])),
    "smp Unet, pvt_v2_b0": unet("tu-pvt_v2_b0", names("encoder.model.stages_{}", 4)),
    "smp Unet, poolformerv2_s12": unet("tu-poolformerv2_s12", names("encoder.model.stages_{}", 4)),
    "smp Unet, edgenext_xx_small": unet("tu-edgenext_xx_small", names("encoder.model.stages_{}", 4)),
    "smp Unet, ghostnet_100": replace(
        unet("tu-ghostnet_100", under("encoder.model", "conv_stem", "blocks_1", "blocks_3", "blocks_5", "blocks_7")),
        revised="`blocks_0`, `2`, `4`, `6` were expected; the features that the decoder is given are earlier ones.",
    ),
    "smp Unet, repvgg_a0": unet("tu-repvgg_a0", ("encoder.model.stem", *names("encoder.model.stages_{}", 4))),
    "smp Unet, cspdarknet53": unet(
        "tu-cspdarknet53", ("encoder.model.stem_conv1", *names("encoder.model.stages_{}", 5))
    ),
    "smp Unet, efficientvit_b0": unet(
        "tu-efficientvit_b0", ("encoder.model.stem_res0", *names("encoder.model.stages_{}", 4))
    ),
    "smp Unet, res2net50": unet(
        "tu-res2net50_26w_4s", ("encoder.model.act1", *(f"encoder.model.layer{i}" for i in (1, 2, 3, 4)))
    ),
    "smp Unet, Swin": unet("tu-swin_tiny_patch4_window7_224", names("encoder.model.layers_{}", 4), (224, 224)),
    "smp Unet, FocalNet": unet("tu-focalnet_tiny_srf", names("encoder.model.layers_{}", 4), (224, 224)),
    "smp UPerNet, convnext_atto": Entry(
        smp("UPerNet", "tu-convnext_atto", in_channels=3),
        (*names("encoder.model.stages_{}", 3), "decoder.psp"),
        (*names("decoder.fpn_conv_blocks.{}", 2), "decoder.fusion_block"),
        HEAD,
        LARGE,
        3,
    ),
}


def classifier(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        return getattr(models, name)(weights=None, num_classes=16, **options)

    return make


def timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=16)

    return make


def image_net(make: Callable[[], nn.Module], stages: tuple[str, ...], side: int = 64) -> Entry:
    """A classifier, which is an encoder alone."""
    return Entry(make, stages, (), None, (side, side), 3, logits=None)


CLASSIFIERS = {
    "torchvision vgg11": image_net(classifier("vgg11"), tuple(f"features.{i}" for i in (1, 4, 9, 14, 19))),
    "torchvision densenet121": image_net(
        classifier("densenet121"), under("features", "relu0", *names("denseblock{}", 5)[1:])
    ),
    "torchvision mobilenet_v2": image_net(classifier("mobilenet_v2"), under("features", "1", "3", "6", "13", "18")),
    "torchvision shufflenet_v2": image_net(classifier("shufflenet_v2_x0_5"), ("conv1", "stage2", "stage3", "conv5")),
    "torchvision mnasnet": image_net(classifier("mnasnet0_5"), under("layers", "7", "8", "9", "11", "16")),
    "torchvision squeezenet": image_net(classifier("squeezenet1_1"), under("features", "1", "4", "7", "12")),
    "torchvision googlenet": image_net(
        classifier("googlenet", init_weights=False, aux_logits=False),
        ("conv1", "conv3", "inception3b", "inception4e", "inception5b"),
    ),
    "torchvision convnext_tiny": image_net(classifier("convnext_tiny"), under("features", "1", "3", "5", "7")),
    "torchvision swin_t": image_net(classifier("swin_t"), ("features.1", "features.3", "features.5", "permute"), 224),
    "torchvision efficientnet_b0": image_net(classifier("efficientnet_b0"), under("features", "1", "2", "3", "5", "8")),
    "torchvision regnet_y_400mf": image_net(
        classifier("regnet_y_400mf"), ("stem", *names("trunk_output.block{}", 5)[1:])
    ),
    "torchvision resnext50": image_net(classifier("resnext50_32x4d"), ("relu", *names("layer{}", 5)[1:])),
    "torchvision vit_b_32": image_net(classifier("vit_b_32"), ("conv_proj",), 224),
    "timm swin_tiny": image_net(
        timm("swin_tiny_patch4_window7_224"), ("layers.0", "layers.1", "layers.2", "norm"), 224
    ),
    "timm levit_128s": image_net(
        timm("levit_128s"), ("stem.act1", "stem.act2", "stem.act3", "stages.0", "stages.1", "stages.2"), 224
    ),
    "timm nest_tiny": image_net(timm("nest_tiny"), ("levels.0", "levels.1", "norm"), 224),
    "timm mixer_s32": image_net(timm("mixer_s32_224"), ("norm",), 224),
    "timm convmixer": image_net(timm("convmixer_768_32"), ("blocks",)),
}


def deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_resnet101

    return deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=16)


def nnunet_of(dims: int, widths: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        return PlainConvUNet(
            1, len(widths), widths, conv, 3, [1] + [2] * (len(widths) - 1), 2, classes, 2,
            conv_bias=True, norm_op=norm, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip

    return make


DOWN, VOLUME = ("model.0", "model.1.submodule.0"), (32, 32, 32)
BASIC = ("conv_0", "down_1", "down_2", "down_3", "down_4"), ("upcat_4", "upcat_3", "upcat_2", "upcat_1"), ("final_conv",)  # fmt: skip
MORE_MONAI = {
    "MONAI AutoEncoder": Entry(
        monai("AutoEncoder", 2, 1, 1, (4, 8, 16), (2, 2, 2)),
        ("encode.encode_0", "encode.encode_1", "encode.encode_2"),
        ("decode.decode_0", "decode.decode_1"),
        ("decode.decode_2",),
        logits=None,
    ),
    "MONAI AttentionUnet, 3-D, 16 classes": Entry(
        monai("AttentionUnet", 3, 1, 16, (16, 16, 32), (2, 2)),
        (*DOWN, "model.1.submodule.1.submodule"),
        ("model.1.submodule.1.merge", "model.1.merge"),
        ("model.2",),
        VOLUME,
    ),
    "MONAI UNet, 3-D, 16 classes": Entry(
        monai("UNet", 3, 1, 16, (16, 16, 32, 64), (2, 2, 2), num_res_units=2),
        (*DOWN, "model.1.submodule.1.submodule.1.submodule"),
        ("model.1.submodule.1.submodule.2", "model.1.submodule.2"),
        ("model.2",),
        VOLUME,
    ),
    "MONAI VNet, 3-D, 32 classes": Entry(
        monai("VNet", 3, 1, 32),
        ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"),
        ("up_tr256", "up_tr128", "up_tr64", "up_tr32"),
        ("out_tr",),
        VOLUME,
    ),
    "MONAI MedNeXt, 3-D at 32": Entry(
        monai(
            "MedNeXt",
            3,
            16,
            1,
            16,
            kernel_size=3,
            blocks_down=(1, 1, 1, 1),
            blocks_bottleneck=1,
            blocks_up=(1, 1, 1, 1),
        ),
        (*names("enc_stages.{}", 4), "bottleneck"),
        names("dec_stages.{}", 4),
        ("out_0",),
        VOLUME,
    ),
    "MONAI BasicUNet, 16 classes at 250": Entry(
        monai("BasicUNet", 2, 1, 16, (16, 16, 32, 64, 128, 16)), *BASIC, (250, 250)
    ),
    "MONAI BasicUNet, 3-D, 32 classes": Entry(monai("BasicUNet", 3, 1, 32, (32, 32, 32, 64, 64, 32)), *BASIC, VOLUME),
    "MONAI SegResNet, 16 classes": Entry(
        monai("SegResNet", 2, 16, 1, 16), names("down_layers.{}", 4), names("up_layers.{}", 3), ("conv_final",)
    ),
    "MONAI SegResNet, 3-D at 64, 32 classes": Entry(
        monai("SegResNet", 3, 8, 1, 32),
        names("down_layers.{}", 4),
        names("up_layers.{}", 3),
        ("conv_final",),
        (64, 64, 64),
    ),
    "MONAI DynUNet, 3-D, 32 classes": Entry(
        monai("DynUNet", 3, 1, 32, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[16, 32, 32, 64]),
        ("input_block", "downsamples.0", "downsamples.1", "bottleneck"),
        names("upsamples.{}", 3),
        ("output_block",),
        VOLUME,
    ),
    "MONAI DenseNet121": Entry(
        monai("DenseNet121", 2, 1, 16),
        ("features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "class_layers.relu"),
        (),
        None,
        LARGE,
        logits=None,
    ),
    "MONAI resnet18, 3-D": Entry(
        monai("resnet18", spatial_dims=3, n_input_channels=1, num_classes=16),
        ("act", "layer1", "layer2", "layer3", "layer4"),
        (),
        None,
        (64, 64, 64),
        logits=None,
    ),
    "MONAI SEResNet50": Entry(
        monai("SEResNet50", spatial_dims=2, in_channels=1, num_classes=16),
        ("layer0.relu1", "layer1", "layer2", "layer3", "layer4"),
        (),
        None,
        LARGE,
        logits=None,
    ),
    "MONAI LocalNet": Entry(
        monai("LocalNet", 2, 2, 4, (0, 1, 2), out_channels=3),
        ("encode_convs.0", "encode_convs.1", "bottom_block"),
        ("decode_convs.0", "decode_convs.1"),
        channels=2,
    ),
    "MONAI ViTAutoEnc": Entry(
        monai(
            "ViTAutoEnc",
            1,
            (32, 32),
            (16, 16),
            1,
            hidden_size=16,
            mlp_dim=16,
            num_heads=2,
            num_layers=2,
            spatial_dims=2,
        ),
        ("norm",),
        ("conv3d_transpose",),
        ("conv3d_transpose_1",),
        logits=None,
    ),
    "MONAI FlexibleUNet, 3-D, 16 classes": Entry(
        monai("FlexibleUNet", 1, 16, "resnet10", spatial_dims=3),
        ("encoder.act", *names("encoder.layer{}", 5)[1:]),
        BLOCKS,
        HEAD,
        VOLUME,
    ),
    "MONAI SwinUNETR, 3-D at 64, 16 classes": Entry(
        monai("SwinUNETR", 1, 16, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
        ("encoder1", "encoder2", "encoder3", "encoder4", "swinViT.layers3.0", "encoder10"),
        ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"),
        ("out",),
        (64, 64, 64),
    ),
    "MONAI UNETR, 3-D at 64, 16 classes": Entry(
        monai("UNETR", 1, 16, (64, 64, 64), feature_size=16, hidden_size=12, mlp_dim=12, num_heads=2),
        ("encoder1", "encoder2", "encoder3", "encoder4", "vit.norm"),
        ("decoder5", "decoder4", "decoder3", "decoder2"),
        ("out",),
        (64, 64, 64),
    ),
}
MORE_NNUNET = {
    "nnU-Net PlainConvUNet, 32 classes": Entry(
        nnunet_of(2, (32, 64, 128, 256), 32), names("encoder.stages.{}", 4), names("decoder.stages.{}", 3),
        ("decoder.seg_layers.2",),
    ),
    "nnU-Net PlainConvUNet, 3-D at 64, 16 classes": Entry(
        nnunet_of(3, (8, 16, 32, 64), 16), names("encoder.stages.{}", 4), names("decoder.stages.{}", 3),
        ("decoder.seg_layers.2",), (64, 64, 64),
    ),
    "nnU-Net PlainConvUNet, 3-D at 32, 64 classes": Entry(
        nnunet_of(3, (32, 64, 64, 64), 64), names("encoder.stages.{}", 4), names("decoder.stages.{}", 3),
        ("decoder.seg_layers.2",), VOLUME,
    ),
}  # fmt: skip
MORE = {
    **MORE_SMP,
    **CLASSIFIERS,
    "torchvision deeplabv3_resnet101, 16 classes": Entry(
        deeplab, ("backbone.relu", "backbone.layer1", "backbone.layer4"), (), ("classifier",), LARGE, 3,
        logits=lambda output: output["out"],
    ),
    **MORE_MONAI,
    **MORE_NNUNET,
}  # fmt: skip
