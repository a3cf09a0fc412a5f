"""A coordinator that asks again and again, or for the wrong thing, spends no more than the run was approved for.

The agent, the ledger, the audit log, TLS and gRPC are real; the worker does what a test says.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from client.agent import spending
from client.data.deidentify.pseudonym import cohort_id
from client.rules import approvals, policy
from client.rules.policy import Decision, Purpose
from client.site import open_site
from client.trail.audit_trail import open_log
from client.worker.protocol import Answer, PipeError, Question, Work
from common.audit.entries import decimal_text
from common.config import PolicyConfig, RunConfig, parse
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import epsilon
from common.privacy.journal import Rows
from common.privacy.scores import held_out_cohort
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest
from tests.client.agent.test_loop import (
    OFFER,
    PRIVATE_TOML,
    RUN_TOML,
    UPDATED,
    WEIGHTS,
    Stage,
    authority,
    good,
    stage,
)
from tests.client.commands.test_main import call
from tests.patience import eventually

__all__ = ["authority", "stage"]  # fixtures

MATRIX = np.arange(20, dtype=np.float32).reshape(4, 5)


def charges(home: Path) -> int:
    return len(open_site(home).ledger.entries())


def die(_: Question) -> Answer:
    raise PipeError("the worker died")


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (save({"w": MATRIX.astype(np.float64)}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX.astype(np.float16)}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX.astype(np.int32)}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX.T.copy()}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX.reshape(-1)}), ErrorCode.WRONG_TENSORS),
        (save({"v": MATRIX}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX, "more": np.zeros(0, np.float32)}), ErrorCode.WRONG_TENSORS),
        (save({"w": MATRIX[:2], "x": MATRIX[2:]}), ErrorCode.WRONG_TENSORS),
        (save({}), ErrorCode.WRONG_TENSORS),
        (save({"w": np.where(MATRIX == 3, np.nan, MATRIX)}), ErrorCode.NOT_FINITE),
        (save({"w": np.where(MATRIX == 3, np.inf, MATRIX)}), ErrorCode.NOT_FINITE),
    ],
    ids=["float64", "float16", "int32", "turned", "flat", "name", "one more", "cut", "none", "nan", "inf"],
)
def test_model_that_is_not_the_runs_by_name_shape_or_type_costs_nothing(
    stage: Stage, weights: bytes, code: ErrorCode
) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": weights}))
    assert stage.reply() == Refusal(run_hash, 1, code)
    assert (charges(stage.home), stage.worker.worked) == (0, [])


def test_start_that_the_run_does_not_name_costs_nothing(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML + f'initial = {{ sha256 = "{"0" * 64}", public = "trained on phantoms" }}\n')
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.WRONG_RUN)
    assert (charges(stage.home), stage.worker.worked) == (0, [])


def test_site_with_nobody_to_train_on_charges_and_works_as_any_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed and fractions can leave one patient alone in training: a refusal would say whether they are there."""
    monkeypatch.setitem(OFFER.__dict__, "training", 0)
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    stage.reply()
    assert (charges(stage.home), len(stage.worker.worked)) == (1, 1)


