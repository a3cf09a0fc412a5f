"""How a site gets in: an invitation, a certificate request, a person's approval, a certificate.

The private key is made at the site and never travels. The administrator approves after comparing the phrase of the
request's fingerprint with the one the site shows, on the telephone say: that ties the request to the people.
Enrolment has its own port with server TLS alone, because a site has no certificate yet.
"""

import datetime
import logging
import secrets
import time

import grpc

from common import pki
from common.errors import EnrolmentError
from common.wire import wardround_pb2, wardround_pb2_grpc
from server.home import Home, root_credentials
from server.registry import Registry, Site, check_name

INVITATION_LIFETIME = datetime.timedelta(hours=24)

# Longest time a Collect call is held.
_MAX_WAIT_S = 30.0
_LOOK_EVERY_S = 0.5

_log = logging.getLogger(__name__)


def invite(home: Home, registry: Registry, site: str) -> pki.Invitation:
    """Make an invitation for one site. It is also written to the home's invitations folder.

    Raises:
        ConfigError: the name is not allowed.
        EnrolmentError: the site is active already.
    """
    expires = pki.now() + INVITATION_LIFETIME
    invitation = pki.Invitation(
        site=check_name(site),
        token=secrets.token_hex(16),
        root_pem=home.root_pem.decode(),
        enrolment=home.enrolment_address,
        gateway=home.gateway_address,
        expires=expires.isoformat(timespec="seconds"),
    )
    registry.invite(site, invitation.token, expires)
    pki.write_private(home.invitation(site), invitation.to_text().encode())
    return invitation


def approve(home: Home, registry: Registry, site: str) -> None:
    """Sign a pending site's request; from then on it may work.

    Raises:
        EnrolmentError: the site is not pending.
    """
    request = registry.site(site)
    if request.csr is None or request.state != "pending":
        raise EnrolmentError(
            f"site {site} is {request.state}, only a pending one can be approved. See `wardround-server requests`."
        )
    root_key, root = root_credentials(home)
    certificate = pki.site_certificate(pki.check_csr(request.csr, site), site, root, root_key)
    registry.activate(site, pki.to_pem(certificate), pki.key_to_pem(pki.new_key()))
    home.invitation(site).unlink(missing_ok=True)


def phrase_of(site: Site) -> str:
    """What the administrator compares with the site before approving; empty when there is no request."""
    return pki.phrase(site.csr_sha256) if site.csr_sha256 else ""


class EnrolmentService(wardround_pb2_grpc.EnrolmentServicer):
    """The gRPC service behind the enrolment port."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self._root_pem = home.root_pem
        self._registry = registry

    def Enrol(  # noqa: N802 - the name in the protocol
        self, request: wardround_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.EnrolReply:
        """Redeem the token with a certificate request."""
        try:
            self._registry.redeem(request.site, request.token, request.csr_pem)
        except EnrolmentError as error:
            _log.warning("enrolment of %r from %s refused: %s", request.site[:64], context.peer(), error)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        _log.info("site %s asks to join", request.site)
        return wardround_pb2.EnrolReply()

    def Collect(  # noqa: N802
        self, request: wardround_pb2.CollectRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.CollectReply:
        """Hand out the certificate to whoever knows the request's fingerprint; a certificate is no secret."""
        deadline = time.monotonic() + min(request.wait_s, _MAX_WAIT_S)
        while True:
            reply = self._decision(request)
            remaining = deadline - time.monotonic()
            if reply.state != wardround_pb2.CollectReply.PENDING or remaining <= 0 or not context.is_active():
                return reply
            time.sleep(min(_LOOK_EVERY_S, remaining))

    def _decision(self, request: wardround_pb2.CollectRequest) -> wardround_pb2.CollectReply:
        try:
            site = self._registry.site(request.site)
        except EnrolmentError:
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
        if site.csr_sha256 != request.csr_sha256 or not request.csr_sha256:
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
        if site.state == "pending":
            return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.PENDING)
        if site.state == "active" and site.certificate is not None:
            return wardround_pb2.CollectReply(
                state=wardround_pb2.CollectReply.APPROVED, certificate_pem=site.certificate + self._root_pem
            )
        return wardround_pb2.CollectReply(state=wardround_pb2.CollectReply.REFUSED)
