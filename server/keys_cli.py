"""wardround-server operator and root: who may propose runs, and the federation's identity."""

import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.cli import JsonFlag, new_app, note, show_table
from common.errors import ConfigError
from common.operators import Role
from common.pki import fingerprint, load_certificate
from common.sealed import passphrase_from
from server import home as homes
from server import operators
from server.home import ROOT_PASSPHRASE, Home
from server.registry import Registry
from server.witness import open_log

HomeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--home", envvar=homes.ENVIRONMENT, help="The coordinator's folder [default: ./wardround-server]."),
]
NameArgument: TypeAlias = Annotated[str, typer.Argument(help="The operator's name, such as maria.")]

operator_app = new_app("Who may propose runs. Hospitals check an operator's signature on every proposal.")
root_app = new_app("The federation's root key: protect it, and replace it.")


@operator_app.command("add")
def operator_add(
    name: NameArgument,
    home: HomeOption = None,
    role: Annotated[Role, typer.Option(help="admin, operator or auditor.")] = "operator",
    sealed: Annotated[bool, typer.Option("--passphrase", help="Keep the key under a passphrase.")] = False,
) -> None:
    """Make an operator's key and certificate.

    Example: `wardround-server operator add maria --passphrase`
    """
    opened = homes.open_home(home)
    chosen = new_passphrase(operators.PASSPHRASE_VARIABLE, "Passphrase for the operator's key") if sealed else None
    path = operators.add(
        opened, Registry(opened.registry), name, role, passphrase=chosen, root_passphrase=root_passphrase(opened)
    )
    typer.echo(str(path))
    note(f"{name} is {role}. Move the key to where only {name} can read it; `run --key` takes it from there.")


@operator_app.command("list")
def operator_list(home: HomeOption = None, json: JsonFlag = False) -> None:
    """All operators.

    Example: `wardround-server operator list`
    """
    members = Registry(homes.open_home(home).registry).operators()
    rows = [
        (
            one.name,
            one.role,
            "active" if one.active else "removed",
            f"{load_certificate(one.certificate).not_valid_after_utc:%Y-%m-%d}",
        )
        for one in members
    ]
    show_table("Operators", ("operator", "role", "state", "certificate until"), rows, as_json=json)


@operator_app.command("remove")
def operator_remove(name: NameArgument, home: HomeOption = None) -> None:
    """Take an operator's rights away at this coordinator. Hospitals know the certificate until it runs out.

    Example: `wardround-server operator remove maria`
    """
    opened = homes.open_home(home)
    operators.remove(opened, Registry(opened.registry), name)
    typer.echo(f"{name} is removed.")


@root_app.command("protect")
def root_protect(home: HomeOption = None) -> None:
    """Put the root key under a passphrase. Approving and renewing sites then needs it.

    Example: `wardround-server root protect`
    """
    opened = homes.open_home(home)
    old = root_passphrase(opened)
    homes.protect_root(opened, new_passphrase(ROOT_PASSPHRASE, "New passphrase for the root key"), old)
    typer.echo("The root key is under a passphrase now.")


@root_app.command("rotate")
def root_rotate(home: HomeOption = None) -> None:
    """Make the next root, vouched for by the present one. Sites learn of it when they renew.

    Example: `wardround-server root rotate`
    """
    opened = homes.open_home(home)
    homes.rotate_root(opened, root_passphrase(opened))
    typer.echo("The next root is made. When every site knows it: wardround-server root finish")


@root_app.command("finish")
def root_finish(
    home: HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also when a site does not know the next root.")] = False,
) -> None:
    """Let the next root sign from now on. Restart the coordinator afterwards.

    Example: `wardround-server root finish`
    """
    opened = homes.open_home(home)
    registry = Registry(opened.registry)
    unaware = [one.name for one in registry.sites() if one.state == "active" and not one.knows_successor]
    if unaware and not force:
        raise ConfigError(
            f"{len(unaware)} site(s) do not know the next root: {', '.join(unaware)}. They learn of it when they "
            "renew (wardround-client renew); with --force they have to join again."
        )
    homes.finish_rotation(opened, root_passphrase(opened))
    registry.forget_successor()
    open_log(opened).append("root-rotated", {"certificate": fingerprint(load_certificate(opened.root_pem))})
    typer.echo("The next root is the root now. Back up pki/root.key, and restart the coordinator.")


def root_passphrase(home: Home) -> str | None:
    """The passphrase of a sealed root key: from the environment, else asked for on a terminal."""
    if not homes.is_root_sealed(home):
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