def test_proposal_that_cannot_be_appraised_ends_no_agent_and_is_not_approved_by_itself(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a delta of 1e-100, for which the accountant raised an IndexError."""
    (stage.home / "policy.toml").write_text("auto-approve = true\n")
    real = policy.decide

    def decide(run: RunConfig, rules: PolicyConfig, purpose: Purpose, **known: Any) -> Decision:
        if run.name == "odd" and purpose is Purpose.APPROVAL:
            raise IndexError("index 32767 is out of bounds")
        return real(run, rules, purpose, **known)

    monkeypatch.setattr("client.proposals.appraise.policy.decide", decide)
    run = parse(RunConfig, PRIVATE_TOML)
    odd = stage.propose(PRIVATE_TOML.replace(f'"{run.name}"', '"odd"', 1))
    eventually(lambda: approvals.load(stage.home, odd).answer)
    answer, appraisal = approvals.load(stage.home, odd).answer, approvals.load(stage.home, odd).appraisal
    assert answer is not None
    assert not answer.approved
    assert appraisal is not None
    assert "cannot be appraised" in str(appraisal.refusal)
    usual = stage.propose(PRIVATE_TOML)  # the agent goes on
    eventually(lambda: approvals.load(stage.home, usual).answer)


def test_however_often_it_is_asked_a_run_spends_no_more_than_it_was_approved_for(stage: Stage) -> None:
    run = parse(RunConfig, PRIVATE_TOML)
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    asked = [(round_, answer) for round_ in (1, 2, 3) for answer in (die, die, good, good)]
    replies = []
    for round_, answer in asked:
        stage.worker.answer = answer
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        replies.append(stage.reply())
    assert [type(reply) for reply in replies] == 3 * [Refusal, Refusal, TrainReply, TrainReply]
    ledger = open_site(stage.home).ledger
    assert [(one.round, one.steps) for one in ledger.entries()] == [
        (round_, run.training.local_steps) for round_ in (1, 2, 3)
    ]
    delta = ledger.entries()[0].delta
    assert run.privacy is not None
    assert ledger.spent(OFFER.cohort_id, delta, run_hash) <= run.privacy.target_epsilon
    spent = [entry for entry in open_log(stage.home).entries() if entry.kind == "spend"]
    assert [entry.fields["round"] for entry in spent] == [1, 2, 3]
    # Under the receipt of each round stands what that round cost, whichever attempt made it.
    receipts = [entry.fields["receipt"] for entry in open_log(stage.home).entries() if entry.kind == "round"]
    assert [(one["epsilon"], one["delta"]) for one in receipts] == [
        (entry.fields["epsilon"], entry.fields["delta"]) for entry in spent
    ]


def test_attempts_that_come_to_nothing_count_for_the_day(stage: Stage) -> None:
    (stage.home / "policy.toml").write_text("require-privacy = false\nmin-patients = 1\nmax-rounds-per-day = 3\n")
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.worker.answer = die
    codes = []
    for _ in range(3):
        stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
        reply = stage.reply()
        assert isinstance(reply, Refusal)
        codes.append(reply.code)
    assert codes == [ErrorCode.WORKER_FAILED, ErrorCode.WORKER_FAILED, ErrorCode.RATE_LIMITED]
    assert len(stage.worker.worked) == 4  # each asked twice


def test_worker_that_dies_once_costs_one_charge_and_no_round(stage: Stage) -> None:
    def once(question: Question) -> Answer:
        if len(stage.worker.worked) == 1:
            raise PipeError("the worker died")
        return good(question)

    stage.worker.answer = once
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    first, second = (work.attempt for work in stage.worker.worked)
    (charge,) = open_site(stage.home).ledger.entries()
    assert (charge.attempt, first == second) == (second, False)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_no_code_of_a_private_training_after_its_charge_depends_on_a_patient(stage: Stage, code: ErrorCode) -> None:
    """Whatever the worker says: the machine's own three codes, or that the worker failed."""
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.worker.answer = lambda _: Refusal(run_hash, 1, code)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    machine = {ErrorCode.DEADLINE, ErrorCode.DISK_FULL, ErrorCode.WORKER_FAILED}
    assert stage.reply() == Refusal(run_hash, 1, code if code in machine else ErrorCode.WORKER_FAILED)
    assert charges(stage.home) == 1


@pytest.mark.parametrize(
    "update",
    [save({"w": np.full((4, 5), np.nan, np.float32)}), save({"w": MATRIX.astype(np.float64)}), b"no model"],
    ids=["nan", "type", "garbage"],
)
def test_update_that_the_gate_stops_after_the_charge_looks_like_a_worker_that_failed(
    stage: Stage, update: bytes
) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.worker.answer = lambda _: TrainReply(run_hash, 1, {"weights": update}, 0, {"steps": 20.0})
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.WORKER_FAILED)


def test_without_privacy_the_code_says_why(stage: Stage) -> None:
    run_hash = stage.propose(RUN_TOML)
    stage.approve(run_hash)
    stage.worker.answer = lambda _: Refusal(run_hash, 1, ErrorCode.NOT_FINITE)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.NOT_FINITE)


