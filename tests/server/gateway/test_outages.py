"""What an exchange survives, with a real SuperLink, a ServerApp in its process and real TLS: agents are played by hand.

The gateway is in this process, so that it can be made to end at a chosen moment.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.proto.message_pb2 import Message as Proto
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectRequest

from client.agent.fleet import Fleet
from common.flower import calls, packing
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record, request_from_record
from server.gateway.deliveries import NAME, Deliveries, Delivery, held
from server.gateway.node_proxy import NodeProxy
from server.registry.sites import Presence
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import new_home
from tests.server.gateway.test_services import PROJECT, Coordinator, bundle_of, start_superlink

pytestmark = pytest.mark.slow
SITES = ("a", "b")
MOST_BYTES = 1 << 20  # of a message
# Asks twice; writes down who answered, in order. Nothing here comes near its deadline.
SERVER_APP = """
import json, logging
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
    logging.getLogger("server.federation.broadcast").addHandler(logging.FileHandler(home.path / "told.log"))
    sleep, members, out = strategy_wake(home.path), HomeMembers(home, "0" * 64), []
    def wake(seconds):
        with (home.path / "looks").open("a") as looks: looks.write(".")
        sleep(seconds)
    while len(present(members)) < 2: wake(0.1)
    for number in (1, 2):
        request = TrainRequest("0" * 64, number, {"weights": bytes([number]) * 100_000})
        for answer in ask(grid, members, request, timeout_s=500, wait=wake, hint=gateway_hint(home.path)):
            out.append([number, answer.site, "weights" if hasattr(answer.reply, "parts") else str(answer)])
            (home.path / "so-far.json").write_text(json.dumps(out))
    (home.path / "answers.part").write_text(json.dumps(out))
    (home.path / "answers.part").rename(home.path / "answers.json")
"""


class Agent:
    """A site's agent: it comes back after every failure, and answers a round again with the same bytes."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        self.name = name
        self.answered = 0
        self.hold = threading.Event()  # while it is set, what was fetched is not answered
        self.holds = threading.Event()  # it has fetched something and holds it
        self._stop = threading.Event()
        self._channel = coordinator.members[name].channel(coordinator.home)
        self._fleet = Fleet(self._channel, self._stop)
        self._thread = threading.Thread(target=self._work, name=name)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self.hold.clear()
        self._channel.close()
        self._thread.join(PATIENCE_S)
        self._fleet.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._fleet.activate()
                while not self._stop.is_set():
                    if (delivery := self._fleet.pull()) is None:
                        continue
                    message = self._fleet.fetch(*delivery, MOST_BYTES)
                    while self.hold.is_set():
                        self.holds.set()
                        time.sleep(0.05)
                    request = request_from_record(message.content)
                    reply = TrainReply(request.run_hash, request.round, {"weights": request.parts["weights"]}, 3, {})
                    try:
                        self._fleet.push(packing.reply_to(message, reply_to_record(reply)))
                    except grpc.RpcError as error:
                        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                            raise
                        self._fleet.confirm(delivery[0])  # nobody waits for it
                    self.answered += 1
            except (grpc.RpcError, ValueError):
                self._stop.wait(0.2)


