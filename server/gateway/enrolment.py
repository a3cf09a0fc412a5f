"""How a site gets in: an invitation, a certificate request, a person's approval, a certificate.

The private key is made at the site and never travels. The administrator approves after comparing the phrase of the
request's fingerprint with the one the site shows, on the telephone say: that ties the request to the people. An
invitation, an approval and a revocation are signed by an admin. Without that nobody gets in, and who is out stays out.
Enrolment has its own port with server TLS alone, because a site has no certificate yet.
"""

import datetime
import json
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

import grpc
from cryptography.x509 import CertificateSigningRequest

from common.errors import ConfigError, EnrolmentError
from common.identity import certificates
from common.identity.invitation import Invitation
from common.identity.operators import Act, public_bytes
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import receipt_key_of, request_digest
from common.system.files import write_private
from common.wire import wardround_pb2, wardround_pb2_grpc
from server.gateway.interceptor import address_of
from server.gateway.refusals import Refusals
from server.home.folder import Home
from server.home.root import root_credentials
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.operators import Signer
from server.registry.registry import Registry
from server.registry.sites import Site, about_invitation, check_name

INVITATION_LIFETIME = datetime.timedelta(hours=24)

# Longest time a Collect call is held.
_MAX_WAIT_S = 30.0
_LOOK_EVERY_S = 0.5
# As in server/federation/events.py, which is not for this process: a run could not tell such a site from its means.
_OF_ALL = "overall"

_log = logging.getLogger(__name__)


def invite(home: Home, registry: Registry, site: str, by: Signer | None = None) -> Invitation:
    """Make an invitation for one site. It is also written to the home's invitations folder.

    Args:
        home: the coordinator's.
        registry: its registry.
        site: the site's name.
        by: an admin; None: the one whom `init` made, with the key in the home.

    Raises:
        ConfigError: the name is not allowed.
        EnrolmentError: the site is active already.
    """
    if site == _OF_ALL:
        raise ConfigError(f"{site} stands for all sites together in the records of runs. Name it otherwise: st-mary.")
    expires = certificates.now() + INVITATION_LIFETIME
    invitation = Invitation(
        site=check_name(site),
        token=secrets.token_hex(16),
        root_pem=home.root_pem.decode(),
        enrolment=home.enrolment_address,
        gateway=home.gateway_address,
        log_key=public_bytes(home.log_key).hex(),
        expires=expires.isoformat(timespec="seconds"),
    )
    by = by or operators.acting(home, registry, "invite")

    def put(act: Act) -> Invitation:
        registry.invite(site, invitation.token, expires, act)
        write_private(home.invitation(site), invitation.to_text().encode())
        return invitation

    return operators.carry_out(home, by, about_invitation(site, invitation.token, expires), put, only="invite")


def approve(home: Home, registry: Registry, site: str, passphrase: str | None = None, by: Signer | None = None) -> None:
    """Sign a pending site's request, or an active site's renewal; from then on the certificate opens the door.

    Args:
        home: the coordinator's.
        registry: its registry.
        site: the site's name.
        passphrase: of a sealed root key; see `root_credentials`.
        by: an admin; None: the one whom `init` made, with the key in the home.

    Raises:
        EnrolmentError: the site has asked for nothing.
        ConfigError: the root key does not open.
    """
    _sign(home, registry, site, passphrase, by or operators.acting(home, registry, "approve"))


def await_request(registry: Registry, site: str, tell: Callable[[str], None]) -> None:
    """Wait for an invited site to ask, as long as its invitation is open.

    Raises:
        EnrolmentError: the site is unknown, or its invitation has expired.
    """
    told = False
    while registry.site(site).state == "invited":
        if not registry.is_expecting():
            raise EnrolmentError(
                f"the invitation of {site} has expired. Invite it again: `wardround-server invite {site}`"
            )
        if not told:
            tell(f"Waiting for {site} to ask (there: `wardround-client join FILE`). Ctrl-C ends.")
            told = True
        time.sleep(_LOOK_EVERY_S)


