"""The agent decides before the worker sees anything, and tells the coordinator codes only.

Real certificates and gRPC over mutual TLS; the coordinator is a double that keeps every byte, the worker a double
that does what a test says.
"""

import base64
import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord, Metadata, RecordDict
from flwr.app.message import make_message
from safetensors.numpy import save

from client.agent.fleet import Fleet
from client.agent.loop import Agent
from client.agent.pulse import HANGS_S
from client.agent.status import OTHER_VERSION, OVER, only_one, read_status
from client.agent.worker_process import Worker
from client.home.offer import Offer
from client.rules import approvals
from client.site import open_site
from client.trail import log_exchange
from client.trail.audit_trail import open_log
from client.views.status import is_well, remedy, status_of
from client.worker.protocol import Answer, Describe, PipeError, Question, Work
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import RunDocument, from_bundle, from_toml
from common.errors import AuditError, ErrorCode
from common.system import database
from common.wire import pushback, versions
from common.wire.endings import Ending
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, TrainReply, TrainRequest
from common.wire.versions import Version
from tests import ROOT
from tests.client.coordinator import FLOWER_RUN, NODE_ID, OVERRIDE, Authority, Coordinator
from tests.patience import PATIENCE_S, eventually

RUN_TOML = """
name = "lesions"
data = { modality = "CT", classes = ["lesion"] }
training = { patch-size = [32, 32] }
federation = { rounds = 3 }
"""
PRIVATE_TOML = RUN_TOML + "privacy = { target-epsilon = 4.0 }\n"
OPEN_POLICY = "require-privacy = false\nmin-patients = 1\n"
PLANTED = "MUELLER^ANNA"
WEIGHTS = save({"w": np.arange(20, dtype=np.float32).reshape(4, 5)})
UPDATED = save({"w": np.arange(20, dtype=np.float32).reshape(4, 5) + 1})
OFFER = Offer(
    patients=20,
    declared_size=20,
    cohort_id="cohort",
    usable=20,
    quarantined={},
    parts={"weights": {"w": (4, 5)}},
    training=14,
)


@dataclass
class FakeWorker(Worker):
    """Answers as told, and remembers what it was asked."""

    answer: Callable[[Question], Answer]
    asked: list[Question] = field(default_factory=list)
    stopped: bool = False
    pid: int | None = 1
    network: str = "removed"
    crashes: int = 0
    still_s: float = 0.0
    tended: int = 0

    def tend(self) -> None:
        self.tended += 1

    def stop(self) -> None:
        self.stopped = True

    def ask(self, question: Question, timeout_s: float) -> Answer:
        self.asked.append(question)
        return OFFER if isinstance(question, Describe) else self.answer(question)

    @property
    def worked(self) -> list[Work]:
        return [question for question in self.asked if isinstance(question, Work)]


def good(question: Question) -> Answer:
    assert isinstance(question, Work)
    request = question.request
    if isinstance(request, TrainRequest):
        return TrainReply(request.run_hash, request.round, {"weights": UPDATED}, 15, {"train-loss": 0.5, PLANTED: 1.0})
    return EvaluateReply(request.run_hash, request.round, request.phase, 10, {"dice": 0.75})


