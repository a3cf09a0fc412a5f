"""Whose receipt key a root names is believed as far as the root is, and no further."""

import datetime
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import EnrolmentError
from common.identity import certificates, rotation
from common.identity.receipt_keys import check_receipt_key, prove_receipt_key, receipt_key_of
from tests.common.identity.conftest import Root


def vouched(
    root: Root, site: str = "st-mary", receipt_key: bytes | None = None, key: certificates.PrivateKey | None = None
) -> bytes:
    """A site's certificate, PEM."""
    signing = Ed25519PrivateKey.generate().public_key().public_bytes_raw() if receipt_key is None else receipt_key
    return certificates.to_pem(
        certificates.site_certificate(
            certificates.csr_for(site, key or certificates.new_key()), site, root[1], root[0], signing
        )
    )


def resigned(root: Root, pem: bytes, change: Callable[[x509.Extension[Any]], x509.ExtensionType]) -> bytes:
    """The certificate with changed extensions, signed by the root anew."""
    old = certificates.load_certificate(pem)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
    for extension in old.extensions:
        builder = builder.add_extension(change(extension), extension.critical)
    return certificates.to_pem(builder.sign(root[0], hashes.SHA256()))


def test_receipt_key_stands_in_the_certificate_as_rfc_8410_says_and_is_not_critical(root):
    receipt_key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    certificate = certificates.load_certificate(vouched(root, receipt_key=receipt_key))
    (extension,) = [one for one in certificate.extensions if one.oid.dotted_string.startswith("2.25.")]
    assert not extension.critical
    assert extension.value.public_bytes() == bytes.fromhex("302a300506032b6570032100") + receipt_key


def test_root_says_whose_receipt_key_it_is(root):
    receipt_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    pem = vouched(root, receipt_key=receipt_key)
    assert receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary") == receipt_key
    assert receipt_key_of(pem + certificates.to_pem(root[1]), certificates.to_pem(root[1]), "st-mary") == receipt_key


def test_proof_of_the_receipt_key_is_its_signature_under_site_and_request():
    csr, signing = certificates.csr_for("st-mary", certificates.new_key()), Ed25519PrivateKey.generate()
    key, proof = signing.public_key().public_bytes_raw(), prove_receipt_key(csr, "st-mary", signing)
    digest = hashlib.sha256(csr.public_bytes(serialization.Encoding.DER) + key).hexdigest()
    signing.public_key().verify(proof, f"wardround receipt key v1\nst-mary\n{digest}\n".encode())
    assert check_receipt_key(key, proof, csr, "st-mary") == key
    other = Ed25519PrivateKey.generate()
    for wrong in (
        (key, b"", csr, "st-mary"),
        (key, proof[:-1], csr, "st-mary"),
        (key, prove_receipt_key(csr, "st-mary", other), csr, "st-mary"),
        (other.public_key().public_bytes_raw(), proof, csr, "st-mary"),
        (key, proof, csr, "st-john"),
        (key, proof, certificates.csr_for("st-mary", certificates.new_key()), "st-mary"),
    ):
        with pytest.raises(EnrolmentError, match="has not signed this request"):
            check_receipt_key(*wrong)
    for wrong_key in (b"", bytes(31), key + b"x"):
        with pytest.raises(EnrolmentError, match="not an Ed25519 public key"):
            check_receipt_key(wrong_key, proof, csr, "st-mary")


def test_receipt_key_of_another_root_or_site_is_not_believed(root):
    pem, other = vouched(root), certificates.new_key()
    same_name = (other, certificates.new_root(other, "Test root"))
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        receipt_key_of(vouched(same_name), certificates.to_pem(root[1]), "st-mary")
    with pytest.raises(EnrolmentError, match="not the certificate of site st-john"):
        receipt_key_of(pem, certificates.to_pem(root[1]), "st-john")
    for nonsense in (b"", b"hello", certificates.to_pem(certificates.csr_for("st-mary", other))):
        with pytest.raises(EnrolmentError, match="no certificate"):
            receipt_key_of(nonsense, certificates.to_pem(root[1]), "st-mary")


def test_receipt_key_that_was_altered_breaks_the_roots_signature(root):
    receipt_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    der = certificates.load_certificate(vouched(root, receipt_key=receipt_key)).public_bytes(serialization.Encoding.DER)
    mine = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    altered = x509.load_der_x509_certificate(der.replace(receipt_key, mine))
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        receipt_key_of(certificates.to_pem(altered), certificates.to_pem(root[1]), "st-mary")


