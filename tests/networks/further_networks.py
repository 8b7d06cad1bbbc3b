"""Further networks; their stages were written down before anything looked for them, when the rules were settled."""

from tests.networks.entry import Entry, names
from tests.networks.monai_networks import monai
from tests.networks.more_networks import BASIC, BLOCKS, RESNET, VOLUME, classifier, image_net, nnunet_of, timm, under
from tests.networks.more_own_networks import ABC, DE, OUT, plain
from tests.networks.smp_networks import FIVE, HEAD, LARGE, smp

STAGES = names("layer{}", 5)[1:]
FURTHER = {
    "smp Unet of depth 4, 32 classes": Entry(
        smp("Unet", encoder_depth=4, decoder_channels=(64, 32, 16, 8), classes=32), RESNET[:-1], BLOCKS[:-1], HEAD, LARGE
    ),
    "smp Unet, efficientnet-b1": Entry(
        smp("Unet", "efficientnet-b1"), "2:32 4:24 8:40 16:112 32:320", FIVE, HEAD, LARGE
    ),
    "smp FPN, resnet34, 64 classes": Entry(
        smp("FPN", "resnet34", classes=64), RESNET, under("decoder", "p4", "p3", "dropout"), HEAD, LARGE
    ),
    "smp Linknet, resnet50": Entry(
        smp("Linknet", "resnet50"), RESNET, "16:1024 8:512 4:256 2:64 1:32", HEAD, LARGE
    ),
    "timm resnet34": image_net(timm("resnet34"), ("act1", *STAGES)),
    "torchvision wide_resnet50_2": image_net(classifier("wide_resnet50_2"), ("relu", *STAGES)),
    "torchvision vgg16_bn": image_net(classifier("vgg16_bn"), tuple(f"features.{i}" for i in (5, 12, 22, 32, 42))),
    "nnU-Net PlainConvUNet, 3-D at 32, 16 classes": Entry(
        nnunet_of(3, (16, 16, 32), 16), names("encoder.stages.{}", 3), names("decoder.stages.{}", 2),
        ("decoder.seg_layers.1",), VOLUME,
    ),
    "MONAI UNet, 16 classes, no residual units": Entry(
        monai("UNet", 2, 1, 16, (16, 32, 64), (2, 2)),
        ("model.0", "model.1.submodule.1.submodule"), ("model.1.submodule.2",), ("model.2",),
        revised="`model.1.submodule.0` was expected too; it is on the bottleneck's level, which has one stage.",
    ),
    "MONAI BasicUNet, 3-D, 64 classes": Entry(monai("BasicUNet", 3, 1, 64, (8, 8, 16, 32, 32, 64)), *BASIC, VOLUME),
    "MONAI DynUNet, 64 classes": Entry(
        monai("DynUNet", 2, 1, 64, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[64, 64, 64, 64]),
        ("input_block", "downsamples.0", "downsamples.1", "bottleneck"), names("upsamples.{}", 3), ("output_block",),
    ),
    "MONAI SegResNet, 3-D at 32, 64 classes": Entry(
        monai("SegResNet", 3, 8, 1, 64), names("down_layers.{}", 4), names("up_layers.{}", 3), ("conv_final",), VOLUME
    ),
    "MONAI AttentionUnet, 32 classes": Entry(
        monai("AttentionUnet", 2, 1, 32, (32, 32, 64), (2, 2)),
        ("model.0", "model.1.submodule.0", "model.1.submodule.1.submodule"),
        ("model.1.submodule.1.merge", "model.1.merge"), ("model.2",),
    ),
    "MONAI VNet, 64 classes": Entry(
        monai("VNet", 2, 1, 64),
        ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"), ("up_tr256", "up_tr128", "up_tr64", "up_tr32"),
        ("out_tr",),
    ),
    "own U-Net, five slices as channels, 32 classes at 250": Entry(
        plain(classes=32, channels=5), ABC, DE, OUT, (250, 250), 5
    ),
}  # fmt: skip
