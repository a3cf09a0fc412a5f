"""The network of a run, built from its configuration alone.

Every participant builds the same network with the same initial weights from the same run.toml.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.errors import ConfigError, UpdateError
from common.models.faster import faster

_NORMALISATIONS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
_CONTAINERS = (dict, OrderedDict, list, set)


def build_model(run: RunConfig) -> nn.Module:
    """Build the network of a run on the CPU; the global random state is left as it was.

    Returns:
        A module from images (N, channels, *spatial) to the task's outputs (N, outputs, *spatial), for spatial sizes
        that are multiples of the network's stride.

    Raises:
        ConfigError: the network cannot train on the run's crops, or keeps statistics over samples.
    """
    if problem := run.model.refuse(run.training.patch_size):
        raise ConfigError(problem)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        network = run.model.build(run.data.channels, run.task.outputs(len(run.data.classes)))
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm) or getattr(child, "track_running_stats", False):
                raise ConfigError(
                    f"the network {run.model.architecture} normalises by statistics over patients ({name}), which "
                    "would leave the hospital with it. Build it with norms of each sample."
                )
    return faster(network)


def load_model(run: RunConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of a run with these weights, without drawing the initial ones, which takes longest.

    It is built once for each of the last runs, and each is a copy of its own: built anew for each message it took a
    third of a small round.

    Raises:
        UpdateError: the weights are not the network's, by name, shape or type: loading would cast them in silence.
        ConfigError: as `build_model`.
    """
    pattern = _without_weights(run)
    if _schema(state) != _schema(weights_of(pattern)):
        raise UpdateError("the weights do not fit the run's model by name, shape or type. Send the model of the run.")
    if next(pattern.buffers(), None) is not None:
        network = build_model(run)  # it holds what its weights do not
        network.load_state_dict(state, strict=False)  # of the buffers nothing is said
        return network
    filled: dict[int, nn.Parameter] = {}  # by id of what the pattern holds, what its copy holds instead
    for name, one in pattern.named_parameters():
        values = torch.empty_like(one, device="cpu").copy_(state[name])
        filled[id(one)] = nn.Parameter(values, one.requires_grad)
    return _copied(pattern, filled)


@lru_cache(maxsize=8)
def _without_weights(run: RunConfig) -> nn.Module:
    """The network of a run as a pattern: nobody may change it."""
    with torch.device("meta"):
        return build_model(run)


def _copied(pattern: nn.Module, weights: Mapping[int, nn.Parameter]) -> nn.Module:
    """What `copy.deepcopy` makes of a network, in a sixth of the time: most of what it copies is empty dictionaries.

    Args:
        pattern: the network.
        weights: by id of those of the pattern, what the copy has in their place.
    """
    memo: dict[int, object] = dict(weights)
    for module in pattern.modules():  # all of them first: one may stand in another's list
        memo[id(module)] = type(module).__new__(type(module))
    for module in pattern.modules():
        held = vars(memo[id(module)])
        for name, value in vars(module).items():
            held[name] = type(value)() if type(value) in _CONTAINERS and not value else copy.deepcopy(value, memo)
    copied = memo[id(pattern)]
    assert isinstance(copied, nn.Module)  # noqa: S101 - for the type checker
    return copied


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """What is trained, averaged, sent and kept, by name: the parameters. Buffers are what the run's settings make them.

    Returns:
        The parameters' own tensors, detached.
    """
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def freeze(network: nn.Module, run: RunConfig) -> None:
    """Leave only the weights that the run trains trainable: see [training] trainable."""
    if run.training.trainable == "all":
        return
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, (*_NORMALISATIONS, nn.PReLU)):
            module.requires_grad_(True)
    run.model.head(network).requires_grad_(True)


def norms_of(network: nn.Module) -> frozenset[str]:
    """Names of the weights and biases of its normalisations."""
    return frozenset(
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, _NORMALISATIONS)
        for name, _ in module.named_parameters(recurse=False)
    )


def tensor_shapes(run: RunConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the run's weights, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in weights_of(build_model(run)).items()}


def _schema(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


__all__ = ["build_model", "freeze", "load_model", "norms_of", "tensor_shapes", "weights_of"]
