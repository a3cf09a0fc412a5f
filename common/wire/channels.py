"""gRPC channels and servers with the limits both sides share.

Always TLS. A server that is given the root demands a client certificate; one without only shows its own (enrolment,
where the caller has no certificate yet). Addresses are `host:port`.
"""

import ipaddress
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from common.errors import FederationError

# One chunk of a model is 5 MiB in Flower; this leaves room for a whole model in one message.
MAX_MESSAGE_BYTES = 512 * 1024 * 1024
# An invitation, a certificate request: nothing large comes before a site is known.
MAX_ENROLMENT_BYTES = 64 * 1024
# Firewalls forget silent connections after a minute or more; a ping every 30 s keeps a long poll alive.
KEEPALIVE_S = 30

_SIZES = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
_PINGS = [("grpc.keepalive_time_ms", KEEPALIVE_S * 1000), ("grpc.keepalive_timeout_ms", 20_000)]

_logger = logging.getLogger(__name__)


def secure_channel(
    address: str, root_pem: bytes, key_pem: bytes | None = None, certificate_pem: bytes | None = None
) -> grpc.Channel:
    """A channel that trusts `root_pem` alone and shows the site's certificate, if it has one."""
    options: list[tuple[str, int]] = [
        *_SIZES,
        *_PINGS,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # After an outage, try again within seconds, not minutes.
        ("grpc.max_reconnect_backoff_ms", 10_000),
        # A hospital's HTTPS proxy is honoured, except for this very machine.
        ("grpc.enable_http_proxy", 0 if _is_loopback(address) else 1),
    ]
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, certificate_pem)
    return grpc.secure_channel(address, credentials, options)


def serve(
    address: str,
    key_pem: bytes,
    certificate_pem: bytes,
    add_services: Callable[[grpc.Server], None],
    *,
    root_pem: bytes | None = None,
    workers: int = 64,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.Server:
    """Start a TLS server; with `root_pem`, clients must show a certificate of that root.

    Args:
        workers: calls handled at once; a long poll holds one.

    Raises:
        FederationError: the port is taken or the address does not belong to this machine.
    """
    options: list[tuple[str, int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_receive_bytes),
        *_PINGS,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 500),
        # Without this a second server would share the port and take half of the calls.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(max_workers=workers, thread_name_prefix="call"), options=options)
    add_services(server)
    credentials = grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)], root_pem, require_client_auth=root_pem is not None
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _port_error(address) from error
    if port == 0:
        raise _port_error(address)
    server.start()
    _logger.info("listening on %s", address)
    return server


def _port_error(address: str) -> FederationError:
    return FederationError(
        f"cannot listen on {address}: the port is in use or the address is not of this machine. "
        "Stop the other program, or choose another port in server.toml."
    )


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
