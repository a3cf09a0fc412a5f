"""How a hospital joins a federation: an invitation becomes a certificate, and a certificate the next one.

The keys are made here and never leave. The invitation pins the coordinator's root before anything is sent; its
one-time token buys the right to have a certificate request looked at by a person, who compares the phrase that both
sides show. An interrupted `join` goes on where it stopped. A site that must not open a connection before it is a
member sends the same by file. Files under home/tls, folder 0700, secrets 0600:

    key.pem   certificate.pem   root.pem   receipt.key   coordinator.json
    while waiting: request.pem, token.sha256; while renewing: next-key.pem
"""

import hashlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.home.identity import Identity, check_own_receipt_key, load_identity
from client.home.templates import prepare_home
from common.errors import EnrolmentError
from common.identity import certificates, rotation
from common.identity.invitation import Invitation
from common.identity.operators import key_to_bytes, public_bytes
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import prove_receipt_key, request_digest
from common.system.files import write_private
from common.wire import versions
from common.wire.channels import certificate_trouble, secure_channel
from common.wire.proxy import proxy_of, told_of_proxy
from common.wire.pushback import retry_after
from common.wire.wardround_pb2 import CollectReply, CollectRequest, EnrolRequest, RenewRequest
from common.wire.wardround_pb2_grpc import CoordinationStub, EnrolmentStub

CALL_TIMEOUT_S = 30.0
COLLECT_WAIT_S = 10.0
RETRY_PAUSE_S = 2.0
PORT_PATIENCE_S = 60.0


def join(home: Path, invitation: Invitation, *, timeout_s: float, show_phrase: Callable[[str], None]) -> Identity:
    """Enrol this site and wait for its certificate.

    Args:
        home: the site's home folder; made with a site.toml and a strict policy.toml if new.
        invitation: from the coordinator, over a trusted channel.
        timeout_s: how long to wait for the coordinator's approval.
        show_phrase: called with the words that must equal the coordinator's.

    Raises:
        EnrolmentError: refused, or not approved in time; joining again with the same invitation goes on waiting.
    """
    tls, was_there = home / "tls", home.exists()
    csr, receipt_key = _prepare(home, invitation)
    digest = request_digest(csr, public_bytes(receipt_key))
    show_phrase(as_phrase(digest))
    _await_port(invitation.enrolment, min(timeout_s, PORT_PATIENCE_S))
    with secure_channel(invitation.enrolment, invitation.root_pem.encode()) as channel:
        stub = EnrolmentStub(channel)  # type: ignore[no-untyped-call]  # generated code
        if not _is_sent(tls, invitation):
            try:
                _enrol(stub, invitation, csr, receipt_key)
            except EnrolmentError as error:
                made = (
                    "" if was_there else f" {home} was made for it, with new keys: remove it if you do not try again."
                )
                raise EnrolmentError(f"{error}{made}") from error
            write_private(tls / "token.sha256", _digest(invitation.token).encode())
        certificate_pem = _collect(stub, invitation.site, digest, time.monotonic() + timeout_s)
    return _become_member(home, certificate_pem)


def check_new(home: Path) -> None:
    """Refuse a home that has a certificate.

    Raises:
        EnrolmentError: it has joined already.
    """
    if (home / "tls" / "certificate.pem").exists():
        raise EnrolmentError(
            f"{home} has joined already, as {load_identity(home).site!r}: `wardround-client status` says how it is. "
            "To join anew, use another --home, or move its tls folder away first."
        )


def request_by_file(home: Path, invitation: Invitation) -> tuple[str, str]:
    """Begin to join without a connection.

    Returns:
        The phrase, and the text of a request file for `wardround-server enrol`. It holds the token: a secret.

    Raises:
        EnrolmentError: this home has joined already.
    """
    csr, receipt_key = _prepare(home, invitation)
    write_private(home / "tls" / "token.sha256", _digest(invitation.token).encode())
    values = {
        "site": invitation.site,
        "token": invitation.token,
        "csr_pem": certificates.to_pem(csr).decode(),
        "receipt_key": public_bytes(receipt_key).hex(),
        "proof": prove_receipt_key(csr, invitation.site, receipt_key).hex(),
    }
    return as_phrase(request_digest(csr, public_bytes(receipt_key))), json.dumps(values, indent=2) + "\n"


