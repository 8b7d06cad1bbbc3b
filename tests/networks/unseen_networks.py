"""Networks that nobody looked at while the rules of `discover_stages` were written; the rules stay as they were."""

from tests.networks.entry import Entry
from tests.networks.hugging_face_networks import SEMANTIC, model
from tests.networks.monai_networks import monai
from tests.networks.smp_networks import HEAD, LARGE, smp

UNSEEN = {
    "MONAI MedNeXt (unseen)": Entry(
        monai(
            "MedNeXt", 2, 8, 1, 3, kernel_size=3, blocks_down=(1, 1, 1, 1), blocks_bottleneck=1, blocks_up=(1, 1, 1, 1)
        ),
        "1:8 2:16 4:32 8:64 16:128",
        "8:64 4:32 2:16 1:8",
        size=LARGE,
    ),
    "MONAI QuickNAT (unseen)": Entry(
        monai("Quicknat", 3, 1, 8, se_block="None"), "1:8 2:8 4:8 8:8 16:8", "8:8 4:8 2:8 1:8", size=LARGE
    ),
    "HF MobileNetV2 (unseen)": Entry(
        model("MobileNetV2ForSemanticSegmentation", lambda hf: hf.MobileNetV2Config(num_labels=3)),
        "2:16 4:24 8:32 16:96 32:320",
        "",
        **SEMANTIC,
    ),
    "smp FPN, timm's mobilenetv3_small (unseen)": Entry(
        smp("FPN", "tu-mobilenetv3_small_100"), "2:16 4:16 8:24 16:48 32:576", "16:256 8:256 4:128", HEAD, LARGE
    ),
}
