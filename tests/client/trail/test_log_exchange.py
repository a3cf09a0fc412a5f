"""What a hospital's log holds after a round, and what the agent does when the coordinator's side does not fit.

Real certificates, gRPC and logs; the coordinator is the double of the agent's tests, with an audit log of its own. The
oracle is the verifier, given both logs.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent.loop import Agent
from client.agent.status import read_status
from client.home.identity import load_identity
from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import AuditTrail, open_log
from client.trail.log_exchange import CONFLICT_NAME
from common.audit import notes, verify, witness
from common.audit.entries import Entry
from common.audit.log import AuditLog
from common.audit.notes import Checkpoint, Head
from common.errors import ErrorCode
from common.identity import certificates
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest
from common.wire.wardround_pb2 import SiteCheckpoint
from tests import ROOT
from tests.client.agent.test_loop import (
    OPEN_POLICY,
    PRIVATE_TOML,
    RUN_TOML,
    UPDATED,
    WEIGHTS,
    FakeWorker,
    Stage,
    good,
)
from tests.client.coordinator import Authority, Coordinator
from tests.patience import PATIENCE_S, eventually


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def stage(tmp_path: Path, authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    monkeypatch.setattr("client.trail.log_exchange.RETRY_S", 0.1)
    coordinator = Coordinator(authority, free_port).start()
    identity = authority.admit(tmp_path, "north", coordinator.address)
    (tmp_path / "policy.toml").write_text(OPEN_POLICY)
    made = Stage(tmp_path, coordinator, FakeWorker(good), Agent(tmp_path, identity, FakeWorker(good)))
    with playing(made):
        yield made
    coordinator.stop()


class playing:  # noqa: N801 - used as a function
    """Run the stage's agent; a new one, on the same home, if it is given."""

    def __init__(self, stage: Stage, agent: Agent | None = None) -> None:
        self._agent = agent or stage.agent
        self._thread = threading.Thread(target=self._agent.run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._agent.stop()
        self._thread.join(timeout=PATIENCE_S)
        assert not self._thread.is_alive()


def begin(stage: Stage, toml: str = RUN_TOML) -> str:
    run_hash = stage.propose(toml)
    stage.approve(run_hash)
    return run_hash


def entries(stage: Stage, kind: str) -> list[Entry]:
    return [entry for entry in open_log(stage.home).entries() if entry.kind == kind]


def train(stage: Stage, run_hash: str, round_: int) -> Any:
    stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
    return stage.reply()


def countersigned(stage: Stage, count: int) -> None:
    eventually(lambda: len(entries(stage, "countersigned")) == count)


def test_receipt_says_what_left_and_is_countersigned(stage: Stage) -> None:
    run_hash = begin(stage)
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    countersigned(stage, 1)
    (entry,) = entries(stage, "round")
    receipt = entry.fields["receipt"]
    assert receipt["update"] == hashlib.sha256(UPDATED).hexdigest()
    assert receipt["received"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (receipt["run"], receipt["round"], receipt["size"], receipt["patients"]) == (run_hash, 1, len(UPDATED), 15)
    (policy,) = entries(stage, "policy-changed")
    assert receipt["policy"] == policy.fields["policy"]
    assert "epsilon" not in receipt


def test_privacy_charged_is_written_down_before_the_work_and_in_the_receipt(stage: Stage) -> None:
    run_hash = begin(stage, PRIVATE_TOML)
    for round_ in (1, 2):
        assert isinstance(train(stage, run_hash, round_), TrainReply)
        countersigned(stage, round_)
    spent = [(entry.fields["epsilon"], entry.fields["delta"]) for entry in entries(stage, "spend")]
    receipts = [entry.fields["receipt"] for entry in entries(stage, "round")]
    assert [(receipt["epsilon"], receipt["delta"]) for receipt in receipts] == spent
    ledger = open_site(stage.home).ledger
    (cohort, delta) = {(one.cohort, one.delta) for one in ledger.entries()}.pop()
    total = ledger.spent(cohort, delta, run_hash)
    assert total <= sum(float(epsilon) for epsilon, _ in spent) < 1.0001 * total
    assert all("patients" not in receipt for receipt in receipts)


def test_refusals_scores_and_answers_are_recorded(stage: Stage) -> None:
    run_hash = stage.propose()
    assert train(stage, run_hash, 1) == Refusal(run_hash, 0, ErrorCode.NOT_APPROVED)
    stage.approve(run_hash)
    stage.coordinator.ask(EvaluateRequest(run_hash, 1, "test", {"weights": UPDATED}))
    stage.reply()
    (refusal,) = entries(stage, "refusal")
    assert refusal.fields == {"code": "not-approved", "run": run_hash, "round": 0}
    (approved,) = entries(stage, "approved")
    assert (approved.fields["run"], approved.fields["by"]) == (run_hash, "person")
    (evaluated,) = entries(stage, "evaluated")
    assert evaluated.fields["model"] == hashlib.sha256(UPDATED).hexdigest()
    approvals.answer(stage.home, run_hash, approved=False, by="person")
    eventually(lambda: entries(stage, "denied"))


def test_refusal_of_a_run_with_an_odd_name_is_recorded_too(stage: Stage) -> None:
    train(stage, "ü" * 64, 1)
    assert [dict(entry.fields) for entry in entries(stage, "refusal")] == [{"code": "not-approved"}]


def test_worker_that_died_is_recorded(stage: Stage) -> None:
    stage.agent._worker.crashes += 1
    eventually(lambda: [entry.fields["program"] for entry in entries(stage, "crashed")] == ["worker"])


@pytest.mark.parametrize(
    ("rules", "round_", "code"),
    [
        ("participate = false\n", 0, ErrorCode.POLICY_REFUSED),  # before the message's content is fetched
        ("max-rounds-per-day = 1\n", 2, ErrorCode.RATE_LIMITED),
    ],
)
def test_policy_of_the_moment_holds(stage: Stage, rules: str, round_: int, code: ErrorCode) -> None:
    run_hash = begin(stage)
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    (stage.home / "policy.toml").write_text(OPEN_POLICY + rules)
    assert train(stage, run_hash, 2) == Refusal(run_hash, round_, code)
    assert len(entries(stage, "policy-changed")) == 2


def test_round_asked_for_again_is_answered_with_the_same_update_under_the_same_receipt(stage: Stage) -> None:
    run_hash = begin(stage)
    first = train(stage, run_hash, 1)
    countersigned(stage, 1)
    assert train(stage, run_hash, 1) == first
    assert len(entries(stage, "round")) == 1
    other = TrainRequest(run_hash, 1, {"weights": UPDATED})
    stage.coordinator.ask(other)
    assert stage.reply() == Refusal(run_hash, 1, ErrorCode.ROUND_REPEATED)


def close(stage: Stage, run_hash: str, *, resume: bool = False) -> None:
    """Close a run at the coordinator, and open it again if so asked; the agent has heard of both."""
    stage.coordinator.close(run_hash)
    eventually(lambda: not approvals.load(stage.home, run_hash).open)
    if resume:
        stage.coordinator.resume(run_hash)
        eventually(lambda: approvals.load(stage.home, run_hash).open)


def test_resumed_run_gets_the_update_of_the_round_that_failed_elsewhere_at_no_new_cost(stage: Stage) -> None:
    run_hash = begin(stage, PRIVATE_TOML)
    first = train(stage, run_hash, 1)
    assert isinstance(first, TrainReply)
    countersigned(stage, 1)
    charged = open_site(stage.home).ledger.entries()
    close(stage, run_hash, resume=True)
    assert train(stage, run_hash, 1) == first
    assert open_site(stage.home).ledger.entries() == charged
    assert len(entries(stage, "round")) == 1
    assert len(entries(stage, "spend")) == 1
    assert isinstance(train(stage, run_hash, 2), TrainReply)
    assert len(open_site(stage.home).ledger.entries()) == len(charged) + 1


def test_outbox_holds_no_update_of_a_run_that_is_done_nor_for_ever_one_of_a_run_that_is_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, failed, later = begin(stage), begin(stage, RUN_TOML + "seed = 1\n"), begin(stage, RUN_TOML + "seed = 2\n")
    for run_hash in (done, failed, later):
        stage.runs(run_hash)
        train(stage, run_hash, 1)
    stage.runs(done)
    stage.coordinator.ask(EvaluateRequest(done, 1, "test", {"weights": UPDATED}))
    assert isinstance(stage.reply(), EvaluateReply)
    kept = stage.home / "outbox"
    for run_hash in (done, failed):
        close(stage, run_hash)
    eventually(lambda: {path.name for path in kept.iterdir()} == {failed, later})
    monkeypatch.setattr("client.trail.outbox.KEPT_S", 0.0)
    close(stage, done, resume=True)
    close(stage, done)
    eventually(lambda: {path.name for path in kept.iterdir()} == {later})  # the open one stays, however old


def test_no_next_round_while_the_coordinator_does_not_sign(stage: Stage) -> None:
    run_hash = begin(stage)
    stage.coordinator.answer_receipt = lambda signature: bytes([signature[0] ^ 1]) + signature[1:]
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    assert train(stage, run_hash, 2) == Refusal(run_hash, 2, ErrorCode.RECEIPT_MISSING)
    assert entries(stage, "countersigned") == []
    stage.coordinator.answer_receipt = lambda signature: signature
    countersigned(stage, 1)
    assert isinstance(train(stage, run_hash, 2), TrainReply)


def test_coordinator_that_took_an_update_cannot_say_it_never_came(stage: Stage) -> None:
    run_hash = begin(stage)
    stage.coordinator.arrived = Never()
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    assert train(stage, run_hash, 2) == Refusal(run_hash, 2, ErrorCode.RECEIPT_MISSING)


class Never(set):  # type: ignore[type-arg]
    """Whatever is added is not in it."""

    def add(self, _: object) -> None: ...


def test_nothing_leaves_when_the_log_cannot_be_written(stage: Stage) -> None:
    run_hash = begin(stage)
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    countersigned(stage, 1)
    log = stage.home / "audit.sqlite"
    log.rename(stage.home / "aside")
    log.mkdir()
    stage.coordinator.sent.clear()
    assert train(stage, run_hash, 2) == Refusal(run_hash, 2, ErrorCode.INTERNAL)
    assert b"".join(stage.coordinator.sent).find(UPDATED[-64:]) == -1
    log.rmdir()
    (stage.home / "aside").rename(log)


@pytest.mark.parametrize("place", ["before the push", "before the countersignature"])
def test_killed_agent_loses_and_doubles_no_receipt(
    tmp_path: Path, authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    coordinator = Coordinator(authority, free_port).start()
    identity = authority.admit(tmp_path, "north", coordinator.address)
    (tmp_path / "policy.toml").write_text(OPEN_POLICY)
    command = [sys.executable, "-m", "tests.client.killed_agent", str(tmp_path), place]
    killed = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    stage = Stage(tmp_path, coordinator, FakeWorker(good), None)  # type: ignore[arg-type]
    run_hash = begin(stage)
    coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))
    assert killed.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    assert [entry.fields["receipt"]["round"] for entry in entries(stage, "round")] == [1]
    assert entries(stage, "countersigned") == []
    with playing(stage, Agent(tmp_path, identity, stage.worker)):
        if place == "before the push":
            coordinator.ask(TrainRequest(run_hash, 1, {"weights": WEIGHTS}))  # it owes the answer
        assert isinstance(stage.reply(), TrainReply)
        countersigned(stage, 1)
        assert isinstance(train(stage, run_hash, 2), TrainReply)
        countersigned(stage, 2)
    coordinator.stop()
    assert [entry.fields["receipt"]["round"] for entry in entries(stage, "round")] == [1, 2]
    assert [entry.fields["program"] for entry in entries(stage, "crashed")] == ["agent"]
    assert len(stage.worker.worked) == 1  # round 2; round 1 was not trained again
    keys = {"site/north": (authority.receipt_keys["north"],), "coordinator": (coordinator.log.public_key,)}
    verdict = verify.verify([tmp_path / "audit.sqlite"], keys)
    assert verdict.findings == ()


# Conflicts


def exchanged(stage: Stage) -> Checkpoint:
    """What the site has seen of the coordinator's log, once it has seen anything."""

    def seen() -> Checkpoint | None:
        return witness.last_seen(open_log(stage.home), stage.coordinator.log.public_key)

    eventually(seen)
    found = seen()
    assert found is not None
    return found


def assert_no_more_work(stage: Stage, run_hash: str, round_: int) -> None:
    eventually(lambda: str(read_status(stage.home).get("audit", "")).startswith("CONFLICT"))
    worked = len(stage.worker.worked)
    assert train(stage, run_hash, round_) == Refusal(run_hash, 0, ErrorCode.AUDIT_CONFLICT)
    assert len(stage.worker.worked) == worked


def forked(coordinator: Coordinator, folder: Path) -> AuditLog:
    """A log that has the same beginning and another end, under the same key."""
    path = folder / "fork.sqlite"
    shutil.copyfile(coordinator.log._path, path)
    return AuditLog(path, "coordinator", coordinator.log._key)


def test_coordinator_whose_log_was_rolled_back_is_noticed_and_no_more_work_is_done(stage: Stage) -> None:
    run_hash = begin(stage)
    exchanged(stage)
    old = stage.coordinator.log._path.with_name("old.sqlite")
    shutil.copyfile(stage.coordinator.log._path, old)
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    size = exchanged(stage).size
    stage.coordinator.log.append("data-forgotten")
    assert isinstance(train(stage, run_hash, 2), TrainReply)
    eventually(lambda: exchanged(stage).size > size + 1)
    stage.coordinator.log = AuditLog(old, "coordinator", stage.coordinator.log._key)
    stage.coordinator.log.append("crashed", {"program": "gateway"})
    assert isinstance(train(stage, run_hash, 3), TrainReply)  # the exchange comes after it
    eventually((stage.home / CONFLICT_NAME).exists)
    assert_no_more_work(stage, run_hash, 3)


def test_conflict_outlives_the_agent(stage: Stage) -> None:
    run_hash = begin(stage)
    (stage.home / CONFLICT_NAME).write_text("two histories\n")
    stage.agent.stop()
    eventually(lambda: read_status(stage.home)["state"] == "stopped")
    with playing(stage, Agent(stage.home, load_identity(stage.home), stage.worker)):
        assert_no_more_work(stage, run_hash, 1)


def test_coordinator_that_shows_two_hospitals_two_histories_is_found_by_gossip(stage: Stage, tmp_path: Path) -> None:
    run_hash = begin(stage)
    exchanged(stage)
    other = forked(stage.coordinator, tmp_path)
    other.append("crashed", {"program": "gateway"})
    stage.coordinator.log.append("stopped", {"program": "gateway"})
    elsewhere = notes.peek(other.checkpoint())
    south = Ed25519PrivateKey.generate()
    note = view(south, Head(elsewhere.size, elsewhere.root))
    proof = other.prove(elsewhere.size, elsewhere.size)
    stage.coordinator.others = [shown("south", note, vouched(stage.coordinator._authority, "south", south), proof)]
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    eventually((stage.home / CONFLICT_NAME).exists)
    assert "site south has seen another history" in (stage.home / CONFLICT_NAME).read_text()
    (conflict,) = entries(stage, "conflict")
    assert conflict.fields["second"] == note
    assert_no_more_work(stage, run_hash, 2)


# Other hospitals' keys


def vouched(authority: Authority, site: str, key: Ed25519PrivateKey) -> bytes:
    """A site's certificate, which names the key of its log."""
    public = key.public_key().public_bytes_raw()
    csr = certificates.csr_for(site, certificates.new_key())
    return certificates.to_pem(certificates.site_certificate(csr, site, authority.root, authority.root_key, public))


def view(key: Ed25519PrivateKey, seen: Head | None = None, site: str = "south") -> str:
    """A checkpoint that says what its site has seen of the coordinator's log; None: nothing yet."""
    return notes.sign(Checkpoint(f"site/{site}", 5, b"\7" * 32, 1, seen), key)


def shown(site: str, note: str, certificate: bytes, proof: Sequence[bytes] = ()) -> SiteCheckpoint:
    return SiteCheckpoint(site=site, checkpoint=note.encode(), certificate_pem=certificate, proof=proof)


def audit_status(stage: Stage) -> str:
    return str(read_status(stage.home).get("audit", ""))


def swapped(authority: Authority, south: Ed25519PrivateKey, mine: Ed25519PrivateKey, how: str) -> bytes:
    """The certificate that a coordinator shows beside a checkpoint which it signed itself, as if it were south's."""
    match how:
        case "under the certificate of the site":
            return vouched(authority, "south", south)
        case "under a certificate of another root":
            return vouched(Authority(), "south", mine)
        case "under the certificate of another site":
            return vouched(authority, "east", mine)
        case "signed by another site":
            return vouched(authority, "south", mine)
        case "under a certificate without a key":
            csr = certificates.csr_for("south", certificates.new_key())
            return certificates.to_pem(certificates.site_certificate(csr, "south", authority.root, authority.root_key))
    return b""


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("under the certificate of the site", "not signed"),
        ("under a certificate of another root", "no root that is known here has signed it"),
        ("under the certificate of another site", "not the certificate of site south"),
        ("signed by another site", "it is another site's"),
        ("under a certificate without a key", "no certificate with a receipt key"),
        ("under nothing", "no certificate with a receipt key"),
    ],
)
def test_coordinator_that_swaps_another_hospitals_key_for_its_own_is_found(
    stage: Stage, caplog: pytest.LogCaptureFixture, how: str, why: str
) -> None:
    caplog.set_level("ERROR", "client.trail.log_exchange")
    authority, south, mine = stage.coordinator._authority, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    run_hash = begin(stage)
    origin = "east" if how == "signed by another site" else "south"
    stage.coordinator.others = [shown("south", view(mine, site=origin), swapped(authority, south, mine, how))]
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    eventually(lambda: "site south is not believed" in audit_status(stage))
    assert why in audit_status(stage)
    assert [dict(entry.fields) for entry in entries(stage, "refusal")] == [{"code": "audit-conflict"}]
    assert sum("site south is not believed" in record.getMessage() for record in caplog.records) == 1
    assert stage.agent._exchange._others == {}
    # It is no proof against the coordinator's log: work goes on, and the doubt ends with what caused it.
    assert not (stage.home / CONFLICT_NAME).exists()
    stage.coordinator.others = [shown("south", view(south), vouched(authority, "south", south))]
    assert isinstance(train(stage, run_hash, 2), TrainReply)
    eventually(lambda: audit_status(stage) == "in order")
    assert set(stage.agent._exchange._others) == {"south"}