def accept_certificate(home: Path, certificate_pem: bytes) -> Identity:
    """End a `request_by_file` with the certificate that came back.

    Raises:
        EnrolmentError: it is not for this site's key, or not of the root that the invitation named.
    """
    if not (home / "tls" / "request.pem").exists():
        raise EnrolmentError(
            f"{home} waits for no certificate. Begin with `wardround-client join INVITATION --request`."
        )
    return _become_member(home, certificate_pem)


def renew(home: Path, identity: Identity, *, to_successor: bool = False) -> Identity:
    """Get the next certificate over the present one, and the next root if the coordinator has one.

    The new key is kept until it is certified, so an interrupted renewal goes on with the same request.

    Args:
        home: the site's.
        identity: its present one.
        to_successor: ask only a coordinator to which the newest pinned root has passed.

    Raises:
        EnrolmentError: the coordinator refuses, is away, or sends what does not fit; the present one stays.
    """
    tls = home / "tls"
    if not (tls / "next-key.pem").exists():
        write_private(tls / "next-key.pem", certificates.key_to_pem(certificates.new_key()))
    key = certificates.load_key((tls / "next-key.pem").read_bytes())
    request = RenewRequest(csr_pem=certificates.to_pem(certificates.csr_for(identity.site, key)))
    with identity.channel(to_successor=to_successor) as channel:
        try:
            reply = CoordinationStub(channel).Renew(request, timeout=CALL_TIMEOUT_S)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise _explain(error, identity.gateway) from error
    roots = identity.root_pem
    if reply.successor_pem:
        successor = certificates.to_pem(rotation.check_successor(reply.successor_pem, roots))
        if successor not in roots:
            roots += successor
            write_private(tls / "root.pem", roots)
    certificates.check_site_certificate(reply.certificate_pem, roots, identity.site, key)
    check_own_receipt_key(reply.certificate_pem, roots, identity.site, identity.receipt_key)
    write_private(tls / "certificate.pem", reply.certificate_pem)
    return load_identity(home)


def _prepare(home: Path, invitation: Invitation) -> tuple[x509.CertificateSigningRequest, Ed25519PrivateKey]:
    """The home with its keys and what the invitation pins; the request, and the receipt key."""
    tls = home / "tls"
    check_new(home)
    prepare_home(home, invitation.site)
    if not (tls / "receipt.key").exists():
        write_private(tls / "receipt.key", key_to_bytes(Ed25519PrivateKey.generate()))
    receipt_key = Ed25519PrivateKey.from_private_bytes((tls / "receipt.key").read_bytes())
    csr = _request(tls, invitation)
    coordinator = {
        "site": invitation.site,
        "gateway": invitation.gateway,
        "enrolment": invitation.enrolment,
        "log-key": invitation.log_key,
    }
    write_private(tls / "coordinator.json", json.dumps(coordinator, indent=2).encode())
    write_private(tls / "root.pem", invitation.root_pem.encode())
    return csr, receipt_key


def _become_member(home: Path, certificate_pem: bytes) -> Identity:
    tls = home / "tls"
    site = str(json.loads((tls / "coordinator.json").read_bytes())["site"])
    key, root_pem = certificates.load_key((tls / "key.pem").read_bytes()), (tls / "root.pem").read_bytes()
    certificates.check_site_certificate(certificate_pem, root_pem, site, key)
    receipt_key = Ed25519PrivateKey.from_private_bytes((tls / "receipt.key").read_bytes())
    check_own_receipt_key(certificate_pem, root_pem, site, receipt_key)
    write_private(tls / "certificate.pem", certificate_pem)
    for name in ("request.pem", "token.sha256"):
        (tls / name).unlink(missing_ok=True)
    return load_identity(home)


