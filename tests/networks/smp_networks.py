"""Networks of segmentation-models-pytorch, on a ResNet-18 where nothing else is said."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.networks.entry import Entry


def smp(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(
            encoder, encoder_weights=None, **{"classes": 3, "in_channels": 1, **options}
        )

    return make


RESNET = "2:64 4:64 8:128 16:256 32:512"
FIVE = "16:256 8:128 4:64 2:32 1:16"
HEAD, LARGE = ("segmentation_head",), (64, 64)
SMP = {
    "smp Unet": Entry(smp("Unet"), RESNET, FIVE, HEAD, LARGE),
    "smp Unet, scse attention": Entry(smp("Unet", decoder_attention_type="scse"), RESNET, FIVE, HEAD, LARGE),
    "smp Unet, efficientnet-b0": Entry(
        smp("Unet", "efficientnet-b0"),
        "2:32 4:24 8:40 16:112 32:320",
        FIVE,
        HEAD,
        LARGE,
    ),
    "smp Unet, mit_b0": Entry(smp("Unet", "mit_b0"), "4:32 8:64 16:160 32:256", FIVE, HEAD, LARGE),
    "smp Unet, timm's convnext_atto": Entry(
        smp("Unet", "tu-convnext_atto"), "4:40 8:80 16:160 32:320", FIVE, HEAD, LARGE
    ),
    "smp Unet++": Entry(smp("UnetPlusPlus"), RESNET, FIVE, HEAD, LARGE),
    "smp FPN": Entry(smp("FPN"), RESNET, "16:256 8:256 4:128", HEAD, LARGE),
    "smp PAN": Entry(smp("PAN"), "2:64 4:64 8:128 16:32", "8:32 4:32", HEAD, (128, 128)),
    "smp PSPNet": Entry(smp("PSPNet"), "2:64 4:64 8:512", "", HEAD, LARGE),
    "smp DeepLabV3": Entry(smp("DeepLabV3"), "2:64 4:64 8:256", "", HEAD, LARGE),
    "smp DeepLabV3+": Entry(
        smp("DeepLabV3Plus"),
        "2:64 4:64 8:128 16:256",
        "4:256",
        HEAD,
        LARGE,
    ),
    "smp Linknet": Entry(smp("Linknet"), RESNET, "16:256 8:128 4:64 2:64 1:32", HEAD, LARGE),
    "smp MAnet": Entry(smp("MAnet"), RESNET, FIVE, HEAD, LARGE),
    "smp UPerNet": Entry(smp("UPerNet"), "2:64 4:64 8:128 16:256 32:256", "16:256 8:256 4:256", HEAD, LARGE),
    "smp Segformer": Entry(smp("Segformer"), RESNET, "4:256", HEAD, LARGE),
    "smp DPT": Entry(
        smp(
            "DPT",
            "tu-vit_tiny_patch16_224.augreg_in21k",
            in_channels=3,
            decoder_intermediate_channels=(8, 12, 16, 20),
            decoder_fusion_channels=24,
        ),
        "4:24 8:24 16:24 32:24",
        "16:24 8:24 4:24 2:24",
        HEAD,
        (224, 224),
        3,
        revised="The widths of the intermediate maps were expected; the blocks that make them return the fusion's width.",
    ),
}
