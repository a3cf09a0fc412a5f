"""Attacks on a coordinator that is really started: each is refused with the right answer and written down.

A case is a claim, an attack, how it must end, and what the log must say; all of them run while two honest hospitals go
on with their rounds. Outcomes: a gRPC status; HUNG_UP for a connection that ends before a byte of HTTP/2 is answered;
or a word. gRPC writes why a handshake failed, but not who tried; of what its core refuses by itself (connections and
metadata beyond a limit, a time-out) it writes nothing: those cases say so.
"""

import datetime
import hashlib
import json
import re
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, Metadata
from flwr.app.message import make_message
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.flower.packing import pack_message
from common.identity import certificates, operators
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import request_digest
from common.wire import channels
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record
from common.wire.wardround_pb2 import (
    AnswerProposalRequest,
    CollectReply,
    CollectRequest,
    EnrolRequest,
    ListProposalsRequest,
    RenewRequest,
)
from common.wire.wardround_pb2_grpc import CoordinationStub, EnrolmentStub
from server.commands import doctor
from server.gateway import enrolment
from server.gateway.limits import ANNOUNCEMENT, CALLS_AT_ONCE, CONTROL, ENROLMENT, NOTE_EVERY_S, OBJECT
from tests import ROOT, loopback
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import Member, asked, enrol_request, status_of
from tests.system.stage import HOSTILE, Stage, frame, headers, matching

pytestmark = pytest.mark.system

Code = grpc.StatusCode
HUNG_UP = "hung up"
NOT_FOUND = "not found"
REFUSED = "connection refused"
UNLOGGED = ""
# So long at most a call is held.
HELD_S = 30.0

Attack = Callable[[Stage], Any]


@dataclass(frozen=True)
class Case:
    """One line of the matrix; `logged` is a regular expression, or UNLOGGED where gRPC's core writes nothing."""

    claim: str
    attack: Attack
    outcome: Any
    logged: str


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    opened = Stage(tmp_path_factory.mktemp("matrix"))
    with opened.playing():
        yield opened


# Who gets in


def handshake(make: Callable[[Stage], Member | None], **settings: Any) -> Attack:
    """Connect to the gateway with a certificate."""

    def attack(stage: Stage) -> str:
        try:
            connection = stage.tls(stage.home.config.gateway_port, make(stage), **settings)
        except (ssl.SSLError, ConnectionError):
            return HUNG_UP
        answer = connection.says()
        connection.close()
        return HUNG_UP if not answer else f"answered {answer!r}"

    return attack


def other_root(name: str = "Wardround root") -> Any:
    key = certificates.new_key()
    return key, certificates.new_root(key, name)


def self_signed(_stage: Stage) -> Member:
    key = certificates.new_key()
    return Member(HOSTILE, key, certificates.to_pem(certificates.new_root(key, HOSTILE)))


def operator_certificate(stage: Stage) -> Member:
    key = Ed25519PrivateKey.generate()
    certificate = operators.certificate(key.public_key(), "admin", "admin", stage.root, stage.root_key)
    return Member("admin", key, certificates.to_pem(certificate))  # type: ignore[arg-type]  # Ed25519 is the point


def server_certificate(stage: Stage) -> Member:
    folder = stage.home.path / "pki"
    return Member("server", certificates.load_key(stage.home.open_key("server")), (folder / "server.pem").read_bytes())


def signed_by_a_site(stage: Stage) -> Member:
    mallory = stage.members[HOSTILE]
    forged = stage.certificate("north", root=(mallory.key, certificates.load_certificate(mallory.certificate)))
    return Member("north", forged.key, forged.certificate + mallory.certificate)


