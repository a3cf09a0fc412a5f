"""What a server grants a connection, and what it shows it; real TLS, real sockets."""

import datetime
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import FederationError
from common.identity import certificates
from common.wire import channels
from common.wire.channels import Credentials
from tests import ROOT
from tests.patience import PATIENCE_S, eventually


class Authority:
    """A root, and a server's key and certificate that can be made anew."""

    def __init__(self) -> None:
        self.key = certificates.new_key()
        self.root = certificates.new_root(self.key, "root")
        self.root_pem = certificates.to_pem(self.root)
        self.renew()

    def renew(self) -> None:
        key = certificates.new_key()
        certificate = certificates.server_certificate(key, ["127.0.0.1"], self.root, self.key)
        self.credentials = Credentials(certificates.key_to_pem(key), certificates.to_pem(certificate), self.root_pem)

    def client(self, root_pem: bytes | None = None) -> tuple[bytes, bytes, bytes]:
        key = certificates.new_key()
        certificate = certificates.site_certificate(certificates.csr_for("a", key), "a", self.root, self.key)
        return root_pem or self.root_pem, certificates.key_to_pem(key), certificates.to_pem(certificate)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serving(free_port: int) -> Iterator[Callable[..., str]]:
    servers: list[grpc.Server] = []

    def serve(credentials: Callable[[], Credentials]) -> str:
        address = f"127.0.0.1:{free_port}"

        def add(server: grpc.Server) -> None:
            health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)

        servers.append(channels.serve(address, credentials, add, workers=2))
        return address

    yield serve
    for server in servers:
        server.stop(0).wait()


def answers(address: str, *identity: bytes) -> bool:
    with channels.secure_channel(address, *identity) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        except grpc.RpcError:
            return False
        return True


def test_root_is_demanded_of_those_who_come_if_the_server_has_one(authority: Authority, serving: Any) -> None:
    address = serving(lambda: authority.credentials)
    assert answers(address, *authority.client())
    assert not answers(address, authority.root_pem)
    assert not answers(address, *Authority().client(authority.root_pem))


def test_credentials_are_asked_for_at_each_handshake(authority: Authority, serving: Any) -> None:
    address = serving(lambda: authority.credentials)
    port = int(address.rpartition(":")[2])
    first = shown(port)
    assert shown(port) == first
    authority.renew()
    assert shown(port) == ssl.PEM_cert_to_DER_cert(authority.credentials.certificate_pem.decode()) != first
    other = Authority()
    authority.credentials = other.credentials
    assert answers(address, *other.client())
    assert not answers(address, *authority.client(other.root_pem))


def test_credentials_that_cannot_be_read_leave_those_before_them(
    authority: Authority, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken: list[Exception] = []

    def credentials() -> Credentials:
        if broken:
            raise broken[0]
        return authority.credentials

    address = serving(credentials)
    broken.append(FileNotFoundError("server.key"))
    assert answers(address, *authority.client())
    assert "those before them stay" in caplog.text


def test_connections_beyond_the_limit_are_closed_and_those_before_them_go_on(
    authority: Authority, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        (name, 3 if name == "grpc.max_allowed_incoming_connections" else value) for name, value in channels._DOOR
    ]
    monkeypatch.setattr(channels, "_DOOR", options)
    address = serving(lambda: authority.credentials)
    with channels.secure_channel(address, *authority.client()) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        check(health_pb2.HealthCheckRequest())
        port = int(address.rpartition(":")[2])
        strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        for one in strangers:
            one.setblocking(False)
        eventually(lambda: sum(is_closed(one) for one in strangers) >= len(strangers) - 2, "they are closed")
        check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        for one in strangers:
            one.close()


def test_connection_that_grew_old_ends_after_the_call_on_it(
    authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"grpc.max_connection_age_ms": 300, "grpc.max_connection_age_grace_ms": 20_000}
    monkeypatch.setattr(channels, "_DOOR", [(name, changes.get(name, value)) for name, value in channels._DOOR])
    peers: list[str] = []

    def slow(_request: bytes, context: grpc.ServicerContext) -> bytes:
        peers.append(context.peer())
        time.sleep(1.0)
        return b"done"

    def add(server: grpc.Server) -> None:
        handlers = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])

    address = f"127.0.0.1:{free_port}"
    server = channels.serve(address, lambda: authority.credentials, add)
    with channels.secure_channel(address, *authority.client()) as channel:
        call = channel.unary_unary("/test/Slow", None, None)
        assert [call(b"", timeout=PATIENCE_S) for _ in range(2)] == [b"done", b"done"]
    assert len(set(peers)) == 2  # each on a connection of its own
    server.stop(0).wait()


