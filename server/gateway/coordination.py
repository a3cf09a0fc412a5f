"""Our Coordination service for hospitals: runs and answers to them, certificates, receipts, checkpoints of the logs.

ListProposals is held while there is nothing newer, and authorised anew when the registry changes.
"""

import logging
import time
from hashlib import sha256

import grpc

from common.errors import AuditError, EnrolmentError, ErrorCode, FederationError
from common.identity.operators import Act
from common.wire import wardround_pb2, wardround_pb2_grpc
from common.wire.endings import ending_to_proto
from server.gateway import enrolment
from server.gateway.access import Access
from server.gateway.nodes import Nodes
from server.home.folder import Home
from server.registry.audit_trail import ConflictError, GatewayTrail, UnknownUpdateError
from server.registry.proposals import Proposal
from server.registry.registry import Registry

# Longest time a ListProposals call is held.
LIST_WAIT_S = 30.0
# Closed runs that are still listed, so that agents learn of their end.
_CLOSED_LISTED = 20

_log = logging.getLogger(__name__)


class CoordinationService(wardround_pb2_grpc.CoordinationServicer):
    """What an agent calls beside Flower's service."""

    def __init__(self, home: Home, registry: Registry, access: Access, nodes: Nodes, trail: GatewayTrail) -> None:
        self._home = home
        self._registry = registry
        self._access = access
        self._nodes = nodes
        self._trail = trail

    def ListProposals(  # noqa: N802 - the names in the protocol, here and below
        self, request: wardround_pb2.ListProposalsRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.ListProposalsReply:
        """The open runs and those closed lately, held until something is newer than the caller knows."""
        deadline = time.monotonic() + min(request.wait_s, LIST_WAIT_S)
        site = self._access.authorise(context)
        self._nodes.called(site.name)
        with self._nodes.notifier.held(context, site.name) as news:
            revision = self._registry.revision()
            while context.is_active():
                news.clear()
                site = self._access.authorise(context)
                self._nodes.seen(site.name)
                revision = self._registry.revision()
                remaining = deadline - time.monotonic()
                if revision != request.revision or remaining <= 0:
                    break
                news.wait(remaining)
        if not context.is_active():
            self._nodes.broke_off(site.name)
        proposals = self._registry.proposals()
        listed = [one for one in proposals if one.open] + [one for one in proposals if not one.open][:_CLOSED_LISTED]
        return wardround_pb2.ListProposalsReply(
            revision=revision,
            proposals=[_to_proto(one) for one in listed],
            removals=[_removal(*one) for one in self._registry.removals()],
        )

    def AnswerProposal(  # noqa: N802
        self, request: wardround_pb2.AnswerProposalRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.AnswerProposalReply:
        """The hospital approves or denies a run, or says that its policy does not allow it, or does so again."""
        site = self._access.authorise(context)
        code = request.code if request.code in list(ErrorCode) and not request.approved else ""
        try:
            if request.withdrawn:
                if self._registry.withdraw_refusal(request.run_hash, site.name):
                    _log.info("the policy of site %s refuses run %s no more", site.name, request.run_hash[:8])
                return wardround_pb2.AnswerProposalReply()
            if self._registry.answer(request.run_hash, site.name, approved=request.approved, code=code):
                about = {"run": request.run_hash, "site": site.name}
                if code:
                    self._trail.log.append("refusal", about | {"code": code})
                else:
                    self._trail.log.append("approved" if request.approved else "denied", about)
        except FederationError as error:
            self._access.note(context, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        said = "approves" if request.approved else f"refuses ({code})" if code else "denies"
        _log.info("site %s %s run %s", site.name, said, request.run_hash[:8])
        return wardround_pb2.AnswerProposalReply()

    def Renew(  # noqa: N802
        self, request: wardround_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.RenewReply:
        """A site's next certificate, and the next root if there is one."""
        site = self._access.authorise(context)
        try:
            certificate = enrolment.renew(self._home, self._registry, site.name, request.csr_pem)
        except EnrolmentError as error:
            _log.warning("renewal of %s refused: %s", site.name, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if certificate is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the renewal waits for the coordinator's approval")
        return wardround_pb2.RenewReply(certificate_pem=certificate, successor_pem=self._home.successor_pem)

    def SubmitReceipt(  # noqa: N802
        self, request: wardround_pb2.SubmitReceiptRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.SubmitReceiptReply:
        """The coordinator's signature under a site's receipt. NOT_FOUND: its update has not arrived."""
        site = self._access.authorise(context)
        try:
            signature = self._trail.countersign(site, request.receipt, request.signature)
        except UnknownUpdateError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except AuditError as error:
            self._access.note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return wardround_pb2.SubmitReceiptReply(signature=signature)

    def ExchangeCheckpoints(  # noqa: N802
        self, request: wardround_pb2.ExchangeCheckpointsRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.ExchangeCheckpointsReply:
        """Both logs show that they only grew. DATA_LOSS: the site's did not."""
        site = self._access.authorise(context)
        try:
            return self._trail.exchange(site, request)
        except ConflictError as error:
            _log.error("audit conflict with site %s: %s", site.name, error)
            context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except AuditError as error:
            self._access.note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _to_proto(proposal: Proposal) -> wardround_pb2.Proposal:
    act = proposal.resumption
    return wardround_pb2.Proposal(
        run_hash=proposal.run_hash,
        bundle=proposal.bundle,
        bundle_sha256=sha256(proposal.bundle).hexdigest(),
        open=proposal.open,
        endorsements=[
            wardround_pb2.Endorsement(
                certificate_pem=one.certificate_pem, signature=one.signature, signed_at=one.signed_at
            )
            for one in proposal.endorsements
        ],
        resumption=None if act is None else _resumption(act),
        ending=None if proposal.ending is None else ending_to_proto(proposal.ending),
    )


def _resumption(act: Act) -> wardround_pb2.Resumption:
    return wardround_pb2.Resumption(
        certificate_pem=act.certificate_pem, signed_at=act.signed_at, nonce=act.nonce, signature=act.signature
    )


def _removal(certificate_pem: bytes, act: Act) -> wardround_pb2.Removal:
    return wardround_pb2.Removal(
        certificate_pem=certificate_pem,
        admin_pem=act.certificate_pem,
        signed_at=act.signed_at,
        nonce=act.nonce,
        signature=act.signature,
    )