def plain_text(stage: Stage) -> str:
    with socket.create_connection(("127.0.0.1", stage.home.config.gateway_port), PATIENCE_S) as connection:
        connection.sendall(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
        return HUNG_UP if not connection.recv(100) else "answered"


def http_1(stage: Stage) -> str:
    connection = stage.tls(stage.home.config.gateway_port, stage.members[HOSTILE], alpn=("http/1.1",))
    answer = connection.says(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.close()
    return HUNG_UP if not answer else f"answered {answer!r}"


def calls(make: Callable[[Stage], Member]) -> Attack:
    """Connect with a certificate that TLS accepts, and call."""

    def attack(stage: Stage) -> grpc.StatusCode:
        with make(stage).channel(stage.home) as channel:
            return status_of(FleetStub(channel).ActivateNode, fleet_pb2.ActivateNodeRequest())

    return attack


OLD = "ALL:@SECLEVEL=0"
NOBODY = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
NOT_VERIFIED = "CERTIFICATE_VERIFY_FAILED"

HANDSHAKES = [
    Case("no certificate", handshake(lambda _: None), HUNG_UP, NOBODY),
    Case("no certificate in TLS 1.2", handshake(lambda _: None, version=ssl.TLSVersion.TLSv1_2), HUNG_UP, NOBODY),
    Case("another CA", handshake(lambda s: s.certificate("north", root=other_root())), HUNG_UP, NOT_VERIFIED),
    Case(
        "another CA with our root's name and an honest site's",
        handshake(lambda s: s.certificate("north", root=other_root(certificates.common_name(s.root)))),
        HUNG_UP,
        NOT_VERIFIED,
    ),
    Case("self-signed", handshake(self_signed), HUNG_UP, "KEY_USAGE_BIT_INCORRECT"),
    Case("signed by a site's own certificate", handshake(signed_by_a_site), HUNG_UP, NOT_VERIFIED),
    Case("expired", handshake(lambda s: s.certificate(HOSTILE, days=(-91, -1))), HUNG_UP, NOT_VERIFIED),
    Case("not yet valid", handshake(lambda s: s.certificate(HOSTILE, days=(1, 91))), HUNG_UP, NOT_VERIFIED),
    Case("server certificate as client", handshake(server_certificate), HUNG_UP, NOT_VERIFIED),
    Case(
        "operator certificate as client: TLS does not know its kind of key",
        handshake(operator_certificate),
        HUNG_UP,
        NOBODY,
    ),
    Case(
        "an operator's use on a site's kind of key",
        handshake(lambda s: s.certificate(HOSTILE, usage=x509.ExtendedKeyUsage([operators._USAGE]))),
        HUNG_UP,
        NOT_VERIFIED,
    ),
    Case(
        "the root itself as client",
        handshake(lambda s: Member("root", s.root_key, certificates.to_pem(s.root))),
        HUNG_UP,
        "KEY_USAGE_BIT_INCORRECT",
    ),
    Case(
        "TLS 1.0",
        handshake(lambda s: s.members[HOSTILE], version=ssl.TLSVersion.TLSv1, ciphers=OLD),
        HUNG_UP,
        "UNSUPPORTED_PROTOCOL",
    ),
    Case(
        "TLS 1.1",
        handshake(lambda s: s.members[HOSTILE], version=ssl.TLSVersion.TLSv1_1, ciphers=OLD),
        HUNG_UP,
        "UNSUPPORTED_PROTOCOL",
    ),
    Case(
        "cipher without forward secrecy",
        handshake(lambda s: s.members[HOSTILE], version=ssl.TLSVersion.TLSv1_2, ciphers="AES128-SHA:@SECLEVEL=0"),
        HUNG_UP,
        "WRONG_CURVE",
    ),
    Case(
        "cipher in CBC mode",
        handshake(
            lambda s: s.members[HOSTILE], version=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"
        ),
        HUNG_UP,
        "NO_SHARED_CIPHER",
    ),
    Case("plain HTTP", plain_text, HUNG_UP, "HTTP_REQUEST"),
    Case("HTTP/1.1 in TLS", http_1, HUNG_UP, UNLOGGED),
    Case("no ALPN", handshake(lambda s: s.members[HOSTILE], alpn=()), HUNG_UP, UNLOGGED),
    Case(
        "certificate of our root that the registry does not know",
        calls(lambda s: s.certificate("north")),
        Code.PERMISSION_DENIED,
        "denied: .*not of an active site",
    ),
    Case(
        "revoked", calls(lambda s: s.members["gone"]), Code.PERMISSION_DENIED, "denied: site gone: .*not of an active"
    ),
]


# What a certificate allows


def fleet(method: str, request: Callable[[Stage], Any]) -> Attack:
    return lambda stage: status_of(getattr(stage.fleet, method), request(stage))


def raw(path: str, data: bytes = b"", metadata: Any = None) -> Attack:
    """Bytes of our own to any method."""

    def attack(stage: Stage) -> grpc.StatusCode:
        call = stage.channel.unary_unary(path, None, None)
        return status_of(lambda request, timeout: call(request, timeout=timeout, metadata=metadata), data)

    return attack


REQUESTS: dict[str, Callable[[Node], Any]] = {
    "DeactivateNode": lambda node: fleet_pb2.DeactivateNodeRequest(node_id=node.node_id),
    "SendNodeHeartbeat": lambda node: heartbeat_pb2.SendNodeHeartbeatRequest(node=node),
    "PullMessages": lambda node: fleet_pb2.PullMessagesRequest(node=node),
    "PullObject": lambda node: message_pb2.PullObjectRequest(node=node),
    "ConfirmMessageReceived": lambda node: message_pb2.ConfirmMessageReceivedRequest(node=node),
    "PushMessages": lambda node: fleet_pb2.PushMessagesRequest(node=node),
    "PushObject": lambda node: message_pb2.PushObjectRequest(node=node),
    "GetRun": lambda node: run_pb2.GetRunRequest(node=node),
}


def numbered(node_id: int) -> Callable[[Stage], Node]:
    return lambda _: Node(node_id=node_id)


def with_node(method: str, node: Callable[[Stage], Node]) -> Attack:
    return fleet(method, lambda stage: REQUESTS[method](node(stage)))


def watch(stage: Stage) -> grpc.StatusCode:
    try:
        next(health_pb2_grpc.HealthStub(stage.channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S))
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


NOT_OWN = "denied: site mallory: .*node id .*not its own"
METHODS = [
    Case(
        "RegisterNode",
        fleet("RegisterNode", lambda _: fleet_pb2.RegisterNodeFleetRequest(public_key=b"mine")),
        Code.PERMISSION_DENIED,
        "denied: site mallory: RegisterNode",
    ),
    Case(
        "UnregisterNode",
        fleet("UnregisterNode", lambda s: fleet_pb2.UnregisterNodeFleetRequest(node_id=s.node.node_id)),
        Code.PERMISSION_DENIED,
        "denied: site mallory: UnregisterNode",
    ),
    Case(
        "GetFab",
        fleet("GetFab", lambda s: fab_pb2.GetFabRequest(node=s.node, run_id=s.run_id)),
        Code.PERMISSION_DENIED,
        "denied: site mallory: GetFab",
    ),
    *(
        Case(f"{path} is not served at the gateway", raw(path), Code.UNIMPLEMENTED, "mallory at .*: .*not served")
        for path in (
            "/flwr.proto.Control/StartRun",
            "/flwr.proto.Fleet/CreateNode",
            "/wardround.v1.Enrolment/Enrol",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/",
        )
    ),
    Case("a health watch, which would hold a thread", watch, Code.UNIMPLEMENTED, "mallory at .*Watch: .*not served"),
    *(
        Case(
            f"another site's node id in {method}",
            with_node(method, lambda s: s.node_of("north")),
            Code.PERMISSION_DENIED,
            NOT_OWN,
        )
        for method in REQUESTS
    ),
    *(
        Case(
            f"node id {number} in {method}",
            with_node(method, numbered(number)),
            Code.PERMISSION_DENIED,
            NOT_OWN,
        )
        for method in ("PullMessages", "PushObject")
        for number in (0, 1, 2**64 - 1)
    ),
    Case(
        "node id -1 in DeactivateNode",
        raw("/flwr.proto.Fleet/DeactivateNode", b"\x08" + b"\xff" * 9 + b"\x01"),
        Code.PERMISSION_DENIED,
        NOT_OWN,
    ),
]


# Runs, objects, replies


def announcement(stage: Stage, **changes: Any) -> Any:
    """A reply to the message the site was sent; changes to the metadata."""
    proto, tree, _objects = pack_message(reply_of(stage))
    for name, value in changes.items():
        setattr(proto.metadata, name, value)
    return fleet_pb2.PushMessagesRequest(node=stage.node, messages_list=[proto], message_object_trees=[tree])


def reply_of(stage: Stage) -> Message:
    head, _ = stage.delivery
    old = head.metadata
    metadata = Metadata(
        run_id=old.run_id,
        message_id="",
        src_node_id=stage.node.node_id,
        dst_node_id=old.src_node_id,
        reply_to_message_id=old.message_id,
        group_id=old.group_id,
        created_at=time.time(),
        ttl=600.0,
        message_type=old.message_type,
    )
    reply = TrainReply("0" * 64, 1, {"weights": b"x" * 1000}, 3, {"train-loss": 1.0})
    return make_message(metadata, reply_to_record(reply))


def pulls_object(object_id: Callable[[Stage], str], run_id: Callable[[Stage], int]) -> Attack:
    def attack(stage: Stage) -> str:
        request = message_pb2.PullObjectRequest(node=stage.node, run_id=run_id(stage), object_id=object_id(stage))
        response = stage.fleet.PullObject(request)
        return NOT_FOUND if not response.object_found and not response.object_content else "found"

    return attack


def upload(
    stage: Stage, content: bytes, *, session: str | None = None, object_id: str | None = None
) -> grpc.StatusCode:
    """Announce a reply, then send an object."""
    announced = stage.fleet.PushMessages(announcement(stage))
    request = message_pb2.PushObjectRequest(
        node=stage.node,
        session_id=announced.session_id if session is None else session,
        object_id=object_id or announced.objects_to_push[0],
        object_content=content,
    )
    return status_of(stage.fleet.PushObject, request)


def two_replies(stage: Stage) -> Any:
    request = announcement(stage)
    request.messages_list.append(request.messages_list[0])
    return request


def many_objects(stage: Stage) -> Any:
    request = announcement(stage)
    for _ in range(1001):
        request.message_object_trees[0].children.add(object_id=secrets.token_hex(32))
    return request


BAD = Code.INVALID_ARGUMENT
REPLIES = [
    Case(
        "a run that has sent this site nothing",
        fleet("GetRun", lambda s: run_pb2.GetRunRequest(node=s.node, run_id=s.run_id + 1)),
        Code.PERMISSION_DENIED,
        "denied: site mallory: run .* has sent this site nothing",
    ),
    Case(
        "an object of its own in another run",
        pulls_object(lambda s: s.delivery[1].object_id, lambda s: s.run_id + 1),
        NOT_FOUND,
        "denied: site mallory: object",
    ),
    Case(
        "an object id it guessed",
        pulls_object(lambda _: "ab" * 32, lambda s: s.run_id),
        NOT_FOUND,
        "denied: site mallory: object",
    ),
    Case(
        "an object id with a path",
        pulls_object(lambda _: "../../root.key", lambda s: s.run_id),
        NOT_FOUND,
        "denied: site mallory: object",
    ),
    Case(
        "a reply to a message of nobody",
        fleet("PushMessages", lambda s: announcement(s, reply_to_message_id="cd" * 32)),
        BAD,
        "mallory: the reply does not answer",
    ),
    Case(
        "a reply in another run",
        fleet("PushMessages", lambda s: announcement(s, run_id=s.run_id + 1)),
        BAD,
        "mallory: the reply does not answer",
    ),
    Case(
        "a reply in the name of another node",
        fleet("PushMessages", lambda s: announcement(s, src_node_id=s.node_of("north").node_id)),
        BAD,
        "mallory: the reply's sender",
    ),
    Case(
        "an announcement of nothing",
        fleet("PushMessages", lambda s: fleet_pb2.PushMessagesRequest(node=s.node)),
        BAD,
        "mallory: exactly one reply",
    ),
    Case("two replies at once", fleet("PushMessages", two_replies), BAD, "mallory: exactly one reply"),
    Case("a reply of more than 1000 objects", fleet("PushMessages", many_objects), BAD, "mallory: the reply has 10"),
    Case(
        "an object without an announcement",
        lambda s: upload(s, b"x", session="none"),
        Code.ABORTED,
        "mallory: the reply this object belongs to",
    ),
    Case("an object whose bytes do not match its id", lambda s: upload(s, b"x"), BAD, "mallory: the object's bytes"),
    Case(
        "an object that was not announced",
        lambda s: upload(s, b"x", object_id=hashlib.sha256(b"x").hexdigest()),
        BAD,
        "mallory: the object does not belong",
    ),
    Case(
        "an answer to a run that is not open",
        lambda s: status_of(s.coordination.AnswerProposal, AnswerProposalRequest(run_hash="ef" * 32, approved=True)),
        Code.FAILED_PRECONDITION,
        "mallory: the run efefefef is not open",
    ),
]


# Shape and size


def beyond(method: str, size: int) -> Attack:
    return raw(f"/flwr.proto.Fleet/{method}", b"\x0a" + b"\xff" * size)


TOO_LARGE = Code.RESOURCE_EXHAUSTED
SIZES = [
    *(
        Case(f"malformed protobuf to {path}", raw(path, b"\xff\xff\xff"), BAD, "mallory at .*malformed")
        for path in ("/flwr.proto.Fleet/PullMessages",)
    ),
    Case(
        "a control call beyond 64 KiB",
        beyond("GetRun", CONTROL.max_bytes),
        TOO_LARGE,
        f"mallory at .*more than {CONTROL.max_bytes} bytes",
    ),
    Case(
        "an announcement beyond 1 MiB",
        beyond("PushMessages", ANNOUNCEMENT.max_bytes),
        TOO_LARGE,
        f"mallory at .*more than {ANNOUNCEMENT.max_bytes} bytes",
    ),
    Case(
        "an object beyond 32 MiB",
        beyond("PushObject", OBJECT.max_bytes),
        TOO_LARGE,
        "mallory at .*PushObject: .*too large",
    ),
    Case(
        "metadata beyond 16 KiB",
        raw("/flwr.proto.Fleet/ActivateNode", metadata=[("x", "y" * 40_000)]),
        TOO_LARGE,
        UNLOGGED,
    ),
]


@pytest.mark.parametrize("case", [*HANDSHAKES, *METHODS, *REPLIES, *SIZES], ids=lambda case: case.claim)
def test_refused_at_the_gateway(stage: Stage, case: Case) -> None:
    before = len(stage.log())
    assert case.attack(stage) == case.outcome
    if case.logged != UNLOGGED:
        eventually(lambda: matching(stage.log()[before:], case.logged), f"a line like {case.logged!r} in the log")


# Held calls, and what a site may do too much of


def test_revocation_ends_held_calls(stage: Stage) -> None:
    with stage.members["held"].channel(stage.home) as channel:
        fleet_, coordination = FleetStub(channel), CoordinationStub(channel)
        node = Node(node_id=fleet_.ActivateNode(fleet_pb2.ActivateNodeRequest()).node_id)
        revision = coordination.ListProposals(ListProposalsRequest()).revision
        held = {
            fleet_.PullMessages.future(fleet_pb2.PullMessagesRequest(node=node), timeout=PATIENCE_S),
            coordination.ListProposals.future(
                ListProposalsRequest(revision=revision, wait_s=HELD_S), timeout=PATIENCE_S
            ),
        }
        stage.registry.revoke("held")
        # By themselves they would end well, with nothing new.
        assert {call.code() for call in held} == {Code.PERMISSION_DENIED}
        assert status_of(coordination.ListProposals, ListProposalsRequest()) == Code.PERMISSION_DENIED
        request = RenewRequest(csr_pem=certificates.to_pem(certificates.csr_for("held", certificates.new_key())))
        assert status_of(coordination.Renew, request) == Code.PERMISSION_DENIED


def all_at_once(stage: Stage) -> grpc.StatusCode:
    """Many held calls: some places are given, the rest is refused at once."""
    revision = stage.coordination.ListProposals(ListProposalsRequest()).revision
    request = ListProposalsRequest(revision=revision, wait_s=HELD_S)
    futures = [stage.coordination.ListProposals.future(request, timeout=PATIENCE_S) for _ in range(30)]
    eventually(lambda: sum(one.done() for one in futures) == len(futures) - CALLS_AT_ONCE, "the rest is refused")
    code: grpc.StatusCode
    (code,) = {one.code() for one in futures if one.done()}
    for one in futures:
        one.cancel()
    eventually(lambda: status_of(stage.coordination.ListProposals, ListProposalsRequest()) == Code.OK, "free places")
    return code


def bodiless(stage: Stage) -> grpc.StatusCode:
    """Calls whose request never comes take the places of their site and no other."""
    connection = stage.tls(stage.home.config.gateway_port, stage.members[HOSTILE])
    assert connection.says()
    for stream in range(1, 2 * CALLS_AT_ONCE + 8, 2):
        connection.socket.sendall(headers(stream, "/flwr.proto.Fleet/PushObject"))
    request = ListProposalsRequest()
    code: grpc.StatusCode = eventually(
        lambda: (code := status_of(stage.coordination.ListProposals, request)) != Code.OK and code,
        "its places are taken",
    )
    with stage.members["north"].channel(stage.home) as channel:
        assert status_of(CoordinationStub(channel).ListProposals, request) == Code.OK
    connection.close()
    eventually(lambda: status_of(stage.coordination.ListProposals, request) == Code.OK, "its places are free again")
    return code


def too_fast(stage: Stage) -> grpc.StatusCode:
    """As many calls as it takes: while they come, more are allowed."""
    request = heartbeat_pb2.SendNodeHeartbeatRequest(node=stage.node)
    codes: set[grpc.StatusCode] = set()
    with ThreadPoolExecutor(8) as pool:

        def refused() -> bool:
            codes.update(pool.map(lambda _: status_of(stage.fleet.SendNodeHeartbeat, request), range(CONTROL.burst)))
            return codes != {Code.OK}

        eventually(refused, "one call too many")
    (other,) = codes - {Code.OK}
    return other


def pings(stage: Stage) -> str:
    connection = stage.tls(stage.home.config.gateway_port, stage.members[HOSTILE])
    received = connection.says()
    for _ in range(20):
        received += connection.says(frame(6, 0, 0, b"12345678"))
        if b"too_many_pings" in received:
            return "too_many_pings"
    return "answered"


FLOODS = [
    Case(
        "calls at once", all_at_once, TOO_LARGE, f"mallory at .*ListProposals: more than {CALLS_AT_ONCE} calls at once"
    ),
    Case("calls without a request", bodiless, TOO_LARGE, UNLOGGED),  # within a minute of the case before
    Case("calls a second", too_fast, TOO_LARGE, "mallory at .*more than 50 control calls a second"),
    Case("HTTP/2 pings", pings, "too_many_pings", UNLOGGED),
]


@pytest.mark.parametrize("case", FLOODS, ids=lambda case: case.claim)
def test_too_much_is_refused_to_the_one_who_does_it(stage: Stage, case: Case) -> None:
    before, began = len(stage.log()), time.monotonic()
    assert case.attack(stage) == case.outcome
    if case.logged != UNLOGGED:
        eventually(lambda: matching(stage.log()[before:], case.logged), f"a line like {case.logged!r} in the log")
        assert len(re.findall(case.logged, stage.log()[before:])) <= most_notes(began)


def most_notes(began: float) -> int:
    """Lines about one caller's refusals that there may be since a moment of the clock: one, and one a minute."""
    return 1 + int((time.monotonic() - began) / NOTE_EVERY_S)


def test_strangers_who_never_finish_a_handshake_keep_nobody_out(stage: Stage) -> None:
    port, rounds = stage.home.config.gateway_port, stage.rounds()
    loris = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    for number, one in enumerate(loris):
        one.sendall(b"\x16\x03\x01\x02\x00\x01"[: 1 + number % 6])
    with stage.members["north"].channel(stage.home) as channel:
        assert status_of(CoordinationStub(channel).ListProposals, ListProposalsRequest()) == Code.OK
    eventually(lambda: stage.rounds() > rounds + 3, "rounds go on")
    for one in loris:
        one.settimeout(6 * channels.HANDSHAKE_S)
        assert one.recv(1) == b""
        one.close()


# Enrolment


@pytest.fixture(scope="module")
def door(stage: Stage) -> Iterator[EnrolmentStub]:
    """The enrolment port, held open by an invitation that nobody uses."""
    enrolment.invite(stage.home, stage.registry, "st-luke")
    eventually(lambda: listens(stage.home.config.enrolment_port), "enrolment open")
    with channels.secure_channel(stage.home.enrolment_address, stage.home.root_pem) as channel:
        yield EnrolmentStub(channel)
    for site in stage.registry.sites():
        if site.state in ("invited", "pending"):
            stage.registry.revoke(site.name)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def request_of(site: str, token: str, csr: bytes | None = None, key: bytes | None = None) -> EnrolRequest:
    request = enrol_request(site, token)
    return EnrolRequest(
        site=site,
        token=token,
        csr_pem=request.csr_pem if csr is None else csr,
        receipt_key=request.receipt_key if key is None else key,
        proof=request.proof,
    )


def invited(stage: Stage, site: str) -> str:
    return enrolment.invite(stage.home, stage.registry, site).token


def with_csr(make: Callable[[], bytes]) -> Callable[[Stage], EnrolRequest]:
    return lambda stage: request_of("st-anne", invited(stage, "st-anne"), make())


def rsa_csr() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "st-anne")])
    return certificates.to_pem(x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()))


