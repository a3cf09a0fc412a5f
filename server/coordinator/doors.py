"""How the coordinator's ports and processes are, seen from outside: for `status`, `doctor` and the launcher itself."""

import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from common.flower.calls import superlink_answers
from common.system.files import write_private
from server.coordinator.health import PROCESSES_NAME
from server.home.folder import Home
from server.registry.registry import Registry

_PROBE_S = 3.0
_FOREIGN = "held by another program, or does not answer"


@dataclass(frozen=True)
class Door:
    """One of the coordinator's ports or processes, as it is now."""

    name: str
    port: int | None  # None: it has none
    ok: bool
    state: str


def doors(home: Home) -> list[Door]:
    """Look at them all. Up means that our own program answers, not only that the port is taken."""
    config = home.config
    gateway, enrolment = (_state_of(home, port) for port in (config.gateway_port, config.enrolment_port))
    # The same process holds both ports: where the gateway is not there, nobody would open the other.
    if enrolment == "down" and gateway == "up" and not Registry(home.registry).is_expecting():
        enrolment = "closed: no invitation is open"
    superlink = "up" if superlink_answers(home.superlink) else "down"
    superexec = "up" if "superexec" in read_processes(home) else "down"
    return [
        Door("gateway", config.gateway_port, gateway == "up", gateway),
        Door("enrolment", config.enrolment_port, enrolment == "up" or enrolment.startswith("closed"), enrolment),
        Door("superlink", config.superlink_port, superlink == "up", superlink),
        Door("superexec", None, superexec == "up", superexec),
    ]


def write_processes(home: Home, alive: Mapping[str, int]) -> None:
    """Say which of the coordinator's processes are there, by name and pid; to be called whenever that changes."""
    write_private(home.path / PROCESSES_NAME, json.dumps(alive, indent=2).encode())


def read_processes(home: Home) -> dict[str, int]:
    """Inverse of `write_processes`, without those that have ended since."""
    try:
        written = json.loads((home.path / PROCESSES_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: pid for name, pid in written.items() if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _state_of(home: Home, port: int) -> str:
    """Whether the server on a port shows a certificate of our root. It need not let us in for that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=home.trusted_roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(received, to_send)
    try:
        with socket.create_connection((_probe_host(home), port), _PROBE_S) as connection:
            while True:
                try:
                    handshake.do_handshake()
                except ssl.SSLWantReadError:
                    connection.sendall(to_send.read())
                    if not (data := connection.recv(65536)):
                        return _FOREIGN
                    received.write(data)
                else:
                    # Our last words stay unsaid, or the gateway would log a caller without a certificate.
                    return "up"
    except ConnectionRefusedError:
        return "down"
    except OSError:
        return _FOREIGN


def _probe_host(home: Home) -> str:
    return "127.0.0.1" if home.config.listen in ("0.0.0.0", "::") else home.config.listen  # noqa: S104 - compared