def test_certificate_without_a_receipt_key_or_with_another_kind_of_key_names_none(root):
    without = certificates.to_pem(
        certificates.site_certificate(
            certificates.csr_for("st-mary", certificates.new_key()), "st-mary", root[1], root[0]
        )
    )
    ec_key = (
        certificates.new_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )

    def swapped(der: bytes) -> bytes:
        other = x509.UnrecognizedExtension(certificates.RECEIPT_KEY_OID, der)
        return resigned(
            root, vouched(root), lambda one: other if one.oid == certificates.RECEIPT_KEY_OID else one.value
        )

    for pem in (without, swapped(b""), swapped(b"\x04\x20" + bytes(32)), swapped(ec_key)):
        with pytest.raises(EnrolmentError, match="receipt key"):
            receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")


def test_server_certificate_with_a_sites_name_vouches_for_nothing(root):
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    is_usage = x509.ExtendedKeyUsage
    pem = resigned(root, vouched(root), lambda one: usage if isinstance(one.value, is_usage) else one.value)
    with pytest.raises(EnrolmentError, match="not the certificate of site"):
        receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")


def test_expired_certificate_still_says_whose_key_it_was(root, monkeypatch):
    real = certificates.now()
    monkeypatch.setattr(certificates, "now", lambda: real - datetime.timedelta(days=400))
    pem = vouched(root)
    monkeypatch.undo()
    assert len(receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")) == 32


def test_successor_root_vouches_where_it_is_known(root):
    key = certificates.new_key()
    following = (key, certificates.new_root(key, "Next root"))
    pem = vouched(following)
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")
    assert receipt_key_of(pem, certificates.to_pem(root[1]) + certificates.to_pem(following[1]), "st-mary")


def in_days(days: float) -> datetime.datetime:
    return certificates.now() + datetime.timedelta(days=days)


def test_voucher_of_the_new_root_makes_an_old_roots_word_believed(root, new_root):
    receipt_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    pem, pinned = vouched(root, receipt_key=receipt_key), certificates.to_pem(new_root[1])
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        receipt_key_of(pem, pinned, "st-mary")
    voucher = rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(90))
    voucher.verify_directly_issued_by(new_root[1])
    assert receipt_key_of(pem + certificates.to_pem(voucher), pinned, "st-mary") == receipt_key
    with pytest.raises(EnrolmentError, match="not the certificate of site st-john"):
        receipt_key_of(pem + certificates.to_pem(voucher), pinned, "st-john")


def test_voucher_that_no_pinned_root_signed_for_this_purpose_and_this_time_is_none(root, new_root):
    pem, pinned = vouched(root), certificates.to_pem(new_root[1])
    stranger_key, between_key = certificates.new_key(), certificates.new_key()
    same_name = certificates.new_root(stranger_key, "New root")
    between = certificates.new_root(between_key, "Between")
    good = certificates.to_pem(rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(90)))
    another_usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])

    def with_usage(value: x509.ExtensionType) -> bytes:
        return resigned(
            new_root, good, lambda one: value if isinstance(one.value, x509.ExtendedKeyUsage) else one.value
        )

    for wrong in (
        certificates.to_pem(rotation.vouch_for(root[1], same_name, stranger_key, in_days(90))),
        certificates.to_pem(
            rotation.vouch_for(certificates.new_root(stranger_key, "Test root"), new_root[1], new_root[0], in_days(90))
        ),
        certificates.to_pem(rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(-0.001))),
        certificates.to_pem(rotation.cross_sign(root[1], new_root[1], new_root[0])),
        certificates.to_pem(root[1]),
        with_usage(another_usage),
        # By way of another one: as many steps as somebody likes.
        certificates.to_pem(rotation.vouch_for(root[1], between, between_key, in_days(90)))
        + certificates.to_pem(rotation.vouch_for(between, new_root[1], new_root[0], in_days(90))),
        # A site's own certificate, as if it were a root's.
        certificates.to_pem(
            certificates.site_certificate(
                certificates.csr_for("Test root", root[0]), "Test root", new_root[1], new_root[0]
            )
        ),
    ):
        with pytest.raises(EnrolmentError, match="no root that is known here"):
            receipt_key_of(pem + wrong, pinned, "st-mary")


def test_voucher_says_nothing_about_a_sites_own_certificate(root, new_root):
    key = certificates.new_key()
    pem = vouched(root, key=key) + certificates.to_pem(
        rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(90))
    )
    with pytest.raises(EnrolmentError, match="not signed by this federation's root"):
        certificates.check_site_certificate(pem, certificates.to_pem(new_root[1]), "st-mary", key)
