"""Every network of the list, and the few that the quick tests take."""

from tests.networks.entry import Entry
from tests.networks.further_networks import FURTHER
from tests.networks.hugging_face_networks import HUGGING_FACE
from tests.networks.monai_networks import MONAI
from tests.networks.more_networks import MORE
from tests.networks.more_own_networks import MORE_OWN
from tests.networks.nnunet_networks import NNUNET
from tests.networks.own_networks import OWN
from tests.networks.smp_networks import SMP
from tests.networks.torchvision_networks import TORCHVISION
from tests.networks.unseen_networks import UNSEEN

ZOO: dict[str, Entry] = {
    **OWN,
    **MONAI,
    **NNUNET,
    **HUGGING_FACE,
    **SMP,
    **TORCHVISION,
    **UNSEEN,
    **MORE_OWN,
    **MORE,
    **FURTHER,
}
QUICK = [
    *OWN,
    *MORE_OWN,
    "MONAI UNet",
    "MONAI BasicUNetPlusPlus, deep supervision",
    "MONAI DynUNet, deep supervision",
    "MONAI SegResNet",
    "MONAI SegResNetDS, deep supervision",
    "MONAI AttentionUnet",
    "MONAI UNETR",
    "MONAI HighResNet",
    "nnU-Net PlainConvUNet, deep supervision",
    "nnU-Net ResidualEncoderUNet, 3-D, anisotropic",
    "nnU-Net PlainConvUNet, 32 classes",
    "MONAI SegResNet, 16 classes",
    "MONAI UNet, 3-D, 16 classes",
    "MONAI MedNeXt, 3-D at 32",
    "MONAI BasicUNet, 16 classes at 250",
]
