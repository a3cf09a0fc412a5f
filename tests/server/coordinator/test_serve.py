"""The doors as one process holds them: what opens, what is shown, what ends, while everything goes on."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509
from flwr.proto import fleet_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.commands import diagnosis
from common.errors import EnrolmentError, FederationError
from common.identity import certificates
from common.system.files import write_private
from common.wire.wardround_pb2 import ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.coordinator import serve
from server.coordinator.doors import doors
from server.gateway import enrolment, interceptor, limits
from server.gateway.interceptor import Interceptor, site_of
from server.gateway.services import Gateway
from server.home import root as roots
from server.home.folder import Home
from server.registry.registry import Registry
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import Member, enrol, is_listening, new_home, status_of

OK = grpc.StatusCode.OK


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home.registry)


@pytest.fixture
def gateway(home: Home, registry: Registry) -> Iterator[grpc.Server]:
    server = serve.start_gateway(home, Gateway(home, registry))
    yield server
    server.stop(0).wait()


def knocks(home: Home, member: Member) -> grpc.StatusCode:
    with member.channel(home) as channel:
        return status_of(CoordinationStub(channel).ListProposals, ListProposalsRequest())


def shown(home: Home) -> x509.Certificate:
    """The certificate that the gateway shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    address = ("127.0.0.1", home.config.gateway_port)
    with socket.create_connection(address) as plain, context.wrap_socket(plain) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


def on_disk(home: Home) -> x509.Certificate:
    return certificates.load_certificate((home.path / "pki" / "server.pem").read_bytes())


# Credentials


def test_renewed_server_certificate_is_shown_without_a_restart(home: Home, registry: Registry, gateway: Any) -> None:
    member = enrol(home, registry, "a")
    with member.channel(home) as channel:
        stub = CoordinationStub(channel)
        assert status_of(stub.ListProposals, ListProposalsRequest()) == OK
        before = shown(home)
        roots._renew_server_certificate(home, *roots.root_credentials(home))
        assert shown(home) == on_disk(home) != before
        assert status_of(stub.ListProposals, ListProposalsRequest()) == OK  # the open connection goes on
    assert knocks(home, member) == OK


def test_certificate_of_the_next_root_is_let_in_without_a_restart(home: Home, registry: Registry, gateway: Any) -> None:
    old = enrol(home, registry, "old")
    assert knocks(home, old) == OK
    roots.rotate_root(home)
    roots.finish_rotation(home)
    new = enrol(home, registry, "new")
    assert knocks(home, new) == OK
    # The old one trusts the old root alone; what the gateway says of its certificate is seen with the new root.
    assert knocks(home, old) == OK


