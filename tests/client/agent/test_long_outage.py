"""A line that is cut for hours: no pause of the agent grows with it, and the site works again once the line is back.

The hours are the agent's own pauses, which are noted and not slept; coordinator, certificates and gRPC are real.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.agent import loop
from client.agent.status import read_status
from client.home.identity import Identity
from common.errors import EnrolmentError
from common.wire.messages import TrainReply, TrainRequest
from tests.client.agent.test_loop import WEIGHTS, Stage, running
from tests.client.coordinator import Authority
from tests.patience import PATIENCE_S, eventually

HOURS_S = 6 * 3600.0
# What docs/reliability.md says; the code's own constants are held against it.
LONGEST_PAUSE_S, LONGEST_RENEWAL_PAUSE_S = 10.0, 3600.0
THREADS = ("message", "proposals")  # that speak with the coordinator

PAUSES: dict[str, list[float]] = defaultdict(list)


class Stop(threading.Event):
    """The agent's: where it would pause before it tries again, the pause is noted, and over at once."""

    def wait(self, timeout: float | None = None) -> bool:
        name = threading.current_thread().name
        if timeout is None or name not in THREADS:
            return super().wait(timeout)
        PAUSES[name].append(timeout)
        return super().wait(0.0005)


@pytest.fixture
def stage(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    PAUSES.clear()
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    monkeypatch.setattr(loop, "threading", SimpleNamespace(Event=Stop, Thread=threading.Thread))
    with running(tmp_path, Authority(), free_port) as stage:
        yield stage


def state(stage: Stage) -> object:
    return read_status(stage.home)["state"]


def test_after_hours_without_a_line_the_agent_tries_every_ten_seconds_and_works_at_once(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    stage.coordinator.stop()
    eventually(lambda: state(stage) == "connecting")
    PAUSES.clear()
    eventually(lambda: all(sum(PAUSES[name]) > HOURS_S for name in THREADS), "hours go by")
    assert state(stage) == "connecting"
    assert {name: max(PAUSES[name]) for name in THREADS} == dict.fromkeys(THREADS, LONGEST_PAUSE_S)
    stage.coordinator.start()
    began = time.monotonic()
    eventually(lambda: state(stage) == "connected", "it is back")
    assert time.monotonic() - began < 30.0  # gRPC's own pause is at most ten seconds, and real here
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(reply := stage.coordinator.replies.get(timeout=PATIENCE_S), TrainReply)
    assert reply.round == 2


@pytest.mark.parametrize("due", [True, False], ids=["renewal", "rotation"])
def test_renewal_that_failed_is_tried_again_as_soon_as_the_line_is_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, due: bool
) -> None:
    tries: list[bool] = []

    def fails(_home: Path, _identity: Identity, *, to_successor: bool) -> Identity:
        tries.append(to_successor)
        raise EnrolmentError("the line is cut")

    monkeypatch.setattr("client.agent.loop.renew", fails)
    monkeypatch.setattr(Identity, "renewal_is_due", property(lambda _: due))
    monkeypatch.setattr(Identity, "knows_successor", property(lambda _: True))
    eventually(lambda: tries)
    assert max(loop.RENEWAL_PAUSE_S, loop.ROTATION_PAUSE_S) <= LONGEST_RENEWAL_PAUSE_S
    assert loop.RENEWAL_PAUSE_S == 600.0
    before = len(tries)
    time.sleep(0.3)
    assert len(tries) == before  # while the line stands, not again and again
    stage.coordinator.stop()
    eventually(lambda: state(stage) == "connecting")
    time.sleep(0.3)
    assert len(tries) == before  # nor while there is none
    stage.coordinator.start()
    eventually(lambda: len(tries) > before, "it is tried again")
    assert set(tries) == {not due}
