"""Real TLS, a real SuperLink, agents played by hand."""

import datetime
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from flwr.app import Message
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.audit import receipts
from common.config import sha256_of
from common.config.rundocument import from_bundle, from_toml
from common.flower import calls, packing, processes
from common.identity import certificates
from common.system.wakeup import gateway_hint, gateway_sleeper
from common.wire import channels
from common.wire.at_work import AtWork
from common.wire.endings import Ending, ending_of
from common.wire.frames import Buffer
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record, request_from_record
from common.wire.wardround_pb2 import AnswerProposalRequest, ListProposalsRequest, SubmitReceiptRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.coordinator import serve
from server.federation.members import HomeMembers
from server.gateway import nodes as gateway_nodes
from server.gateway.deliveries import Deliveries
from server.gateway.limits import CALLS_AT_ONCE
from server.gateway.objects import Objects
from server.gateway.services import Gateway
from server.home.folder import ENVIRONMENT, Home, read_nodes
from server.home.root import root_credentials
from server.home.seen import read_seen
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import RUN, RUN_TOML, Member, enrol, new_home, status_of

DENIED = grpc.StatusCode.PERMISSION_DENIED
OK = grpc.StatusCode.OK

# Two rounds over one part of 12 MB; writes down who answered what.
SERVER_APP = """
import json, os
from flwr.serverapp import ServerApp
from common.wire.messages import TrainRequest
from common.system.wakeup import gateway_hint, strategy_wake
from server.federation.broadcast import ask
from server.home.folder import open_home
from server.federation.members import HomeMembers, present
app = ServerApp()
@app.main()
def main(grid, context):
    home = open_home()
    wake, members, out = strategy_wake(home.path), HomeMembers(home, "0" * 64), []
    hint = gateway_hint(home.path)
    for number in (1, 2):
        while len(present(members)) < 2: wake(0.1)
        request = TrainRequest("0" * 64, number, {"weights": bytes([number]) * 12_000_000})
        for answer in ask(grid, members, request, timeout_s=300, wait=wake, hint=hint):
            out.append([number, answer.site, answer.reply and answer.reply.parts["weights"].hex()])
    (home.path / "answers.json.part").write_text(json.dumps(out))
    (home.path / "answers.json.part").rename(home.path / "answers.json")
"""
# Longer than any test waits: so long the gateway holds a call, and bears a site's silence, where `only_by_others` asks.
LONGER_S = 10 * PATIENCE_S
PROJECT = """
[project]
name = "toy"
version = "1.0.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "toy_server:app"
clientapp = "client.app:app"
"""


class Coordinator:
    """Home, sites and the gateway's port, in this process."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.registry = Registry(home.registry)
        self.members = {name: enrol(home, self.registry, name) for name in ("a", "b", "revoked")}
        self.live_runs: set[int] = set()
        self.start()

    def start(self) -> None:
        self._stop = threading.Event()
        self._gateway = Gateway(self.home, self.registry)
        self._server = serve.start_gateway(self.home, self._gateway)
        self._sleeper = gateway_sleeper(self.home.path)
        hints = (self._sleeper, self._gateway, self._stop)
        self._threads = [
            threading.Thread(target=serve.pass_hints_on, args=hints),
            threading.Thread(target=self._keep_house, args=(self._gateway, self._stop)),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.stop(0).wait()
        self._sleeper.close()
        self._gateway.close()

    def _keep_house(self, gateway: Gateway, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            gateway.keep_house(set(self.live_runs))


class Agent:
    """A site's agent, played by hand."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self.name = name
        self.channel = coordinator.members[name].channel(coordinator.home)
        self.fleet: Any = FleetStub(self.channel)
        self.coordination = CoordinationStub(self.channel)
        self.node = Node(node_id=self.fleet.ActivateNode(fleet_pb2.ActivateNodeRequest()).node_id)

    def pull(self) -> tuple[Any, Any]:
        def pulled() -> Any:
            response = self.fleet.PullMessages(fleet_pb2.PullMessagesRequest(node=self.node), timeout=PATIENCE_S)
            return response.messages_list and (response.messages_list[0], response.message_object_trees[0])

        head, tree = eventually(pulled, "a message")
        return head, tree

    def fetch(self, head: Any, tree: Any) -> Message:
        objects = {}
        for object_id in packing.object_ids(tree):
            response = self.fleet.PullObject(self.object_request(head.metadata.run_id, object_id))
            assert response.object_available
            objects[object_id] = response.object_content
        message = packing.unpack_message(head, tree, objects)
        self.confirm(head)
        return message

    def confirm(self, head: Any) -> None:
        self.fleet.ConfirmMessageReceived(
            message_pb2.ConfirmMessageReceivedRequest(
                node=self.node, run_id=head.metadata.run_id, message_object_id=head.metadata.message_id
            )
        )

    def push(self, reply: Message) -> None:
        announcement, objects = self.announcement(reply)
        response = self.fleet.PushMessages(announcement)
        for object_id in response.objects_to_push:
            self.fleet.PushObject(self.upload(response.session_id, object_id, objects[object_id]))

    def announcement(self, reply: Message) -> tuple[Any, dict[str, bytes]]:
        head, tree, objects = packing.pack_message(reply)
        request = fleet_pb2.PushMessagesRequest(node=self.node, messages_list=[head], message_object_trees=[tree])
        return request, objects

    def object_request(self, run_id: int, object_id: str) -> Any:
        return message_pb2.PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id)

    def upload(self, session: str, object_id: str, content: bytes) -> Any:
        return message_pb2.PushObjectRequest(
            node=self.node, session_id=session, object_id=object_id, object_content=content
        )


