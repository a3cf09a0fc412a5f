"""The networks a run may name, built from its configuration alone.

Every participant builds the same network with the same initial weights from the same run.toml. Only
normalisation per sample is offered: BatchNorm mixes patients, which voids differential privacy, and its running
statistics would leave the hospital. The U-Net is MONAI's (residual units after Kerfoot et al., STACOM 2018).
"""

import math

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from common.config import RunConfig
from common.errors import ConfigError

_GROUPS = 4  # common.config holds every width to a multiple of it


def build_model(run: RunConfig) -> nn.Module:
    """Build the network of a run on the CPU; the global random state is left as it was.

    Returns:
        A module from images (N, channels, *spatial) to logits (N, 1 + classes, *spatial), for spatial sizes that
        are multiples of the total stride `2 ** (levels - 1)`.

    Raises:
        ConfigError: the crops shrink to one voxel inside the network, where instance norm is undefined.
    """
    _check_bottleneck(run)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        network = UNet(
            spatial_dims=run.model.dims,
            in_channels=run.data.channels,
            out_channels=1 + len(run.data.classes),
            channels=run.model.channels,
            strides=(2,) * (len(run.model.channels) - 1),
            num_res_units=run.model.residual_units,
            act="PRELU",
            norm=("INSTANCE", {"affine": True}),
            dropout=run.model.dropout,
        )
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.PReLU):
                setattr(parent, name, _FastPReLU())
            elif isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and run.model.norm == "group":
                # Here and not by MONAI's argument, which fails on the last block: its channels are the classes.
                setattr(parent, name, nn.GroupNorm(math.gcd(_GROUPS, child.num_features), child.num_features))
    return network


def freeze(network: nn.Module, run: RunConfig) -> None:
    """Leave only the weights that the run trains trainable: see [training] trainable."""
    if run.training.trainable == "all":
        return
    network.requires_grad_(False)
    head = list(network.model.children())[-1]  # type: ignore[union-attr]  # MONAI has a Sequential there
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d | nn.GroupNorm | nn.PReLU):
            module.requires_grad_(True)
    head.requires_grad_(True)


def tensor_shapes(run: RunConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the run's weights, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(run).state_dict().items()}


class _FastPReLU(nn.PReLU):
    """The same function and weight; torch's own backward is not vectorised and took 15 % of a step on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the base class's name
        """relu(x) + weight * (x - relu(x)), element by element."""
        return torch.lerp(input.relu(), input, self.weight.to(input.dtype))


def _check_bottleneck(run: RunConfig) -> None:
    stride = 2 ** (len(run.model.channels) - 1)
    if run.model.norm == "instance" and math.prod(run.training.patch_size) == stride**run.model.dims:
        raise ConfigError(
            f"training.patch-size {list(run.training.patch_size)} shrinks to a single voxel in the network, where norm "
            f"'instance' is undefined. Use crops of at least {2 * stride} along one axis, or norm = 'group'."
        )


__all__ = ["build_model", "freeze", "tensor_shapes"]