def test_false_checkpoint_hides_no_true_one(stage: Stage, tmp_path: Path) -> None:
    run_hash = begin(stage)
    exchanged(stage)
    other = forked(stage.coordinator, tmp_path)
    other.append("crashed", {"program": "gateway"})
    stage.coordinator.log.append("stopped", {"program": "gateway"})
    elsewhere = notes.peek(other.checkpoint())
    mine, west = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    seen, proof = Head(elsewhere.size, elsewhere.root), other.prove(elsewhere.size, elsewhere.size)
    stage.coordinator.others = [
        shown("south", view(mine, seen), vouched(Authority(), "south", mine), proof),
        shown("../\n", view(mine, seen), vouched(Authority(), "east", mine), proof),
        shown("west", view(west, seen, "west"), vouched(stage.coordinator._authority, "west", west), proof),
    ]
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    eventually((stage.home / CONFLICT_NAME).exists)
    assert "site west has seen another history" in (stage.home / CONFLICT_NAME).read_text()


def test_many_false_hospitals_do_not_fill_the_log(stage: Stage) -> None:
    run_hash = begin(stage)
    mine = Ed25519PrivateKey.generate()
    stage.coordinator.others = [shown(f"s{number}", view(mine), b"") for number in range(300)]
    for round_ in (1, 2):
        assert isinstance(train(stage, run_hash, round_), TrainReply)
        countersigned(stage, round_)
    eventually(lambda: "is not believed" in audit_status(stage))
    assert len(audit_status(stage)) < 1000
    assert len(entries(stage, "refusal")) == 100