class Turns:
    """A lock that says when somebody has to wait for it."""

    def __init__(self) -> None:
        self.waited_for = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def start_superlink(home: Home) -> subprocess.Popen[bytes]:
    """With a SuperExec, which ends with it."""
    environment = processes.superlink_environment(home.flower) | {ENVIRONMENT: str(home.path)}
    port, path = home.config.superlink_port, home.superlink
    assert isinstance(path, Path)
    with (home.logs / "superlink.log").open("ab") as log:
        process = subprocess.Popen(processes.superlink_command(port, path), env=environment, stdout=log, stderr=log)
        command = processes.superexec_command(port, process.pid)
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    eventually(lambda: calls.superlink_answers(path))
    return process


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return new_home(tmp_path_factory.mktemp("c") / "home")


@pytest.fixture(scope="module")
def superlink(home: Home) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = [start_superlink(home)]
    yield running
    running[-1].send_signal(signal.SIGINT)
    running[-1].wait(PATIENCE_S)


@pytest.fixture(scope="module")
def coordinator(home: Home, superlink: list[subprocess.Popen[bytes]]) -> Iterator[Coordinator]:
    running = Coordinator(home)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def agents(coordinator: Coordinator) -> Iterator[tuple[Agent, Agent]]:
    first, second = Agent(coordinator, "a"), Agent(coordinator, "b")
    yield first, second
    first.channel.close()
    second.channel.close()


def toy_bundle() -> bytes:
    return bundle_of(PROJECT, SERVER_APP)


