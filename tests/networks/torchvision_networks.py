"""The segmentation networks of torchvision: a dilated backbone, a head, and interpolation to the image."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.networks.entry import Entry


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import segmentation

        return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=3, **options)

    return make


OUT = {"size": (64, 64), "channels": 3, "logits": lambda output: output["out"]}
TORCHVISION = {
    "torchvision fcn_resnet50": Entry(torchvision("fcn_resnet50"), "2:64 4:256 8:2048", "", **OUT),
    "torchvision fcn_resnet50, auxiliary head": Entry(
        torchvision("fcn_resnet50", aux_loss=True), "2:64 4:256 8:2048", "", **OUT
    ),
    "torchvision deeplabv3_resnet50": Entry(torchvision("deeplabv3_resnet50"), "2:64 4:256 8:2048", "", **OUT),
    "torchvision deeplabv3_mobilenet_v3_large": Entry(
        torchvision("deeplabv3_mobilenet_v3_large"), "2:16 4:24 8:40 16:960", "", **OUT
    ),
    "torchvision lraspp_mobilenet_v3_large": Entry(
        torchvision("lraspp_mobilenet_v3_large"), "2:16 4:24 8:40 16:960", "", **OUT
    ),
}
