"""Calls to a SuperLink, by its port on loopback or its unix socket: its health, its runs, and its Fleet API."""

import contextlib
import hashlib
import http.client
import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import Status
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.errors import FederationError
from common.flower.bodies import send_in_pieces
from common.system.files import LONGEST_ADDRESS

# Where a SuperLink is: its port on loopback, or its unix socket.
SuperLink: TypeAlias = int | Path

RequestType = TypeVar("RequestType")
ReplyType = TypeVar("ReplyType")
ClientType = TypeVar("ClientType", bound=ProtobufClient)

_PROBE_S = 3.0
# As the client's own: see flwr/supercore/protobuf/client.py.
_CALL_S = 30.0


def superlink_answers(where: SuperLink) -> bool:
    """Whether Flower's SuperLink says that it is well."""
    # Not httpx, whose client makes a TLS context of its own first: 14 ms of CPU, and the gateway asks each second.
    port = where if isinstance(where, int) else 80
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_S)) as probe:
        try:
            if isinstance(where, Path):
                probe.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                probe.sock.settimeout(_PROBE_S)
                probe.sock.connect(_short(where))
            probe.request("GET", "/health")
            return probe.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def fleet_client(where: SuperLink, node_key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """A client of the SuperLink's Fleet API that signs as one node."""
    return _client(FleetHttpClient, where, [NodeAuthHttpInterceptor(node_key, node_key.public_key())])


def public_key_pem(node_key: ec.EllipticCurvePrivateKey) -> bytes:
    """A node's public key as Flower stores and compares it."""
    return public_key_to_bytes(node_key.public_key())


def start_run(where: SuperLink, bundle: bytes) -> int:
    """Start a ServerApp for the bundle.

    Returns:
        Flower's run id.

    Raises:
        FederationError: the SuperLink is out of reach or refuses.
    """
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with _client(ControlHttpClient, where) as control:
        run_id = _call(control.StartRun, StartRunRequest(fab=fab)).run_id
    if run_id == 0:
        raise FederationError("the SuperLink did not accept the run. See logs/superlink.log in the coordinator's home.")
    return int(run_id)


def run_is_live(where: SuperLink, run_id: int) -> bool:
    """Whether the SuperLink knows the run and it has not finished.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    with _client(ControlHttpClient, where) as control:
        runs = _call(control.ListRuns, ListRunsRequest(limit=1000)).run_dict
    return run_id in runs and runs[run_id].status.status != Status.FINISHED


def stop_run(where: SuperLink, run_id: int) -> None:
    """Stop a run's ServerApp; nothing happens if it has ended.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    if run_is_live(where, run_id):
        with _client(ControlHttpClient, where) as control:
            _call(control.StopRun, StopRunRequest(run_id=run_id))


def stop_runs_of(where: SuperLink, bundle: bytes) -> None:
    """Stop every ServerApp that runs for a bundle.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    fab_hash = hashlib.sha256(bundle).hexdigest()
    with _client(ControlHttpClient, where) as control:
        for run_id, run in _call(control.ListRuns, ListRunsRequest(limit=1000)).run_dict.items():
            if run.fab_hash == fab_hash and run.status.status != Status.FINISHED:
                _call(control.StopRun, StopRunRequest(run_id=run_id))


def _client(kind: type[ClientType], where: SuperLink, interceptors: Sequence[Any] = ()) -> ClientType:
    port = where if isinstance(where, int) else 80
    client = kind.from_server_address(f"127.0.0.1:{port}", True, None, interceptors=list(interceptors))
    if isinstance(where, Path):
        client._client.close()
        transport = httpx.HTTPTransport(uds=_short(where), verify=False)  # a unix socket
        client._client = httpx.Client(transport=transport, timeout=_CALL_S, follow_redirects=True)
    send_in_pieces(client._client)
    return client


def _short(path: Path) -> str:
    """A name for a unix socket that fits into an address, for as long as this process lives."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        return str(path)
    return f"/proc/self/fd/{_folder(path.parent)}/{path.name}"


@lru_cache(maxsize=64)
def _folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _call(method: Callable[[RequestType], ReplyType], request: RequestType) -> ReplyType:
    try:
        return method(request)
    except httpx.HTTPError as error:
        raise FederationError(
            f"the SuperLink did not answer as expected ({error}). "
            "See `wardround-server status` and logs/superlink.log in the coordinator's home."
        ) from error


__all__ = [
    "SuperLink",
    "fleet_client",
    "public_key_pem",
    "run_is_live",
    "start_run",
    "stop_run",
    "stop_runs_of",
    "superlink_answers",
]
