"""The version of Flower that this room is written for."""

import importlib.metadata

from common.errors import ConfigError

VERSION = "1.41.0"


def check_version() -> None:
    """Refuse to work with a Flower this room was not written for.

    Raises:
        ConfigError: another version is installed.
    """
    installed = importlib.metadata.version("flwr")
    if installed != VERSION:
        raise ConfigError(f"flwr {installed} is installed, {VERSION} is needed. Run `pip install flwr=={VERSION}`.")


__all__ = ["VERSION", "check_version"]