def p384_csr() -> bytes:
    return certificates.to_pem(certificates.csr_for("st-anne", ec.generate_private_key(ec.SECP384R1())))


def falsely_signed_csr() -> bytes:
    csr = certificates.csr_for("st-anne", certificates.new_key())
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return certificates.to_pem(x509.load_der_x509_csr(bytes(der)))


def used(stage: Stage) -> EnrolRequest:
    token = invited(stage, "st-rose")
    request = request_of("st-rose", token)
    stage.registry.redeem("st-rose", token, request.csr_pem, request.receipt_key, request.proof)
    return request_of("st-rose", token)


def replayed_after_approval(stage: Stage) -> EnrolRequest:
    request = used(stage)
    enrolment.approve(stage.home, stage.registry, "st-rose")
    stage.registry.collected("st-rose")
    stage.registry.revoke("st-rose")
    return request


def expired(stage: Stage) -> EnrolRequest:
    token = secrets.token_hex(16)
    stage.registry.invite("st-paul", token, certificates.now() - datetime.timedelta(seconds=1))
    return request_of("st-paul", token)


def swapped(stage: Stage) -> EnrolRequest:
    """Somebody on the way takes the token and sends a request of their own; the people compare phrases."""
    token = invited(stage, "st-olaf")
    honest, theirs = request_of("st-olaf", token), request_of("st-olaf", token)
    stage.registry.redeem("st-olaf", token, theirs.csr_pem, theirs.receipt_key, theirs.proof)
    here = as_phrase(request_digest(x509.load_pem_x509_csr(honest.csr_pem), honest.receipt_key))
    assert enrolment.phrase_of(stage.registry.site("st-olaf")) != here
    return honest


