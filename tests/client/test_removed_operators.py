"""An operator who was removed is one no more at the hospitals, also for what they signed before; people are counted.

A real agent, certificates and gRPC; the coordinator is the double of the agent's tests, and may be hostile.
"""

import hashlib
import json
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.rules import approvals
from client.trail.audit_trail import open_log
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml
from common.errors import EnrolmentError, ErrorCode
from common.identity import certificates, operators
from common.wire.messages import Refusal, TrainReply, TrainRequest
from common.wire.wardround_pb2 import Endorsement
from tests.client.agent.test_loop import OPEN_POLICY, RUN_TOML, WEIGHTS, Stage
from tests.client.coordinator import Authority
from tests.client.trail.test_log_exchange import stage
from tests.patience import eventually

__all__ = ["stage"]  # a fixture

RUN = parse(RunConfig, RUN_TOML)
RUN_HASH, BUNDLE = sha256_of(RUN), from_toml(RUN_TOML).bundle
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


@pytest.fixture
def authority() -> Authority:
    return Authority()


class Operator:
    """One with a key; a second name may be for the same key."""

    def __init__(
        self,
        authority: Authority,
        name: str,
        key: Ed25519PrivateKey | None = None,
        role: operators.Role = "operator",
    ) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.certificate: x509.Certificate = operators.certificate(
            self.key.public_key(), name, role, authority.root, authority.root_key
        )

    def signs(self) -> Endorsement:
        one = operators.endorse(self.key, certificates.to_pem(self.certificate), RUN_HASH, DIGEST, int(time.time()))
        return Endorsement(certificate_pem=one.certificate_pem, signature=one.signature, signed_at=one.signed_at)


def propose(stage: Stage, *signers: Operator) -> None:
    stage.coordinator.propose(RUN_HASH, BUNDLE, DIGEST, [one.signs() for one in signers])
    stage.coordinator.run.run_id = int(RUN_HASH[:12], 16)
    stage.coordinator.run.fab_hash = DIGEST


def known(stage: Stage) -> list[str]:
    return [one.run_hash for one in approvals.load_all(stage.home)]


def approved(stage: Stage, *signers: Operator) -> None:
    propose(stage, *signers)
    eventually(lambda: known(stage) == [RUN_HASH])
    stage.approve(RUN_HASH)
    assert isinstance(train(stage, 1), TrainReply)


def train(stage: Stage, round_: int) -> object:
    stage.coordinator.ask(TrainRequest(RUN_HASH, round_, {"weights": WEIGHTS}))
    return stage.reply()


def assert_refused(reply: object) -> None:
    assert isinstance(reply, Refusal)
    assert (reply.run_hash, reply.code) == (RUN_HASH, ErrorCode.NOT_APPROVED)


def remove(stage: Stage, *removals: object) -> None:
    """The coordinator passes them on; it counts as news."""
    stage.coordinator.removals.extend(removals)  # type: ignore[arg-type]
    stage.coordinator._revision += 1


def removed_keys(stage: Stage) -> list[str]:
    path = stage.home / "tls" / "removed-operators.json"
    return json.loads(path.read_bytes()) if path.exists() else []


def test_run_of_an_operator_who_was_removed_goes_no_further(stage: Stage, authority: Authority) -> None:
    maria = Operator(authority, "maria")
    approved(stage, maria)
    remove(stage, authority.removal(maria.certificate))
    eventually(lambda: removed_keys(stage))
    # It says that the run is open, and goes on asking.
    assert_refused(train(stage, 2))
    assert approvals.load(stage.home, RUN_HASH).open
    eventually(lambda: [one.kind for one in open_log(stage.home).entries()].count("operator-removed") == 1)
    # With the signature of one who is an operator still the run goes on.
    stage.coordinator.proposals[0].endorsements.append(Operator(authority, "jonas").signs())
    stage.coordinator._revision += 1
    eventually(lambda: approvals.load(stage.home, RUN_HASH).signers == ("jonas",))
    assert isinstance(train(stage, 2), TrainReply)


