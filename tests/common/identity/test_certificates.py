import datetime
import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import EnrolmentError
from common.identity import certificates, rotation

Root: TypeAlias = tuple[certificates.PrivateKey, x509.Certificate]


@pytest.fixture
def root() -> Root:
    key = certificates.new_key()
    return key, certificates.new_root(key, "Test root")


def assert_is_ca(certificate: x509.Certificate) -> None:
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def assert_is_leaf(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> None:
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]


def test_root_may_sign_leaves_and_nothing_deeper(root):
    assert_is_ca(root[1])
    assert root[1].extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    root[1].verify_directly_issued_by(root[1])


def test_server_certificate_carries_every_host_and_cannot_act_as_a_site(root):
    certificate = certificates.server_certificate(
        certificates.new_key(), ["fl.example.org", "127.0.0.1", "::1"], root[1], root[0]
    )
    assert_is_leaf(certificate, ExtendedKeyUsageOID.SERVER_AUTH)
    assert set(certificates.hosts_of(certificate)) == {"fl.example.org", "127.0.0.1", "::1"}


def test_site_certificate_names_the_site_and_cannot_act_as_a_server(root):
    key = certificates.new_key()
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", root[1], root[0])
    assert_is_leaf(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert certificates.common_name(certificate) == "st-mary"
    assert (certificate.not_valid_after_utc - certificates.now()).days == 89
    assert (
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )
        == certificate
    )


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
    assert certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary") == receipt_key
    assert (
        certificates.receipt_key_of(pem + certificates.to_pem(root[1]), certificates.to_pem(root[1]), "st-mary")
        == receipt_key
    )


def test_proof_of_the_receipt_key_is_its_signature_under_site_and_request():
    csr, signing = certificates.csr_for("st-mary", certificates.new_key()), Ed25519PrivateKey.generate()
    key, proof = signing.public_key().public_bytes_raw(), certificates.prove_receipt_key(csr, "st-mary", signing)
    digest = hashlib.sha256(csr.public_bytes(serialization.Encoding.DER) + key).hexdigest()
    signing.public_key().verify(proof, f"wardround receipt key v1\nst-mary\n{digest}\n".encode())
    assert certificates.check_receipt_key(key, proof, csr, "st-mary") == key
    other = Ed25519PrivateKey.generate()
    for wrong in (
        (key, b"", csr, "st-mary"),
        (key, proof[:-1], csr, "st-mary"),
        (key, certificates.prove_receipt_key(csr, "st-mary", other), csr, "st-mary"),
        (other.public_key().public_bytes_raw(), proof, csr, "st-mary"),
        (key, proof, csr, "st-john"),
        (key, proof, certificates.csr_for("st-mary", certificates.new_key()), "st-mary"),
    ):
        with pytest.raises(EnrolmentError, match="has not signed this request"):
            certificates.check_receipt_key(*wrong)
    for wrong_key in (b"", bytes(31), key + b"x"):
        with pytest.raises(EnrolmentError, match="not an Ed25519 public key"):
            certificates.check_receipt_key(wrong_key, proof, csr, "st-mary")


def test_receipt_key_of_another_root_or_site_is_not_believed(root):
    pem, other = vouched(root), certificates.new_key()
    same_name = (other, certificates.new_root(other, "Test root"))
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        certificates.receipt_key_of(vouched(same_name), certificates.to_pem(root[1]), "st-mary")
    with pytest.raises(EnrolmentError, match="not the certificate of site st-john"):
        certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-john")
    for nonsense in (b"", b"hello", certificates.to_pem(certificates.csr_for("st-mary", other))):
        with pytest.raises(EnrolmentError, match="no certificate"):
            certificates.receipt_key_of(nonsense, certificates.to_pem(root[1]), "st-mary")


def test_receipt_key_that_was_altered_breaks_the_roots_signature(root):
    receipt_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    der = certificates.load_certificate(vouched(root, receipt_key=receipt_key)).public_bytes(serialization.Encoding.DER)
    mine = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    altered = x509.load_der_x509_certificate(der.replace(receipt_key, mine))
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        certificates.receipt_key_of(certificates.to_pem(altered), certificates.to_pem(root[1]), "st-mary")


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
            certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")


def test_server_certificate_with_a_sites_name_vouches_for_nothing(root):
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    is_usage = x509.ExtendedKeyUsage
    pem = resigned(root, vouched(root), lambda one: usage if isinstance(one.value, is_usage) else one.value)
    with pytest.raises(EnrolmentError, match="not the certificate of site"):
        certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")


