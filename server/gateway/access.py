"""Who may call the gateway, and what a call is told that may not, or fails.

Every call is authorised anew: certificate -> active site. So a revoked site is refused at its next call, on open
connections too. Answers an agent must know:

    PERMISSION_DENIED    not an active site, not your node id, or a method that is not for sites
    ABORTED              the coordinator restarted and lost the thread: call ActivateNode again, then pull
    FAILED_PRECONDITION  the run has ended, or the request does not fit its state: drop the message
    INVALID_ARGUMENT     the reply is malformed
    UNAVAILABLE          the SuperLink is starting: try again
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn, TypeVar, cast

import grpc
import httpx

from common.console.logs import Trouble
from common.errors import AuditError, FederationError, UpdateError
from common.identity import certificates
from server.gateway.interceptor import site_of
from server.gateway.limits import DENIALS, DENIALS_PER_S, Notes, unwritten
from server.gateway.refusals import Refusals
from server.registry.registry import Registry
from server.registry.sites import Site

VOID = "the node id is void since a restart. Call ActivateNode again."

ReplyType = TypeVar("ReplyType")

_log = logging.getLogger(__name__)


class Access:
    """Lets active sites in, and says no to all others. For all threads of a gateway."""

    def __init__(self, registry: Registry, refused: Refusals, trouble: Trouble) -> None:
        self._registry = registry
        self._refused = refused
        self._trouble = trouble
        self._notes = Notes(DENIALS_PER_S, DENIALS, time.monotonic)

    def authorise(self, context: grpc.ServicerContext) -> Site:
        """The active site that makes this call; ends the call where there is none."""
        certificates = context.auth_context().get("x509_pem_cert")
        if not certificates:
            self.deny(context, "no certificate")
        fingerprint = _fingerprint(cast(list[bytes], certificates)[0])
        site = self._registry.active_site(fingerprint)
        if site is None:
            self.deny(context, f"certificate {fingerprint[:16]} is not of an active site")
        return site

    def deny(self, context: grpc.ServicerContext, why: str) -> NoReturn:
        """End the call: this site may not do that. The caller does not learn why; log and audit log do."""
        self.note(context, why)
        self._refused(site_of(context), "permission-denied")
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "this site may not do that. See the coordinator's log.")
        raise AssertionError("abort raises")

    def note(self, context: grpc.ServicerContext, why: object) -> None:
        """A line in the log about this call, unless there were many of its site."""
        site = site_of(context)
        silent = self._notes.write(site)
        if silent is not None:
            # Words of the caller's may be in it; it stays one line.
            line = " ".join(str(why).split())
            _log.warning("denied: %s: %s (%s)%s", site, line, context.peer(), unwritten(silent))

    def relay(self, context: grpc.ServicerContext, call: Callable[[], ReplyType]) -> ReplyType:
        """Do it, and put failures into the codes the module's docstring lists."""
        try:
            return call()
        except FederationError as error:
            self.note(context, error)
            context.abort(grpc.StatusCode.ABORTED, str(error))
        except AuditError as error:
            self._trouble.say(f"nothing is taken that cannot be recorded: {error}")
            context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write its audit log")
        except UpdateError as error:
            self.note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except httpx.HTTPStatusError as error:
            _log.warning("the SuperLink refused %s: %s", error.request.url.path, error.response.text[:500])
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                context.abort(grpc.StatusCode.ABORTED, VOID)
            if error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the SuperLink failed")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the run has ended, or the request is out of order")
        except httpx.TransportError as error:
            _log.warning("the SuperLink does not answer: %s", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the SuperLink does not answer")


@lru_cache(1024)
def _fingerprint(certificate_pem: bytes) -> str:
    return certificates.fingerprint(certificates.load_certificate(certificate_pem))
