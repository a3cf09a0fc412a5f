import dataclasses
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import EnrolmentError
from common.identity import certificates, operators
from common.identity.operators import Act, Endorsement, Role

RUN, BUNDLE, AT = "ab" * 32, "cd" * 32, 1_790_000_000


@pytest.fixture(scope="module")
def root_key() -> certificates.PrivateKey:
    return certificates.new_key()


@pytest.fixture(scope="module")
def root(root_key: certificates.PrivateKey) -> x509.Certificate:
    return certificates.new_root(root_key, "root")


def endorsed(
    root: x509.Certificate, root_key: certificates.PrivateKey, name: str = "maria", role: Role = "operator"
) -> Endorsement:
    key = Ed25519PrivateKey.generate()
    pem = certificates.to_pem(operators.certificate(key.public_key(), name, role, root, root_key))
    return operators.endorse(key, pem, RUN, BUNDLE, AT)


def check(root: x509.Certificate, *endorsements: Endorsement) -> tuple[str, ...]:
    return operators.people(operators.check_endorsements(endorsements, certificates.to_pem(root), RUN, BUNDLE))


def test_statement_is_what_the_documentation_says(root, root_key):
    one = endorsed(root, root_key)
    key = certificates.load_certificate(one.certificate_pem).public_key()
    assert isinstance(key, Ed25519PublicKey)
    key.verify(one.signature, f"wardround proposal 1\n{RUN}\n{BUNDLE}\nmaria\n{AT}\n".encode())


def test_operators_and_admins_propose_and_auditors_do_not(root, root_key):
    roles: tuple[Role, ...] = ("admin", "operator", "auditor")
    assert check(root, *(endorsed(root, root_key, role, role) for role in roles)) == ("admin", "operator")


def test_one_operator_counts_once(root, root_key):
    one = endorsed(root, root_key)
    assert check(root, one, one, dataclasses.replace(one)) == ("maria",)
    assert check(root, one, endorsed(root, root_key, "jonas")) == ("jonas", "maria")


def test_names_with_one_key_and_keys_with_one_name_are_one_person(root, root_key):
    def signed(key: Ed25519PrivateKey, name: str) -> Endorsement:
        pem = certificates.to_pem(operators.certificate(key.public_key(), name, "operator", root, root_key))
        return operators.endorse(key, pem, RUN, BUNDLE, AT)

    one, two, three = (Ed25519PrivateKey.generate() for _ in range(3))
    assert check(root, signed(one, "maria"), signed(one, "jonas")) == ("jonas also called maria",)
    assert check(root, signed(one, "maria"), signed(two, "maria")) == ("maria",)
    # By way of a third: maria's second key is jonas's.
    linked = [signed(one, "maria"), signed(three, "ines"), signed(two, "jonas"), signed(two, "maria")]
    assert check(root, *linked) == ("ines", "jonas also called maria")


@pytest.mark.parametrize("changes", [{"signed_at": AT + 1}, {"signature": b"\0" * 64}, {"signature": b""}])
def test_changed_endorsement_does_not_count(root, root_key, changes):
    assert check(root, dataclasses.replace(endorsed(root, root_key), **changes)) == ()


def test_endorsement_holds_for_one_run_and_one_bundle(root, root_key):
    one, pem = endorsed(root, root_key), certificates.to_pem(root)
    assert operators.check_endorsements([one], pem, "00" * 32, BUNDLE) == ()
    assert operators.check_endorsements([one], pem, RUN, "00" * 32) == ()


def test_certificate_of_another_root_or_purpose_does_not_count(root, root_key):
    other_key = certificates.new_key()
    other = endorsed(certificates.new_root(other_key, "root"), other_key)
    assert check(root, other) == ()
    site_key = certificates.new_key()
    site = certificates.to_pem(
        certificates.site_certificate(certificates.csr_for("maria", site_key), "maria", root, root_key)
    )
    assert check(root, dataclasses.replace(endorsed(root, root_key), certificate_pem=site)) == ()
    assert check(root, dataclasses.replace(endorsed(root, root_key), certificate_pem=b"none")) == ()


def test_operators_certificate_opens_no_door_of_a_site(root, root_key):
    pem = endorsed(root, root_key).certificate_pem
    with pytest.raises(EnrolmentError):
        certificates.check_site_certificate(pem, certificates.to_pem(root), "maria", certificates.new_key())


