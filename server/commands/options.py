"""What the commands of wardround-server share: the home folder, who types, passphrases."""

import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.console.cli import advise
from common.crypto.passphrase import passphrase_from
from common.errors import ConfigError
from server.home import folder as homes
from server.home.folder import Home
from server.home.root import ROOT_PASSPHRASE, is_root_sealed
from server.registry import operators
from server.registry.registry import Registry


def _given(context: typer.Context, home: Path | None) -> Path | None:
    advise(context, homes.advice(homes.resolve(home)))
    return home


HomeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar=homes.ENVIRONMENT,
        help="The coordinator's folder [default: ./wardround-server].",
        callback=_given,
    ),
]
AsOption: TypeAlias = Annotated[
    str, typer.Option("--as", envvar="WARDROUND_OPERATOR", help="The operator who does it, and whose key signs it.")
]
KeyOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--key", envvar="WARDROUND_OPERATOR_KEY", help="That operator's key, when it lies elsewhere than in the home."
    ),
]
RunArgument: TypeAlias = Annotated[str, typer.Argument(help="The run's name, or the first digits of its hash.")]


def asked(home: Path | None, action: str, name: str, key: Path | None) -> tuple[Home, Registry, operators.Signer]:
    """The first step of every command that is not open to all: may this operator do it? Nothing is looked up before.

    Args:
        home: the coordinator's folder.
        action: a key of `operators.RIGHTS`.
        name: the operator's.
        key: the operator's key, where it lies elsewhere; the passphrase of a sealed one is asked for.
    """
    opened, registry = opened_home(home)
    return opened, registry, operators.acting(opened, registry, action, name, key=key, ask=operator_passphrase)


def opened_home(home: Path | None) -> tuple[Home, Registry]:
    """The coordinator's folder and its registry."""
    opened = homes.open_home(home)
    return opened, Registry(opened.registry)


def root_passphrase(home: Home) -> str | None:
    """The passphrase of a sealed root key: from the environment, else asked for on a terminal."""
    if not is_root_sealed(home):
        return None
    return _asked(ROOT_PASSPHRASE, "Passphrase of the root key")


def operator_passphrase(path: Path) -> str | None:
    """The same for an operator's key."""
    if not operators.is_key_sealed(path):
        return None
    return _asked(operators.PASSPHRASE_VARIABLE, "Passphrase of the operator's key")


def new_passphrase(variable: str, prompt: str) -> str:
    """A passphrase to seal with: from the environment, else asked for twice on a terminal.

    Raises:
        ConfigError: neither is there.
    """
    if (given := passphrase_from(variable)) is not None:
        return given
    if not sys.stdin.isatty():
        raise ConfigError(f"no passphrase was given. Set {variable} or {variable}_FILE, or use a terminal.")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=True))


def _asked(variable: str, prompt: str) -> str | None:
    given = passphrase_from(variable)
    if given is None and sys.stdin.isatty():
        given = str(typer.prompt(prompt, hide_input=True))
    return given
