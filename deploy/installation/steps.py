"""The steps of an installation: a version's folder, the links to it, units and commands, accounts, systemd."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.installation.manifest import MANIFEST, PINS, WHEELS, sha256
from deploy.installation.places import PREFIX, ROLES, UNITS, InstallError, Machine, Role

# What goes along into each version: it must do without the wheelhouse later.
KEPT = ("install.py", "install.md", "deploy", MANIFEST)
MARKER = ".wardround"  # of a version that is whole: the SHA-256 of the manifest that it came from
OLDEST_SYSTEMD = 252  # credentials in Environment=, and Landlock's calls by their names
SETTLED_S = 10.0  # a service that fails at its start has failed by then

_WORDS = ("any", "localhost", "link-local", "multicast")  # systemd.resource-control(5), IPAddressAllow=
_COMMAND = """\
#!/bin/sh
# Runs {program} as the account of its service, in the service's home. Written by install.py.
set -eu
[ "$(id -u)" -eq 0 ] || exec sudo -- "$0" "$@"
set -a
[ ! -r /etc/wardround/{role}.env ] || . /etc/wardround/{role}.env
{variable}={home}
HOME={home}
set +a
exec runuser -u {account} -- {prefix}/current/bin/{program} "$@"
"""


def check_machine(machine: Machine) -> None:
    """Whether this Python makes environments, and systemd knows what the units say.

    Raises:
        InstallError: one of them does not.
    """
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        name = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise InstallError(f"this Python cannot make environments. On Debian and Ubuntu: apt-get install {name}")
    if machine.is_real:
        found = re.match(r"systemd (\d+)", _said_by("systemctl", "--version"))
        if found is None or int(found[1]) < OLDEST_SYSTEMD:
            raise InstallError(f"systemd {OLDEST_SYSTEMD} or later is needed (Debian 12, Ubuntu 24.04, RHEL 9).")


def unpack(machine: Machine, source: Path, version: str) -> None:
    """Make a version's folder from a wheelhouse, or use the one that is there and whole.

    Raises:
        InstallError: there is another one of the same version, or the wheels do not install.
    """
    folder, identity = machine.prefix / version, sha256(source / MANIFEST)
    if (folder / MARKER).exists():
        if (folder / MARKER).read_text(encoding="ascii") != identity:
            raise InstallError(
                f"{folder} came from another wheelhouse of the same version. Uninstall that first: homes stay."
            )
        return
    if folder.exists():
        shutil.rmtree(folder)  # a call before this one was interrupted
    print(f"installing {version} into {folder}", flush=True)
    install_wheels(folder, source)
    for name in KEPT:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(str(source / name), str(folder / name))
    (folder / MARKER).write_text(identity, encoding="ascii")


def install_wheels(folder: Path, source: Path) -> None:
    """An environment with all wheels of a wheelhouse, from there alone, each with its hash; and it starts."""
    run(sys.executable, "-m", "venv", str(folder))
    offline = ("--no-index", "--find-links", str(source / WHEELS), "--no-cache-dir", "--only-binary", ":all:")
    pins = ("--require-hashes", "--no-deps", "--requirement", str(source / PINS))
    run(str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *offline, *pins)
    run(str(folder / "bin/python"), "-m", "pip", "check")
    for role in ROLES.values():
        run(str(folder / "bin" / role.program), "--version")


def point(link: Path, version: str) -> None:
    """Have a link lead to a version, in one step."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(version)
    fresh.replace(link)


def switch(machine: Machine, version: str) -> None:
    """Have the services run a version, with the present one as the previous; those that run are started anew.

    Raises:
        InstallError: one of them does not stay up.
    """
    running = [one for one in machine.roles() if systemctl(machine, "is-active", "--quiet", one.unit, check=False)]
    before = machine.version("current")
    point(machine.prefix / "current", version)
    if before is not None:
        point(machine.prefix / "previous", before.name)
    for role in machine.roles():
        put_in_place(machine, role)
    systemctl(machine, "daemon-reload")
    for role in running:
        systemctl(machine, "restart", role.unit)
    time.sleep(SETTLED_S if running else 0)
    for role in running:
        if not systemctl(machine, "is-active", "--quiet", role.unit, check=False):
            raise InstallError(
                f"{role.account} does not stay up with {version}; why: journalctl -u {role.account} -n 50. "
                f"The other version: {again(machine, 'rollback')}"
            )


