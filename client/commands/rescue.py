"""wardround-client backup, restore and purge: what a site must not lose, and what it need not keep."""

from typing import Annotated

import typer

from client.commands.options.site import HOME, Home, NoHome
from client.home.version import VERSIONS
from client.rescue import purge as purges
from client.rescue.contents import SIDE, missing_sources, sources
from client.site import open_site
from client.trail.audit_trail import note as enter
from common.config import SiteConfig, load
from common.console.cli import JsonFlag, note
from common.rescue import backup as backups
from common.rescue.commands import (
    BackupFile,
    ListFlag,
    NewFile,
    ask_purge,
    copying,
    passphrase,
    show,
    tell_purge,
    warn_of_age,
)
from common.text import counted


def backup(file: NewFile, home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Write all that this site cannot make again to one file, sealed under a passphrase; the agent may go on.

    Keys, settings, privacy ledger, audit log, proposals, models of the site's own. No image is ever in it. The
    passphrase comes from WARDROUND_BACKUP_PASSPHRASE or its _FILE, or is asked for.

    Example: `wardround-client backup north-2026-05-01.backup`
    """
    chosen = passphrase(new=True)
    outside = sources(home)
    name = load(SiteConfig, home / SIDE.mark).name
    with copying(home, SIDE) as tell:
        made = backups.make(
            home, file, SIDE, name, chosen, outside=outside, begin=lambda: enter(home, "backed-up"), tell=tell
        )
    show(made, file, as_json=as_json, listed=False)
    if outside:
        note(f"The images are not in it: {counted(len(outside), 'data source')} of site.toml stay where they are.")
    if "site.key" not in made.members:
        note("The site key is not in it: there is no file yet, or it comes from WARDROUND_SITE_KEY. Keep that, too.")


def restore(file: BackupFile, home: NoHome = HOME, only_list: ListFlag = False, as_json: JsonFlag = False) -> None:
    """Put a backup into a new or empty folder; with --list only open and check it.

    Example: `wardround-client restore north-2026-05-01.backup --home /srv/wardround`
    """
    given = passphrase()
    if only_list:
        show(backups.look(file, given), file, as_json=as_json, listed=True)
        return
    found = backups.restore(file, home, VERSIONS, SIDE, given)
    show(found, file, as_json=as_json, listed=False)
    note(f"Restored to {home}. Every member was checked.")
    warn_of_age(found)
    for path in missing_sources(home):
        note(f"The images in {path} are not on this machine. Bring them there, or correct path in site.toml.")


def purge(
    run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")],
    home: Home = HOME,
    keep_personal: Annotated[
        bool, typer.Option("--keep-personal", help="Keep the models of the site's own that the run left.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove what a run that is over left here, and say what stays. The run takes no part here any more.

    Example: `wardround-client purge lesions-2026`
    """
    found = purges.plan(home, run, keep_personal=keep_personal)
    ask_purge(found, as_json=as_json, yes=yes)
    purges.carry_out(home, found)
    open_site(home).ledger.release(found.run_hash)
    tell_purge(found, as_json=as_json)


__all__ = ["backup", "purge", "restore"]
