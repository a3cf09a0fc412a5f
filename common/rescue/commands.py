"""What the commands of both sides have in common: the passphrase, and how backups and purges are shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from common.console.cli import Digest, confirm, note, progress, say, show_json, show_table
from common.crypto.passphrase import passphrase_from
from common.errors import ConfigError
from common.rescue.archive import Contents
from common.rescue.backup import PASSPHRASE_VARIABLE
from common.rescue.members import Side
from common.rescue.purging import Purge
from common.text import counted

NewFile: TypeAlias = Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the backup.")]
BackupFile: TypeAlias = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
ListFlag: TypeAlias = Annotated[
    bool, typer.Option("--list", help="Open and check all of it, say what it holds, and write nothing.")
]

_HELD, _MIB = "yes", 1 << 20


def passphrase(*, new: bool = False) -> str:
    """The passphrase of a backup: from the environment, else asked for on a terminal, a new one twice.

    Raises:
        ConfigError: there is none.
    """
    if (given := passphrase_from(PASSPHRASE_VARIABLE)) is not None:
        return given
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(
            f"a backup is sealed under a passphrase, and none was given. Set {PASSPHRASE_VARIABLE}, let "
            f"{PASSPHRASE_VARIABLE}_FILE name a file that holds it, or use a terminal to be asked."
        )
    return str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=new, err=True))


@contextmanager
def copying(home: Path, side: Side) -> Iterator[Callable[[str, int], None]]:
    """Progress over the files of a home, to be told each as it is taken."""
    total = sum(1 for name in side.kept for path in (home / name, *(home / name).rglob("*")) if path.is_file())
    with progress("files", total) as advance:
        done = 0

        def step(_name: str, _size: int) -> None:
            nonlocal done
            done += 1
            advance(min(done, total), "")

        yield step


def show(contents: Contents, path: Path, *, as_json: bool, listed: bool) -> None:
    """What a backup holds and what it leaves out: by the home's files and folders, or with all names.

    Args:
        contents: of the backup.
        path: of the backup.
        as_json: print JSON, with all names.
        listed: whether every member is named.
    """
    if as_json:
        show_json(_values(contents, path))
        return
    if listed:
        show_table("Members", ("file", "bytes"), list(contents.members.items()))
    held: dict[str, tuple[int, int]] = {}
    for name, size in contents.members.items():
        top, _, rest = name.partition("/")
        top = f"{top}/" if rest else top
        files, total = held.get(top, (0, 0))
        held[top] = files + 1, total + size
    rows: list[tuple[Any, ...]] = [(name, *counts, _HELD) for name, counts in held.items()]
    rows += [(name, one.files, one.size, f"no: {one.why}") for name, one in contents.left_out.items()]
    show_table("What lies in the home", ("what", "files", "bytes", "in the backup"), rows)
    about = contents.about
    whose = f"{about.side} {about.name}".strip()
    say(
        f"{path}: {counted(len(contents.members), 'file')}, {contents.size / _MIB:.1f} MiB, of the {whose}, made "
        f"{about.made} by wardround {about.program}; all of it is sealed under the passphrase."
    )


def warn_of_age(contents: Contents) -> None:
    """What to know after a backup was restored."""
    note(
        f"It is as it was at {contents.about.made}. With the first connection the audit logs are compared: if anything "
        "was done after that, they do not fit, no work is done, and `status` says so. Do not start the home that the "
        "backup was taken of any more; see docs/operations.md, 'Backup, restore and moving'."
    )


def ask_purge(purge: Purge, *, as_json: bool, yes: bool) -> None:
    """Show what a purge would remove and what stays, and ask.

    Raises:
        ConfigError: nobody answered.
    """
    if not as_json:
        rows = [(one.what, one.files, one.size) for one in purge.removed]
        show_table(f"To be removed of {purge.name} {purge.run_hash[:8]}", ("what", "files", "bytes"), rows)
        show_table("Stays", ("what", "why"), purge.stays)
    what = f"{counted(purge.files, 'file')} of run {purge.name} {purge.run_hash[:8]}"
    confirm(f"Remove {what}? They cannot be made again.", yes=yes)


def tell_purge(purge: Purge, *, as_json: bool) -> None:
    """What a purge has removed."""
    if as_json:
        removed = [{"what": one.what, "files": one.files, "bytes": one.size} for one in purge.removed]
        stays = [{"what": what, "why": why} for what, why in purge.stays]
        show_json({"run": Digest(purge.run_hash), "name": purge.name, "removed": removed, "stays": stays})
        return
    what = f"{counted(purge.files, 'file')} of run {purge.name} {purge.run_hash[:8]}"
    say(f"Removed {what}; the audit log has an entry.")


def _values(contents: Contents, path: Path) -> dict[str, Any]:
    about = contents.about
    return {
        "file": str(path),
        "side": about.side,
        "name": about.name or None,
        "made": about.made,
        "program": about.program,
        "home-version": about.home_version,
        "bytes": contents.size,
        "members": [{"file": name, "bytes": size} for name, size in contents.members.items()],
        "left-out": [
            {"name": name, "why": one.why, "files": one.files, "bytes": one.size}
            for name, one in contents.left_out.items()
        ],
    }


__all__ = [
    "BackupFile",
    "ListFlag",
    "NewFile",
    "ask_purge",
    "copying",
    "passphrase",
    "show",
    "tell_purge",
    "warn_of_age",
]
