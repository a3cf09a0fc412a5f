"""The coordinator's own process: both doors and the runs. Started and watched by the launcher.

    python -m server.serve --home HOME

Port 9443 (gateway, mutual TLS) and 9444 (enrolment, server TLS), both with grpc.health.v1. Ends on SIGTERM.
"""

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

import grpc
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from grpc_health.v1 import health, health_pb2_grpc

from common.flower import check_version
from common.wire import channels, wardround_pb2_grpc  # protoc writes the latter without types
from common.wire.wake import Sleeper, gateway_sleeper
from server.enrolment import EnrolmentService
from server.gateway import Gateway
from server.home import Home, open_home, server_credentials
from server.registry import Registry
from server.runs import Runs

# A site holds up to two long polls besides its work.
GATEWAY_WORKERS = 128
ENROLMENT_WORKERS = 16

_STEP_S = 0.5
_GRACE_S = 1.0

_log = logging.getLogger(__name__)


def serve(home: Home, stop: threading.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        FederationError: a port is in use.
    """
    registry = Registry(home.registry)
    gateway = Gateway(home, registry)
    runs = Runs(home, registry)
    servers = [start_gateway(home, gateway), start_enrolment(home, registry)]
    sleeper = gateway_sleeper(home.path)
    hints = threading.Thread(target=pass_hints_on, args=(sleeper, gateway, stop), name="hints")
    hints.start()
    try:
        while not stop.is_set():
            gateway.keep_house(runs.step())
            stop.wait(_STEP_S)
    finally:
        stop.set()
        for stopped in [server.stop(_GRACE_S) for server in servers]:
            stopped.wait()
        hints.join()
        sleeper.close()
        gateway.close()


def start_gateway(home: Home, gateway: Gateway) -> grpc.Server:
    """Open the gateway's port."""

    def add(server: grpc.Server) -> None:
        add_FleetServicer_to_server(gateway, server)
        wardround_pb2_grpc.add_CoordinationServicer_to_server(gateway, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)

    address = f"{home.config.listen}:{home.config.gateway_port}"
    key, certificate = server_credentials(home)
    return channels.serve(address, key, certificate, add, root_pem=home.trusted_roots_pem, workers=GATEWAY_WORKERS)


def start_enrolment(home: Home, registry: Registry) -> grpc.Server:
    """Open the enrolment port."""

    def add(server: grpc.Server) -> None:
        service = EnrolmentService(home, registry)
        wardround_pb2_grpc.add_EnrolmentServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)

    address = f"{home.config.listen}:{home.config.enrolment_port}"
    key, certificate = server_credentials(home)
    return channels.serve(
        address, key, certificate, add, workers=ENROLMENT_WORKERS, max_receive_bytes=channels.MAX_ENROLMENT_BYTES
    )


def pass_hints_on(sleeper: Sleeper, gateway: Gateway, stop: threading.Event) -> None:
    """Tell the gateway of every hint until `stop` is set."""
    while not stop.is_set():
        if sleeper.sleep(_STEP_S):
            gateway.hint()


def _main() -> None:
    parser = argparse.ArgumentParser(description="The coordinator's doors; use `wardround-server start` instead.")
    parser.add_argument("--home", type=Path, required=True)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # One line per HTTP request to the SuperLink would bury everything else.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_version()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(open_home(parser.parse_args().home), stop)


if __name__ == "__main__":
    _main()
