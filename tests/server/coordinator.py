"""A coordinator for tests: its home, enrolled sites with real keys, and channels with real TLS."""

import datetime
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import pki
from common.config import RunConfig, parse
from common.operators import Act
from common.wire import channels
from server import enrolment, operators
from server import home as homes
from server.home import Home, ServerConfig
from server.registry import Registry, about_invitation

RUN_TOML = """
name = "lesions"
[data]
modality = "CT"
classes = ["lesion"]
[training]
patch-size = [32, 32]
[federation]
rounds = 2
quorum = 2
join-timeout-s = 60
"""
RUN = parse(RunConfig, RUN_TOML)


@dataclass(frozen=True)
class Member:
    """An enrolled site's identity."""

    name: str
    key: pki.PrivateKey
    certificate: bytes
    receipt_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def channel(self, home: Home) -> grpc.Channel:
        return channels.secure_channel(home.gateway_address, home.root_pem, pki.key_to_pem(self.key), self.certificate)


def new_home(folder: Path) -> Home:
    gateway, enrol, superlink = free_ports(3)
    config = ServerConfig(
        hosts=("127.0.0.1", "localhost"), gateway_port=gateway, enrolment_port=enrol, superlink_port=superlink
    )
    home = homes.create(folder, config)
    operators.add(home, Registry(home.registry), operators.FIRST, "admin")
    return home


def enrol(home: Home, registry: Registry, name: str) -> Member:
    key = pki.new_key()
    invitation = enrolment.invite(home, registry, name)
    signing = Ed25519PrivateKey.generate()
    public = signing.public_key().public_bytes_raw()
    registry.redeem(name, invitation.token, pki.to_pem(pki.csr_for(name, key)), public)
    enrolment.approve(home, registry, name)
    certificate = registry.site(name).certificate
    assert certificate is not None
    return Member(name, key, certificate, signing)


def signed(home: Home, registry: Registry, action: str, *about: str, name: str = operators.FIRST) -> Act:
    """An operator's act, entered in the audit log as the commands do."""
    act = operators.acting(home, registry, action, name).sign(action, *about)
    operators.enter(home, act)
    return act


def invite(home: Home, registry: Registry, site: str, token: str, expires: datetime.datetime) -> None:
    """Open the door with a token of the test's choice."""
    registry.invite(site, token, expires, signed(home, registry, "invite", *about_invitation(site, token, expires)))


def receipt_key() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def status_of(call: Callable[..., Any], request: object) -> grpc.StatusCode:
    """How a call ends."""
    try:
        call(request, timeout=10.0)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