def test_expired_certificate_does_not_count(root, root_key, monkeypatch):
    one = endorsed(root, root_key)
    later = certificates.now() + operators.LIFETIME + datetime.timedelta(days=1)
    monkeypatch.setattr(certificates, "now", lambda: later)
    assert check(root, one) == ()


def test_successor_root_counts_beside_the_pinned_one(root, root_key):
    next_key = certificates.new_key()
    successor = certificates.new_root(next_key, "next")
    one = endorsed(successor, next_key)
    assert check(root, one) == ()
    both = certificates.to_pem(root) + certificates.to_pem(successor)
    assert operators.people(operators.check_endorsements([one], both, RUN, BUNDLE)) == ("maria",)


# Acts


def acted(
    root: x509.Certificate, root_key: certificates.PrivateKey, action: str = "approve", role: Role = "admin"
) -> Act:
    key = Ed25519PrivateKey.generate()
    pem = certificates.to_pem(operators.certificate(key.public_key(), "maria", role, root, root_key))
    return operators.sign_act(key, pem, action, RUN, signed_at=AT, nonce="0f" * 16)


def test_act_is_signed_as_the_documentation_says(root, root_key):
    one = acted(root, root_key)
    key = certificates.load_certificate(one.certificate_pem).public_key()
    assert isinstance(key, Ed25519PublicKey)
    key.verify(one.signature, f"wardround act 1\napprove\n{RUN}\nmaria\n{AT}\n{'0f' * 16}\n".encode())
    assert operators.check_act(one, certificates.to_pem(root)).name == "maria"


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "revoke"}, {"subject": BUNDLE}, {"signed_at": AT + 1}, {"nonce": "00" * 16},
        {"signature": b""}, {"signature": b"\0" * 64},
    ],
)  # fmt: skip
def test_changed_act_is_refused(root, root_key, changes):
    with pytest.raises(EnrolmentError, match="signature is wrong"):
        operators.check_act(dataclasses.replace(acted(root, root_key), **changes), certificates.to_pem(root))


def test_act_is_no_endorsement_and_an_endorsement_no_act(root, root_key):
    act, one = acted(root, root_key, "run"), endorsed(root, root_key)
    assert check(root, Endorsement(act.certificate_pem, act.signature, AT)) == ()
    forged = Act("run", RUN, one.certificate_pem, AT, "0f" * 16, one.signature)
    with pytest.raises(EnrolmentError, match="signature is wrong"):
        operators.check_act(forged, certificates.to_pem(root))


def test_act_beyond_the_role_says_who_may(root, root_key):
    with pytest.raises(EnrolmentError, match=r"maria is auditor and may not stop. Who may: admin, operator\."):
        operators.check_act(acted(root, root_key, "stop", "auditor"), certificates.to_pem(root))
    with pytest.raises(EnrolmentError, match="Who may: nobody"):
        operators.check_act(acted(root, root_key, "format-disk"), certificates.to_pem(root))


def test_act_counts_by_the_certificate_of_its_time(root, root_key):
    one, pem = acted(root, root_key), certificates.to_pem(root)
    later = certificates.now() + operators.LIFETIME + datetime.timedelta(days=1)
    operators.check_act(one, pem, certificates.now())
    with pytest.raises(EnrolmentError, match="out of date"):
        operators.check_act(one, pem, later)


def test_act_of_another_root_is_refused(root, root_key):
    other_key = certificates.new_key()
    with pytest.raises(EnrolmentError, match="not of this federation's root"):
        operators.check_act(acted(certificates.new_root(other_key, "root"), other_key), certificates.to_pem(root))


def test_admin_may_do_everything_and_an_auditor_changes_nothing():
    assert all("admin" in roles for roles in operators.RIGHTS.values())
    reads = {action for action, roles in operators.RIGHTS.items() if "auditor" in roles}
    assert reads == {
        *("sites", "runs", "runs-compare", "runs-diff", "report", "watch", "audit-verify", "audit-export"),
    }


def test_subject_is_the_hash_of_its_lines():
    # printf 'st-mary\nab\n' | sha256sum
    assert operators.subject_of("st-mary", "ab") == "19187ee3a6228e4ff41d2997906361ac0e161f47c14da237deb6c5199a1def22"
