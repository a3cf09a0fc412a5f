"""What `wardround-server doctor` looks at (common/console/doctor.py)."""

import importlib.metadata
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import psutil

from common.audit.entries import KINDS
from common.console import doctor, machine
from common.console.doctor import Finding
from common.errors import ConfigError
from common.flower.version import VERSION
from common.identity import certificates
from common.system.environment import PACKAGES, for_child
from common.system.namespaces import network_of
from common.text import counted, sized
from common.wire import clock
from server.coordinator import supervisor
from server.coordinator.doors import doors, read_processes
from server.home.folder import Home
from server.registry.audit_trail import open_log
from server.registry.registry import Registry

MIN_FREE_BYTES = 1_000_000_000
MIN_DAYS_LEFT = 30
MEMORY_BYTES = 1 << 30  # SuperLink, gateway and one ServerApp
_FORK_S = 60.0

_SECRETS = ("coordinator.key", "pki/root.key", "pki/server.key", "registry.sqlite")


def examine(home: Home) -> list[Finding]:
    """Look at everything; changes nothing."""
    checks: dict[str, Callable[[Home], str | Iterable[Finding]]] = {
        "flwr version": _flower,
        "versions": lambda _home: machine.versions(("server",)),
        "foreign packages": lambda _home: machine.shadows(),
        "private files": _secrets,
        "coordinator key": _custody,
        "operator keys": _operators,
        "certificates": _certificates,
        "clock": _clock,
        "disk": _disk,
        "memory": lambda _home: machine.memory(MEMORY_BYTES),
        "shared memory": lambda _home: machine.shared_memory(),
        "private network": _private_network,
        "ports": _ports,
        "coordinator": _processes,
        "doors": _doors,
        "superlink": _exposure,
        "clocks": _clocks,
        "models": _models,
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
        path = home.path / "pki" / f"{name}.pem"
        if not path.exists():
            yield Finding(f"{name} certificate", False, f"{path} is missing: restore the folder pki from a backup")
            continue
        certificate = certificates.load_certificate(path.read_bytes())
        days = certificates.days_left(certificate.not_valid_after_utc)
        ok = days > MIN_DAYS_LEFT
        yield Finding(f"{name} certificate", ok, f"{counted(days, 'day')} left" + ("" if ok else f": {remedy}"))


def _models(home: Home) -> Iterator[Finding]:
    from server.archive.forms import LEFT_OUT  # noqa: PLC0415 - loads jinja2
    from server.archive.record import forms_in, there  # noqa: PLC0415 - likewise

    count = 0
    for proposal in Registry(home.registry).proposals():
        try:
            found = there(home, proposal)
            count += found is not None
            told = {} if found is None else forms_in(found)
            for form in [name for name, said in told.items() if LEFT_OUT in said]:
                remedy = f"`wardround-server export {proposal.run_hash[:8]} --out MODEL` says what makes it"
                yield Finding(
                    f"{form} of {proposal.name} {proposal.run_hash[:8]}",
                    True,
                    f"left out: {told[form][LEFT_OUT]} {remedy}",
                )
        except ConfigError as error:
            yield Finding(f"model of {proposal.name} {proposal.run_hash[:8]}", False, str(error))
    yield Finding("models", True, f"{counted(count, 'folder')} of completed runs as signed")


def _disk(home: Home) -> Iterator[Finding]:
    free = shutil.disk_usage(home.path).free
    said = f"{sized(free)} free, at least {sized(MIN_FREE_BYTES)} wanted"
    yield Finding("disk", free > MIN_FREE_BYTES, said + ("" if free > MIN_FREE_BYTES else ": free some"))


def _clock(home: Home) -> str:
    with open_log(home).transaction() as log:
        last = log.latest(*KINDS)
    return machine.clock(last[0].time if last else None)


def _private_network(home: Home) -> str:
    """Whether the kernel gives the SuperLink a network of its own; asked in a process that has one thread."""
    if not home.config.private_network:
        return "not wanted, as private-network = false in server.toml says"
    code = (
        "from common.system import namespaces as n; one = n.private_network(); print(one if type(one) is str else '')"
    )
    command = [sys.executable, "-P", "-c", code]
    asked = subprocess.run(  # noqa: S603 - our own interpreter and code
        command, capture_output=True, text=True, timeout=_FORK_S, check=True, env=for_child(PYTHONPATH=str(PACKAGES))
    )
    if problem := asked.stdout.strip():
        raise ConfigError(
            f"the kernel gives Flower no network of its own ({problem}). Allow unprivileged user namespaces "
            "(user.max_user_namespaces, user.max_net_namespaces); or run the coordinator on a host that no "
            "other account uses, with private-network = false in server.toml."
        )
    return "the kernel gives Flower one"


def _ports(home: Home) -> Iterator[Finding]:
    """Whether what is to listen could; of a coordinator that runs see its doors."""
    if supervisor.is_running(home):
        return
    config = home.config
    wanted = {"gateway": (config.listen, config.gateway_port), "enrolment": (config.listen, config.enrolment_port)}
    if not config.private_network:
        wanted["superlink"] = ("127.0.0.1", config.superlink_port)
    for name, (host, port) in wanted.items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                holder = _holder(port)
                remedy = f"{holder}: end that, or set {name}-port in server.toml" if holder else "see server.toml"
                yield Finding(f"{name} port {port}", False, f"cannot be taken at {host} ({error.strerror}); {remedy}")
            else:
                yield Finding(f"{name} port {port}", True, f"free at {host}")


def _holder(port: int) -> str:
    """Who listens on a port, as far as the system tells us."""
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
            who = f"{psutil.Process(one.pid).name()} (process {one.pid})" if one.pid else "another account"
            return f"held by {who}"
    return ""


def _processes(home: Home) -> Iterator[Finding]:
    running = supervisor.is_running(home)
    yield Finding("coordinator", running, "running" if running else "not running: `wardround-server start`")


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