def test_files_that_do_not_fit_together_change_nothing(
    home: Home, registry: Registry, gateway: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = shown(home)
    key = (home.path / "pki" / "server.key").read_bytes()
    home.write_key("server", certificates.key_to_pem(certificates.new_key()))
    assert shown(home) == before
    assert "those before them stay" in caplog.text
    (home.path / "pki" / "server.key").unlink()
    assert shown(home) == before
    write_private(home.path / "pki" / "server.key", key)
    assert shown(home) == before


# The enrolment port


class Time:
    """time.monotonic, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return _monotonic() + self.ahead


_monotonic = time.monotonic


@pytest.fixture
def door(home: Home, registry: Registry) -> Iterator[serve.EnrolmentDoor]:
    opened = serve.EnrolmentDoor(home, registry)
    yield opened
    opened.close()


def test_enrolment_is_open_from_the_invitation_until_a_while_after_the_last_one_is_served(
    home: Home, registry: Registry, door: serve.EnrolmentDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, port = Time(), home.config.enrolment_port
    monkeypatch.setattr(time, "monotonic", clock)
    door.step()
    assert not is_listening(port)
    enrolment.invite(home, registry, "st-mary")
    door.step()
    assert is_listening(port)
    registry.revoke("st-mary")
    door.step()
    clock.ahead += serve._LINGER_S / 2
    door.step()
    assert is_listening(port)  # whoever lost the answer asks again
    clock.ahead += serve._LINGER_S
    door.step()
    assert not is_listening(port)
    enrolment.invite(home, registry, "st-john")
    door.step()
    assert is_listening(port)


def test_enrolment_stays_open_for_who_waits_for_approval_and_for_the_certificate(
    home: Home, registry: Registry, door: serve.EnrolmentDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time()
    monkeypatch.setattr(time, "monotonic", clock)
    enrol(home, registry, "st-mary")  # approved, not collected
    door.step()
    clock.ahead += 3600.0
    door.step()
    assert is_listening(home.config.enrolment_port)
    registry.collected("st-mary")
    clock.ahead += 3600.0
    door.step()
    assert not is_listening(home.config.enrolment_port)


def test_port_that_another_program_holds_is_no_end_and_is_tried_again(
    home: Home, registry: Registry, door: serve.EnrolmentDoor, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    clock, port = Time(), home.config.enrolment_port
    monkeypatch.setattr(time, "monotonic", clock)
    enrolment.invite(home, registry, "st-mary")
    with socket.create_server(("127.0.0.1", port)):
        door.step()
        door.step()
        assert caplog.text.count("enrolment stays closed") == 1
        (state,) = [one for one in doors(home) if one.name == "enrolment"]
        assert (state.ok, "another program" in state.state) == (False, True)
    clock.ahead += serve._RETRY_S + 1
    door.step()
    (state,) = [one for one in doors(home) if one.name == "enrolment"]
    assert (state.ok, state.state) == (True, "up")


# Health


def test_health_says_that_the_superlink_is_away_and_a_sites_doctor_repeats_it(
    home: Home, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, stop = Gateway(home, registry), threading.Event()
    state = serve.Health(service)
    server = serve.start_gateway(home, service, state)
    watch = threading.Thread(
        target=serve.keep_watch, args=(home, state, Interceptor(site_of), serve.EnrolmentDoor(home, registry), stop)
    )
    watch.start()
    member = enrol(home, registry, "a")
    registry.collected("a")
    try:
        with member.channel(home) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest()
            eventually(lambda: check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING)
            identity = SimpleNamespace(gateway=home.gateway_address, channel=lambda: member.channel(home))
            monkeypatch.setattr(diagnosis, "load_identity", lambda _: identity)
            with pytest.raises(FederationError, match="its SuperLink does not"):
                diagnosis._coordinator(tmp_path)
            registry.revoke("a")
            assert status_of(check, request) == grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(EnrolmentError, match="has shut this site out"):
                diagnosis._coordinator(tmp_path)
    finally:
        stop.set()
        watch.join()
        server.stop(0).wait()


# Time per call


def test_call_that_takes_too_long_is_ended_and_its_place_is_free(
    home: Home, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short, ahead = limits.Rule("object", 1000, 100.0, 100, 600.0), [0.0]
    monkeypatch.setattr(interceptor, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))
    monkeypatch.setattr(interceptor, "rule_of", lambda _: short)
    counting = Interceptor(site_of)
    server = serve.start_gateway(home, Gateway(home, registry), interceptor=counting)
    try:
        with enrol(home, registry, "a").channel(home) as channel:
            never = channel.stream_unary("/flwr.proto.Fleet/PushObject", None, None)
            silence = threading.Event()
            call = never.future(iter(silence.wait, True), timeout=PATIENCE_S)
            eventually(lambda: counting._running)
            counting.end_overdue()
            assert not call.done()
            ahead[0] = 601.0
            counting.end_overdue()
            assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert "more than 600 s for a call" in caplog.text
            eventually(lambda: counting._limits._callers["site a"].at_once == 0)
            assert status_of(FleetStub(channel).RegisterNode, fleet_pb2.RegisterNodeFleetRequest()) != OK
            silence.set()
    finally:
        server.stop(0).wait()