def test_proposal_of_an_operator_who_was_removed_is_none_also_when_the_removal_is_held_back_later(
    stage: Stage, authority: Authority
) -> None:
    maria = Operator(authority, "maria")
    remove(stage, authority.removal(maria.certificate))
    eventually(lambda: removed_keys(stage) == [maria.key.public_key().public_bytes_raw().hex()])
    stage.coordinator.removals.clear()
    propose(stage, maria)
    propose_other = Operator(authority, "jonas")
    eventually(stage.coordinator.was_heard)
    assert known(stage) == []
    stage.coordinator.proposals.clear()
    propose(stage, maria, propose_other)
    eventually(lambda: known(stage) == [RUN_HASH])
    assert approvals.load(stage.home, RUN_HASH).signers == ("jonas",)


@pytest.mark.parametrize("forged", ["by an operator", "of another root", "for another", "altered"])
def test_removal_that_no_admin_has_signed_is_not_believed(stage: Stage, authority: Authority, forged: str) -> None:
    maria, jonas = Operator(authority, "maria"), Operator(authority, "jonas")
    match forged:
        case "by an operator":
            removal = authority.removal(maria.certificate, role="operator")
        case "of another root":
            removal = Authority().removal(maria.certificate)
        case "for another":
            removal = authority.removal(jonas.certificate)
            removal.certificate_pem = certificates.to_pem(maria.certificate)
        case _:
            removal = authority.removal(maria.certificate)
            removal.nonce = "1e" * 16
    approved(stage, maria)
    remove(stage, removal, authority.removal(jonas.certificate))
    eventually(lambda: removed_keys(stage) == [jonas.key.public_key().public_bytes_raw().hex()])
    assert isinstance(train(stage, 2), TrainReply)


def test_admin_who_was_removed_removes_nobody(stage: Stage, authority: Authority) -> None:
    """With the coordinator's host such a one could take all the others' keys from them for good."""
    maria, former = Operator(authority, "maria"), Operator(authority, "otto", role="admin")
    last = Operator(authority, "jonas")
    approved(stage, maria)
    remove(
        stage,
        authority.removal(former.certificate),
        authority.removal(maria.certificate, by=(former.key, former.certificate)),
        authority.removal(last.certificate),
    )
    expected = sorted(one.key.public_key().public_bytes_raw().hex() for one in (former, last))
    eventually(lambda: removed_keys(stage) == expected)
    assert isinstance(train(stage, 2), TrainReply)


def test_what_an_admin_removed_before_being_removed_stays_so(stage: Stage, authority: Authority) -> None:
    maria, later = Operator(authority, "maria"), Operator(authority, "otto", role="admin")
    approved(stage, maria)
    remove(
        stage,
        authority.removal(maria.certificate, by=(later.key, later.certificate)),
        authority.removal(later.certificate),
    )
    expected = sorted(one.key.public_key().public_bytes_raw().hex() for one in (maria, later))
    eventually(lambda: removed_keys(stage) == expected)
    assert_refused(train(stage, 2))


@pytest.mark.parametrize("whose", ["one key", "one name"])
def test_two_operators_are_two_people_as_far_as_can_be_known(stage: Stage, authority: Authority, whose: str) -> None:
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "operators = 2\n")
    maria = Operator(authority, "maria")
    same = Operator(authority, "jonas", maria.key) if whose == "one key" else Operator(authority, "maria")
    propose(stage, maria, same)
    eventually(stage.coordinator.was_heard)
    assert known(stage) == []
    stage.coordinator.proposals.clear()
    propose(stage, maria, same, Operator(authority, "ines"))
    eventually(lambda: known(stage) == [RUN_HASH])
    together = "jonas also called maria" if whose == "one key" else "maria"
    assert approvals.load(stage.home, RUN_HASH).signers == ("ines", together)


def test_policy_that_wants_more_operators_holds_from_the_next_message_on(stage: Stage, authority: Authority) -> None:
    approved(stage, Operator(authority, "maria"))
    (stage.home / "policy.toml").write_text(OPEN_POLICY + "operators = 2\n")
    assert_refused(train(stage, 2))


def test_signature_that_was_checked_outlives_its_certificate(
    stage: Stage, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    approved(stage, Operator(authority, "maria"))
    monkeypatch.setattr(operators, "check_certificate", _out_of_date)
    stage.coordinator._revision += 1
    eventually(stage.coordinator.was_heard)
    assert isinstance(train(stage, 2), TrainReply)


def _out_of_date(*_: object) -> object:
    raise EnrolmentError("the operator's certificate is out of date. The coordinator has to renew it.")