def bundle_of(project: str, server_app: str) -> bytes:
    """A bundle with code, as our own coordinator never makes one."""
    files = {"pyproject.toml": project.encode(), "toy_server.py": server_app.encode()}
    manifest = "\n".join(f"{name},{sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (files | {".info/CONTENT": manifest.encode()}).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def answer_to(message: Message, weights: bytes) -> Message:
    request = request_from_record(message.content)
    reply = TrainReply(request.run_hash, request.round, {"weights": weights}, patients=3, metrics={"train-loss": 1.0})
    return Message(reply_to_record(reply), reply_to=message)


def activate(channel: grpc.Channel) -> grpc.StatusCode:
    return status_of(FleetStub(channel).ActivateNode, fleet_pb2.ActivateNodeRequest())


# Who gets in


def test_no_certificate_no_connection(coordinator):
    home = coordinator.home
    with channels.secure_channel(home.gateway_address, home.root_pem) as channel:
        assert activate(channel) == grpc.StatusCode.UNAVAILABLE


def test_certificate_of_another_root_is_refused(coordinator):
    key, other = certificates.new_key(), certificates.new_key()
    root = certificates.new_root(
        other, certificates.common_name(certificates.load_certificate(coordinator.home.root_pem))
    )
    forged = Member(
        "a", key, certificates.to_pem(certificates.site_certificate(certificates.csr_for("a", key), "a", root, other))
    )
    with forged.channel(coordinator.home) as channel:
        assert activate(channel) == grpc.StatusCode.UNAVAILABLE


def test_server_certificate_is_no_entry_ticket(coordinator):
    pki_folder = coordinator.home.path / "pki"
    key = certificates.load_key(coordinator.home.open_key("server"))
    with Member("a", key, (pki_folder / "server.pem").read_bytes()).channel(coordinator.home) as channel:
        assert activate(channel) == grpc.StatusCode.UNAVAILABLE


def test_certificate_of_our_root_that_was_never_recorded_is_denied(coordinator):
    key = certificates.new_key()
    root_key, root = root_credentials(coordinator.home)
    unknown = Member(
        "a",
        key,
        certificates.to_pem(certificates.site_certificate(certificates.csr_for("a", key), "a", root, root_key)),
    )
    with unknown.channel(coordinator.home) as channel:
        assert activate(channel) == DENIED


def held(coordinator: Coordinator, site: str) -> int:
    """How many calls of a site the gateway holds now."""
    return coordinator._gateway.nodes.notifier.calls(site)


def test_when_a_site_last_called_is_noted(coordinator, agents, monkeypatch):
    monkeypatch.setattr(gateway_nodes, "NOTE_SEEN_EVERY_S", 0.0)
    before = datetime.datetime.now(datetime.UTC)
    agents[0].coordination.ListProposals(ListProposalsRequest())
    eventually(
        lambda: read_seen(coordinator.home.path).get("a", datetime.datetime.min.replace(tzinfo=before.tzinfo)) >= before
    )


@pytest.fixture
def only_by_others(monkeypatch):
    """No held call ends by itself, and no site is away because it says nothing."""
    monkeypatch.setattr("server.gateway.fleet.PULL_WAIT_S", LONGER_S)
    monkeypatch.setattr("server.gateway.coordination.LIST_WAIT_S", LONGER_S)
    monkeypatch.setattr("server.gateway.nodes.SILENCE_S", LONGER_S)


@pytest.mark.usefixtures("only_by_others")
def test_revocation_acts_on_an_open_connection_and_a_held_call(coordinator):
    agent = Agent(coordinator, "revoked")
    call = agent.fleet.PullMessages.future(fleet_pb2.PullMessagesRequest(node=agent.node), timeout=PATIENCE_S)
    eventually(lambda: held(coordinator, "revoked") == 1)
    coordinator.registry.revoke("revoked")
    assert status_of(agent.coordination.ListProposals, ListProposalsRequest()) == DENIED
    assert call.code() == DENIED
    agent.channel.close()


@pytest.mark.usefixtures("only_by_others")
def test_revocation_by_another_process_ends_every_held_call(coordinator, agents, monkeypatch):
    """And the house is not kept, because a SuperLink is slow, say."""
    monkeypatch.setattr(Gateway, "keep_house", lambda *_: None)
    coordinator.members["shut-out"] = enrol(coordinator.home, coordinator.registry, "shut-out")
    agent = Agent(coordinator, "shut-out")
    known = agent.coordination.ListProposals(ListProposalsRequest()).revision
    requests = [
        (agent.fleet.PullMessages, fleet_pb2.PullMessagesRequest(node=agent.node)),
        (agent.coordination.ListProposals, ListProposalsRequest(revision=known, wait_s=LONGER_S)),
    ]
    calls = [call.future(request, timeout=PATIENCE_S) for call, request in requests]
    eventually(lambda: held(coordinator, "shut-out") == 2)
    command = [sys.executable, "-m", "server.commands.main", "revoke", "shut-out"]
    environment = {**os.environ, ENVIRONMENT: str(coordinator.home.path)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    eventually(lambda: all(call.done() for call in calls))
    assert [call.code() for call in calls] == [DENIED, DENIED]
    agent.channel.close()


@pytest.mark.usefixtures("only_by_others")
def test_place_of_a_caller_who_has_gone_is_free_at_once(coordinator, agents):
    """More calls than a site may make at a time, each given up by the caller."""
    agent = agents[0]
    known = agent.coordination.ListProposals(ListProposalsRequest()).revision
    request = ListProposalsRequest(revision=known, wait_s=LONGER_S)
    for _ in range(CALLS_AT_ONCE + 1):
        call = agent.coordination.ListProposals.future(request, timeout=PATIENCE_S)
        eventually(lambda: held(coordinator, "a") > 0)
        call.cancel()
    eventually(lambda: status_of(agent.coordination.ListProposals, ListProposalsRequest()) == OK)


@pytest.mark.usefixtures("only_by_others")
def test_a_newer_pull_ends_the_one_before_it(coordinator, agents):
    agent = agents[0]
    eventually(lambda: held(coordinator, "a") == 0)
    request = fleet_pb2.PullMessagesRequest(node=agent.node)
    first = agent.fleet.PullMessages.future(request, timeout=PATIENCE_S)
    eventually(lambda: held(coordinator, "a") == 1)
    second = agent.fleet.PullMessages.future(request, timeout=PATIENCE_S)
    eventually(first.done)
    assert not second.done()
    assert not first.result().messages_list
    second.cancel()


# What they may do


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RegisterNode", fleet_pb2.RegisterNodeFleetRequest(public_key=b"mine")),
        ("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=1)),
        ("GetFab", fab_pb2.GetFabRequest(run_id=1)),
    ],
)
def test_methods_that_are_not_for_sites_are_denied(agents, method, request_):
    assert status_of(getattr(agents[0].fleet, method), request_) == DENIED


@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("DeactivateNode", lambda node: fleet_pb2.DeactivateNodeRequest(node_id=node.node_id)),
        ("SendNodeHeartbeat", lambda node: heartbeat_pb2.SendNodeHeartbeatRequest(node=node)),
        ("PullMessages", lambda node: fleet_pb2.PullMessagesRequest(node=node)),
        ("PullObject", lambda node: message_pb2.PullObjectRequest(node=node)),
        ("ConfirmMessageReceived", lambda node: message_pb2.ConfirmMessageReceivedRequest(node=node)),
        ("PushMessages", lambda node: fleet_pb2.PushMessagesRequest(node=node)),
        ("PushObject", lambda node: message_pb2.PushObjectRequest(node=node)),
        ("GetRun", lambda node: run_pb2.GetRunRequest(node=node)),
    ],
)
def test_another_sites_node_id_is_denied_in_every_method(agents, method, make):
    mine, other = agents
    assert status_of(getattr(mine.fleet, method), make(other.node)) == DENIED
    assert status_of(getattr(mine.fleet, method), make(Node(node_id=12345))) == DENIED