def another_receipt_key(stage: Stage) -> EnrolRequest:
    """The same certificate request, but the key that signs receipts was exchanged on the way."""
    token = invited(stage, "st-ives")
    honest = request_of("st-ives", token)
    stage.registry.redeem("st-ives", token, *asked("st-ives", x509.load_pem_x509_csr(honest.csr_pem)))
    here = as_phrase(request_digest(x509.load_pem_x509_csr(honest.csr_pem), honest.receipt_key))
    assert enrolment.phrase_of(stage.registry.site("st-ives")) != here
    return honest


NO_ENTRY = [
    ("a guessed token", lambda _: request_of("st-luke", "0" * 32), "'st-luke' .*refused"),
    ("no token", lambda _: request_of("st-luke", ""), "'st-luke' .*refused"),
    ("a site that was never invited", lambda _: request_of("nobody", "0" * 32), "'nobody' .*refused"),
    ("an active site's name", lambda _: request_of("north", "0" * 32), "'north' .*refused"),
    ("the token of another site", lambda s: request_of("st-luke", invited(s, "st-anne")), "'st-luke' .*refused"),
    ("an invitation used before", used, "'st-rose' .*used already"),
    ("a token replayed after approval", replayed_after_approval, "'st-rose' .*refused"),
    ("an expired invitation", expired, "'st-paul' .*expired"),
    ("a request swapped in transit", swapped, "'st-olaf' .*used already"),
    ("a receipt key swapped in transit", another_receipt_key, "'st-ives' .*used already"),
    (
        "a request in another name",
        with_csr(lambda: certificates.to_pem(certificates.csr_for("north", certificates.new_key()))),
        "must name site",
    ),
    ("a request with an RSA key", with_csr(rsa_csr), "must be ECDSA P-256"),
    ("a request with a P-384 key", with_csr(p384_csr), "must be ECDSA P-256"),
    ("a request with a false signature", with_csr(falsely_signed_csr), "signature is wrong"),
    ("a request that is none", with_csr(lambda: b"none"), "cannot be read"),
    (
        "a receipt key of another site",
        lambda s: request_of("st-anne", invited(s, "st-anne"), key=enrol_request("st-olaf", "").receipt_key),
        "receipt key has not signed",
    ),
    ("a receipt key of 31 bytes", lambda s: request_of("st-anne", invited(s, "st-anne"), key=b"x" * 31), "receipt key"),
    ("a name with a path", lambda _: request_of("../../pki", "0" * 32), "refused"),
]


