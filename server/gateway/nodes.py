"""The sites' nodes at the SuperLink: which site is here, and the watch that lets go of those that have gone.

A site has one node, played by its proxy (server/gateway/node_proxy.py); the id in each of its messages must be its own.
"""

import logging
import threading
import time
from collections.abc import Collection

import grpc
import httpx

from common.console.logs import Trouble
from common.errors import ConfigError
from common.system.wakeup import poke_strategies
from common.wire.at_work import AtWork
from server.gateway import deliveries
from server.gateway.access import VOID, Access
from server.gateway.change_notifier import ChangeNotifier
from server.gateway.deliveries import Deliveries
from server.gateway.node_proxy import NodeProxy
from server.gateway.objects import Objects
from server.home.folder import Home, read_nodes, write_nodes
from server.home.seen import read_seen, write_seen
from server.home.work import write_work
from server.registry.audit_trail import GatewayTrail
from server.registry.registry import Registry
from server.registry.sites import Presence, Site

# An agent that has not called for this long is gone; its long polls alone call three times as often.
SILENCE_S = 60.0
# How soon it is noticed that the SuperLink was started anew.
PROBE_EVERY_S = 10.0
# Without a hint a site is looked for messages so often while a run is live; of many sites the fewer each, so that all
# together cost the SuperLink no more than so many looks a second.
LOOK_EVERY_S, LOOKS_PER_S = 1.0, 10.0
# One whose connection broke while it held a call is gone sooner, unless it calls again by then.
GONE_S = 3.0
# How often it is noted who called last, for after a coordinator was killed.
NOTE_SEEN_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class Nodes:
    """The proxies of all sites, for both services and for the process that runs them."""

    def __init__(self, home: Home, registry: Registry, access: Access, trail: GatewayTrail, trouble: Trouble) -> None:
        self._home = home
        self._registry = registry
        self._access = access
        self._trail = trail
        self._trouble = trouble
        self.notifier = ChangeNotifier(registry)  # wakes the calls that sites hold
        self._objects = Objects()
        self._deliveries = Deliveries(home.flower / deliveries.NAME)
        self._proxies: dict[str, NodeProxy] = {}
        self._lock = threading.Lock()
        self._work: dict[str, tuple[AtWork, float]] = {}  # site -> what it is at, and when it said so (Unix s)
        self._noted: dict[str, tuple[AtWork, float]] = {}  # of that, what is in the file
        self._seen = {site: at.timestamp() for site, at in read_seen(home.path).items()}  # Unix s
        self._seen_noted_at = float("-inf")
        self._probe_at, self._probes = 0.0, 0
        self._everyone = False  # all are to beat: the SuperLink did not know one
        self._gone: dict[str, float] = {}  # site -> when a call that it held broke, in time.monotonic()
        self.live_runs: set[int] = set()
        self._kept = False  # the house, once at least
        # Ids given out before this process started are void, but nobody's fault.
        self._ids = dict(read_nodes(home))
        registry.nobody_is_here()
        self._take_over()

    def activate(self, context: grpc.ServicerContext, site: Site) -> int:
        """The site is here from now on: its node id."""
        proxy = self._proxy(site)
        node_id = self._access.relay(context, proxy.activate)
        self._publish(site.name, node_id)
        self._registry.set_presence(site.name, Presence.HERE)
        poke_strategies(self._home.path)
        _log.info("site %s is here as node %d", site.name, node_id)
        return node_id

    @property
    def look_every_s(self) -> float:
        """How often a site is looked for messages of which no hint told."""
        return max(LOOK_EVERY_S, len(self._proxies) / LOOKS_PER_S)

    def hint(self, nodes: Collection[int]) -> None:
        """There are messages for these nodes: what their sites hold looks now."""
        for proxy in list(self._proxies.values()):
            if proxy.node_id in nodes:
                proxy.expect()
                self.notifier.notify(proxy.site)

    def called(self, site: str) -> None:
        """Its connection is there again, if it broke."""
        self._gone.pop(site, None)

    def seen(self, site: str) -> None:
        """It still holds a call."""
        if site in self._proxies:
            self._proxies[site].last_seen = time.monotonic()

    def broke_off(self, site: str) -> None:
        """Its connection broke while it held a call."""
        self._gone[site] = time.monotonic()

    def present(self, context: grpc.ServicerContext, node_id: int) -> NodeProxy:
        """Authorise, and hold the caller to its own node id."""
        site = self._access.authorise(context)
        proxy = self._proxy(site)
        if node_id != proxy.node_id or node_id == 0:
            if node_id and (node_id in proxy.former_ids or self._ids.get(node_id) == site.name):
                context.abort(grpc.StatusCode.ABORTED, VOID)
            self._access.deny(context, f"site {site.name} used node id {node_id}, which is not its own")
        with proxy.presence:
            if not proxy.present:
                if not self._access.relay(context, proxy.return_):
                    context.abort(grpc.StatusCode.ABORTED, VOID)
                self._registry.set_presence(site.name, Presence.HERE)
                poke_strategies(self._home.path)
                _log.info("site %s is here again", site.name)
            proxy.last_seen = time.monotonic()
            self.called(site.name)
        return proxy

    def is_at(self, site: str, work: AtWork | None) -> None:
        """What a site says that it is at."""
        with self._lock:
            if work is None:
                self._work.pop(site, None)
            else:
                self._work[site] = work, time.time()

    def keep_house(self, live_runs: set[int]) -> None:
        """Every second or so: beat for the sites that are here, let go of those that are not.

        Args:
            live_runs: Flower's ids of the runs going on; messages of others are dropped.
        """
        if live_runs != self.live_runs or not self._kept:  # runs may have ended while the gateway was not there
            self._deliveries.keep_only(live_runs)
            self.live_runs, self._kept = live_runs, True
            self.notifier.notify()
        # Whose site was revoked, or has another node since, answers no more. In this order: of a new node nothing is
        # there before it is its site's.
        for node in self._deliveries.nodes() - {proxy.node_id for proxy in list(self._proxies.values())}:
            self._deliveries.remove_of(node)
        self._objects.keep_only(self._deliveries.objects())
        probed, everyone, self._everyone = self._probed(), self._everyone, False
        active = {site.name: site for site in self._registry.sites() if site.state == "active"}
        self._deliveries.save()
        self._note_work()
        self._note_seen()
        for name, proxy in list(self._proxies.items()):
            try:
                if name not in active:
                    del self._proxies[name]
                    self.let_go(proxy, "was revoked", Presence.AWAY)
                    proxy.shut_out()
                    continue
                with proxy.presence:  # a call that comes just now is not overlooked
                    if proxy.present and time.monotonic() - proxy.last_seen > SILENCE_S:
                        self.let_go(proxy, "is silent", Presence.AWAY)
                    elif proxy.present and self._has_gone(name):
                        self.let_go(proxy, "has gone without a word", Presence.AWAY)
                # Who is away stays online at the SuperLink: what it was asked waits for it.
                if not proxy.beat(at_once=everyone or name == probed) and proxy.present:
                    # A new SuperLink does not know the node; the agent's next call is told to activate again. Nor does
                    # it know the others.
                    self._everyone = True
                    self.let_go(proxy, "must activate again", Presence.AWAY)
                proxy.give_up_overdue()
            except httpx.HTTPError as error:
                self._trouble.say(f"the SuperLink does not answer for site {name}: {error}")
        self._trouble.settle()

    def let_go(self, proxy: NodeProxy, why: str, presence: Presence) -> None:
        """From now on this site is not here; its held calls look again."""
        _log.warning("site %s %s", proxy.site, why)
        self._seen[proxy.site] = _unix(proxy.last_seen)
        proxy.leave()
        self._registry.set_presence(proxy.site, presence)
        self.notifier.notify(proxy.site)
        poke_strategies(self._home.path)

    def close(self) -> None:
        """Let go of files and connections; the sites keep their nodes for the next start."""
        self.notifier.close()
        for proxy in self._proxies.values():
            proxy.close()
        self._deliveries.close()

    def _note_work(self) -> None:
        """Tell the runs, where anything is new; a disk that is full costs a run the reason why a site is missing."""
        with self._lock:
            work = dict(self._work)
        if work != self._noted:
            try:
                write_work(self._home.path, work)
                self._noted = work
            except OSError as error:
                self._trouble.say(f"what the sites are at cannot be noted: {error.strerror}")

    def _note_seen(self) -> None:
        """When each site last called, now and then."""
        now = time.monotonic()
        if now - self._seen_noted_at < NOTE_SEEN_EVERY_S:
            return
        self._seen_noted_at = now
        self._seen |= {name: _unix(one.last_seen) for name, one in list(self._proxies.items()) if one.present}
        try:
            write_seen(self._home.path, dict(self._seen))
        except OSError as error:
            self._trouble.say(f"when the sites were last there cannot be noted: {error.strerror}")

    def _probed(self) -> str:
        """The site that is to beat now though it is not due: one after the other, for all of those that are here."""
        now = time.monotonic()
        here = [name for name, proxy in self._proxies.items() if proxy.present]
        if now < self._probe_at or not here:
            return ""
        self._probe_at = now + PROBE_EVERY_S
        self._probes += 1
        return here[self._probes % len(here)]

    def _has_gone(self, site: str) -> bool:
        """Whether its connection broke a while ago, and it has not called since and holds no other call."""
        since = self._gone.get(site)
        return since is not None and time.monotonic() - since > GONE_S and self.notifier.calls(site) == 0

    def _take_over(self) -> None:
        """Keep the nodes of all sites online from the start: what they were asked waits for them."""
        for site in self._registry.sites():
            if site.state == "active" and site.name in self._ids.values():
                try:
                    self._proxy(site)
                except ConfigError as error:
                    _log.error("site %s: %s", site.name, error)

    def _proxy(self, site: Site) -> NodeProxy:
        sealed = site.node_key or b""
        with self._lock:
            proxy = self._proxies.get(site.name)
            if proxy is None or not proxy.is_for(sealed):
                key = self._home.node_keys.open(sealed, site.name)
                last_id = next((node for node, name in reversed(self._ids.items()) if name == site.name), 0)
                arrived, shared = self._trail.arrived, (self._objects, self._deliveries)
                proxy = NodeProxy(
                    site.name, key, self._home.superlink, *shared, last_id=last_id, arrived=arrived, identity=sealed
                )
                self._proxies[site.name] = proxy
            return proxy

    def _publish(self, site: str, node_id: int) -> None:
        with self._lock:
            if self._ids.get(node_id) != site:
                self._ids[node_id] = site
                write_nodes(self._home, self._ids)


def _unix(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic)
