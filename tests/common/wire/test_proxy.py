"""A hospital's proxy is used as the environment names it, capitals too, and named where a connection fails. Real TLS
through a real tunnel; the host is known to the proxy alone."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.agent.status import Status
from client.commands.diagnosis import _unreachable
from client.home.enrolment import _explain
from common.errors import ConfigError
from common.identity import certificates
from common.wire import channels
from common.wire.channels import Credentials, secure_channel
from common.wire.proxy import proxy_of, told_of_proxy
from tests.patience import PATIENCE_S

HOST = "coordinator.test"
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Tunnel:
    """An HTTP proxy that knows one host, at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += client.recv(1)
        self.asked.append(request.split(b"\r\n", 1)[0].decode())
        server = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def coordinator(free_port: int) -> Iterator[tuple[Tunnel, bytes]]:
    root_key, key = certificates.new_key(), certificates.new_key()
    root = certificates.new_root(root_key, "root")
    shown = Credentials(
        certificates.key_to_pem(key),
        certificates.to_pem(certificates.server_certificate(key, [HOST], root, root_key)),
        None,
    )

    def add(server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)

    server = channels.serve(f"127.0.0.1:{free_port}", lambda: shown, add, workers=2)
    tunnel = Tunnel(free_port)
    yield tunnel, certificates.to_pem(root)
    tunnel.close()
    server.stop(0).wait()


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "grpc_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_channel_goes_through_the_proxy_of_the_environment(
    coordinator: tuple[Tunnel, bytes], monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    tunnel, root_pem = coordinator
    monkeypatch.setenv(variable, f"{scheme}{tunnel.address}")
    with secure_channel(f"{HOST}:9443", root_pem) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert tunnel.asked == [f"CONNECT {HOST}:9443 HTTP/1.1"]


def test_dead_proxy_is_named_by_join_and_doctor_without_its_password(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:secret@127.0.0.1:{free_port}")
    root_pem = certificates.to_pem(certificates.new_root(certificates.new_key(), "root"))
    with secure_channel(f"{HOST}:9443", root_pem) as channel, pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    for said in (_explain(error.value, f"{HOST}:9443"), _unreachable(f"{HOST}:9443", error.value)):
        assert f"the proxy http://127.0.0.1:{free_port}, which HTTPS_PROXY in the environment names" in str(said)
        assert f"no_proxy={HOST}" in str(said)
        assert "secret" not in str(said)


@pytest.mark.parametrize(
    ("environment", "address", "expected"),
    [
        ({}, "h.example:1", None),
        ({"https_proxy": "http://p:1"}, "h.example:1", "http://p:1"),
        ({"https_proxy": "http://small:1", "HTTPS_PROXY": "http://large:1"}, "h.example:1", "http://small:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://large:1"}, "h.example:1", None),
        ({"http_proxy": "p:8080"}, "h.example:1", "http://p:8080"),
        ({"https_proxy": "http://p"}, "h.example:1", "http://p:80"),
        ({"https_proxy": "http://p:1"}, "127.0.0.1:1", None),
        ({"https_proxy": "http://p:1"}, "[::1]:1", None),
        ({"https_proxy": "http://p:1"}, "localhost:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "example"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": ".EXAMPLE"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "xample,"}, "h.example:1", "http://p:1"),
        ({"https_proxy": "http://p:1", "no_proxy": "h.example:1"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "h.example:1"}, "h.example:2", "http://p:1"),
        ({"https_proxy": "http://p:1", "NO_PROXY": "x, h.example"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "11.1.2.3:1", "http://p:1"),
        ({"https_proxy": "http://p:1", "no_grpc_proxy": "h.example", "no_proxy": "x"}, "h.example:1", None),
        ({"https_proxy": "http://p:1", "no_proxy": "other"}, "h.example:1", "http://p:1"),
    ],
)
def test_environment_is_read_as_others_read_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: str, expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(address)
    assert (found and found.shown) == expected
    assert bool(told_of_proxy(address)) == (expected is not None)


@pytest.mark.parametrize("value", ["https://p:1", "socks5://p:1", "http://", "http://p:port"])
def test_what_is_no_http_proxy_is_said(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(ConfigError, match="https_proxy in the environment is not of the form http://HOST:PORT"):
        secure_channel("h.example:1", b"")
    assert "https_proxy" in told_of_proxy("h.example:1")


def test_agent_says_in_its_log_which_proxy_it_went_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    key, root_key = certificates.new_key(), certificates.new_key()
    root = certificates.new_root(root_key, "root")
    certificate = certificates.site_certificate(certificates.csr_for("north", key), "north", root, root_key)
    identity = SimpleNamespace(site="north", gateway=f"{HOST}:9443", days_left=60, certificate=certificate)
    Status(tmp_path, identity).away(OSError("gone"))  # type: ignore[arg-type]  # what it reads of an identity
    assert "the proxy http://proxy.example:3128, which HTTPS_PROXY in the environment names" in caplog.text