@pytest.mark.parametrize(("claim", "make", "logged"), NO_ENTRY, ids=[claim for claim, _, _ in NO_ENTRY])
def test_enrolment_refuses(stage: Stage, door: EnrolmentStub, claim: str, make: Any, logged: str) -> None:
    request, before = make(stage), len(stage.log())
    assert status_of(door.Enrol, request) == Code.UNAUTHENTICATED
    eventually(lambda: matching(stage.log()[before:], logged), f"a line like {logged!r} in the log")


@pytest.mark.parametrize(
    ("site", "digest"), [("north", "0" * 64), ("north", ""), ("st-luke", "0" * 64), ("nobody", "0" * 64)]
)
def test_certificate_is_not_collected_with_a_guess(stage: Stage, door: EnrolmentStub, site: str, digest: str) -> None:
    before = len(stage.log())
    reply = door.Collect(CollectRequest(site=site, request_sha256=digest, wait_s=HELD_S), timeout=0.8 * HELD_S)
    assert (reply.state, reply.certificate_pem) == (CollectReply.REFUSED, b"")
    eventually(lambda: f"nothing to collect for '{site}'" in stage.log()[before:], "a line in the log")


def test_site_that_pins_another_root_says_nothing(stage: Stage, door: EnrolmentStub) -> None:  # UNLOGGED
    before = len(stage.log())
    with channels.secure_channel(stage.home.enrolment_address, certificates.to_pem(other_root()[1])) as channel:
        assert status_of(EnrolmentStub(channel).Enrol, request_of("st-luke", "secret")) == Code.UNAVAILABLE
    assert "st-luke" not in stage.log()[before:]


