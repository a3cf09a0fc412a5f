"""What is taken of a coordinator's message at all: of open, approved runs only, and no more than their model.

The agent, TLS and gRPC are real; the coordinator is hostile, the worker does what a test says.
"""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, RecordDict
from flwr.app.message import make_message

from client.agent.fleet import Fleet
from client.agent.status import read_status
from client.proposals.opinion import opinion_on
from client.rules import approvals
from common.errors import ErrorCode
from common.identity.operators import subject_of
from common.wire.messages import EvaluateRequest, Refusal, TrainReply, TrainRequest
from tests.client.agent.test_loop import (
    OPEN_POLICY,
    PRIVATE_TOML,
    UPDATED,
    WEIGHTS,
    Stage,
    authority,
    stage,
)
from tests.client.coordinator import NODE_ID, Authority
from tests.patience import PATIENCE_S, eventually

__all__ = ["authority", "stage"]  # fixtures

LARGE = 20 << 20  # bytes


def send(stage: Stage, content: RecordDict) -> None:
    metadata = Metadata(stage.coordinator.run.run_id, "", 1, NODE_ID, "", "1", 1_800_000_000.0, 3600.0, "train")
    stage.coordinator.send(make_message(metadata, content))


def array(size: int) -> Array:
    return Array(dtype="uint8", shape=(size,), stype="safetensors", data=bytes(size))


def head(run_hash: str) -> ConfigRecord:
    return ConfigRecord({"run-hash": run_hash, "round": 1})


def fetched_bytes(stage: Stage) -> int:
    return sum(len(stage.coordinator._objects[name]) for name in stage.coordinator.fetched)


@pytest.mark.parametrize("how", ["never proposed", "not answered", "denied", "ended", "switched off", "policy"])
def test_nothing_is_fetched_of_a_run_that_is_not_open_approved_and_allowed(stage: Stage, how: str) -> None:
    run_hash = "ab" * 32
    if how != "never proposed":
        run_hash = stage.propose()
    if how in ("ended", "switched off", "policy"):
        stage.approve(run_hash)
    if how == "ended":
        stage.coordinator.close(run_hash)
        eventually(lambda: not approvals.load(stage.home, run_hash).open)
    if how == "switched off":
        (stage.home / "policy.toml").write_text(OPEN_POLICY + "participate = false\n")
    if how == "policy":
        (stage.home / "policy.toml").write_text("require-privacy = true\nmin-patients = 1\n")
    for request in (
        TrainRequest(run_hash, 1, {"weights": bytes(LARGE)}),
        EvaluateRequest(run_hash, 1, "test", {"weights": bytes(LARGE)}),
    ):
        stage.coordinator.ask(request)
        reply = stage.reply()
        assert isinstance(reply, Refusal)
        code = ErrorCode.POLICY_REFUSED if how in ("switched off", "policy") else ErrorCode.NOT_APPROVED
        assert reply.code == code
    assert stage.coordinator.fetched == []
    assert stage.worker.worked == []


