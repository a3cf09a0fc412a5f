"""Limits at the real doors: who is refused, what the caller is told, and what the audit log says of it. Real TLS."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2_grpc import FleetStub

from client.home.enrolment import join
from common.audit.entries import Entry
from common.errors import EnrolmentError
from common.identity import certificates
from common.wire import channels, versions
from common.wire.pushback import retry_after
from common.wire.wardround_pb2 import (
    CollectReply,
    CollectRequest,
    ListProposalsRequest,
    SubmitReceiptRequest,
)
from common.wire.wardround_pb2_grpc import CoordinationStub, EnrolmentStub
from server.coordinator import serve
from server.gateway import enrolment
from server.gateway.interceptor import Interceptor, address_of, site_of
from server.gateway.limits import CALLS_AT_ONCE, Rule
from server.gateway.refusals import FIRST, FIRST_OF_STRANGERS, Refusals
from server.gateway.services import Gateway
from server.home.folder import Home
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.documents import carried
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import RUN, enrol, enrol_request, new_home, status_of

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LARGE = 16_000_000
# A receipt that is none: counted, and then refused as malformed.
GARBAGE = SubmitReceiptRequest(receipt=bytes(60_000))


class Clock:
    """time.monotonic, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return _monotonic() + self.ahead


_monotonic = time.monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(time, "monotonic", moved)
    return moved


class Gate:
    """A gateway without a SuperLink, with two sites."""

    def __init__(self, folder: Path, bytes_per_hour: int = 600_000) -> None:
        self.home = new_home(folder)
        self.registry = Registry(self.home.registry)
        self.gateway = Gateway(self.home, self.registry)
        self.interceptor = Interceptor(site_of, bytes_per_hour=bytes_per_hour, record=self.gateway.refused)
        self.server = serve.start_gateway(self.home, self.gateway, interceptor=self.interceptor)
        self.channels = {name: enrol(self.home, self.registry, name).channel(self.home) for name in ("a", "b")}
        self.stubs = {name: CoordinationStub(channel) for name, channel in self.channels.items()}

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()
        self.server.stop(0).wait()
        self.gateway.close()


