"""A hospital whose clock is wrong: its updates count, both sides are told, and nothing is thrown away without a word.

A real SuperLink and gateway over TLS; the site is a process of its own, whose clock is moved.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import Message

from common.errors import FederationError, UpdateError
from common.flower import calls
from common.identity import certificates
from common.wire import clock
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record, request_from_record
from server.commands import doctor
from server.gateway import uploads
from server.home.folder import Home
from tests import ROOT
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import new_home, status_of
from tests.server.gateway.test_services import Agent, Coordinator, _json, start_superlink, toy_bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return new_home(tmp_path_factory.mktemp("c") / "home")


@pytest.fixture(scope="module")
def coordinator(home: Home) -> Iterator[Coordinator]:
    superlink = start_superlink(home)
    running = Coordinator(home)
    yield running
    running.stop()
    superlink.send_signal(signal.SIGINT)
    superlink.wait(PATIENCE_S)


@pytest.fixture
def run(coordinator: Coordinator) -> Iterator[int]:
    """Two rounds for sites a and b."""
    run_id = calls.start_run(coordinator.home.config.superlink_port, toy_bundle())
    coordinator.live_runs.add(run_id)
    yield run_id
    with contextlib.suppress(FederationError):  # it ends by itself just now
        calls.stop_run(coordinator.home.config.superlink_port, run_id)
    coordinator.live_runs.clear()


def site_of_another_time(coordinator: Coordinator, name: str, folder: Path, off_s: float) -> subprocess.Popen[str]:
    member = coordinator.members[name]
    for file, data in (
        ("root", coordinator.home.root_pem),
        ("key", certificates.key_to_pem(member.key)),
        ("certificate", member.certificate),
    ):
        (folder / f"{file}.pem").write_bytes(data)
    command = [coordinator.home.gateway_address, str(folder), str(off_s), "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.site_of_another_time", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("off_s", "said"), [(7200.0, "2 h ahead of"), (-1200.0, "20 min behind")], ids=["two hours ahead", "behind"]
)
@pytest.mark.usefixtures("run")
def test_update_of_a_hospital_whose_clock_is_off_counts_and_both_sides_are_told(
    coordinator: Coordinator, tmp_path: Path, off_s: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = coordinator.home.path / "answers.json"
    result.unlink(missing_ok=True)
    other = Agent(coordinator, "b")
    off = site_of_another_time(coordinator, "a", tmp_path, off_s)
    try:
        assert off.stdout is not None
        measured = float(off.stdout.readline())  # before the first message
        assert abs(measured - off_s) < 5.0
        assert abs(coordinator.registry.clocks()["a"] - off_s) < 5.0
        assert any(f"clock of site a is {said} this host's" in record.message for record in caplog.records)
        (finding,) = [one for one in doctor._clocks(coordinator.home) if one.what == "clock of a"]
        assert not finding.ok
        assert f"{said} ours" in finding.detail
        for _ in range(2):
            message = other.fetch(*other.pull())
            request = request_from_record(message.content)
            reply = TrainReply(request.run_hash, request.round, {"weights": bytes([request.round])}, 10, {})
            other.push(Message(reply_to_record(reply), reply_to=message))
        eventually(result.exists)
        assert off.wait(PATIENCE_S) == 0
    finally:
        off.kill()
        off.wait()
        other.channel.close()
    answers: list[Any] = _json(result)
    assert sorted(map(tuple, answers)) == [(1, "a", "01"), (1, "b", "01"), (2, "a", "02"), (2, "b", "02")]
    assert clock.in_words(measured).startswith(said)


@pytest.mark.parametrize("checked", [True, False], ids=["by the gateway", "by the SuperLink"])
def test_reply_that_would_not_be_stored_is_an_error_and_not_thrown_away(
    coordinator: Coordinator, run: int, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """A program that dates its reply by a clock that is ahead, as those of earlier versions did."""
    agent = Agent(coordinator, "b")
    other = Agent(coordinator, "a")
    head, tree = eventually(lambda: (one := agent.pull())[0].metadata.run_id == run and one, "a message of this run")
    message = agent.fetch(head, tree)
    request = request_from_record(message.content)
    reply = Message(reply_to_record(TrainReply(request.run_hash, 1, {"weights": b"x"}, 10, {})), reply_to=message)
    reply.metadata.created_at, reply.metadata.ttl = time.time() + 7200, -6000.0
    if not checked:
        monkeypatch.setattr(uploads, "check_times", lambda *_: None)
    announcement, objects = agent.announcement(reply)
    if checked:
        assert status_of(agent.fleet.PushMessages, announcement) == grpc.StatusCode.INVALID_ARGUMENT
    else:
        response = agent.fleet.PushMessages(announcement)
        ends = [
            status_of(agent.fleet.PushObject, agent.upload(response.session_id, one, objects[one]))
            for one in response.objects_to_push
        ]
        assert ends[:-1] == [grpc.StatusCode.OK] * (len(ends) - 1)
        assert ends[-1] == grpc.StatusCode.INVALID_ARGUMENT
    agent.channel.close()
    other.channel.close()


def test_message_whose_time_is_over_takes_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dated:
        def __init__(self, created_at: float, ttl: float) -> None:
            self.created_at, self.ttl = created_at, ttl

    now = 1_790_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    uploads.check_times(Dated(now - 10, 60), Dated(now - 10, 60))  # type: ignore[arg-type]
    with pytest.raises(UpdateError, match="the time for the reply is over"):
        uploads.check_times(Dated(now - 70, 60), Dated(now - 70, 60))  # type: ignore[arg-type]
    with pytest.raises(UpdateError, match="another clock than its message"):
        uploads.check_times(Dated(now, 60), Dated(now - 10, 60))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [
        (None, "not compared yet"),
        (59.0, "as the coordinator's, within a minute"),
        (-61.0, "1 min behind the coordinator's"),
        (900.0, "15 min ahead of the coordinator's"),
        (7200.0, "2 h ahead of the coordinator's"),
        (-(86400 * 3 + 3600 * 2 + 60 * 5), "3 d 2 h 5 min behind the coordinator's"),
    ],
)
def test_difference_in_words(ahead_s: float | None, words: str) -> None:
    assert clock.in_words(ahead_s) == words


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "soon", "", "1" * 21])
def test_time_that_is_none_is_not_believed(value: str) -> None:
    assert clock.sent((("wardround-time", value),)) is None
    assert clock.sent((("wardround-time", "1790000000.5"),)) == 1_790_000_000.5
    assert clock.sent(()) is clock.sent(None) is None
