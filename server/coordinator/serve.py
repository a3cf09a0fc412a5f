"""The coordinator's own process: both doors and the runs. Started and watched by the launcher.

    python -m server.coordinator.serve --home HOME

Port 9443 (gateway, mutual TLS) is always open; port 9444 (enrolment, server TLS) while somebody is expected there. Both
serve grpc.health.v1, which at the gateway says NOT_SERVING while the SuperLink does not answer. Ends on SIGTERM.
"""

import argparse
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.console.logs import Trouble, log_to
from common.errors import AuditError, ConfigError, FederationError, WardroundError
from common.flower.calls import superlink_answers
from common.flower.version import check_version
from common.identity import certificates
from common.system.life import SignOfLife
from common.system.wakeup import Sleeper, gateway_sleeper
from common.wire import channels, clock, wardround_pb2_grpc  # protoc writes the latter without types
from common.wire.channels import Credentials
from server.coordinator.health import SERVING_NAME
from server.coordinator.runs import Runs
from server.gateway.enrolment import EnrolmentService
from server.gateway.interceptor import Interceptor, address_of, site_of
from server.gateway.limits import ENROLMENTS_AT_ONCE, MAX_REQUEST_BYTES
from server.gateway.refusals import Refusals
from server.gateway.services import Gateway
from server.home.folder import Home, advice, open_home
from server.home.root import server_credentials
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from server.registry.store import StoreError

# A site holds two calls, each of which takes one: enough for 400 sites, with places for the work of all; or for eighty
# that use up all their places. A thread is made when it is wanted first.
GATEWAY_WORKERS = 1000
ENROLMENT_WORKERS = 128

_STEP_S = 0.5
_GRACE_S = 1.0
_HEALTH_EVERY_S = 1.0
_RENEWAL_EVERY_S = 3600.0
# A site whose answer was lost asks again, see client/home/enrolment.py; longer than its pause.
_LINGER_S = 5.0
_RETRY_S = 30.0

_log = logging.getLogger(__name__)


