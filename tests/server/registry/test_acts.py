"""A registry that somebody wrote without an operator's key, against the gateway, the enrolment port and the runs.

The forger has the registry file, can append to the audit log as any program of that user can, has old copies of both
rows and acts, and in the worst case a certificate of the root's. What they do not have is an admin's key.
"""

import dataclasses
import datetime
import json
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit.entries import COORDINATOR
from common.audit.log import AuditLog
from common.config import sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import AuditError, EnrolmentError
from common.flower import calls
from common.identity import certificates
from common.identity import operators as rules
from common.identity.operators import Act
from common.wire import channels
from common.wire.wardround_pb2 import CollectReply, CollectRequest, ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub, EnrolmentStub
from server.coordinator import serve
from server.coordinator.runs import Runs
from server.gateway import enrolment
from server.gateway.services import Gateway
from server.home.root import root_credentials
from server.registry import operators
from server.registry.acts import entered_fields
from server.registry.audit_trail import AUDIT_NAME, open_log
from server.registry.operators import Signer
from server.registry.registry import Registry
from tests.server.coordinator.test_runs import SuperLink
from tests.server.coordinators import (
    RUN,
    RUN_TOML,
    Member,
    asked,
    enrol,
    enrol_request,
    new_home,
    receipt_key,
    signed,
    status_of,
)

HASH = sha256_of(RUN)
IN, OUT = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
UNKNOWN = grpc.StatusCode.UNAUTHENTICATED


class Office:
    """A coordinator's doors, served, and the hands of somebody who has its files."""

    def __init__(self, folder: Path) -> None:
        self.home = new_home(folder)
        self.registry = Registry(self.home.registry)  # of the commands
        for name, role in (("maria", "operator"), ("omar", "auditor")):
            operators.add(self.home, self.registry, name, role)  # type: ignore[arg-type]
        self.member = enrol(self.home, self.registry, "st-mary")
        gateway = Gateway(self.home, Registry(self.home.registry))
        self.servers = [
            serve.start_gateway(self.home, gateway),
            serve.start_enrolment(self.home, Registry(self.home.registry)),
        ]
        self.runs = Runs(self.home, Registry(self.home.registry))

    def knocks(self, member: Member) -> grpc.StatusCode:
        """How a call at the gateway ends."""
        with member.channel(self.home) as channel:
            return status_of(CoordinationStub(channel).ListProposals, ListProposalsRequest())

    def asks(self, site: str, token: str) -> grpc.StatusCode:
        """How a request at the enrolment port ends."""
        request = enrol_request(site, token)
        with channels.secure_channel(self.home.enrolment_address, self.home.root_pem) as channel:
            return status_of(EnrolmentStub(channel).Enrol, request)

    def writes(self, statement: str, *values: Any) -> None:
        """Write the registry behind everybody's back."""
        with sqlite3.connect(self.home.registry) as database:
            assert database.execute(statement, values).rowcount == 1

    def row(self, table: str, **place: str) -> dict[str, Any]:
        """A row as it is, to be put back later."""
        ((column, value),) = place.items()
        with sqlite3.connect(self.home.registry) as database:
            database.row_factory = sqlite3.Row
            query = f"SELECT * FROM {table} WHERE {column} = ?"  # noqa: S608 - of this test
            return dict(database.execute(query, (value,)).fetchone())

    def puts_back(self, table: str, row: dict[str, Any]) -> None:
        marks = ", ".join("?" * len(row))
        self.writes(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", *row.values())  # noqa: S608 - of this test

    def signer(self, name: str, action: str = "approve") -> Signer:
        """An operator's, without the question what they may do."""
        member = next(one for one in self.registry.operators() if one.name == name)
        path = self.home.path / "operators" / f"{name}.key"
        return Signer(name, member.certificate, operators.load_key(self.home, name, path, None), action)

    def admits(self, site: str, by: Signer | None, inviter: Signer | None = None, *, enters: bool = True) -> Member:
        """Let a pending site in by hand, with a certificate of the root's, and whatever act there is."""
        key, receipts = certificates.new_key(), Ed25519PrivateKey.generate()
        root_key, root = root_credentials(self.home)
        signed_now = certificates.site_certificate(certificates.csr_for(site, key), site, root, root_key)
        invitation = enrolment.invite(self.home, self.registry, site, inviter and replace(inviter, action="invite"))
        csr_pem, public, proof = asked(site, certificates.csr_for(site, key), receipts)
        self.registry.redeem(site, invitation.token, csr_pem, public, proof)
        about = {"site": site, "certificate": certificates.fingerprint(signed_now), "key": public.hex()}
        act = None if by is None else by.sign(*about.values())
        if act is not None and enters:
            open_log(self.home).append("act", entered_fields(act))
        fields = about | {"coordinator-key": open_log(self.home).public_key.hex()}
        open_log(self.home).append("enrolled", fields)
        node_key = self.home.node_keys.seal(certificates.key_to_pem(certificates.new_key()), site)
        self.registry.activate(site, certificates.to_pem(signed_now), node_key, act)
        return Member(site, key, certificates.to_pem(signed_now))


def csr_for(site: str) -> bytes:
    return certificates.to_pem(certificates.csr_for(site, certificates.new_key()))


def text_of(act: Act) -> str:
    """An act as it stands in the registry."""
    pem, signature = act.certificate_pem.decode(), act.signature.hex()
    return json.dumps([act.action, act.subject, pem, act.signed_at, act.nonce, signature])


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "home")
    yield opened
    for server in opened.servers:
        server.stop(0).wait()


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    fake = SuperLink()
    for name in ("start_run", "run_is_live", "stop_run", "stop_runs_of"):
        monkeypatch.setattr(calls, name, getattr(fake, name))
    return fake


