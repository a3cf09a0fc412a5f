"""The network that a bundle's configuration names, where that takes no code of the bundle.

Only JSON is read, only a class of monai.networks.nets is built, and its arguments must be plain values or references to
plain values. An expression (`$`) is code, and so is a class of the bundle's own scripts: neither is run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_CONFIGS = ("inference.json", "train.json", "evaluate.json")
_KEYS = ("network_def", "network", "net")
_TARGET = re.compile(r"(?:monai\.networks\.nets\.(?:\w+\.)?)?(\w+)")
_MOST_BYTES = 4 * 2**20


class _IsCodeError(Exception):
    """A value can only be had by running code."""


def network_of(bundle: Path, state: Mapping[str, Tensor]) -> tuple[nn.Module | None, str | None]:
    """The bundle's network with these weights, in evaluation mode; or None, and why."""
    config = _config(bundle)
    if config is None:
        return None, "the bundle has no configuration in JSON that names its network"
    definition = next(config[key] for key in _KEYS if key in config)
    try:
        values = _resolved(definition, config)
    except _IsCodeError:
        return None, "the bundle's network is told by code, which is not run"
    network = _built(values)
    if network is None:
        return None, "the bundle's network is no class of MONAI with plain arguments"
    given = {short: name for name, short in shortened(state).items()}
    try:
        network.load_state_dict(
            {name: state[given[short]] for name, short in shortened(network.state_dict()).items() if short in given}
        )
    except RuntimeError:
        return None, "the bundle's weights do not fit its own network"
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


def _resolved(value: Any, config: Mapping[str, Any], depth: int = 0) -> Any:
    """A value with its references followed."""
    if depth > 32:
        raise _IsCodeError
    match value:
        case str() if value.startswith(("$", "%")):
            raise _IsCodeError
        case str() if value.startswith("@"):
            found: Any = config
            for part in re.split("::|#", value[1:]):
                found = found[int(part)] if isinstance(found, list) and part.isdecimal() else _member(found, part)
            return _resolved(found, config, depth + 1)
        case list():
            return [_resolved(one, config, depth + 1) for one in value]
        case dict():
            return {key: _resolved(one, config, depth + 1) for key, one in value.items()}
    return value


def _member(table: Any, key: str) -> Any:
    if not isinstance(table, dict) or key not in table:
        raise _IsCodeError
    return table[key]


def _built(values: Any) -> nn.Module | None:
    import monai.networks.nets as known  # noqa: PLC0415 - heavy

    if not isinstance(values, dict) or not isinstance(values.get("_target_"), str):
        return None
    named = _TARGET.fullmatch(values["_target_"])
    kind = getattr(known, named[1], None) if named is not None else None
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or "_target_" in json.dumps(arguments):
        return None
    try:
        return kind(**arguments)
    except Exception:  # noqa: BLE001  # whatever a constructor of MONAI makes of foreign arguments
        return None


__all__ = ["inputs_of", "network_of", "shortened"]