def serve(home: Home, stop: threading.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        FederationError: the gateway's port is in use.
    """
    registry = Registry(home.registry)
    audit = open_log(home)
    audit.begin("gateway", version("wardround"))
    gateway = Gateway(home, registry)
    runs = Runs(home, registry)
    door, state = EnrolmentDoor(home, registry), Health(gateway)
    interceptor = Interceptor(site_of, record=gateway.refused)
    server = start_gateway(home, gateway, state, interceptor)
    sleeper = gateway_sleeper(home.path)
    threads = [
        threading.Thread(target=pass_hints_on, args=(sleeper, gateway, stop), name="hints"),
        threading.Thread(target=keep_watch, args=(home, state, interceptor, door, stop), name="watch"),
    ]
    for thread in threads:
        thread.start()
    trouble = Trouble(_log)
    try:
        while not stop.is_set():
            with patiently(trouble):
                gateway.keep_house(runs.step())
            stop.wait(_STEP_S)
    finally:
        stop.set()
        runs.close()
        stopped = server.stop(_GRACE_S)
        for thread in threads:
            thread.join()
        door.close()
        stopped.wait()
        sleeper.close()
        gateway.close()
        audit.append("stopped", {"program": "gateway"})


def start_gateway(
    home: Home, gateway: Gateway, state: "Health | None" = None, interceptor: Interceptor | None = None
) -> grpc.Server:
    """Open the gateway's port."""

    def add(server: grpc.Server) -> None:
        add_FleetServicer_to_server(gateway.fleet, server)
        wardround_pb2_grpc.add_CoordinationServicer_to_server(gateway.coordination, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(state or Health(gateway), server)

    server_credentials(home)
    return channels.serve(
        f"{home.config.listen}:{home.config.gateway_port}",
        lambda: _credentials(home, home.trusted_roots_pem),
        add,
        interceptors=[interceptor or Interceptor(site_of, record=gateway.refused)],
        workers=GATEWAY_WORKERS,
        max_receive_bytes=MAX_REQUEST_BYTES,
    )


def start_enrolment(home: Home, registry: Registry, interceptor: Interceptor | None = None) -> grpc.Server:
    """Open the enrolment port."""

    def add(server: grpc.Server) -> None:
        service = EnrolmentService(home, registry)
        wardround_pb2_grpc.add_EnrolmentServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)

    server_credentials(home)
    return channels.serve(
        f"{home.config.listen}:{home.config.enrolment_port}",
        lambda: _credentials(home, None),
        add,
        interceptors=[interceptor or Interceptor(address_of, ENROLMENTS_AT_ONCE)],
        workers=ENROLMENT_WORKERS,
        max_receive_bytes=channels.MAX_ENROLMENT_BYTES,
    )


class Health(health.HealthServicer):
    """grpc.health.v1 for active sites: are the gateway and what lies behind it there?"""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the name in the protocol
        """A site that is shut out learns so here too."""
        self._gateway.authorise(context)
        context.send_initial_metadata(clock.stamp())
        return super().Check(request, context)

    def tell(self, *, serving: bool) -> None:
        """Say so from now on."""
        states = health_pb2.HealthCheckResponse
        self.set("", states.SERVING if serving else states.NOT_SERVING)


class EnrolmentDoor:
    """The enrolment port: open while somebody is invited, waits for approval or has not fetched the certificate."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self._home, self._registry = home, registry
        self._interceptor = Interceptor(address_of, ENROLMENTS_AT_ONCE, record=Refusals(open_log(home), registry))
        self._server: grpc.Server | None = None
        self._trouble = Trouble(_log)
        self._expected = 0.0
        self._not_before = 0.0

    def step(self) -> None:
        """Open or close it, as it is right now."""
        now = time.monotonic()
        expecting = self._registry.is_expecting()
        if expecting:
            self._expected = now
        if self._server is None:
            if expecting and now >= self._not_before:
                self._open(now)
            return
        self._interceptor.end_overdue()
        if now - self._expected > _LINGER_S:
            _log.info("enrolment closes: no invitation is open")
            self.close()

    def close(self) -> None:
        """Close it, if it is open."""
        if self._server is not None:
            self._server.stop(_GRACE_S).wait()
            self._server = None

    def _open(self, now: float) -> None:
        try:
            self._server = start_enrolment(self._home, self._registry, self._interceptor)
        except FederationError as error:
            self._not_before = now + _RETRY_S
            self._trouble.say(f"enrolment stays closed: {error}")


def keep_watch(home: Home, state: Health, interceptor: Interceptor, door: EnrolmentDoor, stop: threading.Event) -> None:
    """What must not wait for a slow SuperLink: calls that take too long, the enrolment port, health, certificates."""
    look, renewal, trouble = 0.0, time.monotonic() + _RENEWAL_EVERY_S, Trouble(_log)
    life = SignOfLife(home.path / SERVING_NAME, make=True)
    try:
        while not stop.wait(_STEP_S):
            interceptor.end_overdue()
            with patiently(trouble):
                door.step()
            now = time.monotonic()
            if now >= look:
                look = now + _HEALTH_EVERY_S
                serving = superlink_answers(home.superlink)
                state.tell(serving=serving)
                if serving:
                    life.give()
            if now >= renewal:
                renewal = now + _RENEWAL_EVERY_S
                _renew(home)
    finally:
        stop.set()  # should it fail: half a process would look healthy, and the launcher starts a whole one


@contextmanager
def patiently(trouble: Trouble) -> Iterator[None]:
    """Go on when another program holds the registry or the audit log: it lets go, and all is done as it was due."""
    try:
        yield
    except (StoreError, AuditError) as error:
        trouble.say(str(error))
    trouble.settle()


def pass_hints_on(sleeper: Sleeper, gateway: Gateway, stop: threading.Event) -> None:
    """Tell the gateway of every hint until `stop` is set."""
    while not stop.is_set():
        if nodes := sleeper.sleep(_STEP_S):
            gateway.hint(nodes)


def _credentials(home: Home, root_pem: bytes | None) -> Credentials:
    """What lies in the files now; nothing is renewed here, because two doors ask."""
    key, certificate = home.open_key("server"), (home.path / "pki" / "server.pem").read_bytes()
    if certificates.load_key(key).public_key() != certificates.load_certificate(certificate).public_key():
        raise ConfigError("the server's key and certificate do not belong together. They are just being renewed?")
    return Credentials(key, certificate, root_pem)


def _renew(home: Home) -> None:
    try:
        server_credentials(home)
    except ConfigError as error:
        _log.warning("the server's certificate has to be renewed: %s", error)


def _allow_connections() -> None:
    """As many open files as the system grants: a connection is one, and the limit here is often no more than 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _main() -> None:
    parser = argparse.ArgumentParser(description="The coordinator's doors; use `wardround-server start` instead.")
    parser.add_argument("--home", type=Path, required=True)
    os.umask(0o077)
    _allow_connections()
    home = parser.parse_args().home
    log_to(logging.INFO, advice=advice(home))
    # One line per HTTP request to the SuperLink would bury everything else.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_version()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(open_home(home), stop)
    except WardroundError as error:
        _log.error("%s", error)
        sys.exit(1)  # the launcher tries again


if __name__ == "__main__":
    _main()