def test_no_message_tells_how_long_the_work_took(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    for request in (
        TrainRequest(run_hash, 1, {"weights": WEIGHTS}),
        EvaluateRequest(run_hash, 1, "test", {"weights": UPDATED}),
    ):
        stage.coordinator.ask(request)
        stage.reply()
        asked, pushed = stage.coordinator.heads[-1], stage.coordinator.pushed[-1]
        assert list(pushed.clientapp_runtime_list) == [0.0]
        answered = pushed.messages_list[0].metadata
        assert (answered.created_at, answered.ttl) == (asked.metadata.created_at, asked.metadata.ttl)


# The ledger and the audit log


@pytest.mark.parametrize("how", ["restored", "gone", "another"])
def test_ledger_that_is_older_than_the_audit_log_is_refused_and_said(stage: Stage, how: str) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    path, copies = stage.home / "state" / "ledger.sqlite", []
    for round_ in (1, 2):
        copies.append(path.read_bytes() if path.exists() else b"")
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        assert isinstance(stage.reply(), TrainReply)
    path.unlink()
    if how == "restored":
        path.write_bytes(copies[1])
    if how == "another":
        open_site(stage.home).ledger.charge(
            "cohort", "ab" * 32, 1, "a",
            noise_multiplier=9.0, sampling_rate=0.1, steps=1, delta=1e-3, lifetime_epsilon=9.0,
        )  # fmt: skip
    before = charges(stage.home)
    stage.coordinator.ask(TrainRequest(run_hash, 3, {"weights": WEIGHTS}))
    assert stage.reply() == Refusal(run_hash, 3, ErrorCode.LEDGER_OUTDATED)
    assert (charges(stage.home), len(stage.worker.worked)) == (before, 2)


def test_private_round_reads_the_ledger_once_at_the_agent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    read = Rows._read
    readings: list[Rows] = []

    def counted(rows: Rows) -> None:
        readings.append(rows)
        read(rows)

    monkeypatch.setattr(Rows, "_read", counted)
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": UPDATED}))
    assert isinstance(stage.reply(), TrainReply)
    assert len(readings) == 1


def test_epsilon_of_the_audit_log_adds_up_to_that_of_the_ledger(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    for round_ in (1, 2, 3):
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        stage.reply()
    entries = open_site(stage.home).ledger.entries()
    rows = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in entries]
    spent = [float(one.fields["epsilon"]) for one in open_log(stage.home).entries() if one.kind == "spend"]
    assert sum(spent) == pytest.approx(epsilon(rows, entries[0].delta), rel=1e-4)


def test_restored_ledger_is_complete_again_by_the_audit_log_and_the_run_documents(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    for round_ in (1, 2):
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        stage.reply()
    path = stage.home / "state" / "ledger.sqlite"
    whole = open_site(stage.home).ledger.entries()
    path.unlink()
    site = open_site(stage.home)
    with pytest.raises(PrivacyError, match="lacks 2 of the 2 charges"):
        spending.check_home(site)
    assert spending.restore(site) == 2
    assert spending.restore(site) == 0
    cost = ("round", "noise_multiplier", "sampling_rate", "steps", "delta")
    found = site.ledger.entries()
    assert sorted(tuple(getattr(one, name) for name in cost) for one in found) == [
        tuple(getattr(one, name) for name in cost) for one in whole
    ]
    assert {one.cohort for one in found} == {cohort_id(site.key)}
    stage.coordinator.ask(TrainRequest(run_hash, 3, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)


def test_nothing_is_guessed_about_a_charge_whose_run_document_is_gone(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    stage.reply()
    (stage.home / "state" / "ledger.sqlite").unlink()
    (stage.home / "proposals").rename(stage.home / "elsewhere")
    with pytest.raises(PrivacyError, match="not among the proposals here"):
        spending.restore(open_site(stage.home))
    assert charges(stage.home) == 0


def test_restored_ledger_has_the_charges_of_noised_scores_too(stage: Stage) -> None:
    """As the worker enters them: one for a round and phase, all of a run with the same noise."""
    run_hash = stage.propose(PRIVATE_TOML)
    site = open_site(stage.home)
    held_out, noise, delta = held_out_cohort(cohort_id(site.key)), 7.25, 0.005
    log = open_log(stage.home)
    for answers, (round_, phase) in enumerate(((1, "validation"), (2, "validation"), (3, "test")), start=1):
        spent = epsilon([(noise, 1.0, answers)], delta)
        about = {"run": run_hash, "round": round_, "phase": phase, "model": "ab" * 32}
        for _ in range(2):  # an answer that left twice is one charge
            log.append("evaluated", about | {"epsilon": decimal_text(spent), "delta": decimal_text(delta)})
    with pytest.raises(PrivacyError, match="lacks 3 of the 3 charges"):
        spending.check_home(site)
    assert spending.restore(site) == 3
    spending.check_home(site)
    assert [(one.cohort, one.round, one.attempt, one.noise_multiplier, one.steps) for one in site.ledger.entries()] == [
        (held_out, 1, "validation", noise, 1),
        (held_out, 2, "validation", noise, 1),
        (held_out, 3, "test", noise, 1),
    ]
    with pytest.raises(PrivacyError, match="used up"):
        site.ledger.begin(held_out, run_hash, 1, "validation")


def test_round_out_of_order_or_from_another_model_costs_nothing(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)
    stage.worker.answer = die
    stage.coordinator.ask(TrainRequest(run_hash, 3, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), Refusal)
    before = charges(stage.home)
    worked = len(stage.worker.worked)
    for round_, weights in ((1, WEIGHTS), (3, UPDATED)):
        stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": weights}))
        assert stage.reply() == Refusal(run_hash, round_, ErrorCode.ROUND_REPEATED)
    assert (charges(stage.home), len(stage.worker.worked)) == (before, worked)


def test_noised_scores_that_the_ledger_does_not_know_are_noticed(stage: Stage) -> None:
    """They stand in the audit log with what they cost; here nobody charged them, as after a restored ledger."""

    def scores(question: Question) -> Answer:
        assert isinstance(question, Work)
        noised = {"dice": 0.5, "score-noise": 0.1, "scores-epsilon": 0.9, "scores-delta": 0.005}
        return EvaluateReply(question.request.run_hash, 3, "test", 0, noised)

    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.worker.answer = scores
    stage.coordinator.ask(EvaluateRequest(run_hash, 3, "test", {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), EvaluateReply)
    (entry,) = (entry for entry in open_log(stage.home).entries() if entry.kind == "evaluated")
    assert (entry.fields["epsilon"], entry.fields["delta"]) == ("0.9", "0.005")
    stage.worker.answer = good
    for request in (
        TrainRequest(run_hash, 2, {"weights": WEIGHTS}),
        EvaluateRequest(run_hash, 3, "validation", {"weights": WEIGHTS}),
    ):
        stage.coordinator.ask(request)
        assert stage.reply() == Refusal(run_hash, request.round, ErrorCode.LEDGER_OUTDATED)
    open_site(stage.home).ledger.charge(
        held_out_cohort("cohort"), run_hash, 3, "test",
        noise_multiplier=4.0, sampling_rate=1.0, steps=1, delta=0.005, lifetime_epsilon=10.0,
    )  # fmt: skip
    stage.coordinator.ask(TrainRequest(run_hash, 2, {"weights": WEIGHTS}))
    assert isinstance(stage.reply(), TrainReply)


def test_commands_say_that_the_ledger_is_not_the_newest_and_restore_it(stage: Stage) -> None:
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    stage.coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    stage.reply()
    (stage.home / "state" / "ledger.sqlite").unlink()
    other = stage.propose(PRIVATE_TOML.replace("lesions", "others"))
    eventually(lambda: approvals.load(stage.home, other).appraisal)
    for command in (("ledger",), ("approve", other[:12], "--yes")):
        result = call(stage.home, *command)
        assert result.exit_code == 1
        assert "lacks 1 of the 1 charges in the audit log" in " ".join(result.output.split())
    assert approvals.load(stage.home, other).answer is None
    assert "1 charges of the audit log are in the ledger again" in call(stage.home, "ledger", "--restore").output
    assert call(stage.home, "approve", other[:12], "--yes").exit_code == 0
