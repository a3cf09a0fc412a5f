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
from common.models.trimmed import trim
from common.models.unet import UNet
from common.models.wnet import WNet

trim()

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


def dense_names(*, overlap: bool = False) -> str:
    """The networks that answer each voxel, and if so asked those that can answer several classes there, in words."""
    fit = [one for one in NETWORKS if one.DENSE and not (overlap and one.EXCLUSIVE)]
    return ", ".join(one.model_fields["architecture"].default for one in fit)


__all__ = ["NETWORKS", "NETWORK_CHOICE", "Network", "dense_names"]
