"""`wardround-server start`: keep the coordinator's processes alive, and leave none behind.

Three children: Flower's SuperLink, its SuperExec, which starts a ServerApp per run, and our own process with the doors.
A child that ends is started again, later each time it fails quickly; with the SuperLink its SuperExec, because the runs
are lost with it. SIGTERM and SIGINT stop everything; should the launcher itself be killed, the kernel sends SIGTERM to
its children (prctl(2), PR_SET_PDEATHSIG) and Flower's own children watch their parent. This process also holds the
coordinator's key for them, see server/home/key_agent.py.

Whoever reaches the SuperLink's port can have it run any program as the coordinator's user, and its ServerApps' tokens
stand in the list of processes. So it, its SuperExec and the ServerApps live in a network namespace of their own; the
doors, which the sites must reach, stay outside and speak to it by a unix socket in the home.
"""

import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from common.errors import ConfigError, FederationError
from common.flower.processes import superexec_command, superlink_command, superlink_environment
from common.flower.version import check_version
from common.rescue import restored
from common.system.life import SignOfLife
from common.system.locks import is_locked, locked
from common.system.namespaces import PrivateNetwork, private_network
from server.coordinator.doors import doors, write_processes
from server.coordinator.health import LAUNCHER_NAME
from server.home.folder import ENVIRONMENT, Home
from server.home.key_agent import KeyAgent
from server.home.root import server_credentials
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from server.registry.store import StoreError

READY_TIMEOUT_S = 60.0
# After SIGTERM a process has this long to end by itself.
GRACE_S = 10.0

_LOOK_EVERY_S = 0.5
_SHORTEST_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 30.0
# A child that lived this long did not fail at start.
_HEALTHY_S = 60.0
_LOG_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1
_GATEWAY = "gateway"

_log = logging.getLogger(__name__)


@dataclass
class _Child:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    network: PrivateNetwork | None = None  # where it lives; None: where we do
    ends_with: str = ""  # the child without which it is of no use
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    back_off_s: float = _SHORTEST_BACK_OFF_S
    not_before: float = 0.0


def start(home: Home, announce: Callable[[str], None]) -> None:
    """Run the coordinator until SIGTERM or SIGINT.

    Args:
        announce: told one line once sites can connect.

    Raises:
        ConfigError: another flwr is installed, this home's coordinator runs already, its key does not open, or the
            kernel does not allow the SuperLink a network of its own and server.toml does not do without.
        FederationError: a port is in use, or the processes did not come up.
    """
    check_version()
    os.umask(0o077)
    key = home.key  # perhaps asked for, which Ctrl-C should end
    with _only_one(home), _stop_on_signal() as stop:
        _check_ports(home)
        restored.enter(home.path, lambda: open_log(home).append("restored"))
        server_credentials(home)  # renewed here, if due: the gateway has no passphrase for the root's key
        _wipe_flower(home)
        network = _network(home)
        _nobody_is_here(home)
        children, life = _children(home, network), SignOfLife(home.path / LAUNCHER_NAME)
        life.give()
        try:
            with KeyAgent(home.path, key) as holder:
                for child in children:
                    _spawn(child)
                _note(home, children)
                _await_ready(home, children, stop, holder)
                announce(
                    f"ready: gateway {home.gateway_address} (mutual TLS), enrolment {home.enrolment_address} "
                    f"(open while an invitation is), logs in {home.logs}"
                )
                while not stop:
                    life.give()
                    changed = [child.name for child in children if _tend(child, children)]
                    if changed:
                        _note(home, children)
                    if _GATEWAY in changed:
                        _nobody_is_here(home)
                    holder.rest(_LOOK_EVERY_S)
        finally:
            _stop_all(children)
            _note(home, [])
            if network is not None:
                network.close()


def is_running(home: Home) -> bool:
    """Whether this home's coordinator has been started."""
    return is_locked(home.path / LAUNCHER_NAME)


IDLE = "the coordinator is not running, so no run goes on. Start it with `wardround-server start`"


def present(home: Home, registry: Registry) -> frozenset[str] | None:
    """The sites that are connected; None: the coordinator is not running, so that no run goes on."""
    return frozenset(site.name for site in registry.sites() if site.connected) if is_running(home) else None


def _nobody_is_here(home: Home) -> None:
    """There is no gateway, or a new one: until a site calls it, no site is here. The gateway notes that too, seconds
    later, when it has been loaded; so where another program holds the registry nothing is lost.
    """
    try:
        Registry(home.registry).nobody_is_here()
    except StoreError as error:
        _log.warning("%s", error)