@pytest.fixture
def gate(tmp_path: Path, clock: Clock) -> Iterator[Gate]:
    made = Gate(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[tuple[Home, Registry, EnrolmentStub]]:
    """An enrolment port."""
    home = new_home(tmp_path / "home")
    registry = Registry(home.registry)
    interceptor = Interceptor(address_of, record=Refusals(open_log(home), registry))
    server = serve.start_enrolment(home, registry, interceptor)
    with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
        yield home, registry, EnrolmentStub(channel)
    server.stop(0).wait()


def error_of(call: Callable[..., Any], request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=PATIENCE_S)
    return caught.value


def refusals(home: Home) -> list[dict[str, str]]:
    return [dict(entry.fields) for entry in entries(home) if entry.kind == "call-refused"]


def entries(home: Home) -> tuple[Entry, ...]:
    return open_log(home).entries()


def test_site_beyond_its_bytes_of_an_hour_is_refused_alone_and_let_in_again(
    gate: Gate, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    greedy, other = gate.stubs["a"], gate.stubs["b"]
    # Ten, and what comes back meanwhile.
    codes = [status_of(greedy.SubmitReceipt, GARBAGE) for _ in range(20)]
    assert codes[:10] == [grpc.StatusCode.INVALID_ARGUMENT] * 10
    assert codes[-1] == EXHAUSTED
    error = error_of(greedy.ListProposals, ListProposalsRequest())
    assert error.code() == EXHAUSTED
    assert "bytes an hour from it" in str(error.details())
    assert status_of(other.ListProposals, ListProposalsRequest()) == grpc.StatusCode.OK
    assert {"status": "resource-exhausted", "site": "a"} in refusals(gate.home)
    assert all(entry.get("site") != "b" for entry in refusals(gate.home))
    assert "refused: site a at /wardround.v1.Coordination/SubmitReceipt: more than 600000 bytes" in caplog.text
    later = retry_after(error)
    assert later is not None
    clock.ahead += later
    assert status_of(greedy.ListProposals, ListProposalsRequest()) == grpc.StatusCode.OK


def test_bytes_that_the_coordinator_sends_are_counted_too(gate: Gate) -> None:
    gate.registry.propose(carried(RUN, bytes(60_000)), ())
    replies = [status_of(gate.stubs["a"].ListProposals, ListProposalsRequest()) for _ in range(20)]
    assert replies[:9] == [grpc.StatusCode.OK] * 9
    assert replies[-1] == EXHAUSTED
    error = error_of(gate.stubs["a"].ListProposals, ListProposalsRequest())
    assert "bytes an hour to it" in str(error.details())


def test_too_many_calls_are_to_come_again_and_a_request_that_is_too_large_is_not(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = error_of(gate.stubs["b"].SubmitReceipt, SubmitReceiptRequest(receipt=bytes(70_000)))
    assert (large.code(), retry_after(large)) == (EXHAUSTED, None)
    monkeypatch.setattr("server.gateway.interceptor.rule_of", lambda _: Rule("slow", 100_000, 0.5, 2, 60.0))
    stub = gate.stubs["a"]
    for _ in range(2):
        stub.ListProposals(ListProposalsRequest())
    error = error_of(stub.ListProposals, ListProposalsRequest())
    assert error.code() == EXHAUSTED
    later = retry_after(error)
    assert later is not None
    assert 0.0 < later <= 2.0


class Answers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its types alone
    """Answers every call, with more than is sent unasked; `hold` keeps its methods at work."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self._lock = threading.Lock()
        self.begun = self.ended = 0

    def service(self, _details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer, lambda data: data, lambda answer: answer)

    def _answer(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.begun += 1
        assert self.hold.wait(PATIENCE_S)
        with self._lock:
            self.ended += 1
        return bytes(LARGE)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[tuple[Answers, Any]]:
    """A gateway's port with other methods behind it, and a site's channel to it."""
    home, made = new_home(tmp_path / "home"), Answers()
    server = channels.serve(
        f"127.0.0.1:{home.config.gateway_port}",
        lambda: serve._credentials(home, home.trusted_roots_pem),
        lambda server: server.add_generic_rpc_handlers([made]),
        interceptors=[Interceptor(site_of)],
    )
    member = enrol(home, Registry(home.registry), "a")
    shown = grpc.ssl_channel_credentials(home.root_pem, certificates.key_to_pem(member.key), member.certificate)
    # Without the probe a client takes 64 kB of an answer before it is asked for, and not as much as the line carries.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", channels.MAX_MESSAGE_BYTES)]
    with grpc.secure_channel(home.gateway_address, shown, options) as channel:
        yield made, channel
    server.stop(0).wait()


def test_answer_that_its_caller_does_not_read_keeps_its_place_until_it_is_read(
    answers: tuple[Answers, Any],
) -> None:
    made, channel = answers
    unread = channel.stream_stream("/a.Service/Method")  # of which each answer is asked for
    calls = [unread(iter([b"x"])) for _ in range(CALLS_AT_ONCE)]
    eventually(lambda: made.ended == CALLS_AT_ONCE)
    read = channel.unary_unary("/a.Service/Method")
    # Waits for nothing: a place that is free is free at once.
    assert [status_of(read, b"x") for _ in range(5)] == [EXHAUSTED] * 5
    assert made.begun == CALLS_AT_ONCE
    assert len(next(calls.pop())) == LARGE
    eventually(lambda: status_of(read, b"x") == grpc.StatusCode.OK)
    for call in calls:
        call.cancel()


def test_method_whose_caller_has_gone_keeps_its_place_until_it_has_ended(
    answers: tuple[Answers, Any],
) -> None:
    made, channel = answers
    made.hold.clear()
    call = channel.unary_unary("/a.Service/Method")
    for number in range(CALLS_AT_ONCE):
        given_up = call.future(b"x")
        eventually(lambda: made.begun == number + 1)  # noqa: B023 - asked here and now
        given_up.cancel()
    assert [status_of(call, b"x") for _ in range(5)] == [EXHAUSTED] * 5
    made.hold.set()
    eventually(lambda: status_of(call, b"x") == grpc.StatusCode.OK)


def test_each_kind_of_refusal_at_the_gateway_is_recorded_with_its_site(gate: Gate) -> None:
    channel = gate.channels["a"]
    status_of(channel.unary_unary("/wardround.v1.Coordination/Open", None, None), b"")
    status_of(channel.unary_unary("/wardround.v1.Coordination/ListProposals", None, None), b"\xff\xff")
    status_of(gate.stubs["a"].SubmitReceipt, SubmitReceiptRequest(receipt=bytes(70_000)))
    assert refusals(gate.home) == [
        {"status": status, "site": "a"} for status in ("permission-denied", "invalid-argument", "resource-exhausted")
    ]


def test_call_that_takes_too_long_is_recorded(gate: Gate, clock: Clock) -> None:
    silence = threading.Event()
    renew = gate.channels["a"].stream_unary("/wardround.v1.Coordination/Renew", None, None)
    call = renew.future(iter(silence.wait, True))
    eventually(lambda: gate.interceptor._running, "the call")
    clock.ahead += 61.0
    gate.interceptor.end_overdue()
    assert call.code() != grpc.StatusCode.OK
    silence.set()
    assert {"status": "deadline", "site": "a"} in refusals(gate.home)


def test_flood_of_refusals_is_recorded_ten_times_and_hides_no_other_kind(gate: Gate) -> None:
    malformed = gate.channels["a"].unary_unary("/wardround.v1.Coordination/ListProposals", None, None)
    for _ in range(3 * FIRST):
        status_of(malformed, b"\xff\xff")
    assert refusals(gate.home) == [{"status": "invalid-argument", "site": "a"}] * FIRST
    status_of(FleetStub(gate.channels["a"]).GetFab, GetFabRequest(run_id=1))
    assert refusals(gate.home)[FIRST:] == [{"status": "permission-denied", "site": "a"}]


# Enrolment


def test_wrong_token_second_use_and_guesses_at_the_enrolment_door_are_recorded_without_secrets(
    office: tuple[Home, Registry, EnrolmentStub],
) -> None:
    home, registry, stub = office
    token = enrolment.invite(home, registry, "st-anne").token
    codes = [status_of(stub.Enrol, enrol_request("st-anne", used)) for used in ("00" * 16, token, token)]
    assert codes == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED]
    guess = CollectRequest(site="st-anne", request_sha256="ab" * 32)
    assert stub.Collect(guess).state == CollectReply.REFUSED
    expected = ("unauthenticated", "unauthenticated", "permission-denied")
    assert refusals(home) == [{"status": status} for status in expected]
    recorded = b"".join(entry.to_bytes() for entry in entries(home) if entry.kind == "call-refused")
    for secret in (token.encode(), b"00" * 16, b"ab" * 32, b"127.0.0.1", b"st-anne"):
        assert secret not in recorded


def test_methods_and_limits_at_the_enrolment_door_are_recorded(
    office: tuple[Home, Registry, EnrolmentStub], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _, stub = office
    with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
        code = status_of(channel.unary_unary("/wardround.v1.Coordination/ListProposals", None, None), b"")
    assert code == grpc.StatusCode.UNIMPLEMENTED
    monkeypatch.setattr("server.gateway.interceptor.rule_of", lambda _: Rule("slow", 100, 0.01, 1, 60.0))
    assert [status_of(stub.Collect, CollectRequest(site="x")) for _ in range(2)] == [grpc.StatusCode.OK, EXHAUSTED]
    statuses = [entry["status"] for entry in refusals(home)]
    assert statuses == ["permission-denied", "permission-denied", "resource-exhausted"]


def test_strangers_at_many_addresses_do_not_fill_the_log(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    now = [0.0]
    refused = Refusals(open_log(home), Registry(home.registry), lambda: now[0])
    for number in range(3 * FIRST_OF_STRANGERS):
        refused(f"ipv6:[2001:db8::{number:x}]", "unauthenticated")
    assert len(refusals(home)) == FIRST_OF_STRANGERS
    now[0] += 61.0
    for number in range(10):
        refused(f"ipv6:[2001:db8:1::{number:x}]", "unauthenticated")
    assert len(refusals(home)) == FIRST_OF_STRANGERS + 1


def test_caller_without_a_certificate_is_not_taken_for_a_site_of_that_name(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    registry = Registry(home.registry)
    enrol(home, registry, "nobody")
    refused = Refusals(open_log(home), registry)
    refused("nobody", "permission-denied")
    refused("site nobody", "permission-denied")
    refused("site unheard-of", "permission-denied")
    assert refusals(home) == [
        {"status": "permission-denied"},
        {"status": "permission-denied", "site": "nobody"},
        {"status": "permission-denied"},
    ]


def test_doors_as_they_are_started_record_their_limits(tmp_path: Path) -> None:
    """No interceptor is given here: both doors make their own."""
    home = new_home(tmp_path / "home")
    registry = Registry(home.registry)
    gateway, door = Gateway(home, registry), serve.EnrolmentDoor(home, registry)
    server = serve.start_gateway(home, gateway)
    try:
        with enrol(home, registry, "a").channel(home) as channel:
            status_of(channel.unary_unary("/wardround.v1.Coordination/Open", None, None), b"")
        door.step()
        with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
            status_of(channel.unary_unary("/wardround.v1.Enrolment/Open", None, None), b"")
    finally:
        door.close()
        server.stop(0).wait()
        gateway.close()
    assert refusals(home) == [{"status": "permission-denied", "site": "a"}, {"status": "permission-denied"}]


def test_site_of_a_version_that_does_not_fit_is_refused_at_every_call_and_told_what_to_do(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions, "_own", lambda: "9.0.0-protocol.9")
    member = enrol(gate.home, gate.registry, "late")
    with member.channel(gate.home) as channel:
        for call in (CoordinationStub(channel).ListProposals, CoordinationStub(channel).AnswerProposal):
            error = error_of(call, ListProposalsRequest())
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            assert "Update wardround at the coordinator" in versions.refused(error)
    assert "site late has wardround 9.0.0, which speaks protocol 9" in caplog.text
    assert refusals(gate.home) == [{"site": "late", "status": "permission-denied"}] * 2
    assert gate.stubs["a"].ListProposals(ListProposalsRequest(), timeout=PATIENCE_S).revision == 0


def test_site_of_a_version_that_does_not_fit_is_told_when_it_joins(
    tmp_path: Path, office: tuple[Home, Registry, EnrolmentStub], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry, _ = office
    monkeypatch.setattr(versions, "_own", lambda: "9.0.0-protocol.9")
    invitation = enrolment.invite(home, registry, "late")
    with pytest.raises(EnrolmentError, match="Update wardround at the coordinator"):
        join(tmp_path / "late", invitation, timeout_s=PATIENCE_S, show_phrase=lambda _: None)