@pytest.mark.parametrize("service", ["flwr.proto.Fleet/ActivateNode", "wardround.v1.Coordination/ListProposals"])
def test_certificate_opens_nothing_at_the_enrolment_port(stage: Stage, door: EnrolmentStub, service: str) -> None:
    before, member = len(stage.log()), stage.members["north"]
    address, key = stage.home.enrolment_address, certificates.key_to_pem(member.key)
    with channels.secure_channel(address, stage.home.root_pem, key, member.certificate) as channel:
        call = channel.unary_unary(f"/{service}", None, None)
        assert status_of(call, b"") == Code.UNIMPLEMENTED
    eventually(lambda: matching(stage.log()[before:], "127.0.0.1 at .*not served"), "a line in the log")


RENEWALS = [
    (
        "in another site's name",
        lambda: certificates.to_pem(certificates.csr_for("north", certificates.new_key())),
        "must name site 'mallory'",
    ),
    ("with an RSA key", rsa_csr, "renewal of mallory refused"),
    ("with garbage", lambda: b"none", "cannot be read"),
]


@pytest.mark.parametrize(("claim", "make", "logged"), RENEWALS, ids=[claim for claim, _, _ in RENEWALS])
def test_renewal_is_refused(stage: Stage, claim: str, make: Callable[[], bytes], logged: str) -> None:
    before = len(stage.log())
    eventually(lambda: status_of(stage.coordination.ListProposals, ListProposalsRequest()) == Code.OK, "calls allowed")
    assert status_of(stage.coordination.Renew, RenewRequest(csr_pem=make())) == BAD
    eventually(lambda: matching(stage.log()[before:], logged), f"a line like {logged!r} in the log")
    assert stage.registry.site("north").fingerprint == certificates.fingerprint(
        certificates.load_certificate(stage.members["north"].certificate)
    )