def test_message_larger_than_a_model_of_the_run_is_not_taken_into_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    fetch = Fleet._object

    def counted(*arguments: Any) -> bytes:
        content = fetch(*arguments)
        taken.append(len(content))
        return content

    monkeypatch.setattr(Fleet, "_object", counted)
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    honest = sum(taken)
    send(stage, RecordDict({"head": head(run_hash), "model": ArrayRecord({"safetensors": array(LARGE)})}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.BAD_REQUEST)
    assert 0 < honest < 10_000
    assert sum(taken) - honest < 2 * 64 * 1024
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    assert read_status(stage.home)["state"] == "connected"


def test_many_small_objects_are_not_taken_either(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    arrays = ArrayRecord({f"a{number}": Array(np.full(10_000, number, np.float32)) for number in range(100)})
    send(stage, RecordDict({"head": head(run_hash), "model": arrays}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.BAD_REQUEST)
    assert stage.coordinator.fetched == []


def test_objects_within_the_number_but_beyond_the_bytes_are_given_up(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    arrays = ArrayRecord({f"a{number}": Array(np.full(15_000, number, np.float32)) for number in range(6)})
    send(stage, RecordDict({"head": head(run_hash), "model": arrays}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.BAD_REQUEST)
    assert fetched_bytes(stage) < 6 * 60_000


def test_run_that_has_ended_neither_trains_nor_evaluates(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    stage.coordinator.close(run_hash)
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    worked = len(stage.worker.worked)
    for request in (
        TrainRequest(run_hash, 2, {"weights": WEIGHTS}),
        EvaluateRequest(run_hash, 1, "validation", {"weights": UPDATED}),
    ):
        stage.coordinator.ask(request)
        assert stage.reply() == Refusal(run_hash, 0, ErrorCode.NOT_APPROVED)
    assert len(stage.worker.worked) == worked


def test_kept_update_is_not_sent_while_the_hospital_does_not_participate(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    first = stage.reply()
    assert isinstance(first, TrainReply)
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "participate = false\n")
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.POLICY_REFUSED)
    (stage.home / "policy.toml").write_text(OPEN_POLICY)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == first
    assert len(stage.worker.worked) == 1


@pytest.mark.parametrize(
    "rules", ["require-privacy = true\nmin-patients = 1\n", OPEN_POLICY + "max-learning-rate = 1e-6\n"]
)
def test_kept_update_is_not_sent_of_a_run_that_the_policy_has_come_to_refuse(stage: Stage, rules: str) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    (stage.home / "policy.toml").write_text(rules)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 0, ErrorCode.POLICY_REFUSED)


def test_kept_update_leaves_without_what_the_policy_has_stopped_since(stage: Stage) -> None:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == TrainReply(run_hash, 1, {"weights": UPDATED}, 15, {"train-loss": 0.5})
    (stage.home / "policy.toml").write_text(OPEN_POLICY + 'metrics = ["dice"]\n')
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == TrainReply(run_hash, 1, {"weights": UPDATED}, 15, {})
    eventually(lambda: len(stage.coordinator.receipts) >= 1)


# A run that had ended


def ended(stage: Stage) -> str:
    run_hash = stage.propose()
    stage.approve(run_hash)
    stage.coordinator.close(run_hash)
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    return run_hash


def test_run_that_an_operator_resumed_is_open_again(stage: Stage) -> None:
    run_hash = ended(stage)
    stage.coordinator.resume(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))  # may come before the news
    assert isinstance(stage.reply(), TrainReply)
    assert approvals.load(stage.home, run_hash).open


@pytest.mark.parametrize("how", ["unsigned", "of a stranger", "used before", "of another run", "another act"])
def test_run_stays_ended_whatever_the_coordinators_host_says_without_an_operators_new_signature(
    stage: Stage, how: str
) -> None:
    run_hash = ended(stage)
    authority, subject = stage.coordinator._authority, subject_of(run_hash)
    acts = {
        "unsigned": None,
        "of a stranger": Authority().act("resume", subject),
        "of another run": authority.act("resume", subject_of("ab" * 32)),
        "another act": authority.act("stop", subject),
    }
    if how == "used before":
        acts[how] = stage.coordinator.resume(run_hash)
        eventually(lambda: approvals.load(stage.home, run_hash).open)
        stage.coordinator.close(run_hash)
        eventually(lambda: not approvals.load(stage.home, run_hash).open)
    stage.coordinator.resume(run_hash, act=acts[how], signed=how != "unsigned")
    for request in (
        TrainRequest(run_hash, 1, {"weights": WEIGHTS}),
        EvaluateRequest(run_hash, 1, "test", {"weights": UPDATED}),
    ):
        stage.coordinator.ask(request)
        assert stage.reply() == Refusal(run_hash, 0, ErrorCode.NOT_APPROVED)
    assert not approvals.load(stage.home, run_hash).open
    assert stage.worker.worked == []


# What the policy refuses


def test_policy_that_refuses_a_run_tells_the_coordinator_a_code_before_anybody_has_answered(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text("min-patients = 1\n")  # and require-privacy, which is the default
    run_hash = stage.propose()
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, False)
    assert stage.coordinator.codes == {run_hash: "policy-refused"}
    assert approvals.load(stage.home, run_hash).answer is None
    assert stage.worker.asked == []
    (stage.home / "policy.toml").write_text(OPEN_POLICY)
    stage.approve(run_hash)
    assert stage.coordinator.codes == {run_hash: ""}


def test_what_the_policy_refused_is_taken_back_and_counted_as_soon_as_the_file_says_otherwise(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.coordinator.hold_s = 600.0  # until there is news
    (stage.home / "policy.toml").write_text("min-patients = 1\n")
    run_hash = stage.propose()
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, False)
    assert "require-privacy" in str(opinion_on(stage.home, approvals.load(stage.home, run_hash)))
    assert approvals.load(stage.home, run_hash).appraisal is None
    (stage.home / "policy.toml").write_text(OPEN_POLICY)
    assert opinion_on(stage.home, approvals.load(stage.home, run_hash)) is None
    eventually(lambda: approvals.load(stage.home, run_hash).appraisal)
    assert opinion_on(stage.home, approvals.load(stage.home, run_hash)) == "allows"
    eventually(lambda: stage.coordinator.withdrawn == [run_hash])
    (stage.home / "policy.toml").write_text("min-patients = 1\n")
    eventually(lambda: stage.coordinator.codes[run_hash] == "policy-refused")


def test_a_pause_is_no_answer_and_nothing_is_approved_in_it(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "auto-approve = true\nparticipate = false\n")
    run_hash = stage.propose()
    eventually(lambda: approvals.load(stage.home, run_hash).appraisal)
    assert "participate = false" in str(opinion_on(stage.home, approvals.load(stage.home, run_hash)))
    assert approvals.load(stage.home, run_hash).answer is None
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "auto-approve = true\n")
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, True)  # the first that it is told


def test_a_resumed_run_is_not_told_what_the_policy_said_before_it_was_changed(stage: Stage) -> None:
    """The coordinator ends a run at once to which too few hospitals are left."""
    (stage.home / "policy.toml").write_text("min-patients = 1\n")
    run_hash = stage.propose()
    assert stage.coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, False)
    stage.coordinator.close(run_hash)
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    (stage.home / "policy.toml").write_text(OPEN_POLICY)
    stage.coordinator.resume(run_hash)
    assert run_hash not in stage.told()
    assert approvals.load(stage.home, run_hash).open


def test_nothing_is_told_of_our_patients_before_a_person_has_answered(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text("require-privacy = false\nmin-patients = 21\n")  # there are twenty
    run_hash = stage.propose()
    eventually(lambda: approvals.load(stage.home, run_hash).appraisal)
    assert "fewer than min-patients" in str(opinion_on(stage.home, approvals.load(stage.home, run_hash)))
    assert run_hash not in stage.told()
    approvals.answer(stage.home, run_hash, approved=False, by="person")
    assert stage.told()[run_hash] is False
    assert set(stage.coordinator.codes.values()) == {""}
