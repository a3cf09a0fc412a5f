"""The networks that a run may name: one file each, with its settings, and one line in `NETWORKS`.

The first is what a run without `architecture` means. No other file knows their names. Imports `common.document.table`;
torch only where a network is built.
"""

from common.document.choice import OneOf
from common.models.attention_unet import AttentionUNet
from common.models.cnn import CNN
from common.models.dynunet import DynUNet
from common.models.network import Network
from common.models.plain_unet import PlainUNet
from common.models.resnet import ResNet
from common.models.segnet import SegNet
from common.models.segresnet import SegResNet
from common.models.unet import UNet
from common.models.wnet import WNet

NETWORKS: tuple[type[Network], ...] = (
    UNet,
    PlainUNet,
    AttentionUNet,
    SegNet,
    SegResNet,
    DynUNet,
    WNet,
    ResNet,
    CNN,
)  # fmt: skip
# Of the [model] table.
NETWORK_CHOICE = OneOf("architecture", NETWORKS)

__all__ = ["NETWORKS", "NETWORK_CHOICE", "Network"]