def test_expired_certificate_still_says_whose_key_it_was(root, monkeypatch):
    real = certificates.now()
    monkeypatch.setattr(certificates, "now", lambda: real - datetime.timedelta(days=400))
    pem = vouched(root)
    monkeypatch.undo()
    assert len(certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")) == 32


def test_successor_root_vouches_where_it_is_known(root):
    key = certificates.new_key()
    following = (key, certificates.new_root(key, "Next root"))
    pem = vouched(following)
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        certificates.receipt_key_of(pem, certificates.to_pem(root[1]), "st-mary")
    assert certificates.receipt_key_of(pem, certificates.to_pem(root[1]) + certificates.to_pem(following[1]), "st-mary")


def in_days(days: float) -> datetime.datetime:
    return certificates.now() + datetime.timedelta(days=days)


@pytest.fixture
def new_root() -> tuple[certificates.PrivateKey, x509.Certificate]:
    key = certificates.new_key()
    return key, certificates.new_root(key, "New root")


def test_voucher_of_the_new_root_makes_an_old_roots_word_believed(root, new_root):
    receipt_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    pem, pinned = vouched(root, receipt_key=receipt_key), certificates.to_pem(new_root[1])
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        certificates.receipt_key_of(pem, pinned, "st-mary")
    voucher = rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(90))
    voucher.verify_directly_issued_by(new_root[1])
    assert certificates.receipt_key_of(pem + certificates.to_pem(voucher), pinned, "st-mary") == receipt_key
    with pytest.raises(EnrolmentError, match="not the certificate of site st-john"):
        certificates.receipt_key_of(pem + certificates.to_pem(voucher), pinned, "st-john")


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
            certificates.receipt_key_of(pem + wrong, pinned, "st-mary")


def test_voucher_says_nothing_about_a_sites_own_certificate(root, new_root):
    key = certificates.new_key()
    pem = vouched(root, key=key) + certificates.to_pem(
        rotation.vouch_for(root[1], new_root[1], new_root[0], in_days(90))
    )
    with pytest.raises(EnrolmentError, match="not signed by this federation's root"):
        certificates.check_site_certificate(pem, certificates.to_pem(new_root[1]), "st-mary", key)


def test_fingerprint_is_the_sha256_of_the_der(root):
    assert certificates.fingerprint(root[1]) == root[1].fingerprint(hashes.SHA256()).hex()


def test_phrase_is_the_published_proquint_encoding():
    # Examples of the proposal: 127.0.0.1 and 63.84.220.193.
    assert certificates.phrase("7f000001" + "3f54dcc1" + "00" * 24) == "lusab-babad-gutih-tugad"


def test_request_for_another_name_is_refused():
    with pytest.raises(EnrolmentError, match="must name site 'st-mary'"):
        certificates.check_csr(certificates.to_pem(certificates.csr_for("st-john", certificates.new_key())), "st-mary")


def test_request_with_a_second_name_is_refused():
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "st-mary"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "admin"),
        ]
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(certificates.new_key(), hashes.SHA256())
    with pytest.raises(EnrolmentError, match="and nothing else"):
        certificates.check_csr(certificates.to_pem(csr), "st-mary")


def test_altered_request_is_refused():
    der = bytearray(certificates.csr_for("st-mary", certificates.new_key()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(der))
    with pytest.raises(EnrolmentError, match="signature"):
        certificates.check_csr(certificates.to_pem(altered), "st-mary")


def test_text_that_is_no_request_is_refused():
    with pytest.raises(EnrolmentError, match="cannot be read"):
        certificates.check_csr(b"hello", "st-mary")


def test_certificate_of_another_root_is_refused_by_the_site(root):
    key, other = certificates.new_key(), certificates.new_key()
    other_root = certificates.new_root(other, "Test root")
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", other_root, other)
    with pytest.raises(EnrolmentError, match="not signed by this federation's root"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


def test_certificate_for_another_key_is_refused_by_the_site(root):
    certificate = certificates.site_certificate(
        certificates.csr_for("st-mary", certificates.new_key()), "st-mary", root[1], root[0]
    )
    with pytest.raises(EnrolmentError, match="and its key"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", certificates.new_key()
        )


def test_server_certificate_is_refused_as_a_site_certificate(root):
    key = certificates.new_key()
    certificate = certificates.server_certificate(key, ["st-mary"], root[1], root[0])
    with pytest.raises(EnrolmentError, match="not a client certificate"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


@pytest.mark.parametrize("days", [-400, 400])
def test_certificate_out_of_date_is_refused_and_the_message_says_since_when(root, monkeypatch, days):
    key, real = certificates.new_key(), certificates.now()
    monkeypatch.setattr(certificates, "now", lambda: real + datetime.timedelta(days=days))
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", root[1], root[0])
    monkeypatch.undo()
    with pytest.raises(EnrolmentError, match=f"{certificate.not_valid_after_utc:%Y-%m-%d}"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


def test_key_survives_its_file_and_other_bytes_are_no_key():
    key = certificates.new_key()
    assert certificates.load_key(certificates.key_to_pem(key)).private_numbers() == key.private_numbers()
    with pytest.raises(EnrolmentError, match="not a private key"):
        certificates.load_key(b"hello")
