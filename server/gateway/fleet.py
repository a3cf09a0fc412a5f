"""Flower's Fleet service for hospitals: each call authorised, held to the site's own node, and relayed by its proxy.

PullMessages is held up to 20 s. While no run is live nobody looks at the SuperLink; then the strategy's hints (see
common/system/wakeup.py) say for whom to look, with a slow poll as the safety net, which is the slower the more sites
there are. A held call is authorised anew when the registry changes (server/gateway/change_notifier.py).
"""

import logging
import time
from typing import NoReturn

import grpc
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fleet_pb2_grpc import FleetServicer

from common.system.wakeup import poke_strategies
from common.wire import at_work, clock, versions
from server.gateway.access import Access
from server.gateway.nodes import Nodes
from server.home.folder import Home
from server.registry.registry import Registry
from server.registry.sites import Presence, Site

PULL_WAIT_S = 20.0

_log = logging.getLogger(__name__)


class FleetService(FleetServicer):
    """What an agent calls in place of Flower's SuperLink."""

    def __init__(self, home: Home, registry: Registry, access: Access, nodes: Nodes) -> None:
        self._home = home
        self._registry = registry
        self._access = access
        self._nodes = nodes

    def ActivateNode(  # noqa: N802 - the names in the protocol, here and below
        self, _request: fleet_pb2.ActivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.ActivateNodeResponse:
        """The site's agent is here. The Flower key in the request is not used: the gateway holds the site's."""
        site = self._access.authorise(context)
        context.send_initial_metadata((*clock.stamp(), *versions.stamp()))
        self._compare_clocks(site, clock.sent(context.invocation_metadata()))
        return fleet_pb2.ActivateNodeResponse(node_id=self._nodes.activate(context, site))

    def DeactivateNode(  # noqa: N802
        self, request: fleet_pb2.DeactivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.DeactivateNodeResponse:
        """The site's agent says goodbye."""
        self._nodes.let_go(self._nodes.present(context, request.node_id), "says goodbye", Presence.LEFT)
        return fleet_pb2.DeactivateNodeResponse()

    def SendNodeHeartbeat(  # noqa: N802
        self, request: heartbeat_pb2.SendNodeHeartbeatRequest, context: grpc.ServicerContext
    ) -> heartbeat_pb2.SendNodeHeartbeatResponse:
        """What the site is at. Any call counts as a sign of life; the gateway beats at the SuperLink itself."""
        proxy = self._nodes.present(context, request.node.node_id)
        self._nodes.is_at(proxy.site, at_work.said(context.invocation_metadata()))
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def PullMessages(  # noqa: N802
        self, request: fleet_pb2.PullMessagesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.PullMessagesResponse:
        """The next message, held until there is one."""
        proxy = self._nodes.present(context, request.node.node_id)
        deadline = time.monotonic() + PULL_WAIT_S
        turn = proxy.next_turn()
        self._nodes.notifier.notify(proxy.site)
        with self._nodes.notifier.held(context, proxy.site) as news:
            while True:
                news.clear()
                # A newer call of the same site ends this one: a message must not go to a caller who has gone.
                if not context.is_active() or proxy.turn != turn:
                    break
                self._nodes.present(context, request.node.node_id)
                response, rest = proxy.undelivered(), PULL_WAIT_S
                if response is None and self._nodes.live_runs:
                    rest = proxy.look_due(self._nodes.look_every_s)
                    if rest <= 0:
                        response = self._access.relay(context, proxy.pull)
                        rest = self._nodes.look_every_s
                        if response is not None and len(self._nodes.live_runs) > 1:
                            proxy.expect()  # one came, and a hint may have told of another run's too
                remaining = deadline - time.monotonic()
                if response is not None or remaining <= 0:
                    return response or fleet_pb2.PullMessagesResponse()
                news.wait(min(rest, remaining))
        if context.is_active():  # who has gone, to come back with a renewed certificate say, is not refused
            self._access.authorise(context)
        else:
            self._nodes.broke_off(proxy.site)
        return fleet_pb2.PullMessagesResponse()

    def PullObject(  # noqa: N802
        self, request: message_pb2.PullObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PullObjectResponse:
        """One object of a message that was pulled."""
        proxy = self._nodes.present(context, request.node.node_id)
        response = self._access.relay(context, lambda: proxy.pull_object(request))
        if not response.object_found:
            self._access.note(
                context, f"object {request.object_id[:16]!r} of run {request.run_id} is not for it, or gone"
            )
        return response

    def ConfirmMessageReceived(  # noqa: N802
        self, request: message_pb2.ConfirmMessageReceivedRequest, context: grpc.ServicerContext
    ) -> message_pb2.ConfirmMessageReceivedResponse:
        """The site has all of the message."""
        self._nodes.present(context, request.node.node_id).confirm(request.message_object_id)
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(  # noqa: N802
        self, request: fleet_pb2.PushMessagesRequest, context: grpc.ServicerContext
    ) -> fleet_pb2.PushMessagesResponse:
        """Announce a reply; all of its objects are wanted."""
        proxy = self._nodes.present(context, request.node.node_id)
        return self._access.relay(context, lambda: proxy.begin_reply(request))

    def PushObject(  # noqa: N802
        self, request: message_pb2.PushObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PushObjectResponse:
        """One object of the reply; the last one sends it on."""
        proxy = self._nodes.present(context, request.node.node_id)
        response, complete = self._access.relay(context, lambda: proxy.add_object(request))
        if complete:
            poke_strategies(self._home.path)
        return response

    def GetRun(  # noqa: N802
        self, request: run_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> run_pb2.GetRunResponse:
        """What the SuperLink says about a run of which the site holds a message."""
        proxy = self._nodes.present(context, request.node.node_id)
        if not proxy.is_asked_by(request.run_id):
            self._access.deny(context, f"run {request.run_id} has sent this site nothing")
        return self._access.relay(context, lambda: proxy.get_run(request.run_id))

    def RegisterNode(  # noqa: N802
        self, _request: fleet_pb2.RegisterNodeFleetRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        """Not for sites: nodes are registered by the gateway."""
        self._access.deny(context, "RegisterNode is not for sites")

    def UnregisterNode(  # noqa: N802
        self, _request: fleet_pb2.UnregisterNodeFleetRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        """Not for sites."""
        self._access.deny(context, "UnregisterNode is not for sites")

    def GetFab(self, _request: fab_pb2.GetFabRequest, context: grpc.ServicerContext) -> NoReturn:  # noqa: N802
        """Not for sites: a bundle comes as a proposal and is approved by its hash."""
        self._access.deny(context, "GetFab is not for sites")

    def _compare_clocks(self, site: Site, theirs: float | None) -> None:
        """Tell how far a site's clock is from ours; `doctor` does so, too."""
        ahead_s = None if theirs is None else theirs - time.time()
        if not clock.is_well(ahead_s):
            _log.warning("the clock of site %s is %s", site.name, clock.in_words(ahead_s, "this host's"))
        self._registry.set_clock(site.name, ahead_s)
