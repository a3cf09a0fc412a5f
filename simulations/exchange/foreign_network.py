"""The network that a bundle's configuration names, where that takes no code of the bundle.

Only JSON is read, only the classes of MONAI that a run's networks are of are built (others fetch weights or read files
where an argument says so), and their arguments must be plain values or references to plain values. An expression (`$`)
is code, and so is a class of the bundle's own scripts: neither is run. A network is built without memory first: only
one that is as large as the bundle's weights is built at all.
"""

import contextlib
import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_CONFIGS = ("inference.json", "train.json", "evaluate.json")
_KEYS = ("network_def", "network", "net")
_TARGET = re.compile(r"(?:monai\.networks\.nets\.(?:\w+\.)?)?(\w+)")
_MOST_BYTES = 4 * 2**20
# Of monai.networks.nets; no other could have the weights of a network of ours.
_KINDS = ("AttentionUnet", "DynUNet", "ResNet", "SegResNet", "UNet")
# References may say a value as often as they like, and a number how many layers there are.
_MOST_VALUES = 1000
_LARGEST = 4096


class _NotPlainError(Exception):
    """A value is not there, can only be had by running code, or is larger than any network's."""


def network_of(bundle: Path, state: Mapping[str, Tensor]) -> tuple[nn.Module | None, str | None]:
    """The bundle's network with these weights, in evaluation mode; or None, and why."""
    config = _config(bundle)
    if config is None:
        return None, "the bundle has no configuration in JSON that names its network"
    definition = next(config[key] for key in _KEYS if key in config)
    try:
        values = _resolved(definition, config, iter(range(_MOST_VALUES)))
    except _NotPlainError:
        return (
            None,
            "the bundle's network is told by code, which is not run, or by values that are not there or no size",
        )
    with torch.device("meta"):
        empty = _built(values)
    if empty is None:
        return None, f"the bundle's network is none of MONAI's {', '.join(_KINDS)} with plain arguments"
    given = {short: name for name, short in shortened(state).items()}
    names = {name: given.get(short) for name, short in shortened(empty.state_dict()).items()}
    own = {name: state[theirs] for name, theirs in names.items() if theirs is not None}
    network = _built(values) if _shapes(own) == _shapes(empty.state_dict()) else None
    if network is None:
        return None, "the bundle's weights do not fit its own network"
    network.load_state_dict(own)
    return network.eval(), None


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Each name, and what is left of it without the modules that all names begin with: wrappers put them there."""
    split = {name: name.split(".") for name in names}
    shared = 0
    for parts in zip(*split.values(), strict=False):
        if len(set(parts)) > 1 or any(len(one) == shared + 1 for one in split.values()):
            break
        shared += 1
    return {name: ".".join(parts[shared:]) for name, parts in split.items()}


def inputs_of(network: nn.Module, place: str, images: Tensor) -> Tensor:
    """What the module at a place is given on the way of these images."""
    given: list[Tensor] = []
    handle = network.get_submodule(place).register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return given[0]


def largest_of(network: nn.Module, size: Sequence[int]) -> int:
    """The most values that a module puts out for images of this size (N, C, *sp), without memory for any of them.

    Of a network that does not take such images, until it fails: a large layer may come before.
    """
    most = math.prod(size)

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal most
        tensors = output if isinstance(output, list | tuple) else [output]
        most = max([most, *(one.numel() for one in tensors if isinstance(one, Tensor))])

    shapes = copy.deepcopy(network).to("meta")
    for module in shapes.modules():
        module.register_forward_hook(look)
    with contextlib.suppress(RuntimeError, AttributeError, ValueError, TypeError):
        shapes(torch.empty(tuple(size), device="meta"))
    return most


def _config(bundle: Path) -> dict[str, Any] | None:
    for name in _CONFIGS:
        path = bundle / "configs" / name
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(config, dict) and any(key in config for key in _KEYS):
            return config
    return None


def _resolved(value: Any, config: Mapping[str, Any], left: Iterator[int], depth: int = 0) -> Any:
    """A value with its references followed. left: as many as values may be; depth: how deep this one lies."""
    if depth > 32 or next(left, None) is None:
        raise _NotPlainError
    match value:
        case str() if value.startswith(("$", "%")):
            raise _NotPlainError
        case str() if value.startswith("@"):
            found: Any = config
            for part in re.split("::|#", value[1:]):
                found = _member(found, part)
            return _resolved(found, config, left, depth + 1)
        case list():
            return [_resolved(one, config, left, depth + 1) for one in value]
        case dict():
            return {key: _resolved(one, config, left, depth + 1) for key, one in value.items()}
        case int() if abs(value) > _LARGEST:
            raise _NotPlainError
    return value


def _member(table: Any, key: str) -> Any:
    if isinstance(table, dict) and key in table:
        return table[key]
    if isinstance(table, list) and re.fullmatch("[0-9]{1,9}", key) and int(key) < len(table):
        return table[int(key)]
    raise _NotPlainError


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _built(values: Any) -> nn.Module | None:
    import monai.networks.nets as known  # noqa: PLC0415 - heavy

    if not isinstance(values, dict) or not isinstance(values.get("_target_"), str):
        return None
    named = _TARGET.fullmatch(values["_target_"])
    kind = getattr(known, named[1], None) if named is not None else None
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    if kind is None or kind not in {getattr(known, name) for name in _KINDS} or "_target_" in json.dumps(arguments):
        return None
    try:
        network: nn.Module = kind(**arguments)
        return network
    except Exception:  # noqa: BLE001  # whatever a constructor of MONAI makes of foreign arguments
        return None


__all__ = ["inputs_of", "largest_of", "network_of", "shortened"]