def family(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and those they have."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _wipe_flower(home: Home) -> None:
    """What Flower unpacked for earlier runs is of no use any more; the gateway's deliveries beside it are."""
    for name in ("apps", "source"):
        path = home.flower / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _network(home: Home) -> PrivateNetwork | None:
    """The network namespace for Flower's processes; None where server.toml does without."""
    if not home.config.private_network:
        return None
    made = private_network()
    if isinstance(made, PrivateNetwork):
        return made
    raise ConfigError(
        f"Flower's SuperLink cannot be given a network of its own: {made}. On the shared loopback any account of this "
        "host could have it run programs as the coordinator's. Start as a user whom the kernel allows network "
        "namespaces (unprivileged user namespaces, or root), or, where nobody else has an account on this host, set "
        f"private-network = false in {home.path / 'server.toml'}."
    )


def _children(home: Home, network: PrivateNetwork | None) -> list[_Child]:
    # Without passphrases: they get the coordinator's key from the holder, and the root's key is for people.
    environment = superlink_environment(home.flower) | {ENVIRONMENT: str(home.path)}
    port, socket_path = home.config.superlink_port, home.superlink if isinstance(home.superlink, Path) else None
    serve = [sys.executable, "-m", "server.coordinator.serve", "--home", str(home.path)]
    logs = {name: home.logs / f"{name}.log" for name in ("superlink", "superexec", _GATEWAY)}
    superexec = superexec_command(port, os.getpid())
    return [
        _Child("superlink", superlink_command(port, socket_path), environment, logs["superlink"], network),
        _Child("superexec", superexec, environment, logs["superexec"], network, ends_with="superlink"),
        # At this level, and not before, gRPC writes why a handshake failed.
        _Child(_GATEWAY, serve, environment | {"GRPC_VERBOSITY": "INFO"}, logs[_GATEWAY]),
    ]


def _note(home: Home, children: list[_Child]) -> None:
    write_processes(home, {one.name: one.process.pid for one in children if one.process is not None})


def _spawn(child: _Child) -> None:
    with child.log.open("ab") as log:
        child.process = subprocess.Popen(  # noqa: S603 - our own command
            child.command,
            env=child.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches the launcher alone, which then stops its children in order.
            start_new_session=True,
            preexec_fn=_before_exec(child.network) if sys.platform == "linux" else None,  # noqa: PLW1509 - one thread
        )
    child.started = time.monotonic()


def _tend(child: _Child, others: list[_Child]) -> bool:
    """Start it if it has ended and its pause is over; whether it came or went."""
    now = time.monotonic()
    _trim(child.log)
    if child.process is None:
        if now < child.not_before:
            return False
        _spawn(child)
        return True
    code = child.process.poll()
    if code is None:
        if now - child.started > _HEALTHY_S:
            child.back_off_s = _SHORTEST_BACK_OFF_S
        return False
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    _log.warning("%s %s; starting it again in %.1f s, see %s", child.name, how, child.back_off_s, child.log)
    child.process = None
    child.not_before = now + child.back_off_s
    child.back_off_s = min(2 * child.back_off_s, _LONGEST_BACK_OFF_S)
    _stop_all([one for one in others if one.ends_with == child.name])
    return True


def _trim(log: Path) -> None:
    """Keep a log and the one before it at 10 MB each, whatever strangers make a process write."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)  # the process goes on at the new end: it appends


def _await_ready(home: Home, children: list[_Child], stop: list[int], holder: KeyAgent) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not stop and not all(door.ok for door in doors(home) if door.name != "enrolment"):
        for child in children:
            if child.process is not None and child.process.poll() is not None:
                raise FederationError(f"the {child.name} ended at start. {_last_lines(child.log)}")
        if time.monotonic() > deadline:
            raise FederationError(
                f"the coordinator was not ready within {READY_TIMEOUT_S:g} s. See the files in {home.logs}."
            )
        holder.rest(0.1)


def _stop_all(children: list[_Child]) -> None:
    """The doors first, so that no site talks to half a coordinator; then whatever is left of the rest."""
    for child in reversed(children):
        if child.process is None:
            continue
        left = family(child.process.pid)
        child.process.terminate()
        try:
            child.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        _, alive = psutil.wait_procs(left, timeout=3.0)
        for process in alive:
            _log.warning("%s left process %d behind; killing it", child.name, process.pid)
            process.kill()
        child.process = None


def _check_ports(home: Home) -> None:
    config = home.config
    ports = [
        ("gateway-port", config.listen, config.gateway_port),
        ("enrolment-port", config.listen, config.enrolment_port),
    ]
    if not config.private_network:
        ports.append(("superlink-port", "127.0.0.1", config.superlink_port))
    for name, host, port in ports:
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise FederationError(
                    f"port {port} ({name}) on {host} cannot be used: {error.strerror}. Stop the program that holds it, "
                    f"or set another {name} in {home.path / 'server.toml'}."
                ) from error


def _only_one(home: Home) -> AbstractContextManager[object]:
    busy = ConfigError(f"the coordinator in {home.path} runs already. See `wardround-server status`, or stop it first.")
    return locked(home.path / LAUNCHER_NAME, busy)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that receives the number of the signal that came."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _before_exec(network: PrivateNetwork | None) -> Callable[[], None]:
    """Move the child to its network, and ask the kernel to end it when this process dies.

    The library is loaded before the fork. To change namespaces may undo the kernel's promise, so that comes first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    launcher = os.getpid()

    def before_exec() -> None:
        if network is not None:
            network.enter()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it died between fork and prctl
            os._exit(1)

    return before_exec


def _last_lines(log: Path, count: int = 5) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return f"Its last words in {log}:\n" + "\n".join(lines)
