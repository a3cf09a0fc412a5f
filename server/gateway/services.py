"""The only door for hospitals: Flower's Fleet service and our Coordination service behind mutual TLS.

Every call is authorised anew: certificate -> active site -> allowed method -> the site's own node id in the message.
So a revoked site is refused at its next call, on open connections too. Answers an agent must know:

    PERMISSION_DENIED    not an active site, not your node id, or a method that is not for sites
    ABORTED              the coordinator restarted and lost the thread: call ActivateNode again, then pull
    FAILED_PRECONDITION  the run has ended, or the request does not fit its state: drop the message
    INVALID_ARGUMENT     the reply is malformed
    UNAVAILABLE          the SuperLink is starting: try again

PullMessages is held up to 20 s. While no run is live nobody looks at the SuperLink; then the strategy's hints (see
common/system/wakeup.py) say when to look, with a slow poll as the safety net. A held call is authorised anew when the
registry changes (server/gateway/change_notifier.py).
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import NoReturn, TypeVar, cast

import grpc
import httpx
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fleet_pb2_grpc import FleetServicer

from common.console.logs import Trouble
from common.errors import AuditError, ConfigError, EnrolmentError, ErrorCode, FederationError, UpdateError
from common.identity import certificates
from common.identity.operators import Act
from common.system.wakeup import poke_strategies
from common.wire import clock, wardround_pb2, wardround_pb2_grpc
from server.gateway import deliveries, enrolment
from server.gateway.change_notifier import ChangeNotifier
from server.gateway.deliveries import Deliveries
from server.gateway.interceptor import site_of
from server.gateway.limits import DENIALS, DENIALS_PER_S, Notes, unwritten
from server.gateway.node_proxy import NodeProxy
from server.gateway.objects import Objects
from server.gateway.refusals import Refusals
from server.home.folder import Home, read_nodes, write_nodes
from server.registry.audit_trail import ConflictError, GatewayTrail, UnknownUpdateError
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.registry.sites import Presence, Site

PULL_WAIT_S = 20.0
# Longest time a ListProposals call is held.
LIST_WAIT_S = 30.0
# An agent that has not called for this long is gone; its long polls alone call three times as often.
SILENCE_S = 60.0
# One whose connection broke while it held a call is gone sooner, unless it calls again by then.
GONE_S = 3.0
# Without a hint, a waiting site looks this often while a run is live.
LOOK_EVERY_S = 1.0
# Closed runs that are still listed, so that agents learn of their end.
_CLOSED_LISTED = 20
_VOID = "the node id is void since a restart. Call ActivateNode again."

ReplyType = TypeVar("ReplyType")

_log = logging.getLogger(__name__)


class Gateway(FleetServicer, wardround_pb2_grpc.CoordinationServicer):
    """Both services, and the proxies of the sites that are here."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self._home = home
        self._registry = registry
        self._objects = Objects()
        self._deliveries = Deliveries(home.flower / deliveries.NAME)
        self._proxies: dict[str, NodeProxy] = {}
        self._lock = threading.Lock()
        self._notifier = ChangeNotifier(registry)
        self._hints = 0
        self._gone: dict[str, float] = {}  # site -> when a call that it held broke, in time.monotonic()
        self._notes = Notes(DENIALS_PER_S, DENIALS, time.monotonic)
        self._trouble = Trouble(_log)
        self._trail = GatewayTrail(home, registry)
        self.refused = Refusals(self._trail.log, registry)
        self._live_runs: set[int] = set()
        # Ids given out before this process started are void, but nobody's fault.
        self._nodes = dict(read_nodes(home))
        registry.nobody_is_here()
        self._take_over()

    # Flower's Fleet service

    def ActivateNode(  # noqa: N802 - the names in the protocol, here and below
        self, _request: fleet_pb2.ActivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ActivateNodeResponse:
        """The site's agent is here. The Flower key in the request is not used: the gateway holds the site's."""
        site = self._authorise(context)
        context.send_initial_metadata(clock.stamp())
        self._compare_clocks(site, clock.sent(context.invocation_metadata()))
        proxy = self._proxy(site)
        node_id = self._relay(context, proxy.activate)
        self._publish(site.name, node_id)
        self._registry.set_presence(site.name, Presence.HERE)
        poke_strategies(self._home.path)
        _log.info("site %s is here as node %d", site.name, node_id)
        return fleet_pb2.ActivateNodeResponse(node_id=node_id)

    def DeactivateNode(  # noqa: N802
        self, request: fleet_pb2.DeactivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.DeactivateNodeResponse:
        """The site's agent says goodbye."""
        self._let_go(self._present(context, request.node_id), "says goodbye", Presence.LEFT)
        return fleet_pb2.DeactivateNodeResponse()

    def SendNodeHeartbeat(  # noqa: N802
        self, request: heartbeat_pb2.SendNodeHeartbeatRequest, context: grpc.ServicerContext
    ) -> heartbeat_pb2.SendNodeHeartbeatResponse:
        """Any call counts as a sign of life; the gateway beats at the SuperLink itself."""
        self._present(context, request.node.node_id)
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def PullMessages(  # noqa: N802
        self, request: fleet_pb2.PullMessagesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.PullMessagesResponse:
        """The next message, held until there is one."""
        proxy = self._present(context, request.node.node_id)
        deadline = time.monotonic() + PULL_WAIT_S
        turn, known, looked = proxy.next_turn(), -1, 0.0
        self._notifier.notify(proxy.site)
        with self._notifier.held(context, proxy.site) as news:
            while True:
                news.clear()
                # A newer call of the same site ends this one: a message must not go to a caller who has gone.
                if not context.is_active() or proxy.turn != turn:
                    break
                self._present(context, request.node.node_id)
                hints, live = self._hints, bool(self._live_runs)
                response = proxy.undelivered()
                if response is None and live and (hints != known or time.monotonic() - looked >= LOOK_EVERY_S):
                    known, looked = hints, time.monotonic()
                    response = self._relay(context, proxy.pull)
                remaining = deadline - time.monotonic()
                if response is not None or remaining <= 0:
                    return response or fleet_pb2.PullMessagesResponse()
                news.wait(min(LOOK_EVERY_S, remaining) if live else remaining)
        if context.is_active():  # who has gone, to come back with a renewed certificate say, is not refused
            self._authorise(context)
        else:
            self._gone[proxy.site] = time.monotonic()
        return fleet_pb2.PullMessagesResponse()

    def PullObject(  # noqa: N802
        self, request: message_pb2.PullObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PullObjectResponse:
        """One object of a message that was pulled."""
        proxy = self._present(context, request.node.node_id)
        response = self._relay(context, lambda: proxy.pull_object(request))
        if not response.object_found:
            self._note(context, f"object {request.object_id[:16]!r} of run {request.run_id} is not for it, or gone")
        return response

    def ConfirmMessageReceived(  # noqa: N802
        self, request: message_pb2.ConfirmMessageReceivedRequest, context: grpc.ServicerContext
    ) -> message_pb2.ConfirmMessageReceivedResponse:
        """The site has all of the message."""
        self._present(context, request.node.node_id).confirm(request.message_object_id)
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(  # noqa: N802
        self, request: fleet_pb2.PushMessagesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.PushMessagesResponse:
        """Announce a reply; all of its objects are wanted."""
        proxy = self._present(context, request.node.node_id)
        return self._relay(context, lambda: proxy.begin_reply(request))

    def PushObject(  # noqa: N802
        self, request: message_pb2.PushObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PushObjectResponse:
        """One object of the reply; the last one sends it on."""
        proxy = self._present(context, request.node.node_id)
        response, complete = self._relay(context, lambda: proxy.add_object(request))
        if complete:
            poke_strategies(self._home.path)
        return response

    def GetRun(  # noqa: N802
        self, request: run_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> run_pb2.GetRunResponse:
        """What the SuperLink says about a run of which the site holds a message."""
        proxy = self._present(context, request.node.node_id)
        if not proxy.is_asked_by(request.run_id):
            self._deny(context, f"run {request.run_id} has sent this site nothing")
        return self._relay(context, lambda: proxy.get_run(request.run_id))

    def RegisterNode(  # noqa: N802
        self, _request: fleet_pb2.RegisterNodeFleetRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        """Not for sites: nodes are registered by the gateway."""
        self._deny(context, "RegisterNode is not for sites")

    def UnregisterNode(  # noqa: N802
        self, _request: fleet_pb2.UnregisterNodeFleetRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        """Not for sites."""
        self._deny(context, "UnregisterNode is not for sites")

    def GetFab(self, _request: fab_pb2.GetFabRequest, context: grpc.ServicerContext) -> NoReturn:  # noqa: N802
        """Not for sites: a bundle comes as a proposal and is approved by its hash."""
        self._deny(context, "GetFab is not for sites")

    # Coordination

    def ListProposals(  # noqa: N802
        self, request: wardround_pb2.ListProposalsRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.ListProposalsReply:
        """The open runs and those closed lately, held until something is newer than the caller knows."""
        deadline = time.monotonic() + min(request.wait_s, LIST_WAIT_S)
        site = self._authorise(context)
        self._gone.pop(site.name, None)
        with self._notifier.held(context, site.name) as news:
            revision = self._registry.revision()
            while context.is_active():
                news.clear()
                site = self._authorise(context)
                if site.name in self._proxies:
                    self._proxies[site.name].last_seen = time.monotonic()
                revision = self._registry.revision()
                remaining = deadline - time.monotonic()
                if revision != request.revision or remaining <= 0:
                    break
                news.wait(remaining)
        if not context.is_active():
            self._gone[site.name] = time.monotonic()
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
        """The hospital approves or denies a run, or says that its policy does not allow it."""
        site = self._authorise(context)
        code = request.code if request.code in list(ErrorCode) and not request.approved else ""
        try:
            if self._registry.answer(request.run_hash, site.name, approved=request.approved, code=code):
                about = {"run": request.run_hash, "site": site.name}
                if code:
                    self._trail.log.append("refusal", about | {"code": code})
                else:
                    self._trail.log.append("approved" if request.approved else "denied", about)
        except FederationError as error:
            self._note(context, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        said = "approves" if request.approved else f"refuses ({code})" if code else "denies"
        _log.info("site %s %s run %s", site.name, said, request.run_hash[:8])
        return wardround_pb2.AnswerProposalReply()

    def Renew(  # noqa: N802
        self, request: wardround_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.RenewReply:
        """A site's next certificate, and the next root if there is one."""
        site = self._authorise(context)
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
        site = self._authorise(context)
        try:
            signature = self._trail.countersign(site, request.receipt, request.signature)
        except UnknownUpdateError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except AuditError as error:
            self._note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return wardround_pb2.SubmitReceiptReply(signature=signature)

    def ExchangeCheckpoints(  # noqa: N802
        self, request: wardround_pb2.ExchangeCheckpointsRequest, context: grpc.ServicerContext
    ) -> wardround_pb2.ExchangeCheckpointsReply:
        """Both logs show that they only grew. DATA_LOSS: the site's did not."""
        site = self._authorise(context)
        try:
            return self._trail.exchange(site, request)
        except ConflictError as error:
            _log.error("audit conflict with site %s: %s", site.name, error)
            context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except AuditError as error:
            self._note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    # For the process that runs it

    def authorise(self, context: grpc.ServicerContext) -> None:
        """End the call unless an active site makes it."""
        self._authorise(context)

    def close(self) -> None:
        """Let go of files and connections; the sites keep their nodes for the next start."""
        self._notifier.close()
        for proxy in self._proxies.values():
            proxy.close()
        self._deliveries.close()

    def hint(self) -> None:
        """There may be messages: let every held PullMessages look."""
        self._hints += 1
        self._notifier.notify()

    def keep_house(self, live_runs: set[int]) -> None:
        """Every second or so: beat for the sites that are here, let go of those that are not.

        Args:
            live_runs: Flower's ids of the runs going on; messages of others are dropped.
        """
        if live_runs != self._live_runs:
            self._deliveries.keep_only(live_runs)
            self._live_runs = live_runs
            self._notifier.notify()
        if not live_runs:
            self._objects.clear()
        active = {site.name: site for site in self._registry.sites() if site.state == "active"}
        self._deliveries.save()
        for name, proxy in list(self._proxies.items()):
            try:
                if name not in active:
                    del self._proxies[name]
                    self._let_go(proxy, "was revoked", Presence.AWAY)
                    proxy.shut_out()
                    continue
                with proxy.presence:  # a call that comes just now is not overlooked
                    if proxy.present and time.monotonic() - proxy.last_seen > SILENCE_S:
                        self._let_go(proxy, "is silent", Presence.AWAY)
                    elif proxy.present and self._has_gone(name):
                        self._let_go(proxy, "has gone without a word", Presence.AWAY)
                # Who is away stays online at the SuperLink: what it was asked waits for it.
                if not proxy.beat() and proxy.present:
                    # A new SuperLink does not know the node; the agent's next call is told to activate again.
                    self._let_go(proxy, "must activate again", Presence.AWAY)
            except httpx.HTTPError as error:
                self._trouble.say(f"the SuperLink does not answer for site {name}: {error}")
        self._trouble.settle()

    def _has_gone(self, site: str) -> bool:
        """Whether its connection broke a while ago, and it has not called since and holds no other call."""
        since = self._gone.get(site)
        return since is not None and time.monotonic() - since > GONE_S and self._notifier.calls(site) == 0

    def _take_over(self) -> None:
        """Keep the nodes of all sites online from the start: what they were asked waits for them."""
        for site in self._registry.sites():
            if site.state == "active" and site.name in self._nodes.values():
                try:
                    self._proxy(site)
                except ConfigError as error:
                    _log.error("site %s: %s", site.name, error)

    def _let_go(self, proxy: NodeProxy, why: str, presence: Presence) -> None:
        _log.warning("site %s %s", proxy.site, why)
        proxy.leave()
        self._registry.set_presence(proxy.site, presence)
        self._notifier.notify(proxy.site)
        poke_strategies(self._home.path)

    def _compare_clocks(self, site: Site, theirs: float | None) -> None:
        """Tell how far a site's clock is from ours; `doctor` does so, too."""
        ahead_s = None if theirs is None else theirs - time.time()
        if not clock.is_well(ahead_s):
            _log.warning("the clock of site %s is %s", site.name, clock.in_words(ahead_s, "this host's"))
        self._registry.set_clock(site.name, ahead_s)

    def _authorise(self, context: grpc.ServicerContext) -> Site:
        certificates = context.auth_context().get("x509_pem_cert")
        if not certificates:
            self._deny(context, "no certificate")
        fingerprint = _fingerprint(cast(list[bytes], certificates)[0])
        site = self._registry.active_site(fingerprint)
        if site is None:
            self._deny(context, f"certificate {fingerprint[:16]} is not of an active site")
        return site

    def _present(self, context: grpc.ServicerContext, node_id: int) -> NodeProxy:
        """Authorise, and hold the caller to its own node id."""
        site = self._authorise(context)
        proxy = self._proxy(site)
        if node_id != proxy.node_id or node_id == 0:
            if node_id and (node_id in proxy.former_ids or self._nodes.get(node_id) == site.name):
                context.abort(grpc.StatusCode.ABORTED, _VOID)
            self._deny(context, f"site {site.name} used node id {node_id}, which is not its own")
        with proxy.presence:
            if not proxy.present:
                if not self._relay(context, proxy.return_):
                    context.abort(grpc.StatusCode.ABORTED, _VOID)
                self._registry.set_presence(site.name, Presence.HERE)
                poke_strategies(self._home.path)
                _log.info("site %s is here again", site.name)
            proxy.last_seen = time.monotonic()
            self._gone.pop(site.name, None)
        return proxy

    def _proxy(self, site: Site) -> NodeProxy:
        sealed = site.node_key or b""
        with self._lock:
            proxy = self._proxies.get(site.name)
            if proxy is None or not proxy.is_for(sealed):
                key = self._home.node_keys.open(sealed, site.name)
                last_id = next((node for node, name in reversed(self._nodes.items()) if name == site.name), 0)
                arrived, shared = self._trail.arrived, (self._objects, self._deliveries)
                proxy = NodeProxy(
                    site.name, key, self._home.superlink, *shared, last_id=last_id, arrived=arrived, identity=sealed
                )
                self._proxies[site.name] = proxy
            return proxy

    def _publish(self, site: str, node_id: int) -> None:
        with self._lock:
            if self._nodes.get(node_id) != site:
                self._nodes[node_id] = site
                write_nodes(self._home, self._nodes)

    def _relay(self, context: grpc.ServicerContext, call: Callable[[], ReplyType]) -> ReplyType:
        """Do it, and put failures into the codes the module's docstring lists."""
        try:
            return call()
        except FederationError as error:
            self._note(context, error)
            context.abort(grpc.StatusCode.ABORTED, str(error))
        except AuditError as error:
            self._trouble.say(f"nothing is taken that cannot be recorded: {error}")
            context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write its audit log")
        except UpdateError as error:
            self._note(context, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except httpx.HTTPStatusError as error:
            _log.warning("the SuperLink refused %s: %s", error.request.url.path, error.response.text[:500])
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                context.abort(grpc.StatusCode.ABORTED, _VOID)
            if error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the SuperLink failed")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the run has ended, or the request is out of order")
        except httpx.TransportError as error:
            _log.warning("the SuperLink does not answer: %s", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the SuperLink does not answer")

    def _deny(self, context: grpc.ServicerContext, why: str) -> NoReturn:
        self._note(context, why)
        self.refused(site_of(context), "permission-denied")
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "this site may not do that. See the coordinator's log.")
        raise AssertionError("abort raises")

    def _note(self, context: grpc.ServicerContext, why: object) -> None:
        site = site_of(context)
        silent = self._notes.write(site)
        if silent is not None:
            # Words of the caller's may be in it; it stays one line.
            line = " ".join(str(why).split())
            _log.warning("denied: %s: %s (%s)%s", site, line, context.peer(), unwritten(silent))


@lru_cache(1024)
def _fingerprint(certificate_pem: bytes) -> str:
    return certificates.fingerprint(certificates.load_certificate(certificate_pem))


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
    )
