"""wardround-server backup, restore and purge: what a coordinator must not lose, and what it need not keep."""

from typing import Annotated

import typer

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
from server.commands.options import AsOption, HomeOption, KeyOption, RunArgument, asked
from server.home import folder as homes
from server.home.version import VERSIONS
from server.registry import operators
from server.registry.audit_trail import open_log
from server.rescue import purge as purges
from server.rescue.contents import SIDE


def backup(file: NewFile, home: HomeOption = None, json: JsonFlag = False) -> None:
    """Write all that the coordinator cannot make again to one file, sealed under a passphrase; it may go on running.

    Keys, registry, audit log, runs, models. The passphrase comes from WARDROUND_BACKUP_PASSPHRASE or its _FILE, or is
    asked for.

    Example: `wardround-server backup coordinator-2026-05-01.backup`
    """
    opened = homes.open_home(home)
    chosen = passphrase(new=True)
    log = open_log(opened)
    with copying(opened.path, SIDE) as tell:
        made = backups.make(opened.path, file, SIDE, "", chosen, begin=lambda: log.append("backed-up"), tell=tell)
    show(made, file, as_json=json, listed=False)


def restore(file: BackupFile, home: HomeOption = None, only_list: ListFlag = False, json: JsonFlag = False) -> None:
    """Put a backup into a new or empty folder; with --list only open and check it.

    Example: `wardround-server restore coordinator-2026-05-01.backup --home /srv/wardround`
    """
    given, place = passphrase(), homes.resolve(home)
    if only_list:
        show(backups.look(file, given), file, as_json=json, listed=True)
        return
    found = backups.restore(file, place, VERSIONS, SIDE, given)
    show(found, file, as_json=json, listed=False)
    note(f"Restored to {place}. Every member was checked.")
    warn_of_age(found)
    note("Sites reach it by the names in server.toml: where those now mean another machine, correct them there.")


def purge(
    run: RunArgument,
    *,
    home: HomeOption = None,
    with_record: Annotated[
        bool, typer.Option("--with-record", help="Also the signed record of a completed run, and its model with it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Remove what a run that is over left here, and say what stays. The run cannot go on any more.

    Example: `wardround-server purge lesions`
    """
    opened, registry, signer = asked(home, "purge", by, key)
    proposal = registry.proposal(run)
    found = purges.plan(opened, proposal, with_record=with_record)
    ask_purge(found, as_json=json, yes=yes)
    purges.carry_out(opened, signer, proposal, found)
    tell_purge(found, as_json=json)


__all__ = ["backup", "purge", "restore"]
