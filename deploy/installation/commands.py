"""install, upgrade, rollback, uninstall.

Each version lies in a folder and an environment of its own, PREFIX/VERSION. The link `current` says which one the
services run; it is replaced in one step, and `previous` is the way back. A folder without its marker was never
finished. Homes (/var/lib/wardround-*) belong to the services, and only `uninstall --purge` removes them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.installation import steps
from deploy.installation.manifest import check_wheelhouse
from deploy.installation.places import PREFIX, ROLES, InstallError, Machine

# The folder that install.py stands in: a wheelhouse, or a version.
_SOURCE = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only if it succeeded."""
    options = parser().parse_args(arguments)
    machine = Machine(options.root.resolve(), options.prefix.absolute())
    before = os.umask(0o022)  # the services' accounts read what is installed
    try:
        if machine.is_real and os.geteuid() != 0:
            raise InstallError("this changes the system: run it as root, with sudo before it.")
        with _alone(machine):
            command: Callable[[Machine, argparse.Namespace], None] = options.command
            command(machine, options)
    except InstallError as error:
        print(f"wardround: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"wardround: {error.filename or 'a file'}: {error.strerror}. Then run this again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("wardround: interrupted. The same command begins anew where it has to.", file=sys.stderr)
        return 130
    finally:
        os.umask(before)
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="install.py", description="Wardround as a service of this machine.")
    made.add_argument("--prefix", type=Path, default=Path(PREFIX), help="folder of the versions (default: %(default)s)")
    made.add_argument("--root", type=Path, default=Path("/"), help="for trying out: units and homes below this folder")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for command in (install, upgrade, rollback, uninstall):
        about = (command.__doc__ or "").splitlines()[0]
        subparser = commands.add_parser(command.__name__, help=about, description=about)
        subparser.set_defaults(command=command)
        if command is install:
            subparser.add_argument("role", choices=list(ROLES), help="what this machine is in the federation")
            told = "address or network that the service may speak with, or any; repeatable"
            subparser.add_argument("--allow", action="append", default=[], metavar="ADDRESS", help=told)
        if command in (install, upgrade):
            told = "of the wheelhouse's SHA256SUMS, as its maker told it"
            subparser.add_argument("--sha256", metavar="HASH", help=told)
        if command is uninstall:
            subparser.add_argument("--purge", action="store_true", help="remove homes, settings and accounts as well")
            subparser.add_argument("--yes", action="store_true", help="with --purge: do not ask")
    return made


def install(machine: Machine, options: argparse.Namespace) -> None:
    """Install this wheelhouse and the service of a role, which a person then starts."""
    role = ROLES[options.role]
    steps.check_addresses(options.allow)
    steps.check_machine(machine)
    version = check_wheelhouse(_SOURCE, options.sha256)
    current = machine.version("current")
    if current is not None and current.name != version:
        raise InstallError(f"{current.name} is installed. To go over to {version}: install.py upgrade")
    steps.unpack(machine, _SOURCE, version)
    steps.point(machine.prefix / "current", version)
    steps.make_account(machine, role)
    steps.put_in_place(machine, role)
    print(steps.allow(machine, role, options.allow))
    steps.systemctl(machine, "daemon-reload")
    print(f"installed {version}. Next: sudo {role.begin}")
    print(f"Then: sudo systemctl enable --now {role.account}")


def upgrade(machine: Machine, options: argparse.Namespace) -> None:
    """Go over to this wheelhouse's version; the one before stays for rollback."""
    current = machine.version("current")
    if current is None:
        raise InstallError("nothing is installed here. First: install.py install site, or coordinator")
    version = check_wheelhouse(_SOURCE, options.sha256)
    if current.name == version:
        raise InstallError(f"{version} is installed already.")
    steps.unpack(machine, _SOURCE, version)
    steps.switch(machine, version)
    for old in machine.versions():
        if old.name not in (version, current.name):
            shutil.rmtree(old)
            print(f"removed {old}")
    print(f"upgraded from {current.name} to {version}. The way back: {steps.again(machine, 'rollback')}")


def rollback(machine: Machine, _: argparse.Namespace) -> None:
    """Go back to the version before; the present one stays, and is gone back to in the same way."""
    current, previous = machine.version("current"), machine.version("previous")
    if current is None or previous is None or previous == current:
        raise InstallError("there is no other version to go back to.")
    steps.switch(machine, previous.name)
    print(f"back from {current.name} to {previous.name}")


def uninstall(machine: Machine, options: argparse.Namespace) -> None:
    """Remove services, commands and versions; homes and settings stay, unless --purge is given."""
    homes = [machine.home(role) for role in ROLES.values() if machine.home(role).exists()]
    if options.purge and homes and not options.yes:
        _ask(homes)
    for role in machine.roles():
        steps.systemctl(machine, "disable", "--now", role.unit)
        (machine.units / role.unit).unlink()
        machine.command(role).unlink(missing_ok=True)
    for link in ("current", "previous"):
        (machine.prefix / link).unlink(missing_ok=True)
    for path in [*machine.versions(), *(homes if options.purge else [])]:
        shutil.rmtree(path)
        print(f"removed {path}")
    if options.purge:
        for path in (machine.settings, *(machine.drop_ins(role) for role in ROLES.values())):
            shutil.rmtree(path, ignore_errors=True)
        for role in ROLES.values():
            steps.remove_account(machine, role)
    elif homes:
        print(f"left as they are: {', '.join(map(str, homes))}")
    steps.systemctl(machine, "daemon-reload")
    machine.lock.unlink()
    with suppress(OSError):
        machine.prefix.rmdir()


def _ask(homes: Sequence[Path]) -> None:
    print("This removes for good, with keys, privacy ledger, audit log and models:")
    for home in homes:
        size = sum(path.lstat().st_size for path in home.rglob("*"))
        print(f"  {home} ({size / 1e6:.1f} MB)")
    print("Without its ledger a hospital's budget of privacy starts anew; without its root key a federation is over.")
    if not sys.stdin.isatty() or input("Type purge to go on: ").strip() != "purge":
        raise InstallError("nothing was removed. Answer with the word purge, or leave out --purge: then homes stay.")


@contextmanager
def _alone(machine: Machine) -> Iterator[None]:
    """No second command at the same time."""
    try:
        machine.prefix.mkdir(parents=True, exist_ok=True)
        lock = machine.lock.open("w", encoding="ascii")
    except OSError as error:
        raise InstallError(f"{machine.prefix} cannot be written to: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InstallError("another install.py is at work. Wait until it has ended.") from error
        yield