class Play:
    """A coordinator, its SuperLink, a ServerApp that asks, and two agents."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.agents = {name: Agent(coordinator, name) for name in SITES}
        self.deliveries = coordinator.home.flower / NAME

    def begin(self) -> None:
        superlink = self.coordinator.home.superlink
        self.coordinator.live_runs.add(calls.start_run(superlink, bundle_of(PROJECT, SERVER_APP)))

    def answers(self) -> list[list[object]]:
        path = self.coordinator.home.path / "answers.json"
        eventually(path.exists)
        found: list[list[object]] = json.loads(path.read_text())
        return found

    def so_far(self) -> list[list[object]]:
        path = self.coordinator.home.path / "so-far.json"
        try:
            found: list[list[object]] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return []
        return found

    def restart_gateway(self) -> None:
        self.coordinator.stop()
        self.coordinator.start()

    def presence(self, site: str) -> Presence:
        return self.coordinator.registry.site(site).presence


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    home = new_home(tmp_path / "home")
    superlink = start_superlink(home)
    coordinator = Coordinator(home)
    running = Play(coordinator)
    yield running
    for agent in running.agents.values():
        agent.close()
    coordinator.stop()
    superlink.terminate()
    superlink.wait(PATIENCE_S)


BOTH = sorted([number, site, "weights"] for number in (1, 2) for site in SITES)


@pytest.mark.parametrize("again", ["at once", "when the ServerApp has given it up"])
def test_gateway_that_ends_while_it_hands_a_reply_on_costs_no_round_and_holds_up_no_other_site(
    play: Play, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """The site sends the reply again, as it does to a gateway that has forgotten it."""
    whole = NodeProxy._forward
    broken = threading.Event()

    def ends(self: NodeProxy, upload: Any) -> None:
        if self.site != "a" or broken.is_set():
            return whole(self, upload)
        self._client.PushMessages(upload.request)  # announced, and nothing of it delivered
        if again != "at once":
            play.agents["a"].hold.set()
        broken.set()
        raise RuntimeError("the gateway ends here")

    monkeypatch.setattr(NodeProxy, "_forward", ends)
    play.agents["b"].hold.set()
    play.begin()
    assert play.agents["b"].holds.wait(PATIENCE_S)
    assert broken.wait(PATIENCE_S)
    play.restart_gateway()
    play.agents["b"].hold.clear()
    eventually(lambda: [1, "b", "weights"] in play.so_far())
    if again != "at once":
        log = play.coordinator.home.path / "told.log"
        eventually(lambda: "the message to a, or its answer, got lost" in log.read_text())
        play.agents["a"].hold.clear()
    assert sorted(play.answers()) == BOTH


def test_site_that_is_silent_for_longer_than_the_gateway_minds_is_waited_for(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.agents["a"].hold.set()
    play.begin()
    assert play.agents["a"].holds.wait(PATIENCE_S)
    monkeypatch.setattr("server.gateway.nodes.SILENCE_S", 0.5)
    eventually(lambda: play.presence("a") is Presence.AWAY)
    monkeypatch.undo()
    looks = play.coordinator.home.path / "looks"
    known = looks.stat().st_size
    eventually(lambda: looks.stat().st_size > known + 20)  # and the ServerApp is not told that the site failed
    assert not (play.coordinator.home.path / "answers.json").exists()
    play.agents["a"].hold.clear()
    assert sorted(play.answers()) == BOTH


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes to the file, and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_message_is_delivered_while_the_mailbox_cannot_be_written(play: Play) -> None:
    with locked(play.deliveries):
        play.begin()
        assert sorted(play.answers()) == BOTH
    # an agent is told that its reply arrived only after it went on to the ServerApp
    eventually(lambda: min(agent.answered for agent in play.agents.values()) == 2)
    assert [agent.answered for agent in play.agents.values()] == [2, 2]


def test_message_that_was_lost_with_the_gateway_is_asked_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    for agent in play.agents.values():
        agent.hold.set()
    with locked(play.deliveries):
        play.begin()
        for agent in play.agents.values():
            assert agent.holds.wait(PATIENCE_S)
        monkeypatch.setattr(Deliveries, "save", lambda _: None)  # killed: there is no time for it
        play.coordinator.stop()
        monkeypatch.undo()
    assert held(play.deliveries) == frozenset()
    play.coordinator.start()
    for agent in play.agents.values():
        agent.hold.clear()
    assert sorted(play.answers()) == BOTH


def message(name: str, size: int) -> tuple[Proto, ObjectTree]:
    """The head and the tree of one."""
    return Proto(metadata=Metadata(message_id=name, run_id=3, group_id="x" * size)), ObjectTree(object_id=name)


def test_full_disk_costs_no_message_and_the_file_is_written_when_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / NAME
    deliveries = Deliveries(path)
    deliveries.add(1, *message("first", 10))
    pages = deliveries._database.execute("PRAGMA page_count").fetchone()[0]
    deliveries._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL from here on
    deliveries.add(1, *message("second", 100_000))
    deliveries.confirm(1, "first")
    assert [(one.head.metadata.message_id, one.confirmed) for one in deliveries.of(1)] == [
        ("first", True),
        ("second", False),
    ]
    deliveries.save()
    assert held(path) == {"first"}
    deliveries._database.execute("PRAGMA max_page_count = 1000000")
    deliveries.save()
    deliveries.close()
    again = Deliveries(path)
    assert [(one.head.metadata.message_id, one.confirmed) for one in again.of(1)] == [
        ("first", True),
        ("second", False),
    ]
    again.keep_only([7])
    again.close()
    assert held(path) == frozenset()


def test_what_all_sites_have_answered_is_held_no_longer_though_the_run_goes_on(play: Play) -> None:
    gateway = play.coordinator._gateway
    for agent in play.agents.values():
        agent.hold.set()
    play.begin()
    for agent in play.agents.values():
        assert agent.holds.wait(PATIENCE_S)
    sizes = [len(one.result()) for one in gateway.nodes._objects._futures.values() if one.done()]
    assert max(sizes) >= 100_000  # the weights, for as long as a site owes an answer
    for agent in play.agents.values():
        agent.hold.clear()
    assert sorted(play.answers()) == BOTH
    assert gateway.nodes.live_runs
    eventually(lambda: not gateway.nodes._objects._futures)
    assert (gateway.nodes._objects._size, gateway.nodes._objects._request) == (0, None)


def test_what_a_site_has_not_answered_in_time_is_kept_neither_here_nor_at_the_superlink(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.agents["a"].hold.set()
    play.begin()
    assert play.agents["a"].holds.wait(PATIENCE_S)
    eventually(lambda: [1, "b", "weights"] in play.so_far())
    nodes = play.coordinator._gateway.nodes
    proxy = nodes._proxies["a"]
    (owed,) = nodes._deliveries.of(proxy.node_id)
    ask = PullObjectRequest(
        node=proxy._node, run_id=owed.head.metadata.run_id, object_id=packing.object_ids(owed.tree)[0]
    )
    assert proxy._client.PullObject(ask).object_found
    monkeypatch.setattr("server.gateway.deliveries._LEEWAY_S", -1.1 * owed.head.metadata.ttl)
    eventually(lambda: not nodes._deliveries.of(proxy.node_id))
    monkeypatch.undo()
    assert not proxy._client.PullObject(ask).object_found
    assert held(play.deliveries) == frozenset()
    play.agents["a"].hold.clear()
    eventually(lambda: play.agents["a"].answered == 1)  # it is told that nobody waits for its answer
    assert play.so_far() == [[1, "b", "weights"]]


def test_time_of_a_message_is_counted_from_when_it_came_so_that_a_clock_that_jumps_ends_none() -> None:
    head = Proto(metadata=Metadata(message_id="one", created_at=0.0, ttl=10.0))  # over since 1970, the clock says
    assert not Delivery(head, ObjectTree()).overdue
    for seconds, overdue in ((69.0, False), (71.0, True)):  # a minute more, for what is under way
        assert Delivery(head, ObjectTree(), since=time.monotonic() - seconds).overdue is overdue
