"""What `wardround-server doctor` looks at (common/console/doctor.py)."""

import importlib.metadata
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import psutil

from common.console import doctor
from common.console.doctor import Finding
from common.flower.version import VERSION
from common.identity import certificates
from common.system.namespaces import network_of
from common.text import counted
from common.wire import clock
from server.coordinator import supervisor
from server.coordinator.doors import doors, read_processes
from server.home.folder import Home
from server.registry.registry import Registry

MIN_FREE_BYTES = 1_000_000_000
MIN_DAYS_LEFT = 30

_SECRETS = ("coordinator.key", "pki/root.key", "pki/server.key", "registry.sqlite")


def examine(home: Home) -> list[Finding]:
    """Look at everything; changes nothing."""
    checks: dict[str, Callable[[Home], Iterable[Finding]]] = {
        "flwr version": _flower,
        "private files": _secrets,
        "coordinator key": _custody,
        "operator keys": _operators,
        "certificates": _certificates,
        "disk": _disk,
        "coordinator": _processes,
        "doors": _doors,
        "superlink": _exposure,
        "clocks": _clocks,
    }
    return doctor.examine({what: partial(check, home) for what, check in checks.items()})


def superlink_addresses(home: Home) -> set[str]:
    """The addresses of this network on which the SuperLink, or anything it has started, listens."""
    port = home.config.superlink_port
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    owners = {one.pid for one in listening if one.laddr.port == port and one.pid is not None}
    family = {process.pid for owner in owners for process in supervisor.family(owner)} | owners
    return {one.laddr.ip for one in listening if one.laddr.port == port or one.pid in family}


def _flower(_home: Home) -> Iterator[Finding]:
    found = importlib.metadata.version("flwr")
    yield Finding("flwr version", found == VERSION, f"{found} is installed, {VERSION} is needed")


def _secrets(home: Home) -> Iterator[Finding]:
    for name in _SECRETS:
        path = home.path / name
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            yield Finding(name, not mode & 0o077, f"mode {mode:o}, wanted 600" if mode & 0o077 else "private")


def _custody(home: Home) -> Iterator[Finding]:
    protected = "under a passphrase: a copy of the folder does not open"
    plain = "plain: a copy of the whole folder opens; `wardround-server key protect` puts the key under a passphrase"
    yield Finding("coordinator key", home.key_file.path.exists(), protected if home.key_file.is_protected else plain)


def _operators(home: Home) -> Iterator[Finding]:
    names = ", ".join(sorted(path.stem for path in (home.path / "operators").glob("*.key")))
    here = f"keys of {names} lie here: who uses this account can sign as them. Better each with its owner"
    yield Finding("operator keys", True, here if names else "none here: each lies with its owner")


def _certificates(home: Home) -> Iterator[Finding]:
    for name, remedy in (("root", "plan a new federation root"), ("server", "restart the coordinator to renew it")):
        certificate = certificates.load_certificate((home.path / "pki" / f"{name}.pem").read_bytes())
        days = (certificate.not_valid_after_utc - certificates.now()).days
        ok = days > MIN_DAYS_LEFT
        yield Finding(f"{name} certificate", ok, f"{counted(days, 'day')} left" + ("" if ok else f": {remedy}"))


def _disk(home: Home) -> Iterator[Finding]:
    free = shutil.disk_usage(home.path).free
    yield Finding("disk", free > MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free, at least {MIN_FREE_BYTES / 1e9:g} wanted")


def _processes(home: Home) -> Iterator[Finding]:
    running = supervisor.is_running(home)
    yield Finding("coordinator", running, "running" if running else "not running: wardround-server start")


def _doors(home: Home) -> Iterator[Finding]:
    if supervisor.is_running(home):
        for door in doors(home):
            remedy = "" if door.ok else f": see the files in {home.logs}, and who else uses the port"
            name = door.name if door.port is None else f"{door.name} port {door.port}"
            yield Finding(name, door.ok, door.state + remedy)


def _clocks(home: Home) -> Iterator[Finding]:
    """As they were when the sites last connected."""
    wrong = {name: ahead_s for name, ahead_s in Registry(home.registry).clocks().items() if not clock.is_well(ahead_s)}
    for name, ahead_s in wrong.items():
        remedy = (
            "its updates count all the same; certificates and its audit log go by it: have one of the two set right"
        )
        yield Finding(f"clock of {name}", False, f"{clock.in_words(ahead_s, 'ours')}; {remedy}")
    if not wrong:
        yield Finding("clocks", True, "of the sites as ours, as far as they have connected")


def _exposure(home: Home) -> Iterator[Finding]:
    processes = read_processes(home)
    flowers = {network_of(processes[name]) for name in ("superlink", "superexec") if name in processes}
    ours = network_of(os.getpid())
    if not home.config.private_network:
        yield Finding(
            "superlink network",
            True,
            "shared, as private-network = false in server.toml says: any account of this host can have the SuperLink "
            "run programs as the coordinator's",
        )
    elif flowers:
        private = ours not in flowers and "" not in flowers
        yield Finding(
            "superlink network",
            private,
            "its own: no other account reaches it" if private else "shared with this command: restart the coordinator",
        )
    foreign = sorted(address for address in superlink_addresses(home) if address not in ("127.0.0.1", "::1"))
    where = f"reachable at {', '.join(foreign)}: stop it" if foreign else "on loopback only"
    yield Finding("superlink", not foreign, where)