def test_refusals_are_logged_with_the_site(agents, caplog):
    status_of(agents[0].fleet.GetRun, run_pb2.GetRunRequest(node=agents[1].node))
    assert any("site a used node id" in record.message for record in caplog.records)


def test_node_ids_are_published_for_the_server_app(coordinator, agents):
    names = read_nodes(coordinator.home)
    assert [names[agent.node.node_id] for agent in agents] == ["a", "b"]


def test_health_is_served(agents):
    reply = health_pb2_grpc.HealthStub(agents[0].channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_connected_sites_are_marked(coordinator, agents):
    assert coordinator.registry.site("a").connected


# Proposals


@pytest.mark.usefixtures("only_by_others")
def test_proposals_are_held_back_until_there_is_news_and_answered_by_the_caller(coordinator, agents):
    registry, stub = coordinator.registry, agents[0].coordination
    known = stub.ListProposals(ListProposalsRequest()).revision
    bundle = from_toml(RUN_TOML).bundle
    call = stub.ListProposals.future(ListProposalsRequest(revision=known, wait_s=LONGER_S), timeout=PATIENCE_S)
    eventually(lambda: held(coordinator, "a") > 0)
    registry.propose(from_toml(RUN_TOML), ())
    reply = call.result()
    (proposal,) = reply.proposals
    assert from_bundle(proposal.bundle).config == RUN
    assert proposal.open
    assert (proposal.run_hash, proposal.bundle_sha256) == (sha256_of(RUN), sha256(bundle).hexdigest())
    stub.AnswerProposal(AnswerProposalRequest(run_hash=proposal.run_hash, approved=True))
    assert registry.proposal(proposal.run_hash).approved == {"a"}
    refusal = AnswerProposalRequest(run_hash=proposal.run_hash, approved=False, code="policy-refused")
    stub.AnswerProposal(refusal)
    assert registry.proposal(proposal.run_hash).refused == {"a": "policy-refused"}
    stub.AnswerProposal(AnswerProposalRequest(run_hash=proposal.run_hash, withdrawn=True))
    assert (registry.proposal(proposal.run_hash).refused, registry.proposal(proposal.run_hash).denied) == ({}, set())
    stub.AnswerProposal(AnswerProposalRequest(run_hash=proposal.run_hash, approved=False, code="Anna Mueller"))
    assert registry.proposal(proposal.run_hash).refused == {}
    registry.close(proposal.run_hash, "stopped", rounds=2)
    late = AnswerProposalRequest(run_hash=proposal.run_hash, approved=True)
    assert status_of(stub.AnswerProposal, late) == grpc.StatusCode.FAILED_PRECONDITION
    (ended,) = stub.ListProposals(ListProposalsRequest()).proposals
    assert not ended.open
    assert ending_of(ended) == Ending("stopped", "", 2)


# A federation


def test_two_sites_work_two_rounds_through_restart_repetition_and_nonsense(coordinator, agents, monkeypatch):
    first, second = agents
    downloads: list[str] = []
    load = Objects.get

    def counted(self: Objects, object_id: str, download: Callable[[], bytes]) -> bytes:
        def downloaded() -> bytes:
            downloads.append(object_id)
            return download()

        return load(self, object_id, downloaded)

    monkeypatch.setattr(Objects, "get", counted)
    run_id = calls.start_run(coordinator.home.superlink, toy_bundle())
    coordinator.live_runs.add(run_id)
    about = run_pb2.GetRunRequest(node=first.node, run_id=run_id)
    assert status_of(first.fleet.GetRun, about) == DENIED  # it has asked this site for nothing yet

    # Round 1. What was not confirmed comes again; what was confirmed comes again after a restart.
    pulled = first.pull()
    assert first.fleet.GetRun(about).run.run_id == run_id
    assert first.pull()[0].metadata.message_id == pulled[0].metadata.message_id
    first.fetch(*pulled)
    first.fleet.ActivateNode(fleet_pb2.ActivateNodeRequest())
    message = first.fetch(*first.pull())
    assert request_from_record(message.content).parts["weights"] == b"\x01" * 12_000_000

    # The other site's objects are its own.
    other_pulled = second.pull()
    foreign = first.fleet.PullObject(first.object_request(run_id, other_pulled[1].object_id))
    assert not foreign.object_found
    other = second.fetch(*other_pulled)
    assert len(downloads) == len(set(downloads)), "an object was downloaded twice"

    # Malformed replies are refused and change nothing.
    request, objects = first.announcement(answer_to(message, b"first"))
    request.messages_list[0].metadata.reply_to_message_id = other_pulled[0].metadata.message_id
    assert status_of(first.fleet.PushMessages, request) == grpc.StatusCode.INVALID_ARGUMENT
    empty = fleet_pb2.PushMessagesRequest(node=first.node)
    assert status_of(first.fleet.PushMessages, empty) == grpc.StatusCode.INVALID_ARGUMENT
    request, objects = first.announcement(answer_to(message, b"first"))
    session = first.fleet.PushMessages(request).session_id
    one = next(iter(objects))
    for bad in (first.upload(session, one, objects[one] + b"x"), first.upload(session, "00" * 32, b"x")):
        assert status_of(first.fleet.PushObject, bad) == grpc.StatusCode.INVALID_ARGUMENT
    lost = first.upload("other", one, objects[one])
    assert status_of(first.fleet.PushObject, lost) == grpc.StatusCode.ABORTED

    first.push(answer_to(message, b"first"))
    second.push(answer_to(other, b"second"))

    # Round 2, in the other order: a reply given up half-way and begun anew, and a gateway that dies in between.
    message = second.fetch(*second.pull())
    second.fleet.PushMessages(second.announcement(answer_to(message, b"lost"))[0])
    second.push(answer_to(message, b"2"))
    message = first.fetch(*first.pull())
    coordinator.stop()
    coordinator.start()
    first.push(answer_to(message, b"1"))

    result = coordinator.home.path / "answers.json"
    eventually(result.exists)
    expected = [
        [1, "a", b"first".hex()],
        [1, "b", b"second".hex()],
        [2, "b", b"2".hex()],
        [2, "a", b"1".hex()],
    ]
    assert sorted(map(tuple, _json(result))) == sorted(map(tuple, expected))
    coordinator.live_runs.clear()


def test_what_a_site_says_that_it_is_at_is_known_to_the_run_until_it_says_so_no_more(coordinator, agents):
    first, second = agents
    run, members = "4d" * 32, HomeMembers(coordinator.home, "4d" * 32)

    def beat(agent: Agent, *said: tuple[str, str]) -> None:
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node)
        agent.fleet.SendNodeHeartbeat(request, metadata=said)

    def known() -> dict[str, AtWork | None]:
        return {site: one.work for site, one in members.look().items() if site in "ab"}

    beat(first, ("wardround-work", f"{run} 3 moves"))
    beat(second, ("wardround-work", f"{run} 3 hangs"))
    eventually(lambda: known() == {"a": AtWork(run, 3), "b": AtWork(run, 3, hangs=True)})
    beat(first)
    beat(second, ("wardround-work", "MUELLER^ANNA"))
    eventually(lambda: known() == {"a": None, "b": None})


