import dataclasses
import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import operators, pki
from common.errors import EnrolmentError
from common.operators import Endorsement, Role

RUN, BUNDLE, AT = "ab" * 32, "cd" * 32, 1_790_000_000


@pytest.fixture(scope="module")
def root_key() -> pki.PrivateKey:
    return pki.new_key()


@pytest.fixture(scope="module")
def root(root_key: pki.PrivateKey) -> pki.Certificate:
    return pki.new_root(root_key, "root")


def endorsed(
    root: pki.Certificate, root_key: pki.PrivateKey, name: str = "maria", role: Role = "operator"
) -> Endorsement:
    key = Ed25519PrivateKey.generate()
    pem = pki.to_pem(operators.certificate(key.public_key(), name, role, root, root_key))
    return operators.endorse(key, pem, RUN, BUNDLE, AT)


def check(root: pki.Certificate, *endorsements: Endorsement) -> tuple[str, ...]:
    return operators.check_endorsements(endorsements, pki.to_pem(root), RUN, BUNDLE)


def test_statement_is_what_the_documentation_says(root, root_key):
    one = endorsed(root, root_key)
    key = pki.load_certificate(one.certificate_pem).public_key()
    key.verify(one.signature, f"wardround proposal 1\n{RUN}\n{BUNDLE}\nmaria\n{AT}\n".encode())


def test_operators_and_admins_propose_and_auditors_do_not(root, root_key):
    roles: tuple[Role, ...] = ("admin", "operator", "auditor")
    assert check(root, *(endorsed(root, root_key, role, role) for role in roles)) == ("admin", "operator")


def test_one_operator_counts_once(root, root_key):
    one = endorsed(root, root_key)
    assert check(root, one, one, dataclasses.replace(one)) == ("maria",)
    assert check(root, one, endorsed(root, root_key, "jonas")) == ("jonas", "maria")


@pytest.mark.parametrize("changes", [{"signed_at": AT + 1}, {"signature": b"\0" * 64}, {"signature": b""}])
def test_changed_endorsement_does_not_count(root, root_key, changes):
    assert check(root, dataclasses.replace(endorsed(root, root_key), **changes)) == ()


def test_endorsement_holds_for_one_run_and_one_bundle(root, root_key):
    one, pem = endorsed(root, root_key), pki.to_pem(root)
    assert operators.check_endorsements([one], pem, "00" * 32, BUNDLE) == ()
    assert operators.check_endorsements([one], pem, RUN, "00" * 32) == ()


def test_certificate_of_another_root_or_purpose_does_not_count(root, root_key):
    other_key = pki.new_key()
    other = endorsed(pki.new_root(other_key, "root"), other_key)
    assert check(root, other) == ()
    site_key = pki.new_key()
    site = pki.to_pem(pki.site_certificate(pki.csr_for("maria", site_key), "maria", root, root_key))
    assert check(root, dataclasses.replace(endorsed(root, root_key), certificate_pem=site)) == ()
    assert check(root, dataclasses.replace(endorsed(root, root_key), certificate_pem=b"none")) == ()


def test_operators_certificate_opens_no_door_of_a_site(root, root_key):
    pem = endorsed(root, root_key).certificate_pem
    with pytest.raises(EnrolmentError):
        pki.check_site_certificate(pem, pki.to_pem(root), "maria", pki.new_key())


def test_expired_certificate_does_not_count(root, root_key, monkeypatch):
    one = endorsed(root, root_key)
    later = pki.now() + operators.LIFETIME + datetime.timedelta(days=1)
    monkeypatch.setattr(pki, "now", lambda: later)
    assert check(root, one) == ()


def test_successor_root_counts_beside_the_pinned_one(root, root_key):
    next_key = pki.new_key()
    successor = pki.new_root(next_key, "next")
    one = endorsed(successor, next_key)
    assert check(root, one) == ()
    both = pki.to_pem(root) + pki.to_pem(successor)
    assert operators.check_endorsements([one], both, RUN, BUNDLE) == ("maria",)