@pytest.fixture
def running(office: Office, superlink: SuperLink) -> Office:
    """A run that goes on."""
    other = enrol(office.home, office.registry, "st-john")
    office.registry.propose(from_toml(RUN_TOML), ())
    for name in (office.member.name, other.name):
        office.registry.answer(HASH, name, approved=True)
    assert office.runs.step() == {1}
    return office


# Sites


def test_site_that_an_admin_approved_is_in(office: Office) -> None:
    assert office.knocks(office.member) == IN
    assert office.knocks(office.admits("st-john", office.signer("admin"))) == IN


def test_revoked_site_whose_row_is_put_back_stays_out(office: Office) -> None:
    before = office.row("sites", name="st-mary")
    enrolment.revoke(office.home, office.registry, "st-mary", office.signer("admin", "revoke"))
    assert office.knocks(office.member) == OUT
    office.puts_back("sites", before)  # with its approval, by an admin, and entered
    assert office.row("sites", name="st-mary")["state"] == "active"
    assert office.knocks(office.member) == OUT
    assert office.registry.site("st-mary").state == "unproven"


def test_entering_its_enrolment_a_second_time_does_not_bring_a_revoked_site_back(office: Office) -> None:
    before, log = office.row("sites", name="st-mary"), open_log(office.home)
    enrolment.revoke(office.home, office.registry, "st-mary", office.signer("admin", "revoke"))
    office.puts_back("sites", before)
    for kind in ("act", "enrolled"):
        log.append(
            kind, next(entry for entry in reversed(log.entries()) if entry.kind == kind and matters(entry)).fields
        )
    assert office.knocks(office.member) == OUT


def matters(entry: Any) -> bool:
    return bool(entry.kind != "act" or entry.fields["action"] == "approve")


