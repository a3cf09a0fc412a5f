"""A hospital beyond its bytes of an hour: its update waits and arrives whole, and the other hospital notices nothing.

The agent's own Fleet against a real gateway and SuperLink over TLS; only the clock is moved.
"""

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

from client.agent import fleet as fleets
from client.agent.fleet import Fleet
from common.flower import calls
from common.wire.records import request_from_record
from common.wire.wardround_pb2 import ListProposalsRequest
from server.coordinator import serve
from server.gateway.interceptor import Interceptor, site_of
from server.registry.audit_trail import open_log
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import new_home
from tests.server.gateway.test_services import Agent, Coordinator, answer_to, start_superlink, toy_bundle

# A model of 12 MB comes and a reply of 12 MB goes, in three objects each: both pass the limit.
BYTES_PER_HOUR = 8_000_000
UPDATE = np.random.default_rng(5).bytes(12_000_000)

_monotonic = time.monotonic


class Clock:
    """time.monotonic, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return _monotonic() + self.ahead


class Limited(Coordinator):
    """A coordinator whose interceptor has the clock of the test, and a small limit for bytes."""

    clock = Clock()

    def start(self) -> None:
        super().start()
        self._server.stop(0).wait()
        time_before = time.monotonic
        time.monotonic = self.clock  # what the interceptor takes when it is made
        try:
            interceptor = Interceptor(site_of, bytes_per_hour=BYTES_PER_HOUR, record=self._gateway.refused)
        finally:
            time.monotonic = time_before
        self._server = serve.start_gateway(self.home, self._gateway, interceptor=interceptor)

    def refused(self) -> list[dict[str, str]]:
        return [dict(entry.fields) for entry in open_log(self.home).entries() if entry.kind == "call-refused"]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Limited]:
    home = new_home(tmp_path / "home")
    superlink = start_superlink(home)
    running = Limited(home)
    yield running
    running.stop()
    superlink.send_signal(signal.SIGINT)
    superlink.wait(PATIENCE_S)


def test_update_beyond_the_bytes_of_an_hour_waits_and_arrives_whole(
    coordinator: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "SHORTEST_PAUSE_S", 0.05)
    monkeypatch.setattr(fleets, "LARGEST_PAUSE_S", 0.2)
    channel = coordinator.members["a"].channel(coordinator.home)
    fleet, other = Fleet(channel, threading.Event()), Agent(coordinator, "b")
    fleet.activate()
    run_id = calls.start_run(coordinator.home.superlink, toy_bundle())
    coordinator.live_runs.add(run_id)
    while (pulled := fleet.pull()) is None:
        pass
    done: list[int] = []

    def work() -> None:
        message = fleet.fetch(*pulled, 12_000_000)
        assert request_from_record(message.content).parts["weights"] == b"\x01" * 12_000_000
        done.append(fleet.push(answer_to(message, UPDATE)))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        eventually(lambda: {"status": "resource-exhausted", "site": "a"} in coordinator.refused())
        assert not done
        # The other site's bytes are its own.
        for _ in range(20):
            other.coordination.ListProposals(ListProposalsRequest())

        def pass_on() -> bool:
            coordinator.clock.ahead += 3600.0
            return bool(done)

        eventually(pass_on)
    finally:
        worker.join(PATIENCE_S)
    assert done[0] > len(UPDATE)
    arrived = [dict(entry.fields) for entry in open_log(coordinator.home).entries() if entry.kind == "arrived"]
    updates = [entry["update"] for entry in arrived if entry["site"] == "a"]
    assert updates == [hashlib.sha256(UPDATE).hexdigest()]
    assert all(entry.get("site") == "a" for entry in coordinator.refused())
    channel.close()
    other.channel.close()


def test_request_that_is_too_large_is_not_repeated(coordinator: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr(fleets, "PATIENCE_S", 1.0)
    channel = coordinator.members["a"].channel(coordinator.home)
    fleet = Fleet(channel, threading.Event())
    fleet.activate()
    request = ConfirmMessageReceivedRequest(message_object_id="x" * 70_000)
    asked: list[object] = []

    def ask(*arguments: object, **options: object) -> object:
        asked.append(arguments)
        return fleet._stub.ConfirmMessageReceived(*arguments, **options)

    with pytest.raises(grpc.RpcError) as caught:
        fleet._persist(ask, request, PATIENCE_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(asked) == 1
    channel.close()
