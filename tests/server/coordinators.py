"""A coordinator for tests: its home, enrolled sites with real keys, and channels with real TLS."""

import datetime
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import CertificateSigningRequest

from common.config import RunConfig, parse
from common.identity import certificates
from common.identity.operators import Act
from common.identity.receipt_keys import prove_receipt_key
from common.wire import channels
from common.wire.wardround_pb2 import EnrolRequest
from server.gateway import enrolment
from server.home.folder import Home, ServerConfig
from server.home.root import create
from server.registry import operators
from server.registry.registry import Registry
from server.registry.sites import about_invitation
from tests.patience import PATIENCE_S

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
join-timeout-s = 300
"""
RUN = parse(RunConfig, RUN_TOML)


@dataclass(frozen=True)
class Member:
    """An enrolled site's identity."""

    name: str
    key: certificates.PrivateKey
    certificate: bytes
    receipt_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def channel(self, home: Home) -> grpc.Channel:
        return channels.secure_channel(
            home.gateway_address,
            home.root_pem,
            certificates.key_to_pem(self.key),
            self.certificate,
            max_receive_bytes=channels.MAX_MESSAGE_BYTES,
        )


def new_home(folder: Path) -> Home:
    gateway, enrol, superlink = free_ports(3)
    config = ServerConfig(
        hosts=("127.0.0.1", "localhost"), gateway_port=gateway, enrolment_port=enrol, superlink_port=superlink
    )
    config = config.model_copy(update={"exchange_forms": False})  # a minute for each run that is completed
    home = create(folder, config)
    operators.add(home, Registry(home.registry), operators.FIRST, "admin")
    return home


def enrol(home: Home, registry: Registry, name: str) -> Member:
    key = certificates.new_key()
    invitation = enrolment.invite(home, registry, name)
    signing = Ed25519PrivateKey.generate()
    registry.redeem(name, invitation.token, *asked(name, certificates.csr_for(name, key), signing))
    enrolment.approve(home, registry, name)
    certificate = registry.site(name).certificate
    assert certificate is not None
    return Member(name, key, certificate, signing)


def asked(
    site: str, csr: CertificateSigningRequest | None = None, signing: Ed25519PrivateKey | None = None
) -> tuple[bytes, bytes, bytes]:
    """What a site asks to join with: its request, its receipt key and that key's signature."""
    csr = csr or certificates.csr_for(site, certificates.new_key())
    signing = signing or Ed25519PrivateKey.generate()
    return (
        certificates.to_pem(csr),
        signing.public_key().public_bytes_raw(),
        prove_receipt_key(csr, site, signing),
    )


def enrol_request(
    site: str, token: str, csr: CertificateSigningRequest | None = None, signing: Ed25519PrivateKey | None = None
) -> EnrolRequest:
    """The same for the enrolment port."""
    csr_pem, key, proof = asked(site, csr, signing)
    return EnrolRequest(site=site, token=token, csr_pem=csr_pem, receipt_key=key, proof=proof)


def signed(home: Home, registry: Registry, action: str, *about: str, name: str = operators.FIRST) -> Act:
    """An operator's act, entered in the audit log as the commands do."""
    act = operators.acting(home, registry, action, name).sign(*about)
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


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with closing(socket.socket()) as probe:
        probe.settimeout(PATIENCE_S)
        return probe.connect_ex((host, port)) == 0


def status_of(call: Callable[..., Any], request: object) -> grpc.StatusCode:
    """How a call ends."""
    try:
        call(request, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