def test_hospital_gets_no_signature_for_a_run_or_round_that_its_message_did_not_belong_to(coordinator, agents):
    """It would hold a receipt by which the coordinator had left out an update, of a round that it was never in."""
    first, second = agents
    for agent in agents:  # of a gateway that started anew nobody is here before they call
        agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))
    run_id = calls.start_run(coordinator.home.superlink, toy_bundle())
    coordinator.live_runs.add(run_id)
    asked, other = first.fetch(*first.pull()), second.fetch(*second.pull())
    honest = request_from_record(asked.content)
    claims = [("1f" * 32, honest.round), (honest.run_hash, 7), ("1f" * 32, 7)]

    def sign(agent: Agent, run_hash: str, round_: int, model: Buffer = honest.parts["weights"]) -> grpc.StatusCode:
        receipt = receipts.receipt_for(
            run=run_hash, round_=round_, site=agent.name, received=sha256(model).hexdigest(),
            update=sha256(b"update").hexdigest(), size=6, policy="2e" * 32,
            time=1_790_000_000.0, patients=35, spent=None,
        )  # fmt: skip
        signature = receipts.sign(receipt, coordinator.members[agent.name].receipt_key)
        request = SubmitReceiptRequest(receipt=receipt.to_bytes(), signature=signature)
        return status_of(agent.coordination.SubmitReceipt, request)

    first.push(Message(reply_to_record(TrainReply(*claims[0], {"weights": b"update"}, 35, {})), reply_to=asked))
    assert [sign(first, *claim) for claim in claims] == [grpc.StatusCode.NOT_FOUND] * 3
    second.push(answer_to(other, b"update"))
    assert sign(second, honest.run_hash, honest.round, b"another model") == grpc.StatusCode.INVALID_ARGUMENT
    assert sign(second, honest.run_hash, honest.round) == OK
    calls.stop_run(coordinator.home.superlink, run_id)
    coordinator.live_runs.clear()
    signed = [entry for entry in open_log(coordinator.home).entries() if entry.kind == "round"]
    assert [entry.fields["receipt"]["site"] for entry in signed] == ["b"]


