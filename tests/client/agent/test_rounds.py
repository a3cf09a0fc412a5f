"""What a hospital writes into its policy counts at every step of a message's way: nothing is fetched, charged, trained
or sent that the policy of that moment refuses.

The agent, the ledger, the audit log, TLS and gRPC are real; the coordinator and the worker do what a test says.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.site import open_site
from client.trail.audit_trail import open_log
from client.worker.protocol import Answer, Describe, PipeError, Question
from common.errors import ErrorCode
from common.system.files import write_private
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest
from tests.client.agent.test_loop import (
    OFFER,
    PRIVATE_TOML,
    UPDATED,
    WEIGHTS,
    Stage,
    authority,
    good,
    stage,
)

__all__ = ["authority", "stage"]  # fixtures

BASE = "min-patients = 1\nrequire-privacy = false\n"
SCORES = {"dice": 0.5, "score-noise": 0.1, "scores-epsilon": 0.9, "scores-delta": 0.005}


def closed_now() -> str:
    """Hours that begin two hours from now."""
    now = datetime.datetime.now()
    return "-".join(f"{now + datetime.timedelta(hours=hours):%H:%M}" for hours in (2, 4))


@dataclass(frozen=True)
class Kind:
    """A kind of rule that comes to refuse a run that was allowed when it was approved."""

    rules: Callable[[], str]
    code: ErrorCode
    of_the_head: bool = True  # known before anything is fetched
    of_scores: bool = True


KINDS = {
    "switch": Kind(lambda: "participate = false\n", ErrorCode.POLICY_REFUSED),
    "operators": Kind(lambda: "operators = 2\n", ErrorCode.NOT_APPROVED),
    "privacy bounds": Kind(lambda: "min-clipping = 2.0\n", ErrorCode.POLICY_REFUSED),
    "noise": Kind(lambda: "min-noise-multiplier = 500.0\n", ErrorCode.POLICY_REFUSED, of_the_head=False),
    "hours": Kind(lambda: f'hours = "{closed_now()}"\n', ErrorCode.OUTSIDE_HOURS, of_the_head=False),
    "rate": Kind(lambda: "max-rounds-per-day = 1\n", ErrorCode.RATE_LIMITED, of_the_head=False, of_scores=False),
    "patients": Kind(lambda: "min-patients = 21\n", ErrorCode.TOO_FEW_PATIENTS, of_the_head=False),
}
# (kind, whether scores are asked for)
CASES = [
    pytest.param(name, scores, id=f"{name}, {'scores' if scores else 'training'}")
    for name, kind in KINDS.items()
    for scores in (False, True)
    if kind.of_scores or not scores
]

FEWER = [case for case in CASES if not case.values[1] or case.values[0] in ("switch", "hours")]


def write(stage: Stage, rules: str = "") -> None:
    """Put the policy in force, at once and whole."""
    values = dict(line.split(" = ") for line in (BASE + rules).splitlines())
    text = "".join(f"{key} = {value}\n" for key, value in values.items())
    write_private(stage.home / "policy.toml", text.encode())


def begin(stage: Stage) -> str:
    """An approved private run whose first round was trained."""
    stage.worker.answer = answer
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    return run_hash


def request(run_hash: str, scores: bool) -> Request:
    if scores:
        return EvaluateRequest(run_hash, 1, "validation", {"weights": UPDATED})
    return TrainRequest(run_hash, 2, {"weights": UPDATED})


def answer(question: Question) -> Answer:
    reply = good(question)
    return (
        EvaluateReply(reply.run_hash, reply.round, reply.phase, 0, SCORES)
        if isinstance(reply, EvaluateReply)
        else reply
    )


def asked(stage: Stage, message: Request) -> Reply:
    stage.coordinator.ask(message)
    return stage.reply()


def charges(home: Path) -> int:
    return len(open_site(home).ledger.entries())


def assert_is_refused(reply: Reply, code: ErrorCode) -> None:
    assert isinstance(reply, Refusal)
    assert reply.code == code


@pytest.mark.parametrize(("kind", "scores"), CASES)
def test_what_the_policy_refuses_is_neither_charged_nor_worked_on(stage: Stage, kind: str, scores: bool) -> None:
    run_hash = begin(stage)
    before = len(stage.coordinator.fetched)
    write(stage, KINDS[kind].rules())
    assert_is_refused(asked(stage, request(run_hash, scores)), KINDS[kind].code)
    assert (charges(stage.home), len(stage.worker.worked)) == (1, 1)
    # What can be known from the head is: nothing is fetched then.
    assert (len(stage.coordinator.fetched) == before) == KINDS[kind].of_the_head
    write(stage)
    assert not isinstance(asked(stage, request(run_hash, scores)), Refusal)


@pytest.mark.parametrize(("kind", "scores"), FEWER)
def test_policy_that_changes_while_a_model_is_fetched_counts(stage: Stage, kind: str, scores: bool) -> None:
    run_hash = begin(stage)

    def change(method: str, _: Any) -> None:
        if method == "PullObject":
            write(stage, KINDS[kind].rules())

    stage.coordinator.limit = change
    assert_is_refused(asked(stage, request(run_hash, scores)), KINDS[kind].code)
    assert (charges(stage.home), len(stage.worker.worked)) == (1, 1)


@pytest.mark.parametrize(("kind", "scores"), FEWER)
def test_policy_that_changes_while_patients_are_counted_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str, scores: bool
) -> None:
    """Reading a large cohort takes up to an hour."""
    run_hash = begin(stage)
    site, counted = stage.home / "site.toml", []

    def ask(question: Question, timeout_s: float) -> Answer:
        if isinstance(question, Describe):
            counted.append(question)
            write(stage, KINDS[kind].rules())
            return OFFER
        return type(stage.worker).ask(stage.worker, question, timeout_s)

    monkeypatch.setattr(stage.worker, "ask", ask)
    site.write_text(site.read_text() + "\n# counted anew\n")
    assert_is_refused(asked(stage, request(run_hash, scores)), KINDS[kind].code)
    assert (charges(stage.home), len(stage.worker.worked), len(counted)) == (1, 1, 1)


@pytest.mark.parametrize(("kind", "scores"), [case for case in FEWER if case.values[0] != "rate"])
def test_worker_that_dies_is_not_asked_again_for_what_the_policy_has_come_to_refuse(
    stage: Stage, kind: str, scores: bool
) -> None:
    run_hash = begin(stage)

    def die(_: Question) -> Answer:
        write(stage, KINDS[kind].rules())
        raise PipeError("the worker died")

    stage.worker.answer = die
    # After the charge of a private round all refusals look alike.
    assert_is_refused(asked(stage, request(run_hash, scores)), KINDS[kind].code if scores else ErrorCode.WORKER_FAILED)
    assert (charges(stage.home), len(stage.worker.worked)) == (1 if scores else 2, 2)


def test_second_attempt_of_the_last_round_of_a_day_is_no_further_round(stage: Stage) -> None:
    run_hash = begin(stage)
    write(stage, "max-rounds-per-day = 2\n")

    def once(question: Question) -> Answer:
        if len(stage.worker.worked) == 2:
            raise PipeError("the worker died")
        return answer(question)

    stage.worker.answer = once
    assert isinstance(asked(stage, request(run_hash, scores=False)), TrainReply)
    assert_is_refused(asked(stage, TrainRequest(run_hash, 3, {"weights": UPDATED})), ErrorCode.RATE_LIMITED)


@pytest.mark.parametrize(("kind", "scores"), [case for case in CASES if KINDS[str(case.values[0])].of_the_head])
def test_what_was_made_does_not_leave_when_the_policy_has_come_to_refuse_it(
    stage: Stage, kind: str, scores: bool
) -> None:
    run_hash = begin(stage)

    def change(question: Question) -> Answer:
        write(stage, KINDS[kind].rules())
        return answer(question)

    stage.worker.answer = change
    assert_is_refused(asked(stage, request(run_hash, scores)), KINDS[kind].code if scores else ErrorCode.WORKER_FAILED)
    # It was made and paid for: once the policy allows it again, it leaves without being made anew.
    write(stage)
    stage.worker.answer = answer
    assert not isinstance(asked(stage, request(run_hash, scores)), Refusal)
    assert (charges(stage.home), len(stage.worker.worked)) == (1, 3) if scores else (2, 2)


@pytest.mark.parametrize("rules", ['metrics = ["iou"]\n', 'scores = "none"\n'])
def test_score_that_the_policy_has_stopped_while_it_was_made_does_not_leave(stage: Stage, rules: str) -> None:
    run_hash = begin(stage)

    def change(question: Question) -> Answer:
        write(stage, rules)
        return answer(question)

    stage.worker.answer = change
    reply = asked(stage, request(run_hash, scores=True))
    assert isinstance(reply, Refusal) or "dice" not in reply.metrics


def test_receipt_names_the_policy_under_which_a_round_was_begun(stage: Stage) -> None:
    run_hash = begin(stage)

    def change(question: Question) -> Answer:
        write(stage, "max-rounds = 400\n")
        return answer(question)

    stage.worker.answer = change
    assert isinstance(asked(stage, request(run_hash, scores=False)), TrainReply)
    entries = open_log(stage.home).entries()
    policies = [entry.fields["policy"] for entry in entries if entry.kind == "policy-changed"]
    named = [entry.fields["receipt"]["policy"] for entry in entries if entry.kind == "round"]
    assert len(policies) == 2
    assert named == [policies[0], policies[0]]
