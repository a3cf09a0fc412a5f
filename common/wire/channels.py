"""gRPC channels and servers with the limits both sides share.

Always TLS. A server that is given the root demands a client certificate; one without only shows its own (enrolment,
where the caller has no certificate yet). Addresses are `host:port`. A server asks for its credentials at each
handshake, so a renewed certificate and another root hold from the next connection on.
"""

import datetime
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from common.errors import FederationError, WardroundError
from common.wire import versions
from common.wire.proxy import proxy_of

# A piece of a part is 32 MiB at most (common/wire/records.py); this leaves room for several.
MAX_MESSAGE_BYTES = 512 * 1024 * 1024
# What an agent takes in one message, unless it asks for a model: a head, a list of proposals, a checkpoint.
MAX_NEWS_BYTES = 8 * 1024 * 1024
# An invitation, a certificate request: nothing large comes before a site is known.
MAX_ENROLMENT_BYTES = 64 * 1024
# Without data a ping goes out every 5 s. Where 10 s pass in which the other side's kernel confirms nothing of what was
# sent, the connection is over: a network that drops without a word is noticed in 15 s, and an outage of a few seconds
# costs nothing. On Linux that is TCP_USER_TIMEOUT (RFC 5482), which a slow line does not reach as long as it moves.
# What confirms but does not answer, such as a proxy that has lost its other half, is noticed after gRPC's own minute.
KEEPALIVE_S = 5
UNCONFIRMED_S = 10

_PINGS = [("grpc.keepalive_time_ms", KEEPALIVE_S * 1000), ("grpc.keepalive_timeout_ms", UNCONFIRMED_S * 1000)]
# What a stranger, who has not shown a certificate yet, and a connection as such may take of a server.
HANDSHAKE_S = 10
MAX_CONNECTIONS = 1000
MAX_CALLS_PER_CONNECTION = 32
MAX_METADATA_BYTES = 8 * 1024
_IDLE_S = 300
_AGE_S = 3600
# An old connection takes no new call; those on it may end. Longer than any call may take.
_AGE_GRACE_S = 900
_DOOR = [
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.http2.settings_timeout", HANDSHAKE_S * 1000),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.max_connection_idle_ms", _IDLE_S * 1000),
    ("grpc.max_connection_age_ms", _AGE_S * 1000),
    ("grpc.max_connection_age_grace_ms", _AGE_GRACE_S * 1000),
    ("grpc.http2.max_ping_strikes", 2),
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Credentials:
    """What a server shows, and whom it lets in."""

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    root_pem: bytes | None  # demand a client certificate of one of these roots

    def to_grpc(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC wants it."""
        return grpc.ssl_server_certificate_configuration([(self.key_pem, self.certificate_pem)], self.root_pem)


def secure_channel(
    address: str,
    root_pem: bytes,
    key_pem: bytes | None = None,
    certificate_pem: bytes | None = None,
    *,
    max_receive_bytes: int = MAX_NEWS_BYTES,
) -> grpc.Channel:
    """A channel that trusts `root_pem` alone and shows the site's certificate, if it has one.

    A message above `max_receive_bytes` ends its call with RESOURCE_EXHAUSTED, before memory is taken for it.

    Raises:
        ConfigError: the environment names a proxy that is none.
    """
    proxy = proxy_of(address)
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_receive_bytes),
        *_PINGS,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # After an outage, try again within seconds, not minutes.
        ("grpc.max_reconnect_backoff_ms", 10_000),
        ("grpc.enable_http_proxy", int(proxy is not None)),
        ("grpc.primary_user_agent", versions.user_agent()),
    ]
    if proxy is not None:
        options.append(("grpc.http_proxy", proxy.uri))
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, certificate_pem)
    return grpc.secure_channel(address, credentials, options)


def certificate_trouble(error: grpc.RpcError) -> str:
    """Why a connection failed, if it is that the other side's certificate does not hold at this time; else empty."""
    details = str(error.details() or "") if isinstance(error, grpc.Call) else ""
    for words, said in (
        ("certificate is not yet valid", "is not valid yet"),
        ("certificate has expired", "has run out"),
    ):
        if words in details:
            now = datetime.datetime.now(datetime.UTC)
            return (
                f"its certificate {said} by this computer's clock, which shows {now:%Y-%m-%d %H:%M} UTC. Compare the "
                "two clocks"
            )
    return ""


def serve(
    address: str,
    credentials: Callable[[], Credentials],
    add_services: Callable[[grpc.Server], None],
    *,
    interceptors: Sequence["grpc.ServerInterceptor[Any, Any]"] = (),
    workers: int = 64,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.Server:
    """Start a TLS server; where the credentials have a root, clients must show a certificate of that root.

    Args:
        address: to listen on.
        credentials: asked at each handshake; when it raises, those before it stay.
        add_services: puts the services on the server.
        interceptors: what each call passes first.
        workers: calls handled at once; a long poll holds one.
        max_receive_bytes: of one message.

    Raises:
        FederationError: the port is taken or the address does not belong to this machine.
    """
    options: list[tuple[str, int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_receive_bytes),
        *_PINGS,
        *_DOOR,
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 500),
        # Without this a second server would share the port and take half of the calls.
        ("grpc.so_reuseport", 0),
    ]
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="call")
    server = grpc.server(pool, interceptors=list(interceptors), options=options)
    add_services(server)
    try:
        port = server.add_secure_port(address, _dynamic(credentials))
    except RuntimeError as error:
        raise _port_error(address) from error
    if port == 0:
        raise _port_error(address)
    server.start()
    _logger.info("listening on %s", address)
    return server


def _dynamic(credentials: Callable[[], Credentials]) -> grpc.ServerCredentials:
    shown = credentials()
    demand = shown.root_pem is not None

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            present = credentials()
        except (WardroundError, OSError, ValueError) as error:
            _logger.warning("the server's credentials cannot be used, those before them stay: %s", error)
            return None
        if present == shown:
            return None
        shown = present
        _logger.info("the server's credentials have changed")
        return present.to_grpc()

    # None means unchanged, which grpc's types do not know.
    return grpc.dynamic_ssl_server_credentials(shown.to_grpc(), changed, demand)  # type: ignore[arg-type]


def _port_error(address: str) -> FederationError:
    return FederationError(
        f"cannot listen on {address}: the port is in use or the address is not of this machine. "
        "Stop the other program, or choose another port in server.toml."
    )