def test_too_many_guesses_are_not_even_looked_at(stage: Stage, door: EnrolmentStub) -> None:
    before, began = len(stage.log()), time.monotonic()
    large = request_of("st-luke", "0" * 32, b"x" * ENROLMENT.max_bytes)
    assert status_of(door.Enrol, large) == TOO_LARGE
    codes: list[grpc.StatusCode] = []

    def guess() -> bool:
        codes.append(status_of(door.Enrol, request_of("st-luke", "0" * 32, b"x")))
        return codes[-1] != Code.UNAUTHENTICATED

    eventually(guess, "one guess too many", every_s=0.0)
    refused_at = time.monotonic()
    for _ in range(10):
        guess()
    # From then on one is looked at whenever there is room for one again, and no more.
    assert set(codes) == {Code.UNAUTHENTICATED, TOO_LARGE}
    assert codes[-10:].count(Code.UNAUTHENTICATED) <= 1 + (time.monotonic() - refused_at) * ENROLMENT.per_second
    assert codes.count(Code.UNAUTHENTICATED) <= ENROLMENT.burst + (time.monotonic() - began) * ENROLMENT.per_second
    lines = re.findall("127.0.0.1 at .*more than 5 enrolment calls a second", stage.log()[before:])
    assert 1 <= len(lines) <= most_notes(began)