def revoke(home: Home, registry: Registry, site: str, by: Signer) -> None:
    """Shut a site out, now. That comes first, should the log be unwritable.

    Raises:
        EnrolmentError: unknown.
    """
    fingerprint = registry.site(site).fingerprint
    operators.carry_out(home, by, (site,), lambda act: registry.revoke(site, act), only="revoke")
    open_log(home).append("revoked", {"site": site} | ({"certificate": fingerprint} if fingerprint else {}))


def renew(home: Home, registry: Registry, site: str, csr_pem: bytes) -> bytes | None:
    """The next certificate (PEM: leaf, root) of an active site that asks over its present one.

    Returns:
        None while it waits for a person, because the root key is sealed.

    Raises:
        EnrolmentError: the request is not the site's own.
    """
    new = certificates.check_csr(csr_pem, site)
    known = registry.site(site)
    if known.certificate is not None:
        current = certificates.load_certificate(known.certificate)
        if current.public_key() == new.public_key():
            return known.certificate + home.root_pem  # signed meanwhile, or the answer was lost
    registry.ask_renewal(site, csr_pem)
    try:
        _sign(home, registry, site, None, None)
    except ConfigError:
        _log.warning("site %s asks to renew; the root key is sealed: `wardround-server approve %s`", site, site)
        return None
    return (registry.site(site).certificate or b"") + home.root_pem


def redeem_file(home: Home, registry: Registry, text: bytes, by: Signer | None = None) -> str:
    """Take a site's request that came as a file.

    Args:
        home: the coordinator's.
        registry: its registry.
        text: the file.
        by: an admin; None: the one whom `init` made, with the key in the home.

    Returns:
        The site's name.

    Raises:
        EnrolmentError: not a request, or its invitation is not open.
    """
    try:
        values = json.loads(text)
        site, token, csr_pem = (str(values[name]) for name in ("site", "token", "csr_pem"))
        receipt_key, proof = (bytes.fromhex(values[name]) for name in ("receipt_key", "proof"))
    except (ValueError, KeyError, TypeError) as error:
        raise EnrolmentError(
            "the file is no request to join. Use the one that `wardround-client join --request` wrote."
        ) from error
    registry.site(site)  # known, or there is nothing to enter
    by = by or operators.acting(home, registry, "enrol")
    put = partial(registry.redeem, site, token, csr_pem.encode(), receipt_key, proof)
    operators.carry_out(home, by, (site,), lambda _act: put(), only="enrol")
    return site


def phrase_of(site: Site) -> str:
    """What the administrator compares with the site before approving; empty when there is no request."""
    return as_phrase(site.request_sha256) if site.request_sha256 else ""


def _asks_nothing(site: Site) -> str:
    """Why there is no request of a site, and what to do."""
    match site.state:
        case "invited":
            return (
                "it has not used its invitation yet. There: `wardround-client join FILE`. Then compare the phrase "
                f"(`wardround-server requests`) and approve it. `wardround-server approve {site.name} --wait` waits."
            )
        case "active":
            return "it is active already, and asks for no renewal."
        case "revoked":
            return f"it is revoked. To let it back in: `wardround-server invite {site.name}`"
    return f"it is {site.state}. See `wardround-server requests`."


