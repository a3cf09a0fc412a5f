"""wardround-client key: a passphrase on the site key."""

from typing import Annotated

import typer

from client.agent.status import only_one
from client.commands.options.site import HOME, Home, site_file
from client.home import sitekey
from common.console.cli import confirm, new_app, note, say
from common.crypto.passphrase import passphrase_from

key_app = new_app("The key of this hospital's pseudonyms, cache and ledger.")


@key_app.command("protect")
def key_protect(home: Home = HOME) -> None:
    """Put the site key under a passphrase, from WARDROUND_SITE_PASSPHRASE or its _FILE, or asked for.

    Example: `wardround-client key protect`
    """
    site_file(home)
    passphrase = passphrase_from(sitekey.PASSPHRASE_VARIABLE)
    if passphrase is None:
        passphrase = typer.prompt("New passphrase of the site key", hide_input=True, confirmation_prompt=True, err=True)
    with only_one(home):  # a running agent would find the key closed
        sitekey.protect(home, passphrase)
    say("The site key is under a passphrase.")
    note("A lost passphrase is a lost key: keep it in the hospital's vault. Old backups may hold the key in the clear.")


@key_app.command("unprotect")
def key_unprotect(
    home: Home = HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Take the passphrase off the site key; its file is then protected by its mode alone.

    Example: `wardround-client key unprotect --yes`
    """
    site_file(home)
    confirm("Write the site key in the clear (mode 0600)?", yes=yes)
    with only_one(home):
        sitekey.unprotect(home)
    say("The site key is in the clear, mode 0600.")


__all__ = ["key_app"]
