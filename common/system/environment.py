"""What the processes that we start get of this one's environment: all but secrets; and what Flower must be told.

A passphrase is given to the process that asks for it. A child's environment can be read as long as the child lives, by
whoever runs programs as the same user, and is handed on to the child's own children; so no passphrase and no key goes
there, nor the name of a file that holds one. A child that needs a key gets it by a pipe or a socket.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import common

# The folder that our packages stand in, for children that shall find the same ones.
PACKAGES = Path(common.__file__).resolve().parents[1]

# WARDROUND_ROOT_PASSPHRASE, WARDROUND_SITE_KEY and their like, with or without _FILE, those to come included.
_SECRET = re.compile(r"WARDROUND_(.+_)?(PASSPHRASE|PASSWORD|SECRET|TOKEN|KEY)(_FILE)?", re.IGNORECASE)


def for_child(**changes: str) -> dict[str, str]:
    """The environment for a process that we start.

    Args:
        changes: variables to add or to replace.
    """
    return without_secrets(os.environ) | changes


@contextmanager
def own_as_for_child(**changes: str) -> Iterator[None]:
    """This process's own environment is that of a child while the body runs: for a library that hands it on.

    Args:
        changes: variables to add or to replace.
    """
    before = dict(os.environ)
    meanwhile = for_child(**changes)
    for name in before.keys() - meanwhile.keys():
        del os.environ[name]
    os.environ.update(meanwhile)
    try:
        yield
    finally:
        for name in meanwhile.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update(before)


def for_confined(*kept: str, **own: str) -> dict[str, str]:
    """The environment for a process that is kept from the rest of the machine: nothing but what is named here.

    Args:
        kept: variables of this process that it needs, where they are set.
        own: variables of its own.
    """
    return {name: os.environ[name] for name in kept if name in os.environ} | own


def flower_variables(home: Path | None = None, *, quiet: bool = True) -> dict[str, str]:
    """What Flower reads when it is imported: no telemetry, no update check, no installation at run time.

    Args:
        home: where it keeps what it wants to keep, one for each process; None: no process that keeps anything.
        quiet: only its warnings are logged.
    """
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        **({"FLWR_LOG_LEVEL": "WARNING"} if quiet else {}),
        **({} if home is None else {"FLWR_HOME": str(home)}),
    }


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment but for our own secrets."""
    return {name: value for name, value in environment.items() if not _SECRET.fullmatch(name)}


__all__ = ["PACKAGES", "flower_variables", "for_child", "for_confined", "own_as_for_child", "without_secrets"]