def _sign(home: Home, registry: Registry, site: str, passphrase: str | None, by: Signer | None) -> None:
    """Sign what a site asks for. An active site's renewal needs no operator: its present certificate vouches for it."""
    request = registry.site(site)
    csr_pem = request.csr if request.state == "pending" else request.renewal
    if csr_pem is None or (request.state != "active" and by is None):
        raise EnrolmentError(f"site {site} cannot be approved: {_asks_nothing(request)}")
    csr = certificates.check_csr(csr_pem, site)
    receipt_key = _receipt_key(home, request, csr)
    root_key, root = root_credentials(home, passphrase)
    signed = certificates.site_certificate(csr, site, root, root_key, receipt_key)
    certificate, key = certificates.to_pem(signed), receipt_key.hex()
    about = {"site": site, "certificate": certificates.fingerprint(signed)}
    # The log has it before the registry says so; else the gateway would not believe the registry.

    def put(act: Act | None) -> None:
        if request.state == "pending":
            open_log(home).append("enrolled", about | {"key": key, "coordinator-key": public_bytes(home.log_key).hex()})
            registry.activate(
                site, certificate, home.node_keys.seal(certificates.key_to_pem(certificates.new_key()), site), act
            )
            home.invitation(site).unlink(missing_ok=True)
        else:
            open_log(home).append("renewed", about)
            registry.renew(site, certificate, knows_successor=bool(home.successor_pem))

    # The log has it before the registry says so; else the gateway would not believe the registry.
    if by is None:
        put(None)
    else:
        operators.carry_out(home, by, (site, about["certificate"], key), put, only="approve")


def _receipt_key(home: Home, site: Site, csr: CertificateSigningRequest) -> bytes:
    """The key that the root is to vouch for: the one whose phrase was compared, from then on the present certificate's.

    Raises:
        EnrolmentError: the registry names another one.
    """
    if site.state != "pending":
        key = receipt_key_of(site.certificate or b"", home.trusted_roots_pem, site.name)
        fits = key == site.receipt_key
    else:
        key = site.receipt_key or b""
        fits = request_digest(csr, key) == site.request_sha256
    if not fits:
        raise EnrolmentError(
            f"the registry names another receipt key for site {site.name} than the one that was compared with the "
            "site. Somebody has altered it. Find out who, then revoke the site and invite it anew."
        )
    return key


class EnrolmentService(wardround_pb2_grpc.EnrolmentServicer):
    """The gRPC service behind the enrolment port."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self._home = home
        self._registry = registry
        self._refused = Refusals(open_log(home), registry)

    def Enrol(  # noqa: N802 - the name in the protocol
        self, request: wardround_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.EnrolReply:
        """Redeem the token with a certificate request."""
        try:
            self._registry.redeem(request.site, request.token, request.csr_pem, request.receipt_key, request.proof)
        except EnrolmentError as error:
            _log.warning("enrolment of %r from %s refused: %s", request.site[:64], context.peer(), error)
            self._refused(address_of(context), "unauthenticated")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        _log.info("site %s asks to join", request.site)
        return wardround_pb2.EnrolReply()

    def Collect(  # noqa: N802
        self, request: wardround_pb2.CollectRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.CollectReply:
        """Signer out the certificate to whoever knows the request's fingerprint; a certificate is no secret."""
        deadline = time.monotonic() + min(request.wait_s, _MAX_WAIT_S)
        while True:
            reply = self._decision(request)
            remaining = deadline - time.monotonic()
            if reply.state == wardround_pb2.CollectReply.REFUSED:
                _log.warning("nothing to collect for %r from %s", request.site[:64], context.peer())
                self._refused(address_of(context), "permission-denied")
            if reply.state != wardround_pb2.CollectReply.PENDING or remaining <= 0 or not context.is_active():
                return reply
            time.sleep(min(_LOOK_EVERY_S, remaining))

    def _decision(self, request: wardround_pb2.CollectRequest) -> wardround_pb2.CollectReply:
        try:
            site = self._registry.site(request.site)
        except EnrolmentError:
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
        if site.request_sha256 != request.request_sha256 or not request.request_sha256:
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
        if site.state == "pending":
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.PENDING)
        if site.state == "active" and site.certificate is not None:
            self._registry.collected(site.name)
            return wardround_pb2.CollectReply(
                state=wardround_pb2.CollectReply.APPROVED, certificate_pem=site.certificate + self._home.root_pem
            )
        return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