@dataclass
class Stage:
    """One agent against one coordinator."""

    home: Path
    coordinator: Coordinator
    worker: FakeWorker
    agent: Agent

    def propose(self, toml: str = RUN_TOML) -> str:
        run = parse(RunConfig, toml)
        bundle = from_toml(toml).bundle
        digest = hashlib.sha256(bundle).hexdigest()
        self.coordinator.propose(sha256_of(run), bundle, digest)
        self.runs(sha256_of(run), digest)
        eventually(lambda: sha256_of(run) in {one.run_hash for one in approvals.load_all(self.home)})
        return sha256_of(run)

    def runs(self, run_hash: str, bundle_sha256: str = "") -> None:
        """Flower runs this one now; each has a number of its own."""
        self.coordinator.run.run_id = int(run_hash[:12], 16)
        self.coordinator.run.fab_hash = bundle_sha256 or approvals.load(self.home, run_hash).bundle_sha256

    def approve(self, run_hash: str) -> None:
        approvals.answer(self.home, run_hash, approved=True, by="person")
        # Answers to other open runs are told again with it.
        while self.coordinator.answers.get(timeout=PATIENCE_S) != (run_hash, True):
            pass

    def told(self) -> dict[str, bool]:
        """What the coordinator has been told of runs until now: our answers are told together, so that two to other
        runs, one after the other, come after whatever there is to tell."""
        told: dict[str, bool] = {}
        for _ in range(2):
            other = self.propose(RUN_TOML.replace('name = "', f'name = "{len(self.coordinator.proposals)}-'))
            approvals.answer(self.home, other, approved=False, by="person")
            while other not in told:
                told.update([self.coordinator.answers.get(timeout=PATIENCE_S)])
        return told

    def reply(self) -> Reply:
        return self.coordinator.replies.get(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextmanager
def running(home: Path, authority: Authority, port: int) -> Iterator[Stage]:
    """An agent at work, for as long as the body; it has stopped, and its worker, before the body's end is over."""
    coordinator = Coordinator(authority, port).start()
    identity = authority.admit(home, "north", coordinator.address)
    (home / "policy.toml").write_text(OPEN_POLICY)
    worker = FakeWorker(good)
    agent = Agent(home, identity, worker)
    thread = threading.Thread(target=agent.run)
    thread.start()
    yield Stage(home, coordinator, worker, agent)
    agent.stop()
    thread.join(timeout=PATIENCE_S)
    coordinator.stop()
    assert not thread.is_alive()
    assert worker.stopped


@pytest.fixture
def stage(tmp_path: Path, authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    with running(tmp_path, authority, free_port) as stage:
        yield stage


def test_approved_run_is_trained_and_evaluated(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == TrainReply(run_hash, 1, {"weights": UPDATED}, 15, {"train-loss": 0.5})
    stage.coordinator.ask(EvaluateRequest(run_hash, 1, "test", {"weights": UPDATED}))
    assert stage.reply() == EvaluateReply(run_hash, 1, "test", 10, {"dice": 0.75})
    eventually(lambda: read_status(stage.home)["last-round"]["kind"] == "evaluate")
    status = read_status(stage.home)
    assert (status["state"], status["node-id"], status["last-error"]) == ("connected", NODE_ID, None)


def test_model_is_fetched_once_for_training_and_the_evaluation_of_the_same_model(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    for phase in ("validation", "test"):
        stage.coordinator.ask(EvaluateRequest(run_hash, 1, phase, {"weights": WEIGHTS}))
        stage.reply()
    assert stage.coordinator.fetched
    assert len(stage.coordinator.fetched) == len(set(stage.coordinator.fetched))


def test_run_without_an_answer_is_refused_and_the_worker_not_asked(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.NOT_APPROVED)
    assert stage.worker.worked == []


def test_run_that_was_never_proposed_is_refused(stage: Stage) -> None:
    stage.coordinator.ask(TrainRequest("ab" * 32, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal("", 0, ErrorCode.NOT_APPROVED)


def test_answer_given_while_a_run_was_closed_is_told_when_it_is_resumed(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.coordinator.close(run_hash)
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    approvals.answer(stage.home, run_hash, approved=True, by="person")
    begun = stage.worker.tended
    eventually(lambda: stage.worker.tended > begun + 20)  # as many looks at the answers, and none to be told
    assert stage.coordinator.answers.empty()
    stage.coordinator.resume(run_hash)
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, True)


def test_site_learns_how_a_run_ended_until_it_goes_on_and_also_from_a_coordinator_that_says_it_later(
    stage: Stage,
) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.close(run_hash)  # by a coordinator of an earlier version
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    assert approvals.load(stage.home, run_hash).ending is None
    failed = Ending("failed", ErrorCode.TOO_FEW_UPDATES, 1)
    stage.coordinator.close(run_hash, failed)
    eventually(lambda: approvals.load(stage.home, run_hash).ending == failed)
    stage.coordinator.resume(run_hash)
    eventually(lambda: approvals.load(stage.home, run_hash).approved)
    assert approvals.load(stage.home, run_hash).ending is None
    assert len(approvals.resumptions(stage.home, run_hash)) == 1
    stage.coordinator.close(run_hash, Ending("completed", "", 3))
    eventually(lambda: approvals.load(stage.home, run_hash).ending == Ending("completed", "", 3))
    assert len(approvals.resumptions(stage.home, run_hash)) == 1  # or its signature would be good once more


def test_approval_taken_back_holds_from_the_next_message(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    approvals.answer(stage.home, run_hash, approved=False, by="person")
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.NOT_APPROVED)
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, False)


def test_another_bundle_than_the_approved_one_is_refused(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.run.fab_hash = "cd" * 32
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal("", 0, ErrorCode.NOT_APPROVED)
    assert stage.worker.worked == []


def test_settings_added_to_the_approved_bundle_are_refused(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.run.override_config["run"].CopyFrom(OVERRIDE)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal("", 0, ErrorCode.WRONG_RUN)


@pytest.mark.parametrize("round_", [0, 4])
def test_round_beyond_the_approved_ones_is_refused(stage: Stage, round_: int) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, round_, ErrorCode.WRONG_RUN)


@pytest.mark.parametrize(
    ("weights", "code"),
    [(b"garbage", ErrorCode.WRONG_TENSORS), (save({"w": np.zeros(3, np.float32)}), ErrorCode.WRONG_TENSORS)],
)
def test_model_that_is_not_the_runs_is_refused(stage: Stage, weights: bytes, code: ErrorCode) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": weights}))
    assert stage.reply() == Refusal(run_hash, 1, code)
    assert stage.worker.worked == []


def test_training_disguised_as_evaluation_is_refused(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}), message_type="evaluate")
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.BAD_REQUEST)


def test_message_that_is_no_request_is_refused(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    metadata = Metadata(FLOWER_RUN, "", 1, NODE_ID, "", "", time.time(), 3600.0, "query")
    content = RecordDict({"c": ConfigRecord({"code": "import os"})})
    stage.coordinator.send(make_message(metadata, content))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.BAD_REQUEST)


def test_altered_message_is_dropped_and_the_next_one_answered(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    metadata = Metadata(FLOWER_RUN, "", 1, NODE_ID, "", "", time.time(), 3600.0, "train")
    content = RecordDict({"c": ConfigRecord({"a": 1})})
    stage.coordinator.send(make_message(metadata, content), lambda data: data + b"x")
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)


def test_policy_changed_after_the_approval_holds_from_the_next_message(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    (stage.home / "policy.toml").write_text("min-patients = 21\nrequire-privacy = false\n")
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.TOO_FEW_PATIENTS)
    (stage.home / "policy.toml").write_text("min-patience = 3\n")
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.POLICY_REFUSED)
    assert stage.worker.worked == []


def test_privacy_is_charged_before_the_worker_is_asked_and_once_for_a_round(stage: Stage) -> None:
    charged: list[int] = []

    def look(question: Question) -> Answer:
        charged.append(len(open_site(stage.home).ledger.entries()))
        return good(question)

    stage.worker.answer = look
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    replies = []
    for round_ in (1, 1, 2):
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        replies.append(stage.reply())
        assert isinstance(replies[-1], TrainReply)
        assert replies[-1].patients == 0
    stage.coordinator.ask(EvaluateRequest(run_hash, 1, "test", {"weights": WEIGHTS}))
    stage.reply()
    assert replies[0] == replies[1]
    assert charged == [1, 2, 2]
    entries = open_site(stage.home).ledger.entries()
    assert {entry.attempt for entry in entries} == {work.attempt for work in stage.worker.worked[:2]}


def test_budget_of_a_run_that_ended_early_is_free_again(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    ledger = open_site(stage.home).ledger
    assert [one.run_hash for one in ledger.reservations()] == [run_hash]
    stage.coordinator.close(run_hash)
    eventually(lambda: ledger.reservations() == ())
    assert len(ledger.entries()) == 1


def test_spent_budget_stops_the_round_before_it_starts(stage: Stage) -> None:
    for number, epsilon in enumerate((4.0, 3.9)):
        toml = RUN_TOML.replace("lesions", f"lesions-{number}") + f"privacy = {{ target-epsilon = {epsilon} }}\n"
        run_hash = stage.propose(toml)
        stage.approve(run_hash)
        (stage.home / "policy.toml").write_text("min-patients = 1\nlifetime-epsilon = 4.5\n")
        stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
        reply = stage.reply()
    assert reply == Refusal(run_hash, 1, ErrorCode.BUDGET_SPENT)
    assert len(stage.worker.worked) == 1


def test_worker_that_dies_is_asked_once_more_then_a_code_and_the_next_message_is_answered(stage: Stage) -> None:
    def die(question: Question) -> Answer:
        raise PipeError(f"the worker died at /data/{PLANTED}/1.dcm")

    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.worker.answer = die
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.WORKER_FAILED)
    assert len(stage.worker.worked) == 2
    stage.worker.answer = good
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)


def dies_once() -> Callable[[Question], Answer]:
    """A worker that ends in its first task and does the next."""
    left = iter([True])

    def answer(question: Question) -> Answer:
        if next(left, False):
            raise PipeError("the worker ended while it worked")
        return good(question)

    return answer


def test_worker_that_dies_while_it_evaluates_is_asked_once_more_like_one_that_trains(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    request = EvaluateRequest(run_hash, 3, "test", {"weights": WEIGHTS})
    stage.worker.answer = dies_once()
    stage.coordinator.ask(request)
    reply = stage.reply()
    assert isinstance(reply, EvaluateReply)
    assert reply.metrics["dice"] == 0.75
    assert [work.request for work in stage.worker.worked] == [request, request]
    assert len({work.attempt for work in stage.worker.worked}) == 2


def test_worker_that_dies_twice_while_it_evaluates_is_a_code_and_is_asked_no_third_time(stage: Stage) -> None:
    def die(question: Question) -> Answer:
        raise PipeError("the worker ended while it worked")

    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.worker.answer = die
    stage.coordinator.ask(EvaluateRequest(run_hash, 3, "test", {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 3, ErrorCode.WORKER_FAILED)
    assert len(stage.worker.worked) == 2


def test_worker_that_is_late_with_an_evaluation_is_not_asked_again(stage: Stage) -> None:
    def late(question: Question) -> Answer:
        raise PipeError("no answer in time", ErrorCode.DEADLINE)

    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.worker.answer = late
    stage.coordinator.ask(EvaluateRequest(run_hash, 3, "test", {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 3, ErrorCode.DEADLINE)
    assert len(stage.worker.worked) == 1


def test_worker_that_dies_while_it_counts_the_patients_is_asked_once_more(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    (stage.home / "site.toml").touch()  # what was counted is counted anew
    os.utime(stage.home / "site.toml", (1, 1))
    ask, left = stage.worker.ask, iter([True])

    def dies_at_first(question: Question, timeout_s: float) -> Answer:
        if isinstance(question, Describe) and next(left, False):
            stage.worker.asked.append(question)
            raise PipeError("the worker ended while it worked")
        return ask(question, timeout_s)

    stage.worker.asked.clear()
    stage.worker.ask = dies_at_first  # type: ignore[method-assign]
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    assert [type(question) for question in stage.worker.asked] == [Describe, Describe, Work]


def test_agent_whose_audit_log_is_locked_says_so_once_and_is_well_again_afterwards(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_exchange, "RETRY_S", 0.01)
    monkeypatch.setattr(log_exchange, "IDLE_S", 0.01)
    # Of what is opened before the file is held and asks for it after: it may wait no longer than the test.
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 2.0)
    tries = threading.Semaphore(0)
    exchange = log_exchange.LogExchange.exchange

    def counted(*arguments: object) -> None:
        try:
            exchange(*arguments)  # type: ignore[arg-type]
        except AuditError:
            tries.release()
            raise

    monkeypatch.setattr(log_exchange.LogExchange, "exchange", counted)
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    with sqlite3.connect(stage.home / "audit.sqlite", isolation_level=None) as holder:
        with monkeypatch.context() as impatient:
            impatient.setattr(database, "_LOCK_TIMEOUT_S", 0.01)
            holder.execute("BEGIN EXCLUSIVE")
            assert all(tries.acquire(timeout=PATIENCE_S) for _ in range(10))
        holder.execute("ROLLBACK")
    told = [text for text in caplog.messages if "database is locked" in text]
    assert told
    assert len(told) == len(set(told)), told  # each thread's sentence once
    assert "Traceback" not in caplog.text
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)


def test_nothing_a_worker_says_leaves_but_numbers_and_codes(stage: Stage) -> None:
    def leak(question: Question) -> Answer:
        raise RuntimeError(f"cannot read /data/{PLANTED}/series-1.dcm")

    def hide(question: Question) -> Answer:
        reply = good(question)
        assert isinstance(reply, TrainReply)
        hidden = save({"w": np.ones((4, 5), np.float32)}, metadata={PLANTED: PLANTED})
        return TrainReply(PLANTED, 7, {"weights": hidden}, 15, {PLANTED: 1.0, f"dice-{PLANTED}": 0.5})

    run_hash = stage.propose()
    stage.approve(run_hash)
    for answer in (leak, hide, good):
        stage.worker.answer = answer
        stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
        stage.reply()
    tap = b"".join(stage.coordinator.sent)
    assert run_hash.encode() in tap  # the tap works
    for text in (PLANTED, "series-1.dcm", "/data", str(stage.home)):
        for encoded in (text.encode(), text.encode("utf-16-le"), base64.b64encode(text.encode()), text.encode().hex()):
            assert (encoded if isinstance(encoded, bytes) else encoded.encode()) not in tap


# Limits of the coordinator


class Limit:
    """Refuses a method so many times, and says when to come again, unless it is for ever."""

    def __init__(self, method: str, times: int, wait_s: float | None) -> None:
        self.method, self.left, self.wait_s = method, times, wait_s

    def __call__(self, method: str, context: grpc.ServicerContext) -> None:
        if method == self.method and self.left:
            self.left -= 1
            if self.wait_s is not None:
                pushback.tell(context, self.wait_s)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "a limit is reached")


def receipts_of(stage: Stage) -> list[str]:
    """The updates for which this site has signed."""
    return [entry.fields["receipt"]["update"] for entry in open_log(stage.home).entries() if entry.kind == "round"]


def test_update_waits_while_the_coordinator_says_not_now(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.agent.fleet.SHORTEST_PAUSE_S", 0.01)
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.limit = limit = Limit("PushObject", 5, 0.01)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == TrainReply(run_hash, 1, {"weights": UPDATED}, 15, {"train-loss": 0.5})
    assert limit.left == 0
    assert len(stage.worker.worked) == 1
    assert read_status(stage.home)["state"] == "connected"


def test_limit_that_outlasts_all_patience_costs_no_update(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.agent.fleet.SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr("client.agent.fleet.PATIENCE_S", 0.1)
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.limit = limit = Limit("PushObject", 1_000_000, 0.01)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    eventually(lambda: stage.coordinator.activations > 1)  # it gave up, and starts over
    limit.left = 0
    stage.coordinator.ask(
        TrainRequest(run_hash, 1, {"weights": WEIGHTS})
    )  # the gateway delivers what was not answered again
    assert stage.reply() == TrainReply(run_hash, 1, {"weights": UPDATED}, 15, {"train-loss": 0.5})
    assert len(stage.worker.worked) == 1
    assert receipts_of(stage) == [hashlib.sha256(UPDATED).hexdigest()]


def test_limit_on_receipts_refuses_no_round(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.agent.loop.SHORTEST_PAUSE_S", 0.01)
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.limit = limit = Limit("SubmitReceipt", 1_000_000, 0.01)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    eventually(lambda: stage.coordinator.activations > 1)  # it gave up, and starts over
    limit.left = 0
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)  # and no refusal before it


def test_reply_that_is_too_large_is_dropped_and_the_next_message_answered(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.limit = limit = Limit("PushObject", 1_000_000, None)
    stage.coordinator.ask(EvaluateRequest(run_hash, 1, "test", {"weights": WEIGHTS}))
    eventually(lambda: limit.left < 1_000_000)
    stage.coordinator.ask(EvaluateRequest(run_hash, 2, "test", {"weights": WEIGHTS}))
    eventually(lambda: len(stage.worker.worked) == 2)
    limit.left = 0
    stage.coordinator.ask(EvaluateRequest(run_hash, 3, "test", {"weights": WEIGHTS}))
    reply = stage.reply()
    while isinstance(reply, EvaluateReply) and reply.round != 3:
        reply = stage.reply()
    assert [work.request.round for work in stage.worker.worked] == [1, 2, 3]
    # A new start would bring the same message again, for ever.
    assert stage.coordinator.activations == 1


def test_policy_approves_by_itself_where_the_hospital_wants_it(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "auto-approve = true\n")
    run_hash = stage.propose()
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, True)
    proposal = approvals.load(stage.home, run_hash)
    assert proposal.answer is not None
    assert proposal.answer.by == "policy"
    assert proposal.appraisal is not None
    assert proposal.appraisal.offer == OFFER


def test_policy_denies_by_itself_what_it_forbids(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text("auto-approve = true\n")
    run_hash = stage.propose()
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, False)
    assert stage.worker.asked == []


def test_person_sees_what_the_run_would_use_before_answering(stage: Stage) -> None:
    run_hash = stage.propose()
    eventually(lambda: approvals.load(stage.home, run_hash).appraisal)
    appraisal = approvals.load(stage.home, run_hash).appraisal
    assert appraisal is not None
    assert (appraisal.offer, appraisal.refusal) == (OFFER, None)
    assert run_hash not in stage.told()


def test_bundle_that_is_not_what_it_claims_is_ignored(stage: Stage) -> None:
    run = parse(RunConfig, RUN_TOML)
    bundle = from_toml(RUN_TOML).bundle
    stage.coordinator.propose("ab" * 32, bundle, hashlib.sha256(bundle).hexdigest())
    stage.coordinator.propose(sha256_of(run), bundle + b"import os", hashlib.sha256(bundle).hexdigest())
    honest = stage.propose(PRIVATE_TOML)
    assert [proposal.run_hash for proposal in approvals.load_all(stage.home)] == [honest]


def test_a_proposal_that_nobody_signed_is_not_even_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the coordinator has no operator's key, and could have a hospital work on bundles without end."""
    read: list[bytes] = []

    def reads(bundle: bytes) -> RunDocument:
        read.append(bundle)
        return from_bundle(bundle)

    monkeypatch.setattr("client.proposals.appraise.from_bundle", reads)
    run, bundle = parse(RunConfig, RUN_TOML), from_toml(RUN_TOML).bundle
    stage.coordinator.propose(sha256_of(run), bundle, hashlib.sha256(bundle).hexdigest(), endorsements=[])
    honest = stage.propose(PRIVATE_TOML)
    assert [proposal.run_hash for proposal in approvals.load_all(stage.home)] == [honest]
    assert read == [from_toml(PRIVATE_TOML).bundle]


def test_heartbeat_says_which_round_the_worker_is_at_and_that_it_hangs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agent.loop.HEARTBEAT_S", 0.1)
    run_hash = stage.propose()
    stage.approve(run_hash)
    go_on = threading.Event()

    def slow(question: Question) -> Answer:
        assert go_on.wait(PATIENCE_S)
        return good(question)

    stage.worker.answer = slow
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    eventually(lambda: stage.coordinator.work and stage.coordinator.work[-1] == f"{run_hash} 2 moves")
    stage.worker.still_s = HANGS_S + 1
    eventually(lambda: stage.coordinator.work[-1] == f"{run_hash} 2 hangs")
    go_on.set()
    assert isinstance(stage.reply(), TrainReply)
    eventually(lambda: stage.coordinator.work[-1] is None)


def test_agent_finds_back_after_the_coordinator_was_away(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.stop()
    eventually(lambda: read_status(stage.home)["state"] == "connecting")
    stage.coordinator.start()
    eventually(lambda: read_status(stage.home)["state"] == "connected")
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, True)  # told again: it may have forgotten


@pytest.mark.parametrize("refused", [False, True], ids=["gone", "refuses us"])
def test_agent_without_its_coordinator_says_so_once_and_does_not_fill_its_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: bool
) -> None:
    eventually(lambda: read_status(stage.home)["state"] == "connected")
    monkeypatch.setattr("client.agent.loop.LARGEST_PAUSE_S", 0.02)  # a night of tries in two seconds
    monkeypatch.setattr("client.agent.loop.SHORTEST_PAUSE_S", 0.02)
    tries: list[None] = []
    activate = Fleet.activate

    def counted(self: Fleet) -> int:
        tries.append(None)
        return activate(self)

    def deny(_method: str, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "this site may not do that")

    monkeypatch.setattr(Fleet, "activate", counted)
    caplog.set_level(logging.INFO, logger="client")
    caplog.clear()
    if refused:
        stage.coordinator.limit = deny
    else:
        stage.coordinator.stop()
    eventually(lambda: read_status(stage.home)["state"] == ("refused" if refused else "connecting"))
    eventually(lambda: len(tries) > 40)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("client.")]
    assert len(said) <= 2, said
    assert "refuses this site's certificate" in said[0] if refused else "is away" in said[0]


def test_stop_says_goodbye(stage: Stage) -> None:
    eventually(lambda: read_status(stage.home)["state"] == "connected")
    stage.agent.stop()
    eventually(lambda: read_status(stage.home)["state"] == "stopped")
    assert stage.coordinator.goodbyes == 1


def test_agent_imports_neither_torch_nor_image_readers() -> None:
    heavy = ("torch", "monai", "opacus", "pydicom", "highdicom", "nibabel", "PIL", "client.data", "client.train")
    modules = "client.commands.main, client.agent.loop"
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_clocks_that_differ_are_told_before_anything_is_charged(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The message waits at the coordinator when the agent comes."""
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    authority = Authority()
    coordinator = Coordinator(authority, free_port).start()
    coordinator.clock = lambda: time.time() - 900.0
    identity = authority.admit(tmp_path, "north", coordinator.address)
    (tmp_path / "policy.toml").write_text(OPEN_POLICY)
    said_first: list[str] = []

    def work(question: Question) -> Answer:
        said_first.extend(record.message for record in caplog.records if "clock" in record.message)
        return good(question)

    worker = FakeWorker(work)
    stage = Stage(tmp_path, coordinator, worker, Agent(tmp_path, identity, worker))
    thread = threading.Thread(target=stage.agent.run)
    thread.start()
    try:
        run_hash = stage.propose(PRIVATE_TOML)
        stage.approve(run_hash)
        stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
        assert isinstance(stage.reply(), TrainReply)
        assert read_status(tmp_path)["clock"] == "15 min ahead of the coordinator's"
    finally:
        stage.agent.stop()
        thread.join(timeout=PATIENCE_S)
        coordinator.stop()
    assert any("this computer's clock is 15 min ahead of the coordinator's" in line for line in said_first)


def test_reply_that_the_coordinator_does_not_store_is_an_error_and_not_silently_dropped(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)

    def over(method: str, context: grpc.ServicerContext) -> None:
        if method == "PushObject":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the time for the reply is over")

    stage.coordinator.limit = over
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    eventually(lambda: OVER in str(read_status(stage.home)["last-error"]))
    assert remedy(OVER).startswith("nothing: what it cost is charged")
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert any("does not take the reply to a train: the time for the reply is over" in line for line in errors)


def test_coordinator_of_a_version_that_does_not_fit_is_waited_for_and_said(
    tmp_path: Path, authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so itself, or the site sees it when it connects: whichever of the two is the later one."""
    monkeypatch.setattr("client.agent.loop.LARGEST_PAUSE_S", 0.1)
    theirs, activate = ["9.0.0-protocol.9"], Coordinator.ActivateNode

    def says(self: Coordinator, request: Any, context: grpc.ServicerContext) -> Any:
        context.send_initial_metadata((("wardround-version", theirs[0]),))
        return activate(self, request, context)

    monkeypatch.setattr(Coordinator, "ActivateNode", says)
    with only_one(tmp_path), running(tmp_path, authority, free_port) as stage:
        eventually(lambda: read_status(tmp_path)["state"] == OTHER_VERSION)
        assert "Update wardround at this site" in status_of(tmp_path)["problem"]
        assert not is_well(status_of(tmp_path))
        theirs[0] = versions.stamp()[0][1]
        eventually(lambda: read_status(tmp_path)["state"] == "connected")

        def refuses(_method: str, context: grpc.ServicerContext) -> None:
            why = versions.refusal(Version("0.0.9", 0), "site north")
            context.abort(grpc.StatusCode.UNIMPLEMENTED, why)

        stage.coordinator.limit = refuses
        eventually(lambda: read_status(tmp_path)["state"] == OTHER_VERSION)
        assert "site north has wardround 0.0.9" in status_of(tmp_path)["problem"]
        stage.coordinator.limit = lambda *_: None
        eventually(lambda: read_status(tmp_path)["state"] == "connected")
        assert "versions" not in status_of(tmp_path)