def test_of_two_replies_that_a_hospital_sends_at_once_the_receipt_names_the_one_that_goes_on(
    coordinator, agents, monkeypatch
):
    """Both are whole before the first is through: noted would be the last, and the SuperLink takes the first."""
    agent = agents[0]
    agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))
    # A run of its own: for the other one the hospital may hold a receipt, after which no other update is noted.
    bundle = bundle_of(PROJECT, SERVER_APP.replace('"0" * 64', '"7" * 64'))
    run_id = calls.start_run(coordinator.home.superlink, bundle)
    coordinator.live_runs.add(run_id)
    asked = agent.fetch(*agent.pull())
    handed_on, go_on = threading.Event(), threading.Event()
    remove = Deliveries.remove

    def slow(self: Deliveries, message_id: str) -> None:
        handed_on.set()
        assert go_on.wait(PATIENCE_S)
        remove(self, message_id)

    monkeypatch.setattr(Deliveries, "remove", slow)
    (proxy,) = [one for one in coordinator._gateway.nodes._proxies.values() if one.node_id == agent.node.node_id]
    turns = Turns()
    monkeypatch.setattr(proxy, "_handing_on", turns)

    def push(update: bytes) -> None:
        announcement, objects = agent.announcement(answer_to(asked, update))
        try:
            session = agent.fleet.PushMessages(announcement)
        except grpc.RpcError as error:  # on a busy machine the second may come when the first is through
            said.append(error.code())
            return
        for object_id in session.objects_to_push:
            said.append(
                status_of(agent.fleet.PushObject, agent.upload(session.session_id, object_id, objects[object_id]))
            )

    said: list[grpc.StatusCode] = []
    threads = [threading.Thread(target=push, args=(update,)) for update in (b"first", b"second")]
    threads[0].start()
    assert handed_on.wait(PATIENCE_S)
    threads[1].start()
    assert turns.waited_for.wait(PATIENCE_S)  # the second is here too, and not let through
    go_on.set()
    for thread in threads:
        thread.join()
    refused = [code for code in said if code != grpc.StatusCode.OK]
    assert len(refused) == 1
    assert refused[0] in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    noted = [entry.fields["update"] for entry in open_log(coordinator.home).entries() if entry.kind == "arrived"]
    assert noted[-1] == sha256(b"first").hexdigest()
    calls.stop_runs_of(coordinator.home.superlink, bundle)
    assert not calls.run_is_live(coordinator.home.superlink, run_id)
    coordinator.live_runs.clear()


def test_a_new_superlink_voids_the_node_ids_and_the_site_activates_again(coordinator, agents, superlink):
    owed = owe(coordinator, agents[0].node, "of-the-old-node")
    superlink[-1].kill()
    superlink[-1].wait()
    agent = agents[0]
    assert activate(agent.channel) == grpc.StatusCode.UNAVAILABLE
    superlink.append(start_superlink(coordinator.home))
    old = agent.node
    agent.node = Node(node_id=agent.fleet.ActivateNode(fleet_pb2.ActivateNodeRequest()).node_id)
    assert agent.node.node_id != old.node_id
    eventually(lambda: not owed())
    stale = heartbeat_pb2.SendNodeHeartbeatRequest(node=old)
    assert status_of(agent.fleet.SendNodeHeartbeat, stale) == grpc.StatusCode.ABORTED
    assert agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node)).success
    # The other site's node is void as well.
    agents[1].node = Node(node_id=agents[1].fleet.ActivateNode(fleet_pb2.ActivateNodeRequest()).node_id)


@pytest.mark.usefixtures("only_by_others")
def test_who_says_goodbye_is_away_until_it_calls_again(coordinator, agents):
    agent = agents[0]
    eventually(lambda: held(coordinator, "a") == 0)
    call = agent.fleet.PullMessages.future(fleet_pb2.PullMessagesRequest(node=agent.node), timeout=PATIENCE_S)
    eventually(lambda: held(coordinator, "a") == 1)
    agent.fleet.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=agent.node.node_id))
    assert call.code() == OK
    assert not coordinator.registry.site("a").connected
    agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))
    assert coordinator.registry.site("a").connected


# Who is away