def test_revocation_without_a_signature_shuts_out_and_is_told(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        office.writes("UPDATE sites SET state = 'revoked' WHERE name = 'st-mary'")
        assert office.knocks(office.member) == OUT
    office.registry.sites()
    assert any("site st-mary is revoked" in one.message for one in caplog.records)


def test_while_the_log_cannot_be_written_sites_are_shut_out_and_none_is_let_in(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = enrolment.invite(office.home, office.registry, "st-john").token
    assert office.asks("st-john", token) == IN

    def full(_home: object, _act: object) -> None:
        raise AuditError("the disk is full")

    monkeypatch.setattr(operators, "enter", full)
    for change in (
        lambda: enrolment.approve(office.home, office.registry, "st-john"),
        lambda: enrolment.invite(office.home, office.registry, "st-luke"),
        lambda: enrolment.revoke(office.home, office.registry, "st-mary", office.signer("admin", "revoke")),
    ):
        with pytest.raises(AuditError):
            change()
    assert {site.name: site.state for site in office.registry.sites()} == {"st-john": "pending", "st-mary": "revoked"}
    assert office.knocks(office.member) == OUT


def test_site_is_not_let_in_without_an_act(office: Office) -> None:
    assert office.knocks(office.admits("st-john", None)) == OUT


@pytest.mark.parametrize("name", ["maria", "omar"])
def test_act_of_an_operator_or_auditor_lets_nobody_in(office: Office, name: str) -> None:
    assert office.knocks(office.admits("st-john", office.signer(name))) == OUT


def test_act_that_is_not_in_the_log_lets_nobody_in(office: Office) -> None:
    assert office.knocks(office.admits("st-john", office.signer("admin"), enters=False)) == OUT


def test_act_under_the_nonce_of_one_that_was_entered_lets_nobody_in(office: Office) -> None:
    signer = office.signer("admin")
    other = office.admits("st-john", signer, enters=False)
    entered, forged = (json.loads(office.row("sites", name=name)["approval_act"]) for name in ("st-mary", "st-john"))
    act = rules.sign_act(signer.key, signer.certificate, "approve", forged[1], signed_at=forged[3], nonce=entered[4])
    office.writes("UPDATE sites SET approval_act = ? WHERE name = 'st-john'", text_of(act))
    assert office.knocks(other) == OUT


def test_act_for_another_site_lets_nobody_in(office: Office) -> None:
    other = office.admits("st-john", None)
    act = office.row("sites", name="st-mary")["approval_act"]
    office.writes("UPDATE sites SET approval_act = ? WHERE name = 'st-john'", act)
    assert office.knocks(other) == OUT
    assert office.knocks(office.member) == IN


def test_invitation_signed_by_an_admin_is_no_approval(office: Office) -> None:
    other = office.admits("st-john", None)
    row = office.row("sites", name="st-john")
    office.writes("UPDATE sites SET approval_act = ? WHERE name = 'st-john'", row["invitation_act"])
    assert office.knocks(other) == OUT


@pytest.mark.parametrize(
    "change", [{"signature": b"\0" * 64}, {"nonce": "00" * 16}, {"signed_at": 1}, {"certificate_pem": b"none"}]
)
def test_changed_act_lets_nobody_in(office: Office, change: dict[str, Any]) -> None:
    row = office.row("sites", name="st-mary")
    action, subject, pem, at, nonce, signature = json.loads(row["approval_act"])
    act = Act(action, subject, pem.encode(), at, nonce, bytes.fromhex(signature))
    office.writes("UPDATE sites SET approval_act = ?", text_of(dataclasses.replace(act, **change)))
    assert office.knocks(office.member) == OUT
    office.writes("UPDATE sites SET approval_act = ?", text_of(act))
    assert office.knocks(office.member) == IN


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "[1, 2, 3, 4, 5, 6]", "nonsense", '["approve"]'])
def test_what_is_no_act_lets_nobody_in(office: Office, text: str | None) -> None:
    office.writes("UPDATE sites SET approval_act = ?", text)
    assert office.knocks(office.member) == OUT


def test_operator_of_another_root_lets_nobody_in_though_the_log_names_them(office: Office) -> None:
    key, other = Ed25519PrivateKey.generate(), certificates.new_key()
    root = certificates.new_root(other, certificates.common_name(certificates.load_certificate(office.home.root_pem)))
    certificate = rules.certificate(key.public_key(), "admin", "admin", root, other)
    about = {"operator": "admin", "certificate": certificates.fingerprint(certificate), "role": "admin"}
    inviter = office.signer("admin")
    open_log(office.home).append("operator-added", about | {"key": rules.public_bytes(key).hex()})
    office.registry.put_operator("admin", "admin", certificates.to_pem(certificate))
    forged = Signer("admin", certificates.to_pem(certificate), key, "approve")
    assert office.knocks(office.admits("st-john", forged, inviter)) == OUT


def test_what_a_removed_admin_approved_before_stays_and_after_does_not_count(office: Office) -> None:
    signer = office.signer("admin")
    operators.add(office.home, office.registry, "zoe", "admin", by=replace(signer, action="operator-add"))
    operators.remove(office.home, office.registry, "admin", office.signer("zoe", "operator-remove"))
    assert office.knocks(office.member) == IN
    assert office.knocks(office.admits("st-john", signer, office.signer("zoe"))) == OUT
    assert office.knocks(office.admits("st-luke", office.signer("zoe"), office.signer("zoe"))) == IN


def test_act_entered_after_the_certificate_ran_out_lets_nobody_in(office: Office) -> None:
    other = office.admits("st-john", office.signer("admin"), enters=False)
    row = office.row("sites", name="st-john")
    action, subject, pem, at, nonce, signature = json.loads(row["approval_act"])
    act = Act(action, subject, pem.encode(), at, nonce, bytes.fromhex(signature))
    later = (certificates.now() + rules.LIFETIME + datetime.timedelta(days=1)).timestamp()
    log = AuditLog(office.home.path / AUDIT_NAME, COORDINATOR, office.home.log_key, clock=lambda: later)
    log.append("act", entered_fields(act))
    assert office.knocks(other) == OUT


