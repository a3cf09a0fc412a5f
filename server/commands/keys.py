"""wardround-server operator, root and key: who may propose runs, the federation's identity, what seals the rest."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import typer

from common.console.cli import JsonFlag, confirm, new_app, note, say, show_table
from common.errors import ConfigError
from common.identity.certificates import fingerprint, load_certificate
from common.identity.operators import Act, Role
from common.text import counted
from server.commands.options import (
    AsOption,
    HomeOption,
    KeyOption,
    asked,
    new_passphrase,
    opened_home,
    root_passphrase,
)
from server.home import folder as homes
from server.home.folder import KEY_PASSPHRASE, Home
from server.home.root import ROOT_PASSPHRASE, finish_rotation, protect_root, rotate_root
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry

NameArgument: TypeAlias = Annotated[str, typer.Argument(help="The operator's name, such as maria.")]

operator_app = new_app("Who may do what. Hospitals check an operator's signature on every proposal.")
root_app = new_app("The federation's root key: protect it, and replace it.")
key_app = new_app("The coordinator's key, which seals its other keys, checkpoints and models.")


@operator_app.command("add")
def operator_add(
    name: NameArgument,
    *,
    home: HomeOption = None,
    role: Annotated[Role, typer.Option(help="admin, operator or auditor.")] = "operator",
    sealed: Annotated[bool, typer.Option("--passphrase", help="Keep the key under a passphrase.")] = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Make an operator's key and certificate. Once no admin is left, whoever opens the root key may make one.

    Example: `wardround-server operator add maria --passphrase`
    """
    opened, registry = opened_home(home)
    alone = role == "admin" and not operators.has_admin(opened, registry)
    signer = None if alone else asked(home, "operator-add", by, key)[2]
    chosen = new_passphrase(operators.PASSPHRASE_VARIABLE, "Passphrase for the operator's key") if sealed else None
    path = operators.add(
        opened, registry, name, role, passphrase=chosen, root_passphrase=root_passphrase(opened), by=signer
    )
    say(path)
    note(f"{name} is {role}. Move the key to where only {name} can read it; --key takes it from there.")


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
            load_certificate(one.certificate).not_valid_after_utc,
        )
        for one in members
    ]
    show_table("Operators", ("operator", "role", "state", "certificate until"), rows, as_json=json)


@operator_app.command("remove")
def operator_remove(
    name: NameArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None
) -> None:
    """Take an operator's rights away, here and at the hospitals: what they signed counts no more.

    Example: `wardround-server operator remove maria`
    """
    opened, registry, signer = asked(home, "operator-remove", by, key)
    operators.remove(opened, registry, name, signer)
    say(f"{name} is removed.")


@root_app.command("protect")
def root_protect(home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Put the root key under a passphrase. Approving and renewing sites then needs it.

    Example: `wardround-server root protect`
    """
    opened, _, signer = asked(home, "root-protect", by, key)
    old = root_passphrase(opened)
    chosen = new_passphrase(ROOT_PASSPHRASE, "New passphrase for the root key")
    _carry_out(opened, signer, lambda _act: protect_root(opened, chosen, old))
    say("The root key is under a passphrase now.")


@root_app.command("rotate")
def root_rotate(home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Make the next root, vouched for by the present one. Sites learn of it when they renew.

    Example: `wardround-server root rotate`
    """
    opened, _, signer = asked(home, "root-rotate", by, key)
    passphrase = root_passphrase(opened)
    _carry_out(opened, signer, lambda _act: rotate_root(opened, passphrase))
    say("The next root is made. When every site knows it: `wardround-server root finish`")


@root_app.command("finish")
def root_finish(
    home: HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also when a site does not know the next root.")] = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Let the next root sign from now on. Restart the coordinator afterwards.

    Example: `wardround-server root finish`
    """
    opened, registry, signer = asked(home, "root-finish", by, key)
    unaware = [one.name for one in registry.sites() if one.state == "active" and not one.knows_successor]
    if unaware and not force:
        raise ConfigError(
            f"{counted(len(unaware), 'site does', 'sites do')} not know the next root: {', '.join(unaware)}. "
            "They learn of it when they renew (`wardround-client renew`); with --force they have to join again."
        )
    passphrase = root_passphrase(opened)
    _carry_out(opened, signer, lambda _act: finish_rotation(opened, passphrase))
    operators.certify_again(opened, registry, signer, passphrase)
    registry.forget_successor()
    open_log(opened).append("root-rotated", {"certificate": fingerprint(load_certificate(opened.root_pem))})
    say("The next root is the root now. Back up pki/root.key, and restart the coordinator.")


@key_app.command("protect")
def key_protect(home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Put the coordinator's key under a passphrase; also while it runs. From then on `start` needs it.

    Example: `wardround-server key protect`
    """
    opened, _, signer = asked(home, "key-protect", by, key)
    if opened.key_file.is_protected:
        raise ConfigError(
            "the coordinator's key is under a passphrase already. For a new one, take this one off with "
            "`wardround-server key unprotect`."
        )
    chosen = new_passphrase(KEY_PASSPHRASE, "New passphrase for the coordinator's key")
    _carry_out(opened, signer, lambda _act: opened.key_file.write(opened.key, chosen))
    say("The coordinator's key is under a passphrase.")
    note("A lost passphrase is a lost key, and with it all that is sealed. Old backups may hold the key in the clear.")


@key_app.command("unprotect")
def key_unprotect(
    home: HomeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Take the passphrase off the coordinator's key; its file is then protected by its mode alone.

    Example: `wardround-server key unprotect --yes`
    """
    opened, _, signer = asked(home, "key-unprotect", by, key)
    if not opened.key_file.is_protected:
        raise ConfigError("the coordinator's key is not under a passphrase.")
    confirm("Write the coordinator's key in the clear (mode 0600)?", yes=yes)
    _carry_out(opened, signer, lambda _act: opened.key_file.write(opened.key, None))
    say("The coordinator's key is in the clear, mode 0600.")


def _carry_out(home: Home, signer: operators.Signer, do: Callable[[Act], None]) -> None:
    """What is done to the keys that make this federation what it is."""
    operators.carry_out(home, signer, (fingerprint(load_certificate(home.root_pem)),), do)