def _request(tls: Path, invitation: Invitation) -> x509.CertificateSigningRequest:
    """Our certificate request: that of an interrupted join with this invitation, or a new one with a new key."""
    if _is_sent(tls, invitation):
        return certificates.check_csr((tls / "request.pem").read_bytes(), invitation.site)
    key = certificates.new_key()
    csr = certificates.csr_for(invitation.site, key)
    write_private(tls / "key.pem", certificates.key_to_pem(key))
    write_private(tls / "request.pem", certificates.to_pem(csr))
    return csr


def _is_sent(tls: Path, invitation: Invitation) -> bool:
    mark = tls / "token.sha256"
    return mark.exists() and mark.read_text(encoding="ascii") == _digest(invitation.token)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _await_port(address: str, patience_s: float) -> None:
    """Wait until something listens: a coordinator that is being started. What it is, is found out afterwards."""
    if proxy_of(address) is not None:
        return  # it is not reached from here
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=patience_s).close()
        except ConnectionRefusedError:
            time.sleep(RETRY_PAUSE_S)
        except OSError:
            return  # no such host or no way there, which waiting does not mend
        else:
            return


def _enrol(
    stub: EnrolmentStub, invitation: Invitation, csr: x509.CertificateSigningRequest, receipt_key: Ed25519PrivateKey
) -> None:
    request = EnrolRequest(
        site=invitation.site,
        token=invitation.token,
        csr_pem=certificates.to_pem(csr),
        receipt_key=public_bytes(receipt_key),
        proof=prove_receipt_key(csr, invitation.site, receipt_key),
    )
    try:
        stub.Enrol(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE and not certificate_trouble(error):
            raise EnrolmentError(
                f"no coordinator with the invitation's certificate answers at {invitation.enrolment}. Where it runs, "
                "this port is open only while an invitation or a request is: ask whether this invitation was used or "
                "has been replaced, and for a new one. Else check that it is started, the address, the firewall "
                f"(outbound), and that the invitation is this coordinator's.{told_of_proxy(invitation.enrolment)}"
            ) from error
        raise _explain(error, invitation.enrolment) from error


def _collect(stub: EnrolmentStub, site: str, request_sha256: str, deadline: float) -> bytes:
    """Wait for a person at the coordinator to approve."""
    while (left_s := deadline - time.monotonic()) > 0:
        request = CollectRequest(site=site, request_sha256=request_sha256, wait_s=min(COLLECT_WAIT_S, left_s))
        started = time.monotonic()
        try:
            reply = stub.Collect(request, timeout=COLLECT_WAIT_S + CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if not away and retry_after(error) is None:
                raise _explain(error, "the coordinator") from error
            time.sleep(max(RETRY_PAUSE_S, min(retry_after(error) or 0.0, left_s)))
            continue
        if reply.state == CollectReply.APPROVED:
            return bytes(reply.certificate_pem)
        if reply.state == CollectReply.REFUSED:
            raise EnrolmentError("the coordinator refused this site. Speak to its operator; nothing was shared.")
        if time.monotonic() - started < 0.1:
            time.sleep(RETRY_PAUSE_S)
    raise EnrolmentError(
        "the coordinator has not approved this site yet. Ask its operator to run "
        f"`wardround-server approve {site}`, then run the same join command again: it goes on waiting."
    )


def _explain(error: grpc.RpcError, address: str) -> EnrolmentError:
    if other := versions.refused(error):
        return EnrolmentError(f"{other}.")
    if trouble := certificate_trouble(error):
        return EnrolmentError(f"the coordinator at {address} cannot be trusted now: {trouble}.")
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return EnrolmentError(
            f"no coordinator with a certificate of the pinned root answers at {address}. Check that it is started, the "
            f"address, and the firewall (outbound).{told_of_proxy(address)}"
        )
    return EnrolmentError(f"the coordinator refused: {error.details() or error.code().name}.")