@pytest.mark.usefixtures("only_by_others")
def test_a_site_whose_connection_breaks_is_away_before_its_silence_would_say_so_and_one_that_calls_again_is_not(
    coordinator, agents, caplog
):
    caplog.set_level(logging.WARNING)
    first, second = agents
    for agent in agents:
        agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))
    request = ListProposalsRequest(revision=coordinator.registry.revision(), wait_s=LONGER_S)

    def is_held(name):
        return held(coordinator, name) > 0

    for name in ("b", "a"):  # who calls again was gone first
        with coordinator.members[name].channel(coordinator.home) as channel:
            call = CoordinationStub(channel).ListProposals.future(request, timeout=PATIENCE_S)
            eventually(partial(is_held, name))
        assert call.done()
        eventually(partial(coordinator._gateway.nodes._gone.__contains__, name))
        if name == "b":
            second.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=second.node))
    eventually(lambda: not coordinator.registry.site("a").connected)
    coordinator._gateway.keep_house(set())
    assert "site a has gone without a word" in caplog.text
    assert "site b has gone" not in caplog.text
    assert coordinator.registry.site("b").connected
    first.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=first.node))
    assert coordinator.registry.site("a").connected


@pytest.mark.parametrize("status", [500, 503])
def test_a_superlink_that_fails_says_nothing_of_the_node_and_no_site_is_let_go_for_it(
    coordinator, agents, monkeypatch, caplog, status
):
    """Its database is locked now and then; an agent would have to activate anew each time."""
    caplog.set_level(logging.WARNING)
    _, second = agents
    second.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=second.node))
    gateway = coordinator._gateway
    proxy = gateway.nodes._proxies["b"]
    request = httpx.Request("POST", "http://superlink")

    def fails(_: object) -> None:
        raise httpx.HTTPStatusError(
            f"locked {status}", request=request, response=httpx.Response(status, request=request)
        )

    monkeypatch.setattr(proxy, "_client", SimpleNamespace(SendNodeHeartbeat=fails))
    monkeypatch.setattr(proxy, "_beat_at", 0.0)
    gateway.keep_house(set())
    assert "the SuperLink does not answer for site b" in caplog.text
    assert coordinator.registry.site("b").connected


def owe(coordinator: Coordinator, node: Node, name: str, ttl_s: float = 1000.0) -> Callable[[], list[Any]]:
    """Give a site's node a message of a run that is not over for the gateway; what it owes then."""
    deliveries = coordinator._gateway.nodes._deliveries
    metadata = message_pb2.Metadata(message_id=name, run_id=3, ttl=ttl_s)
    deliveries.add(node.node_id, message_pb2.Message(metadata=metadata), message_pb2.ObjectTree(object_id=name))
    return partial(deliveries.of, node.node_id)


@pytest.mark.parametrize(("status", "is_kept"), [(500, True), (503, True), (404, False)])
def test_an_overdue_message_is_let_go_when_the_superlink_has_heard_of_it_and_holds_up_no_beat(
    coordinator, agents, monkeypatch, status, is_kept
):
    _, second = agents
    second.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=second.node))
    nodes = coordinator._gateway.nodes
    proxy = nodes._proxies["b"]
    request = httpx.Request("POST", "http://superlink")
    beats, tries = [], []

    def fails(_: object) -> None:
        tries.append(1)
        if len(tries) > 3:
            return  # it has recovered
        raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))

    def beat(_: object) -> SimpleNamespace:
        beats.append(1)
        return SimpleNamespace(success=True)

    with monkeypatch.context() as patched:
        patched.setattr(proxy, "_client", SimpleNamespace(SendNodeHeartbeat=beat, ConfirmMessageReceived=fails))
        patched.setattr(proxy, "_beat_at", 0.0)
        owed = owe(coordinator, second.node, f"late-{status}", -100.0)
        eventually(lambda: not owed())
        assert len(tries) == (4 if is_kept else 1)
        assert beats
    assert coordinator.registry.site("b").connected


def test_what_a_revoked_site_owes_is_kept_no_longer_and_what_others_owe_is(coordinator, agents):
    coordinator.members["owes"] = enrol(coordinator.home, coordinator.registry, "owes")
    agent = Agent(coordinator, "owes")
    revoked, other = owe(coordinator, agent.node, "of-owes"), owe(coordinator, agents[1].node, "of-b")
    nodes = coordinator._gateway.nodes
    nodes.keep_house(set())
    assert len(revoked()) == len(other()) == 1
    coordinator.registry.revoke("owes")
    eventually(lambda: not revoked())
    assert len(other()) == 1
    nodes._deliveries.remove("of-b")
    agent.channel.close()


def test_what_was_owed_to_a_run_that_ended_while_the_gateway_was_not_there_is_not_delivered(coordinator, agents):
    owed = owe(coordinator, agents[1].node, "of-the-past")
    coordinator._gateway.keep_house(set())
    assert owed()
    coordinator.stop()
    coordinator.start()
    assert "b" in coordinator._gateway.nodes._proxies
    deliveries = coordinator._gateway.nodes._deliveries
    eventually(lambda: not deliveries.of(agents[1].node.node_id))
    for agent in agents:
        agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))