def test_hospital_certified_by_the_next_root_is_believed_where_that_root_is_known(stage: Stage) -> None:
    run_hash = begin(stage)
    following, south = Authority(), Ed25519PrivateKey.generate()
    stage.coordinator.others = [shown("south", view(south), vouched(following, "south", south))]
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    eventually(lambda: "site south is not believed" in audit_status(stage))
    identity = stage.agent._identity
    stage.agent._identity = replace(identity, root_pem=identity.root_pem + certificates.to_pem(following.root))
    assert isinstance(train(stage, run_hash, 2), TrainReply)
    eventually(lambda: audit_status(stage) == "in order")
    assert set(stage.agent._exchange._others) == {"south"}


def test_home_without_a_log_gets_one(tmp_path: Path, authority: Authority) -> None:
    identity = authority.admit(tmp_path, "north", "127.0.0.1:1")
    trail = AuditTrail(tmp_path, identity, b"k" * 32)
    for _ in range(2):
        trail.begin(identity)
    kinds = [entry.kind for entry in trail.log.entries()]
    assert kinds == ["created", "started", "enrolled", "crashed", "started"]
    assert (tmp_path / "audit.sqlite").stat().st_mode & 0o077 == 0


def test_attempts_are_counted_for_a_day(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = authority.admit(tmp_path, "north", "127.0.0.1:1")
    trail = AuditTrail(tmp_path, identity, b"k" * 32)
    for round_ in (1, 2, 3):
        trail.begins(TrainRequest("ab" * 32, round_, {"weights": WEIGHTS}))
    assert (trail.attempts_today(500), trail.attempts_today(2)) == (3, 2)
    now = time.time()
    monkeypatch.setattr("client.trail.audit_trail.time.time", lambda: now + 86401)
    assert trail.attempts_today(500) == 0
