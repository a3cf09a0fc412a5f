"""wardround-server backup, restore and purge: what a coordinator must not lose, and what it need not keep."""

from typing import Annotated

import typer

from common.console.cli import Digest, JsonFlag, confirm, note, say, show_json, show_table
from common.rescue import backup as backups
from common.rescue.commands import BackupFile, ListFlag, NewFile, copying, passphrase, show, warn_of_age
from common.text import counted
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
    found = purges.plan(opened, registry.proposal(run), with_record=with_record)
    what = f"{found.proposal.name} {found.proposal.run_hash[:8]}"
    rows = [(one.what, one.files, one.size) for one in found.removed]
    if not json:
        show_table(f"To be removed of {what}", ("what", "files", "bytes"), rows)
        show_table("Stays", ("what", "why"), found.stays)
    confirm(f"Remove {counted(found.files, 'file')} of run {what}? They cannot be made again.", yes=yes)
    purges.carry_out(opened, signer, found)
    if json:
        removed = [{"what": what, "files": files, "bytes": size} for what, files, size in rows]
        stays = [{"what": what, "why": why} for what, why in found.stays]
        run_hash = Digest(found.proposal.run_hash)
        show_json({"run": run_hash, "name": found.proposal.name, "removed": removed, "stays": stays})
        return
    say(f"Removed {counted(found.files, 'file')} of run {what}; the audit log has an entry.")


__all__ = ["backup", "purge", "restore"]
