"""The only door for hospitals: Flower's Fleet service and our Coordination service behind mutual TLS.

fleet.py and coordination.py are the two services; both ask access.py who calls, and nodes.py who is here.
"""

import logging
from collections.abc import Collection

import grpc

from common.console.logs import Trouble
from server.gateway.access import Access
from server.gateway.coordination import CoordinationService
from server.gateway.fleet import FleetService
from server.gateway.nodes import Nodes
from server.gateway.refusals import Refusals
from server.home.folder import Home
from server.registry.audit_trail import GatewayTrail
from server.registry.registry import Registry

_log = logging.getLogger(__name__)


class Gateway:
    """Both services and what they share, for the process that runs them."""

    def __init__(self, home: Home, registry: Registry) -> None:
        trouble = Trouble(_log)
        self.trail = GatewayTrail(home, registry)
        self.refused = Refusals(self.trail.log, registry)
        self._access = Access(registry, self.refused, trouble)
        self.nodes = Nodes(home, registry, self._access, self.trail, trouble)
        self.fleet = FleetService(home, registry, self._access, self.nodes)
        self.coordination = CoordinationService(home, registry, self._access, self.nodes, self.trail)

    def authorise(self, context: grpc.ServicerContext) -> None:
        """End the call unless an active site makes it."""
        self._access.authorise(context)

    def hint(self, nodes: Collection[int]) -> None:
        """There are messages for these nodes: let their sites' held PullMessages look."""
        self.nodes.hint(nodes)

    def keep_house(self, live_runs: set[int]) -> None:
        """Every second or so: see `Nodes.keep_house`."""
        self.nodes.keep_house(live_runs)

    def close(self) -> None:
        """Let go of files and connections; the sites keep their nodes for the next start."""
        self.nodes.close()
