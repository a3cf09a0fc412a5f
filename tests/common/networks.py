"""MONAI networks small enough for a test, and their patients' gradients by plain autograd."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.resnet import resnet10
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig
from common.learning.network import build_model
from common.losses.terms import dice_ce
from common.privacy.patient import Loss, Patient


@dataclass(frozen=True)
class Network:
    """One of the networks that are compared. edges: spatial size of a crop."""

    name: str
    build: Callable[[], nn.Module]
    edges: tuple[int, ...]
    changed: str = "as shipped"
    loss: Loss = dice_ce

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = self.build()
            # Norms are born with weight 1 and bias 0, at which mistakes hide.
            for parameter in model.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
        return model

    def patients(self, counts: tuple[int, ...]) -> list[Patient]:
        generator = torch.Generator().manual_seed(len(self.name))
        shape = self.edges if self.loss is dice_ce else ()
        return [
            Patient(
                torch.randn((count, 1, *self.edges), generator=generator),
                torch.randint(2, (count, *shape), generator=generator),
            )
            for count in counts
        ]


def ours(dims: int, norm: str) -> nn.Module:
    return build_model(
        RunConfig.model_validate(
            {
                "name": "test",
                "model": {"dims": dims, "channels": (4, 8, 12), "norm": norm},
                "data": {"modality": "CT", "classes": ("liver",)},
                "training": {"patch_size": (16,) * dims},
                "federation": {"rounds": 1},
            }
        )
    )


def with_group_norm(model: nn.Module) -> nn.Module:
    """Every BatchNorm replaced by a GroupNorm of 4 groups, or as many as divide the channels."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.GroupNorm(math.gcd(4, child.num_features), child.num_features))
    return model


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def without_in_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
    return model


NETWORKS = (
    Network("U-Net 2D (ours)", lambda: ours(2, "instance"), (16, 20)),
    Network("U-Net 2D (ours), group norm", lambda: ours(2, "group"), (16, 20)),
    Network("U-Net 3D (ours)", lambda: ours(3, "instance"), (8, 12, 8)),
    Network("UNet (MONAI)", lambda: UNet(2, 1, 2, (4, 8, 12), (2, 2), num_res_units=1), (16, 20)),
    Network("BasicUNet", lambda: BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 12, 4)), (32, 32)),
    Network(
        "DynUNet",
        lambda: DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12), res_block=True),
        (16, 20),
    ),
    Network(
        "SegResNet", lambda: SegResNet(2, init_filters=8, out_channels=2, blocks_down=(1, 2), blocks_up=(1,)), (16, 12)
    ),
    Network(
        "AttentionUnet",
        lambda: with_group_norm(AttentionUnet(2, 1, 2, (4, 8, 12), (2, 2))),
        (16, 20),
        "BatchNorm replaced by GroupNorm",
    ),
    Network(
        "ResNet-10 classifier",
        lambda: with_group_norm(resnet10(spatial_dims=2, n_input_channels=1, num_classes=2, widen_factor=0.25)),
        (32, 32),
        "BatchNorm replaced by GroupNorm",
        functional.cross_entropy,
    ),
)


def batch_of_one(model: nn.Module, loss: Loss, patient: Patient) -> Tensor:
    """A patient's gradient as it is defined, flat: the mean over crops that were alone in the network."""
    crops, labels, _ = patient
    total = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), dtype=crops.dtype)
    for crop, label in zip(crops, labels, strict=True):
        model.zero_grad()
        loss(model(crop[None]), label[None]).backward()
        total += torch.cat([gradient_of(parameter).reshape(-1) for parameter in model.parameters()])
    model.zero_grad()
    return total / len(crops)