# Ports


def test_enrolment_port_is_closed_while_nobody_is_expected(stage: Stage) -> None:
    for site in stage.registry.sites():
        if site.state in ("invited", "pending"):
            stage.registry.revoke(site.name)
    eventually(lambda: not listens(stage.home.config.enrolment_port), "enrolment closed")
    assert "enrolment closes" in stage.log()
    command = [sys.executable, "-m", "server.commands.main", "status", "--home", str(stage.home.path), "--json"]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    (row,) = [row for row in rows if row["what"] == "enrolment"]
    assert row["state"] == "closed: no invitation is open"


OUTSIDE = """
import http.client, json, socket, sys
port, address, routes = json.load(sys.stdin)
with socket.create_server(("0.0.0.0", 0)) as control:  # what listens everywhere is reached
    socket.create_connection((address, control.getsockname()[1])).close()
answers = []
for method, route in routes:
    try:
        connection = http.client.HTTPConnection(address, port, timeout=300)
        connection.request(method, route)
        answers.append(connection.getresponse().status)
    except ConnectionRefusedError:
        answers.append("connection refused")
print(json.dumps(answers))
"""


def test_no_route_of_the_superlink_is_reached_from_outside_its_network(stage: Stage) -> None:
    """Not even from this host's loopback."""
    assert doctor.superlink_addresses(stage.home) == set()
    assert not isinstance(stage.home.superlink, int)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(stage.home.superlink))) as client:
        paths = client.get("http://superlink/openapi.json").json()["paths"]
    routes = [("GET", "/docs"), ("GET", "/openapi.json")]
    routes += [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(routes) > 20
    for address in ("127.0.0.1", *outside_addresses()):
        question = json.dumps([stage.home.config.superlink_port, address, routes])
        done = subprocess.run(
            [sys.executable, "-c", OUTSIDE], input=question, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == [REFUSED] * len(routes)


def outside_addresses() -> list[str]:
    if loopback.entered():
        return [loopback.OTHER_ADDRESS]
    addresses = [one.address for all_ in psutil.net_if_addrs().values() for one in all_ if one.family == socket.AF_INET]
    found = [address for address in addresses if not address.startswith("127.")]
    if not found:
        pytest.skip("this machine has no address but loopback")
    return found


# The others


def test_federation_went_on_all_the_while_and_honest_calls_are_answered(stage: Stage) -> None:
    rounds = stage.rounds()
    eventually(lambda: stage.rounds() > rounds + 5, "rounds go on")
    for hospital in stage.hospitals:
        assert hospital.failures == []
        pauses = [after - before for before, after in zip(hospital.replies, hospital.replies[1:], strict=False)]
        assert max(pauses) < 15.0
        with hospital.member.channel(stage.home) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert "Traceback" not in stage.log()