def test_port_in_use_says_what_to_do(authority: Authority, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(FederationError, match="choose another port"):
        channels.serve(f"127.0.0.1:{free_port}", lambda: authority.credentials, lambda _: None)


def test_any_call_may_end_on_a_connection_that_grew_old() -> None:
    from server.gateway.limits import RULES  # noqa: PLC0415 - the one place that knows how long a call may take

    assert max(rule.seconds for rule in RULES.values()) < channels._AGE_GRACE_S


# Loopback of a namespace of its own goes down under a held call: no end of the connection is told to anybody.
DROPS = """
import ctypes, fcntl, socket, struct, subprocess, sys, threading
from common.system.namespaces import PrivateNetwork, private_network
made = private_network()
if not isinstance(made, PrivateNetwork):
    print(f"no network of its own: {made}", flush=True)
    sys.exit()
made.enter()
import grpc
from common.wire import channels
from tests.common.wire.test_channels import Authority
authority, told, over = Authority(), threading.Event(), threading.Event()
def held(_, context):
    context.add_callback(lambda: over.is_set() or (print("server", flush=True), over.set()))
    told.set()
    over.wait()
    return b""
handlers = {"Held": grpc.unary_unary_rpc_method_handler(held)}
add = lambda server: server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])
server = channels.serve("127.0.0.1:9443", lambda: authority.credentials, add)
channel = channels.secure_channel("127.0.0.1:9443", *authority.client())
call = channel.unary_unary("/test/Held").future(b"")
assert told.wait(300)
print("held", flush=True)
request = struct.pack("16sh22x", b"lo", 0)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
    fcntl.ioctl(plain, 0x8914, request)  # SIOCSIFFLAGS: not up
print("client", call.code().name, flush=True)
over.wait()
"""


def test_a_network_that_drops_without_a_word_is_noticed_by_both_sides() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has network namespaces")
    command = [sys.executable, "-c", DROPS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # 15 s by the settings; those before these needed 50.
    end = threading.Timer(40.0, process.kill)
    try:
        said = process.stdout.readline().strip()
        if said.startswith("no network of its own"):
            pytest.skip(f"the kernel gives this user {said}")
        assert said == "held"
        end.start()
        assert sorted(line.strip() for line in process.stdout) == ["client UNAVAILABLE", "server"]
    finally:
        end.cancel()
        process.kill()
        process.wait()


def shown(port: int) -> bytes | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as connection:
        return connection.getpeercert(binary_form=True)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(("days", "said"), [(2, "is not valid yet"), (-500, "has run out")])
def test_certificate_that_does_not_hold_at_this_time_is_told_with_the_hour(
    free_port: int, monkeypatch: pytest.MonkeyPatch, days: int, said: str
) -> None:
    """As at a site whose clock is wrong, seen from the other side: the server's certificate is of another time."""
    right = certificates.now
    monkeypatch.setattr(certificates, "now", lambda: right() + datetime.timedelta(days=min(days, 0) - 10))
    authority = Authority()
    monkeypatch.setattr(certificates, "now", lambda: right() + datetime.timedelta(days=days))
    key = certificates.new_key()
    certificate = certificates.server_certificate(key, ["127.0.0.1"], authority.root, authority.key)
    monkeypatch.undo()
    shown = Credentials(certificates.key_to_pem(key), certificates.to_pem(certificate), None)
    address = f"127.0.0.1:{free_port}"
    server = channels.serve(address, lambda: shown, lambda _: None, workers=1)
    try:
        with channels.secure_channel(address, authority.root_pem) as channel, pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    finally:
        server.stop(0).wait()
    told = channels.certificate_trouble(caught.value)
    assert f"its certificate {said} by this computer's clock, which shows {certificates.now():%Y-%m-%d %H}:" in told


def test_another_failure_is_no_matter_of_clocks(free_port: int) -> None:
    with (
        channels.secure_channel(f"127.0.0.1:{free_port}", Authority().root_pem) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert channels.certificate_trouble(caught.value) == ""