def test_a_superlink_that_does_not_know_a_node_has_its_site_activate_again(coordinator, agents, monkeypatch):
    _, second = agents
    second.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=second.node))
    gateway = coordinator._gateway
    proxy = gateway.nodes._proxies["b"]
    request = httpx.Request("POST", "http://superlink")

    def unknown(_: object) -> None:
        raise httpx.HTTPStatusError("who?", request=request, response=httpx.Response(401, request=request))

    with monkeypatch.context() as patched:
        patched.setattr(proxy, "_client", SimpleNamespace(SendNodeHeartbeat=unknown))
        patched.setattr(proxy, "_beat_at", 0.0)
        gateway.keep_house(set())
    assert not coordinator.registry.site("b").connected
    second.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=second.node))
    assert coordinator.registry.site("b").connected


def test_of_a_superlink_that_does_not_know_one_node_all_are_asked_about_at_once(coordinator, agents, monkeypatch):
    """A site beats every few minutes; a SuperLink that was started anew is noticed sooner, for all of them."""
    for agent in agents:
        agent.fleet.SendNodeHeartbeat(heartbeat_pb2.SendNodeHeartbeatRequest(node=agent.node))
    nodes = coordinator._gateway.nodes
    asked: list[str] = []
    with monkeypatch.context() as patched:
        for name, proxy in nodes._proxies.items():
            patched.setattr(proxy, "_client", SimpleNamespace(SendNodeHeartbeat=partial(_unknown, asked, name)))
        patched.setattr(nodes, "_probe_at", 0.0)
        eventually(lambda: not any(coordinator.registry.site(one.name).connected for one in agents))
    assert {"a", "b"} <= set(asked)


def _unknown(asked: list[str], name: str, _: object) -> SimpleNamespace:
    asked.append(name)
    return SimpleNamespace(success=False)


def test_a_hint_wakes_the_site_that_it_names_and_no_other(coordinator, agents, monkeypatch):
    """Looks of one site that is told of nothing do not grow with the messages of the others."""
    monkeypatch.setattr(gateway_nodes, "LOOK_EVERY_S", 3600.0)
    looks: Counter[str] = Counter()
    for name, proxy in coordinator._gateway.nodes._proxies.items():
        monkeypatch.setattr(proxy._client, "PullMessages", partial(_nothing, looks, name))
        proxy.expect()
    coordinator.live_runs = {1}
    held = [agent.fleet.PullMessages.future(fleet_pb2.PullMessagesRequest(node=agent.node)) for agent in agents]
    try:
        eventually(lambda: looks["a"] == looks["b"] == 1)
        hint, nodes = gateway_hint(coordinator.home.path), {agent.name: agent.node.node_id for agent in agents}
        for number in range(2, 12):
            hint([nodes["a"]])
            eventually(partial(_has_looked, looks, "a", number))
        hint([nodes["b"]])
        eventually(lambda: looks["b"] > 1)
        assert looks == {"a": 11, "b": 2}
    finally:
        coordinator.live_runs = set()
        for call in held:
            call.cancel()


def test_of_messages_of_two_runs_that_one_hint_told_of_the_second_waits_for_no_look_of_its_own(
    coordinator, agents, monkeypatch
):
    monkeypatch.setattr(gateway_nodes, "LOOK_EVERY_S", 3600.0)
    agent, waiting = agents[0], [_of_run(1), _of_run(2)]
    proxy = coordinator._gateway.nodes._proxies["a"]
    monkeypatch.setattr(
        proxy._client, "PullMessages", lambda _: waiting.pop(0) if waiting else fleet_pb2.PullMessagesResponse()
    )
    coordinator.live_runs = {1, 2}
    try:
        eventually(lambda: coordinator._gateway.nodes.live_runs == {1, 2})
        proxy.expect()
        request, got = fleet_pb2.PullMessagesRequest(node=agent.node), []
        for _ in range(2):
            (head,) = agent.fleet.PullMessages(request, timeout=PATIENCE_S).messages_list
            got.append(head.metadata.run_id)
            agent.fleet.ConfirmMessageReceived(
                message_pb2.ConfirmMessageReceivedRequest(node=agent.node, message_object_id=head.metadata.message_id)
            )
        assert got == [1, 2]
    finally:
        coordinator.live_runs = set()
        eventually(lambda: not coordinator._gateway.nodes.live_runs)


def _of_run(run_id: int) -> fleet_pb2.PullMessagesResponse:
    head = message_pb2.Message(metadata=message_pb2.Metadata(run_id=run_id, message_id=f"of-run-{run_id}"))
    return fleet_pb2.PullMessagesResponse(messages_list=[head], message_object_trees=[message_pb2.ObjectTree()])


def _has_looked(looks: Counter[str], name: str, often: int) -> bool:
    return looks[name] == often


def _nothing(looks: Counter[str], name: str, _: object) -> fleet_pb2.PullMessagesResponse:
    looks[name] += 1
    return fleet_pb2.PullMessagesResponse()


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