def test_certificate_of_another_site_does_not_become_this_sites(office: Office) -> None:
    other = enrol(office.home, office.registry, "st-john")
    enrolment.revoke(office.home, office.registry, "st-john", office.signer("admin", "revoke"))
    stolen = certificates.fingerprint(certificates.load_certificate(other.certificate))
    office.writes("UPDATE sites SET fingerprint = NULL WHERE name = 'st-john'")
    for column in ("earlier_fingerprint", "fingerprint"):
        office.writes(f"UPDATE sites SET {column} = ?, earlier_expires = '9999' WHERE name = 'st-mary'", stolen)  # noqa: S608
        assert office.knocks(other) == OUT


def test_other_receipt_key_than_the_approved_one_shuts_the_site_out(office: Office) -> None:
    office.writes("UPDATE sites SET receipt_key = ?", receipt_key())
    assert office.knocks(office.member) == OUT


def test_renewal_needs_no_operator_and_an_unproven_site_gets_none(office: Office) -> None:
    key = certificates.new_key()
    renewed = enrolment.renew(
        office.home, office.registry, "st-mary", certificates.to_pem(certificates.csr_for("st-mary", key))
    )
    assert renewed is not None
    member = Member("st-mary", key, renewed)
    assert office.knocks(office.member) == office.knocks(member) == IN  # until the new one is used
    office.writes("UPDATE sites SET approval_act = NULL")
    with pytest.raises(EnrolmentError, match="unproven"):
        enrolment.renew(office.home, office.registry, "st-mary", csr_for("st-mary"))
    assert office.knocks(member) == OUT
    assert [entry.kind for entry in open_log(office.home).entries()].count("renewed") == 1


# The enrolment port


def test_signed_invitation_is_good_once(office: Office) -> None:
    token = enrolment.invite(office.home, office.registry, "st-john").token
    assert office.asks("st-john", token) == IN


def test_forged_invitation_opens_nothing(office: Office) -> None:
    office.registry.collected("st-mary")
    tomorrow = certificates.now() + datetime.timedelta(days=1)
    office.registry.invite("st-john", "ab" * 16, tomorrow)
    assert office.asks("st-john", "ab" * 16) == UNKNOWN
    assert not office.registry.is_expecting()  # the port stays closed
    with pytest.raises(EnrolmentError, match="unproven"):
        enrolment.approve(office.home, office.registry, "st-john")


@pytest.mark.parametrize("column", ["token_sha256", "token_expires", "name"])
def test_invitation_with_another_token_time_or_name_opens_nothing(office: Office, column: str) -> None:
    token = enrolment.invite(office.home, office.registry, "st-john").token
    late = (certificates.now() + datetime.timedelta(days=365)).isoformat()
    digest = office.row("sites", name="st-john")["token_sha256"]
    other = {"token_sha256": digest.replace(digest[0], "0" if digest[0] != "0" else "1"), "token_expires": late}
    value = other.get(column, "st-luke")
    office.writes(f"UPDATE sites SET {column} = ? WHERE name = 'st-john'", value)  # noqa: S608 - of this test
    assert office.asks("st-luke" if column == "name" else "st-john", token) == UNKNOWN


@pytest.mark.parametrize("end", ["approved", "revoked"])
def test_spent_invitation_that_is_put_back_opens_nothing(office: Office, end: str) -> None:
    token = enrolment.invite(office.home, office.registry, "st-john").token
    before = office.row("sites", name="st-john")
    if end == "approved":
        assert office.asks("st-john", token) == IN
        enrolment.approve(office.home, office.registry, "st-john")
    else:
        enrolment.revoke(office.home, office.registry, "st-john", office.signer("admin", "revoke"))
    office.puts_back("sites", before)
    assert office.asks("st-john", token) == UNKNOWN


@pytest.mark.parametrize("name", ["maria", "omar"])
def test_invitation_by_an_operator_or_auditor_opens_nothing(office: Office, name: str) -> None:
    with pytest.raises(EnrolmentError, match="may not invite"):
        signed(office.home, office.registry, "invite", "st-john", name=name)
    invitation = enrolment.invite(office.home, office.registry, "st-john", office.signer(name, "invite"))
    assert office.asks("st-john", invitation.token) == UNKNOWN