def put_in_place(machine: Machine, role: Role) -> None:
    """Unit, command, and a file for settings, which stays as it is where there is one."""
    unit = (machine.prefix / "current" / UNITS / role.unit).read_text(encoding="utf-8")
    names = {"role": role.name, "home": role.home, "account": role.account, "prefix": machine.prefix}
    command = _COMMAND.format(program=role.program, variable=role.variable, **names)
    for path, text in (
        (machine.units / role.unit, unit.replace(PREFIX, str(machine.prefix))),
        (machine.command(role), command),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    machine.command(role).chmod(0o755)
    machine.settings.mkdir(parents=True, exist_ok=True)
    if not (settings := machine.settings / f"{role.name}.env").exists():
        settings.write_text("# https_proxy=http://proxy.example.org:3128\n", encoding="utf-8")


def allow(machine: Machine, role: Role, asked: Sequence[str]) -> str:
    """Let a service speak with addresses beside this machine's own; what it may do then, in words."""
    if not asked:
        return "it may speak with this machine alone, until: install.py install ROLE --allow ADDRESS"
    allowed = list(dict.fromkeys([*asked, *([] if "any" in asked else _name_servers(machine))]))
    path = machine.drop_ins(role) / "addresses.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"IPAddressAllow={one}\n" for one in allowed)
    path.write_text(f"[Service]\n{lines}", encoding="utf-8")
    return f"it may speak with {', '.join(allowed)} ({path})"


def check_addresses(given: Sequence[str]) -> None:
    """Whether systemd takes them.

    Raises:
        InstallError: one is a name, which systemd does not look up, or nonsense.
    """
    for one in given:
        try:
            if one not in _WORDS:
                ipaddress.ip_network(one, strict=False)
        except ValueError as error:
            raise InstallError(
                f"--allow {one}: no address or network (192.0.2.0/24). Addresses of a name: getent ahosts {one}"
            ) from error


def make_account(machine: Machine, role: Role) -> None:
    """The account of a service, and its home, which nobody else may look into."""
    home = machine.home(role)
    if machine.is_real and not _has_account(role):
        options = ("--system", "--user-group", "--no-create-home", "--home-dir", role.home)
        run("useradd", *options, "--shell", "/usr/sbin/nologin", role.account)
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o700)
        if machine.is_real:
            shutil.chown(home, role.account, role.account)


def remove_account(machine: Machine, role: Role) -> None:
    """Remove the account of a service."""
    if machine.is_real and _has_account(role):
        run("userdel", role.account)


def again(machine: Machine, command: str) -> str:
    """How this program is called for an installation."""
    options = "" if machine.prefix == Path(PREFIX) else f" --prefix {machine.prefix}"
    return f"sudo python3 {machine.prefix}/current/install.py{options} {command}"


def systemctl(machine: Machine, *arguments: str, check: bool = True) -> bool:
    """Tell systemd, where it runs; whether it said yes.

    Raises:
        InstallError: it said no, and `check`.
    """
    if not machine.is_real or not Path("/run/systemd/system").is_dir():
        return False
    command = ["systemctl", *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise InstallError(f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.returncode == 0


def run(*command: str) -> None:
    """Run a command; what it says appears where it fails. No setting of pip from outside reaches it.

    Raises:
        InstallError: it failed.
    """
    done = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-20:]
        raise InstallError("\n".join([f"{' '.join(command[:4])} failed:", *said]))


def _environment() -> dict[str, str]:
    """This process's environment without secrets (common/system/environment.py), and without settings of pip."""
    out = re.compile(r"(PIP|PYTHON).*|WARDROUND_.*(PASSPHRASE|KEY)(_FILE)?")
    kept = {name: value for name, value in os.environ.items() if not out.fullmatch(name)}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _has_account(role: Role) -> bool:
    return any(one.pw_name == role.account for one in pwd.getpwall())


def _name_servers(machine: Machine) -> list[str]:
    """Of this machine: a service that looks a name up must be allowed to ask them."""
    try:
        lines = (machine.root / "etc/resolv.conf").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    named = [
        words[1].partition("%")[0] for line in lines if (words := line.split())[:1] == ["nameserver"] and words[1:]
    ]
    return [one for one in named if not ipaddress.ip_address(one).is_loopback]


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