def test_certificate_of_a_forged_approval_is_not_handed_out(office: Office) -> None:
    office.admits("st-john", None)
    question = CollectRequest(site="st-john", request_sha256=office.registry.site("st-john").request_sha256)
    with channels.secure_channel(office.home.enrolment_address, office.home.root_pem) as channel:
        assert EnrolmentStub(channel).Collect(question).state == CollectReply.REFUSED


# Runs


def stop(office: Office) -> None:
    act = signed(office.home, office.registry, "stop", HASH, name="maria")
    assert office.registry.close(HASH, "stopped", "", act)
    open_log(office.home).append("closed", {"run": HASH})
    assert office.runs.step() == set()


def test_run_that_an_operator_stopped_goes_on_when_one_resumes_it(running: Office, superlink: SuperLink) -> None:
    stop(running)
    assert not superlink.live
    running.registry.reopen(HASH, signed(running.home, running.registry, "resume", HASH, name="maria"))
    assert running.runs.step() == {2}


@pytest.mark.parametrize("state", ["proposed", "running"])
def test_stopped_run_does_not_go_on_because_the_registry_says_so(
    running: Office, superlink: SuperLink, state: str
) -> None:
    before = running.row("proposals", run_hash=HASH)
    stop(running)
    running.writes("UPDATE proposals SET state = ?", state)
    assert running.runs.step() == set()
    running.puts_back("proposals", before)
    assert running.runs.step() == set()
    assert len(superlink.started) == 1
    assert running.registry.proposal(HASH).state == "stopped"
    with running.member.channel(running.home) as channel:
        (listed,) = CoordinationStub(channel).ListProposals(ListProposalsRequest()).proposals
    assert not listed.open
    running.registry.reopen(HASH, signed(running.home, running.registry, "resume", HASH))
    assert running.runs.step() == {2}


def test_completed_run_does_not_begin_again(running: Office, superlink: SuperLink) -> None:
    folder = running.home.run_folder(issue(RUN))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text('{"status": "completed"}')
    assert running.runs.step() == set()
    running.writes("UPDATE proposals SET state = 'proposed'")
    assert running.runs.step() == set()
    assert len(superlink.started) == 1


def test_old_resumption_is_not_good_for_a_second_time(running: Office, superlink: SuperLink) -> None:
    stop(running)
    act = signed(running.home, running.registry, "resume", HASH)
    running.registry.reopen(HASH, act)
    assert running.runs.step() == {2}
    stop(running)
    running.registry.reopen(HASH, act)
    assert running.runs.step() == set()
    with pytest.raises(EnrolmentError, match="carried out before"):
        operators.enter(running.home, act)
    open_log(running.home).append("act", entered_fields(act))  # by other means
    assert running.runs.step() == set()
    assert len(superlink.started) == 2


def test_auditor_or_another_runs_operator_resumes_nothing(running: Office, superlink: SuperLink) -> None:
    stop(running)
    for act in (running.signer("omar", "resume").sign(HASH), running.signer("maria", "resume").sign("00" * 32)):
        open_log(running.home).append("act", entered_fields(act))
        running.registry.reopen(HASH, act)
        assert running.runs.step() == set()
    assert len(superlink.started) == 1


def test_run_whose_stop_nobody_signed_is_stopped_told_of_and_can_be_resumed(
    running: Office, superlink: SuperLink, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        running.writes("UPDATE proposals SET state = 'stopped'")
        assert running.runs.step() == set()
    assert not superlink.live
    assert any(f"run {HASH[:8]} is stopped" in one.message for one in caplog.records)
    running.registry.reopen(HASH, signed(running.home, running.registry, "resume", HASH))
    assert running.runs.step() == {2}


def test_who_was_asked_for_one_right_signs_nothing_else(office: Office) -> None:
    before = [entry.kind for entry in open_log(office.home).entries()]
    asked_to_stop = operators.acting(office.home, office.registry, "stop")
    assert asked_to_stop.sign(HASH).action == "stop"
    with pytest.raises(ValueError, match="who may stop does not sign revoke"):
        enrolment.revoke(office.home, office.registry, "st-mary", asked_to_stop)
    with pytest.raises(ValueError, match="who may stop does not sign invite"):
        enrolment.invite(office.home, office.registry, "st-john", asked_to_stop)
    assert office.registry.site("st-mary").state == "active"
    assert [entry.kind for entry in open_log(office.home).entries()] == before
    done: list[str] = []
    operators.carry_out(office.home, asked_to_stop, (HASH,), lambda act: done.append(act.action))
    assert done == ["stop"]
